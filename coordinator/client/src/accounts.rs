//! Accounts and their units.

use crate::{
    Client, Error, Money,
    ask::{Answer, Repeat},
    connect::Shared,
    convert,
};
use tcc_core::{AccountId, Currency, Timestamp, TransactionId};
use tcc_proto::v1;

/// An account as it stood when the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// Of its units.
    pub currency: Currency,
    /// Whether it takes part.
    pub state: AccountState,
    /// What can be spent, in minor units.
    pub available: i64,
    /// What is frozen in holds that it pays, in minor units.
    pub held: i64,
    /// How many postings it has.
    pub version: i64,
}

/// Whether an account takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountState {
    /// Yes.
    Open,
    /// In no new hold, and it is not paid.
    Blocked,
    /// Never again.
    Closed,
}

/// What an account had at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// Of its units.
    pub currency: Currency,
    /// What could be spent, in minor units.
    pub available: i64,
    /// What was frozen in holds that it pays, in minor units.
    pub held: i64,
    /// Of the last posting until then; 0 if there was none.
    pub version: i64,
    /// When that was recorded.
    pub recorded_at: Option<Timestamp>,
}

impl Client {
    /// Opens an account, or answers the one that there is with the same currency.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn open(&self, id: &AccountId, currency: &Currency) -> Result<Account, Error> {
        let message = v1::CreateAccountRequest { id: id.to_string(), currency: currency.to_string() };
        let call = |shared: &Shared, request| {
            let mut ledger = shared.ledger();
            async move { ledger.create_account(request).await }
        };
        let read = |response: v1::CreateAccountResponse| account(response.account);
        self.ask("opening an account", Repeat::Safe, message, call, read).await
    }

    /// An account as it stands.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn account(&self, id: &AccountId) -> Result<Account, Error> {
        let message = v1::GetAccountRequest { id: id.to_string() };
        let call = |shared: &Shared, request| {
            let mut ledger = shared.ledger();
            async move { ledger.get_account(request).await }
        };
        let read = |response: v1::GetAccountResponse| account(response.account);
        self.ask("reading an account", Repeat::Safe, message, call, read).await
    }

    /// What an account had at a time that has passed. The answer never changes.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn balance_at(&self, id: &AccountId, at: Timestamp) -> Result<Balance, Error> {
        let message = v1::GetBalanceRequest { account: id.to_string(), at: Some(convert::to_time(at)) };
        let call = |shared: &Shared, request| {
            let mut ledger = shared.ledger();
            async move { ledger.get_balance(request).await }
        };
        let read = |response| Ok(Answer::Is(convert::balance(&response)?));
        self.ask("reading a balance", Repeat::Safe, message, call, read).await
    }

    /// Creates units on an account, once for the id and the account. Answers the account after that.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn issue(&self, id: TransactionId, to: &AccountId, money: Money) -> Result<Account, Error> {
        let amount = Some(convert::to_amount(&money));
        let message = v1::IssueRequest { id: id.to_string(), account: to.to_string(), amount };
        let call = |shared: &Shared, request| {
            let mut ledger = shared.ledger();
            async move { ledger.issue(request).await }
        };
        let read = |response: v1::IssueResponse| account(response.account);
        self.ask("issuing units", Repeat::Safe, message, call, read).await
    }

    /// Destroys available units of an account, once for the id and the account. Answers the account after that.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn burn(&self, id: TransactionId, from: &AccountId, money: Money) -> Result<Account, Error> {
        let amount = Some(convert::to_amount(&money));
        let message = v1::BurnRequest { id: id.to_string(), account: from.to_string(), amount };
        let call = |shared: &Shared, request| {
            let mut ledger = shared.ledger();
            async move { ledger.burn(request).await }
        };
        let read = |response: v1::BurnResponse| account(response.account);
        self.ask("burning units", Repeat::Safe, message, call, read).await
    }

    /// From now on an account takes part in no new hold, and is not paid.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn block(&self, id: &AccountId) -> Result<Account, Error> {
        let message = v1::BlockAccountRequest { id: id.to_string() };
        let call = |shared: &Shared, request| {
            let mut ledger = shared.ledger();
            async move { ledger.block_account(request).await }
        };
        let read = |response: v1::BlockAccountResponse| account(response.account);
        self.ask("blocking an account", Repeat::Safe, message, call, read).await
    }

    /// Takes a block back.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn unblock(&self, id: &AccountId) -> Result<Account, Error> {
        let message = v1::UnblockAccountRequest { id: id.to_string() };
        let call = |shared: &Shared, request| {
            let mut ledger = shared.ledger();
            async move { ledger.unblock_account(request).await }
        };
        let read = |response: v1::UnblockAccountResponse| account(response.account);
        self.ask("unblocking an account", Repeat::Safe, message, call, read).await
    }

    /// Closes an account for good. It must be empty.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn close(&self, id: &AccountId) -> Result<Account, Error> {
        let message = v1::CloseAccountRequest { id: id.to_string() };
        let call = |shared: &Shared, request| {
            let mut ledger = shared.ledger();
            async move { ledger.close_account(request).await }
        };
        let read = |response: v1::CloseAccountResponse| account(response.account);
        self.ask("closing an account", Repeat::Safe, message, call, read).await
    }
}

fn account(told: Option<v1::Account>) -> Result<Answer<Account>, String> {
    Ok(Answer::Is(convert::account(told)?))
}
