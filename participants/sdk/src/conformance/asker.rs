//! Asks one participant: a whole schedule, until it is known whether it was answered rightly.

use super::{
    Finding, Mistake, Subject, Unusable,
    oracle::{Oracle, name},
    schedule::{Ask, Body, Meeting, Move, SLOTS, Schedule},
};
use crate::{
    remote::{endpoint_anywhere, hung_up, trouble},
    wire::{Description, PROTOCOL_VERSION, read_description, read_outcome, write_call},
};
use futures::future::join_all;
use prost::Message as _;
use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tcc_core::{FenceState, Operation, Outcome, Refusal, TransactionId};
use tcc_proto::v1::{self, BranchCall, OutcomeKind, participant_service_client::ParticipantServiceClient};
use tonic::{Request, Status, transport::Channel};
use uuid::Uuid;

type Client = ParticipantServiceClient<Channel>;

/// So many connections are called on, so that what is meant to meet is not put in line on one.
const CONNECTIONS: usize = 4;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often an operation without an answer is repeated, and how long that is waited for.
const REPEATS: (u32, Duration) = (100, Duration::from_millis(50));
/// Of what there is more of than this it is not counted how much.
const COUNTED: i64 = 12;
/// How often it is tried to leave something out of a schedule.
const SHORTENINGS: u32 = 200;
/// What is by chance is given so many chances.
const CHANCES: u32 = 5;
/// So many fences are asked again by [`Kit::recall`].
const REMEMBERED: usize = 300;

/// Why a schedule did not come to its end.
pub(super) enum Stop {
    Wrong(Wrong),
    Inconclusive,
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

/// Something that is wrong.
pub(super) struct Wrong {
    sort: Sort,
    what: String,
}

enum Sort {
    Known(Mistake),
    /// What is left is not what it should be: the schedule says why.
    Effect,
}

impl Wrong {
    pub(super) fn new(mistake: Mistake, what: String) -> Self {
        Self { sort: Sort::Known(mistake), what }
    }

    pub(super) fn mistake(&self, schedule: &Schedule) -> Mistake {
        match self.sort {
            Sort::Known(mistake) => mistake,
            Sort::Effect if schedule.meets() => Mistake::FenceOutside,
            Sort::Effect if schedule.repeats() => Mistake::EffectRepeated,
            Sort::Effect => Mistake::WrongEffect,
        }
    }

    /// Whether another schedule that goes wrong like this shows the same mistake.
    fn is_shown_by(&self, other: &Self) -> bool {
        match (&self.sort, &other.sort) {
            // Whether operations must meet for it to go wrong is what is to be found out.
            (Sort::Known(Mistake::FenceOutside), _) | (Sort::Effect, Sort::Effect) => true,
            (Sort::Known(mistake), Sort::Known(other)) => mistake == other,
            _ => false,
        }
    }

    /// As the schedule that is left names it.
    pub(super) fn named(self, schedule: &Schedule) -> Self {
        Self { sort: Sort::Known(self.mistake(schedule)), ..self }
    }

