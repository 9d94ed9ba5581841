//! What falls due within the next two minutes, in buckets of 5 ms.
//!
//! A bucket is taken whole, and so already is a batch. Beside the buckets the ring remembers, for each slot that this
//! instance serves and each window of 10 s, which wake-ups it has known: so a wake-up that is pushed by its creator, read
//! ahead and read once more is fired once. A wake-up of a slot that another instance serves is a guest: it is fired, and
//! not remembered. Times are in microseconds since the Unix epoch, by the database's clock.

use super::clock::timestamp;
use crate::store::{Place, RETRY_INTERVAL};
use std::collections::{BTreeMap, HashMap};
use tcc_core::{Timestamp, TransactionId};

/// How wide a bucket is: what is due waits for it at most.
const BUCKET_US: i64 = 5_000;
/// How wide a window is, the unit in which wake-ups are read again and forgotten.
pub const WINDOW_US: i64 = 10_000_000;
/// How many slots there are.
pub const SLOTS: usize = 256;

/// A wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// As the table has it.
    pub at_us: i64,
    /// Of which transaction.
    pub id: TransactionId,
    /// Where it stands.
    pub place: Place,
}

impl Entry {
    /// As the table has it.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        timestamp(self.at_us)
    }
}

/// A part of the table: what is due in one slot from a time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which slot.
    pub slot: u8,
    /// From when on.
    pub from_us: i64,
    /// Which time it was that the slot was claimed: it may be lost and claimed again during a read.
    claim: u64,
}

impl Part {
    /// A part of a slot that another instance serves.
    #[must_use]
    pub fn foreign(slot: u8, from_us: i64) -> Self {
        Self { slot, from_us, claim: 0 }
    }
}

/// What one read is to read.
pub type Parts = Vec<Part>;

/// The ring itself. `Timers` is the shared handle.
#[derive(Debug)]
pub struct Ring {
    buckets: BTreeMap<i64, Vec<Entry>>,
    /// Those that this instance serves.
    slots: Vec<Option<Slot>>,
    /// Guests are taken up to this time; what is later is left to those who serve its slot.
    guests_until_us: i64,
    /// The slot that the next transaction gets.
    next_slot: u8,
    /// How often a slot was claimed.
    claims: u64,
    missed: u64,
    settled: u64,
}

#[derive(Debug)]
struct Slot {
    /// How often it has changed hands.
    epoch: i64,
    /// Which claim of this ring it was.
    claim: u64,
    /// Whatever is due before it and was committed before is being read, or has been.
    loading_until_us: i64,
    /// Windows before it were read once more.
    read_again_until_us: i64,
    /// Windows before it were read once more, and nothing can come behind that.
    verified_until_us: i64,
    /// Windows before it are forgotten: everything in them was looked at.
    closed_until_us: i64,
    /// As the table has it.
    saved_until_us: i64,
    /// What is read and due before it is looked at now: whoever served the slot before may have been at work on it.
    hurry_until_us: i64,
    windows: BTreeMap<i64, Window>,
}

#[derive(Debug, Default)]
struct Window {
    known: HashMap<(i64, TransactionId), State>,
    open: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a bucket, or being looked at.
    Open,
    /// Likewise, and only the verify pass has found it.
    Found,
    /// Looked at, or overtaken by another wake-up.
    Settled,
}

/// How a wake-up was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Before it is due.
    Ahead,
    /// Once more, after it was due.
    Again,
}

