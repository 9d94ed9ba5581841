//! What becomes of a wake-up: from the ring to the gates of the participants that its transaction needs, and to its life, or
//! back into the ring.
//!
//! A wake-up is open until its transaction is final or another one stands in its place; here it is settled, or put back to
//! be looked at again. That a participant is gone or has enough to do is no failure of the transaction: its wake-up waits at
//! the gate, and if that lasts, it is armed again for later.

use super::{
    Active, Engine, STUCK_AFTER, drive,
    gates::{Pass, REARM_EVERY},
};
use crate::{
    schedule::Entry,
    store::{Defer, WAKE_HORIZON, Woken},
};
use futures::future::join_all;
use std::{sync::Arc, time::Duration};
use tcc_core::{Attention, Phase};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// So many of those who wait for a participant that is gone are armed again at a time.
const REARM: usize = 250;
/// What is armed again comes back after this, and later if there is so much that it would be more than so many per second.
const REARM_DELAY: (Duration, u32) = (Duration::from_secs(60), 500);
/// A wake-up for a transaction that is being worked on comes back after this.
const BUSY_US: i64 = 20_000;
/// A wake-up that the store could not answer comes back after this.
const STORE_DOWN_US: i64 = 500_000;

impl Engine {
    /// Goes on with what a wake-up names. Returns when it has been looked at or handed to a task; waits while too much is
    /// under way.
    pub async fn look(self: &Arc<Self>, entry: Entry) {
        self.gates.room(|index| self.participants.is_reachable(index)).await;
        self.look_with(entry, None).await;
    }

    /// Lets in those who wait at the gates, as soon as they can be let in, until asked to stop. Who waits for a participant
    /// that stays away is armed again for later.
    pub async fn admit(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            for index in 0..self.participants.len() {
                if self.participants.is_reachable(index) {
                    for (entry, pass) in self.gates.admit(index, self.clock.now_us()) {
                        self.look_with(entry, Some(pass)).await;
                    }
                } else {
                    let to_rearm = self.gates.to_rearm(index, self.clock.now_us(), REARM);
                    if let Some((entries, gone_for, waiting)) = to_rearm {
                        self.spawn(Arc::clone(&self).rearm(index, entries, gone_for, waiting));
                    }
                }
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep(REARM_EVERY) => {}
                () = self.gates.next() => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn look_with(self: &Arc<Self>, entry: Entry, reserved: Option<Pass>) {
        let Ok(permit) = Arc::clone(&self.looks).acquire_owned().await else { return };
        if self.is_active(entry.id) {
            return self.timers.put_back(entry, self.clock.now_us() + BUSY_US);
        }
        let active = self.activate(entry.id);
        self.spawn(Arc::clone(self).wake(entry, active, permit, reserved));
    }

    /// Arms some of those again who wait for a participant that has been gone for long. They stay where they wait, but for
    /// those that another instance serves by now.
    async fn rearm(
        self: Arc<Self>,
        index: usize,
        mut entries: Vec<Entry>,
        gone_for: Duration,
        waiting: usize,
    ) {
        {
            let ring = self.timers.lock();
            entries.retain(|entry| ring.serves(entry.place.slot));
        }
        let attention = if gone_for >= STUCK_AFTER { Attention::Stuck } else { Attention::Retrying };
        let delay = REARM_DELAY.0 + Duration::from_secs(waiting as u64) / REARM_DELAY.1;
        let error = format!("{} is not reachable", self.participants.name(index));
        let rearmed = entries.iter().map(|entry| {
            let (id, error) = (entry.id, error.clone());
            self.store.defer.call(Defer {
                id,
                phase: None,
                is_fault: false,
                attention,
                delay: Some(delay),
                error,
            })
        });
        for (entry, rearmed) in entries.iter().zip(join_all(rearmed).await) {
            match rearmed {
                Ok(Some(wake_at)) => {
                    self.metrics.put_off(attention);
                    wake_at.into_iter().for_each(|at| self.timers.arm(at, entry.id, entry.place));
                    self.timers.done(*entry);
                    self.gates.rearmed(index, *entry);
                }
                // Somebody has moved it, or the store does not answer.
                Ok(None) | Err(_) => self.put_back(*entry),
            }
        }
    }

    /// Looks at one transaction, and sees it through. With a reserved place it comes from the gate where it waited.
    async fn wake(
        self: Arc<Self>,
        entry: Entry,
        _active: Active,
        permit: OwnedSemaphorePermit,
        reserved: Option<Pass>,
    ) {
        let woken = match self.store.wake.call(entry.id).await {
            Ok(Some(woken)) => woken,
            Ok(None) => return self.timers.done(entry),
            Err(_) => return self.put_back(entry),
        };
        // What was put off because its participant was gone waited at the gate.
        let is_put_off = woken.is_put_off && reserved.is_none();
        if is_put_off || (woken.record.standing.phase == Phase::Held && !woken.is_due) {
            return self.wait_on(entry, &woken).await;
        }
        self.timers.needed(entry);
        let parts = self.participants.parts(&woken.record.transaction);
        let needs: Vec<usize> = parts.iter().map(|part| part.index).collect();
        let entered = self.gates.enter(&needs, reserved, |index| self.participants.is_reachable(index));
        drop(permit);
        let _pass = match entered {
            Ok(pass) => pass,
            Err(index) => return self.gates.wait(index, entry),
        };
        let rest = drive::Life::woken(&self, woken, entry.at()).drive().await;
        if !rest.is_written {
            self.put_back(entry);
        } else if rest.open == Some(entry.at()) {
            // It is held now, and this is the wake-up of its due time, which came a little early.
            self.timers.put_back(entry, entry.at_us);
        }
    }

    /// There is nothing to do yet: makes sure that a wake-up stands when there is.
    async fn wait_on(&self, entry: Entry, woken: &Woken) {
        let now_us = woken.now.as_microsecond();
        if entry.at_us > now_us {
            // Its time has come by the clock here, and not yet by the database's, which counts.
            return self.timers.put_back(entry, self.clock.now_us() + entry.at_us - now_us);
        }
        if let Some(at) = woken.record.maturity_wake_up().filter(|_| !woken.is_put_off) {
            if at > woken.now {
                // The statement that left it may have had no answer, so it may not be in the ring.
                self.timers.arm(at, entry.id, entry.place);
            } else {
                // It stood on the way to a far due time.
                let (id, delay) = (entry.id, Some(WAKE_HORIZON.unsigned_abs()));
                let (phase, attention) = (Some(Phase::Held), woken.record.standing.attention);
                let defer = Defer { id, phase, attention, delay, is_fault: false, error: String::new() };
                match self.store.defer.call(defer).await {
                    Ok(Some(wake_at)) => {
                        wake_at.into_iter().for_each(|at| self.timers.arm(at, id, entry.place))
                    }
                    Ok(None) | Err(_) => return self.put_back(entry),
                }
            }
        }
        self.timers.done(entry);
    }

    /// The store does not answer, or somebody else is at work.
    fn put_back(&self, entry: Entry) {
        self.timers.put_back(entry, self.clock.now_us() + STORE_DOWN_US);
    }
}
