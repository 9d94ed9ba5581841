//! What operators do, and the record of it, in one transaction of the database: there is no action without its evidence.
//!
//! What may be done to a transaction as it stands is decided on its locked row, by [`Action::refusal`]. Nothing here makes a
//! phase final. Most actions only let the engine look at a transaction again, or keep it from doing so; a forced cancel moves
//! the row like any other event, and the pivot's fence decides what becomes of it.

use super::{
    Advance, Record, Store, StoreError, WAKE_HORIZON,
    advance::advance_in,
    record::{Standing, standing},
};
use deadpool_postgres::Transaction;
use tcc_core::{Attention, Event, Phase, Timestamp, TransactionId};
use tcc_participant::crash;
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

const LOCK: &str = concat!(
    "-- lock_transaction\nSELECT ",
    standing!(),
    ", t.id, t.slot, t.lane, t.descriptor,
       coalesce((SELECT a.acknowledged FROM attention a WHERE a.transaction_id = t.id AND t.attention <> 0), false) AS acknowledged
FROM transaction t WHERE t.id = $1 FOR NO KEY UPDATE OF t"
);

/// What is only held waits for its due time, as if nothing had been. Everything else shows that it is being retried until it
/// has succeeded. How often it failed is forgotten unless it goes on failing.
const REARM: &str = "\
-- rearm
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM pg_current_xact_id() AS xid WHERE xid IS NOT NULL
),
rearmed AS (
    UPDATE transaction t
    SET attention = CASE WHEN t.phase = 2 AND t.due_at > clock.now THEN 0
                         WHEN t.attention IN (1, 2) THEN t.attention ELSE 1 END
    FROM clock
    WHERE t.id = $1 AND t.phase IN (1, 2, 3, 5)
    RETURNING t.id, t.slot, t.lane, t.attention,
        CASE WHEN t.phase = 2 THEN least(greatest(t.due_at, clock.now), clock.now + $2::float8 * interval '1 second')
             ELSE clock.now END AS wake_at
),
calmed AS (
    DELETE FROM attention a USING rearmed r WHERE a.transaction_id = r.id AND r.attention = 0
),
noted AS (
    INSERT INTO attention AS a (transaction_id, kind, since, attempts, last_error, next_try)
    SELECT r.id, r.attention, clock.now, 0, 'an operator lets it be tried again', r.wake_at
    FROM rearmed r, clock WHERE r.attention <> 0
    ON CONFLICT (transaction_id) DO UPDATE
    SET kind = excluded.kind, next_try = excluded.next_try, acknowledged = false,
        since = CASE WHEN a.kind < 3 THEN a.since ELSE excluded.since END,
        attempts = CASE WHEN a.kind < 3 THEN a.attempts ELSE 0 END
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot, lane) SELECT wake_at, id, slot, lane FROM rearmed
)
SELECT wake_at FROM rearmed";

/// What it failed with before stays to be seen.
const PAUSE: &str = "\
-- pause
WITH paused AS (
    UPDATE transaction SET attention = 4 WHERE id = $1 AND phase IN (1, 2, 3, 5) AND attention < 3 RETURNING id
)
INSERT INTO attention (transaction_id, kind, since, attempts, last_error)
SELECT id, 4, clock_timestamp(), 0, 'an operator paused it' FROM paused
ON CONFLICT (transaction_id) DO UPDATE SET kind = excluded.kind, since = excluded.since, next_try = NULL";

const ACKNOWLEDGE: &str = "\
-- acknowledge
UPDATE attention SET acknowledged = true WHERE transaction_id = $1 AND kind = 3 AND NOT acknowledged";

const NOTE: &str = "\
-- note_action
INSERT INTO operator_action (acted_at, action, target, actor, address, reason, ticket, plan, before, after)
VALUES (clock_timestamp(), $1, $2, $3, $4, $5, $6, $7, $8, $9)";

const LOCK_SHARD: &str = "\
-- lock_shard
SELECT lost, drained FROM shard WHERE name = $1 FOR NO KEY UPDATE";

