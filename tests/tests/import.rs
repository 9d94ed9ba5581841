//! `tccctl holds import`: whatever happens to a run, each line is imported once.
//!
//! It needs `tccctl`: `make test` builds it first.

use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tcc_tests::{Client, Coordinator, System, alice_and_bob, until};

/// How many lines a file has that are right, and those that are not.
const RIGHT: usize = 1_796;
const WRONG: usize = 3;
const REFUSED: usize = 3;

/// Every line pays 1; those that are refused pay more than there is.
fn lines(alice: &str, bob: &str) -> Vec<String> {
    let mut lines = vec!["payer,payee,amount,currency,due_at,on_maturity,label.line".to_owned()];
    let due = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(20);
    for n in 0..RIGHT + WRONG + REFUSED {
        let amount = match n % 600 {
            100 => "1.5",
            200 => "1000000",
            _ => "1",
        };
        lines.push(format!("{alice},{bob},{amount},GOLD,{due},CONFIRM,{n}"));
    }
    lines
}

fn tccctl(server: &str, folder: &Path, args: &[&str]) -> Command {
    let programs = PathBuf::from(env!("CARGO_BIN_EXE_tcc-demo")).parent().expect("a folder").to_owned();
    let mut command = Command::new(programs.join("tccctl"));
    command.args(["holds", "import", "-o", "json"]).args(args).current_dir(folder);
    command.env("TCC_SERVER", server).env("USER", "importer").env_remove("TCC_CONTEXT");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn feed(child: &mut Child, lines: &[String]) {
    let stdin = child.stdin.as_mut().expect("piped");
    stdin.write_all((lines.join("\n") + "\n").as_bytes()).expect("it reads");
    stdin.flush().expect("it reads");
}

/// Runs to the end. Answers how it exited, and its summary.
fn finished(child: Child) -> (i32, Value) {
    let output = child.wait_with_output().expect("it ends");
    let summary = serde_json::from_slice(&output.stdout).expect("a summary");
    (output.status.code().expect("it was not killed"), summary)
}

/// How many transactions there are, and how many of them are held.
async fn imported(system: &System) -> (i64, i64) {
    let sql = "SELECT count(*), count(*) FILTER (WHERE phase = 2) FROM transaction WHERE due_at > clock_timestamp()";
    let row = system.sql().await.query_one(sql, &[]).await.expect("the table is there");
    (row.get(0), row.get(1))
}

async fn held(client: &mut Client, account: &str) -> i64 {
    client.balances(account).await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_and_run_again_doubles_nothing() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let (server, folder) = (format!("http://{}", running.address), tempfile::tempdir().unwrap());
    let lines = lines(&alice, &bob);
    let piped = ["-", "--name", "payroll", "--place", "place", "--rejects", "rejects"];

    // The first run is fed half of the file, and killed while it waits for more.
    let mut first = tccctl(&server, folder.path(), &piped).spawn().unwrap();
    feed(&mut first, &lines[..1_300]);
    until("some of it is imported", || async { imported(&system).await.1 >= 900 }).await;
    first.kill().unwrap();
    first.wait().unwrap();
    // The second one is given all of it.
    let mut second = tccctl(&server, folder.path(), &piped).spawn().unwrap();
    feed(&mut second, &lines);
    drop(second.stdin.take());
    let (exit, summary) = tokio::task::block_in_place(|| finished(second));
    let after = (imported(&system).await, held(&mut client, &alice).await);
    // And another one, of the same name, begins at the beginning.
    fs::write(folder.path().join("payroll.csv"), lines.join("\n")).unwrap();
    let named = ["payroll.csv", "--name", "payroll"];
    let third = tccctl(&server, folder.path(), &named).spawn().unwrap();
    let (again, same) = tokio::task::block_in_place(|| finished(third));

    assert_eq!((exit, again), (8, 8), "some were refused");
    let number = |summary: &Value, name: &str| summary[name].as_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(number(&summary, "lines"), RIGHT + WRONG + REFUSED);
    assert_eq!(number(&summary, "created") + number(&summary, "known"), RIGHT);
    assert_eq!(number(&summary, "rejected"), WRONG + REFUSED);
    assert_eq!(after, (((RIGHT + REFUSED) as i64, RIGHT as i64), RIGHT as i64));
    assert_eq!((number(&same, "created"), number(&same, "known")), (0, RIGHT));
    assert_eq!((imported(&system).await, held(&mut client, &alice).await), after, "nothing was repeated");
    for rejects in ["rejects", "payroll.csv.rejects"] {
        let text = fs::read_to_string(folder.path().join(rejects)).unwrap();
        let reasons: Vec<&str> = text.lines().skip(1).map(|line| line.split(',').nth(1).unwrap()).collect();
        assert_eq!(reasons, ["AMOUNT_NOT_INTEGER", "INSUFFICIENT_FUNDS"].repeat(3), "{rejects}: {text}");
        assert!(text.lines().nth(1).unwrap().starts_with("102,AMOUNT_NOT_INTEGER,"), "{text}");
    }
    assert!(!folder.path().join("place").exists() && !folder.path().join("payroll.csv.place").exists());
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_comes_back_with_other_contents_is_refused_and_a_check_creates_nothing() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let (server, folder) = (format!("http://{}", running.address), tempfile::tempdir().unwrap());
    let due = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(20);
    let run = |file: &str, amount: u32, args: &[&str]| {
        let line = format!(
            r#"{{"payer":"{alice}","payee":"{bob}","amount":{{"value":"{amount}","currency":"GOLD"}},"due_at":"{due}"}}"#
        );
        fs::write(folder.path().join(file), line).unwrap();
        let child = tccctl(&server, folder.path(), &[&[file], args].concat()).spawn().unwrap();
        tokio::task::block_in_place(|| finished(child))
    };

    let checked = run("a.jsonl", 10, &["--on-maturity", "cancel", "--validate-only"]);
    let before = imported(&system).await;
    let created = run("a.jsonl", 10, &["--on-maturity", "cancel"]);
    let changed = run("a.jsonl", 11, &["--on-maturity", "cancel"]);

    assert_eq!((checked.0, before), (0, (0, 0)));
    assert_eq!((created.0, created.1["created"].as_str().unwrap()), (0, "1"));
    assert_eq!((changed.0, changed.1["rejected"].as_str().unwrap()), (8, "1"));
    let rejects = fs::read_to_string(folder.path().join("a.jsonl.rejects")).unwrap();
    assert!(rejects.contains("\"reason\":\"IDEMPOTENCY_KEY_REUSED\""), "{rejects}");
    assert_eq!(held(&mut client, &alice).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_waits_for_a_shard_that_is_gone_and_says_where_it_stopped() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let (server, folder) = (format!("http://{}", running.address), tempfile::tempdir().unwrap());
    let drain = |reason: &str| tcc_proto::v1::DrainShardRequest {
        name: "shard-1".into(),
        reason: reason.into(),
        ticket: String::new(),
    };
    client.recovery.drain_shard(drain("a test")).await.unwrap();
    until("the shard is drained", || {
        let mut client = client.clone();
        async move {
            let status = client.operator.get_status(tcc_proto::v1::GetStatusRequest {}).await.unwrap();
            status.into_inner().shards[1].drained
        }
    })
    .await;
    fs::write(folder.path().join("a.csv"), lines(&alice, &bob)[..3].join("\n")).unwrap();

    let mut stopping = tccctl(&server, folder.path(), &["a.csv", "--timeout", "1"]);
    let stopped = tokio::task::block_in_place(|| stopping.stderr(Stdio::piped()).output()).unwrap();
    let request = tcc_proto::v1::ResumeShardRequest {
        name: "shard-1".into(),
        reason: "a test".into(),
        ticket: String::new(),
    };
    client.operator.resume_shard(request).await.unwrap();
    let child = tccctl(&server, folder.path(), &["a.csv"]).spawn().unwrap();
    let (exit, summary) = tokio::task::block_in_place(|| finished(child));

    let told = String::from_utf8_lossy(&stopped.stderr).into_owned();
    assert_eq!(stopped.status.code(), Some(4), "{told}");
    assert!(told.contains("SHARD_UNAVAILABLE"), "{told}");
    assert_eq!((exit, summary["created"].as_str().unwrap()), (0, "2"));
}
