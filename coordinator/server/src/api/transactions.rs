//! `TransactionService`: transactions of any participants.

use super::{
    branches,
    convert::{self, Asked, Name},
    creation::{Creations, Creator},
    reason::{self, TRANSACTION},
    view,
    watch::watch,
};
use crate::{
    auth::{Identity, identity},
    engine::{Created, Engine, EngineError},
    shards::Shards,
    store::{Record, Seen},
};
use futures::stream::BoxStream;
use std::sync::Arc;
use tcc_core::{Phase, TransactionId};
use tcc_proto::v1::{self, transaction_service_server::TransactionService};
use tonic::{Request, Response, Status};

/// How many transactions are looked at for one page, if few of them are as asked for. Then the page is short, and not the last one.
const LOOKED_AT: usize = 4_000;
/// So many are read at a time.
const CHUNK: (usize, usize) = (100, 1_000);

/// Serves transactions.
pub struct Transactions {
    creations: Creations,
    engine: Arc<Engine>,
    shards: Arc<Shards>,
}

impl Transactions {
    /// On the shards with the ledger's accounts.
    #[must_use]
    pub fn new(creations: Creations, shards: Arc<Shards>) -> Self {
        Self { engine: Arc::clone(creations.engine()), creations, shards }
    }

    /// Checks what is asked for, and creates nothing. Answers the transaction that there is under its name, if there is one.
    async fn validate(
        &self,
        creator: &Creator,
        asked: Asked,
    ) -> Result<v1::CreateTransactionResponse, Status> {
        creator.check_spends(&asked)?;
        if let Some(record) = self.creations.known(&asked, TRANSACTION).await? {
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
        let transaction = v1::Transaction { id, ..view::asked_transaction(&asked.descriptor) };
        Ok(v1::CreateTransactionResponse { transaction: Some(transaction), replayed: false })
    }

    /// The transaction that an id names, if somebody may see it: to others it does not exist.
    async fn find_for(&self, caller: &Identity, id: TransactionId) -> Result<Record, Status> {
        let record = self.engine.store().get(id).await.map_err(EngineError::from)?;
        let sees = |record: &Record| {
            record.transaction.descriptor.owner.as_deref().is_some_and(|owner| caller.may_see_of(owner))
        };
        let seen = record.filter(sees);
        seen.ok_or_else(|| reason::of_engine(TRANSACTION, EngineError::NotFound(id)))
    }

    /// What an etag says about a caller's own transaction; nothing, if it is empty.
    async fn seen(&self, caller: &Identity, id: TransactionId, etag: &str) -> Result<Option<Seen>, Status> {
        match (etag, view::seen(etag)) {
            ("", _) => Ok(None),
            (_, Some(seen)) => Ok(Some(seen)),
            // No transaction ever has it.
            (_, None) => Err(reason::changed(TRANSACTION, &self.find_for(caller, id).await?)),
        }
    }
}

#[tonic::async_trait]
impl TransactionService for Transactions {
    type WatchTransactionStream = BoxStream<'static, Result<v1::WatchTransactionResponse, Status>>;

    async fn create_transaction(
        &self,
        request: Request<v1::CreateTransactionRequest>,
    ) -> Result<Response<v1::CreateTransactionResponse>, Status> {
        let creator = Creator::of(&request);
        let asked = branches::transaction(request.into_inner(), creator.name(), self.creations.limits())?;
        if asked.validate_only {
            return Ok(Response::new(self.validate(&creator, asked).await?));
        }
        let Created { record, replayed } = self.creations.create(&creator, asked, TRANSACTION).await?;
        if !record.transaction.descriptor.is_due_at_once() {
            return Ok(Response::new(response(&record, replayed)));
        }
        let record = match self.engine.until_final(record.id(), creator.patience()).await {
            // It was there; whatever became of it, its fences know.
            Err(EngineError::NotFound(id)) => return Err(EngineError::OutcomeUnknown(id).into()),
            record => record?,
        };
        self.creations.refuse(&record, replayed).await?;
        if record.standing.phase == Phase::Cancelled {
            return Err(reason::transaction_cancelled(record.id()));
        }
        Ok(Response::new(response(&record, replayed)))
    }

