//! Up to when each shard was audited, and what the auditor in the background has found.
//!
//! Who audits a shard holds a lock of its connection, so that there is one at a time. If this database loses its last
//! commits, some of the shard is audited again; a finding that is found again is the same one.

use super::{Store, StoreError, alone};
use tcc_core::Timestamp;
use tcc_participant::{
    Failure, Postgres, Session,
    session::{Plans, sort},
};
use tokio_postgres::Row;

const AUDITED: &str = "\
-- audited
SELECT until FROM audited WHERE shard = $1";

const SET_AUDITED: &str = "\
-- set_audited
INSERT INTO audited AS a (shard, until, postings) VALUES ($1, $2, $3)
ON CONFLICT (shard) DO UPDATE SET until = excluded.until, postings = a.postings + excluded.postings";

/// The first ones tell the story: of what is wrong everywhere the table must not grow for ever.
const KEEP_FINDINGS: &str = "\
-- keep_findings
INSERT INTO finding (found_at, kind, shard, transaction_id, account, expected, found)
SELECT clock_timestamp(), i.*
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS i (kind, shard, transaction_id, account, expected, found)
WHERE (SELECT count(*) FROM finding) < 10000
ON CONFLICT DO NOTHING
RETURNING number, found_at, kind, shard, transaction_id, account, expected, found";

const AUDITS: &str = "\
-- audits
SELECT shard, until, postings FROM audited";

const FINDINGS: &str = "\
-- findings
SELECT number, found_at, kind, shard, transaction_id, account, expected, found
FROM finding WHERE number > $1 ORDER BY number LIMIT $2";

const COUNT_FINDINGS: &str = "\
-- count_findings
SELECT count(*), min(found_at) FROM finding";

/// Something that must not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finding {
    /// Which invariant is broken.
    pub kind: String,
    /// On which shard, if one.
    pub shard: String,
    /// Which transaction, if one.
    pub transaction: String,
    /// Which account, if one.
    pub account: String,
    /// What should be.
    pub expected: String,
    /// What is.
    pub found: String,
}

/// A finding of the auditor in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Later ones have greater numbers.
    pub number: i64,
    /// When it was found first, by this database's clock.
    pub found_at: Timestamp,
    /// What was found.
    pub finding: Finding,
}

/// How far a shard has been audited in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    /// Which shard.
    pub shard: String,
    /// Everything recorded up to then, by the shard's clock.
    pub until: Timestamp,
    /// How many postings that were.
    pub postings: i64,
}

impl Kept {
    fn read(row: &Row) -> Self {
        let finding = Finding {
            kind: row.get("kind"),
            shard: row.get("shard"),
            transaction: row.get("transaction_id"),
            account: row.get("account"),
            expected: row.get("expected"),
            found: row.get("found"),
        };
        Self { number: row.get("number"), found_at: row.get("found_at"), finding }
    }
}

/// One connection that notes how far an audit is.
pub struct Auditing {
    session: Session,
}

impl Auditing {
    /// Not connected yet.
    #[must_use]
    pub fn new(database: &Postgres) -> Self {
        Self { session: Session::new(database, "tccd-audit", Plans::Generic) }
    }

    /// Connects anew, and says whether this is the only one that audits `shard`: until it disconnects.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn lock(&mut self, shard: &str) -> Result<bool, Failure> {
        self.session.connect(&[AUDITED, SET_AUDITED, KEEP_FINDINGS]).await?;
        alone(&self.session, "audit", shard).await
    }

    /// Gives the lock back.
    pub fn disconnect(&mut self) {
        self.session.disconnect();
    }

    /// Up to when `shard` has been audited, if it has been.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn audited(&self, shard: &str) -> Result<Option<Timestamp>, Failure> {
        let statement = self.session.statement(AUDITED)?;
        let row = self.session.client()?.query_opt(statement, &[&shard]).await.map_err(|e| sort(&e))?;
        Ok(row.map(|row| row.get("until")))
    }

    /// Notes that `shard` has been audited up to a time, which may lie before the one that was noted, and that these were so
    /// many more postings.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn set_audited(&mut self, shard: &str, until: Timestamp, postings: i64) -> Result<(), Failure> {
        let statement = self.session.statement(SET_AUDITED)?;
        let done = self.session.client()?.execute(statement, &[&shard, &until, &postings]).await;
        done.map_err(|e| sort(&e))?;
        self.session.settle()
    }

    /// Keeps findings. Answers those that were not known.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub async fn keep(&mut self, findings: &[Finding]) -> Result<Vec<Kept>, Failure> {
        if findings.is_empty() {
            return Ok(Vec::new());
        }
        let column = |text: fn(&Finding) -> &str| -> Vec<&str> { findings.iter().map(text).collect() };
        let kind = column(|finding| &finding.kind);
        let shard = column(|finding| &finding.shard);
        let transaction = column(|finding| &finding.transaction);
        let account = column(|finding| &finding.account);
        let expected = column(|finding| &finding.expected);
        let found = column(|finding| &finding.found);
        let statement = self.session.statement(KEEP_FINDINGS)?;
        let rows = self
            .session
            .client()?
            .query(statement, &[&kind, &shard, &transaction, &account, &expected, &found])
            .await
            .map_err(|e| sort(&e))?;
        self.session.settle()?;
        Ok(rows.iter().map(Kept::read).collect())
    }
}

impl Store {
    /// How far each shard has been audited in the background. One that has not begun is missing.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn audits(&self) -> Result<Vec<Audited>, StoreError> {
        let rows = self.reader().await?.query(AUDITS, &[]).await?;
        let audited = |row: &Row| Audited {
            shard: row.get("shard"),
            until: row.get("until"),
            postings: row.get("postings"),
        };
        Ok(rows.iter().map(audited).collect())
    }

    /// Findings with a greater number than `after`, at most `limit`, in the order of their numbers.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn findings(&self, after: i64, limit: i64) -> Result<Vec<Kept>, StoreError> {
        let rows = self.reader().await?.query(FINDINGS, &[&after, &limit]).await?;
        Ok(rows.iter().map(Kept::read).collect())
    }

    /// How many findings are kept, and when the first one was found.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn count_findings(&self) -> Result<(i64, Option<Timestamp>), StoreError> {
        let row = self.reader().await?.query_one(COUNT_FINDINGS, &[]).await?;
        Ok((row.get(0), row.get(1)))
    }
}
