//! `tccctl accounts`: open, block and close accounts, issue and burn units, show books.
//!
//! An issue creates money and a burn destroys it, so their ids are made here, before anything is sent, and told whatever
//! happens: whoever does not get an answer repeats the command with that id and cannot do it twice. It keeps out what the server decides: forms of
//! account ids and currencies, limits of amounts.

use crate::{
    errors::{Exit, Failure},
    output::{Amount, Int64, Output, fields, name, or_dash, rows, time},
    session::Session,
};
use serde::Serialize;
use std::fmt;
use tcc_proto::v1::{self, ledger_service_client::LedgerServiceClient};
use uuid::Uuid;

/// The most postings that the server gives at once.
const PAGE: u32 = 1_000;

/// Opens an account.
pub async fn create(
    session: &Session,
    output: &Output,
    id: String,
    currency: String,
) -> Result<Exit, Box<Failure>> {
    output.acting_on(session);
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.create_account(session.request(v1::CreateAccountRequest { id, currency })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Account::of_answer(answer.account)?)?;
    Ok(Exit::Done)
}

/// Shows an account.
pub async fn get(session: &Session, output: &Output, id: String) -> Result<Exit, Box<Failure>> {
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.get_account(session.request(v1::GetAccountRequest { id })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Account::of_answer(answer.account)?)?;
    Ok(Exit::Done)
}

/// Creates units on an account, once per id.
pub async fn issue(
    session: &Session,
    output: &Output,
    account: String,
    amount: i64,
    currency: String,
    id: Option<Uuid>,
) -> Result<Exit, Box<Failure>> {
    output.acting_on(session);
    let id = id.unwrap_or_else(|| tell_id(output, "issue"));
    let request = v1::IssueRequest {
        id: id.to_string(),
        account,
        amount: Some(v1::Amount { value: amount, currency }),
    };
    let account = send_issue(session, request).await.map_err(|mut failure| {
        failure.id = Some(id);
        failure
    })?;
    output.show(&Issued { id: id.to_string(), account })?;
    Ok(Exit::Done)
}

/// Destroys units of an account, once per id.
pub async fn burn(
    session: &Session,
    output: &Output,
    account: String,
    amount: i64,
    currency: String,
    id: Option<Uuid>,
) -> Result<Exit, Box<Failure>> {
    output.acting_on(session);
    let id = id.unwrap_or_else(|| tell_id(output, "burn"));
    let amount = Some(v1::Amount { value: amount, currency });
    let request = v1::BurnRequest { id: id.to_string(), account, amount };
    let account = send_burn(session, request).await.map_err(|mut failure| {
        failure.id = Some(id);
        failure
    })?;
    output.show(&Burned { id: id.to_string(), account })?;
    Ok(Exit::Done)
}

/// Makes an id, and tells it before the request, so that it is known even if this process is killed.
fn tell_id(output: &Output, what: &str) -> Uuid {
    let id = Uuid::now_v7();
    output.remark(&format!("the id of this {what} is {id}"));
    id
}

async fn send_burn(session: &Session, request: v1::BurnRequest) -> Result<Account, Box<Failure>> {
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.burn(session.request(request)).await;
    Account::of_answer(answer.map_err(|status| session.failure(status))?.into_inner().account)
}

async fn send_issue(session: &Session, request: v1::IssueRequest) -> Result<Account, Box<Failure>> {
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.issue(session.request(request)).await;
    Account::of_answer(answer.map_err(|status| session.failure(status))?.into_inner().account)
}

/// Keeps an account out of new holds.
pub async fn block(session: &Session, output: &Output, id: String) -> Result<Exit, Box<Failure>> {
    output.acting_on(session);
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.block_account(session.request(v1::BlockAccountRequest { id })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Account::of_answer(answer.account)?)?;
    Ok(Exit::Done)
}

/// Takes a block back.
pub async fn unblock(session: &Session, output: &Output, id: String) -> Result<Exit, Box<Failure>> {
    output.acting_on(session);
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.unblock_account(session.request(v1::UnblockAccountRequest { id })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Account::of_answer(answer.account)?)?;
    Ok(Exit::Done)
}

/// Closes an account for good.
pub async fn close(session: &Session, output: &Output, id: String) -> Result<Exit, Box<Failure>> {
    output.acting_on(session);
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.close_account(session.request(v1::CloseAccountRequest { id })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Account::of_answer(answer.account)?)?;
    Ok(Exit::Done)
}

/// Shows what an account had at a time.
pub async fn balance(
    session: &Session,
    output: &Output,
    account: String,
    at: Option<prost_types::Timestamp>,
) -> Result<Exit, Box<Failure>> {
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.get_balance(session.request(v1::GetBalanceRequest { account, at })).await;
    output.show(&Balance::from(answer.map_err(|status| session.failure(status))?.into_inner()))?;
    Ok(Exit::Done)
}

