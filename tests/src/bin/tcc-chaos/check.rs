//! Whether every promise was kept: transaction by transaction, from the databases themselves.
//!
//! A transaction may be missing for one reason only: nobody was ever told that it is held, decided or refused. Whoever was told
//! that was told it after a fence had been written, and from a fence a row that was lost is written anew. So even of those that are
//! known to have been lost none may be missing that has a fence. Until a row is written anew its client may be told that there is
//! no such hold; if it was never lost, that is a broken promise, too. Likewise a key names what its client was told, or, if its row was
//! lost with everything that could bring it back, nothing any more; that is counted.
//!
//! Nothing is paid early by the clock of the coordinator's database, as late as that has shown it to be by then.

use crate::{
    clients::{self, Promise},
    nemesis::Torment,
    system::System,
};
use anyhow::{Context as _, ensure};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use tcc_core::Timestamp;
use tcc_proto::v1::Phase;
use tcc_tests::connect;
use uuid::Uuid;

/// What is wrong, counted.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Units that are gone.
    pub lost: i64,
    /// Units that came from nowhere.
    pub created: i64,
    /// Transactions that did not go as their clients were told.
    pub broken_promises: usize,
    /// What the auditor found.
    pub findings: usize,
    /// Keys that name nothing any more, although their clients were told what they name.
    pub keys_forgotten: usize,
    /// Of the transactions whose rows were lost, how many have one again. The others have no fence.
    pub rows_back: usize,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        (self.lost, self.created, self.broken_promises, self.findings) == (0, 0, 0, 0)
    }
}

