//! Transactions of any branches: debits, credits, and calls of other participants, all of them or none.

use crate::{
    Client, Error, List, Money, Watch,
    ask::{Answer, Repeat},
    connect::Shared,
    convert,
    holds::Name,
    list::{Listed, Which},
    new_id,
    watch::Watched,
};
use std::collections::HashMap;
use tcc_core::{
    AccountId, Attention, Cause, Labels, OnMaturity, ParticipantName, Phase, Timestamp, TransactionId,
};
use tcc_proto::v1;
use tonic::{Status, Streaming};

/// One participant's part of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Branch {
    /// Takes from an account of the ledger.
    Debit {
        /// Whose.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Gives to an account of the ledger.
    Credit {
        /// Whose.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Asks another participant for something.
    Call {
        /// Whom.
        participant: ParticipantName,
        /// Which of the things that it can do, in its own words.
        operation: String,
        /// What it needs to know, in its own encoding.
        payload: Vec<u8>,
    },
}

/// A transaction as it stood when the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its id.
    pub id: TransactionId,
    /// Where it stands.
    pub phase: Phase,
    /// Whether somebody should look at it.
    pub attention: Attention,
    /// Why it was decided as it was, if it was.
    pub cause: Option<Cause>,
    /// Its branches.
    pub branches: Vec<Branch>,
    /// Which of them decides, from 0.
    pub pivot: usize,
    /// It was to be confirmed as soon as every branch was tried.
    pub immediate: bool,
    /// What happens when it falls due.
    pub on_maturity: OnMaturity,
    /// When that is. Of an immediate one: when it was created.
    pub due_at: Timestamp,
    /// The caller's own.
    pub labels: Labels,
    /// Why it was refused or vetoed, such as `INSUFFICIENT_FUNDS` or a participant's own reason; otherwise empty.
    pub reason: String,
    /// Who created it.
    pub caller: String,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When every branch was tried.
    pub held_at: Option<Timestamp>,
    /// When it was decided.
    pub decided_at: Option<Timestamp>,
    /// When it was final.
    pub settled_at: Option<Timestamp>,
    /// Another one in each phase.
    pub etag: String,
}

impl Transaction {
    /// Whether nothing can happen to it any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.phase.is_final()
    }
}

/// What the creation of a transaction promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// As it stands: held, or further; of an immediate one: confirmed.
    pub transaction: Transaction,
    /// Its id or key was known already, with the same body.
    pub replayed: bool,
}

/// A transaction that gets its branches, up to 64, and of which it is not said yet when it is confirmed.
#[derive(Debug, Clone)]
#[must_use = "say when it is confirmed, and send it"]
pub struct Parts {
    client: Client,
    branches: Vec<Branch>,
    pivot: Option<u32>,
}

impl Parts {
    /// Takes from an account. Debits and credits must balance in each currency.
    pub fn debit(self, account: &AccountId, money: Money) -> Self {
        self.branch(Branch::Debit { account: account.clone(), money })
    }

    /// Gives to an account.
    pub fn credit(self, account: &AccountId, money: Money) -> Self {
        self.branch(Branch::Credit { account: account.clone(), money })
    }

    /// Asks a participant for something, in its own words and its own encoding: up to 64 KiB.
    pub fn call(
        self,
        participant: &ParticipantName,
        operation: impl Into<String>,
        payload: impl Into<Vec<u8>>,
    ) -> Self {
        let (operation, payload) = (operation.into(), payload.into());
        self.branch(Branch::Call { participant: participant.clone(), operation, payload })
    }

    /// One more branch.
    pub fn branch(mut self, branch: Branch) -> Self {
        self.branches.push(branch);
        self
    }

    /// The branch that was named last is the pivot: its participant decides whether all are confirmed. Otherwise it is the last
    /// one of all. Whoever may veto must be.
    pub fn pivot(mut self) -> Self {
        self.pivot = u32::try_from(self.branches.len()).ok().and_then(|branches| branches.checked_sub(1));
        self
    }

    /// Confirmed as soon as every branch is tried.
    pub fn at_once(self) -> NewTransaction {
        self.when(When::AtOnce)
    }

    /// Confirmed at this time, unless it is cancelled before.
    pub fn confirm_at(self, due_at: Timestamp) -> NewTransaction {
        self.when(When::Due(due_at, OnMaturity::Confirm))
    }

    /// Waits for [`Client::confirm_transaction`], and is cancelled at this time if it has not come.
    pub fn cancel_at(self, deadline: Timestamp) -> NewTransaction {
        self.when(When::Due(deadline, OnMaturity::Cancel))
    }

    fn when(self, when: When) -> NewTransaction {
        NewTransaction { parts: self, name: Name::Id(new_id()), when, labels: HashMap::new() }
    }
}

