//! Bad input: every kind has a reason of its own from the registry, names the field, and changes nothing.

use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use tcc_proto::{Reason, codec::Protobuf, v1};
use tcc_tests::{
    Client, System, alice_and_bob, amount, detail, hold,
    http::{Http, hold_json, spelled, transfer_json},
    new_id, time,
};
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_types::StatusExt as _;

/// Everything that there is, as text: bad input leaves it as it was.
async fn everything(system: &System) -> String {
    let mut all = String::new();
    let tables = [
        (system.sql().await, ["transaction", "idempotency", "attention"].as_slice()),
        (system.shard_sql(0).await, ["account", "branch", "posting"].as_slice()),
        (system.shard_sql(1).await, ["account", "branch", "posting"].as_slice()),
    ];
    for (sql, tables) in tables {
        for table in tables {
            let rows =
                format!("SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM {table} t");
            all.push_str(&sql.query_one(&rows, &[]).await.unwrap().get::<_, String>(0));
            all.push('\n');
        }
    }
    all
}

/// Whether an error is as the registry has it, and what it is about is named.
fn check(what: &str, refused: &Status, expected: Reason, field: Option<&str>) {
    let info = refused.get_details_error_info().unwrap_or_else(|| panic!("{what}: no reason in {refused:?}"));
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (expected.name(), "tcc"), "{what}");
    assert_eq!(refused.code(), expected.code(), "{what}");
    assert!(!refused.message().is_empty(), "{what}");
    if let Some(field) = field {
        assert_eq!(detail(refused, "field").as_deref(), Some(field), "{what}");
        if expected.code() == Code::InvalidArgument {
            let violations = refused.get_details_bad_request().unwrap().field_violations;
            assert!(violations.iter().any(|violation| violation.field == field), "{what}: {violations:?}");
        }
    }
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn id_at(delay: SignedDuration) -> String {
    let seconds = (Timestamp::now() + delay).as_second() as u64;
    uuid::Uuid::new_v7(uuid::Timestamp::from_unix_time(seconds, 0, 0, 0)).to_string()
}

