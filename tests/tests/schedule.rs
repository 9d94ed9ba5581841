//! Timers, when instances come and go, the database's clock is set or the database goes back, commits stall, and partitions
//! are made and dropped.

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use std::{path::Path, process::Command, time::Duration};
use tcc_coordinator::{
    dev::Servers,
    schedule::partitions::{self, Done},
    serve,
    store::schema,
};
use tcc_participant::batch::{Batcher, Executor, Failure, Limits};
use tcc_proto::v1::{self, Phase};
use tcc_tests::{
    Client, Coordinator, System, from_proto, hold, hold_due_in, on_two_shards, process::Tccd, until,
};
use uuid::Uuid;

async fn alice_and_bob(client: &mut Client) -> (String, String) {
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 10_000).await;
    client.account(&bob, 0).await;
    (alice, bob)
}

async fn slots(client: &Client) -> i32 {
    let status = client.clone().operator.get_status(v1::GetStatusRequest {}).await;
    status.map_or(-1, |status| status.into_inner().slots)
}

async fn until_slots(client: &Client, count: i32) {
    until(&format!("an instance serves {count} slots"), || async { slots(client).await == count }).await;
}

/// Holds of 1 that fall due after so long, created one after the other.
async fn create(client: &mut Client, payer: &str, payee: &str, count: usize, due: Duration) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let due = SignedDuration::try_from(due).unwrap();
        let request = hold_due_in(payer, payee, 1, due);
        assert_eq!(client.create(&request).await.unwrap().hold.unwrap().phase(), Phase::Held);
        ids.push(request.id);
    }
    ids
}

