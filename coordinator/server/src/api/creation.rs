//! How transactions are created, whichever service they came by.
//!
//! What is known already is answered whatever its times are; only what is new must have fresh ones, and participants that are
//! registered.

use super::{
    convert::{self, Asked, Name},
    reason::{self, What, wrong},
    view,
};
use crate::{
    auth::{Identity, identity},
    config::Limits,
    engine::{Created, Engine, EngineError, Origin, participants::Terms},
    quota::{Quotas, Room},
    shards::Shards,
    store::{
        Record, TraceContext,
        keys::{Claim, Claimed, Keys},
    },
    sweep::Progress,
};
use std::{sync::Arc, time::Duration};
use tcc_core::{Branch, Cause, Descriptor, IdempotencyKey, Leg, Refusal, Role, Transaction, TransactionId};
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
    quotas: Quotas,
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
        for (index, leg) in asked.descriptor.legs().filter(|(_, leg)| leg.role == Role::Debit) {
            if !self.identity.may_spend(&leg.account) {
                let field = view::account_field(&asked.descriptor, index, leg);
                return Err(reason::not_covered(&field, &leg.account));
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
    /// On an engine, within limits.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        shards: Arc<Shards>,
        keys: Keys,
        sweep: Progress,
        quotas: Quotas,
        limits: Limits,
    ) -> Self {
        Self { engine, shards, keys, sweep, quotas, limits }
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
        let room = self.room(creator, &asked.name).await?;
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
        let counted_for = (!matches!(room, Room::Unbounded)).then(|| creator.name().to_owned());
        let origin = Origin { keyed_on, lane: creator.lane, counted_for, trace: creator.trace };
        let is_due_at_once = transaction.descriptor.is_due_at_once();
        let created = self.engine.create(transaction, origin, creator.patience()).await;
        if let Room::For(admitted) = room
            && may_be_open(&created)
            && !is_due_at_once
        {
            admitted.keep();
        }
        let created = created.map_err(|error| of_name(what, &name, error))?;
        self.refuse(&created.record, created.replayed).await?;
        Ok(created)
    }

    /// Whether its caller's quota has room for it. What is known is answered all the same.
    async fn room(&self, creator: &Creator, name: &Name) -> Result<Room, Status> {
        let own = creator.identity.open_transactions;
        let room = self.quotas.admit(creator.name(), own).await.map_err(EngineError::from)?;
        if let Room::None(quota) = room
            && self.named(name).await?.is_none()
        {
            self.engine.metrics().turned_away(Reason::OpenQuotaReached);
            return Err(reason::quota_reached(creator.name(), quota));
        }
        Ok(room)
    }

    /// What there is under the name of what is asked for, with the same body. If there is nothing, what is asked for must be fit
    /// to be new.
    pub async fn known(&self, asked: &Asked, what: What) -> Result<Option<Record>, Status> {
        let Some(record) = self.named(&asked.name).await? else {
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

    /// The transaction that has a name.
    async fn named(&self, name: &Name) -> Result<Option<Record>, Status> {
        match name {
            Name::None => Ok(None),
            Name::Id(id) => self.get(*id).await,
            Name::Key(key) => self.under(key).await,
        }
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
        let leg = self.refused_at(record, code).await;
        let field = leg.map(|(index, leg)| (view::account_field(descriptor, index, leg), &leg.account));
        let at = field.as_ref().map(|(field, account)| (field.as_str(), *account));
        Err(reason::refused(code, record.id().to_string(), is_replayed, at))
    }

    /// Which account said no. Where there is but one that can have, it is that one; otherwise its fence tells, and if that does not
    /// answer, it is not told.
    async fn refused_at<'a>(&self, record: &'a Record, code: &str) -> Option<(u16, &'a Leg)> {
        let refusal: Refusal = code.parse().ok()?;
        let legs = record.transaction.descriptor.legs();
        let legs: Vec<(u16, &Leg)> = legs.filter(|(_, leg)| can_refuse(leg.role, refusal)).collect();
        if let [only] = legs.as_slice() {
            return Some(*only);
        }
        for (index, leg) in legs {
            let fences = self.shards.of(&leg.account).fences(record.id().uuid()).await.ok()?;
            let mut refusals = fences.iter().filter(|fence| fence.branch == index);
            if refusals.any(|fence| fence.state.refusal().is_some_and(|refusal| refusal.code() == code)) {
                return Some((index, leg));
            }
        }
        None
    }
}

/// Whether there may be one more open transaction than before.
fn may_be_open(created: &Result<Created, EngineError>) -> bool {
    match created {
        // What was refused is as good as final.
        Ok(Created { record: Record { standing, .. }, replayed }) => {
            !replayed && !standing.phase.is_final() && standing.cause != Some(Cause::Refused)
        }
        Err(EngineError::OutcomeUnknown(_) | EngineError::Store(_)) => true,
        Err(_) => false,
    }
}

/// Whether what happens to an account can be refused for such a reason.
fn can_refuse(role: Role, refusal: Refusal) -> bool {
    match refusal {
        Refusal::InsufficientFunds => role == Role::Debit,
        Refusal::BalanceOverflow => role == Role::Credit,
        _ => true,
    }
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
