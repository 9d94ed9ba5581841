//! The servers with their standbys, the processes, and the wires between them.

use crate::{
    clock::{Clock, Of},
    disk::Disk,
    party::Parties,
    site::{Plan, Site},
};
use anyhow::Context as _;
use jiff::SignedDuration;
use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};
use tcc_coordinator::config::{Config, Database, ShardConfig};
use tcc_tests::{
    Client,
    process::Tccd,
    proxy::{CommitsBy, Mode, Proxy},
};
use tempfile::TempDir;
use tokio::sync::Mutex;

/// The coordinator's server, and the shards': each with a standby, which is a synchronous one for the shards.
const SITES: [Plan; 4] = [
    Plan { name: "coordinator", is_synchronous: false, has_small_disk: true },
    Plan { name: "shard-0", is_synchronous: true, has_small_disk: true },
    Plan { name: "shard-1", is_synchronous: true, has_small_disk: false },
    Plan { name: "shard-2", is_synchronous: true, has_small_disk: false },
];
/// How many shards.
pub const SHARDS: usize = SITES.len() - 1;

/// What can go wrong beside what always can.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// How many `tccd` there are.
    pub instances: usize,
    /// Whether some disks are small and clocks can be set, where this machine allows that; and whether others than shards take
    /// part.
    pub is_rough: bool,
}

/// Everything. Clones share it.
#[derive(Clone)]
pub struct System {
    /// The coordinator's servers, and the shards'.
    pub sites: Vec<Arc<Site>>,
    /// How to reach each of them without a wire that fails.
    pub urls: Vec<String>,
    /// The processes.
    pub instances: Vec<Arc<Mutex<Tccd>>>,
    /// Theirs, if they can be set.
    pub clocks: Vec<Option<Arc<Clock>>>,
    /// Of each process to each server.
    pub wires: Vec<Vec<Arc<Proxy>>>,
    /// Whether some logs are on small disks.
    pub has_small_disks: bool,
    /// Those who take part beside the shards.
    pub parties: Option<Arc<Parties>>,
    clients: Vec<Client>,
}

impl System {
    /// Starts everything.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let root = tempfile::Builder::new().prefix("tcc-chaos-").tempdir().context("making a folder")?;
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).context("opening a folder")?;
        let root = Arc::new(root);
        let has_small_disks = setup.is_rough && can_mount(&root);
        let clock = |name: &str, of| {
            let clock = if setup.is_rough { Clock::new(root.path(), name, of)? } else { None };
            anyhow::Ok(clock.map(Arc::new))
        };
        let starting = SITES.map(|plan| {
            let clock = if plan.is_synchronous { Ok(None) } else { clock(plan.name, Of::Server) };
            let plan = Plan { has_small_disk: plan.has_small_disk && has_small_disks, ..plan };
            let root = Arc::clone(&root);
            tokio::spawn(async move { Site::start(plan, root, clock?).await.map(Arc::new) })
        });
        let mut sites = Vec::new();
        for site in starting {
            sites.push(site.await.context("starting the servers")??);
        }
        let urls: Vec<String> = sites.iter().map(|site| site.url()).collect();

        let parties = if setup.is_rough {
            let direct = |n: usize| ShardConfig::new(&format!("shard-{n}"), &urls[n + 1]);
            let ledger = Config {
                coordinator: Database { url: urls[0].clone() },
                shards: (0..SHARDS).map(direct).collect(),
                ..Config::default()
            };
            Some(Arc::new(Parties::start(&ledger).await.context("starting those beside the shards")?))
        } else {
            None
        };
        let (mut instances, mut clocks) = (Vec::new(), Vec::new());
        let (mut wires, mut clients) = (Vec::new(), Vec::new());
        for number in 0..setup.instances {
            let mut mine = Vec::new();
            for (n, site) in sites.iter().enumerate() {
                let commits_by = if n == 0 { CommitsBy::Sync } else { CommitsBy::Commit };
                let wire = Proxy::start(site.socket(), commits_by).await.context("starting a wire")?;
                mine.push(Arc::new(wire));
            }
            let shard = |n: usize| ShardConfig::new(&format!("shard-{n}"), &mine[n + 1].url());
            let mut config = Config {
                listen: "127.0.0.1:0".into(),
                insecure_dev: true,
                coordinator: Database { url: mine[0].url() },
                shards: (0..SHARDS).map(shard).collect(),
                ..Config::default()
            };
            if let Some(parties) = &parties {
                parties.join(&mut config).await;
            }
            let clock = clock(&format!("tccd-{number}"), Of::Threads)?;
            let environment = clock.as_deref().map(Clock::environment).unwrap_or_default();
            let tccd = Tccd::start_in(&config, environment).await?;
            clients.push(Client::lazy(tccd.url()));
            instances.push(Arc::new(Mutex::new(tccd)));
            clocks.push(clock);
            wires.push(mine);
        }
        Ok(Self { sites, urls, instances, clocks, wires, has_small_disks, parties, clients })
    }

    /// A client of an instance, which may be down.
    pub fn client(&self, instance: usize) -> Client {
        self.clients[instance % self.clients.len()].clone()
    }

    /// The clock of the coordinator's server.
    pub fn clock(&self) -> Option<&Clock> {
        self.sites[0].clock.as_deref()
    }

    /// What this machine does not allow, and so does not go wrong.
    pub fn not_run(&self) -> Vec<&'static str> {
        let disk_full = (!self.has_small_disks).then_some("disk_full");
        let clock_steps =
            (self.clock().is_none() || self.clocks.iter().any(Option::is_none)).then_some("clock_steps");
        disk_full.into_iter().chain(clock_steps).collect()
    }

    /// Every wire is whole, every clock is right, every server and every process runs.
    pub async fn mend(&self) -> anyhow::Result<()> {
        self.wires.iter().flatten().for_each(|wire| wire.set(Mode::Whole));
        for clock in self.clock().into_iter().chain(self.clocks.iter().flatten().map(AsRef::as_ref)) {
            clock.set(SignedDuration::ZERO)?;
        }
        for site in &self.sites {
            site.mend().await?;
        }
        if let Some(parties) = &self.parties {
            parties.mend().await?;
        }
        for instance in &self.instances {
            let mut tccd = instance.lock().await;
            if tccd.id().is_none() {
                tccd.restart().await?;
            }
        }
        Ok(())
    }
}

/// Whether this process may mount a disk.
fn can_mount(root: &TempDir) -> bool {
    Disk::mount(&root.path().join("trial")).is_ok()
}
