//! `tccctl audit replay`: every balance of a shard, from its postings alone.

use super::{Told, listen};
use crate::{
    errors::{Exit, Failure},
    output::{Int64, Output},
    session::Session,
};
use serde::Serialize;
use std::fmt;
use tcc_proto::v1::{self, operator_service_client::OperatorServiceClient, replay_shard_response::Event};

/// Rebuilds the balances of a shard, as they were at a time or as they are, for as long as it takes unless the caller set a
/// timeout.
pub async fn replay(
    session: &Session,
    output: &Output,
    shard: String,
    at: Option<prost_types::Timestamp>,
) -> Result<Exit, Box<Failure>> {
    let mut client = OperatorServiceClient::new(session.connect().await?);
    let request = session.unhurried_request(v1::ReplayShardRequest { shard, at });
    let events = client.replay_shard(request).await.map_err(|status| session.failure(status))?.into_inner();
    let (summary, seen) = listen(events, told, session, output).await?;
    let verdict = Verdict::new(summary, seen);
    output.show(&verdict)?;
    Ok(if verdict.is_ok() { Exit::Done } else { Exit::Findings })
}

fn told(response: v1::ReplayShardResponse) -> Option<Told<v1::ReplaySummary>> {
    Some(match response.event? {
        Event::Progress(progress) => Told::Progress(progress),
        Event::Finding(finding) => Told::Finding(finding),
        Event::Summary(summary) => Told::Summary(summary),
    })
}

/// The closing lines.
#[derive(Debug, Serialize)]
struct Verdict {
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Summary {
    accounts: Int64,
    postings: Int64,
    findings: Int64,
    totals: Vec<Total>,
}

#[derive(Debug, Serialize)]
struct Total {
    currency: String,
    available: Int64,
    held: Int64,
}

impl Verdict {
    /// `seen` findings came. A summary that counts fewer does not make them go away.
    fn new(summary: v1::ReplaySummary, seen: i64) -> Self {
        let total = |total: v1::CurrencyTotal| Total {
            currency: total.currency,
            available: Int64(total.available),
            held: Int64(total.held),
        };
        let summary = Summary {
            accounts: Int64(summary.accounts),
            postings: Int64(summary.postings),
            findings: Int64(summary.findings.max(seen)),
            totals: summary.totals.into_iter().map(total).collect(),
        };
        Self { summary }
    }

    fn is_ok(&self) -> bool {
        self.summary.findings == Int64(0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { accounts, postings, findings, totals } = &self.summary;
        for Total { currency, available, held } in totals {
            writeln!(f, "available: {available} {currency}, held: {held} {currency}")?;
        }
        let verdict = if self.is_ok() { "ok" } else { "FAILED" };
        write!(f, "replay: {verdict} accounts={accounts} postings={postings} findings={findings}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_say_what_the_accounts_have_and_whether_that_is_right() {
        let totals = vec![v1::CurrencyTotal { currency: "GOLD".into(), available: 70, held: 30 }];
        let summary = v1::ReplaySummary { accounts: 2, postings: 4, findings: 0, totals };

        let ok = Verdict::new(summary.clone(), 0);
        let failed = Verdict::new(summary, 1);

        let total = "available: 70 GOLD, held: 30 GOLD";
        assert_eq!(ok.to_string(), format!("{total}\nreplay: ok accounts=2 postings=4 findings=0"));
        assert_eq!(failed.to_string(), format!("{total}\nreplay: FAILED accounts=2 postings=4 findings=1"));
        assert!(ok.is_ok() && !failed.is_ok());
    }
}
