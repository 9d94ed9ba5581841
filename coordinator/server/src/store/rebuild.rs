//! Rows that this database lost, written anew from what the fences say.
//!
//! Looking whether a row is missing and writing it stand on one connection: a database that went back has closed it, and what
//! was concluded from the one before is void.
//!
//! A fence keeps its caller's key, so keys are written anew, too, before the rows. If a key stands for another transaction by
//! now, its caller was told of that one: no new key is claimed before whatever a caller was told of before the loss is found.
//! What comes to light later was held for nobody, and is released.

use super::{
    Place, WAKE_HORIZON, alone,
    keys::{self, CLAIM, CLAIMED, Claim},
};
use std::{collections::HashSet, sync::Arc};
use tcc_core::{Cause, Phase, Timestamp, Transaction, TransactionId};
use tcc_participant::{
    Failure, Postgres, Session,
    session::{Plans, sort},
};
use uuid::Uuid;

const MISSING: &str = "\
-- missing
SELECT i.id FROM unnest($1::uuid[]) AS i (id) WHERE NOT EXISTS (SELECT FROM transaction t WHERE t.id = i.id)";

const SWEPT: &str = "\
-- swept
SELECT n.server, s.seen_until, s.server IS NOT DISTINCT FROM n.server AS is_here
FROM (SELECT pg_postmaster_start_time()) AS n (server) LEFT JOIN sweep s ON s.shard = $1";

const SET_SWEPT: &str = "\
-- set_swept
INSERT INTO sweep (shard, seen_until, server) VALUES ($1, $2, pg_postmaster_start_time())
ON CONFLICT (shard) DO UPDATE SET seen_until = excluded.seen_until, server = excluded.server";

/// What is not known of it any more is put as it would have gone: if the pivot did what is done at the due time, and that has
/// passed, it was due; otherwise somebody asked.
const REBUILD: &str = "\
-- rebuild
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now FROM pg_current_xact_id() AS xid WHERE xid IS NOT NULL
),
rebuilt AS (
    INSERT INTO transaction
        (id, phase, cause, reason, flipped, on_maturity, slot, lane, due_at, created_at, held_at, decided_at, descriptor, owner)
    SELECT i.id, i.phase,
        CASE WHEN i.phase NOT IN (1, 2) THEN
            coalesce(i.cause, CASE WHEN i.due_at <= clock.now AND i.phase = 2 * i.on_maturity + 1 THEN 5 ELSE 3 END)
        END,
        -- A pivot that has decided does not turn round.
        i.reason, i.is_decided, i.on_maturity, i.slot, i.lane, i.due_at, clock.now,
        -- What is TRYING may have been held.
        CASE WHEN i.phase IN (1, 2, 3) THEN clock.now END,
        CASE WHEN i.phase IN (3, 5) THEN clock.now END,
        i.descriptor, i.owner
    FROM clock, unnest($1::uuid[], $2::int2[], $3::int2[], $4::text[], $5::bool[], $6::int2[], $7::int2[], $8::int2[],
                       $9::timestamptz[], $10::bytea[], $12::text[])
        AS i (id, phase, cause, reason, is_decided, on_maturity, slot, lane, due_at, descriptor, owner)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, slot, lane,
        CASE WHEN phase = 2 THEN least(greatest(due_at, created_at), created_at + $11::float8 * interval '1 second')
             ELSE created_at END AS wake_at
),
woken AS (
    INSERT INTO wakeup (wake_at, transaction_id, slot, lane) SELECT wake_at, id, slot, lane FROM rebuilt
)
SELECT id, slot, lane, wake_at FROM rebuilt";

/// How far a shard has been swept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// When the server of this database started.
    pub server: Timestamp,
    /// Every fence that was written before this time, by the shard's clock, has been looked at, as far as this database
    /// remembers; `None` before the first time.
    pub seen_until: Option<Timestamp>,
    /// That was done on this server: it has lost nothing since.
    pub is_here: bool,
}

/// A row to be written.
#[derive(Debug, Clone)]
pub struct Rebuild {
    /// What it is, as its fences keep it.
    pub transaction: Arc<Transaction>,
    /// Where its wake-ups are to stand.
    pub place: Place,
    /// Where it stands, by its fences.
    pub phase: Phase,
    /// Why, if they say so.
    pub cause: Option<Cause>,
    /// Why it was refused or vetoed.
    pub reason: Option<String>,
    /// The pivot has decided.
    pub is_decided: bool,
}

/// A row that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// Which.
    pub id: TransactionId,
    /// Where its wake-ups stand.
    pub place: Place,
    /// The one that finds it.
    pub wake_at: Timestamp,
}

/// One connection that finds what is missing and writes it.
pub struct Rebuilder {
    session: Session,
}

impl Rebuilder {
    /// Not connected yet.
    #[must_use]
    pub fn new(database: &Postgres) -> Self {
        Self { session: Session::new(database, "tccd-sweep", Plans::Generic) }
    }

