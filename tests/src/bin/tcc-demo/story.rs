//! What the demo was answered about one hold, and what must therefore have become of it.
//!
//! Only answers count: what was answered HELD and not cancelled must be paid, what was answered CANCELLED must never be, and
//! nothing is paid before it is due. This is a pure judgement; how answers are got is not its business.

use crate::plan::{Funds, Order};
use tcc_client::{AccountId, Cause, Hold, Phase, Reason, TransactionId};
use tcc_core::Timestamp;

/// Whether two answers speak of the same hold, which may have moved on in between.
#[must_use]
pub fn is_same(one: &Hold, other: &Hold) -> bool {
    let fixed = |hold: &Hold| {
        (hold.id, hold.payer.clone(), hold.payee.clone(), hold.money.clone(), hold.due_at, hold.created_at)
    };
    fixed(one) == fixed(other)
}

/// Everything that was answered about one hold.
#[derive(Debug, Clone)]
pub struct Story {
    /// Its id.
    pub id: TransactionId,
    /// The due time that was asked for.
    pub due_at: Timestamp,
    /// The answer to its creation.
    pub created: Created,
    /// The answer to its cancellation, if one was asked for.
    pub cancel: Option<Cancel>,
    /// How it ended.
    pub end: Hold,
    /// What should not have been answered on the way.
    pub wrong: Vec<String>,
}

/// The answer to a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The funds are frozen.
    Held,
    /// No, for this reason and for good.
    Refused(Reason),
}

/// The answer to a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// It will never be paid.
    Cancelled,
    /// It is due, being paid, or paid.
    TooLate,
}

/// What became of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The payee has the money.
    Paid,
    /// The payer has it back.
    Cancelled,
    /// The payer never parted with it.
    Refused,
}

