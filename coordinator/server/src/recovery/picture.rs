//! One transaction as everybody who knows of it reports it at this moment.
//!
//! The participants' fences are the truth about money. A participant that does not answer is shown as silent, and what it
//! would have said is not guessed.

use super::Recovery;
use crate::store::{
    Record, StoreError,
    attention::Needing,
    operate::{ActionRow, Evidence},
};
use futures::future::join_all;
use tcc_core::{Branch, FenceState, Role, Timestamp, TransactionId};
use tcc_ledger::{FenceRow, PostingKind, PostingRow};

/// How many actions of operators a timeline shows at most.
const ACTIONS: i64 = 100;

/// A transaction, as everybody reports it.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The coordinator's row.
    pub record: Record,
    /// Its branches, in order.
    pub branches: Vec<Reported>,
    /// Why it needs attention, if it does.
    pub needing: Option<Needing>,
    /// What operators did to it.
    pub actions: Vec<ActionRow>,
    /// The participants that it needs and that cannot be reached.
    pub waiting_on: Vec<String>,
    /// The coordinator database's clock.
    pub now: Timestamp,
}

/// A branch, as its participant reports it.
#[derive(Debug, Clone)]
pub struct Reported {
    /// What it is.
    pub branch: Branch,
    /// Who does it.
    pub participant: String,
    /// Its fence decides the transaction.
    pub is_pivot: bool,
    /// What the participant says.
    pub says: Says,
    /// Its postings, as far as they could be read.
    pub postings: Vec<PostingRow>,
}

/// What a participant says about a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Says {
    /// There is a fence.
    Fence(FenceRow),
    /// There is none.
    Absent,
    /// It did not answer, and this is why.
    Nothing(String),
    /// It is no shard: it answers operations, and nothing else.
    Untold,
}

impl Says {
    /// The fence's state, if there is a fence, as far as is known.
    #[must_use]
    pub fn state(&self) -> Option<FenceState> {
        match self {
            Self::Fence(fence) => Some(fence.state),
            Self::Absent | Self::Nothing(_) | Self::Untold => None,
        }
    }
}

/// Units that are at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// How many.
    pub amount: i64,
    /// Of what.
    pub currency: String,
    /// Where, for people.
    pub place: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// By the clock of whoever says so.
    pub at: Timestamp,
    /// Who says so.
    pub source: String,
    /// What it was.
    pub what: String,
}

impl Recovery {
    /// Asks everybody about a transaction. `None` if the coordinator does not know it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. A shard that does not answer is part of the picture.
    pub async fn picture(&self, id: TransactionId) -> Result<Option<Picture>, StoreError> {
        let store = self.engine.store();
        let Some(record) = store.get(id).await? else { return Ok(None) };
        let needing = store.attention_of(id).await?;
        let actions = store.actions(0, &id.to_string(), None, ACTIONS).await?;
        let descriptor = &record.transaction.descriptor;
        let indexes = 0..descriptor.branches.len() as u16;
        let branches = join_all(indexes.map(|index| self.reported(&record, index))).await;
        let waiting_on = self.waiting_on(&record);
        let now = self.engine.clock().now();
        Ok(Some(Picture { record, branches, needing, actions, waiting_on, now }))
    }

