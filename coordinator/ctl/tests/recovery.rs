//! What `tccctl` makes of a server's answers about single transactions: the binary against a server that gives prepared ones.

use serde_json::Value;
use std::{pin::Pin, process::Output, time::Duration};
use tcc_proto::v1::{
    self, Attention, OperatorActionKind, Phase,
    execute_plan_response::Event,
    recovery_service_server::{RecoveryService, RecoveryServiceServer},
};
use tokio::process::Command;
use tonic::{
    Code, Request, Response, Status,
    codegen::tokio_stream::{self, Stream},
    transport::{Server, server::TcpIncoming},
};
use tonic_types::{ErrorDetails, StatusExt as _};

const ID: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d";
const PLAN: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5e";

/// Answers the same to everybody; `forced` plans are by force, and of two transactions one had `changed`.
struct Prepared {
    action: OperatorActionKind,
    changed: i32,
}

fn gold(value: i64) -> Option<v1::Amount> {
    Some(v1::Amount { value, currency: "GOLD".into() })
}

impl Prepared {
    fn plan(&self) -> v1::Plan {
        v1::Plan {
            id: PLAN.into(),
            action: self.action.into(),
            transactions: 2,
            amounts: gold(150).into_iter().collect(),
            done: 2 - self.changed,
            changed: self.changed,
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl RecoveryService for Prepared {
    type ExecutePlanStream = Pin<Box<dyn Stream<Item = Result<v1::ExecutePlanResponse, Status>> + Send>>;

    async fn drain_instance(
        &self,
        _: Request<v1::DrainInstanceRequest>,
    ) -> Result<Response<v1::DrainInstanceResponse>, Status> {
        Ok(Response::new(v1::DrainInstanceResponse {}))
    }

    async fn list_attention(
        &self,
        request: Request<v1::ListAttentionRequest>,
    ) -> Result<Response<v1::ListAttentionResponse>, Status> {
        if request.get_ref().error_contains == "none" {
            return Ok(Response::new(Default::default()));
        }
        let item = |id: &str| v1::AttentionItem {
            hold: Some(v1::Hold {
                id: id.into(),
                phase: Phase::Held.into(),
                attention: Attention::Parked.into(),
                amount: gold(75),
                ..Default::default()
            }),
            attempts: 50,
            last_error: "no \"13\" here".into(),
            ..Default::default()
        };
        Ok(Response::new(v1::ListAttentionResponse {
            items: vec![item(ID), item(PLAN)],
            ..Default::default()
        }))
    }

    async fn describe_hold(
        &self,
        _: Request<v1::DescribeHoldRequest>,
    ) -> Result<Response<v1::DescribeHoldResponse>, Status> {
        let details = ErrorDetails::with_error_info("HOLD_NOT_FOUND", "tcc", []);
        Err(Status::with_error_details(Code::NotFound, "there is no such hold", details))
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActResponse>, Status> {
        let by = request.metadata().get("tcc-caller").and_then(|by| by.to_str().ok()).unwrap_or_default();
        // Who asked and why, where it can be seen.
        let (payer, payee) = (by.to_owned(), request.get_ref().reason.clone());
        let hold = v1::Hold { id: request.get_ref().id.clone(), payer, payee, ..Default::default() };
        Ok(Response::new(v1::ActResponse { hold: Some(hold) }))
    }

    async fn create_plan(
        &self,
        _: Request<v1::CreatePlanRequest>,
    ) -> Result<Response<v1::CreatePlanResponse>, Status> {
        let plan = v1::Plan { done: 0, changed: 0, ..self.plan() };
        Ok(Response::new(v1::CreatePlanResponse { plan: Some(plan) }))
    }

    async fn get_plan(
        &self,
        _: Request<v1::GetPlanRequest>,
    ) -> Result<Response<v1::GetPlanResponse>, Status> {
        Ok(Response::new(v1::GetPlanResponse { plan: Some(self.plan()), items: Vec::new() }))
    }

    async fn list_plans(
        &self,
        _: Request<v1::ListPlansRequest>,
    ) -> Result<Response<v1::ListPlansResponse>, Status> {
        Ok(Response::new(v1::ListPlansResponse { plans: vec![self.plan()] }))
    }

    async fn execute_plan(
        &self,
        _: Request<v1::ExecutePlanRequest>,
    ) -> Result<Response<Self::ExecutePlanStream>, Status> {
        let item = v1::PlanItem { id: ID.into(), outcome: "done".into(), ..Default::default() };
        let events = [Event::Item(item), Event::Plan(self.plan())];
        let events = events.map(|event| Ok(v1::ExecutePlanResponse { event: Some(event) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    async fn list_actions(
        &self,
        request: Request<v1::ListActionsRequest>,
    ) -> Result<Response<v1::ListActionsResponse>, Status> {
        let (after, last) = (request.get_ref().after_number, 2_500);
        let upto = last.min(after + i64::from(request.get_ref().page_size));
        let action = |number| v1::OperatorAction { number, action: "pause".into(), ..Default::default() };
        let next_after_number = if upto < last { upto } else { 0 };
        let actions = (after + 1..=upto).map(action).collect();
        Ok(Response::new(v1::ListActionsResponse { actions, next_after_number }))
    }

    async fn list_instances(
        &self,
        _: Request<v1::ListInstancesRequest>,
    ) -> Result<Response<v1::ListInstancesResponse>, Status> {
        let instance = v1::Instance { id: ID.into(), alive: true, slots: 256, ..Default::default() };
        Ok(Response::new(v1::ListInstancesResponse { instances: vec![instance] }))
    }

    async fn drain_shard(
        &self,
        _: Request<v1::DrainShardRequest>,
    ) -> Result<Response<v1::DrainShardResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

fn serve(action: OperatorActionKind, changed: i32) -> String {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", incoming.local_addr().unwrap());
    let service = RecoveryServiceServer::new(Prepared { action, changed });
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    url
}

/// Runs the binary without a terminal, and bounds it: a test must not hang.
async fn tccctl(server: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tccctl"));
    let command = command
        .arg("--server")
        .arg(server)
        .args(args)
        .env("USER", "carol")
        .env("CI", "true")
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(30), command.output()).await.expect("tccctl ends").unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_list_is_printed_in_every_style() {
    let server = serve(OperatorActionKind::Requeue, 0);
    let printed = |style: &'static str| {
        let server = server.clone();
        async move { tccctl(&server, &["parked", "list", "-o", style]).await.stdout }
    };

    let (table, wide) = (printed("table").await, printed("wide").await);
    let (json, jsonl) = (printed("json").await, printed("jsonl").await);
    let (yaml, name) = (printed("yaml").await, printed("name").await);

    assert_eq!(text(&table).lines().count(), 3);
    assert!(text(&table).starts_with("HOLD ") && !text(&table).contains("PAYER"));
    assert!(text(&wide).contains("PAYER"));
    let json: Value = serde_json::from_slice(&json).unwrap();
    let lines: Vec<Value> = text(&jsonl).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json["items"].as_array().unwrap(), &lines);
    assert_eq!((lines[0]["hold"]["amount"]["value"].as_str(), lines.len()), (Some("75"), 2));
    assert!(text(&yaml).starts_with(&format!("items:\n  - hold:\n      id: \"{ID}\"\n")), "{}", text(&yaml));
    assert!(text(&yaml).contains(r#"last_error: "no \"13\" here""#));
    assert_eq!(text(&name), format!("{ID}\n{PLAN}\n"));
}

#[tokio::test]
async fn an_error_is_printed_in_the_style_that_was_asked_for() {
    let server = serve(OperatorActionKind::Requeue, 0);

    let table = tccctl(&server, &["holds", "describe", ID]).await;
    let json = tccctl(&server, &["holds", "describe", ID, "-o", "jsonl"]).await;
    let yaml = tccctl(&server, &["holds", "describe", ID, "-o", "yaml"]).await;

    assert_eq!(text(&table.stderr), "tccctl: there is no such hold (HOLD_NOT_FOUND)\n");
    let json: Value = serde_json::from_slice(&json.stderr).unwrap();
    assert_eq!(json["error"]["reason"], "HOLD_NOT_FOUND");
    let expected = "error:\n  code: \"NOT_FOUND\"\n  reason: \"HOLD_NOT_FOUND\"\n  message: ";
    assert!(text(&yaml.stderr).starts_with(expected), "{}", text(&yaml.stderr));
    assert_eq!((table.status.code(), yaml.status.code()), (Some(1), Some(1)));
}

#[tokio::test]
async fn an_action_needs_a_reason_and_says_who_asks() {
    let server = serve(OperatorActionKind::Requeue, 0);

    let without = tccctl(&server, &["holds", "pause", ID]).await;
    let blank = tccctl(&server, &["holds", "pause", ID, "--reason", " "]).await;
    let done = tccctl(&server, &["holds", "pause", ID, "--reason", "a disk", "-o", "json"]).await;

    assert_eq!((without.status.code(), blank.status.code(), done.status.code()), (Some(2), Some(2), Some(0)));
    let hold: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((hold["payer"].as_str(), hold["payee"].as_str()), (Some("carol"), Some("a disk")));
}

#[tokio::test]
async fn several_transactions_and_force_become_a_plan_first() {
    let server = serve(OperatorActionKind::Requeue, 0);
    for args in [
        &["parked", "requeue", ID, PLAN][..],
        &["parked", "requeue", "--attention", "parked"],
        &["holds", "force-cancel", ID],
    ] {
        let output = tccctl(&server, args).await;

        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(text(&output.stdout).starts_with("plan "), "{output:?}");
        let advice = format!("nothing has been done. Do it with: tccctl plan execute {PLAN} --reason REASON");
        assert!(text(&output.stderr).contains(&advice), "{output:?}");
    }
}

#[tokio::test]
async fn a_plan_is_executed_only_if_somebody_says_yes_and_nobody_says_yes_to_force_for_another() {
    let execute = ["plan", "execute", PLAN, "--reason", "r"];
    let (mild, forced) = (serve(OperatorActionKind::Requeue, 0), serve(OperatorActionKind::ForceCancel, 0));
    let yes = [&execute[..], &["--yes"]].concat();

    let asked = tccctl(&mild, &execute).await;
    let done = tccctl(&mild, &yes).await;
    let force = tccctl(&forced, &yes).await;

    assert_eq!((asked.status.code(), done.status.code(), force.status.code()), (Some(9), Some(0), Some(9)));
    assert!(text(&force.stderr).contains("--yes does not cover it"), "{force:?}");
    assert!(force.stdout.is_empty() && asked.stdout.is_empty());
}

#[tokio::test]
async fn a_plan_that_was_done_in_part_exits_with_8() {
    let server = serve(OperatorActionKind::Requeue, 1);

    let output = tccctl(&server, &["plan", "execute", PLAN, "--reason", "r", "--yes"]).await;

    assert_eq!(output.status.code(), Some(8));
    assert!(
        text(&output.stderr).contains("done 1, changed since the plan 1, refused or failed 0"),
        "{output:?}"
    );
}

#[tokio::test]
async fn the_record_is_listed_up_to_a_limit_and_exported_whole() {
    let server = serve(OperatorActionKind::Requeue, 0);

    let list = tccctl(&server, &["actions", "list", "--limit", "1200", "--after", "7"]).await;
    let export = tccctl(&server, &["actions", "export"]).await;

    assert_eq!(text(&list.stdout).lines().count(), 1 + 1_200);
    assert_eq!(text(&list.stderr), "tccctl: there are more: go on with --after 1207\n");
    let lines: Vec<Value> =
        text(&export.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), lines[2_499]["number"].as_str()), (2_500, Some("2500")));
}

#[tokio::test]
async fn a_check_exits_with_3_only_if_it_finds_something_and_was_asked_for_a_code() {
    let server = serve(OperatorActionKind::Requeue, 0);
    let list = ["parked", "list"];

    let found = tccctl(&server, &[&list[..], &["--exit-code"]].concat()).await;
    let unasked = tccctl(&server, &list).await;
    let empty = tccctl(&server, &[&list[..], &["--exit-code", "--error-contains", "none"]].concat()).await;

    assert_eq!(
        (found.status.code(), unasked.status.code(), empty.status.code()),
        (Some(3), Some(0), Some(0))
    );
    assert_eq!(text(&empty.stderr), "tccctl: nothing needs attention\n");
}