/// What the answers say became of a hold, and every way in which its end contradicts them.
#[must_use]
pub fn judge(order: &Order, payer: &AccountId, payee: &AccountId, story: &Story) -> (Fate, Vec<String>) {
    let Story { id, due_at, created, cancel, end, .. } = story;
    let mut wrong = story.wrong.clone();
    let mut check = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    let body = (&end.payer, &end.payee, end.money.amount.get(), end.due_at);
    let asked = (payer, payee, order.amount, *due_at);
    check(body == asked, format!("the hold is {body:?} instead of {asked:?}"));
    check(end.is_final(), format!("it is {}", end.phase));

    let fate = match (created, cancel) {
        (Created::Refused(_), _) => Fate::Refused,
        (Created::Held, Some(Cancel::Cancelled)) => Fate::Cancelled,
        (Created::Held, _) => Fate::Paid,
    };
    match created {
        Created::Refused(reason) => {
            check(
                order.funds != Funds::Enough,
                format!("it was refused ({}), and its payer can pay it", reason.name()),
            );
            check(*reason == Reason::InsufficientFunds, format!("it was refused for {}", reason.name()));
        }
        Created::Held => {
            check(order.funds != Funds::Nothing, "it was taken, and its payer has nothing".into())
        }
    }
    let expected = match fate {
        Fate::Paid => (Phase::Confirmed, Cause::Matured),
        Fate::Cancelled => (Phase::Cancelled, Cause::Requested),
        Fate::Refused => (Phase::Cancelled, Cause::Refused),
    };
    let (phase, cause) = (end.phase, end.cause);
    check(
        (phase, cause) == (expected.0, Some(expected.1)),
        format!("it was answered {created:?}, then {cancel:?}; it is {phase}, {cause:?}"),
    );
    if fate == Fate::Paid {
        let is_late_enough = |at: Option<Timestamp>| at.is_some_and(|at| at >= *due_at);
        let (decided, settled) = (end.decided_at, end.settled_at);
        check(is_late_enough(decided), format!("due at {due_at}, it was decided at {decided:?}"));
        check(is_late_enough(settled), format!("due at {due_at}, it was paid at {settled:?}"));
    }
    (fate, wrong.into_iter().map(|what| format!("order {}, hold {id}: {what}", order.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Repeat;
    use std::time::Duration;
    use tcc_client::{Attention, Labels, Money, OnMaturity};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    fn order(funds: Funds) -> Order {
        Order {
            name: "7".into(),
            payer: 0,
            payee: 1,
            amount: 5,
            delay: Duration::from_secs(10),
            funds,
            cancel_lead: None,
            repeat: Repeat::Never,
        }
    }

    fn id() -> TransactionId {
        TransactionId::mint(at(0), [7; 10])
    }

    fn account(id: &str) -> AccountId {
        AccountId::parse(id).unwrap()
    }

    fn story(created: Created, cancel: Option<Cancel>, phase: Phase, cause: Cause) -> Story {
        let end = Hold {
            id: id(),
            phase,
            attention: Attention::None,
            cause: Some(cause),
            payer: account("a"),
            payee: account("b"),
            money: Money::new(5, "GOLD").unwrap(),
            on_maturity: OnMaturity::Confirm,
            due_at: at(10),
            labels: Labels::default(),
            reason: String::new(),
            created_at: at(0),
            held_at: Some(at(0)),
            decided_at: Some(at(10)),
            settled_at: Some(at(11)),
            etag: "8".into(),
        };
        Story { id: id(), due_at: at(10), created, cancel, end, wrong: Vec::new() }
    }

    fn verdict(funds: Funds, story: &Story) -> (Fate, usize) {
        let (fate, wrong) = judge(&order(funds), &account("a"), &account("b"), story);
        (fate, wrong.len())
    }

    #[test]
    fn what_was_held_and_not_cancelled_must_be_paid() {
        let paid = story(Created::Held, None, Phase::Confirmed, Cause::Matured);
        assert_eq!(verdict(Funds::Enough, &paid), (Fate::Paid, 0));

        let too_late = story(Created::Held, Some(Cancel::TooLate), Phase::Confirmed, Cause::Matured);
        assert_eq!(verdict(Funds::Enough, &too_late), (Fate::Paid, 0));

        let released = story(Created::Held, None, Phase::Cancelled, Cause::TimedOut);
        assert_eq!(verdict(Funds::Enough, &released), (Fate::Paid, 1));

        let released = story(Created::Held, Some(Cancel::TooLate), Phase::Cancelled, Cause::Requested);
        assert_eq!(verdict(Funds::Enough, &released), (Fate::Paid, 1));
    }

    #[test]
    fn what_was_cancelled_must_never_be_paid() {
        let released = story(Created::Held, Some(Cancel::Cancelled), Phase::Cancelled, Cause::Requested);
        assert_eq!(verdict(Funds::Enough, &released), (Fate::Cancelled, 0));

        let paid = story(Created::Held, Some(Cancel::Cancelled), Phase::Confirmed, Cause::Matured);
        assert_eq!(verdict(Funds::Enough, &paid), (Fate::Cancelled, 1));
    }

    #[test]
    fn a_refusal_must_have_its_reason_in_the_funds() {
        let refused = |reason| story(Created::Refused(reason), None, Phase::Cancelled, Cause::Refused);

        assert_eq!(verdict(Funds::Nothing, &refused(Reason::InsufficientFunds)), (Fate::Refused, 0));
        assert_eq!(verdict(Funds::Depends, &refused(Reason::InsufficientFunds)), (Fate::Refused, 0));
        assert_eq!(verdict(Funds::Enough, &refused(Reason::InsufficientFunds)), (Fate::Refused, 1));
        assert_eq!(verdict(Funds::Nothing, &refused(Reason::AccountNotFound)), (Fate::Refused, 1));
        let taken = story(Created::Held, None, Phase::Confirmed, Cause::Matured);
        assert_eq!(verdict(Funds::Nothing, &taken), (Fate::Paid, 1));
    }

    #[test]
    fn nothing_is_paid_before_it_is_due() {
        let mut early = story(Created::Held, None, Phase::Confirmed, Cause::Matured);
        early.end.decided_at = Some(at(9));
        assert_eq!(verdict(Funds::Enough, &early).1, 1);

        early.end.settled_at = Some(at(9));
        assert_eq!(verdict(Funds::Enough, &early).1, 2);
    }

    #[test]
    fn a_hold_with_another_body_or_without_an_end_is_wrong() {
        let mut other = story(Created::Held, None, Phase::Confirmed, Cause::Matured);
        other.end.money = Money::new(6, "GOLD").unwrap();
        assert_eq!(verdict(Funds::Enough, &other).1, 1);

        let endless = story(Created::Held, None, Phase::Confirming, Cause::Matured);
        assert_eq!(verdict(Funds::Enough, &endless).1, 2);
    }
}
