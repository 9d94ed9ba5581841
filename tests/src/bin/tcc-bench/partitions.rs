//! Ten million wake-ups: what each costs in the write-ahead log, and what it costs to index and to drop a partition.
//!
//! They are put into two partitions by SQL while tccd is stopped: one of the past, which is drained, and one of the near
//! future, whose index is missing. When tccd starts it indexes the one and drops the other, while somebody has a transaction
//! open that has read the wake-ups; meanwhile holds are created, and none of them may have to wait for a lock. How long they
//! take when nothing is maintained is measured afterwards, since the work itself takes a processor and the disk.

use crate::{
    Scale,
    fleet::Payees,
    load::{self, Holds, Rate},
    progress::Progress,
    report::Part,
    system::System,
};
use anyhow::{Context as _, ensure};
use jiff::SignedDuration;
use std::time::{Duration, Instant};
use tcc_coordinator::store::schema::WAKEUP;
use tcc_core::Timestamp;

/// How much is measured.
#[derive(clap::Args, Clone)]
pub struct Options {
    /// How many wake-ups each partition gets.
    #[arg(long, default_value_t = 10_000_000)]
    pub wakeups: u64,
    /// Creations per second meanwhile.
    #[arg(long, default_value_t = 500)]
    pub rate: u32,
}

/// Wake-ups per statement.
const BATCH: u64 = 256;
/// How long holds are created, at least, and in which partitions must be done.
const LASTS: Duration = Duration::from_secs(90);
/// No creation may take longer, in milliseconds.
const LONGEST_MS: f64 = 50.0;
/// How long somebody's transaction is open.
const READER: Duration = Duration::from_secs(20);
/// How long holds are created afterwards.
const ALONE: Duration = Duration::from_secs(30);
/// The server logs whoever waits for a lock for longer than [`LONGEST_MS`], by the name of its connection.
const LOG_WAITS: &str = "
ALTER SYSTEM SET log_lock_waits = on;
ALTER SYSTEM SET deadlock_timeout = '50ms';
ALTER SYSTEM SET log_line_prefix = '%a: ';
SELECT pg_reload_conf()";

/// Measures.
///
/// # Errors
///
/// If anything fails, or the auditor finds something.
pub async fn run(options: &Options, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let mut system = System::start(2, scale, progress).await?;
    system.stop_tccd().await?;
    let now = Timestamp::now();
    let hours = SignedDuration::from_hours;
    WAKEUP.create(&system.sql, now, hours(24), SignedDuration::ZERO).await?;
    let (past, near) = (leaf_at(&system, now - hours(13)).await?, leaf_at(&system, now + hours(7)).await?);
    let index = WAKEUP.index.context("wake-ups have an index")?;
    for leaf in [&past, &near] {
        system.sql.batch_execute(&format!("DROP INDEX IF EXISTS {}", index.name(leaf))).await?;
    }
    let mut part = Part::default();
    let without = fill(&system, now - hours(13), options.wakeups, "wake-ups of the past", progress).await?;
    fill(&system, now + hours(7), options.wakeups, "wake-ups of the future", progress).await?;
    let with =
        fill(&system, now + hours(1), options.wakeups / 10, "wake-ups with an index", progress).await?;
    part.fact("WAL per wake-up without an index", format!("{without:.0} bytes"));
    part.fact("WAL per wake-up with an index, random order", format!("{with:.0} bytes"));
    system.sql.batch_execute("ANALYZE wakeup; CHECKPOINT").await?;
    for statement in LOG_WAITS.split(';') {
        system.sql.batch_execute(statement).await?;
    }
    let reader = system.connect().await?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM wakeup LIMIT 1").await?;
    let reading = tokio::spawn(async move {
        tokio::time::sleep(READER).await;
        reader.batch_execute("COMMIT").await
    });

    let started = Instant::now();
    system.start_tccd().await?;
    let holds = Holds::far(&system.accounts, Payees::Any);
    let rate = Rate { creates: options.rate, cancel_every: 0, lasts: LASTS };
    let watch = progress.watch("creations meanwhile", u64::from(options.rate) * LASTS.as_secs());
    let index = index.name(&near);
    let (open, done) = tokio::join!(
        load::open(&system.fleet, rate, &holds, &watch),
        maintained(&system, &past, &index, started)
    );
    drop(watch);
    reading.await?.context("ending the transaction that reads")?;
    let (open, (indexed, dropped)) = (open?, done?);
    ensure!(open.errors == 0, "creations failed: {:?}", open.first_error);
    let creates = open.creates.context("an open loop has latencies")?;
    let log = system.coordinator_log()?;
    let waits = |line: &&str| line.contains("still waiting for") && !line.starts_with("tccd-partitions:");
    let lock_waits: Vec<&str> = log.lines().filter(waits).collect();
    lock_waits.iter().take(10).for_each(|line| progress.say(&format!("   {line}")));

    let rate = Rate { lasts: ALONE, ..rate };
    let watch = progress.watch("creations alone", u64::from(options.rate) * ALONE.as_secs());
    let alone = load::open(&system.fleet, rate, &holds, &watch).await?;
    drop(watch);
    let alone = alone.creates.context("an open loop has latencies")?;
    part.fact("indexed after", format!("{indexed:.1} s"));
    part.fact("dropped after", format!("{dropped:.1} s"));
    part.fact(format!("creation meanwhile, {}/s", options.rate), creates.summary());
    part.fact("creation afterwards", alone.summary());
    part.fact(
        "waits for a lock of more than 50 ms, but for the maintenance's own",
        lock_waits.len().to_string(),
    );
    system.audit(progress).await?;
    let longest = creates.percentile_ms(100.0);
    part.line = Some(format!(
        "partitions: {} wakeups={} wal_per_row={without:.0} wal_per_row_indexed={with:.0} indexed_after_s={indexed:.1} dropped_after_s={dropped:.1} longest_create_ms={longest:.1} alone_ms={:.1} lock_waits={}",
        if longest <= LONGEST_MS && lock_waits.is_empty() { "ok" } else { "MISSED" },
        options.wakeups,
        alone.percentile_ms(100.0),
        lock_waits.len(),
    ));
    Ok(part)
}

