//! The payouts as a resource: what Try, Confirm and Cancel do to the tables, each in one local transaction with its fence.
//!
//! A Confirm of the coordinator's puts a payout in line and no more. What moves it on are Confirms of the participant's own,
//! with a [`Word`] beside them: that it is asked for now, and what became of it. So whatever happens to a payout goes through
//! its fence, and a Cancel meets either a payout that nobody has asked for, or a fence that is `confirming`.

use crate::{book::Ending, config::CurrencyRules};
use prost::Message as _;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tcc_core::{Operation, Refusal, Timestamp};
use tcc_participant::{BatchResource, Branch, Effect, Retry, Step, Tx};
use tcc_proto::v1::{BranchRole, TransactionDescriptor};

const PAYLOAD_INVALID: Refusal = Refusal::own("PAYOUT_INVALID");
const NOT_THE_PIVOT: Refusal = Refusal::own("PAYOUT_NOT_THE_PIVOT");
const NOT_FUNDED: Refusal = Refusal::own("PAYOUT_NOT_FUNDED");
const NO_SUCH_CURRENCY: Refusal = Refusal::own("PAYOUT_CURRENCY_NOT_PAID");
const OUT_OF_BOUNDS: Refusal = Refusal::own("PAYOUT_AMOUNT_OUT_OF_BOUNDS");
const NO_SUCH_RECIPIENT: Refusal = Refusal::own("RECIPIENT_NOT_FOUND");
const RECIPIENT_BLOCKED: Refusal = Refusal::own("RECIPIENT_BLOCKED");
const RECIPIENT_LIMIT: Refusal = Refusal::own("RECIPIENT_LIMIT_EXCEEDED");

/// What the participant says to itself.
#[derive(Debug, Clone)]
pub enum Word {
    /// It will be asked for now.
    Ask {
        /// Here the resource writes whether it was asked for before.
        was_asked: Arc<AtomicBool>,
    },
    /// It has ended like this.
    Ended {
        /// How.
        ending: Ending,
        /// Who has found it out, if it was a person.
        by: Option<String>,
    },
}

/// What a branch's payload says, as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    recipient: String,
    /// Minor units.
    amount: i64,
    currency: String,
}

/// The payouts.
#[derive(Debug, Clone)]
pub struct Payouts {
    /// The ledger account that a transaction must credit with what is paid out.
    pub account: Option<String>,
    /// Which currencies are paid out.
    pub currencies: BTreeMap<String, CurrencyRules>,
}

impl BatchResource for Payouts {
    const MAY_VETO: bool = true;

    async fn run(&self, tx: &Tx<'_>, steps: &[&Step]) -> Result<Vec<Effect>, Retry> {
        let mut effects = Vec::with_capacity(steps.len());
        for step in steps {
            effects.push(match (step.operation, step.branch.note::<Word>()) {
                (Operation::Try, _) => self.reserve(tx, &step.branch).await?,
                (Operation::Confirm, None) => put_in_line(tx, &step.branch).await?,
                (Operation::Confirm, Some(Word::Ask { was_asked })) => {
                    ask(tx, &step.branch, was_asked).await?
                }
                (Operation::Confirm, Some(Word::Ended { ending, by })) => {
                    if let Some(by) = by {
                        settled(tx, &step.branch, by).await?;
                    }
                    end(tx, &step.branch, ending).await?
                }
                (Operation::Cancel, _) => {
                    release(tx, &step.branch, CANCELLED, None).await?;
                    Effect::Done
                }
            });
        }
        Ok(effects)
    }
}

impl Payouts {
    async fn reserve(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Effect, Retry> {
        let payload = match self.check(branch) {
            Ok(payload) => payload,
            Err(refusal) => return Ok(Effect::Refused(refusal)),
        };
        let Payload { recipient, amount, currency } = payload;
        let sql = "SELECT currency, destination, blocked, coalesce(most - reserved - paid >= $2, true)
                   FROM payout_recipient WHERE recipient = $1 FOR UPDATE";
        let Some(row) = tx.query_opt(sql, &[&recipient, &amount]).await? else {
            return Ok(Effect::Refused(NO_SUCH_RECIPIENT));
        };
        let (its_currency, destination): (String, String) = (row.get(0), row.get(1));
        let (is_blocked, is_within): (bool, bool) = (row.get(2), row.get(3));
        for (is_wrong, refusal) in [
            (its_currency != currency, Refusal::CurrencyMismatch),
            (is_blocked, RECIPIENT_BLOCKED),
            (!is_within, RECIPIENT_LIMIT),
        ] {
            if is_wrong {
                return Ok(Effect::Refused(refusal));
            }
        }
        let sql = "UPDATE payout_recipient SET reserved = reserved + $2 WHERE recipient = $1";
        tx.execute(sql, &[&recipient, &amount]).await?;
        let (id, index) = key(branch);
        // What is due at once is due since it was reserved.
        let due_at = Some(branch.due_at).filter(|due_at| *due_at != Timestamp::UNIX_EPOCH);
        let sql =
            "INSERT INTO payout (transaction_id, branch, recipient, destination, amount, currency, due_at)
                   VALUES ($1, $2, $3, $4, $5, $6, coalesce($7, clock_timestamp()))";
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&id, &index, &recipient, &destination, &amount, &currency, &due_at];
        tx.execute(sql, &values).await?;
        Ok(Effect::Done)
    }

