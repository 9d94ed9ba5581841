//! One coordinator instance: the real engine and timers on a connection of its own to everything, and stand-ins for the
//! leases, the scheduler and the sweep, which are SQL in the product.

use crate::{
    db::{Connection, SlotRow, Statement, Swept},
    shard::Wire,
    world::{INSTANCES, World},
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tcc_coordinator::{
    engine::{Engine, Participants},
    schedule::{
        Clock, Continuity, Entry, Timers, fire,
        ring::{Part, Reading, SLOTS},
    },
    store::{self, Place, Store, rebuild::Rebuild},
    sweep,
};
use tcc_core::{Timestamp, TransactionId};
use tcc_participant::{
    Batcher, Participant, Postgres,
    batch::{Limits, Unknown},
};
use tokio::{sync::watch, time::sleep};

/// How far ahead wake-ups are held in memory, in microseconds.
const LOOK_AHEAD_US: i64 = 120_000_000;
/// How much of the table one read takes at most.
const AT_ONCE_US: i64 = 300_000_000;
/// How long after its end a window is read once more.
const VERIFY_AFTER_US: i64 = 2_000_000;
/// How often there is a look at what is new.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(4);

/// An instance, until it is killed.
pub struct Instance {
    /// Its number: no other instance has it, before or after.
    pub number: usize,
    /// Its engine.
    pub engine: Arc<Engine>,
}

/// As many as there are at a time.
pub fn start_all(world: &Arc<World>) {
    (0..INSTANCES).for_each(|_| start(world));
}

/// One more.
pub fn start(world: &Arc<World>) {
    let (number, killed) = world.born();
    let now = world.now();
    let continuity = Continuity { since: now, server: world.db().server };
    let (unbroken, watch) = watch::channel(continuity);
    let (timers, clock) = (Timers::default(), Clock::set_to(now));
    let store = Store {
        begin: batcher("begin", world, number),
        advance: batcher("advance", world, number),
        wake: batcher("wake", world, number),
        defer: batcher("defer", world, number),
        get: batcher("get", world, number),
        pool: Postgres::from(tokio_postgres::Config::new()).pool("unused", None),
    };
    let wire = |shard| {
        let name = crate::shard::name(shard);
        Arc::new(Wire { world: Arc::clone(world), instance: number, shard, name }) as Arc<dyn Participant>
    };
    let shards = 0..world.shards();
    let map: HashMap<_, _> =
        shards.clone().map(|shard| (crate::shard::name(shard), world.shard(shard).buckets())).collect();
    let participants = Participants::new(shards.map(wire).collect(), &map);
    let engine = Engine::new(store, participants, timers.clone(), clock.clone(), watch);
    let look = {
        let engine = Arc::clone(&engine);
        move |entry| {
            let engine = Arc::clone(&engine);
            async move { engine.look(entry).await }
        }
    };
    tokio::spawn(fire(timers.clone(), clock, killed.clone(), look));
    tokio::spawn(Arc::clone(&engine).admit(killed.clone()));
    let keeper = Keeper { world: Arc::clone(world), number, timers, unbroken };
    tokio::spawn(killed.run_until_cancelled_owned(keeper.keep()));
    world.serves(Arc::new(Instance { number, engine }));
    world.note("started", None);
}

fn batcher<S: Statement>(name: &str, world: &Arc<World>, instance: usize) -> Batcher<S, S::Answer> {
    Batcher::start(name, vec![Connection::new(world, instance)], Limits::default())
}

/// Leases, reading ahead and again, and the sweep.
struct Keeper {
    world: Arc<World>,
    number: usize,
    timers: Timers,
    unbroken: watch::Sender<Continuity>,
}

impl Keeper {
    async fn keep(self) {
        let rebuild: Batcher<Rebuild, _> = batcher("rebuild", &self.world, self.number);
        loop {
            self.world.alive(self.number).await;
            if self.world.db_answers() {
                self.beat();
                self.load().await;
                self.verify().await;
                // What could not be swept is swept at the next beat.
                let _ = self.sweep(&rebuild).await;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Renews the lease, notices when the database went back, takes and gives slots, saves watermarks.
    fn beat(&self) {
        let now = self.world.now();
        let mut db = self.world.db();
        let mut ring = self.timers.lock();
        if db.server != self.unbroken.borrow().server {
            self.unbroken.send_replace(Continuity { since: now, server: db.server });
            let served: Vec<u8> = ring.served().collect();
            ring.release(&served, i64::MAX);
        }
        db.begin_commit();
        db.leases.insert(self.number, now + LEASE);
        for closed in ring.close() {
            let row = db.slots[usize::from(closed.slot)];
            if row.owner == Some(self.number) && row.epoch == closed.epoch {
                db.set_slot(closed.slot, SlotRow { watermark_us: closed.watermark_us, ..row });
            }
        }
        let others = db.leases.iter().filter(|(id, until)| **id != self.number && **until > now).count();
        let share = SLOTS.div_ceil(others + 1);
        let mut mine = db.slots.iter().filter(|row| row.owner == Some(self.number)).count();
        for slot in 0..=u8::MAX {
            let row = db.slots[usize::from(slot)];
            let is_free =
                row.owner.is_none_or(|owner| db.leases.get(&owner).is_none_or(|until| *until <= now));
            let is_mine = row.owner == Some(self.number);
            if is_mine && mine > share {
                db.set_slot(slot, SlotRow { owner: None, ..row });
                ring.release(&[slot], now.as_microsecond() + 1_000_000);
                mine -= 1;
            } else if is_free && !is_mine && mine < share {
                let row = SlotRow { owner: Some(self.number), epoch: row.epoch + 1, ..row };
                db.set_slot(slot, row);
                ring.claim(slot, row.epoch, row.watermark_us, now.as_microsecond());
                mine += 1;
            } else if is_mine && !ring.serves(slot) {
                ring.claim(slot, row.epoch, row.watermark_us, now.as_microsecond());
            } else if !is_mine && ring.serves(slot) {
                ring.release(&[slot], now.as_microsecond() + 1_000_000);
            }
        }
    }

    async fn load(&self) {
        let until_us = self.world.now().as_microsecond() + LOOK_AHEAD_US;
        let announced = {
            let mut ring = self.timers.lock();
            ring.take_guests_until(until_us);
            ring.announce(until_us, 1_000_000, AT_ONCE_US)
        };
        let Some((parts, until_us)) = announced else { return };
        // Between the announcement and the read somebody commits.
        self.world.while_up_to(20).await;
        self.read(&parts, until_us, Reading::Ahead);
    }

    async fn verify(&self) {
        let until_us = self.world.now().as_microsecond() - VERIFY_AFTER_US;
        let (parts, until_us) = self.timers.lock().to_verify(until_us, AT_ONCE_US);
        if parts.is_empty() {
            return;
        }
        self.world.while_up_to(5).await;
        self.read(&parts, until_us, Reading::Again);
        let mut ring = self.timers.lock();
        ring.read_again(&parts, until_us);
        ring.verified(&parts, until_us);
    }

    fn read(&self, parts: &[Part], until_us: i64, reading: Reading) {
        let db = self.world.db();
        let mut ring = self.timers.lock();
        for part in parts {
            for (at_us, id, slot) in db.wakeups_of(part.slot, part.from_us, until_us) {
                ring.add(Entry { at_us, id, place: Place { slot, lane: 0 } }, reading);
            }
        }
    }

    /// Fences from where the database remembers that they were looked at. As the product does it: fences, then which of them
    /// have no row, then all fences of those, then the rows, then up to when that was. Shards' clocks do not go back here, so
    /// it does without a margin.
    async fn sweep(
        &self,
        rebuild: &Batcher<Rebuild, Option<store::rebuild::Rebuilt>>,
    ) -> Result<(), Unknown> {
        let world = &self.world;
        for shard in 0..world.shards() {
            let (swept, server) = {
                let db = world.db();
                (db.swept[shard], db.server)
            };
            let is_here = |swept: &Swept| swept.server == server;
            if swept.filter(is_here).is_some_and(|swept| world.now() < swept.seen_until + LOOK_EVERY)
                || !world.shard_answers(shard)
            {
                continue;
            }
            let from = swept.map_or(Timestamp::MIN, |swept| swept.seen_until);
            let horizon: Timestamp = world.now();
            let mut ids: Vec<TransactionId> = {
                let shard = world.shard(shard);
                let written = shard.fences.iter().filter(|(_, row)| (from..horizon).contains(&row.fenced_at));
                written.map(|((id, _), _)| *id).collect()
            };
            ids.dedup();
            world.while_up_to(20).await;
            ids.retain(|id| !world.db().rows.contains_key(id));
            for id in ids {
                let mut fences = Vec::new();
                for shard in 0..world.shards() {
                    world.while_up_to(5).await;
                    world.alive(self.number).await;
                    fences.extend(world.shard(shard).branches_of(id));
                }
                let place = Place { slot: self.timers.pick_slot(), lane: 0 };
                let Some(row) = sweep::rebuild(id, &fences, place) else { continue };
                // The connection that found that there is no row is the one that writes it.
                if world.db().server != server {
                    return Ok(());
                }
                if let Some(rebuilt) = rebuild.call(row).await? {
                    world.note("rebuilt", Some(id));
                    self.timers.arm(rebuilt.wake_at, rebuilt.id, rebuilt.place);
                }
            }
            let mut db = world.db();
            if db.server == server {
                db.begin_commit();
                db.set_swept(shard, horizon);
            }
        }
        Ok(())
    }
}
