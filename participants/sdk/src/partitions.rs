//! Creating partitions ahead of time without stopping anybody.
//!
//! `CREATE TABLE … PARTITION OF` takes an exclusive lock on the parent and waits behind every reader; a table made apart
//! and attached does not. There is never a default partition: it would forbid detaching concurrently later.

use crate::{crash, roles};
use jiff::{SignedDuration, Timestamp};
use tokio_postgres::GenericClient;
use uuid::Uuid;

/// What a table is partitioned by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A UUIDv7 column: by the time in the id.
    Id,
    /// A `timestamptz` column.
    Time,
}

/// How a table is cut into partitions.
#[derive(Debug, Clone, Copy)]
pub struct Scheme {
    /// The parent's name. A partition is called by it and the UTC hour it starts at: `wakeup_2026112106`.
    pub parent: &'static str,
    /// What the column is.
    pub key: Key,
    /// How much time one partition covers, counted from the Unix epoch.
    pub width: SignedDuration,
    /// How full pages are made, in percent: what is left is for changed rows.
    pub fillfactor: u8,
    /// An index that the parent does not have.
    pub index: Option<Index>,
}

/// An index that a partition gets only when its time is near.
#[derive(Debug, Clone, Copy)]
pub struct Index {
    /// What stands behind the partition's name in the index's.
    pub suffix: &'static str,
    /// As `CREATE INDEX` has it, with parentheses.
    pub columns: &'static str,
    /// A partition that starts within this time needs it.
    pub ahead: SignedDuration,
}

impl Index {
    /// Its name on a partition.
    #[must_use]
    pub fn name(&self, partition: &str) -> String {
        format!("{partition}_{}", self.suffix)
    }
}

/// What a partition holds is inserted once, and changed on its page within days. What autovacuum would find every minute in one
/// that grows is next to nothing, and it takes the processor from holds: a million changes are worth a look.
const AUTOVACUUM: &str = "autovacuum_vacuum_threshold = 1000000, autovacuum_vacuum_insert_threshold = -1, \
                          autovacuum_analyze_threshold = 1000000";

/// Ids and postings: a week, from Thursday to Thursday, as the epoch has it.
pub const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);

impl Scheme {
    /// Creates whatever is missing from `before` now to `after` it, in a transaction of its own, of which there is one at a time.
    /// Returns how many partitions were made.
    ///
    /// # Errors
    ///
    /// PostgreSQL's. Then none was made.
    pub async fn create<C: GenericClient>(
        &self,
        client: &C,
        now: Timestamp,
        before: SignedDuration,
        after: SignedDuration,
    ) -> Result<usize, tokio_postgres::Error> {
        client.batch_execute("BEGIN").await?;
        let made = self.create_missing(client, now, before, after).await;
        crash::point("create_partitions");
        client.batch_execute(if made.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        made
    }

    async fn create_missing<C: GenericClient>(
        &self,
        client: &C,
        now: Timestamp,
        before: SignedDuration,
        after: SignedDuration,
    ) -> Result<usize, tokio_postgres::Error> {
        client.execute("SELECT pg_advisory_xact_lock(hashtext($1))", &[&self.parent]).await?;
        let rows = client
            .query(
                "-- partitions_of
                 SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                 WHERE i.inhparent = $1::text::regclass",
                &[&self.parent],
            )
            .await?;
        let existing: std::collections::HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let width = self.width.as_secs();
        let mut script = String::new();
        let mut made = 0;
        let mut start = (now - before).as_second().div_euclid(width) * width;
        while start < (now + after).as_second() {
            let (low, high) = (second(start), second(start + width));
            let name = format!("{}_{}", self.parent, low.strftime("%Y%m%d%H"));
            if !existing.contains(&name) {
                script.push_str(&self.ddl(&name, low, high, now));
                made += 1;
            }
            start += width;
        }
        if made > 0 {
            client.batch_execute(&script).await?;
        }
        Ok(made)
    }

    /// When a partition starts and ends, by its name; `None` if it is called otherwise.
    #[must_use]
    pub fn range(&self, name: &str) -> Option<(Timestamp, Timestamp)> {
        let digits = name.strip_prefix(self.parent)?.strip_prefix('_')?;
        let hour = jiff::civil::DateTime::strptime("%Y%m%d%H", digits).ok()?;
        let low = hour.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
        (low.strftime("%Y%m%d%H").to_string() == digits).then_some((low, low + self.width))
    }

    fn ddl(&self, name: &str, low: Timestamp, high: Timestamp, now: Timestamp) -> String {
        let parent = self.parent;
        let fillfactor = self.fillfactor;
        let readable = roles::readable(name);
        // While it is empty it costs nothing.
        let index = match self.index.filter(|index| low < now + index.ahead) {
            Some(index) => {
                format!("CREATE INDEX IF NOT EXISTS {} ON {name} {};", index.name(name), index.columns)
            }
            None => String::new(),
        };
        let (low, high) = match self.key {
            Key::Id => (first_id(low).to_string(), first_id(high).to_string()),
            Key::Time => (low.to_string(), high.to_string()),
        };
        format!(
            "CREATE TABLE IF NOT EXISTS {name} (LIKE {parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES);
             ALTER TABLE {name} SET (fillfactor = {fillfactor}, {AUTOVACUUM});
             {index}
             {readable}
             ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}');\n"
        )
    }
}

/// The smallest UUID whose time is `time`.
#[must_use]
pub fn first_id(time: Timestamp) -> Uuid {
    let millis = u128::try_from(time.as_millisecond()).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

fn second(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_by_id_starts_at_the_first_id_of_its_time() {
        let time = Timestamp::from_millisecond(1_790_000_000_000).unwrap();

        assert_eq!(first_id(time).to_string(), "01a0c450-6c00-0000-0000-000000000000");
    }

    #[test]
    fn a_partition_tells_its_time_by_its_name() {
        let width = SignedDuration::from_hours(6);
        let scheme = Scheme { parent: "wakeup", key: Key::Time, width, fillfactor: 100, index: None };

        let (low, high) = scheme.range("wakeup_2026112106").unwrap();
        assert_eq!((low.to_string().as_str(), high.duration_since(low)), ("2026-11-21T06:00:00Z", width));
        for other in ["wakeup", "wakeup_", "wakeup_20261121", "wakeup_2026112106x", "wakeups_2026112106"] {
            assert_eq!(scheme.range(other), None, "{other}");
        }
    }
}