impl Ring {
    /// An empty ring that serves no slot.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buckets: BTreeMap::new(),
            slots: (0..SLOTS).map(|_| None).collect(),
            guests_until_us: i64::MIN,
            next_slot: 0,
            claims: 0,
            missed: 0,
            settled: 0,
        }
    }

    /// Serves a slot from now on, from its watermark.
    pub fn claim(&mut self, slot: u8, epoch: i64, watermark_us: i64, now_us: i64) {
        let from_us = floor(watermark_us);
        self.claims += 1;
        self.slots[usize::from(slot)] = Some(Slot {
            epoch,
            claim: self.claims,
            loading_until_us: from_us,
            read_again_until_us: from_us,
            verified_until_us: from_us,
            closed_until_us: from_us,
            saved_until_us: from_us,
            hurry_until_us: now_us + RETRY_INTERVAL.as_micros() as i64,
            windows: BTreeMap::new(),
        });
    }

    /// Serves these slots no more. What falls due before `fire_until_us` is fired all the same: whoever serves them next
    /// needs a moment to read, and looking twice does no harm.
    pub fn release(&mut self, slots: &[u8], fire_until_us: i64) {
        slots.iter().for_each(|slot| self.slots[usize::from(*slot)] = None);
        for (_, entries) in self.buckets.range_mut(fire_until_us.div_euclid(BUCKET_US)..) {
            entries.retain(|entry| !slots.contains(&entry.place.slot));
        }
        self.buckets.retain(|_, entries| !entries.is_empty());
    }

    /// Whether this instance serves a slot.
    #[must_use]
    pub fn serves(&self, slot: u8) -> bool {
        self.slots[usize::from(slot)].is_some()
    }

    /// The slots that this instance serves.
    pub fn served(&self) -> impl Iterator<Item = u8> + '_ {
        self.slots.iter().zip(0..=u8::MAX).filter(|(slot, _)| slot.is_some()).map(|(_, number)| number)
    }

    /// The slot for a new transaction: one that is served here, so that its wake-ups need no message to anybody.
    pub fn pick(&mut self) -> u8 {
        for _ in 0..SLOTS {
            self.next_slot = self.next_slot.wrapping_add(1);
            if self.serves(self.next_slot) {
                break;
            }
        }
        self.next_slot
    }

    /// Announces a read up to `until_us`, or as far as one read may go. From now on creators push what they commit before
    /// that. Answers what is to be read, and up to where; nothing, if that would be less than `least_us`.
    pub fn announce(&mut self, until_us: i64, least_us: i64, most_us: i64) -> Option<(Parts, i64)> {
        let served = || self.slots.iter().flatten();
        let from_us = served().map(|slot| slot.loading_until_us).min()?;
        if until_us - from_us < least_us {
            return None;
        }
        let until_us = until_us.min(from_us + most_us);
        let mut parts = Parts::new();
        for (slot, number) in self.slots.iter_mut().zip(0..=u8::MAX) {
            if let Some(slot) = slot.as_mut().filter(|slot| slot.loading_until_us < until_us) {
                parts.push(Part { slot: number, from_us: slot.loading_until_us, claim: slot.claim });
                slot.loading_until_us = until_us;
            }
        }
        Some((parts, until_us))
    }

    /// The announced read failed: what it was to read is to be read again.
    pub fn take_back(&mut self, parts: &Parts) {
        for part in parts {
            if let Some(slot) = &mut self.slots[usize::from(part.slot)] {
                slot.loading_until_us = slot.loading_until_us.min(part.from_us);
            }
        }
    }

    /// From now on guests are taken up to this time.
    pub fn take_guests_until(&mut self, until_us: i64) {
        self.guests_until_us = until_us;
    }

    /// Takes a wake-up that was just committed, even if one at that very time was settled before. What lies beyond the
    /// announced reads is left to a later one.
    pub fn arm(&mut self, entry: Entry) {
        let Some(slot) = &mut self.slots[usize::from(entry.place.slot)] else {
            if entry.at_us < self.guests_until_us {
                self.put(entry, entry.at_us);
            }
            return;
        };
        if entry.at_us >= slot.loading_until_us {
            return;
        }
        if slot.remember(&entry, State::Open, true) {
            self.put(entry, entry.at_us);
        }
    }

    /// Takes a wake-up that was read from the table.
    pub fn add(&mut self, entry: Entry, reading: Reading) {
        // Whoever serves the slot now reads it, too.
        let Some(slot) = &mut self.slots[usize::from(entry.place.slot)] else { return };
        let state = if reading == Reading::Again { State::Found } else { State::Open };
        let is_hurried = entry.at_us < slot.hurry_until_us;
        if slot.remember(&entry, state, false) {
            let early_us = if is_hurried { RETRY_INTERVAL.as_micros() as i64 } else { 0 };
            self.put(entry, entry.at_us - early_us);
        }
    }

    /// Whoever committed a wake-up has made it pointless: it is neither fired nor found missing.
    pub fn settle(&mut self, entry: Entry) {
        let Some(slot) = &mut self.slots[usize::from(entry.place.slot)] else { return };
        if entry.at_us < slot.closed_until_us {
            return;
        }
        let window = slot.windows.entry(floor(entry.at_us)).or_default();
        match window.known.get_mut(&(entry.at_us, entry.id)) {
            Some(state) => {
                window.open -= usize::from(*state != State::Settled);
                *state = State::Settled;
            }
            // What lies beyond the announced reads is left to them: they find it moot.
            None if entry.at_us < slot.loading_until_us => {
                window.known.insert((entry.at_us, entry.id), State::Settled);
            }
            None => {}
        }
    }

    /// A wake-up that was fired was looked at.
    pub fn done(&mut self, entry: Entry) {
        self.settled += 1;
        self.settle(entry);
    }

    /// There is something to do for a wake-up that was fired. If only the verify pass has found it, that is counted.
    pub fn needed(&mut self, entry: Entry) {
        if let Some(slot) = &mut self.slots[usize::from(entry.place.slot)]
            && let Some(state) = slot
                .windows
                .get_mut(&floor(entry.at_us))
                .and_then(|window| window.known.get_mut(&(entry.at_us, entry.id)))
            && *state == State::Found
        {
            *state = State::Open;
            self.missed += 1;
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
                self.slots[usize::from(entry.place.slot)].as_ref().is_none_or(|slot| !slot.has_settled(entry))
            }));
        }
        due
    }

    /// Puts a wake-up into a bucket, to be fired at a time of its own. Nothing else is changed.
    pub fn put(&mut self, entry: Entry, at_us: i64) {
        let bucket = at_us.div_euclid(BUCKET_US) + i64::from(at_us.rem_euclid(BUCKET_US) != 0);
        self.buckets.entry(bucket).or_default().push(entry);
    }

    /// A wake-up that was fired is to be fired again, even if it was settled meanwhile.
    pub fn put_back(&mut self, entry: Entry, at_us: i64) {
        if let Some(slot) = &mut self.slots[usize::from(entry.place.slot)] {
            slot.remember(&entry, State::Open, true);
        }
        self.put(entry, at_us);
    }

    /// When the next bucket is due.
    #[must_use]
    pub fn next_us(&self) -> Option<i64> {
        self.buckets.first_key_value().map(|(bucket, _)| bucket * BUCKET_US)
    }

    /// What is to be read once more of what is due before `until_us`, and up to where, if one read may take no more than
    /// `most_us`.
    #[must_use]
    pub fn to_verify(&self, until_us: i64, most_us: i64) -> (Parts, i64) {
        let served =
            || self.slots.iter().zip(0..=u8::MAX).filter_map(|(slot, number)| Some((slot.as_ref()?, number)));
        let from_us = served().map(|(slot, _)| slot.read_again_until_us).min().unwrap_or(until_us);
        let until_us = floor(until_us.min(from_us + most_us));
        let is_loaded =
            |slot: &Slot| slot.read_again_until_us < until_us && until_us <= slot.loading_until_us;
        let part = |(slot, number): (&Slot, u8)| Part {
            slot: number,
            from_us: slot.read_again_until_us,
            claim: slot.claim,
        };
        (served().filter(|(slot, _)| is_loaded(slot)).map(part).collect(), until_us)
    }

    /// These were read once more up to `until_us`.
    pub fn read_again(&mut self, parts: &Parts, until_us: i64) {
        for part in parts {
            let is_same =
                |slot: &&mut Slot| slot.claim == part.claim && slot.read_again_until_us == part.from_us;
            if let Some(slot) = self.slots[usize::from(part.slot)].as_mut().filter(is_same) {
                slot.read_again_until_us = until_us;
            }
        }
    }

    /// These were read once more up to `until_us`, and nothing can come behind that.
    pub fn verified(&mut self, parts: &Parts, until_us: i64) {
        for part in parts {
            // It may have changed hands, or the clock may have gone back.
            let is_same =
                |slot: &&mut Slot| slot.claim == part.claim && slot.verified_until_us == part.from_us;
            if let Some(slot) = self.slots[usize::from(part.slot)].as_mut().filter(is_same) {
                slot.verified_until_us = until_us;
            }
        }
    }

    /// Forgets the windows that were verified and have nothing open. Answers the slots whose watermark that has moved.
    pub fn close(&mut self) -> Vec<Closed> {
        let served = self
            .slots
            .iter_mut()
            .zip(0..=u8::MAX)
            .filter_map(|(slot, number)| Some((slot.as_mut()?, number)));
        let moved = |(slot, number): (&mut Slot, u8)| {
            slot.close();
            let is_saved =
                std::mem::replace(&mut slot.saved_until_us, slot.closed_until_us) == slot.closed_until_us;
            (!is_saved).then_some(Closed {
                slot: number,
                epoch: slot.epoch,
                watermark_us: slot.closed_until_us,
            })
        };
        served.filter_map(moved).collect()
    }

    /// How far everything was looked at in one slot, if it is served here.
    #[must_use]
    pub fn watermark_us(&self, slot: u8) -> Option<i64> {
        self.slots[usize::from(slot)].as_ref().map(|slot| slot.closed_until_us)
    }

    /// How far everything was looked at in all slots that are served here.
    #[must_use]
    pub fn lowest_watermark_us(&self) -> Option<i64> {
        self.slots.iter().flatten().map(|slot| slot.closed_until_us).min()
    }

    /// Whether windows after `now_us` were read once more: then the database's clock went back.
    #[must_use]
    pub fn is_ahead_of(&self, now_us: i64) -> bool {
        self.slots.iter().flatten().any(|slot| slot.verified_until_us > now_us)
    }

    /// The database's clock went back to `now_us`: what is committed from now on may lie in windows that are closed.
    pub fn reopen(&mut self, now_us: i64) {
        let from_us = floor(now_us);
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.verified_until_us > now_us) {
            slot.verified_until_us = from_us;
            slot.read_again_until_us = from_us;
            slot.closed_until_us = slot.closed_until_us.min(from_us);
        }
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

    /// How many wake-ups there was something to do for that only the verify pass has found. Normally none.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// How many wake-ups that were fired have been looked at: a sign of progress.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

