//! A server that gives the same answer to each call, whatever is asked: for what `tccctl` prints.

use futures::stream;
use http_body_util::StreamBody;
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::{collections::HashMap, convert::Infallible, sync::Arc};
use tcc_proto::v1::{
    self, Attention, Cause, OnMaturity, OperatorActionKind, Phase, batch_create_holds_outcome::Outcome,
};
use tokio::net::TcpListener;
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A hold of every answer.
pub const ID: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d";
/// A plan of every answer.
pub const PLAN: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5e";
/// An instance of every answer.
pub const INSTANCE: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5f";

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// What there is.
    Willing,
    /// No.
    Refusing,
}

/// Starts one. Answers where it is.
pub async fn start(mood: Mood) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answers = Arc::new(answers());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let answers = Arc::clone(&answers);
            let answer = service_fn(move |request: Request<Incoming>| {
                let answer = match (mood, answers.get(request.uri().path())) {
                    (Mood::Willing, Some(messages)) => answered(messages),
                    (Mood::Willing, None) => Status::unimplemented(request.uri().path()).into_http(),
                    (Mood::Refusing, _) => refused().into_http(),
                };
                async move { Ok::<_, Infallible>(answer) }
            });
            let serving =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(connection), answer);
            tokio::spawn(async move { drop(serving.await) });
        }
    });
    url
}

fn refused() -> Status {
    let metadata = HashMap::from([("id".to_owned(), ID.to_owned())]);
    let details = ErrorDetails::with_error_info("HOLD_NOT_FOUND", "tcc", metadata);
    Status::with_error_details(Code::NotFound, "there is no such thing", details)
}

fn answered(messages: &[Vec<u8>]) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frame = |message: &Vec<u8>| {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
        Frame::data(Bytes::from(bytes))
    };
    let frames: Vec<_> =
        messages.iter().map(frame).chain([Frame::trailers(trailers)]).map(Ok::<_, Infallible>).collect();
    let body = Body::new(StreamBody::new(stream::iter(frames)));
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

fn at(second: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: 1_790_000_000 + second, nanos: 250_000_000 })
}

fn gold(value: i64) -> Option<v1::Amount> {
    Some(v1::Amount { value, currency: "GOLD".into() })
}

fn hold(phase: Phase, attention: Attention) -> v1::Hold {
    let is_final = matches!(phase, Phase::Confirmed | Phase::Cancelled);
    v1::Hold {
        id: ID.into(),
        phase: phase.into(),
        attention: attention.into(),
        payer: "alice".into(),
        payee: "bob".into(),
        amount: gold(500),
        on_maturity: OnMaturity::Confirm.into(),
        due_at: at(3_600),
        cause: if is_final { Cause::Matured } else { Cause::Unspecified }.into(),
        created_at: at(0),
        held_at: at(1),
        decided_at: at(3_600).filter(|_| is_final),
        settled_at: at(3_601).filter(|_| is_final),
        labels: [("order".to_owned(), "4711".to_owned())].into(),
        etag: "4".into(),
        ..Default::default()
    }
}

fn account() -> v1::Account {
    v1::Account {
        id: "alice".into(),
        currency: "GOLD".into(),
        available: 9_500,
        held: 500,
        state: v1::AccountState::Open.into(),
        version: 2,
        created_at: at(-60),
    }
}

fn shards() -> Vec<v1::ShardStatus> {
    let shard = |name: &str| v1::ShardStatus {
        name: name.into(),
        reachable: true,
        breaker: v1::BreakerState::Closed.into(),
        buckets: 2_048,
        audited_until: at(0),
        audited_postings: 5,
        ..Default::default()
    };
    let gone = v1::ShardStatus {
        reachable: false,
        trouble: "connection refused".into(),
        breaker: v1::BreakerState::Open.into(),
        waiting: 20,
        ..shard("shard-1")
    };
    vec![shard("shard-0"), gone, v1::ShardStatus { drained: true, ..shard("shard-2") }]
}

