//! `OperatorService`: for `tccctl` and people on call.

use super::{
    branches, convert,
    evidence::evidence,
    reason::{self, wrong},
    view,
};
use crate::{
    audit::{self, AuditError, AuditEvent, Finding},
    config::{DEADLINES_MS, REQUESTS},
    engine::{Engine, EngineError},
    registry::{self, Entry, Registry},
    serve::Vitals,
    shards::Shards,
    store::{
        Evidence, StoreError,
        participants::{Changed, Registration},
    },
};
use futures::stream::BoxStream;
use std::{sync::Arc, time::Duration};
use tcc_core::ParticipantName;
use tcc_ledger::audit::Total;
use tcc_participant::{Remote, remote::InvalidAddress};
use tcc_proto::{
    Reason,
    v1::{self, operator_service_server::OperatorService, replay_shard_response, run_audit_response},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tonic::{Request, Response, Status};

/// How many findings a page has by default, and at most.
const PAGE: (usize, usize) = (100, 1_000);

/// Serves operators.
pub struct Operator {
    engine: Arc<Engine>,
    shards: Arc<Shards>,
    registry: Registry,
    vitals: Arc<Vitals>,
}

impl Operator {
    /// On everything there is.
    #[must_use]
    pub fn new(engine: Arc<Engine>, shards: Arc<Shards>, registry: Registry, vitals: Arc<Vitals>) -> Self {
        Self { engine, shards, registry, vitals }
    }

    /// What became of a change of who takes part, as a status, and for the record.
    fn changed(
        &self,
        action: &str,
        name: &ParticipantName,
        evidence: &Evidence,
        changed: Result<Changed, StoreError>,
    ) -> Result<(), Status> {
        let refused = match changed.map_err(EngineError::from)? {
            Changed::Done => {
                tracing::warn!(participant = %name, action, actor = evidence.actor, "an operator decides who takes part");
                self.engine.metrics().acted(action, "done");
                return Ok(());
            }
            // What is so already needs no error, but for one that is to be new.
            Changed::Already if action == "add-participant" => reason::participant_exists(name.as_str()),
            Changed::Already => return Ok(()),
            Changed::NotFound => reason::participant_not_found(name.as_str()),
            Changed::NotDrained => {
                reason::participant_in_use(name.as_str(), "it takes new transactions; drain it first", None)
            }
            Changed::InUse(count, example) => {
                let why = format!("{count} transactions that need it are not final");
                reason::participant_in_use(name.as_str(), &why, Some(example))
            }
        };
        self.engine.metrics().acted(action, "refused");
        Err(refused)
    }

    fn participant(&self, entry: &Entry) -> v1::Participant {
        let Entry { registered, remote } = entry;
        let Registration { name, address, ca, may_veto, deadline, requests } = &registered.registration;
        let index = self.engine.participants().index_by_name(name);
        let described = remote.as_ref().and_then(Remote::described);
        let ahead_ms = remote.as_ref().and_then(Remote::clock_ahead_ms);
        v1::Participant {
            name: name.to_string(),
            address: address.clone(),
            may_veto: *may_veto,
            deadline: prost_types::Duration::try_from(*deadline).ok(),
            requests: i32::from(*requests),
            ca: ca.clone(),
            configured: registered.is_configured,
            drained: registered.is_drained,
            added_at: Some(view::time(registered.added_at)),
            reachable: self.engine.participants().is_reachable(index),
            left_alone: remote.as_ref().is_some_and(Remote::is_left_alone),
            trouble: self.engine.participants().trouble(index).unwrap_or_default(),
            queued: remote.as_ref().map_or(0, |remote| remote.queued() as i64),
            waiting: self.engine.waiting(index) as i64,
            protocol_version: described.as_ref().map_or(0, |described| described.protocol_version),
            software: described.map_or(String::new(), |described| described.software),
            clock_ahead: ahead_ms.map(|ms| prost_types::Duration {
                seconds: ms / 1_000,
                nanos: (ms % 1_000) as i32 * 1_000_000,
            }),
        }
    }
}

/// A participant as an operator asks for it.
fn registration(request: &v1::AddParticipantRequest) -> Result<Registration, Status> {
    let v1::AddParticipantRequest { name, address, may_veto, deadline, requests, ca, .. } = request;
    let name = branches::participant_name("name", name)?;
    let deadline_ms = match deadline {
        None => 10_000,
        Some(deadline) => {
            deadline.seconds.saturating_mul(1_000).saturating_add(i64::from(deadline.nanos) / 1_000_000)
        }
    };
    let deadline_ms = u32::try_from(deadline_ms)
        .ok()
        .filter(|ms| DEADLINES_MS.contains(ms))
        .ok_or_else(|| wrong("deadline", Reason::FieldInvalid, "must be 100 ms to 60 s"))?;
    let requests = if *requests == 0 { 4 } else { *requests };
    let requests = u16::try_from(requests).ok().filter(|requests| REQUESTS.contains(requests));
    let requests = requests.ok_or_else(|| wrong("requests", Reason::FieldInvalid, "must be 1 to 256"))?;
    let registration = Registration {
        name,
        address: address.clone(),
        ca: ca.clone(),
        may_veto: *may_veto,
        deadline: Duration::from_millis(deadline_ms.into()),
        requests,
    };
    let invalid = |error: InvalidAddress| {
        let field = match error {
            InvalidAddress::Address(_) => "address",
            InvalidAddress::Certificate(..) => "ca",
        };
        wrong(field, Reason::FieldInvalid, error.to_string())
    };
    registry::check(&registration, None).map_err(invalid)?;
    Ok(registration)
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
        // Who serves no slot knows it from the table only.
        let watermark = match watermark {
            Some(watermark) => watermark,
            None => self.engine.store().watermark().await.map_err(EngineError::from)?,
        };
        let audits = self.engine.store().audits().await.map_err(EngineError::from)?;
        let (findings, first_finding_at) =
            self.engine.store().count_findings().await.map_err(EngineError::from)?;
        let shards = self.shards.all().iter().enumerate().map(|(index, shard)| {
            let audited = audits.iter().find(|audited| audited.shard == shard.name());
            v1::ShardStatus {
                name: shard.name().to_owned(),
                reachable: self.engine.participants().is_reachable(index),
                trouble: self.engine.participants().trouble(index).unwrap_or_default(),
                queued: shard.queued() as i64,
                buckets: shard.buckets() as i32,
                waiting: self.engine.waiting(index) as i64,
                lost: shard.heads().lost().unwrap_or_default(),
                drained: shard.is_drained(),
                breaker: view::breaker(self.engine.breaker(index)).into(),
                audited_until: audited.map(|audited| view::time(audited.until)),
                audited_postings: audited.map_or(0, |audited| audited.postings),
            }
        });
        let attention = attention.into_iter().map(|summary| v1::AttentionCount {
            attention: view::attention(summary.kind).into(),
            transactions: summary.transactions,
            oldest: Some(prost_types::Duration { seconds: summary.oldest_s as i64, nanos: 0 }),
            example_id: summary.example.to_string(),
            example_error: summary.error,
        });
        Ok(Response::new(v1::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.vitals.instance.to_string(),
            started_at: Some(view::time(self.vitals.started_at)),
            draining: self.engine.is_draining(),
            database_time: Some(view::time(database_time)),
            watermark: Some(view::time(watermark)),
            armed: armed as i64,
            active: self.engine.active() as i64,
            missed: missed as i64,
            slots: slots as i32,
            shards: shards.collect(),
            attention: attention.collect(),
            rebuilt: self.vitals.sweep.rebuilt() as i64,
            unswept_shards: self.vitals.sweep.unfinished() as i32,
            findings,
            first_finding_at: first_finding_at.map(view::time),
        }))
    }

    async fn resume_shard(
        &self,
        request: Request<v1::ResumeShardRequest>,
    ) -> Result<Response<v1::ResumeShardResponse>, Status> {
        let v1::ResumeShardRequest { name, reason, ticket } = request.get_ref();
        let evidence = evidence(&request, reason, ticket)?;
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

    async fn list_participants(
        &self,
        _: Request<v1::ListParticipantsRequest>,
    ) -> Result<Response<v1::ListParticipantsResponse>, Status> {
        let participants = self.registry.all().iter().map(|entry| self.participant(entry)).collect();
        Ok(Response::new(v1::ListParticipantsResponse { participants }))
    }

    async fn add_participant(
        &self,
        request: Request<v1::AddParticipantRequest>,
    ) -> Result<Response<v1::AddParticipantResponse>, Status> {
        let v1::AddParticipantRequest { reason, ticket, .. } = request.get_ref();
        let evidence = evidence(&request, reason, ticket)?;
        let registration = registration(request.get_ref())?;
        let name = &registration.name;
        if self.shards.all().iter().any(|shard| shard.name() == name.as_str()) {
            return self
                .changed("add-participant", name, &evidence, Ok(Changed::Already))
                .map(|()| Response::new(v1::AddParticipantResponse {}));
        }
        let added = self.engine.store().add_participant(&registration, &evidence).await;
        self.changed("add-participant", name, &evidence, added)?;
        Ok(Response::new(v1::AddParticipantResponse {}))
    }

    async fn drain_participant(
        &self,
        request: Request<v1::DrainParticipantRequest>,
    ) -> Result<Response<v1::DrainParticipantResponse>, Status> {
        let v1::DrainParticipantRequest { name, reason, ticket } = request.get_ref();
        let evidence = evidence(&request, reason, ticket)?;
        let name = branches::participant_name("name", name)?;
        let drained = self.engine.store().drain_participant(&name, true, &evidence).await;
        self.changed("drain-participant", &name, &evidence, drained)?;
        Ok(Response::new(v1::DrainParticipantResponse {}))
    }

    async fn resume_participant(
        &self,
        request: Request<v1::ResumeParticipantRequest>,
    ) -> Result<Response<v1::ResumeParticipantResponse>, Status> {
        let v1::ResumeParticipantRequest { name, reason, ticket } = request.get_ref();
        let evidence = evidence(&request, reason, ticket)?;
        let name = branches::participant_name("name", name)?;
        let resumed = self.engine.store().drain_participant(&name, false, &evidence).await;
        self.changed("resume-participant", &name, &evidence, resumed)?;
        Ok(Response::new(v1::ResumeParticipantResponse {}))
    }

    async fn remove_participant(
        &self,
        request: Request<v1::RemoveParticipantRequest>,
    ) -> Result<Response<v1::RemoveParticipantResponse>, Status> {
        let v1::RemoveParticipantRequest { name, reason, ticket } = request.get_ref();
        let evidence = evidence(&request, reason, ticket)?;
        let name = branches::participant_name("name", name)?;
        let removed = self.engine.store().remove_participant(&name, &evidence).await;
        self.changed("remove-participant", &name, &evidence, removed)?;
        Ok(Response::new(v1::RemoveParticipantResponse {}))
    }

    type RunAuditStream = BoxStream<'static, Result<v1::RunAuditResponse, Status>>;

    async fn run_audit(
        &self,
        _: Request<v1::RunAuditRequest>,
    ) -> Result<Response<Self::RunAuditStream>, Status> {
        let (events, told) = mpsc::channel(64);
        let (engine, shards) = (Arc::clone(&self.engine), Arc::clone(&self.shards));
        let audit = tokio::spawn(async move { audit::run(engine.store(), &shards, events).await });
        Ok(Response::new(stream(told, audit, |event| v1::RunAuditResponse {
            event: Some(audit_event(event)),
        })))
    }

    type ReplayShardStream = BoxStream<'static, Result<v1::ReplayShardResponse, Status>>;

    async fn replay_shard(
        &self,
        request: Request<v1::ReplayShardRequest>,
    ) -> Result<Response<Self::ReplayShardStream>, Status> {
        let v1::ReplayShardRequest { shard: name, at } = request.into_inner();
        let at = at.map(|at| convert::time("at", at)).transpose()?;
        let shard = self.shards.all().iter().find(|shard| shard.name() == name);
        let shard = shard.cloned().ok_or_else(|| reason::shard_not_found(&name))?;
        let (events, told) = mpsc::channel(64);
        let replay = tokio::spawn(async move {
            let tell = |done: usize, all: usize| {
                let progress = progress(format!("accounts of {}", shard.name()), done as u64, all as u64);
                // Whoever is slow to listen misses a step.
                let _ = events.try_send(replay_shard_response::Event::Progress(progress));
            };
            let replay = shard.replay(at, tell).await?;
            let summary = v1::ReplaySummary {
                accounts: replay.accounts,
                postings: replay.postings,
                findings: replay.findings.len() as i64,
                totals: replay.totals.into_iter().map(total).collect(),
            };
            let findings = replay.findings.into_iter().map(|found| {
                replay_shard_response::Event::Finding(finding(audit::of_shard(shard.name(), found)))
            });
            for event in findings.chain([replay_shard_response::Event::Summary(summary)]) {
                events.send(event).await.map_err(|_| AuditError::GivenUp)?;
            }
            Ok::<(), AuditError>(())
        });
        Ok(Response::new(stream(told, replay, |event| v1::ReplayShardResponse { event: Some(event) })))
    }

    async fn list_findings(
        &self,
        request: Request<v1::ListFindingsRequest>,
    ) -> Result<Response<v1::ListFindingsResponse>, Status> {
        let v1::ListFindingsRequest { after_number, page_size } = request.into_inner();
        let size = convert::page_size(page_size, PAGE.0, PAGE.1)? as i64;
        let mut kept =
            self.engine.store().findings(after_number, size + 1).await.map_err(EngineError::from)?;
        let more = kept.len() as i64 > size;
        kept.truncate(size as usize);
        let next_after_number = if more { kept.last().map_or(0, |kept| kept.number) } else { 0 };
        let findings = kept.into_iter().map(|kept| v1::KeptFinding {
            number: kept.number,
            found_at: Some(view::time(kept.found_at)),
            finding: Some(finding(kept.finding)),
        });
        Ok(Response::new(v1::ListFindingsResponse { findings: findings.collect(), next_after_number }))
    }
}

