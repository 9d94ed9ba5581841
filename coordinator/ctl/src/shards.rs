//! `tccctl shards …`: how shards are, and what an operator decides about them.

use crate::{
    attention::{self, Kind, Listing, Why},
    errors::{Exit, Failure},
    output::{Output, rows},
    session::Session,
    status::{self, Shard},
};
use serde::Serialize;
use std::fmt;
use tcc_proto::v1::{
    self, operator_service_client::OperatorServiceClient, recovery_service_client::RecoveryServiceClient,
};

/// Lists the shards.
pub async fn list(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let found = Shards { shards: status::shards(session).await? };
    output.show_list(&found, "shards")?;
    Ok(Exit::Done)
}

/// Shows one shard, and to people what waits for it.
pub async fn describe(session: &Session, output: &Output, name: String) -> Result<Exit, Box<Failure>> {
    let mut shards = status::shards(session).await?;
    shards.retain(|shard| shard.name == name);
    let shard = shards.pop().ok_or_else(|| Failure::not_found(&format!("there is no shard {name}")))?;
    let advice = shard.advice();
    output.show(&Shards { shards: vec![shard] })?;
    advice.into_iter().for_each(|advice| output.remark(&advice));
    output.remark(&format!("what names {name} in its last error:"));
    let kinds = [Kind::Retrying, Kind::Stuck, Kind::Parked];
    let listing = Listing { error_contains: name, acknowledged: false, limit: 20, exit_code: false };
    if output.is_for_people() {
        attention::list(session, output, &kinds, listing).await
    } else {
        Ok(Exit::Done)
    }
}

/// Stops work on a shard.
pub async fn drain(session: &Session, output: &Output, name: String, why: Why) -> Result<Exit, Box<Failure>> {
    let (reason, ticket) = (why.reason()?, why.ticket);
    output.acting_on(session);
    let mut client = RecoveryServiceClient::new(session.connect().await?);
    let request = session.request(v1::DrainShardRequest { name: name.clone(), reason, ticket });
    client.drain_shard(request).await.map_err(|status| session.failure(status))?;
    output.show(&Decided { name, state: "drained" })?;
    Ok(Exit::Done)
}

/// Lets work go on with a shard that was drained, or has lost commits.
pub async fn resume(
    session: &Session,
    output: &Output,
    name: String,
    why: Why,
) -> Result<Exit, Box<Failure>> {
    let (reason, ticket) = (why.reason()?, why.ticket);
    output.acting_on(session);
    let mut client = OperatorServiceClient::new(session.connect().await?);
    let request = session.request(v1::ResumeShardRequest { name: name.clone(), reason, ticket });
    client.resume_shard(request).await.map_err(|status| session.failure(status))?;
    output.show(&Decided { name, state: "working" })?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Shards {
    shards: Vec<Shard>,
}

impl fmt::Display for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |shard: &Shard| {
            [
                shard.name.clone(),
                shard.state().to_owned(),
                shard.queued.to_string(),
                shard.waiting.to_string(),
                shard.buckets.to_string(),
            ]
        };
        let header = ["SHARD", "STATE", ">QUEUED", ">WAITING", ">BUCKETS"];
        f.write_str(&rows(header, self.shards.iter().map(line)))
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
            "drained" => write!(f, "every instance stops work on {name} within seconds; what is due waits"),
            _ => write!(f, "every instance goes on with {name} within seconds"),
        }
    }
}
