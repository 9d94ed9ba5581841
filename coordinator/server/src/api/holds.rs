//! `HoldService`: scheduled transfers, for applications.
//!
//! A hold is created as any transaction is, by [`Creations`], and here it is a payer, a payee and an amount.

use super::{
    convert::{self, Asked, Name},
    creation::{Creations, Creator},
    reason::{self, HOLD, wrong},
    view,
    watch::watch,
};
use crate::{
    auth::{Gate, Identity, identity},
    config::Limits,
    engine::{Created, Engine, EngineError},
    shards::Shards,
    store::{Record, Seen, StoreError},
};
use futures::{future::join_all, stream::BoxStream};
use std::{sync::Arc, time::Duration};
use tcc_core::{Phase, TransactionId};
use tcc_ledger::Listed;
use tcc_proto::{
    Reason,
    v1::{self, hold_service_server::HoldService},
};
use tokio::time::Instant;
use tokio::time::timeout_at;
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

/// Serves holds. Clones share everything.
#[derive(Clone)]
pub struct Holds {
    creations: Creations,
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    gate: Arc<Gate>,
    limits: Limits,
}

impl Holds {
    /// On the shards with its accounts. The gate counts what comes in batches.
    #[must_use]
    pub fn new(creations: Creations, shards: Arc<Shards>, gate: Arc<Gate>) -> Self {
        let (engine, limits) = (Arc::clone(creations.engine()), creations.limits().clone());
        Self { creations, engine, shards, gate, limits }
    }

    /// Checks what is asked for, and creates nothing. Answers the hold that there is under its name, if there is one.
    async fn validate(&self, creator: &Creator, asked: Asked) -> Result<v1::CreateHoldResponse, Status> {
        creator.check_spends(&asked)?;
        if let Some(record) = self.creations.known(&asked, HOLD).await? {
            return Ok(response(&record, true));
        }
        let id = match asked.name {
            Name::Id(id) => id.to_string(),
            Name::Key(_) | Name::None => String::new(),
        };
        if let Some((index, refusal)) =
            self.shards.refusal(&asked.descriptor).await.map_err(reason::of_read)?
        {
            return Err(reason::would_refuse(&asked.descriptor, index, refusal, id));
        }
        let hold = v1::Hold { id, ..view::asked(&asked.descriptor) };
        Ok(v1::CreateHoldResponse { hold: Some(hold), replayed: false })
    }

    /// The hold that an id names, if it is one.
    async fn find(&self, id: TransactionId) -> Result<Record, Status> {
        let record = self.engine.store().get(id).await.map_err(EngineError::from)?;
        let hold = record.filter(|record| record.transaction.descriptor.as_hold().is_some());
        hold.ok_or_else(|| EngineError::NotFound(id).into())
    }

    /// The hold that an id names, if somebody may see it: its payer and its payee do, to all others it does not exist.
    async fn find_for(&self, caller: &Identity, id: TransactionId) -> Result<Record, Status> {
        let record = self.find(id).await?;
        let hold = record.transaction.descriptor.as_hold();
        let sees = hold
            .is_some_and(|(debit, credit)| caller.may_see(&debit.account) || caller.may_see(&credit.account));
        if sees { Ok(record) } else { Err(EngineError::NotFound(id).into()) }
    }

    /// Whether somebody may decide about a hold: its payer may. Who pays does not change, so it may be read beforehand.
    async fn check_decides(&self, caller: &Identity, id: TransactionId) -> Result<(), Status> {
        if caller.may_spend_all() {
            return Ok(());
        }
        let record = self.find_for(caller, id).await?;
        let hold = record.transaction.descriptor.as_hold();
        let is_payer = hold.is_some_and(|(debit, _)| caller.may_spend(&debit.account));
        if is_payer { Ok(()) } else { Err(reason::not_the_payer(id)) }
    }

    /// What an etag says about a hold; nothing, if it is empty.
    async fn seen(&self, id: TransactionId, etag: &str) -> Result<Option<Seen>, Status> {
        match (etag, view::seen(etag)) {
            ("", _) => Ok(None),
            (_, Some(seen)) => Ok(Some(seen)),
            // No hold ever has it.
            (_, None) => Err(reason::changed(HOLD, &self.find(id).await?)),
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
        let Created { record, replayed } = self.creations.create(creator, asked, HOLD).await?;
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
        let Created { record, replayed } = self.creations.create(&creator, asked, HOLD).await?;
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
        let Created { record, replayed } = self.creations.create(&creator, asked, HOLD).await?;
        let record = match self.engine.until_final(record.id(), creator.patience()).await {
            // It was there; whatever became of it, its fences know.
            Err(EngineError::NotFound(id)) => return Err(EngineError::OutcomeUnknown(id).into()),
            record => record?,
        };
        self.creations.refuse(&record, replayed).await?;
        if record.standing.phase == Phase::Cancelled {
            return Err(reason::transfer_cancelled(record.id()));
        }
        Ok(Response::new(v1::TransferResponse { hold: Some(view::hold(&record)), replayed }))
    }

    async fn get_hold(
        &self,
        request: Request<v1::GetHoldRequest>,
    ) -> Result<Response<v1::GetHoldResponse>, Status> {
        let id = convert::id(&request.get_ref().id)?;
        let record = self.find_for(&identity(&request), id).await?;
        Ok(Response::new(v1::GetHoldResponse { hold: Some(view::hold(&record)) }))
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
        let told = view::seen(&etag).map(|seen| (seen, record.standing.attention));
        let view = |record: &Record| v1::WatchHoldResponse { hold: Some(view::hold(record)) };
        Ok(Response::new(watch(Arc::clone(&self.engine), record.id(), told, HOLD, view)))
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
        let record = self.engine.cancel(id, None, seen, patience).await?;
        Ok(Response::new(v1::CancelHoldResponse { hold: Some(view::hold(&record)) }))
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
        let record = self.engine.confirm_now(id, None, seen, patience).await?;
        Ok(Response::new(v1::ConfirmHoldResponse { hold: Some(view::hold(&record)) }))
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
                page.holds.push(view::hold(&record));
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

fn response(record: &Record, replayed: bool) -> v1::CreateHoldResponse {
    v1::CreateHoldResponse { hold: Some(view::hold(record)), replayed }
}
