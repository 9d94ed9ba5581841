//! Creation over ten million open holds, against an empty system.
//!
//! Creating so many over the API would take most of an hour, so they are loaded by SQL while tccd is stopped, with exactly
//! the rows that tccd leaves for a hold that is HELD: `transaction` and `wakeup` at the coordinator, the payer's fence,
//! posting and balance on one shard, the payee's fence on another. `tests/bench/backlog.sql` says how. The auditor looks at
//! all of it afterwards, which takes longer than the load. Empty and full system run side by side and take turns.

use crate::{
    Scale,
    fleet::{CURRENCY, Payees},
    load::{self, Due, Holds},
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system::System,
};
use anyhow::{Context as _, ensure};
use std::time::Duration;
use tcc_core::{AccountId, Amount, Currency, Descriptor, OnMaturity, Timestamp, Transaction, TransactionId};
use tokio_postgres::Client;

/// The goal's number of open holds.
const HOLDS: i64 = 10_000_000;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many open holds there are.
    #[arg(long, default_value_t = HOLDS)]
    pub holds: i64,
    /// How many holds are created in each turn.
    #[arg(long, default_value_t = 100_000)]
    pub creates: u64,
    /// How often empty and full system take turns.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
}

/// Holds per statement.
const CHUNK: i64 = 100_000;
/// Holds fall due from a month ahead on, each chunk a minute later.
const DUE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Ids are as old as this, and their times increase.
const ID_AGE: Duration = Duration::from_secs(20 * 3_600);
/// Holds that are created in the measured turns stay held.
const FAR: Due = Due::In(Duration::from_secs(24 * 3_600), Duration::from_secs(3_600));

const PREPARE: &str = include_str!("../../../bench/backlog.sql");

const PAYER_SIDE: &str = "\
WITH hold AS (
    SELECT pg_temp.hold_id($1, i) AS id, p.payer, p.payee, i / $4 + 1 AS nth
    FROM generate_series($2::int8, $3::int8) AS i JOIN pair p ON p.n = i % $4 WHERE p.payer_shard = $6
),
fence AS (
    INSERT INTO branch (transaction_id, branch, role, state, account, amount, descriptor, fenced_at)
    SELECT id, 0, 1, 1, payer, 1, pg_temp.descriptor($5, payer, payee), now() FROM hold
),
line AS (
    INSERT INTO posting (account, version, transaction_id, branch, kind, amount, available_after, held_after, recorded_at)
    SELECT h.payer, 1 + h.nth, h.id, 0, 3, 1, $7 - h.nth, h.nth, now() FROM hold h
)
UPDATE account a SET available = $7 - h.most, held = h.most, version = 1 + h.most, posted_at = now()
FROM (SELECT payer, max(nth) AS most FROM hold GROUP BY payer) h WHERE a.id = h.payer";

const PAYEE_SIDE: &str = "\
INSERT INTO branch (transaction_id, branch, role, state, account, amount, descriptor, fenced_at)
SELECT pg_temp.hold_id($1, i), 1, 2, 1, p.payee, 1, pg_temp.descriptor($5, p.payer, p.payee), now()
FROM generate_series($2::int8, $3::int8) AS i JOIN pair p ON p.n = i % $4 WHERE p.payer_shard <> $6";

