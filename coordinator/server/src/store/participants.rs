//! Who takes part besides the shards, as every instance knows it.
//!
//! What stands in an instance's configuration is written when it starts; the rest operators add, drain and remove, each with
//! its record.

use super::{
    Store, StoreError,
    operate::{Evidence, commit, note},
    record::standing,
};
use crate::store::Record;
use std::time::Duration;
use tcc_core::{Branch, ParticipantName, Timestamp};
use tcc_participant::crash;
use tokio_postgres::Row;
use uuid::Uuid;

const REGISTERED: &str = "\
-- registered
SELECT name, address, ca, may_veto, deadline_ms, requests, configured, drained, added_at FROM participant ORDER BY name";

/// Instances with the same configuration write the same, and only the first one changes anything.
const CONFIGURE: &str = "\
-- configure_participant
INSERT INTO participant AS p (name, address, ca, may_veto, deadline_ms, requests, configured, added_at)
VALUES ($1, $2, $3, $4, $5, $6, true, clock_timestamp())
ON CONFLICT (name) DO UPDATE
SET address = excluded.address, ca = excluded.ca, may_veto = excluded.may_veto, deadline_ms = excluded.deadline_ms,
    requests = excluded.requests, configured = true
WHERE (p.address, p.ca, p.may_veto, p.deadline_ms, p.requests, p.configured)
    IS DISTINCT FROM (excluded.address, excluded.ca, excluded.may_veto, excluded.deadline_ms, excluded.requests, true)";

const ADD: &str = "\
-- add_participant
INSERT INTO participant (name, address, ca, may_veto, deadline_ms, requests, configured, added_at)
VALUES ($1, $2, $3, $4, $5, $6, false, clock_timestamp())
ON CONFLICT (name) DO NOTHING";

const LOCK: &str = "\
-- lock_participant
SELECT name, address, ca, may_veto, deadline_ms, requests, configured, drained, added_at
FROM participant WHERE name = $1 FOR UPDATE";

const DRAIN: &str = "\
-- drain_participant
UPDATE participant SET drained = $2 WHERE name = $1";

const REMOVE: &str = "\
-- remove_participant
DELETE FROM participant WHERE name = $1";

/// What is not final and no hold, in the order of the ids.
const UNFINISHED: &str = concat!(
    "-- unfinished\nSELECT ",
    standing!(),
    ", t.id, t.slot, t.lane, t.descriptor FROM transaction t
WHERE t.owner IS NOT NULL AND t.phase NOT IN (4, 6) AND t.id > $1 ORDER BY t.id LIMIT $2"
);

/// So many are read at a time.
const PAGE: i64 = 500;

/// How a participant is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// What it is called, here and by itself.
    pub name: ParticipantName,
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub address: String,
    /// The authorities of its certificate, PEM. Empty: those of the system.
    pub ca: String,
    /// It may veto, so it is the pivot of every transaction that it takes part in.
    pub may_veto: bool,
    /// How long one request may take.
    pub deadline: Duration,
    /// How many requests are under way at a time.
    pub requests: u16,
}

/// A participant that is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// How it is called.
    pub registration: Registration,
    /// It stands in the configuration of an instance.
    pub is_configured: bool,
    /// An operator lets no new transactions at it.
    pub is_drained: bool,
    /// Since when it is known.
    pub added_at: Timestamp,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is done.
    Done,
    /// It is so already.
    Already,
    /// There is no such participant.
    NotFound,
    /// It takes new transactions still.
    NotDrained,
    /// So many transactions that need it are not final, this one among them.
    InUse(usize, Uuid),
}

fn read(row: &Row) -> Result<Registered, StoreError> {
    let name: &str = row.get("name");
    let damaged = |what: &dyn std::fmt::Display| StoreError::Damaged(format!("participant {name:?}: {what}"));
    Ok(Registered {
        registration: Registration {
            name: ParticipantName::parse(name).map_err(|e| damaged(&e))?,
            address: row.get("address"),
            ca: row.get("ca"),
            may_veto: row.get("may_veto"),
            deadline: Duration::from_millis(row.get::<_, i32>("deadline_ms").unsigned_abs().into()),
            requests: u16::try_from(row.get::<_, i32>("requests")).map_err(|_| damaged(&"requests"))?,
        },
        is_configured: row.get("configured"),
        is_drained: row.get("drained"),
        added_at: row.get("added_at"),
    })
}

