//! What a coordinator tells whoever watches it, and that nothing in `coordinator/ops` asks for anything else.

use jiff::SignedDuration;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};
use tcc_proto::v1::{self, OperatorActionKind, Phase};
use tcc_tests::{Coordinator, System, alice_and_bob, get, hold, hold_due_in, until};

/// The value of a series, by its name and labels as they are written.
fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{metrics}")).trim().parse().expect("a number")
}

/// The names of all samples.
fn names(metrics: &str) -> BTreeSet<String> {
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())).collect()
}

/// The metrics that an expression of Prometheus names.
fn named(expression: &str) -> BTreeSet<String> {
    // Labels stand in braces, and in the parentheses after `by`.
    let mut bare = String::new();
    let mut rest = expression;
    while let Some(start) = rest.find(['{', '(']) {
        let is_by = rest[..start].trim_end().ends_with("by") && rest.as_bytes()[start] == b'(';
        bare.push_str(&rest[..start]);
        bare.push(' ');
        let end = match (rest.as_bytes()[start], is_by) {
            (b'{', _) => rest[start..].find('}'),
            (_, true) => rest[start..].find(')'),
            _ => Some(0),
        };
        rest = &rest[start + end.expect("it is closed") + 1..];
    }
    bare.push_str(rest);
    let words = bare.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_metric = |word: &&str| ["tcc_", "rpc_", "db_"].iter().any(|prefix| word.starts_with(prefix));
    words.filter(is_metric).map(str::to_owned).collect()
}

fn ops() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../coordinator/ops")
}

/// Every `expr` of a dashboard.
fn expressions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "expr" => found.push(text.to_owned()),
                    _ => expressions(value, found),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

