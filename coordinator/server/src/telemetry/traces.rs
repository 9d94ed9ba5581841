//! Traces, sent to a collector over OTLP: where the time of a request goes, and what became of its hold.
//!
//! A call of the API is a span, in the caller's trace if it came with one (W3C `traceparent`). What it created keeps that context in its
//! row. Trying a hold is a span in the same trace; paying or releasing it, which may be months later, is the first of a new
//! one, with a link back to the request. Spans of a hold are told when it has come so far, with the times that stand in its row,
//! so a life is not held up by them and costs nothing where nobody traces. Ids of holds are attributes here, as they are never
//! labels of metrics.
//!
//! What cannot be sent is dropped, and nobody waits for it.

use crate::{
    config::Telemetry,
    store::{Record, Store, TraceContext},
};
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{
        Link, Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, TraceState, Tracer as _,
        TracerProvider as _,
    },
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample},
};
use std::time::SystemTime;
use tcc_core::{Phase, Timestamp};
use tcc_proto::reason::code_name;
use tonic::{Code, codegen::http::HeaderMap, transport::ClientTlsConfig};

/// Sends spans. Clones share it.
#[derive(Debug, Clone)]
pub struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

/// A call that is under way.
pub struct Call {
    span: opentelemetry_sdk::trace::Span,
}

impl Traces {
    /// As configured: `None` if traces are sent nowhere.
    ///
    /// # Errors
    ///
    /// If that is no address.
    pub fn start(config: &Telemetry, instance: &str) -> Result<Option<Self>, ExporterBuildError> {
        if config.traces.is_empty() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&config.traces);
        let exporter = match config.traces.starts_with("https://") {
            true => exporter.with_tls_config(ClientTlsConfig::new().with_native_roots()).build()?,
            false => exporter.build()?,
        };
        let resource = Resource::builder()
            .with_service_name("tccd")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Wish { of_others: f64::from(config.traces_percent) / 100.0 })
            .with_resource(resource)
            .build();
        Ok(Some(Self { tracer: provider.tracer("tcc"), provider }))
    }

    /// A call begins. What it does is told with its context.
    #[must_use]
    pub fn call(&self, path: &str, headers: &HeaderMap) -> Call {
        let method = path.trim_start_matches('/').to_owned();
        let attributes =
            [KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method.clone())];
        let header = headers.get("traceparent").and_then(|value| value.to_str().ok());
        let parent = header.and_then(TraceContext::parse).map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(span_context(parent))
        });
        let builder =
            self.tracer.span_builder(method).with_kind(SpanKind::Server).with_attributes(attributes);
        Call { span: self.tracer.build_with_context(builder, &parent) }
    }

    /// A hold that a call created has been tried.
    pub fn tried(&self, record: &Record, request: TraceContext) {
        let standing = &record.standing;
        let parent = Context::new().with_remote_span_context(span_context(request));
        let until = standing.held_at.or(standing.settled_at).unwrap_or(standing.created_at);
        self.tell("try", record, standing.created_at, until, &parent, Vec::new());
    }

    /// A hold has come to its end.
    pub fn ended(&self, record: &Record, request: TraceContext) {
        let standing = &record.standing;
        let name = if standing.phase == Phase::Confirmed { "confirm" } else { "cancel" };
        let (Some(from), Some(until)) = (standing.decided_at, standing.settled_at) else { return };
        self.tell(
            name,
            record,
            from,
            until,
            &Context::new(),
            vec![Link::with_context(span_context(request))],
        );
    }

    /// As [`Traces::ended`], of a hold whose request is known to the database only. Nobody waits for it.
    pub fn ended_later(&self, store: &Store, record: &Record) {
        let (traces, store, record) = (self.clone(), store.clone(), record.clone());
        tokio::spawn(async move {
            match store.trace(record.id()).await {
                Ok(Some(request)) => traces.ended(&record, request),
                Ok(None) => {}
                Err(error) => tracing::debug!(id = %record.id(), %error, "its trace cannot be read"),
            }
        });
    }

    fn tell(
        &self,
        name: &'static str,
        record: &Record,
        from: Timestamp,
        until: Timestamp,
        parent: &Context,
        links: Vec<Link>,
    ) {
        let standing = &record.standing;
        let mut attributes = vec![
            KeyValue::new("tcc.hold", record.id().to_string()),
            KeyValue::new("tcc.phase", standing.phase.to_string()),
        ];
        attributes.extend(
            standing.cause.map(|cause| KeyValue::new("tcc.cause", format!("{cause:?}").to_uppercase())),
        );
        attributes.extend(standing.reason.clone().map(|reason| KeyValue::new("tcc.reason", reason)));
        if let Some(settled_at) = standing.settled_at {
            let late = settled_at.duration_since(record.due_at()).as_secs_f64().max(0.0);
            attributes.push(KeyValue::new("tcc.late_seconds", late));
        }
        let builder = self
            .tracer
            .span_builder(format!("hold {name}"))
            .with_kind(SpanKind::Internal)
            .with_start_time(system_time(from))
            .with_attributes(attributes)
            .with_links(links);
        self.tracer.build_with_context(builder, parent).end_with_timestamp(system_time(until));
    }

    /// Sends what is left. It blocks for a few seconds at most.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the last traces were not sent");
        }
    }
}

impl Call {
    /// Its context.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        let context = self.span.span_context();
        TraceContext {
            trace: u128::from_be_bytes(context.trace_id().to_bytes()),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
            flags: context.trace_flags().to_u8(),
        }
    }

    /// It was answered, by this head.
    pub fn answered(mut self, head: &HeaderMap) {
        let code = head.get("grpc-status").map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
        self.span.set_attribute(KeyValue::new("rpc.response.status_code", code_name(code)));
        // What the caller did wrong is no error of the server's.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            self.span.set_status(Status::error(code_name(code)));
        }
        self.span.end();
    }
}

/// Which spans are kept: those of a trace that is kept, and of requests without one a part.
#[derive(Debug, Clone)]
struct Wish {
    of_others: f64,
}

impl ShouldSample for Wish {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parent = parent.filter(|parent| parent.span().span_context().is_valid());
        let is_kept = match (parent, links.first()) {
            (Some(parent), _) => parent.span().span_context().is_sampled(),
            (None, Some(link)) => link.span_context.is_sampled(),
            (None, None) => {
                return Sampler::TraceIdRatioBased(self.of_others)
                    .should_sample(None, trace, name, kind, attributes, links);
            }
        };
        let decision = if is_kept { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::default() }
    }
}

fn span_context(context: TraceContext) -> SpanContext {
    let (trace, span) = (context.trace.to_be_bytes(), context.span.to_be_bytes());
    let flags = TraceFlags::new(context.flags);
    SpanContext::new(TraceId::from_bytes(trace), SpanId::from_bytes(span), flags, true, TraceState::default())
}

fn system_time(time: Timestamp) -> SystemTime {
    time.into()
}
