//! How transactions are created, whichever service they came by.
//!
//! What is known already is answered whatever its times are; only what is new must have fresh ones, and participants that are
//! registered.

use super::{
    convert::{self, Asked, Name},
    reason::{self, What, wrong},
};
use crate::{
    auth::{Identity, identity},
    config::Limits,
    engine::{Created, Engine, EngineError, participants::Terms},
    shards::Shards,
    store::{
        Record, TraceContext,
        keys::{Claim, Claimed, Keys},
    },
    sweep::Progress,
};
use std::{sync::Arc, time::Duration};
use tcc_core::{
    AccountId, Branch, Cause, Descriptor, IdempotencyKey, Refusal, Role, Transaction, TransactionId,
};
use tcc_proto::Reason;
use tokio::time::Instant;
use tonic::{Request, Status};
use uuid::Uuid;

/// Creates transactions. Clones share everything.
#[derive(Clone)]
pub struct Creations {
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    keys: Keys,
    sweep: Progress,
    limits: Limits,
}

/// Who creates, and how long it waits.
#[derive(Debug, Clone)]
pub struct Creator {
    /// Who it is.
    pub identity: Arc<Identity>,
    lane: u8,
    trace: Option<TraceContext>,
    /// Until when it waits.
    pub deadline: Instant,
}

impl Creator {
    /// Whoever sends a request.
    pub fn of<T>(request: &Request<T>) -> Self {
        let identity = identity(request);
        let deadline = Instant::now() + convert::patience(request);
        let trace = convert::trace(request);
        Self { lane: convert::lane(&identity.caller), identity, trace, deadline }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.identity.caller
    }

    /// Whether it may give away what this would give away. What it repeats has the same debits, so that is its own, too.
    pub fn check_spends(&self, asked: &Asked) -> Result<(), Status> {
        let is_hold = asked.descriptor.as_hold().is_some();
        for (index, leg) in asked.descriptor.legs().filter(|(_, leg)| leg.role == Role::Debit) {
            if !self.identity.may_spend(&leg.account) {
                let field = format!("branches[{index}].debit.account");
                return Err(reason::not_covered(if is_hold { "payer" } else { &field }, &leg.account));
            }
        }
        Ok(())
    }

