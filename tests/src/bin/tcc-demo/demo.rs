//! The course of the demo: start everything, create holds, kill tccd in the middle, wait until every hold is final, compare.
//!
//! The servers and tccd are real processes and belong to the future that runs here: when it ends or is dropped, they stop.
//! What must come out is computed by `story` and `books` from answers alone; the auditor is asked last, and believed least.

use crate::{
    books::{Balance, Books, Comparison},
    client::{Audit, audit, client},
    flight::{Flight, Pulse},
    lateness::{Downtime, lateness_us, percentile_ms},
    life::{World, live, next_beat},
    plan::{BEAT, Order, Plan},
    progress::Progress,
    story::{Fate, Story, judge},
};
use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::{HumanCount, ProgressBar};
use std::{fmt, sync::Arc, time::Duration};
use tcc_client::new_id;
use tcc_coordinator::dev::{Cluster, Servers};
use tcc_core::Timestamp;
use tcc_tests::process::Tccd;
use tokio::{task::JoinSet, time::Instant};

/// So many calls go out at a time where holds are not concerned.
const CALLS: usize = 64;
/// At least so many creations are in flight at the kill, or a quarter of a wave if that is less.
const IN_FLIGHT: usize = 20;
/// How long tccd may take to drain.
const DRAIN: Duration = Duration::from_secs(15);

/// How it went.
#[derive(Debug, Clone, Default)]
pub struct Report {
    holds: usize,
    paid: usize,
    cancelled: usize,
    refused: usize,
    in_flight_at_kill: u64,
    late_p99_ms: i64,
    lost: i128,
    created: i128,
    /// Everything that must not be, a sentence each.
    pub wrong: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { holds, paid, cancelled, refused, in_flight_at_kill, late_p99_ms, lost, created, .. } =
            self;
        write!(f, "holds={holds} paid={paid} cancelled={cancelled} refused={refused} restarts=1 ")?;
        write!(
            f,
            "in_flight_at_kill={in_flight_at_kill} late_p99_ms={late_p99_ms} lost={lost} created={created}"
        )
    }
}

/// Runs a plan from beginning to end.
///
/// # Errors
///
/// If it cannot be run to its end; what tccd did wrong until its end is in the report.
pub async fn run(plan: Plan, progress: &Progress) -> anyhow::Result<Report> {
    introduce(&plan, progress);
    let servers = start_servers(progress).await?;
    let mut tccd = Tccd::start(&servers.config("127.0.0.1:0")).await?;
    progress.say(&format!("tccd serves on {}, with a coordinator database and two shards", tccd.url()));

    let flight = Flight::new();
    let client = client(tccd.url(), flight.clone())?;
    let world = World::new(plan, client, flight)?;
    let report = transfer(&world, &mut tccd, progress).await.inspect_err(|_| {
        progress.say(&format!("the log of tccd ends:\n{}", tccd.log_tail()));
    })?;

    let status = tccd.terminate(DRAIN).await?;
    ensure!(status.success(), "after SIGTERM tccd ended with {status}. Its log ends:\n{}", tccd.log_tail());
    let stopping = progress.busy("stopping the PostgreSQL servers");
    tokio::task::spawn_blocking(move || throw_away(servers)).await.context("stopping PostgreSQL")??;
    stopping.finish_and_clear();
    Ok(report)
}

fn introduce(plan: &Plan, progress: &Progress) {
    let (orders, accounts) = (HumanCount(plan.orders.len() as u64), HumanCount(plan.accounts.len() as u64));
    let creating = (BEAT * plan.waves as u32).as_secs_f64();
    let cancels =
        if plan.orders.iter().any(|order| order.cancel_lead.is_some()) { "cancels some, " } else { "" };
    progress.say("This demo of tcc, on throw-away PostgreSQL servers,");
    progress.say(&format!("  opens {accounts} accounts on two shards and issues {} to them,", plan.currency));
    progress.say(&format!(
        "  creates {orders} holds in {creating} s, due up to 20 s later; {cancels}repeats some,"
    ));
    progress.say("  kills tccd with SIGKILL while holds are being created and paid, and starts it again,");
    progress.say("  waits until every hold is final, and compares every balance with its own arithmetic.");
}

async fn start_servers(progress: &Progress) -> anyhow::Result<Servers> {
    let starting = progress.busy("starting three PostgreSQL servers and tccd");
    let servers = tokio::task::spawn_blocking(|| Servers::start(2, None, &[]))
        .await
        .context("starting PostgreSQL")??;
    starting.finish_and_clear();
    Ok(servers)
}

