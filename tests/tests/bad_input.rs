//! Bad input, row by row: each kind has a reason of its own from the registry, names the field, says the same
//! over gRPC and over HTTP, and changes nothing. What only one of them can get wrong stands at the end, or in
//! http.rs; who may not ask at all, in security.rs.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use std::collections::HashMap;
use tcc_proto::{Reason, codec::Protobuf, v1};
use tcc_tests::{
    Client, System, alice_and_bob, amount,
    both::{Asked, Both},
    hold,
    http::{Http, hold_json, spelled, transfer_json},
    new_id, time,
};
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_types::StatusExt as _;

/// Everything in some tables, as text.
async fn rows(system: &System, of_coordinator: &[&str], of_shards: &[&str]) -> String {
    let mut all = String::new();
    let databases = [
        (system.sql().await, of_coordinator),
        (system.shard_sql(0).await, of_shards),
        (system.shard_sql(1).await, of_shards),
    ];
    for (sql, tables) in databases {
        for table in tables {
            let rows =
                format!("SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM {table} t");
            all.push_str(&sql.query_one(&rows, &[]).await.unwrap().get::<_, String>(0));
            all.push('\n');
        }
    }
    all
}

/// Everything that there is: bad input leaves it as it was.
async fn everything(system: &System) -> String {
    rows(system, &["transaction", "idempotency", "attention"], &["account", "branch", "posting"]).await
}

/// All money: a refusal is recorded, and leaves this as it was. What the payer's shard had frozen is given back.
async fn balances(system: &System) -> String {
    rows(system, &[], &["(SELECT id, available, held, state FROM account)"]).await
}

/// Whether an error is as the registry has it.
fn check(what: &str, refused: &Status, expected: Reason) {
    let info = refused.get_details_error_info().unwrap_or_else(|| panic!("{what}: no reason in {refused:?}"));
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (expected.name(), "tcc"), "{what}");
    assert_eq!(refused.code(), expected.code(), "{what}");
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn id_at(delay: SignedDuration) -> String {
    let seconds = (Timestamp::now() + delay).as_second() as u64;
    uuid::Uuid::new_v7(uuid::Timestamp::from_unix_time(seconds, 0, 0, 0)).to_string()
}

fn transfer(request: &v1::CreateHoldRequest) -> v1::TransferRequest {
    let v1::CreateHoldRequest { id, payer, payee, amount, idempotency_key, labels, .. } = request.clone();
    v1::TransferRequest { id, payer, payee, amount, idempotency_key, labels }
}

/// What the details of a reason have, beside the field.
fn details(reason: Reason) -> &'static [&'static str] {
    match reason {
        Reason::AmountTooLarge | Reason::DueTimeTooFar => &["max"],
        Reason::DueTimeInPast | Reason::IdTimeOutOfRange => &["server_time"],
        Reason::AccountNotFound => &["account"],
        Reason::HoldNotFound | Reason::IdReused | Reason::IdempotencyKeyReused => &["id"],
        Reason::HoldNotCancellable | Reason::HoldNotConfirmable => &["id", "phase"],
        Reason::EtagMismatch => &["id", "phase", "etag"],
        Reason::AccountNotEmpty => &["account", "available", "held"],
        _ => &[],
    }
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
    let address = coordinator.running.address;
    let (mut client, mut http, mut both) = (coordinator.client, Http::to(address), Both::to(address).await);
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let before = everything(&system).await;

    for (request, expected, field) in creations(&alice, &bob) {
        let what = format!("{request:?}");
        let create = Asked::new("HoldService/CreateHold", &request);
        both.refuses(&create, expected, Some(field), details(expected)).await;
        let validated = v1::CreateHoldRequest { validate_only: true, ..request.clone() };
        let validate = Asked::new("HoldService/CreateHold", &validated);
        both.refuses(&validate, expected, Some(field), details(expected)).await;
        let batch = v1::BatchCreateHoldsRequest { holds: vec![request.clone()] };
        let outcomes = client.holds.batch_create_holds(batch).await.unwrap().into_inner().outcomes;
        let Some(v1::batch_create_holds_outcome::Outcome::Error(error)) = &outcomes[0].outcome else {
            panic!("{what} is taken in a batch")
        };
        assert_eq!((error.reason.as_str(), error.code), (expected.name(), expected.code() as i32), "{what}");
        // With zeros and nulls written out.
        let in_json = spelled(field);
        http.send("POST", "/v1/holds", &hold_json(&request)).await.check(&what, expected, Some(&in_json));
        if !matches!(field, "due_at" | "on_maturity") {
            let asked = Asked::new("HoldService/Transfer", &transfer(&request));
            both.refuses(&asked, expected, Some(field), details(expected)).await;
            let answer = http.send("POST", "/v1/wallet/transfer", &transfer_json(&request)).await;
            answer.check(&what, expected, Some(&in_json));
        }
    }

    assert_eq!(everything(&system).await, before);
}

