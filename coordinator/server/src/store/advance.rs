//! The one statement that moves a phase on an event.
//!
//! Its guards are derived from `Phase::after`: an event applies only in the phases in which it has a meaning. Seven more
//! stand beside them, decided while the row is locked: no client decides about what is not its own, a hold being nobody's here;
//! by this database's clock no client cancels or releases after the due time; who has seen it in a phase may ask for it to happen in that phase only; the pivot turns a decision round once at most,
//! and what it has turned to a payment no operator turns back; and what Try has come to counts only on the server that it began on,
//! since another one may have gone back, and what it says is TRYING may have been held and cancelled since.

use super::{
    Place, RETRY_INTERVAL, StoreError, WAKE_HORIZON,
    open::{TAKE_STRIPE, take_stripe},
    record::{Standing, standing, transaction},
};
use std::{collections::HashMap, sync::Arc};
use tcc_core::{Cause, Event, Phase, Timestamp, Transaction, TransactionId};
use tcc_participant::{
    Executor, Failure, Postgres, Session, crash,
    session::{Plans, sort},
};
use tokio_postgres::{GenericClient, Row, ToStatement};
use uuid::Uuid;

/// What an event does is looked up in arrays by its number, so that each item brings little more than that.
const ADVANCE: &str = concat!(
    "\
-- advance
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM pg_current_xact_id() AS xid WHERE xid IS NOT NULL
),
advanced AS (
    UPDATE transaction t
    SET phase = e.target,
        -- What leaves HELD for no other cause was due. If it was not, somebody had asked, and this database has forgotten that.
        cause = coalesce(e.cause, t.cause, CASE WHEN e.target <> 2 THEN
            CASE WHEN t.due_at <= coalesce(i.found_due_at, clock.now) THEN 5 ELSE 3 END
        END),
        reason = coalesce(i.reason, t.reason),
        -- Who paused it lets it go on.
        attention = CASE WHEN t.attention = 4 AND e.target NOT IN (4, 6) THEN 4 ELSE 0 END,
        flipped = t.flipped OR e.flip,
        held_at = CASE WHEN e.target = 2 THEN clock.now ELSE t.held_at END,
        decided_at = CASE WHEN e.target IN (3, 5) THEN clock.now
                          WHEN e.target IN (4, 6) THEN coalesce(t.decided_at, i.found_due_at, clock.now) END,
        settled_at = CASE WHEN e.target IN (4, 6) THEN clock.now END
    FROM clock,
        unnest($1::uuid[], $2::int2[], $3::text[], $4::timestamptz[], $5::bool[], $13::timestamptz[], $14::timestamptz[],
               $15::text[])
            AS i (id, event, reason, found_due_at, failed, open, server, owner)
        CROSS JOIN LATERAL (
            SELECT ($6::int4[])[i.event & 15] AS sources, ($7::int2[])[i.event & 15] AS target, ($8::int2[])[i.event & 15] AS cause,
                   ($9::int2[])[i.event & 15] AS bound, ($10::bool[])[i.event & 15] AS flip
        ) AS e
    WHERE t.id = i.id
      AND (1 << t.phase) & e.sources <> 0
      AND (i.event < 16 OR t.phase = i.event >> 4)
      AND NOT (e.flip AND t.flipped)
      AND CASE e.bound
              WHEN 1 THEN t.owner IS NOT DISTINCT FROM i.owner AND t.due_at > clock_timestamp()
              WHEN 2 THEN t.owner IS NOT DISTINCT FROM i.owner AND t.attention < 3
                      AND (t.on_maturity = 1 OR t.due_at > clock_timestamp())
              WHEN 3 THEN i.server = pg_postmaster_start_time()
              WHEN 4 THEN NOT (t.phase = 3 AND t.flipped)
              ELSE true
          END
    RETURNING ",
    standing!(),
    ", t.id, t.slot, t.lane, i.failed, i.open, t.counted_for, CASE WHEN e.bound IN (1, 2, 4) THEN t.descriptor END AS descriptor,
        CASE WHEN t.phase = 2 THEN least(greatest(t.due_at, clock.now), clock.now + $12::float8 * interval '1 second')
             WHEN t.phase IN (3, 5) THEN clock.now + $11::float8 * interval '1 second' END AS wake_at
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot, lane)
    -- What is open at that very time need not be left there again.
    SELECT wake_at, id, slot, lane FROM advanced WHERE wake_at IS NOT NULL AND wake_at IS DISTINCT FROM open
),
calmed AS (
    DELETE FROM attention a USING advanced
    WHERE advanced.failed AND advanced.attention = 0 AND a.transaction_id = advanced.id
),
counted AS (
    INSERT INTO open_count AS o (caller, stripe, open)
    SELECT counted_for, $16::int2, -count(*) FROM advanced WHERE phase IN (4, 6) AND counted_for IS NOT NULL GROUP BY counted_for
    ON CONFLICT (caller, stripe) DO UPDATE SET open = o.open + excluded.open
)
SELECT ",
    standing!(),
    ", t.id, t.slot, t.lane, t.descriptor, t.wake_at FROM advanced t"
);

