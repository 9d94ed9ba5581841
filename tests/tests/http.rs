//! The HTTP/JSON face: every route, what headers do, events, problems, and that nothing anybody sends makes it say INTERNAL.

use http_body_util::BodyExt as _;
use hyper::{Response, body::Incoming};
use jiff::{SignedDuration, Timestamp};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tcc_proto::{Reason, v1};
use tcc_tests::{
    Client, Coordinator, System, alice_and_bob, hold, hold_due_in,
    http::{Answer, Http, hold_json, transfer_json},
    new_id,
};

/// How long the random requests go on.
const FUZZ: Duration = Duration::from_secs(5);

struct Face {
    _system: System,
    _coordinator: Coordinator,
    client: Client,
    http: Http,
    alice: String,
    bob: String,
}

impl Face {
    async fn start() -> Self {
        let system = System::start().await;
        let coordinator = system.coordinator().await;
        let mut client = coordinator.client.clone();
        let http = Http::to(coordinator.running.address);
        let (alice, bob) = alice_and_bob(&mut client).await;
        client.until_swept().await;
        Self { _system: system, _coordinator: coordinator, client, http, alice, bob }
    }

    fn hold(&self) -> Value {
        hold_json(&hold(&self.alice, &self.bob, 10))
    }

    async fn create(&mut self) -> String {
        let hold = self.hold();
        let answer = self.http.send("POST", "/v1/holds", &hold).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json["id"].as_str().unwrap().to_owned()
    }

    async fn post(&mut self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.http.ask("POST", path, &headers, &body.to_string()).await
    }
}

