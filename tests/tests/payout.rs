//! Payouts through an API that fails in every way: what the participant, its fences and the provider's own ledger say.

use prost::Message as _;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tcc_coordinator::dev::{Cluster, Options as ClusterOptions};
use tcc_core::{Operation, Outcome, Refusal, TransactionId};
use tcc_participant::wire::{read_outcome, write_call};
use tcc_payout::{config::Config, serve};
use tcc_proto::v1::{
    self, participant_service_client::ParticipantServiceClient, payout_service_client::PayoutServiceClient,
    settle_payout_request::Found,
};
use tcc_tests::{
    connect,
    process::Program,
    scrape,
    stub::{self, Faults, Stub},
    until,
};
use tempfile::TempDir;
use tonic::{Code, transport::Channel};

use Operation::{Cancel, Confirm, Try};

/// A database, a provider, and a configuration that says where both are.
struct Site {
    cluster: Cluster,
    stub: Stub,
    folder: TempDir,
}

const DAY: Duration = Duration::from_secs(24 * 3_600);

impl Site {
    async fn with(faults: Faults, key_memory: Duration) -> Self {
        let settings = ["fsync=off", "synchronous_commit=off"].map(str::to_owned).to_vec();
        let start = move || Cluster::start(&ClusterOptions { settings, ..ClusterOptions::default() });
        let cluster = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let stub = Stub::start(stub::Options {
            listen: "127.0.0.1:0".into(),
            ledger: folder.path().join("ledger"),
            key_memory,
            silence: Duration::from_millis(1_200),
            faults,
            seed: 7,
        })
        .await
        .unwrap();
        let address = format!("http://{}", stub.address);
        let text = stub::payout_config(folder.path(), &cluster.url(), &address, key_memory).unwrap();
        std::fs::write(folder.path().join("tcc-payout.toml"), text).unwrap();
        let site = Self { cluster, stub, folder };
        serve::start(&site.config()).await.unwrap().stop().await.unwrap();
        let sql = "INSERT INTO payout_recipient (recipient, currency, destination, blocked, most) VALUES
            ('ann', 'GOLD', 'acc-ann', false, NULL), ('bob', 'GOLD', 'closed-bob', false, NULL),
            ('cid', 'GOLD', 'acc-cid', true, NULL), ('dan', 'GOLD', 'acc-dan', false, 100),
            ('eve', 'SILVER', 'acc-eve', false, NULL)";
        site.sql().await.batch_execute(sql).await.unwrap();
        site
    }

    fn config(&self) -> Config {
        Config::load(&self.file()).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("tcc-payout.toml")
    }

    async fn sql(&self) -> tokio_postgres::Client {
        connect(&self.cluster.url()).await
    }

    /// A recipient's reserved and paid units.
    async fn recipient(&self, name: &str) -> (i64, i64) {
        let sql = "SELECT reserved, paid FROM payout_recipient WHERE recipient = $1";
        let row = self.sql().await.query_one(sql, &[&name]).await.unwrap();
        (row.get(0), row.get(1))
    }

    /// How often the provider has paid for a transaction, and how much.
    fn paid(&self, id: TransactionId) -> (usize, i64) {
        let books = self.stub.books().unwrap();
        let paid = books.paid.get(&id.to_string()).map_or(&[][..], Vec::as_slice);
        (paid.len(), paid.iter().map(|paid| paid.amount).sum())
    }
}

/// Speaks to the participant as the coordinator does, and to its operators' desk.
#[derive(Clone)]
struct Caller {
    client: ParticipantServiceClient<Channel>,
    desk: PayoutServiceClient<Channel>,
}