/// Shows an account and the open holds in which its held units are.
pub async fn holdings(session: &Session, output: &Output, account: String) -> Result<Exit, Box<Failure>> {
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.get_holdings(session.request(v1::GetHoldingsRequest { account })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    let holds = answer.holds.into_iter().map(OpenHold::from).collect();
    let truncated = answer.truncated;
    output.show(&Holdings { account: Account::of_answer(answer.account)?, holds, truncated })?;
    if truncated {
        output.remark("there are more open holds than are shown");
    }
    Ok(Exit::Done)
}

/// Lists an account's postings, page by page, up to a limit.
pub async fn postings(
    session: &Session,
    output: &Output,
    account: String,
    after: i64,
    limit: u32,
) -> Result<Exit, Box<Failure>> {
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let mut found = Postings { postings: Vec::new(), next_after_version: Int64(after) };
    let mut left = limit;
    loop {
        let request = v1::ListPostingsRequest {
            account: account.clone(),
            after_version: found.next_after_version.0,
            page_size: left.min(PAGE) as i32,
            ..Default::default()
        };
        let page = client.list_postings(session.request(request)).await;
        let page = page.map_err(|status| session.failure(status))?.into_inner();
        left = left.saturating_sub(page.postings.len() as u32);
        found.next_after_version = Int64(page.next_after_version);
        let ended = page.postings.is_empty() || page.next_after_version == 0;
        found.postings.extend(page.postings.into_iter().map(Posting::from));
        if ended || left == 0 {
            break;
        }
    }
    output.show_list(&found, "postings")?;
    if found.next_after_version.0 != 0 {
        output.remark(&format!("there are more: go on with --after {}", found.next_after_version));
    }
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Account {
    id: String,
    currency: String,
    available: Int64,
    held: Int64,
    state: String,
    version: Int64,
    created_at: Option<String>,
}

impl Account {
    fn of_answer(account: Option<v1::Account>) -> Result<Self, Box<Failure>> {
        account.map(Self::from).ok_or_else(|| Failure::incomplete("account"))
    }
}

impl From<v1::Account> for Account {
    fn from(account: v1::Account) -> Self {
        Self {
            id: account.id,
            currency: account.currency,
            available: Int64(account.available),
            held: Int64(account.held),
            state: name(account.state, "ACCOUNT_STATE_", v1::AccountState::as_str_name),
            version: Int64(account.version),
            created_at: account.created_at.as_ref().map(time),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fields([
            ("id", self.id.clone()),
            ("available", format!("{} {}", self.available, self.currency)),
            ("held", format!("{} {}", self.held, self.currency)),
            ("state", or_dash(Some(&self.state))),
            ("version", self.version.to_string()),
            ("created_at", or_dash(self.created_at.as_deref())),
        ]))
    }
}

#[derive(Debug, Serialize)]
struct Issued {
    id: String,
    account: Account,
}

impl fmt::Display for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fields([
            ("issue", self.id.clone()),
            ("account", self.account.id.clone()),
            ("available", format!("{} {}", self.account.available, self.account.currency)),
            ("held", format!("{} {}", self.account.held, self.account.currency)),
            ("version", self.account.version.to_string()),
        ]))
    }
}

#[derive(Debug, Serialize)]
struct Burned {
    id: String,
    account: Account,
}

impl fmt::Display for Burned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fields([
            ("burn", self.id.clone()),
            ("account", self.account.id.clone()),
            ("available", format!("{} {}", self.account.available, self.account.currency)),
            ("held", format!("{} {}", self.account.held, self.account.currency)),
            ("version", self.account.version.to_string()),
        ]))
    }
}

#[derive(Debug, Serialize)]
struct Balance {
    account: String,
    currency: String,
    available: Int64,
    held: Int64,
    version: Int64,
    recorded_at: Option<String>,
}

impl From<v1::GetBalanceResponse> for Balance {
    fn from(balance: v1::GetBalanceResponse) -> Self {
        Self {
            account: balance.account,
            currency: balance.currency,
            available: Int64(balance.available),
            held: Int64(balance.held),
            version: Int64(balance.version),
            recorded_at: balance.recorded_at.as_ref().map(time),
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fields([
            ("account", self.account.clone()),
            ("available", format!("{} {}", self.available, self.currency)),
            ("held", format!("{} {}", self.held, self.currency)),
            ("version", self.version.to_string()),
            ("recorded_at", or_dash(self.recorded_at.as_deref())),
        ]))
    }
}

