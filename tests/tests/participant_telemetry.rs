//! What a participant's server tells whoever watches it.
//!
//! It needs `tcc-ledgerd` and `tcc-seats`: `make test` builds them first.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tcc_core::{
    Operation::{Cancel, Confirm, Try},
    Outcome, Refusal,
};
use tcc_participant::{Server, serve::Running};
use tcc_tests::{
    Coordinator, System, alice_and_bob,
    caller::{Caller, new_transaction},
    connect,
    examples::{House, SEATS, STOCK, stock as warehouse},
    get, hold, parties,
    process::{Tccd, free_local_address},
    scrape, until,
};

/// A database of a participant's own.
async fn database(system: &System, name: &str, tables: &str) -> String {
    let url = parties::url(system, name);
    let sql = format!("CREATE DATABASE {name}");
    connect(&system.cluster.url()).await.batch_execute(&sql).await.unwrap();
    connect(&url).await.batch_execute(tables).await.unwrap();
    url
}

async fn stock(system: &System) -> Running {
    let url = database(system, "stock", STOCK).await;
    let server = Server::new("stock", &url).unwrap().listen("127.0.0.1:0").telemetry("127.0.0.1:0");
    server.start(warehouse::Stock).await.unwrap()
}

/// Whether a sample stands there with this value.
fn has(metrics: &str, sample: &str) -> bool {
    metrics.lines().any(|line| line == sample)
}