    pub(super) fn finding(self, schedule: String, seed: Option<u64>) -> Finding {
        let mistake = match self.sort {
            Sort::Known(mistake) => mistake,
            Sort::Effect => Mistake::WrongEffect,
        };
        Finding { mistake, what: self.what, schedule, seed, times: 1 }
    }
}

/// Asks one participant.
pub(super) struct Asker {
    subject: Subject,
    name: String,
    may_veto: bool,
    clients: Vec<Client>,
    next: AtomicU64,
    cells: Mutex<BTreeSet<String>>,
    remembered: Mutex<Vec<(BranchCall, FenceState)>>,
}

/// What the branches of one run are.
struct Run {
    number: u64,
    branch: v1::TransactionBranch,
    transactions: [TransactionId; 2],
    /// Of the first transaction.
    pivot: usize,
}

impl Asker {
    /// Connects, and asks what the participant is.
    pub(super) async fn connect(subject: Subject) -> Result<(Self, Description), Unusable> {
        let address = subject.address.clone();
        let endpoint = endpoint_anywhere(&address, subject.ca.as_deref(), subject.identity.as_ref())?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true);
        let silent = |why| Unusable::Silent { address: address.clone(), why };
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let channel = endpoint.connect().await.map_err(|error| silent(trouble(&error)))?;
            clients.push(Client::new(channel));
        }
        let request = timed(v1::DescribeRequest { protocol_version: PROTOCOL_VERSION });
        let response = clients[0].describe(request).await.map_err(|status| {
            silent(hung_up(&status, address.starts_with("https:")).unwrap_or_else(|| status.to_string()))
        })?;
        let description = read_description(response.into_inner());
        if description.protocol_version != PROTOCOL_VERSION {
            return Err(Unusable::Version(description.protocol_version));
        }
        let asker = Self {
            next: AtomicU64::new(subject.first),
            subject,
            name: description.name.clone(),
            may_veto: description.may_veto,
            clients,
            cells: Mutex::default(),
            remembered: Mutex::default(),
        };
        Ok((asker, description))
    }

    /// What it was asked to ask for.
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The cells of the fence table that were asked for.
    pub(super) fn cells(&self) -> BTreeSet<String> {
        self.cells.lock().expect("no holder panics").clone()
    }

    /// Fences that were answered, as a Try that asks for them again, and what they must still be.
    pub(super) fn remembered(&self) -> Vec<(BranchCall, FenceState)> {
        self.remembered.lock().expect("no holder panics").clone()
    }

    /// What is asked once: whether it minds its own business.
    pub(super) async fn manners(&self) -> Result<(), Wrong> {
        let other = format!("{}-other", self.name);
        let mut call = self.call(&self.new_run(&Schedule::nothing()), Ask::first_try());
        let elsewhere = v1::CallRequest { participant: other.clone(), calls: vec![call.clone()] };
        let is_answered = self.clients[0].clone().call(timed(elsewhere)).await.is_ok();
        call.set_operation(v1::BranchOperation::Cancel);
        // A tombstone: nothing is left of it, whatever was done.
        let _ = self.send(0, vec![call]).await;
        if is_answered {
            let what = format!("a Try for participant {other:?} is answered");
            return Err(Wrong::new(Mistake::AnswersForOthers, what));
        }
        let shapeless = BranchCall::default();
        match self.send(0, vec![shapeless]).await {
            Ok(outcomes) if outcomes.first().is_some_and(|one| one.kind() != OutcomeKind::Failed) => {
                let kind = outcomes[0].kind().as_str_name();
                let what = format!("{kind} to a call that names no operation; FAILED or an error is right");
                Err(Wrong::new(Mistake::WrongAnswer, what))
            }
            _ => Ok(()),
        }
    }

    /// Runs a schedule. Whether it was seen what was left.
    pub(super) async fn run(&self, schedule: &Schedule) -> Result<bool, Stop> {
        let run = self.new_run(schedule);
        let ended = self.run_to_the_end(&run, schedule).await;
        if ended.is_err() {
            // What it has reserved must not be missing to others.
            let clean_up = schedule.clean_up();
            let calls = clean_up.iter().flat_map(|one| &one.asks).map(|ask| self.call(&run, *ask));
            let _ = self.send(0, calls.collect()).await;
        }
        ended
    }

    async fn run_to_the_end(&self, run: &Run, schedule: &Schedule) -> Result<bool, Stop> {
        let before = self.left(&run.branch).await?;
        let mut oracle = Oracle::new(before, self.may_veto, self.subject.is_outside, schedule.pivot);
        let clean_up = schedule.clean_up();
        for one in schedule.moves.iter().chain(&clean_up) {
            let answers = self.ask(run, one).await?;
            let cell = match one.asks.as_slice() {
                [ask] => cell(&oracle, *ask),
                _ => None,
            };
            if !oracle.take(&answers) {
                return Err(wrong_answer(&oracle, &answers).into());
            }
            self.cells.lock().expect("no holder panics").extend(cell);
        }
        if let Some(before) = before {
            let (after, expected) = (self.left(&run.branch).await?, oracle.free());
            if !after.is_some_and(|after| expected.contains(&after)) {
                let after = after.map_or_else(|| format!("more than {COUNTED}"), |after| after.to_string());
                let expected: Vec<String> = expected.iter().map(i64::to_string).collect();
                let what = format!(
                    "of {before} that were there, {after} are left in the end, where {} is right",
                    expected.join(" or ")
                );
                return Err(Wrong { sort: Sort::Effect, what }.into());
            }
        }
        self.remember(run, schedule, &oracle);
        Ok(before.is_some_and(|before| before > 0))
    }

    fn new_run(&self, schedule: &Schedule) -> Run {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let vetoed = self.subject.vetoed.as_ref().filter(|_| schedule.is_vetoed);
        let branch = vetoed.unwrap_or(&self.subject.part).branch(&self.name, number);
        Run { number, branch, transactions: [new_id(), new_id()], pivot: schedule.pivot }
    }

    /// How many can still be reserved, by reserving and cancelling them. `None`: more than are counted.
    async fn left(&self, branch: &v1::TransactionBranch) -> Result<Option<i64>, Stop> {
        let mut probes: Vec<BranchCall> = Vec::new();
        let (mut reserved, mut is_refused) = (0, false);
        while !is_refused && reserved <= COUNTED {
            let some: Vec<BranchCall> = (0..3)
                .map(|_| write_call(Operation::Try, new_id(), 0, &descriptor(1, 0, branch, Body::First)))
                .collect();
            let answers = join_all(some.iter().map(|call| self.answer(0, call.clone()))).await;
            probes.extend(some);
            for answer in answers {
                match answer?.0 {
                    Outcome::Done => reserved += 1,
                    Outcome::Refused(_) => is_refused = true,
                    other => {
                        let what = format!("{} to a first Try; DONE or REFUSED is right", name(&other));
                        return Err(Wrong::new(Mistake::WrongAnswer, what).into());
                    }
                }
            }
        }
        let cancel = v1::BranchOperation::Cancel.into();
        let cancels = probes.into_iter().map(|probe| BranchCall { operation: cancel, ..probe });
        for answer in join_all(cancels.map(|call| self.answer(0, call))).await {
            let outcome = answer?.0;
            if outcome != Outcome::Done {
                let what = format!("{} to a Cancel of what is not confirmed; DONE is right", name(&outcome));
                return Err(Wrong::new(Mistake::WrongAnswer, what).into());
            }
        }
        Ok(is_refused.then_some(reserved))
    }

    /// Asks what is to be asked at the same time.
    async fn ask(&self, run: &Run, one: &Move) -> Result<Vec<(Ask, Outcome)>, Stop> {
        let calls: Vec<BranchCall> = one.asks.iter().map(|ask| self.call(run, *ask)).collect();
        let answers = if one.asks.len() > 1 && one.meeting == Meeting::InOneRequest {
            self.answers_together(calls).await?
        } else {
            let first = run.number as usize;
            let asked = calls.into_iter().enumerate().map(|(nth, call)| self.answer(first + nth, call));
            join_all(asked).await.into_iter().collect::<Result<_, _>>()?
        };
        // What happened without an answer may have happened twice, and between the others.
        if answers.len() > 1 && answers.iter().any(|(_, was_in_doubt)| *was_in_doubt) {
            return Err(Stop::Inconclusive);
        }
        Ok(one.asks.iter().copied().zip(answers.into_iter().map(|(outcome, _)| outcome)).collect())
    }

    async fn answers_together(&self, calls: Vec<BranchCall>) -> Result<Vec<(Outcome, bool)>, Stop> {
        let Ok(outcomes) = self.send(0, calls.clone()).await else { return Err(Stop::Inconclusive) };
        if outcomes.len() != calls.len() {
            let what = format!("{} outcomes for {} calls", outcomes.len(), calls.len());
            return Err(Wrong::new(Mistake::WrongAnswer, what).into());
        }
        let mut answers = Vec::new();
        for (call, outcome) in calls.into_iter().zip(outcomes) {
            answers.push(match checked(outcome)? {
                Outcome::Unknown(_) => return Err(Stop::Inconclusive),
                // It did not happen then, so it happens now.
                Outcome::Failed(_) => self.answer(0, call).await?,
                outcome => (outcome, false),
            });
        }
        Ok(answers)
    }

    /// One operation, again and again until it has an answer; and whether it was in doubt meanwhile.
    pub(super) async fn answer(&self, connection: usize, call: BranchCall) -> Result<(Outcome, bool), Stop> {
        let (mut why, mut was_in_doubt) = (String::new(), false);
        for _ in 0..REPEATS.0 {
            match self.send(connection, vec![call.clone()]).await {
                Ok(mut outcomes) if outcomes.len() == 1 => match checked(outcomes.remove(0))? {
                    Outcome::Unknown(text) => (why, was_in_doubt) = (text, true),
                    Outcome::Failed(text) => why = text,
                    outcome => return Ok((outcome, was_in_doubt)),
                },
                Ok(outcomes) => {
                    let what = format!("{} outcomes for one call", outcomes.len());
                    return Err(Wrong::new(Mistake::WrongAnswer, what).into());
                }
                Err(status) => (why, was_in_doubt) = (status.to_string(), true),
            }
            tokio::time::sleep(REPEATS.1).await;
        }
        let what = format!("{:?} has no answer after {} repeats: {why}", call.operation(), REPEATS.0);
        Err(Wrong::new(Mistake::NoAnswer, what).into())
    }

    async fn send(
        &self,
        connection: usize,
        calls: Vec<BranchCall>,
    ) -> Result<Vec<v1::BranchOutcome>, Status> {
        let mut client = self.clients[connection % self.clients.len()].clone();
        let request = timed(v1::CallRequest { participant: self.name.clone(), calls });
        Ok(client.call(request).await?.into_inner().outcomes)
    }

    fn call(&self, run: &Run, ask: Ask) -> BranchCall {
        let (transaction, branch) = SLOTS[ask.slot];
        let (id, branches, pivot) = match transaction {
            "A" => (run.transactions[0], 2, run.pivot),
            _ => (run.transactions[1], 1, 0),
        };
        write_call(ask.operation, id, branch, &descriptor(branches, pivot, &run.branch, ask.body))
    }

    /// Leaves asks out for as long as it still shows the mistake.
    pub(super) async fn shortest(&self, schedule: Schedule, wrong: Wrong) -> (Schedule, Wrong) {
        let (mut shortest, mut wrong, mut left) = (schedule, wrong, SHORTENINGS);
        'shorter: loop {
            for shorter in shortest.shorter() {
                let chances = if shorter.meets() { CHANCES } else { 1 };
                for _ in 0..chances {
                    if left == 0 {
                        break 'shorter;
                    }
                    left -= 1;
                    if let Err(Stop::Wrong(still)) = self.run(&shorter).await
                        && wrong.is_shown_by(&still)
                    {
                        (shortest, wrong) = (shorter, still);
                        continue 'shorter;
                    }
                }
            }
            break;
        }
        (shortest, wrong)
    }

    fn remember(&self, run: &Run, schedule: &Schedule, oracle: &Oracle) {
        let mut remembered = self.remembered.lock().expect("no holder panics");
        for slot in 0..SLOTS.len() {
            let is_asked = schedule.moves.iter().flat_map(|one| &one.asks).any(|ask| ask.slot == slot);
            if let Some(Some((body, state))) = oracle.fence(slot)
                && is_asked
                && remembered.len() < REMEMBERED
            {
                remembered.push((self.call(run, Ask { slot, operation: Operation::Try, body }), state));
            }
        }
    }
}

