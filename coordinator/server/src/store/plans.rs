//! Plans: what an operator has looked at before doing it. A plan's set never changes; what became of it is added.

use super::{Record, Store, StoreError, operate::Action};
use std::collections::BTreeMap;
use tcc_core::{Attention, Phase, Timestamp, TransactionId};
use tcc_participant::crash;
use tokio_postgres::Row;
use uuid::Uuid;

/// For how long a plan can be begun.
const MINUTES: f64 = 15.0;

const CREATE: &str = "\
-- create_plan
INSERT INTO plan (id, action, selection, actor, created_at, expires_at)
SELECT $1::uuid, $2::text, $3::text, $4::text, now, now + $5::float8 * interval '1 minute' FROM (SELECT clock_timestamp()) AS c (now)";

const ADD: &str = "\
-- add_plan_items
INSERT INTO plan_item (plan, position, transaction_id, amount, currency, phase, attention, refusal)
SELECT $1::uuid, i.* FROM unnest($2::int4[], $3::uuid[], $4::int8[], $5::text[], $6::int2[], $7::int2[], $8::text[])
    AS i (position, transaction_id, amount, currency, phase, attention, refusal)";

const PLAN: &str = "\
-- plan
SELECT id, action, selection, actor, created_at, expires_at, started_at FROM plan WHERE id = $1";

const ITEMS: &str = "\
-- plan_items
SELECT position, transaction_id, amount, currency, phase, attention, refusal, outcome, detail
FROM plan_item WHERE plan = $1 ORDER BY position";

const PLANS: &str = "\
-- plans
SELECT id FROM plan ORDER BY created_at DESC, id LIMIT $1";

/// What was begun can be gone on with whenever.
const START: &str = "\
-- start_plan
UPDATE plan SET started_at = coalesce(started_at, clock_timestamp())
WHERE id = $1 AND (started_at IS NOT NULL OR expires_at > clock_timestamp())";

const FINISH: &str = "\
-- finish_plan_item
UPDATE plan_item SET outcome = $3, detail = $4 WHERE plan = $1 AND position = $2 AND outcome IS NULL";

/// What an operator has looked at before doing it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its id.
    pub id: Uuid,
    /// What would be done.
    pub action: Action,
    /// How its transactions were chosen, in words.
    pub selection: String,
    /// Who made it.
    pub actor: String,
    /// When, by the coordinator database's clock.
    pub created_at: Timestamp,
    /// It cannot be begun after this.
    pub expires_at: Timestamp,
    /// When it was begun.
    pub started_at: Option<Timestamp>,
    /// To which transactions.
    pub items: Vec<Item>,
}

/// One transaction of a plan.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its place in the plan.
    pub position: i32,
    /// Which.
    pub id: TransactionId,
    /// How much is at stake.
    pub amount: i64,
    /// Of what.
    pub currency: String,
    /// As it stood when the plan was made.
    pub phase: Phase,
    /// Likewise.
    pub attention: Attention,
    /// Why it would not be done.
    pub refusal: Option<String>,
    /// What became of it.
    pub outcome: Option<String>,
    /// More about that.
    pub detail: String,
}

impl Plan {
    /// The amounts of the transactions for which it would be done, by currency.
    #[must_use]
    pub fn amounts(&self) -> BTreeMap<&str, i64> {
        let mut amounts = BTreeMap::new();
        for item in self.items.iter().filter(|item| item.refusal.is_none() && !item.currency.is_empty()) {
            let sum: &mut i64 = amounts.entry(item.currency.as_str()).or_default();
            *sum = sum.saturating_add(item.amount);
        }
        amounts
    }

    /// How many of its transactions came to this.
    #[must_use]
    pub fn count(&self, outcomes: &[&str]) -> usize {
        let came = |item: &&Item| item.outcome.as_deref().is_some_and(|outcome| outcomes.contains(&outcome));
        self.items.iter().filter(came).count()
    }
}

