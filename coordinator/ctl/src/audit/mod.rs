//! `tccctl audit …`: check the books, and say by the exit code whether they are right.
//!
//! The server checks; this shows. An audit without its summary is no audit: it ends as a failure, whatever was found up
//! to then, and never as "ok". Findings are printed as they come for scripts, and all together for people, as a table
//! needs to know its widths. The progress bar is drawn on stderr, and only if that is a terminal.

mod background;
mod replay;
mod run;

pub use background::{show, watch};
pub use replay::replay;
pub use run::run;

use crate::{
    errors::Failure,
    output::{Format, Output, or_dash, rows},
    session::Session,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::fmt;
use tcc_proto::v1;
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// What the server tells while it checks. The last thing is a summary.
enum Told<S> {
    Progress(v1::AuditProgress),
    Finding(v1::AuditFinding),
    Summary(S),
}

/// Shows what is told, up to the end. Answers the summary, and how many findings came.
async fn listen<R, S>(
    mut events: Streaming<R>,
    told: fn(R) -> Option<Told<S>>,
    session: &Session,
    output: &Output,
) -> Result<(S, i64), Box<Failure>> {
    let deadline = session.chosen_timeout().map(|timeout| Instant::now() + timeout);
    let bar = ProgressBar::new(0);
    let mut findings = Findings::default();
    let mut summary = None;
    let ended = loop {
        match next(&mut events, deadline).await {
            // What is not known is a kind of event that only a newer server has.
            Ok(Some(event)) => match told(event) {
                Some(Told::Progress(progress)) => show_progress(&bar, progress),
                Some(Told::Finding(finding)) => {
                    bar.finish_and_clear();
                    findings.take(Finding::from(finding), output)?;
                }
                Some(Told::Summary(found)) => summary = Some(found),
                None => {}
            },
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
    Ok((summary, findings.count))
}

/// The next event. tonic's own deadline ends with the head of a stream, so the rest of it is kept here.
async fn next<R>(events: &mut Streaming<R>, deadline: Option<Instant>) -> Result<Option<R>, Status> {
    match deadline {
        None => events.message().await,
        Some(deadline) => match tokio::time::timeout_at(deadline, events.message()).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the audit took longer than --timeout")),
        },
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

    #[test]
    fn findings_for_people_are_a_table() {
        let findings = Findings { count: 1, held_back: vec![finding()] };

        let expected = "\
KIND              SHARD    TRANSACTION  ACCOUNT  EXPECTED       FOUND
BALANCE_MISMATCH  shard-1  -            alice    available=900  available=901";
        assert_eq!(findings.to_string(), expected);
    }

    #[test]
    fn a_finding_for_scripts_is_a_line_that_names_what_it_is() {
        assert_eq!(
            serde_json::to_string(&FindingLine { finding: finding() }).unwrap(),
            concat!(
                r#"{"finding":{"kind":"BALANCE_MISMATCH","shard":"shard-1","transaction_id":"","account":"alice","#,
                r#""expected":"available=900","found":"available=901"}}"#
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