/// Waits until every transaction is final.
pub async fn until_final(system: &System, patience: Duration) -> anyhow::Result<()> {
    let sql = connect(&system.urls[0]).await;
    let started = Instant::now();
    loop {
        let open: i64 =
            sql.query_one("SELECT count(*) FROM transaction WHERE phase IN (1, 2, 3, 5)", &[]).await?.get(0);
        if open == 0 {
            println!("final after {:.1} s", started.elapsed().as_secs_f64());
            return Ok(());
        }
        if started.elapsed() > patience {
            let example = "SELECT t.id::text, t.phase, t.attention, a.last_error FROM transaction t
                           LEFT JOIN attention a ON a.transaction_id = t.id WHERE t.phase IN (1, 2, 3, 5) LIMIT 1";
            let row = sql.query_one(example, &[]).await?;
            let (id, phase, attention): (String, i16, i16) = (row.get(0), row.get(1), row.get(2));
            let error: Option<String> = row.get(3);
            anyhow::bail!(
                "{open} are not final after {patience:?}, such as {id}: phase {phase}, attention {attention}, {error:?}"
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

struct Fact {
    phase: i16,
    /// By branch.
    fences: HashMap<i16, i16>,
    /// Payments, and when.
    paid: Vec<Timestamp>,
}

/// Checks everything.
pub async fn all(
    system: &System,
    promises: &[Promise],
    torment: &Torment,
    issued: i64,
) -> anyhow::Result<Verdict> {
    clients::enough(promises)?;
    let mut verdict = Verdict::default();
    let facts = facts(system).await.context("reading the databases")?;
    let keys = keys(system).await.context("reading the keys")?;
    let latest_by = |at| system.clock().map_or(at, |clock| clock.latest_by(at));
    for promise in promises {
        let mut promise = promise.clone();
        let named = promise.key.as_ref().map(|key| keys.get(key));
        verdict.keys_forgotten += usize::from(promise.learn(named));
        let promise = &promise;
        if promise.id.is_empty() {
            continue;
        }
        let was_lost = torment.lost.contains(&promise.id);
        if let Some(what) = broken(promise, facts.get(&promise.id), was_lost, latest_by) {
            verdict.broken_promises += 1;
            if verdict.broken_promises <= 20 {
                println!("{}: {what}", promise.id);
            }
        }
    }
    verdict.rows_back = torment.lost.iter().filter(|id| facts.contains_key(*id)).count();
    let mut total: i64 = 0;
    for url in &system.urls[1..] {
        let sql = connect(url).await;
        let sum = "SELECT coalesce(sum(available + held), 0)::int8 FROM account";
        total += sql.query_one(sum, &[]).await?.get::<_, i64>(0);
    }
    (verdict.lost, verdict.created) = ((issued - total).max(0), (total - issued).max(0));
    let (findings, summary) = system.client(0).audit().await;
    findings.iter().take(20).for_each(|finding| println!("{finding:?}"));
    verdict.findings = findings.len();
    ensure!(summary.transactions > 0, "the auditor has looked at nothing");
    Ok(verdict)
}

/// What each key names.
async fn keys(system: &System) -> anyhow::Result<HashMap<String, String>> {
    let sql = connect(&system.urls[0]).await;
    let rows = sql.query("SELECT key, transaction_id FROM idempotency", &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get::<_, Uuid>(1).to_string())).collect())
}

impl Promise {
    /// Learns what its key names, if it has one. Whether that is forgotten.
    fn learn(&mut self, named: Option<Option<&String>>) -> bool {
        match named {
            Some(Some(id)) if self.id.is_empty() => self.id.clone_from(id),
            Some(Some(id)) if self.id != *id => self.contradiction = Some(format!("its key names {id}")),
            Some(None) => return !self.id.is_empty() || self.refused.is_some(),
            _ => {}
        }
        false
    }
}

async fn facts(system: &System) -> anyhow::Result<HashMap<String, Fact>> {
    let mut facts: HashMap<String, Fact> = HashMap::new();
    let coordinator = connect(&system.urls[0]).await;
    for row in coordinator.query("SELECT id, phase FROM transaction", &[]).await? {
        let fact = Fact { phase: row.get(1), fences: HashMap::new(), paid: Vec::new() };
        facts.insert(row.get::<_, Uuid>(0).to_string(), fact);
    }
    let none = || Fact { phase: 0, fences: HashMap::new(), paid: Vec::new() };
    for url in &system.urls[1..] {
        let sql = connect(url).await;
        for row in sql.query("SELECT transaction_id, branch, state FROM branch WHERE role <> 3", &[]).await? {
            let fact = facts.entry(row.get::<_, Uuid>(0).to_string()).or_insert_with(none);
            fact.fences.insert(row.get(1), row.get(2));
        }
        for row in sql.query("SELECT transaction_id, recorded_at FROM posting WHERE kind = 6", &[]).await? {
            let fact = facts.entry(row.get::<_, Uuid>(0).to_string()).or_insert_with(none);
            fact.paid.push(row.get(1));
        }
    }
    Ok(facts)
}

/// States of fences, as in the tables; and the phases that are final.
const CONFIRMED_FENCE: i16 = 3;
const VETOED_FENCE: i16 = 5;
const CONFIRMED: i16 = 4;
const CANCELLED: i16 = 6;

/// `latest_by` answers the latest time that the coordinator's database can have shown until then.
fn broken(
    promise: &Promise,
    fact: Option<&Fact>,
    was_lost: bool,
    latest_by: impl Fn(Timestamp) -> Timestamp,
) -> Option<String> {
    if let Some(contradiction) = &promise.contradiction {
        return Some(contradiction.clone());
    }
    if promise.forgotten && !was_lost {
        return Some(
            "its client was told HELD, and then that there is none, and its row was never lost".into(),
        );
    }
    let Some(fact) = fact else {
        let is_told = promise.held || promise.told.is_some() || promise.refused.is_some();
        return is_told.then(|| format!("it is unknown, and its client was told of it: {promise:?}"));
    };
    let is_paid = |state: &i16| *state == CONFIRMED_FENCE;
    let fits = match fact.phase {
        CONFIRMED => fact.fences.len() == 2 && fact.fences.values().all(is_paid) && fact.paid.len() == 1,
        CANCELLED => !fact.fences.values().any(is_paid) && fact.paid.is_empty(),
        _ => false,
    };
    if !fits {
        return Some(format!("phase {}, fences {:?}, paid {:?}", fact.phase, fact.fences, fact.paid));
    }
    if promise.refused.is_some() && fact.phase != CANCELLED {
        return Some(format!("its client was told {:?}, and it is in phase {}", promise.refused, fact.phase));
    }
    let told = promise.told.map(|told| if told == Phase::Confirmed { CONFIRMED } else { CANCELLED });
    if told.is_some_and(|told| told != fact.phase) {
        return Some(format!("its client was told {:?}, and it is in phase {}", promise.told, fact.phase));
    }
    let is_vetoed = fact.fences.values().any(|state| *state == VETOED_FENCE);
    let is_to_be_paid = promise.held && !promise.asked_cancel && !promise.is_release && !is_vetoed;
    if is_to_be_paid && fact.phase != CONFIRMED {
        return Some(format!(
            "its client was told HELD and never cancelled it, and it is in phase {}",
            fact.phase
        ));
    }
    let is_early = |at: &Timestamp| latest_by(*at) < promise.due_at || promise.is_release;
    if !promise.asked_confirm && fact.paid.iter().any(is_early) {
        return Some(format!("due at {}, paid at {:?}", promise.due_at, fact.paid));
    }
    None
}
