//! `tccctl participants …`: whether a participant keeps to the fence table.
//!
//! The participant is asked itself, and not through a coordinator: it need not be known to one. The kit is the SDK's; this
//! asks and shows.

use crate::{
    credentials::TlsFiles,
    errors::{Exit, Failure},
    output::Output,
};
use clap::Args;
use serde::Serialize;
use std::fmt;
use tcc_participant::conformance::{Finding, Options, Part, Report, Subject, verify};

/// Which participant, and how much is asked of it.
#[derive(Args)]
pub struct Verify {
    /// Where it listens: https://HOST:PORT, with --ca, --certificate and --key as it asks for them, or http://HOST:PORT
    address: String,
    /// A payload that reserves one unit of something of which there are one or two, and which nobody else uses. %n in it
    /// becomes 0, 1, 2, …; each schedule uses one of them up
    #[arg(long, value_name = "TEXT", required_unless_present = "account")]
    payload: Option<String>,
    /// For a ledger, instead of a payload: an account with one or two units, from which one is debited. %n as above
    #[arg(long, value_name = "ID", conflicts_with = "payload", requires = "currency")]
    account: Option<String>,
    /// The currency of that account
    #[arg(long, requires = "account")]
    currency: Option<String>,
    /// A payload of something that can be reserved and is vetoed at Confirm, if the participant may veto
    #[arg(long, value_name = "TEXT")]
    vetoed: Option<String>,
    /// Its Confirm takes place outside of its database: it takes part only as the pivot, and may not know at once
    #[arg(long)]
    outside: bool,
    /// The first %n
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// How many random schedules
    #[arg(long, value_name = "N", default_value_t = Options::default().schedules)]
    schedules: u32,
    /// Of the first random schedule; with `--schedules 1` a schedule is met again
    #[arg(long, default_value_t = Options::default().seed)]
    seed: u64,
}

/// Asks a participant all that a coordinator could ask, over TLS if its address says so.
pub async fn verify_one(output: &Output, asked: Verify, tls: TlsFiles) -> Result<Exit, Box<Failure>> {
    let TlsFiles { ca, identity } = tls;
    if !asked.address.starts_with("https:") && (ca.is_some() || identity.is_some()) {
        let address = &asked.address;
        let message = format!("certificates need an encrypted connection, and {address} is none; use https");
        return Err(Failure::usage(&message));
    }
    let part = match (asked.payload, asked.account, asked.currency) {
        (_, Some(account), Some(currency)) => Part::Debit { account, currency },
        (payload, _, _) => Part::Payload(payload.unwrap_or_default()),
    };
    let vetoed = asked.vetoed.map(Part::Payload);
    let (first, is_outside) = (asked.first, asked.outside);
    let subject = Subject { ca, identity, vetoed, first, is_outside, ..Subject::new(&asked.address, part) };
    let options = Options { seed: asked.seed, schedules: asked.schedules, ..Options::default() };
    output.remark("asking; what is reserved for that is cancelled or used up");
    let report = verify(subject, &options).await.map_err(|error| Failure::unusable(error.to_string()))?;
    let exit = if report.is_ok() { Exit::Done } else { Exit::Findings };
    output.show(&Verified::from(report))?;
    Ok(exit)
}

#[derive(Serialize)]
struct Verified {
    participant: String,
    software: String,
    ok: bool,
    passed: String,
    effects_seen: String,
    inconclusive: String,
    cells: Vec<String>,
    findings: Vec<Found>,
    /// Why nothing can be said, although no mistake was found.
    unseen: Vec<String>,
    #[serde(skip)]
    text: String,
}

#[derive(Serialize)]
struct Found {
    mistake: &'static str,
    meaning: &'static str,
    schedule: String,
    what: String,
    /// Of the random schedule that it was a part of.
    seed: Option<String>,
    times: String,
}

impl From<Report> for Verified {
    fn from(report: Report) -> Self {
        Self {
            text: report.to_string(),
            ok: report.is_ok(),
            unseen: report.unseen(),
            participant: report.name,
            software: report.software,
            passed: report.passed.to_string(),
            effects_seen: report.effects_seen.to_string(),
            inconclusive: report.inconclusive.to_string(),
            cells: report.cells.into_iter().collect(),
            findings: report.findings.into_iter().map(Found::from).collect(),
        }
    }
}

impl From<Finding> for Found {
    fn from(finding: Finding) -> Self {
        Self {
            mistake: finding.mistake.code(),
            meaning: finding.mistake.what(),
            schedule: finding.schedule,
            what: finding.what,
            seed: finding.seed.map(|seed| seed.to_string()),
            times: finding.times.to_string(),
        }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
