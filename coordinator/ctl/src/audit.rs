//! `tccctl audit run`: check the books, and say by the exit code whether they are right.
//!
//! The server checks; this shows. An audit without its summary is no audit: it ends as a failure, whatever was found up
//! to then, and never as "ok". Findings are printed as they come for scripts, and all together for people, as a table
//! needs to know its widths. The progress bar is drawn on stderr, and only if that is a terminal.

use crate::{
    errors::{Exit, Failure},
    output::{Amount, Format, Int64, Output, or_dash, rows},
    session::Session,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt;
use tcc_proto::v1::{self, operator_service_client::OperatorServiceClient, run_audit_response::Event};
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// Runs an audit, for as long as it takes unless the caller set a timeout.
pub async fn run(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let deadline = session.chosen_timeout().map(|timeout| Instant::now() + timeout);
    let mut client = OperatorServiceClient::new(session.connect().await?);
    let request = session.unhurried_request(v1::RunAuditRequest {});
    let mut events = client.run_audit(request).await.map_err(|status| session.failure(status))?.into_inner();

    let bar = ProgressBar::new(0);
    let mut findings = Findings::default();
    let mut summary = None;
    let ended = loop {
        match next(&mut events, deadline).await {
            Ok(Some(Event::Progress(progress))) => show_progress(&bar, progress),
            Ok(Some(Event::Finding(finding))) => {
                bar.finish_and_clear();
                findings.take(Finding::from(finding), output)?;
            }
            Ok(Some(Event::Summary(found))) => summary = Some(found),
            Ok(None) => break Ok(()),
            Err(status) => break Err(session.failure(status)),
        }
    };
    bar.finish_and_clear();

    if !findings.held_back.is_empty() {
        output.show(&findings)?;
    }
    ended?;
    let summary = summary.ok_or_else(|| Failure::incomplete("summary: the audit is not complete"))?;
    let verdict = Verdict::new(summary, findings.count);
    output.show(&verdict)?;
    Ok(if verdict.is_ok() { Exit::Done } else { Exit::Findings })
}

/// The next event. tonic's own deadline ends with the head of a stream, so the rest of it is kept here.
async fn next(
    events: &mut Streaming<v1::RunAuditResponse>,
    deadline: Option<Instant>,
) -> Result<Option<Event>, Status> {
    loop {
        let answer = match deadline {
            None => events.message().await?,
            Some(deadline) => match tokio::time::timeout_at(deadline, events.message()).await {
                Ok(answer) => answer?,
                Err(_) => return Err(Status::deadline_exceeded("the audit took longer than --timeout")),
            },
        };
        match answer {
            None => return Ok(None),
            Some(v1::RunAuditResponse { event: Some(event) }) => return Ok(Some(event)),
            // A kind of event that only a newer server knows.
            Some(v1::RunAuditResponse { event: None }) => {}
        }
    }
}

/// How far a step is, with a bar where the server knows how far it goes.
const BOUNDED: &str = "{msg} [{wide_bar}] {human_pos}/{human_len} {elapsed}";
const OPEN_ENDED: &str = "{msg} {human_pos} {elapsed}";

/// Hidden by itself where stderr is no terminal.
fn show_progress(bar: &ProgressBar, progress: v1::AuditProgress) {
    let total = u64::try_from(progress.total).unwrap_or(0);
    let template = if total == 0 { OPEN_ENDED } else { BOUNDED };
    bar.set_style(ProgressStyle::with_template(template).expect("both templates are well formed"));
    bar.set_message(progress.step);
    bar.set_length(total);
    bar.set_position(progress.done.try_into().unwrap_or(0));
}

/// What was found so far.
#[derive(Debug, Default, Serialize)]
struct Findings {
    count: i64,
    /// For the table at the end.
    held_back: Vec<Finding>,
}

impl Findings {
    fn take(&mut self, finding: Finding, output: &Output) -> Result<(), Box<Failure>> {
        self.count += 1;
        match output.format() {
            Format::Json => output.show(&FindingLine { finding })?,
            Format::Table => self.held_back.push(finding),
        }
        Ok(())
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["KIND", "SHARD", "TRANSACTION", "ACCOUNT", "EXPECTED", "FOUND"];
        f.write_str(&rows(header, self.held_back.iter().map(Finding::cells)))
    }
}

#[derive(Debug, Serialize)]
struct Finding {
    kind: String,
    shard: String,
    transaction_id: String,
    account: String,
    expected: String,
    found: String,
}

impl Finding {
    fn cells(&self) -> [String; 6] {
        [&self.kind, &self.shard, &self.transaction_id, &self.account, &self.expected, &self.found]
            .map(|cell| or_dash(Some(cell)))
    }
}

impl From<v1::AuditFinding> for Finding {
    fn from(finding: v1::AuditFinding) -> Self {
        Self {
            kind: finding.kind,
            shard: finding.shard,
            transaction_id: finding.transaction_id,
            account: finding.account,
            expected: finding.expected,
            found: finding.found,
        }
    }
}

/// One finding on a line of its own.
#[derive(Debug, Serialize)]
struct FindingLine {
    finding: Finding,
}

impl fmt::Display for FindingLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.finding.cells().join("  "))
    }
}