/// Every path that the document names, with its verb, but for those that are no calls.
async fn routes(http: &mut Http) -> BTreeSet<(String, String)> {
    let document = http.send("GET", "/openapi.json", &Value::Null).await;
    let paths = document.json["paths"].as_object().unwrap().clone();
    let calls =
        paths.into_iter().filter(|(path, _)| path.starts_with("/v1/") && !path.starts_with("/v1/errors"));
    let verbs = |(path, operations): (String, Value)| {
        let verbs: Vec<String> =
            operations.as_object().unwrap().keys().map(|verb| verb.to_uppercase()).collect();
        verbs.into_iter().map(move |verb| (verb, path.clone()))
    };
    calls.flat_map(verbs).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_does_what_its_call_does() {
    let mut face = Face::start().await;
    let (alice, bob) = (face.alice.clone(), face.bob.clone());
    let mut seen = BTreeSet::new();
    let mut went = |verb: &str, path: &str| seen.insert((verb.to_owned(), path.to_owned()));

    let account = json!({"id": "a/b:c", "currency": "GOLD"});
    let opened = face.http.send("POST", "/v1/accounts", &account).await;
    assert_eq!((opened.status, &opened.json["available"]), (200, &json!("0")), "{opened:?}");
    went("POST", "/v1/accounts");
    let issue = json!({"id": new_id(), "amount": {"value": "9007199254740993", "currency": "GOLD"}});
    let issued = face.http.send("POST", "/v1/accounts/a%2Fb:c:issue", &issue).await;
    issued.check("more than the limit", Reason::AmountTooLarge, Some("amount.value"));
    let issue = json!({"id": new_id(), "amount": {"value": 500, "currency": "GOLD"}});
    let issued = face.http.send("POST", "/v1/accounts/a%2Fb:c:issue", &issue).await;
    assert_eq!((issued.status, &issued.json["available"]), (200, &json!("500")), "{issued:?}");
    went("POST", "/v1/accounts/{account}:issue");
    let burn = json!({"id": new_id(), "amount": {"value": "500", "currency": "GOLD"}});
    let burnt = face.http.send("POST", "/v1/accounts/a%2Fb:c:burn", &burn).await;
    assert_eq!((burnt.status, &burnt.json["available"]), (200, &json!("0")), "{burnt:?}");
    went("POST", "/v1/accounts/{account}:burn");
    for (verb, state) in [("block", "BLOCKED"), ("unblock", "OPEN"), ("close", "CLOSED")] {
        let answer = face.http.send("POST", &format!("/v1/accounts/a%2Fb:c:{verb}"), &Value::Null).await;
        assert_eq!(answer.json["state"], format!("ACCOUNT_STATE_{state}"), "{answer:?}");
        went("POST", &format!("/v1/accounts/{{id}}:{verb}"));
    }
    let read = face.http.send("GET", "/v1/accounts/a%2Fb%3Ac", &Value::Null).await;
    assert_eq!((&read.json["id"], &read.json["version"]), (&json!("a/b:c"), &json!("2")), "{read:?}");
    went("GET", "/v1/accounts/{id}");

    let id = face.create().await;
    went("POST", "/v1/holds");
    let held = face.http.send("GET", &format!("/v1/holds/{id}"), &Value::Null).await;
    assert_eq!((held.status, &held.json["phase"]), (200, &json!("PHASE_HELD")), "{held:?}");
    went("GET", "/v1/holds/{id}");
    let holdings = face.http.send("GET", &format!("/v1/accounts/{alice}/holdings"), &Value::Null).await;
    assert_eq!(holdings.json["holds"][0]["id"], id.as_str(), "{holdings:?}");
    went("GET", "/v1/accounts/{account}/holdings");
    let cancelled = face.http.send("DELETE", &format!("/v1/holds/{id}"), &Value::Null).await;
    assert_eq!(
        (cancelled.status, &cancelled.json["phase"]),
        (200, &json!("PHASE_CANCELLED")),
        "{cancelled:?}"
    );
    went("DELETE", "/v1/holds/{id}");
    let id = face.create().await;
    let confirmed = face.http.send("POST", &format!("/v1/holds/{id}:confirm"), &Value::Null).await;
    assert!(matches!(confirmed.status, 200 | 202), "{confirmed:?}");
    went("POST", "/v1/holds/{id}:confirm");
    face.client.until_final(&id).await;
    let events = face.http.open("GET", &format!("/v1/holds/{id}/events"), &[], "").await;
    assert!(whole(events).await.contains("PHASE_CONFIRMED"));
    went("GET", "/v1/holds/{id}/events");

    let transfer = transfer_json(&hold(&alice, &bob, 5));
    let paid = face.http.send("POST", "/v1/wallet/transfer", &transfer).await;
    assert_eq!((paid.status, &paid.json["phase"]), (200, &json!("PHASE_CONFIRMED")), "{paid:?}");
    went("POST", "/v1/wallet/transfer");
    let items = json!({"holds": [face.hold(), {"payer": "x"}]});
    let made = face.http.send("POST", "/v1/holds:batchCreate", &items).await;
    assert_eq!(made.json["outcomes"][0]["created"]["hold"]["phase"], "PHASE_HELD", "{made:?}");
    assert_eq!(made.json["outcomes"][1]["error"]["reason"], "FIELD_REQUIRED", "{made:?}");
    went("POST", "/v1/holds:batchCreate");
    let path = format!("/v1/holds?payer={alice}&phases=PHASE_CANCELLED&phases=PHASE_CONFIRMED&pageSize=2");
    let list = face.http.send("GET", &path, &Value::Null).await;
    assert_eq!(list.json["holds"].as_array().unwrap().len(), 2, "{list:?}");
    let path = format!("{path}&pageToken={}", list.json["nextPageToken"].as_str().unwrap());
    let list = face.http.send("GET", &path, &Value::Null).await;
    assert_eq!(list.json["holds"].as_array().unwrap().len(), 1, "{list:?}");
    went("GET", "/v1/holds");
    let postings =
        face.http.send("GET", &format!("/v1/accounts/{bob}/postings?pageSize=1"), &Value::Null).await;
    assert_eq!(postings.json["nextAfterVersion"], "1", "{postings:?}");
    went("GET", "/v1/accounts/{account}/postings");
    let now = Timestamp::now() - SignedDuration::from_hours(1);
    let balance = face.http.send("GET", &format!("/v1/accounts/{bob}/balance?at={now}"), &Value::Null).await;
    assert_eq!(balance.json["available"], "0", "{balance:?}");
    went("GET", "/v1/accounts/{account}/balance");

    assert_eq!(seen, routes(&mut face.http).await);
    face.client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_header_is_the_key_of_the_call() {
    let mut face = Face::start().await;
    let mut body = face.hold();
    body["id"] = Value::Null;
    body.as_object_mut().unwrap().remove("idempotencyKey");

    face.http.send("POST", "/v1/holds", &body).await.check(
        "no key",
        Reason::IdempotencyKeyRequired,
        Some("idempotencyKey"),
    );
    let first = face.post("/v1/holds", &[("idempotency-key", "\"order-1\"")], &body).await;
    let again = face.post("/v1/holds", &[("x-idempotency-key", "order-1")], &body).await;
    let other =
        face.post("/v1/holds", &[("idempotency-key", "order-1"), ("tcc-caller", "another")], &body).await;

    assert_eq!((first.status, first.header("idempotent-replayed")), (201, ""), "{first:?}");
    assert_eq!(first.header("location"), format!("/v1/holds/{}", first.json["id"].as_str().unwrap()));
    assert_eq!((again.status, again.header("idempotent-replayed")), (201, "true"), "{again:?}");
    assert_eq!(again.json["id"], first.json["id"]);
    assert_eq!(other.status, 201, "{other:?}");
    assert_ne!(other.json["id"], first.json["id"], "another caller has keys of its own");
    body["amount"]["value"] = json!("11");
    let reused = face.post("/v1/holds", &[("idempotency-key", "order-1")], &body).await;
    reused.check("another body", Reason::IdempotencyKeyReused, None);
    assert_eq!(
        (reused.status, reused.json["metadata"]["field"].as_str()),
        (422, Some("amount.value")),
        "{reused:?}"
    );

    body["amount"]["value"] = json!("1000000");
    body["idempotencyKey"] = json!("large");
    let refused = face.http.send("POST", "/v1/holds", &body).await;
    let again = face.http.send("POST", "/v1/holds", &body).await;
    refused.check("too much", Reason::InsufficientFunds, None);
    assert_eq!(refused.header("idempotent-replayed"), "");
    again.check("again", Reason::InsufficientFunds, None);
    assert_eq!(again.header("idempotent-replayed"), "true");
    for headers in [&[("idempotency-key", "a"), ("x-idempotency-key", "b")][..], &[("idempotency-key", "a")]]
    {
        let refused = face.post("/v1/holds", headers, &body).await;
        refused.check("two keys", Reason::FieldInvalid, Some("idempotencyKey"));
    }
    body["idempotencyKey"] = Value::Null;
    let malformed = face.post("/v1/holds", &[("idempotency-key", "\"a")], &body).await;
    malformed.check("half a quote", Reason::IdempotencyKeyInvalid, Some("idempotencyKey"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_says_whether_a_hold_has_changed() {
    let mut face = Face::start().await;
    let path = format!("/v1/holds/{}", face.create().await);

    let read = face.http.send("GET", &path, &Value::Null).await;
    let etag = read.header("etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", read.json["etag"].as_str().unwrap()));
    let same = face.http.ask("GET", &path, &[("if-none-match", &etag)], "").await;
    assert_eq!((same.status, same.header("etag"), &same.json), (304, etag.as_str(), &Value::Null));
    let waited = [("if-none-match", etag.as_str()), ("prefer", "wait=0")];
    assert_eq!(face.http.ask("GET", &path, &waited, "").await.status, 304);
    let stale = face.http.ask("DELETE", &path, &[("if-match", "\"2\"")], "").await;
    stale.check("stale", Reason::EtagMismatch, None);
    let cancelled = face.http.ask("DELETE", &path, &[("if-match", &etag)], "").await;
    assert_eq!(
        (cancelled.status, &cancelled.json["phase"]),
        (200, &json!("PHASE_CANCELLED")),
        "{cancelled:?}"
    );
    let changed = face.http.ask("GET", &path, &[("if-none-match", &etag), ("prefer", "wait=20")], "").await;
    assert_eq!((changed.status, &changed.json["phase"]), (200, &json!("PHASE_CANCELLED")), "{changed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_prefers_to_wait_is_answered_when_the_hold_changes() {
    let mut face = Face::start().await;
    let request = hold_due_in(&face.alice, &face.bob, 1, SignedDuration::from_secs(2));
    let created = face.http.send("POST", "/v1/holds", &hold_json(&request)).await;

    let headers = [("if-none-match", created.header("etag")), ("prefer", "wait=30")];
    let changed = face.http.ask("GET", &format!("/v1/holds/{}", request.id), &headers, "").await;

    assert_eq!((changed.status, &changed.json["phase"]), (200, &json!("PHASE_CONFIRMED")), "{changed:?}");
}

/// All of a stream of events, which must end.
async fn whole(response: Response<Incoming>) -> String {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let body =
        tokio::time::timeout(tcc_tests::PATIENCE, response.into_body().collect()).await.expect("an end");
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

/// The id and the phase of each event called `hold`.
fn events(text: &str) -> Vec<(String, String)> {
    let event = |event: &str| {
        let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let data: Value = serde_json::from_str(line("data: ")?).unwrap();
        assert_eq!(line("event: "), Some("hold"), "{event}");
        Some((line("id: ")?.to_owned(), data["phase"].as_str()?.to_owned()))
    };
    text.split("\n\n").filter_map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_a_hold_until_it_is_final_and_go_on_where_they_were() {
    let mut face = Face::start().await;
    let request = hold_due_in(&face.alice, &face.bob, 1, SignedDuration::from_secs(2));
    face.http.send("POST", "/v1/holds", &hold_json(&request)).await;
    let path = format!("/v1/holds/{}/events", request.id);

    let all =
        events(&whole(face.http.open("GET", &path, &[("accept", "text/event-stream")], "").await).await);
    let (first, last) = (all.first().unwrap().clone(), all.last().unwrap().clone());
    assert_eq!((first.1.as_str(), last.1.as_str()), ("PHASE_HELD", "PHASE_CONFIRMED"), "{all:?}");
    let rest = face.http.open("GET", &path, &[("last-event-id", &first.0)], "").await;
    assert_eq!(events(&whole(rest).await), std::slice::from_ref(&last));
    let nothing = face.http.ask("GET", &path, &[("last-event-id", &last.0)], "").await;
    assert_eq!(nothing.status, 204);
    let unknown = face.http.ask("GET", &format!("/v1/holds/{}/events", new_id()), &[], "").await;
    unknown.check("unknown", Reason::HoldNotFound, None);
}

/// What is wrong with a request, beside what is wrong with a creation (which bad_input.rs has).
fn wrong_requests(alice: &str) -> Vec<(&'static str, String, Value, Reason, Option<&'static str>)> {
    let unknown = new_id();
    let none = Value::Null;
    let amount = |value: &str| json!({"id": new_id(), "amount": {"value": value, "currency": "GOLD"}});
    let mut all = Vec::new();
    let mut add =
        |verb, path: &str, body: Value, reason, field| all.push((verb, path.to_owned(), body, reason, field));

    for (verb, rest) in [("GET", ""), ("DELETE", ""), ("POST", ":confirm"), ("GET", "/events")] {
        add(verb, &format!("/v1/holds/7{rest}"), none.clone(), Reason::IdInvalid, Some("id"));
        add(verb, &format!("/v1/holds/{unknown}{rest}"), none.clone(), Reason::HoldNotFound, None);
    }
    add("POST", "/v1/holds:batchCreate", json!({}), Reason::FieldRequired, Some("holds"));
    add(
        "POST",
        "/v1/holds:batchCreate",
        json!({"holds": vec![json!({}); 1001]}),
        Reason::TooManyItems,
        Some("holds"),
    );
    add("POST", "/v1/holds:batchCreate", json!({"holds": [{}, 7]}), Reason::FieldInvalid, Some("holds[1]"));
    for (query, reason, field) in [
        ("", Reason::FieldRequired, "payer"),
        ("payee=a+b", Reason::AccountIdInvalid, "payee"),
        ("phases=PHASE_UNSPECIFIED", Reason::FieldInvalid, "phases"),
        ("phases=HELD", Reason::FieldInvalid, "phases[0]"),
        ("phases=2", Reason::FieldInvalid, "phases[0]"),
        ("labels.K=1", Reason::LabelInvalid, "labels"),
        ("labels=1", Reason::FieldInvalid, "labels"),
        ("labels.a=1&labels[a]=2", Reason::FieldInvalid, "labels.a"),
        ("pageSize=-1", Reason::FieldInvalid, "pageSize"),
        ("page_size=1.5", Reason::FieldInvalid, "pageSize"),
        ("createdFrom=yesterday", Reason::TimeInvalid, "createdFrom"),
        ("createdUntil=2026-11-21", Reason::TimeInvalid, "createdUntil"),
        ("pageToken=x", Reason::PageTokenInvalid, "pageToken"),
        ("pageSize=1&pageSize=2", Reason::FieldInvalid, "pageSize"),
        ("page=1", Reason::FieldUnknown, "page"),
    ] {
        let payer = if query.is_empty() { String::new() } else { format!("payer={alice}&") };
        add("GET", &format!("/v1/holds?{payer}{query}"), none.clone(), reason, Some(field));
    }
    add("POST", "/v1/accounts", json!({"id": "", "currency": "GOLD"}), Reason::FieldRequired, Some("id"));
    add(
        "POST",
        "/v1/accounts",
        json!({"id": "a b", "currency": "GOLD"}),
        Reason::AccountIdInvalid,
        Some("id"),
    );
    add("POST", "/v1/accounts", json!({"id": "new"}), Reason::FieldRequired, Some("currency"));
    add(
        "POST",
        "/v1/accounts",
        json!({"id": "new", "currency": "gold"}),
        Reason::CurrencyInvalid,
        Some("currency"),
    );
    add(
        "POST",
        "/v1/accounts",
        json!({"id": alice, "currency": "SILVER"}),
        Reason::AccountExists,
        Some("currency"),
    );
    for (id, reason) in [
        ("a%0A", Reason::AccountIdInvalid),
        ("%FF", Reason::AccountIdInvalid),
        ("'%3B%20DROP%20TABLE%20account%3B%20--", Reason::AccountIdInvalid),
        ("nobody", Reason::AccountNotFound),
    ] {
        for (verb, rest) in [
            ("GET", ""),
            ("POST", ":block"),
            ("POST", ":unblock"),
            ("POST", ":close"),
            ("GET", "/holdings"),
            ("GET", "/balance"),
            ("GET", "/postings"),
        ] {
            add(verb, &format!("/v1/accounts/{id}{rest}"), none.clone(), reason, None);
        }
    }
    for verb in ["issue", "burn"] {
        let path = format!("/v1/accounts/{alice}:{verb}");
        add("POST", &path, amount("0"), Reason::AmountNotPositive, Some("amount.value"));
        add("POST", &path, amount("9223372036854775808"), Reason::AmountTooLarge, Some("amount.value"));
        add("POST", &path, amount("ten"), Reason::AmountNotInteger, Some("amount.value"));
        add("POST", &path, json!({"account": alice}), Reason::FieldInvalid, Some("account"));
        add("POST", &path, none.clone(), Reason::FieldRequired, Some("id"));
    }
    let postings = format!("/v1/accounts/{alice}/postings");
    add("GET", &format!("{postings}?pageSize=-1"), none.clone(), Reason::FieldInvalid, Some("pageSize"));
    add(
        "GET",
        &format!("{postings}?afterVersion=-1"),
        none.clone(),
        Reason::FieldInvalid,
        Some("afterVersion"),
    );
    add(
        "GET",
        &format!("{postings}?afterVersion=a"),
        none.clone(),
        Reason::FieldInvalid,
        Some("afterVersion"),
    );
    add(
        "GET",
        &format!("{postings}?recordedFrom=1"),
        none.clone(),
        Reason::TimeInvalid,
        Some("recordedFrom"),
    );
    let later = Timestamp::now() + SignedDuration::from_hours(1);
    add(
        "GET",
        &format!("/v1/accounts/{alice}/balance?at={later}"),
        none.clone(),
        Reason::TimeInvalid,
        Some("at"),
    );

    add("GET", "/", none.clone(), Reason::PathUnknown, None);
    add("GET", "/v1/errors/NONSENSE", none.clone(), Reason::PathUnknown, None);
    add("GET", "/tcc.v1.HoldService/GetHold", none.clone(), Reason::PathUnknown, None);
    add("PUT", "/v1/holds", none.clone(), Reason::MethodNotAllowed, None);
    add("POST", "/openapi.json", none.clone(), Reason::MethodNotAllowed, None);
    add("POST", "/v1/holds?payer=x", json!({}), Reason::FieldInvalid, Some("payer"));
    add("DELETE", &format!("/v1/holds/{unknown}"), json!({"etag": "4"}), Reason::MessageMalformed, None);
    add("POST", "/v1/holds", json!({"memo": "x".repeat(64 * 1024)}), Reason::BodyTooLarge, None);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_request_is_told_what_is_wrong_and_changes_nothing() {
    let mut face = Face::start().await;
    let alice = face.alice.clone();
    let before = face.client.audit_is_clean().await;

    for (verb, path, body, reason, field) in wrong_requests(&alice) {
        let what = format!("{verb} {path} {:.200}", body.to_string());
        face.http.send(verb, &path, &body).await.check(&what, reason, field);
    }
    let good = face.hold().to_string();
    let amount = |value: &str| good.replace("\"10\"", value);
    let with = |member: &str| good.replacen('{', &format!("{{{member}, "), 1);
    for (body, reason, field) in [
        (String::new(), Reason::IdempotencyKeyRequired, None),
        ("null".into(), Reason::MessageMalformed, None),
        ("{\"payer\": ".into(), Reason::MessageMalformed, None),
        ("{} {}".into(), Reason::MessageMalformed, None),
        ("[".repeat(10_000), Reason::MessageMalformed, None),
        (with("\"payer\": \"x\""), Reason::FieldInvalid, Some("payer")),
        (with("\"due_at\": null"), Reason::FieldInvalid, Some("dueAt")),
        (with("\"memo\": 1"), Reason::FieldUnknown, Some("memo")),
        (amount("10.0"), Reason::AmountNotInteger, Some("amount.value")),
        (amount("1e1"), Reason::AmountNotInteger, Some("amount.value")),
        (amount("9007199254740992"), Reason::AmountNotInteger, Some("amount.value")),
    ] {
        let answer = face.http.ask("POST", "/v1/holds", &[("content-type", "application/json")], &body).await;
        answer.check(&format!("{body:.200}"), reason, field);
    }
    let json = ("content-type", "application/json");
    let wrong_headers: [(&[(&str, &str)], Reason); 5] = [
        (&[], Reason::MediaTypeUnsupported),
        (&[("content-type", "text/plain")], Reason::MediaTypeUnsupported),
        (&[json, ("content-encoding", "gzip")], Reason::MediaTypeUnsupported),
        (&[json, ("accept", "text/html")], Reason::NotAcceptable),
        (&[json, ("tcc-caller", "a b")], Reason::CallerInvalid),
    ];
    for (headers, reason) in wrong_headers {
        face.http.ask("POST", "/v1/holds", headers, &good).await.check(&format!("{headers:?}"), reason, None);
    }
    let not_allowed = face.http.send("PUT", "/v1/holds", &Value::Null).await;
    assert_eq!(not_allowed.header("allow"), "POST, GET");
    let head = face.http.send("HEAD", &format!("/v1/accounts/{alice}"), &Value::Null).await;
    assert_eq!((head.status, head.json), (200, Value::Null));

    let after = face.client.audit_is_clean().await;
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manual_has_every_path() {
    let mut face = Face::start().await;
    let manual = include_str!("../../coordinator/docs/http.md");

    for (verb, path) in routes(&mut face.http).await {
        assert!(manual.contains(&format!("| `{verb} {path}` |")), "{verb} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_is_explained_where_its_type_points_to() {
    let mut face = Face::start().await;
    let problem = face.http.send("GET", &format!("/v1/holds/{}", new_id()), &Value::Null).await;

    let page = face.http.send("GET", problem.json["type"].as_str().unwrap(), &Value::Null).await;

    let expected = json!({
        "reason": "HOLD_NOT_FOUND",
        "code": "NOT_FOUND",
        "status": 404,
        "meaning": Reason::HoldNotFound.meaning(),
        "advice": Reason::HoldNotFound.advice(),
    });
    assert_eq!((page.status, page.json), (200, expected));
}

/// Any JSON, which has some of the names and values that mean something.
fn any_json(words: Vec<String>) -> BoxedStrategy<Value> {
    let word = prop_oneof![prop::sample::select(words), "\\PC{0,12}"].boxed();
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-5_i64..5).prop_map(Value::from),
        any::<i64>().prop_map(|number| json!(number.to_string())),
        word.clone().prop_map(Value::from),
    ];
    let nested = leaf.prop_recursive(3, 24, 8, move |inner| {
        let members = vec((word.clone(), inner.clone()), 0..8);
        prop_oneof![
            vec(inner, 0..4).prop_map(Value::from),
            members.prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    nested.boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_anybody_sends_is_an_internal_error() {
    let mut face = Face::start().await;
    let routes: Vec<_> = routes(&mut face.http).await.into_iter().collect();
    let good = face.hold();
    let mut words: Vec<String> = good.as_object().unwrap().keys().cloned().collect();
    words.extend([&*face.alice, &*face.bob, "GOLD", "value", "currency", "holds"].map(str::to_owned));
    words.extend(
        [v1::OnMaturity::Confirm, v1::OnMaturity::Unspecified].map(|value| value.as_str_name().to_owned()),
    );
    words.push(new_id());
    let json = any_json(words);
    let pick = prop::sample::select(routes);
    let text = "[ -~]{0,20}";
    let mut runner = TestRunner::new(Config::default());
    let started = Instant::now();
    let mut answered = 0;

    while started.elapsed() < FUZZ {
        let mut new = |strategy: &BoxedStrategy<Value>| strategy.new_tree(&mut runner).unwrap().current();
        let (random, change) = (new(&json), new(&json));
        let (verb, path) = pick.new_tree(&mut runner).unwrap().current();
        let noise = text.new_tree(&mut runner).unwrap().current();
        let noise = noise.replace(|c: char| !c.is_ascii_alphanumeric() && !"%&=+.:/[]-_".contains(c), "+");
        let path = path.replace("{id}", &format!("x{noise}")).replace("{account}", &face.alice);
        // A creation with one member changed, a query, or anything at all.
        let body = match (verb.as_str(), answered % 2, change.as_str()) {
            ("POST", 0, Some(name)) => {
                let mut body = good.clone();
                body[name] = random;
                body
            }
            ("POST", ..) => random,
            _ => Value::Null,
        };
        let path = if verb == "GET" { format!("{path}?{noise}") } else { path };
        let headers =
            [("content-type", "application/json"), ("idempotency-key", &*noise), ("prefer", "wait=1")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = face.http.ask(&verb, &path, &headers, &body).await;
        assert!(!(500..=502).contains(&response.status), "{verb} {path} {body}: {response:?}");
        answered += 1;
    }

    assert!(answered > 100, "only {answered} requests");
    face.client.audit_is_clean().await;
}