#[derive(Debug, Clone, Copy)]
enum When {
    AtOnce,
    Due(Timestamp, OnMaturity),
}

/// A transaction that can be sent: as often as is needed, since its id is made.
#[derive(Debug, Clone)]
#[must_use = "it is not sent yet"]
pub struct NewTransaction {
    parts: Parts,
    name: Name,
    when: When,
    labels: HashMap<String, String>,
}

impl NewTransaction {
    /// Under this id, which the application has written down: so it can send the same again after a crash of its own.
    pub fn id(mut self, id: TransactionId) -> Self {
        self.name = Name::Id(id);
        self
    }

    /// Under a key of the application's own instead of an id: 1 to 64 printable ASCII characters without spaces.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.name = Name::Key(key.into());
        self
    }

    /// With a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Tries every branch. Answers when all could; of an immediate one, when all are confirmed.
    ///
    /// # Errors
    ///
    /// [`Error`]. A refusal is an [`Error::No`], and final for its id or key: a participant's own reason is the detail `refusal`
    /// of [`Reason::ParticipantRefused`](crate::Reason::ParticipantRefused).
    pub async fn send(&self) -> Result<Begun, Error> {
        let call = |shared: &Shared, request| {
            let mut transactions = shared.transactions();
            async move { transactions.create_transaction(request).await }
        };
        let is_at_once = matches!(self.when, When::AtOnce);
        let read = move |v1::CreateTransactionResponse { transaction, replayed }| {
            let transaction = convert::transaction(transaction)?;
            // The deadline of the attempt may have ended first.
            let is_done = match transaction.phase {
                Phase::Trying => false,
                Phase::Confirmed => true,
                _ => !is_at_once,
            };
            Ok(if is_done { Answer::Is(Begun { transaction, replayed }) } else { not_yet(&transaction) })
        };
        self.parts.client.ask("creating a transaction", Repeat::Safe, self.message(), call, read).await
    }

    /// Checks everything that can be known beforehand, the accounts too, and creates nothing.
    ///
    /// # Errors
    ///
    /// As [`NewTransaction::send`].
    pub async fn validate(&self) -> Result<(), Error> {
        let call = |shared: &Shared, request| {
            let mut transactions = shared.transactions();
            async move { transactions.create_transaction(request).await }
        };
        let message = v1::CreateTransactionRequest { validate_only: true, ..self.message() };
        let read = |_| Ok(Answer::Is(()));
        self.parts.client.ask("validating a transaction", Repeat::Safe, message, call, read).await
    }

    fn message(&self) -> v1::CreateTransactionRequest {
        let (due_at, on_maturity) = match self.when {
            When::AtOnce => (None, v1::OnMaturity::Unspecified),
            When::Due(due_at, on_maturity) => {
                (Some(convert::to_time(due_at)), convert::to_maturity(on_maturity))
            }
        };
        v1::CreateTransactionRequest {
            id: self.name.id(),
            branches: self.parts.branches.iter().map(convert::to_part).collect(),
            pivot: self.parts.pivot,
            due_at,
            on_maturity: on_maturity.into(),
            immediate: due_at.is_none(),
            idempotency_key: self.name.key(),
            labels: self.labels.clone(),
            validate_only: false,
        }
    }
}

impl Client {
    /// A transaction of any branches: all of them happen, or none. Name them, say when it is confirmed, and send it.
    pub fn transaction(&self) -> Parts {
        Parts { client: self.clone(), branches: Vec::new(), pivot: None }
    }