const DRAIN_SHARD: &str = "\
-- drain_shard
UPDATE shard SET drained = true WHERE name = $1 AND NOT drained";

const RESUME_SHARD: &str = "\
-- resume_shard
WITH before AS (
    SELECT name, lost FROM shard WHERE name = $1 AND (drained OR lost IS NOT NULL)
),
resumed AS (
    UPDATE shard s SET lost = NULL, drained = false, resumed = s.resumed + CASE WHEN b.lost IS NULL THEN 0 ELSE 1 END
    FROM before b WHERE s.name = b.name
)
-- What it must have is as it is now.
DELETE FROM head h USING before b WHERE h.shard = b.name AND b.lost IS NOT NULL";

/// An instance sees it when it next beats.
const DRAIN_INSTANCE: &str = "\
-- drain_instance
UPDATE instance SET drained = true WHERE id = $1 AND lease_until > clock_timestamp() AND NOT drained";

const ACTIONS: &str = "\
-- actions
SELECT number, acted_at, action, target, actor, address, reason, ticket, plan, before, after
FROM operator_action
WHERE number > $1 AND ($2::text = '' OR target = $2) AND ($3::uuid IS NULL OR plan = $3)
ORDER BY number LIMIT $4";

const INSTANCES: &str = "\
-- instances
SELECT i.id, i.address, i.started_at, i.lease_until, i.settled, i.lease_until > clock_timestamp() AS is_alive,
       (SELECT count(*) FROM slot s WHERE s.owner = i.id) AS slots
FROM instance i ORDER BY i.started_at, i.id";

const ACKNOWLEDGED: &str = "\
-- acknowledged
SELECT count(*) FROM attention a JOIN transaction t ON t.id = a.transaction_id AND t.attention = a.kind WHERE a.acknowledged";

/// Something that an operator can do to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Try what failed now, instead of later.
    Retry,
    /// Take up what was parked.
    Requeue,
    /// Somebody has settled by hand what is parked: nobody needs to look at it any more.
    Acknowledge,
    /// Stop trying.
    Pause,
    /// Go on with what was paused.
    Resume,
    /// Ask the pivot to cancel, whatever the time.
    ForceCancel,
}

/// Who did something, from where, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Who.
    pub actor: String,
    /// From where.
    pub address: String,
    /// Why.
    pub reason: String,
    /// The number of a ticket, or nothing.
    pub ticket: String,
    /// As part of which plan.
    pub plan: Option<Uuid>,
}

/// What became of an action.
#[derive(Debug, Clone)]
pub enum Acted {
    /// It is done and recorded.
    Done {
        /// The transaction as it stands now.
        record: Box<Record>,
        /// Of the wake-up that it left, if it left one.
        wake_at: Option<Timestamp>,
    },
    /// It cannot be done as the transaction stands. Nothing was changed.
    Refused {
        /// The transaction.
        record: Box<Record>,
        /// Why.
        why: &'static str,
    },
    /// The transaction stands otherwise than it did in the plan. Nothing was changed.
    Changed(Box<Record>),
    /// There is no such transaction.
    NotFound,
}

/// A line of the record of actions.
#[derive(Debug, Clone)]
pub struct ActionRow {
    /// 1, 2, 3, …, with gaps where an action was rolled back.
    pub number: i64,
    /// By the coordinator database's clock.
    pub acted_at: Timestamp,
    /// What.
    pub action: String,
    /// To which transaction or shard.
    pub target: String,
    /// By whom and why.
    pub evidence: Evidence,
    /// How it stood before.
    pub before: String,
    /// And after.
    pub after: String,
}

