//! Holds and transfers.

use crate::{
    Client, Error, List, Money, Watch,
    ask::{Answer, Repeat},
    connect::Shared,
    convert,
    list::{Listed, Which},
    new_id,
    watch::Watched,
};
use std::collections::HashMap;
use tcc_core::{AccountId, Attention, Cause, Labels, OnMaturity, Phase, Timestamp, TransactionId};
use tcc_proto::v1;
use tonic::{Status, Streaming};

/// A hold as it stood when the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Its id.
    pub id: TransactionId,
    /// Where it stands.
    pub phase: Phase,
    /// Whether somebody should look at it.
    pub attention: Attention,
    /// Why it was decided as it was, if it was.
    pub cause: Option<Cause>,
    /// Who pays.
    pub payer: AccountId,
    /// Who is paid.
    pub payee: AccountId,
    /// How much.
    pub money: Money,
    /// What happens when it falls due.
    pub on_maturity: OnMaturity,
    /// When that is. Of a transfer: when it was created.
    pub due_at: Timestamp,
    /// The caller's own.
    pub labels: Labels,
    /// Why it was refused or vetoed, such as `INSUFFICIENT_FUNDS`; otherwise empty.
    pub reason: String,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When the funds were frozen.
    pub held_at: Option<Timestamp>,
    /// When it was decided.
    pub decided_at: Option<Timestamp>,
    /// When it was final.
    pub settled_at: Option<Timestamp>,
    /// Another one in each phase.
    pub etag: String,
}

impl Hold {
    /// Whether nothing can happen to it any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.phase.is_final()
    }
}

/// What a creation promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// As it stands: held, or further.
    pub hold: Hold,
    /// Its id or key was known already, with the same body.
    pub replayed: bool,
}

/// How the server is to know it again.
#[derive(Debug, Clone)]
pub(crate) enum Name {
    Id(TransactionId),
    Key(String),
}

impl Name {
    pub(crate) fn id(&self) -> String {
        if let Self::Id(id) = self { id.to_string() } else { String::new() }
    }

    pub(crate) fn key(&self) -> String {
        if let Self::Key(key) = self { key.clone() } else { String::new() }
    }
}

/// A hold of which it is not said yet what happens when it falls due.
#[derive(Debug)]
#[must_use = "say what happens when it falls due, and send it"]
pub struct Draft {
    client: Client,
    payer: AccountId,
    payee: AccountId,
    money: Money,
}

impl Draft {
    /// Pays the payee at this time, unless it is cancelled before.
    pub fn pay_out_at(self, due_at: Timestamp) -> NewHold {
        self.due(due_at, OnMaturity::Confirm)
    }

    /// Releases the funds to the payer at this time, unless it is confirmed before.
    pub fn release_at(self, due_at: Timestamp) -> NewHold {
        self.due(due_at, OnMaturity::Cancel)
    }

    fn due(self, due_at: Timestamp, on_maturity: OnMaturity) -> NewHold {
        let Self { client, payer, payee, money } = self;
        NewHold {
            client,
            name: Name::Id(new_id()),
            payer,
            payee,
            money,
            due_at,
            on_maturity,
            labels: HashMap::new(),
        }
    }
}

/// A hold that can be sent: as often as is needed, since its id is made.
#[derive(Debug, Clone)]
#[must_use = "it is not sent yet"]
pub struct NewHold {
    client: Client,
    name: Name,
    payer: AccountId,
    payee: AccountId,
    money: Money,
    due_at: Timestamp,
    on_maturity: OnMaturity,
    labels: HashMap<String, String>,
}

impl NewHold {
    /// Under this id, which the application has written down: so it can send the same again after a crash of
    /// its own.
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

    /// Freezes the payer's funds. Answers when they are.
    ///
    /// # Errors
    ///
    /// [`Error`]. A refusal is an [`Error::No`], such as
    /// [`Reason::InsufficientFunds`](crate::Reason::InsufficientFunds), and final for its id or key.
    pub async fn send(&self) -> Result<Created, Error> {
        let call = |shared: &Shared, request| {
            let mut holds = shared.holds();
            async move { holds.create_hold(request).await }
        };
        self.client.ask("creating a hold", Repeat::Safe, self.message(), call, created).await
    }

    /// Checks everything, the accounts too, and creates nothing.
    ///
    /// # Errors
    ///
    /// As [`NewHold::send`].
    pub async fn validate(&self) -> Result<(), Error> {
        let call = |shared: &Shared, request| {
            let mut holds = shared.holds();
            async move { holds.create_hold(request).await }
        };
        let message = v1::CreateHoldRequest { validate_only: true, ..self.message() };
        self.client.ask("validating a hold", Repeat::Safe, message, call, |_| Ok(Answer::Is(()))).await
    }

