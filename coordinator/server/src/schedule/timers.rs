//! The ring, shared between those who commit wake-ups and those who read and fire them.

use super::ring::{Entry, Ring};
use crate::store::Place;
use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};
use tcc_core::{Timestamp, TransactionId};
use tokio::sync::Notify;

/// A handle of the ring. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Timers(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    ring: Mutex<Ring>,
    /// Told when a bucket becomes the first one.
    earlier: Notify,
    /// Told when slots have come here, and have to be read.
    claimed: Notify,
    /// Whether creators keep what they commit to themselves. Set by a test, to show that the verify pass finds everything.
    is_mute: AtomicBool,
}

impl Timers {
    /// The slot for a new transaction.
    #[must_use]
    pub fn pick_slot(&self) -> u8 {
        self.lock().pick()
    }

    /// A wake-up was committed.
    pub fn arm(&self, at: Timestamp, id: TransactionId, place: Place) {
        if !self.0.is_mute.load(Ordering::Relaxed) {
            self.change(|ring| ring.arm(Entry { at_us: at.as_microsecond(), id, place }));
        }
    }

    /// A wake-up is pointless.
    pub fn settle(&self, at: Timestamp, id: TransactionId, place: Place) {
        self.lock().settle(Entry { at_us: at.as_microsecond(), id, place });
    }

    /// A wake-up that was fired was looked at.
    pub fn done(&self, entry: Entry) {
        self.lock().done(entry);
    }

    /// There is something to do for a wake-up that was fired.
    pub fn needed(&self, entry: Entry) {
        self.lock().needed(entry);
    }

    /// A wake-up that was fired could not be looked at; fire it again at this time.
    pub fn put_back(&self, entry: Entry, at_us: i64) {
        self.change(|ring| ring.put_back(entry, at_us));
    }

    /// Leaves what is committed from now on to the verify pass.
    pub fn stop_pushing(&self) {
        self.0.is_mute.store(true, Ordering::Relaxed);
    }

    /// The ring.
    pub fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().expect("no holder of the ring panics")
    }

    /// Changes the ring, and wakes whoever waits for its first bucket if that is another one then.
    pub(super) fn change(&self, change: impl FnOnce(&mut Ring)) {
        let mut ring = self.lock();
        let before = ring.next_us();
        change(&mut ring);
        if ring.next_us() != before {
            self.0.earlier.notify_one();
        }
    }

    /// Waits until another bucket has become the first one.
    pub(super) async fn earlier(&self) {
        self.0.earlier.notified().await;
    }

    /// Slots have come here.
    pub(super) fn tell_claimed(&self) {
        self.0.claimed.notify_one();
    }

    /// Waits until slots come here.
    pub(super) async fn claimed(&self) {
        self.0.claimed.notified().await;
    }
}
