//! The reading half of the API straight from the databases, for when no `tccd` answers: what `tccctl --direct` asks.
//!
//! The services are the same, on the same engine; nothing fires its timers, it has no slots and no instance. Calls that could change
//! something are refused before they are read, and every session of a database is one in which the server refuses writes.
//! So it can be used beside instances that work, and on a standby. It needs the configuration, and the logins in it.

use crate::{
    api::{Creations, Holds, Ledger, Operator, Recoveries, Transactions, reason},
    auth::{Gate, Peer},
    config::Config,
    databases::Logins,
    engine::{Engine, Participants},
    quota::Quotas,
    recovery::Recovery,
    registry::Registry,
    schedule::{Clock, Continuity, Timers},
    serve::{self, ServeError, Vitals},
    shards::Shards,
    store::{self, Store, StoreError, keys::Keys},
    sweep::Progress,
};
use hyper::{Request, Response, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};
use std::{collections::HashSet, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tcc_ledger::{Shard, heads::Heads};
use tcc_participant::{Participant, Postgres};
use tcc_proto::{
    Reason,
    v1::{
        hold_service_server::HoldServiceServer, ledger_service_server::LedgerServiceServer,
        operator_service_server::OperatorServiceServer, recovery_service_server::RecoveryServiceServer,
        transaction_service_server::TransactionServiceServer,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use uuid::Uuid;

/// How long a shard may take to be reached before it is shown as one that is not.
const PATIENCE: Duration = Duration::from_secs(3);

/// Answers calls that change nothing.
pub struct Direct {
    routes: Routes,
    gate: Arc<Gate>,
    /// By path.
    reads: HashSet<String>,
    _unbroken: watch::Sender<Continuity>,
    _stop: tokio_util::sync::DropGuard,
}

impl Direct {
    /// Connects to the databases of a configuration. A shard that does not answer is shown as unreachable.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub async fn open(config: &Config) -> Result<Self, ServeError> {
        let logins = Logins::read(&config.postgres)?;
        let way = |which: &str, url: &str| -> Result<Postgres, ServeError> {
            Ok(serve::database(&logins, which, url)?.engine.read_only())
        };
        let coordinator = way("the coordinator", &config.coordinator.url)?;
        let names: Vec<String> = config.shards.iter().map(|shard| shard.name.clone()).collect();
        let client = serve::connect("the coordinator", &coordinator).await?;
        let map = store::schema::map(&client, &names).await?;
        let kept = store::heads::kept(&client).await.map_err(store::schema::SchemaError::from)?;
        drop(client);

        let mut shards = Vec::new();
        for one in &config.shards {
            let (heads, kept) = (Heads::default(), kept.iter().find(|kept| kept.shard == one.name));
            if let Some(kept) = kept {
                heads.expect(kept.heads.clone());
                kept.lost.iter().for_each(|lost| heads.stop(lost.clone()));
            }
            let database = way(&format!("shard {}", one.name), &one.url)?;
            let shard = Shard::start(&one.name, &database, map[&one.name].clone(), heads);
            shard.set_drained(kept.is_some_and(|kept| kept.drained));
            shards.push(shard);
        }
        let store = Store::start(&coordinator);
        let unreadable = |error: StoreError| ServeError::Unreachable {
            which: "the coordinator".into(),
            why: error.to_string(),
        };
        let now = store.now().await.map_err(unreadable)?;
        let server = store.server().await.map_err(unreadable)?;
        let clock = Clock::set_to(now);
        let (_unbroken, unbroken) = watch::channel(Continuity { since: now, server });
        let connected =
            |shard: &Shard| shard.is_reachable() || shard.is_drained() || shard.heads().lost().is_some();
        let deadline = Instant::now() + PATIENCE;
        while !(shards.iter().all(connected) && store.get.is_reachable()) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        let (timers, sweep) = (Timers::default(), Progress::default());
        let participants =
            shards.iter().map(|shard| Arc::new(shard.clone()) as Arc<dyn Participant>).collect();
        let keys = Keys::start(&coordinator, store.clone());
        let engine =
            Engine::new(store, Participants::new(participants, &map), timers.clone(), clock, unbroken);
        let shards = Arc::new(Shards::new(shards, &map));
        let stop = CancellationToken::new();
        // Whoever has the logins of the databases need not be asked who it is.
        let open = Config { insecure_dev: true, ..config.clone() };
        let gate = Gate::start(&open, stop.clone()).await?;
        let vitals = Vitals { instance: Uuid::nil(), started_at: now, timers, sweep: sweep.clone() };
        let vitals = Arc::new(vitals);
        let (engine_too, shards_too, limits) =
            (Arc::clone(&engine), Arc::clone(&shards), config.limits.clone());
        let registry = Registry::listed(engine.store().registered().await?);
        let quotas = Quotas::new(engine.store().clone(), 0, stop.clone());
        let creations = Creations::new(engine_too, Arc::clone(&shards), keys, sweep, quotas, limits.clone());
        let transactions = Transactions::new(creations.clone(), Arc::clone(&shards));
        let holds = Holds::new(creations, shards_too, Arc::clone(&gate));
        let ledger = Ledger::new(Arc::clone(&shards), Arc::clone(&engine), limits);
        let operator = Operator::new(Arc::clone(&engine), Arc::clone(&shards), registry, Arc::clone(&vitals));
        let recoveries = Recoveries::new(Recovery { engine, shards }, vitals);
        let routes = Routes::new(HoldServiceServer::new(holds))
            .add_service(TransactionServiceServer::new(transactions))
            .add_service(LedgerServiceServer::new(ledger))
            .add_service(OperatorServiceServer::new(operator))
            .add_service(RecoveryServiceServer::new(recoveries))
            .prepare();
        Ok(Self { routes, gate, reads: reads(), _unbroken, _stop: stop.drop_guard() })
    }

    /// Answers over one connection, until it is closed.
    pub async fn serve(self: Arc<Self>, connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let answer = service_fn(move |request: Request<Incoming>| {
            let direct = Arc::clone(&self);
            async move { Ok::<_, Infallible>(direct.answer(request.map(Body::new)).await) }
        });
        let serving =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(connection), answer);
        // The other end is in this process; it ends when that has what it wanted.
        let _ = serving.await;
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if !self.reads.contains(request.uri().path()) {
            let message = "this reads straight from the databases, and changes nothing: ask a tccd";
            return reason::status(Reason::ReadOnly, message, []).into_http();
        }
        let peer = Peer { address: SocketAddr::from(([127, 0, 0, 1], 0)), names: None };
        self.gate.answer(self.routes.clone(), peer, request).await
    }
}

/// The calls that change nothing, as their definitions say.
fn reads() -> HashSet<String> {
    let files: FileDescriptorSet =
        prost::Message::decode(tcc_proto::FILE_DESCRIPTOR_SET).expect("the compiled proto files decode");
    let mut reads = HashSet::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let level = method.options.as_ref().map(|options| options.idempotency_level());
                if level == Some(IdempotencyLevel::NoSideEffects) {
                    reads.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_something_is_no_read() {
        let reads = reads();

        for path in ["OperatorService/GetStatus", "HoldService/GetHold", "RecoveryService/DescribeHold"] {
            assert!(reads.contains(&format!("/tcc.v1.{path}")), "{path}");
        }
        for path in [
            "RecoveryService/Act",
            "HoldService/CreateHold",
            "OperatorService/ResumeShard",
            "LedgerService/Issue",
        ] {
            assert!(!reads.contains(&format!("/tcc.v1.{path}")), "{path}");
        }
    }
}
