//! Something done to many transactions in two steps: a plan that freezes which, and its execution.
//!
//! The plan keeps how each transaction stood when a person looked at it. The execution does exactly that set: what stands
//! otherwise by then is left alone and told. It may be broken off at any moment; whoever executes the plan again goes on,
//! and the record of actions says what was done before, whether or not the plan has heard of it.

use super::{Recovery, force};
use crate::{
    engine::EngineError,
    store::{
        Acted, Action, Evidence, StoreError,
        attention::{After, Filter},
        plans::{Item, Plan},
    },
};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use std::time::Duration;
use tcc_core::{Phase, TransactionId};
use tcc_proto::Reason;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use uuid::Uuid;

/// How many transactions are looked at side by side while a plan is made.
const LOOKING: usize = 16;
/// How long each forced cancel is waited for. It goes on after that.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which transactions a plan is about.
#[derive(Debug, Clone)]
pub enum Selection {
    /// Exactly these.
    Ids(Vec<TransactionId>),
    /// Those that need attention like this.
    Needing(Filter),
}

/// Why there is no plan, or it is not executed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// There is no plan of this id.
    #[error("there is no plan {0}")]
    NotFound(Uuid),
    /// The coordinator does not know a transaction that was named.
    #[error("there is no hold {0}")]
    Unknown(TransactionId),
    /// It was not begun in time: too much may have changed.
    #[error("plan {0} has expired; make it anew")]
    Expired(Uuid),
    /// The coordinator's database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Recovery {
    /// Makes a plan of at most `limit` transactions. Answers also whether the filter would have found more.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn make_plan(
        &self,
        action: Action,
        selection: &Selection,
        limit: usize,
        actor: &str,
    ) -> Result<(Plan, bool), PlanError> {
        let store = self.engine.store();
        let (mut ids, words) = match selection {
            Selection::Ids(ids) => (ids.clone(), format!("{} ids", ids.len())),
            Selection::Needing(filter) => {
                let found = store.list_attention(filter, After::NOTHING, limit as i64 + 1).await?;
                (found.iter().map(|needing| needing.record.id()).collect(), words(filter))
            }
        };
        let has_more = ids.len() > limit;
        ids.truncate(limit);
        let items: Vec<Item> = stream::iter(ids.into_iter().zip(0..))
            .map(|(id, position)| self.plan_item(action, id, position))
            .buffered(LOOKING)
            .try_collect()
            .await?;
        let id = Uuid::now_v7();
        store.create_plan(id, action, &words, actor, &items).await?;
        let plan = store.plan(id).await?.ok_or(PlanError::NotFound(id))?;
        Ok((plan, has_more))
    }

    /// Begins a plan, or goes on with it, and tells of each transaction and in the end of the whole. Stops when nobody listens.
    ///
    /// # Errors
    ///
    /// [`PlanError`], before anything is done.
    pub async fn execute_plan(
        &self,
        id: Uuid,
        evidence: Evidence,
        max_per_second: u32,
        told: mpsc::Sender<Result<Step, EngineError>>,
    ) -> Result<(), PlanError> {
        let plan = self.engine.store().plan(id).await?.ok_or(PlanError::NotFound(id))?;
        if !self.engine.store().start_plan(id).await? {
            return Err(PlanError::Expired(id));
        }
        let (recovery, evidence) = (self.clone(), Evidence { plan: Some(id), ..evidence });
        tokio::spawn(async move {
            let done = recovery.run(plan, &evidence, max_per_second, &told).await;
            if let Err(error) = done {
                let _ = told.send(Err(error)).await;
            }
        });
        Ok(())
    }

    async fn run(
        &self,
        plan: Plan,
        evidence: &Evidence,
        max_per_second: u32,
        told: &mpsc::Sender<Result<Step, EngineError>>,
    ) -> Result<(), EngineError> {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / max_per_second.max(1));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let store = self.engine.store();
        let to_do = |item: &&Item| item.refusal.is_none() && item.outcome.is_none();
        for item in plan.items.iter().filter(to_do) {
            pace.tick().await;
            let (outcome, detail) = self.do_item(&plan, item, evidence).await?;
            store.finish_plan_item(plan.id, item.position, outcome, &detail).await?;
            let item = Item { outcome: Some(outcome.to_owned()), detail, ..item.clone() };
            if told.send(Ok(Step::Item(item))).await.is_err() {
                return Ok(());
            }
        }
        if let Some(plan) = store.plan(plan.id).await? {
            let _ = told.send(Ok(Step::End(plan))).await;
        }
        Ok(())
    }

    async fn do_item(
        &self,
        plan: &Plan,
        item: &Item,
        evidence: &Evidence,
    ) -> Result<(&'static str, String), EngineError> {
        // Broken off between doing it and keeping that it was done?
        let was_done = self.engine.store().actions(0, &item.id.to_string(), Some(plan.id), 1).await?;
        if let Some(action) = was_done.first() {
            return Ok(("done", action.after.clone()));
        }
        if let Some(why) = self.unsafe_to(plan.action, item.id).await? {
            return Ok(("refused", why));
        }
        let expected = Some((item.phase, item.attention));
        let acted = self.engine.act(item.id, plan.action, expected, evidence, PATIENCE).await?;
        Ok(match acted {
            Acted::Done { record, .. } => {
                let phase = record.standing.phase;
                if plan.action == Action::ForceCancel && phase == Phase::Confirmed {
                    ("refused", is_unsafe("the payee's shard had confirmed; it is paid"))
                } else {
                    ("done", phase.to_string())
                }
            }
            Acted::Refused { why, .. } => ("refused", why.to_owned()),
            Acted::Changed(record) => ("changed", format!("it is {} now", record.standing.phase)),
            Acted::NotFound => ("failed", "the coordinator does not know it".to_owned()),
        })
    }

    /// Why units would be created or lost, if an action could do that.
    async fn unsafe_to(&self, action: Action, id: TransactionId) -> Result<Option<String>, StoreError> {
        if action != Action::ForceCancel {
            return Ok(None);
        }
        let picture = self.picture(id).await?;
        Ok(picture.as_ref().and_then(force::judge).map(|found| is_unsafe(&found.why)))
    }

    async fn plan_item(&self, action: Action, id: TransactionId, position: i32) -> Result<Item, PlanError> {
        let store = self.engine.store();
        let record = store.get(id).await?.ok_or(PlanError::Unknown(id))?;
        let is_acknowledged = store.attention_of(id).await?.is_some_and(|needing| needing.is_acknowledged);
        let refusal = action.refusal(&record.standing, is_acknowledged).map(str::to_owned);
        let refusal = match refusal {
            Some(refusal) => Some(refusal),
            None => self.unsafe_to(action, id).await?,
        };
        Ok(Item::of(position, &record, refusal))
    }
}

/// What an execution tells.
#[derive(Debug, Clone)]
pub enum Step {
    /// What became of one transaction.
    Item(Item),
    /// The plan at its end.
    End(Plan),
}

/// Why a forced cancel is refused, with its reason.
fn is_unsafe(why: &str) -> String {
    format!("{}: {why}", Reason::ForceUnsafe.name())
}

fn words(filter: &Filter) -> String {
    let kinds: Vec<String> = filter.kinds.iter().map(|kind| format!("{kind:?}").to_uppercase()).collect();
    let mut words = format!("attention {}", kinds.join(" or "));
    if !filter.error_contains.is_empty() {
        words.push_str(&format!(", error contains {:?}", filter.error_contains));
    }
    words
}
