//! What is measured when somebody asks: how much waits where, who can be reached, who needs a person.
//!
//! A number that cannot be read is left out rather than repeated: `tcc_store_up` then says why.

use super::{Histogram, histogram::CALLS, metrics::attention_name};
use crate::{
    engine::Engine,
    registry::{Entry, Registry as Participants},
    serve::Vitals,
    shards::Shards,
};
use prometheus_client::{
    encoding::text::encode_registry,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tcc_core::Attention;
use tcc_participant::{BreakerState, Participant as _};

/// The database is asked no more often: when very much needs attention, counting it takes a while.
const READ_AGAIN: Duration = Duration::from_secs(5);

type Value = Gauge<f64, AtomicU64>;
type By<const N: usize> = Family<[(&'static str, String); N], Value>;
type Operations = Family<[(&'static str, String); 3], Histogram, fn() -> Histogram>;

/// What the gauges are read from.
#[derive(Clone)]
pub struct Sources {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The shards, in the order of the engine's participants.
    pub shards: Arc<Shards>,
    /// The participants that are no shards.
    pub registry: Participants,
    /// The instance.
    pub vitals: Arc<Vitals>,
}

/// The gauges of one instance.
pub struct Gauges {
    registry: Registry,
    attention: By<1>,
    attention_oldest: By<1>,
    acknowledged: Value,
    shard_up: By<1>,
    breaker: By<1>,
    shard_stopped: By<1>,
    shard_drained: By<1>,
    shard_queued: By<1>,
    gate_waiting: By<1>,
    participant_up: By<1>,
    participant_breaker: By<1>,
    participant_drained: By<1>,
    participant_queued: By<1>,
    participant_waiting: By<1>,
    store_up: By<1>,
    store_queued: By<1>,
    connections: By<2>,
    pending: By<1>,
    operations: Operations,
    armed: Value,
    settled: Counter,
    missed: Counter,
    slots: Value,
    watermark_lag: Value,
    active: Value,
    draining: Value,
    instances: Value,
    rebuilt: Counter,
    unswept: Value,
    findings: Value,
    /// When the database was asked last.
    read_at: Mutex<Option<Instant>>,
}

fn breaker_number(state: BreakerState) -> f64 {
    match state {
        BreakerState::Closed => 0.0,
        BreakerState::HalfOpen => 1.0,
        BreakerState::Open => 2.0,
    }
}

/// Registers under a name.
fn known<M: prometheus_client::registry::Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Gauges {
    /// Nothing is read yet.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        let build: By<1> = known(r, "tcc_build_info", "The version that runs; always 1");
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1.0);
        let operations = Operations::new_with_constructor(|| Histogram::new(CALLS));
        let help = "Time of a batch: its statements, and its commit";
        r.register("db_client_operation_duration_seconds", help, operations.clone());
        Self {
            attention: known(
                r,
                "tcc_transactions_attention",
                "Transactions that need looking at, but for those acknowledged",
            ),
            attention_oldest: known(
                r,
                "tcc_attention_oldest_seconds",
                "Since when the oldest of them has needed it",
            ),
            acknowledged: known(
                r,
                "tcc_transactions_acknowledged",
                "Parked transactions that an operator has settled by hand",
            ),
            shard_up: known(r, "tcc_shard_up", "Whether work can be done on a shard"),
            breaker: known(
                r,
                "tcc_breaker_state",
                "Whether a shard or participant is asked: 0 closed, 1 half open (a little), 2 open (nothing)",
            ),
            shard_stopped: known(
                r,
                "tcc_shard_stopped",
                "Whether work on a shard is stopped because it has lost commits",
            ),
            shard_drained: known(r, "tcc_shard_drained", "Whether an operator has stopped work on a shard"),
            shard_queued: known(r, "tcc_shard_queued", "Operations that wait for a shard's next batch"),
            gate_waiting: known(
                r,
                "tcc_gate_waiting",
                "Due transactions that wait until a shard can be reached or has less to do",
            ),
            participant_up: known(
                r,
                "tcc_participant_up",
                "Whether a participant that is no shard can be called",
            ),
            participant_breaker: known(
                r,
                "tcc_participant_breaker_state",
                "Whether a participant is asked: 0 closed, 1 half open (a little), 2 open (nothing)",
            ),
            participant_drained: known(
                r,
                "tcc_participant_drained",
                "Whether an operator lets no new transactions at a participant",
            ),
            participant_queued: known(
                r,
                "tcc_participant_queued",
                "Calls that wait for a participant's next request",
            ),
            participant_waiting: known(
                r,
                "tcc_participant_waiting",
                "Due transactions that wait until a participant can be called or has less to do",
            ),
            store_up: known(
                r,
                "tcc_store_up",
                "Whether a statement's connection to the coordinator's database is there",
            ),
            store_queued: known(r, "tcc_store_queued", "Items that wait for a statement's next batch"),
            connections: known(r, "db_client_connection_count", "Pooled connections for reading"),
            pending: known(
                r,
                "db_client_connection_pending_requests",
                "Reads that wait for a pooled connection",
            ),
            armed: known(r, "tcc_ring_armed", "Wake-ups in memory"),
            settled: known(r, "tcc_ring_settled", "Wake-ups looked at"),
            missed: known(r, "tcc_ring_missed", "Wake-ups that only the second reading found; normally none"),
            slots: known(r, "tcc_slots", "Of the 256 slots, how many this instance serves"),
            watermark_lag: known(
                r,
                "tcc_watermark_lag_seconds",
                "How long ago everything due had been looked at; normally 2 to 15",
            ),
            active: known(r, "tcc_active_transactions", "Transactions that are being worked on"),
            draining: known(r, "tcc_draining", "Whether the instance takes no new work"),
            instances: known(r, "tcc_instances", "Instances that share the coordinator's database"),
            rebuilt: known(
                r,
                "tcc_sweep_rebuilt",
                "Lost transactions that were rebuilt from their fences; normally none",
            ),
            unswept: known(
                r,
                "tcc_sweep_unfinished_shards",
                "Shards not searched for lost transactions since the last start or loss",
            ),
            findings: known(
                r,
                "tcc_audit_findings",
                "What the auditor in the background has ever found; normally nothing",
            ),
            operations,
            registry,
            read_at: Mutex::default(),
        }
    }

    /// Times the batches of all databases from now on. Which calls a batch of a shard has differs from one to the next.
    pub fn time(&self, sources: &Sources) {
        let timer = |pool: &str, operation: &str| {
            let labels = [
                ("db_system_name", "postgresql".to_owned()),
                ("db_client_connection_pool_name", pool.to_owned()),
                ("db_operation_name", operation.to_owned()),
            ];
            let histogram = self.operations.get_or_create(&labels).clone();
            move |took| histogram.observe(took)
        };
        let store = sources.engine.store();
        store.begin.timed_by(timer("coordinator", "begin"));
        store.advance.timed_by(timer("coordinator", "advance"));
        store.wake.timed_by(timer("coordinator", "wake"));
        store.defer.timed_by(timer("coordinator", "defer"));
        store.get.timed_by(timer("coordinator", "get"));
        for shard in sources.shards.all() {
            shard.timed_by(timer(shard.name(), "operations"));
        }
    }

    /// Reads them all.
    pub async fn read(&self, sources: &Sources) {
        self.read_memory(sources);
        {
            let mut read_at = self.read_at.lock().expect("no holder panics");
            if read_at.is_some_and(|at| at.elapsed() < READ_AGAIN) {
                return;
            }
            *read_at = Some(Instant::now());
        }
        let store = sources.engine.store();
        let found = tokio::try_join!(
            store.attention(),
            store.acknowledged(),
            store.instances(),
            store.count_findings()
        );
        self.store_up.get_or_create(&label("statement", "reads")).set(f64::from(u8::from(found.is_ok())));
        match found {
            Ok((kinds, acknowledged, instances, (findings, _))) => {
                for kind in &Attention::ALL[1..] {
                    let found = kinds.iter().find(|summary| summary.kind == *kind);
                    let labels = label("attention", attention_name(*kind));
                    let (count, oldest_s) =
                        found.map_or((0.0, 0.0), |found| (found.transactions as f64, found.oldest_s));
                    self.attention.get_or_create(&labels).set(count);
                    self.attention_oldest.get_or_create(&labels).set(oldest_s);
                }
                self.acknowledged.set(acknowledged as f64);
                self.findings.set(findings as f64);
                self.instances.set(instances.iter().filter(|instance| instance.is_alive).count() as f64);
            }
            Err(error) => {
                tracing::debug!(%error, "what needs attention cannot be read for the metrics");
                self.attention.clear();
                self.attention_oldest.clear();
            }
        }
    }

    /// Writes them, without an end mark.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn encode(&self, text: &mut String) -> Result<(), std::fmt::Error> {
        encode_registry(text, &self.registry)
    }

    fn read_memory(&self, sources: &Sources) {
        let Sources { engine, shards, registry, vitals } = sources;
        for (index, shard) in shards.all().iter().enumerate() {
            let labels = label("shard", shard.name());
            let set = |family: &By<1>, value: f64| {
                family.get_or_create(&labels).set(value);
            };
            set(&self.shard_up, f64::from(u8::from(shard.is_reachable())));
            set(&self.breaker, breaker_number(engine.breaker(index)));
            set(&self.shard_stopped, f64::from(u8::from(shard.heads().lost().is_some())));
            set(&self.shard_drained, f64::from(u8::from(shard.is_drained())));
            set(&self.shard_queued, shard.queued() as f64);
            set(&self.gate_waiting, engine.waiting(index) as f64);
            self.read_pool(shard.name(), &shard.reading());
        }
        self.read_participants(engine, registry);
        let store = engine.store();
        self.read_pool("coordinator", &store.pool.status());
        let statements = [
            ("begin", store.begin.is_reachable(), store.begin.queued()),
            ("advance", store.advance.is_reachable(), store.advance.queued()),
            ("wake", store.wake.is_reachable(), store.wake.queued()),
            ("defer", store.defer.is_reachable(), store.defer.queued()),
            ("get", store.get.is_reachable(), store.get.queued()),
        ];
        for (statement, is_up, queued) in statements {
            let labels = label("statement", statement);
            self.store_up.get_or_create(&labels).set(f64::from(u8::from(is_up)));
            self.store_queued.get_or_create(&labels).set(queued as f64);
        }
        let (armed, settled, missed, slots, watermark_us) = {
            let ring = vitals.timers.lock();
            (ring.len(), ring.settled(), ring.missed(), ring.served().count(), ring.lowest_watermark_us())
        };
        self.armed.set(armed as f64);
        self.settled.inner().store(settled, Ordering::Relaxed);
        self.missed.inner().store(missed, Ordering::Relaxed);
        self.slots.set(slots as f64);
        // An instance that serves no slot is behind with nothing.
        let lag_us = watermark_us.map_or(0, |watermark_us| engine.clock().now_us() - watermark_us);
        self.watermark_lag.set(lag_us.max(0) as f64 / 1e6);
        self.active.set(engine.active() as f64);
        self.draining.set(f64::from(u8::from(engine.is_draining())));
        self.rebuilt.inner().store(vitals.sweep.rebuilt(), Ordering::Relaxed);
        self.unswept.set(vitals.sweep.unfinished() as f64);
    }

    /// Those that are registered no more are not told.
    fn read_participants(&self, engine: &Engine, registry: &Participants) {
        let all = [
            &self.participant_up,
            &self.participant_breaker,
            &self.participant_drained,
            &self.participant_queued,
            &self.participant_waiting,
        ];
        all.iter().for_each(|family| family.clear());
        for Entry { registered, remote } in registry.all() {
            let name = &registered.registration.name;
            let index = engine.participants().index_by_name(name);
            let is = |is: bool| f64::from(u8::from(is));
            let values = [
                is(engine.participants().is_reachable(index)),
                breaker_number(engine.breaker(index)),
                is(registered.is_drained),
                remote.as_ref().map_or(0.0, |remote| remote.queued() as f64),
                engine.waiting(index) as f64,
            ];
            for (family, value) in all.iter().zip(values) {
                family.get_or_create(&label("participant", name.as_str())).set(value);
            }
        }
    }

    fn read_pool(&self, pool: &str, status: &deadpool_postgres::Status) {
        let name = ("db_client_connection_pool_name", pool.to_owned());
        let idle = status.available.min(status.size);
        for (state, count) in [("idle", idle), ("used", status.size - idle)] {
            let labels = [name.clone(), ("db_client_connection_state", state.to_owned())];
            self.connections.get_or_create(&labels).set(count as f64);
        }
        self.pending.get_or_create(&[name]).set(status.waiting as f64);
    }
}

impl Default for Gauges {
    fn default() -> Self {
        Self::new()
    }
}

fn label(name: &'static str, value: &str) -> [(&'static str, String); 1] {
    [(name, value.to_owned())]
}
