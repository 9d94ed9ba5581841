//! Reads ahead, reads behind, keeps the lease; fires what is due.

use super::{
    Clock, Entry, Timers,
    clock::timestamp,
    ring::{Ring, WINDOW_US},
    slots,
};
use crate::store::RETRY_INTERVAL;
use futures::{StreamExt as _, pin_mut};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tcc_core::{Timestamp, TransactionId};
use tcc_participant::{
    Failure, Session,
    retry::Backoff,
    session::{Plans, sort},
};
use tokio_postgres::Config;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How far ahead wake-ups are held in memory.
const LOOK_AHEAD_US: i64 = 120_000_000;
/// How often the table is read ahead.
const LOAD_INTERVAL_US: i64 = 10_000_000;
/// How long after its end a window is read once more.
const VERIFY_AFTER_US: i64 = 2_000_000;
/// How much of the table one read takes at most.
const LOAD_AT_ONCE_US: i64 = 300_000_000;
/// With so many wake-ups in memory no more are read ahead, until some have been looked at.
const CROWDED: usize = 2_000_000;
/// The database's clock may be set by less than this without anybody noticing.
const CLOCK_WENT_BACK_US: i64 = 1_000_000;
/// How long a heartbeat, or connecting, may take before the connection is given up.
const PATIENCE: Duration = Duration::from_secs(15);
/// How many wake-ups are handed out at a time.
const FIRE_BATCH: usize = 512;

/// Each slot's part of a time range, by the index of one leaf. Planned anew each time, so that other leaves are not locked.
const READ: &str = "\
-- read_wakeups
SELECT w.wake_at, w.transaction_id
FROM generate_series(0, 255) AS s (slot)
CROSS JOIN LATERAL (
    SELECT wake_at, transaction_id FROM wakeup
    WHERE slot = s.slot AND wake_at >= $1 AND wake_at < $2
) w";

const SNAPSHOT: &str = "\
-- snapshot
SELECT pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8, clock_timestamp() FROM pg_current_snapshot() AS s";

/// Serves the wake-ups of all slots on one connection.
pub struct Scheduler {
    session: Session,
    me: Uuid,
    address: String,
    clock: Clock,
    timers: Timers,
    missed: Arc<AtomicU64>,
    behind: Option<Behind>,
    is_first_load: bool,
    /// From where on a read that was announced has not come to its end.
    loading_from_us: Option<i64>,
    /// Windows before it were read once more.
    verified_until_us: i64,
    saved_watermark_us: i64,
}

/// Windows that have passed and were not yet read in a snapshot that nothing can come behind.
struct Behind {
    until_us: i64,
    /// Of a snapshot taken after they had passed.
    xmax: i64,
}

struct Snapshot {
    /// The oldest transaction that is still running.
    xmin: i64,
    /// The first one that has not started yet.
    xmax: i64,
    /// The database's clock.
    now_us: i64,
}

/// Why the scheduler ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// Another instance has taken its slots.
    Overtaken,
}

impl Scheduler {
    /// Connects and takes the slots.
    ///
    /// # Errors
    ///
    /// [`Failure`], if the database does not answer.
    pub async fn start(config: &Config, me: Uuid, address: &str) -> Result<Self, Failure> {
        let mut session = Session::new(config, "tccd-scheduler", Plans::Custom);
        connect(&mut session).await?;
        let (watermark, now) = slots::take(&session, me, address).await?;
        let ring = Ring::new(watermark.as_microsecond());
        Ok(Self {
            session,
            me,
            address: address.to_owned(),
            clock: Clock::set_to(now),
            timers: Timers::new(ring),
            missed: Arc::default(),
            behind: None,
            is_first_load: true,
            loading_from_us: None,
            verified_until_us: watermark.as_microsecond(),
            saved_watermark_us: watermark.as_microsecond(),
        })
    }

    /// The database's clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// The ring.
    #[must_use]
    pub fn timers(&self) -> Timers {
        self.timers.clone()
    }

