//! What everybody in a world shares: the clock, chance, who is alive, and the databases.

use crate::{
    bugs::Bug,
    db::Db,
    faults::{Counts, Fault, Step},
    instance::{self, Instance},
    shard::Shard,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tcc_core::{Timestamp, TransactionId};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The number of that misfortune.
const COMMITS_ARE_LOST: usize = 4;
/// How many instances there are at a time.
pub const INSTANCES: usize = 2;

/// One world. Everything in it hangs on its seed.
pub struct World {
    start: Instant,
    base: Timestamp,
    /// How likely each fault is at each step, as drawn for this world.
    rates: [f64; 7],
    /// The step at which this world fails more often than not.
    weak: Step,
    /// How likely a misfortune is each second, and how likely each kind is then, against the others: see [`torment`].
    misfortune: f64,
    misfortunes: [f64; 6],
    bug: Option<Bug>,
    inner: Mutex<Inner>,
    /// The coordinators' database.
    db: Mutex<Db>,
    shards: Vec<Mutex<Shard>>,
}

struct Inner {
    rng: fastrand::Rng,
    counts: Counts,
    is_calm: bool,
    trace: u64,
    instances: BTreeMap<usize, Arc<Instance>>,
    alive: BTreeMap<usize, Alive>,
    next_instance: usize,
    db_down_until: Option<Instant>,
    shard_down_until: Vec<Option<Instant>>,
}

struct Alive {
    stopped_until: Option<Instant>,
    killed: CancellationToken,
}

impl World {
    /// A world that nothing has happened in.
    #[must_use]
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Some worlds are quiet and some are terrible; kills are rarer than everything else.
        let mut rate = |most: f64| if rng.f64() < 0.2 { 0.0 } else { rng.f64() * most };
        let rates = [rate(0.3), rate(0.3), rate(0.15), rate(0.05), rate(0.015), rate(0.015), rate(0.2)];
        let misfortune = rate(0.5);
        let mut misfortunes: [f64; 6] = std::array::from_fn(|_| rng.f64().powi(4));
        if rng.u8(0..3) == 0 {
            misfortunes[COMMITS_ARE_LOST] = 0.0;
        }
        let weak = Step::all()[rng.usize(0..Step::all().len())];
        let base = Timestamp::from_second(1_790_000_000).expect("a time of this century");
        Self {
            start: Instant::now(),
            base,
            rates,
            weak,
            misfortune,
            misfortunes,
            bug,
            db: Mutex::new(Db::new(base, bug)),
            shards: (0..2).map(|n| Mutex::new(Shard::new(n, base, bug))).collect(),
            inner: Mutex::new(Inner {
                rng,
                counts: Counts::default(),
                is_calm: false,
                trace: seed,
                instances: BTreeMap::new(),
                alive: BTreeMap::new(),
                next_instance: 0,
                db_down_until: None,
                shard_down_until: vec![None; 2],
            }),
        }
    }

    /// The time, everywhere.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_microsecond(self.base.as_microsecond() + elapsed).unwrap_or(Timestamp::MAX)
    }

    /// Whether this mistake is in it.
    #[must_use]
    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Whether the coordinators' database may forget its last commits.
    #[must_use]
    pub fn forgets(&self) -> bool {
        self.misfortunes[COMMITS_ARE_LOST] > 0.0
    }

    /// The coordinators' database.
    pub fn db(&self) -> MutexGuard<'_, Db> {
        self.db.lock().expect("no holder panics")
    }

    /// A shard.
    pub fn shard(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard].lock().expect("no holder panics")
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// What chance says.
    pub fn chance<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.inner().rng)
    }

    /// A while, up to so many milliseconds.
    pub async fn while_up_to(&self, most_ms: u64) {
        let us = self.chance(|rng| rng.u64(0..=most_ms * 1_000));
        sleep(Duration::from_micros(us)).await;
    }

    /// Whether a step fails, and how. Counted, and noted.
    pub fn fault(&self, step: Step) -> Option<Fault> {
        let mut inner = self.inner();
        if inner.is_calm {
            inner.counts.add(step, None);
            return None;
        }
        let mut draw = inner.rng.f64();
        let often = if step == self.weak || step.is_rare() { 0.12 } else { 0.0 };
        let fault = Fault::ALL.into_iter().filter(|fault| step.can(*fault)).find(|fault| {
            draw -= self.rates[*fault as usize].max(often);
            draw < 0.0
        });
        inner.counts.add(step, fault);
        fault
    }

    /// Something that happened. The digest is what two runs of one seed have in common.
    pub fn note(&self, what: &str, id: Option<TransactionId>) {
        let now_us = self.now().as_microsecond().unsigned_abs();
        let id = id.map_or(0, |id| id.uuid().as_u128() as u64);
        let mut inner = self.inner();
        let bytes = what.bytes().map(u64::from).chain([now_us, id]);
        inner.trace = bytes.fold(inner.trace, |hash, part| (hash ^ part).wrapping_mul(0x100_0000_01b3));
    }

    /// The digest of everything that has happened.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.inner().trace
    }

    /// The faults so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner().counts.clone()
    }

    /// Returns if an instance is alive: at once, or when it is woken again. Never, if it was killed.
    pub async fn alive(&self, instance: usize) {
        loop {
            let until = match self.inner().alive.get(&instance) {
                None => None,
                Some(alive) => match alive.stopped_until {
                    Some(until) if until > Instant::now() => Some(until),
                    _ => return,
                },
            };
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Whether the coordinators' database answers.
    #[must_use]
    pub fn db_answers(&self) -> bool {
        self.inner().db_down_until.is_none_or(|until| until <= Instant::now())
    }

    /// Whether a shard answers.
    #[must_use]
    pub fn shard_answers(&self, shard: usize) -> bool {
        self.inner().shard_down_until[shard].is_none_or(|until| until <= Instant::now())
    }

    /// A number for a new instance, which is alive.
    pub fn born(&self) -> (usize, CancellationToken) {
        let mut inner = self.inner();
        let number = inner.next_instance;
        inner.next_instance += 1;
        let killed = CancellationToken::new();
        inner.alive.insert(number, Alive { stopped_until: None, killed: killed.clone() });
        (number, killed)
    }

    /// An instance serves.
    pub fn serves(&self, instance: Arc<Instance>) {
        self.inner().instances.insert(instance.number, instance);
    }

    /// One of the instances that serve, by chance.
    pub fn any_instance(&self) -> Option<Arc<Instance>> {
        let mut inner = self.inner();
        let count = inner.instances.len();
        let pick = if count > 0 { inner.rng.usize(0..count) } else { return None };
        inner.instances.values().nth(pick).cloned()
    }

    /// Kills an instance. Another one takes its place after a while.
    pub fn kill(self: &Arc<Self>, instance: usize) {
        {
            let mut inner = self.inner();
            let Some(alive) = inner.alive.remove(&instance) else { return };
            alive.killed.cancel();
            inner.instances.remove(&instance);
        }
        self.note("killed", None);
        let world = Arc::clone(self);
        tokio::spawn(async move {
            world.while_up_to(6_000).await;
            instance::start(&world);
        });
    }

    /// No more faults, and everybody is there.
    pub async fn calm(&self) {
        let longest = {
            let mut inner = self.inner();
            inner.is_calm = true;
            inner.db_down_until = None;
            inner.shard_down_until.fill(None);
            inner.alive.values_mut().for_each(|alive| alive.stopped_until = None);
            Duration::from_secs(10)
        };
        for shard in 0..self.shards() {
            self.shard(shard).unblock_all();
        }
        // Whoever was killed is back by then, and what was late has arrived.
        sleep(longest).await;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

/// What befalls a world beside its steps: instances that are killed or stop for a while, databases that are down, a
/// coordinators' database that forgets its last commits, payees that are blocked.
pub async fn torment(world: Arc<World>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        let (is_spared, draw, seconds) =
            world.chance(|rng| (rng.f64() >= world.misfortune, rng.f64(), rng.u64(1..15)));
        if is_spared {
            continue;
        }
        let mut draw = draw * world.misfortunes.iter().sum::<f64>();
        let kind = world.misfortunes.iter().position(|weight| {
            draw -= weight;
            draw < 0.0
        });
        let until = Instant::now() + Duration::from_secs(seconds);
        match kind {
            Some(0) => {
                if let Some(instance) = world.any_instance() {
                    world.kill(instance.number);
                }
            }
            Some(1) => {
                if let Some(instance) = world.any_instance()
                    && let Some(alive) = world.inner().alive.get_mut(&instance.number)
                {
                    alive.stopped_until = Some(until);
                }
                world.note("stopped", None);
            }
            Some(2) => {
                world.inner().db_down_until = Some(until);
                world.note("database down", None);
            }
            Some(3) => {
                let (shard, is_long) = world.chance(|rng| (rng.usize(0..2), rng.u8(0..6) == 0));
                // Longer than Try is waited for.
                let longer = Duration::from_secs(if is_long { 75 } else { 0 });
                world.inner().shard_down_until[shard] = Some(until + longer);
                world.note("shard down", None);
            }
            // It is what the pivot is there for.
            Some(COMMITS_ARE_LOST) => {
                let commits =
                    world.chance(|rng| if rng.bool() { rng.usize(1..20) } else { rng.usize(1..200) });
                let now = world.now();
                world.db().lose(commits, now);
                world.note("commits lost", None);
            }
            _ => {
                let (shard, account) = world.chance(|rng| (rng.usize(0..2), rng.usize(..)));
                world.shard(shard).toggle(account);
                world.note("blocked", None);
            }
        }
    }
}
