//! What people would write by hand, measured by pgbench: a transfer within one database, and the same ended by
//! `PREPARE TRANSACTION` and `COMMIT PREPARED`.
//!
//! The server has tcc's settings, and `max_prepared_transactions`, which tcc never needs. The scripts stand in
//! `tests/bench/`. The best number of clients counts.

use crate::{
    Scale,
    fleet::FUNDS,
    progress::Progress,
    report::{Form, Part, Plot, Series},
    system,
    system::SETTINGS,
};
use anyhow::{Context as _, ensure};
use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};
use tcc_coordinator::dev::{Cluster, Options};
use tempfile::TempDir;
use tokio::process::Command;

/// The numbers of clients of which the best counts.
pub const CLIENTS: [u32; 4] = [4, 16, 32, 64];
/// The line of the script that becomes a tree.
const LITERALS: &str = "PREPARE TRANSACTION 'transfer-CLIENT'; COMMIT PREPARED 'transfer-CLIENT';";

/// A server with the tables of the baseline.
pub struct Baseline {
    cluster: Cluster,
    pgbench: PathBuf,
    scripts: TempDir,
    accounts: u32,
}

/// Transfers per second of one kind.
#[derive(Debug, Clone, Default)]
pub struct Rates(pub Vec<(u32, f64)>);

/// What one round measured.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// The transfer within one database.
    pub local: Rates,
    /// The same in two phases.
    pub prepared: Rates,
}

/// Measures the baseline alone.
///
/// # Errors
///
/// If the server or pgbench fails.
pub async fn run(each: Duration, scale: &Scale, progress: &Progress) -> anyhow::Result<Part> {
    let baseline = Baseline::start(scale.accounts, progress).await?;
    let round = baseline.round(each, progress).await?;
    let mut part = Part::default();
    describe(&mut part, &[round]);
    Ok(part)
}

/// Adds the baseline's rates to a part.
pub fn describe(part: &mut Part, rounds: &[Round]) {
    for (n, Round { local, prepared }) in rounds.iter().enumerate() {
        part.fact(format!("local transfers, round {}", n + 1), local.text());
        part.fact(format!("prepared transfers, round {}", n + 1), prepared.text());
    }
    let Some(Round { local, prepared }) = rounds.last() else { return };
    let series = |name: &str, rates: &Rates| Series {
        name: name.to_owned(),
        points: rates.0.iter().map(|(clients, rate)| (f64::from(*clients), *rate)).collect(),
    };
    part.plots.push(Plot {
        title: "Baseline: transfers per second of plain PostgreSQL".into(),
        x: "clients".into(),
        y: "transfers/s".into(),
        form: Form::Lines,
        series: vec![series("local", local), series("PREPARE / COMMIT PREPARED", prepared)],
        bars: Vec::new(),
    });
}