/// Stops the servers without letting them write back what nobody will read.
fn throw_away(mut servers: Servers) -> anyhow::Result<()> {
    servers.coordinator.crash()?;
    servers.shards.iter_mut().try_for_each(Cluster::crash)?;
    Ok(())
}

/// Everything that tccd is asked.
async fn transfer(world: &Arc<World>, tccd: &mut Tccd, progress: &Progress) -> anyhow::Result<Report> {
    open_accounts(world, progress).await?;
    let (stories, downtime) =
        tokio::try_join!(create_holds(world, progress), kill_midway(world, tccd, progress))?;
    examine(world, tccd.url(), &stories, &downtime, progress).await
}

async fn open_accounts(world: &World, progress: &Progress) -> anyhow::Result<()> {
    let plan = &world.plan;
    let bar = progress.count("accounts", plan.accounts.len());
    let currency = world.currency()?;
    stream::iter(world.accounts.iter().zip(&plan.accounts))
        .map(|(id, account)| async {
            world.client.open(id, &currency).await?;
            if account.issued > 0 {
                world.client.issue(new_id(), id, world.money(account.issued)?).await?;
            }
            bar.inc(1);
            anyhow::Ok(())
        })
        .buffer_unordered(CALLS)
        .try_collect::<()>()
        .await?;
    bar.finish_and_clear();
    let (accounts, issued) =
        (HumanCount(plan.accounts.len() as u64), HumanCount(plan.issued().unsigned_abs()));
    progress.say(&format!("{accounts} accounts are open, and {issued} {} issued", plan.currency));
    Ok(())
}

/// A wave on every beat, and every hold to its end.
async fn create_holds(world: &Arc<World>, progress: &Progress) -> anyhow::Result<Vec<Story>> {
    let plan = &world.plan;
    let created = progress.count("created", plan.orders.len());
    let mut tally = Tally::new(progress.count("final", plan.orders.len()));
    let first = next_beat(Timestamp::now()).duration_since(Timestamp::now());
    let first = Instant::now() + Duration::try_from(first).unwrap_or_default();
    let mut lives = JoinSet::new();
    for index in 0..plan.orders.len() {
        let (world, created) = (Arc::clone(world), created.clone());
        let beat = first + BEAT * u32::try_from(index / plan.wave()).unwrap_or(u32::MAX);
        lives.spawn(async move {
            tokio::time::sleep_until(beat).await;
            let story = live(&world, &world.plan.orders[index], || created.inc(1)).await?;
            anyhow::Ok((index, story))
        });
    }

    let mut stories = vec![None; plan.orders.len()];
    while let Some(ended) = lives.join_next().await {
        let (index, story) = ended.context("the task of a hold broke down")??;
        tally.add(verdict(world, &plan.orders[index], &story).0);
        stories[index] = Some(story);
    }
    created.finish_and_clear();
    tally.bar.finish_and_clear();
    progress.say(&format!("every hold is final: {}", tally.text()));
    stories.into_iter().collect::<Option<_>>().context("a hold has no story")
}

/// Kills tccd in the middle of a wave, half-way through, and starts it again. The wave begins on the beat on which holds fall
/// due, so when its first creation is answered, others are on their way and payments, too.
async fn kill_midway(world: &World, tccd: &mut Tccd, progress: &Progress) -> anyhow::Result<Downtime> {
    let (plan, wave) = (&world.plan, world.plan.wave());
    let total = plan.orders.len();
    let created = wave * (plan.waves / 2) + 1;
    let creating = IN_FLIGHT.min((wave / 4).max(1));
    let is_ripe = |pulse: &Pulse| pulse.created >= created && pulse.creating >= creating;
    let pulse = world.flight.until(|pulse| is_ripe(pulse) || pulse.created == total).await;
    ensure!(is_ripe(&pulse), "every hold was created before there was a moment to kill tccd: use more holds");

    let killed_at = Timestamp::now();
    world.flight.kill();
    tccd.kill().await?;
    let Pulse { creating, created } = pulse;
    let (created, total) = (HumanCount(created as u64), HumanCount(total as u64));
    progress.say(&format!("kill -9 tccd: {created} of {total} holds created, {creating} more on their way"));
    tccd.restart().await?;
    let ready_at = Timestamp::now();
    let (down, cut_off) = (ready_at.duration_since(killed_at).as_millis(), world.flight.cut_off());
    progress
        .say(&format!("tccd serves again after {down} ms; {cut_off} calls got no answer and are made again"));
    Ok(killed_at..=ready_at)
}