/// Creations that are wrong: what is wrong, its reason, and its field.
fn creations(alice: &str, bob: &str) -> Vec<(v1::CreateHoldRequest, Reason, &'static str)> {
    let good = || hold(alice, bob, 1);
    let id = |id: &str| v1::CreateHoldRequest { id: id.into(), ..good() };
    let key = |key: &str| v1::CreateHoldRequest { id: String::new(), idempotency_key: key.into(), ..good() };
    let value = |value| v1::CreateHoldRequest { amount: Some(amount(value)), ..good() };
    let currency = |currency: &str| {
        let amount = Some(v1::Amount { value: 1, currency: currency.into() });
        v1::CreateHoldRequest { amount, ..good() }
    };
    let due = |delay| v1::CreateHoldRequest { due_at: Some(time(Timestamp::now() + delay)), ..good() };
    let due_at = |seconds, nanos| v1::CreateHoldRequest {
        due_at: Some(prost_types::Timestamp { seconds, nanos }),
        ..good()
    };
    let label = |key: &str, value: &str| v1::CreateHoldRequest { labels: labels(&[(key, value)]), ..good() };
    let many = (0..17).map(|n| (format!("k{n}"), String::new())).collect();
    let day = SignedDuration::from_hours(24);
    let upper = new_id().to_uppercase();
    let braces = format!("{{{}}}", new_id());
    let urn = format!("urn:uuid:{}", new_id());
    let space = format!("{} ", new_id());
    vec![
        (value(0), Reason::AmountNotPositive, "amount.value"),
        (value(-5), Reason::AmountNotPositive, "amount.value"),
        (value(i64::MIN), Reason::AmountNotPositive, "amount.value"),
        (value(1_000_000_000_000_001), Reason::AmountTooLarge, "amount.value"),
        (value(i64::MAX), Reason::AmountTooLarge, "amount.value"),
        (v1::CreateHoldRequest { amount: None, ..good() }, Reason::FieldRequired, "amount"),
        (currency(""), Reason::FieldRequired, "amount.currency"),
        (currency("gold"), Reason::CurrencyInvalid, "amount.currency"),
        (currency("GOLD\0"), Reason::CurrencyInvalid, "amount.currency"),
        (v1::CreateHoldRequest { payee: alice.into(), ..good() }, Reason::SameAccount, "payee"),
        (v1::CreateHoldRequest { payer: String::new(), ..good() }, Reason::FieldRequired, "payer"),
        (v1::CreateHoldRequest { payee: String::new(), ..good() }, Reason::FieldRequired, "payee"),
        (v1::CreateHoldRequest { payer: "a b".into(), ..good() }, Reason::AccountIdInvalid, "payer"),
        (v1::CreateHoldRequest { payer: "a\0".into(), ..good() }, Reason::AccountIdInvalid, "payer"),
        (v1::CreateHoldRequest { payee: "ä".into(), ..good() }, Reason::AccountIdInvalid, "payee"),
        (v1::CreateHoldRequest { payee: "x".repeat(65), ..good() }, Reason::AccountIdInvalid, "payee"),
        (v1::CreateHoldRequest { due_at: None, ..good() }, Reason::FieldRequired, "due_at"),
        (due(SignedDuration::from_secs(-1)), Reason::DueTimeInPast, "due_at"),
        (due_at(0, 0), Reason::DueTimeInPast, "due_at"),
        (due(day * 366), Reason::DueTimeTooFar, "due_at"),
        (due_at(4_000_000_000, 1_000_000_000), Reason::TimeInvalid, "due_at"),
        (due_at(4_000_000_000, -1), Reason::TimeInvalid, "due_at"),
        (due_at(i64::MAX, 0), Reason::TimeInvalid, "due_at"),
        (due_at(i64::MIN, 0), Reason::TimeInvalid, "due_at"),
        (due_at(253_402_300_800, 0), Reason::TimeInvalid, "due_at"),
        (v1::CreateHoldRequest { on_maturity: 0, ..good() }, Reason::FieldRequired, "on_maturity"),
        (v1::CreateHoldRequest { on_maturity: 9, ..good() }, Reason::FieldInvalid, "on_maturity"),
        (v1::CreateHoldRequest { on_maturity: -1, ..good() }, Reason::FieldInvalid, "on_maturity"),
        (id("7"), Reason::IdInvalid, "id"),
        (id(&upper), Reason::IdInvalid, "id"),
        (id(&braces), Reason::IdInvalid, "id"),
        (id(&urn), Reason::IdInvalid, "id"),
        (id(&space), Reason::IdInvalid, "id"),
        (id("00000000-0000-0000-0000-000000000000"), Reason::IdInvalid, "id"),
        (id("ffffffff-ffff-ffff-ffff-ffffffffffff"), Reason::IdInvalid, "id"),
        (id("f47ac10b-58cc-4372-a567-0e02b2c3d479"), Reason::IdInvalid, "id"),
        (id(&id_at(-day * 2)), Reason::IdTimeOutOfRange, "id"),
        (id(&id_at(SignedDuration::from_mins(10))), Reason::IdTimeOutOfRange, "id"),
        (key(&"k".repeat(65)), Reason::IdempotencyKeyInvalid, "idempotency_key"),
        (key("ä"), Reason::IdempotencyKeyInvalid, "idempotency_key"),
        (key("a\0"), Reason::IdempotencyKeyInvalid, "idempotency_key"),
        (key("a b"), Reason::IdempotencyKeyInvalid, "idempotency_key"),
        (
            v1::CreateHoldRequest { idempotency_key: "both".into(), ..good() },
            Reason::FieldInvalid,
            "idempotency_key",
        ),
        (label("Order", "1"), Reason::LabelInvalid, "labels"),
        (label("", "1"), Reason::LabelInvalid, "labels"),
        (v1::CreateHoldRequest { labels: many, ..good() }, Reason::LabelInvalid, "labels"),
        (label("k", &"v".repeat(129)), Reason::TextTooLong, "labels"),
        (label("k", "a\0"), Reason::TextInvalid, "labels"),
        (label("k", "a\u{9f}"), Reason::TextInvalid, "labels"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_creation_is_told_what_is_wrong_and_changes_nothing() {
    let system = System::start().await;
    let coordinator = system.coordinator().await;
    let (mut client, mut http) = (coordinator.client.clone(), Http::to(coordinator.running.address));
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let before = everything(&system).await;

    for (request, expected, field) in creations(&alice, &bob) {
        let what = format!("{request:?}");
        check(&what, &client.create(&request).await.unwrap_err(), expected, Some(field));
        let validated = v1::CreateHoldRequest { validate_only: true, ..request.clone() };
        check(&what, &client.create(&validated).await.unwrap_err(), expected, Some(field));
        let batch = v1::BatchCreateHoldsRequest { holds: vec![request.clone()] };
        let outcomes = client.holds.batch_create_holds(batch).await.unwrap().into_inner().outcomes;
        let Some(v1::batch_create_holds_outcome::Outcome::Error(error)) = &outcomes[0].outcome else {
            panic!("{what} is taken in a batch")
        };
        assert_eq!((error.reason.as_str(), error.code), (expected.name(), expected.code() as i32), "{what}");
        let in_json = spelled(field);
        http.send("POST", "/v1/holds", &hold_json(&request)).await.check(&what, expected, Some(&in_json));
        http.send("POST", "/v1/holds", &hold_json(&validated)).await.check(&what, expected, Some(&in_json));
        if !matches!(field, "due_at" | "on_maturity") {
            let answer = http.send("POST", "/v1/wallet/transfer", &transfer_json(&request)).await;
            answer.check(&what, expected, Some(&in_json));
            let v1::CreateHoldRequest { id, payer, payee, amount, idempotency_key, labels, .. } = request;
            let transfer = v1::TransferRequest { id, payer, payee, amount, idempotency_key, labels };
            check(&what, &client.holds.transfer(transfer).await.unwrap_err(), expected, Some(field));
        }
    }

    assert_eq!(everything(&system).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_wrong_request_is_told_what_is_wrong_and_changes_nothing() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let before = everything(&system).await;
    let Client { mut holds, mut ledger, .. } = client.clone();

    for (id, expected) in [("", Reason::FieldRequired), ("7", Reason::IdInvalid)] {
        let id = id.to_owned();
        let get = v1::GetHoldRequest { id: id.clone() };
        check("get", &holds.get_hold(get).await.unwrap_err(), expected, Some("id"));
        let cancel = v1::CancelHoldRequest { id: id.clone(), etag: String::new() };
        check("cancel", &holds.cancel_hold(cancel).await.unwrap_err(), expected, Some("id"));
        let confirm = v1::ConfirmHoldRequest { id: id.clone(), etag: String::new() };
        check("confirm", &holds.confirm_hold(confirm).await.unwrap_err(), expected, Some("id"));
        let watch = v1::WatchHoldRequest { id: id.clone(), etag: String::new() };
        check("watch", &holds.watch_hold(watch).await.unwrap_err(), expected, Some("id"));
        let issue = v1::IssueRequest { id: id.clone(), account: alice.clone(), amount: Some(amount(1)) };
        check("issue", &ledger.issue(issue).await.unwrap_err(), expected, Some("id"));
        let burn = v1::BurnRequest { id, account: alice.clone(), amount: Some(amount(1)) };
        check("burn", &ledger.burn(burn).await.unwrap_err(), expected, Some("id"));
    }
    let unknown = new_id;
    for etag in ["", "4", "nonsense"] {
        let etag = etag.to_owned();
        let cancel = v1::CancelHoldRequest { id: unknown(), etag: etag.clone() };
        check("cancel", &holds.cancel_hold(cancel).await.unwrap_err(), Reason::HoldNotFound, None);
        let confirm = v1::ConfirmHoldRequest { id: unknown(), etag };
        check("confirm", &holds.confirm_hold(confirm).await.unwrap_err(), Reason::HoldNotFound, None);
    }

    let batch = v1::BatchCreateHoldsRequest { holds: Vec::new() };
    let refused = holds.batch_create_holds(batch).await.unwrap_err();
    check("batch", &refused, Reason::FieldRequired, Some("holds"));
    let nameless = v1::CreateHoldRequest { id: String::new(), ..hold(&alice, &bob, 1) };
    let transfer = v1::TransferRequest {
        payer: alice.clone(),
        payee: bob.clone(),
        amount: Some(amount(1)),
        ..Default::default()
    };
    let refused = holds.transfer(transfer).await.unwrap_err();
    check("transfer", &refused, Reason::IdempotencyKeyRequired, Some("idempotency_key"));

    let of_alice = || v1::ListHoldsRequest { payer: alice.clone(), ..Default::default() };
    let wrong_time = Some(prost_types::Timestamp { seconds: 0, nanos: -1 });
    let lists = [
        (v1::ListHoldsRequest::default(), Reason::FieldRequired, "payer"),
        (v1::ListHoldsRequest { payee: "a b".into(), ..of_alice() }, Reason::AccountIdInvalid, "payee"),
        (v1::ListHoldsRequest { phases: vec![0], ..of_alice() }, Reason::FieldInvalid, "phases"),
        (v1::ListHoldsRequest { phases: vec![2, 99], ..of_alice() }, Reason::FieldInvalid, "phases"),
        (v1::ListHoldsRequest { labels: labels(&[("K", "")]), ..of_alice() }, Reason::LabelInvalid, "labels"),
        (v1::ListHoldsRequest { page_size: -1, ..of_alice() }, Reason::FieldInvalid, "page_size"),
        (
            v1::ListHoldsRequest { created_from: wrong_time, ..of_alice() },
            Reason::TimeInvalid,
            "created_from",
        ),
        (
            v1::ListHoldsRequest { created_until: wrong_time, ..of_alice() },
            Reason::TimeInvalid,
            "created_until",
        ),
        (
            v1::ListHoldsRequest { page_token: "x".into(), ..of_alice() },
            Reason::PageTokenInvalid,
            "page_token",
        ),
        (
            v1::ListHoldsRequest { page_token: "0".repeat(64), ..of_alice() },
            Reason::PageTokenInvalid,
            "page_token",
        ),
    ];
    for (request, expected, field) in lists {
        let what = format!("{request:?}");
        check(&what, &holds.list_holds(request).await.unwrap_err(), expected, Some(field));
    }
    let large = v1::ListHoldsRequest { page_size: i32::MAX, ..of_alice() };
    assert!(holds.list_holds(large).await.is_ok(), "a page that is too large becomes the largest");

    let create =
        |id: &str, currency: &str| v1::CreateAccountRequest { id: id.into(), currency: currency.into() };
    for (request, expected, field) in [
        (create("", "GOLD"), Reason::FieldRequired, "id"),
        (create("a b", "GOLD"), Reason::AccountIdInvalid, "id"),
        (create("new", ""), Reason::FieldRequired, "currency"),
        (create("new", "gold"), Reason::CurrencyInvalid, "currency"),
        (create(&alice, "SILVER"), Reason::AccountExists, "currency"),
    ] {
        let what = format!("{request:?}");
        check(&what, &ledger.create_account(request).await.unwrap_err(), expected, Some(field));
    }
    for (id, expected) in [
        ("", Reason::FieldRequired),
        ("a\n", Reason::AccountIdInvalid),
        ("'; DROP TABLE account; --", Reason::AccountIdInvalid),
        ("nobody", Reason::AccountNotFound),
    ] {
        let id = id.to_owned();
        let get = v1::GetAccountRequest { id: id.clone() };
        check("get", &ledger.get_account(get).await.unwrap_err(), expected, None);
        let block = v1::BlockAccountRequest { id: id.clone() };
        check("block", &ledger.block_account(block).await.unwrap_err(), expected, None);
        let unblock = v1::UnblockAccountRequest { id: id.clone() };
        check("unblock", &ledger.unblock_account(unblock).await.unwrap_err(), expected, None);
        let close = v1::CloseAccountRequest { id: id.clone() };
        check("close", &ledger.close_account(close).await.unwrap_err(), expected, None);
        let holdings = v1::GetHoldingsRequest { account: id.clone() };
        check("holdings", &ledger.get_holdings(holdings).await.unwrap_err(), expected, None);
        let balance = v1::GetBalanceRequest { account: id.clone(), at: None };
        check("balance", &ledger.get_balance(balance).await.unwrap_err(), expected, None);
        let postings = v1::ListPostingsRequest { account: id, ..Default::default() };
        check("postings", &ledger.list_postings(postings).await.unwrap_err(), expected, None);
    }
    for (value, expected) in [(0, Reason::AmountNotPositive), (i64::MAX, Reason::AmountTooLarge)] {
        let amount = Some(amount(value));
        let issue = v1::IssueRequest { id: new_id(), account: alice.clone(), amount: amount.clone() };
        check("issue", &ledger.issue(issue).await.unwrap_err(), expected, Some("amount.value"));
        let burn = v1::BurnRequest { id: new_id(), account: alice.clone(), amount };
        check("burn", &ledger.burn(burn).await.unwrap_err(), expected, Some("amount.value"));
    }
    let stale = id_at(SignedDuration::from_hours(-48));
    let issue = v1::IssueRequest { id: stale, account: alice.clone(), amount: Some(amount(1)) };
    check("issue", &ledger.issue(issue).await.unwrap_err(), Reason::IdTimeOutOfRange, Some("id"));
    let of_alice = || v1::ListPostingsRequest { account: alice.clone(), ..Default::default() };
    for (request, expected, field) in [
        (v1::ListPostingsRequest { page_size: -1, ..of_alice() }, Reason::FieldInvalid, "page_size"),
        (v1::ListPostingsRequest { after_version: -1, ..of_alice() }, Reason::FieldInvalid, "after_version"),
        (
            v1::ListPostingsRequest { recorded_from: wrong_time, ..of_alice() },
            Reason::TimeInvalid,
            "recorded_from",
        ),
    ] {
        let what = format!("{request:?}");
        check(&what, &ledger.list_postings(request).await.unwrap_err(), expected, Some(field));
    }
    let later = Some(time(Timestamp::now() + SignedDuration::from_hours(1)));
    for at in [wrong_time, later] {
        let balance = v1::GetBalanceRequest { account: alice.clone(), at };
        check("balance", &ledger.get_balance(balance).await.unwrap_err(), Reason::TimeInvalid, Some("at"));
    }

    let long = "x".repeat(65);
    for name in ["a b", "", long.as_str()] {
        let mut request = Request::new(nameless.clone());
        request.metadata_mut().insert("tcc-caller", name.parse().unwrap());
        check(
            name,
            &holds.create_hold(request).await.unwrap_err(),
            Reason::CallerInvalid,
            Some("tcc-caller"),
        );
    }
    assert_eq!(everything(&system).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_of_a_call_is_the_callers_mistake() {
    let system = System::start().await;
    let coordinator = system.coordinator().await;
    let address = format!("http://{}", coordinator.running.address);
    let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    let mut client = coordinator.client;

    // Field 1 of an amount is a number; of these it is a text.
    for method in ["HoldService/CreateHold", "HoldService/GetHold", "LedgerService/Issue"] {
        grpc.ready().await.unwrap();
        let path: PathAndQuery = format!("/tcc.v1.{method}").parse().unwrap();
        let codec = Protobuf::<v1::Amount, v1::CreateHoldResponse>::default();
        let refused = grpc.unary(Request::new(amount(1)), path, codec).await.unwrap_err();
        check(method, &refused, Reason::MessageMalformed, None);
    }
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/tcc.v1.HoldService/StealHold");
    let codec = Protobuf::<v1::Amount, v1::CreateHoldResponse>::default();
    assert_eq!(
        grpc.unary(Request::new(amount(1)), path, codec).await.unwrap_err().code(),
        Code::Unimplemented
    );

    let huge = v1::GetHoldRequest { id: "x".repeat(3 * 1024 * 1024) };
    assert_eq!(client.holds.get_hold(huge).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_dangerous_and_is_allowed_is_kept_as_it_is() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (_, bob) = alice_and_bob(&mut client).await;
    let account = "';DROP/**/TABLE/**/account;--${jndi:ldap://x}%s$1";
    client.account(account, 100).await;
    let pairs = [
        ("sql", "'; DROP TABLE posting; --"),
        ("bidi", "\u{202e}gnp.exe"),
        ("zalgo", "e\u{301}\u{301}\u{200b}👩‍👩‍👧"),
    ];
    let request = v1::CreateHoldRequest { labels: labels(&pairs), ..hold(account, &bob, 30) };

    client.create(&request).await.unwrap();

    let kept = client.hold(&request.id).await;
    assert_eq!((kept.labels, kept.payer.as_str()), (labels(&pairs), account));
    assert_eq!(client.balances(account).await, (70, 30));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absurd_deadline_is_answered() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;

    for timeout in ["99999999H", "99999999S", "x", "-1S", "1", "18446744073709551616n"] {
        let mut request = Request::new(hold(&alice, &bob, 1));
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        let answer = client.holds.create_hold(request).await;
        assert!(answer.is_ok(), "{timeout}: {answer:?}");
    }
}
