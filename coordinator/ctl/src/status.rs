//! `tccctl status`: one screen about the coordinator, its shards, and what needs a person.
//!
//! It shows what the server says of itself and keeps out judgements: whether a backlog is normal is for whoever knows the
//! load, or for an alert rule.

use crate::{
    errors::{Exit, Failure},
    output::{Int64, Output, Span, elapsed, fields, name, or_dash, rows, time},
    session::Session,
};
use serde::Serialize;
use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};
use tcc_proto::v1::{self, operator_service_client::OperatorServiceClient};

/// Shows how the coordinator and its shards are. With `exit_code` it exits with 3 if that needs somebody.
pub async fn show(session: &Session, output: &Output, exit_code: bool) -> Result<Exit, Box<Failure>> {
    let status = read(session).await?;
    output.show(&status)?;
    Ok(if exit_code && status.needs_somebody() { Exit::Findings } else { Exit::Done })
}

/// Shows it again and again, at a terminal each time in place of the time before. A server that does not answer is shown as that.
pub async fn watch(session: &Session, output: &Output, every: Duration) -> Result<Exit, Box<Failure>> {
    loop {
        let status = read(session).await;
        if io::stdout().is_terminal() {
            let (home, clear) = ("\u{1b}[H", "\u{1b}[2J");
            write!(io::stdout(), "{clear}{home}").map_err(|error| Failure::unwritable(&error))?;
        }
        match status {
            Ok(status) => output.show(&status)?,
            Err(failure) if failure.exit == Exit::Unknown => output.complain(&failure),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(every).await;
    }
}

/// How the shards are.
pub async fn shards(session: &Session) -> Result<Vec<Shard>, Box<Failure>> {
    Ok(read(session).await?.shards)
}

async fn read(session: &Session) -> Result<Status, Box<Failure>> {
    let mut client = OperatorServiceClient::new(session.connect().await?);
    let answer = client.get_status(session.request(v1::GetStatusRequest {})).await;
    Ok(Status::from(answer.map_err(|status| session.failure(status))?.into_inner()))
}

#[derive(Debug, Serialize)]
struct Status {
    version: String,
    instance: String,
    started_at: Option<String>,
    draining: bool,
    database_time: Option<String>,
    watermark: Option<String>,
    #[serde(skip)]
    behind: Option<Span>,
    armed: Int64,
    active: Int64,
    missed: Int64,
    slots: i32,
    rebuilt: Int64,
    unswept_shards: i32,
    findings: Int64,
    first_finding_at: Option<String>,
    shards: Vec<Shard>,
    attention: Vec<Attention>,
}

/// A shard.
#[derive(Debug, Serialize)]
pub struct Shard {
    pub name: String,
    pub reachable: bool,
    pub breaker: String,
    pub queued: Int64,
    pub waiting: Int64,
    pub buckets: i32,
    pub audited_until: Option<String>,
    pub audited_postings: Int64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trouble: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub lost: String,
    #[serde(skip_serializing_if = "is_false")]
    pub drained: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Shard {
    /// In a word.
    pub fn state(&self) -> &'static str {
        match self {
            Self { lost, .. } if !lost.is_empty() => "LOST COMMITS",
            Self { drained: true, .. } => "DRAINED",
            Self { reachable: false, .. } => "UNREACHABLE",
            _ => "WORKING",
        }
    }

    /// What to do about it, if there is anything to do.
    pub fn advice(&self) -> Option<String> {
        let name = &self.name;
        match self.state() {
            "LOST COMMITS" => {
                Some(format!("it has lost commits ({}): run tccctl audit run first", self.lost))
            }
            "DRAINED" => Some(format!("let work go on with: tccctl shards resume {name} --reason REASON")),
            "UNREACHABLE" => {
                let why = if self.trouble.is_empty() { "its server does not answer" } else { &self.trouble };
                Some(format!("{why}; what waits for it goes on by itself when it is back"))
            }
            _ => None,
        }
    }
}

impl Status {
    /// Whether something does not mend itself.
    fn needs_somebody(&self) -> bool {
        self.findings.0 > 0
            || self.shards.iter().any(|shard| shard.state() != "WORKING")
            || self.attention.iter().any(|count| matches!(count.attention.as_str(), "STUCK" | "PARKED"))
    }
}

#[derive(Debug, Serialize)]
struct Attention {
    attention: String,
    transactions: Int64,
    oldest: Option<Span>,
    example_id: String,
    example_error: String,
}

impl From<v1::GetStatusResponse> for Status {
    fn from(status: v1::GetStatusResponse) -> Self {
        let behind = match (&status.database_time, &status.watermark) {
            (Some(now), Some(watermark)) => elapsed(now, watermark).map(Span::from),
            _ => None,
        };
        Self {
            version: status.version,
            instance: status.instance,
            started_at: status.started_at.as_ref().map(time),
            draining: status.draining,
            database_time: status.database_time.as_ref().map(time),
            watermark: status.watermark.as_ref().map(time),
            behind,
            armed: Int64(status.armed),
            active: Int64(status.active),
            missed: Int64(status.missed),
            slots: status.slots,
            rebuilt: Int64(status.rebuilt),
            unswept_shards: status.unswept_shards,
            findings: Int64(status.findings),
            first_finding_at: status.first_finding_at.as_ref().map(time),
            shards: status.shards.into_iter().map(Shard::from).collect(),
            attention: status.attention.into_iter().map(Attention::from).collect(),
        }
    }
}

impl From<v1::ShardStatus> for Shard {
    fn from(shard: v1::ShardStatus) -> Self {
        Self {
            name: shard.name,
            reachable: shard.reachable,
            breaker: name(shard.breaker, "BREAKER_STATE_", v1::BreakerState::as_str_name),
            queued: Int64(shard.queued),
            waiting: Int64(shard.waiting),
            buckets: shard.buckets,
            audited_until: shard.audited_until.as_ref().map(time),
            audited_postings: Int64(shard.audited_postings),
            trouble: shard.trouble,
            lost: shard.lost,
            drained: shard.drained,
        }
    }
}

impl From<v1::AttentionCount> for Attention {
    fn from(count: v1::AttentionCount) -> Self {
        Self {
            attention: name(count.attention, "ATTENTION_", v1::Attention::as_str_name),
            transactions: Int64(count.transactions),
            oldest: count.oldest.as_ref().map(Span::from),
            example_id: count.example_id,
            example_error: count.example_error,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut watermark = or_dash(self.watermark.as_deref());
        if let Some(behind) = self.behind {
            watermark.push_str(&format!(" (behind by {behind})"));
        }
        let mut findings = self.findings.to_string();
        if let Some(first) = &self.first_finding_at {
            findings.push_str(&format!(" (the first at {first}; see tccctl audit show)"));
        }
        f.write_str(&fields([
            ("version", or_dash(Some(&self.version))),
            ("instance", or_dash(Some(&self.instance))),
            ("started_at", or_dash(self.started_at.as_deref())),
            ("draining", self.draining.to_string()),
            ("database_time", or_dash(self.database_time.as_deref())),
            ("watermark", watermark),
            ("armed", self.armed.to_string()),
            ("active", self.active.to_string()),
            ("missed", self.missed.to_string()),
            ("slots", self.slots.to_string()),
            ("rebuilt", self.rebuilt.to_string()),
            ("unswept_shards", self.unswept_shards.to_string()),
            ("findings", findings),
        ]))?;
        let shards = self.shards.iter().map(|shard| {
            [
                shard.name.clone(),
                shard.reachable.to_string(),
                shard.breaker.clone(),
                shard.queued.to_string(),
                shard.waiting.to_string(),
                shard.buckets.to_string(),
                or_dash(shard.audited_until.as_deref()),
            ]
        });
        let header = ["SHARD", "REACHABLE", "BREAKER", ">QUEUED", ">WAITING", ">BUCKETS", "AUDITED UNTIL"];
        write!(f, "\n\n{}", rows(header, shards))?;
        for shard in self.shards.iter().filter(|shard| !shard.lost.is_empty()) {
            write!(f, "\n\n{} HAS LOST COMMITS: {}", shard.name, shard.lost)?;
            write!(f, "\nno work is done on it; `tccctl audit run` tells which transactions are affected,")?;
            write!(
                f,
                "\n`tccctl shards resume {} --reason REASON` lets work go on with what there is",
                shard.name
            )?;
        }
        for shard in self.shards.iter().filter(|shard| shard.drained) {
            write!(
                f,
                "\n\n{} IS DRAINED: an operator has stopped work on it; what is due waits",
                shard.name
            )?;
            write!(f, "\n`tccctl shards resume {} --reason REASON` lets it go on", shard.name)?;
        }
        if self.attention.is_empty() {
            return Ok(());
        }
        let attention = self.attention.iter().map(|count| {
            [
                count.attention.clone(),
                count.transactions.to_string(),
                or_dash(count.oldest.map(|oldest| oldest.to_string()).as_deref()),
                or_dash(Some(&count.example_id)),
                or_dash(Some(&count.example_error)),
            ]
        });
        write!(f, "\n\n{}", rows(["ATTENTION", ">TRANSACTIONS", ">OLDEST", "EXAMPLE", "ERROR"], attention))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::{Duration, Timestamp};

    fn answer() -> v1::GetStatusResponse {
        v1::GetStatusResponse {
            version: "0.1.0".into(),
            instance: "tccd-1".into(),
            started_at: Some(Timestamp { seconds: 1_790_000_000, nanos: 0 }),
            draining: false,
            database_time: Some(Timestamp { seconds: 1_790_000_060, nanos: 0 }),
            watermark: Some(Timestamp { seconds: 1_790_000_059, nanos: 800_000_000 }),
            armed: 12,
            active: 3,
            missed: 0,
            slots: 256,
            rebuilt: 0,
            unswept_shards: 0,
            shards: vec![v1::ShardStatus {
                name: "shard-0".into(),
                reachable: true,
                queued: 7,
                waiting: 5,
                buckets: 4096,
                trouble: String::new(),
                lost: String::new(),
                drained: false,
                audited_until: Some(Timestamp { seconds: 1_790_000_050, nanos: 0 }),
                audited_postings: 5,
                breaker: v1::BreakerState::HalfOpen.into(),
            }],
            attention: Vec::new(),
            findings: 0,
            first_finding_at: None,
        }
    }

    #[test]
    fn status_for_people_ends_with_the_shards_when_nothing_needs_attention() {
        let expected = "\
version         0.1.0
instance        tccd-1
started_at      2026-09-21T14:13:20.000000Z
draining        false
database_time   2026-09-21T14:14:20.000000Z
watermark       2026-09-21T14:14:19.800000Z (behind by 200ms)
armed           12
active          3
missed          0
slots           256
rebuilt         0
unswept_shards  0
findings        0

SHARD    REACHABLE  BREAKER    QUEUED  WAITING  BUCKETS  AUDITED UNTIL
shard-0  true       HALF_OPEN       7        5     4096  2026-09-21T14:14:10.000000Z";

        assert_eq!(Status::from(answer()).to_string(), expected);
    }

    #[test]
    fn a_shard_that_lost_commits_is_told_with_what_to_do() {
        let mut answer = answer();
        answer.shards[0].lost = "branch 1 of 019b2c3d was confirmed and is absent now".into();

        let text = Status::from(answer).to_string();

        let expected = "

shard-0 HAS LOST COMMITS: branch 1 of 019b2c3d was confirmed and is absent now
no work is done on it; `tccctl audit run` tells which transactions are affected,
`tccctl shards resume shard-0 --reason REASON` lets work go on with what there is";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn findings_are_told_with_where_to_see_them() {
        let mut answer = answer();
        answer.findings = 3;
        answer.first_finding_at = answer.started_at;

        let text = Status::from(answer).to_string();

        let expected = "findings        3 (the first at 2026-09-21T14:13:20.000000Z; see tccctl audit show)";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn what_needs_attention_stands_below_the_shards() {
        let mut answer = answer();
        answer.attention.push(v1::AttentionCount {
            attention: v1::Attention::Stuck.into(),
            transactions: 2,
            oldest: Some(Duration { seconds: 760, nanos: 0 }),
            example_id: "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".into(),
            example_error: "connection\nrefused".into(),
        });

        let text = Status::from(answer).to_string();

        let expected = "

ATTENTION  TRANSACTIONS   OLDEST  EXAMPLE                               ERROR
STUCK                 2  12m 40s  019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d  connection refused";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_drained_shard_what_is_parked_and_a_finding_need_somebody_and_what_is_retried_does_not() {
        let needs = |change: fn(&mut v1::GetStatusResponse)| {
            let mut answer = answer();
            change(&mut answer);
            Status::from(answer).needs_somebody()
        };

        assert!(!needs(|_| {}));
        assert!(needs(|answer| answer.shards[0].drained = true));
        assert!(needs(|answer| answer.shards[0].reachable = false));
        assert!(needs(|answer| answer.findings = 1));
        assert!(needs(|answer| {
            answer
                .attention
                .push(v1::AttentionCount { attention: v1::Attention::Parked.into(), ..Default::default() });
        }));
        assert!(!needs(|answer| {
            answer
                .attention
                .push(v1::AttentionCount { attention: v1::Attention::Retrying.into(), ..Default::default() });
        }));
    }

    #[test]
    fn status_for_scripts_is_the_answer_with_the_protos_names() {
        let expected = concat!(
            r#"{"version":"0.1.0","instance":"tccd-1","started_at":"2026-09-21T14:13:20.000000Z","draining":false,"#,
            r#""database_time":"2026-09-21T14:14:20.000000Z","watermark":"2026-09-21T14:14:19.800000Z","#,
            r#""armed":"12","active":"3","missed":"0","slots":256,"rebuilt":"0","unswept_shards":0,"#,
            r#""findings":"0","first_finding_at":null,"shards":[{"name":"shard-0","reachable":true,"breaker":"HALF_OPEN","queued":"7","waiting":"5","#,
            r#""buckets":4096,"audited_until":"2026-09-21T14:14:10.000000Z","audited_postings":"5"}],"attention":[]}"#
        );

        assert_eq!(serde_json::to_string(&Status::from(answer())).unwrap(), expected);
    }
}
