//! `tccctl participants list|describe|add|drain|resume|remove`: the participants that the coordinator knows.

use crate::{
    attention::Why,
    errors::{Exit, Failure},
    output::{Int64, Output, fields, or_dash, rows, time},
    session::Session,
};
use clap::Args;
use serde::Serialize;
use std::{fmt, path::PathBuf};
use tcc_proto::v1::{self, operator_service_client::OperatorServiceClient};
use tonic::transport::Channel;

/// A participant as it is to be registered.
#[derive(Args)]
pub struct Add {
    /// What transactions call it, and what it calls itself
    name: String,
    /// Where it is called: https://HOST:PORT, or http://127.0.0.1:PORT on the coordinator's machine
    address: String,
    /// It may veto: then it must be the pivot of its transactions
    #[arg(long)]
    may_veto: bool,
    /// How long one request to it may take: 100 to 60000
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(i32).range(100..=60_000))]
    deadline_ms: i32,
    /// How many requests may be under way at a time: 1 to 256
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(i32).range(1..=256))]
    requests: i32,
    /// A file with the authorities of its certificate (PEM); without it those of the coordinator's system
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    why: Why,
}

async fn client(session: &Session) -> Result<OperatorServiceClient<Channel>, Box<Failure>> {
    Ok(OperatorServiceClient::new(session.connect().await?))
}

async fn all(session: &Session) -> Result<Vec<Participant>, Box<Failure>> {
    let request = session.request(v1::ListParticipantsRequest {});
    let answer = client(session).await?.list_participants(request).await;
    let answer = answer.map_err(|status| session.failure(status))?.into_inner();
    Ok(answer.participants.into_iter().map(Participant::from).collect())
}

/// Lists the participants.
pub async fn list(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    output.show_list(&Participants { participants: all(session).await? }, "participants")?;
    Ok(Exit::Done)
}

/// Shows one participant.
pub async fn describe(session: &Session, output: &Output, name: String) -> Result<Exit, Box<Failure>> {
    let found = all(session).await?.into_iter().find(|participant| participant.name == name);
    let found = found.ok_or_else(|| Failure::not_found(&format!("there is no participant {name}")))?;
    output.show(&found)?;
    Ok(Exit::Done)
}

/// Registers a participant.
pub async fn add(session: &Session, output: &Output, asked: Add) -> Result<Exit, Box<Failure>> {
    let Add { name, address, may_veto, deadline_ms, requests, ca, why } = asked;
    let read = |path: PathBuf| {
        std::fs::read_to_string(&path)
            .map_err(|error| Failure::usage(&format!("cannot read {}: {error}", path.display())))
    };
    let deadline = prost_types::Duration {
        seconds: (deadline_ms / 1_000).into(),
        nanos: deadline_ms % 1_000 * 1_000_000,
    };
    let request = v1::AddParticipantRequest {
        name: name.clone(),
        address,
        may_veto,
        deadline: Some(deadline),
        requests,
        ca: ca.map(read).transpose()?.unwrap_or_default(),
        reason: why.reason()?,
        ticket: why.ticket,
    };
    let request = session.request(request);
    client(session).await?.add_participant(request).await.map_err(|status| session.failure(status))?;
    output.show(&Decided { name, state: "added" })?;
    Ok(Exit::Done)
}

/// Lets no new transactions at a participant.
pub async fn drain(session: &Session, output: &Output, name: String, why: Why) -> Result<Exit, Box<Failure>> {
    let (reason, ticket) = (why.reason()?, why.ticket);
    let request = session.request(v1::DrainParticipantRequest { name: name.clone(), reason, ticket });
    client(session).await?.drain_participant(request).await.map_err(|status| session.failure(status))?;
    output.show(&Decided { name, state: "drained" })?;
    Ok(Exit::Done)
}

/// Lets new transactions at a participant again.
pub async fn resume(
    session: &Session,
    output: &Output,
    name: String,
    why: Why,
) -> Result<Exit, Box<Failure>> {
    let (reason, ticket) = (why.reason()?, why.ticket);
    let request = session.request(v1::ResumeParticipantRequest { name: name.clone(), reason, ticket });
    client(session).await?.resume_participant(request).await.map_err(|status| session.failure(status))?;
    output.show(&Decided { name, state: "working" })?;
    Ok(Exit::Done)
}

