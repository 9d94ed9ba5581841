//! How many lives may be at each participant, and who waits.
//!
//! A wake-up's life passes the gate of every participant that it needs, or its wake-up waits at the gate that it does not
//! pass: because its participant has enough to do, or because it is not reachable. So a slow participant holds up its own
//! transactions only, and one that is down makes a backlog, not a storm: nothing is asked of it, and when it is back, what
//! waits goes first, the earliest due first. A wake-up that waits is open, and holds up the watermark; if the outage lasts,
//! wake-ups are armed again for later, at a bounded rate, and stay here all the same.

use crate::schedule::{Entry, Lanes};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};
use tcc_core::TransactionId;
use tokio::{sync::Notify, time::Instant};

/// How many lives that wake-ups started may be at one participant. Its batches take 256, so this many keep it busy.
const INSIDE: usize = 2_048;
/// When a participant has been gone for so long, what waits for it is armed again.
const REARM_AFTER: Duration = Duration::from_secs(5);
/// How often that is done.
pub(super) const REARM_EVERY: Duration = Duration::from_millis(250);
/// So many that are armed again stay in memory. Further ones come back at their time only.
const REMEMBERED: usize = 1_000_000;

/// The gates of all participants, by their index.
pub(super) struct Gates {
    all: RwLock<Vec<Arc<Mutex<Gate>>>>,
    /// Told when a life has left.
    left: Notify,
    /// Told when a life has left and others wait.
    next: Notify,
}

#[derive(Default)]
struct Gate {
    inside: usize,
    waiting: Lanes,
    /// Armed again for later, and tried as soon as the participant is back.
    rearmed: Lanes,
    rearmed_ids: HashSet<TransactionId>,
    gone_since: Option<Instant>,
    /// When wake-ups were armed again last.
    rearmed_at: Option<Instant>,
}

/// A life's way through its gates. They are free again when it is dropped.
pub(super) struct Pass {
    gates: Arc<Gates>,
    inside: Vec<usize>,
}

impl Gates {
    pub(super) fn new(participants: usize) -> Arc<Self> {
        let all = (0..participants).map(|_| Arc::default()).collect();
        Arc::new(Self { all: RwLock::new(all), left: Notify::new(), next: Notify::new() })
    }

    /// Enters the gates of these participants, besides the one that is reserved. Otherwise answers which one is in the way.
    pub(super) fn enter(
        self: &Arc<Self>,
        needs: &[usize],
        reserved: Option<Pass>,
        is_reachable: impl Fn(usize) -> bool,
    ) -> Result<Pass, usize> {
        let may_pass = reserved.is_some();
        let mut pass =
            reserved.unwrap_or(Pass { gates: Arc::clone(self), inside: Vec::with_capacity(needs.len()) });
        for index in needs.iter().copied() {
            if !is_reachable(index) {
                return Err(index);
            }
            if pass.inside.contains(&index) {
                continue;
            }
            let may_enter = self.at(index, |gate| {
                let may_enter = gate.inside < INSIDE && (may_pass || gate.is_empty());
                gate.inside += usize::from(may_enter);
                may_enter
            });
            if !may_enter {
                return Err(index);
            }
            pass.inside.push(index);
        }
        Ok(pass)
    }

    /// A wake-up waits at a gate.
    pub(super) fn wait(&self, index: usize, entry: Entry) {
        self.at(index, |gate| gate.waiting.push(entry));
    }

    /// Returns when there is room at a participant, or none is reachable; and not while very many wait.
    pub(super) async fn room(&self, is_reachable: impl Fn(usize) -> bool) {
        loop {
            let left = self.left.notified();
            let gates = 0..self.all.read().expect("no holder panics").len();
            let waiting: usize = gates.clone().map(|index| self.at(index, |gate| gate.waiting.len())).sum();
            let mut reachable = gates.filter(|index| is_reachable(*index)).peekable();
            let has_room = reachable.peek().is_none()
                || reachable.any(|index| self.at(index, |gate| gate.inside < INSIDE));
            if has_room && waiting < REMEMBERED {
                return;
            }
            // What is armed again makes room, too, and tells nobody.
            let _ = tokio::time::timeout(Duration::from_millis(250), left).await;
        }
    }

    /// Returns when a life has left a gate at which others wait.
    pub(super) async fn next(&self) {
        self.next.notified().await;
    }

    /// The next wake-ups at the gate of a participant that is reachable, each with a reserved place.
    pub(super) fn admit(self: &Arc<Self>, index: usize, now_us: i64) -> Vec<(Entry, Pass)> {
        let admitted = self.at(index, |gate| gate.admit(now_us));
        let pass = || Pass { gates: Arc::clone(self), inside: vec![index] };
        admitted.into_iter().map(|entry| (entry, pass())).collect()
    }

    /// A participant is not reachable. When it has been for long, answers wake-ups to be armed again, at most `limit`, since
    /// when that is, and how many wait.
    pub(super) fn to_rearm(
        &self,
        index: usize,
        now_us: i64,
        limit: usize,
    ) -> Option<(Vec<Entry>, Duration, usize)> {
        self.at(index, |gate| gate.take_to_rearm(now_us, limit))
    }