const ERROR: &str =
    "the server of shard-1 rejects it: no 13 here, and not anywhere else either (SQLSTATE P0001)";

fn item() -> v1::AttentionItem {
    v1::AttentionItem {
        hold: Some(hold(Phase::Confirming, Attention::Parked)),
        since: None,
        attempts: 50,
        last_error: ERROR.into(),
        next_try: None,
        waiting_on: vec!["shard-1".into()],
        acknowledged: false,
    }
}

fn branch(index: i32, role: &str, account: &str, participant: &str, state: &str) -> v1::BranchReport {
    v1::BranchReport {
        index,
        role: role.into(),
        account: account.into(),
        amount: gold(500),
        participant: participant.into(),
        is_pivot: index == 1,
        state: state.into(),
        fenced_at: at(0),
        ..Default::default()
    }
}

fn plan() -> v1::Plan {
    v1::Plan {
        id: PLAN.into(),
        action: OperatorActionKind::Requeue.into(),
        selection: "attention PARKED".into(),
        actor: "carol".into(),
        created_at: at(0),
        expires_at: at(900),
        transactions: 2,
        refused: 1,
        amounts: gold(500).into_iter().collect(),
        ..Default::default()
    }
}

fn plan_items() -> Vec<v1::PlanItem> {
    let item = v1::PlanItem {
        id: ID.into(),
        amount: gold(500),
        phase: Phase::Confirming.into(),
        attention: Attention::Parked.into(),
        ..Default::default()
    };
    let refused = v1::PlanItem { refusal: "FORCE_UNSAFE: bob was paid 500 GOLD".into(), ..item.clone() };
    vec![item, refused]
}

fn finding() -> v1::AuditFinding {
    v1::AuditFinding {
        kind: "BALANCE_MISMATCH".into(),
        shard: "shard-0".into(),
        account: "alice".into(),
        expected: "9500 available".into(),
        found: "9600 available".into(),
        ..Default::default()
    }
}

