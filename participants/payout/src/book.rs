//! What the worker needs to know of the payouts, and to have written down.
//!
//! [`Book`] is a seam: the worker is tested on a clock of its own with a book in memory. [`Kept`] is the one in the
//! participant's database. It reads the line with a plain statement, which decides nothing; whatever decides goes through
//! the fences.

use crate::{
    provider::{Order, PayoutId},
    resource::Word,
};
use deadpool_postgres::Pool;
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tcc_core::{Operation, Outcome, Refusal, TransactionId};
use tcc_participant::{Branch, Step, fence::Fenced};

/// A payout that is in line, or asked for.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// What is to be paid.
    pub order: Order,
    /// How long ago it was asked for the first time; `None` if it never was.
    pub asked_for: Option<Duration>,
    /// The encoded descriptor of its transaction.
    pub descriptor: Vec<u8>,
}

/// What became of a payout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It is paid.
    Paid {
        /// The provider's own name for it.
        reference: String,
    },
    /// It is not, and never will be.
    Never(Refusal),
}

/// Whether a payout may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It is committed that it is.
    Given {
        /// It was before.
        was_asked: bool,
    },
    /// It has ended otherwise.
    Over,
    /// Nobody knows.
    NotNow,
}

/// The payouts.
pub trait Book: Send + Sync + 'static {
    /// Up to so many that are in line or asked for, first due first.
    fn line(&self, most: usize) -> impl Future<Output = Result<Vec<Waiting>, String>> + Send;

    /// Commits that a payout is asked for. Before that, it must not be.
    fn ask(&self, waiting: &Waiting) -> impl Future<Output = Leave> + Send;

    /// Commits what became of it, and who has found it out, if it was a person. `false` if that is not certain.
    fn end(&self, waiting: &Waiting, ending: Ending, by: Option<&str>) -> impl Future<Output = bool> + Send;

    /// Writes down, for people, why it is not known.
    fn remark(&self, waiting: &Waiting, why: &str) -> impl Future<Output = ()> + Send;
}

/// The book in the participant's database.
pub struct Kept {
    /// The fences.
    pub fenced: Arc<Fenced>,
    /// For reads, and remarks.
    pub pool: Pool,
}

impl Kept {
    /// Does a Confirm of its own.
    async fn confirm(&self, waiting: &Waiting, word: Word) -> Result<tcc_participant::fence::Answer, String> {
        let PayoutId { transaction, branch } = waiting.order.id;
        let branch = Branch::read(transaction, branch, waiting.descriptor.clone())?;
        Ok(self.fenced.call(Step { operation: Operation::Confirm, branch }.with_note(word)).await)
    }
}

impl Book for Kept {
    async fn line(&self, most: usize) -> Result<Vec<Waiting>, String> {
        let client = self.pool.get().await.map_err(|error| error.to_string())?;
        let sql = "-- read_line
            SELECT p.transaction_id, p.branch, p.recipient, p.destination, p.amount, p.currency, f.descriptor,
                extract(epoch FROM clock_timestamp() - p.asked_at)::float8 AS asked_for_s
            FROM payout p JOIN tcc_fence f USING (transaction_id, branch)
            WHERE p.state IN (2, 3) ORDER BY p.due_at, p.transaction_id, p.branch LIMIT $1";
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows = client.query(sql, &[&most]).await.map_err(|error| error.to_string())?;
        let waiting = rows.iter().map(|row| {
            let transaction =
                TransactionId::from_uuid(row.get("transaction_id")).map_err(|e| e.to_string())?;
            let id = PayoutId { transaction, branch: row.get::<_, i16>("branch") as u16 };
            let asked_for_s: Option<f64> = row.get("asked_for_s");
            Ok(Waiting {
                order: Order {
                    id,
                    recipient: row.get("recipient"),
                    destination: row.get("destination"),
                    amount: row.get("amount"),
                    currency: row.get("currency"),
                },
                // A clock that went back makes it no younger than new.
                asked_for: asked_for_s.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
                descriptor: row.get("descriptor"),
            })
        });
        waiting.collect()
    }

    async fn ask(&self, waiting: &Waiting) -> Leave {
        let was_asked = Arc::new(AtomicBool::new(false));
        match self.confirm(waiting, Word::Ask { was_asked: Arc::clone(&was_asked) }).await {
            Ok(answer) if answer.is_asked => Leave::Given { was_asked: was_asked.load(Ordering::SeqCst) },
            Ok(answer) => match answer.outcome {
                Outcome::Unknown(why) | Outcome::Failed(why) => {
                    tracing::warn!(id = %waiting.order.id.transaction, why, "cannot commit that a payout is asked for");
                    Leave::NotNow
                }
                _ => Leave::Over,
            },
            Err(why) => {
                tracing::error!(id = %waiting.order.id.transaction, why, "a payout cannot be read");
                Leave::NotNow
            }
        }
    }

    async fn end(&self, waiting: &Waiting, ending: Ending, by: Option<&str>) -> bool {
        let expected = match &ending {
            Ending::Paid { .. } => Outcome::Done,
            Ending::Never(refusal) => Outcome::Vetoed(*refusal),
        };
        match self.confirm(waiting, Word::Ended { ending, by: by.map(str::to_owned) }).await {
            Ok(answer) if answer.outcome == expected => true,
            Ok(answer) => {
                let (id, outcome) = (waiting.order.id.transaction, answer.outcome);
                match outcome {
                    Outcome::Unknown(_) | Outcome::Failed(_) => {
                        tracing::warn!(%id, ?outcome, "cannot commit what became of a payout");
                    }
                    // Somebody has said otherwise, by hand.
                    _ => {
                        tracing::error!(%id, ?outcome, ?expected, "a payout has ended in two ways; reconcile it")
                    }
                }
                false
            }
            Err(why) => {
                tracing::error!(id = %waiting.order.id.transaction, why, "a payout cannot be read");
                false
            }
        }
    }

    async fn remark(&self, waiting: &Waiting, why: &str) {
        let PayoutId { transaction, branch } = waiting.order.id;
        let sql = "-- remark
            UPDATE payout SET remark = $3 WHERE transaction_id = $1 AND branch = $2 AND state = 3";
        // It is for people: whoever has to know asks the provider.
        if let Ok(client) = self.pool.get().await {
            drop(client.execute(sql, &[&transaction.uuid(), &(branch as i16), &why]).await);
        }
    }
}
