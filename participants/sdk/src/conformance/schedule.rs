//! What is asked of a participant, in which order and at which time.

use fastrand::Rng;
use std::fmt;
use tcc_core::Operation::{self, Cancel, Confirm, Try};

/// The branches of a schedule: two of a transaction A, one of which is its pivot, and one of a transaction B.
pub(super) const SLOTS: [(&str, u16); 3] = [("A", 0), ("A", 1), ("B", 0)];

/// Which of two bodies under the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Body {
    First,
    Second,
}

/// One operation on one branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    pub slot: usize,
    pub operation: Operation,
    pub body: Body,
}

/// Whether asks meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meeting {
    /// Each has a connection of its own.
    OnConnections,
    /// All are in one request.
    InOneRequest,
}

/// One ask, or several at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub asks: Vec<Ask>,
    pub meeting: Meeting,
}

/// Moves, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    pub moves: Vec<Move>,
    /// Whether Confirm is asked of something that is vetoed.
    pub is_vetoed: bool,
    /// Which branch of A is its pivot: the slot, 0 or 1.
    pub pivot: usize,
}

impl Ask {
    /// What every transaction begins with.
    pub(super) fn first_try() -> Self {
        Self::of(Try)
    }

    fn of(operation: Operation) -> Self {
        Self { slot: 0, operation, body: Body::First }
    }

    fn at(self, slot: usize) -> Self {
        Self { slot, ..self }
    }

    fn with(self, body: Body) -> Self {
        Self { body, ..self }
    }
}

impl Move {
    fn one(ask: Ask) -> Self {
        Self { asks: vec![ask], meeting: Meeting::OnConnections }
    }
}

impl Schedule {
    /// No ask at all.
    pub(super) fn nothing() -> Self {
        Self::of([])
    }

    fn of(asks: impl IntoIterator<Item = Ask>) -> Self {
        Self { moves: asks.into_iter().map(Move::one).collect(), is_vetoed: false, pivot: 0 }
    }

    fn then(mut self, asks: impl IntoIterator<Item = Ask>, meeting: Meeting) -> Self {
        self.moves.push(Move { asks: asks.into_iter().collect(), meeting });
        self
    }

    /// Each cell of the fence table, at a pivot and at another branch: a way to the state, then the operation, twice, or once with
    /// another body. What a pivot vetoes, another branch confirms.
    pub(super) fn cells(with_veto: bool) -> Vec<Self> {
        let ask = Ask::of;
        let ways: [(bool, Vec<Ask>); 7] = [
            (false, vec![]),
            (false, vec![ask(Try)]),
            (false, vec![ask(Try), ask(Confirm)]),
            (false, vec![ask(Try), ask(Cancel)]),
            (false, vec![ask(Cancel)]),
            // Of something of which there are one or two, the last one is refused.
            (false, vec![ask(Try).at(1), ask(Try).at(2), ask(Try)]),
            (true, vec![ask(Try), ask(Confirm)]),
        ];
        let mut cells = Vec::new();
        for (is_vetoed, way) in ways.iter().filter(|(is_vetoed, _)| with_veto || !is_vetoed) {
            for operation in [Try, Confirm, Cancel] {
                for last in [vec![ask(operation); 2], vec![ask(operation).with(Body::Second)]] {
                    let schedule = Self::of(way.iter().copied().chain(last));
                    cells.extend([0, 1].map(|pivot| Self {
                        is_vetoed: *is_vetoed,
                        pivot,
                        ..schedule.clone()
                    }));
                }
            }
        }
        cells
    }

    /// Operations that meet at one fence, or at what there is too little of.
    pub(super) fn meetings() -> Vec<Self> {
        let ask = Ask::of;
        let mut meetings = Vec::new();
        for meeting in [Meeting::OnConnections, Meeting::InOneRequest] {
            let alone = |asks: &[Ask]| Self::of([]).then(asks.to_vec(), meeting);
            let tried = |asks: &[Ask]| Self::of([ask(Try)]).then(asks.to_vec(), meeting);
            meetings.extend([
                alone(&[ask(Try), ask(Try)]),
                alone(&[ask(Try), ask(Cancel)]),
                alone(&[ask(Try), ask(Try).with(Body::Second)]),
                alone(&[ask(Try), ask(Try).at(1), ask(Try).at(2)]),
                tried(&[ask(Confirm), ask(Cancel)]),
                tried(&[ask(Confirm), ask(Confirm)]),
                tried(&[ask(Cancel), ask(Cancel)]),
            ]);
        }
        meetings
    }

