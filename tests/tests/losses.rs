//! Databases that forget what they had answered: put back to a copy of their files from before, as a restore or a failover
//! to a standby that lags would do.

use jiff::SignedDuration;
use std::{path::PathBuf, process::Command};
use tcc_coordinator::dev::Cluster;
use tcc_proto::v1::{self, Phase};
use tcc_tests::{
    Client, Coordinator, System, alice_and_bob, connect, hold, hold_due_in, on_shard, on_two_shards,
    process::Tccd, reason, serve_on, servers, until,
};
use tempfile::TempDir;
use tonic::Code;

/// The files of a database as they were.
struct Backup {
    folder: TempDir,
}

impl Backup {
    /// Copies them while the server is down.
    fn of(cluster: &mut Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap();
        cluster.crash().unwrap();
        copy(&cluster.home().join("data"), folder.path());
        cluster.launch().unwrap();
        Self { folder }
    }

    /// The server crashes, and starts with them.
    fn restore(&self, cluster: &mut Cluster) {
        cluster.crash().unwrap();
        std::fs::remove_dir_all(cluster.home().join("data")).unwrap();
        copy(&self.folder.path().join("data"), cluster.home());
        cluster.launch().unwrap();
    }
}

fn copy(from: &std::path::Path, into: &std::path::Path) {
    let into: PathBuf = into.into();
    assert!(Command::new("cp").arg("-a").args([from, &into]).status().unwrap().success());
}

async fn status(client: &Client) -> Option<v1::GetStatusResponse> {
    let answer = client.clone().operator.get_status(v1::GetStatusRequest {}).await;
    answer.ok().map(tonic::Response::into_inner)
}

/// Creates a hold, asking again until there is an answer.
async fn create(client: &Client, request: &v1::CreateHoldRequest) {
    until("a hold is created", || {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.create(&request).await.is_ok() }
    })
    .await;
}

/// Creates a hold that falls due while a test waits for it. Everything is connected when this is called.
async fn create_due_soon(client: &mut Client, payer: &str, payee: &str) -> v1::CreateHoldRequest {
    let request = hold_due_in(payer, payee, 1_000, SignedDuration::from_secs(3));
    client.create(&request).await.expect("everything is connected");
    request
}

