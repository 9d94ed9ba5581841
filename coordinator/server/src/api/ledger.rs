//! `LedgerService`: accounts and their books.

use super::{
    convert,
    reason::{self, wrong},
    view,
};
use crate::{
    auth::{Identity, identity},
    config::Limits,
    engine::Engine,
    shards::Shards,
};
use std::sync::Arc;
use tcc_core::{AccountId, Amount, Currency, Descriptor, Outcome, Transaction};
use tcc_ledger::{Account, AccountState, Branches, Postings};
use tcc_proto::{
    Reason,
    v1::{self, ledger_service_server::LedgerService},
};
use tonic::{Request, Response, Status};

/// Serves accounts.
pub struct Ledger {
    shards: Arc<Shards>,
    engine: Arc<Engine>,
    limits: Limits,
}

/// How many postings a page has by default, and at most.
const PAGE: (usize, usize) = (100, 1_000);
/// How many open holds are told with an account.
const HOLDINGS: usize = 1_000;

impl Ledger {
    /// On shards, within limits. The engine lends its clock.
    #[must_use]
    pub fn new(shards: Arc<Shards>, engine: Arc<Engine>, limits: Limits) -> Self {
        Self { shards, engine, limits }
    }

    /// Blocks, unblocks or closes an account. Whatever does not stand as asked cannot.
    async fn set_state(&self, id: &str, state: AccountState) -> Result<Option<v1::Account>, Status> {
        let id = convert::account("id", id)?;
        let account = self.shards.of(&id).set_state(id.clone(), state).await.map_err(reason::of_shard)?;
        let account = account.ok_or_else(|| not_found(&id))?;
        match account.state {
            stands if stands == state => {
                tracing::info!(account = %id, ?state, "the state of an account was asked for and stands");
                Ok(Some(view::account(&id, &account)))
            }
            AccountState::Closed => {
                let message = format!("account {id} is closed, for good");
                Err(reason::status(Reason::AccountClosed, message, [("account", id.to_string())]))
            }
            AccountState::Open | AccountState::Blocked => {
                let (available, held) = (account.available.to_string(), account.held.to_string());
                let message =
                    format!("account {id} has {available} available and {held} held; it must be empty");
                let metadata = [("account", id.to_string()), ("available", available), ("held", held)];
                Err(reason::status(Reason::AccountNotEmpty, message, metadata))
            }
        }
    }

    /// Issues or burns, once for the id.
    async fn at_once(
        &self,
        id: &str,
        account: &str,
        amount: Option<&v1::Amount>,
        make: fn(AccountId, Amount, Currency) -> Descriptor,
    ) -> Result<Option<v1::Account>, Status> {
        let id = convert::id(id)?;
        let account = convert::account("account", account)?;
        let (amount, currency) = convert::money(amount, &self.limits)?;
        let shard = self.shards.of(&account);
        if let Err(stale) = convert::fresh_id(id, self.engine.clock().now()) {
            let known = shard.branches(Branches::Of(&[id.uuid()])).await.map_err(reason::of_read)?;
            if !known.iter().any(|fence| fence.role.is_at_once()) {
                return Err(stale.into());
            }
        }

        let transaction = Transaction::new(id, make(account.clone(), amount, currency));
        let (outcome, after) = shard.issue(Arc::new(transaction)).await.map_err(reason::of_shard)?;
        match (outcome, after) {
            (Outcome::Done, Some(after)) => Ok(Some(view::account(&account, &after))),
            (Outcome::Refused(refusal), _) => {
                let at = Some(("account", &account));
                Err(reason::refused(refusal.code(), id.to_string(), false, at))
            }
            (Outcome::OtherDescriptor, _) => {
                let message = format!("id {id} was used before with another body");
                Err(reason::status(Reason::IdReused, message, [("id", id.to_string())]))
            }
            (outcome, _) => {
                tracing::error!(%id, ?outcome, "an issue or a burn got an answer that they do not have");
                Err(reason::unavailable(
                    Reason::ShardUnavailable,
                    "the shard's answer makes no sense; ask its operator",
                ))
            }
        }
    }

    async fn account(&self, id: &AccountId) -> Result<Account, Status> {
        let account = self.shards.of(id).account(id).await.map_err(reason::of_read)?;
        account.ok_or_else(|| not_found(id))
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
            return Err(reason::status(Reason::AccountExists, message, metadata));
        }
        Ok(Response::new(v1::CreateAccountResponse { account: Some(view::account(&id, &account)) }))
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::GetAccountResponse>, Status> {
        let id = convert::account("id", &request.get_ref().id)?;
        check_sees("id", &identity(&request), &id)?;
        let account = self.account(&id).await?;
        Ok(Response::new(v1::GetAccountResponse { account: Some(view::account(&id, &account)) }))
    }

    async fn get_holdings(
        &self,
        request: Request<v1::GetHoldingsRequest>,
    ) -> Result<Response<v1::GetHoldingsResponse>, Status> {
        let id = convert::account("account", &request.get_ref().account)?;
        check_sees("account", &identity(&request), &id)?;
        let holdings = self.shards.of(&id).holdings(&id, HOLDINGS).await.map_err(reason::of_read)?;
        let holdings = holdings.ok_or_else(|| not_found(&id))?;
        Ok(Response::new(v1::GetHoldingsResponse {
            account: Some(view::account(&id, &holdings.account)),
            holds: holdings.open.iter().map(|open| view::open(open, &holdings.account.currency)).collect(),
            truncated: holdings.is_truncated,
        }))
    }