fn payload(recipient: &str, amount: i64) -> String {
    format!(r#"{{"recipient": "{recipient}", "amount": {amount}, "currency": "GOLD"}}"#)
}

fn new_id() -> TransactionId {
    TransactionId::from_uuid(uuid::Uuid::now_v7()).unwrap()
}

impl Caller {
    async fn to(address: &str) -> Self {
        let channel = Channel::from_shared(address.to_owned()).unwrap().connect_lazy();
        Self {
            client: ParticipantServiceClient::new(channel.clone()),
            desk: PayoutServiceClient::new(channel),
        }
    }

    /// One operation on a transaction of these branches, of which the first one is the payout.
    async fn ask_of(
        &self,
        operation: Operation,
        id: TransactionId,
        branches: Vec<v1::TransactionBranch>,
        pivot: u32,
    ) -> Outcome {
        let on_maturity = v1::OnMaturity::Confirm.into();
        let descriptor = v1::TransactionDescriptor { branches, pivot, on_maturity, ..Default::default() };
        let calls = vec![write_call(operation, id, 0, &descriptor.encode_to_vec())];
        let request = v1::CallRequest { participant: "payout".into(), calls };
        match self.client.clone().call(request).await {
            Ok(response) => read_outcome(response.into_inner().outcomes.into_iter().next().unwrap()),
            Err(status) => Outcome::Unknown(status.to_string()),
        }
    }

    async fn ask(&self, operation: Operation, id: TransactionId, recipient: &str, amount: i64) -> Outcome {
        let payload = payload(recipient, amount).into();
        let branch = v1::TransactionBranch { participant: "payout".into(), payload, ..Default::default() };
        self.ask_of(operation, id, vec![branch], 0).await
    }

    /// Again and again, until it is known.
    async fn until_known(
        &self,
        operation: Operation,
        id: TransactionId,
        recipient: &str,
        amount: i64,
    ) -> Outcome {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            match self.ask(operation, id, recipient, amount).await {
                Outcome::Unknown(why) | Outcome::Failed(why) => {
                    assert!(tokio::time::Instant::now() < deadline, "{operation:?} of {id}: {why}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                outcome => return outcome,
            }
        }
    }
}

fn address(payout: &serve::Payout) -> String {
    format!("http://{}", payout.running.address)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_paid_is_refused_and_reserves_nothing() {
    let site = Site::with(Faults::default(), DAY).await;
    let payout = serve::start(&site.config()).await.unwrap();
    let caller = Caller::to(&address(&payout)).await;

    for (recipient, amount, reason) in [
        ("nobody", 5, "RECIPIENT_NOT_FOUND"),
        ("cid", 5, "RECIPIENT_BLOCKED"),
        ("dan", 101, "RECIPIENT_LIMIT_EXCEEDED"),
        ("eve", 5, "CURRENCY_MISMATCH"),
        ("ann", 0, "PAYOUT_INVALID"),
        ("ann", 1_000_001, "PAYOUT_AMOUNT_OUT_OF_BOUNDS"),
    ] {
        let refused = caller.ask(Try, new_id(), recipient, amount).await;
        assert_eq!(refused, Outcome::Refused(Refusal::from_code(reason).unwrap()), "{recipient} {amount}");
    }
    let branch = |payload: &str| v1::TransactionBranch {
        participant: "payout".into(),
        payload: payload.into(),
        ..Default::default()
    };
    let garbage = caller.ask_of(Try, new_id(), vec![branch("{")], 0).await;
    assert_eq!(garbage, Outcome::Refused(Refusal::own("PAYOUT_INVALID")));
    let follower = caller.ask_of(Try, new_id(), vec![branch(&payload("ann", 5)); 2], 1).await;
    assert_eq!(follower, Outcome::Refused(Refusal::own("PAYOUT_NOT_THE_PIVOT")));

    assert_eq!(site.recipient("ann").await, (0, 0));
    assert_eq!(site.stub.books().unwrap().requests, 0);
    payout.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_transaction_credits_to_the_providers_account_is_paid_out() {
    let site = Site::with(Faults::default(), DAY).await;
    let config = Config { account: Some("provider".into()), ..site.config() };
    let payout = serve::start(&config).await.unwrap();
    let caller = Caller::to(&address(&payout)).await;
    let funded_with = |amount: i64, account: &str, currency: &str| {
        let call = v1::TransactionBranch {
            participant: "payout".into(),
            payload: payload("ann", 250).into(),
            ..Default::default()
        };
        let credit = v1::TransactionBranch {
            role: v1::BranchRole::Credit.into(),
            account: account.into(),
            amount,
            currency: currency.into(),
            ..Default::default()
        };
        vec![call, credit]
    };

    for (branches, is_funded) in [
        (funded_with(250, "provider", "GOLD"), true),
        (funded_with(1, "provider", "GOLD"), false),
        (funded_with(251, "provider", "GOLD"), false),
        (funded_with(250, "somebody", "GOLD"), false),
        (funded_with(250, "provider", "SILVER"), false),
    ] {
        let outcome = caller.ask_of(Try, new_id(), branches, 0).await;
        let refused = Outcome::Refused(Refusal::own("PAYOUT_NOT_FUNDED"));
        assert_eq!(outcome, if is_funded { Outcome::Done } else { refused });
    }
    payout.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payout_is_paid_once_and_a_refused_one_vetoed_for_good() {
    let site = Site::with(Faults::default(), DAY).await;
    let config = Config { telemetry: Some("127.0.0.1:0".into()), ..site.config() };
    let payout = serve::start(&config).await.unwrap();
    let caller = Caller::to(&address(&payout)).await;
    let (paid, refused) = (new_id(), new_id());

    assert_eq!(caller.ask(Try, paid, "ann", 250).await, Outcome::Done);
    assert_eq!(caller.ask(Try, refused, "bob", 250).await, Outcome::Done);
    assert_eq!((site.recipient("ann").await, site.paid(paid)), ((250, 0), (0, 0)));

    assert_eq!(caller.until_known(Confirm, paid, "ann", 250).await, Outcome::Done);
    let closed = Outcome::Vetoed(Refusal::own("PAYOUT_ACCOUNT_CLOSED"));
    assert_eq!(caller.until_known(Confirm, refused, "bob", 250).await, closed);

    assert_eq!((site.recipient("ann").await, site.paid(paid)), ((0, 250), (1, 250)));
    assert_eq!((site.recipient("bob").await, site.paid(refused)), ((0, 0), (0, 0)));
    assert_eq!(caller.ask(Cancel, paid, "ann", 250).await, Outcome::AlreadyConfirmed);
    assert_eq!(caller.ask(Cancel, refused, "bob", 250).await, Outcome::Done);
    assert_eq!(caller.ask(Confirm, refused, "bob", 250).await, closed, "a veto is sticky");
    let metrics = scrape(payout.running.telemetry.expect("metrics are served")).await;
    for (operation, met) in
        [("confirm", "done"), ("confirm", "vetoed"), ("cancel", "contradicted"), ("cancel", "again")]
    {
        let sample = format!("tcc_fence_answers_total{{operation=\"{operation}\",met=\"{met}\"}} 1\n");
        assert!(metrics.contains(&sample), "{sample}{metrics}");
    }
    payout.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_knows_a_cancel_is_answered_with_unknown_and_what_waits_in_line_can_be_cancelled() {
    let site = Site::with(Faults { failed: 100, ..Faults::default() }, DAY).await;
    let payout = serve::start(&site.config()).await.unwrap();
    let caller = Caller::to(&address(&payout)).await;
    let asked: Vec<TransactionId> = (0..40).map(|_| new_id()).collect();
    for id in &asked {
        assert_eq!(caller.ask(Try, *id, "ann", 1).await, Outcome::Done);
        assert!(matches!(caller.ask(Confirm, *id, "ann", 1).await, Outcome::Unknown(_)));
    }
    until("the provider is left alone", || async {
        let status = caller.desk.clone().get_payout_status(v1::GetPayoutStatusRequest {}).await.unwrap();
        !status.into_inner().held_up.is_empty()
    })
    .await;

    let (in_line, blocked) = (new_id(), new_id());
    assert_eq!(caller.ask(Try, in_line, "ann", 1).await, Outcome::Done);
    assert!(matches!(caller.ask(Confirm, in_line, "ann", 1).await, Outcome::Unknown(_)));
    assert_eq!(caller.ask(Try, blocked, "dan", 1).await, Outcome::Done);
    assert!(matches!(caller.ask(Confirm, blocked, "dan", 1).await, Outcome::Unknown(_)));
    let first = caller.ask(Cancel, asked[0], "ann", 1).await;
    assert!(matches!(first, Outcome::Unknown(_)), "{first:?}");
    assert_eq!(caller.ask(Cancel, in_line, "ann", 1).await, Outcome::Done, "nobody has asked for it yet");
    site.sql()
        .await
        .batch_execute("UPDATE payout_recipient SET blocked = true WHERE recipient = 'dan'")
        .await
        .unwrap();

    site.stub.set(Faults::default());
    for id in &asked {
        let outcome = caller.until_known(Confirm, *id, "ann", 1).await;
        assert_eq!((outcome, site.paid(*id)), (Outcome::Done, (1, 1)));
    }
    let vetoed = Outcome::Vetoed(Refusal::own("RECIPIENT_BLOCKED"));
    assert_eq!(
        caller.until_known(Confirm, blocked, "dan", 1).await,
        vetoed,
        "blocked before it was asked for"
    );
    assert_eq!((site.paid(in_line), site.paid(blocked)), ((0, 0), (0, 0)));
    payout.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_provider_does_each_payout_is_paid_once_or_vetoed() {
    let site = Site::with(Faults::ALL, DAY).await;
    let payout = serve::start(&site.config()).await.unwrap();
    let caller = Caller::to(&address(&payout)).await;

    let asking = (0..60_i64).map(|n| {
        let caller = caller.clone();
        tokio::spawn(async move {
            let id = new_id();
            assert_eq!(caller.ask(Try, id, "ann", n + 1).await, Outcome::Done);
            (id, n + 1, caller.until_known(Confirm, id, "ann", n + 1).await)
        })
    });
    let mut total = 0;
    for asked in futures::future::join_all(asking).await {
        let (id, amount, outcome) = asked.unwrap();
        match outcome {
            Outcome::Done => {
                assert_eq!(site.paid(id), (1, amount), "{id}");
                total += amount;
            }
            Outcome::Vetoed(_) => assert_eq!(site.paid(id), (0, 0), "{id}"),
            other => panic!("{id}: {other:?}"),
        }
    }

    let books = site.stub.books().unwrap();
    assert!(books.repeated > 0, "nothing was asked twice: that proves nothing");
    assert_eq!(books.asked_twice_without_same_key, 0);
    assert_eq!(site.recipient("ann").await, (0, total));
    payout.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_participant_dies_it_finds_out_by_itself_what_became_of_a_payout() {
    let site = Site::with(Faults::default(), DAY).await;
    let log = site.folder.path().join("tcc-payout.log");
    let file = site.file().display().to_string();
    let mut program = Program::start("tcc-payout", &["--config", &file], &log).await.unwrap();
    let mut deaths = 0;

    for point in ["lock_fences", "move_fences", "check", "tcc-participant committed"] {
        for nth in 1.. {
            program.kill().await.unwrap();
            program.crash_at(Some((point, nth)));
            program.restart().await.unwrap();
            let (caller, id) = (Caller::to(program.url()).await, new_id());
            let mut has_died = false;
            for operation in [Try, Confirm] {
                while !has_died {
                    match caller.ask(operation, id, "ann", 3).await {
                        Outcome::Done => break,
                        _ => has_died = program.has_ended().unwrap(),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            // One that lives is still armed.
            if !has_died {
                program.kill().await.unwrap();
            }
            program.crash_at(None);
            program.restart().await.unwrap();
            let caller = Caller::to(program.url()).await;
            // Nobody asks again whether it was asked for: the participant does, and who asks is told.
            let was_asked = site.sql().await;
            let sql = "SELECT FROM payout WHERE transaction_id = $1 AND state = 3";
            if !was_asked.query(sql, &[&id.uuid()]).await.unwrap().is_empty() {
                let sql = "SELECT FROM payout WHERE transaction_id = $1 AND state = 4";
                until("it has found out", || async {
                    !was_asked.query(sql, &[&id.uuid()]).await.unwrap().is_empty()
                })
                .await;
            }
            let tried = caller.until_known(Try, id, "ann", 3).await;
            assert!(matches!(tried, Outcome::Done | Outcome::AlreadyConfirmed), "{point} {nth}: {tried:?}");
            assert_eq!(caller.until_known(Confirm, id, "ann", 3).await, Outcome::Done, "{point} {nth}");
            assert_eq!(site.paid(id), (1, 3), "{point} {nth}");
            if !has_died {
                break;
            }
            deaths += 1;
        }
    }

    assert!(deaths >= 10, "it died {deaths} times: that proves little");
    assert_eq!(site.recipient("ann").await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_participants_on_one_database_one_asks_the_provider_and_the_other_goes_on_after_it() {
    let site = Site::with(Faults::default(), DAY).await;
    let log = site.folder.path().join("tcc-payout.log");
    let file = site.file().display().to_string();
    let mut first = Program::start("tcc-payout", &["--config", &file], &log).await.unwrap();
    let second = Program::start("tcc-payout", &["--config", &file], &log).await.unwrap();
    let (caller, id) = (Caller::to(second.url()).await, new_id());
    let before = new_id();
    assert_eq!(caller.ask(Try, before, "ann", 2).await, Outcome::Done);
    assert_eq!(caller.until_known(Confirm, before, "ann", 2).await, Outcome::Done);

    first.kill().await.unwrap();
    assert_eq!(caller.ask(Try, id, "ann", 2).await, Outcome::Done);
    let outcome = caller.until_known(Confirm, id, "ann", 2).await;

    assert_eq!(outcome, Outcome::Done);
    assert_eq!((site.paid(before), site.paid(id)), ((1, 2), (1, 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_has_found_out_is_written_down_once() {
    let site = Site::with(Faults { failed: 100, ..Faults::default() }, DAY).await;
    let payout = serve::start(&site.config()).await.unwrap();
    let caller = Caller::to(&address(&payout)).await;
    let (id, reserved) = (new_id(), new_id());
    assert_eq!(caller.ask(Try, reserved, "ann", 5).await, Outcome::Done);
    assert_eq!(caller.ask(Try, id, "ann", 7).await, Outcome::Done);
    assert!(matches!(caller.ask(Confirm, id, "ann", 7).await, Outcome::Unknown(_)));
    let desk = Arc::new(tokio::sync::Mutex::new(caller.desk.clone()));
    let settle = async |id: TransactionId, found: Found| {
        let (transaction_id, reason) = (id.to_string(), "the bank said so".into());
        let request = v1::SettlePayoutRequest { transaction_id, branch: 0, found: Some(found), reason };
        desk.lock().await.settle_payout(request).await
    };
    let never = || Found::Never("BANK_SAYS_NO".into());
    until("it is settled", || async {
        match settle(id, never()).await {
            Ok(_) => true,
            Err(status) => {
                // It was not asked for yet, or is being asked for just now.
                assert!(matches!(status.code(), Code::Unavailable | Code::FailedPrecondition), "{status}");
                false
            }
        }
    })
    .await;

    let settled = settle(id, never()).await.unwrap().into_inner().payout.unwrap();
    assert_eq!(settled.remark, "BANK_SAYS_NO");
    assert_eq!(settled.settled_by, "somebody: the bank said so");
    assert_eq!(settle(id, Found::Paid("x".into())).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(settle(reserved, never()).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(settle(new_id(), never()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(settle(reserved, Found::Never("no".into())).await.unwrap_err().code(), Code::InvalidArgument);

    site.stub.set(Faults::default());
    let vetoed = Outcome::Vetoed(Refusal::own("BANK_SAYS_NO"));
    assert_eq!(caller.until_known(Confirm, id, "ann", 7).await, vetoed);
    assert_eq!((site.paid(id), site.recipient("ann").await), ((0, 0), (5, 0)));
    payout.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_no_log_and_in_no_answer() {
    let site = Site::with(Faults { failed: 100, ..Faults::default() }, DAY).await;
    let secret = "stub-token-that-nobody-knows";
    std::fs::write(site.folder.path().join("token"), secret).unwrap();
    let log = site.folder.path().join("tcc-payout.log");
    let file = site.file().display().to_string();
    let program = Program::start("tcc-payout", &["--config", &file], &log).await.unwrap();
    let (caller, id) = (Caller::to(program.url()).await, new_id());
    assert_eq!(caller.ask(Try, id, "ann", 7).await, Outcome::Done);
    let answer = caller.ask(Confirm, id, "ann", 7).await;
    let sql = site.sql().await;
    until("it is asked for", || async {
        !sql.query("SELECT FROM payout WHERE remark LIKE '%401%'", &[]).await.unwrap().is_empty()
    })
    .await;

    let remark: String = sql.query_one("SELECT remark FROM payout", &[]).await.unwrap().get(0);
    let log = std::fs::read_to_string(&log).unwrap();

    assert!(!format!("{log} {remark} {answer:?}").contains(secret));
    assert!(!format!("{:?}", site.config()).contains(secret));
}