const COORDINATOR: &str = "\
WITH hold AS (
    SELECT pg_temp.hold_id($1, i) AS id, pg_temp.descriptor($5, p.payer, p.payee) AS descriptor
    FROM generate_series($2::int8, $3::int8) AS i JOIN pair p ON p.n = i % $4
),
begun AS (
    INSERT INTO transaction (id, phase, on_maturity, slot, lane, due_at, created_at, held_at, descriptor)
    SELECT id, 2, 1, get_byte(uuid_send(id), 15), 0, $6, now(), now(), descriptor FROM hold
    RETURNING id, slot, lane
)
INSERT INTO wakeup (wake_at, transaction_id, slot, lane) SELECT $6, id, slot, lane FROM begun";

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let empty = System::start(2, scale, progress).await?;
    let mut full = System::start(2, scale, progress).await?;
    full.stop_tccd().await?;
    let loaded_in = load_backlog(&full, options.holds, progress).await?;
    full.start_tccd().await?;

    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let before = creations(&empty, options.creates, scale, progress).await?;
        let over = creations(&full, options.creates, scale, progress).await?;
        progress.say(&format!(
            "   {before:.0}/s on the empty system, {over:.0}/s over {} open holds",
            options.holds
        ));
        rates.push((f64::from(round), before, over));
        ratios.push(over / before);
    }
    empty.audit(progress).await?;
    full.audit(progress).await?;

    let mut part = Part::default();
    let ratio = ratios.iter().sum::<f64>() / ratios.len().max(1) as f64;
    part.fact("full against empty", format!("{ratio:.2}"));
    // With fewer it says nothing about the goal.
    if options.holds >= HOLDS {
        part.figure("P10", ratio);
    }
    part.fact("open holds", options.holds.to_string());
    part.fact("loading them took", format!("{:.0} s", loaded_in.as_secs_f64()));
    let each: Vec<String> =
        rates.iter().map(|(_, empty, full)| format!("{empty:.0}/s and {full:.0}/s")).collect();
    part.fact("creations, empty and full", each.join("; "));
    let series = |name: &str, of: fn(&(f64, f64, f64)) -> (f64, f64)| Series {
        name: name.into(),
        points: rates.iter().map(of).collect(),
    };
    part.plots.push(Plot {
        title: format!("Creations per second, empty and over {} open holds", options.holds),
        x: "round".into(),
        y: "holds/s".into(),
        form: Form::Lines,
        series: vec![series("empty", |r| (r.0, r.1)), series("full", |r| (r.0, r.2))],
        bars: Vec::new(),
    });
    Ok(part)
}

/// Creations per second of a closed loop.
async fn creations(system: &System, count: u64, scale: &Scale, progress: &Progress) -> anyhow::Result<f64> {
    let holds = Holds { due: FAR, ..Holds::far(&system.accounts, Payees::Any) };
    let watch = progress.watch("create", count);
    let closed = load::closed(&system.fleet, scale.callers, count, &holds, &watch).await?;
    Ok(count as f64 / closed.took.as_secs_f64())
}

/// Loads so many open holds. Answers how long that took.
async fn load_backlog(system: &System, count: i64, progress: &Progress) -> anyhow::Result<Duration> {
    let started = tokio::time::Instant::now();
    let pairs = pairs(system);
    for sql in system.databases() {
        sql.batch_execute(PREPARE).await.context("preparing the bulk load")?;
        let payers: Vec<&str> = pairs.iter().map(|pair| pair.0).collect();
        let payees: Vec<&str> = pairs.iter().map(|pair| pair.1).collect();
        let shards: Vec<i32> = pairs.iter().map(|pair| pair.2).collect();
        let fill = "INSERT INTO pair SELECT i.n - 1, i.payer, i.payee, i.shard
                    FROM unnest($1::text[], $2::text[], $3::int4[]) WITH ORDINALITY AS i (payer, payee, shard, n)";
        sql.execute(fill, &[&payers, &payees, &shards]).await.context("preparing the bulk load")?;
        sql.batch_execute("ANALYZE pair").await?;
    }
    let first_ms = (Timestamp::now() - ID_AGE).as_millisecond();
    let due = Timestamp::from_second((Timestamp::now() + DUE).as_second())?;
    let watch = progress.watch("bulk load", count.unsigned_abs());
    for (chunk, from) in (0..count).step_by(CHUNK as usize).enumerate() {
        let to = (from + CHUNK).min(count) - 1;
        let due_at = due + Duration::from_secs(60 * chunk as u64);
        let hold = Chunk {
            first_ms,
            from,
            to,
            pairs: pairs.len() as i64,
            pieces: pieces(pairs[0].0, due_at)?,
            due_at,
        };
        let shards = system.shard_sql.iter().enumerate().map(|(shard, sql)| hold.on_shard(sql, shard as i32));
        futures::future::try_join(futures::future::try_join_all(shards), hold.on_coordinator(&system.sql))
            .await?;
        watch.set(to.unsigned_abs() + 1);
    }
    for sql in system.databases() {
        sql.batch_execute("ANALYZE; CHECKPOINT").await.context("after the bulk load")?;
    }
    ensure!(count > 0, "there is no backlog of {count} holds");
    Ok(started.elapsed())
}

