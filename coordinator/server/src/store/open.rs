//! How many transactions are open in each quota: counted by the statements that make them and end them.
//!
//! A row of `transaction` that counts in a caller's quota says so in `counted_for`. The statement that inserts such rows adds
//! them to `open_count`, and the one that moves them to a final phase takes them away again, each once for all rows of a batch
//! that have one caller. So a count and the rows that it counts commit together, and go back together when a database is restored.
//! Each connection that counts has a stripe of its own, which no other one writes: counting waits for nobody. A caller's count
//! is the sum over its stripes, each of which may be below zero.

use super::{Store, StoreError};
use std::collections::HashMap;
use tcc_participant::{Failure, Session, session::sort};

/// The lowest stripe that no other connection has, for as long as this one lives.
pub(super) const TAKE_STRIPE: &str = "\
-- take_stripe
SELECT s.stripe FROM generate_series(0, 4095) AS s (stripe)
WHERE pg_try_advisory_lock(hashtext('open_count'), s.stripe) LIMIT 1";

const OPEN: &str = "\
-- open
SELECT caller, sum(open)::int8 AS open FROM open_count GROUP BY caller HAVING sum(open) <> 0";

/// Counts and rows in one snapshot. Where nothing has been counted, no row is read.
const MISCOUNTED: &str = "\
-- miscounted
SELECT caller, coalesce(c.open, 0) AS counted, coalesce(t.open, 0) AS open
FROM (SELECT caller, sum(open)::int8 AS open FROM open_count GROUP BY caller) AS c
FULL JOIN (
    SELECT counted_for AS caller, count(*) AS open FROM transaction
    WHERE counted_for IS NOT NULL AND phase NOT IN (4, 6) AND EXISTS (SELECT FROM open_count)
    GROUP BY counted_for
) AS t USING (caller)
WHERE coalesce(c.open, 0) <> coalesce(t.open, 0)
ORDER BY caller";

/// A caller whose count is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miscounted {
    /// Whose.
    pub caller: String,
    /// What the count says.
    pub counted: i64,
    /// How many rows there are.
    pub open: i64,
}

/// Takes a stripe for a connection that counts.
///
/// # Errors
///
/// [`Failure`].
pub(super) async fn take_stripe(session: &Session) -> Result<i16, Failure> {
    let row = session.client()?.query_opt(session.statement(TAKE_STRIPE)?, &[]).await;
    let row = row.map_err(|e| sort(&e))?;
    let row = row.ok_or_else(|| Failure::Disconnected("4,096 connections count already".into()))?;
    Ok(i16::try_from(row.get::<_, i32>(0)).unwrap_or_default())
}

impl Store {
    /// How many transactions are open in the quota of each caller that has any.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn open(&self) -> Result<HashMap<String, i64>, StoreError> {
        let rows = self.reader().await?.query(OPEN, &[]).await?;
        Ok(rows.iter().map(|row| (row.get("caller"), row.get("open"))).collect())
    }

    /// Whose count is not that of the rows.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn miscounted(&self) -> Result<Vec<Miscounted>, StoreError> {
        let rows = self.reader().await?.query(MISCOUNTED, &[]).await?;
        let miscounted = |row: &tokio_postgres::Row| Miscounted {
            caller: row.get("caller"),
            counted: row.get("counted"),
            open: row.get("open"),
        };
        Ok(rows.iter().map(miscounted).collect())
    }
}