    /// What can be said without looking anything up.
    fn check(&self, branch: &Branch) -> Result<Payload, Refusal> {
        let payload: Payload = serde_json::from_slice(&branch.payload).map_err(|_| PAYLOAD_INVALID)?;
        // PostgreSQL has no text with it.
        if payload.recipient.contains('\0') || payload.amount <= 0 {
            return Err(PAYLOAD_INVALID);
        }
        // While it is not known what the provider has done, nothing else may be decided.
        if !branch.is_pivot {
            return Err(NOT_THE_PIVOT);
        }
        let rules = self.currencies.get(&payload.currency).ok_or(NO_SUCH_CURRENCY)?;
        if payload.amount < rules.least || payload.amount > rules.most {
            return Err(OUT_OF_BOUNDS);
        }
        match &self.account {
            Some(account) if !is_funded(branch, account, &payload) => Err(NOT_FUNDED),
            _ => Ok(payload),
        }
    }
}

/// Whether the transaction credits the account with what is paid out. All of its branches are in the descriptor, and the
/// coordinator has made sure that what is credited is debited elsewhere.
fn is_funded(branch: &Branch, account: &str, payload: &Payload) -> bool {
    let Ok(descriptor) = TransactionDescriptor::decode(branch.descriptor()) else { return false };
    let credits = descriptor.branches.iter().filter(|one| {
        one.role() == BranchRole::Credit && one.account == account && one.currency == payload.currency
    });
    credits.map(|credit| i128::from(credit.amount)).sum::<i128>() == i128::from(payload.amount)
}

const CANCELLED: i16 = 6;
const VETOED: i16 = 5;

fn key(branch: &Branch) -> (uuid::Uuid, i16) {
    (branch.transaction.uuid(), branch.index as i16)
}

/// It is confirmed: from now on it waits for its turn. Nothing is asked for yet, and it can still be cancelled.
async fn put_in_line(tx: &Tx<'_>, branch: &Branch) -> Result<Effect, Retry> {
    let (id, index) = key(branch);
    let sql = "UPDATE payout SET state = 2 WHERE transaction_id = $1 AND branch = $2 AND state = 1";
    tx.execute(sql, &[&id, &index]).await?;
    Ok(Effect::Outside { is_asked: false })
}

/// Its turn has come. Once this is committed it may be asked for.
async fn ask(tx: &Tx<'_>, branch: &Branch, was_asked: &AtomicBool) -> Result<Effect, Retry> {
    let (id, index) = key(branch);
    let sql = "SELECT r.blocked AND p.state < 3, p.state = 3
               FROM payout p JOIN payout_recipient r USING (recipient)
               WHERE p.transaction_id = $1 AND p.branch = $2 FOR UPDATE OF p, r";
    let row = tx.query_one(sql, &[&id, &index]).await?;
    was_asked.store(row.get(1), Ordering::SeqCst);
    if row.get(0) {
        release(tx, branch, VETOED, Some(RECIPIENT_BLOCKED.code())).await?;
        return Ok(Effect::Vetoed(RECIPIENT_BLOCKED));
    }
    let sql = "UPDATE payout SET state = 3, asked_at = coalesce(asked_at, clock_timestamp())
               WHERE transaction_id = $1 AND branch = $2 AND state IN (1, 2, 3)";
    expect_one(tx.execute(sql, &[&id, &index]).await?)?;
    Ok(Effect::Outside { is_asked: true })
}

/// A person has found it out.
async fn settled(tx: &Tx<'_>, branch: &Branch, by: &str) -> Result<(), Retry> {
    let (id, index) = key(branch);
    let sql = "UPDATE payout SET settled_by = $3 WHERE transaction_id = $1 AND branch = $2";
    expect_one(tx.execute(sql, &[&id, &index, &by.replace('\0', "")]).await?)
}

/// It is known what became of it.
async fn end(tx: &Tx<'_>, branch: &Branch, ending: &Ending) -> Result<Effect, Retry> {
    let (id, index) = key(branch);
    match ending {
        Ending::Never(refusal) => {
            release(tx, branch, VETOED, Some(refusal.code())).await?;
            Ok(Effect::Vetoed(*refusal))
        }
        Ending::Paid { reference } => {
            // PostgreSQL has no text with a zero in it, and a provider may say anything.
            let reference = reference.replace('\0', "");
            let sql = "WITH paid AS (
                           UPDATE payout SET state = 4, ended_at = clock_timestamp(), reference = $3, remark = NULL
                           WHERE transaction_id = $1 AND branch = $2 AND state = 3
                           RETURNING recipient, amount)
                       UPDATE payout_recipient r SET reserved = r.reserved - paid.amount, paid = r.paid + paid.amount
                       FROM paid WHERE r.recipient = paid.recipient";
            expect_one(tx.execute(sql, &[&id, &index, &reference]).await?)?;
            Ok(Effect::Done)
        }
    }
}

/// It does not take place: what was reserved is free again.
async fn release(tx: &Tx<'_>, branch: &Branch, state: i16, remark: Option<&str>) -> Result<(), Retry> {
    let (id, index) = key(branch);
    let sql = "WITH released AS (
                   UPDATE payout SET state = $3, ended_at = clock_timestamp(), remark = $4
                   WHERE transaction_id = $1 AND branch = $2 AND state < 4
                   RETURNING recipient, amount)
               UPDATE payout_recipient r SET reserved = r.reserved - released.amount
               FROM released WHERE r.recipient = released.recipient";
    expect_one(tx.execute(sql, &[&id, &index, &state, &remark]).await?)
}

fn expect_one(rows: u64) -> Result<(), Retry> {
    if rows == 1 { Ok(()) } else { Err(Retry::because("a payout is not as its fence says")) }
}
