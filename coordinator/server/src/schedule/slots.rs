//! Who serves the wake-ups: one instance, all 256 slots.
//!
//! An instance that starts takes every slot at once, with a new epoch; one that finds its slots taken stops. Leases only say
//! who reads the table. Safety never rests on them: phases are compare-and-set, and the participants' fences decide.

use super::Clock;
use std::time::{Duration, Instant};
use tcc_core::Timestamp;
use tcc_participant::{Failure, Session, session::sort};
use uuid::Uuid;

/// How often a lease is renewed.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

const TAKE: &str = "\
-- take_slots
WITH me AS (
    INSERT INTO instance (id, address, started_at, lease_until)
    VALUES ($1, $2, clock_timestamp(), clock_timestamp() + interval '4 seconds')
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until
),
gone AS (
    DELETE FROM instance WHERE lease_until < clock_timestamp() - interval '1 day'
),
taken AS (
    UPDATE slot SET owner = $1, epoch = epoch + 1 RETURNING watermark
)
SELECT min(watermark), clock_timestamp() FROM taken";

const RENEW: &str = "\
-- renew_lease
WITH me AS (
    UPDATE instance SET lease_until = clock_timestamp() + interval '4 seconds' WHERE id = $1
)
SELECT (SELECT count(*) FROM slot WHERE owner = $1), clock_timestamp()";

/// It goes back when the database's clock did.
const SET_WATERMARK: &str = "\
-- set_watermark
UPDATE slot SET watermark = $2 WHERE owner = $1 AND watermark <> $2";

const RELEASE: &str = "\
-- release_slots
WITH gone AS (DELETE FROM instance WHERE id = $1)
UPDATE slot SET owner = NULL WHERE owner = $1";

/// The statements of this module, to be prepared by whoever owns the session.
pub const STATEMENTS: [&str; 4] = [TAKE, RENEW, SET_WATERMARK, RELEASE];

/// Takes all slots. Answers the watermark to read from, and the database's clock.
///
/// # Errors
///
/// [`Failure`].
pub async fn take(session: &Session, me: Uuid, address: &str) -> Result<(Timestamp, Timestamp), Failure> {
    let row = session
        .client()?
        .query_one(session.statement(TAKE)?, &[&me, &address])
        .await
        .map_err(|e| sort(&e))?;
    Ok((row.get(0), row.get(1)))
}

/// Renews the lease and sets the clock. `false` if another instance has taken slots of this one.
///
/// # Errors
///
/// [`Failure`].
pub async fn renew(session: &Session, me: Uuid, clock: &Clock) -> Result<bool, Failure> {
    let asked = Instant::now();
    let row = session.client()?.query_one(session.statement(RENEW)?, &[&me]).await.map_err(|e| sort(&e))?;
    clock.observe(asked, row.get(1));
    Ok(row.get::<_, i64>(0) == 256)
}

/// Makes durable how far everything was looked at.
///
/// # Errors
///
/// [`Failure`].
pub async fn set_watermark(session: &Session, me: Uuid, watermark: Timestamp) -> Result<(), Failure> {
    let statement = session.statement(SET_WATERMARK)?;
    session.client()?.execute(statement, &[&me, &watermark]).await.map_err(|e| sort(&e))?;
    Ok(())
}

/// Gives all slots back, so that whoever starts next need not wait.
///
/// # Errors
///
/// [`Failure`].
pub async fn release(session: &Session, me: Uuid) -> Result<(), Failure> {
    session.client()?.execute(session.statement(RELEASE)?, &[&me]).await.map_err(|e| sort(&e))?;
    Ok(())
}
