//! What falls due within the next two minutes, in buckets of 5 ms.
//!
//! A bucket is taken whole, and so already is a batch. Beside the buckets the ring remembers, for each window of 10 s, which
//! wake-ups it has known: so a wake-up that is pushed by its creator, read ahead and read once more is fired once. Times are
//! in microseconds since the Unix epoch, by the database's clock.

use super::clock::timestamp;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};
use tcc_core::{Timestamp, TransactionId};
use tokio::sync::Notify;

/// How wide a bucket is: what is due waits for it at most.
const BUCKET_US: i64 = 5_000;
/// How wide a window is, the unit in which wake-ups are read again and forgotten.
pub const WINDOW_US: i64 = 10_000_000;

/// A wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// As the table has it.
    pub at_us: i64,
    /// Of which transaction.
    pub id: TransactionId,
}

impl Entry {
    /// As the table has it.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        timestamp(self.at_us)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a bucket, or being looked at.
    Open,
    /// Looked at, or overtaken by another wake-up.
    Settled,
}

/// The ring itself. See [`Timers`] for the shared handle.
#[derive(Debug)]
pub struct Ring {
    buckets: BTreeMap<i64, Vec<Entry>>,
    windows: BTreeMap<i64, Window>,
    /// Whatever is due before it and was committed before is being read, or has been.
    loading_until_us: i64,
    /// Windows before it are forgotten: everything in them was looked at.
    closed_until_us: i64,
}

#[derive(Debug, Default)]
struct Window {
    known: HashMap<Entry, State>,
    open: usize,
}

impl Ring {
    /// An empty ring for wake-ups at or after `start_us`.
    #[must_use]
    pub fn new(start_us: i64) -> Self {
        let start_us = floor(start_us);
        Self {
            buckets: BTreeMap::new(),
            windows: BTreeMap::new(),
            loading_until_us: start_us,
            closed_until_us: start_us,
        }
    }

    /// Announces a read of everything before `until_us`. From now on creators push what they commit before that
    /// time. Answers how far the last announcement went.
    pub fn load_until(&mut self, until_us: i64) -> i64 {
        let before = self.loading_until_us;
        self.loading_until_us = before.max(until_us);
        before
    }

    /// The announced read failed: what is due from `from_us` on is to be read again.
    pub fn unload(&mut self, from_us: i64) {
        self.loading_until_us = self.loading_until_us.min(from_us);
    }

    /// Takes a wake-up that was just committed, even if one at that very time was settled before. What lies beyond the
    /// announced reads is left to a later one.
    pub fn arm(&mut self, entry: Entry) {
        if entry.at_us >= self.loading_until_us {
            return;
        }
        let window = self.windows.get_mut(&floor(entry.at_us));
        match window.and_then(|window| Some((window.known.get_mut(&entry)?, &mut window.open))) {
            Some((State::Open, _)) => {}
            Some((settled, open)) => {
                *settled = State::Open;
                *open += 1;
                self.put(entry, entry.at_us);
            }
            None => {
                self.add(entry, entry.at_us);
            }
        }
    }

    /// Takes a wake-up that was read from the table, to be fired at a time of its own or earlier. `false` if it is known.
    pub fn add(&mut self, entry: Entry, fire_us: i64) -> bool {
        if entry.at_us >= self.closed_until_us {
            let window = self.windows.entry(floor(entry.at_us)).or_default();
            if window.known.contains_key(&entry) {
                return false;
            }
            window.known.insert(entry, State::Open);
            window.open += 1;
        }
        // A wake-up from a closed window is fired without being remembered: looking twice does no harm.
        self.put(entry, fire_us);
        true
    }

    /// Whoever committed a wake-up has made it pointless: it is neither fired nor found missing.
    pub fn settle(&mut self, entry: Entry) {
        if entry.at_us < self.closed_until_us {
            return;
        }
        let window = self.windows.entry(floor(entry.at_us)).or_default();
        match window.known.get_mut(&entry) {
            Some(state) => {
                window.open -= usize::from(*state == State::Open);
                *state = State::Settled;
            }
            // What lies beyond the announced reads is left to them: they find it moot.
            None if entry.at_us < self.loading_until_us => {
                window.known.insert(entry, State::Settled);
            }
            None => {}
        }
    }