/// The partition of a time.
async fn leaf_at(system: &System, at: Timestamp) -> anyhow::Result<String> {
    let rows = system
        .sql
        .query("SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'wakeup'::regclass", &[])
        .await?;
    let covers = |name: &String| WAKEUP.range(name).is_some_and(|(low, high)| low <= at && at < high);
    rows.iter().map(|row| row.get(0)).find(covers).context("there is no partition for that time")
}

/// Fills the partition of a time in batches like those of tccd. Answers how many bytes of log each wake-up took.
async fn fill(
    system: &System,
    at: Timestamp,
    count: u64,
    name: &'static str,
    progress: &Progress,
) -> anyhow::Result<f64> {
    let (low, high) = WAKEUP.range(&leaf_at(system, at).await?).context("the name of a partition")?;
    let seconds = high.duration_since(low).as_secs() as f64;
    let put = "INSERT INTO wakeup (wake_at, transaction_id, slot, lane)
               SELECT $1::timestamptz + random() * $2::float8 * interval '1 second', gen_random_uuid(), (random() * 255)::int2, 0
               FROM generate_series(1, $3::int4)";
    let put = system.sql.prepare(put).await?;
    let position = "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8";
    system.sql.batch_execute("CHECKPOINT").await?;
    let from: i64 = system.sql.query_one(position, &[]).await?.get(0);
    let watch = progress.watch(name, count);
    for batch in 0..count.div_ceil(BATCH) {
        system.sql.execute(&put, &[&low, &seconds, &(BATCH as i32)]).await?;
        watch.set(batch * BATCH);
    }
    let to: i64 = system.sql.query_one(position, &[]).await?.get(0);
    Ok((to - from) as f64 / count as f64)
}

/// Waits until a partition is dropped and another one's index is there. Answers how long each took.
async fn maintained(
    system: &System,
    past: &str,
    index: &str,
    started: Instant,
) -> anyhow::Result<(f64, f64)> {
    let (mut indexed, mut dropped) = (None, None);
    let look = "SELECT to_regclass($1) IS NULL,
                       EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass($2) AND indisvalid)";
    while started.elapsed() < LASTS {
        let row = system.sql.query_one(look, &[&past, &index]).await?;
        let after = started.elapsed().as_secs_f64();
        if row.get(0) {
            dropped.get_or_insert(after);
        }
        if row.get(1) {
            indexed.get_or_insert(after);
        }
        if let (Some(indexed), Some(dropped)) = (indexed, dropped) {
            return Ok((indexed, dropped));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("after {LASTS:?}: indexed {indexed:?}, dropped {dropped:?}")
}