/// Prometheus' own check of names, units and help. It reads the older format, in which the name of a counter's family ends as
/// that of its samples.
fn check(metrics: &str) {
    let counters: Vec<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    assert!(!counters.is_empty());
    let lines = metrics.lines().filter(|line| *line != "# EOF").map(|line| {
        let word = line.strip_prefix("# ").and_then(|line| line.split(' ').nth(1));
        match word.filter(|name| counters.contains(name)) {
            Some(name) => line.replacen(name, &format!("{name}_total"), 1),
            None => line.to_owned(),
        }
    });
    let text: String = lines.map(|line| line + "\n").collect();
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/promtool");
    let promtool = if beside.exists() { beside } else { PathBuf::from("promtool") };
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("fetch promtool first: coordinator/ops/ensure-promtool");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(output.status.success() && told.is_empty(), "{told}\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_a_participant_and_how_its_fences_met_it_is_counted() {
    let system = System::start().await;
    let running = stock(&system).await;
    let watched = running.telemetry.expect("metrics are served");
    let caller = Caller::to(&running.url(), "stock");
    let (taken, given_back, empty, sold_out) =
        (new_transaction(), new_transaction(), new_transaction(), new_transaction());

    for (operation, id, item, expected) in [
        (Try, taken, "item-1", Outcome::Done),
        (Try, taken, "item-1", Outcome::Done),
        (Confirm, taken, "item-1", Outcome::Done),
        (Confirm, taken, "item-1", Outcome::Done),
        (Cancel, taken, "item-1", Outcome::AlreadyConfirmed),
        (Try, given_back, "item-1", Outcome::Done),
        (Try, sold_out, "item-1", Outcome::Refused(Refusal::own("SOLD_OUT"))),
        (Cancel, given_back, "item-1", Outcome::Done),
        (Cancel, empty, "item-2", Outcome::Done),
        (Try, empty, "item-2", Outcome::AlreadyCancelled),
        (Confirm, new_transaction(), "item-2", Outcome::NotTried),
        (Try, taken, "item-3", Outcome::OtherDescriptor),
    ] {
        assert_eq!(caller.ask(operation, id, item.as_bytes()).await, expected, "{operation:?} {item}");
    }

    let metrics = scrape(watched).await;
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    for sample in [
        r#"tcc_served_calls_total{operation="try",outcome="done"} 3"#,
        r#"tcc_served_calls_total{operation="try",outcome="refused"} 1"#,
        r#"tcc_served_calls_total{operation="try",outcome="already_cancelled"} 1"#,
        r#"tcc_served_calls_total{operation="confirm",outcome="failed"} 0"#,
        r#"tcc_served_call_duration_seconds_count{operation="cancel"} 3"#,
        r#"tcc_served_request_calls_bucket{le="1.0"} 12"#,
        r#"tcc_served_request_calls_sum 12.0"#,
        r#"tcc_served_requests_in_flight 0"#,
        r#"tcc_served_store_up 1"#,
        r#"tcc_fence_answers_total{operation="try",met="done"} 2"#,
        r#"tcc_fence_answers_total{operation="try",met="again"} 1"#,
        r#"tcc_fence_answers_total{operation="try",met="refused"} 1"#,
        r#"tcc_fence_answers_total{operation="try",met="late_try"} 1"#,
        r#"tcc_fence_answers_total{operation="try",met="other_descriptor"} 1"#,
        r#"tcc_fence_answers_total{operation="confirm",met="done"} 1"#,
        r#"tcc_fence_answers_total{operation="confirm",met="again"} 1"#,
        r#"tcc_fence_answers_total{operation="confirm",met="not_tried"} 1"#,
        r#"tcc_fence_answers_total{operation="cancel",met="done"} 1"#,
        r#"tcc_fence_answers_total{operation="cancel",met="empty_cancel"} 1"#,
        r#"tcc_fence_answers_total{operation="cancel",met="contradicted"} 1"#,
        r#"tcc_fence_batch_steps_count 12"#,
        r#"tcc_fence_batch_duration_seconds_count 12"#,
        r#"tcc_fence_queued 0"#,
    ] {
        assert!(has(&metrics, sample), "{sample}\n{metrics}");
    }
    let calls = "rpc_server_call_duration_seconds_count{rpc_system_name=\"grpc\",\
                 rpc_method=\"tcc.v1.ParticipantService/Call\",rpc_response_status_code=\"OK\"} 12";
    assert!(has(&metrics, calls), "{metrics}");
    assert!(!metrics.contains(&taken.to_string()) && !metrics.contains("item-"), "no id is a label");
    check(&metrics);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_a_participant_stands_in_the_manual_and_the_manual_names_no_others() {
    let system = System::start().await;
    let running = stock(&system).await;
    let metrics = scrape(running.telemetry.expect("metrics are served")).await;
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../coordinator/docs/participants.md");
    let manual = std::fs::read_to_string(manual).unwrap();

    let told: Vec<String> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect();
    let documented: Vec<&str> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .filter(|name| ["tcc_served_", "tcc_fence_", "rpc_"].iter().any(|prefix| name.starts_with(prefix)))
        .collect();

    assert!(told.len() >= 10, "{told:?}");
    for name in &told {
        assert!(documented.contains(&name.as_str()), "{name} does not stand in the manual");
    }
    for name in documented {
        assert!(told.iter().any(|one| one == name), "the manual names {name}, which nobody tells");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_database_is_gone_lives_and_is_not_ready() {
    let database_system = System::start().await;
    let running = stock(&database_system).await;
    let watched = running.telemetry.expect("metrics are served");
    let caller = Caller::to(&running.url(), "stock");
    caller.ask(Try, new_transaction(), b"item-1").await;
    assert_eq!((get(watched, "/readyz").await, get(watched, "/livez").await.0), ((200, "ok\n".into()), 200));
    assert!(get(watched, "/version").await.1.contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(get(watched, "/else").await.0, 404);

    drop(database_system);

    until("it is not ready, and says why", || async {
        caller.ask(Try, new_transaction(), b"item-1").await;
        let (status, why) = get(watched, "/readyz").await;
        status == 503 && why.contains("database does not answer")
    })
    .await;
    assert_eq!(get(watched, "/livez").await.0, 200);
    assert!(has(&scrape(watched).await, "tcc_served_store_up 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_serve_participants_tell_the_same_where_they_are_told_to() {
    let mut system = System::start().await;
    let (of_ledger, of_seats) = (free_local_address().unwrap(), free_local_address().unwrap());
    let ledger = Tccd::ledgerd_with(&system.config, "shard-1", &["--telemetry", &of_ledger]).await.unwrap();
    ledger.url().clone_into(&mut system.config.shards[1].address);
    let seats_url = database(&system, "seats", SEATS).await;
    let seats = House::watched(&seats_url, "127.0.0.1:0", &of_seats).await.unwrap();
    let Coordinator { mut client, .. } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    until("a hold is taken", || {
        let (mut client, request) = (client.clone(), hold(&alice, &bob, 1));
        async move { client.create(&request).await.is_ok() }
    })
    .await;
    Caller::to(&seats.address, "seats").ask(Try, new_transaction(), b"seat-1").await;

    for (address, name) in [(of_ledger, "shard-1"), (of_seats, "seats")] {
        let address: SocketAddr = address.parse().unwrap();
        let metrics = scrape(address).await;

        let version = env!("CARGO_PKG_VERSION");
        let build = format!("tcc_served_build_info{{participant=\"{name}\",version=\"{version}\"}} 1");
        assert!(has(&metrics, &build), "{metrics}");
        assert!(!has(&metrics, r#"tcc_served_calls_total{operation="try",outcome="done"} 0"#), "{metrics}");
        assert_eq!(get(address, "/readyz").await.0, 200);
        check(&metrics);
    }
}
