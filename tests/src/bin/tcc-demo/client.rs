//! The demo as a client of tccd.
//!
//! What has no answer is asked again with the same id by the client crate, until there is one, or until its
//! patience ends, which ends the demo. Here is only what the demo wants to know beyond that: which attempts
//! were lost, and what the auditor says.

use crate::flight::Flight;
use anyhow::Context as _;
use tcc_client::{Client, Created, Error, No};
use tcc_proto::v1::{self, operator_service_client::OperatorServiceClient, run_audit_response::Event};

/// An answer to a creation. Both are final.
pub type Answer = Result<Created, No>;

/// A client that connects when it is first used, and tells what is lost.
///
/// # Errors
///
/// If `url` is none.
pub fn client(url: &str, flight: Flight) -> anyhow::Result<Client> {
    let client = Client::at(url).on_lost(move |sent| flight.lost(sent)).lazy();
    client.context("reading tccd's address")
}

/// The answer to a creation.
///
/// # Errors
///
/// If there is none.
pub fn answer(created: Result<Created, Error>) -> anyhow::Result<Answer> {
    match created {
        Ok(created) => Ok(Ok(created)),
        Err(Error::No { no, .. }) => Ok(Err(no)),
        Err(error) => Err(error.into()),
    }
}

/// What the auditor says.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// One sentence each.
    pub findings: Vec<String>,
    /// How many postings it read.
    pub postings: i64,
    /// In the demo's currency, issued minus burned.
    pub issued: i64,
}

/// Runs the auditor of the tccd at `url`.
///
/// # Errors
///
/// If it does not come to its end.
pub async fn audit(url: &str, currency: &str, told: impl Fn(&str)) -> anyhow::Result<Audit> {
    let operator = OperatorServiceClient::connect(url.to_owned()).await;
    let mut operator = operator.context("connecting for the audit")?;
    let mut events =
        operator.run_audit(v1::RunAuditRequest {}).await.context("starting the audit")?.into_inner();
    let mut audit = Audit::default();
    let mut summary = None;
    while let Some(response) = events.message().await.context("reading the audit")? {
        match response.event {
            Some(Event::Progress(progress)) => told(&progress.step),
            Some(Event::Finding(found)) => audit.findings.push(format!(
                "{}: shard {:?}, transaction {:?}, account {:?}: expected {}, found {}",
                found.kind, found.shard, found.transaction_id, found.account, found.expected, found.found
            )),
            Some(Event::Summary(told)) => summary = Some(told),
            None => {}
        }
    }
    let summary = summary.context("the audit ended without a summary")?;
    if summary.findings != audit.findings.len() as i64 {
        audit.findings.push(format!(
            "it counts {} findings, and told {}",
            summary.findings,
            audit.findings.len()
        ));
    }
    audit.postings = summary.postings;
    audit.issued = summary.issued.iter().filter(|sum| sum.currency == currency).map(|sum| sum.value).sum();
    Ok(audit)
}