/// Compares the end with the answers.
async fn examine(
    world: &World,
    url: &str,
    stories: &[Story],
    downtime: &Downtime,
    progress: &Progress,
) -> anyhow::Result<Report> {
    let plan = &world.plan;
    let mut report =
        Report { holds: stories.len(), in_flight_at_kill: world.flight.cut_off(), ..Report::default() };
    let (mut fates, mut lateness) = (Vec::new(), Vec::new());
    let mut unpaid_at_kill = 0;
    for (order, story) in plan.orders.iter().zip(stories) {
        let (fate, wrong) = verdict(world, order, story);
        fates.push(fate);
        report.wrong.extend(wrong);
        if let (Fate::Paid, Some(settled_at)) = (fate, story.end.settled_at) {
            lateness.push(lateness_us(story.due_at, settled_at, downtime));
            unpaid_at_kill += usize::from((story.due_at..=settled_at).contains(downtime.start()));
        }
    }
    let count = |wanted| fates.iter().filter(|&&fate| fate == wanted).count();
    (report.paid, report.cancelled, report.refused) =
        (count(Fate::Paid), count(Fate::Cancelled), count(Fate::Refused));
    let [median, p99, worst] = [50, 99, 100].map(|percent| percentile_ms(&mut lateness, percent));
    report.late_p99_ms = p99;
    if report.in_flight_at_kill == 0 {
        report.wrong.push("no call was in flight when tccd was killed".into());
    }
    let in_flight = report.in_flight_at_kill;
    progress.say(&format!(
        "at the kill: {in_flight} calls in flight, {unpaid_at_kill} payments due and not made"
    ));
    progress.say(&format!(
        "lateness of payments outside the downtime: median {median} ms, p99 {p99} ms, worst {worst} ms"
    ));

    let balances = read_balances(world, progress).await?;
    let Comparison { differences, lost, created } = Books::after(plan, fates).compare(plan, &balances);
    let (right, all) = (plan.accounts.len() - differences.len(), plan.accounts.len());
    progress.say(&format!(
        "{right} of {all} balances are what the answers say; lost {lost}, created {created} units"
    ));
    (report.lost, report.created) = (lost, created);
    report.wrong.extend(differences.into_iter().map(|what| format!("by the answers, {what}")));
    if let Some(books) = Books::foretold(plan) {
        let differences = books.compare(plan, &balances).differences;
        progress.say(&format!("{} of {all} balances are what the file alone says", all - differences.len()));
        report.wrong.extend(differences.into_iter().map(|what| format!("by the file, {what}")));
    }

    let auditing = progress.busy("running the auditor");
    let Audit { findings, postings, issued } =
        audit(url, plan.currency, |step| auditing.set_message(step.to_owned())).await?;
    auditing.finish_and_clear();
    progress.say(&format!(
        "the auditor read {} postings: {} findings",
        HumanCount(postings as u64),
        findings.len()
    ));
    report.wrong.extend(findings.into_iter().map(|finding| format!("the auditor found {finding}")));
    if issued != plan.issued() {
        report
            .wrong
            .push(format!("the auditor says that {issued} units were issued, and {} were", plan.issued()));
    }
    Ok(report)
}

async fn read_balances(world: &World, progress: &Progress) -> anyhow::Result<Vec<Balance>> {
    let bar = progress.count("balances", world.plan.accounts.len());
    let counted = &bar;
    let balances = stream::iter(&world.accounts)
        .map(|id| async move {
            let account = world.client.account(id).await?;
            counted.inc(1);
            anyhow::Ok(Balance { available: account.available, held: account.held })
        })
        .buffered(CALLS)
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(balances)
}

fn verdict(world: &World, order: &Order, story: &Story) -> (Fate, Vec<String>) {
    let (payer, payee) = world.parties(order);
    judge(order, payer, payee, story)
}

/// What is final so far.
struct Tally {
    bar: ProgressBar,
    paid: usize,
    cancelled: usize,
    refused: usize,
}

impl Tally {
    fn new(bar: ProgressBar) -> Self {
        Self { bar, paid: 0, cancelled: 0, refused: 0 }
    }

    fn add(&mut self, fate: Fate) {
        match fate {
            Fate::Paid => self.paid += 1,
            Fate::Cancelled => self.cancelled += 1,
            Fate::Refused => self.refused += 1,
        }
        self.bar.inc(1);
        self.bar.set_message(format!("({})", self.text()));
    }

    fn text(&self) -> String {
        format!("{} paid, {} cancelled, {} refused", self.paid, self.cancelled, self.refused)
    }
}