#[derive(Debug, Serialize)]
struct Holdings {
    account: Account,
    holds: Vec<OpenHold>,
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct OpenHold {
    id: String,
    payee: String,
    amount: Option<Amount>,
    due_at: Option<String>,
    on_maturity: String,
}

impl From<v1::OpenHold> for OpenHold {
    fn from(hold: v1::OpenHold) -> Self {
        Self {
            id: hold.id,
            payee: hold.payee,
            amount: hold.amount.map(Amount::from),
            due_at: hold.due_at.as_ref().map(time),
            on_maturity: name(hold.on_maturity, "ON_MATURITY_", v1::OnMaturity::as_str_name),
        }
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.account.fmt(f)?;
        if self.holds.is_empty() {
            return Ok(());
        }
        let lines = self.holds.iter().map(|hold| {
            [
                hold.id.clone(),
                or_dash(hold.amount.as_ref().map(Amount::to_string).as_deref()),
                hold.payee.clone(),
                or_dash(hold.due_at.as_deref()),
                or_dash(Some(&hold.on_maturity)),
            ]
        });
        let header = ["HOLD", ">AMOUNT", "PAYEE", "DUE_AT", "ON_MATURITY"];
        write!(f, "\n\n{}", rows(header, lines))
    }
}

#[derive(Debug, Serialize)]
struct Postings {
    postings: Vec<Posting>,
    next_after_version: Int64,
}

#[derive(Debug, Serialize)]
struct Posting {
    account: String,
    version: Int64,
    transaction_id: String,
    kind: String,
    amount: Option<Amount>,
    available_after: Int64,
    held_after: Int64,
    recorded_at: Option<String>,
}

impl From<v1::Posting> for Posting {
    fn from(posting: v1::Posting) -> Self {
        Self {
            account: posting.account,
            version: Int64(posting.version),
            transaction_id: posting.transaction_id,
            kind: name(posting.kind, "POSTING_KIND_", v1::PostingKind::as_str_name),
            amount: posting.amount.map(Amount::from),
            available_after: Int64(posting.available_after),
            held_after: Int64(posting.held_after),
            recorded_at: posting.recorded_at.as_ref().map(time),
        }
    }
}

impl fmt::Display for Postings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.postings.iter().map(|posting| {
            [
                posting.version.to_string(),
                or_dash(posting.recorded_at.as_deref()),
                or_dash(Some(&posting.kind)),
                or_dash(posting.amount.as_ref().map(Amount::to_string).as_deref()),
                posting.available_after.to_string(),
                posting.held_after.to_string(),
                or_dash(Some(&posting.transaction_id)),
            ]
        });
        let header = [">VERSION", "RECORDED_AT", "KIND", ">AMOUNT", ">AVAILABLE", ">HELD", "TRANSACTION"];
        f.write_str(&rows(header, lines))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;

    fn account() -> Account {
        Account::from(v1::Account {
            id: "alice".into(),
            currency: "GOLD".into(),
            available: 900,
            held: 100,
            state: v1::AccountState::Open.into(),
            version: 2,
            created_at: Some(Timestamp { seconds: 1_790_000_000, nanos: 1_000 }),
        })
    }

    #[test]
    fn an_account_shows_its_balances_with_their_currency() {
        let expected = "\
id          alice
available   900 GOLD
held        100 GOLD
state       OPEN
version     2
created_at  2026-09-21T14:13:20.000001Z";

        assert_eq!(account().to_string(), expected);
    }

    #[test]
    fn an_account_for_scripts_has_the_protos_names() {
        let expected = concat!(
            r#"{"id":"alice","currency":"GOLD","available":"900","held":"100","state":"OPEN","version":"2","#,
            r#""created_at":"2026-09-21T14:13:20.000001Z"}"#
        );

        assert_eq!(serde_json::to_string(&account()).unwrap(), expected);
    }

    #[test]
    fn holdings_are_the_account_and_a_table_of_what_is_open() {
        let hold = v1::OpenHold {
            id: "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".into(),
            payee: "bob".into(),
            amount: Some(v1::Amount { value: 100, currency: "GOLD".into() }),
            due_at: Some(Timestamp { seconds: 1_790_000_000, nanos: 0 }),
            on_maturity: v1::OnMaturity::Confirm.into(),
        };
        let holdings = Holdings { account: account(), holds: vec![hold.into()], truncated: false };

        let text = holdings.to_string();

        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[6]), ("id          alice", ""));
        assert_eq!(
            lines[8],
            "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d  100 GOLD  bob    2026-09-21T14:13:20.000000Z  CONFIRM"
        );
    }

    #[test]
    fn postings_are_a_table_with_the_balances_after_each() {
        let posting = v1::Posting {
            account: "alice".into(),
            version: 1,
            transaction_id: "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".into(),
            kind: v1::PostingKind::Issue.into(),
            amount: Some(v1::Amount { value: 1_000, currency: "GOLD".into() }),
            available_after: 1_000,
            held_after: 0,
            recorded_at: Some(Timestamp { seconds: 1_790_000_000, nanos: 0 }),
        };
        let postings = Postings { postings: vec![posting.into()], next_after_version: Int64(0) };

        let expected = "\
VERSION  RECORDED_AT                  KIND      AMOUNT  AVAILABLE  HELD  TRANSACTION
      1  2026-09-21T14:13:20.000000Z  ISSUE  1000 GOLD       1000     0  019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d";
        assert_eq!(postings.to_string(), expected);
    }
}
