//! The one statement that moves a phase on an event.
//!
//! Its guards are derived from `Phase::after`: an event applies only in the phases in which it has a meaning. Three more
//! stand beside them, decided by this database's clock while the row is locked: nothing matures before its due time, no
//! client cancels after it, and the pivot turns a decision round once at most.

use super::{
    RETRY_INTERVAL, WAKE_HORIZON,
    record::{Standing, standing},
};
use std::collections::HashMap;
use tcc_core::{Cause, Event, Phase, Timestamp, TransactionId};
use tcc_participant::{
    Executor, Failure, Session,
    session::{Plans, sort},
};
use tokio_postgres::Config;
use uuid::Uuid;

const ADVANCE: &str = concat!(
    "\
-- advance
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM pg_current_xact_id() AS xid WHERE xid IS NOT NULL
),
advanced AS (
    UPDATE transaction t
    SET phase = i.target,
        cause = coalesce(i.cause, t.cause),
        reason = coalesce(i.reason, t.reason),
        attention = 0,
        flipped = t.flipped OR i.flip,
        held_at = CASE WHEN i.target = 2 THEN clock.now ELSE t.held_at END,
        decided_at = CASE WHEN i.target IN (3, 5) THEN clock.now ELSE t.decided_at END,
        settled_at = CASE WHEN i.target IN (4, 6) THEN clock.now END
    FROM clock, unnest($1::uuid[], $2::int4[], $3::int2[], $4::int2[], $5::int2[], $6::text[], $7::bool[], $8::int2[])
        AS i (id, sources, target, bound, cause, reason, flip, slot)
    WHERE t.id = i.id
      AND (1 << t.phase) & i.sources <> 0
      AND NOT (i.flip AND t.flipped)
      AND CASE i.bound
              WHEN 1 THEN t.due_at > clock_timestamp()
              WHEN 2 THEN t.on_maturity = 1 OR t.due_at > clock_timestamp()
              ELSE true
          END
    RETURNING ",
    standing!(),
    ", t.id, i.slot,
        CASE WHEN i.target = 2 THEN least(greatest(t.due_at, clock.now), clock.now + $10::float8 * interval '1 second')
             WHEN i.target IN (3, 5) THEN clock.now + $9::float8 * interval '1 second' END AS wake_at
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot) SELECT wake_at, id, slot FROM advanced WHERE wake_at IS NOT NULL
),
calmed AS (
    DELETE FROM attention a USING advanced WHERE a.transaction_id = advanced.id
)
SELECT ",
    standing!(),
    ", t.id, t.wake_at FROM advanced t"
);

/// Asks for an event to happen to a transaction.
#[derive(Debug, Clone)]
pub struct Advance {
    /// Which.
    pub id: TransactionId,
    /// What happens.
    pub event: Event,
    /// Why, for refusals and vetoes.
    pub reason: Option<String>,
}

/// It happened. (`None` instead of it: it has no meaning in the phase the row is in now, or a guard forbade it.)
#[derive(Debug, Clone)]
pub struct Advanced {
    /// How the transaction stands now.
    pub standing: Standing,
    /// Of the wake-up that the statement left, unless the phase is final.
    pub wake_at: Option<Timestamp>,
}

/// What else must hold, as `i.bound` in the statement.
#[derive(Clone, Copy)]
enum Bound {
    None = 0,
    BeforeDue = 1,
    BeforeDueUnlessItPays = 2,
}

fn bound(event: Event) -> Bound {
    match event {
        Event::CancelRequested => Bound::BeforeDue,
        Event::ConfirmRequested => Bound::BeforeDueUnlessItPays,
        _ => Bound::None,
    }
}

/// The phases in which an event applies, one bit each.
fn sources(event: Event) -> i32 {
    event.sources().map(|phase: Phase| 1 << phase.number()).sum()
}

/// Moves batches.
pub struct AdvanceExecutor {
    session: Session,
}

