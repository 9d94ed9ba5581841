//! The payment hold of coordinator/docs/payouts.md: captured to escrow, scored, released at its date, and paid out by somebody
//! else's API; or refused, cancelled, or refunded.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tcc_coordinator::config::ParticipantConfig;
use tcc_participant::serve::Running;
use tcc_payout::{
    risk::{self, RiskConfig},
    serve,
};
use tcc_proto::v1::{
    self, Cause, Phase, transaction_part::Part, transaction_service_client::TransactionServiceClient,
};
use tcc_tests::{
    Coordinator, System, amount, connect, detail, new_id,
    process::find_program,
    reason,
    stub::{self, Faults, Stub},
    time, until,
};
use tonic::{Status, transport::Channel};

/// A coordinator with two shards, a risk check and payouts, and the provider behind them.
struct Site {
    system: System,
    coordinator: Coordinator,
    client: TransactionServiceClient<Channel>,
    stub: Stub,
    _payout: serve::Payout,
    _risk: Running,
    _folder: tempfile::TempDir,
}

const ESCROWED: i64 = 10_000;
const PROVIDER: &str = "provider-acme";

impl Site {
    async fn start() -> Self {
        let mut system = System::start().await;
        let url = |name: &str| system.cluster.url().replace("dbname=postgres", &format!("dbname={name}"));
        let admin = connect(&system.cluster.url()).await;
        for name in ["payout", "risk"] {
            admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(24 * 3_600);
        let stub = Stub::start(stub::Options {
            listen: "127.0.0.1:0".into(),
            ledger: folder.path().join("ledger"),
            key_memory: day,
            silence: Duration::from_millis(1_200),
            faults: Faults::default(),
            seed: 1,
        })
        .await
        .unwrap();
        let address = format!("http://{}", stub.address);
        let text = stub::payout_config(folder.path(), &url("payout"), &address, day).unwrap();
        let mut config: tcc_payout::config::Config = toml::from_str(&text).unwrap();
        config.account = Some(PROVIDER.into());
        let payout = serve::start(&config).await.unwrap();
        let sql = "INSERT INTO payout_recipient (recipient, currency, destination) VALUES
            ('ann', 'GOLD', 'acc-ann'), ('bob', 'GOLD', 'closed-bob')";
        connect(&url("payout")).await.batch_execute(sql).await.unwrap();
        let text = format!(
            "listen = '127.0.0.1:0'\ndatabase = '''{}'''\nrefuse_above = 100\n
             [[rules]]\nat = '/amount'\nabove = 5000\nscore = 101\nreason = 'RISK_LARGE_AMOUNT'",
            url("risk")
        );
        let risk = risk::start(&toml::from_str::<RiskConfig>(&text).unwrap()).await.unwrap();

        let payouts = format!("http://{}", payout.running.address);
        system.config.participants = vec![
            ParticipantConfig { may_veto: true, ..ParticipantConfig::new("payout", &payouts) },
            ParticipantConfig::new("risk", &format!("http://{}", risk.address)),
        ];
        let coordinator = system.coordinator().await;
        let mut accounts = coordinator.client.clone();
        accounts.account("buyer", ESCROWED).await;
        accounts.account(PROVIDER, 0).await;
        let url = format!("http://{}", coordinator.running.address);
        let client = TransactionServiceClient::connect(url).await.unwrap();
        Self { system, coordinator, client, stub, _payout: payout, _risk: risk, _folder: folder }
    }

    /// A payment hold, to be released so long from now.
    async fn hold(
        &self,
        id: &str,
        recipient: &str,
        units: i64,
        release_in: SignedDuration,
    ) -> Result<v1::Transaction, Status> {
        let entry = |account: &str| v1::LedgerEntry { account: account.into(), amount: Some(amount(units)) };
        let call = |participant: &str| v1::ParticipantCall {
            participant: participant.into(),
            payload: format!(r#"{{"recipient": "{recipient}", "amount": {units}, "currency": "GOLD"}}"#)
                .into(),
            ..Default::default()
        };
        let branches = [
            Part::Debit(entry("buyer")),
            Part::Credit(entry(PROVIDER)),
            Part::Call(call("risk")),
            Part::Call(call("payout")),
        ];
        let request = v1::CreateTransactionRequest {
            id: id.into(),
            branches: branches.map(|part| v1::TransactionPart { part: Some(part) }).into(),
            pivot: Some(3),
            due_at: Some(time(Timestamp::now() + release_in)),
            on_maturity: v1::OnMaturity::Confirm.into(),
            ..Default::default()
        };
        let created = retried(async || self.client.clone().create_transaction(request.clone()).await).await?;
        Ok(created.into_inner().transaction.unwrap())
    }

    async fn transaction(&self, id: &str) -> v1::Transaction {
        let found = self.client.clone().get_transaction(v1::GetTransactionRequest { id: id.into() }).await;
        found.unwrap().into_inner().transaction.unwrap()
    }

    async fn until_final(&self, id: &str) -> v1::Transaction {
        until("it is final", || async {
            matches!(self.transaction(id).await.phase(), Phase::Confirmed | Phase::Cancelled)
        })
        .await;
        self.transaction(id).await
    }

    /// Available and held of the buyer, and what the provider's account has.
    async fn balances(&self) -> (i64, i64, i64) {
        let mut client = self.coordinator.client.clone();
        let (available, held) = client.balances("buyer").await;
        (available, held, client.balances(PROVIDER).await.0)
    }

    fn paid(&self, id: &str) -> i64 {
        let books = self.stub.books().unwrap();
        books.paid.get(id).into_iter().flatten().map(|paid| paid.amount).sum()
    }

    /// What an operator sees.
    async fn described(&self, id: &str) -> String {
        let server = format!("http://{}", self.coordinator.running.address);
        let output = tokio::process::Command::new(find_program("tccctl").unwrap())
            .args(["--server", &server, "holds", "describe", id])
            .output()
            .await
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

/// Until the participants have been reached for the first time.
async fn retried<T>(ask: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match ask().await {
            Err(status)
                if status.code() == tonic::Code::Unavailable && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            answer => return answer,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_captured_is_released_at_its_date_and_paid_out_once() {
    let site = Site::start().await;
    let id = new_id();

    let held = site.hold(&id, "ann", 250, SignedDuration::from_secs(2)).await.unwrap();
    assert_eq!(held.phase(), Phase::Held);
    assert_eq!((site.balances().await, site.paid(&id)), ((ESCROWED - 250, 250, 0), 0));
    let described = site.described(&id).await;
    let ended = site.until_final(&id).await;

    assert_eq!((ended.phase(), ended.cause()), (Phase::Confirmed, Cause::Matured));
    assert_eq!((site.balances().await, site.paid(&id)), ((ESCROWED - 250, 0, 250), 250));
    for part in ["buyer", PROVIDER, "risk", "payout"] {
        assert!(described.contains(part), "{part} is not in:\n{described}");
    }
    site.coordinator.client.clone().audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_risky_is_refused_before_anything_is_held_and_the_client_is_told_why() {
    let site = Site::start().await;
    let id = new_id();

    let refused = site.hold(&id, "ann", 5_001, SignedDuration::from_hours(1)).await.unwrap_err();

    assert_eq!(reason(&refused), "PARTICIPANT_REFUSED", "{refused:?}");
    assert_eq!(detail(&refused, "refusal").as_deref(), Some("RISK_LARGE_AMOUNT"), "{refused:?}");
    assert_eq!(site.until_final(&id).await.reason, "RISK_LARGE_AMOUNT");
    assert_eq!(site.balances().await, (ESCROWED, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_blocked_before_the_release_is_not_paid_and_the_buyer_is_refunded() {
    let site = Site::start().await;
    let id = new_id();
    site.hold(&id, "ann", 250, SignedDuration::from_secs(2)).await.unwrap();

    let url = site.system.cluster.url().replace("dbname=postgres", "dbname=payout");
    let block = "UPDATE payout_recipient SET blocked = true WHERE recipient = 'ann'";
    connect(&url).await.batch_execute(block).await.unwrap();
    let ended = site.until_final(&id).await;

    assert_eq!((ended.phase(), ended.cause()), (Phase::Cancelled, Cause::Vetoed));
    assert_eq!(ended.reason, "RECIPIENT_BLOCKED");
    assert_eq!((site.balances().await, site.paid(&id)), ((ESCROWED, 0, 0), 0));
    let described = site.described(&id).await;
    assert!(described.contains("RECIPIENT_BLOCKED"), "{described}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_provider_refuses_for_good_is_refunded() {
    let site = Site::start().await;
    let id = new_id();
    site.hold(&id, "bob", 250, SignedDuration::from_secs(1)).await.unwrap();

    let ended = site.until_final(&id).await;

    assert_eq!((ended.cause(), ended.reason.as_str()), (Cause::Vetoed, "PAYOUT_ACCOUNT_CLOSED"));
    assert_eq!((site.balances().await, site.paid(&id)), ((ESCROWED, 0, 0), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_before_its_date_is_released_and_not_paid_out() {
    let site = Site::start().await;
    let id = new_id();
    site.hold(&id, "ann", 250, SignedDuration::from_hours(1)).await.unwrap();

    let request = v1::CancelTransactionRequest { id: id.clone(), ..Default::default() };
    site.client.clone().cancel_transaction(request).await.unwrap();
    let ended = site.until_final(&id).await;

    assert_eq!((ended.phase(), ended.cause()), (Phase::Cancelled, Cause::Requested));
    assert_eq!((site.balances().await, site.paid(&id)), ((ESCROWED, 0, 0), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_provider_is_a_backlog_and_nothing_parks() {
    let site = Site::start().await;
    site.stub.set(Faults { failed: 100, ..Faults::default() });
    let ids: Vec<String> = (0..40).map(|_| new_id()).collect();
    for id in &ids {
        site.hold(id, "ann", 10, SignedDuration::from_secs(1)).await.unwrap();
    }
    until("all are due and being confirmed", || async {
        let mut due = 0;
        for id in &ids {
            due += usize::from(site.transaction(id).await.attention() == v1::Attention::Retrying);
        }
        due == ids.len()
    })
    .await;

    site.stub.set(Faults::default());

    for id in &ids {
        let ended = site.until_final(id).await;
        assert_eq!((ended.phase(), site.paid(id)), (Phase::Confirmed, 10));
    }
    assert_eq!(site.balances().await, (ESCROWED - 400, 0, 400));
}