    /// The participants that a transaction needs and that cannot be reached at this moment.
    #[must_use]
    pub fn waiting_on(&self, record: &Record) -> Vec<String> {
        let parts = self.engine.participants().parts(&record.transaction);
        let mut names: Vec<String> = parts
            .iter()
            .filter(|part| !part.participant.is_reachable())
            .map(|part| part.participant.name().to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    async fn reported(&self, record: &Record, index: u16) -> Reported {
        let transaction = &record.transaction;
        let branch = transaction.branch(index).clone();
        let is_pivot = index == transaction.descriptor.pivot;
        let leg = match &branch {
            Branch::Ledger(leg) => leg,
            Branch::Other(request) => {
                let participant = request.participant.to_string();
                return Reported { branch, participant, is_pivot, says: Says::Untold, postings: Vec::new() };
            }
        };
        let shard = self.shards.of(&leg.account);
        let id = transaction.id.uuid();
        let says = match shard.fences(id).await {
            Err(error) => Says::Nothing(error.to_string()),
            Ok(fences) => {
                fences.into_iter().find(|fence| fence.branch == index).map_or(Says::Absent, Says::Fence)
            }
        };
        let postings = match &says {
            Says::Fence(fence) => {
                let times = [fence.fenced_at, fence.decided_at.unwrap_or(fence.fenced_at)];
                // Nice to have: the fence says what it comes to.
                shard.postings_near(&leg.account, id, times).await.unwrap_or_default()
            }
            Says::Absent | Says::Nothing(_) | Says::Untold => Vec::new(),
        };
        Reported { branch, participant: shard.name().to_owned(), is_pivot, says, postings }
    }
}

impl Picture {
    /// Where each unit is, by what the participants say.
    #[must_use]
    pub fn money(&self) -> Vec<Place> {
        self.branches.iter().filter_map(Reported::place).collect()
    }

    /// What happened, the earliest first.
    #[must_use]
    pub fn timeline(&self) -> Vec<Happened> {
        let mut events = Vec::new();
        let standing = &self.record.standing;
        let descriptor = &self.record.transaction.descriptor;
        let mut told = |at: Option<Timestamp>, source: &str, what: String| {
            events.extend(at.map(|at| Happened { at, source: source.to_owned(), what }));
        };
        let coordinator = "coordinator";
        told(Some(standing.created_at), coordinator, "accepted".into());
        told(standing.held_at, coordinator, "every branch was tried: held".into());
        let due = Some(self.record.due_at()).filter(|due_at| *due_at <= self.now);
        told(due, coordinator, format!("due, to {:?}", descriptor.on_maturity).to_lowercase());
        let why = standing.cause.map_or(String::new(), |cause| format!(": {cause:?}").to_lowercase());
        let decided_at = standing.decided_at.filter(|at| Some(*at) != standing.settled_at);
        told(decided_at, coordinator, format!("decided{why}"));
        let reason = standing.reason.as_deref().map_or(String::new(), |reason| format!(", {reason}"));
        let end = standing.phase.to_string().to_lowercase();
        told(standing.settled_at, coordinator, format!("{end}{why}{reason}"));
        for reported in &self.branches {
            let Some(leg) = reported.branch.leg() else { continue };
            let (source, account) = (reported.participant.as_str(), &leg.account);
            for posting in &reported.postings {
                let what = format!(
                    "{} {} {} of {account}: {} available, {} held after it",
                    posting_name(posting.kind),
                    posting.amount,
                    leg.currency,
                    posting.available_after,
                    posting.held_after,
                );
                told(Some(posting.recorded_at), source, what);
            }
            if let Says::Fence(fence) = &reported.says {
                let role = role_name(leg.role);
                // What was written as something else than tried was never tried.
                let tried = Some(fence.fenced_at).filter(|at| Some(*at) != fence.decided_at);
                told(tried, source, format!("{role} of {account} tried"));
                told(fence.decided_at, source, format!("{role} of {account} {}", state_name(fence.state)));
            }
        }
        if let Some(needing) = &self.needing {
            told(Some(needing.since), coordinator, format!("needs attention: {}", needing.last_error));
        }
        for ActionRow { acted_at, action, evidence, before, after, .. } in &self.actions {
            let Evidence { actor, reason, ticket, .. } = evidence;
            let ticket = if ticket.is_empty() { String::new() } else { format!(" ({ticket})") };
            told(Some(*acted_at), actor, format!("{action}: {before} -> {after}: {reason}{ticket}"));
        }
        events.sort_by_key(|event| event.at);
        events
    }

    /// Whether somebody who takes part is a shard.
    #[must_use]
    pub fn is_shard(&self, name: &str) -> bool {
        let is_other = |reported: &Reported| reported.branch.leg().is_none() && reported.participant == name;
        !self.branches.iter().any(is_other)
    }

    /// The branch whose fence decides.
    #[must_use]
    pub fn pivot(&self) -> Option<&Reported> {
        self.branches.iter().find(|reported| reported.is_pivot)
    }
}

impl Reported {
    /// What its part is about, for people: an account, or what is asked of whom.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.branch {
            Branch::Ledger(leg) => leg.account.to_string(),
            Branch::Other(request) if request.operation.is_empty() => request.participant.to_string(),
            Branch::Other(request) => format!("{} at {}", request.operation, request.participant),
        }
    }

    /// Where its units are, if it has any.
    fn place(&self) -> Option<Place> {
        use FenceState::{Cancelled, Confirmed, Confirming, Refused, Stopped, Tried, Vetoed};
        let Self { branch, participant, says, .. } = self;
        let leg = branch.leg()?;
        let (account, amount) = (&leg.account, leg.amount.get());
        let place = match (leg.role, says) {
            (_, Says::Untold) => format!("not known: {participant} is no shard"),
            (_, Says::Nothing(_)) => {
                format!("not known: {participant}, which keeps {account}, does not answer")
            }
            (_, Says::Absent) => format!("{account} on {participant} was not asked, or has not answered"),
            (Role::Debit | Role::Burn, Says::Fence(fence)) => match fence.state {
                Tried => format!("frozen in escrow of {account} on {participant}"),
                Confirmed => format!("taken from {account} on {participant}"),
                Confirming => {
                    format!("being taken from {account} by {participant}; whether they were is not known")
                }
                Cancelled | Vetoed(_) => format!("released to {account} on {participant}"),
                Refused(_) | Stopped => format!("never frozen: available to {account} on {participant}"),
            },
            (Role::Credit | Role::Issue, Says::Fence(fence)) => match fence.state {
                Tried => format!("promised to {account} on {participant}, not paid"),
                Confirmed => format!("paid to {account} on {participant}"),
                Confirming => {
                    format!("being paid to {account} by {participant}; whether they were is not known")
                }
                Cancelled | Vetoed(_) | Refused(_) | Stopped => {
                    format!("will not be paid to {account} on {participant}")
                }
            },
        };
        Some(Place { amount, currency: leg.currency.to_string(), place })
    }
}

/// A fence's state, as the tables name it.
#[must_use]
pub fn state_name(state: FenceState) -> &'static str {
    let index = usize::try_from(state.number() - 1).unwrap_or(usize::MAX);
    FenceState::CODES.get(index).copied().unwrap_or("unknown")
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Debit => "debit",
        Role::Credit => "credit",
        Role::Issue => "issue",
        Role::Burn => "burn",
    }
}

fn posting_name(kind: PostingKind) -> &'static str {
    match kind {
        PostingKind::Issue => "issue",
        PostingKind::Burn => "burn",
        PostingKind::Hold => "hold",
        PostingKind::Release => "release",
        PostingKind::Settle => "settle",
        PostingKind::Pay => "pay",
    }
}
