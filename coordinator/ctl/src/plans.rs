//! `tccctl plan`: what is done to several transactions, or by force, in two steps.
//!
//! Making a plan shows exactly what would be done and changes nothing. Executing it asks a person first. `--yes` says yes
//! for that person, but never to force: for that the plan's id is typed, at a terminal. That an environment looks like one
//! of a build server means nothing here.

use crate::{
    attention::{Chosen, Why, action_name},
    errors::{Exit, Failure},
    output::{Amount, Format, Output, fields, name, or_dash, rows, time},
    session::Session,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::{
    fmt,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};
use tcc_proto::v1::{
    self, Attention, OperatorActionKind, Phase, execute_plan_response::Event,
    recovery_service_client::RecoveryServiceClient,
};
use uuid::Uuid;

/// Makes a plan, shows it, and says how it is executed.
pub async fn create(
    session: &Session,
    output: &Output,
    action: OperatorActionKind,
    chosen: &Chosen,
) -> Result<Exit, Box<Failure>> {
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let request = v1::CreatePlanRequest {
        action: action.into(),
        ids: chosen.ids.iter().map(Uuid::to_string).collect(),
        attention: chosen.attention.iter().map(|kind| kind.number()).collect(),
        error_contains: chosen.error_contains.clone(),
        max_transactions: chosen.max,
    };
    let answer = client.create_plan(session.unhurried_request(request)).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    let plan = Plan::of_answer(answer.plan)?;
    output.show(&plan)?;
    if plan.refused > 0 {
        output.remark(&format!("refused: see why with: tccctl plan show {} --refused", plan.id));
    }
    if plan.has_more {
        output.remark(&format!("there are more than {}: make further plans after this one", chosen.max));
    }
    output.remark(&format!(
        "nothing has been done. Do it with: tccctl plan execute {} --reason REASON",
        plan.id
    ));
    Ok(Exit::Done)
}

/// Shows a plan and its transactions.
pub async fn show(session: &Session, output: &Output, id: Uuid, refused: bool) -> Result<Exit, Box<Failure>> {
    let mut detail = read(session, id).await?;
    if refused {
        detail.items.retain(|item| !item.refusal.is_empty());
    }
    output.show_list(&detail, "items")?;
    Ok(Exit::Done)
}

/// Lists the newest plans.
pub async fn list(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let answer = client.list_plans(session.request(v1::ListPlansRequest { page_size: 0 })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    let plans = Plans { plans: answer.plans.into_iter().map(Plan::from).collect() };
    output.show_list(&plans, "plans")?;
    Ok(Exit::Done)
}

/// Executes a plan, if a person says yes.
pub async fn execute(
    session: &Session,
    output: &Output,
    id: Uuid,
    why: Why,
    max_per_second: i32,
    yes: bool,
) -> Result<Exit, Box<Failure>> {
    let reason = why.reason()?;
    let Detail { plan, .. } = read(session, id).await?;
    confirm(session, &plan, yes)?;
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let request = v1::ExecutePlanRequest { id: id.to_string(), reason, ticket: why.ticket, max_per_second };
    let answer = client.execute_plan(session.unhurried_request(request)).await;
    let mut events = answer.map_err(|status| session.failure(status))?.into_inner();
    let bar = ProgressBar::new(plan.transactions.unsigned_abs().into());
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {human_pos}/{human_len} {per_sec} {eta}");
    bar.set_style(style.expect("the template is well formed"));
    let (mut end, mut odd) = (None, Vec::new());
    while let Some(answer) = events.message().await.map_err(|status| session.failure(status))? {
        match answer.event {
            Some(Event::Item(item)) => {
                bar.inc(1);
                let item = Item::from(item);
                if output.format() == Format::Json {
                    output.show(&item)?;
                } else if item.outcome != "done" {
                    odd.push(item);
                }
            }
            Some(Event::Plan(plan)) => end = Some(Plan::from(plan)),
            // A kind of event that only a newer server knows.
            None => {}
        }
    }
    bar.finish_and_clear();
    if !odd.is_empty() {
        output.show(&Items { items: odd })?;
    }
    let plan =
        end.ok_or_else(|| Failure::incomplete("end: execute the plan again, it goes on where it stopped"))?;
    let (done, changed, failed) = (plan.done, plan.changed, plan.failed);
    output.show(&plan)?;
    output.remark(&format!("done {done}, changed since the plan {changed}, refused or failed {failed}"));
    output.remark(&format!("the record: tccctl actions list --plan {id}"));
    Ok(if done == plan.transactions { Exit::Done } else { Exit::Partly })
}

async fn read(session: &Session, id: Uuid) -> Result<Detail, Box<Failure>> {
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let answer = client.get_plan(session.request(v1::GetPlanRequest { id: id.to_string() })).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    let items = answer.items.into_iter().map(Item::from).collect();
    Ok(Detail { plan: Plan::of_answer(answer.plan)?, items })
}

/// Asks a person, unless that has said yes already to what is not force.
fn confirm(session: &Session, plan: &Plan, yes: bool) -> Result<(), Box<Failure>> {
    let is_forced = plan.action == action_name(OperatorActionKind::ForceCancel.into());
    if yes && !is_forced {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        let message = if is_forced {
            "force asks a person at a terminal to type the plan's id; --yes does not cover it"
        } else {
            "this asks first, and there is no terminal: say yes with --yes"
        };
        return Err(Failure::declined(message));
    }
    let what = format!(
        "{} {} transactions ({}) at {}",
        plan.action,
        plan.transactions,
        plan.stakes(),
        session.place()
    );
    let question = match is_forced {
        true => format!("{what}. Type the plan's id to go on: "),
        false => format!("{what}? [y/N] "),
    };
    let _ = write!(io::stderr(), "{question}");
    let mut answer = String::new();
    let _ = stdin.lock().read_line(&mut answer);
    let is_yes = match is_forced {
        true => answer.trim() == plan.id,
        false => matches!(answer.trim(), "y" | "Y" | "yes"),
    };
    if is_yes { Ok(()) } else { Err(Failure::declined("nothing was done")) }
}

#[derive(Debug, Serialize)]
struct Plan {
    id: String,
    action: String,
    selection: String,
    actor: String,
    created_at: Option<String>,
    expires_at: Option<String>,
    started_at: Option<String>,
    transactions: i32,
    refused: i32,
    amounts: Vec<Amount>,
    done: i32,
    changed: i32,
    failed: i32,
    has_more: bool,
}

impl Plan {
    fn of_answer(plan: Option<v1::Plan>) -> Result<Self, Box<Failure>> {
        plan.map(Self::from).ok_or_else(|| Failure::incomplete("plan"))
    }

    /// What is at stake.
    fn stakes(&self) -> String {
        let amounts: Vec<String> = self.amounts.iter().map(Amount::to_string).collect();
        or_dash(Some(&amounts.join(", ")))
    }

    /// What has become of it.
    fn state(&self) -> &'static str {
        let ended = self.done + self.changed + self.failed;
        match &self.started_at {
            None => "not begun",
            Some(_) if ended < self.transactions => "broken off",
            Some(_) => "ended",
        }
    }
}

impl From<v1::Plan> for Plan {
    fn from(plan: v1::Plan) -> Self {
        Self {
            id: plan.id,
            action: action_name(plan.action),
            selection: plan.selection,
            actor: plan.actor,
            created_at: plan.created_at.as_ref().map(time),
            expires_at: plan.expires_at.as_ref().map(time),
            started_at: plan.started_at.as_ref().map(time),
            transactions: plan.transactions,
            refused: plan.refused,
            amounts: plan.amounts.into_iter().map(Amount::from).collect(),
            done: plan.done,
            changed: plan.changed,
            failed: plan.failed,
            has_more: plan.has_more,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fields([
            ("plan", self.id.clone()),
            ("action", self.action.clone()),
            ("selection", self.selection.clone()),
            ("transactions", self.transactions.to_string()),
            ("amounts", self.stakes()),
            ("refused", self.refused.to_string()),
            ("by", self.actor.clone()),
            ("expires_at", or_dash(self.expires_at.as_deref())),
            ("state", self.state().to_owned()),
            ("done", self.done.to_string()),
            ("changed", self.changed.to_string()),
            ("failed", self.failed.to_string()),
        ]))
    }
}

#[derive(Debug, Serialize)]
struct Plans {
    plans: Vec<Plan>,
}

impl fmt::Display for Plans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.plans.iter().map(|plan| {
            [
                plan.id.clone(),
                plan.action.clone(),
                plan.transactions.to_string(),
                plan.stakes(),
                plan.state().to_owned(),
                plan.done.to_string(),
                plan.actor.clone(),
                or_dash(plan.created_at.as_deref()),
            ]
        });
        let header = ["PLAN", "ACTION", ">TRANSACTIONS", "AMOUNTS", "STATE", ">DONE", "BY", "CREATED_AT"];
        f.write_str(&rows(header, lines))
    }
}

