//! Hands out what is due, fairly.
//!
//! Every caller's holds wait in one of 256 lanes. As long as nothing has to wait that makes no difference. When more is due
//! than can be paid at once, the lanes take turns, so that one caller's burst costs another one a moment; within a lane the
//! earliest second comes first, and what has grown old comes first of all. What is due in the same second goes by its ids:
//! that is the order of the rows on disk, so those that are changed together stand together.

use super::{Clock, Entry, Timers};
use std::{collections::BTreeMap, time::Duration};
use tcc_core::TransactionId;
use tokio_util::sync::CancellationToken;

/// How many wake-ups of one lane are handed out at a turn.
const TURN: usize = 64;
/// What has been due for this long goes before all turns.
const OLD_US: i64 = 20_000_000;
/// How many wake-ups are taken from the ring at a time.
const TAKE: usize = 4_096;

/// With so many waiting no more are taken from the ring.
const WAITING: usize = 1_000_000;

/// Wake-ups that are due and wait their turn.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: BTreeMap<u8, BTreeMap<Order, Entry>>,
    /// The lane that was served last.
    last: u8,
    len: usize,
}

/// The order in which the wake-ups of a lane go: the second in which each is due, its id, and when it is due.
type Order = (i64, TransactionId, i64);

impl Lanes {
    /// Adds one, if it is not there.
    pub fn push(&mut self, entry: Entry) {
        let order = (entry.at_us.div_euclid(1_000_000), entry.id, entry.at_us);
        let known = self.lanes.entry(entry.place.lane).or_default().insert(order, entry);
        self.len += usize::from(known.is_none());
    }

    /// The next ones, at most `limit`: of one lane.
    pub fn turn(&mut self, now_us: i64, limit: usize) -> Vec<Entry> {
        let heads = || {
            self.lanes.iter().filter_map(|(lane, waiting)| Some((waiting.first_key_value()?.1.at_us, *lane)))
        };
        let oldest = heads().min().filter(|(at_us, _)| now_us - at_us >= OLD_US).map(|(_, lane)| lane);
        let after = self.lanes.range((std::ops::Bound::Excluded(self.last), std::ops::Bound::Unbounded));
        let next = after.chain(&self.lanes).next().map(|(lane, _)| *lane);
        let Some(lane) = oldest.or(next) else { return Vec::new() };
        let Some(waiting) = self.lanes.get_mut(&lane) else { return Vec::new() };
        let is_old = |entry: &Entry| now_us - entry.at_us >= OLD_US;
        let mut turn = Vec::new();
        // A lane that goes before the others' turns does so for what is old in it.
        while turn.len() < limit.min(TURN)
            && waiting.first_key_value().is_some_and(|(_, first)| oldest.is_none() || is_old(first))
        {
            turn.extend(waiting.pop_first().map(|(_, entry)| entry));
        }
        if waiting.is_empty() {
            self.lanes.remove(&lane);
        }
        self.last = lane;
        self.len -= turn.len();
        turn
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Hands out what is due, as it falls due, until asked to stop. `look` may wait; it is then the brake.
pub async fn fire<F>(timers: Timers, clock: Clock, stop: CancellationToken, mut look: impl FnMut(Entry) -> F)
where
    F: Future<Output = ()>,
{
    let mut lanes = Lanes::default();
    while !stop.is_cancelled() {
        let now_us = clock.now_us();
        let next_us = {
            let mut ring = timers.lock();
            if lanes.len() < WAITING {
                ring.take(now_us, TAKE).into_iter().for_each(|entry| lanes.push(entry));
            }
            ring.next_us()
        };
        if lanes.is_empty() {
            // The clock may be set meanwhile, so no sleep is long.
            let pause_us = next_us.map_or(1_000_000, |next| (next - now_us).clamp(1_000, 1_000_000));
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_micros(pause_us.unsigned_abs())) => {}
                () = timers.earlier() => {}
                () = stop.cancelled() => {}
            }
        }
        for entry in lanes.turn(now_us, TURN) {
            look(entry).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Place;
    use tcc_core::Timestamp;

    fn entry(lane: u8, at_us: i64) -> Entry {
        let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [lane; 10]);
        Entry { at_us, id, place: Place { slot: 0, lane } }
    }

    fn order(lanes: &mut Lanes, now_us: i64) -> Vec<(u8, i64)> {
        let mut order = Vec::new();
        while !lanes.is_empty() {
            order.extend(lanes.turn(now_us, 1).iter().map(|entry| (entry.place.lane, entry.at_us)));
        }
        order
    }

    #[test]
    fn lanes_take_turns_and_within_one_the_earliest_come_first() {
        let mut lanes = Lanes::default();
        for at_us in 0..4 {
            lanes.push(entry(9, at_us));
        }
        lanes.push(entry(200, 3));
        lanes.push(entry(3, 3));

        assert_eq!(order(&mut lanes, 0), [(3, 3), (9, 0), (200, 3), (9, 1), (9, 2), (9, 3)]);
    }

    #[test]
    fn what_is_due_in_the_same_second_goes_by_its_ids_and_once() {
        let at = |at_us, n| {
            let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [n; 10]);
            Entry { at_us, id, place: Place::default() }
        };
        let mut lanes = Lanes::default();
        for entry in [at(1_000_000, 1), at(999_999, 3), at(5, 4), at(5, 4), at(7, 2)] {
            lanes.push(entry);
        }

        assert_eq!(lanes.len(), 4);
        assert_eq!(lanes.turn(0, 9), [at(7, 2), at(999_999, 3), at(5, 4), at(1_000_000, 1)]);
        assert!(lanes.is_empty());
    }

    #[test]
    fn what_has_grown_old_comes_before_all_turns() {
        let mut lanes = Lanes::default();
        lanes.push(entry(1, OLD_US));
        lanes.push(entry(2, 5));
        lanes.push(entry(2, 6));
        lanes.push(entry(3, 4));

        assert_eq!(order(&mut lanes, OLD_US + 5), [(3, 4), (2, 5), (1, OLD_US), (2, 6)]);
    }

    #[test]
    fn what_is_young_gets_no_turn_because_of_what_is_old() {
        let mut lanes = Lanes::default();
        for (lane, at_us) in [(1, 0), (1, OLD_US), (2, 5)] {
            lanes.push(entry(lane, at_us));
        }
        lanes.last = 1;

        assert_eq!(lanes.turn(OLD_US, 9), [entry(1, 0)]);
        assert_eq!(lanes.turn(OLD_US, 9), [entry(2, 5)]);
    }

    #[test]
    fn a_turn_is_bounded() {
        let mut lanes = Lanes::default();
        for at_us in 0..2 * TURN as i64 {
            lanes.push(entry(1, at_us));
        }
        lanes.push(entry(2, 0));

        assert_eq!(lanes.turn(0, 1_000).len(), TURN);
        assert_eq!(lanes.turn(0, 1_000), [entry(2, 0)]);
        assert_eq!(lanes.len(), TURN);
    }
}
