//! What an operator has when nothing answers, before anything is started, and to let an instance leave.
//!
//! It needs `tccctl` and `tccd`: `make test` builds them first.

use jiff::SignedDuration;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tcc_coordinator::serve;
use tcc_proto::v1::{self, Phase};
use tcc_tests::{Coordinator, System, alice_and_bob, hold, hold_due_in, new_id, reason, until};

fn program(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_tcc-demo")).parent().expect("a folder").join(name)
}

fn tccctl(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program("tccctl"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TCC_") {
            command.env_remove(name);
        }
    }
    command.args(args).current_dir(folder).env("TCC_CONTEXTS", folder.join("contexts.toml"));
    command.stdin(Stdio::null()).output().expect("tccctl is built")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_coordinator_everything_can_be_read_and_nothing_changed() {
    let system = System::start().await;
    let running = system.coordinator().await;
    let mut client = running.client.clone();
    let (alice, bob) = alice_and_bob(&mut client).await;
    let (held, paid) = (hold(&alice, &bob, 10), hold_due_in(&alice, &bob, 20, SignedDuration::from_secs(1)));
    for request in [&held, &paid] {
        client.create(request).await.unwrap();
    }
    client.until_final(&paid.id).await;
    running.stop().await;
    let uuid = uuid::Uuid::parse_str(&held.id).unwrap();
    let sql = system.sql().await;
    sql.execute("UPDATE transaction SET attention = 3 WHERE id = $1", &[&uuid]).await.unwrap();
    let parked = "INSERT INTO attention (transaction_id, kind, since, attempts, last_error)
                  VALUES ($1, 3, clock_timestamp(), 50, 'no 13 here')";
    sql.execute(parked, &[&uuid]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tccd.toml"), toml::to_string(&system.config).unwrap()).unwrap();
    let direct = |command: &str| {
        let args: Vec<&str> =
            ["--direct", "tccd.toml", "-o", "json"].into_iter().chain(command.split(' ')).collect();
        tokio::task::block_in_place(|| tccctl(folder.path(), &args))
    };
    let read = |command: &str| -> Value {
        let output = direct(command);
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{command}: {}", text(&output.stdout)))
    };

    let status = read("status");
    assert_eq!(
        (&status["shards"][0]["reachable"], &status["shards"][1]["reachable"]),
        (&true.into(), &true.into())
    );
    assert_eq!(status["attention"][0]["attention"], "PARKED");
    assert_eq!(read(&format!("holds get {}", paid.id))["phase"], "CONFIRMED");
    assert_eq!(read(&format!("holds list --payer {alice}"))["holds"].as_array().unwrap().len(), 2);
    let described = read(&format!("holds describe {}", held.id));
    assert_eq!(described["branches"][0]["state"], "tried");
    assert!(described["money"][0]["place"].as_str().unwrap().starts_with("frozen in escrow of"));
    for command in ["stuck", "parked list"] {
        assert_eq!(read(command)["items"][0]["hold"]["id"], held.id.as_str(), "{command}");
    }
    assert_eq!(read("shards list")["shards"].as_array().unwrap().len(), 2);
    assert_eq!(read(&format!("accounts get {bob}"))["available"], "20");
    let before: i64 = sql.query_one("SELECT count(*) FROM operator_action", &[]).await.unwrap().get(0);
    for command in [
        format!("parked requeue {} --reason because", held.id),
        "shards drain shard-0 --reason because".to_owned(),
        format!("holds cancel {}", held.id),
        format!("accounts issue {alice} 5 GOLD"),
    ] {
        let refused = direct(&command);
        assert_eq!(refused.status.code(), Some(1), "{command}");
        assert!(text(&refused.stderr).contains("READ_ONLY"), "{command}: {}", text(&refused.stderr));
    }
    let after: i64 = sql.query_one("SELECT count(*) FROM operator_action", &[]).await.unwrap().get(0);
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_views_are_asked_in_one_query_that_cannot_write() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold(&alice, &bob, 10);
    client.create(&request).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tccd.toml"), toml::to_string(&system.config).unwrap()).unwrap();
    let ask = |args: &[&str]| {
        let args: Vec<&str> =
            ["--direct", "tccd.toml", "-o", "json", "sql"].iter().chain(args).copied().collect();
        tokio::task::block_in_place(|| tccctl(folder.path(), &args))
    };
    let rows = |args: &[&str]| -> Value {
        let output = ask(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["rows"].take()
    };

    let held =
        rows(&["SELECT id, phase, attention, on_maturity FROM tcc_transactions WHERE phase = 'HELD';"]);
    assert_eq!(held[0]["id"], request.id.as_str());
    assert_eq!((&held[0]["attention"], &held[0]["on_maturity"]), (&"NONE".into(), &"CONFIRM".into()));
    for view in [
        "tcc_transactions",
        "tcc_attention",
        "tcc_actions",
        "tcc_findings",
        "tcc_quotas",
        "tcc_shards",
        "tcc_instances",
    ] {
        assert!(rows(&[&format!("SELECT * FROM {view}")]).is_array(), "{view}");
    }
    for view in ["tcc_accounts", "tcc_branches", "tcc_postings", "entry"] {
        let rows = rows(&[&format!("SELECT * FROM {view}"), "--shard", "shard-0"]);
        assert!(!rows.as_array().unwrap().is_empty(), "{view}");
    }
    let branch = rows(&["SELECT role, state FROM tcc_branches WHERE role = 'DEBIT'", "--shard", "shard-0"]);
    assert_eq!(branch[0]["state"], "TRIED");
    assert_eq!(rows(&["SELECT generate_series(1, 9)", "--limit", "3"]).as_array().unwrap().len(), 3);
    for wrong in [
        "DELETE FROM transaction",
        "WITH gone AS (DELETE FROM transaction RETURNING 1) SELECT * FROM gone",
        "SELECT 1; DELETE FROM transaction",
        "COMMIT",
        "COPY transaction TO PROGRAM 'cat'",
        "SELECT nextval('operator_action_number_seq')",
        "SELECT * FROM nothing",
        "",
    ] {
        let refused = ask(&[wrong]);
        assert_eq!(refused.status.code(), Some(1), "{wrong}: {}", text(&refused.stdout));
    }
    assert_eq!(client.hold(&request.id).await.phase(), Phase::Held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_judged_in_the_words_of_the_one_who_would_start_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let base = "[coordinator]\nurl = \"host=127.0.0.1 port=1 user=a dbname=a\"\n[[shard]]\nname = \"shard-0\"\nurl = \"host=127.0.0.1 port=1 user=a dbname=b\"\n";
    let dev = format!("insecure_dev = true\nlisten = \"127.0.0.1:0\"\n{base}");
    let wrong = [
        String::new(),
        "lisden = \"127.0.0.1:7070\"\n".to_owned(),
        format!("listen = 7\n{base}"),
        base.to_owned(),
        format!("insecure_dev = true\nlisten = \"0.0.0.0:7070\"\n{base}"),
        format!("{dev}[limits]\nmax_maturity_days = 0\n"),
        format!("{dev}[telemetry]\ntraces_percent = 101\n"),
        format!("{dev}[traffic]\nstreams_per_connection = 0\n"),
        format!("{dev}[[shard]]\nname = \"shard-0\"\nurl = \"host=a\"\n"),
        format!("{base}[auth]\ncallers = \"missing.toml\"\n"),
        format!("{base}[auth]\ncallers = \"tccd.toml\"\n"),
        dev.replace("host=127.0.0.1 port=1 user=a dbname=a", "port=none"),
        format!("{dev}[postgres]\npassword_file = \"missing\"\n"),
    ];

    for text_of_file in wrong {
        fs::write(folder.path().join("tccd.toml"), &text_of_file).unwrap();
        let mut starting = Command::new(program("tccd"));
        starting.args(["serve", "--config", "tccd.toml"]).current_dir(folder.path()).env_remove("TCC_CONFIG");
        let started = tokio::task::block_in_place(|| starting.env("TCC_LOG", "off").output()).unwrap();
        let checked =
            tokio::task::block_in_place(|| tccctl(folder.path(), &["config", "check", "tccd.toml"]));

        let said = text(&started.stderr);
        let expected = said.trim().strip_prefix("tccd: ").unwrap_or_else(|| panic!("{text_of_file}: {said}"));
        assert_eq!(
            text(&checked.stderr).trim(),
            format!("tccctl: {expected} (INVALID_ARGUMENT)"),
            "{text_of_file}"
        );
        assert_eq!(checked.status.code(), Some(1));
    }
    fs::write(folder.path().join("tccd.toml"), &dev).unwrap();
    let right = tokio::task::block_in_place(|| tccctl(folder.path(), &["config", "check"]));
    let asked = tokio::task::block_in_place(|| tccctl(folder.path(), &["config", "check", "--databases"]));
    assert!(right.status.success(), "{}", text(&right.stderr));
    assert!(
        text(&asked.stderr).contains("cannot reach the database of the coordinator"),
        "{}",
        text(&asked.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_drained_by_another_one_leaves_in_order() {
    let system = System::start().await;
    let Coordinator { mut client, running: _staying } = system.coordinator().await;
    let leaving = serve::start(&system.config).await.expect("the coordinator starts");
    let address = format!("/{}", leaving.address);
    let looking = client.clone();
    let instances = || async {
        let answer = looking.clone().recovery.list_instances(v1::ListInstancesRequest {}).await.unwrap();
        answer.into_inner().instances
    };
    let id = instances().await.into_iter().find(|one| one.address.ends_with(&address)).expect("it beats").id;
    let drain = |id: &str, reason: &str| v1::DrainInstanceRequest {
        id: id.into(),
        reason: reason.into(),
        ticket: "OPS-1".into(),
    };

    let unknown = client.recovery.drain_instance(drain(&new_id(), "a test")).await.unwrap_err();
    let without = client.recovery.drain_instance(drain(&id, " ")).await.unwrap_err();
    client.recovery.drain_instance(drain(&id, "an upgrade")).await.unwrap();
    leaving.ended().await.expect("it was asked to stop");
    let again = client.recovery.drain_instance(drain(&id, "a test")).await.unwrap_err();

    assert_eq!((reason(&unknown), reason(&without)), ("INSTANCE_NOT_FOUND".into(), "FIELD_REQUIRED".into()));
    assert_eq!(reason(&again), "INSTANCE_NOT_FOUND");
    until("the other one has all slots", || async {
        let instances = instances().await;
        instances.len() == 1 && instances[0].slots == 256
    })
    .await;
    let request = v1::ListActionsRequest { target: id, ..Default::default() };
    let [action] =
        client.recovery.list_actions(request).await.unwrap().into_inner().actions.try_into().unwrap();
    assert_eq!((action.action.as_str(), action.reason.as_str()), ("drain-instance", "an upgrade"));
    assert_eq!((action.before.as_str(), action.after.as_str()), ("serving", "leaving"));
}
