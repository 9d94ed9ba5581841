//! `HoldService`: scheduled transfers, for applications.
//!
//! Every creation goes the same way, whichever call it came by: [`Holds::create`]. What is known already is answered whatever its
//! times are; only what is new must have fresh ones.

use super::{
    convert::{self, Asked, Name},
    reason::{self, wrong},
};
use crate::{
    auth::{Gate, Identity, identity},
    config::Limits,
    engine::{Created, Engine, EngineError},
    shards::Shards,
    store::{
        Record, Seen, StoreError, TraceContext,
        keys::{Claim, Claimed, Keys},
    },
    sweep::Progress,
};
use futures::{
    future::join_all,
    stream::{self, BoxStream},
};
use std::{sync::Arc, time::Duration};
use tcc_core::{
    Attention, Cause, IdempotencyKey, Phase, Refusal, Transaction, TransactionId,
    descriptor::{CREDIT, DEBIT},
};
use tcc_ledger::Listed;
use tcc_proto::{
    Reason,
    v1::{self, hold_service_server::HoldService},
};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// How many holds a batch may have.
const BATCH: usize = 1_000;
/// How many holds are looked at for one page, if few of them are as asked for. Then the page is short, and not the last one.
const LOOKED_AT: usize = 4_000;
/// And for so long. Then it is short, too.
const LOOKED_FOR: Duration = Duration::from_secs(2);
/// So many are read at a time.
const CHUNK: (usize, usize) = (100, 1_000);
/// A watch looks after this time, doubled each time until something changes,
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// up to this one.
const LOOK_LAST: Duration = Duration::from_secs(1);

/// Serves holds. Clones share everything.
#[derive(Clone)]
pub struct Holds {
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    keys: Keys,
    sweep: Progress,
    gate: Arc<Gate>,
    limits: Limits,
}

/// Who creates, and how long it waits.
#[derive(Debug, Clone)]
struct Creator {
    identity: Arc<Identity>,
    lane: u8,
    trace: Option<TraceContext>,
    deadline: Instant,
}

impl Creator {
    fn of<T>(request: &Request<T>) -> Self {
        let identity = identity(request);
        let deadline = Instant::now() + convert::patience(request);
        let trace = convert::trace(request);
        Self { lane: convert::lane(&identity.caller), identity, trace, deadline }
    }

    fn name(&self) -> &str {
        &self.identity.caller
    }

    /// Whether it may give away what this would give away. What it repeats has the same payer, so that is its own, too.
    fn check_spends(&self, asked: &Asked) -> Result<(), Status> {
        let payer = &asked.descriptor.branches[usize::from(DEBIT)].account;
        if self.identity.may_spend(payer) { Ok(()) } else { Err(reason::not_covered("payer", payer)) }
    }