/// Payers and payees, each with the shard of the payer. Every account pays, and is paid by one of the other shard.
fn pairs(system: &System) -> Vec<(&str, &str, i32)> {
    let by_shard = &system.accounts.0;
    let pair = |shard: usize, n: usize| {
        let other = &by_shard[(shard + 1) % by_shard.len()];
        (by_shard[shard][n].as_str(), other[n % other.len()].as_str(), shard as i32)
    };
    let mut pairs = Vec::new();
    for n in 0..by_shard[0].len() {
        pairs.extend((0..by_shard.len()).map(|shard| pair(shard, n)));
    }
    pairs
}

/// A run of holds with one due time.
struct Chunk {
    first_ms: i64,
    from: i64,
    to: i64,
    pairs: i64,
    pieces: Vec<Vec<u8>>,
    due_at: Timestamp,
}

impl Chunk {
    async fn on_shard(&self, sql: &Client, shard: i32) -> anyhow::Result<()> {
        let Self { first_ms, from, to, pairs, pieces, .. } = self;
        let funds = crate::fleet::FUNDS;
        sql.execute(PAYER_SIDE, &[first_ms, from, to, pairs, pieces, &shard, &funds])
            .await
            .context("loading the payers' side")?;
        sql.execute(PAYEE_SIDE, &[first_ms, from, to, pairs, pieces, &shard])
            .await
            .context("loading the payees' side")?;
        Ok(())
    }

    async fn on_coordinator(&self, sql: &Client) -> anyhow::Result<()> {
        let Self { first_ms, from, to, pairs, pieces, due_at } = self;
        sql.execute(COORDINATOR, &[first_ms, from, to, pairs, pieces, due_at])
            .await
            .context("loading the coordinator's side")?;
        Ok(())
    }
}

/// The encoding of a hold of 1 between two accounts, without their ids: what stands before, between and behind them.
fn pieces(an_account: &str, due_at: Timestamp) -> anyhow::Result<Vec<Vec<u8>>> {
    let [payer, payee] = ["\u{21}", "\u{7e}"].map(|one| one.repeat(an_account.len()));
    let account = |id: &str| AccountId::parse(id).context("an account id");
    let descriptor = Descriptor::hold(
        account(&payer)?,
        account(&payee)?,
        Amount::new(1)?,
        Currency::parse(CURRENCY)?,
        due_at,
        OnMaturity::Confirm,
    );
    let id = TransactionId::mint(due_at, [0; 10]);
    let encoded = Transaction::new(id, descriptor).encoded;
    let find = |id: &str| encoded.windows(id.len()).position(|window| window == id.as_bytes());
    let (first, second) = (find(&payer).context("no payer")?, find(&payee).context("no payee")?);
    let length = an_account.len();
    Ok(vec![
        encoded[..first].to_vec(),
        encoded[first + length..second].to_vec(),
        encoded[second + length..].to_vec(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_and_two_ids_make_a_descriptor() {
        let due_at = Timestamp::from_second(1_790_000_000).unwrap();
        let pieces = pieces("player-00000001", due_at).unwrap();
        let ids: [&[u8]; 2] = [b"player-00000001", b"player-00000002"];

        let bytes = [&pieces[0], ids[0], &pieces[1], ids[1], &pieces[2]].concat();
        let id = TransactionId::mint(due_at, [0; 10]);
        let read = Transaction::decode(id, bytes).unwrap();

        let (debit, credit) = read.descriptor.as_hold().unwrap();
        assert_eq!((debit.account.as_str(), credit.account.as_str()), ("player-00000001", "player-00000002"));
        assert_eq!(read.descriptor.due_at, due_at);
    }
}