/// The answer to each call, by its path.
fn answers() -> HashMap<&'static str, Vec<Vec<u8>>> {
    let mut all = HashMap::new();
    let mut say = |path, messages: Vec<Vec<u8>>| drop(all.insert(path, messages));
    fn one(message: impl Message) -> Vec<Vec<u8>> {
        vec![message.encode_to_vec()]
    }
    let paid = || Some(hold(Phase::Confirmed, Attention::None));
    let parked = || Some(hold(Phase::Confirming, Attention::Parked));
    let some_account = || Some(account());

    say("/tcc.v1.HoldService/GetHold", one(v1::GetHoldResponse { hold: paid() }));
    let holds = vec![hold(Phase::Held, Attention::None), hold(Phase::Confirming, Attention::Parked)];
    say("/tcc.v1.HoldService/ListHolds", one(v1::ListHoldsResponse { holds, ..Default::default() }));
    say("/tcc.v1.HoldService/CancelHold", one(v1::CancelHoldResponse { hold: parked() }));
    say("/tcc.v1.HoldService/ConfirmHold", one(v1::ConfirmHoldResponse { hold: paid() }));
    let created = |replayed| v1::BatchCreateHoldsOutcome {
        outcome: Some(Outcome::Created(v1::CreateHoldResponse { hold: paid(), replayed })),
    };
    let poor = v1::ItemError {
        code: Code::FailedPrecondition as i32,
        reason: "INSUFFICIENT_FUNDS".into(),
        message: "the payer has less available than the amount".into(),
        ..Default::default()
    };
    let outcomes = vec![
        created(false),
        created(true),
        v1::BatchCreateHoldsOutcome { outcome: Some(Outcome::Error(poor)) },
    ];
    say("/tcc.v1.HoldService/BatchCreateHolds", one(v1::BatchCreateHoldsResponse { outcomes }));

    say("/tcc.v1.LedgerService/CreateAccount", one(v1::CreateAccountResponse { account: some_account() }));
    say("/tcc.v1.LedgerService/GetAccount", one(v1::GetAccountResponse { account: some_account() }));
    say("/tcc.v1.LedgerService/Issue", one(v1::IssueResponse { account: some_account() }));
    say("/tcc.v1.LedgerService/Burn", one(v1::BurnResponse { account: some_account() }));
    say("/tcc.v1.LedgerService/BlockAccount", one(v1::BlockAccountResponse { account: some_account() }));
    say("/tcc.v1.LedgerService/UnblockAccount", one(v1::UnblockAccountResponse { account: some_account() }));
    say("/tcc.v1.LedgerService/CloseAccount", one(v1::CloseAccountResponse { account: some_account() }));
    let balance = v1::GetBalanceResponse {
        account: "alice".into(),
        currency: "GOLD".into(),
        available: 9_500,
        held: 500,
        version: 2,
        recorded_at: at(0),
    };
    say("/tcc.v1.LedgerService/GetBalance", one(balance));
    let open = v1::OpenHold {
        id: ID.into(),
        payee: "bob".into(),
        amount: gold(500),
        due_at: at(3_600),
        on_maturity: OnMaturity::Confirm.into(),
    };
    let holdings = v1::GetHoldingsResponse { account: some_account(), holds: vec![open], truncated: false };
    say("/tcc.v1.LedgerService/GetHoldings", one(holdings));
    let posting = v1::Posting {
        account: "alice".into(),
        version: 2,
        transaction_id: ID.into(),
        kind: v1::PostingKind::Hold.into(),
        amount: gold(500),
        available_after: 9_500,
        held_after: 500,
        recorded_at: at(0),
    };
    let postings = v1::ListPostingsResponse { postings: vec![posting], next_after_version: 0 };
    say("/tcc.v1.LedgerService/ListPostings", one(postings));

    let status = v1::GetStatusResponse {
        version: "1.2.3".into(),
        instance: INSTANCE.into(),
        started_at: at(-600),
        database_time: at(10),
        watermark: at(7),
        armed: 12,
        active: 3,
        shards: shards(),
        attention: vec![v1::AttentionCount {
            attention: Attention::Parked.into(),
            transactions: 1,
            oldest: Some(prost_types::Duration { seconds: 760, nanos: 0 }),
            example_id: ID.into(),
            example_error: ERROR.into(),
        }],
        slots: 256,
        findings: 1,
        first_finding_at: at(5),
        ..Default::default()
    };
    say("/tcc.v1.OperatorService/GetStatus", one(status));
    say("/tcc.v1.OperatorService/ResumeShard", one(v1::ResumeShardResponse {}));
    let audit = |event| v1::RunAuditResponse { event: Some(event) }.encode_to_vec();
    let summary = v1::AuditSummary {
        transactions: 7,
        branches: 14,
        accounts: 2,
        postings: 29,
        findings: 1,
        issued: gold(10_000).into_iter().collect(),
    };
    use v1::run_audit_response::Event as Audited;
    say(
        "/tcc.v1.OperatorService/RunAudit",
        vec![audit(Audited::Finding(finding())), audit(Audited::Summary(summary))],
    );
    use v1::replay_shard_response::Event as Replayed;
    let replay = |event| v1::ReplayShardResponse { event: Some(event) }.encode_to_vec();
    let totals = vec![v1::CurrencyTotal { currency: "GOLD".into(), available: 9_500, held: 500 }];
    let summary = v1::ReplaySummary { accounts: 2, postings: 29, findings: 0, totals };
    say("/tcc.v1.OperatorService/ReplayShard", vec![replay(Replayed::Summary(summary))]);
    let kept = v1::KeptFinding { number: 1, found_at: at(5), finding: Some(finding()) };
    let findings = v1::ListFindingsResponse { findings: vec![kept], next_after_number: 0 };
    say("/tcc.v1.OperatorService/ListFindings", one(findings));

    let attention = v1::ListAttentionResponse { items: vec![item()], next_page_token: String::new() };
    say("/tcc.v1.RecoveryService/ListAttention", one(attention));
    let place = |place: &str| v1::MoneyPlace { amount: gold(500), place: place.into() };
    let event = |second, source: &str, what: &str| v1::TimelineEvent {
        at: at(second),
        source: source.into(),
        what: what.into(),
    };
    let described = v1::DescribeHoldResponse {
        hold: parked(),
        branches: vec![
            branch(0, "DEBIT", "alice", "shard-0", "tried"),
            branch(1, "CREDIT", "bob", "shard-1", "tried"),
        ],
        money: vec![
            place("frozen in escrow of alice on shard-0"),
            place("promised to bob on shard-1, not paid"),
        ],
        timeline: vec![
            event(0, "coordinator", "accepted"),
            event(3_600, "coordinator", "due, to confirm"),
            event(3_700, "coordinator", &format!("needs attention: {ERROR}")),
        ],
        attention: Some(item()),
        diagnosis: "The payee's shard rejects it. Nothing is decided.".into(),
        recovers_by_itself: false,
        next_command: format!("tccctl parked requeue {ID} --reason REASON"),
        trace: "4bf92f3577b34da6a3ce929d0e0e4736".into(),
    };
    say("/tcc.v1.RecoveryService/DescribeHold", one(described));
    say("/tcc.v1.RecoveryService/Act", one(v1::ActResponse { hold: parked() }));
    say("/tcc.v1.RecoveryService/CreatePlan", one(v1::CreatePlanResponse { plan: Some(plan()) }));
    let shown = v1::GetPlanResponse { plan: Some(plan()), items: plan_items() };
    say("/tcc.v1.RecoveryService/GetPlan", one(shown));
    say("/tcc.v1.RecoveryService/ListPlans", one(v1::ListPlansResponse { plans: vec![plan()] }));
    let done = |outcome: &str, detail: &str| v1::PlanItem {
        outcome: outcome.into(),
        detail: detail.into(),
        ..plan_items().remove(0)
    };
    let end = v1::Plan { started_at: at(60), done: 1, changed: 1, ..plan() };
    use v1::execute_plan_response::Event as Executed;
    let executed = [
        Executed::Item(done("done", "")),
        Executed::Item(done("changed", "it is CONFIRMED now")),
        Executed::Plan(end),
    ];
    let executed = executed.map(|event| v1::ExecutePlanResponse { event: Some(event) }.encode_to_vec());
    say("/tcc.v1.RecoveryService/ExecutePlan", executed.into());
    let action = v1::OperatorAction {
        number: 1,
        acted_at: at(60),
        action: "requeue".into(),
        target: ID.into(),
        actor: "carol".into(),
        address: "127.0.0.1:4711".into(),
        reason: "the trigger is dropped".into(),
        ticket: "OPS-311".into(),
        plan: PLAN.into(),
        before: "CONFIRMING PARKED".into(),
        after: "CONFIRMING RETRYING".into(),
    };
    let actions = v1::ListActionsResponse { actions: vec![action], next_after_number: 0 };
    say("/tcc.v1.RecoveryService/ListActions", one(actions));
    let instance = v1::Instance {
        id: INSTANCE.into(),
        address: "db-1/10.0.0.1:7070".into(),
        started_at: at(-600),
        alive: true,
        slots: 256,
        settled: 4_711,
        answers: true,
    };
    let instances = v1::ListInstancesResponse { instances: vec![instance] };
    say("/tcc.v1.RecoveryService/ListInstances", one(instances));
    say("/tcc.v1.RecoveryService/DrainInstance", one(v1::DrainInstanceResponse {}));
    say("/tcc.v1.RecoveryService/DrainShard", one(v1::DrainShardResponse {}));
    all
}
