//! A risk check as a branch: what is refused why, and what a scorer's silence means.

use http_body_util::Full;
use hyper::{Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};
use tcc_coordinator::dev::{Cluster, Options};
use tcc_core::{Operation, Outcome, Refusal};
use tcc_participant::serve::Running;
use tcc_payout::risk::{self, RiskConfig};
use tcc_tests::caller::{Caller, new_transaction};
use tokio::net::TcpListener;

use Operation::{Cancel, Confirm, Try};

/// It says nothing.
const SILENT: i64 = i64::MIN;

/// A scorer that says what it is set to. Answers where it listens.
async fn scorer(score: Arc<AtomicI64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let score = Arc::clone(&score);
            let service = service_fn(move |_| {
                let score = score.load(Ordering::SeqCst);
                async move {
                    if score == SILENT {
                        std::future::pending::<()>().await;
                    }
                    let body = format!(r#"{{"score": {score}, "reason": "stolen-card"}}"#);
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body))))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    url
}

/// A risk check whose scorer, if there is one, is asked like this.
async fn check(scorer: &str) -> (Cluster, Running, Caller) {
    let settings = ["fsync=off", "synchronous_commit=off"].map(str::to_owned).to_vec();
    let start = move || Cluster::start(&Options { settings, ..Options::default() });
    let cluster = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    let text = format!(
        r#"listen = "127.0.0.1:0"
database = '''{}'''
refuse_above = 100
[[rules]]
at = "/amount"
above = 1000
score = 60
reason = "RISK_LARGE_AMOUNT"
[[rules]]
at = "/country"
is = ["XX"]
score = 50
reason = "RISK_COUNTRY"
{scorer}"#,
        cluster.url()
    );
    let running = risk::start(&toml::from_str::<RiskConfig>(&text).unwrap()).await.unwrap();
    let caller = Caller::to(&format!("http://{}", running.address), "risk");
    (cluster, running, caller)
}

fn refused(reason: &str) -> Outcome {
    Outcome::Refused(Refusal::from_code(reason).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_adds_up_to_too_much_is_refused_with_the_reason_of_what_adds_most() {
    let (_cluster, _running, caller) = check("").await;
    let (both, passed) = (new_transaction(), new_transaction());
    let risky = br#"{"amount": 1001, "country": "XX"}"#;

    assert_eq!(caller.ask(Try, both, risky).await, refused("RISK_LARGE_AMOUNT"));
    assert_eq!(caller.ask(Try, passed, br#"{"amount": 1001, "country": "DE"}"#).await, Outcome::Done);
    assert_eq!(caller.ask(Try, new_transaction(), b"<xml/>").await, refused("RISK_PAYLOAD_INVALID"));

    assert_eq!(caller.ask(Try, both, risky).await, refused("RISK_LARGE_AMOUNT"), "asked again, the same");
    assert_eq!(caller.ask(Cancel, both, risky).await, Outcome::Done);
    let payload = br#"{"amount": 1001, "country": "DE"}"#;
    assert_eq!(caller.ask(Confirm, passed, payload).await, Outcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scorer_that_is_silent_means_what_is_configured() {
    let score = Arc::new(AtomicI64::new(SILENT));
    let url = scorer(Arc::clone(&score)).await;
    let with =
        |silence: &str| format!("[scorer]\nurl = \"{url}\"\ndeadline_ms = 300\nsilence = \"{silence}\"");
    let (_one, _running, refuses) = check(&with("refuse")).await;
    let (_two, _other, waits) = check(&with("wait")).await;
    let (id, payload) = (new_transaction(), b"{}");

    assert_eq!(refuses.ask(Try, id, payload).await, refused("RISK_NOT_SCORED"));
    let waiting = waits.ask(Try, id, payload).await;
    assert!(matches!(waiting, Outcome::Unknown(_)), "{waiting:?}");

    score.store(7, Ordering::SeqCst);
    assert_eq!(refuses.ask(Try, id, payload).await, refused("RISK_NOT_SCORED"), "a refusal is for ever");
    assert_eq!(waits.ask(Try, id, payload).await, Outcome::Done);

    score.store(SILENT, Ordering::SeqCst);
    assert_eq!(waits.ask(Try, id, payload).await, Outcome::Done, "the fence knows");
    score.store(101, Ordering::SeqCst);
    assert_eq!(waits.ask(Try, new_transaction(), payload).await, refused("RISK_STOLEN_CARD"));
}