impl Store {
    /// Who is registered, by name.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn registered(&self) -> Result<Vec<Registered>, StoreError> {
        self.reader().await?.query(REGISTERED, &[]).await?.iter().map(read).collect()
    }

    /// Writes what stands in this instance's configuration.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn configure_participant(&self, registration: &Registration) -> Result<(), StoreError> {
        self.write_participant(CONFIGURE, registration).await.map(drop)
    }

    async fn write_participant(
        &self,
        sql: &'static str,
        registration: &Registration,
    ) -> Result<u64, StoreError> {
        let client = self.reader().await?;
        crash::statement(sql);
        write(&**client, sql, registration).await
    }

    /// Registers a participant for every instance. [`Changed::Already`]: there is one of that name.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn add_participant(
        &self,
        registration: &Registration,
        evidence: &Evidence,
    ) -> Result<Changed, StoreError> {
        let mut client = self.reader().await?;
        let doing = client.transaction().await?;
        crash::statement(ADD);
        if write(&*doing, ADD, registration).await? == 0 {
            return Ok(Changed::Already);
        }
        let Registration { name, address, .. } = registration;
        note(&*doing, "add-participant", name.as_str(), evidence, "none", address).await?;
        commit(doing).await?;
        Ok(Changed::Done)
    }

    /// Lets no new transactions at a participant, or lets them again.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn drain_participant(
        &self,
        name: &ParticipantName,
        is_drained: bool,
        evidence: &Evidence,
    ) -> Result<Changed, StoreError> {
        let mut client = self.reader().await?;
        let doing = client.transaction().await?;
        let Some(row) = doing.query_opt(LOCK, &[&name.as_str()]).await? else { return Ok(Changed::NotFound) };
        let before = read(&row)?.is_drained;
        if before == is_drained {
            return Ok(Changed::Already);
        }
        crash::statement(DRAIN);
        doing.execute(DRAIN, &[&name.as_str(), &is_drained]).await?;
        let described = |is_drained| if is_drained { "drained" } else { "working" };
        let action = if is_drained { "drain-participant" } else { "resume-participant" };
        note(&*doing, action, name.as_str(), evidence, described(before), described(is_drained)).await?;
        commit(doing).await?;
        Ok(Changed::Done)
    }

    /// Forgets a participant, if an operator has drained it and nothing that needs it is unfinished. One that stands in an
    /// instance's configuration is known again when that starts.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn remove_participant(
        &self,
        name: &ParticipantName,
        evidence: &Evidence,
    ) -> Result<Changed, StoreError> {
        let mut client = self.reader().await?;
        let doing = client.transaction().await?;
        let Some(row) = doing.query_opt(LOCK, &[&name.as_str()]).await? else { return Ok(Changed::NotFound) };
        let Registered { registration, is_drained, .. } = read(&row)?;
        if !is_drained {
            return Ok(Changed::NotDrained);
        }
        let (mut after, mut unfinished, mut example) = (Uuid::nil(), 0, None);
        loop {
            let rows = doing.query(UNFINISHED, &[&after, &PAGE]).await?;
            let Some(last) = rows.last() else { break };
            after = last.get("id");
            for record in rows.iter().map(Record::read) {
                let record = record?;
                let needs = |branch: &Branch| match branch {
                    Branch::Other(request) => request.participant == *name,
                    Branch::Ledger(_) => false,
                };
                if record.transaction.descriptor.branches.iter().any(needs) {
                    unfinished += 1;
                    example.get_or_insert(record.id().uuid());
                }
            }
        }
        if let Some(example) = example {
            return Ok(Changed::InUse(unfinished, example));
        }
        crash::statement(REMOVE);
        doing.execute(REMOVE, &[&name.as_str()]).await?;
        note(&*doing, "remove-participant", name.as_str(), evidence, &registration.address, "none").await?;
        commit(doing).await?;
        Ok(Changed::Done)
    }
}

async fn write(
    client: &impl tokio_postgres::GenericClient,
    sql: &str,
    registration: &Registration,
) -> Result<u64, StoreError> {
    let Registration { name, address, ca, may_veto, deadline, requests } = registration;
    let deadline_ms = i32::try_from(deadline.as_millis()).unwrap_or(i32::MAX);
    let requests = i32::from(*requests);
    Ok(client.execute(sql, &[&name.as_str(), address, ca, may_veto, &deadline_ms, &requests]).await?)
}
