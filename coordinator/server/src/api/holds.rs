//! `HoldService`: scheduled transfers, for applications.

use super::{convert, reason};
use crate::{
    auth::{Identity, identity},
    config::Limits,
    engine::{Created, Engine, EngineError},
    store::Record,
};
use std::sync::Arc;
use tcc_core::{
    Cause, Transaction, TransactionId,
    descriptor::{CREDIT, DEBIT},
};
use tcc_proto::v1::{self, hold_service_server::HoldService};
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// Serves holds.
pub struct Holds {
    engine: Arc<Engine>,
    limits: Limits,
}

impl Holds {
    /// On an engine, within limits.
    #[must_use]
    pub fn new(engine: Arc<Engine>, limits: Limits) -> Self {
        Self { engine, limits }
    }

    /// The hold that an id names, if it is one.
    async fn find(&self, id: TransactionId) -> Result<Record, Status> {
        let found = self.engine.store().get(id).await.map_err(EngineError::from)?;
        found.ok_or_else(|| EngineError::NotFound(id).into())
    }

    /// Whether somebody may decide about a hold: its payer may. Who pays does not change, so it may be read beforehand.
    async fn check_decides(&self, caller: &Identity, id: TransactionId) -> Result<(), Status> {
        if caller.may_spend_all() {
            return Ok(());
        }
        let record = self.find(id).await?;
        check_sees(caller, &record)?;
        let is_payer = caller.may_spend(&record.transaction.branch(DEBIT).account);
        if is_payer { Ok(()) } else { Err(reason::not_the_payer(id)) }
    }

    /// What is known already is answered whatever its times are; only what is new must have fresh ones.
    async fn check_times(&self, id: TransactionId, transaction: &Transaction) -> Result<(), Status> {
        let now = self.engine.clock().now();
        let fresh = convert::fresh_id(id, now)
            .and_then(|()| convert::fresh_due(transaction.descriptor.due_at, now, &self.limits));
        match fresh {
            Ok(()) => Ok(()),
            Err(stale) => match self.engine.store().get(id).await.map_err(EngineError::from)? {
                Some(_) => Ok(()),
                None => Err(stale),
            },
        }
    }
}

#[tonic::async_trait]
impl HoldService for Holds {
    async fn create_hold(
        &self,
        request: Request<v1::CreateHoldRequest>,
    ) -> Result<Response<v1::CreateHoldResponse>, Status> {
        let (patience, caller) = (convert::patience(&request), identity(&request));
        let request = request.into_inner();
        let id = match request.id.as_str() {
            "" => mint(self.engine.clock().now()),
            text => convert::id(text)?,
        };
        let transaction = Transaction::new(id, convert::hold(&request, &self.limits)?);
        let payer = &transaction.branch(DEBIT).account;
        if !caller.may_spend(payer) {
            return Err(reason::not_covered("payer", payer));
        }
        self.check_times(id, &transaction).await?;

        let Created { record, replayed } =
            self.engine.create(transaction, convert::lane(&caller.caller), patience).await?;
        if record.standing.cause == Some(Cause::Refused) {
            return Err(reason::refused(
                record.standing.reason.as_deref().unwrap_or("REFUSED"),
                id.to_string(),
            ));
        }
        Ok(Response::new(v1::CreateHoldResponse { hold: Some(convert::hold_view(&record)), replayed }))
    }

    async fn get_hold(
        &self,
        request: Request<v1::GetHoldRequest>,
    ) -> Result<Response<v1::GetHoldResponse>, Status> {
        let record = self.find(convert::id(&request.get_ref().id)?).await?;
        check_sees(&identity(&request), &record)?;
        Ok(Response::new(v1::GetHoldResponse { hold: Some(convert::hold_view(&record)) }))
    }

    async fn cancel_hold(
        &self,
        request: Request<v1::CancelHoldRequest>,
    ) -> Result<Response<v1::CancelHoldResponse>, Status> {
        let id = convert::id(&request.get_ref().id)?;
        self.check_decides(&identity(&request), id).await?;
        let record = self.engine.cancel(id, convert::patience(&request)).await?;
        Ok(Response::new(v1::CancelHoldResponse { hold: Some(convert::hold_view(&record)) }))
    }

    async fn confirm_hold(
        &self,
        request: Request<v1::ConfirmHoldRequest>,
    ) -> Result<Response<v1::ConfirmHoldResponse>, Status> {
        let id = convert::id(&request.get_ref().id)?;
        self.check_decides(&identity(&request), id).await?;
        let record = self.engine.confirm_now(id, convert::patience(&request)).await?;
        Ok(Response::new(v1::ConfirmHoldResponse { hold: Some(convert::hold_view(&record)) }))
    }
}

/// Whether somebody may see a hold: its payer and its payee do, to all others it does not exist.
fn check_sees(caller: &Identity, record: &Record) -> Result<(), Status> {
    let sees = |branch| caller.may_see(&record.transaction.branch(branch).account);
    if sees(DEBIT) || sees(CREDIT) { Ok(()) } else { Err(EngineError::NotFound(record.id()).into()) }
}

/// An id for a caller that has none.
fn mint(now: tcc_core::Timestamp) -> TransactionId {
    // The uuid crate's generator for the random part, the database's clock for the time.
    let random = Uuid::now_v7().into_bytes();
    let mut tail = [0; 10];
    tail.copy_from_slice(&random[6..]);
    TransactionId::mint(now, tail)
}
