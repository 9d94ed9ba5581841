//! The service under the roles that it needs and no others, and over connections that are encrypted and verified.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};
use tcc_coordinator::{
    config::{Config, Database, Login, PostgresConfig, PostgresTls, ShardConfig, Telemetry},
    databases::{Logins, ROLES},
    dev::{Cluster, Options},
    schedule::partitions,
    serve,
    store::{Store, keys::Keys},
};
use tcc_proto::v1::{self, CreateHoldRequest, OperatorActionKind, Phase};
use tcc_tests::{
    Coordinator, System, alice_and_bob, amount, connect, hold, hold_due_in, new_id, secure::Authority, until,
};
use tokio_postgres::error::SqlState;

/// A url for another user of the same database.
fn as_user(url: &str, user: &str) -> String {
    url.replace("user=postgres", &format!("user={user}"))
}

/// A system whose service has one login for each role.
async fn divided() -> System {
    // The roles come before the tables.
    let mut system = System::empty().await;
    let config = &mut system.config;
    for url in std::iter::once(&config.coordinator.url).chain(config.shards.iter().map(|shard| &shard.url)) {
        let sql = connect(url).await;
        sql.batch_execute(ROLES).await.unwrap();
        // Once more changes nothing.
        sql.batch_execute(ROLES).await.unwrap();
    }
    let logins = "CREATE ROLE tccd LOGIN IN ROLE tcc_engine;
                  CREATE ROLE tccd_maintainer LOGIN IN ROLE tcc_maintainer;
                  CREATE ROLE tccd_migrator LOGIN IN ROLE tcc_migrator;
                  CREATE ROLE board LOGIN IN ROLE tcc_reader;
                  CREATE ROLE auditor LOGIN IN ROLE tcc_auditor;";
    connect(&config.coordinator.url).await.batch_execute(logins).await.unwrap();
    config.coordinator.url = as_user(&config.coordinator.url, "tccd");
    for shard in &mut config.shards {
        shard.url = as_user(&shard.url, "tccd");
    }
    let login = |user: &str| Some(Login { user: user.into(), password_file: None });
    config.postgres.maintainer = login("tccd_maintainer");
    config.postgres.migrator = login("tccd_migrator");
    system
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_needs_no_more_than_its_roles_have() {
    let mut system = divided().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;

    let paid = hold_due_in(&alice, &bob, 100, jiff::SignedDuration::from_secs(1));
    let cancelled = hold(&alice, &bob, 100);
    let confirmed = hold(&alice, &bob, 100);
    for request in [&paid, &cancelled, &confirmed] {
        client.create(request).await.unwrap();
    }
    client.cancel(&cancelled.id).await.unwrap();
    client.confirm(&confirmed.id).await.unwrap();
    assert_eq!(client.until_final(&paid.id).await.phase(), Phase::Confirmed);
    assert_eq!(client.balances(&bob).await, (200, 0));

    // Keys, lists and books, in every way in which they are read.
    let key = "once".to_owned();
    let keyed = CreateHoldRequest { id: String::new(), idempotency_key: key, ..hold(&alice, &bob, 100) };
    let first = client.create(&keyed).await.unwrap().hold.unwrap();
    assert_eq!(client.create(&keyed).await.unwrap().hold.unwrap().id, first.id);
    let database = system.config.coordinator.url.parse().unwrap();
    Keys::start(&database, Store::start(&database)).purge().await.unwrap();
    let of_alice = v1::ListHoldsRequest { payer: alice.clone(), ..Default::default() };
    assert_eq!(client.holds.list_holds(of_alice).await.unwrap().into_inner().holds.len(), 4);
    let holdings = v1::GetHoldingsRequest { account: alice.clone() };
    assert_eq!(client.ledger.get_holdings(holdings).await.unwrap().into_inner().holds.len(), 1);
    let then = v1::GetBalanceRequest { account: alice.clone(), at: first.created_at };
    client.ledger.get_balance(then).await.unwrap();
    client.ledger.block_account(v1::BlockAccountRequest { id: bob.clone() }).await.unwrap();
    client.ledger.unblock_account(v1::UnblockAccountRequest { id: bob.clone() }).await.unwrap();
    let burn = v1::BurnRequest { id: new_id(), account: bob.clone(), amount: Some(amount(200)) };
    client.ledger.burn(burn).await.unwrap();
    client.ledger.close_account(v1::CloseAccountRequest { id: alice.clone() }).await.unwrap_err();

    // The auditor in the background reads what is new, which needs the summaries, and what others are writing.
    until("all shards are audited", || {
        let mut client = client.clone();
        async move {
            let status = client.operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
            status.shards.iter().all(|shard| shard.audited_postings > 0)
        }
    })
    .await;
    let mut replay = client
        .operator
        .replay_shard(v1::ReplayShardRequest { shard: "shard-0".into(), at: None })
        .await
        .unwrap()
        .into_inner();
    while replay.message().await.unwrap().is_some() {}
    client.operator.list_findings(v1::ListFindingsRequest::default()).await.unwrap();

    // And what operators do, all of it.
    let why = "a test".to_owned();
    let act = async |action: OperatorActionKind| {
        let (id, reason) = (first.id.clone(), why.clone());
        let request = v1::ActRequest { id, action: action.into(), reason, ticket: String::new() };
        client.clone().recovery.act(request).await
    };
    act(OperatorActionKind::Pause).await.unwrap();
    act(OperatorActionKind::Resume).await.unwrap();
    let describe = v1::DescribeHoldRequest { id: first.id.clone() };
    client.recovery.describe_hold(describe).await.unwrap();
    let (action, ids) = (OperatorActionKind::ForceCancel.into(), vec![first.id.clone()]);
    let plan = v1::CreatePlanRequest { action, ids, ..Default::default() };
    let plan = client.recovery.create_plan(plan).await.unwrap().into_inner().plan.unwrap();
    let execute = v1::ExecutePlanRequest { id: plan.id.clone(), reason: why.clone(), ..Default::default() };
    let mut told = client.recovery.execute_plan(execute).await.unwrap().into_inner();
    while told.message().await.unwrap().is_some() {}
    assert_eq!(client.until_final(&first.id).await.phase(), Phase::Cancelled);
    client.recovery.get_plan(v1::GetPlanRequest { id: plan.id }).await.unwrap();
    client.recovery.list_plans(v1::ListPlansRequest::default()).await.unwrap();
    client.recovery.list_attention(v1::ListAttentionRequest::default()).await.unwrap();
    client.recovery.list_instances(v1::ListInstancesRequest::default()).await.unwrap();
    let (name, reason) = ("shard-0".to_owned(), why.clone());
    let drain = v1::DrainShardRequest { name: name.clone(), reason, ticket: String::new() };
    client.recovery.drain_shard(drain).await.unwrap();
    let resume = v1::ResumeShardRequest { name, reason: why, ticket: String::new() };
    client.operator.resume_shard(resume).await.unwrap();
    let actions = client.recovery.list_actions(v1::ListActionsRequest::default()).await.unwrap();
    assert_eq!(actions.into_inner().actions.len(), 5);
    client.audit_is_clean().await;
    running.stop().cancel();
    running.ended().await.unwrap();

    // The maintainer makes, indexes and drops partitions, whoever made them.
    let database = Logins::read(&system.config.postgres).unwrap().to(&system.config.coordinator.url).unwrap();
    let late = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 10);
    let done = partitions::maintain(&database.maintainer, Some(late)).await.unwrap();
    assert!(done.created > 0 && done.indexed > 0, "{done:?}");

    // Without the migrator it starts again, since there is nothing to migrate.
    system.config.postgres.migrator = None;
    let again = system.coordinator().await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_is_refused_whatever_the_protocol_never_does() {
    let system = divided().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let (held, paid) = (hold(&alice, &bob, 100), hold(&alice, &bob, 100));
    client.create(&held).await.unwrap();
    client.create(&paid).await.unwrap();
    client.confirm(&paid.id).await.unwrap();
    let (payer, coordinator) = (system.shard_sql(0).await, system.sql().await);
    let partition =
        "SELECT relname::text FROM pg_class WHERE relname LIKE 'posting\\_2%' AND relkind = 'r' LIMIT 1";
    let partition: String = payer.query_one(partition, &[]).await.unwrap().get(0);
    let paid_id = &paid.id;
    let forbidden = [
        (&payer, "DELETE FROM posting".to_owned()),
        (&payer, "UPDATE posting SET amount = amount + 1".into()),
        (&payer, "TRUNCATE posting".into()),
        (&payer, format!("DELETE FROM {partition}")),
        (&payer, format!("DROP TABLE {partition}")),
        (&payer, "ALTER TABLE branch DISABLE TRIGGER moves_once".into()),
        (&payer, "DELETE FROM branch".into()),
        (&payer, "UPDATE branch SET amount = amount + 1".into()),
        (&payer, "UPDATE branch SET account = 'mallory'".into()),
        (&payer, format!("UPDATE branch SET state = 1 WHERE transaction_id = '{paid_id}'")),
        (&payer, format!("UPDATE branch SET state = 4 WHERE transaction_id = '{paid_id}'")),
        (&payer, format!("UPDATE branch SET state = 6 WHERE transaction_id = '{}'", held.id)),
        (&payer, "DELETE FROM account".into()),
        (&payer, "UPDATE account SET currency = 'OTHER'".into()),
        (&payer, "UPDATE posting_kind SET available_change = 2".into()),
        (&payer, "DELETE FROM bucket".into()),
        (&payer, "CREATE TABLE mine (n int)".into()),
        (&payer, "SET ROLE tcc_migrator".into()),
        (&coordinator, "DELETE FROM transaction".into()),
        (&coordinator, "UPDATE transaction SET descriptor = ''".into()),
        (&coordinator, "UPDATE transaction SET due_at = now()".into()),
        (&coordinator, "DELETE FROM wakeup".into()),
        (&coordinator, "UPDATE wakeup SET wake_at = now()".into()),
        (&coordinator, "UPDATE bucket SET shard = 'shard-0'".into()),
        (&coordinator, "UPDATE idempotency SET transaction_id = gen_random_uuid()".into()),
        (&coordinator, "UPDATE finding SET found = ''".into()),
        (&coordinator, "DELETE FROM finding".into()),
        (&coordinator, "DELETE FROM audited".into()),
        (&coordinator, "UPDATE operator_action SET actor = 'somebody else'".into()),
        (&coordinator, "DELETE FROM operator_action".into()),
        (&coordinator, "ALTER TABLE operator_action DISABLE TRIGGER append_only".into()),
        (&coordinator, "UPDATE plan SET actor = 'somebody else'".into()),
        (&coordinator, "UPDATE plan_item SET transaction_id = gen_random_uuid()".into()),
        (&coordinator, "DELETE FROM plan_item".into()),
        (&coordinator, "INSERT INTO shard (name) VALUES ('mine')".into()),
    ];

    for (sql, statement) in &forbidden {
        let error = sql.batch_execute(statement).await.expect_err(statement);

        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}: {error:?}");
    }

    // Nor if it hides the catalog behind something of its own.
    payer
        .batch_execute(
            "CREATE TEMP TABLE pg_class AS SELECT oid, 'tccd'::regrole AS relowner FROM pg_catalog.pg_class",
        )
        .await
        .unwrap();
    let moved_back = format!("UPDATE branch SET state = 1 WHERE transaction_id = '{paid_id}'");
    let error = payer.batch_execute(&moved_back).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{error:?}");

    // What the protocol does is allowed: the same statement, with a move that there is.
    let allowed =
        format!("BEGIN; UPDATE branch SET state = 4 WHERE transaction_id = '{}'; ROLLBACK", held.id);
    payer.batch_execute(&allowed).await.unwrap();
    client.cancel(&held.id).await.unwrap();
    client.audit_is_clean().await;
    running.stop().cancel();
    running.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_change_nothing_and_a_board_does_not_learn_whose_it_is() {
    let system = divided().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.create(&hold(&alice, &bob, 100)).await.unwrap();
    let as_role = |url: &str, user: &str| url.replace("user=tccd", &format!("user={user}"));
    let (shard, coordinator) = (&system.config.shards[0].url, &system.config.coordinator.url);

    let auditor = connect(&as_role(shard, "auditor")).await;
    auditor.batch_execute("SELECT * FROM entry; SELECT * FROM branch; SELECT * FROM account").await.unwrap();
    let board = connect(&as_role(shard, "board")).await;
    board.batch_execute("SELECT currency, sum(available), sum(held) FROM account GROUP BY 1").await.unwrap();
    let board_of_all = connect(&as_role(coordinator, "board")).await;
    board_of_all.batch_execute("SELECT phase, count(*) FROM transaction GROUP BY 1").await.unwrap();

    for (sql, statement) in [
        (&auditor, "UPDATE account SET available = 0"),
        (&auditor, "DELETE FROM posting"),
        (&board, "SELECT id FROM account"),
        (&board, "SELECT descriptor FROM branch"),
        (&board, "SELECT account FROM posting"),
        (&board, "SELECT * FROM entry"),
        (&board_of_all, "SELECT descriptor FROM transaction"),
    ] {
        let error = sql.batch_execute(statement).await.expect_err(statement);
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
    }
    running.stop().cancel();
    running.ended().await.unwrap();
}

/// A server that takes encrypted connections with passwords, and nothing else over TCP. Its databases are those of a system.
struct Encrypted {
    _cluster: Cluster,
    folder: tempfile::TempDir,

    port: u16,
}

impl Encrypted {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let authority = Authority::new();
        let (certificate, key) = authority.certificate(&["localhost"]);
        let hba = "local all all trust\nhostssl all all all scram-sha-256\n";
        let password = "a password\n";
        for (name, text) in [
            ("server.pem", &*certificate),
            ("server.key", &*key),
            ("hba", hba),
            ("ca.pem", &*authority.pem),
            ("password", password),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        own(&folder.path().join("server.key"));
        let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let file = |name: &str| folder.path().join(name).display().to_string();
        let settings = vec![
            "listen_addresses=localhost".into(),
            format!("port={port}"),
            "ssl=on".into(),
            format!("ssl_cert_file={}", file("server.pem")),
            format!("ssl_key_file={}", file("server.key")),
            format!("hba_file={}", file("hba")),
            "fsync=off".into(),
        ];
        let start = move || Cluster::start(&Options { settings, ..Options::default() });
        let cluster = tokio::task::spawn_blocking(start).await.unwrap().expect("PostgreSQL starts");
        let admin = connect(&format!("{} port={port}", cluster.url())).await;
        admin.batch_execute("CREATE ROLE tccd LOGIN PASSWORD 'a password'").await.unwrap();
        for database in ["coordinator", "shard-0", "shard-1"] {
            admin.batch_execute(&format!("CREATE DATABASE \"{database}\" OWNER tccd")).await.unwrap();
        }
        Self { _cluster: cluster, folder, port }
    }

    fn url(&self, host: &str, database: &str) -> String {
        format!("host={host} port={} user=tccd dbname={database}", self.port)
    }

    fn access(&self) -> PostgresConfig {
        PostgresConfig {
            tls: PostgresTls::Always,
            ca: Some(self.folder.path().join("ca.pem")),
            password_file: Some(self.folder.path().join("password")),
            ..PostgresConfig::default()
        }
    }
}

/// PostgreSQL wants its key to be its own, or root's and its group's.
fn own(key: &Path) {
    use std::os::unix::fs::{MetadataExt as _, chown};
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let find = |name: &str| {
            let line = users.lines().find(|line| line.starts_with(&format!("{name}:")))?;
            line.split(':').nth(2)?.parse::<u32>().ok()
        };
        chown(key, find("postgres").or_else(|| find("nobody")), None).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_believed_only_with_its_authority_and_its_name() {
    let server = Encrypted::start().await;
    let other = tempfile::NamedTempFile::new().unwrap();
    fs::write(other.path(), Authority::new().pem).unwrap();
    let open = async |access: &PostgresConfig, url: &str| {
        let database = Logins::read(access).unwrap().to(url).unwrap();
        database.engine.bounded("test").open().await.map_err(|error| format!("{error:?}"))
    };
    let access = server.access();
    let named = server.url("localhost", "coordinator");

    let client = open(&access, &named).await.unwrap();
    let sql = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, &str>(1)), (true, "TLSv1.3"));
    open(&access, &format!("{named} channel_binding=require")).await.expect("bound to the certificate");

    let stranger = PostgresConfig { ca: Some(other.path().into()), ..access.clone() };
    let stranger = open(&stranger, &named).await.unwrap_err();
    assert!(stranger.contains("UnknownIssuer") || stranger.contains("BadSignature"), "{stranger}");
    let misnamed = open(&access, &server.url("127.0.0.1", "coordinator")).await.unwrap_err();
    assert!(misnamed.contains("NotValidForName"), "{misnamed}");
    let clear = PostgresConfig { tls: PostgresTls::Never, ..access.clone() };
    let clear = open(&clear, &named).await.unwrap_err();
    assert!(clear.contains("pg_hba.conf") || clear.contains("no encryption"), "{clear}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_works_over_encrypted_connections() {
    let server = Encrypted::start().await;
    let url = |database: &str| format!("{} channel_binding=require", server.url("localhost", database));
    let shard = |n: usize| ShardConfig::new(&format!("shard-{n}"), &url(&format!("shard-{n}")));
    let config = Config {
        listen: "127.0.0.1:0".into(),
        insecure_dev: true,
        coordinator: Database { url: url("coordinator") },
        shards: vec![shard(0), shard(1)],
        postgres: server.access(),
        telemetry: Telemetry { listen: String::new(), ..Telemetry::default() },
        ..Config::default()
    };
    let Coordinator { mut client, running } = Coordinator::on(serve::start(&config).await.unwrap()).await;
    let (alice, bob) = alice_and_bob(&mut client).await;

    let request = hold_due_in(&alice, &bob, 100, jiff::SignedDuration::from_secs(1));
    client.create(&request).await.unwrap();

    assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    client.audit_is_clean().await;
    running.stop().cancel();
    running.ended().await.unwrap();
}
