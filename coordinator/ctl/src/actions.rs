//! `tccctl actions` and `instances`: what operators did, and which processes serve.

use crate::{
    attention::Why,
    errors::{Exit, Failure},
    output::{Int64, Output, or_dash, rows, time},
    session::Session,
};
use serde::Serialize;
use std::fmt;
use tcc_proto::v1::{self, recovery_service_client::RecoveryServiceClient};
use uuid::Uuid;

/// The most that the server gives at once.
const PAGE: i32 = 1_000;

/// Lists what was done after a number, to one target or all, as part of one plan or not, up to a limit.
pub async fn list(
    session: &Session,
    output: &Output,
    after: i64,
    target: String,
    plan: Option<Uuid>,
    limit: u32,
) -> Result<Exit, Box<Failure>> {
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let plan = plan.map_or(String::new(), |plan| plan.to_string());
    let mut found = Actions { actions: Vec::new(), next_after_number: Int64(after) };
    let mut left = limit;
    while left > 0 {
        let request = v1::ListActionsRequest {
            after_number: found.next_after_number.0,
            target: target.clone(),
            plan: plan.clone(),
            page_size: PAGE.min(i32::try_from(left).unwrap_or(PAGE)),
        };
        let page = client.list_actions(session.request(request)).await;
        let page = page.map_err(|status| session.failure(status))?.into_inner();
        left = left.saturating_sub(page.actions.len() as u32);
        found.next_after_number = Int64(page.next_after_number);
        found.actions.extend(page.actions.into_iter().map(Action::from));
        if page.next_after_number == 0 {
            break;
        }
    }
    output.show_list(&found, "actions")?;
    if found.next_after_number.0 != 0 {
        output.remark(&format!("there are more: go on with --after {}", found.next_after_number));
    }
    Ok(Exit::Done)
}

/// Lists the processes that serve, or did within a day.
pub async fn instances(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let answer = client.list_instances(session.request(v1::ListInstancesRequest {})).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    let found = Instances { instances: answer.instances.into_iter().map(Instance::from).collect() };
    output.show_list(&found, "instances")?;
    Ok(Exit::Done)
}

/// Lets a process leave.
pub async fn drain_instance(
    session: &Session,
    output: &Output,
    id: Uuid,
    why: Why,
) -> Result<Exit, Box<Failure>> {
    let (reason, ticket) = (why.reason()?, why.ticket);
    output.acting_on(session);
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let request = v1::DrainInstanceRequest { id: id.to_string(), reason, ticket };
    client.drain_instance(session.request(request)).await.map_err(|status| session.failure(status))?;
    output.show(&Leaving { id: id.to_string(), state: "leaving" })?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Leaving {
    id: String,
    state: &'static str,
}

impl fmt::Display for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, .. } = self;
        write!(f, "{id} takes no new work within a second, finishes what is under way, and ends")
    }
}

#[derive(Debug, Serialize)]
struct Actions {
    actions: Vec<Action>,
    next_after_number: Int64,
}

#[derive(Debug, Serialize)]
struct Action {
    number: Int64,
    acted_at: Option<String>,
    action: String,
    target: String,
    actor: String,
    address: String,
    reason: String,
    ticket: String,
    plan: String,
    before: String,
    after: String,
}

impl From<v1::OperatorAction> for Action {
    fn from(action: v1::OperatorAction) -> Self {
        Self {
            number: Int64(action.number),
            acted_at: action.acted_at.as_ref().map(time),
            action: action.action,
            target: action.target,
            actor: action.actor,
            address: action.address,
            reason: action.reason,
            ticket: action.ticket,
            plan: action.plan,
            before: action.before,
            after: action.after,
        }
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = |action: &Action| {
            [
                action.number.to_string(),
                or_dash(action.acted_at.as_deref()),
                action.actor.clone(),
                action.action.clone(),
                action.target.clone(),
                action.before.clone(),
                action.after.clone(),
                action.reason.clone(),
                or_dash(Some(&action.ticket)),
            ]
        };
        if !f.alternate() {
            let header = [">N", "TIME", "WHO", "ACTION", "TARGET", "BEFORE", "AFTER", "REASON", "TICKET"];
            return f.write_str(&rows(header, self.actions.iter().map(cells)));
        }
        let wide = |action: &Action| {
            let [number, at, who, what, target, before, after, reason, ticket] = cells(action);
            let (address, plan) = (or_dash(Some(&action.address)), or_dash(Some(&action.plan)));
            [number, at, who, address, what, target, before, after, reason, ticket, plan]
        };
        let header =
            [">N", "TIME", "WHO", "FROM", "ACTION", "TARGET", "BEFORE", "AFTER", "REASON", "TICKET", "PLAN"];
        f.write_str(&rows(header, self.actions.iter().map(wide)))
    }
}

#[derive(Debug, Serialize)]
struct Instances {
    instances: Vec<Instance>,
}

#[derive(Debug, Serialize)]
struct Instance {
    id: String,
    address: String,
    started_at: Option<String>,
    alive: bool,
    slots: i32,
    settled: Int64,
    answers: bool,
}

impl From<v1::Instance> for Instance {
    fn from(instance: v1::Instance) -> Self {
        Self {
            id: instance.id,
            address: instance.address,
            started_at: instance.started_at.as_ref().map(time),
            alive: instance.alive,
            slots: instance.slots,
            settled: Int64(instance.settled),
            answers: instance.answers,
        }
    }
}

impl fmt::Display for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.instances.iter().map(|instance| {
            [
                instance.id.clone(),
                instance.address.clone(),
                or_dash(instance.started_at.as_deref()),
                if instance.alive { "yes".to_owned() } else { "GONE".to_owned() },
                instance.slots.to_string(),
                instance.settled.to_string(),
                if instance.answers { "this one".to_owned() } else { "-".to_owned() },
            ]
        });
        let header = ["INSTANCE", "ADDRESS", "STARTED_AT", "ALIVE", ">SLOTS", ">LOOKED_AT", "ANSWERS"];
        f.write_str(&rows(header, lines))
    }
}