    /// Counts wake-ups that only the verify pass found. Normally none.
    #[must_use]
    pub fn missed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.missed)
    }

    /// Keeps the ring filled and the lease renewed, until asked to stop.
    pub async fn run(mut self, stop: CancellationToken) -> Ended {
        let mut failures = 0;
        let ended = loop {
            if stop.is_cancelled() {
                break Ended::Stopped;
            }
            let ticked = tokio::time::timeout(PATIENCE, self.tick()).await;
            let ticked = ticked.unwrap_or_else(|_| Err(Failure::Disconnected("no answer in time".into())));
            let pause = match ticked {
                Ok(true) => {
                    failures = 0;
                    slots::HEARTBEAT
                }
                Ok(false) => break Ended::Overtaken,
                Err(failure) => {
                    tracing::warn!(%failure, "the scheduler cannot work; trying again");
                    // What was announced and not read to its end is read again.
                    if let Some(from) = self.loading_from_us.take() {
                        self.timers.lock().unload(from);
                    }
                    failures += 1;
                    self.reconnect().await;
                    Backoff::CONNECTION.delay(failures)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        };
        if ended == Ended::Stopped {
            self.leave().await;
        }
        ended
    }

    /// One heartbeat: lease, read ahead, read behind, watermark. `false` if another instance has taken over.
    async fn tick(&mut self) -> Result<bool, Failure> {
        if !slots::renew(&self.session, self.me, &self.clock).await? {
            return Ok(false);
        }
        self.load().await?;
        self.verify().await?;
        let watermark = self.timers.lock().close_until(self.verified_until_us);
        if watermark != self.saved_watermark_us {
            slots::set_watermark(&self.session, self.me, timestamp(watermark)).await?;
            self.saved_watermark_us = watermark;
        }
        Ok(true)
    }

    /// Reads ahead, in parts that fit into a statement's time, until the look-ahead is full or the heartbeat is due.
    async fn load(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let now = self.clock.now_us();
            let from = self.timers.lock().load_until(0);
            let until = (now + LOOK_AHEAD_US).min(from + LOAD_AT_ONCE_US);
            let is_full = now + LOOK_AHEAD_US < from + LOAD_INTERVAL_US;
            if is_full || began.elapsed() >= slots::HEARTBEAT || self.timers.lock().len() >= CROWDED {
                self.is_first_load &= !is_full;
                return Ok(());
            }
            // The first read finds what an instance left that is gone. What it was at work on is looked at now, not when
            // that instance would have noticed that it had failed; looking at something early does no harm.
            let hurry_until = if self.is_first_load { now + RETRY_INTERVAL.as_micros() as i64 } else { now };
            let fire_at = |at_us: i64| if at_us < hurry_until { at_us.min(now) } else { at_us };
            // The announcement comes first: from then on creators push what they commit.
            self.loading_from_us = Some(from);
            self.timers.lock().load_until(until);
            self.read(from, until, fire_at, false).await?;
            self.loading_from_us = None;
        }
    }

    /// Reads the windows that have passed once more, and fires what was missed.
    async fn verify(&mut self) -> Result<(), Failure> {
        let behind = match self.behind.take() {
            Some(behind) => behind,
            None => {
                // Whether a window has passed is for the database's clock to say, not for the estimate of it here.
                let Snapshot { xmax, now_us, .. } = self.snapshot().await?;
                if now_us < self.verified_until_us - CLOCK_WENT_BACK_US {
                    tracing::warn!("the database's clock went back; what it says now counts");
                    self.verified_until_us = now_us - CLOCK_WENT_BACK_US;
                    self.timers.lock().reopen(self.verified_until_us);
                }
                let passed = (now_us - VERIFY_AFTER_US).div_euclid(WINDOW_US) * WINDOW_US;
                let loaded = self.timers.lock().load_until(0).div_euclid(WINDOW_US) * WINDOW_US;
                let until_us = passed.min(loaded).min(self.verified_until_us + LOAD_AT_ONCE_US);
                if until_us <= self.verified_until_us {
                    return Ok(());
                }
                Behind { until_us, xmax }
            }
        };
        let Snapshot { xmin, .. } = self.snapshot().await?;
        self.read(self.verified_until_us, behind.until_us, |at_us| at_us, true).await?;
        // The read's snapshot is younger than the one that xmin is of, so it saw whatever had been running.
        if xmin >= behind.xmax {
            self.verified_until_us = behind.until_us;
        } else {
            self.behind = Some(behind);
        }
        Ok(())
    }

    async fn snapshot(&self) -> Result<Snapshot, Failure> {
        let statement = self.session.statement(SNAPSHOT)?;
        let row = self.session.client()?.query_one(statement, &[]).await.map_err(|e| sort(&e))?;
        Ok(Snapshot {
            xmin: row.get(0),
            xmax: row.get(1),
            now_us: row.get::<_, Timestamp>(2).as_microsecond(),
        })
    }

    async fn read(
        &self,
        from: i64,
        until: i64,
        fire_at: impl Fn(i64) -> i64,
        verifying: bool,
    ) -> Result<(), Failure> {
        let statement = self.session.statement(READ)?;
        let range = [timestamp(from), timestamp(until)];
        let rows = self.session.client()?.query_raw(statement, range).await.map_err(|e| sort(&e))?;
        pin_mut!(rows);
        while let Some(row) = rows.next().await {
            let row = row.map_err(|e| sort(&e))?;
            let Ok(id) = TransactionId::from_uuid(row.get("transaction_id")) else { continue };
            let at_us = row.get::<_, Timestamp>("wake_at").as_microsecond();
            let new = self.timers.lock().add(Entry { at_us, id }, fire_at(at_us));
            if new && verifying {
                self.missed.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%id, "a wake-up was found by the verify pass only");
            }
        }
        self.timers.earlier.notify_one();
        Ok(())
    }

    async fn reconnect(&mut self) {
        match tokio::time::timeout(PATIENCE, connect(&mut self.session)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => tracing::debug!(%failure, "the scheduler cannot connect"),
            Err(_) => tracing::debug!("connecting the scheduler takes too long"),
        }
    }

    async fn leave(&self) {
        let watermark = self.timers.lock().closed_until_us();
        let left = async {
            slots::set_watermark(&self.session, self.me, timestamp(watermark)).await?;
            slots::release(&self.session, self.me).await
        };
        match tokio::time::timeout(Duration::from_secs(2), left).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => {
                tracing::warn!(%failure, address = self.address, "cannot give the slots back")
            }
            Err(_) => tracing::warn!(address = self.address, "cannot give the slots back in time"),
        }
    }
}

/// Hands out what is due, as it falls due, until asked to stop. `look` may wait; it is then the brake.
pub async fn fire<F>(timers: Timers, clock: Clock, stop: CancellationToken, mut look: impl FnMut(Entry) -> F)
where
    F: Future<Output = ()>,
{
    while !stop.is_cancelled() {
        let now = clock.now_us();
        let (due, next) = {
            let mut ring = timers.lock();
            (ring.take(now, FIRE_BATCH), ring.next_us())
        };
        if due.is_empty() {
            // The clock may be set meanwhile, so no sleep is long.
            let pause = next.map_or(1_000_000, |next| (next - now).clamp(1_000, 1_000_000));
            tokio::select! {
                () = tokio::time::sleep(Duration::from_micros(pause as u64)) => {}
                () = timers.earlier.notified() => {}
                () = stop.cancelled() => {}
            }
        }
        for entry in due {
            look(entry).await;
        }
    }
}

async fn connect(session: &mut Session) -> Result<(), Failure> {
    let mut statements = vec![READ, SNAPSHOT];
    statements.extend(slots::STATEMENTS);
    session.connect(&statements).await
}
