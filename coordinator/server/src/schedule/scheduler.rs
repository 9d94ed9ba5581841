//! Reads wake-ups ahead, and reads them once more behind.

use super::{
    Clock, Entry, Timers,
    clock::timestamp,
    leases::Hung,
    ring::{Part, Parts, Reading, Ring, WINDOW_US},
};
use crate::store::Place;
use futures::{StreamExt as _, pin_mut};
use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};
use tcc_core::{Timestamp, TransactionId};
use tcc_participant::{
    Failure, Postgres, Session,
    retry::Backoff,
    session::{Plans, sort},
};
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;

/// How far ahead wake-ups are held in memory.
const LOOK_AHEAD_US: i64 = 120_000_000;
/// How often the table is read ahead.
const LOAD_INTERVAL_US: i64 = 10_000_000;
/// How long after its end a window is read once more.
const VERIFY_AFTER_US: i64 = 2_000_000;
/// How much of the table one read takes at most, if none fails.
const LOAD_AT_ONCE_US: i64 = 300_000_000;
/// With so many wake-ups in memory no more are read ahead, until some have been looked at.
const CROWDED: usize = 2_000_000;
/// The database's clock may be set by less than this without anybody noticing.
const CLOCK_WENT_BACK_US: i64 = 1_000_000;
/// How often there is a look at what is to be read.
const TICK: Duration = Duration::from_millis(250);
/// How long a tick may take before the connection is given up.
const PATIENCE: Duration = Duration::from_secs(15);
/// So many rows are taken into the ring at a time.
const CHUNK: usize = 512;

/// Each slot's part of a time range, by the index of one leaf. Planned anew each time, so that other leaves are not locked:
/// the planner sees `$3` and `$4`.
const READ: &str = "\
-- read_wakeups
SELECT w.slot, w.lane, w.wake_at, w.transaction_id
FROM unnest($1::int2[], $2::timestamptz[]) AS s (slot, from_at)
JOIN wakeup w ON w.slot = s.slot AND w.wake_at >= s.from_at
WHERE w.wake_at >= $3 AND w.wake_at < $4";

/// A time, and the number of a transaction that is not older. (A snapshot's xmax would not do: it is the number after the newest
/// one that has ended, and older ones than that may be running and not be seen.) It writes nothing, so it waits for nothing.
const MARK: &str = "\
-- mark
SELECT clock_timestamp() AS now, pg_current_xact_id()::text::int8 AS xid";

const XMIN: &str = "\
-- xmin
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::int8";

/// Fills the ring, on one connection.
pub struct Scheduler {
    session: Session,
    clock: Clock,
    timers: Timers,
    behind: VecDeque<Behind>,
    /// How much of the table one read takes: less after a failure.
    at_once_us: i64,
    /// A read that was announced and has not come to its end.
    loading: Option<Parts>,
    hung: Hung,
    /// Up to where the slots of instances that hang were swept.
    swept: HashMap<u8, i64>,
}

/// Windows that have passed and were not yet read in a snapshot that nothing can come behind.
struct Behind {
    parts: Parts,
    until_us: i64,
    /// Of a transaction that began after they had passed.
    xid: i64,
}

struct Mark {
    /// By the database's clock.
    now_us: i64,
    xid: i64,
}

impl Scheduler {
    /// Not connected yet.
    #[must_use]
    pub fn new(database: &Postgres, clock: Clock, timers: Timers, hung: Hung) -> Self {
        Self {
            session: Session::new(database, "tccd-scheduler", Plans::Custom),
            clock,
            timers,
            behind: VecDeque::new(),
            at_once_us: LOAD_AT_ONCE_US,
            loading: None,
            hung,
            swept: HashMap::new(),
        }
    }