    /// Connects anew, and says whether this is the only one that sweeps `shard`: until it disconnects.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn lock(&mut self, shard: &str) -> Result<bool, Failure> {
        self.session.connect(&[MISSING, REBUILD, SWEPT, SET_SWEPT, CLAIM, CLAIMED]).await?;
        alone(&self.session, "sweep", shard).await
    }

    /// How far `shard` has been swept.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn swept(&self, shard: &str) -> Result<Swept, Failure> {
        let statement = self.session.statement(SWEPT)?;
        let row = self.session.client()?.query_one(statement, &[&shard]).await.map_err(|e| sort(&e))?;
        let (server, is_here) = (row.get("server"), row.get("is_here"));
        Ok(Swept { server, seen_until: row.get("seen_until"), is_here })
    }

    /// Notes how far a shard has been swept, on this server.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn set_swept(&self, shard: &str, seen_until: Timestamp) -> Result<(), Failure> {
        let statement = self.session.statement(SET_SWEPT)?;
        let done = self.session.client()?.execute(statement, &[&shard, &seen_until]).await;
        done.map(drop).map_err(|e| sort(&e))
    }

    /// Gives the lock back.
    pub fn disconnect(&mut self) {
        self.session.disconnect();
    }

    /// Which of these there is no row for. They have fences, and a row is committed before the first fence is asked for.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn missing(&self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Failure> {
        let statement = self.session.statement(MISSING)?;
        let rows = self.session.client()?.query(statement, &[&ids]).await.map_err(|e| sort(&e))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Writes rows, but for those that are there meanwhile.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn rebuild(&mut self, rows: &[Rebuild]) -> Result<Vec<Rebuilt>, Failure> {
        let mut sorted: Vec<Rebuild> = rows.to_vec();
        sorted.sort_by_key(|row| row.transaction.id);
        self.rebuild_keys(&mut sorted).await?;
        let each = || sorted.iter();
        let ids: Vec<Uuid> = each().map(|row| row.transaction.id.uuid()).collect();
        let phases: Vec<i16> = each().map(|row| row.phase.number()).collect();
        let causes: Vec<Option<i16>> = each().map(|row| row.cause.map(Cause::number)).collect();
        let reasons: Vec<Option<&str>> = each().map(|row| row.reason.as_deref()).collect();
        let decided: Vec<bool> = each().map(|row| row.is_decided).collect();
        let on_maturity: Vec<i16> =
            each().map(|row| row.transaction.descriptor.on_maturity.number()).collect();
        let slots: Vec<i16> = each().map(|row| i16::from(row.place.slot)).collect();
        let lanes: Vec<i16> = each().map(|row| i16::from(row.place.lane)).collect();
        let due_at: Vec<Timestamp> = each().map(|row| row.transaction.descriptor.due_at).collect();
        let owners: Vec<Option<&str>> =
            each().map(|row| row.transaction.descriptor.owner.as_deref()).collect();
        let descriptors: Vec<&[u8]> = each().map(|row| row.transaction.encoded.as_slice()).collect();

        let statement = self.session.statement(REBUILD)?;
        #[rustfmt::skip]
        let rows = self.session.client()?.query(statement, &[
            &ids, &phases, &causes, &reasons, &decided, &on_maturity, &slots, &lanes, &due_at, &descriptors,
            &WAKE_HORIZON.as_secs_f64(), &owners,
        ]).await.map_err(|e| sort(&e))?;
        self.session.settle()?;
        let rebuilt = rows.iter().filter_map(|row| {
            let id = TransactionId::from_uuid(row.get("id")).ok()?;
            Some(Rebuilt { id, place: Place::read(row), wake_at: row.get("wake_at") })
        });
        Ok(rebuilt.collect())
    }

    /// Writes the keys of rows that have one. What is held under a key that stands for something else by now is released.
    async fn rebuild_keys(&self, rows: &mut [Rebuild]) -> Result<(), Failure> {
        let claim = |row: &Rebuild| {
            let Transaction { id, descriptor, .. } = &*row.transaction;
            let key = descriptor.key.clone()?;
            Some(Claim { key, id: *id, due_at: descriptor.due_at, server: None })
        };
        let claims: Vec<Claim> = rows.iter().filter_map(claim).collect();
        if claims.is_empty() {
            return Ok(());
        }
        let claimed = keys::claim(&self.session, &claims.iter().collect::<Vec<_>>()).await?;
        let rows = rows.iter_mut().filter(|row| row.transaction.descriptor.key.is_some());
        for (row, claimed) in rows.zip(claimed) {
            if claimed.map(|claimed| claimed.id) != Some(row.transaction.id)
                && matches!(row.phase, Phase::Held | Phase::Trying)
            {
                (row.phase, row.cause) = (Phase::Cancelling, Some(Cause::TimedOut));
            }
        }
        Ok(())
    }
}
