//! A system with participants that are no shards: the seats of a house, which may veto, and coupons, in Python.

use crate::{
    Client, GOLD, System, connect,
    examples::{COUPONS, Coupons, Example, SEATS, seats::Seats},
    new_id, time,
};
use jiff::{SignedDuration, Timestamp};
use tcc_coordinator::config::ParticipantConfig;
use tcc_participant::{Server, serve::Running};
use tcc_proto::v1::{self, transaction_part::Part};
use tonic::Status;
use uuid::Uuid;

/// A system of two shards, seats and coupons, each with a database on the same server.
pub struct Parties {
    /// The coordinator's and the shards' databases. Its configuration names the seats and the coupons.
    pub system: System,
    /// The seats, in this process.
    pub seats: Running,
    /// The coupons.
    pub coupons: Example,
}

impl Parties {
    /// Starts all of them but a coordinator.
    pub async fn start() -> Self {
        let mut system = System::start().await;
        let urls = databases(&system).await;
        let seats = Server::new("seats", &urls.seats).expect("a url").listen("127.0.0.1:0");
        let seats = seats.start(Seats).await.expect("the seats start");
        let coupons = Coupons::start(&urls.coupons, "127.0.0.1:0").await.expect("the coupons start");
        system.config.participants = vec![
            ParticipantConfig { may_veto: true, ..ParticipantConfig::new("seats", &seats.url()) },
            ParticipantConfig::new("coupons", &coupons.address),
        ];
        Self { system, seats, coupons }
    }

    /// Who has a seat, and whether it is sold.
    pub async fn seat(&self, seat: &str) -> (Option<Uuid>, bool) {
        let sql = connect(&url(&self.system, "seats")).await;
        let row = sql.query_one("SELECT taken_by, sold FROM seat WHERE seat = $1", &[&seat]).await;
        let row = row.expect("the seat is there");
        (row.get(0), row.get(1))
    }

    /// How many of a coupon are left.
    pub async fn coupons_left(&self, coupon: &str) -> i32 {
        let sql = connect(&url(&self.system, "coupons")).await;
        let row = sql.query_one("SELECT remaining FROM coupon WHERE name = $1", &[&coupon]).await;
        row.expect("the coupon is there").get(0)
    }
}

/// The databases of the participants that are no shards.
pub struct Urls {
    /// Of the seats.
    pub seats: String,
    /// Of the coupons.
    pub coupons: String,
}

/// A database on a system's server.
#[must_use]
pub fn url(system: &System, name: &str) -> String {
    system.cluster.url().replace("dbname=postgres", &format!("dbname={name}"))
}

/// Creates the databases of the seats and the coupons on a system's server.
pub async fn databases(system: &System) -> Urls {
    let admin = connect(&system.cluster.url()).await;
    for (name, tables) in [("seats", SEATS), ("coupons", COUPONS)] {
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a database is created");
        connect(&url(system, name)).await.batch_execute(tables).await.expect("its tables are created");
    }
    Urls { seats: url(system, "seats"), coupons: url(system, "coupons") }
}

/// A branch that takes from an account.
#[must_use]
pub fn debit(account: &str, value: i64) -> v1::TransactionPart {
    v1::TransactionPart { part: Some(Part::Debit(entry(account, value))) }
}

/// A branch that gives to an account.
#[must_use]
pub fn credit(account: &str, value: i64) -> v1::TransactionPart {
    v1::TransactionPart { part: Some(Part::Credit(entry(account, value))) }
}

fn entry(account: &str, value: i64) -> v1::LedgerEntry {
    let amount = Some(v1::Amount { value, currency: GOLD.into() });
    v1::LedgerEntry { account: account.into(), amount }
}

/// A branch that asks a participant for something.
#[must_use]
pub fn call(participant: &str, payload: &str) -> v1::TransactionPart {
    let call = v1::ParticipantCall {
        participant: participant.into(),
        operation: "reserve".into(),
        payload: payload.into(),
    };
    v1::TransactionPart { part: Some(Part::Call(call)) }
}

/// A transaction of these branches, confirmed when it is due, so long from now. The last one is the pivot.
#[must_use]
pub fn due_in(delay: SignedDuration, branches: Vec<v1::TransactionPart>) -> v1::CreateTransactionRequest {
    v1::CreateTransactionRequest {
        id: new_id(),
        branches,
        due_at: Some(time(Timestamp::now() + delay)),
        on_maturity: v1::OnMaturity::Confirm.into(),
        ..Default::default()
    }
}

/// A transaction of these branches, to be confirmed at once.
#[must_use]
pub fn immediate(branches: Vec<v1::TransactionPart>) -> v1::CreateTransactionRequest {
    v1::CreateTransactionRequest { id: new_id(), branches, immediate: true, ..Default::default() }
}

impl Client {
    /// Asks for a transaction.
    ///
    /// # Errors
    ///
    /// The server's.
    pub async fn begin(&mut self, request: &v1::CreateTransactionRequest) -> Result<v1::Transaction, Status> {
        let answer = self.transactions.create_transaction(request.clone()).await?.into_inner();
        Ok(answer.transaction.expect("an answer has a transaction"))
    }

    /// A transaction as it stands.
    ///
    /// # Errors
    ///
    /// The server's.
    pub async fn transaction(&mut self, id: &str) -> Result<v1::Transaction, Status> {
        let request = v1::GetTransactionRequest { id: id.into() };
        let answer = self.transactions.get_transaction(request).await?.into_inner();
        Ok(answer.transaction.expect("an answer has a transaction"))
    }

    /// Confirms a transaction.
    ///
    /// # Errors
    ///
    /// The server's.
    pub async fn confirm_transaction(&mut self, id: &str) -> Result<v1::Transaction, Status> {
        let request = v1::ConfirmTransactionRequest { id: id.into(), etag: String::new() };
        let answer = self.transactions.confirm_transaction(request).await?.into_inner();
        Ok(answer.transaction.expect("an answer has a transaction"))
    }

    /// Cancels a transaction.
    ///
    /// # Errors
    ///
    /// The server's.
    pub async fn cancel_transaction(&mut self, id: &str) -> Result<v1::Transaction, Status> {
        let request = v1::CancelTransactionRequest { id: id.into(), etag: String::new() };
        let answer = self.transactions.cancel_transaction(request).await?.into_inner();
        Ok(answer.transaction.expect("an answer has a transaction"))
    }

    /// A transaction when it is final, by watching it.
    pub async fn end_of(&mut self, id: &str) -> v1::Transaction {
        let watching = async {
            let request = v1::WatchTransactionRequest { id: id.into(), etag: String::new() };
            let mut seen = None;
            let mut changes =
                self.transactions.watch_transaction(request).await.expect("it is there").into_inner();
            while let Some(change) = changes.message().await.expect("it is watched to its end") {
                seen = change.transaction;
            }
            seen.expect("a watch tells how it stands")
        };
        tokio::time::timeout(crate::PATIENCE, watching).await.expect("it comes to its end")
    }

    /// Waits until every participant of these names can be reached.
    pub async fn until_reachable(&mut self, names: &[&str]) {
        crate::until("the participants can be reached", || {
            let mut operator = self.operator.clone();
            async move {
                let Ok(answer) = operator.list_participants(v1::ListParticipantsRequest {}).await else {
                    return false;
                };
                let all = answer.into_inner().participants;
                names.iter().all(|name| all.iter().any(|one| one.name == *name && one.reachable))
            }
        })
        .await;
    }
}
