//! How many transactions a caller may have open: what is refused when there are so many, what is not, and that the count is
//! that of the rows, whatever dies.

use jiff::SignedDuration;
use std::{fs, time::Duration};
use tcc_coordinator::config::Traffic;
use tcc_proto::{
    Reason,
    v1::{self, batch_create_holds_outcome::Outcome, hold_service_client::HoldServiceClient},
};
use tcc_tests::{
    Client, Coordinator, System, alice_and_bob, amount,
    both::{Asked, Both},
    hold, hold_due_in, new_id,
    parties::{credit, debit, due_in},
    process::Tccd,
    reason,
    secure::{self, Caller, Known},
    until,
};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

/// Whose quota it is about.
const SHOP: &str = "shop";

/// A system in which each caller may have so many transactions open.
async fn system(quota: u32) -> System {
    let mut system = System::start().await;
    system.config.traffic = Traffic { caller_open_transactions: quota, ..Traffic::default() };
    system
}

/// A request that a caller sends to a server that believes everybody.
fn by<T>(caller: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("tcc-caller", caller.parse().expect("ASCII"));
    request
}

async fn create(
    client: &mut Client,
    caller: &str,
    request: &v1::CreateHoldRequest,
) -> Result<v1::CreateHoldResponse, Status> {
    Ok(client.holds.create_hold(by(caller, request.clone())).await?.into_inner())
}