    /// A wake-up is armed again.
    pub(super) fn rearmed(&self, index: usize, entry: Entry) {
        self.at(index, |gate| {
            if gate.rearmed.len() < REMEMBERED && gate.rearmed_ids.insert(entry.id) {
                gate.rearmed.push(entry);
            }
        });
    }

    /// How many wake-ups wait at a gate.
    pub(super) fn waiting(&self, index: usize) -> usize {
        self.at(index, |gate| gate.waiting.len() + gate.rearmed.len())
    }

    /// Does something at a gate. A participant that is new has one from then on.
    fn at<T>(&self, index: usize, act: impl FnOnce(&mut Gate) -> T) -> T {
        let known = self.all.read().expect("no holder panics").get(index).cloned();
        let gate = known.unwrap_or_else(|| {
            let mut all = self.all.write().expect("no holder panics");
            let length = all.len().max(index + 1);
            all.resize_with(length, Arc::default);
            Arc::clone(&all[index])
        });
        let mut gate = gate.lock().expect("no holder panics");
        act(&mut gate)
    }
}

impl Gate {
    /// The next ones that are let in: they are inside from now on.
    fn admit(&mut self, now_us: i64) -> Vec<Entry> {
        self.gone_since = None;
        let mut admitted = Vec::new();
        while self.inside + admitted.len() < INSIDE && !self.is_empty() {
            let room = INSIDE - self.inside - admitted.len();
            let from = if self.rearmed.is_empty() { &mut self.waiting } else { &mut self.rearmed };
            let turn = from.turn(now_us, room);
            for entry in &turn {
                self.rearmed_ids.remove(&entry.id);
            }
            admitted.extend(turn);
        }
        self.inside += admitted.len();
        admitted
    }

    fn take_to_rearm(&mut self, now_us: i64, limit: usize) -> Option<(Vec<Entry>, Duration, usize)> {
        let gone_for = self.gone_since.get_or_insert_with(Instant::now).elapsed();
        let is_too_soon = self.rearmed_at.is_some_and(|at| at.elapsed() < REARM_EVERY);
        if gone_for < REARM_AFTER || is_too_soon || self.waiting.is_empty() {
            return None;
        }
        self.rearmed_at = Some(Instant::now());
        let waiting = self.waiting.len() + self.rearmed.len();
        let mut entries = Vec::new();
        while entries.len() < limit && !self.waiting.is_empty() {
            entries.extend(self.waiting.turn(now_us, limit - entries.len()));
        }
        Some((entries, gone_for, waiting))
    }

    /// Whether nobody waits.
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rearmed.is_empty()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        for index in &self.inside {
            let others_wait = self.gates.at(*index, |gate| {
                gate.inside -= 1;
                !gate.is_empty()
            });
            if others_wait {
                self.gates.next.notify_one();
            }
        }
        self.gates.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Place;
    use tcc_core::Timestamp;

    fn entry(n: u8) -> Entry {
        let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [n; 10]);
        Entry { at_us: i64::from(n), id, place: Place { slot: 0, lane: 0 } }
    }

    #[test]
    fn a_participant_that_is_full_or_gone_holds_up_its_own_only() {
        let gates = Gates::new(3);
        let inside: Vec<Pass> =
            (0..INSIDE).map(|_| gates.enter(&[0, 1], None, |_| true).ok().unwrap()).collect();

        assert_eq!(gates.enter(&[1, 2], None, |_| true).err(), Some(1));
        assert!(gates.enter(&[2], None, |_| true).is_ok());
        assert_eq!(gates.enter(&[2], None, |index| index != 2).err(), Some(2));
        drop(inside);
        assert!(gates.enter(&[0, 1, 2], None, |_| true).is_ok());
    }

    #[test]
    fn who_waits_goes_before_who_comes_and_has_its_place() {
        let gates = Gates::new(2);
        gates.wait(0, entry(2));
        gates.wait(0, entry(3));

        assert_eq!(gates.enter(&[0], None, |_| true).err(), Some(0), "others wait");
        let admitted = gates.admit(0, 0);
        assert_eq!(admitted.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(), [entry(2), entry(3)]);
        for (_, pass) in admitted {
            assert!(gates.enter(&[0, 1], Some(pass), |_| true).is_ok());
        }
        assert_eq!(gates.at(0, |gate| gate.inside), 0);
    }

    #[test]
    fn what_was_armed_again_is_known_once_and_goes_first() {
        let gates = Gates::new(1);
        gates.wait(0, entry(5));
        gates.rearmed(0, entry(1));
        gates.rearmed(0, entry(1));

        assert_eq!(gates.waiting(0), 2);
        let admitted = gates.admit(0, 0);
        assert_eq!(admitted.iter().map(|(entry, _)| *entry).collect::<Vec<_>>(), [entry(1), entry(5)]);
        gates.rearmed(0, entry(1));
        assert_eq!(gates.waiting(0), 1);
    }
}
