//! Reads ahead, reads behind, keeps the lease; fires what is due.

use super::{
    Clock, Entry, Timers,
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
    time::Duration,
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
SELECT pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8 FROM pg_current_snapshot() AS s";

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
    saved_watermark_us: i64,
}

/// Windows that have passed and are not closed yet.
struct Behind {
    until_us: i64,
    /// Of a snapshot taken after they had passed.
    xmax: i64,
    /// Read once more, when nothing could come behind any longer.
    verified: bool,
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
            let pause = match self.tick().await {
                Ok(true) => {
                    failures = 0;
                    slots::HEARTBEAT
                }
                Ok(false) => break Ended::Overtaken,
                Err(failure) => {
                    tracing::warn!(%failure, "the scheduler cannot work; trying again");
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
        let now = self.clock.now_us();
        let loaded = self.timers.lock().load_until(0);
        if now + LOOK_AHEAD_US >= loaded + LOAD_INTERVAL_US {
            self.load(loaded, now).await?;
        }
        self.verify(now).await?;
        let watermark = self.timers.lock().closed_until_us();
        if watermark > self.saved_watermark_us {
            slots::advance_watermark(&self.session, self.me, timestamp(watermark)).await?;
            self.saved_watermark_us = watermark;
        }
        Ok(true)
    }

    /// Reads ahead. The announcement comes first: from then on creators push what they commit.
    async fn load(&mut self, from: i64, now: i64) -> Result<(), Failure> {
        let until = now + LOOK_AHEAD_US;
        self.timers.lock().load_until(until);
        // The first read finds what an instance left that is gone. What it was at work on is looked at now, not when that
        // instance would have noticed that it had failed; looking at something early does no harm.
        let hurry_until = if std::mem::take(&mut self.is_first_load) {
            now + RETRY_INTERVAL.as_micros() as i64
        } else {
            now
        };
        let fire_at = |at_us: i64| if at_us < hurry_until { at_us.min(now) } else { at_us };
        if let Err(failure) = self.read(from, until, fire_at, false).await {
            self.is_first_load |= hurry_until > now;
            // Not read after all: take the announcement back, so that the next tick reads the same again.
            self.timers.lock().unload(from);
            return Err(failure);
        }
        Ok(())
    }

    /// Reads the windows that have passed once more, fires what was missed, and closes them when nothing can come behind.
    async fn verify(&mut self, now: i64) -> Result<(), Failure> {
        let from = self.timers.lock().closed_until_us();
        let mut behind = match self.behind.take() {
            Some(behind) => behind,
            None => {
                let until_us = (now - VERIFY_AFTER_US).div_euclid(WINDOW_US) * WINDOW_US;
                if until_us <= from {
                    return Ok(());
                }
                let (_, xmax) = self.snapshot().await?;
                Behind { until_us, xmax, verified: false }
            }
        };
        if !behind.verified {
            let (xmin, _) = self.snapshot().await?;
            self.read(from, behind.until_us, |at_us| at_us, true).await?;
            // The read's snapshot is younger than the one that xmin is of, so it saw whatever had been running.
            behind.verified = xmin >= behind.xmax;
        }
        let closed = behind.verified && self.timers.lock().close_until(behind.until_us) >= behind.until_us;
        self.behind = (!closed).then_some(behind);
        Ok(())
    }

    /// The oldest transaction that is still running, and the first one that has not started yet.
    async fn snapshot(&self) -> Result<(i64, i64), Failure> {
        let statement = self.session.statement(SNAPSHOT)?;
        let row = self.session.client()?.query_one(statement, &[]).await.map_err(|e| sort(&e))?;
        Ok((row.get(0), row.get(1)))
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
        if let Err(failure) = connect(&mut self.session).await {
            tracing::debug!(%failure, "the scheduler cannot connect");
        }
    }

    async fn leave(&self) {
        let watermark = self.timers.lock().closed_until_us();
        let left = async {
            slots::advance_watermark(&self.session, self.me, timestamp(watermark)).await?;
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

fn timestamp(at_us: i64) -> Timestamp {
    Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::MAX)
}
