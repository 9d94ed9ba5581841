//! `tccctl payout …` against a participant that gives prepared answers.

use std::process::Output;
use tcc_proto::v1::{
    self, PayoutState,
    payout_service_server::{PayoutService, PayoutServiceServer},
};
use tokio::process::Command;
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream,
    transport::{Server, server::TcpIncoming},
};

const ID: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d";
const OTHER: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5e";

struct Prepared;

fn payout(id: &str, state: PayoutState) -> v1::Payout {
    v1::Payout {
        transaction_id: id.into(),
        branch: 3,
        key: format!("{id}-3-confirm"),
        recipient: "ann".into(),
        amount: 1_250,
        currency: "EUR".into(),
        state: state.into(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl PayoutService for Prepared {
    async fn get_payout_status(
        &self,
        _: Request<v1::GetPayoutStatusRequest>,
    ) -> Result<Response<v1::GetPayoutStatusResponse>, Status> {
        let held_up = "the provider does not answer; it is tried again by itself".into();
        let status = v1::GetPayoutStatusResponse { in_line: 1_200, asked: 3, held_up, ..Default::default() };
        Ok(Response::new(status))
    }

    type ListPayoutsStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::ListPayoutsResponse, Status>> + Send>>;

    async fn list_payouts(
        &self,
        _: Request<v1::ListPayoutsRequest>,
    ) -> Result<Response<Self::ListPayoutsStream>, Status> {
        let payouts = [payout(ID, PayoutState::Paid), payout(OTHER, PayoutState::Asked)];
        let messages = payouts.map(|payout| Ok(v1::ListPayoutsResponse { payout: Some(payout) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn settle_payout(
        &self,
        request: Request<v1::SettlePayoutRequest>,
    ) -> Result<Response<v1::SettlePayoutResponse>, Status> {
        let v1::SettlePayoutRequest { transaction_id, branch, found, .. } = request.into_inner();
        match found {
            Some(v1::settle_payout_request::Found::Paid(reference)) if branch == 3 => {
                let payout = v1::Payout { reference, ..payout(&transaction_id, PayoutState::Paid) };
                Ok(Response::new(v1::SettlePayoutResponse { payout: Some(payout) }))
            }
            _ => Err(Status::failed_precondition("it is PAYOUT_STATE_PAID, which is final")),
        }
    }
}

async fn run(arguments: &[&str]) -> (i32, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = Server::builder()
        .add_service(PayoutServiceServer::new(Prepared))
        .serve_with_incoming(TcpIncoming::from(listener));
    let server = tokio::spawn(serving);
    let output: Output = Command::new(env!("CARGO_BIN_EXE_tccctl"))
        .arg("payout")
        .args(arguments)
        .args(["--participant", &address])
        .output()
        .await
        .unwrap();
    server.abort();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

async fn reconcile(statement: &str, more: &[&str]) -> (i32, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), statement).unwrap();
    let path = file.path().display().to_string();
    run(&[&["reconcile", &path, "--decimals", "2"], more].concat()).await
}

#[tokio::test]
async fn a_statement_that_agrees_is_no_finding() {
    let statement = format!(
        "\u{feff}key, amount, currency, status\n\"{ID}-3-confirm\", 12.50, EUR, ok\nx,1,EUR,failed\n"
    );

    let (exit, text) = reconcile(&statement, &["--paid-if", "status=ok"]).await;

    assert_eq!(exit, 0, "{text}");
    assert!(text.contains("differences=0 agreed=1 open=1"), "{text}");
}

#[tokio::test]
async fn each_difference_is_told_with_what_to_run_and_the_exit_code_says_so() {
    let statement =
        format!("key,amount,currency,id\n{OTHER}-3-confirm,12.50,EUR,po_7\nstranger,1.00,EUR,po_8\n");

    let (exit, text) = reconcile(&statement, &[]).await;

    assert_eq!(exit, 3, "{text}");
    for expected in [
        "MISSING",
        &format!("tccctl holds describe {ID}"),
        &format!("tccctl payout settle {OTHER} --branch 3 --reason 'in the statement' --paid po_7"),
        "tccctl payout list | grep -F -- stranger",
        "differences=3 agreed=0",
    ] {
        assert!(text.contains(expected), "{expected} is not in:\n{text}");
    }
}

#[tokio::test]
async fn a_statement_that_cannot_be_read_to_the_unit_is_not_compared() {
    for (statement, expected) in [
        ("key,amount\nx,1\n", "no column \"currency\""),
        ("key,amount,currency\nx,1.005,EUR\n", "line 2: \"1.005\" is no amount with 2 decimals"),
        ("key,amount,currency\nx,1\n", "found record with 2 fields"),
        ("", "no column"),
    ] {
        let (exit, text) = reconcile(statement, &[]).await;

        assert_eq!(exit, 2, "{text}");
        assert!(text.contains(expected), "{expected} is not in:\n{text}");
    }
}

#[tokio::test]
async fn the_line_is_shown_and_what_was_found_out_is_written_down() {
    let (exit, status) = run(&["status"]).await;
    assert!(exit == 0 && status.contains("1200") && status.contains("does not answer"), "{status}");

    let (exit, open) = run(&["list", "--open"]).await;
    assert!(exit == 0 && open.contains(OTHER) && !open.contains(ID), "{open}");

    let (exit, settled) =
        run(&["settle", OTHER, "--branch", "3", "--paid", "po_7", "--reason", "the bank said so"]).await;
    assert!(exit == 0 && settled.contains("po_7"), "{settled}");
    let (exit, refused) =
        run(&["settle", OTHER, "--never", "BANK_SAYS_NO", "--reason", "the bank said so"]).await;
    assert!(exit == 1 && refused.contains("final"), "{refused}");
}
