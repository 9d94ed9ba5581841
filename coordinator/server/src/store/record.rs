//! A transaction's row as a value.

use super::{StoreError, WAKE_HORIZON};
use std::sync::Arc;
use tcc_core::{Attention, Cause, Phase, Timestamp, Transaction, TransactionId};
use tokio_postgres::Row;
use uuid::Uuid;

/// A transaction and where it stands.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it is; never changes.
    pub transaction: Arc<Transaction>,
    /// Where its wake-ups stand; never changes.
    pub place: Place,
    /// Where it stands, and when it came there.
    pub standing: Standing,
}

/// Where a transaction's wake-ups stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Which part of the table: the instance that serves it looks at them.
    pub slot: u8,
    /// Where they wait when more is due than can be paid at once: a hash of the caller.
    pub lane: u8,
}

impl Place {
    /// Reads the columns `slot` and `lane`.
    pub(crate) fn read(row: &Row) -> Self {
        Self { slot: row.get::<_, i16>("slot") as u8, lane: row.get::<_, i16>("lane") as u8 }
    }
}

/// The part of a row that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its phase.
    pub phase: Phase,
    /// Why it was decided, once it is.
    pub cause: Option<Cause>,
    /// Why it was refused or vetoed.
    pub reason: Option<String>,
    /// Whether it needs looking at.
    pub attention: Attention,
    /// Whether the pivot turned its decision round.
    pub flipped: bool,
    /// When it was accepted, by the database's clock, as all of these.
    pub created_at: Timestamp,
    /// When every branch was tried.
    pub held_at: Option<Timestamp>,
    /// When it was decided.
    pub decided_at: Option<Timestamp>,
    /// When it became final.
    pub settled_at: Option<Timestamp>,
}

/// What a client takes a transaction to be. It changes with the phase, and never becomes again what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its phase.
    pub phase: Phase,
    /// Whether the pivot had turned its decision round.
    pub flipped: bool,
}

/// The columns of [`Standing`], in SQL, of the table alias `t`.
macro_rules! standing {
    () => {
        "t.phase, t.cause, t.reason, t.attention, t.flipped, t.created_at, t.held_at, t.decided_at, t.settled_at"
    };
}
pub(crate) use standing;

impl Record {
    /// Reads a row of `id`, `descriptor` and the columns of [`Place`] and [`Standing`].
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            transaction: transaction(row.get("id"), row.get("descriptor"))?,
            place: Place::read(row),
            standing: Standing::read(row)?,
        })
    }

    /// When the wake-up stands that finds it at its due time, or on the way there, if it is HELD.
    #[must_use]
    pub fn maturity_wake_up(&self) -> Option<Timestamp> {
        let held_at = self.standing.held_at.filter(|_| self.standing.phase == Phase::Held)?;
        Some(self.transaction.descriptor.due_at.max(held_at).min(held_at + WAKE_HORIZON))
    }

    /// When it falls due, or, if it was due at once, when it was created.
    #[must_use]
    pub fn due_at(&self) -> Timestamp {
        match self.transaction.descriptor.is_due_at_once() {
            true => self.standing.created_at,
            false => self.transaction.descriptor.due_at,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.transaction.id
    }
}

/// Reads the part of a row that never changes.
pub(super) fn transaction(id: Uuid, descriptor: Vec<u8>) -> Result<Arc<Transaction>, StoreError> {
    let damaged = |what: String| StoreError::Damaged(format!("{id}: {what}"));
    let id = TransactionId::from_uuid(id).map_err(|e| damaged(e.to_string()))?;
    Transaction::decode(id, descriptor).map(Arc::new).map_err(|e| damaged(e.to_string()))
}

impl Standing {
    /// How a transaction stands that was just inserted.
    #[must_use]
    pub fn begun(created_at: Timestamp) -> Self {
        Self {
            phase: Phase::Trying,
            cause: None,
            reason: None,
            attention: Attention::None,
            flipped: false,
            created_at,
            held_at: None,
            decided_at: None,
            settled_at: None,
        }
    }

    /// What whoever sees it takes it to be.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen { phase: self.phase, flipped: self.flipped }
    }

    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("unknown {what}"));
        let cause: Option<i16> = row.get("cause");
        Ok(Self {
            phase: Phase::from_number(row.get("phase")).ok_or_else(|| damaged("phase"))?,
            cause: cause.map(|n| Cause::from_number(n).ok_or_else(|| damaged("cause"))).transpose()?,
            reason: row.get("reason"),
            attention: Attention::from_number(row.get("attention")).ok_or_else(|| damaged("attention"))?,
            flipped: row.get("flipped"),
            created_at: row.get("created_at"),
            held_at: row.get("held_at"),
            decided_at: row.get("decided_at"),
            settled_at: row.get("settled_at"),
        })
    }
}