/// Forgets a participant.
pub async fn remove(
    session: &Session,
    output: &Output,
    name: String,
    why: Why,
) -> Result<Exit, Box<Failure>> {
    let (reason, ticket) = (why.reason()?, why.ticket);
    let request = session.request(v1::RemoveParticipantRequest { name: name.clone(), reason, ticket });
    client(session).await?.remove_participant(request).await.map_err(|status| session.failure(status))?;
    output.show(&Decided { name, state: "removed" })?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Participants {
    participants: Vec<Participant>,
}

#[derive(Debug, Serialize)]
struct Participant {
    name: String,
    address: String,
    may_veto: bool,
    deadline_ms: Int64,
    requests: i32,
    configured: bool,
    drained: bool,
    reachable: bool,
    left_alone: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    trouble: String,
    queued: Int64,
    waiting: Int64,
    added_at: Option<String>,
    software: String,
    clock_ahead_ms: Option<Int64>,
}

impl From<v1::Participant> for Participant {
    fn from(participant: v1::Participant) -> Self {
        let ms = |duration: prost_types::Duration| {
            Int64(duration.seconds.saturating_mul(1_000).saturating_add((duration.nanos / 1_000_000).into()))
        };
        Self {
            name: participant.name,
            address: participant.address,
            may_veto: participant.may_veto,
            deadline_ms: participant.deadline.map_or(Int64(0), ms),
            requests: participant.requests,
            configured: participant.configured,
            drained: participant.drained,
            reachable: participant.reachable,
            left_alone: participant.left_alone,
            trouble: participant.trouble,
            queued: Int64(participant.queued),
            waiting: Int64(participant.waiting),
            added_at: participant.added_at.as_ref().map(time),
            software: participant.software,
            clock_ahead_ms: participant.clock_ahead.map(ms),
        }
    }
}

impl Participant {
    fn state(&self) -> &'static str {
        match (self.drained, self.reachable, self.left_alone) {
            (true, _, _) => "DRAINED",
            (false, true, _) => "WORKING",
            (false, false, true) => "LEFT_ALONE",
            (false, false, false) => "UNREACHABLE",
        }
    }
}

impl fmt::Display for Participants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |one: &Participant| {
            [
                one.name.clone(),
                one.state().to_owned(),
                one.address.clone(),
                if one.may_veto { "yes" } else { "-" }.to_owned(),
                one.queued.to_string(),
                one.waiting.to_string(),
            ]
        };
        let header = ["PARTICIPANT", "STATE", "ADDRESS", "VETOES", ">QUEUED", ">WAITING"];
        f.write_str(&rows(header, self.participants.iter().map(line)))
    }
}

impl fmt::Display for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        let from = if self.configured { "tccd.toml" } else { "an operator" };
        f.write_str(&fields([
            ("participant", self.name.clone()),
            ("state", self.state().to_owned()),
            ("trouble", or_dash(Some(&self.trouble))),
            ("address", self.address.clone()),
            ("may_veto", yes(self.may_veto)),
            ("deadline", format!("{} ms", self.deadline_ms)),
            ("requests", self.requests.to_string()),
            ("known", format!("since {}, from {from}", or_dash(self.added_at.as_deref()))),
            ("software", or_dash(Some(&self.software))),
            (
                "clock",
                self.clock_ahead_ms
                    .as_ref()
                    .map_or("-".to_owned(), |ms| format!("{ms} ms ahead of this instance's")),
            ),
            ("queued", self.queued.to_string()),
            ("waiting", self.waiting.to_string()),
        ]))
    }
}

#[derive(Debug, Serialize)]
struct Decided {
    name: String,
    state: &'static str,
}

impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, state } = self;
        match *state {
            "added" => write!(f, "every instance calls {name} within seconds"),
            "drained" => {
                write!(f, "every instance refuses new transactions at {name} within seconds; others go on")
            }
            "removed" => write!(f, "every instance forgets {name} within seconds"),
            _ => write!(f, "every instance takes new transactions at {name} within seconds"),
        }
    }
}
