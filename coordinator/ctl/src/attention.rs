//! `tccctl stuck`, `parked …` and what an operator does to single transactions.
//!
//! What is done to one transaction is done at once. What is done to several, or by force, becomes a plan first: see
//! `plans`. Every action needs a reason, which the server records; nothing here decides whether it is safe.

use crate::{
    complete,
    errors::{Exit, Failure},
    holds::Hold,
    output::{Int64, Output, Span, elapsed, fields, name, or_dash, rows, time},
    plans,
    session::Session,
    status::{self, Shard},
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use serde::Serialize;
use std::fmt;
use tcc_proto::v1::{self, Attention, OperatorActionKind, recovery_service_client::RecoveryServiceClient};
use uuid::Uuid;

/// Why something is done.
#[derive(Args, Clone)]
pub struct Why {
    /// Why: it is recorded
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// The number of a ticket: it is recorded
    #[arg(long, value_name = "TICKET", default_value = "")]
    pub ticket: String,
}

impl Why {
    /// The reason, without which nothing is done.
    pub fn reason(&self) -> Result<String, Box<Failure>> {
        let reason = self.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
        reason.map(str::to_owned).ok_or_else(|| Failure::usage("say why with --reason: it is recorded"))
    }
}

/// Which transactions.
#[derive(Args, Clone)]
pub struct Chosen {
    /// The transactions; one is acted on at once, several by plan
    #[arg(value_parser = crate::args::transaction_id, required_unless_present = "attention",
          add = ArgValueCompleter::new(complete::holds))]
    pub ids: Vec<Uuid>,
    /// All that need this attention, by plan
    #[arg(long, value_enum, conflicts_with = "ids")]
    pub attention: Vec<Kind>,
    /// Of these only those whose last error contains this text
    #[arg(long, value_name = "TEXT", default_value = "", requires = "attention")]
    pub error_contains: String,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub max: i32,
    #[command(flatten)]
    pub why: Why,
}

/// A kind of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Failed, and is tried again
    Retrying,
    /// The same for more than two minutes
    Stuck,
    /// Waits for a person
    Parked,
    /// An operator stopped it
    Paused,
}

impl Kind {
    /// As the API names it.
    pub fn number(self) -> i32 {
        match self {
            Self::Retrying => Attention::Retrying,
            Self::Stuck => Attention::Stuck,
            Self::Parked => Attention::Parked,
            Self::Paused => Attention::Paused,
        }
        .into()
    }
}

/// What to list.
#[derive(Args, Clone)]
pub struct Listing {
    /// Only those whose last error contains this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub error_contains: String,
    /// Also what was settled by hand and acknowledged
    #[arg(long)]
    pub acknowledged: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=1_000))]
    pub limit: i32,
    /// Exits with 3 if there are any
    #[arg(long)]
    pub exit_code: bool,
}

/// Lists what has not succeeded for long or waits for a person, and the shards on which no work is done.
pub async fn stuck(session: &Session, output: &Output, listing: Listing) -> Result<Exit, Box<Failure>> {
    let mut shards = status::shards(session).await?;
    shards.retain(|shard| shard.state() != "WORKING");
    found(session, output, &[Kind::Stuck, Kind::Parked], listing, shards).await
}

/// Lists what needs attention, those first that have needed it for longest.
pub async fn list(
    session: &Session,
    output: &Output,
    kinds: &[Kind],
    listing: Listing,
) -> Result<Exit, Box<Failure>> {
    found(session, output, kinds, listing, Vec::new()).await
}

async fn found(
    session: &Session,
    output: &Output,
    kinds: &[Kind],
    listing: Listing,
    shards: Vec<Shard>,
) -> Result<Exit, Box<Failure>> {
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let request = v1::ListAttentionRequest {
        attention: kinds.iter().map(|kind| kind.number()).collect(),
        error_contains: listing.error_contains,
        include_acknowledged: listing.acknowledged,
        page_size: listing.limit,
        page_token: String::new(),
    };
    let answer = client.list_attention(session.request(request)).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    let has_more = !answer.next_page_token.is_empty();
    let items = answer.items.into_iter().map(Item::try_from).collect::<Result<_, _>>()?;
    let found = Found { items, shards };
    for shard in &found.shards {
        let (name, state, waiting) = (&shard.name, shard.state(), shard.waiting);
        output.remark(&format!(
            "{name} is {state}; {waiting} due transactions wait for it. See: tccctl shards describe {name}"
        ));
    }
    if found.items.is_empty() && found.shards.is_empty() {
        output.remark("nothing needs attention");
    }
    if !found.items.is_empty() || !output.is_for_people() {
        output.show_list(&found, "items")?;
    }
    if has_more {
        output.remark(&format!("there are more than {}: see them with a higher --limit", listing.limit));
    }
    if let Some(first) = found.items.first() {
        output.remark(&format!("next: tccctl holds describe {}", first.hold.id));
    }
    let is_calm = found.items.is_empty() && found.shards.is_empty();
    Ok(if listing.exit_code && !is_calm { Exit::Findings } else { Exit::Done })
}