    fn patience(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl Holds {
    /// On an engine and the shards with its accounts, within limits. The gate counts what comes in batches.
    #[must_use]
    pub fn new(
        engine: Arc<Engine>,
        shards: Arc<Shards>,
        keys: Keys,
        sweep: Progress,
        gate: Arc<Gate>,
        limits: Limits,
    ) -> Self {
        Self { engine, shards, keys, sweep, gate, limits }
    }

    /// Creates what is asked for, or answers what there is under its name. A refusal is an error.
    async fn create(&self, creator: &Creator, asked: Asked) -> Result<Created, Status> {
        creator.check_spends(&asked)?;
        let now = self.engine.clock().now();
        let fresh = asked.fresh(now, &self.limits).map_err(Status::from);
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
                Err(stale) => match self.known(key).await? {
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
        let created = created.map_err(|error| of_name(&name, error))?;
        self.refuse(&created.record, created.replayed).await?;
        Ok(created)
    }

    /// Checks what is asked for, and creates nothing. Answers the hold that there is under its name, if there is one.
    async fn validate(&self, creator: &Creator, asked: Asked) -> Result<v1::CreateHoldResponse, Status> {
        creator.check_spends(&asked)?;
        let known = match &asked.name {
            Name::None => None,
            Name::Id(id) => self.get(*id).await?,
            Name::Key(key) => self.known(key).await?,
        };
        if let Some(record) = known {
            if let Some(field) = asked.descriptor.first_difference(&record.transaction.descriptor) {
                return Err(of_name(&asked.name, EngineError::IdReused { id: record.id(), field }));
            }
            self.refuse(&record, true).await?;
            return Ok(response(&record, true));
        }
        if let Err(stale) = asked.fresh(self.engine.clock().now(), &self.limits) {
            return Err(self.unless_lost(stale.into()).await?);
        }
        let id = match asked.name {
            Name::Id(id) => id.to_string(),
            Name::Key(_) | Name::None => String::new(),
        };
        for (field, index) in PARTIES {
            let branch = &asked.descriptor.branches[usize::from(index)];
            let account = self.shards.of(&branch.account).account(&branch.account).await;
            if let Some(refusal) = tcc_ledger::refusal(account.map_err(reason::of_read)?.as_ref(), branch) {
                let at = Some((field, &branch.account));
                return Err(reason::refused(refusal.code(), id, false, at));
            }
        }
        let hold = v1::Hold { id, ..convert::asked_view(&asked.descriptor) };
        Ok(v1::CreateHoldResponse { hold: Some(hold), replayed: false })
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
    async fn known(&self, key: &IdempotencyKey) -> Result<Option<Record>, Status> {
        match self.keys.find(key).await.map_err(EngineError::from)? {
            Some(claimed) => self.get(claimed.id).await,
            None => Ok(None),
        }
    }

    async fn get(&self, id: TransactionId) -> Result<Option<Record>, Status> {
        Ok(self.engine.store().get(id).await.map_err(EngineError::from)?)
    }

    /// The hold that an id names, if it is one.
    async fn find(&self, id: TransactionId) -> Result<Record, Status> {
        self.get(id).await?.ok_or_else(|| EngineError::NotFound(id).into())
    }

    /// The hold that an id names, if somebody may see it: its payer and its payee do, to all others it does not exist.
    async fn find_for(&self, caller: &Identity, id: TransactionId) -> Result<Record, Status> {
        let record = self.find(id).await?;
        let sees = |branch| caller.may_see(&record.transaction.branch(branch).account);
        if sees(DEBIT) || sees(CREDIT) { Ok(record) } else { Err(EngineError::NotFound(id).into()) }
    }

    /// Whether somebody may decide about a hold: its payer may. Who pays does not change, so it may be read beforehand.
    async fn check_decides(&self, caller: &Identity, id: TransactionId) -> Result<(), Status> {
        if caller.may_spend_all() {
            return Ok(());
        }
        let record = self.find_for(caller, id).await?;
        let is_payer = caller.may_spend(&record.transaction.branch(DEBIT).account);
        if is_payer { Ok(()) } else { Err(reason::not_the_payer(id)) }
    }

    /// What an etag says about a hold; nothing, if it is empty.
    async fn seen(&self, id: TransactionId, etag: &str) -> Result<Option<Seen>, Status> {
        match (etag, convert::seen(etag)) {
            ("", _) => Ok(None),
            (_, Some(seen)) => Ok(Some(seen)),
            // No hold ever has it.
            (_, None) => Err(reason::changed(&self.find(id).await?)),
        }
    }

    async fn create_item(
        &self,
        creator: &Creator,
        request: v1::CreateHoldRequest,
    ) -> Result<v1::CreateHoldResponse, Status> {
        let asked = convert::item(request, creator.name(), &self.limits)?;
        if asked.validate_only {
            return self.validate(creator, asked).await;
        }
        let Created { record, replayed } = self.create(creator, asked).await?;
        Ok(response(&record, replayed))
    }
}

#[tonic::async_trait]
impl HoldService for Holds {
    type WatchHoldStream = BoxStream<'static, Result<v1::WatchHoldResponse, Status>>;

    async fn create_hold(
        &self,
        request: Request<v1::CreateHoldRequest>,
    ) -> Result<Response<v1::CreateHoldResponse>, Status> {
        let creator = Creator::of(&request);
        let asked = convert::hold(request.into_inner(), creator.name(), &self.limits)?;
        if asked.validate_only {
            return Ok(Response::new(self.validate(&creator, asked).await?));
        }
        let Created { record, replayed } = self.create(&creator, asked).await?;
        Ok(Response::new(response(&record, replayed)))
    }

    async fn batch_create_holds(
        &self,
        request: Request<v1::BatchCreateHoldsRequest>,
    ) -> Result<Response<v1::BatchCreateHoldsResponse>, Status> {
        use v1::batch_create_holds_outcome::Outcome;
        let creator = Creator::of(&request);
        let holds = request.into_inner().holds;
        match holds.len() {
            0 => return Err(wrong("holds", Reason::FieldRequired, "is required").into()),
            1..=BATCH => {}
            _ => {
                let message = format!("must be at most {BATCH}");
                return Err(wrong("holds", Reason::TooManyItems, message).into());
            }
        }
        self.gate.charge(&creator.identity, holds.len())?;
        let creator = &creator;
        let outcomes = join_all(holds.into_iter().map(|hold| async move {
            let outcome = match timeout_at(creator.deadline, self.create_item(creator, hold)).await {
                Ok(Ok(created)) => Outcome::Created(created),
                Ok(Err(status)) => Outcome::Error(reason::item(&status)),
                Err(_) => Outcome::Error(reason::item(&reason::no_answer_in_time())),
            };
            v1::BatchCreateHoldsOutcome { outcome: Some(outcome) }
        }));
        Ok(Response::new(v1::BatchCreateHoldsResponse { outcomes: outcomes.await }))
    }

    async fn transfer(
        &self,
        request: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferResponse>, Status> {
        let creator = Creator::of(&request);
        let asked = convert::transfer(request.into_inner(), creator.name(), &self.limits)?;
        let Created { record, replayed } = self.create(&creator, asked).await?;
        let record = match self.engine.until_final(record.id(), creator.patience()).await {
            // It was there; whatever became of it, its fences know.
            Err(EngineError::NotFound(id)) => return Err(EngineError::OutcomeUnknown(id).into()),
            record => record?,
        };
        self.refuse(&record, replayed).await?;
        if record.standing.phase == Phase::Cancelled {
            return Err(reason::transfer_cancelled(record.id()));
        }
        Ok(Response::new(v1::TransferResponse { hold: Some(convert::hold_view(&record)), replayed }))
    }

    async fn get_hold(
        &self,
        request: Request<v1::GetHoldRequest>,
    ) -> Result<Response<v1::GetHoldResponse>, Status> {
        let id = convert::id(&request.get_ref().id)?;
        let record = self.find_for(&identity(&request), id).await?;
        Ok(Response::new(v1::GetHoldResponse { hold: Some(convert::hold_view(&record)) }))
    }

    async fn list_holds(
        &self,
        request: Request<v1::ListHoldsRequest>,
    ) -> Result<Response<v1::ListHoldsResponse>, Status> {
        let until = Instant::now() + convert::patience(&request).min(LOOKED_FOR);
        let caller = identity(&request);
        let asked = convert::listing(request.into_inner(), &caller, self.engine.clock().now())?;
        let shard = self.shards.of(&asked.account);
        let mut page = Page { holds: Vec::new(), looked_at: 0, before: asked.before };
        let limit = (2 * asked.size).clamp(CHUNK.0, CHUNK.1);
        let next_page_token = loop {
            let which = tcc_ledger::Listing {
                account: &asked.account,
                role: asked.role,
                from: asked.ids_from,
                before: page.before,
                limit: limit as i64,
                until: until.into_std(),
            };
            let Listed { ids, reached } = shard.listed(which).await.map_err(reason::of_read)?;
            if self.fill(&mut page, &ids, &asked).await? {
                break asked.filter.seal(page.before);
            }
            match reached {
                None => break String::new(),
                Some(reached) => page.before = reached,
            }
            if Instant::now() >= until {
                break asked.filter.seal(page.before);
            }
        };
        Ok(Response::new(v1::ListHoldsResponse { holds: page.holds, next_page_token }))
    }

    async fn watch_hold(
        &self,
        request: Request<v1::WatchHoldRequest>,
    ) -> Result<Response<Self::WatchHoldStream>, Status> {
        let caller = identity(&request);
        let v1::WatchHoldRequest { id, etag } = request.into_inner();
        let record = self.find_for(&caller, convert::id(&id)?).await?;
        let told = convert::seen(&etag).map(|seen| (seen, record.standing.attention));
        let watch = Watch { holds: self.clone(), id: record.id(), told, is_over: false };
        let stream = stream::unfold(watch, |mut watch| async move {
            let told = watch.next().await?;
            Some((told, watch))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn cancel_hold(
        &self,
        request: Request<v1::CancelHoldRequest>,
    ) -> Result<Response<v1::CancelHoldResponse>, Status> {
        let (patience, caller) = (convert::patience(&request), identity(&request));
        let v1::CancelHoldRequest { id, etag } = request.into_inner();
        let id = convert::id(&id)?;
        self.check_decides(&caller, id).await?;
        let seen = self.seen(id, &etag).await?;
        let record = self.engine.cancel(id, seen, patience).await?;
        Ok(Response::new(v1::CancelHoldResponse { hold: Some(convert::hold_view(&record)) }))
    }

    async fn confirm_hold(
        &self,
        request: Request<v1::ConfirmHoldRequest>,
    ) -> Result<Response<v1::ConfirmHoldResponse>, Status> {
        let (patience, caller) = (convert::patience(&request), identity(&request));
        let v1::ConfirmHoldRequest { id, etag } = request.into_inner();
        let id = convert::id(&id)?;
        self.check_decides(&caller, id).await?;
        let seen = self.seen(id, &etag).await?;
        let record = self.engine.confirm_now(id, seen, patience).await?;
        Ok(Response::new(v1::ConfirmHoldResponse { hold: Some(convert::hold_view(&record)) }))
    }
}

/// The accounts of a hold: what requests call them, and their branches.
const PARTIES: [(&str, u16); 2] = [("payer", DEBIT), ("payee", CREDIT)];

impl Holds {
    /// A hold that was refused, or a transfer that was vetoed, is an error.
    async fn refuse(&self, record: &Record, is_replayed: bool) -> Result<(), Status> {
        let standing = &record.standing;
        let is_vetoed = standing.phase.is_final()
            && standing.cause == Some(Cause::Vetoed)
            && record.transaction.descriptor.is_due_at_once();
        if standing.cause != Some(Cause::Refused) && !is_vetoed {
            return Ok(());
        }
        let code = standing.reason.as_deref().unwrap_or_default();
        let at = self.refused_at(record, code).await.map(|(field, index)| {
            let account = &record.transaction.branch(index).account;
            (field, account)
        });
        Err(reason::refused(code, record.id().to_string(), is_replayed, at))
    }

    /// Which account said no. Where the code does not tell, its fence does; if that does not answer, it is not told.
    async fn refused_at(&self, record: &Record, code: &str) -> Option<(&'static str, u16)> {
        match code.parse().ok()? {
            Refusal::InsufficientFunds => return Some(PARTIES[0]),
            Refusal::BalanceOverflow => return Some(PARTIES[1]),
            _ => {}
        }
        for (field, index) in PARTIES {
            let account = &record.transaction.branch(index).account;
            let fences = self.shards.of(account).fences(record.id().uuid()).await.ok()?;
            let mut refusals = fences.iter().filter(|fence| fence.branch == index);
            if refusals.any(|fence| fence.state.refusal().is_some_and(|refusal| refusal.code() == code)) {
                return Some((field, index));
            }
        }
        None
    }
}

/// A page of a list while it is filled.
struct Page {
    holds: Vec<v1::Hold>,
    looked_at: usize,
    /// Everything from here on has been looked at.
    before: Uuid,
}

impl Holds {
    /// Looks at holds in their order. Whether the page ends here, although there may be more.
    async fn fill(&self, page: &mut Page, ids: &[Uuid], asked: &convert::Listing) -> Result<bool, Status> {
        let known = ids.iter().filter_map(|id| TransactionId::from_uuid(*id).ok());
        let records = join_all(known.map(|id| self.engine.store().get(id))).await;
        let records: Result<Vec<Option<Record>>, StoreError> = records.into_iter().collect();
        for record in records.map_err(EngineError::from)?.into_iter().flatten() {
            page.before = record.id().uuid();
            if asked.has(&record) {
                page.holds.push(convert::hold_view(&record));
                if page.holds.len() == asked.size {
                    return Ok(true);
                }
            }
        }
        page.before = ids.last().copied().unwrap_or(page.before);
        page.looked_at += ids.len();
        Ok(page.looked_at >= LOOKED_AT)
    }
}

/// One client's watch of one hold. It polls, whichever instance changes it; less and less often while nothing happens.
struct Watch {
    holds: Holds,
    id: TransactionId,
    /// As the client was told last.
    told: Option<(Seen, Attention)>,
    is_over: bool,
}

impl Watch {
    /// The next change; `None` after the last one, or after an error.
    async fn next(&mut self) -> Option<Result<v1::WatchHoldResponse, Status>> {
        let mut pause = LOOK_FIRST;
        while !self.is_over {
            if self.holds.engine.is_draining() {
                self.is_over = true;
                return Some(Err(EngineError::Draining.into()));
            }
            let record = match self.holds.find(self.id).await {
                Ok(record) => record,
                Err(status) => {
                    self.is_over = true;
                    return Some(Err(status));
                }
            };
            self.is_over = record.standing.phase.is_final();
            let now = (record.standing.seen(), record.standing.attention);
            if self.told.replace(now) != Some(now) {
                return Some(Ok(v1::WatchHoldResponse { hold: Some(convert::hold_view(&record)) }));
            }
            if !self.is_over {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_LAST);
            }
        }
        None
    }
}

fn response(record: &Record, replayed: bool) -> v1::CreateHoldResponse {
    v1::CreateHoldResponse { hold: Some(convert::hold_view(record)), replayed }
}

/// An error of the engine, in the words of whoever named the hold by a key.
fn of_name(name: &Name, error: EngineError) -> Status {
    match (name, error) {
        (Name::Key(key), EngineError::IdReused { id, field }) => {
            let message = format!("key {} was used before with another {field}", key.key());
            let metadata = [("id", id.to_string()), ("field", field.to_owned())];
            reason::status(Reason::IdempotencyKeyReused, message, metadata)
        }
        (_, error) => error.into(),
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