    /// A transaction as it stands. Holds are not found here.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn get_transaction(&self, id: TransactionId) -> Result<Transaction, Error> {
        let message = v1::GetTransactionRequest { id: id.to_string() };
        let call = |shared: &Shared, request| {
            let mut transactions = shared.transactions();
            async move { transactions.get_transaction(request).await }
        };
        let read = |response: v1::GetTransactionResponse| {
            Ok(Answer::Is(convert::transaction(response.transaction)?))
        };
        self.ask("reading a transaction", Repeat::Safe, message, call, read).await
    }

    /// Confirms a transaction now. Answers when every branch is confirmed.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Reason::TransactionNotConfirmable`](crate::Reason::TransactionNotConfirmable): it is cancelled, or about to
    /// be; the pivot may have vetoed it.
    pub async fn confirm_transaction(&self, id: TransactionId) -> Result<Transaction, Error> {
        self.confirm_transaction_if(id, String::new(), Repeat::Safe).await
    }

    /// As [`Client::confirm_transaction`], if it still stands as it was seen.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Reason::EtagMismatch`](crate::Reason::EtagMismatch): it does not. An attempt without an answer is
    /// [`Error::Unknown`] at once: read the transaction then.
    pub async fn confirm_transaction_unchanged(&self, seen: &Transaction) -> Result<Transaction, Error> {
        self.confirm_transaction_if(seen.id, seen.etag.clone(), Repeat::IfNotDone).await
    }

    async fn confirm_transaction_if(
        &self,
        id: TransactionId,
        etag: String,
        repeat: Repeat,
    ) -> Result<Transaction, Error> {
        let message = v1::ConfirmTransactionRequest { id: id.to_string(), etag };
        let call = |shared: &Shared, request| {
            let mut transactions = shared.transactions();
            async move { transactions.confirm_transaction(request).await }
        };
        let read = |response: v1::ConfirmTransactionResponse| until(Phase::Confirmed, response.transaction);
        self.ask("confirming a transaction", repeat, message, call, read).await
    }

    /// Cancels a transaction that is not due yet. Answers when it will never be confirmed.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Reason::TransactionNotCancellable`](crate::Reason::TransactionNotCancellable): it is due, being confirmed,
    /// or confirmed.
    pub async fn cancel_transaction(&self, id: TransactionId) -> Result<Transaction, Error> {
        self.cancel_transaction_if(id, String::new(), Repeat::Safe).await
    }

    /// As [`Client::cancel_transaction`], if it still stands as it was seen.
    ///
    /// # Errors
    ///
    /// As [`Client::confirm_transaction_unchanged`].
    pub async fn cancel_transaction_unchanged(&self, seen: &Transaction) -> Result<Transaction, Error> {
        self.cancel_transaction_if(seen.id, seen.etag.clone(), Repeat::IfNotDone).await
    }

    async fn cancel_transaction_if(
        &self,
        id: TransactionId,
        etag: String,
        repeat: Repeat,
    ) -> Result<Transaction, Error> {
        let message = v1::CancelTransactionRequest { id: id.to_string(), etag };
        let call = |shared: &Shared, request| {
            let mut transactions = shared.transactions();
            async move { transactions.cancel_transaction(request).await }
        };
        let read = |response: v1::CancelTransactionResponse| until(Phase::Cancelled, response.transaction);
        self.ask("cancelling a transaction", repeat, message, call, read).await
    }

    /// Each change of a transaction, until it is final.
    #[must_use]
    pub fn watch_transaction(&self, id: TransactionId) -> Watch<Transaction> {
        Watch::new(self.clone(), id)
    }

    /// The caller's own transactions, the newest first.
    pub fn transactions(&self) -> List<Transaction> {
        List::new(self.clone(), String::new())
    }
}

/// The transaction in an answer, if it is in the phase that was asked for.
fn until(phase: Phase, transaction: Option<v1::Transaction>) -> Result<Answer<Transaction>, String> {
    let transaction = convert::transaction(transaction)?;
    Ok(if transaction.phase == phase { Answer::Is(transaction) } else { not_yet(&transaction) })
}

fn not_yet<T>(transaction: &Transaction) -> Answer<T> {
    Answer::NotYet(format!("it is {}", transaction.phase))
}

impl List<Transaction> {
    /// Those of another caller, which operators and viewers may see.
    pub fn of_caller(mut self, caller: impl Into<String>) -> Self {
        self.of = caller.into();
        self
    }
}

impl Listed for Transaction {
    /// A caller; empty: whoever asks.
    type Of = String;

    async fn page(client: &Client, caller: &String, which: &Which) -> Result<(Vec<Self>, String), Error> {
        let Which { phases, labels, created_from, created_until, page_size, page_token } = which.clone();
        let message = v1::ListTransactionsRequest {
            caller: caller.clone(),
            phases,
            labels,
            created_from,
            created_until,
            page_size,
            page_token,
        };
        let call = |shared: &Shared, request| {
            let mut transactions = shared.transactions();
            async move { transactions.list_transactions(request).await }
        };
        let read = |response: v1::ListTransactionsResponse| {
            let all = response.transactions.into_iter().map(|one| convert::transaction(Some(one)));
            Ok(Answer::Is((all.collect::<Result<_, _>>()?, response.next_page_token)))
        };
        client.ask("listing transactions", Repeat::Safe, message, call, read).await
    }
}

impl Watched for Transaction {
    type Told = v1::WatchTransactionResponse;
    const WATCHING: &'static str = "watching a transaction";

    async fn watch(client: &Client, id: TransactionId, etag: &str) -> Result<Streaming<Self::Told>, Status> {
        let message = v1::WatchTransactionRequest { id: id.to_string(), etag: etag.to_owned() };
        let request = client.shared.request(message);
        Ok(client.shared.transactions().watch_transaction(request).await?.into_inner())
    }

    fn read(told: Self::Told) -> Result<Self, String> {
        convert::transaction(told.transaction)
    }

    async fn get(client: &Client, id: TransactionId) -> Result<Self, Error> {
        client.get_transaction(id).await
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn is_final(&self) -> bool {
        self.is_final()
    }
}