/// Does something to one transaction at once, or makes a plan of it for several.
pub async fn act(
    session: &Session,
    output: &Output,
    action: OperatorActionKind,
    chosen: Chosen,
) -> Result<Exit, Box<Failure>> {
    let (ids, is_forced) = (&chosen.ids, action == OperatorActionKind::ForceCancel);
    let [id] = ids.as_slice() else { return plans::create(session, output, action, &chosen).await };
    if is_forced {
        return plans::create(session, output, action, &chosen).await;
    }
    let (reason, ticket) = (chosen.why.reason()?, chosen.why.ticket);
    output.acting_on(session);
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let request = v1::ActRequest { id: id.to_string(), action: action.into(), reason, ticket };
    let answer = client.act(session.request(request)).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Hold::of_answer(answer.hold)?)?;
    Ok(Exit::Done)
}

/// Shows everything that is known of a hold.
pub async fn describe(session: &Session, output: &Output, id: Uuid) -> Result<Exit, Box<Failure>> {
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let answer = client.describe_hold(session.request(v1::DescribeHoldRequest { id: id.to_string() })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Description::try_from(answer)?)?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Found {
    items: Vec<Item>,
    /// On which no work is done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shards: Vec<Shard>,
}

#[derive(Debug, Serialize)]
struct Item {
    hold: Hold,
    since: Option<String>,
    #[serde(skip)]
    lasts: Option<Span>,
    attempts: i32,
    last_error: String,
    next_try: Option<String>,
    waiting_on: Vec<String>,
    acknowledged: bool,
}

impl TryFrom<v1::AttentionItem> for Item {
    type Error = Box<Failure>;

    fn try_from(item: v1::AttentionItem) -> Result<Self, Box<Failure>> {
        let now = prost_types::Timestamp::from(std::time::SystemTime::now());
        Ok(Self {
            hold: Hold::of_answer(item.hold)?,
            lasts: item.since.as_ref().and_then(|since| elapsed(&now, since)).map(Span::from),
            since: item.since.as_ref().map(time),
            attempts: item.attempts,
            last_error: item.last_error,
            next_try: item.next_try.as_ref().map(time),
            waiting_on: item.waiting_on,
            acknowledged: item.acknowledged,
        })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = |item: &Item| {
            [
                item.hold.id.clone(),
                item.hold.phase.clone(),
                item.hold.attention.clone(),
                or_dash(item.hold.amount.as_ref().map(ToString::to_string).as_deref()),
                or_dash(Some(&item.waiting_on.join(" "))),
                item.attempts.to_string(),
                or_dash(item.lasts.map(|lasts| lasts.to_string()).as_deref()),
                item.last_error.clone(),
            ]
        };
        if !f.alternate() {
            let header =
                ["HOLD", "PHASE", "ATTENTION", ">AMOUNT", "WAITING_ON", ">TRIES", ">FOR", "LAST_ERROR"];
            return f.write_str(&rows(header, self.items.iter().map(cells)));
        }
        let wide = |item: &Item| {
            let [id, phase, attention, amount, waiting_on, tries, lasts, error] = cells(item);
            let (payer, payee) = (item.hold.payer.clone(), item.hold.payee.clone());
            let due_at = or_dash(item.hold.due_at.as_deref());
            let next_try = or_dash(item.next_try.as_deref());
            [id, phase, attention, amount, payer, payee, due_at, waiting_on, tries, lasts, next_try, error]
        };
        let header = [
            "HOLD",
            "PHASE",
            "ATTENTION",
            ">AMOUNT",
            "PAYER",
            "PAYEE",
            "DUE_AT",
            "WAITING_ON",
            ">TRIES",
            ">FOR",
            "NEXT_TRY",
            "LAST_ERROR",
        ];
        f.write_str(&rows(header, self.items.iter().map(wide)))
    }
}

#[derive(Debug, Serialize)]
struct Description {
    hold: Hold,
    branches: Vec<Branch>,
    money: Vec<Place>,
    timeline: Vec<Event>,
    attention: Option<Item>,
    diagnosis: String,
    recovers_by_itself: bool,
    next_command: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    trace: String,
}

#[derive(Debug, Serialize)]
struct Branch {
    index: i32,
    role: String,
    account: String,
    amount: Option<crate::output::Amount>,
    participant: String,
    is_pivot: bool,
    state: String,
    reason: String,
    fenced_at: Option<String>,
    decided_at: Option<String>,
    error: String,
    operation: String,
}

#[derive(Debug, Serialize)]
struct Place {
    amount: Option<crate::output::Amount>,
    place: String,
}

#[derive(Debug, Serialize)]
struct Event {
    at: Option<String>,
    source: String,
    what: String,
}

impl TryFrom<v1::DescribeHoldResponse> for Description {
    type Error = Box<Failure>;

    fn try_from(answer: v1::DescribeHoldResponse) -> Result<Self, Box<Failure>> {
        let branch = |branch: v1::BranchReport| Branch {
            index: branch.index,
            role: branch.role,
            account: branch.account,
            amount: branch.amount.map(Into::into),
            participant: branch.participant,
            is_pivot: branch.is_pivot,
            state: branch.state,
            reason: branch.reason,
            fenced_at: branch.fenced_at.as_ref().map(time),
            decided_at: branch.decided_at.as_ref().map(time),
            error: branch.error,
            operation: branch.operation,
        };
        let place =
            |place: v1::MoneyPlace| Place { amount: place.amount.map(Into::into), place: place.place };
        let event = |event: v1::TimelineEvent| Event {
            at: event.at.as_ref().map(time),
            source: event.source,
            what: event.what,
        };
        Ok(Self {
            hold: Hold::of_answer(answer.hold)?,
            branches: answer.branches.into_iter().map(branch).collect(),
            money: answer.money.into_iter().map(place).collect(),
            timeline: answer.timeline.into_iter().map(event).collect(),
            attention: answer.attention.map(Item::try_from).transpose()?,
            diagnosis: answer.diagnosis,
            recovers_by_itself: answer.recovers_by_itself,
            next_command: answer.next_command,
            trace: answer.trace,
        })
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hold, branches, money, timeline, attention, .. } = self;
        let amount = or_dash(hold.amount.as_ref().map(ToString::to_string).as_deref());
        let why = [&hold.cause, &hold.reason].map(|why| or_dash(Some(why))).join(" ").replace('-', "");
        // Of a transaction that is no hold the branches say it.
        let pays = match (hold.payer.as_str(), hold.payee.as_str()) {
            ("", _) | (_, "") => "-".to_owned(),
            (payer, payee) => format!("{amount} from {payer} to {payee}"),
        };
        f.write_str(&fields([
            ("hold", hold.id.clone()),
            ("phase", format!("{} {}", hold.phase, why.trim()).trim().to_owned()),
            ("attention", hold.attention.clone()),
            ("pays", pays),
            ("due", format!("{}, then {}", or_dash(hold.due_at.as_deref()), hold.on_maturity)),
        ]))?;
        if let Some(item) = attention {
            let lasts = item.lasts.map_or(String::new(), |lasts| format!(" (for {lasts})"));
            let tries = Int64(item.attempts.into());
            write!(
                f,
                "\n\n{}",
                fields([
                    ("since", format!("{}{lasts}", or_dash(item.since.as_deref()))),
                    ("failures", tries.to_string()),
                    ("last_error", or_dash(Some(&item.last_error))),
                    ("next_try", or_dash(item.next_try.as_deref())),
                ])
            )?;
        }
        let places = money.iter().map(|place| {
            [or_dash(place.amount.as_ref().map(ToString::to_string).as_deref()), place.place.clone()]
        });
        write!(f, "\n\n{}", rows([">MONEY", "WHERE"], places))?;
        let lines = branches.iter().map(|branch| {
            [
                branch.role.clone(),
                or_dash(Some(&[branch.account.as_str(), branch.operation.as_str()].concat())),
                branch.participant.clone(),
                if branch.is_pivot { "yes".to_owned() } else { "-".to_owned() },
                or_dash(Some(&branch.state)).to_uppercase(),
                or_dash(Some(&[branch.reason.as_str(), branch.error.as_str()].concat())),
            ]
        });
        let header = ["BRANCH", "ACCOUNT", "PARTICIPANT", "DECIDES", "SAYS", "WHY"];
        write!(f, "\n\n{}", rows(header, lines))?;
        let events = timeline
            .iter()
            .map(|event| [or_dash(event.at.as_deref()), event.source.clone(), event.what.clone()]);
        write!(f, "\n\n{}", rows(["TIME", "SOURCE", "WHAT"], events))?;
        let who = if self.recovers_by_itself { "needs nobody" } else { "NEEDS YOU" };
        write!(f, "\n\n{who}: {}", self.diagnosis)?;
        if !self.next_command.is_empty() {
            write!(f, "\nnext: {}", self.next_command)?;
        }
        if !self.trace.is_empty() {
            write!(f, "\ntrace: {}", self.trace)?;
        }
        Ok(())
    }
}