/// A transaction of so many branches that are all the same.
fn descriptor(branches: usize, pivot: usize, branch: &v1::TransactionBranch, body: Body) -> Vec<u8> {
    let descriptor = v1::TransactionDescriptor {
        branches: vec![branch.clone(); branches],
        pivot: pivot as u32,
        due_at_us: match body {
            Body::First => DUE_AT_US,
            Body::Second => DUE_AT_US + 1,
        },
        on_maturity: v1::OnMaturity::Confirm.into(),
        caller: None,
    };
    descriptor.encode_to_vec()
}

/// When the kit's transactions are due: nothing comes of it.
const DUE_AT_US: i64 = 4_000_000_000_000_000;

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn new_id() -> TransactionId {
    TransactionId::from_uuid(Uuid::now_v7()).expect("it is of version 7")
}

/// An outcome whose reason, if it has one, has the form of a reason.
fn checked(outcome: v1::BranchOutcome) -> Result<Outcome, Wrong> {
    let says_no = matches!(outcome.kind(), OutcomeKind::Refused | OutcomeKind::Vetoed);
    if says_no && Refusal::from_code(&outcome.reason).is_err() {
        let what = format!("{} with the reason {:?}", outcome.kind().as_str_name(), outcome.reason);
        return Err(Wrong::new(Mistake::BadReason, what));
    }
    Ok(read_outcome(outcome))
}

