//! `tccctl audit run`: everything, now.

use super::{Told, listen};
use crate::{
    errors::{Exit, Failure},
    output::{Amount, Int64, Output},
    session::Session,
};
use serde::Serialize;
use std::fmt;
use tcc_proto::v1::{self, operator_service_client::OperatorServiceClient, run_audit_response::Event};

/// Runs an audit, for as long as it takes unless the caller set a timeout.
pub async fn run(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let mut client = OperatorServiceClient::new(session.connect().await?);
    let request = session.unhurried_request(v1::RunAuditRequest {});
    let events = client.run_audit(request).await.map_err(|status| session.failure(status))?.into_inner();
    let (summary, seen) = listen(events, told, session, output).await?;
    let verdict = Verdict::new(summary, seen);
    output.show(&verdict)?;
    Ok(if verdict.is_ok() { Exit::Done } else { Exit::Findings })
}

fn told(response: v1::RunAuditResponse) -> Option<Told<v1::AuditSummary>> {
    Some(match response.event? {
        Event::Progress(progress) => Told::Progress(progress),
        Event::Finding(finding) => Told::Finding(finding),
        Event::Summary(summary) => Told::Summary(summary),
    })
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
    fn the_summary_for_scripts_is_a_line_that_names_what_it_is() {
        assert_eq!(
            serde_json::to_string(&Verdict::new(summary(0), 0)).unwrap(),
            concat!(
                r#"{"summary":{"transactions":"4","branches":"8","accounts":"3","postings":"17","findings":"0","#,
                r#""issued":[{"value":"1000","currency":"GOLD"}]}}"#
            )
        );
    }
}
