//! `tccd dev`: a whole system of throw-away PostgreSQL servers and one coordinator, without configuration. The tests, the
//! demo and the bench start their servers with the same code.

pub mod cluster;

pub use cluster::{Cluster, ClusterError, Options};

use crate::config::{Config, Database, ShardConfig, Telemetry};
use std::path::Path;

/// The servers of a development system: one for the coordinator, one for each shard.
pub struct Servers {
    /// The coordinator's.
    pub coordinator: Cluster,
    /// The shards', in order.
    pub shards: Vec<Cluster>,
}

impl Servers {
    /// Starts them all, in sub-folders of `data`, which is kept; without one they are thrown away at the end.
    ///
    /// # Errors
    ///
    /// [`ClusterError`], which says what to do.
    pub fn start(shards: usize, data: Option<&Path>, settings: &[&str]) -> Result<Self, ClusterError> {
        let options = |name: &str| Options {
            data: data.map(|folder| folder.join(name)),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            ..Options::default()
        };
        // Each takes half a second, most of it waiting: side by side.
        std::thread::scope(|scope| {
            let coordinator = scope.spawn(|| Cluster::start(&options("coordinator")));
            let shards: Vec<_> = (0..shards)
                .map(|n| scope.spawn(move || Cluster::start(&options(&format!("shard-{n}")))))
                .collect();
            let joined = |handle: std::thread::ScopedJoinHandle<'_, _>| {
                handle.join().expect("starting does not panic")
            };
            Ok(Self {
                coordinator: joined(coordinator)?,
                shards: shards.into_iter().map(joined).collect::<Result<_, _>>()?,
            })
        })
    }

    /// The configuration of a coordinator on these servers.
    #[must_use]
    pub fn config(&self, listen: &str) -> Config {
        let shards = self.shards.iter().enumerate();
        Config {
            listen: listen.to_owned(),
            insecure_dev: true,
            coordinator: Database { url: self.coordinator.url() },
            shards: shards
                .map(|(n, cluster)| ShardConfig::new(&format!("shard-{n}"), &cluster.url()))
                .collect(),
            telemetry: Telemetry { listen: "127.0.0.1:0".into(), ..Telemetry::default() },
            ..Config::default()
        }
    }
}
