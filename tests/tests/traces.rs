//! Traces over OTLP: a request, and what became of its hold, found again by whoever looks at either.

use jiff::SignedDuration;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use std::sync::{Arc, Mutex};
use tcc_coordinator::{config::Telemetry, serve};
use tcc_proto::v1::Phase;
use tcc_tests::{Coordinator, System, alice_and_bob, hold_due_in, until};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// What a collector was sent.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collected {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|spans| spans.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collected {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        url
    }

    fn named(&self, name: &str) -> Vec<Span> {
        self.0.lock().unwrap().iter().filter(|span| span.name == name).cloned().collect()
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        other => Some(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_links_back_to_the_request_that_scheduled_it() {
    let (system, collected) = (System::start().await, Collected::default());
    let mut config = system.config.clone();
    config.telemetry =
        Telemetry { traces: collected.start().await, traces_percent: 0, ..config.telemetry.clone() };
    let Coordinator { mut client, running } =
        Coordinator::on(serve::start(&config).await.expect("the coordinator starts")).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let [traced, untraced] =
        [13, 17].map(|amount| hold_due_in(&alice, &bob, amount, SignedDuration::from_secs(1)));
    let mut request = Request::new(traced.clone());
    let header = format!("00-{TRACE}-{PARENT}-01");
    request.metadata_mut().insert("traceparent", header.parse().unwrap());

    client.holds.create_hold(request).await.unwrap();
    client.create(&untraced).await.unwrap();
    for id in [&traced.id, &untraced.id] {
        assert_eq!(client.until_final(id).await.phase(), Phase::Confirmed);
    }
    let request = tcc_proto::v1::DescribeHoldRequest { id: traced.id.clone() };
    let described = client.recovery.describe_hold(request).await.unwrap().into_inner();
    let kept = "SELECT count(trace) FROM transaction";
    let kept: i64 = system.sql().await.query_one(kept, &[]).await.unwrap().get(0);
    // What is told of the end is told in a task of its own, and sent when the batch is.
    until("the payment is told", || {
        let collected = collected.clone();
        async move { !collected.named("hold confirm").is_empty() }
    })
    .await;
    running.stop().cancel();
    running.ended().await.unwrap();

    let [call] = collected.named("tcc.v1.HoldService/CreateHold").try_into().expect("one call is traced");
    assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(call.kind(), SpanKind::Server);
    assert_eq!(attribute(&call, "rpc.response.status_code").as_deref(), Some("OK"));
    let [tried] = collected.named("hold try").try_into().expect("one hold is traced");
    assert_eq!((&tried.trace_id, &tried.parent_span_id), (&call.trace_id, &call.span_id));
    let [paid] = collected.named("hold confirm").try_into().expect("one payment is traced");
    assert_ne!(paid.trace_id, call.trace_id, "it may be months later");
    assert_eq!((&paid.links[0].trace_id, &paid.links[0].span_id), (&call.trace_id, &call.span_id));
    for span in [&tried, &paid] {
        assert_eq!(attribute(span, "tcc.hold"), Some(traced.id.clone()));
    }
    assert_eq!(attribute(&paid, "tcc.cause").as_deref(), Some("MATURED"));
    assert_eq!(described.trace, TRACE);
    assert!(kept >= 1, "the context stands in the row");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_holds_up_nothing() {
    let system = System::start().await;
    let mut config = system.config.clone();
    config.telemetry =
        Telemetry { traces: "http://127.0.0.1:1".into(), traces_percent: 100, ..config.telemetry.clone() };
    let Coordinator { mut client, running } =
        Coordinator::on(serve::start(&config).await.expect("the coordinator starts")).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(1));

    client.create(&request).await.unwrap();

    assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    running.stop().cancel();
    running.ended().await.unwrap();
}
