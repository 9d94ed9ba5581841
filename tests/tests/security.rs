//! Who may call, and do what: every way of not being allowed, against a server that runs.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tcc_coordinator::{
    auth::{
        Role,
        methods::{Access, METHODS},
    },
    config::{Auth, Config, Database, Jwt, ShardConfig, Traffic},
    serve::{self, Running},
};
use tcc_proto::v1::{
    self, hold_service_client::HoldServiceClient, ledger_service_client::LedgerServiceClient,
    operator_service_client::OperatorServiceClient, recovery_service_client::RecoveryServiceClient,
};
use tcc_tests::{
    System, hold, new_id, reason,
    secure::{self, Authority, Caller, Known, Provider, claims},
    until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What a server that must not start says.
async fn refusal(config: Config) -> String {
    let shard = ShardConfig::new("shard-0", "host=/nonexistent");
    let databases =
        Config { coordinator: Database { url: "host=/nonexistent".into() }, shards: vec![shard], ..config };
    match serve::start(&databases).await {
        Ok(running) => panic!("it listens on {}", running.address),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn what_would_be_open_does_not_start_and_says_what_to_do() {
    let known = Known::new();
    let listen = |address: &str| Config { listen: address.into(), ..Config::default() };

    let exposed = refusal(Config { insecure_dev: true, ..listen("0.0.0.0:0") }).await;
    let closed = refusal(listen("127.0.0.1:0")).await;
    let unencrypted = refusal(Config { auth: known.auth(), ..listen("0.0.0.0:0") }).await;
    let contradiction =
        refusal(Config { insecure_dev: true, auth: known.auth(), ..listen("127.0.0.1:0") }).await;

    assert!(exposed.contains("0.0.0.0:0 is none: listen on 127.0.0.1"), "{exposed}");
    assert!(closed.contains("[auth] is missing") && closed.contains("--insecure-dev"), "{closed}");
    assert!(unencrypted.contains("configure [tls]"), "{unencrypted}");
    assert!(contradiction.contains("leave one of them out"), "{contradiction}");
}

#[tokio::test]
async fn a_wrong_file_is_named_at_the_start() {
    let known = Known::new();
    known.write("callers.toml", "[[caller]]\nname = \"a\"\nroles = [\"king\"]\n");
    let none = Auth { callers: Some(known.path("missing.toml")), jwt: None };

    let wrong = refusal(Config { auth: known.auth(), ..Config::default() }).await;
    let missing = refusal(Config { auth: none, ..Config::default() }).await;

    assert!(wrong.contains("callers.toml") && wrong.contains("there is no role \"king\""), "{wrong}");
    assert!(missing.contains("cannot read") && missing.contains("missing.toml"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_is_open_to_its_roles_and_to_nobody_else() {
    let system = System::start().await;
    let mut known = Known::new();
    let callers =
        Role::ALL.map(|role| (role, known.caller(&role.name().replace('_', "-"), &[role.name()], &["*"])));
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let nobody = Caller::plain(running.address, None).await;

    for (path, access) in METHODS {
        let anonymous = nobody.call(path).await;
        if *access == Access::Anyone {
            assert!(!is_sent_away(&anonymous), "{path}: {anonymous:?}");
            continue;
        }
        let anonymous = anonymous.unwrap_err();
        assert_eq!(
            (anonymous.code(), reason(&anonymous).as_str()),
            (Code::Unauthenticated, "TOKEN_MISSING"),
            "{path}"
        );
        for (role, key) in &callers {
            let Access::Having(roles) = access else { unreachable!() };

            let answer = nobody.with(key).call(path).await;

            if roles.contains(role) {
                assert!(!is_sent_away(&answer), "{role:?} may call {path}: {answer:?}");
            } else {
                let status = answer.unwrap_err();
                let expected = (Code::PermissionDenied, "NOT_ALLOWED");
                assert_eq!((status.code(), reason(&status).as_str()), expected, "{role:?} calls {path}");
            }
        }
    }

    let unknown = nobody.with(&callers[0].1).call("/tcc.v1.HoldService/StealHold").await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    let unknown = nobody.call("/tcc.v1.HoldService/StealHold").await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unauthenticated, "who says nothing learns nothing");
    stop(running).await;
}

/// Whether the gate, and not the method, has answered.
fn is_sent_away(answer: &Result<(), Status>) -> bool {
    let code = answer.as_ref().err().map(Status::code);
    matches!(code, Some(Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented))
}

async fn stop(running: Running) {
    running.stop().cancel();
    running.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_touches_its_own_accounts_and_nobody_elses() {
    let system = System::start().await;
    let mut developer = secure::beside(&system).await;
    for (account, funds) in [("shop-1", 1_000), ("bank-1", 1_000)] {
        developer.client.account(account, funds).await;
    }
    let mut known = Known::new();
    let [shop, bank, other] =
        ["shop", "bank", "other"].map(|name| known.caller(name, &["application"], &[&format!("{name}-*")]));
    let viewer = known.caller("viewer", &["viewer"], &[]);
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let shop = Caller::plain(running.address, Some(&shop)).await;
    let (bank, other, viewer) = (shop.with(&bank), shop.with(&other), shop.with(&viewer));
    let create = async |caller: &Caller, request: &v1::CreateHoldRequest| {
        HoldServiceClient::new(caller.channel.clone()).create_hold(caller.request(request.clone())).await
    };
    let get = async |caller: &Caller, id: &str| {
        let request = caller.request(v1::GetHoldRequest { id: id.into() });
        HoldServiceClient::new(caller.channel.clone()).get_hold(request).await.map(drop)
    };
    let cancel = async |caller: &Caller, id: &str| {
        let request = caller.request(v1::CancelHoldRequest { id: id.into(), etag: String::new() });
        HoldServiceClient::new(caller.channel.clone()).cancel_hold(request).await.map(drop)
    };
    let confirm = async |caller: &Caller, id: &str| {
        let request = caller.request(v1::ConfirmHoldRequest { id: id.into(), etag: String::new() });
        HoldServiceClient::new(caller.channel.clone()).confirm_hold(request).await.map(drop)
    };
    let account = async |caller: &Caller, id: &str| {
        let request = caller.request(v1::GetAccountRequest { id: id.into() });
        LedgerServiceClient::new(caller.channel.clone()).get_account(request).await.map(drop)
    };

    let request = hold("shop-1", "bank-1", 100);
    create(&shop, &request).await.unwrap();
    let id = request.id.as_str();

    // To spend somebody else's money is refused in the same words whether or not there is any.
    for payer in ["shop-1", "shop-nonexistent"] {
        let status = create(&bank, &hold(payer, "bank-1", 1)).await.unwrap_err();
        let expected = format!("payer: you may not act for account {payer}");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "NOT_ALLOWED"));
        assert_eq!(status.message(), expected);
    }
    // Not even by repeating what its owner has asked for.
    assert_eq!(create(&bank, &request).await.unwrap_err().code(), Code::PermissionDenied);

    // The payer, the payee and the viewer see it; nobody else learns that there is such a hold.
    for caller in [&shop, &bank, &viewer] {
        get(caller, id).await.unwrap();
    }
    let absent = new_id();
    for (theirs, none) in [
        (get(&other, id).await, get(&other, &absent).await),
        (cancel(&other, id).await, cancel(&other, &absent).await),
        (confirm(&other, id).await, confirm(&other, &absent).await),
    ] {
        let (theirs, none) = (theirs.unwrap_err(), none.unwrap_err());
        assert_eq!((theirs.code(), reason(&theirs).as_str()), (Code::NotFound, "HOLD_NOT_FOUND"));
        assert_eq!(theirs.message().replace(id, &absent), none.message(), "no difference");
    }

    // The payee sees it and decides nothing.
    for status in [cancel(&bank, id).await.unwrap_err(), confirm(&bank, id).await.unwrap_err()] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "NOT_ALLOWED"));
    }

    // Accounts are as private.
    account(&shop, "shop-1").await.unwrap();
    account(&viewer, "shop-1").await.unwrap();
    for id in ["bank-1", "bank-nonexistent"] {
        assert_eq!(reason(&account(&shop, id).await.unwrap_err()), "NOT_ALLOWED", "{id}");
    }

    assert_eq!(developer.client.balances("shop-1").await, (900, 100), "nothing of this moved anything");
    cancel(&shop, id).await.unwrap();
    assert_eq!(developer.client.balances("shop-1").await, (1_000, 0));
    stop(running).await;
    developer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_transfers_lists_watches_and_books_are_bounded_like_single_holds() {
    let system = System::start().await;
    let mut developer = secure::beside(&system).await;
    for account in ["shop-1", "bank-1"] {
        developer.client.account(account, 1_000).await;
    }
    let mut known = Known::new();
    let [shop, other] =
        ["shop", "other"].map(|name| known.caller(name, &["application"], &[&format!("{name}-*")]));
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let shop = Caller::plain(running.address, Some(&shop)).await;
    let other = shop.with(&other);
    let mut holds = HoldServiceClient::new(shop.channel.clone());
    let mut ledger = LedgerServiceClient::new(shop.channel.clone());
    let (mine, theirs) = (hold("shop-1", "bank-1", 10), hold("bank-1", "shop-1", 10));

    // Of a batch each item is judged for itself.
    let batch = v1::BatchCreateHoldsRequest { holds: vec![theirs.clone(), mine.clone()] };
    let answer = holds.batch_create_holds(shop.request(batch)).await.unwrap().into_inner();
    let said = answer.outcomes.into_iter().map(|outcome| match outcome.outcome.unwrap() {
        v1::batch_create_holds_outcome::Outcome::Created(created) => created.hold.unwrap().id,
        v1::batch_create_holds_outcome::Outcome::Error(error) => error.reason,
    });
    assert_eq!(said.collect::<Vec<_>>(), ["NOT_ALLOWED".to_owned(), mine.id.clone()]);

    // Neither a transfer nor what only looks whether it could be spends or learns more.
    let transfer = v1::TransferRequest {
        id: new_id(),
        payer: "bank-1".into(),
        payee: "shop-1".into(),
        amount: theirs.amount.clone(),
        ..Default::default()
    };
    assert_eq!(reason(&holds.transfer(shop.request(transfer)).await.unwrap_err()), "NOT_ALLOWED");
    let validated = v1::CreateHoldRequest { validate_only: true, ..theirs };
    assert_eq!(reason(&holds.create_hold(shop.request(validated)).await.unwrap_err()), "NOT_ALLOWED");

    // A list goes by an account of one's own.
    let list = |payer: &str, payee: &str| v1::ListHoldsRequest {
        payer: payer.into(),
        payee: payee.into(),
        ..Default::default()
    };
    let listed = async |caller: &Caller, payer: &str, payee: &str| {
        let request = caller.request(list(payer, payee));
        let answer = HoldServiceClient::new(caller.channel.clone()).list_holds(request).await;
        answer.map(|answer| answer.into_inner().holds.len()).map_err(|status| reason(&status))
    };
    assert_eq!(listed(&shop, "shop-1", "").await, Ok(1));
    assert_eq!(listed(&shop, "shop-1", "bank-1").await, Ok(1));
    assert_eq!(listed(&shop, "bank-1", "shop-1").await, Ok(0), "what the bank pays to the shop");
    for (payer, payee) in [("bank-1", ""), ("", "bank-1"), ("bank-1", "bank-2")] {
        assert_eq!(listed(&shop, payer, payee).await, Err("NOT_ALLOWED".into()), "{payer} {payee}");
    }
    assert_eq!(listed(&other, "shop-1", "bank-1").await, Err("NOT_ALLOWED".into()));

    // Who may not see a hold can neither watch it nor learn its etag.
    let watch = v1::WatchHoldRequest { id: mine.id.clone(), etag: String::new() };
    let mut watching = holds.watch_hold(shop.request(watch.clone())).await.unwrap().into_inner();
    assert!(watching.message().await.unwrap().is_some());
    assert_eq!(reason(&holds.watch_hold(other.request(watch)).await.unwrap_err()), "HOLD_NOT_FOUND");
    for etag in ["0", "nonsense"] {
        let cancel = v1::CancelHoldRequest { id: mine.id.clone(), etag: etag.into() };
        assert_eq!(reason(&holds.cancel_hold(other.request(cancel)).await.unwrap_err()), "HOLD_NOT_FOUND");
        let confirm = v1::ConfirmHoldRequest { id: mine.id.clone(), etag: etag.into() };
        assert_eq!(reason(&holds.confirm_hold(other.request(confirm)).await.unwrap_err()), "HOLD_NOT_FOUND");
    }

    // Books are as private as the account.
    for (account, is_allowed) in [("shop-1", true), ("bank-1", false), ("bank-nonexistent", false)] {
        let account = account.to_owned();
        let holdings = shop.request(v1::GetHoldingsRequest { account: account.clone() });
        let balance = shop.request(v1::GetBalanceRequest { account: account.clone(), at: None });
        let postings =
            shop.request(v1::ListPostingsRequest { account: account.clone(), ..Default::default() });
        for answer in [
            ledger.get_holdings(holdings).await.map(drop),
            ledger.get_balance(balance).await.map(drop),
            ledger.list_postings(postings).await.map(drop),
        ] {
            match answer {
                Ok(()) => assert!(is_allowed, "{account}"),
                Err(status) => assert_eq!((is_allowed, reason(&status).as_str()), (false, "NOT_ALLOWED")),
            }
        }
    }

    assert_eq!(developer.client.balances("shop-1").await, (990, 10));
    assert_eq!(developer.client.balances("bank-1").await, (1_000, 0));
    drop(watching);
    stop(running).await;
    developer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_whoever_has_proved_to_be_its_caller() {
    let system = System::start().await;
    let mut developer = secure::beside(&system).await;
    developer.client.account("shop-1", 1_000).await;
    developer.client.account("bank-1", 0).await;
    let mut known = Known::new();
    let [one, two] = ["one", "two"].map(|name| known.caller(name, &["application", "viewer"], &["*"]));
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let one = Caller::plain(running.address, Some(&one)).await;
    let two = one.with(&two);
    until("keys are taken", || async {
        let request = one.request(v1::GetStatusRequest {});
        let status = OperatorServiceClient::new(one.channel.clone()).get_status(request).await;
        status.is_ok_and(|status| status.into_inner().unswept_shards == 0)
    })
    .await;
    let keyed = v1::CreateHoldRequest {
        id: String::new(),
        idempotency_key: "order-4711".into(),
        ..hold("shop-1", "bank-1", 10)
    };
    let create = async |caller: &Caller, says: Option<&str>| {
        let mut request = caller.request(keyed.clone());
        if let Some(name) = says {
            request.metadata_mut().insert("tcc-caller", name.parse().unwrap());
        }
        let answer = HoldServiceClient::new(caller.channel.clone()).create_hold(request).await.unwrap();
        answer.into_inner().hold.unwrap().id
    };

    let of_one = create(&one, None).await;
    let again = create(&one, None).await;
    let of_two = create(&two, None).await;
    let pretended = create(&two, Some("one")).await;
    let nonsense = create(&two, Some("no name at all")).await;

    assert_eq!(of_one, again);
    assert_ne!(of_one, of_two);
    assert_eq!((&pretended, &nonsense), (&of_two, &of_two), "nobody looks at what a caller says of itself");
    stop(running).await;
    developer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_did_is_recorded_with_the_name_that_it_has_proved() {
    let system = System::start().await;
    let mut known = Known::new();
    let carol = known.caller("carol", &["operator"], &[]);
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let carol = Caller::plain(running.address, Some(&carol)).await;
    let mut recovery = RecoveryServiceClient::new(carol.channel.clone());
    let (name, reason) = ("shard-0".to_owned(), "a test".to_owned());

    let mut drain = carol.request(v1::DrainShardRequest { name, reason, ticket: String::new() });
    drain.metadata_mut().insert("tcc-caller", "dave".parse().unwrap());
    recovery.drain_shard(drain).await.unwrap();

    let list = carol.request(v1::ListActionsRequest::default());
    let actions = recovery.list_actions(list).await.unwrap().into_inner().actions;
    assert_eq!(actions.len(), 1);
    assert_eq!((actions[0].actor.as_str(), actions[0].target.as_str()), ("carol", "shard-0"));
    assert!(actions[0].address.starts_with("127.0.0.1:"), "{}", actions[0].address);
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_token_is_not_believed() {
    let system = System::start().await;
    let known = Known::new();
    let (provider, edwards, rsa) = (Provider::new("a"), Provider::edwards("b"), Provider::rsa("c"));
    let stranger = Provider::new("a");
    let jwt = known.trust(&[&provider, &edwards, &rsa]);
    let auth = Auth { callers: None, jwt: Some(jwt) };
    let running = secure::coordinator(&secure::config(&system, auth)).await;
    let nobody = Caller::plain(running.address, None).await;
    let now = jsonwebtoken::get_current_timestamp();
    let judge = async |token: &str| {
        let answer = nobody.with(token).call("/tcc.v1.HoldService/GetHold").await.unwrap_err();
        (answer.code(), reason(&answer))
    };

    // Without a signature, with a header that says so.
    let good = provider.token(json!({}));
    let payload = good.split('.').nth(1).unwrap();
    let none = ["eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0", payload, ""].join(".");
    // Signed with the public key, as if it were a shared secret.
    let public = provider.public().to_string();
    let mut confused = Header::new(Algorithm::HS256);
    confused.kid = Some("a".into());
    let confused =
        jsonwebtoken::encode(&confused, &claims(json!({})), &EncodingKey::from_secret(public.as_bytes()));
    // With another algorithm's name over a signature of the right key.
    let (_, rest) = good.split_once('.').unwrap();
    let renamed = format!("eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6ImEifQ.{rest}");
    let mut critical = Header::new(Algorithm::ES256);
    (critical.kid, critical.crit) = (Some("a".into()), Some(vec!["b64".into()]));
    let mut nameless = Header::new(Algorithm::ES256);
    nameless.kid = Some("nobody-knows-this-key".repeat(100));
    let broken = format!("{}x", &good[..good.len() - 2]);

    let believed = [
        good.clone(),
        edwards.token(json!({})),
        rsa.token(json!({})),
        provider.sign(&Header::new(Algorithm::ES256), json!({})),
        provider.token(json!({ "exp": now - 20 })),
        provider.token(json!({ "nbf": now + 20 })),
        provider.token(json!({ "aud": ["other", "tcc"] })),
        provider.token(json!({ "sub": "s".repeat(60) })),
    ];
    for (n, token) in believed.iter().enumerate() {
        assert_eq!(judge(token).await, (Code::InvalidArgument, "FIELD_REQUIRED".into()), "good token {n}");
    }
    let invalid = [
        ("none", none),
        ("a shared secret", confused.unwrap()),
        ("renamed", renamed),
        ("critical", provider.sign(&critical, json!({}))),
        ("an unknown key", provider.sign(&nameless, json!({}))),
        ("another key of the same name", stranger.token(json!({}))),
        ("a broken signature", broken),
        ("another issuer", provider.token(json!({ "iss": "https://evil.test/" }))),
        ("no issuer", provider.token(json!({ "iss": null }))),
        ("another audience", provider.token(json!({ "aud": "other" }))),
        ("no audience", provider.token(json!({ "aud": null }))),
        ("not valid yet", provider.token(json!({ "nbf": now + 60 }))),
        ("issued in the future", provider.token(json!({ "iat": now + 60 }))),
        ("without end", provider.token(json!({ "exp": null }))),
        ("an end that is no number", provider.token(json!({ "exp": "never" }))),
        ("without subject", provider.token(json!({ "sub": null }))),
        ("an empty subject", provider.token(json!({ "sub": "" }))),
        ("a subject with a line end", provider.token(json!({ "sub": "a\nb" }))),
        ("a subject that is too long", provider.token(json!({ "sub": "s".repeat(61) }))),
        ("no token at all", "x".into()),
        ("an API key that nobody has", format!("tcc_{}", "0".repeat(64))),
    ];
    for (what, token) in invalid {
        assert_eq!(judge(&token).await, (Code::Unauthenticated, "TOKEN_INVALID".into()), "{what}");
    }
    let expired = provider.token(json!({ "exp": now - 60 }));
    assert_eq!(judge(&expired).await, (Code::Unauthenticated, "TOKEN_EXPIRED".into()));

    // Believed, but without a role, or with one that is not known here.
    for roles in [json!(null), json!([]), json!(["admin", "root"])] {
        let token = provider.token(json!({ "tcc_roles": roles }));
        assert_eq!(judge(&token).await, (Code::PermissionDenied, "NOT_ALLOWED".into()));
    }
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_bounds_its_caller_and_ends_when_the_provider_takes_its_key_back() {
    let system = System::start().await;
    let mut developer = secure::beside(&system).await;
    developer.client.account("shop-1", 1_000).await;
    developer.client.account("bank-1", 0).await;
    let known = Known::new();
    let (old, new) = (Provider::new("old"), Provider::new("new"));
    let auth = Auth { callers: None, jwt: Some(known.trust(&[&old])) };
    let running = secure::coordinator(&secure::config(&system, auth)).await;
    let token = old.token(json!({ "tcc_roles": "application", "tcc_accounts": "shop-1 shop-2" }));
    let shop = Caller::plain(running.address, Some(&token)).await;
    let create = async |caller: &Caller, request: v1::CreateHoldRequest| {
        HoldServiceClient::new(caller.channel.clone()).create_hold(caller.request(request)).await.map(drop)
    };

    create(&shop, hold("shop-1", "bank-1", 1)).await.unwrap();
    assert_eq!(reason(&create(&shop, hold("bank-1", "shop-1", 1)).await.unwrap_err()), "NOT_ALLOWED");

    // Both keys for a while, then the new one alone.
    known.trust(&[&old, &new]);
    let renewed = shop.with(&new.token(json!({ "tcc_accounts": ["shop-1"] })));
    until("the new key is known", || async { create(&renewed, hold("shop-1", "bank-1", 1)).await.is_ok() })
        .await;
    create(&shop, hold("shop-1", "bank-1", 1)).await.expect("the old key is still good");
    known.trust(&[&new]);
    until("the old key is refused", || async {
        let answer = create(&shop, hold("shop-1", "bank-1", 1)).await;
        answer.is_err_and(|status| reason(&status) == "TOKEN_INVALID")
    })
    .await;
    create(&renewed, hold("shop-1", "bank-1", 1)).await.unwrap();
    stop(running).await;
    developer.stop().await;
}

/// A web server that answers with a document, as long as there is one.
struct Published {
    address: std::net::SocketAddr,
    document: Arc<Mutex<Option<String>>>,
}

impl Published {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let document = Arc::new(Mutex::new(None::<String>));
        let shown = Arc::clone(&document);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4_096]).await;
                let answer = match &*shown.lock().unwrap() {
                    Some(text) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()),
                    None => "HTTP/1.1 503 Gone\r\ncontent-length: 0\r\n\r\n".to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, document }
    }

    fn show(&self, providers: &[&Provider]) {
        let keys: Vec<_> = providers.iter().map(|provider| provider.public()).collect();
        *self.document.lock().unwrap() = Some(json!({ "keys": keys }).to_string());
    }

    fn hide(&self) {
        *self.document.lock().unwrap() = None;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_asked_for_keys_that_are_not_known_and_may_be_down_meanwhile() {
    let system = System::start().await;
    let (published, known) = (Published::start().await, Known::new());
    let (old, new) = (Provider::new("old"), Provider::new("new"));
    let keys = format!("http://{}/keys", published.address);
    let jwt = Jwt { keys, ..known.trust(&[&old]) };
    let auth = Auth { callers: None, jwt: Some(jwt.clone()) };

    // It is down at the start, which stops nobody.
    let running = secure::coordinator(&secure::config(&system, auth)).await;
    let old = (Caller::plain(running.address, Some(&old.token(json!({"tcc_roles": ["viewer"]})))).await, old);
    let is_known = async |caller: &Caller| caller.call("/tcc.v1.OperatorService/GetStatus").await.is_ok();
    assert!(!is_known(&old.0).await);
    published.show(&[&old.1]);
    until("the keys are known", || is_known(&old.0)).await;

    // Then it changes its keys, and nobody has told us.
    published.show(&[&old.1, &new]);
    let new = old.0.with(&new.token(json!({"tcc_roles": ["viewer"]})));
    until("the new key is known", || is_known(&new)).await;

    // And is down again.
    published.hide();
    assert!(is_known(&new).await && is_known(&old.0).await, "the last keys stay in use");
    stop(running).await;

    let clear = Jwt { keys: "http://login.example.com/keys".into(), ..jwt };
    let refused =
        refusal(Config { auth: Auth { callers: None, jwt: Some(clear) }, ..Config::default() }).await;
    assert!(refused.contains("must be https"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_is_replaced_without_a_restart() {
    let system = System::start().await;
    let mut known = Known::new();
    let old = known.caller("shop", &["viewer"], &[]);
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let old = Caller::plain(running.address, Some(&old)).await;
    let is_known = async |caller: &Caller| caller.call("/tcc.v1.OperatorService/GetStatus").await.is_ok();
    assert!(is_known(&old).await);

    // A file that cannot be read changes nothing.
    known.write("callers.toml", "[[caller]]\nname =");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(is_known(&old).await);

    known.clear();
    let new = old.with(&known.caller("shop", &["viewer"], &[]));
    until("the new key is known", || is_known(&new)).await;
    assert!(!is_known(&old).await, "and the old one is not any more");
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_an_identity_if_its_authority_and_its_name_are_known() {
    let system = System::start().await;
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let mut known = Known::new();
    known.caller_with_certificate("shop", &["viewer"], "shop.internal");
    let key = known.caller("desk", &["operator"], &[]);
    let tls = known.certify(&servers.certificate(&["localhost"]), Some(&clients));
    let mut config = Config { tls: Some(tls), ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    let status = "/tcc.v1.OperatorService/GetStatus";
    let audit = "/tcc.v1.OperatorService/RunAudit";
    let (shop, unknown) = (clients.certificate(&["shop.internal"]), clients.certificate(&["evil.internal"]));
    let connect = async |trusts: &Authority, with: Option<&(String, String)>| {
        Caller::encrypted(running.address, trusts, with, None).await
    };

    let by_certificate = connect(&servers, Some(&shop)).await.unwrap();
    by_certificate.call(status).await.unwrap();
    assert_eq!(reason(&by_certificate.call(audit).await.unwrap_err()), "NOT_ALLOWED");
    // A credential goes before the certificate of the connection that it comes over.
    assert!(!is_sent_away(&by_certificate.with(&key).call(audit).await));
    let by_unknown = connect(&servers, Some(&unknown)).await.unwrap();
    assert_eq!(reason(&by_unknown.call(status).await.unwrap_err()), "CERTIFICATE_UNKNOWN");
    let without = connect(&servers, None).await.unwrap();
    assert_eq!(reason(&without.call(status).await.unwrap_err()), "TOKEN_MISSING");
    assert!(connect(&strangers, None).await.is_err(), "the client does not trust this server");
    let forged = strangers.certificate(&["shop.internal"]);
    assert!(
        is_cut_off(connect(&servers, Some(&forged)).await, status).await,
        "the server does not trust this client"
    );
    let plain = tonic::transport::Channel::from_shared(format!("http://{}", running.address)).unwrap();
    assert!(
        plain.connect().await.is_err()
            || Caller::plain(running.address, Some(&key)).await.call(status).await.is_err()
    );
    stop(running).await;

    // And where a certificate is required nobody speaks without.
    config.tls.as_mut().unwrap().require_client_certificate = true;
    let running = secure::coordinator(&config).await;
    let without = Caller::encrypted(running.address, &servers, None, Some(&key)).await;
    assert!(is_cut_off(without, status).await);
    Caller::encrypted(running.address, &servers, Some(&shop), None)
        .await
        .unwrap()
        .call(status)
        .await
        .unwrap();
    stop(running).await;
}

/// Whether a connection ended before anything was answered. In TLS 1.3 a client learns of a refused certificate afterwards.
async fn is_cut_off(caller: Result<Caller, tonic::transport::Error>, path: &str) -> bool {
    match caller {
        Err(_) => true,
        Ok(caller) => caller.call(path).await.is_err_and(|status| status.get_details_error_info().is_none()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_without_a_restart_and_without_breaking_connections() {
    let system = System::start().await;
    let (first, second) = (Authority::new(), Authority::new());
    let mut known = Known::new();
    let key = known.caller("desk", &["viewer"], &[]);
    let tls = known.certify(&first.certificate(&["localhost"]), None);
    let config = Config { tls: Some(tls), ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    let status = "/tcc.v1.OperatorService/GetStatus";
    let before = Caller::encrypted(running.address, &first, None, Some(&key)).await.unwrap();
    before.call(status).await.unwrap();

    // A certificate without its key is not used.
    let (certificate, its_key) = second.certificate(&["localhost"]);
    known.write("server.pem", &certificate);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(Caller::encrypted(running.address, &first, None, Some(&key)).await.is_ok());
    known.write("server.key", &its_key);
    until("the new certificate is shown", || async {
        Caller::encrypted(running.address, &second, None, Some(&key)).await.is_ok()
    })
    .await;

    before.call(status).await.expect("a connection that was there goes on");
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tccctl_shows_its_token_from_a_file_and_verifies_the_server() {
    let system = System::start().await;
    let servers = Authority::new();
    let mut known = Known::new();
    let key = known.caller("desk", &["operator"], &[]);
    let tls = known.certify(&servers.certificate(&["localhost"]), None);
    let config = Config { tls: Some(tls), ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    known.write("token", &format!("{key}\n"));
    known.write("ca.pem", &servers.pem);
    known.write("other.pem", &Authority::new().pem);
    let server = format!("https://localhost:{}", running.address.port());
    let status = async |ca: &str, token: Option<&str>| {
        let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("tccctl");
        let mut command = tokio::process::Command::new(program);
        command.args(["--server", &server, "status"]).env("TCC_CA", known.path(ca)).env_remove("TCC_TOKEN");
        if let Some(token) = token {
            command.arg("--token-file").arg(known.path(token));
        }
        let output = command.output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    let (done, errors) = status("ca.pem", Some("token")).await;
    let (anonymous, advice) = status("ca.pem", None).await;
    let (unverified, cause) = status("other.pem", Some("token")).await;

    assert_eq!(done, Some(0), "{errors}");
    assert_eq!(anonymous, Some(1));
    assert!(advice.contains("TOKEN_MISSING") && advice.contains("--token-file"), "{advice}");
    assert_eq!(unverified, Some(4));
    assert!(cause.contains("certificate"), "{cause}");
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_asks_too_fast_is_told_how_long_to_wait_and_others_are_not() {
    let system = System::start().await;
    let mut known = Known::new();
    let (fast, slow) = (known.caller("fast", &["viewer"], &[]), known.caller("slow", &["viewer"], &[]));
    let traffic = Traffic { caller_requests_per_second: 1, caller_burst: 5, ..Traffic::default() };
    let config = Config { traffic, ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    let fast = Caller::plain(running.address, Some(&fast)).await;
    let slow = fast.with(&slow);
    let status = "/tcc.v1.OperatorService/GetStatus";

    let mut refused = None;
    for _ in 0..20 {
        if let Err(status) = fast.call(status).await {
            refused = Some(status);
            break;
        }
    }

    let refused = refused.expect("twenty at once are too many");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    let wait = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(wait <= Duration::from_secs(1) && !wait.is_zero(), "{wait:?}");
    slow.call(status).await.expect("another caller does not notice");
    tokio::time::sleep(wait).await;
    fast.call(status).await.expect("after the wait there is room");
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_counts_as_its_items() {
    let system = System::start().await;
    let mut known = Known::new();
    let key = known.caller("shop", &["application"], &["shop-*"]);
    let traffic = Traffic { caller_requests_per_second: 1, caller_burst: 100, ..Traffic::default() };
    let config = Config { traffic, ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    let shop = Caller::plain(running.address, Some(&key)).await;
    let batch = async |items: usize| {
        let holds = (0..items).map(|_| hold("bank-1", "shop-1", 1)).collect();
        let request = shop.request(v1::BatchCreateHoldsRequest { holds });
        HoldServiceClient::new(shop.channel.clone()).batch_create_holds(request).await.map(drop)
    };

    batch(60).await.expect("there is room for a hundred");
    let refused = batch(60).await.unwrap_err();

    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    assert!(refused.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::from_secs(1));
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_of_one_caller_take_no_room_from_others() {
    let system = System::start().await;
    let mut developer = secure::beside(&system).await;
    developer.client.account("shop-1", 1_000).await;
    developer.client.account("bank-1", 0).await;
    let request = hold("shop-1", "bank-1", 10);
    developer.client.create(&request).await.unwrap();
    let mut known = Known::new();
    let (many, one) = (known.caller("many", &["viewer"], &[]), known.caller("one", &["viewer"], &[]));
    let traffic = Traffic { requests: 10, caller_requests: 3, ..Traffic::default() };
    let config = Config { traffic, ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    let many = Caller::plain(running.address, Some(&many)).await;
    let one = many.with(&one);
    let watch = async |caller: &Caller| {
        let request = caller.request(v1::WatchHoldRequest { id: request.id.clone(), etag: String::new() });
        HoldServiceClient::new(caller.channel.clone()).watch_hold(request).await
    };

    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(watch(&many).await.unwrap());
    }
    let refused = watch(&many).await.unwrap_err();

    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    watch(&one).await.expect("another caller does not notice");
    watches.pop();
    until("there is room again", || async { watch(&many).await.is_ok() }).await;
    drop(watches);
    stop(running).await;
    developer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_headers_that_are_too_long_are_refused() {
    let system = System::start().await;
    let mut known = Known::new();
    let key = known.caller("shop", &["application"], &["*"]);
    let traffic = Traffic { message_bytes: 4_096, header_bytes: 4_096, ..Traffic::default() };
    let config = Config { traffic, ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    let shop = Caller::plain(running.address, Some(&key)).await;
    let ask = async |caller: &Caller, id: String| {
        let request = caller.request(v1::GetHoldRequest { id });
        HoldServiceClient::new(caller.channel.clone()).get_hold(request).await.unwrap_err()
    };

    let long_message = ask(&shop, "x".repeat(5_000)).await;
    let long_header = ask(&shop.with(&"x".repeat(5_000)), new_id()).await;

    assert_eq!(long_message.code(), Code::OutOfRange, "{long_message:?}");
    assert!(!matches!(long_header.code(), Code::NotFound | Code::Ok), "{long_header:?}");
    assert_eq!(ask(&shop, new_id()).await.code(), Code::NotFound, "the next request is served");
    stop(running).await;
}