    pub(crate) fn message(&self) -> v1::CreateHoldRequest {
        v1::CreateHoldRequest {
            id: self.name.id(),
            idempotency_key: self.name.key(),
            payer: self.payer.to_string(),
            payee: self.payee.to_string(),
            amount: Some(convert::to_amount(&self.money)),
            due_at: Some(convert::to_time(self.due_at)),
            on_maturity: convert::to_maturity(self.on_maturity).into(),
            labels: self.labels.clone(),
            validate_only: false,
        }
    }
}

/// A transfer that can be sent: as often as is needed, since its id is made.
#[derive(Debug, Clone)]
#[must_use = "it is not sent yet"]
pub struct NewTransfer {
    client: Client,
    name: Name,
    payer: AccountId,
    payee: AccountId,
    money: Money,
    labels: HashMap<String, String>,
}

impl NewTransfer {
    /// As [`NewHold::id`].
    pub fn id(mut self, id: TransactionId) -> Self {
        self.name = Name::Id(id);
        self
    }

    /// As [`NewHold::key`].
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.name = Name::Key(key.into());
        self
    }

    /// With a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Pays now. Answers when it is paid.
    ///
    /// # Errors
    ///
    /// [`Error`]. A refusal is an [`Error::No`], and final for its id or key.
    pub async fn send(&self) -> Result<Created, Error> {
        let message = v1::TransferRequest {
            id: self.name.id(),
            idempotency_key: self.name.key(),
            payer: self.payer.to_string(),
            payee: self.payee.to_string(),
            amount: Some(convert::to_amount(&self.money)),
            labels: self.labels.clone(),
        };
        let call = |shared: &Shared, request| {
            let mut holds = shared.holds();
            async move { holds.transfer(request).await }
        };
        let read = |v1::TransferResponse { hold, replayed }| {
            let hold = convert::hold(hold)?;
            Ok(if hold.phase == Phase::Confirmed {
                Answer::Is(Created { hold, replayed })
            } else {
                not_yet(&hold)
            })
        };
        self.client.ask("transferring", Repeat::Safe, message, call, read).await
    }
}

impl Client {
    /// A hold: the payer's funds are frozen until it falls due. Say what happens then, and send it.
    pub fn hold(&self, payer: &AccountId, payee: &AccountId, money: Money) -> Draft {
        Draft { client: self.clone(), payer: payer.clone(), payee: payee.clone(), money }
    }

    /// A transfer: paid at once.
    pub fn transfer(&self, payer: &AccountId, payee: &AccountId, money: Money) -> NewTransfer {
        NewTransfer {
            client: self.clone(),
            name: Name::Id(new_id()),
            payer: payer.clone(),
            payee: payee.clone(),
            money,
            labels: HashMap::new(),
        }
    }

    /// A hold as it stands.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn get(&self, id: TransactionId) -> Result<Hold, Error> {
        let message = v1::GetHoldRequest { id: id.to_string() };
        let call = |shared: &Shared, request| {
            let mut holds = shared.holds();
            async move { holds.get_hold(request).await }
        };
        let read = |response: v1::GetHoldResponse| Ok(Answer::Is(convert::hold(response.hold)?));
        self.ask("reading a hold", Repeat::Safe, message, call, read).await
    }

    /// Cancels a hold that is not due yet. Answers when it will never be paid.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Reason::HoldNotCancellable`](crate::Reason::HoldNotCancellable): it is due, being paid,
    /// or paid.
    pub async fn cancel(&self, id: TransactionId) -> Result<Hold, Error> {
        self.cancel_if(id, String::new(), Repeat::Safe).await
    }

    /// As [`Client::cancel`], if it still stands as it was seen.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Reason::EtagMismatch`](crate::Reason::EtagMismatch): it does not. An attempt without an
    /// answer is [`Error::Unknown`] at once: read the hold then.
    pub async fn cancel_unchanged(&self, seen: &Hold) -> Result<Hold, Error> {
        self.cancel_if(seen.id, seen.etag.clone(), Repeat::IfNotDone).await
    }

    async fn cancel_if(&self, id: TransactionId, etag: String, repeat: Repeat) -> Result<Hold, Error> {
        let message = v1::CancelHoldRequest { id: id.to_string(), etag };
        let call = |shared: &Shared, request| {
            let mut holds = shared.holds();
            async move { holds.cancel_hold(request).await }
        };
        let read = |response: v1::CancelHoldResponse| until(Phase::Cancelled, response.hold);
        self.ask("cancelling a hold", repeat, message, call, read).await
    }

    /// Pays a hold before its time. Answers when it is paid.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Reason::HoldNotConfirmable`](crate::Reason::HoldNotConfirmable): it is cancelled, or
    /// about to be.
    pub async fn confirm(&self, id: TransactionId) -> Result<Hold, Error> {
        self.confirm_if(id, String::new(), Repeat::Safe).await
    }

    /// As [`Client::confirm`], if it still stands as it was seen.
    ///
    /// # Errors
    ///
    /// As [`Client::cancel_unchanged`].
    pub async fn confirm_unchanged(&self, seen: &Hold) -> Result<Hold, Error> {
        self.confirm_if(seen.id, seen.etag.clone(), Repeat::IfNotDone).await
    }

    async fn confirm_if(&self, id: TransactionId, etag: String, repeat: Repeat) -> Result<Hold, Error> {
        let message = v1::ConfirmHoldRequest { id: id.to_string(), etag };
        let call = |shared: &Shared, request| {
            let mut holds = shared.holds();
            async move { holds.confirm_hold(request).await }
        };
        let read = |response: v1::ConfirmHoldResponse| until(Phase::Confirmed, response.hold);
        self.ask("confirming a hold", repeat, message, call, read).await
    }

    /// Each change of a hold, until it is final.
    #[must_use]
    pub fn watch(&self, id: TransactionId) -> Watch {
        Watch::new(self.clone(), id)
    }

    /// The holds of a payer, the newest first.
    pub fn holds_of_payer(&self, payer: &AccountId) -> List {
        List::new(self.clone(), Party::Payer(payer.clone()))
    }

    /// The holds that pay somebody, the newest first.
    pub fn holds_of_payee(&self, payee: &AccountId) -> List {
        List::new(self.clone(), Party::Payee(payee.clone()))
    }
}

