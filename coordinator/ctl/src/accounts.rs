//! `tccctl accounts`: open accounts, issue units, show books.
//!
//! An issue creates money, so its id is made here, before anything is sent, and told whatever happens: whoever does not
//! get an answer repeats the command with that id and cannot issue twice. It keeps out what the server decides: forms of
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
    let id = id.unwrap_or_else(|| {
        let id = Uuid::now_v7();
        // Before the request, so that it is known even if this process is killed.
        output.remark(&format!("the id of this issue is {id}"));
        id
    });
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

async fn send_issue(session: &Session, request: v1::IssueRequest) -> Result<Account, Box<Failure>> {
    let mut client = LedgerServiceClient::new(session.connect().await?);
    let answer = client.issue(session.request(request)).await;
    Account::of_answer(answer.map_err(|status| session.failure(status))?.into_inner().account)
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
