//! Idempotency keys: which transaction a caller's key stands for.
//!
//! A key is claimed before its transaction is begun, in a commit of its own, with an id that the server has made. Whoever asks
//! with the same key gets the same id, and goes on as somebody who repeats that id; so a crash between the two leaves nothing
//! but a claim, and of two who ask at once one begins and the other waits. The transaction is begun only on the server that has
//! the key: one that took its place may not have it. A creation by id pays nothing for this.
//!
//! A database that went back may have forgotten claims. Every fence keeps the key, so the sweep finds those that matter; until
//! it has come to its end on the present server no new key is claimed. The statement itself makes sure of the server.

use super::{Store, StoreError};
use std::{collections::HashMap, time::Duration};
use tcc_core::{IdempotencyKey, Timestamp, TransactionId};
use tcc_participant::{
    Batcher, Executor, Failure, Postgres, Session,
    batch::Limits,
    session::{Plans, sort},
};
use uuid::Uuid;

/// How long a key is kept after its transaction is final.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);
/// A transaction is final some time after it is due: then one look is enough to forget its key.
const SETTLING: Duration = Duration::from_secs(3_600);
/// How many keys are forgotten at a time.
const PURGE: i64 = 1_000;

/// Inserts what is new, unless the server is another one than the claim takes it to be.
pub(super) const CLAIM: &str = "\
-- claim
INSERT INTO idempotency (caller, key, transaction_id, look_at)
SELECT i.caller, i.key, i.id, greatest(i.due_at, clock_timestamp()) + $6::float8 * interval '1 second'
FROM unnest($1::text[], $2::text[], $3::uuid[], $4::timestamptz[], $5::timestamptz[]) AS i (caller, key, id, due_at, server)
WHERE i.server IS NULL OR i.server = pg_postmaster_start_time()
ON CONFLICT (caller, key) DO NOTHING";

/// A statement of its own, which sees what others have inserted while that one waited for them.
pub(super) const CLAIMED: &str = "\
-- claimed
SELECT k.caller, k.key, k.transaction_id, pg_postmaster_start_time() AS server
FROM unnest($1::text[], $2::text[]) AS i (caller, key)
JOIN idempotency k ON k.caller = i.caller AND k.key = i.key";

/// Looks at the keys whose time has come: those of transactions that have been final for long, or were never begun, go.
const PURGE_KEYS: &str = "\
-- purge_keys
WITH seen AS MATERIALIZED (
    SELECT k.caller, k.key, t.id IS NULL OR coalesce(t.settled_at < clock_timestamp() - $2::float8 * interval '1 second', false) AS is_over,
           greatest(coalesce(t.settled_at, t.due_at), clock_timestamp() - $2::float8 * interval '1 second')
               + $3::float8 * interval '1 second' AS look_at
    FROM (SELECT * FROM idempotency WHERE look_at < clock_timestamp() ORDER BY look_at LIMIT $1) k
    LEFT JOIN transaction t ON t.id = k.transaction_id
),
gone AS (
    DELETE FROM idempotency k USING seen s WHERE k.caller = s.caller AND k.key = s.key AND s.is_over RETURNING 1
),
kept AS (
    UPDATE idempotency k SET look_at = s.look_at FROM seen s WHERE k.caller = s.caller AND k.key = s.key AND NOT s.is_over
)
SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM gone) AS gone";

/// Asks which transaction a key stands for: this one, if it is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The key.
    pub key: IdempotencyKey,
    /// What it is to stand for.
    pub id: TransactionId,
    /// When that falls due.
    pub due_at: Timestamp,
    /// When the server started that is known to have forgotten no key; `None` for whoever finds forgotten keys.
    pub server: Option<Timestamp>,
}

/// What a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// Which transaction.
    pub id: TransactionId,
    /// When the server started that says so.
    pub server: Timestamp,
}

/// The keys of all callers.
#[derive(Clone)]
pub struct Keys {
    claims: Batcher<Claim, Option<Claimed>>,
    store: Store,
}

impl Keys {
    /// Starts its batcher, which connects by itself and keeps trying.
    #[must_use]
    pub fn start(database: &Postgres, store: Store) -> Self {
        let executor = ClaimExecutor { session: Session::new(database, "tccd-keys", Plans::Generic) };
        Self { claims: Batcher::start("keys", vec![executor], Limits::default()), store }
    }