/// As many as the database says are open in the quota of `SHOP`, by its count and by its rows.
async fn open(system: &System) -> (i64, i64) {
    let row = system
        .sql()
        .await
        .query_one(
            "SELECT (SELECT coalesce(sum(open), 0)::int8 FROM open_count WHERE caller = $1),
                    (SELECT count(*) FROM transaction WHERE counted_for = $1 AND phase NOT IN (4, 6))",
            &[&SHOP],
        )
        .await
        .expect("the tables are there");
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_refuses_over_grpc_and_http_until_something_is_final() {
    let system = system(2).await;
    let Coordinator { running, mut client } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let mut shop = Both::to(running.address).await.with("tcc-caller", SHOP);
    let held: Vec<v1::CreateHoldRequest> = (0..2).map(|_| hold(&alice, &bob, 10)).collect();
    for request in &held {
        create(&mut client, SHOP, request).await.expect("there is room for two");
    }

    let one_more = Asked::new("HoldService/CreateHold", &hold(&alice, &bob, 10));
    let refused = shop.refuses(&one_more, Reason::OpenQuotaReached, None, &["quota"]).await;

    let quota = refused.status.get_details_quota_failure().expect("details").violations;
    assert_eq!(quota[0].subject, "caller:shop");
    assert!(quota[0].description.starts_with("2 transactions are open"), "{quota:?}");
    let delay = refused.status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay, Some(Duration::from_secs(1)));
    let answer = refused.answer.expect("it has a path");
    assert_eq!((answer.status, answer.header("retry-after")), (429, "1"));
    let transfer = v1::TransferRequest {
        id: new_id(),
        payer: alice.clone(),
        payee: bob.clone(),
        amount: Some(amount(10)),
        ..Default::default()
    };
    let transfer = Asked::new("HoldService/Transfer", &transfer);
    shop.refuses(&transfer, Reason::OpenQuotaReached, None, &["quota"]).await;
    let branches = vec![debit(&alice, 10), credit(&bob, 10)];
    let request = due_in(SignedDuration::from_hours(1), branches);
    let generic = client.transactions.create_transaction(by(SHOP, request.clone())).await.unwrap_err();
    assert_eq!(reason(&generic), "OPEN_QUOTA_REACHED");
    assert_eq!(client.balances(&alice).await, (9_980, 20), "nothing else is held, and nothing is paid");
    assert_eq!(client.balances(&bob).await, (0, 0));

    // What exists is answered, by the same id.
    let replayed = create(&mut client, SHOP, &held[0]).await.expect("it exists");
    assert!(replayed.replayed);
    // Others have quotas of their own.
    create(&mut client, "other", &hold(&alice, &bob, 10)).await.expect("somebody else has room");

    client.cancel(&held[0].id).await.expect("a cancel is never refused for a quota");
    client.confirm(&held[1].id).await.expect("nor is a payment");
    until("there is room again", || async {
        client.clone().transactions.create_transaction(by(SHOP, request.clone())).await.is_ok()
    })
    .await;
    running.stop().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_refused_item_by_item_and_keys_are_answered_again() {
    let system = system(2).await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let body = hold(&alice, &bob, 10);
    let keyed = |key: &str| v1::CreateHoldRequest {
        id: String::new(),
        idempotency_key: key.to_owned(),
        ..body.clone()
    };
    let first = create(&mut client, SHOP, &keyed("first")).await.expect("there is room").hold.unwrap();

    let holds = vec![keyed("first"), keyed("second"), keyed("third"), keyed("fourth")];
    let mut outcomes = Vec::new();
    // One after the other: of a batch it is not said which of its items come first.
    for hold in holds {
        let batch = by(SHOP, v1::BatchCreateHoldsRequest { holds: vec![hold] });
        let answer = client.holds.batch_create_holds(batch).await.expect("each item has its outcome");
        outcomes.extend(answer.into_inner().outcomes.into_iter().map(|outcome| outcome.outcome.unwrap()));
    }

    let replayed: Vec<Option<bool>> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Created(created) => Some(created.replayed),
            Outcome::Error(_) => None,
        })
        .collect();
    assert_eq!(replayed, [Some(true), Some(false), None, None], "{outcomes:?}");
    for outcome in &outcomes[2..] {
        let Outcome::Error(error) = outcome else { panic!("{outcome:?}") };
        assert_eq!((error.code, error.reason.as_str()), (8, "OPEN_QUOTA_REACHED"));
        assert_eq!(error.retry_delay.map(|delay| delay.seconds), Some(1));
    }
    let again = create(&mut client, SHOP, &keyed("first")).await.expect("it exists");
    assert_eq!((again.replayed, again.hold.unwrap().id), (true, first.id.clone()));
    client.cancel(&first.id).await.expect("cancelled");
    until("a key that was refused is taken", || async {
        create(&mut client.clone(), SHOP, &keyed("third")).await.is_ok()
    })
    .await;
    running.stop().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_the_file_may_have_a_quota_of_its_own() {
    let system = system(1).await;
    let mut known = Known::new();
    let usual = known.caller("usual", &["application"], &["*"]);
    let (more, any) =
        (known.caller("more", &["application"], &["*"]), known.caller("any", &["application"], &["*"]));
    let text = fs::read_to_string(known.path("callers.toml")).unwrap();
    let text = text.replace("name = \"more\"", "name = \"more\"\nopen_transactions = 2");
    known.write("callers.toml", &text.replace("name = \"any\"", "name = \"any\"\nopen_transactions = 0"));
    let mut beside = secure::beside(&system).await;
    let (alice, bob) = alice_and_bob(&mut beside.client).await;
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let usual = Caller::plain(running.address, Some(&usual)).await;
    let lets_in = async |caller: &Caller| {
        let mut holds = HoldServiceClient::new(caller.channel.clone());
        let mut count = 0;
        for _ in 0..4 {
            match holds.create_hold(caller.request(hold(&alice, &bob, 1))).await {
                Ok(_) => count += 1,
                Err(status) => assert_eq!(reason(&status), "OPEN_QUOTA_REACHED"),
            }
        }
        count
    };

    let counts = [lets_in(&usual).await, lets_in(&usual.with(&more)).await, lets_in(&usual.with(&any)).await];

    assert_eq!(counts, [1, 2, 4]);
    running.stop().cancel();
    beside.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_transfers_take_no_room() {
    // One that is under way may be counted as it was read, and once more while that is read again.
    let system = system(3).await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;

    for _ in 0..5 {
        let refused = create(&mut client, SHOP, &hold(&alice, &bob, 1_000_000)).await.unwrap_err();
        assert_eq!(reason(&refused), "INSUFFICIENT_FUNDS");
        let transfer = v1::TransferRequest {
            id: new_id(),
            payer: alice.clone(),
            payee: bob.clone(),
            amount: Some(amount(1)),
            ..Default::default()
        };
        client.holds.transfer(by(SHOP, transfer)).await.expect("it is over when it is answered");
    }

    until("nothing is left", || async { open(&system).await == (0, 0) }).await;
    running.stop().cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_is_that_of_the_rows_whatever_ends_them_and_whoever_dies() {
    let system = system(1_000).await;
    let mut tccd = Tccd::start(&system.config).await.expect("tccd starts");
    let mut client = Client::connect(tccd.url()).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.account("carol", 0).await;
    let soon = SignedDuration::from_millis(300);
    let released = v1::CreateHoldRequest {
        on_maturity: v1::OnMaturity::Cancel.into(),
        ..hold_due_in(&alice, &bob, 1, soon)
    };
    let vetoed = hold_due_in(&alice, "carol", 1, SignedDuration::from_secs(2));
    let [cancelled, confirmed] = [hold(&alice, &bob, 1), hold(&alice, &bob, 1)];
    let left = hold(&alice, &bob, 1);

    // Each kind of end, and one that stays.
    for request in [&hold_due_in(&alice, &bob, 1, soon), &released, &vetoed, &cancelled, &confirmed, &left] {
        create(&mut client, SHOP, request).await.expect("it is held");
    }
    let refused = create(&mut client, SHOP, &hold(&alice, &bob, 1_000_000)).await.unwrap_err();
    assert_eq!(reason(&refused), "INSUFFICIENT_FUNDS");
    client.cancel(&cancelled.id).await.expect("cancelled");
    client.confirm(&confirmed.id).await.expect("confirmed");
    let block = v1::BlockAccountRequest { id: "carol".into() };
    client.ledger.block_account(block).await.expect("the payee is blocked");
    assert_eq!(client.until_final(&vetoed.id).await.cause(), v1::Cause::Vetoed);
    client.until_final(&released.id).await;
    until("the others are final", || async { open(&system).await.1 == 1 }).await;
    assert_eq!(open(&system).await, (1, 1));

    // Between the commit that counts and its answer, and with everything under way.
    for point in ["tccd-begin committed", "tccd-advance committed"] {
        tccd.kill().await.expect("tccd is killed");
        tccd.crash_at(Some((point, 2)));
        tccd.restart().await.expect("tccd starts");
        let mut client = Client::lazy(tccd.url());
        for _ in 0..3 {
            // It dies meanwhile.
            let _ = create(&mut client, SHOP, &hold_due_in(&alice, &bob, 1, soon)).await;
        }
        until("it has died", || is_dead(tccd.url())).await;
        let (counted, rows) = open(&system).await;
        assert_eq!(counted, rows, "{point}");
        tccd.crash_at(None);
    }
    tccd.kill().await.expect("tccd is killed");
    tccd.restart().await.expect("tccd starts");
    until("all but one are final", || async { open(&system).await.1 == 1 }).await;

    assert_eq!(open(&system).await, (1, 1));
    Client::connect(tccd.url()).await.audit_is_clean().await;
}

async fn is_dead(url: &str) -> bool {
    tokio::net::TcpStream::connect(url.trim_start_matches("http://")).await.is_err()
}