#[test]
fn labels_are_not_taken_for_metrics() {
    let expression = r#"sum by (le, rpc_method) (rate(rpc_a_bucket{tcc_x="y"}[5m])) / max(tcc_b) > 0"#;

    assert_eq!(named(expression), ["rpc_a_bucket", "tcc_b"].map(str::to_owned).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_holds_is_counted_and_what_rules_and_panels_name_is_there() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let address = running.telemetry.expect("metrics are served");
    let (alice, bob) = alice_and_bob(&mut client).await;
    let paid = hold_due_in(&alice, &bob, 10, SignedDuration::from_millis(800));
    client.create(&paid).await.unwrap();
    client.create(&paid).await.unwrap();
    client.create(&hold(&alice, &bob, 1_000_000)).await.unwrap_err();
    assert_eq!(client.until_final(&paid.id).await.phase(), Phase::Confirmed);
    let paused = hold(&alice, &bob, 10);
    client.create(&paused).await.unwrap();
    let pause = v1::ActRequest {
        id: paused.id.clone(),
        action: OperatorActionKind::Pause.into(),
        reason: "to be seen".into(),
        ticket: String::new(),
    };
    client.recovery.act(pause).await.unwrap();

    let (status, metrics) = get(address, "/metrics").await;

    assert_eq!(status, 200);
    assert!(metrics.trim_end().ends_with("# EOF"), "{metrics}");
    for (series, expected) in [
        ("tcc_holds_created_total{outcome=\"held\",reason=\"\"}", 2.0),
        ("tcc_holds_created_total{outcome=\"replayed\",reason=\"\"}", 1.0),
        ("tcc_holds_created_total{outcome=\"refused\",reason=\"INSUFFICIENT_FUNDS\"}", 1.0),
        ("tcc_transitions_total{from=\"trying\",to=\"held\",cause=\"\"}", 2.0),
        ("tcc_transitions_total{from=\"held\",to=\"confirmed\",cause=\"matured\"}", 1.0),
        ("tcc_branch_calls_total{participant=\"shard-1\",operation=\"confirm\",outcome=\"done\"}", 1.0),
        ("tcc_maturity_lag_seconds_count{participant=\"shard-1\"}", 1.0),
        ("tcc_transactions_attention{attention=\"paused\"}", 1.0),
        ("tcc_transactions_attention{attention=\"parked\"}", 0.0),
        ("tcc_operator_actions_total{action=\"pause\",outcome=\"done\"}", 1.0),
        ("tcc_shard_up{shard=\"shard-0\"}", 1.0),
        ("tcc_breaker_state{shard=\"shard-0\"}", 0.0),
        ("tcc_slots", 256.0),
        ("tcc_instances", 1.0),
        ("tcc_audit_findings", 0.0),
    ] {
        assert_eq!(value(&metrics, series), expected, "{series}");
    }
    assert!(!metrics.contains(&paid.id) && !metrics.contains(&alice), "no id is a label");

    let told = names(&metrics);
    let rules = std::fs::read_to_string(ops().join("alerts.yml")).unwrap();
    let mut asked: Vec<(String, String)> = rules
        .lines()
        .filter_map(|line| Some(("alerts.yml".to_owned(), line.trim().strip_prefix("expr: ")?.to_owned())))
        .collect();
    assert!(asked.len() >= 10);
    for board in ["users", "operators", "ledger"] {
        let text = std::fs::read_to_string(ops().join(format!("dashboards/{board}.json"))).unwrap();
        let mut found = Vec::new();
        expressions(&serde_json::from_str(&text).unwrap(), &mut found);
        assert!(found.len() >= 8, "{board}");
        asked.extend(found.into_iter().map(|expression| (board.to_owned(), expression)));
    }
    for (file, expression) in asked {
        let unknown: Vec<_> = named(&expression).difference(&told).cloned().collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}, which nobody tells: {expression}");
        assert!(!named(&expression).is_empty(), "{file} asks for nothing: {expression}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_the_process_sees_whether_it_lives_and_takes_work() {
    let system = System::start().await;
    let Coordinator { running, .. } = system.coordinator().await;
    let address = running.telemetry.expect("metrics are served");

    assert_eq!(get(address, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(get(address, "/readyz").await.0, 200);
    let (_, version) = get(address, "/version").await;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    assert_eq!(get(address, "/else").await.0, 404);

    running.engine.refuse_work();

    assert_eq!(get(address, "/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(get(address, "/livez").await.0, 200, "it finishes what it began");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_shard_and_a_database_that_is_gone_show_in_the_metrics() {
    let mut servers = tcc_tests::servers().await;
    let Coordinator { mut client, running } = tcc_tests::serve_on(&servers).await;
    let address = running.telemetry.expect("metrics are served");
    let drain =
        v1::DrainShardRequest { name: "shard-1".into(), reason: "a disk".into(), ticket: String::new() };
    client.recovery.drain_shard(drain).await.unwrap();
    until("the drained shard shows", || async move {
        value(&get(address, "/metrics").await.1, "tcc_shard_drained{shard=\"shard-1\"}") == 1.0
    })
    .await;

    servers.coordinator.crash().unwrap();

    until("the database's absence shows", || async move {
        let metrics = get(address, "/metrics").await.1;
        value(&metrics, "tcc_store_up{statement=\"reads\"}") == 0.0
            && !metrics.contains("tcc_transactions_attention{")
    })
    .await;
}

#[test]
fn every_alert_says_what_to_run_and_has_its_page_and_promtool_reads_them_all() {
    let rules = std::fs::read_to_string(ops().join("alerts.yml")).unwrap();
    let field = |name: &str| {
        let found = rules.lines().filter_map(|line| line.trim().strip_prefix(name));
        found.map(str::to_owned).collect::<Vec<_>>()
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");

    let (alerts, pages, commands) = (field("- alert: "), field("runbook: "), field("command: "));
    assert_eq!((pages.len(), commands.len()), (alerts.len(), alerts.len()));
    for (alert, page) in alerts.iter().zip(pages) {
        let text = std::fs::read_to_string(root.join(&page)).unwrap_or_else(|_| panic!("{page} is missing"));
        assert!(text.contains(&format!("Alert: `{alert}`")), "{page}");
    }
    assert!(commands.iter().all(|command| command.starts_with("tccctl ")));

    let beside = root.join("target/tools/promtool");
    let promtool = if beside.exists() { beside } else { PathBuf::from("promtool") };
    let checked = Command::new(promtool).arg("check").arg("rules").arg(ops().join("alerts.yml")).output();
    let checked = checked.expect("fetch promtool first: coordinator/ops/ensure-promtool");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
