//! Which instance serves which of the 256 slots.
//!
//! Every instance beats twice a second; who has not for 4 s is taken to be gone, at that moment. Each takes its fair share of
//! the slots that nobody serves, and gives back what it has beyond that. All times are the database's. Leases only divide the
//! work. Safety never rests on them: phases are compare-and-set, and the participants' fences decide.
//!
//! Two more things show in the beats. *An instance hangs:* it beats, but settles nothing, and the watermarks of its slots fall
//! behind; then the others sweep its slots. *The database went back,* to a standby that had not received everything or to a
//! backup: then what is in memory may be ahead of what is on disk, and all of it is dropped and read anew.

use super::{Clock, Timers, clock::timestamp, ring::SLOTS};
use std::{collections::HashMap, time::Duration};
use tcc_core::Timestamp;
use tcc_participant::{
    Failure, Postgres, Session,
    retry::Backoff,
    session::{Plans, sort},
};
use tokio::{sync::watch, time::Instant};
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often an instance beats: each a little sooner, by its id, so that they do not fall into step.
const BEAT: Duration = Duration::from_millis(500);
/// Who wanted slots that another one was taking looks again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a beat may take before the connection is given up: less than the lease lasts.
const PATIENCE: Duration = Duration::from_secs(3);
/// An instance that has settled nothing for this long, and whose watermarks are as far behind, hangs.
const HUNG_AFTER: Duration = Duration::from_secs(30);
/// How long an instance that gives its slots away fires on: whoever takes them needs a moment to read.
const FIRE_ON_US: i64 = 2_000_000;

const BEAT_SQL: &str = "\
-- beat
WITH me AS (
    INSERT INTO instance (id, address, started_at, lease_until, settled)
    VALUES ($1, $2, clock_timestamp(), clock_timestamp() + interval '4 seconds', $3)
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until, settled = excluded.settled
    RETURNING drained
),
gone AS (
    DELETE FROM instance WHERE lease_until < clock_timestamp() - interval '1 day'
)
SELECT clock_timestamp() AS now, c.system_identifier, pg_postmaster_start_time() AS started_at, left(pg_walfile_name(l.lsn), 8) AS timeline,
       (l.lsn - '0/0')::int8 AS position, (SELECT drained FROM me) AS drained
FROM pg_control_system() AS c, (SELECT pg_current_wal_flush_lsn()) AS l (lsn)";

/// Two cannot listen on one address of one machine: whoever did before is gone, and its slots need not wait for its lease.
const REPLACE: &str = "\
-- replace_instance
DELETE FROM instance WHERE address = $1 AND id <> $2";

const OTHERS: &str = "\
-- other_instances
SELECT id, settled, extract(epoch FROM lease_until - clock_timestamp())::float8 AS lasts
FROM instance WHERE id <> $1 AND lease_until > clock_timestamp()";

const SLOTS_SQL: &str = "\
-- slots
SELECT slot, owner, epoch, watermark FROM slot";

/// Of slots that others are taking at this moment it takes none, but the next ones.
const CLAIM: &str = "\
-- claim_slots
UPDATE slot s SET owner = $1, epoch = s.epoch + 1
FROM (
    SELECT s.slot FROM slot s
    WHERE s.slot = ANY ($2::int2[])
      AND NOT EXISTS (SELECT FROM instance i WHERE i.id = s.owner AND i.lease_until > clock_timestamp())
    ORDER BY s.slot LIMIT $3
    FOR NO KEY UPDATE SKIP LOCKED
) AS l
WHERE s.slot = l.slot
RETURNING s.slot, s.epoch, s.watermark, clock_timestamp() AS now";

/// It goes back when the database's clock did.
const SET_WATERMARKS: &str = "\
-- set_watermarks
UPDATE slot s SET watermark = i.watermark
FROM unnest($2::int2[], $3::int8[], $4::timestamptz[]) AS i (slot, epoch, watermark)
WHERE s.slot = i.slot AND s.owner = $1 AND s.epoch = i.epoch";

const RELEASE: &str = "\
-- release_slots
UPDATE slot SET owner = NULL WHERE owner = $1 AND slot = ANY ($2::int2[])";

const LEAVE: &str = "\
-- leave
WITH free AS (UPDATE slot SET owner = NULL WHERE owner = $1)
DELETE FROM instance WHERE id = $1";

const STATEMENTS: [&str; 8] = [BEAT_SQL, REPLACE, OTHERS, SLOTS_SQL, CLAIM, SET_WATERMARKS, RELEASE, LEAVE];

