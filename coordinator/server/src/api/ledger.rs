//! `LedgerService`: accounts and their books.

use super::{convert, reason};
use crate::{
    auth::{Identity, identity},
    config::Limits,
    engine::Engine,
    shards::Shards,
};
use std::sync::Arc;
use tcc_core::{AccountId, Descriptor, Outcome, Transaction};
use tcc_ledger::Branches;
use tcc_proto::v1::{self, ledger_service_server::LedgerService};
use tonic::{Code, Request, Response, Status};

/// Serves accounts.
pub struct Ledger {
    shards: Arc<Shards>,
    engine: Arc<Engine>,
    limits: Limits,
}

/// How many postings a page has by default, and at most.
const PAGE: (i64, i64) = (100, 1_000);

impl Ledger {
    /// On shards, within limits. The engine lends its clock.
    #[must_use]
    pub fn new(shards: Arc<Shards>, engine: Arc<Engine>, limits: Limits) -> Self {
        Self { shards, engine, limits }
    }
}

#[tonic::async_trait]
impl LedgerService for Ledger {
    async fn create_account(
        &self,
        request: Request<v1::CreateAccountRequest>,
    ) -> Result<Response<v1::CreateAccountResponse>, Status> {
        let request = request.into_inner();
        let id = convert::account("id", &request.id)?;
        let currency = convert::currency("currency", &request.currency)?;

        let account =
            self.shards.of(&id).open(id.clone(), currency.clone()).await.map_err(reason::of_shard)?;
        if account.currency != currency {
            let message = format!("account {id} exists with currency {}", account.currency);
            let metadata = [("id", id.to_string()), ("field", "currency".to_owned())];
            return Err(reason::status(Code::AlreadyExists, "ACCOUNT_EXISTS", message, metadata));
        }
        Ok(Response::new(v1::CreateAccountResponse { account: Some(convert::account_view(&id, &account)) }))
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::GetAccountResponse>, Status> {
        let id = convert::account("id", &request.get_ref().id)?;
        check_sees("id", &identity(&request), &id)?;
        let account = self.shards.of(&id).account(&id).await.map_err(reason::of_read)?;
        let account = account.ok_or_else(|| not_found(&id))?;
        Ok(Response::new(v1::GetAccountResponse { account: Some(convert::account_view(&id, &account)) }))
    }

    async fn issue(&self, request: Request<v1::IssueRequest>) -> Result<Response<v1::IssueResponse>, Status> {
        let request = request.into_inner();
        let id = convert::id(&request.id)?;
        let account = convert::account("account", &request.account)?;
        let (amount, currency) = convert::money(request.amount.as_ref(), &self.limits)?;
        let shard = self.shards.of(&account);
        let fresh = convert::fresh_id(id, self.engine.clock().now());
        if let Err(stale) = fresh {
            let known = shard.branches(Branches::Of(&[id.uuid()])).await.map_err(reason::of_read)?;
            if known.is_empty() {
                return Err(stale);
            }
        }

        let transaction = Transaction::new(id, Descriptor::issue(account.clone(), amount, currency));
        let (outcome, after) = shard.issue(Arc::new(transaction)).await.map_err(reason::of_shard)?;
        match (outcome, after) {
            (Outcome::Done, Some(after)) => Ok(Response::new(v1::IssueResponse {
                account: Some(convert::account_view(&account, &after)),
            })),
            (Outcome::Refused(refusal), _) => Err(reason::refused(refusal.code(), id.to_string())),
            (Outcome::OtherDescriptor, _) => {
                let message = format!("id {id} was used before with another body");
                Err(reason::status(Code::AlreadyExists, "ID_REUSED", message, [("id", id.to_string())]))
            }
            (outcome, _) => {
                tracing::error!(%id, ?outcome, "an issue got an answer that issues do not have");
                Err(reason::unavailable(
                    "SHARD_UNAVAILABLE",
                    "the shard's answer makes no sense; ask its operator",
                ))
            }
        }
    }

    async fn list_postings(
        &self,
        request: Request<v1::ListPostingsRequest>,
    ) -> Result<Response<v1::ListPostingsResponse>, Status> {
        let caller = identity(&request);
        let request = request.into_inner();
        let id = convert::account("account", &request.account)?;
        check_sees("account", &caller, &id)?;
        if request.page_size < 0 {
            return Err(reason::invalid("page_size", "FIELD_INVALID", "must not be negative"));
        }
        if request.after_version < 0 {
            return Err(reason::invalid("after_version", "FIELD_INVALID", "must not be negative"));
        }
        let size = match i64::from(request.page_size) {
            0 => PAGE.0,
            size => size.min(PAGE.1),
        };
        let shard = self.shards.of(&id);
        let account = shard.account(&id).await.map_err(reason::of_read)?.ok_or_else(|| not_found(&id))?;
        let mut postings =
            shard.postings(&id, request.after_version, size + 1).await.map_err(reason::of_read)?;
        let more = postings.len() as i64 > size;
        postings.truncate(size as usize);
        let next_after_version = if more { postings.last().map_or(0, |posting| posting.version) } else { 0 };
        let postings =
            postings.iter().map(|posting| convert::posting_view(&id, &account.currency, posting)).collect();
        Ok(Response::new(v1::ListPostingsResponse { postings, next_after_version }))
    }
}

/// Whether somebody may see an account. It is not told whether there is one that may not be seen.
fn check_sees(field: &str, caller: &Identity, account: &AccountId) -> Result<(), Status> {
    if caller.may_see(account) { Ok(()) } else { Err(reason::not_covered(field, account)) }
}

fn not_found(id: &AccountId) -> Status {
    let message = format!("there is no account {id}");
    reason::status(Code::NotFound, "ACCOUNT_NOT_FOUND", message, [("account", id.to_string())])
}