    async fn get_balance(
        &self,
        request: Request<v1::GetBalanceRequest>,
    ) -> Result<Response<v1::GetBalanceResponse>, Status> {
        let caller = identity(&request);
        let request = request.into_inner();
        let id = convert::account("account", &request.account)?;
        check_sees("account", &caller, &id)?;
        let at = convert::time_if_any("at", request.at)?;
        let account = self.account(&id).await?;
        let response = v1::GetBalanceResponse {
            account: id.to_string(),
            currency: account.currency.to_string(),
            ..Default::default()
        };
        let Some(at) = at else {
            return Ok(Response::new(v1::GetBalanceResponse {
                available: account.available,
                held: account.held,
                version: account.version,
                recorded_at: (account.version > 0).then(|| view::time(account.posted_at)),
                ..response
            }));
        };
        let now = self.engine.clock().now();
        if at > now {
            let message = format!("must not be later than the server's time, {now}");
            return Err(wrong("at", Reason::TimeInvalid, message).into());
        }
        match self.shards.of(&id).balance_at(&id, at).await.map_err(reason::of_read)? {
            Some(Some(balance)) => Ok(Response::new(v1::GetBalanceResponse {
                available: balance.available,
                held: balance.held,
                version: balance.version,
                recorded_at: Some(view::time(balance.recorded_at)),
                ..response
            })),
            Some(None) => Ok(Response::new(response)),
            None => Err(reason::unavailable(
                Reason::ShardUnavailable,
                "something of that time is still being written; repeat this",
            )),
        }
    }

    async fn block_account(
        &self,
        request: Request<v1::BlockAccountRequest>,
    ) -> Result<Response<v1::BlockAccountResponse>, Status> {
        let account = self.set_state(&request.get_ref().id, AccountState::Blocked).await?;
        Ok(Response::new(v1::BlockAccountResponse { account }))
    }

    async fn unblock_account(
        &self,
        request: Request<v1::UnblockAccountRequest>,
    ) -> Result<Response<v1::UnblockAccountResponse>, Status> {
        let account = self.set_state(&request.get_ref().id, AccountState::Open).await?;
        Ok(Response::new(v1::UnblockAccountResponse { account }))
    }

    async fn close_account(
        &self,
        request: Request<v1::CloseAccountRequest>,
    ) -> Result<Response<v1::CloseAccountResponse>, Status> {
        let account = self.set_state(&request.get_ref().id, AccountState::Closed).await?;
        Ok(Response::new(v1::CloseAccountResponse { account }))
    }

    async fn issue(&self, request: Request<v1::IssueRequest>) -> Result<Response<v1::IssueResponse>, Status> {
        let v1::IssueRequest { id, account, amount } = request.into_inner();
        let account = self.at_once(&id, &account, amount.as_ref(), Descriptor::issue).await?;
        Ok(Response::new(v1::IssueResponse { account }))
    }

    async fn burn(&self, request: Request<v1::BurnRequest>) -> Result<Response<v1::BurnResponse>, Status> {
        let v1::BurnRequest { id, account, amount } = request.into_inner();
        let account = self.at_once(&id, &account, amount.as_ref(), Descriptor::burn).await?;
        Ok(Response::new(v1::BurnResponse { account }))
    }

    async fn list_postings(
        &self,
        request: Request<v1::ListPostingsRequest>,
    ) -> Result<Response<v1::ListPostingsResponse>, Status> {
        let caller = identity(&request);
        let request = request.into_inner();
        let id = convert::account("account", &request.account)?;
        check_sees("account", &caller, &id)?;
        let size = convert::page_size(request.page_size, PAGE.0, PAGE.1)?;
        if request.after_version < 0 {
            return Err(wrong("after_version", Reason::FieldInvalid, "must not be negative").into());
        }
        let which = Postings {
            after: request.after_version,
            from: convert::time_if_any("recorded_from", request.recorded_from)?,
            until: convert::time_if_any("recorded_until", request.recorded_until)?,
            limit: size as i64 + 1,
        };
        let account = self.account(&id).await?;
        let mut postings = self.shards.of(&id).postings(&id, which).await.map_err(reason::of_read)?;
        let more = postings.len() > size;
        postings.truncate(size);
        let next_after_version = if more { postings.last().map_or(0, |posting| posting.version) } else { 0 };
        let postings =
            postings.iter().map(|posting| view::posting(&id, &account.currency, posting)).collect();
        Ok(Response::new(v1::ListPostingsResponse { postings, next_after_version }))
    }
}

/// Whether somebody may see an account. It is not told whether there is one that may not be seen.
fn check_sees(field: &str, caller: &Identity, account: &AccountId) -> Result<(), Status> {
    if caller.may_see(account) { Ok(()) } else { Err(reason::not_covered(field, account)) }
}

fn not_found(id: &AccountId) -> Status {
    let message = format!("there is no account {id}");
    reason::status(Reason::AccountNotFound, message, [("account", id.to_string())])
}
