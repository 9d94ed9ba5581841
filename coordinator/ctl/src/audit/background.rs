//! `tccctl audit show` and `tccctl audit watch`: what the auditor in the background has found, and what it is at.
//!
//! A watch is a tripwire: it prints each step of each shard, and ends with the first thing that is found from then on. It
//! polls, because that survives restarts of the server.

use super::Finding;
use crate::{
    errors::{Exit, Failure},
    output::{Int64, Output, or_dash, rows, time},
    session::Session,
};
use serde::Serialize;
use std::{collections::HashMap, fmt, time::Duration};
use tcc_proto::v1::{self, operator_service_client::OperatorServiceClient};
use tokio::time::Instant;
use tonic::{Status, transport::Channel};

/// How often a watch looks.
const POLL: Duration = Duration::from_secs(1);
/// As many findings as a page may have.
const PAGE: i32 = 1_000;

type Client = OperatorServiceClient<Channel>;

/// Lists what was found.
pub async fn show(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let mut client = Client::new(session.connect().await?);
    let found = findings_after(&mut client, session, 0).await;
    let found = Found::from(found.map_err(|status| session.failure(status))?);
    output.show_list(&found, "findings")?;
    Ok(if found.findings.is_empty() { Exit::Done } else { Exit::Findings })
}

/// Prints how far each shard is audited, until something is found.
///
/// Once it has begun it bears with a server that does not answer, but not for longer than the timeout of a call.
pub async fn watch(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let mut client = Client::new(session.connect().await?);
    let known = findings_after(&mut client, session, 0).await.map_err(|status| session.failure(status))?;
    if !known.is_empty() {
        output.remark(&format!("there are {} findings; see them with: tccctl audit show", known.len()));
    }
    let last = known.last().map_or(0, |kept| kept.number);
    let mut seen: HashMap<String, String> = HashMap::new();
    let mut answered = Instant::now();
    loop {
        match look(&mut client, session, last).await {
            Ok((shards, found)) => {
                answered = Instant::now();
                for step in shards.into_iter().filter_map(Step::of_shard) {
                    if seen.insert(step.shard.clone(), step.until.clone()).as_ref() != Some(&step.until) {
                        output.show(&StepLine { audited: step })?;
                    }
                }
                if !found.is_empty() {
                    output.show_list(&Found::from(found), "findings")?;
                    return Ok(Exit::Findings);
                }
            }
            Err(status) => {
                let failure = session.failure(status);
                if failure.exit != Exit::Unknown || answered.elapsed() >= session.timeout() {
                    return Err(failure);
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How the shards are, and what was found after a finding.
async fn look(
    client: &mut Client,
    session: &Session,
    last: i64,
) -> Result<(Vec<v1::ShardStatus>, Vec<v1::KeptFinding>), Status> {
    let status = client.get_status(session.request(v1::GetStatusRequest {})).await?.into_inner();
    Ok((status.shards, findings_after(client, session, last).await?))
}

/// All findings with a greater number, page by page.
async fn findings_after(
    client: &mut Client,
    session: &Session,
    number: i64,
) -> Result<Vec<v1::KeptFinding>, Status> {
    let mut findings = Vec::new();
    let mut after_number = number;
    loop {
        let request = session.request(v1::ListFindingsRequest { after_number, page_size: PAGE });
        let page = client.list_findings(request).await?.into_inner();
        findings.extend(page.findings);
        if page.next_after_number <= after_number {
            return Ok(findings);
        }
        after_number = page.next_after_number;
    }
}

#[derive(Debug, Serialize)]
struct Found {
    findings: Vec<Kept>,
}

#[derive(Debug, Serialize)]
struct Kept {
    number: Int64,
    found_at: Option<String>,
    finding: Finding,
}

impl From<Vec<v1::KeptFinding>> for Found {
    fn from(findings: Vec<v1::KeptFinding>) -> Self {
        let kept = |kept: v1::KeptFinding| Kept {
            number: Int64(kept.number),
            found_at: kept.found_at.as_ref().map(time),
            finding: Finding::from(kept.finding.unwrap_or_default()),
        };
        Self { findings: findings.into_iter().map(kept).collect() }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            return f.write_str("no findings");
        }
        let header = ["FOUND_AT", "KIND", "SHARD", "TRANSACTION", "ACCOUNT", "EXPECTED", "FOUND"];
        let cells = self.findings.iter().map(|kept| {
            let [kind, shard, transaction, account, expected, found] = kept.finding.cells();
            let found_at = or_dash(kept.found_at.as_deref());
            [found_at, kind, shard, transaction, account, expected, found]
        });
        f.write_str(&rows(header, cells))
    }
}

/// How far a shard is audited.
#[derive(Debug, Serialize)]
struct Step {
    shard: String,
    until: String,
    postings: Int64,
}

#[derive(Debug, Serialize)]
struct StepLine {
    audited: Step,
}

impl Step {
    /// `None`, if it has not begun.
    fn of_shard(status: v1::ShardStatus) -> Option<Self> {
        let until = time(&status.audited_until?);
        Some(Self { shard: status.name, until, postings: Int64(status.audited_postings) })
    }
}

impl fmt::Display for StepLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { shard, until, postings } = &self.audited;
        write!(f, "{until}  {shard}  {postings} postings audited")
    }
}