/// A slot whose watermark has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Which.
    pub slot: u8,
    /// How often it has changed hands.
    pub epoch: i64,
    /// Everything before it was looked at.
    pub watermark_us: i64,
}

impl Slot {
    /// Notes a wake-up. Answers whether it is to be put into a bucket: if it is new, or settled and armed again. One from a
    /// closed window is fired without being remembered: looking twice does no harm.
    fn remember(&mut self, entry: &Entry, state: State, again: bool) -> bool {
        if entry.at_us < self.closed_until_us {
            return true;
        }
        let window = self.windows.entry(floor(entry.at_us)).or_default();
        match window.known.get_mut(&(entry.at_us, entry.id)) {
            Some(known) if *known == State::Settled && again => *known = state,
            Some(_) => return false,
            None => drop(window.known.insert((entry.at_us, entry.id), state)),
        }
        window.open += 1;
        true
    }

    fn has_settled(&self, entry: &Entry) -> bool {
        let window = self.windows.get(&floor(entry.at_us));
        window.and_then(|window| window.known.get(&(entry.at_us, entry.id))) == Some(&State::Settled)
    }

    /// Forgets what was verified and has nothing open: also behind a window that has, in which there may be what waits for a
    /// participant for hours. The watermark stops before the first one.
    fn close(&mut self) {
        let verified_until_us = self.verified_until_us;
        self.windows.retain(|from_us, window| *from_us >= verified_until_us || window.open > 0);
        let first_us = self.windows.first_key_value().map_or(verified_until_us, |(from_us, _)| *from_us);
        self.closed_until_us = self.closed_until_us.max(first_us.min(verified_until_us));
    }
}

