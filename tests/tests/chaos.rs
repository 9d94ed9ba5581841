//! A short chaos run in every test run; `make chaos SECONDS=600` is the long one.

use std::process::Command;
use tcc_tests::{
    System, connect,
    proxy::{CommitsBy, Proxy},
    until,
};

#[test]
fn everything_fails_for_a_while_and_every_promise_is_kept() {
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_tcc-chaos"));
    let output = chaos.args(["--seconds", "15", "--seed", "3", "--clients", "24"]).output().unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(last.starts_with("chaos: ok faults="), "{last}");
    assert!(last.contains(" lost=0 created=0 broken_promises=0 keys_forgotten="), "{last}");
    for failover in
        ["shard's server lost, its standby promoted", "coordinator's server lost, its late standby promoted"]
    {
        let count = text.lines().find_map(|line| line.strip_suffix(failover)?.trim().parse::<u32>().ok());
        assert!(count >= Some(1), "{failover}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_wire_is_cut_has_happened_and_nobody_is_told() {
    const TIMES: i64 = 20;
    let system = System::start().await;
    let direct = connect(&system.cluster.url()).await;
    direct.batch_execute("CREATE TABLE told (n int)").await.unwrap();
    let socket = system.cluster.home().join("s/.s.PGSQL.5432");
    let wire = Proxy::start(socket, CommitsBy::Commit).await.unwrap();

    for n in 1..=TIMES {
        let client = connect(&wire.url()).await;
        client.batch_execute("BEGIN; INSERT INTO told VALUES (1)").await.unwrap();
        wire.cut_next_commit();
        let answer = client.batch_execute("COMMIT").await;

        assert!(answer.is_err_and(|error| error.as_db_error().is_none()), "the answer to commit {n} came");
        until("it is committed", || async {
            let row = direct.query_one("SELECT count(*) FROM told", &[]).await.unwrap();
            row.get::<_, i64>(0) == n
        })
        .await;
    }
}
