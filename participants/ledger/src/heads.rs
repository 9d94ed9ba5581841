//! Whether a shard still has what it answered.
//!
//! A shard that fails over to a standby which had not received everything has lost commits, and no order of messages can make
//! up for that: a hold may be frozen on one server and gone from the other. But it can be noticed before more is built on it.
//! Of each connection's commits the last fence is remembered, its *head*: since a log is lost from its end, whatever was lost,
//! the head was. So whoever connects to a shard first looks whether the heads are there, his own and those that were kept
//! for others; and when one is not, nothing more is done on that shard until an operator says so.

use std::sync::{Arc, Mutex};
use tokio_postgres::Client;
use uuid::Uuid;

const LOST: &str = "\
-- lost_heads
SELECT i.id, i.branch, i.state, b.state AS found
FROM unnest($1::uuid[], $2::int2[], $3::int2[]) AS i (id, branch, state)
LEFT JOIN branch b ON b.transaction_id = i.id AND b.branch = i.branch
-- What was tried (1) may have moved since; everything else is final.
WHERE b.state IS NULL OR (i.state <> 1 AND b.state <> i.state)";

/// A fence as it was when its commit was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Of which transaction.
    pub transaction: Uuid,
    /// Which of its branches.
    pub branch: i16,
    /// As in the table.
    pub state: i16,
}

/// What is known of a shard's heads in this process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Heads(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    newest: Option<Head>,
    /// Of others, and of this instance before it started.
    kept: Vec<Head>,
    lost: Option<String>,
}

impl Heads {
    /// The last fence that was committed here.
    #[must_use]
    pub fn newest(&self) -> Option<Head> {
        self.lock().newest
    }

    /// Heads that the shard must have, too.
    pub fn expect(&self, kept: Vec<Head>) {
        self.lock().kept = kept;
    }

    /// What the shard has lost, if it has. Nothing is done on it as long as this says so.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.lock().lost.clone()
    }

    /// The shard has lost commits.
    pub fn stop(&self, what: String) {
        self.lock().lost.get_or_insert(what);
    }

    /// An operator has said that work goes on with what there is.
    pub fn resume(&self) {
        *self.lock() = Inner::default();
    }

    pub(crate) fn note(&self, head: Head) {
        self.lock().newest = Some(head);
    }

    /// Looks whether the shard has its heads. What it has lost is an answer, and remembered.
    pub(crate) async fn check(&self, client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
        let heads: Vec<Head> = {
            let inner = self.lock();
            if inner.lost.is_some() {
                return Ok(inner.lost.clone());
            }
            inner.kept.iter().chain(&inner.newest).copied().collect()
        };
        if heads.is_empty() {
            return Ok(None);
        }
        let ids: Vec<Uuid> = heads.iter().map(|head| head.transaction).collect();
        let branches: Vec<i16> = heads.iter().map(|head| head.branch).collect();
        let states: Vec<i16> = heads.iter().map(|head| head.state).collect();
        let Some(row) = client.query(LOST, &[&ids, &branches, &states]).await?.into_iter().next() else {
            return Ok(None);
        };
        let state = |number: Option<i16>| number.map_or("absent", name_of);
        let what = format!(
            "branch {} of {} was {} and is {} now",
            row.get::<_, i16>("branch"),
            row.get::<_, Uuid>("id"),
            state(row.get("state")),
            state(row.get("found")),
        );
        self.stop(what.clone());
        Ok(Some(what))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics")
    }
}

fn name_of(state: i16) -> &'static str {
    let index = usize::try_from(state - 1).unwrap_or(usize::MAX);
    tcc_core::FenceState::CODES.get(index).copied().unwrap_or("unknown")
}