async fn coordinator_forgets(while_tccd_runs: bool) {
    let mut servers = servers().await;
    let mut coordinator = serve_on(&servers).await;
    let (alice, bob) = alice_and_bob(&mut coordinator.client).await;
    let old = hold(&alice, &bob, 10);
    create(&coordinator.client, &old).await;
    let backup = Backup::of(&mut servers.coordinator);

    let [kept, cancelled] = [hold(&alice, &bob, 100), hold(&alice, &bob, 2_000)];
    for request in [&kept, &cancelled] {
        create(&coordinator.client, request).await;
    }
    let paid = create_due_soon(&mut coordinator.client, &alice, &bob).await;
    for request in [&old, &cancelled] {
        assert_eq!(coordinator.client.cancel(&request.id).await.unwrap().phase(), Phase::Cancelled);
    }
    assert_eq!(coordinator.client.until_final(&paid.id).await.phase(), Phase::Confirmed);

    if while_tccd_runs {
        backup.restore(&mut servers.coordinator);
    } else {
        coordinator.stop().await;
        backup.restore(&mut servers.coordinator);
        coordinator = serve_on(&servers).await;
    }
    let mut client = coordinator.client.clone();
    until("what was lost is rebuilt", || {
        let client = client.clone();
        async move {
            status(&client).await.is_some_and(|status| status.rebuilt >= 3 && status.unswept_shards == 0)
        }
    })
    .await;

    // Whoever was told HELD has the hold, who was paid stays paid, and what was cancelled is never paid.
    assert_eq!(client.hold(&kept.id).await.phase(), Phase::Held);
    assert_eq!(client.until_final(&paid.id).await.phase(), Phase::Confirmed);
    assert_eq!(client.until_final(&cancelled.id).await.phase(), Phase::Cancelled);
    // This one's row went back to HELD, but its pivot knows better.
    assert_eq!(client.hold(&old.id).await.phase(), Phase::Held);
    assert_eq!(reason(&client.confirm(&old.id).await.unwrap_err()), "HOLD_NOT_CONFIRMABLE");
    assert_eq!(client.until_final(&old.id).await.phase(), Phase::Cancelled);
    assert_eq!(client.confirm(&kept.id).await.unwrap().phase(), Phase::Confirmed);
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((8_900, 0), (1_100, 0)));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_database_that_forgot_its_last_commits_keeps_every_promise() {
    coordinator_forgets(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_forgotten_while_no_coordinator_ran_is_rebuilt_at_the_start() {
    coordinator_forgets(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_is_killed_again_and_again_comes_to_its_end() {
    const HOLDS: i64 = 6_000;
    let system = System::start().await;
    let coordinator = system.coordinator().await;
    let mut client = coordinator.client.clone();
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, HOLDS).await;
    client.account(&bob, 0).await;
    let requests: Vec<_> = (0..HOLDS).map(|_| hold(&alice, &bob, 1)).collect();
    for some in requests.chunks(500) {
        let creating = some.iter().map(|request| {
            let mut client = client.clone();
            async move { client.create(request).await.unwrap() }
        });
        futures::future::join_all(creating).await;
    }
    coordinator.stop().await;
    let sql = system.sql().await;
    sql.batch_execute("DELETE FROM transaction; DELETE FROM wakeup; DELETE FROM sweep").await.unwrap();
    let rows =
        || async { sql.query_one("SELECT count(*) FROM transaction", &[]).await.unwrap().get::<_, i64>(0) };

    let mut tccd = Tccd::start(&system.config).await.unwrap();
    for _ in 0..2 {
        let before = rows().await;
        until("the sweep has rebuilt some more", || async { rows().await > before || before == HOLDS }).await;
        tccd.kill().await.unwrap();
        tccd.restart().await.unwrap();
    }
    let mut client = Client::connect(tccd.url()).await;
    until("the sweep is done", || {
        let client = client.clone();
        async move { status(&client).await.is_some_and(|status| status.unswept_shards == 0) }
    })
    .await;

    assert_eq!(rows().await, HOLDS);
    assert_eq!(client.hold(&requests[0].id).await.phase(), Phase::Held);
    assert_eq!(client.balances(&alice).await, (0, HOLDS));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_fences_and_no_row_is_found_long_after_the_sweep_too() {
    let system = System::start().await;
    let Coordinator { mut client, .. } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    until("the first sweep is done", || {
        let client = client.clone();
        async move { status(&client).await.is_some_and(|status| status.unswept_shards == 0) }
    })
    .await;

    // As if its Try had come late, after its row was lost and all fences were looked at.
    let late = hold(&alice, &bob, 10);
    create(&client, &late).await;
    let forget = "DELETE FROM transaction WHERE id = $1::text::uuid";
    system.sql().await.execute(forget, &[&late.id]).await.unwrap();

    until("it is rebuilt", || {
        let client = client.clone();
        async move { status(&client).await.is_some_and(|status| status.rebuilt == 1) }
    })
    .await;
    assert_eq!(client.hold(&late.id).await.phase(), Phase::Held);
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_database_forgot_stands_for_the_same_hold_after_the_sweep_and_for_none_before() {
    let mut servers = servers().await;
    let mut coordinator = serve_on(&servers).await;
    let (alice, bob) = alice_and_bob(&mut coordinator.client).await;
    let keyed = |key: &str| v1::CreateHoldRequest {
        id: String::new(),
        idempotency_key: key.to_owned(),
        ..hold(&alice, &bob, 10)
    };
    coordinator.client.until_swept().await;
    let known = keyed("known");
    coordinator.client.create(&known).await.unwrap();
    let backup = Backup::of(&mut servers.coordinator);
    let forgotten = keyed("forgotten");
    create(&coordinator.client, &forgotten).await;
    let told = coordinator.client.create(&forgotten).await.unwrap().hold.unwrap();

    coordinator.stop().await;
    backup.restore(&mut servers.coordinator);
    // As long as a shard is down its fences are not looked at.
    servers.shards[1].crash().unwrap();
    let mut client = serve_on(&servers).await.client;
    until("a new key is refused because keys may be lost", || {
        let (mut client, forgotten) = (client.clone(), forgotten.clone());
        async move { client.create(&forgotten).await.is_err_and(|status| reason(&status) == "KEYS_NOT_READY") }
    })
    .await;
    servers.shards[1].launch().unwrap();
    client.until_swept().await;

    for (request, is_same) in [(&forgotten, true), (&known, false)] {
        let again = client.create(request).await.unwrap();
        assert!(again.replayed);
        assert_eq!(again.hold.unwrap().id == told.id, is_same);
    }
    assert_eq!(client.balances(&alice).await, (10_000 - 20, 20));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_start_on_the_same_server_new_keys_are_taken_at_once_also_while_a_shard_is_down() {
    let mut servers = servers().await;
    let mut coordinator = serve_on(&servers).await;
    let (carol, dave) = (on_shard("carol", 0), on_shard("dave", 0));
    coordinator.client.account(&carol, 100).await;
    coordinator.client.account(&dave, 0).await;
    coordinator.client.until_swept().await;
    coordinator.stop().await;
    servers.shards[1].crash().unwrap();

    let mut client = serve_on(&servers).await.client;
    client.until_swept().await;
    let new = v1::CreateHoldRequest {
        id: String::new(),
        idempotency_key: "new".to_owned(),
        ..hold(&carol, &dave, 10)
    };
    let created = client.create(&new).await.unwrap();

    assert_eq!(created.hold.unwrap().phase(), Phase::Held);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_light_late_under_a_key_that_stands_for_something_else_is_released() {
    let system = System::start().await;
    let Coordinator { mut client, .. } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let keyed = v1::CreateHoldRequest {
        id: String::new(),
        idempotency_key: "order".into(),
        ..hold(&alice, &bob, 10)
    };

    // As if its Try had come late, after its row and its key were lost and all fences were looked at.
    let late = client.create(&keyed).await.unwrap().hold.unwrap();
    let forget = "DELETE FROM transaction WHERE id = $1::text::uuid";
    let sql = system.sql().await;
    sql.batch_execute("DELETE FROM idempotency").await.unwrap();
    let told = client.create(&keyed).await.unwrap();
    sql.execute(forget, &[&late.id]).await.unwrap();

    assert!(!told.replayed);
    until("it is found", || {
        let client = client.clone();
        async move { status(&client).await.is_some_and(|status| status.rebuilt == 1) }
    })
    .await;
    assert_eq!(client.until_final(&late.id).await.phase(), Phase::Cancelled);
    assert_eq!(client.hold(&told.hold.unwrap().id).await.phase(), Phase::Held);
    assert_eq!(client.balances(&alice).await, (10_000 - 10, 10));
    client.audit_is_clean().await;
}

async fn shard_forgets(while_tccd_runs: bool) {
    let mut servers = servers().await;
    let mut coordinator = serve_on(&servers).await;
    let (alice, bob) = alice_and_bob(&mut coordinator.client).await;
    let neighbour = on_shard("neighbour", 0);
    coordinator.client.account(&neighbour, 0).await;
    let backup = Backup::of(&mut servers.shards[1]);

    create(&coordinator.client, &hold(&alice, &bob, 1)).await;
    let paid = create_due_soon(&mut coordinator.client, &alice, &bob).await;
    assert_eq!(coordinator.client.until_final(&paid.id).await.phase(), Phase::Confirmed);
    let sql = connect(&servers.coordinator.url()).await;
    until("the coordinator has kept the shard's head", || async {
        let kept =
            "SELECT FROM head WHERE shard = 'shard-1' AND state = 3 AND transaction_id = $1::text::uuid";
        sql.query_opt(kept, &[&paid.id]).await.unwrap().is_some()
    })
    .await;

    if while_tccd_runs {
        backup.restore(&mut servers.shards[1]);
    } else {
        coordinator.stop().await;
        backup.restore(&mut servers.shards[1]);
        coordinator = serve_on(&servers).await;
    }
    let mut client = coordinator.client.clone();
    until("the loss is noticed", || {
        let client = client.clone();
        async move {
            status(&client)
                .await
                .is_some_and(|status| status.shards[1].lost.contains("was confirmed and is absent"))
        }
    })
    .await;

    // Nothing is built on it, others go on, and the operator can find out what is affected.
    let refused = client.create(&hold(&alice, &bob, 10)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "SHARD_UNAVAILABLE"));
    assert!(client.create(&hold(&alice, &neighbour, 10)).await.is_ok());
    let (findings, _) = client.audit().await;
    assert!(findings.iter().any(|finding| finding.transaction_id == paid.id), "{findings:#?}");
    let second = serve_on(&servers).await;
    assert!(status(&second.client).await.is_some_and(|status| !status.shards[1].lost.is_empty()));

    let resume = || v1::ResumeShardRequest {
        name: "shard-1".into(),
        reason: "it has what there is".into(),
        ticket: String::new(),
    };
    client.operator.resume_shard(resume()).await.unwrap();
    for client in [&client, &second.client] {
        create(client, &hold(&alice, &bob, 10)).await;
    }
    let again = client.operator.resume_shard(resume()).await;
    assert_eq!(reason(&again.unwrap_err()), "SHARD_NOT_STOPPED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_lost_commits_is_stopped_and_told() {
    shard_forgets(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_lost_commits_while_no_coordinator_ran_is_stopped_and_told() {
    shard_forgets(false).await;
}