impl Item {
    /// A transaction as it stands now.
    #[must_use]
    pub fn of(position: i32, record: &Record, refusal: Option<String>) -> Self {
        // What the ledger has no part in is no amount.
        let descriptor = &record.transaction.descriptor;
        let leg = descriptor.lead().and_then(|lead| record.transaction.leg(lead));
        Self {
            position,
            id: record.id(),
            amount: leg.map_or(0, |leg| leg.amount.get()),
            currency: leg.map_or(String::new(), |leg| leg.currency.to_string()),
            phase: record.standing.phase,
            attention: record.standing.attention,
            refusal,
            outcome: None,
            detail: String::new(),
        }
    }

    fn read(row: &Row) -> Result<Self, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("a plan's {what}"));
        Ok(Self {
            position: row.get("position"),
            id: TransactionId::from_uuid(row.get("transaction_id")).map_err(|_| damaged("id"))?,
            amount: row.get("amount"),
            currency: row.get("currency"),
            phase: Phase::from_number(row.get("phase")).ok_or_else(|| damaged("phase"))?,
            attention: Attention::from_number(row.get("attention")).ok_or_else(|| damaged("attention"))?,
            refusal: row.get("refusal"),
            outcome: row.get("outcome"),
            detail: row.get("detail"),
        })
    }
}

impl Store {
    /// Keeps a plan.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn create_plan(
        &self,
        id: Uuid,
        action: Action,
        selection: &str,
        actor: &str,
        items: &[Item],
    ) -> Result<(), StoreError> {
        let mut client = self.reader().await?;
        let keeping = client.transaction().await?;
        crash::statement(CREATE);
        keeping.execute(CREATE, &[&id, &action.name(), &selection, &actor, &MINUTES]).await?;
        let positions: Vec<i32> = items.iter().map(|item| item.position).collect();
        let ids: Vec<Uuid> = items.iter().map(|item| item.id.uuid()).collect();
        let amounts: Vec<i64> = items.iter().map(|item| item.amount).collect();
        let currencies: Vec<&str> = items.iter().map(|item| item.currency.as_str()).collect();
        let phases: Vec<i16> = items.iter().map(|item| item.phase.number()).collect();
        let attention: Vec<i16> = items.iter().map(|item| item.attention.number()).collect();
        let refusals: Vec<Option<&str>> = items.iter().map(|item| item.refusal.as_deref()).collect();
        crash::statement(ADD);
        #[rustfmt::skip]
        keeping.execute(ADD, &[
            &id, &positions, &ids, &amounts, &currencies, &phases, &attention, &refusals,
        ]).await?;
        keeping.commit().await?;
        Ok(())
    }

    /// A plan with all of its transactions.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn plan(&self, id: Uuid) -> Result<Option<Plan>, StoreError> {
        let client = self.reader().await?;
        let Some(row) = client.query_opt(PLAN, &[&id]).await? else { return Ok(None) };
        let rows = client.query(ITEMS, &[&id]).await?;
        let action = Action::from_name(row.get("action"));
        Ok(Some(Plan {
            id,
            action: action.ok_or_else(|| StoreError::Damaged("a plan's action".to_owned()))?,
            selection: row.get("selection"),
            actor: row.get("actor"),
            created_at: row.get("created_at"),
            expires_at: row.get("expires_at"),
            started_at: row.get("started_at"),
            items: rows.iter().map(Item::read).collect::<Result<_, _>>()?,
        }))
    }

    /// The newest plans, newest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn plans(&self, limit: i64) -> Result<Vec<Plan>, StoreError> {
        let rows = self.reader().await?.query(PLANS, &[&limit]).await?;
        let mut plans = Vec::with_capacity(rows.len());
        for row in rows {
            plans.extend(self.plan(row.get("id")).await?);
        }
        Ok(plans)
    }

    /// Begins a plan, or goes on with it. Whether it may: not if it has expired before it was begun.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn start_plan(&self, id: Uuid) -> Result<bool, StoreError> {
        let client = self.reader().await?;
        crash::statement(START);
        Ok(client.execute(START, &[&id]).await? == 1)
    }

    /// Keeps what became of one transaction of a plan, unless that is known.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn finish_plan_item(
        &self,
        plan: Uuid,
        position: i32,
        outcome: &str,
        detail: &str,
    ) -> Result<(), StoreError> {
        let client = self.reader().await?;
        crash::statement(FINISH);
        client.execute(FINISH, &[&plan, &position, &outcome, &detail]).await?;
        Ok(())
    }
}