impl Baseline {
    /// Starts the server and fills its tables.
    ///
    /// # Errors
    ///
    /// If it does not start, is not durable, or there is no pgbench.
    pub async fn start(accounts: u32, progress: &Progress) -> anyhow::Result<Self> {
        progress.say("   starting the baseline's server");
        let settings = SETTINGS.into_iter().chain(["max_prepared_transactions=100"]).map(str::to_owned);
        let options = Options { settings: settings.collect(), ..Options::default() };
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(&options)).await??;
        let pgbench = find_pgbench(&cluster)?;
        let sql = system::connect(&cluster).await?;
        let schema = include_str!("../../../bench/schema.sql");
        let schema = schema.replace(":accounts", &accounts.to_string()).replace(":funds", &FUNDS.to_string());
        // One statement after the other: VACUUM runs in no transaction.
        let statements: String = schema
            .lines()
            .filter(|line| !line.starts_with("--"))
            .fold(String::new(), |all, line| all + line + "\n");
        for statement in statements.split(';').filter(|statement| !statement.trim().is_empty()) {
            sql.batch_execute(statement).await.context("making the baseline's tables")?;
        }
        let scripts = tempfile::Builder::new().prefix("tcc-bench-").tempdir().context("making a folder")?;
        Ok(Self { cluster, pgbench, scripts, accounts })
    }

    /// Measures both kinds with each number of clients.
    ///
    /// # Errors
    ///
    /// If pgbench fails.
    pub async fn round(&self, each: Duration, progress: &Progress) -> anyhow::Result<Round> {
        let mut round = Round::default();
        let local = include_str!("../../../bench/local.sql");
        let prepared = include_str!("../../../bench/prepared.sql");
        for clients in CLIENTS {
            round.local.0.push((clients, self.pgbench(local, clients, each).await?));
            let prepared = prepared.replace(LITERALS, &tree(0, clients));
            round.prepared.0.push((clients, self.pgbench(&prepared, clients, each).await?));
        }
        progress.say(&format!("   pgbench local: {}", round.local.text()));
        progress.say(&format!("   pgbench prepared: {}", round.prepared.text()));
        Ok(round)
    }

    /// Transactions per second of one script.
    async fn pgbench(&self, script: &str, clients: u32, lasts: Duration) -> anyhow::Result<f64> {
        let path = self.scripts.path().join("script.sql");
        fs::write(&path, script).context("writing a script for pgbench")?;
        let output = Command::new(&self.pgbench)
            .args(["-n", "-M", "prepared", "-j", "2", "-U", "postgres"])
            .args(["-c", &clients.to_string(), "-T", &lasts.as_secs().max(1).to_string()])
            .args(["-D", &format!("accounts={}", self.accounts)])
            .arg("-h")
            .arg(self.cluster.home().join("s"))
            .arg("-f")
            .arg(&path)
            .arg("postgres")
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("running {}", self.pgbench.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench failed: {errors}");
        read_rate(&said).with_context(|| format!("pgbench told no rate:\n{said}{errors}"))
    }
}

impl Rates {
    /// The best of them.
    #[must_use]
    pub fn best(&self) -> f64 {
        self.0.iter().map(|(_, rate)| *rate).fold(0.0, f64::max)
    }

    /// All of them, for people.
    #[must_use]
    pub fn text(&self) -> String {
        let each: Vec<String> =
            self.0.iter().map(|(clients, rate)| format!("{clients} clients {rate:.0}/s")).collect();
        format!("best {:.0}/s ({})", self.best(), each.join(", "))
    }
}

/// Beside the server's programs, or anywhere on the PATH.
fn find_pgbench(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(cluster.bin().to_owned()).chain(std::env::split_paths(&path));
    let found = folders.map(|folder| folder.join("pgbench")).find(|path| path.is_file());
    found.context("there is no pgbench beside PostgreSQL's programs or on the PATH")
}

/// "tps = 6800.1 (without initial connection time)".
fn read_rate(said: &str) -> Option<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Both literals for each client from `first` on, `count` of them, behind as few conditions as possible.
fn tree(first: u32, count: u32) -> String {
    if count == 1 {
        return LITERALS.replace("CLIENT", &first.to_string()).replace("; ", ";\n");
    }
    let half = count / 2;
    let mut tree = String::new();
    let _ = write!(
        tree,
        "\\if :client_id < {}\n{}\n\\else\n{}\n\\endif",
        first + half,
        self::tree(first, half),
        self::tree(first + half, count - half)
    );
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_holds_the_line_that_becomes_a_tree() {
        assert!(include_str!("../../../bench/prepared.sql").contains(LITERALS));
        assert_eq!(tree(0, 64).matches("COMMIT PREPARED").count(), 64);
        assert_eq!(
            tree(0, 2),
            "\\if :client_id < 1\nPREPARE TRANSACTION 'transfer-0';\nCOMMIT PREPARED 'transfer-0';\n\\else\n\
             PREPARE TRANSACTION 'transfer-1';\nCOMMIT PREPARED 'transfer-1';\n\\endif"
        );
    }

    #[test]
    fn the_rate_is_read_from_what_pgbench_says() {
        assert_eq!(
            read_rate("latency average = 1 ms\ntps = 6800.25 (without initial connection time)\n"),
            Some(6800.25)
        );
    }
}
