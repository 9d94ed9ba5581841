//! What `tccctl` makes of a server's answers: the binary against a server that gives prepared ones.

use serde_json::Value;
use std::{
    collections::HashMap,
    pin::Pin,
    process::Output,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tcc_proto::v1::{
    self, Attention, Cause, Phase,
    hold_service_server::{HoldService, HoldServiceServer},
    ledger_service_server::{LedgerService, LedgerServiceServer},
    operator_service_server::{OperatorService, OperatorServiceServer},
    replay_shard_response,
    run_audit_response::Event,
};
use tokio::process::Command;
use tonic::{
    Code, Request, Response, Status,
    codegen::tokio_stream::{self, Stream},
    transport::{Server, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, StatusExt as _};

const ID: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d";
/// So many postings has every account.
const POSTINGS: i64 = 2_500;

#[derive(Default)]
struct Prepared {
    /// What GetHold answers, one after the other.
    holds: Vec<Result<v1::Hold, Code>>,
    asked: AtomicUsize,
    /// What RunAudit streams.
    audit: Vec<Result<Event, Code>>,
    /// And then it says nothing more, and does not end either.
    audit_hangs: bool,
    /// What ListFindings answers: each from so many calls on.
    found: Vec<(usize, v1::KeptFinding)>,
}

fn hold(phase: Phase, cause: Cause) -> v1::Hold {
    v1::Hold {
        id: ID.into(),
        phase: phase.into(),
        attention: Attention::None.into(),
        cause: cause.into(),
        ..Default::default()
    }
}

fn of_state(id: String, state: v1::AccountState) -> Option<v1::Account> {
    Some(v1::Account { id, state: state.into(), ..Default::default() })
}

fn refusal(code: Code, reason: &str, metadata: [(&str, &str); 1]) -> Status {
    let metadata: HashMap<_, _> = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    Status::with_error_details(code, "no", ErrorDetails::with_error_info(reason, "tcc", metadata))
}

#[tonic::async_trait]
impl HoldService for Prepared {
    type WatchHoldStream = Pin<Box<dyn Stream<Item = Result<v1::WatchHoldResponse, Status>> + Send>>;

    async fn batch_create_holds(
        &self,
        _: Request<v1::BatchCreateHoldsRequest>,
    ) -> Result<Response<v1::BatchCreateHoldsResponse>, Status> {
        Err(Status::unimplemented("tccctl creates no holds"))
    }

    async fn transfer(
        &self,
        _: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferResponse>, Status> {
        Err(Status::unimplemented("tccctl transfers nothing"))
    }

    async fn watch_hold(
        &self,
        _: Request<v1::WatchHoldRequest>,
    ) -> Result<Response<Self::WatchHoldStream>, Status> {
        Err(Status::unimplemented("tccctl polls"))
    }

    /// Pages of two, of five holds, as long as the token is the one from before.
    async fn list_holds(
        &self,
        request: Request<v1::ListHoldsRequest>,
    ) -> Result<Response<v1::ListHoldsResponse>, Status> {
        let request = request.into_inner();
        assert_eq!((request.payer.as_str(), request.phases.as_slice()), ("alice", [2].as_slice()));
        let from: i64 = if request.page_token.is_empty() { 0 } else { request.page_token.parse().unwrap() };
        let until = (from + i64::from(request.page_size).min(2)).min(5);
        let next_page_token = if until < 5 { until.to_string() } else { String::new() };
        let holds = (from..until).map(|_| hold(Phase::Held, Cause::Unspecified)).collect();
        Ok(Response::new(v1::ListHoldsResponse { holds, next_page_token }))
    }

    async fn create_hold(
        &self,
        _: Request<v1::CreateHoldRequest>,
    ) -> Result<Response<v1::CreateHoldResponse>, Status> {
        Err(Status::unimplemented("tccctl creates no holds"))
    }

    async fn get_hold(
        &self,
        _: Request<v1::GetHoldRequest>,
    ) -> Result<Response<v1::GetHoldResponse>, Status> {
        let next = self.asked.fetch_add(1, Ordering::Relaxed).min(self.holds.len() - 1);
        let hold = self.holds[next].clone().map_err(|code| Status::new(code, "prepared"))?;
        Ok(Response::new(v1::GetHoldResponse { hold: Some(hold) }))
    }

    async fn cancel_hold(
        &self,
        _: Request<v1::CancelHoldRequest>,
    ) -> Result<Response<v1::CancelHoldResponse>, Status> {
        match &self.holds[0] {
            Ok(hold) => Ok(Response::new(v1::CancelHoldResponse { hold: Some(hold.clone()) })),
            Err(code) => Err(refusal(*code, "HOLD_NOT_CANCELLABLE", [("id", ID)])),
        }
    }

    async fn confirm_hold(
        &self,
        _: Request<v1::ConfirmHoldRequest>,
    ) -> Result<Response<v1::ConfirmHoldResponse>, Status> {
        Err(Status::unimplemented("tccctl confirms no holds"))
    }
}

#[tonic::async_trait]
impl LedgerService for Prepared {
    async fn create_account(
        &self,
        request: Request<v1::CreateAccountRequest>,
    ) -> Result<Response<v1::CreateAccountResponse>, Status> {
        let v1::CreateAccountRequest { id, currency } = request.into_inner();
        let account = v1::Account { id, currency, ..Default::default() };
        Ok(Response::new(v1::CreateAccountResponse { account: Some(account) }))
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::GetAccountResponse>, Status> {
        match request.get_ref().id.as_str() {
            "silent" => std::future::pending().await,
            "nobody" => Err(refusal(Code::NotFound, "ACCOUNT_NOT_FOUND", [("account", "nobody")])),
            "empty" => Ok(Response::new(v1::GetAccountResponse { account: None })),
            "panic" => panic!("prepared"),
            other => Err(Status::unimplemented(other.to_owned())),
        }
    }

    /// Makes the issue's id the name of the account, so that it can be seen.
    async fn issue(&self, request: Request<v1::IssueRequest>) -> Result<Response<v1::IssueResponse>, Status> {
        let v1::IssueRequest { id, account, amount } = request.into_inner();
        if account == "lost" {
            return Err(Status::unavailable("prepared"));
        }
        if account == "poor" {
            return Err(refusal(Code::FailedPrecondition, "CURRENCY_MISMATCH", [("id", &id)]));
        }
        let amount = amount.unwrap();
        let account =
            v1::Account { id, currency: amount.currency, available: amount.value, ..Default::default() };
        Ok(Response::new(v1::IssueResponse { account: Some(account) }))
    }

    async fn burn(&self, request: Request<v1::BurnRequest>) -> Result<Response<v1::BurnResponse>, Status> {
        let v1::BurnRequest { id, .. } = request.into_inner();
        Ok(Response::new(v1::BurnResponse { account: Some(v1::Account { id, ..Default::default() }) }))
    }

    async fn block_account(
        &self,
        request: Request<v1::BlockAccountRequest>,
    ) -> Result<Response<v1::BlockAccountResponse>, Status> {
        let account = of_state(request.into_inner().id, v1::AccountState::Blocked);
        Ok(Response::new(v1::BlockAccountResponse { account }))
    }

    async fn unblock_account(
        &self,
        request: Request<v1::UnblockAccountRequest>,
    ) -> Result<Response<v1::UnblockAccountResponse>, Status> {
        let account = of_state(request.into_inner().id, v1::AccountState::Open);
        Ok(Response::new(v1::UnblockAccountResponse { account }))
    }

    async fn close_account(
        &self,
        _: Request<v1::CloseAccountRequest>,
    ) -> Result<Response<v1::CloseAccountResponse>, Status> {
        Err(refusal(Code::FailedPrecondition, "ACCOUNT_NOT_EMPTY", [("account", "alice")]))
    }

    async fn get_balance(
        &self,
        request: Request<v1::GetBalanceRequest>,
    ) -> Result<Response<v1::GetBalanceResponse>, Status> {
        let v1::GetBalanceRequest { account, at } = request.into_inner();
        Ok(Response::new(v1::GetBalanceResponse { account, recorded_at: at, ..Default::default() }))
    }

    async fn get_holdings(
        &self,
        request: Request<v1::GetHoldingsRequest>,
    ) -> Result<Response<v1::GetHoldingsResponse>, Status> {
        let account = of_state(request.into_inner().account, v1::AccountState::Open);
        Ok(Response::new(v1::GetHoldingsResponse { account, holds: Vec::new(), truncated: true }))
    }

    async fn list_postings(
        &self,
        request: Request<v1::ListPostingsRequest>,
    ) -> Result<Response<v1::ListPostingsResponse>, Status> {
        let request = request.into_inner();
        assert!((1..=1_000).contains(&request.page_size));
        let last = POSTINGS.min(request.after_version + i64::from(request.page_size));
        let postings = (request.after_version + 1..=last)
            .map(|version| v1::Posting { version, ..Default::default() })
            .collect();
        let next_after_version = if last < POSTINGS { last } else { 0 };
        Ok(Response::new(v1::ListPostingsResponse { postings, next_after_version }))
    }
}

#[tonic::async_trait]
impl OperatorService for Prepared {
    type RunAuditStream = Pin<Box<dyn Stream<Item = Result<v1::RunAuditResponse, Status>> + Send>>;
    type ReplayShardStream = Pin<Box<dyn Stream<Item = Result<v1::ReplayShardResponse, Status>> + Send>>;

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let shard = v1::ShardStatus {
            name: "shard-0".into(),
            audited_until: Some(prost_types::Timestamp { seconds: 1_790_000_000, nanos: 0 }),
            audited_postings: 5,
            ..Default::default()
        };
        let answer = v1::GetStatusResponse {
            version: "0.1.0".into(),
            missed: 7,
            shards: vec![shard],
            ..Default::default()
        };
        Ok(Response::new(answer))
    }

    /// One account, of which it says whether there is anything wrong with it: if there is a shard of the name.
    async fn replay_shard(
        &self,
        request: Request<v1::ReplayShardRequest>,
    ) -> Result<Response<Self::ReplayShardStream>, Status> {
        use replay_shard_response::Event;
        let v1::ReplayShardRequest { shard, at } = request.into_inner();
        let mut events = match shard.as_str() {
            "right" => vec![],
            "wrong" => {
                vec![Event::Finding(v1::AuditFinding {
                    kind: "REPLAY_MISMATCH".into(),
                    ..Default::default()
                })]
            }
            name => return Err(refusal(Code::NotFound, "SHARD_NOT_FOUND", [("shard", name)])),
        };
        // So that the time that was asked for can be seen.
        let postings = at.map_or(-1, |at| at.seconds);
        let findings = events.len() as i64;
        events.push(Event::Summary(v1::ReplaySummary {
            accounts: 1,
            postings,
            findings,
            ..Default::default()
        }));
        let events = events.into_iter().map(|event| Ok(v1::ReplayShardResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(events.collect::<Vec<_>>()))))
    }

    async fn list_findings(
        &self,
        request: Request<v1::ListFindingsRequest>,
    ) -> Result<Response<v1::ListFindingsResponse>, Status> {
        let after = request.get_ref().after_number;
        let call = self.asked.fetch_add(1, Ordering::Relaxed);
        let found = self.found.iter().filter(|(from, kept)| *from <= call && kept.number > after);
        let mut findings: Vec<_> = found.map(|(_, kept)| kept.clone()).collect();
        // One at a time, so that whoever wants all must turn pages.
        let next_after_number = if findings.len() > 1 { findings[0].number } else { 0 };
        findings.truncate(1);
        Ok(Response::new(v1::ListFindingsResponse { findings, next_after_number }))
    }

    async fn resume_shard(
        &self,
        request: Request<v1::ResumeShardRequest>,
    ) -> Result<Response<v1::ResumeShardResponse>, Status> {
        assert!(!request.get_ref().reason.is_empty());
        match request.get_ref().name.as_str() {
            "stopped" => Ok(Response::new(v1::ResumeShardResponse {})),
            name => Err(refusal(Code::FailedPrecondition, "SHARD_NOT_STOPPED", [("shard", name)])),
        }
    }

    async fn list_participants(
        &self,
        _: Request<v1::ListParticipantsRequest>,
    ) -> Result<Response<v1::ListParticipantsResponse>, Status> {
        let seats = v1::Participant {
            name: "seats".into(),
            address: "https://seats:7080".into(),
            may_veto: true,
            requests: 4,
            reachable: true,
            waiting: 3,
            clock_ahead: Some(prost_types::Duration { seconds: -1, nanos: -500_000_000 }),
            ..Default::default()
        };
        let gone = v1::Participant { name: "gone".into(), left_alone: true, ..Default::default() };
        Ok(Response::new(v1::ListParticipantsResponse { participants: vec![gone, seats] }))
    }

    async fn add_participant(
        &self,
        request: Request<v1::AddParticipantRequest>,
    ) -> Result<Response<v1::AddParticipantResponse>, Status> {
        let v1::AddParticipantRequest { name, reason, deadline, requests, .. } = request.get_ref();
        let deadline = deadline.as_ref().expect("a deadline");
        assert_eq!((deadline.seconds, deadline.nanos, *requests), (1, 500_000_000, 8));
        assert!(!reason.is_empty());
        match name.as_str() {
            "seats" => Err(refusal(Code::AlreadyExists, "PARTICIPANT_EXISTS", [("participant", name)])),
            _ => Ok(Response::new(v1::AddParticipantResponse {})),
        }
    }

    async fn drain_participant(
        &self,
        request: Request<v1::DrainParticipantRequest>,
    ) -> Result<Response<v1::DrainParticipantResponse>, Status> {
        assert!(!request.get_ref().reason.is_empty());
        Ok(Response::new(v1::DrainParticipantResponse {}))
    }

    async fn resume_participant(
        &self,
        request: Request<v1::ResumeParticipantRequest>,
    ) -> Result<Response<v1::ResumeParticipantResponse>, Status> {
        assert!(!request.get_ref().reason.is_empty());
        Ok(Response::new(v1::ResumeParticipantResponse {}))
    }

    async fn remove_participant(
        &self,
        request: Request<v1::RemoveParticipantRequest>,
    ) -> Result<Response<v1::RemoveParticipantResponse>, Status> {
        let name = request.get_ref().name.as_str();
        Err(refusal(Code::FailedPrecondition, "PARTICIPANT_IN_USE", [("participant", name)]))
    }

    async fn run_audit(
        &self,
        _: Request<v1::RunAuditRequest>,
    ) -> Result<Response<Self::RunAuditStream>, Status> {
        use tokio_stream::StreamExt as _;
        let events = self.audit.clone().into_iter().map(|event| match event {
            Ok(event) => Ok(v1::RunAuditResponse { event: Some(event) }),
            Err(code) => Err(Status::new(code, "prepared")),
        });
        let events = tokio_stream::iter(events);
        Ok(Response::new(match self.audit_hangs {
            false => Box::pin(events),
            true => Box::pin(events.chain(tokio_stream::pending())),
        }))
    }
}

/// Serves until the test ends, and says where.
fn serve(prepared: Prepared) -> String {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", incoming.local_addr().unwrap());
    let prepared = std::sync::Arc::new(prepared);
    let server = Server::builder()
        .add_service(HoldServiceServer::from_arc(prepared.clone()))
        .add_service(LedgerServiceServer::from_arc(prepared.clone()))
        .add_service(OperatorServiceServer::from_arc(prepared))
        .serve_with_incoming(incoming);
    tokio::spawn(server);
    url
}

/// Runs the binary, and bounds it: a test must not hang.
async fn tccctl(server: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tccctl"));
    let command = command.arg("--server").arg(server).args(args).kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(30), command.output()).await.expect("tccctl ends").unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json_lines(bytes: &[u8]) -> Vec<Value> {
    text(bytes).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn finding() -> Event {
    let finding =
        v1::AuditFinding { kind: "BALANCE_MISMATCH".into(), account: "alice".into(), ..Default::default() };
    Event::Finding(finding)
}

fn progress() -> Event {
    Event::Progress(v1::AuditProgress { step: "accounts".into(), done: 1, total: 2 })
}

fn summary(findings: i64) -> Event {
    Event::Summary(v1::AuditSummary { transactions: 4, findings, ..Default::default() })
}

#[tokio::test]
async fn a_refusal_exits_with_1_and_names_its_reason_and_what_to_do() {
    let server = serve(Prepared::default());

    let table = tccctl(&server, &["accounts", "get", "nobody"]).await;
    let json = tccctl(&server, &["accounts", "get", "nobody", "-o", "json"]).await;

    assert_eq!((table.status.code(), json.status.code()), (Some(1), Some(1)));
    assert_eq!(
        text(&table.stderr),
        "tccctl: no (ACCOUNT_NOT_FOUND)\ntccctl: open it with: tccctl accounts create nobody CURRENCY\n"
    );
    assert_eq!(
        text(&json.stderr),
        concat!(
            r#"{"error":{"code":"NOT_FOUND","reason":"ACCOUNT_NOT_FOUND","message":"no","#,
            r#""metadata":{"account":"nobody"}}}"#,
            "\n"
        )
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_in_time_leaves_the_outcome_unknown() {
    let server = serve(Prepared::default());

    let output = tccctl(&server, &["accounts", "get", "silent", "--timeout", "1"]).await;

    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains(" did not answer in time (DEADLINE_EXCEEDED)"), "{output:?}");
}

#[tokio::test]
async fn a_call_that_the_server_drops_leaves_the_outcome_unknown() {
    let server = serve(Prepared::default());

    let output = tccctl(&server, &["accounts", "get", "panic"]).await;

    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[tokio::test]
async fn an_answer_without_the_thing_asked_for_is_a_failure() {
    let server = serve(Prepared::default());

    let output = tccctl(&server, &["accounts", "get", "empty"]).await;

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "tccctl: the server's answer has no account (INTERNAL)\n");
}

#[tokio::test]
async fn an_issue_is_sent_with_the_id_that_is_told() {
    let server = serve(Prepared::default());

    let minted = tccctl(&server, &["accounts", "issue", "alice", "5", "GOLD", "-o", "json"]).await;
    let chosen =
        tccctl(&server, &["accounts", "issue", "alice", "5", "GOLD", "-o", "json", "--id", ID]).await;
    let refused =
        tccctl(&server, &["accounts", "issue", "poor", "5", "GOLD", "-o", "json", "--id", ID]).await;

    let minted = &json_lines(&minted.stdout)[0];
    assert_eq!(minted["id"], minted["account"]["id"]);
    assert_eq!(minted["account"]["available"], "5");
    assert_eq!(json_lines(&chosen.stdout)[0]["account"]["id"], ID);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(json_lines(&refused.stderr)[0]["id"], ID);
}

#[tokio::test]
async fn an_issue_without_an_answer_is_to_be_repeated_with_its_id() {
    let server = serve(Prepared::default());

    let output = tccctl(&server, &["accounts", "issue", "lost", "5", "GOLD"]).await;

    assert_eq!(output.status.code(), Some(4));
    let lines: Vec<&str> = text(&output.stderr).lines().collect();
    let id =
        lines[0].strip_prefix("tccctl: the id of this issue is ").expect("an id is told before the call");
    assert_eq!(lines[1], "tccctl: prepared (UNAVAILABLE)");
    assert_eq!(lines[2], format!("tccctl: repeat the command with --id {id}: it takes effect once"));
}

#[tokio::test]
async fn a_burn_is_sent_with_the_id_that_is_told() {
    let server = serve(Prepared::default());

    let output = tccctl(&server, &["accounts", "burn", "alice", "5", "GOLD", "-o", "json", "--id", ID]).await;

    assert_eq!(json_lines(&output.stdout)[0]["account"]["id"], ID);
}

#[tokio::test]
async fn an_account_is_blocked_and_unblocked_and_not_closed_while_it_has_units() {
    let server = serve(Prepared::default());

    for (verb, state) in [("block", "BLOCKED"), ("unblock", "OPEN")] {
        let output = tccctl(&server, &["accounts", verb, "alice", "-o", "json"]).await;
        assert_eq!(json_lines(&output.stdout)[0]["state"], state);
    }
    let refused = tccctl(&server, &["accounts", "close", "alice"]).await;

    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(text(&refused.stderr), "tccctl: no (ACCOUNT_NOT_EMPTY)\n");
}

#[tokio::test]
async fn a_balance_is_asked_for_at_a_time_and_holdings_say_when_there_are_more() {
    let server = serve(Prepared::default());

    let at = "2026-11-21T12:00:00.250000Z";
    let balance = tccctl(&server, &["accounts", "balance", "alice", "--at", at, "-o", "json"]).await;
    let holdings = tccctl(&server, &["accounts", "holdings", "alice"]).await;

    assert_eq!(json_lines(&balance.stdout)[0]["recorded_at"], at);
    assert_eq!(holdings.status.code(), Some(0));
    assert_eq!(text(&holdings.stderr), "tccctl: there are more open holds than are shown\n");
}

#[tokio::test]
async fn a_list_of_holds_is_read_page_by_page_up_to_the_limit() {
    let server = serve(Prepared::default());

    let list = ["holds", "list", "--payer", "alice", "--phase", "held"];
    let all = tccctl(&server, &[list.as_slice(), &["-o", "json"]].concat()).await;
    let some = tccctl(&server, &[list.as_slice(), &["--limit", "3", "-o", "json"]].concat()).await;
    let table = tccctl(&server, &[list.as_slice(), &["--limit", "3"]].concat()).await;

    let (all, some) = (&json_lines(&all.stdout)[0], &json_lines(&some.stdout)[0]);
    assert_eq!((all["holds"].as_array().unwrap().len(), all["more"].as_bool()), (5, Some(false)));
    assert_eq!((some["holds"].as_array().unwrap().len(), some["more"].as_bool()), (3, Some(true)));
    assert_eq!(text(&table.stdout).lines().count(), 1 + 3);
    assert!(text(&table.stderr).starts_with("tccctl: there may be more"));
}

#[tokio::test]
async fn postings_are_read_page_by_page_up_to_the_limit() {
    let server = serve(Prepared::default());

    let some = tccctl(&server, &["accounts", "postings", "alice", "--after", "10", "--limit", "1500"]).await;
    let all = tccctl(&server, &["accounts", "postings", "alice", "--limit", "9999", "-o", "json"]).await;

    let lines: Vec<&str> = text(&some.stdout).lines().collect();
    assert_eq!(lines.len(), 1 + 1_500);
    assert!(lines[1].trim_start().starts_with("11 ") && lines[1_500].trim_start().starts_with("1510 "));
    assert_eq!(text(&some.stderr), "tccctl: there are more: go on with --after 1510\n");
    let all = &json_lines(&all.stdout)[0];
    assert_eq!(all["postings"].as_array().unwrap().len(), 2_500);
    assert_eq!(all["next_after_version"], "0");
}

#[tokio::test]
async fn a_watch_prints_each_phase_once_and_bears_a_server_that_is_away_for_a_moment() {
    let phases = || Prepared {
        holds: vec![
            Ok(hold(Phase::Held, Cause::Unspecified)),
            Ok(hold(Phase::Held, Cause::Unspecified)),
            Err(Code::Unavailable),
            Ok(hold(Phase::Confirming, Cause::Matured)),
            Ok(hold(Phase::Confirmed, Cause::Matured)),
        ],
        ..Default::default()
    };

    let table = tccctl(&serve(phases()), &["holds", "get", ID, "--watch"]).await;
    let json = tccctl(&serve(phases()), &["holds", "get", ID, "--watch", "-o", "json"]).await;

    assert_eq!((table.status.code(), json.status.code()), (Some(0), Some(0)));
    assert_eq!(text(&table.stdout), "-  HELD\n-  CONFIRMING  MATURED\n-  CONFIRMED  MATURED\n");
    let phases: Vec<_> = json_lines(&json.stdout).iter().map(|line| line["phase"].clone()).collect();
    assert_eq!(phases, ["HELD", "CONFIRMING", "CONFIRMED"]);
    assert!(json.stderr.is_empty());
}

#[tokio::test]
async fn a_watch_gives_up_on_a_server_that_stays_away() {
    let prepared = Prepared {
        holds: vec![Ok(hold(Phase::Held, Cause::Unspecified)), Err(Code::Unavailable)],
        ..Default::default()
    };

    let output = tccctl(&serve(prepared), &["holds", "get", ID, "--watch", "--timeout", "1"]).await;

    assert_eq!(output.status.code(), Some(4));
    assert_eq!(text(&output.stdout), "-  HELD\n");
}

#[tokio::test]
async fn a_cancel_is_done_only_when_the_hold_is_cancelled() {
    for (answer, exit) in [
        (Ok(hold(Phase::Cancelled, Cause::Requested)), 0),
        (Ok(hold(Phase::Cancelling, Cause::Requested)), 4),
        (Err(Code::FailedPrecondition), 1),
    ] {
        let server = serve(Prepared { holds: vec![answer], ..Default::default() });

        assert_eq!(tccctl(&server, &["holds", "cancel", ID]).await.status.code(), Some(exit));
    }
}

#[tokio::test]
async fn an_audit_without_findings_is_ok() {
    let server = serve(Prepared { audit: vec![Ok(progress()), Ok(summary(0))], ..Default::default() });

    let output = tccctl(&server, &["audit", "run"]).await;

    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stdout),
        "audit: ok transactions=4 branches=0 accounts=0 postings=0 findings=0\n"
    );
    assert!(output.stderr.is_empty(), "no progress bar where there is no terminal");
}

#[tokio::test]
async fn an_audit_that_finds_something_exits_with_3() {
    let audit =
        || Prepared { audit: vec![Ok(progress()), Ok(finding()), Ok(summary(1))], ..Default::default() };

    let table = tccctl(&serve(audit()), &["audit", "run"]).await;
    let json = tccctl(&serve(audit()), &["audit", "run", "-o", "json"]).await;

    assert_eq!((table.status.code(), json.status.code()), (Some(3), Some(3)));
    let lines: Vec<&str> = text(&table.stdout).lines().collect();
    assert!(lines[0].starts_with("KIND ") && lines[1].starts_with("BALANCE_MISMATCH "), "{lines:?}");
    assert!(lines[2].starts_with("audit: FAILED ") && lines[2].ends_with(" findings=1"), "{lines:?}");
    let lines = json_lines(&json.stdout);
    assert_eq!(lines[0]["finding"]["kind"], "BALANCE_MISMATCH");
    assert_eq!(lines[1]["summary"]["findings"], "1");
}

#[tokio::test]
async fn an_audit_that_does_not_reach_its_summary_is_never_ok() {
    for (audit, audit_hangs, exit) in [
        (vec![Ok(progress())], false, 1),
        (vec![Ok(progress()), Err(Code::Internal)], false, 1),
        (vec![Ok(progress()), Err(Code::Unavailable)], false, 4),
        (vec![Ok(finding())], true, 4),
    ] {
        let server = serve(Prepared { audit, audit_hangs, ..Default::default() });

        let output = tccctl(&server, &["audit", "run", "--timeout", "1"]).await;

        assert_eq!(output.status.code(), Some(exit), "{output:?}");
        assert!(!text(&output.stdout).contains("audit:"), "{output:?}");
        assert_eq!(text(&output.stdout).contains("BALANCE_MISMATCH"), audit_hangs, "what was found is shown");
    }
}

fn kept(number: i64) -> v1::KeptFinding {
    let finding = v1::AuditFinding { kind: format!("KIND_{number}"), ..Default::default() };
    v1::KeptFinding { number, finding: Some(finding), ..Default::default() }
}

#[tokio::test]
async fn what_was_found_in_the_background_is_shown_and_exits_with_3() {
    let none = serve(Prepared::default());
    let some = serve(Prepared { found: vec![(0, kept(4)), (0, kept(7))], ..Default::default() });

    let nothing = tccctl(&none, &["audit", "show"]).await;
    let table = tccctl(&some, &["audit", "show"]).await;
    let json = tccctl(&some, &["audit", "show", "-o", "json"]).await;

    assert_eq!((nothing.status.code(), text(&nothing.stdout)), (Some(0), "no findings\n"));
    assert_eq!((table.status.code(), json.status.code()), (Some(3), Some(3)));
    let lines: Vec<&str> = text(&table.stdout).lines().collect();
    assert!(lines[1].contains("KIND_4") && lines[2].contains("KIND_7"), "{lines:?}");
    assert_eq!(json_lines(&json.stdout)[0]["findings"][1]["number"], "7");
}

#[tokio::test]
async fn a_watch_of_the_audit_ends_with_the_first_thing_that_is_found_from_then_on() {
    let server = serve(Prepared { found: vec![(0, kept(4)), (3, kept(7))], ..Default::default() });

    let output = tccctl(&server, &["audit", "watch"]).await;

    assert_eq!(output.status.code(), Some(3));
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(lines[0], "2026-09-21T14:13:20.000000Z  shard-0  5 postings audited");
    assert!(lines[1].starts_with("FOUND_AT") && lines[2].contains("KIND_7") && lines.len() == 3, "{lines:?}");
    assert!(text(&output.stderr).contains("there are 1 findings"), "{output:?}");
}

#[tokio::test]
async fn a_replay_exits_with_3_if_a_balance_differs() {
    let server = serve(Prepared::default());

    let right = tccctl(&server, &["audit", "replay", "--shard", "right"]).await;
    let then = ["audit", "replay", "--shard", "right", "--at", "1970-01-01T00:01:00Z"];
    let then = tccctl(&server, &then).await;
    let wrong = tccctl(&server, &["audit", "replay", "--shard", "wrong", "-o", "json"]).await;
    let unknown = tccctl(&server, &["audit", "replay", "--shard", "other"]).await;

    assert_eq!(right.status.code(), Some(0));
    assert_eq!(text(&right.stdout), "replay: ok accounts=1 postings=-1 findings=0\n");
    assert_eq!(text(&then.stdout), "replay: ok accounts=1 postings=60 findings=0\n");
    assert_eq!((wrong.status.code(), unknown.status.code()), (Some(3), Some(1)));
    let lines = json_lines(&wrong.stdout);
    assert_eq!(lines[0]["finding"]["kind"], "REPLAY_MISMATCH");
    assert_eq!(lines[1]["summary"]["findings"], "1");
}

#[tokio::test]
async fn status_is_one_object_for_scripts() {
    let server = serve(Prepared::default());

    let output = tccctl(&server, &["status", "-o", "json"]).await;

    let status = &json_lines(&output.stdout)[0];
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((&status["version"], &status["missed"]), (&Value::from("0.1.0"), &Value::from("7")));
}

/// A participant that says DONE to everything.
struct Obliging;

impl tcc_participant::serve::Served for Obliging {
    fn describe(&self) -> tcc_participant::wire::Description {
        tcc_participant::wire::Description::of("obliging", false)
    }

    fn answer(
        &self,
        _: tcc_participant::Step,
    ) -> std::pin::Pin<Box<dyn Future<Output = tcc_participant::Outcome> + Send + '_>> {
        Box::pin(std::future::ready(tcc_participant::Outcome::Done))
    }
}

#[tokio::test]
async fn participants_are_listed_and_decided_about_with_a_reason() {
    let server = serve(Prepared::default());
    let ask = async |words: &str| tccctl(&server, &words.split(' ').collect::<Vec<_>>()).await;

    let list = ask("participants list").await;
    let one = ask("participants describe seats -o json").await;
    let add = "participants add NAME https://a:1 --deadline-ms 1500 --requests 8 --reason why";
    let (new, known) = (ask(&add.replace("NAME", "new")).await, ask(&add.replace("NAME", "seats")).await);
    let drained = ask("participants drain seats --reason why").await;
    let (unsaid, used) =
        (ask("participants drain seats").await, ask("participants remove seats --reason why").await);

    assert!(text(&list.stdout).contains("gone         LEFT_ALONE"), "{}", text(&list.stdout));
    let seats = &json_lines(&one.stdout)[0];
    assert_eq!((&seats["may_veto"], &seats["clock_ahead_ms"]), (&true.into(), &"-1500".into()));
    let exits = [&new, &known, &drained, &unsaid, &used].map(|output| output.status.code());
    assert_eq!(exits, [Some(0), Some(1), Some(0), Some(2), Some(1)]);
    assert_eq!(ask("participants describe nobody").await.status.code(), Some(1));
}

#[tokio::test]
async fn a_participant_that_breaks_the_fence_table_exits_with_3_and_its_mistakes_are_named() {
    let running =
        tcc_participant::serve::start(std::sync::Arc::new(Obliging), "127.0.0.1:0", None).await.unwrap();
    let address = format!("http://{}", running.address);
    let verify = ["participants", "verify", &address, "--payload", "unit-%n", "--schedules", "1"];

    let table = tccctl("http://127.0.0.1:1", &verify).await;
    let json = tccctl("http://127.0.0.1:1", &[&verify[..], &["-o", "json"]].concat()).await;

    assert_eq!((table.status.code(), json.status.code()), (Some(3), Some(3)));
    let told = text(&table.stdout);
    assert!(told.contains("  schedule: Cancel A/0, then Try A/0\n"), "{told}");
    let report = &json_lines(&json.stdout)[0];
    assert_eq!((&report["participant"], &report["ok"]), (&"obliging".into(), &false.into()));
    let mistakes: Vec<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["mistake"].as_str().unwrap())
        .collect();
    assert_eq!(
        mistakes,
        [
            "LATE_TRY_SUCCEEDS",
            "OTHER_BODY_ACCEPTED",
            "CONFIRMED_AFTER_CANCEL",
            "CANCELLED_AFTER_CONFIRM",
            "WRONG_ANSWER"
        ]
    );
}