/// Where operators would count, if what they ask for could end a transaction: it is for its participants to do that.
const NOBODYS_STRIPE: i16 = -1;

/// Asks for an event to happen to a transaction.
#[derive(Debug, Clone)]
pub struct Advance {
    /// Which.
    pub id: TransactionId,
    /// What happens.
    pub event: Event,
    /// Why, for refusals and vetoes.
    pub reason: Option<String>,
    /// When the store found it due, if that is why it happens.
    pub found_due_at: Option<Timestamp>,
    /// It may have failed before, which is to be forgotten.
    pub failed: bool,
    /// The wake-up that is open for it as far as the one who asks knows, and stays open if it stands where the next one is to.
    pub open: Option<Timestamp>,
    /// When the server started on which it was read as TRYING, if that is what it moves from.
    pub server: Option<Timestamp>,
    /// The one phase in which it is to happen, if the one who asks wants that.
    pub only_from: Option<Phase>,
    /// Whose it must be if a client asks; `None` for a hold.
    pub owner: Option<String>,
}

/// It happened. (`None` instead of it: it has no meaning in the phase the row is in now, or a guard forbade it.)
#[derive(Debug, Clone)]
pub struct Advanced {
    /// How the transaction stands now.
    pub standing: Standing,
    /// Where its wake-ups stand.
    pub place: Place,
    /// What it is, if a client has asked, who may not know.
    pub transaction: Option<Arc<Transaction>>,
    /// Of the wake-up that finds it from now on, unless the phase is final.
    pub wake_at: Option<Timestamp>,
}

impl Advance {
    /// An event with no more to say about it, for a transaction that has not failed.
    #[must_use]
    pub fn new(id: TransactionId, event: Event) -> Self {
        Self {
            id,
            event,
            reason: None,
            found_due_at: None,
            failed: false,
            open: None,
            server: None,
            only_from: None,
            owner: None,
        }
    }

    /// As the statement has it: the event's number in four bits, and above them the phase in which it is to happen, or 0.
    fn number(&self) -> i16 {
        Table::number(self.event) | self.only_from.map_or(0, Phase::number) << 4
    }
}

/// What an event does, by its position in [`Event::ALL`], as the statement's arrays.
struct Table {
    /// The phases in which it applies, one bit each.
    sources: Vec<i32>,
    target: Vec<i16>,
    cause: Vec<Option<i16>>,
    /// A client asks, about its own: 1, only before the due time; 2, likewise, unless it is paid then anyway. 3: only if the database cannot
    /// have gone back since the branches were asked. 4, an operator asks: not if the pivot has turned it to a payment.
    bound: Vec<i16>,
    flip: Vec<bool>,
}

impl Table {
    fn new() -> Self {
        let events = Event::ALL.into_iter();
        Self {
            sources: events
                .clone()
                .map(|event| event.sources().map(|phase| 1 << phase.number()).sum())
                .collect(),
            target: events.clone().map(|event| event.target().number()).collect(),
            cause: events.clone().map(|event| event.cause().map(Cause::number)).collect(),
            bound: events
                .clone()
                .map(|event| match event {
                    Event::CancelRequested => 1,
                    Event::ConfirmRequested => 2,
                    Event::Tried | Event::TimedOut => 3,
                    Event::CancelForced => 4,
                    _ => 0,
                })
                .collect(),
            flip: events.map(Event::is_flip).collect(),
        }
    }