    /// Keeps the ring filled, until asked to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let ticked = tokio::time::timeout(PATIENCE, self.tick()).await;
            let ticked = ticked.unwrap_or_else(|_| Err(Failure::Disconnected("no answer in time".into())));
            let pause = match ticked {
                Ok(()) => {
                    failures = 0;
                    self.at_once_us = (self.at_once_us * 2).min(LOAD_AT_ONCE_US);
                    TICK
                }
                Err(failure) => {
                    if failures == 0 {
                        tracing::warn!(%failure, "the scheduler cannot read; trying again");
                    }
                    if let Some(parts) = self.loading.take() {
                        self.timers.lock().take_back(&parts);
                    }
                    // It may have been too much for a statement's time.
                    self.at_once_us = (self.at_once_us / 2).max(WINDOW_US);
                    failures += 1;
                    self.session.disconnect();
                    Backoff::CONNECTION.delay(failures)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.timers.claimed() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Reads whatever is to be read now.
    async fn tick(&mut self) -> Result<(), Failure> {
        if !self.session.is_connected() {
            self.session.connect(&[READ, MARK, XMIN]).await?;
        }
        self.load().await?;
        self.verify().await?;
        self.sweep().await
    }

    /// Reads ahead, in parts that fit into a statement's time, until the look-ahead is full.
    async fn load(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE / 3 {
            // The announcement comes first: from then on creators push what they commit.
            let announced = {
                let mut ring = self.timers.lock();
                let until_us = self.clock.now_us() + LOOK_AHEAD_US;
                ring.take_guests_until(until_us);
                if ring.len() >= CROWDED {
                    return Ok(());
                }
                ring.announce(until_us, LOAD_INTERVAL_US, self.at_once_us)
            };
            let Some((parts, until_us)) = announced else { return Ok(()) };
            self.loading = Some(parts.clone());
            self.read(&parts, until_us, |timers, entries| {
                timers.change(|ring| entries.into_iter().for_each(|entry| ring.add(entry, Reading::Ahead)));
            })
            .await?;
            self.loading = None;
        }
        Ok(())
    }

    /// Reads the windows that have passed once more, and fires what was missed.
    async fn verify(&mut self) -> Result<(), Failure> {
        let is_idle = |ring: &Ring, now_us, at_once| {
            let (parts, _) = ring.to_verify(now_us - VERIFY_AFTER_US, at_once);
            parts.is_empty() && !ring.is_ahead_of(now_us - CLOCK_WENT_BACK_US)
        };
        if !is_idle(&self.timers.lock(), self.clock.now_us(), self.at_once_us) {
            // Whether a window has passed is for the database's clock to say, not for the estimate of it here.
            let Mark { now_us, xid } = self.mark().await?;
            let (parts, until_us) = {
                let mut ring = self.timers.lock();
                if ring.is_ahead_of(now_us - CLOCK_WENT_BACK_US) {
                    tracing::warn!("the database's clock went back; what it says now counts");
                    ring.reopen(now_us - CLOCK_WENT_BACK_US);
                }
                ring.to_verify(now_us - VERIFY_AFTER_US, self.at_once_us)
            };
            if !parts.is_empty() {
                let xmin = self.xmin().await?;
                self.read_again(&parts, until_us).await?;
                self.timers.lock().read_again(&parts, until_us);
                if self.behind.is_empty() && xid < xmin {
                    self.timers.lock().verified(&parts, until_us);
                } else {
                    self.behind.push_back(Behind { parts, until_us, xid });
                }
            }
        }
        // A commit that stalls holds up the watermark and nothing else. What it may still bring is read when it is over.
        while let Some(Behind { parts, until_us, xid }) = self.behind.front() {
            if self.xmin().await? <= *xid {
                break;
            }
            // The read's snapshot is younger than the one that xmin is of, so it sees whatever had been running.
            self.read_again(parts, *until_us).await?;
            self.timers.lock().verified(parts, *until_us);
            self.behind.pop_front();
        }
        Ok(())
    }

    async fn read_again(&self, parts: &Parts, until_us: i64) -> Result<(), Failure> {
        self.read(parts, until_us, |timers, entries| {
            timers.change(|ring| entries.into_iter().for_each(|entry| ring.add(entry, Reading::Again)));
        })
        .await
    }

    /// Fires what is due in the slots of instances that hang, window by window.
    async fn sweep(&mut self) -> Result<(), Failure> {
        let hung = self.hung.lock().expect("no holder panics").clone();
        self.swept.retain(|slot, _| hung.contains_key(slot));
        let parts: Parts = hung
            .into_iter()
            .map(|(slot, from_us)| Part::foreign(slot, *self.swept.get(&slot).unwrap_or(&from_us)))
            .collect();
        let Some(from_us) = parts.iter().map(|part| part.from_us).min() else { return Ok(()) };
        let now_us = self.clock.now_us();
        let until_us = now_us.min(from_us + WINDOW_US);
        if until_us - from_us < WINDOW_US / 10 {
            return Ok(());
        }
        self.read(&parts, until_us, |timers, entries| {
            timers.change(|ring| entries.into_iter().for_each(|entry| ring.put(entry, now_us)));
        })
        .await?;
        self.swept.extend(parts.iter().map(|part| (part.slot, until_us.max(part.from_us))));
        Ok(())
    }

    async fn mark(&self) -> Result<Mark, Failure> {
        let row = self
            .session
            .client()?
            .query_one(self.session.statement(MARK)?, &[])
            .await
            .map_err(|e| sort(&e))?;
        Ok(Mark { now_us: row.get::<_, Timestamp>("now").as_microsecond(), xid: row.get("xid") })
    }

    /// The oldest transaction that is still running; all before it are over.
    async fn xmin(&self) -> Result<i64, Failure> {
        let row = self
            .session
            .client()?
            .query_one(self.session.statement(XMIN)?, &[])
            .await
            .map_err(|e| sort(&e))?;
        Ok(row.get(0))
    }

    /// Reads parts of some slots, each from its own time on.
    async fn read(
        &self,
        parts: &Parts,
        until_us: i64,
        take: impl Fn(&Timers, Vec<Entry>),
    ) -> Result<(), Failure> {
        let slots: Vec<i16> = parts.iter().map(|part| i16::from(part.slot)).collect();
        let from: Vec<Timestamp> = parts.iter().map(|part| timestamp(part.from_us)).collect();
        let (Some(lowest), until) = (from.iter().min(), timestamp(until_us)) else { return Ok(()) };
        let statement = self.session.statement(READ)?;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [&slots, &from, lowest, &until];
        let rows = self.session.client()?.query_raw(statement, parameters).await.map_err(|e| sort(&e))?;
        let chunks = rows.ready_chunks(CHUNK);
        pin_mut!(chunks);
        while let Some(rows) = chunks.next().await {
            let entries = rows.iter().filter_map(|row| match row {
                Ok(row) => entry(row).map(Ok),
                Err(error) => Some(Err(sort(error))),
            });
            take(&self.timers, entries.collect::<Result<_, _>>()?);
        }
        Ok(())
    }
}

/// A row as a wake-up; `None` for what no version of this program has written.
fn entry(row: &Row) -> Option<Entry> {
    let id = TransactionId::from_uuid(row.get("transaction_id")).ok()?;
    Some(Entry { at_us: row.get::<_, Timestamp>("wake_at").as_microsecond(), id, place: Place::read(row) })
}