#[derive(Debug, Serialize)]
struct Detail {
    plan: Plan,
    items: Vec<Item>,
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.plan)?;
        if self.items.is_empty() { Ok(()) } else { write!(f, "\n\n{}", table(&self.items)) }
    }
}

#[derive(Debug, Serialize)]
struct Items {
    items: Vec<Item>,
}

impl fmt::Display for Items {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&table(&self.items))
    }
}

#[derive(Debug, Serialize)]
struct Item {
    id: String,
    amount: Option<Amount>,
    phase: String,
    attention: String,
    refusal: String,
    outcome: String,
    detail: String,
}

impl From<v1::PlanItem> for Item {
    fn from(item: v1::PlanItem) -> Self {
        Self {
            id: item.id,
            amount: item.amount.map(Amount::from),
            phase: name(item.phase, "PHASE_", Phase::as_str_name),
            attention: name(item.attention, "ATTENTION_", Attention::as_str_name),
            refusal: item.refusal,
            outcome: item.outcome,
            detail: item.detail,
        }
    }
}

/// As a result of its own, when it is streamed.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}  {}", self.id, self.outcome, self.detail)
    }
}

fn table(items: &[Item]) -> String {
    let line = |item: &Item| {
        [
            item.id.clone(),
            or_dash(item.amount.as_ref().map(Amount::to_string).as_deref()),
            item.phase.clone(),
            item.attention.clone(),
            or_dash(Some(&item.refusal)),
            or_dash(Some(&item.outcome)),
            or_dash(Some(&item.detail)),
        ]
    };
    let header = ["HOLD", ">AMOUNT", "PHASE", "ATTENTION", "REFUSED", "OUTCOME", "DETAIL"];
    rows(header, items.iter().map(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Credentials;

    fn plan() -> Plan {
        Plan::from(v1::Plan {
            id: "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".into(),
            action: OperatorActionKind::Requeue.into(),
            selection: "attention PARKED".into(),
            actor: "carol".into(),
            transactions: 3,
            refused: 1,
            amounts: vec![v1::Amount { value: 150, currency: "GOLD".into() }],
            ..Default::default()
        })
    }

    #[test]
    fn a_plan_says_what_is_at_stake_and_that_nothing_was_done() {
        let text = plan().to_string();

        for line in
            ["action        REQUEUE", "transactions  3", "amounts       150 GOLD", "state         not begun"]
        {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
    }

    #[test]
    fn a_plan_that_was_broken_off_says_so() {
        let begun = Plan { started_at: Some("then".into()), done: 1, ..plan() };
        let ended = Plan { started_at: Some("then".into()), done: 1, changed: 1, failed: 1, ..plan() };

        assert_eq!((begun.state(), ended.state()), ("broken off", "ended"));
    }

    #[test]
    fn without_a_terminal_force_is_declined_whatever_was_said() {
        let nobody = Credentials::read(None, None, None, None).unwrap();
        let session = Session::new(&"http://127.0.0.1:1".parse().unwrap(), &nobody, None).unwrap();
        let forced = Plan { action: action_name(OperatorActionKind::ForceCancel.into()), ..plan() };

        if !io::stdin().is_terminal() {
            assert_eq!(confirm(&session, &forced, true).unwrap_err().exit, Exit::Declined);
            assert_eq!(confirm(&session, &plan(), false).unwrap_err().exit, Exit::Declined);
        }
        assert!(confirm(&session, &plan(), true).is_ok());
    }
}