    /// Asks for each of these to happen, each id once.
    async fn query<S>(
        &self,
        client: &impl GenericClient,
        statement: &S,
        items: &[&Advance],
        stripe: i16,
    ) -> Result<Vec<Row>, tokio_postgres::Error>
    where
        S: ?Sized + ToStatement + Sync + Send,
    {
        let ids: Vec<Uuid> = items.iter().map(|item| item.id.uuid()).collect();
        let events: Vec<i16> = items.iter().map(|item| item.number()).collect();
        let reasons: Vec<Option<&str>> = items.iter().map(|item| item.reason.as_deref()).collect();
        let due: Vec<Option<Timestamp>> = items.iter().map(|item| item.found_due_at).collect();
        let failed: Vec<bool> = items.iter().map(|item| item.failed).collect();
        let open: Vec<Option<Timestamp>> = items.iter().map(|item| item.open).collect();
        let servers: Vec<Option<Timestamp>> = items.iter().map(|item| item.server).collect();
        let owners: Vec<Option<&str>> = items.iter().map(|item| item.owner.as_deref()).collect();
        let Self { sources, target, cause, bound, flip } = self;
        #[rustfmt::skip]
        let rows = client.query(statement, &[
            &ids, &events, &reasons, &due, &failed, sources, target, cause, bound, flip,
            &RETRY_INTERVAL.as_secs_f64(), &WAKE_HORIZON.as_secs_f64(), &open, &servers, &owners, &stripe,
        ]).await;
        rows
    }

    /// The position of an event, counted from 1 as SQL does.
    fn number(event: Event) -> i16 {
        event as i16 + 1
    }
}

/// Moves batches.
pub struct AdvanceExecutor {
    session: Session,
    stripe: i16,
    table: Table,
}

impl AdvanceExecutor {
    /// Not connected yet.
    #[must_use]
    pub fn new(database: &Postgres) -> Self {
        let session = Session::new(database, "tccd-advance", Plans::Generic);
        Self { session, stripe: 0, table: Table::new() }
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
        let statement = self.session.statement(ADVANCE)?;
        let client = self.session.client()?;
        let rows = self.table.query(client, statement, items, self.stripe).await.map_err(|e| sort(&e))?;
        self.session.settle()?;
        // It is committed: a row that cannot be read is its own trouble, which whoever looks at it next will meet.
        let read = |row: &Row| {
            read(row).inspect_err(|error| tracing::error!(%error, "a transaction is damaged")).ok()
        };
        Ok(rows.iter().filter_map(|row| Some((row.get("id"), read(row)?))).collect())
    }
}

/// Moves one transaction inside of a transaction of the database, which is for the caller to commit.
pub(super) async fn advance_in(
    client: &impl GenericClient,
    item: &Advance,
) -> Result<Option<Advanced>, StoreError> {
    crash::statement(ADVANCE);
    let rows = Table::new().query(client, ADVANCE, &[item], NOBODYS_STRIPE).await?;
    rows.first().map(read).transpose()
}

fn read(row: &Row) -> Result<Advanced, StoreError> {
    let descriptor: Option<Vec<u8>> = row.get("descriptor");
    Ok(Advanced {
        standing: Standing::read(row)?,
        place: Place::read(row),
        transaction: descriptor.map(|bytes| transaction(row.get("id"), bytes)).transpose()?,
        wake_at: row.get("wake_at"),
    })
}

impl Executor for AdvanceExecutor {
    type Item = Advance;
    type Answer = Option<Advanced>;

    fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[ADVANCE, TAKE_STRIPE]).await?;
        self.stripe = take_stripe(&self.session).await?;
        Ok(())
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
        let table = Table::new();
        let sources = |event| table.sources[usize::from(Table::number(event).unsigned_abs()) - 1];

        assert_eq!(sources(Event::Tried), 1 << 1);
        assert_eq!(sources(Event::CancelRequested), 1 << 1 | 1 << 2);
        assert_eq!(sources(Event::AllConfirmed), 1 << 2 | 1 << 3);
        assert_eq!(sources(Event::PivotConfirmed), 1 << 2 | 1 << 5);
    }

    #[test]
    fn an_event_stands_at_its_own_number() {
        for (n, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(usize::try_from(Table::number(event)), Ok(n + 1));
        }
        assert!(Event::ALL.len() < 16, "four bits");
    }

    #[test]
    fn the_phase_in_which_it_is_to_happen_stands_above_the_event() {
        let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [1; 10]);
        let cancel = Advance::new(id, Event::CancelRequested);

        assert_eq!(cancel.number(), Table::number(Event::CancelRequested));
        let only_held = Advance { only_from: Some(Phase::Held), ..cancel };
        assert_eq!(
            (only_held.number() & 15, only_held.number() >> 4),
            (Table::number(Event::CancelRequested), 2)
        );
    }
}