    /// The transaction that a key stands for from now on. `None`: it is new, and the server may have forgotten keys.
    ///
    /// # Errors
    ///
    /// [`StoreError`]. It may have been claimed.
    pub async fn claim(&self, claim: Claim) -> Result<Option<Claimed>, StoreError> {
        Ok(self.claims.call(claim).await?)
    }

    /// The transaction that a key stands for, if it is known.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn find(&self, key: &IdempotencyKey) -> Result<Option<Claimed>, StoreError> {
        let client = self.store.reader().await?;
        let (callers, keys) = (vec![key.caller()], vec![key.key()]);
        let row = client.query_opt(CLAIMED, &[&callers, &keys]).await?;
        row.map(|row| {
            let id: Uuid = row.get("transaction_id");
            let known = TransactionId::from_uuid(id).map(|id| Claimed { id, server: row.get("server") });
            known.map_err(|e| StoreError::Damaged(format!("{id}: {e}")))
        })
        .transpose()
    }

    /// Forgets keys whose transactions have been final for 7 days, or were never begun. Answers how many.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn purge(&self) -> Result<i64, StoreError> {
        let client = self.store.reader().await?;
        let (kept, look) = (KEPT.as_secs_f64(), (KEPT + SETTLING).as_secs_f64());
        let mut forgotten = 0;
        loop {
            let row = client.query_one(PURGE_KEYS, &[&PURGE, &kept, &look]).await?;
            forgotten += row.get::<_, i64>("gone");
            if row.get::<_, i64>("seen") < PURGE {
                return Ok(forgotten);
            }
        }
    }
}

/// Claims keys on a connection that has prepared both statements. Answers what each stands for, in the order of the claims.
pub(super) async fn claim(session: &Session, claims: &[&Claim]) -> Result<Vec<Option<Claimed>>, Failure> {
    // Each once, in the order of the keys, so that two batches cannot deadlock. The first one of several has it.
    let mut sorted = claims.to_vec();
    sorted.sort_by(|one, other| one.key.cmp(&other.key));
    sorted.dedup_by(|one, before| one.key == before.key);
    let callers: Vec<&str> = sorted.iter().map(|claim| claim.key.caller()).collect();
    let keys: Vec<&str> = sorted.iter().map(|claim| claim.key.key()).collect();
    let ids: Vec<Uuid> = sorted.iter().map(|claim| claim.id.uuid()).collect();
    let due: Vec<Timestamp> = sorted.iter().map(|claim| claim.due_at).collect();
    let servers: Vec<Option<Timestamp>> = sorted.iter().map(|claim| claim.server).collect();
    let look_after = (KEPT + SETTLING).as_secs_f64();

    let (client, insert, select) =
        (session.client()?, session.statement(CLAIM)?, session.statement(CLAIMED)?);
    client
        .execute(insert, &[&callers, &keys, &ids, &due, &servers, &look_after])
        .await
        .map_err(|e| sort(&e))?;
    let rows = client.query(select, &[&callers, &keys]).await.map_err(|e| sort(&e))?;
    let claimed: HashMap<(&str, &str), (Uuid, Timestamp)> = rows
        .iter()
        .map(|row| ((row.get("caller"), row.get("key")), (row.get("transaction_id"), row.get("server"))))
        .collect();
    let answer = |claim: &&Claim| {
        let (id, server) = *claimed.get(&(claim.key.caller(), claim.key.key()))?;
        Some(Claimed { id: TransactionId::from_uuid(id).ok()?, server })
    };
    Ok(claims.iter().map(answer).collect())
}

/// Claims batches.
struct ClaimExecutor {
    session: Session,
}

impl Executor for ClaimExecutor {
    type Item = Claim;
    type Answer = Option<Claimed>;

    fn is_connected(&self) -> bool {
        self.session.is_connected()
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.session.connect(&[CLAIM, CLAIMED]).await
    }

    async fn run(&mut self, items: &[Claim]) -> Result<Vec<Option<Claimed>>, Failure> {
        let answers = claim(&self.session, &items.iter().collect::<Vec<_>>()).await?;
        self.session.settle()?;
        Ok(answers)
    }
}