/// One instance's leases, on one connection.
pub struct Leases {
    session: Session,
    me: Uuid,
    /// How often this one beats.
    beat: Duration,
    address: String,
    clock: Clock,
    timers: Timers,
    /// Where the database's log stood at the last beat.
    position: Option<Position>,
    /// What the others had settled when that last changed.
    progress: HashMap<Uuid, (i64, Instant)>,
    hung: Hung,
    unbroken: watch::Sender<Continuity>,
    drained: CancellationToken,
    others: usize,
}

/// Since when the database is known not to have gone back: what was committed since then is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuity {
    /// By its clock: when this instance started, or last saw that it may have gone back.
    pub since: Timestamp,
    /// When its server started. Another one may have gone back since, and nobody has seen it yet.
    pub server: Timestamp,
}

/// The latest [`Continuity`].
pub type Unbroken = watch::Receiver<Continuity>;

/// Slots of instances that hang, with their watermarks. Written by the leases, read by the scheduler.
pub type Hung = std::sync::Arc<std::sync::Mutex<HashMap<u8, i64>>>;

/// Where a database's log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Position {
    /// Which database it is; copies have the same.
    system: i64,
    /// It changes with every promotion and every restore.
    timeline: String,
    /// Of the server. One that has started again may have lost what came after the last beat.
    started_at: Timestamp,
    /// In bytes.
    at: i64,
}

impl Position {
    /// Whether commits that were acknowledged before may be gone.
    fn went_back(&self, before: &Self) -> bool {
        let server = |position: &Self| (position.system, position.timeline.clone(), position.started_at);
        server(self) != server(before) || self.at < before.at
    }
}

/// A row of the table `slot`.
struct SlotRow {
    slot: u8,
    owner: Option<Uuid>,
    epoch: i64,
    watermark: Timestamp,
}

impl Leases {
    /// Connects, sets the clock, and takes what slots nobody serves. `address` is where this instance listens already, with the
    /// name of the machine.
    ///
    /// # Errors
    ///
    /// [`Failure`], if the database does not answer.
    pub async fn start(database: &Postgres, me: Uuid, address: &str) -> Result<Self, Failure> {
        let mut leases = Self {
            session: Session::new(database, "tccd-leases", Plans::Custom),
            me,
            beat: BEAT - Duration::from_millis(u64::from(me.as_bytes()[15]) / 5),
            address: address.to_owned(),
            clock: Clock::set_to(Timestamp::UNIX_EPOCH),
            timers: Timers::default(),
            position: None,
            progress: HashMap::new(),
            hung: Hung::default(),
            unbroken: watch::Sender::new(Continuity {
                since: Timestamp::UNIX_EPOCH,
                server: Timestamp::UNIX_EPOCH,
            }),
            drained: CancellationToken::new(),
            others: 0,
        };
        leases.session.connect(&STATEMENTS).await?;
        leases.query(REPLACE, &[&address, &me]).await?;
        leases.tick().await?;
        Ok(leases)
    }

    /// The database's clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The ring, which serves the slots that are taken.
    #[must_use]
    pub fn timers(&self) -> Timers {
        self.timers.clone()
    }

    /// The slots of instances that hang.
    #[must_use]
    pub fn hung(&self) -> Hung {
        Hung::clone(&self.hung)
    }

    /// Since when the database has not gone back.
    #[must_use]
    pub fn unbroken(&self) -> Unbroken {
        self.unbroken.subscribe()
    }

    /// Cancelled when an operator wants this instance to leave.
    #[must_use]
    pub fn drained(&self) -> CancellationToken {
        self.drained.clone()
    }