/// The cell of the fence table that an ask is about to enter, if the fence's state is certain.
fn cell(oracle: &Oracle, ask: Ask) -> Option<String> {
    let state = match oracle.fence(ask.slot)? {
        Some((body, _)) if body != ask.body => return None,
        Some((_, state)) => FenceState::CODES[usize::try_from(state.number()).ok()? - 1],
        None => "absent",
    };
    Some(format!("{state} {:?}", ask.operation))
}

/// What is wrong about answers that fit nothing that can have happened.
fn wrong_answer(oracle: &Oracle, answers: &[(Ask, Outcome)]) -> Wrong {
    let [(ask, outcome)] = answers else {
        let told: Vec<String> =
            answers.iter().map(|(ask, outcome)| format!("{} to {ask}", name(outcome))).collect();
        let what = format!("{}: right in no order", told.join(", "));
        return Wrong::new(Mistake::FenceOutside, what);
    };
    let what = format!("{} to {ask}, where {} is right", name(outcome), oracle.expected(*ask));
    let (body, state) = oracle.fence(ask.slot).flatten().unzip();
    let is_other = body.is_some_and(|body| body != ask.body);
    let mistake = match (state, ask.operation, outcome) {
        _ if is_other => Mistake::OtherBody,
        (Some(FenceState::Stopped), Operation::Confirm, Outcome::NotTried) => Mistake::NoTombstone,
        (
            Some(FenceState::Stopped | FenceState::Cancelled | FenceState::Vetoed(_)),
            Operation::Try,
            Outcome::Done,
        ) => Mistake::LateTry,
        (Some(FenceState::Refused(_)), Operation::Try, Outcome::Refused(_) | Outcome::Done) => {
            Mistake::ChangedRefusal
        }
        (Some(FenceState::Confirmed), Operation::Cancel, Outcome::Done) => Mistake::CancelledAfterConfirm,
        (
            Some(
                FenceState::Stopped | FenceState::Cancelled | FenceState::Refused(_) | FenceState::Vetoed(_),
            ),
            Operation::Confirm,
            Outcome::Done,
        ) => Mistake::ConfirmedAfterCancel,
        (_, Operation::Confirm | Operation::Cancel, Outcome::Refused(_) | Outcome::Vetoed(_)) => {
            Mistake::ForbiddenNo
        }
        _ => Mistake::WrongAnswer,
    };
    Wrong::new(mistake, what)
}
