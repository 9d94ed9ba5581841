//! An audit of everything.

use super::{AuditError, AuditEvent, Finding, Summary, of_shard, pairs};
use crate::{
    shards::Shards,
    store::{Store, open::Miscounted},
};
use std::collections::HashMap;
use tcc_ledger::Branches;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How many transactions are read at a time.
const PAGE: i64 = 2_000;
/// So many transactions that no wake-up would find are reported at most.
const FORGOTTEN: i64 = 1_000;

/// Runs a whole audit.
///
/// # Errors
///
/// [`AuditError`]: then the audit says nothing.
pub async fn run(store: &Store, shards: &Shards, events: mpsc::Sender<AuditEvent>) -> Result<(), AuditError> {
    let mut audit = Audit { store, shards, events, summary: Summary::default() };
    audit.shards_alone().await?;
    audit.transactions().await?;
    audit.forgotten().await?;
    audit.miscounted().await?;
    let summary = AuditEvent::Summary(audit.summary.clone());
    audit.tell(summary).await
}

struct Audit<'a> {
    store: &'a Store,
    shards: &'a Shards,
    events: mpsc::Sender<AuditEvent>,
    summary: Summary,
}

impl Audit<'_> {
    /// Each shard against itself, in one snapshot of its own.
    async fn shards_alone(&mut self) -> Result<(), AuditError> {
        let shards = self.shards;
        let mut issued: HashMap<String, i64> = HashMap::new();
        for shard in shards.all() {
            let events = self.events.clone();
            let step = format!("checks of {}", shard.name());
            let alone = shard
                .audit(|done, total| {
                    let (step, done, total) = (step.clone(), done as u64, total as u64);
                    // Whoever is slow to listen misses a step.
                    let _ = events.try_send(AuditEvent::Progress { step, done, total });
                })
                .await?;
            self.summary.accounts += alone.accounts.unsigned_abs();
            self.summary.postings += alone.postings.unsigned_abs();
            self.summary.branches += alone.branches.unsigned_abs();
            for (currency, amount) in alone.issued {
                *issued.entry(currency).or_default() += amount;
            }
            for found in alone.findings {
                self.find(of_shard(shard.name(), found)).await?;
            }
        }
        self.summary.issued = issued.into_iter().collect();
        self.summary.issued.sort();
        Ok(())
    }

    /// Each transaction against its fences, and each fence against its transaction, range by range of their ids.
    async fn transactions(&mut self) -> Result<(), AuditError> {
        let total = self.store.count().await?.unsigned_abs();
        let mut after = Uuid::nil();
        loop {
            let page = self.store.page(after, PAGE).await?;
            let is_last = page.is_empty();
            let until = page.last().map_or(Uuid::max(), |last| last.id().uuid());
            self.summary.transactions += page.len() as u64;
            let which = Branches::Between(after, until);
            for finding in pairs::compare(self.store, self.shards, page, which).await?.findings {
                self.find(finding).await?;
            }
            if is_last {
                return Ok(());
            }
            after = until;
            let done = self.summary.transactions;
            // Others may have been created meanwhile.
            let total = total.max(done);
            self.tell(AuditEvent::Progress { step: "transactions".into(), done, total }).await?;
        }
    }

    /// What is not final must be found again: by one statement, since all of that is in one database.
    async fn forgotten(&mut self) -> Result<(), AuditError> {
        for id in self.store.forgotten(FORGOTTEN).await? {
            let finding = Finding {
                kind: "FORGOTTEN".into(),
                transaction: id.to_string(),
                expected: "a wake-up that is still to come, and in time".into(),
                found: "none".into(),
                ..Finding::default()
            };
            self.find(finding).await?;
        }
        Ok(())
    }

    /// What counts in the callers' quotas is counted together with it.
    async fn miscounted(&mut self) -> Result<(), AuditError> {
        for Miscounted { caller, counted, open } in self.store.miscounted().await? {
            let finding = Finding {
                kind: "MISCOUNTED".into(),
                expected: format!("{open} open transactions in the quota of {caller}"),
                found: format!("a count of {counted}"),
                ..Finding::default()
            };
            self.find(finding).await?;
        }
        Ok(())
    }

    async fn find(&mut self, finding: Finding) -> Result<(), AuditError> {
        self.summary.findings += 1;
        self.tell(AuditEvent::Finding(finding)).await
    }

    async fn tell(&self, event: AuditEvent) -> Result<(), AuditError> {
        self.events.send(event).await.map_err(|_| AuditError::GivenUp)
    }
}
