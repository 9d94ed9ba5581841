//! What a run is going to do, decided before it starts: who gets how much, and who pays whom how much.
//!
//! A plan is a plain value, and the same arguments make the same plan. What becomes of an order is planned as far as
//! arithmetic can know it: one whose payer is funded for all it owes must be taken, one whose payer never has a unit must be
//! refused, and of the rest only the answers can tell. Ids, clocks and the network are not here.

use crate::orders::Line;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// The beat of the demo. Holds are created in a wave on every beat and fall due on one, as people choose round times; so
/// creations and payments meet, which is when tccd is killed.
pub const BEAT: Duration = Duration::from_millis(500);

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of all accounts.
    pub currency: &'static str,
    /// Every account that takes part.
    pub accounts: Vec<Opening>,
    /// Every hold, in the order of creation.
    pub orders: Vec<Order>,
    /// On how many beats they are created.
    pub waves: usize,
}

/// An account to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Its id.
    pub id: String,
    /// What it is issued, in minor units; 0: nothing.
    pub issued: i64,
}

/// A hold to create.
#[derive(Debug, Clone)]
pub struct Order {
    /// What people call it.
    pub name: String,
    /// Index into the accounts.
    pub payer: usize,
    /// Index into the accounts, another one.
    pub payee: usize,
    /// In minor units.
    pub amount: i64,
    /// From its creation to the beat before which it must not fall due.
    pub delay: Duration,
    /// Whether the payer can pay it.
    pub funds: Funds,
    /// Whether, and how long before it is due, a client cancels it.
    pub cancel_lead: Option<Duration>,
    /// Whether it is sent again under its id.
    pub repeat: Repeat,
}

/// Whether a payer can pay an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Funds {
    /// In whatever order things happen.
    Enough,
    /// Never.
    Nothing,
    /// On what was paid before.
    Depends,
}

/// How an order is sent again under its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Only while there is no answer.
    Never,
    /// Twice at once.
    AtOnce,
    /// Once more after the answer.
    Later,
    /// After the answer, with another amount.
    OtherBody,
}

impl Plan {
    /// A game's economy: players pay each other, and one arena that is far more popular than any of them.
    #[must_use]
    pub fn game(holds: usize) -> Self {
        /// How many players there are.
        const PLAYERS: usize = 200;
        /// Every so-manieth player is broke: owns nothing, and nobody pays them.
        const BROKE: usize = 50;
        /// Every so-manieth player is funded with a third of what they promise.
        const POOR: usize = 10;
        /// What the rest has beyond what they promise.
        const SPARE: i64 = 1_000;

        let mut dice = Dice(7);
        let arena = PLAYERS;
        let is_broke = |player: usize| player % BROKE == BROKE - 1;
        let mut orders = Vec::with_capacity(holds);
        while orders.len() < holds {
            let payer = dice.below(PLAYERS);
            let payee = if dice.below(100) < 30 { arena } else { dice.below(PLAYERS) };
            if payee == payer || is_broke(payee) {
                continue;
            }
            let delay_ms = 1_000 + dice.below(18_401) as u64;
            let cancel_lead = match dice.below(1_000) {
                // At the last moment, when it may be too late.
                0..20 => Some(dice.below(15) as u64),
                20..150 => Some(dice.below(delay_ms as usize) as u64),
                _ => None,
            };
            orders.push(Order {
                name: format!("{}", orders.len() + 1),
                payer,
                payee,
                amount: 1 + dice.below(1_000) as i64,
                delay: Duration::from_millis(delay_ms),
                funds: Funds::Depends,
                cancel_lead: cancel_lead.map(Duration::from_millis),
                repeat: dice.repeat(),
            });
        }

        let owed = owed(PLAYERS + 1, &orders);
        let issued = |player: usize| match owed[player] {
            _ if is_broke(player) || player == arena => 0,
            owed if player.is_multiple_of(POOR) => owed / 3,
            owed => owed + SPARE,
        };
        let account = |player: usize| {
            let id = if player == arena { "arena".to_owned() } else { format!("player-{:03}", player + 1) };
            Opening { id, issued: issued(player) }
        };
        Self {
            currency: "GOLD",
            accounts: (0..=arena).map(account).collect(),
            waves: waves(holds, 24),
            orders,
        }
        .with_funds()
    }

    /// The orders of a file. Every twentieth payer is funded with nothing, by the order in which they first appear, and
    /// every other payer with exactly what it owes; so what becomes of each order follows from the file alone. For that, who
    /// is paid by somebody in the file is never among those without funds: it would depend on which order comes first.
    #[must_use]
    pub fn file(lines: &[Line]) -> Self {
        /// Every so-manieth payer has nothing.
        const UNFUNDED: usize = 20;

        let mut dice = Dice(7);
        let mut accounts: Vec<Opening> = Vec::new();
        let mut indices: HashMap<&str, usize> = HashMap::new();
        let mut index_of = |id| {
            *indices.entry(id).or_insert_with(|| {
                accounts.push(Opening { id: id.to_owned(), issued: 0 });
                accounts.len() - 1
            })
        };
        let orders: Vec<Order> = lines
            .iter()
            .map(|line| Order {
                name: line.order.clone(),
                payer: index_of(&line.payer),
                payee: index_of(&line.payee),
                amount: line.amount,
                // With the seven seconds of creation, due times are spread over fifteen.
                delay: Duration::from_millis(1_000 + dice.below(6_501) as u64),
                funds: Funds::Depends,
                cancel_lead: None,
                repeat: dice.repeat(),
            })
            .collect();

        let owed = owed(accounts.len(), &orders);
        let paid: HashSet<usize> = orders.iter().map(|order| order.payee).collect();
        let mut known = HashSet::new();
        let mut candidates = 0;
        for payer in orders.iter().map(|order| order.payer).filter(|&payer| known.insert(payer)) {
            let is_candidate = !paid.contains(&payer);
            candidates += usize::from(is_candidate);
            if !(is_candidate && candidates % UNFUNDED == 0) {
                accounts[payer].issued = owed[payer];
            }
        }
        Self { currency: "CZK", accounts, waves: waves(orders.len(), 14), orders }.with_funds()
    }