/// A running instance, or one that was there within a day.
#[derive(Debug, Clone)]
pub struct InstanceRow {
    /// Its id.
    pub id: Uuid,
    /// Its machine and where it listens there.
    pub address: String,
    /// Since when.
    pub started_at: Timestamp,
    /// Until when it is taken to be alive.
    pub lease_until: Timestamp,
    /// Whether it is.
    pub is_alive: bool,
    /// How many of the 256 slots it serves.
    pub slots: i64,
    /// How many wake-ups it has looked at.
    pub settled: i64,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 6] =
        [Self::Retry, Self::Requeue, Self::Acknowledge, Self::Pause, Self::Resume, Self::ForceCancel];

    /// As tables, metrics and the command line name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Requeue => "requeue",
            Self::Acknowledge => "acknowledge",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::ForceCancel => "force-cancel",
        }
    }

    /// The reverse of [`Action::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// Why it cannot be done to a transaction that stands like this; `None` if it can.
    #[must_use]
    pub fn refusal(self, standing: &Standing, is_acknowledged: bool) -> Option<&'static str> {
        use Attention::{None as Calm, Parked, Paused, Retrying, Stuck};
        if standing.phase.is_final() {
            return Some("it is final");
        }
        match (self, standing.attention) {
            (Self::Retry, Calm) => Some("nothing of it has failed"),
            (Self::Retry, Parked) => Some("it is parked: requeue it"),
            (Self::Retry, Paused) => Some("it is paused: resume it"),
            (Self::Requeue | Self::Acknowledge, Calm | Retrying | Stuck | Paused) => Some("it is not parked"),
            (Self::Acknowledge, Parked) if is_acknowledged => Some("it is acknowledged already"),
            (Self::Pause, Parked) => Some("it is parked: nothing is tried anyway"),
            (Self::Pause, Paused) => Some("it is paused already"),
            (Self::Resume, Calm | Retrying | Stuck | Parked) => Some("it is not paused"),
            (Self::ForceCancel, _) if standing.phase == Phase::Cancelling => {
                Some("it is being cancelled already: retry or requeue it")
            }
            (Self::ForceCancel, _) if standing.phase == Phase::Confirming && standing.flipped => {
                Some("the payee's shard has decided that it is paid")
            }
            _ => None,
        }
    }
}

impl Store {
    /// Does something to a transaction, unless it stands otherwise than expected.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: it may have been done all the same. Look before repeating it.
    pub async fn act(
        &self,
        id: TransactionId,
        action: Action,
        expected: Option<(Phase, Attention)>,
        evidence: &Evidence,
    ) -> Result<Acted, StoreError> {
        let mut client = self.reader().await?;
        let doing = client.transaction().await?;
        doing.batch_execute("SET LOCAL lock_timeout = '3s'").await?;
        let Some(row) = doing.query_opt(LOCK, &[&id.uuid()]).await? else { return Ok(Acted::NotFound) };
        let mut record = Record::read(&row)?;
        let before = record.standing.clone();
        let as_expected =
            |(phase, attention)| (phase, failing(attention)) == (before.phase, failing(before.attention));
        if !expected.is_none_or(as_expected) {
            return Ok(Acted::Changed(Box::new(record)));
        }
        let was_acknowledged = row.get("acknowledged");
        if let Some(why) = action.refusal(&before, was_acknowledged) {
            return Ok(Acted::Refused { record: Box::new(record), why });
        }

        let wake_at = match action {
            Action::Retry | Action::Requeue | Action::Resume => {
                let horizon_s = WAKE_HORIZON.as_secs_f64();
                crash::statement(REARM);
                Some(doing.query_one(REARM, &[&id.uuid(), &horizon_s]).await?.get("wake_at"))
            }
            Action::Pause => {
                crash::statement(PAUSE);
                expect_one(doing.execute(PAUSE, &[&id.uuid()]).await?, None)?
            }
            Action::Acknowledge => {
                crash::statement(ACKNOWLEDGE);
                expect_one(doing.execute(ACKNOWLEDGE, &[&id.uuid()]).await?, None)?
            }
            Action::ForceCancel => {
                let cancel = Advance { failed: true, ..Advance::new(id, Event::CancelForced) };
                let cancelled = advance_in(&*doing, &cancel).await?;
                cancelled.ok_or_else(moved_under_lock)?.wake_at
            }
        };
        let row = doing.query_one(LOCK, &[&id.uuid()]).await?;
        record = Record::read(&row)?;
        let (before, after) =
            (describe(&before, was_acknowledged), describe(&record.standing, row.get("acknowledged")));
        note(&*doing, action.name(), &id.to_string(), evidence, &before, &after).await?;
        commit(doing).await?;
        Ok(Acted::Done { record: Box::new(record), wake_at })
    }