    /// Beats until asked to stop, then gives the slots back. Answers whether other instances can take them.
    pub async fn run(mut self, stop: CancellationToken) -> bool {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let ticked = tokio::time::timeout(PATIENCE, self.tick()).await;
            let ticked = ticked.unwrap_or_else(|_| Err(Failure::Disconnected("no answer in time".into())));
            let pause = match ticked {
                Ok(pause) => {
                    failures = 0;
                    pause
                }
                Err(failure) => {
                    if failures == 0 {
                        tracing::warn!(%failure, "cannot beat; trying again");
                    }
                    failures += 1;
                    let connected = tokio::time::timeout(PATIENCE, self.session.connect(&STATEMENTS)).await;
                    if !matches!(connected, Ok(Ok(()))) {
                        tracing::debug!("the leases cannot connect");
                    }
                    Backoff::CONNECTION.delay(failures)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        match tokio::time::timeout(Duration::from_secs(2), self.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                tracing::warn!(%failure, address = self.address, "cannot give the slots back; others take them in 4 s");
            }
            Err(_) => tracing::warn!(
                address = self.address,
                "cannot give the slots back in time; others take them in 4 s"
            ),
        }
        self.others > 0
    }

    /// One beat, and what follows from what it finds. Answers when the next one is: sooner than usual if somebody's lease ends.
    async fn tick(&mut self) -> Result<Duration, Failure> {
        self.beat().await?;
        self.save_watermarks().await?;
        let others = self.query(OTHERS, &[&self.me]).await?;
        let lasts = others.iter().map(|row| row.get::<_, f64>("lasts"));
        let until_one_ends = Duration::from_secs_f64(lasts.fold(self.beat.as_secs_f64(), f64::min).max(0.0));
        let others: HashMap<Uuid, i64> =
            others.iter().map(|row| (row.get("id"), row.get("settled"))).collect();
        self.others = others.len();
        let slots: Vec<SlotRow> = self.query(SLOTS_SQL, &[]).await?.iter().map(read).collect();

        self.follow(&slots);
        let has_its_share = self.divide(&slots, &others).await?;
        self.watch(&slots, &others);
        Ok(if has_its_share { until_one_ends } else { LOOK_AGAIN })
    }

    /// Renews the lease, sets the clock, and notices when the database went back.
    async fn beat(&mut self) -> Result<(), Failure> {
        let asked = Instant::now();
        let settled = self.timers.lock().settled() as i64;
        let row = self.query(BEAT_SQL, &[&self.me, &self.address, &settled]).await?.remove(0);
        self.session.settle()?;
        self.clock.observe(asked, row.get("now"));
        let position = Position {
            system: row.get("system_identifier"),
            timeline: row.get("timeline"),
            started_at: row.get("started_at"),
            at: row.get("position"),
        };
        let went_back = self.position.as_ref().is_some_and(|before| position.went_back(before));
        if went_back || self.position.is_none() {
            self.unbroken.send_replace(Continuity { since: row.get("now"), server: position.started_at });
        }
        if went_back {
            tracing::warn!(before = ?self.position, now = ?position, "the coordinator's database has started again or went back; reading everything anew");
            let mut ring = self.timers.lock();
            let served: Vec<u8> = ring.served().collect();
            // What is in the buckets is fired on: what is not so any more is found to be moot.
            ring.release(&served, i64::MAX);
        }
        self.position = Some(position);
        if row.get("drained") {
            self.drained.cancel();
        }
        Ok(())
    }

    /// The table says who serves what.
    fn follow(&self, slots: &[SlotRow]) {
        let now_us = self.clock.now_us();
        let mut ring = self.timers.lock();
        let is_mine = |row: &&SlotRow| row.owner == Some(self.me);
        let lost: Vec<u8> =
            slots.iter().filter(|row| !is_mine(row) && ring.serves(row.slot)).map(|row| row.slot).collect();
        if !lost.is_empty() {
            tracing::warn!(slots = lost.len(), "another instance has taken slots of this one");
            ring.release(&lost, now_us + FIRE_ON_US);
        }
        for row in slots.iter().filter(is_mine) {
            if !ring.serves(row.slot) {
                ring.claim(row.slot, row.epoch, row.watermark.as_microsecond(), now_us);
                self.timers.tell_claimed();
            }
        }
    }

    /// Takes what nobody serves up to a fair share, or gives back what is beyond it. Answers whether it got what it wanted: when
    /// somebody's lease ends, all others come at that moment.
    async fn divide(&mut self, slots: &[SlotRow], others: &HashMap<Uuid, i64>) -> Result<bool, Failure> {
        let share = SLOTS.div_ceil(others.len() + 1);
        let mine: Vec<u8> =
            slots.iter().filter(|row| row.owner == Some(self.me)).map(|row| row.slot).collect();
        if let Some(surplus) = mine.get(share..).filter(|surplus| !surplus.is_empty()) {
            let numbers: Vec<i16> = surplus.iter().map(|slot| i16::from(*slot)).collect();
            self.timers.lock().release(surplus, self.clock.now_us() + FIRE_ON_US);
            self.query(RELEASE, &[&self.me, &numbers]).await?;
            tracing::info!(slots = surplus.len(), "gave slots to an instance that has joined");
            return Ok(true);
        }
        let is_free =
            |row: &&SlotRow| row.owner.is_none_or(|owner| owner != self.me && !others.contains_key(&owner));
        let free: Vec<i16> = slots.iter().filter(is_free).map(|row| i16::from(row.slot)).collect();
        let wanted = free.len().min(share - mine.len());
        if wanted == 0 {
            return Ok(true);
        }
        let claimed = self.query(CLAIM, &[&self.me, &free, &(wanted as i64)]).await?;
        self.session.settle()?;
        if !claimed.is_empty() {
            let mut ring = self.timers.lock();
            for row in &claimed {
                let (watermark, now): (Timestamp, Timestamp) = (row.get("watermark"), row.get("now"));
                let slot = row.get::<_, i16>("slot") as u8;
                ring.claim(slot, row.get("epoch"), watermark.as_microsecond(), now.as_microsecond());
            }
            tracing::info!(slots = claimed.len(), "took slots that nobody served");
            self.timers.tell_claimed();
        }
        Ok(claimed.len() == wanted)
    }

    /// Notes the slots of instances that beat and settle nothing.
    fn watch(&mut self, slots: &[SlotRow], others: &HashMap<Uuid, i64>) {
        self.progress.retain(|id, _| others.contains_key(id));
        for (id, settled) in others {
            let known = self.progress.entry(*id).or_insert((*settled, Instant::now()));
            if known.0 != *settled {
                *known = (*settled, Instant::now());
            }
        }
        let behind_us = self.clock.now_us() - HUNG_AFTER.as_micros() as i64;
        let hangs = |row: &&SlotRow| {
            let progress = row.owner.and_then(|owner| self.progress.get(&owner));
            progress.is_some_and(|(_, since)| since.elapsed() >= HUNG_AFTER)
                && row.watermark.as_microsecond() < behind_us
        };
        let hung: HashMap<u8, i64> =
            slots.iter().filter(hangs).map(|row| (row.slot, row.watermark.as_microsecond())).collect();
        let mut known = self.hung.lock().expect("no holder panics");
        if known.is_empty() && !hung.is_empty() {
            tracing::warn!(slots = hung.len(), "an instance beats and makes no progress; sweeping its slots");
        }
        *known = hung;
    }

    /// Makes durable how far everything was looked at.
    async fn save_watermarks(&mut self) -> Result<(), Failure> {
        let closed = self.timers.lock().close();
        if closed.is_empty() {
            return Ok(());
        }
        let slots: Vec<i16> = closed.iter().map(|closed| i16::from(closed.slot)).collect();
        let epochs: Vec<i64> = closed.iter().map(|closed| closed.epoch).collect();
        let watermarks: Vec<Timestamp> = closed.iter().map(|closed| timestamp(closed.watermark_us)).collect();
        self.query(SET_WATERMARKS, &[&self.me, &slots, &epochs, &watermarks]).await?;
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), Failure> {
        self.save_watermarks().await?;
        self.query(LEAVE, &[&self.me]).await?;
        let mut ring = self.timers.lock();
        let served: Vec<u8> = ring.served().collect();
        ring.release(&served, self.clock.now_us() + FIRE_ON_US);
        Ok(())
    }

    async fn query(
        &self,
        sql: &'static str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        self.session.client()?.query(self.session.statement(sql)?, parameters).await.map_err(|e| sort(&e))
    }
}

fn read(row: &Row) -> SlotRow {
    SlotRow {
        slot: row.get::<_, i16>("slot") as u8,
        owner: row.get("owner"),
        epoch: row.get("epoch"),
        watermark: row.get("watermark"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_lost_commits_is_told_from_one_that_goes_on() {
        let started_at = Timestamp::UNIX_EPOCH;
        let position =
            |system, timeline: &str, at| Position { system, timeline: timeline.into(), started_at, at };
        let before = position(1, "00000001", 100);

        assert!(!position(1, "00000001", 100).went_back(&before));
        assert!(!position(1, "00000001", 200).went_back(&before));
        assert!(position(1, "00000001", 99).went_back(&before));
        assert!(position(1, "00000002", 200).went_back(&before));
        assert!(position(2, "00000001", 200).went_back(&before));
        let again = Position { started_at: Timestamp::MAX, ..position(1, "00000001", 200) };
        assert!(again.went_back(&before));
    }
}