    /// At most `limit` wake-ups that are due, the earliest buckets first. They stay open until they are settled.
    pub fn take(&mut self, now_us: i64, limit: usize) -> Vec<Entry> {
        let mut due = Vec::new();
        while let Some(mut bucket) = self.buckets.first_entry() {
            if *bucket.key() * BUCKET_US > now_us || due.len() == limit {
                break;
            }
            let entries = bucket.get_mut();
            let rest = entries.split_off(entries.len().min(limit - due.len()));
            let taken = std::mem::replace(entries, rest);
            if entries.is_empty() {
                bucket.remove();
            }
            due.extend(taken.into_iter().filter(|entry| {
                let window = self.windows.get(&floor(entry.at_us));
                window.and_then(|window| window.known.get(entry)) != Some(&State::Settled)
            }));
        }
        due
    }

    /// Puts a wake-up that was taken back, to be fired at another time. It stays open where it was.
    pub fn put(&mut self, entry: Entry, at_us: i64) {
        let bucket = at_us.div_euclid(BUCKET_US) + i64::from(at_us.rem_euclid(BUCKET_US) != 0);
        self.buckets.entry(bucket).or_default().push(entry);
    }

    /// When the next bucket is due.
    #[must_use]
    pub fn next_us(&self) -> Option<i64> {
        self.buckets.first_key_value().map(|(bucket, _)| bucket * BUCKET_US)
    }

    /// Forgets the windows before `verified_us` as far as nothing in them is open, and answers how far that is: the
    /// watermark.
    pub fn close_until(&mut self, verified_us: i64) -> i64 {
        let verified_us = floor(verified_us);
        while let Some(window) = self.windows.first_entry() {
            if *window.key() >= verified_us {
                break;
            }
            if window.get().open > 0 {
                self.closed_until_us = self.closed_until_us.max(*window.key());
                return self.closed_until_us;
            }
            window.remove();
        }
        self.closed_until_us = self.closed_until_us.max(verified_us);
        self.closed_until_us
    }

    /// Everything before it was looked at.
    #[must_use]
    pub fn closed_until_us(&self) -> i64 {
        self.closed_until_us
    }

    /// The database's clock went back: what is committed from now on may lie before the windows that are closed.
    pub fn reopen(&mut self, from_us: i64) {
        self.closed_until_us = self.closed_until_us.min(floor(from_us));
    }

    /// How many wake-ups wait in buckets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.values().map(Vec::len).sum()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

/// The start of the window of a time.
fn floor(at_us: i64) -> i64 {
    at_us.div_euclid(WINDOW_US) * WINDOW_US
}

/// The ring, shared between those who commit wake-ups and the scheduler. Clones share it.
#[derive(Debug, Clone)]
pub struct Timers {
    ring: Arc<Mutex<Ring>>,
    /// Told when a bucket becomes the first one.
    pub(super) earlier: Arc<Notify>,
    /// Whether creators push what they commit. Switched off by a test, to show that the verify pass finds everything.
    pushes: Arc<AtomicBool>,
}

impl Timers {
    /// Shares a ring.
    #[must_use]
    pub fn new(ring: Ring) -> Self {
        let pushes = Arc::new(AtomicBool::new(true));
        Self { ring: Arc::new(Mutex::new(ring)), earlier: Arc::default(), pushes }
    }

    /// A wake-up was committed.
    pub fn arm(&self, at: Timestamp, id: TransactionId) {
        if self.pushes.load(Ordering::Relaxed) {
            self.notifying(|ring| ring.arm(Entry { at_us: at.as_microsecond(), id }));
        }
    }

    /// A wake-up is pointless, or was looked at.
    pub fn settle(&self, at: Timestamp, id: TransactionId) {
        self.lock().settle(Entry { at_us: at.as_microsecond(), id });
    }

    /// A wake-up that was fired was looked at.
    pub fn done(&self, entry: Entry) {
        self.lock().settle(entry);
    }

    /// A wake-up that was fired could not be looked at; fire it again at this time.
    pub fn put_back(&self, entry: Entry, at_us: i64) {
        self.notifying(|ring| ring.put(entry, at_us));
    }

    /// Leaves what is committed from now on to the verify pass.
    pub fn stop_pushing(&self) {
        self.pushes.store(false, Ordering::Relaxed);
    }

    /// The ring.
    pub fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().expect("no holder of the ring panics")
    }