    /// Stops work on a shard. Whether it was not stopped; `None` if there is no such shard.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn drain_shard(&self, name: &str, evidence: &Evidence) -> Result<Option<bool>, StoreError> {
        self.decide_shard(name, "drain-shard", DRAIN_SHARD, |_, drained| !drained, evidence).await
    }

    /// Lets work on a shard go on. Whether it was stopped, by an operator or because it has lost commits; `None` if there is
    /// no such shard.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn resume_shard(&self, name: &str, evidence: &Evidence) -> Result<Option<bool>, StoreError> {
        let is_stopped = |lost: Option<&str>, drained| drained || lost.is_some();
        self.decide_shard(name, "resume-shard", RESUME_SHARD, is_stopped, evidence).await
    }

    /// Lets an instance leave: it stops in order, as if its process had been told to. `false` if it is not there, or leaves already.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn drain_instance(&self, id: Uuid, evidence: &Evidence) -> Result<bool, StoreError> {
        let mut client = self.reader().await?;
        let doing = client.transaction().await?;
        crash::statement(DRAIN_INSTANCE);
        if doing.execute(DRAIN_INSTANCE, &[&id]).await? == 0 {
            return Ok(false);
        }
        note(&*doing, "drain-instance", &id.to_string(), evidence, "serving", "leaving").await?;
        commit(doing).await?;
        Ok(true)
    }

    async fn decide_shard(
        &self,
        name: &str,
        action: &str,
        sql: &str,
        applies: impl Fn(Option<&str>, bool) -> bool,
        evidence: &Evidence,
    ) -> Result<Option<bool>, StoreError> {
        let mut client = self.reader().await?;
        let doing = client.transaction().await?;
        let describe = |row: &Row| {
            let (lost, drained): (Option<String>, bool) = (row.get("lost"), row.get("drained"));
            match (lost, drained) {
                (Some(lost), _) => format!("stopped: {lost}"),
                (None, true) => "drained".to_owned(),
                (None, false) => "working".to_owned(),
            }
        };
        let Some(row) = doing.query_opt(LOCK_SHARD, &[&name]).await? else { return Ok(None) };
        if !applies(row.get("lost"), row.get("drained")) {
            return Ok(Some(false));
        }
        let before = describe(&row);
        crash::statement(sql);
        doing.execute(sql, &[&name]).await?;
        let after = describe(&doing.query_one(LOCK_SHARD, &[&name]).await?);
        note(&*doing, action, name, evidence, &before, &after).await?;
        commit(doing).await?;
        Ok(Some(true))
    }

    /// What operators did after an action's number, the oldest first: to one target or all, as part of one plan or not.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn actions(
        &self,
        after: i64,
        target: &str,
        plan: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<ActionRow>, StoreError> {
        let rows = self.reader().await?.query(ACTIONS, &[&after, &target, &plan, &limit]).await?;
        let action = |row: &Row| ActionRow {
            number: row.get("number"),
            acted_at: row.get("acted_at"),
            action: row.get("action"),
            target: row.get("target"),
            evidence: Evidence {
                actor: row.get("actor"),
                address: row.get("address"),
                reason: row.get("reason"),
                ticket: row.get("ticket"),
                plan: row.get("plan"),
            },
            before: row.get("before"),
            after: row.get("after"),
        };
        Ok(rows.iter().map(action).collect())
    }

    /// The instances that share this database.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn instances(&self) -> Result<Vec<InstanceRow>, StoreError> {
        let instance = |row: &Row| InstanceRow {
            id: row.get("id"),
            address: row.get("address"),
            started_at: row.get("started_at"),
            lease_until: row.get("lease_until"),
            is_alive: row.get("is_alive"),
            slots: row.get("slots"),
            settled: row.get("settled"),
        };
        Ok(self.reader().await?.query(INSTANCES, &[]).await?.iter().map(instance).collect())
    }

    /// How many parked transactions were settled by hand.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn acknowledged(&self) -> Result<i64, StoreError> {
        Ok(self.reader().await?.query_one(ACKNOWLEDGED, &[]).await?.get(0))
    }
}