    /// How long it still waits.
    pub fn patience(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl Creations {
    /// On an engine and the shards with the ledger's accounts, within limits.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        shards: Arc<Shards>,
        keys: Keys,
        sweep: Progress,
        limits: Limits,
    ) -> Self {
        Self { engine, shards, keys, sweep, limits }
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What requests may ask for.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Creates what is asked for, or answers what there is under its name. A refusal is an error.
    pub async fn create(&self, creator: &Creator, asked: Asked, what: What) -> Result<Created, Status> {
        creator.check_spends(&asked)?;
        let now = self.engine.clock().now();
        let fresh = self.fresh(&asked);
        let Asked { name, descriptor, .. } = asked;
        let (id, keyed_on) = match &name {
            Name::None => {
                fresh?;
                (mint(now), None)
            }
            Name::Id(id) => {
                if let Err(stale) = fresh
                    && self.get(*id).await?.is_none()
                {
                    return Err(self.unless_lost(stale).await?);
                }
                (*id, None)
            }
            Name::Key(key) => match fresh {
                Err(stale) => match self.under(key).await? {
                    Some(record) => (record.id(), None),
                    None => return Err(self.unless_lost(stale).await?),
                },
                Ok(()) => {
                    let Claimed { id, server } = self.claim(key, descriptor.due_at, mint(now)).await?;
                    (id, Some(server))
                }
            },
        };
        let transaction = Transaction::new(id, descriptor);
        let created =
            self.engine.create(transaction, keyed_on, creator.lane, creator.trace, creator.patience()).await;
        let created = created.map_err(|error| of_name(what, &name, error))?;
        self.refuse(&created.record, created.replayed).await?;
        Ok(created)
    }

    /// What there is under the name of what is asked for, with the same body. If there is nothing, what is asked for must be fit
    /// to be new.
    pub async fn known(&self, asked: &Asked, what: What) -> Result<Option<Record>, Status> {
        let known = match &asked.name {
            Name::None => None,
            Name::Id(id) => self.get(*id).await?,
            Name::Key(key) => self.under(key).await?,
        };
        let Some(record) = known else {
            if let Err(stale) = self.fresh(asked) {
                return Err(self.unless_lost(stale).await?);
            }
            return Ok(None);
        };
        if let Some(field) = asked.descriptor.first_difference(&record.transaction.descriptor) {
            return Err(of_name(what, &asked.name, EngineError::IdReused { id: record.id(), field }));
        }
        self.refuse(&record, true).await?;
        Ok(Some(record))
    }

    /// Whether it may be created now, if it is new.
    fn fresh(&self, asked: &Asked) -> Result<(), Status> {
        asked.fresh(self.engine.clock().now(), &self.limits)?;
        self.check_participants(&asked.descriptor)
    }

    /// Whether every participant that it needs is registered and takes what is new, and who may veto is the pivot.
    fn check_participants(&self, descriptor: &Descriptor) -> Result<(), Status> {
        for (index, branch) in descriptor.branches.iter().enumerate() {
            let Branch::Other(request) = branch else { continue };
            let name = request.participant.as_str();
            match self.engine.participants().terms(&request.participant) {
                None => return Err(reason::participant_not_found(name)),
                Some(Terms { is_drained: true, .. }) => return Err(reason::participant_drained(name)),
                Some(Terms { may_veto: true, .. }) if index != usize::from(descriptor.pivot) => {
                    let message = format!(
                        "must be branch {index}: participant {name} may veto, so nothing may be decided before it is asked"
                    );
                    return Err(wrong("pivot", Reason::PivotInvalid, message).into());
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The id that a key stands for: the given one, if the key is new.
    async fn claim(
        &self,
        key: &IdempotencyKey,
        due_at: tcc_core::Timestamp,
        id: TransactionId,
    ) -> Result<Claimed, Status> {
        // A key that is known stands for what it stands for, whatever else was lost.
        let claimed = match self.sweep.swept_on() {
            Some(server) => {
                let claim = Claim { key: key.clone(), id, due_at, server: Some(server) };
                self.keys.claim(claim).await.map_err(EngineError::from)?
            }
            None => self.keys.find(key).await.map_err(EngineError::from)?,
        };
        claimed.ok_or_else(|| {
            let message =
                "it is not known yet whether keys were lost; nothing was done, repeat with the same key";
            reason::unavailable(Reason::KeysNotReady, message)
        })
    }

    /// What is unknown and too old to be new is told so, unless it may be known again in a moment.
    async fn unless_lost(&self, stale: Status) -> Result<Status, Status> {
        let server = self.engine.store().server().await.map_err(EngineError::from)?;
        if self.sweep.swept_on() == Some(server) {
            return Ok(stale);
        }
        let message =
            "it is not known yet whether this was lost; nothing was done, repeat with the same id or key";
        Ok(reason::unavailable(Reason::CoordinatorUnavailable, message))
    }

    /// The transaction that was created by a key.
    async fn under(&self, key: &IdempotencyKey) -> Result<Option<Record>, Status> {
        match self.keys.find(key).await.map_err(EngineError::from)? {
            Some(claimed) => self.get(claimed.id).await,
            None => Ok(None),
        }
    }

    async fn get(&self, id: TransactionId) -> Result<Option<Record>, Status> {
        Ok(self.engine.store().get(id).await.map_err(EngineError::from)?)
    }
}

impl Creations {
    /// What was refused is an error, and so is what was due at once and vetoed.
    pub async fn refuse(&self, record: &Record, is_replayed: bool) -> Result<(), Status> {
        let standing = &record.standing;
        let descriptor = &record.transaction.descriptor;
        let is_vetoed =
            standing.phase.is_final() && standing.cause == Some(Cause::Vetoed) && descriptor.is_due_at_once();
        if standing.cause != Some(Cause::Refused) && !is_vetoed {
            return Ok(());
        }
        let code = standing.reason.as_deref().unwrap_or_default();
        let at = self.refused_at(record, code).await.and_then(|index| account_of(descriptor, index));
        Err(reason::refused(code, record.id().to_string(), is_replayed, at))
    }

    /// Which branch's account said no. Where the code does not tell, its fence does; if that does not answer, it is not told.
    async fn refused_at(&self, record: &Record, code: &str) -> Option<u16> {
        let legs = || record.transaction.descriptor.legs();
        let only = |role| {
            let mut legs = legs().filter(|(_, leg)| leg.role == role);
            legs.next().filter(|_| legs.next().is_none()).map(|(index, _)| index)
        };
        let told = match code.parse().ok()? {
            Refusal::InsufficientFunds => only(Role::Debit),
            Refusal::BalanceOverflow => only(Role::Credit),
            _ => None,
        };
        if told.is_some() {
            return told;
        }
        for (index, leg) in legs() {
            let fences = self.shards.of(&leg.account).fences(record.id().uuid()).await.ok()?;
            let mut refusals = fences.iter().filter(|fence| fence.branch == index);
            if refusals.any(|fence| fence.state.refusal().is_some_and(|refusal| refusal.code() == code)) {
                return Some(index);
            }
        }
        None
    }
}

/// A branch's account, and what a request calls it.
pub fn account_of(descriptor: &Descriptor, index: u16) -> Option<(&'static str, &AccountId)> {
    let leg = descriptor.branches.get(usize::from(index))?.leg()?;
    let field = match (descriptor.as_hold(), leg.role) {
        (Some(_), Role::Debit) => "payer",
        (Some(_), Role::Credit) => "payee",
        _ => "account",
    };
    Some((field, &leg.account))
}

/// An error of the engine, in the words of whoever named the hold by a key.
fn of_name(what: What, name: &Name, error: EngineError) -> Status {
    match (name, error) {
        (Name::Key(key), EngineError::IdReused { id, field }) => {
            let message = format!("key {} was used before with another {field}", key.key());
            let metadata = [("id", id.to_string()), ("field", field.to_owned())];
            reason::status(Reason::IdempotencyKeyReused, message, metadata)
        }
        (_, error) => reason::of_engine(what, error),
    }
}

/// An id for a caller that has none.
fn mint(now: tcc_core::Timestamp) -> TransactionId {
    // The uuid crate's generator for the random part, the database's clock for the time.
    let random = Uuid::now_v7().into_bytes();
    let mut tail = [0; 10];
    tail.copy_from_slice(&random[6..]);
    TransactionId::mint(now, tail)
}