/// Whose holds are listed.
#[derive(Debug, Clone)]
pub enum Party {
    /// Whoever pays.
    Payer(AccountId),
    /// Whoever is paid.
    Payee(AccountId),
}

impl Listed for Hold {
    type Of = Party;

    async fn page(client: &Client, of: &Party, which: &Which) -> Result<(Vec<Self>, String), Error> {
        let Which { phases, labels, created_from, created_until, page_size, page_token } = which.clone();
        let (payer, payee) = match of {
            Party::Payer(payer) => (payer.to_string(), String::new()),
            Party::Payee(payee) => (String::new(), payee.to_string()),
        };
        let message = v1::ListHoldsRequest {
            payer,
            payee,
            phases,
            labels,
            created_from,
            created_until,
            page_size,
            page_token,
        };
        let call = |shared: &Shared, request| {
            let mut holds = shared.holds();
            async move { holds.list_holds(request).await }
        };
        let read = |response: v1::ListHoldsResponse| {
            let holds = response.holds.into_iter().map(|hold| convert::hold(Some(hold)));
            Ok(Answer::Is((holds.collect::<Result<_, _>>()?, response.next_page_token)))
        };
        client.ask("listing holds", Repeat::Safe, message, call, read).await
    }
}

impl Watched for Hold {
    type Told = v1::WatchHoldResponse;
    const WATCHING: &'static str = "watching a hold";

    async fn watch(client: &Client, id: TransactionId, etag: &str) -> Result<Streaming<Self::Told>, Status> {
        let message = v1::WatchHoldRequest { id: id.to_string(), etag: etag.to_owned() };
        Ok(client.shared.holds().watch_hold(client.shared.request(message)).await?.into_inner())
    }

    fn read(told: Self::Told) -> Result<Self, String> {
        convert::hold(told.hold)
    }

    async fn get(client: &Client, id: TransactionId) -> Result<Self, Error> {
        client.get(id).await
    }

    fn etag(&self) -> &str {
        &self.etag
    }

    fn is_final(&self) -> bool {
        self.is_final()
    }
}

/// The hold in the answer to a creation, if it is held.
pub(crate) fn created(answer: v1::CreateHoldResponse) -> Result<Answer<Created>, String> {
    let v1::CreateHoldResponse { hold, replayed } = answer;
    let hold = convert::hold(hold)?;
    // The deadline of the attempt may have ended first.
    Ok(if hold.phase == Phase::Trying { not_yet(&hold) } else { Answer::Is(Created { hold, replayed }) })
}

/// The hold in an answer, if it is in the phase that was asked for.
fn until(phase: Phase, hold: Option<v1::Hold>) -> Result<Answer<Hold>, String> {
    let hold = convert::hold(hold)?;
    Ok(if hold.phase == phase { Answer::Is(hold) } else { not_yet(&hold) })
}

fn not_yet<T>(hold: &Hold) -> Answer<T> {
    Answer::NotYet(format!("it is {}", hold.phase))
}