/// First what an audit tells; when that ends, whether it came to its end.
fn stream<E: Send + 'static, R: Send + 'static>(
    told: mpsc::Receiver<E>,
    audit: JoinHandle<Result<(), AuditError>>,
    view: impl Fn(E) -> R + Send + 'static,
) -> BoxStream<'static, Result<R, Status>> {
    let stream = futures::stream::unfold((told, Some(audit), view), |(mut told, audit, view)| async move {
        if let Some(event) = told.recv().await {
            return Some((Ok(view(event)), (told, audit, view)));
        }
        let message = match audit?.await {
            Ok(Ok(()) | Err(AuditError::GivenUp)) => return None,
            Ok(Err(error)) => format!("the audit could not be finished: {error}"),
            Err(_) => "the audit stopped unexpectedly".to_owned(),
        };
        Some((Err(reason::unavailable(Reason::AuditIncomplete, message)), (told, None, view)))
    });
    Box::pin(stream)
}

fn audit_event(event: AuditEvent) -> run_audit_response::Event {
    match event {
        AuditEvent::Progress { step, done, total } => {
            run_audit_response::Event::Progress(progress(step, done, total))
        }
        AuditEvent::Finding(found) => run_audit_response::Event::Finding(finding(found)),
        AuditEvent::Summary(summary) => run_audit_response::Event::Summary(v1::AuditSummary {
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

fn progress(step: String, done: u64, total: u64) -> v1::AuditProgress {
    v1::AuditProgress { step, done: done as i64, total: total as i64 }
}

fn finding(finding: Finding) -> v1::AuditFinding {
    v1::AuditFinding {
        kind: finding.kind,
        shard: finding.shard,
        transaction_id: finding.transaction,
        account: finding.account,
        expected: finding.expected,
        found: finding.found,
    }
}

fn total(total: Total) -> v1::CurrencyTotal {
    let int64 = |sum: i128| sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
    v1::CurrencyTotal { currency: total.currency, available: int64(total.available), held: int64(total.held) }
}