impl AdvanceExecutor {
    /// Not connected yet.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { session: Session::new(config, "tccd-advance", Plans::Generic) }
    }

    /// Moves in rounds, in each of which an id is there once.
    async fn rounds(
        &mut self,
        items: &[Advance],
        rounds: &[Vec<usize>],
    ) -> Result<Vec<Option<Advanced>>, Failure> {
        let mut answers: Vec<Option<Advanced>> = items.iter().map(|_| None).collect();
        for round in rounds {
            let batch: Vec<&Advance> = round.iter().map(|n| &items[*n]).collect();
            let mut moved = self.round(&batch).await?;
            for n in round {
                answers[*n] = moved.remove(&items[*n].id.uuid());
            }
        }
        Ok(answers)
    }

    /// Moves each id once.
    async fn round(&mut self, items: &[&Advance]) -> Result<HashMap<Uuid, Advanced>, Failure> {
        let ids: Vec<Uuid> = items.iter().map(|item| item.id.uuid()).collect();
        let from: Vec<i32> = items.iter().map(|item| sources(item.event)).collect();
        let target: Vec<i16> = items.iter().map(|item| item.event.target().number()).collect();
        let bounds: Vec<i16> = items.iter().map(|item| bound(item.event) as i16).collect();
        let cause: Vec<Option<i16>> =
            items.iter().map(|item| item.event.cause().map(Cause::number)).collect();
        let reason: Vec<Option<&str>> = items.iter().map(|item| item.reason.as_deref()).collect();
        let flip: Vec<bool> = items.iter().map(|item| item.event.is_flip()).collect();
        let slot: Vec<i16> = items.iter().map(|item| i16::from(item.id.slot())).collect();

        let statement = self.session.statement(ADVANCE)?;
        #[rustfmt::skip]
        let rows = self.session.client()?.query(statement, &[
            &ids, &from, &target, &bounds, &cause, &reason, &flip, &slot,
            &RETRY_INTERVAL.as_secs_f64(), &WAKE_HORIZON.as_secs_f64(),
        ]).await.map_err(|e| sort(&e))?;
        self.session.settle()?;

        let advanced = |row: &tokio_postgres::Row| {
            let standing = Standing::read(row).map_err(|e| Failure::Rejected(e.to_string()))?;
            Ok((row.get("id"), Advanced { standing, wake_at: row.get("wake_at") }))
        };
        rows.iter().map(advanced).collect()
    }
}

impl Executor for AdvanceExecutor {
    type Item = Advance;
    type Answer = Option<Advanced>;

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[ADVANCE]).await
    }

    async fn run(&mut self, items: &[Advance]) -> Result<Vec<Option<Advanced>>, Failure> {
        // One UPDATE applies one of several rows for the same id, silently: what is there twice waits for the next round.
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|n| items[*n].id);
        let mut rounds: Vec<Vec<usize>> = Vec::new();
        for n in order {
            let has_id =
                |round: &&mut Vec<usize>| round.last().is_none_or(|last| items[*last].id != items[n].id);
            match rounds.iter_mut().find(has_id) {
                Some(round) => round.push(n),
                None => rounds.push(vec![n]),
            }
        }
        if let [round] = rounds.as_slice() {
            return self.rounds(items, std::slice::from_ref(round)).await;
        }
        // All rounds or none: if one fails, the answers of those before it would be lost.
        self.session.client()?.batch_execute("BEGIN").await.map_err(|e| sort(&e))?;
        let done = self.rounds(items, &rounds).await;
        let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = self.session.client()?.batch_execute(end).await;
        ended.map_err(|e| Failure::Disconnected(e.to_string()))?;
        self.session.settle()?;
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guards_are_those_of_the_phase_table() {
        assert_eq!(sources(Event::Tried), 1 << 1);
        assert_eq!(sources(Event::CancelRequested), 1 << 1 | 1 << 2);
        assert_eq!(sources(Event::AllConfirmed), 1 << 3);
        assert_eq!(sources(Event::PivotConfirmed), 1 << 5);
    }
}
