//! The demo's own arithmetic: what every account must own at the end.
//!
//! Issued, minus what was paid out, plus what was received; and nothing frozen. It is computed from fates alone and knows
//! nothing of the system that it checks, least of all its tables or its auditor.

use crate::{
    plan::{Funds, Plan},
    story::Fate,
};

/// What every account of a plan owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Books {
    owned: Vec<i64>,
}

/// A balance as the system says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// What can be spent.
    pub available: i64,
    /// What is frozen.
    pub held: i64,
}

/// How balances compare with the books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// One sentence for each account that differs.
    pub differences: Vec<String>,
    /// Units that were issued and are nowhere.
    pub lost: i128,
    /// Units that are somewhere and were never issued.
    pub created: i128,
}

impl Books {
    /// After each order had its fate, in the order of the plan.
    #[must_use]
    pub fn after(plan: &Plan, fates: impl IntoIterator<Item = Fate>) -> Self {
        let mut owned: Vec<i64> = plan.accounts.iter().map(|account| account.issued).collect();
        for (order, fate) in plan.orders.iter().zip(fates) {
            if fate == Fate::Paid {
                owned[order.payer] -= order.amount;
                owned[order.payee] += order.amount;
            }
        }
        Self { owned }
    }

    /// What the plan alone says, whatever was answered; `None` if it leaves the fate of an order open.
    #[must_use]
    pub fn foretold(plan: &Plan) -> Option<Self> {
        let fate = |order: &crate::plan::Order| match (order.funds, order.cancel_lead) {
            (Funds::Nothing, _) => Some(Fate::Refused),
            (Funds::Enough, None) => Some(Fate::Paid),
            _ => None,
        };
        let fates: Option<Vec<Fate>> = plan.orders.iter().map(fate).collect();
        fates.map(|fates| Self::after(plan, fates))
    }

    /// Compares with what the system says, account by account and in all.
    #[must_use]
    pub fn compare(&self, plan: &Plan, found: &[Balance]) -> Comparison {
        let rows = plan.accounts.iter().zip(&self.owned).zip(found);
        let differs =
            |&((_, owned), found): &((_, &i64), &Balance)| found.available != *owned || found.held != 0;
        let differences = rows.filter(differs).map(|((account, owned), Balance { available, held })| {
            format!("account {}: available {available}, held {held}; it must be {owned} and 0", account.id)
        });
        let issued = i128::from(plan.issued());
        let exists: i128 =
            found.iter().map(|balance| i128::from(balance.available) + i128::from(balance.held)).sum();
        Comparison {
            differences: differences.collect(),
            lost: (issued - exists).max(0),
            created: (exists - issued).max(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::Line;

    /// p1 to p20 owe the shop 10 each, and p20 has nothing; the shop owes p1 a refund of 4.
    fn plan() -> Plan {
        let line = |n: usize, payer: String, payee: &str, amount| Line {
            number: n,
            order: n.to_string(),
            payer,
            payee: payee.into(),
            amount,
        };
        let mut lines: Vec<Line> = (2..=21).map(|n| line(n, format!("p{n}"), "shop", 10)).collect();
        lines.push(line(22, "shop".into(), "p22", 4));
        Plan::file(&lines)
    }

    fn balances(plan: &Plan, of: impl Fn(&str) -> i64) -> Vec<Balance> {
        plan.accounts.iter().map(|account| Balance { available: of(&account.id), held: 0 }).collect()
    }

    #[test]
    fn the_file_alone_says_what_everybody_owns() {
        let plan = plan();
        let found = balances(&plan, |id| match id {
            "shop" => 190,
            "p22" => 4,
            _ => 0,
        });

        let comparison = Books::foretold(&plan).unwrap().compare(&plan, &found);

        assert_eq!(comparison, Comparison { differences: Vec::new(), lost: 0, created: 0 });
    }

    #[test]
    fn only_what_was_paid_moves() {
        let plan = plan();
        let fates = plan.orders.iter().map(|order| match order.name.as_str() {
            "2" => Fate::Paid,
            "3" => Fate::Refused,
            _ => Fate::Cancelled,
        });

        let books = Books::after(&plan, fates);

        let owned =
            |id: &str| books.owned[plan.accounts.iter().position(|account| account.id == id).unwrap()];
        assert_eq!((owned("p2"), owned("p3"), owned("p4"), owned("shop"), owned("p22")), (0, 10, 10, 14, 0));
    }

    #[test]
    fn a_difference_names_the_account_even_if_the_sum_is_right() {
        let plan = plan();
        let found = balances(&plan, |id| match id {
            "shop" => 180,
            "p2" => 10,
            "p22" => 4,
            _ => 0,
        });

        let comparison = Books::foretold(&plan).unwrap().compare(&plan, &found);

        assert_eq!((comparison.lost, comparison.created), (0, 0));
        assert_eq!(comparison.differences.len(), 2);
        assert!(comparison.differences[0].starts_with("account p2: available 10"));
    }

    #[test]
    fn units_that_vanish_or_appear_are_counted() {
        let plan = plan();
        let issued = plan.issued();
        let all_on_one = |amount| balances(&plan, move |id| if id == "shop" { amount } else { 0 });
        let compare = |found: &[Balance]| {
            let comparison = Books::foretold(&plan).unwrap().compare(&plan, found);
            (comparison.lost, comparison.created)
        };

        assert_eq!(compare(&all_on_one(issued - 3)), (3, 0));
        assert_eq!(compare(&all_on_one(issued + 5)), (0, 5));
    }

    #[test]
    fn what_is_still_frozen_is_a_difference_but_not_lost() {
        let plan = plan();
        let mut found = balances(&plan, |id| match id {
            "shop" => 190,
            _ => 0,
        });
        found.last_mut().unwrap().held = 4;

        let comparison = Books::foretold(&plan).unwrap().compare(&plan, &found);

        assert_eq!(comparison.differences.len(), 1);
        assert_eq!((comparison.lost, comparison.created), (0, 0));
    }

    #[test]
    fn a_plan_with_cancels_foretells_nothing() {
        assert_eq!(Books::foretold(&Plan::game(500)), None);
    }
}
