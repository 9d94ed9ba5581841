//! `tccctl shards …`: what an operator decides about a shard.

use crate::{
    errors::{Exit, Failure},
    output::Output,
    session::Session,
};
use serde::Serialize;
use std::fmt;
use tcc_proto::v1::{self, operator_service_client::OperatorServiceClient};

/// Lets work go on with a shard that has lost commits.
pub async fn resume(session: &Session, output: &Output, name: String) -> Result<Exit, Box<Failure>> {
    let mut client = OperatorServiceClient::new(session.connect().await?);
    let request = session.request(v1::ResumeShardRequest { name: name.clone() });
    client.resume_shard(request).await.map_err(|status| session.failure(status))?;
    output.show(&Resumed { resumed: name })?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Resumed {
    resumed: String,
}

impl fmt::Display for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every instance goes on with {} within seconds", self.resumed)
    }
}