/// An action's name.
pub fn action_name(action: i32) -> String {
    name(action, "OPERATOR_ACTION_KIND_", OperatorActionKind::as_str_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Timestamp;
    use v1::{OnMaturity, Phase};

    fn hold(phase: Phase, attention: Attention) -> v1::Hold {
        v1::Hold {
            id: "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".into(),
            phase: phase.into(),
            attention: attention.into(),
            payer: "alice".into(),
            payee: "bob".into(),
            amount: Some(v1::Amount { value: 500, currency: "GOLD".into() }),
            on_maturity: OnMaturity::Confirm.into(),
            due_at: Some(Timestamp { seconds: 1_790_000_000, nanos: 0 }),
            ..Default::default()
        }
    }

    fn described() -> Description {
        let at = |seconds: i64| Some(Timestamp { seconds: 1_790_000_000 + seconds, nanos: 0 });
        let branch = |index, role: &str, account: &str, state: &str, error: &str| v1::BranchReport {
            index,
            role: role.into(),
            account: account.into(),
            participant: format!("shard-{index}"),
            is_pivot: index == 1,
            state: state.into(),
            error: error.into(),
            ..Default::default()
        };
        let answer = v1::DescribeHoldResponse {
            hold: Some(hold(Phase::Held, Attention::Stuck)),
            branches: vec![
                branch(0, "DEBIT", "alice", "tried", ""),
                branch(1, "CREDIT", "bob", "", "it is not reachable"),
            ],
            money: vec![v1::MoneyPlace {
                amount: Some(v1::Amount { value: 500, currency: "GOLD".into() }),
                place: "frozen in escrow of alice on shard-0".into(),
            }],
            timeline: vec![v1::TimelineEvent {
                at: at(-60),
                source: "coordinator".into(),
                what: "accepted".into(),
            }],
            diagnosis: "shard-1 cannot be reached.".into(),
            recovers_by_itself: true,
            next_command: "tccctl shards describe shard-1".into(),
            ..Default::default()
        };
        Description::try_from(answer).unwrap()
    }

    #[test]
    fn a_description_says_where_the_money_is_who_says_what_and_who_is_needed() {
        let expected = "\
hold       019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d
phase      HELD
attention  STUCK
pays       500 GOLD from alice to bob
due        2026-09-21T14:13:20.000000Z, then CONFIRM

   MONEY  WHERE
500 GOLD  frozen in escrow of alice on shard-0

BRANCH  ACCOUNT  PARTICIPANT  DECIDES  SAYS   WHY
DEBIT   alice    shard-0      -        TRIED  -
CREDIT  bob      shard-1      yes      -      it is not reachable

TIME                         SOURCE       WHAT
2026-09-21T14:12:20.000000Z  coordinator  accepted

needs nobody: shard-1 cannot be reached.
next: tccctl shards describe shard-1";

        assert_eq!(described().to_string(), expected);
    }

    #[test]
    fn a_list_has_more_columns_when_it_is_wide() {
        let item = v1::AttentionItem {
            hold: Some(hold(Phase::Confirming, Attention::Parked)),
            attempts: 50,
            last_error: "a trigger\nraises".into(),
            ..Default::default()
        };
        let found = Found { items: vec![Item::try_from(item).unwrap()], shards: Vec::new() };

        let (table, wide) = (found.to_string(), format!("{found:#}"));

        assert!(table.starts_with("HOLD ") && table.ends_with("a trigger raises"), "{table}");
        assert!(!table.contains("alice") && wide.contains("alice  bob"), "{wide}");
    }
}