/// The closing line.
#[derive(Debug, Serialize)]
struct Verdict {
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Summary {
    transactions: Int64,
    branches: Int64,
    accounts: Int64,
    postings: Int64,
    findings: Int64,
    issued: Vec<Amount>,
}

impl Verdict {
    /// `seen` findings came. A summary that counts fewer does not make them go away.
    fn new(summary: v1::AuditSummary, seen: i64) -> Self {
        let summary = Summary {
            transactions: Int64(summary.transactions),
            branches: Int64(summary.branches),
            accounts: Int64(summary.accounts),
            postings: Int64(summary.postings),
            findings: Int64(summary.findings.max(seen)),
            issued: summary.issued.into_iter().map(Amount::from).collect(),
        };
        Self { summary }
    }

    fn is_ok(&self) -> bool {
        self.summary.findings == Int64(0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { transactions, branches, accounts, postings, findings, issued } = &self.summary;
        for amount in issued {
            writeln!(f, "issued: {amount}")?;
        }
        let verdict = if self.is_ok() { "ok" } else { "FAILED" };
        write!(
            f,
            "audit: {verdict} transactions={transactions} branches={branches} accounts={accounts} \
             postings={postings} findings={findings}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding() -> Finding {
        Finding::from(v1::AuditFinding {
            kind: "BALANCE_MISMATCH".into(),
            shard: "shard-1".into(),
            transaction_id: String::new(),
            account: "alice".into(),
            expected: "available=900".into(),
            found: "available=901".into(),
        })
    }

    fn summary(findings: i64) -> v1::AuditSummary {
        let issued = vec![v1::Amount { value: 1_000, currency: "GOLD".into() }];
        v1::AuditSummary { transactions: 4, branches: 8, accounts: 3, postings: 17, findings, issued }
    }

    #[test]
    fn the_closing_line_says_ok_only_without_findings() {
        let counts = "transactions=4 branches=8 accounts=3 postings=17";

        let ok = Verdict::new(summary(0), 0);
        let failed = Verdict::new(summary(2), 2);

        assert!(ok.is_ok() && !failed.is_ok());
        assert_eq!(ok.to_string(), format!("issued: 1000 GOLD\naudit: ok {counts} findings=0"));
        assert_eq!(failed.to_string(), format!("issued: 1000 GOLD\naudit: FAILED {counts} findings=2"));
    }

    #[test]
    fn a_finding_that_the_summary_forgot_still_fails_the_audit() {
        assert!(!Verdict::new(summary(0), 1).is_ok());
    }

    #[test]
    fn findings_for_people_are_a_table() {
        let findings = Findings { count: 1, held_back: vec![finding()] };

        let expected = "\
KIND              SHARD    TRANSACTION  ACCOUNT  EXPECTED       FOUND
BALANCE_MISMATCH  shard-1  -            alice    available=900  available=901";
        assert_eq!(findings.to_string(), expected);
    }

    #[test]
    fn findings_and_summary_for_scripts_are_lines_that_name_what_they_are() {
        assert_eq!(
            serde_json::to_string(&FindingLine { finding: finding() }).unwrap(),
            concat!(
                r#"{"finding":{"kind":"BALANCE_MISMATCH","shard":"shard-1","transaction_id":"","account":"alice","#,
                r#""expected":"available=900","found":"available=901"}}"#
            )
        );
        assert_eq!(
            serde_json::to_string(&Verdict::new(summary(0), 0)).unwrap(),
            concat!(
                r#"{"summary":{"transactions":"4","branches":"8","accounts":"3","postings":"17","findings":"0","#,
                r#""issued":[{"value":"1000","currency":"GOLD"}]}}"#
            )
        );
    }

    #[test]
    fn progress_is_shown_with_and_without_a_total() {
        let bar = ProgressBar::hidden();
        for total in [0, 10, -1] {
            show_progress(&bar, v1::AuditProgress { step: "accounts".into(), done: 3, total });

            assert_eq!((bar.position(), bar.message().as_str()), (3, "accounts"));
        }
    }
}