    async fn get_transaction(
        &self,
        request: Request<v1::GetTransactionRequest>,
    ) -> Result<Response<v1::GetTransactionResponse>, Status> {
        let id = convert::id(&request.get_ref().id)?;
        let record = self.find_for(&identity(&request), id).await?;
        let transaction = Some(view::transaction(&record));
        Ok(Response::new(v1::GetTransactionResponse { transaction }))
    }

    async fn list_transactions(
        &self,
        request: Request<v1::ListTransactionsRequest>,
    ) -> Result<Response<v1::ListTransactionsResponse>, Status> {
        let caller = identity(&request);
        let asked = branches::listing(request.into_inner(), &caller, self.engine.clock().now())?;
        let limit = (2 * asked.size).clamp(CHUNK.0, CHUNK.1);
        let (mut transactions, mut looked_at, mut before) = (Vec::new(), 0, asked.before);
        let next_page_token = 'page: loop {
            let owned = self.engine.store().owned(&asked.owner, asked.ids_from, before, limit as i64);
            let records = owned.await.map_err(EngineError::from)?;
            let is_last = records.len() < limit;
            looked_at += records.len();
            for record in records {
                before = record.id().uuid();
                if asked.has(&record) {
                    transactions.push(view::transaction(&record));
                    if transactions.len() == asked.size {
                        break 'page asked.filter.seal(before);
                    }
                }
            }
            if is_last {
                break String::new();
            }
            if looked_at >= LOOKED_AT {
                break asked.filter.seal(before);
            }
        };
        Ok(Response::new(v1::ListTransactionsResponse { transactions, next_page_token }))
    }

    async fn watch_transaction(
        &self,
        request: Request<v1::WatchTransactionRequest>,
    ) -> Result<Response<Self::WatchTransactionStream>, Status> {
        let caller = identity(&request);
        let v1::WatchTransactionRequest { id, etag } = request.into_inner();
        let record = self.find_for(&caller, convert::id(&id)?).await?;
        let told = view::seen(&etag).map(|seen| (seen, record.standing.attention));
        let view =
            |record: &Record| v1::WatchTransactionResponse { transaction: Some(view::transaction(record)) };
        Ok(Response::new(watch(Arc::clone(&self.engine), record.id(), told, TRANSACTION, view)))
    }

    async fn confirm_transaction(
        &self,
        request: Request<v1::ConfirmTransactionRequest>,
    ) -> Result<Response<v1::ConfirmTransactionResponse>, Status> {
        let (patience, caller) = (convert::patience(&request), identity(&request));
        let v1::ConfirmTransactionRequest { id, etag } = request.into_inner();
        let id = convert::id(&id)?;
        let seen = self.seen(&caller, id, &etag).await?;
        let confirmed = self.engine.confirm_now(id, Some(&caller.caller), seen, patience).await;
        let record = confirmed.map_err(|error| reason::of_engine(TRANSACTION, error))?;
        let transaction = Some(view::transaction(&record));
        Ok(Response::new(v1::ConfirmTransactionResponse { transaction }))
    }

    async fn cancel_transaction(
        &self,
        request: Request<v1::CancelTransactionRequest>,
    ) -> Result<Response<v1::CancelTransactionResponse>, Status> {
        let (patience, caller) = (convert::patience(&request), identity(&request));
        let v1::CancelTransactionRequest { id, etag } = request.into_inner();
        let id = convert::id(&id)?;
        let seen = self.seen(&caller, id, &etag).await?;
        let cancelled = self.engine.cancel(id, Some(&caller.caller), seen, patience).await;
        let record = cancelled.map_err(|error| reason::of_engine(TRANSACTION, error))?;
        let transaction = Some(view::transaction(&record));
        Ok(Response::new(v1::CancelTransactionResponse { transaction }))
    }
}

fn response(record: &Record, replayed: bool) -> v1::CreateTransactionResponse {
    v1::CreateTransactionResponse { transaction: Some(view::transaction(record)), replayed }
}