    /// Anything.
    pub(super) fn random(rng: &mut Rng) -> Self {
        let ask = |rng: &mut Rng| Ask {
            // What happens to one fence is what matters most.
            slot: [0, 0, 0, 1, 2][rng.usize(..5)],
            operation: [Try, Try, Confirm, Cancel][rng.usize(..4)],
            body: if rng.u8(..8) == 0 { Body::Second } else { Body::First },
        };
        let moves = (0..rng.usize(3..=9)).map(|_| {
            let asks = if rng.u8(..4) == 0 { rng.usize(2..=3) } else { 1 };
            let meeting = if rng.bool() { Meeting::OnConnections } else { Meeting::InOneRequest };
            Move { asks: (0..asks).map(|_| ask(rng)).collect(), meeting }
        });
        Self { moves: moves.collect(), is_vetoed: false, pivot: rng.usize(..2) }
    }

    /// What is simpler by one thing: one ask less, or one meeting less.
    pub(super) fn shorter(&self) -> Vec<Self> {
        let mut shorter = Vec::new();
        for (at, one) in self.moves.iter().enumerate() {
            for ask in 0..one.asks.len() {
                let mut less = self.clone();
                less.moves[at].asks.remove(ask);
                less.moves.retain(|one| !one.asks.is_empty());
                shorter.push(less);
            }
        }
        for (at, one) in self.moves.iter().enumerate().filter(|(_, one)| one.asks.len() > 1) {
            let mut in_line = self.clone();
            in_line.moves.splice(at..=at, one.asks.iter().copied().map(Move::one));
            shorter.push(in_line);
        }
        shorter
    }

    /// Cancels whatever it may leave open.
    pub(super) fn clean_up(&self) -> Vec<Move> {
        let mut asks: Vec<Ask> = Vec::new();
        for one in self.moves.iter().flat_map(|one| &one.asks) {
            let cancel = Ask { operation: Cancel, ..*one };
            if !asks.contains(&cancel) {
                asks.push(cancel);
            }
        }
        asks.into_iter().map(Move::one).collect()
    }

    /// Whether some of it happens at the same time.
    pub(super) fn meets(&self) -> bool {
        self.moves.iter().any(|one| one.asks.len() > 1)
    }

    /// Whether the same is asked twice.
    pub(super) fn repeats(&self) -> bool {
        let asks: Vec<&Ask> = self.moves.iter().flat_map(|one| &one.asks).collect();
        asks.iter().enumerate().any(|(index, ask)| asks[..index].contains(ask))
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transaction, branch) = SLOTS[self.slot];
        write!(f, "{:?} {transaction}/{branch}", self.operation)?;
        match self.body {
            Body::First => Ok(()),
            Body::Second => f.write_str(" with another body"),
        }
    }
}

/// `Try A/0, then Confirm A/0 and Cancel A/0 at the same time`.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, one) in self.moves.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", then " })?;
            for (nth, ask) in one.asks.iter().enumerate() {
                write!(f, "{}{ask}", if nth == 0 { "" } else { " and " })?;
            }
            f.write_str(match (one.asks.len(), one.meeting) {
                (1, _) => "",
                (_, Meeting::OnConnections) => " at the same time",
                (_, Meeting::InOneRequest) => " in one request",
            })?;
        }
        match self.pivot {
            0 => Ok(()),
            _ => f.write_str(", where A/1 is the pivot"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_reads_like_a_sentence() {
        let schedule = Schedule::of([Ask::of(Try)])
            .then([Ask::of(Confirm), Ask::of(Cancel).with(Body::Second)], Meeting::OnConnections);

        assert_eq!(
            schedule.to_string(),
            "Try A/0, then Confirm A/0 and Cancel A/0 with another body at the same time"
        );
        let other = Schedule { pivot: 1, ..Schedule::of([Ask::of(Try)]) };
        assert_eq!(other.to_string(), "Try A/0, where A/1 is the pivot");
    }

    #[test]
    fn the_same_seed_draws_the_same_schedule() {
        let draw = |seed| Schedule::random(&mut Rng::with_seed(seed));

        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn what_is_shorter_lacks_one_ask_or_one_meeting() {
        let schedule =
            Schedule::of([Ask::of(Try)]).then([Ask::of(Confirm), Ask::of(Cancel)], Meeting::OnConnections);

        let shorter: Vec<String> = schedule.shorter().iter().map(Schedule::to_string).collect();

        assert_eq!(
            shorter,
            [
                "Confirm A/0 and Cancel A/0 at the same time",
                "Try A/0, then Cancel A/0",
                "Try A/0, then Confirm A/0",
                "Try A/0, then Confirm A/0, then Cancel A/0"
            ]
        );
    }
}
