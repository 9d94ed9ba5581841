//! A deterministic simulation: the real engine, timers and ledger rules in a world where everything fails.
//!
//! One seed is one world: a few coordinator instances, a coordinator database and two shards in memory, and some hundred
//! clients, on a virtual clock in one thread. Whatever could be left to chance is drawn from the seed: which step fails and
//! how, what is late, who is killed or stops for a while, when the database forgets its last commits. So a run that went
//! wrong runs again exactly. Then the faults end, everything must become final, and [`check`] compares what became of each
//! transaction with what its client was told.
//!
//! Real here: `engine`, `schedule`'s ring and firing, `batch`, `books`, and all of `tcc-core`. Stand-ins: the SQL of the
//! coordinator ([`db`]), of the leases and the scheduler ([`instance`]), and of a shard ([`shard`]); those are tested on
//! PostgreSQL.

pub mod bugs;
pub mod check;
pub mod client;
pub mod db;
pub mod faults;
pub mod instance;
pub mod shard;
pub mod world;

use bugs::Bug;
use faults::Counts;
use std::sync::Arc;
use world::World;

/// What came of one world.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed that makes it again.
    pub seed: u64,
    /// How many transactions its clients asked for.
    pub transactions: u64,
    /// The faults that were injected, by step and kind.
    pub counts: Counts,
    /// What should not have happened.
    pub violations: Vec<String>,
    /// A digest of everything that happened, in order.
    pub trace: u64,
}

/// Runs one world from its beginning to its end.
///
/// # Panics
///
/// If the runtime cannot be built.
#[must_use]
pub fn run(seed: u64, transactions: u64) -> Report {
    run_with(seed, transactions, None)
}

/// As [`run`], with a mistake in it.
///
/// # Panics
///
/// If the runtime cannot be built.
#[must_use]
pub fn run_with(seed: u64, transactions: u64, bug: Option<Bug>) -> Report {
    // The delays of retries are drawn from the thread's generator.
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input or output can be built");
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, bug));
        let violations = live(&world, transactions).await;
        Report { seed, transactions, counts: world.counts(), violations, trace: world.trace() }
    })
}

async fn live(world: &Arc<World>, transactions: u64) -> Vec<String> {
    instance::start_all(world);
    let nemesis = tokio::spawn(world::torment(Arc::clone(world)));
    if world.has(Bug::ReleaseByTimeOut) {
        tokio::spawn(shard::release_by_time_out(Arc::clone(world)));
    }
    let promises = client::all(world, transactions).await;
    // No more faults: what is left must become final.
    nemesis.abort();
    world.calm().await;
    check::until_final(world).await;
    check::all(world, &promises).await
}