    /// What is issued in all, in minor units.
    #[must_use]
    pub fn issued(&self) -> i64 {
        self.accounts.iter().map(|account| account.issued).sum()
    }

    /// How many orders a wave has.
    #[must_use]
    pub fn wave(&self) -> usize {
        self.orders.len().div_ceil(self.waves)
    }

    fn with_funds(mut self) -> Self {
        let owed = owed(self.accounts.len(), &self.orders);
        let paid: HashSet<usize> = self.orders.iter().map(|order| order.payee).collect();
        for order in &mut self.orders {
            let issued = self.accounts[order.payer].issued;
            order.funds = if issued >= owed[order.payer] {
                Funds::Enough
            } else if issued == 0 && !paid.contains(&order.payer) {
                Funds::Nothing
            } else {
                Funds::Depends
            };
        }
        self
    }
}

/// What each account has promised to pay.
fn owed(accounts: usize, orders: &[Order]) -> Vec<i64> {
    let mut owed = vec![0; accounts];
    for order in orders {
        owed[order.payer] += order.amount;
    }
    owed
}

/// So many waves that each is large enough to be caught in the middle.
fn waves(orders: usize, most: usize) -> usize {
    (orders / 100).clamp(1, most)
}

/// Chance that repeats itself: SplitMix64 (Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    /// 0 to `bound - 1`. The bias is one in 2^50 here, and does not matter.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn repeat(&mut self) -> Repeat {
        match self.below(100) {
            0..3 => Repeat::AtOnce,
            3..6 => Repeat::Later,
            6..8 => Repeat::OtherBody,
            _ => Repeat::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize, payer: &str, payee: &str, amount: i64) -> Line {
        Line { number, order: number.to_string(), payer: payer.into(), payee: payee.into(), amount }
    }

    #[test]
    fn the_game_has_every_kind_of_order() {
        let plan = Plan::game(3_000);

        let count =
            |wanted: &dyn Fn(&Order) -> bool| plan.orders.iter().filter(|order| wanted(order)).count();
        assert_eq!(plan.orders.len(), 3_000);
        assert_eq!((plan.waves, plan.wave()), (24, 125));
        assert!((350..550).contains(&count(&|order| order.cancel_lead.is_some())));
        assert!((800..1_100).contains(&count(&|order| order.payee == 200)));
        assert!(count(&|order| order.funds == Funds::Nothing) > 20);
        assert!(count(&|order| order.funds == Funds::Depends) > 100);
        assert!(count(&|order| order.funds == Funds::Enough) > 2_000);
        for repeat in [Repeat::AtOnce, Repeat::Later, Repeat::OtherBody] {
            assert!(count(&|order| order.repeat == repeat) > 20, "{repeat:?}");
        }
        assert!(plan.orders.iter().all(|order| order.payer != order.payee));
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(20));
        assert!(plan.orders.iter().all(
            |order| order.delay >= shortest && order.delay + BEAT + Duration::from_millis(40) <= longest
        ));
    }

    #[test]
    fn any_number_of_holds_can_be_planned() {
        for holds in [1, 19, 199, 2_401] {
            let plan = Plan::game(holds);

            assert_eq!(plan.orders.len(), holds);
            assert!(plan.wave() * plan.waves >= holds);
        }
    }

    #[test]
    fn of_a_file_every_twentieth_payer_has_nothing_and_the_others_what_they_owe() {
        let mut lines: Vec<Line> = (1..=40).map(|n| line(n, &format!("p{n}"), "shop", 10)).collect();
        lines.push(line(41, "p1", "inn", 5));
        lines.push(line(42, "p20", "inn", 5));

        let plan = Plan::file(&lines);

        let issued = |id: &str| plan.accounts.iter().find(|account| account.id == id).unwrap().issued;
        assert_eq!(issued("p1"), 15);
        assert_eq!(issued("p2"), 10);
        assert_eq!(issued("p20"), 0);
        assert_eq!(issued("p40"), 0);
        assert_eq!(issued("shop"), 0);
        assert_eq!(plan.issued(), 38 * 10 + 5);
        let refused: Vec<&str> = plan
            .orders
            .iter()
            .filter(|order| order.funds == Funds::Nothing)
            .map(|order| order.name.as_str())
            .collect();
        assert_eq!(refused, ["20", "40", "42"]);
        assert!(plan.orders.iter().all(|order| order.funds != Funds::Depends));
    }

    #[test]
    fn a_payer_who_is_paid_by_somebody_in_the_file_is_always_funded() {
        let mut lines: Vec<Line> = (1..=21).map(|n| line(n, &format!("p{n}"), "shop", 10)).collect();
        lines.push(line(22, "p1", "p20", 3));

        let plan = Plan::file(&lines);

        let issued = |id: &str| plan.accounts.iter().find(|account| account.id == id).unwrap().issued;
        assert_eq!((issued("p20"), issued("p21")), (10, 0));
        assert!(plan.orders.iter().all(|order| order.funds != Funds::Depends));
    }
}
