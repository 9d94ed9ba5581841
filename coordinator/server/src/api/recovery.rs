//! `RecoveryService`: single transactions, for people on call.

use super::{
    convert::{self, page_size},
    evidence::{at_most, evidence},
    page,
    reason::{self, Violation, status, wrong},
    view,
};
use crate::{
    auth::identity,
    engine::EngineError,
    recovery::{
        Recovery,
        diagnosis::diagnose,
        picture::{Picture, Reported, Says, state_name},
        plan::{PlanError, Selection, Step},
    },
    serve::Vitals,
    store::{
        Acted, Action, Record,
        attention::{After, Filter, Needing},
        operate::{ActionRow, InstanceRow},
        plans::{Item, Plan},
    },
};
use futures::stream::BoxStream;
use std::sync::Arc;
use tcc_core::{Attention, Branch, Role, Timestamp, TransactionId};
use tcc_proto::{
    Reason,
    v1::{self, OperatorActionKind, execute_plan_response::Event, recovery_service_server::RecoveryService},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// How many rows a page has by default, and at most.
const PAGE: (usize, usize) = (100, 1_000);
/// How many plans are listed by default.
const PLANS: usize = 20;
/// How many transactions a plan has by default, and at most.
const PLAN: (usize, usize) = (500, 10_000);
/// How many of them are done in a second by default, and at most.
const PACE: (u32, u32) = (50, 1_000);
/// The longest text that errors are searched for.
const MAX_TEXT: usize = 200;

/// Serves people on call.
pub struct Recoveries {
    recovery: Recovery,
    vitals: Arc<Vitals>,
}

impl Recoveries {
    /// On everything there is.
    #[must_use]
    pub fn new(recovery: Recovery, vitals: Arc<Vitals>) -> Self {
        Self { recovery, vitals }
    }

    fn needing(&self, needing: &Needing) -> v1::AttentionItem {
        v1::AttentionItem {
            hold: Some(view::hold(&needing.record)),
            since: Some(view::time(needing.since)),
            attempts: needing.attempts,
            last_error: needing.last_error.clone(),
            next_try: needing.next_try.map(view::time),
            waiting_on: self.recovery.waiting_on(&needing.record),
            acknowledged: needing.is_acknowledged,
        }
    }
}

#[tonic::async_trait]
impl RecoveryService for Recoveries {
    async fn list_attention(
        &self,
        request: Request<v1::ListAttentionRequest>,
    ) -> Result<Response<v1::ListAttentionResponse>, Status> {
        let identity = identity(&request);
        let request = request.into_inner();
        let mut filter = filter(&request.attention, &request.error_contains)?;
        filter.with_acknowledged = request.include_acknowledged;
        if filter.kinds.is_empty() {
            filter.kinds = vec![Attention::Stuck, Attention::Parked];
        }
        let pages = Pages { caller: &identity.caller, filter: &filter };
        let after = pages.open(&request.page_token)?;
        let size = page_size(request.page_size, PAGE.0, PAGE.1)?;
        let store = self.recovery.engine.store();
        let found = store.list_attention(&filter, after, size as i64 + 1).await;
        let mut found = found.map_err(EngineError::from)?;
        let has_more = found.len() > size;
        found.truncate(size);
        let last = found.last().filter(|_| has_more);
        let next_page_token = last.map_or(String::new(), |last| {
            pages.seal(After { since: last.since, id: last.record.id().uuid() })
        });
        let items = found.iter().map(|needing| self.needing(needing)).collect();
        Ok(Response::new(v1::ListAttentionResponse { items, next_page_token }))
    }

    async fn describe_hold(
        &self,
        request: Request<v1::DescribeHoldRequest>,
    ) -> Result<Response<v1::DescribeHoldResponse>, Status> {
        let id = convert::id(&request.get_ref().id)?;
        let picture = self.recovery.picture(id).await.map_err(EngineError::from)?;
        let picture = picture.ok_or(EngineError::NotFound(id))?;
        let trace = self.recovery.engine.store().trace(id).await.map_err(EngineError::from)?;
        let trace = trace.map_or(String::new(), |context| format!("{:032x}", context.trace));
        Ok(Response::new(v1::DescribeHoldResponse { trace, ..self.description(&picture) }))
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActResponse>, Status> {
        let body = request.get_ref();
        let id = convert::id(&body.id)?;
        let action = action(body.action)?;
        let evidence = evidence(&request, &body.reason, &body.ticket)?;
        if action == Action::ForceCancel {
            let message = "a forced cancel is done by plan: make one, look at it, execute it";
            let metadata = [("id", id.to_string())];
            return Err(status(Reason::PlanRequired, message, metadata));
        }
        let patience = convert::patience(&request);
        match self.recovery.engine.act(id, action, None, &evidence, patience).await? {
            Acted::Done { record, .. } => {
                Ok(Response::new(v1::ActResponse { hold: Some(view::hold(&record)) }))
            }
            Acted::Refused { record, why } => Err(refused(action, &record, why)),
            Acted::Changed(record) => Err(refused(action, &record, "it has changed")),
            Acted::NotFound => Err(EngineError::NotFound(id).into()),
        }
    }

    async fn create_plan(
        &self,
        request: Request<v1::CreatePlanRequest>,
    ) -> Result<Response<v1::CreatePlanResponse>, Status> {
        let identity = identity(&request);
        let request = request.into_inner();
        let action = action(request.action)?;
        let limit = match usize::try_from(request.max_transactions) {
            Ok(0) => PLAN.0,
            Ok(limit) if limit <= PLAN.1 => limit,
            _ => {
                let message = format!("must be 1 to {}", PLAN.1);
                return Err(wrong("max_transactions", Reason::FieldInvalid, message).into());
            }
        };
        let filter = filter(&request.attention, &request.error_contains)?;
        let selection = match (request.ids.as_slice(), filter.kinds.as_slice()) {
            ([], []) => {
                let message = "name the transactions, or the attention that they need";
                return Err(wrong("ids", Reason::FieldRequired, message).into());
            }
            ([], _) => Selection::Needing(filter),
            (ids, []) if filter.error_contains.is_empty() => Selection::Ids(distinct_ids(ids)?),
            _ => {
                let message = "are named, so nothing else can choose transactions";
                return Err(wrong("ids", Reason::FieldInvalid, message).into());
            }
        };
        if let Selection::Ids(ids) = &selection
            && ids.len() > limit
        {
            let message = format!("are {}, and the plan may have {limit}", ids.len());
            return Err(wrong("ids", Reason::FieldInvalid, message).into());
        }
        let (plan, has_more) = self.recovery.make_plan(action, &selection, limit, &identity.caller).await?;
        let plan = v1::Plan { has_more, ..plan_view(&plan) };
        Ok(Response::new(v1::CreatePlanResponse { plan: Some(plan) }))
    }

    async fn get_plan(
        &self,
        request: Request<v1::GetPlanRequest>,
    ) -> Result<Response<v1::GetPlanResponse>, Status> {
        let id = plan_id("id", &request.get_ref().id)?;
        let plan = self.recovery.engine.store().plan(id).await.map_err(EngineError::from)?;
        let plan = plan.ok_or(PlanError::NotFound(id))?;
        let items = plan.items.iter().map(item_view).collect();
        Ok(Response::new(v1::GetPlanResponse { plan: Some(plan_view(&plan)), items }))
    }

    async fn list_plans(
        &self,
        request: Request<v1::ListPlansRequest>,
    ) -> Result<Response<v1::ListPlansResponse>, Status> {
        let size = page_size(request.get_ref().page_size, PLANS, PAGE.1)?;
        let plans = self.recovery.engine.store().plans(size as i64).await.map_err(EngineError::from)?;
        Ok(Response::new(v1::ListPlansResponse { plans: plans.iter().map(plan_view).collect() }))
    }

    type ExecutePlanStream = BoxStream<'static, Result<v1::ExecutePlanResponse, Status>>;

    async fn execute_plan(
        &self,
        request: Request<v1::ExecutePlanRequest>,
    ) -> Result<Response<Self::ExecutePlanStream>, Status> {
        let body = request.get_ref();
        let id = plan_id("id", &body.id)?;
        let evidence = evidence(&request, &body.reason, &body.ticket)?;
        let pace = match u32::try_from(body.max_per_second) {
            Ok(0) => PACE.0,
            Ok(pace) if pace <= PACE.1 => pace,
            _ => {
                let message = format!("must be 1 to {}", PACE.1);
                return Err(wrong("max_per_second", Reason::FieldInvalid, message).into());
            }
        };
        let (tell, told) = mpsc::channel(16);
        self.recovery.execute_plan(id, evidence, pace, tell).await?;
        let stream = futures::stream::unfold(told, |mut told| async move {
            let event = match told.recv().await? {
                Ok(Step::Item(item)) => Ok(Event::Item(item_view(&item))),
                Ok(Step::End(plan)) => Ok(Event::Plan(plan_view(&plan))),
                Err(error) => Err(Status::from(error)),
            };
            Some((event.map(|event| v1::ExecutePlanResponse { event: Some(event) }), told))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn list_actions(
        &self,
        request: Request<v1::ListActionsRequest>,
    ) -> Result<Response<v1::ListActionsResponse>, Status> {
        let request = request.into_inner();
        let plan = match request.plan.as_str() {
            "" => None,
            text => Some(plan_id("plan", text)?),
        };
        let size = page_size(request.page_size, PAGE.0, PAGE.1)?;
        let store = self.recovery.engine.store();
        let actions = store.actions(request.after_number, &request.target, plan, size as i64 + 1).await;
        let mut actions = actions.map_err(EngineError::from)?;
        let has_more = actions.len() > size;
        actions.truncate(size);
        let next_after_number = actions.last().filter(|_| has_more).map_or(0, |last: &ActionRow| last.number);
        let actions = actions.into_iter().map(action_view).collect();
        Ok(Response::new(v1::ListActionsResponse { actions, next_after_number }))
    }

    async fn list_instances(
        &self,
        _: Request<v1::ListInstancesRequest>,
    ) -> Result<Response<v1::ListInstancesResponse>, Status> {
        let instances = self.recovery.engine.store().instances().await.map_err(EngineError::from)?;
        let view = |instance: InstanceRow| v1::Instance {
            answers: instance.id == self.vitals.instance,
            id: instance.id.to_string(),
            address: instance.address,
            started_at: Some(view::time(instance.started_at)),
            alive: instance.is_alive,
            slots: instance.slots as i32,
            settled: instance.settled,
        };
        let instances = instances.into_iter().map(view).collect();
        Ok(Response::new(v1::ListInstancesResponse { instances }))
    }

    async fn drain_instance(
        &self,
        request: Request<v1::DrainInstanceRequest>,
    ) -> Result<Response<v1::DrainInstanceResponse>, Status> {
        let body = request.get_ref();
        let evidence = evidence(&request, &body.reason, &body.ticket)?;
        let id = plan_id("id", &body.id)?;
        if self.recovery.engine.store().drain_instance(id, &evidence).await.map_err(EngineError::from)? {
            tracing::warn!(instance = %id, actor = evidence.actor, "an operator lets an instance leave");
            self.recovery.engine.metrics().acted("drain-instance", "done");
            return Ok(Response::new(v1::DrainInstanceResponse {}));
        }
        let message = format!("no instance {id} serves, or it leaves already");
        Err(status(Reason::InstanceNotFound, message, [("instance", id.to_string())]))
    }

    async fn drain_shard(
        &self,
        request: Request<v1::DrainShardRequest>,
    ) -> Result<Response<v1::DrainShardResponse>, Status> {
        let body = request.get_ref();
        let evidence = evidence(&request, &body.reason, &body.ticket)?;
        let name = &body.name;
        match self.recovery.engine.store().drain_shard(name, &evidence).await.map_err(EngineError::from)? {
            Some(true) => {
                tracing::warn!(shard = name, actor = evidence.actor, "an operator stops work on a shard");
                self.recovery.engine.metrics().acted("drain-shard", "done");
                Ok(Response::new(v1::DrainShardResponse {}))
            }
            Some(false) => {
                let message = format!("work on shard {name} is stopped by an operator already");
                Err(status(Reason::ShardDrained, message, [("shard", name.clone())]))
            }
            None => Err(reason::shard_not_found(name)),
        }
    }
}

impl Recoveries {
    fn description(&self, picture: &Picture) -> v1::DescribeHoldResponse {
        let diagnosis = diagnose(picture);
        let money = picture.money().into_iter().map(|place| v1::MoneyPlace {
            amount: Some(v1::Amount { value: place.amount, currency: place.currency }),
            place: place.place,
        });
        let timeline = picture.timeline().into_iter().map(|event| v1::TimelineEvent {
            at: Some(view::time(event.at)),
            source: event.source,
            what: event.what,
        });
        v1::DescribeHoldResponse {
            hold: Some(view::hold(&picture.record)),
            branches: picture.branches.iter().zip(0..).map(branch_view).collect(),
            money: money.collect(),
            timeline: timeline.collect(),
            attention: picture.needing.as_ref().map(|needing| self.needing(needing)),
            diagnosis: diagnosis.sentence,
            recovers_by_itself: diagnosis.recovers_by_itself,
            next_command: diagnosis.next_command,
            trace: String::new(),
        }
    }
}

impl From<PlanError> for Status {
    fn from(error: PlanError) -> Self {
        let message = error.to_string();
        match error {
            PlanError::NotFound(id) => status(Reason::PlanNotFound, message, [("plan", id.to_string())]),
            PlanError::Expired(id) => status(Reason::PlanExpired, message, [("plan", id.to_string())]),
            PlanError::Unknown(id) => EngineError::NotFound(id).into(),
            PlanError::Store(error) => EngineError::from(error).into(),
        }
    }
}

fn refused(action: Action, record: &Record, why: &str) -> Status {
    let (id, phase) = (record.id(), record.standing.phase);
    let message = format!("{} of hold {id} is refused: {why}", action.name());
    let metadata =
        [("id", id.to_string()), ("phase", phase.to_string()), ("action", action.name().to_owned())];
    status(Reason::ActionRefused, message, metadata)
}

fn action(number: i32) -> Result<Action, Violation> {
    match OperatorActionKind::try_from(number) {
        Ok(OperatorActionKind::Retry) => Ok(Action::Retry),
        Ok(OperatorActionKind::Requeue) => Ok(Action::Requeue),
        Ok(OperatorActionKind::Acknowledge) => Ok(Action::Acknowledge),
        Ok(OperatorActionKind::Pause) => Ok(Action::Pause),
        Ok(OperatorActionKind::Resume) => Ok(Action::Resume),
        Ok(OperatorActionKind::ForceCancel) => Ok(Action::ForceCancel),
        Ok(OperatorActionKind::Unspecified) => Err(wrong("action", Reason::FieldRequired, "is required")),
        Err(_) => Err(wrong("action", Reason::FieldInvalid, "is not a value of OperatorActionKind")),
    }
}

fn action_number(action: Action) -> i32 {
    match action {
        Action::Retry => OperatorActionKind::Retry,
        Action::Requeue => OperatorActionKind::Requeue,
        Action::Acknowledge => OperatorActionKind::Acknowledge,
        Action::Pause => OperatorActionKind::Pause,
        Action::Resume => OperatorActionKind::Resume,
        Action::ForceCancel => OperatorActionKind::ForceCancel,
    }
    .into()
}

fn filter(kinds: &[i32], error_contains: &str) -> Result<Filter, Violation> {
    let kind = |number: &i32| match v1::Attention::try_from(*number) {
        Ok(v1::Attention::Retrying) => Ok(Attention::Retrying),
        Ok(v1::Attention::Stuck) => Ok(Attention::Stuck),
        Ok(v1::Attention::Parked) => Ok(Attention::Parked),
        Ok(v1::Attention::Paused) => Ok(Attention::Paused),
        Ok(v1::Attention::Unspecified | v1::Attention::None) | Err(_) => {
            Err(wrong("attention", Reason::FieldInvalid, "must be RETRYING, STUCK, PARKED or PAUSED"))
        }
    };
    at_most("error_contains", error_contains, MAX_TEXT)?;
    Ok(Filter {
        kinds: kinds.iter().map(kind).collect::<Result<_, _>>()?,
        error_contains: error_contains.to_owned(),
        with_acknowledged: false,
    })
}

/// Each id once, in the order in which they were named.
fn distinct_ids(texts: &[String]) -> Result<Vec<TransactionId>, Violation> {
    let mut known = std::collections::HashSet::new();
    let mut ids = Vec::with_capacity(texts.len());
    for text in texts {
        let id = convert::id(text)?;
        if known.insert(id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The tokens of a list's pages: a time, and an id that is sealed together with it.
struct Pages<'a> {
    caller: &'a str,
    filter: &'a Filter,
}

impl Pages<'_> {
    fn seal(&self, last: After) -> String {
        let since_us = last.since.as_microsecond();
        format!("{since_us}.{}", self.at(Some(since_us)).seal(last.id))
    }

    fn open(&self, token: &str) -> Result<After, Violation> {
        if token.is_empty() {
            return Ok(After::NOTHING);
        }
        let (since_us, sealed) = token.split_once('.').unwrap_or(("", token));
        let since = since_us.parse().ok().and_then(|us| Timestamp::from_microsecond(us).ok());
        let id = self.at(since.map(Timestamp::as_microsecond)).open(sealed)?;
        // No token is sealed without a time.
        Ok(since.map_or(After::NOTHING, |since| After { since, id }))
    }

    fn at(&self, since_us: Option<i64>) -> page::Filter {
        page::Filter::new(self.caller, &(self.filter, since_us))
    }
}

fn plan_id(field: &str, text: &str) -> Result<Uuid, Violation> {
    Uuid::try_parse(text).map_err(|_| wrong(field, Reason::IdInvalid, "must be the id of a plan"))
}

fn branch_view((reported, index): (&Reported, i32)) -> v1::BranchReport {
    let Reported { branch, participant, is_pivot, says, .. } = reported;
    let (state, reason, error) = match says {
        Says::Fence(fence) => {
            let refusal = fence.state.refusal().map_or(String::new(), ToString::to_string);
            (state_name(fence.state), refusal, String::new())
        }
        Says::Absent => ("absent", String::new(), String::new()),
        Says::Nothing(why) => ("", String::new(), why.clone()),
        Says::Untold => {
            ("", String::new(), "it is no shard, and tells only who asks it to do something".to_owned())
        }
    };
    let (fenced_at, decided_at) = match says {
        Says::Fence(fence) => (Some(fence.fenced_at), fence.decided_at),
        Says::Absent | Says::Nothing(_) | Says::Untold => (None, None),
    };
    let (role, operation) = match branch {
        Branch::Ledger(leg) => (role_name(leg.role), String::new()),
        Branch::Other(request) => ("CALL", request.operation.clone()),
    };
    v1::BranchReport {
        index,
        role: role.to_owned(),
        account: branch.leg().map_or(String::new(), |leg| leg.account.to_string()),
        amount: branch.leg().map(view::amount_of),
        operation,
        participant: participant.clone(),
        is_pivot: *is_pivot,
        state: state.to_owned(),
        reason,
        fenced_at: fenced_at.map(view::time),
        decided_at: decided_at.map(view::time),
        error,
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Debit => "DEBIT",
        Role::Credit => "CREDIT",
        Role::Issue => "ISSUE",
        Role::Burn => "BURN",
    }
}

fn plan_view(plan: &Plan) -> v1::Plan {
    let refused = plan.items.iter().filter(|item| item.refusal.is_some()).count();
    let amount = |(currency, value): (&str, i64)| v1::Amount { value, currency: currency.to_owned() };
    v1::Plan {
        id: plan.id.to_string(),
        action: action_number(plan.action),
        selection: plan.selection.clone(),
        actor: plan.actor.clone(),
        created_at: Some(view::time(plan.created_at)),
        expires_at: Some(view::time(plan.expires_at)),
        started_at: plan.started_at.map(view::time),
        transactions: (plan.items.len() - refused) as i32,
        refused: refused as i32,
        amounts: plan.amounts().into_iter().map(amount).collect(),
        done: plan.count(&["done"]) as i32,
        changed: plan.count(&["changed"]) as i32,
        failed: plan.count(&["refused", "failed"]) as i32,
        has_more: false,
    }
}

fn item_view(item: &Item) -> v1::PlanItem {
    v1::PlanItem {
        id: item.id.to_string(),
        amount: Some(v1::Amount { value: item.amount, currency: item.currency.clone() }),
        phase: view::phase(item.phase).into(),
        attention: view::attention(item.attention).into(),
        refusal: item.refusal.clone().unwrap_or_default(),
        outcome: item.outcome.clone().unwrap_or_default(),
        detail: item.detail.clone(),
    }
}

fn action_view(action: ActionRow) -> v1::OperatorAction {
    v1::OperatorAction {
        number: action.number,
        acted_at: Some(view::time(action.acted_at)),
        action: action.action,
        target: action.target,
        actor: action.evidence.actor,
        address: action.evidence.address,
        reason: action.evidence.reason,
        ticket: action.evidence.ticket,
        plan: action.evidence.plan.map_or(String::new(), |plan| plan.to_string()),
        before: action.before,
        after: action.after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_reads_back_for_its_own_list_and_any_other_text_is_refused() {
        let of = |kind: v1::Attention| filter(&[kind.into()], "").unwrap();
        let (parked, stuck) = (of(v1::Attention::Parked), of(v1::Attention::Stuck));
        let pages = |filter| Pages { caller: "carol", filter };
        let since = Timestamp::from_microsecond(1_790_000_000_000_001).unwrap();
        let last = After { since, id: Uuid::now_v7() };
        let token = pages(&parked).seal(last);

        assert_eq!(pages(&parked).open(&token).unwrap(), last);
        assert_eq!(pages(&parked).open("").unwrap(), After::NOTHING);
        let later = token.replacen("1790000000000001", "1790000000000002", 1);
        let unsealed = format!("9223372036854775807.{}", last.id);
        assert!(pages(&stuck).open(&token).is_err());
        for wrong in ["x", "1", "1.", ".1", "1.x", &later, &unsealed] {
            assert_eq!(pages(&parked).open(wrong).unwrap_err().reason, Reason::PageTokenInvalid, "{wrong}");
        }
    }

    #[test]
    fn actions_read_back_from_their_numbers() {
        for known in Action::ALL {
            assert_eq!(action(action_number(known)).unwrap(), known);
        }
        assert!(action(0).is_err() && action(99).is_err());
    }
}