pub(super) async fn note(
    client: &impl GenericClient,
    action: &str,
    target: &str,
    evidence: &Evidence,
    before: &str,
    after: &str,
) -> Result<(), StoreError> {
    let Evidence { actor, address, reason, ticket, plan } = evidence;
    crash::statement(NOTE);
    #[rustfmt::skip]
    client.execute(NOTE, &[&action, &target, actor, address, reason, ticket, plan, &before, &after]).await?;
    Ok(())
}

pub(super) async fn commit(doing: Transaction<'_>) -> Result<(), StoreError> {
    doing.commit().await?;
    crash::point("acted");
    Ok(())
}

/// What retries for long is STUCK: to whoever decides about it that is the same.
fn failing(attention: Attention) -> Attention {
    if attention == Attention::Stuck { Attention::Retrying } else { attention }
}

/// A row that is locked does not change but by what is done here.
fn expect_one<T>(written: u64, answer: T) -> Result<T, StoreError> {
    if written == 1 { Ok(answer) } else { Err(moved_under_lock()) }
}

fn moved_under_lock() -> StoreError {
    StoreError::Damaged("a transaction that is locked has changed".to_owned())
}

/// How a transaction stands, for the record.
fn describe(standing: &Standing, is_acknowledged: bool) -> String {
    let attention = format!("{:?}", standing.attention).to_uppercase();
    format!("{} {attention}{}", standing.phase, if is_acknowledged { " ACKNOWLEDGED" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(phase: Phase, attention: Attention) -> Standing {
        Standing { phase, attention, ..Standing::begun(Timestamp::UNIX_EPOCH) }
    }

    #[test]
    fn nothing_can_be_done_to_what_is_final() {
        for action in Action::ALL {
            for phase in [Phase::Confirmed, Phase::Cancelled] {
                for attention in Attention::ALL {
                    assert!(action.refusal(&standing(phase, attention), false).is_some(), "{action:?}");
                }
            }
        }
    }

    #[test]
    fn each_kind_of_attention_has_its_actions() {
        use Attention::{None as Calm, Parked, Paused, Retrying, Stuck};
        let possible = |attention| {
            Action::ALL
                .into_iter()
                .filter(|action| action.refusal(&standing(Phase::Confirming, attention), false).is_none())
                .map(Action::name)
                .collect::<Vec<_>>()
        };

        assert_eq!(possible(Calm), ["pause", "force-cancel"]);
        assert_eq!(possible(Retrying), ["retry", "pause", "force-cancel"]);
        assert_eq!(possible(Stuck), ["retry", "pause", "force-cancel"]);
        assert_eq!(possible(Parked), ["requeue", "acknowledge", "force-cancel"]);
        assert_eq!(possible(Paused), ["resume", "force-cancel"]);
    }

    #[test]
    fn no_operator_cancels_what_is_being_cancelled_or_what_the_pivot_has_turned_to_a_payment() {
        let turned = Standing { flipped: true, ..standing(Phase::Confirming, Attention::Stuck) };

        assert!(Action::ForceCancel.refusal(&turned, false).is_some());
        assert!(
            Action::ForceCancel.refusal(&standing(Phase::Cancelling, Attention::Parked), false).is_some()
        );
    }

    #[test]
    fn names_read_back() {
        assert!(Action::ALL.into_iter().all(|action| Action::from_name(action.name()) == Some(action)));
        assert_eq!(Action::from_name("delete"), None);
    }
}
