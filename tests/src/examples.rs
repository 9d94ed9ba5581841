//! The examples of participants, the tables that they need, and enough in them for the conformance kit.
//!
//! Those in Rust run in this process, by their own source. The one in Python is a process of its own, and the seats can be one,
//! too, so that they can be killed.

use crate::process::find_program;
use anyhow::{Context as _, bail, ensure};
use std::{path::PathBuf, process::Stdio, time::Duration};
use tcc_participant::sql::Names;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

#[allow(dead_code)]
#[path = "../../participants/sdk/examples/seats.rs"]
pub mod seats;
#[allow(dead_code)]
#[path = "../../participants/sdk/examples/stock.rs"]
pub mod stock;
#[allow(dead_code)]
#[path = "../../participants/sdk/examples/stock_in_batches.rs"]
pub mod stock_in_batches;

/// Of the warehouse: two of each of `item-0` to `item-2999`.
pub const STOCK: &str =
    "CREATE TABLE stock (item text PRIMARY KEY, free int NOT NULL, reserved int NOT NULL);
     INSERT INTO stock SELECT 'item-' || n, 2, 0 FROM generate_series(0, 2999) n";

/// Of the house: `seat-0` to `seat-2999` of a show that is approved, and `early-0` to `early-2999` of one that is not.
pub const SEATS: &str =
    "CREATE TABLE seat (seat text PRIMARY KEY, approved bool NOT NULL, taken_by uuid, sold bool NOT NULL);
     INSERT INTO seat SELECT 'seat-' || n, true, NULL, false FROM generate_series(0, 2999) n;
     INSERT INTO seat SELECT 'early-' || n, false, NULL, false FROM generate_series(0, 2999) n";

/// Of the coupons, beside the fences: two of each of `coupon-0` to `coupon-2999`.
pub const COUPONS: &str = concat!(
    include_str!("../../migrations/participant/V1__fence.sql"),
    include_str!("../../participants/examples/python/coupon.sql"),
    "INSERT INTO coupon SELECT 'coupon-' || n, 2 FROM generate_series(0, 2999) n"
);

/// Of the tickets, in SQL alone: two for each of `event-0` to `event-2999`.
pub const TICKETS: &str = concat!(
    include_str!("../../participants/examples/sql/tickets.sql"),
    "INSERT INTO tickets.event SELECT 'event-' || n, 2 FROM generate_series(0, 2999) n"
);

/// Of the payouts: two units for each of `kit-0` to `kit-2999`, and as many for recipients whose accounts are closed.
pub const RECIPIENTS: &str = "INSERT INTO payout_recipient (recipient, currency, destination, most)
     SELECT name || '-' || n, 'GOLD', name || '-' || n, 2
     FROM generate_series(0, 2999) n, unnest(ARRAY['kit', 'closed']) name";

/// The functions of the tickets.
#[must_use]
pub fn tickets() -> Names {
    let name = |function: &str| format!("tickets.{function}");
    Names { reserve: name("reserve"), confirm: name("confirm"), cancel: name("cancel"), veto: None }
}

/// An example as a process of its own. Killed when dropped.
pub struct Example {
    /// `http://HOST:PORT`.
    pub address: String,
    child: Child,
}

/// The coupons, in Python.
pub struct Coupons;

/// The seats, in Rust: the program `tcc-seats` beside this one.
pub struct House;

/// How long one may take to start.
const START: Duration = Duration::from_secs(30);

impl Coupons {
    /// Starts them on a database with [`COUPONS`]. Port 0 is any free one.
    ///
    /// # Errors
    ///
    /// If Python is not set up, or does not get ready.
    pub async fn start(database: &str, listen: &str) -> anyhow::Result<Example> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let tools = root.join("target/tools/python");
        let python = tools.join("bin/python");
        ensure!(python.exists(), "Python is not set up; run coordinator/ops/ensure-python");
        let mut command = Command::new(python);
        command
            .arg(root.join("participants/examples/python/coupons.py"))
            .env("PYTHONPATH", tools.join("stubs"));
        Example::start(command, "coupons", database, listen).await
    }
}

impl House {
    /// Starts it on a database with [`SEATS`]. Port 0 is any free one.
    ///
    /// # Errors
    ///
    /// If it is not built, or does not get ready.
    pub async fn start(database: &str, listen: &str) -> anyhow::Result<Example> {
        let program = find_program("tcc-seats")?;
        Example::start(Command::new(program), "seats", database, listen).await
    }

    /// As [`House::start`], with metrics there.
    ///
    /// # Errors
    ///
    /// As [`House::start`].
    pub async fn watched(database: &str, listen: &str, telemetry: &str) -> anyhow::Result<Example> {
        let mut command = Command::new(find_program("tcc-seats")?);
        command.env("TCC_TELEMETRY_LISTEN", telemetry);
        Example::start(command, "seats", database, listen).await
    }
}

impl Example {
    async fn start(mut command: Command, name: &str, database: &str, listen: &str) -> anyhow::Result<Self> {
        let mut child = command
            .env("TCC_PARTICIPANT", name)
            .env("TCC_DATABASE_URL", database)
            .env("TCC_LISTEN", listen)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let stdout = child.stdout.take().with_context(|| format!("{name} has no standard output"))?;
        let mut lines = BufReader::new(stdout).lines();
        let line =
            timeout(START, lines.next_line()).await.with_context(|| format!("{name} is not ready"))??;
        let address = line.as_deref().and_then(|line| line.strip_prefix(&format!("{name}: ready on ")));
        match address {
            Some(address) => Ok(Self { address: address.to_owned(), child }),
            None => bail!("{name} said {line:?}"),
        }
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn listens(&self) -> String {
        self.address.trim_start_matches("http://").to_owned()
    }

    /// Sends it a signal, such as `STOP`.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let id = self.child.id().context("it does not run")?.to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status().await?;
        ensure!(sent.success(), "kill -{name} {id} failed");
        Ok(())
    }

    /// Kills it with SIGKILL and returns when it is gone.
    ///
    /// # Errors
    ///
    /// If there is no such process.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("killing an example")
    }
}