/// The start of the window of a time.
fn floor(at_us: i64) -> i64 {
    at_us.div_euclid(WINDOW_US) * WINDOW_US
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place = Place { slot: 7, lane: 0 };
    const ELSEWHERE: Place = Place { slot: 8, lane: 0 };
    const FULL: i64 = 60_000_000;

    fn entry(at_us: i64, n: u8) -> Entry {
        Entry { at_us, id: TransactionId::mint(Timestamp::UNIX_EPOCH, [n; 10]), place: HERE }
    }

    /// A ring that serves slot 7 and has read everything for so long ahead. The claim lies far back.
    fn loaded(until_us: i64) -> Ring {
        let mut ring = Ring::new();
        ring.claim(HERE.slot, 1, 0, -FULL);
        ring.announce(until_us, 0, i64::MAX);
        ring
    }

    /// Everything before was read once more. Answers the watermark.
    fn close(ring: &mut Ring, until_us: i64) -> i64 {
        let (parts, until_us) = ring.to_verify(until_us, FULL);
        ring.read_again(&parts, until_us);
        ring.verified(&parts, until_us);
        ring.close();
        ring.watermark_us(HERE.slot).unwrap()
    }

    #[test]
    fn nothing_is_taken_before_its_time_and_everything_within_a_bucket_after() {
        let mut ring = loaded(FULL);
        ring.arm(entry(12_345, 1));

        assert_eq!(ring.take(12_345, 10), []);
        assert_eq!(ring.take(12_345 + BUCKET_US, 10), [entry(12_345, 1)]);
        assert!(ring.is_empty());
    }

    #[test]
    fn a_wake_up_pushed_read_ahead_and_read_again_is_fired_once() {
        let mut ring = loaded(FULL);
        ring.arm(entry(1, 1));
        ring.add(entry(1, 1), Reading::Ahead);

        assert_eq!(ring.take(10_000, 10).len(), 1);
        ring.add(entry(1, 1), Reading::Again);
        assert_eq!(ring.take(10_000, 10).len(), 0);
    }

    #[test]
    fn what_lies_beyond_the_announced_read_is_left_to_it() {
        let mut ring = loaded(10_000_000);
        ring.arm(entry(10_000_000, 1));

        assert!(ring.is_empty());
        ring.announce(20_000_000, 0, FULL);
        ring.add(entry(10_000_000, 1), Reading::Ahead);
        assert_eq!(ring.len(), 1);
    }

    #[test]
    fn a_read_that_failed_is_announced_again() {
        let mut ring = loaded(10_000_000);
        let (parts, _) = ring.announce(20_000_000, 0, FULL).unwrap();
        ring.take_back(&parts);

        assert_eq!(parts[0].from_us, 10_000_000);
        assert_eq!(ring.announce(20_000_000, 0, FULL), Some((parts, 20_000_000)));
        assert_eq!(ring.announce(20_000_000, 1, FULL), None, "less than is worth a read");
    }

    #[test]
    fn a_settled_wake_up_is_not_fired() {
        let mut ring = loaded(FULL);
        ring.arm(entry(1, 1));
        ring.settle(entry(1, 1));
        ring.settle(entry(2, 2));
        ring.add(entry(2, 2), Reading::Ahead);

        assert_eq!(ring.take(10_000, 10), [], "nor what was settled before it was read");
    }

    #[test]
    fn a_settled_wake_up_that_is_committed_again_is_fired() {
        let mut ring = loaded(FULL);
        ring.arm(entry(1, 1));
        ring.settle(entry(1, 1));
        ring.arm(entry(1, 1));

        assert_eq!(close(&mut ring, WINDOW_US), 0, "it holds up the watermark again");
        assert!(ring.take(10_000, 10).contains(&entry(1, 1)));
    }

    #[test]
    fn the_watermark_stops_at_what_is_open() {
        let mut ring = loaded(FULL);
        ring.arm(entry(1, 1));
        ring.arm(entry(WINDOW_US + 1, 2));
        for entry in ring.take(FULL, 10) {
            if entry.at_us == 1 {
                ring.settle(entry);
            }
        }

        assert_eq!(close(&mut ring, 3 * WINDOW_US), WINDOW_US);
        ring.settle(entry(WINDOW_US + 1, 2));
        assert_eq!(close(&mut ring, 3 * WINDOW_US), 3 * WINDOW_US);
    }

    #[test]
    fn what_waits_for_long_keeps_nothing_that_came_later_in_memory() {
        let mut ring = loaded(FULL);
        ring.arm(entry(1, 1));
        ring.arm(entry(WINDOW_US + 1, 2));
        ring.settle(entry(WINDOW_US + 1, 2));

        assert_eq!(close(&mut ring, 3 * WINDOW_US), 0);
        assert_eq!(ring.slots[usize::from(HERE.slot)].as_ref().unwrap().windows.len(), 1);
        ring.settle(entry(1, 1));
        assert_eq!(close(&mut ring, 3 * WINDOW_US), 3 * WINDOW_US);
    }

    #[test]
    fn a_wake_up_from_a_closed_window_is_fired_all_the_same() {
        let mut ring = loaded(FULL);
        close(&mut ring, 2 * WINDOW_US);
        ring.arm(entry(1, 1));

        assert_eq!(ring.take(FULL, 10), [entry(1, 1)]);
        ring.settle(entry(1, 1));
        assert_eq!(close(&mut ring, 3 * WINDOW_US), 3 * WINDOW_US);
    }

    #[test]
    fn what_only_the_verify_pass_finds_is_counted_if_there_was_something_to_do() {
        let mut ring = loaded(FULL);
        ring.add(entry(1, 1), Reading::Again);
        ring.add(entry(2, 2), Reading::Again);
        ring.add(entry(3, 3), Reading::Ahead);
        for entry in ring.take(10_000, 10) {
            if entry.at_us != 2 {
                ring.needed(entry);
            }
            ring.settle(entry);
        }

        assert_eq!(ring.missed(), 1);
    }

    #[test]
    fn what_is_settled_while_a_read_is_taken_back_stays_settled() {
        let mut ring = Ring::new();
        ring.claim(HERE.slot, 1, 0, -FULL);
        let (parts, _) = ring.announce(FULL, 0, FULL).unwrap();
        ring.add(entry(1, 1), Reading::Ahead);
        let taken = ring.take(FULL, 10);
        ring.take_back(&parts);
        ring.settle(taken[0]);
        ring.announce(FULL, 0, FULL);
        ring.add(entry(1, 1), Reading::Ahead);

        assert_eq!(ring.take(FULL, 10), []);
        assert_eq!(close(&mut ring, WINDOW_US), WINDOW_US);
    }

    #[test]
    fn after_the_clock_went_back_closed_windows_are_open_again() {
        let mut ring = loaded(FULL);
        close(&mut ring, 3 * WINDOW_US);
        assert!(ring.is_ahead_of(2 * WINDOW_US) && !ring.is_ahead_of(3 * WINDOW_US));
        ring.reopen(WINDOW_US);
        assert_eq!(ring.close()[0].watermark_us, WINDOW_US, "it is saved at once");
        ring.arm(entry(WINDOW_US + 1, 1));

        assert_eq!(close(&mut ring, 3 * WINDOW_US), WINDOW_US);
    }

    #[test]
    fn a_crowded_bucket_is_taken_in_parts_and_the_earliest_go_first() {
        let mut ring = loaded(FULL);
        for n in 0..10 {
            ring.arm(entry(1 + i64::from(n) % 2, n));
        }
        ring.arm(entry(50_000, 99));

        assert_eq!(ring.take(60_000, 7).len(), 7);
        let rest = ring.take(60_000, 7);
        assert_eq!(rest.len(), 4);
        assert_eq!(rest[3], entry(50_000, 99));
    }

    #[test]
    fn what_is_put_back_is_fired_even_if_it_was_settled() {
        let mut ring = loaded(FULL);
        ring.arm(entry(1, 1));
        let taken = ring.take(10_000, 10);
        ring.settle(taken[0]);
        ring.put_back(taken[0], 20_000);

        assert_eq!(close(&mut ring, WINDOW_US), 0);
        assert_eq!(ring.take(30_000, 10), taken);
    }

    #[test]
    fn a_guest_is_fired_within_the_look_ahead_and_holds_up_nothing() {
        let mut ring = loaded(FULL);
        ring.take_guests_until(FULL);
        let guest = |at_us, n| Entry { place: ELSEWHERE, ..entry(at_us, n) };
        ring.arm(guest(1, 1));
        ring.arm(guest(FULL, 2));
        ring.add(guest(2, 3), Reading::Ahead);

        assert_eq!(ring.take(2 * FULL, 10), [guest(1, 1)]);
        assert_eq!(close(&mut ring, WINDOW_US), WINDOW_US);
    }

    #[test]
    fn a_slot_that_is_given_away_fires_on_for_a_moment_only() {
        let mut ring = loaded(FULL);
        ring.arm(entry(1, 1));
        ring.arm(entry(2_000_000, 2));
        ring.release(&[HERE.slot], 1_000_000);

        assert!(!ring.serves(HERE.slot));
        assert_eq!(ring.take(FULL, 10), [entry(1, 1)]);
    }

    #[test]
    fn what_another_instance_left_is_looked_at_without_waiting_for_its_time() {
        let mut ring = Ring::new();
        ring.claim(HERE.slot, 2, 0, WINDOW_US);
        ring.announce(FULL, 0, FULL);
        ring.add(entry(WINDOW_US + 4_000_000, 1), Reading::Ahead);
        ring.add(entry(WINDOW_US + 6_000_000, 2), Reading::Ahead);

        assert_eq!(ring.take(WINDOW_US, 10), [entry(WINDOW_US + 4_000_000, 1)]);
    }

    #[test]
    fn a_read_from_before_a_slot_was_lost_and_claimed_again_closes_nothing() {
        let mut ring = loaded(FULL);
        let (parts, until_us) = ring.to_verify(WINDOW_US, FULL);
        ring.release(&[HERE.slot], 0);
        ring.claim(HERE.slot, 3, 0, -FULL);
        ring.verified(&parts, until_us);

        assert_eq!(ring.close(), []);
    }

    #[test]
    fn new_transactions_go_to_the_slots_that_are_served_here_in_turn() {
        let mut ring = loaded(FULL);
        ring.claim(200, 1, 0, 0);

        assert_eq!([ring.pick(), ring.pick(), ring.pick()], [7, 200, 7]);
    }
}
