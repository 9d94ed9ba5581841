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

/// Runs an audit, for as long as it takes unless the caller set a timeout.
pub async fn run(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let audit = stream(session, output);
    match session.chosen_timeout() {
        None => audit.await,
        // tonic's deadline ends with the first answer of a stream, so this one is kept here.
        Some(timeout) => match tokio::time::timeout(timeout, audit).await {
            Ok(done) => done,
            Err(_) => Err(Failure::too_late("the audit", timeout)),
        },
    }
}

async fn stream(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let mut client = OperatorServiceClient::new(session.connect().await?);
    let mut request = tonic::Request::new(v1::RunAuditRequest {});
    if let Some(timeout) = session.chosen_timeout() {
        request.set_timeout(timeout);
    }
    let mut events = client.run_audit(request).await.map_err(|status| session.failure(status))?.into_inner();
    let bar = bar();
    let mut findings = Findings::default();
    let mut summary = None;
    let ended = loop {
        match events.message().await {
            Ok(None) => break Ok(()),
            Err(status) => break Err(session.failure(status)),
            Ok(Some(answer)) => match answer.event {
                Some(Event::Progress(progress)) => show_progress(&bar, &progress),
                Some(Event::Finding(finding)) => {
                    bar.finish_and_clear();
                    let finding = Finding::from(finding);
                    if output.format() == Format::Json {
                        output.show(&FindingLine { finding: &finding })?;
                    }
                    findings.add(finding, output.format());
                }
                Some(Event::Summary(found)) => summary = Some(Summary::from(found)),
                // A kind of event from a newer server.
                None => {}
            },
        }
    };
    bar.finish_and_clear();
    if !findings.rows.is_empty() {
        output.show(&findings)?;
    }
    ended?;
    let summary = summary.ok_or_else(|| Failure::incomplete("summary; the audit is not complete"))?;
    let line = SummaryLine { count: findings.count.max(summary.findings.0), summary };
    output.show(&line)?;
    Ok(if line.count == 0 { Exit::Done } else { Exit::Findings })
}

/// Hidden by itself where stderr is no terminal.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {pos}/{len} {elapsed}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show_progress(bar: &ProgressBar, progress: &v1::AuditProgress) {
    bar.set_message(progress.step.clone());
    bar.set_length(progress.total.try_into().unwrap_or(0));
    bar.set_position(progress.done.try_into().unwrap_or(0));
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