    fn notifying(&self, change: impl FnOnce(&mut Ring)) {
        let mut ring = self.lock();
        let before = ring.next_us();
        change(&mut ring);
        if ring.next_us() != before {
            self.earlier.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at_us: i64, n: u8) -> Entry {
        Entry { at_us, id: TransactionId::mint(Timestamp::UNIX_EPOCH, [n; 10]) }
    }

    fn loaded(until_us: i64) -> Ring {
        let mut ring = Ring::new(0);
        ring.load_until(until_us);
        ring
    }

    #[test]
    fn nothing_is_taken_before_its_time_and_everything_within_a_bucket_after() {
        let mut ring = loaded(60_000_000);
        ring.arm(entry(12_345, 1));

        assert_eq!(ring.take(12_345, 10), []);
        assert_eq!(ring.take(12_345 + BUCKET_US, 10), [entry(12_345, 1)]);
        assert!(ring.is_empty());
    }

    #[test]
    fn a_wake_up_pushed_read_ahead_and_read_again_is_fired_once() {
        let mut ring = loaded(60_000_000);
        ring.arm(entry(1, 1));

        assert!(!ring.add(entry(1, 1), 1));
        assert_eq!(ring.take(10_000, 10).len(), 1);
        assert!(!ring.add(entry(1, 1), 1));
        assert_eq!(ring.take(10_000, 10).len(), 0);
    }

    #[test]
    fn what_lies_beyond_the_announced_read_is_left_to_it() {
        let mut ring = loaded(10_000_000);
        ring.arm(entry(10_000_000, 1));

        assert!(ring.is_empty());
        assert!(ring.add(entry(10_000_000, 1), 10_000_000));
    }

    #[test]
    fn a_settled_wake_up_is_not_fired() {
        let mut ring = loaded(60_000_000);
        ring.arm(entry(1, 1));
        ring.settle(entry(1, 1));
        ring.settle(entry(2, 2));

        assert_eq!(ring.take(10_000, 10), []);
        assert!(!ring.add(entry(2, 2), 2), "what was settled before it was read is not fired either");
    }

    #[test]
    fn a_settled_wake_up_that_is_committed_again_is_fired() {
        let mut ring = loaded(60_000_000);
        ring.arm(entry(1, 1));
        ring.settle(entry(1, 1));
        ring.arm(entry(1, 1));

        assert_eq!(ring.close_until(WINDOW_US), 0, "it holds up the watermark again");
        assert!(ring.take(10_000, 10).contains(&entry(1, 1)));
    }

    #[test]
    fn the_watermark_stops_at_what_is_open() {
        let mut ring = loaded(60_000_000);
        ring.arm(entry(1, 1));
        ring.arm(entry(WINDOW_US + 1, 2));
        for entry in ring.take(60_000_000, 10) {
            if entry.at_us == 1 {
                ring.settle(entry);
            }
        }

        assert_eq!(ring.close_until(3 * WINDOW_US), WINDOW_US);
        ring.settle(entry(WINDOW_US + 1, 2));
        assert_eq!(ring.close_until(3 * WINDOW_US), 3 * WINDOW_US);
    }

    #[test]
    fn a_wake_up_from_a_closed_window_is_fired_all_the_same() {
        let mut ring = loaded(60_000_000);
        ring.close_until(2 * WINDOW_US);
        ring.arm(entry(1, 1));

        assert_eq!(ring.take(60_000_000, 10), [entry(1, 1)]);
        ring.settle(entry(1, 1));
        assert_eq!(ring.close_until(3 * WINDOW_US), 3 * WINDOW_US);
    }

    #[test]
    fn what_is_settled_while_a_read_is_taken_back_stays_settled() {
        let mut ring = Ring::new(0);
        ring.load_until(60_000_000);
        ring.add(entry(1, 1), 1);
        let taken = ring.take(60_000_000, 10);
        ring.unload(0);
        ring.settle(taken[0]);
        ring.load_until(60_000_000);

        assert!(!ring.add(entry(1, 1), 1));
        assert_eq!(ring.close_until(WINDOW_US), WINDOW_US);
    }

    #[test]
    fn after_the_clock_went_back_closed_windows_are_open_again() {
        let mut ring = loaded(60_000_000);
        ring.close_until(3 * WINDOW_US);
        ring.reopen(WINDOW_US);
        ring.arm(entry(WINDOW_US + 1, 1));

        assert_eq!(ring.close_until(3 * WINDOW_US), WINDOW_US);
    }

    #[test]
    fn a_crowded_bucket_is_taken_in_parts_and_the_earliest_go_first() {
        let mut ring = loaded(60_000_000);
        for n in 0..10 {
            ring.arm(entry(1 + i64::from(n) % 2, n));
        }
        ring.arm(entry(50_000, 99));

        assert_eq!(ring.take(60_000, 7).len(), 7);
        let rest = ring.take(60_000, 7);
        assert_eq!(rest.len(), 4);
        assert_eq!(rest[3], entry(50_000, 99));
    }
}
