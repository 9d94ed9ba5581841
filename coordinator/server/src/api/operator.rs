//! `OperatorService`: for `tccctl` and people on call.

use super::{convert, evidence::evidence, reason};
use crate::{
    audit::{self, AuditError, AuditEvent},
    engine::{Engine, EngineError},
    serve::Vitals,
    shards::Shards,
};
use futures::stream::BoxStream;
use std::sync::Arc;
use tcc_participant::Participant as _;
use tcc_proto::v1::{self, operator_service_server::OperatorService, run_audit_response::Event};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Serves operators.
pub struct Operator {
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    vitals: Arc<Vitals>,
}

impl Operator {
    /// On everything there is.
    #[must_use]
    pub fn new(engine: Arc<Engine>, shards: Arc<Shards>, vitals: Arc<Vitals>) -> Self {
        Self { engine, shards, vitals }
    }
}

#[tonic::async_trait]
impl OperatorService for Operator {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let attention = self.engine.store().attention().await.map_err(EngineError::from)?;
        let database_time = self.engine.store().now().await.map_err(EngineError::from)?;
        let (armed, watermark_us, slots, missed) = {
            let ring = self.vitals.timers.lock();
            (ring.len(), ring.lowest_watermark_us(), ring.served().count(), ring.missed())
        };
        let watermark = watermark_us.and_then(|us| tcc_core::Timestamp::from_microsecond(us).ok());
        let watermark = watermark.map(convert::proto_time);
        let shards = self.shards.all().iter().enumerate().map(|(index, shard)| v1::ShardStatus {
            name: shard.name().to_owned(),
            reachable: shard.is_reachable(),
            queued: shard.queued() as i64,
            buckets: shard.buckets() as i32,
            waiting: self.engine.waiting(index) as i64,
            lost: shard.heads().lost().unwrap_or_default(),
            drained: shard.is_drained(),
        });
        let attention = attention.into_iter().map(|summary| v1::AttentionCount {
            attention: convert::attention(summary.kind).into(),
            transactions: summary.transactions,
            oldest: Some(prost_types::Duration { seconds: summary.oldest_s as i64, nanos: 0 }),
            example_id: summary.example.to_string(),
            example_error: summary.error,
        });
        Ok(Response::new(v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.vitals.instance.to_string(),
            started_at: Some(convert::proto_time(self.vitals.started_at)),
            draining: self.engine.is_draining(),
            database_time: Some(convert::proto_time(database_time)),
            watermark,
            armed: armed as i64,
            active: self.engine.active() as i64,
            missed: missed as i64,
            slots: slots as i32,
            shards: shards.collect(),
            attention: attention.collect(),
            rebuilt: self.vitals.sweep.rebuilt() as i64,
            unswept_shards: self.vitals.sweep.unfinished() as i32,
        }))
    }

    async fn resume_shard(
        &self,
        request: Request<v1::ResumeShardRequest>,
    ) -> Result<Response<v1::ResumeShardResponse>, Status> {
        let (reason, ticket) = (&request.get_ref().reason, &request.get_ref().ticket);
        let evidence = evidence(&request, reason, ticket)?;
        let name = &request.get_ref().name;
        match self.engine.store().resume_shard(name, &evidence).await.map_err(EngineError::from)? {
            Some(true) => {
                tracing::warn!(
                    shard = name,
                    actor = evidence.actor,
                    "an operator lets work on a shard go on"
                );
                self.engine.metrics().acted("resume-shard", "done");
                Ok(Response::new(v1::ResumeShardResponse {}))
            }
            Some(false) | None => Err(reason::not_stopped(name)),
        }
    }

    type RunAuditStream = BoxStream<'static, Result<v1::RunAuditResponse, Status>>;

    async fn run_audit(
        &self,
        _: Request<v1::RunAuditRequest>,
    ) -> Result<Response<Self::RunAuditStream>, Status> {
        let (events, told) = mpsc::channel(64);
        let (engine, shards) = (Arc::clone(&self.engine), Arc::clone(&self.shards));
        let audit = tokio::spawn(async move { audit::run(engine.store(), &shards, events).await });
        // First what it tells; when that ends, whether it came to its end.
        let stream = futures::stream::unfold((told, Some(audit)), |(mut told, audit)| async move {
            if let Some(event) = told.recv().await {
                return Some((Ok(v1::RunAuditResponse { event: Some(view(event)) }), (told, audit)));
            }
            match audit?.await {
                Ok(Ok(()) | Err(AuditError::GivenUp)) => None,
                Ok(Err(error)) => {
                    let message = format!("the audit could not be finished: {error}");
                    Some((Err(reason::unavailable("AUDIT_INCOMPLETE", message)), (told, None)))
                }
                Err(_) => {
                    let message = "the audit stopped unexpectedly";
                    Some((Err(reason::unavailable("AUDIT_INCOMPLETE", message)), (told, None)))
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

fn view(event: AuditEvent) -> Event {
    match event {
        AuditEvent::Progress { step, done } => {
            Event::Progress(v1::AuditProgress { step, done: done as i64, total: 0 })
        }
        AuditEvent::Finding(finding) => Event::Finding(v1::AuditFinding {
            kind: finding.kind.to_owned(),
            shard: finding.shard,
            transaction_id: finding.transaction,
            account: finding.account,
            expected: finding.expected,
            found: finding.found,
        }),
        AuditEvent::Summary(summary) => Event::Summary(v1::AuditSummary {
            transactions: summary.transactions as i64,
            branches: summary.branches as i64,
            accounts: summary.accounts as i64,
            postings: summary.postings as i64,
            findings: summary.findings as i64,
            issued: summary
                .issued
                .into_iter()
                .map(|(currency, value)| v1::Amount { value, currency })
                .collect(),
        }),
    }
}