/// Waits until all are paid. Answers how late the last one was; none may be early.
async fn lateness(client: &Client, ids: &[String]) -> Duration {
    let paid = join_all(ids.iter().map(|id| async move { client.clone().until_final(id).await })).await;
    let late = paid.iter().map(|hold| {
        assert_eq!(hold.phase(), Phase::Confirmed);
        let (settled, due) = (hold.settled_at.as_ref().unwrap(), hold.due_at.as_ref().unwrap());
        Duration::try_from(from_proto(settled).duration_since(from_proto(due))).expect("none is paid early")
    });
    late.max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_share_the_slots_and_any_of_them_serves_any_hold() {
    let system = System::start().await;
    let first = system.coordinator().await;
    let mut client = first.client.clone();
    until_slots(&client, 256).await;
    let second = system.coordinator().await;
    let mut other = second.client.clone();
    until_slots(&client, 128).await;
    until_slots(&other, 128).await;
    let (alice, bob) = alice_and_bob(&mut client).await;

    let near = create(&mut client, &alice, &bob, 20, Duration::from_secs(2)).await;
    let near_too = create(&mut other, &alice, &bob, 20, Duration::from_secs(2)).await;
    let far = create(&mut client, &alice, &bob, 1, Duration::from_secs(3_600)).await;
    assert_eq!(other.cancel(&far[0]).await.unwrap().phase(), Phase::Cancelled);
    assert_eq!(other.hold(&near[0]).await.id, near[0]);
    lateness(&client, &near_too).await;
    lateness(&other, &near).await;
    client.audit_is_clean().await;

    first.stop().await;
    until_slots(&other, 256).await;
    let missed = second.running.timers.lock().missed();
    assert_eq!(missed, 0, "nothing had to be found by the verify pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_instance_had_armed_is_paid_by_another_within_seconds_and_after_a_drain_at_once() {
    let system = System::start().await;
    let mut doomed = Tccd::start(&system.config).await.unwrap();
    let mut leaving = Tccd::start(&system.config).await.unwrap();
    let staying = Coordinator::on(serve::start(&system.config).await.unwrap()).await;
    let mut client = staying.client.clone();
    until("three instances share the slots", || async { (84..=86).contains(&slots(&client).await) }).await;
    let (alice, bob) = alice_and_bob(&mut client).await;

    let mut at_doomed = Client::connect(doomed.url()).await;
    let killed = create(&mut at_doomed, &alice, &bob, 20, Duration::from_secs(2)).await;
    doomed.kill().await.unwrap();
    let late = lateness(&client, &killed).await;
    assert!(late < Duration::from_secs(10), "{late:?}");

    let mut at_leaving = Client::connect(leaving.url()).await;
    let drained = create(&mut at_leaving, &alice, &bob, 20, Duration::from_secs(2)).await;
    assert!(leaving.terminate(tcc_tests::PATIENCE).await.unwrap().success());
    let late = lateness(&client, &drained).await;
    assert!(late < Duration::from_secs(3), "a lease would last 4 s: {late:?}");
    until_slots(&client, 256).await;
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_started_again_on_its_address_does_not_wait_for_its_old_lease() {
    let system = System::start().await;
    let mut tccd = Tccd::start(&system.config).await.unwrap();
    let mut client = Client::connect(tccd.url()).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let ids = create(&mut client, &alice, &bob, 10, Duration::from_secs(1)).await;
    tccd.kill().await.unwrap();
    tccd.restart().await.unwrap();

    let late = lateness(&Client::connect(tccd.url()).await, &ids).await;
    assert!(late < Duration::from_millis(3_500), "the lease would last 4 s: {late:?}");
}

/// Takes what it is given and never answers.
struct Hangs;

impl Executor for Hangs {
    type Item = tcc_core::TransactionId;
    type Answer = Option<tcc_coordinator::store::Woken>;

    async fn connect(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn run(&mut self, _: &[Self::Item]) -> Result<Vec<Self::Answer>, Failure> {
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_beats_and_makes_no_progress_is_noticed_and_its_holds_are_paid_by_another() {
    let system = System::start().await;
    let hang = |mut store: tcc_coordinator::store::Store| {
        let limits = Limits { patience: Duration::from_secs(3_600), ..Limits::default() };
        store.wake = Batcher::start("hangs", vec![Hangs], limits);
        store
    };
    let hung = serve::start_with(&system.config, Box::new(|participant| participant), hang).await.unwrap();
    let mut hung = Coordinator::on(hung).await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    until_slots(&client, 128).await;
    let (alice, bob) = alice_and_bob(&mut client).await;

    let ids = create(&mut hung.client, &alice, &bob, 10, Duration::from_secs(1)).await;
    let late = lateness(&client, &ids).await;
    assert!(Duration::from_secs(20) < late, "it hangs: {late:?}");
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_stalls_lands_before_the_watermark_even_if_the_instance_is_gone_meanwhile() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let id = create(&mut client, &alice, &bob, 1, Duration::from_secs(15)).await.remove(0);
    Coordinator { client, running }.stop().await;
    let (sql, stalled) = (system.sql().await, system.sql().await);
    let uuid = Uuid::parse_str(&id).unwrap();
    // Its wake-ups are gone, but for one whose commit takes long.
    sql.execute("DELETE FROM wakeup WHERE transaction_id = $1", &[&uuid]).await.unwrap();
    stalled.batch_execute("BEGIN").await.unwrap();
    let wake = "INSERT INTO wakeup SELECT clock_timestamp(), id, slot, lane FROM transaction WHERE id = $1 RETURNING wake_at, slot";
    let row = stalled.query_one(wake, &[&uuid]).await.unwrap();
    let (wake_at, slot): (Timestamp, i16) = (row.get(0), row.get(1));

    let Coordinator { mut client, running } = system.coordinator().await;
    // Long enough for every window of that time to be read once more.
    let ahead = "SELECT clock_timestamp() > $1::timestamptz + interval '25 seconds'";
    until("the window has long passed", || async { sql.query_one(ahead, &[&wake_at]).await.unwrap().get(0) })
        .await;
    let watermark = sql.query_one("SELECT watermark FROM slot WHERE slot = $1", &[&slot]).await.unwrap();
    assert!(watermark.get::<_, Timestamp>(0) <= wake_at);
    assert_eq!(client.hold(&id).await.phase(), Phase::Held, "nobody can know of its wake-up");
    Coordinator { client, running }.stop().await;
    stalled.batch_execute("COMMIT").await.unwrap();

    let Coordinator { mut client, running: _running } = system.coordinator().await;
    assert_eq!(client.until_final(&id).await.phase(), Phase::Confirmed);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_paid_early_when_the_databases_clock_is_set_and_everything_is_paid() {
    let system = System::start().await;
    let sql = system.sql().await;
    // A clock that can be set, before the one of PostgreSQL.
    sql.batch_execute(
        "CREATE SCHEMA clock;
         CREATE TABLE clock.shift (by interval NOT NULL);
         INSERT INTO clock.shift VALUES ('3 minutes');
         CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
         AS 'SELECT pg_catalog.clock_timestamp() + by FROM clock.shift';
         ALTER DATABASE coordinator SET search_path = clock, pg_catalog, public",
    )
    .await
    .unwrap();
    // The coordinator's own clock is minutes off from the start.
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let set = |by: &'static str| {
        let sql = &sql;
        async move { sql.execute(&format!("UPDATE clock.shift SET by = interval '{by}'"), &[]).await.unwrap() }
    };

    let due = Duration::from_secs(3 * 60 + 4);
    let back = create(&mut client, &alice, &bob, 5, due).await;
    set("2 minutes 58 seconds").await;
    let late = lateness(&client, &back).await;
    assert!(late < Duration::from_secs(5), "{late:?}");

    let ahead = create(&mut client, &alice, &bob, 5, due).await;
    set("3 minutes").await;
    let late = lateness(&client, &ahead).await;
    assert!(late < Duration::from_secs(5), "{late:?}");
    client.audit_is_clean().await;
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_coordinators_database_goes_back_everything_is_read_anew() {
    let start = || Servers::start(2, None, &[]);
    let mut servers = tokio::task::spawn_blocking(start).await.unwrap().expect("PostgreSQL starts");
    let Coordinator { mut client, running: _running } =
        Coordinator::on(serve::start(&servers.config("127.0.0.1:0")).await.unwrap()).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let ids = create(&mut client, &alice, &bob, 10, Duration::from_secs(4)).await;
    let data = servers.coordinator.home().join("data");
    let backup = servers.coordinator.home().join("backup");

    servers.coordinator.crash().unwrap();
    copy(&data, &backup);
    servers.coordinator.launch().unwrap();
    lateness(&client, &ids).await;
    // All of it is behind the watermark, in memory and on disk.
    let sql = tcc_tests::connect(&servers.coordinator.url()).await;
    let passed = "SELECT (SELECT min(watermark) FROM slot) > max(due_at) FROM transaction";
    until("the watermark has passed them", || async { sql.query_one(passed, &[]).await.unwrap().get(0) })
        .await;

    servers.coordinator.crash().unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    servers.coordinator.launch().unwrap();
    let sql = tcc_tests::connect(&servers.coordinator.url()).await;
    let open = "SELECT count(*) FROM transaction WHERE phase = 2";
    assert!(sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) > 0, "it has forgotten the payments");

    until("they are all CONFIRMED again", || async {
        sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    assert_eq!(client.balances(&bob).await, (10, 0), "and were paid once");
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_shard_is_armed_again_and_paid_when_it_is_back_and_others_do_not_notice() {
    let start = || Servers::start(3, None, &[]);
    let mut servers = tokio::task::spawn_blocking(start).await.unwrap().expect("PostgreSQL starts");
    let running = serve::start(&servers.config("127.0.0.1:0")).await.unwrap();
    let Coordinator { mut client, running: _running } = Coordinator::on(running).await;
    let on = |shard: u16| {
        let bucket = |id: &String| tcc_core::bucket_of(&tcc_core::AccountId::parse(id).unwrap());
        (0..).map(|n| format!("user-{n}")).find(|id| bucket(id) % 3 == shard).unwrap()
    };
    let (alice, bob, carol) = (on(0), on(1), on(2));
    for account in [&alice, &bob, &carol] {
        client.account(account, 10_000).await;
    }
    let waiting = create(&mut client, &alice, &bob, 100, Duration::from_secs(4)).await;
    servers.shards[1].crash().unwrap();

    until("what waits is armed again", || async {
        let status = client.clone().operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
        let retrying = status.attention.iter().find(|count| count.attention() == v1::Attention::Retrying);
        status.shards[1].waiting == 100 && retrying.is_some_and(|count| count.transactions == 100)
    })
    .await;
    let others = create(&mut client, &alice, &carol, 20, Duration::from_secs(1)).await;
    assert!(lateness(&client, &others).await < Duration::from_secs(3));

    servers.shards[1].launch().unwrap();
    let back = Timestamp::now();
    lateness(&client, &waiting).await;
    let took = Timestamp::now().duration_since(back);
    assert!(
        took < SignedDuration::from_secs(10),
        "they do not wait for the time they were armed for: {took}"
    );
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_indexed_before_they_are_needed_and_dropped_when_drained_and_nobody_waits() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let sql = system.sql().await;
    let database: tcc_participant::Postgres = system.config.coordinator.url.parse().unwrap();
    let far = create(&mut client, &alice, &bob, 1, Duration::from_secs(40 * 3_600)).await.remove(0);
    let far = Uuid::parse_str(&far).unwrap();
    let leaf =
        "SELECT tableoid::regclass::text FROM wakeup WHERE transaction_id = $1 ORDER BY wake_at DESC LIMIT 1";
    let leaf: String = sql.query_one(leaf, &[&far]).await.unwrap().get(0);
    let indexes = "SELECT count(*) FROM pg_index WHERE indrelid = $1::text::regclass AND indisvalid";
    let indexes = || async { sql.query_one(indexes, &[&leaf]).await.unwrap().get::<_, i64>(0) };
    assert_eq!(indexes().await, 0, "what is far has no index");
    assert_eq!(
        partitions::maintain(&database, None).await.unwrap(),
        Done::default(),
        "nothing is to be done at the start"
    );

    // A day and a half later.
    let now = Timestamp::now();
    let done = partitions::maintain(&database, Some(now + SignedDuration::from_hours(36))).await.unwrap();
    assert!(done.created >= 5 && done.indexed >= 5 && done.dropped == 0, "{done:?}");
    assert!(done.stragglers == 0, "{done:?}");
    assert_eq!(indexes().await, 1);

    // Partitions of the past, all of whose wake-ups were looked at, and a reader that does not end.
    partitions_of_the_past(&sql).await;
    let reader = system.sql().await;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM wakeup").await.unwrap();
    let dropping = tokio::spawn({
        let database = database.clone();
        async move { partitions::maintain(&database, None).await }
    });
    let half = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending";
    until("a partition is half detached", || async {
        sql.query_one(half, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    for _ in 0..20 {
        let began = std::time::Instant::now();
        client.create(&hold(&alice, &bob, 1)).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_millis(500),
            "creation waits for the drop: {:?}",
            began.elapsed()
        );
    }

    // It dies in the middle; the next one goes on from there.
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'tccd-partitions'";
    sql.query_one(kill, &[]).await.unwrap();
    assert!(dropping.await.unwrap().is_err());
    reader.batch_execute("COMMIT").await.unwrap();
    let done = partitions::maintain(&database, None).await.unwrap();
    assert!(done.dropped >= 3 && done.stragglers == 0, "{done:?}");
    let left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'wakeup\\_%' AND relkind = 'r' AND NOT relispartition";
    assert_eq!(sql.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    client.audit_is_clean().await;
}

/// Makes the partitions of the day before.
async fn partitions_of_the_past(sql: &tokio_postgres::Client) {
    let day = SignedDuration::from_hours(24);
    let made = schema::WAKEUP.create(sql, Timestamp::now(), day, SignedDuration::ZERO).await.unwrap();
    assert!(made >= 3, "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_drained_partition_names_and_is_not_final_is_looked_at_again() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let ids = create(&mut client, &alice, &bob, 2, Duration::from_secs(3_600)).await;
    let [due, not_due] = [0, 1].map(|n| Uuid::parse_str(&ids[n]).unwrap());
    Coordinator { client, running }.stop().await;
    let sql = system.sql().await;
    partitions_of_the_past(&sql).await;
    let before =
        "INSERT INTO wakeup SELECT clock_timestamp() - interval '12 hours', id, slot, lane FROM transaction";
    sql.execute(before, &[]).await.unwrap();
    // One is held and due, although all its wake-ups were looked at.
    let late = "UPDATE transaction SET due_at = clock_timestamp() - interval '2 minutes' WHERE id = $1";
    sql.execute(late, &[&due]).await.unwrap();

    let database: tcc_participant::Postgres = system.config.coordinator.url.parse().unwrap();
    let done = partitions::maintain(&database, None).await.unwrap();

    assert_eq!(done.stragglers, 1);
    let armed = "SELECT count(*) FROM wakeup WHERE transaction_id = $1";
    for (id, count) in [(due, 3), (not_due, 2)] {
        assert_eq!(sql.query_one(armed, &[&id]).await.unwrap().get::<_, i64>(0), count);
    }
}
