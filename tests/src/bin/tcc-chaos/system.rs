//! The servers, the processes, and the wires between them.

use anyhow::Context as _;
use std::{sync::Arc, time::Duration};
use tcc_coordinator::{
    config::{Config, Database, ShardConfig},
    dev::{Cluster, Servers},
};
use tcc_proto::v1::{
    hold_service_client::HoldServiceClient, ledger_service_client::LedgerServiceClient,
    operator_service_client::OperatorServiceClient, recovery_service_client::RecoveryServiceClient,
};
use tcc_tests::{
    Client,
    process::Tccd,
    proxy::{CommitsBy, Mode, Proxy},
};
use tokio::sync::Mutex;
use tonic::transport::Channel;

/// How many `tccd` there are.
pub const INSTANCES: usize = 3;
/// How many shards.
pub const SHARDS: usize = 3;

/// Everything. Clones share it.
#[derive(Clone)]
pub struct System {
    /// The coordinator's server, and the shards'.
    pub servers: Vec<Arc<Mutex<Cluster>>>,
    /// How to reach each of them without a wire that fails.
    pub urls: Vec<String>,
    /// The processes.
    pub instances: Vec<Arc<Mutex<Tccd>>>,
    /// Of each process to each server.
    pub wires: Vec<Vec<Arc<Proxy>>>,
    clients: Vec<Client>,
}

impl System {
    /// Starts everything.
    pub async fn start() -> anyhow::Result<Self> {
        let servers = tokio::task::spawn_blocking(|| Servers::start(SHARDS, None, &[])).await??;
        let all: Vec<Cluster> = std::iter::once(servers.coordinator).chain(servers.shards).collect();
        let urls: Vec<String> = all.iter().map(Cluster::url).collect();
        let (mut instances, mut wires, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..INSTANCES {
            let mut mine = Vec::new();
            for (n, server) in all.iter().enumerate() {
                let commits_by = if n == 0 { CommitsBy::Sync } else { CommitsBy::Commit };
                let socket = server.home().join("s/.s.PGSQL.5432");
                mine.push(Arc::new(Proxy::start(socket, commits_by).await.context("starting a wire")?));
            }
            let shard = |n: usize| ShardConfig { name: format!("shard-{n}"), url: mine[n + 1].url() };
            let config = Config {
                listen: "127.0.0.1:0".into(),
                coordinator: Database { url: mine[0].url() },
                shards: (0..SHARDS).map(shard).collect(),
                ..Config::default()
            };
            let tccd = Tccd::start(&config).await?;
            clients.push(client(tccd.url())?);
            instances.push(Arc::new(Mutex::new(tccd)));
            wires.push(mine);
        }
        let servers = all.into_iter().map(|server| Arc::new(Mutex::new(server))).collect();
        Ok(Self { servers, urls, instances, wires, clients })
    }

    /// A client of an instance, which may be down.
    pub fn client(&self, instance: usize) -> Client {
        self.clients[instance % INSTANCES].clone()
    }

    /// Every wire is whole, every server and every process runs.
    pub async fn mend(&self) -> anyhow::Result<()> {
        self.wires.iter().flatten().for_each(|wire| wire.set(Mode::Whole));
        for server in &self.servers {
            let server = Arc::clone(server);
            tokio::task::spawn_blocking(move || {
                let mut server = server.blocking_lock();
                if server.processes().is_empty() { server.launch() } else { Ok(()) }
            })
            .await??;
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

fn client(url: &str) -> anyhow::Result<Client> {
    let channel = Channel::from_shared(url.to_owned())?
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(8))
        .connect_lazy();
    Ok(Client {
        holds: HoldServiceClient::new(channel.clone()),
        ledger: LedgerServiceClient::new(channel.clone()),
        operator: OperatorServiceClient::new(channel.clone()),
        recovery: RecoveryServiceClient::new(channel),
    })
}