/// Everything else that is wrong by its form, or is not there: what is asked, its reason, and its field.
fn others(alice: &str, bob: &str) -> Vec<(Asked, Reason, Option<&'static str>)> {
    let mut all = Vec::new();
    let mut add = |asked, reason, field| all.push((asked, reason, field));
    for (id, expected) in [("", Reason::FieldRequired), ("7", Reason::IdInvalid)] {
        let id = id.to_owned();
        let etag = String::new;
        let account = alice.to_owned();
        let issue = v1::IssueRequest { id: id.clone(), account: account.clone(), amount: Some(amount(1)) };
        let burn = v1::BurnRequest { id: id.clone(), account, amount: Some(amount(1)) };
        for asked in [
            Asked::new("HoldService/GetHold", &v1::GetHoldRequest { id: id.clone() }),
            Asked::new("HoldService/CancelHold", &v1::CancelHoldRequest { id: id.clone(), etag: etag() }),
            Asked::new("HoldService/ConfirmHold", &v1::ConfirmHoldRequest { id: id.clone(), etag: etag() }),
            Asked::new("HoldService/WatchHold", &v1::WatchHoldRequest { id: id.clone(), etag: etag() }),
            Asked::new("LedgerService/Issue", &issue),
            Asked::new("LedgerService/Burn", &burn),
        ] {
            add(asked, expected, Some("id"));
        }
    }
    let get = v1::GetHoldRequest { id: new_id() };
    add(Asked::new("HoldService/GetHold", &get), Reason::HoldNotFound, None);
    let watch = v1::WatchHoldRequest { id: new_id(), etag: String::new() };
    add(Asked::new("HoldService/WatchHold", &watch), Reason::HoldNotFound, None);
    for etag in ["", "4", "nonsense"] {
        let (id, etag) = (new_id(), etag.to_owned());
        let cancel = v1::CancelHoldRequest { id: id.clone(), etag: etag.clone() };
        add(Asked::new("HoldService/CancelHold", &cancel), Reason::HoldNotFound, None);
        let confirm = v1::ConfirmHoldRequest { id, etag };
        add(Asked::new("HoldService/ConfirmHold", &confirm), Reason::HoldNotFound, None);
    }

    let nameless = v1::CreateHoldRequest { id: String::new(), ..hold(alice, bob, 1) };
    let asked = Asked::new("HoldService/Transfer", &transfer(&nameless));
    add(asked, Reason::IdempotencyKeyRequired, Some("idempotency_key"));
    for (holds, expected) in [(0, Reason::FieldRequired), (1_001, Reason::TooManyItems)] {
        let batch = v1::BatchCreateHoldsRequest { holds: vec![nameless.clone(); holds] };
        add(Asked::new("HoldService/BatchCreateHolds", &batch), expected, Some("holds"));
    }

    let of_alice = || v1::ListHoldsRequest { payer: alice.to_owned(), ..Default::default() };
    let wrong_time = Some(prost_types::Timestamp { seconds: 0, nanos: -1 });
    for (request, expected, field) in [
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
    ] {
        add(Asked::new("HoldService/ListHolds", &request), expected, Some(field));
    }

    let create =
        |id: &str, currency: &str| v1::CreateAccountRequest { id: id.into(), currency: currency.into() };
    for (request, expected, field) in [
        (create("", "GOLD"), Reason::FieldRequired, "id"),
        (create("a b", "GOLD"), Reason::AccountIdInvalid, "id"),
        (create("new", ""), Reason::FieldRequired, "currency"),
        (create("new", "gold"), Reason::CurrencyInvalid, "currency"),
        (create(alice, "SILVER"), Reason::AccountExists, "currency"),
    ] {
        add(Asked::new("LedgerService/CreateAccount", &request), expected, Some(field));
    }
    for (id, expected) in [
        ("", Reason::FieldRequired),
        ("a\n", Reason::AccountIdInvalid),
        ("'; DROP TABLE account; --", Reason::AccountIdInvalid),
        ("nobody", Reason::AccountNotFound),
    ] {
        let id = id.to_owned();
        let is_wrong = expected != Reason::AccountNotFound;
        for asked in [
            Asked::new("LedgerService/GetAccount", &v1::GetAccountRequest { id: id.clone() }),
            Asked::new("LedgerService/BlockAccount", &v1::BlockAccountRequest { id: id.clone() }),
            Asked::new("LedgerService/UnblockAccount", &v1::UnblockAccountRequest { id: id.clone() }),
            Asked::new("LedgerService/CloseAccount", &v1::CloseAccountRequest { id: id.clone() }),
        ] {
            add(asked, expected, is_wrong.then_some("id"));
        }
        let postings = v1::ListPostingsRequest { account: id.clone(), ..Default::default() };
        for asked in [
            Asked::new("LedgerService/GetHoldings", &v1::GetHoldingsRequest { account: id.clone() }),
            Asked::new("LedgerService/GetBalance", &v1::GetBalanceRequest { account: id.clone(), at: None }),
            Asked::new("LedgerService/ListPostings", &postings),
        ] {
            add(asked, expected, is_wrong.then_some("account"));
        }
    }
    let account = alice.to_owned();
    for (value, expected) in
        [(0, Reason::AmountNotPositive), (-1, Reason::AmountNotPositive), (i64::MAX, Reason::AmountTooLarge)]
    {
        let amount = Some(amount(value));
        let issue = v1::IssueRequest { id: new_id(), account: account.clone(), amount: amount.clone() };
        add(Asked::new("LedgerService/Issue", &issue), expected, Some("amount.value"));
        let burn = v1::BurnRequest { id: new_id(), account: account.clone(), amount };
        add(Asked::new("LedgerService/Burn", &burn), expected, Some("amount.value"));
    }
    let stale = id_at(SignedDuration::from_hours(-48));
    let issue = v1::IssueRequest { id: stale, account: account.clone(), amount: Some(amount(1)) };
    add(Asked::new("LedgerService/Issue", &issue), Reason::IdTimeOutOfRange, Some("id"));
    let of_alice = || v1::ListPostingsRequest { account: account.clone(), ..Default::default() };
    for (request, expected, field) in [
        (v1::ListPostingsRequest { page_size: -1, ..of_alice() }, Reason::FieldInvalid, "page_size"),
        (v1::ListPostingsRequest { after_version: -1, ..of_alice() }, Reason::FieldInvalid, "after_version"),
        (
            v1::ListPostingsRequest { recorded_from: wrong_time, ..of_alice() },
            Reason::TimeInvalid,
            "recorded_from",
        ),
    ] {
        add(Asked::new("LedgerService/ListPostings", &request), expected, Some(field));
    }
    let later = Some(time(Timestamp::now() + SignedDuration::from_hours(1)));
    for at in [wrong_time, later] {
        let balance = v1::GetBalanceRequest { account: account.clone(), at };
        add(Asked::new("LedgerService/GetBalance", &balance), Reason::TimeInvalid, Some("at"));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_wrong_request_is_told_what_is_wrong_and_changes_nothing() {
    let system = System::start().await;
    let coordinator = system.coordinator().await;
    let (mut client, address) = (coordinator.client, coordinator.running.address);
    let mut both = Both::to(address).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let before = everything(&system).await;

    for (asked, expected, field) in others(&alice, &bob) {
        both.refuses(&asked, expected, field, details(expected)).await;
    }
    let list = v1::ListHoldsRequest { payer: alice.clone(), page_size: i32::MAX, ..Default::default() };
    let large = Asked::new("HoldService/ListHolds", &list);
    assert!(both.grpc(&large).await.is_ok(), "a page that is too large becomes the largest");
    assert_eq!(both.http(&large).await.unwrap().status, 200);
    for name in ["a b", "", &"x".repeat(65)] {
        let mut nameless = Both::to(address).await.with("tcc-caller", name);
        nameless.refuses(&large, Reason::CallerInvalid, Some("tcc-caller"), &[]).await;
    }

    assert_eq!(everything(&system).await, before);
}

/// Issues as much to an account as it can own.
async fn fill(client: &Client, account: &str) {
    let (all, most) = (tcc_core::money::BALANCE_LIMIT, tcc_core::Amount::MAX);
    let issue = |value| {
        let mut ledger = client.ledger.clone();
        let request =
            v1::IssueRequest { id: new_id(), account: account.to_owned(), amount: Some(amount(value)) };
        async move { ledger.issue(request).await }
    };
    let values = std::iter::repeat_n(most, (all / most) as usize).chain([all % most]);
    stream::iter(values).map(issue).buffer_unordered(512).try_for_each(|_| async { Ok(()) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_account_and_moves_no_money() {
    let system = System::start().await;
    let coordinator = system.coordinator().await;
    let (mut client, mut both) = (coordinator.client, Both::to(coordinator.running.address).await);
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    for account in ["blocked", "closed", "rich"] {
        client.account(account, 0).await;
    }
    let silver = v1::CreateAccountRequest { id: "silver".into(), currency: "SILVER".into() };
    client.ledger.create_account(silver).await.unwrap();
    client.ledger.block_account(v1::BlockAccountRequest { id: "blocked".into() }).await.unwrap();
    client.ledger.close_account(v1::CloseAccountRequest { id: "closed".into() }).await.unwrap();
    fill(&client, "rich").await;
    let before = balances(&system).await;
    let in_silver = || v1::CreateHoldRequest {
        amount: Some(v1::Amount { value: 1, currency: "SILVER".into() }),
        ..hold(&alice, "silver", 1)
    };

    for (request, expected, field, account) in [
        (hold("nobody", &bob, 1), Reason::AccountNotFound, "payer", "nobody"),
        (hold(&alice, "nobody", 1), Reason::AccountNotFound, "payee", "nobody"),
        (hold("nobody", "nobody-2", 1), Reason::AccountNotFound, "payer", "nobody"),
        (hold("blocked", &bob, 1), Reason::AccountBlocked, "payer", "blocked"),
        (hold(&alice, "blocked", 1), Reason::AccountBlocked, "payee", "blocked"),
        (hold("closed", &bob, 1), Reason::AccountClosed, "payer", "closed"),
        (hold(&alice, "closed", 1), Reason::AccountClosed, "payee", "closed"),
        (in_silver(), Reason::CurrencyMismatch, "payer", &alice),
        (hold(&alice, "silver", 1), Reason::CurrencyMismatch, "payee", "silver"),
        (hold(&alice, &bob, 10_001), Reason::InsufficientFunds, "payer", &alice),
        (hold(&alice, "rich", 10_000), Reason::BalanceOverflow, "payee", "rich"),
    ] {
        let validated = v1::CreateHoldRequest { validate_only: true, id: new_id(), ..request.clone() };
        let keyed = v1::CreateHoldRequest { id: String::new(), idempotency_key: new_id(), ..request.clone() };
        let other = v1::CreateHoldRequest { id: new_id(), ..request.clone() };
        for asked in [
            Asked::new("HoldService/CreateHold", &validated),
            Asked::new("HoldService/CreateHold", &request),
            Asked::new("HoldService/CreateHold", &keyed),
            Asked::new("HoldService/Transfer", &transfer(&other)),
        ] {
            let refused = both.refuses(&asked, expected, Some(field), &["account"]).await;
            let answer = refused.answer.unwrap();
            assert_eq!(answer.json["metadata"]["account"], account, "{answer:?}");
            let is_validation = asked == Asked::new("HoldService/CreateHold", &validated);
            assert_eq!(answer.header("idempotent-replayed") == "true", !is_validation, "{answer:?}");
        }
        let changed = v1::CreateHoldRequest { amount: Some(amount(2)), ..request.clone() };
        let reused = Asked::new("HoldService/CreateHold", &changed);
        both.refuses(&reused, Reason::IdReused, Some("amount.value"), &["id"]).await;
        let changed = v1::CreateHoldRequest { amount: Some(amount(2)), ..keyed.clone() };
        let reused = Asked::new("HoldService/CreateHold", &changed);
        both.refuses(&reused, Reason::IdempotencyKeyReused, Some("amount.value"), &["id"]).await;
    }

    for (account, value, expected) in
        [("nobody", 1, Reason::AccountNotFound), (&*bob, 1, Reason::InsufficientFunds)]
    {
        let burn = v1::BurnRequest { id: new_id(), account: account.into(), amount: Some(amount(value)) };
        let asked = Asked::new("LedgerService/Burn", &burn);
        both.refuses(&asked, expected, Some("account"), &["account", "id"]).await;
    }
    assert_eq!(balances(&system).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_hold_or_an_account_does_not_allow_says_how_it_stands_and_moves_no_money() {
    let system = System::start().await;
    let coordinator = system.coordinator().await;
    let (mut client, mut both) = (coordinator.client, Both::to(coordinator.running.address).await);
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let mut made = Vec::new();
    for _ in 0..3 {
        let request = hold(&alice, &bob, 10);
        client.create(&request).await.unwrap();
        made.push(request.id);
    }
    let [held, paid, cancelled] = &made[..] else { unreachable!() };
    client.confirm(paid).await.unwrap();
    client.until_final(paid).await;
    client.cancel(cancelled).await.unwrap();
    client.account("closed", 0).await;
    client.ledger.close_account(v1::CloseAccountRequest { id: "closed".into() }).await.unwrap();
    let before = balances(&system).await;
    let cancel = |id: &str, etag: &str| {
        Asked::new("HoldService/CancelHold", &v1::CancelHoldRequest { id: id.into(), etag: etag.into() })
    };
    let confirm = |id: &str, etag: &str| {
        Asked::new("HoldService/ConfirmHold", &v1::ConfirmHoldRequest { id: id.into(), etag: etag.into() })
    };

    for (asked, expected) in [
        (cancel(paid, ""), Reason::HoldNotCancellable),
        (confirm(cancelled, ""), Reason::HoldNotConfirmable),
        (cancel(held, "2"), Reason::EtagMismatch),
        (cancel(held, "nonsense"), Reason::EtagMismatch),
        (confirm(held, "8"), Reason::EtagMismatch),
        (cancel(cancelled, "4"), Reason::EtagMismatch),
        (
            Asked::new("LedgerService/CloseAccount", &v1::CloseAccountRequest { id: alice.clone() }),
            Reason::AccountNotEmpty,
        ),
        (
            Asked::new("LedgerService/BlockAccount", &v1::BlockAccountRequest { id: "closed".into() }),
            Reason::AccountClosed,
        ),
    ] {
        both.refuses(&asked, expected, None, details(expected)).await;
    }
    // What is so already is no mistake.
    for asked in [cancel(cancelled, ""), confirm(paid, "")] {
        assert!(both.grpc(&asked).await.is_ok(), "{asked:?}");
        assert_eq!(both.http(&asked).await.unwrap().status, 200, "{asked:?}");
    }
    assert_eq!(balances(&system).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_gone_says_when_to_come_back() {
    let mut servers = tcc_tests::servers().await;
    let coordinator = tcc_tests::serve_on(&servers).await;
    let (mut client, mut both) = (coordinator.client, Both::to(coordinator.running.address).await);
    let (alice, bob) = alice_and_bob(&mut client).await;
    let shard = servers.shards.pop().unwrap();
    let shard = tokio::task::spawn_blocking(move || {
        let mut shard = shard;
        shard.crash().map(|()| shard)
    });
    let _shard = shard.await.unwrap().unwrap();
    // That a connection is gone is known when it is used.
    let issue = v1::IssueRequest { id: new_id(), account: bob.clone(), amount: Some(amount(1)) };
    let unanswered = client.ledger.issue(issue).await.unwrap_err();
    check("an issue", &unanswered, Reason::ShardUnavailable);
    tcc_tests::until("it is known to be gone", || {
        let mut client = client.clone();
        async move {
            let status = client.operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
            status.shards.iter().any(|shard| shard.breaker() == v1::BreakerState::Open)
        }
    })
    .await;

    let asked = Asked::new("HoldService/CreateHold", &hold(&alice, &bob, 1));
    both.refuses(&asked, Reason::ShardUnavailable, None, &[]).await;
    let asked = Asked::new("LedgerService/GetAccount", &v1::GetAccountRequest { id: bob.clone() });
    both.refuses(&asked, Reason::ShardUnavailable, None, &[]).await;
    assert_eq!(client.balances(&alice).await, (10_000, 0));
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
        check(method, &refused, Reason::MessageMalformed);
    }
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/tcc.v1.HoldService/StealHold");
    let codec = Protobuf::<v1::Amount, v1::CreateHoldResponse>::default();
    assert_eq!(
        grpc.unary(Request::new(amount(1)), path, codec).await.unwrap_err().code(),
        Code::Unimplemented
    );

    // A field that there is not is left out, and one that is compressed is not read: a bomb stays closed.
    let mut more = v1::GetHoldRequest { id: new_id() }.encode_to_vec();
    more.extend(v1::Hold { etag: "x".into(), ..Default::default() }.encode_to_vec());
    let more = v1::GetHoldRequest::decode(more.as_slice()).unwrap();
    check("an unknown field", &client.holds.get_hold(more).await.unwrap_err(), Reason::HoldNotFound);
    let mut compressed = Request::new(v1::GetHoldRequest { id: new_id() });
    compressed.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let refused = client.holds.get_hold(compressed).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");

    let huge = v1::GetHoldRequest { id: "x".repeat(3 * 1024 * 1024) };
    assert_eq!(client.holds.get_hold(huge).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_dangerous_and_is_allowed_is_kept_as_it_is() {
    let system = System::start().await;
    let coordinator = system.coordinator().await;
    let (mut client, mut both) = (coordinator.client, Both::to(coordinator.running.address).await);
    let (_, bob) = alice_and_bob(&mut client).await;
    let account = "';DROP/**/TABLE/**/account;--${jndi:ldap://x}%s$1";
    client.account(account, 100).await;
    let pairs = [
        ("sql", "'; DROP TABLE posting; --"),
        ("bidi", "\u{202e}gnp.exe"),
        ("zalgo", "e\u{301}\u{301}\u{200b}👩‍👩‍👧"),
    ];
    let request = || v1::CreateHoldRequest { labels: labels(&pairs), ..hold(account, &bob, 30) };
    let (over_grpc, over_http) = (request(), request());

    client.create(&over_grpc).await.unwrap();
    let answer = both.http(&Asked::new("HoldService/CreateHold", &over_http)).await.unwrap();
    assert_eq!((answer.status, &answer.json["labels"]), (201, &serde_json::json!(labels(&pairs))));

    for id in [&over_grpc.id, &over_http.id] {
        let kept = client.hold(id).await;
        assert_eq!((kept.labels, kept.payer.as_str()), (labels(&pairs), account));
    }
    assert_eq!(client.balances(account).await, (40, 60));
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
