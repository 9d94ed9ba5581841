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
    sync::{Arc, Mutex, MutexGuard},
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
    all: Vec<Mutex<Gate>>,
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
        let all = (0..participants).map(|_| Mutex::default()).collect();
        Arc::new(Self { all, left: Notify::new(), next: Notify::new() })
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
            let mut gate = self.gate(index);
            if gate.inside >= INSIDE || !(may_pass || gate.is_empty()) {
                return Err(index);
            }
            gate.inside += 1;
            drop(gate);
            pass.inside.push(index);
        }
        Ok(pass)
    }

    /// A wake-up waits at a gate.
    pub(super) fn wait(&self, index: usize, entry: Entry) {
        self.gate(index).waiting.push(entry);
    }

    /// Returns when there is room at a participant, or none is reachable; and not while very many wait.
    pub(super) async fn room(&self, is_reachable: impl Fn(usize) -> bool) {
        loop {
            let left = self.left.notified();
            let waiting: usize = (0..self.all.len()).map(|index| self.gate(index).waiting.len()).sum();
            let mut reachable = (0..self.all.len()).filter(|index| is_reachable(*index)).peekable();
            let has_room =
                reachable.peek().is_none() || reachable.any(|index| self.gate(index).inside < INSIDE);
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
        let mut gate = self.gate(index);
        gate.gone_since = None;
        let mut admitted = Vec::new();
        while gate.inside + admitted.len() < INSIDE && !gate.is_empty() {
            let room = INSIDE - gate.inside - admitted.len();
            let from = if gate.rearmed.is_empty() { &mut gate.waiting } else { &mut gate.rearmed };
            let turn = from.turn(now_us, room);
            for entry in &turn {
                gate.rearmed_ids.remove(&entry.id);
            }
            admitted.extend(turn);
        }
        gate.inside += admitted.len();
        drop(gate);
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
        let mut gate = self.gate(index);
        let gone_for = gate.gone_since.get_or_insert_with(Instant::now).elapsed();
        let is_too_soon = gate.rearmed_at.is_some_and(|at| at.elapsed() < REARM_EVERY);
        if gone_for < REARM_AFTER || is_too_soon || gate.waiting.is_empty() {
            return None;
        }
        gate.rearmed_at = Some(Instant::now());
        let waiting = gate.waiting.len() + gate.rearmed.len();
        let mut entries = Vec::new();
        while entries.len() < limit && !gate.waiting.is_empty() {
            entries.extend(gate.waiting.turn(now_us, limit - entries.len()));
        }
        Some((entries, gone_for, waiting))
    }

    /// A wake-up is armed again.
    pub(super) fn rearmed(&self, index: usize, entry: Entry) {
        let mut gate = self.gate(index);
        if gate.rearmed.len() < REMEMBERED && gate.rearmed_ids.insert(entry.id) {
            gate.rearmed.push(entry);
        }
    }

    /// How many wake-ups wait at a gate.
    pub(super) fn waiting(&self, index: usize) -> usize {
        let gate = self.gate(index);
        gate.waiting.len() + gate.rearmed.len()
    }

    fn gate(&self, index: usize) -> MutexGuard<'_, Gate> {
        self.all[index].lock().expect("no holder panics")
    }
}

impl Gate {
    /// Whether nobody waits.
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rearmed.is_empty()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        for index in &self.inside {
            let mut gate = self.gates.gate(*index);
            gate.inside -= 1;
            if !gate.is_empty() {
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
        assert_eq!(gates.gate(0).inside, 0);
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
