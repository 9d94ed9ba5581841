//! The auditor: whatever can be wrong is put into the tables by hand, and found, at once and by the one that never sleeps.

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use std::{collections::BTreeSet, sync::Arc};
use tcc_coordinator::{
    audit::{
        self, AuditEvent,
        follow::{Follower, Round},
    },
    shards::Shards,
    store::{self, Store, audited::Finding},
};
use tcc_ledger::{Shard, heads::Heads};
use tcc_proto::v1::{self, replay_shard_response::Event};
use tcc_tests::{
    Client, Coordinator, PATIENCE, System, alice_and_bob, connect, hold, hold_due_in, on_two_shards, reason,
    time, until,
};
use tokio::sync::mpsc;
use tonic::Code;

/// Where a hand reaches into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Database {
    Coordinator,
    /// Alice's.
    Payer,
    /// Bob's.
    Payee,
}

use Database::{Coordinator as TheCoordinator, Payee, Payer};

/// An auditor of its own on the databases of a system.
struct Auditor {
    system: System,
    store: Store,
    shards: Arc<Shards>,
    follower: Follower,
}

impl Auditor {
    /// On a system on which nothing else runs.
    async fn on(system: System) -> Self {
        let names: Vec<String> = system.config.shards.iter().map(|shard| shard.name.clone()).collect();
        let map = store::schema::prepare(&mut system.sql().await, &names).await.unwrap();
        for shard in &system.config.shards {
            let mut sql = connect(&shard.url).await;
            tcc_ledger::prepare(&mut sql, &shard.name, &map[&shard.name]).await.unwrap();
        }
        let shard = |shard: &tcc_coordinator::config::ShardConfig| {
            let (database, buckets) = (shard.url.parse().unwrap(), map[&shard.name].clone());
            Shard::start(&shard.name, &database, buckets, Heads::default())
        };
        let shards = Arc::new(Shards::new(system.config.shards.iter().map(shard).collect(), &map));
        until("the shards are connected", || async {
            join_all(shards.all().iter().map(Shard::now)).await.iter().all(Result::is_ok)
        })
        .await;
        let store = Store::start(&system.config.coordinator.url.parse().unwrap());
        let follower = follower(&system, &store, &shards);
        Self { system, store, shards, follower }
    }

    /// After a hold that was paid, one that was cancelled and one that is held. Nothing else runs any more.
    async fn after_some_holds() -> Self {
        let system = System::start().await;
        let mut coordinator = system.coordinator().await;
        some_holds(&mut coordinator.client).await;
        coordinator.stop().await;
        Self::on(system).await
    }

    async fn sql(&self, database: Database) -> tokio_postgres::Client {
        match database {
            TheCoordinator => self.system.sql().await,
            Payer => self.system.shard_sql(0).await,
            Payee => self.system.shard_sql(1).await,
        }
    }

    /// What the auditor that never sleeps finds, from the beginning.
    async fn follow(&mut self) -> Vec<Finding> {
        let sql = self.sql(TheCoordinator).await;
        sql.batch_execute("DELETE FROM audited; DELETE FROM finding").await.unwrap();
        let round = self.round().await;
        assert!(round.is_done && round.postings > 0, "{round:?}");
        self.found().await
    }

    /// Rounds until everything has been looked at.
    async fn round(&mut self) -> Round {
        let mut all = Round { postings: 0, findings: 0, is_done: false };
        while !all.is_done {
            let round = self.follower.round().await.unwrap();
            all.postings += round.postings;
            all.findings += round.findings;
            all.is_done = round.is_done;
        }
        all
    }

    /// What it has kept.
    async fn found(&self) -> Vec<Finding> {
        self.store.findings(0, 1_000).await.unwrap().into_iter().map(|kept| kept.finding).collect()
    }

    /// What is found if everything is read.
    async fn run(&self) -> Vec<Finding> {
        run(&self.store, &self.shards).await
    }

    /// What is found by following, and if everything is read: side by side, since both look again at what they suspect.
    async fn both(&mut self) -> (Vec<Finding>, Vec<Finding>) {
        let (store, shards) = (self.store.clone(), Arc::clone(&self.shards));
        tokio::join!(self.follow(), run(&store, &shards))
    }

    /// Puts each mistake into the tables, looks for it, and puts the tables back.
    async fn seed(mut self, mistakes: &[Mistake]) {
        assert_eq!(self.both().await, (vec![], vec![]));
        for database in [TheCoordinator, Payer, Payee] {
            self.sql(database).await.batch_execute(&save(tables(database))).await.unwrap();
        }
        for mistake in mistakes {
            let mut changed = 0;
            for (database, change) in mistake.changes {
                let sql = self.sql(*database).await;
                for change in change.split(';') {
                    changed += sql.execute(change, &[]).await.unwrap_or_else(|e| panic!("{change}: {e:?}"));
                }
            }
            assert!(changed > 0, "{:?} changes nothing", mistake.changes);

            let (followed, run) = self.both().await;

            let kinds = |findings: &[Finding]| -> BTreeSet<String> {
                findings.iter().map(|finding| finding.kind.clone()).collect()
            };
            assert!(kinds(&run).contains(mistake.kind), "{:?}: {run:#?}", mistake.changes);
            assert_eq!(
                kinds(&followed).contains(mistake.kind),
                mistake.moves,
                "{:?}: {followed:#?}",
                mistake.changes
            );
            for database in [TheCoordinator, Payer, Payee] {
                self.sql(database).await.batch_execute(&put_back(tables(database))).await.unwrap();
            }
        }
        assert_eq!(self.both().await, (vec![], vec![]));
    }
}

async fn run(store: &Store, shards: &Shards) -> Vec<Finding> {
    let (events, mut told) = mpsc::channel(64);
    let listen = async {
        let mut findings = Vec::new();
        while let Some(event) = told.recv().await {
            if let AuditEvent::Finding(finding) = event {
                findings.push(finding);
            }
        }
        findings
    };
    let (audited, findings) = tokio::join!(audit::run(store, shards, events), listen);
    audited.unwrap();
    findings
}

fn follower(system: &System, store: &Store, shards: &Arc<Shards>) -> Follower {
    let coordinator = system.config.coordinator.url.parse().unwrap();
    Follower::new(&coordinator, store.clone(), Arc::clone(shards), SignedDuration::ZERO)
}

async fn some_holds(client: &mut Client) {
    let (alice, bob) = alice_and_bob(client).await;
    let [paid, cancelled, held] = [10, 20, 40].map(|amount| hold(&alice, &bob, amount));
    for request in [&paid, &cancelled, &held] {
        client.create(request).await.unwrap();
    }
    client.confirm(&paid.id).await.unwrap();
    client.until_final(&paid.id).await;
    client.cancel(&cancelled.id).await.unwrap();
    client.until_final(&cancelled.id).await;
}

/// A second payment for one fence, with a book that is right.
const PAID_TWICE: &str = "\
INSERT INTO posting (account, version, transaction_id, branch, kind, amount, available_after, held_after, recorded_at)
SELECT account, 2, transaction_id, branch, kind, amount, available_after + amount, 0, clock_timestamp() FROM posting;
UPDATE account SET available = 20, version = 2";

/// Of the hold that is held.
const LONG_AGO: &str = "UPDATE branch SET fenced_at = fenced_at - interval '2 minutes' WHERE state = 1";

/// Something that must not be.
struct Mistake {
    changes: &'static [(Database, &'static str)],
    kind: &'static str,
    /// Whether it shows in what has moved. If not, only a full audit finds it.
    moves: bool,
}

const fn mistake(changes: &'static [(Database, &'static str)], kind: &'static str) -> Mistake {
    Mistake { changes, kind, moves: true }
}

fn tables(database: Database) -> &'static [&'static str] {
    match database {
        TheCoordinator => &["transaction", "wakeup", "open_count"],
        Payer | Payee => &["account", "posting", "branch"],
    }
}

fn save(tables: &[&str]) -> String {
    tables.iter().map(|table| format!("CREATE TABLE saved_{table} AS TABLE {table};")).collect()
}

fn put_back(tables: &[&str]) -> String {
    let put_back = |table| format!("TRUNCATE {table}; INSERT INTO {table} TABLE saved_{table};");
    tables.iter().map(put_back).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_accounts_book_is_found() {
    let auditor = Auditor::after_some_holds().await;

    auditor
        .seed(&[
            mistake(&[(Payer, "UPDATE posting SET amount = amount + 1 WHERE version = 2")], "POSTING_CHAIN"),
            mistake(&[(Payer, "UPDATE posting SET amount = amount + 1 WHERE version = 2")], "FENCE_MISMATCH"),
            mistake(
                &[(Payer, "UPDATE posting SET held_after = held_after + 1 WHERE version = 3")],
                "POSTING_CHAIN",
            ),
            mistake(&[(Payer, "DELETE FROM posting WHERE version = 3")], "VERSION_GAP"),
            mistake(&[(Payer, "DELETE FROM posting WHERE version = 1")], "VERSION_GAP"),
            mistake(&[(Payee, "DELETE FROM posting")], "BALANCE_MISMATCH"),
            mistake(&[(Payee, "INSERT INTO posting SELECT * FROM posting WHERE kind = 6")], "VERSION_GAP"),
            mistake(
                &[(
                    Payer,
                    "UPDATE posting SET recorded_at = recorded_at - interval '1 hour' WHERE version = 3",
                )],
                "POSTING_TIME",
            ),
            mistake(&[(Payer, "UPDATE account SET available = available + 1")], "BALANCE_MISMATCH"),
            mistake(&[(Payee, "UPDATE account SET version = version + 1")], "BALANCE_MISMATCH"),
            mistake(&[(Payee, "DELETE FROM account")], "BALANCE_MISMATCH"),
            mistake(
                &[(
                    Payee,
                    "UPDATE account SET id = 'user-1'; UPDATE posting SET account = 'user-1';
                     UPDATE branch SET account = 'user-1'",
                )],
                "WRONG_SHARD",
            ),
            Mistake {
                changes: &[(Payer, "UPDATE account SET held = held + 1")],
                kind: "ESCROW_MISMATCH",
                moves: false,
            },
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_fence_is_found() {
    let auditor = Auditor::after_some_holds().await;

    auditor
        .seed(&[
            mistake(&[(Payee, PAID_TWICE)], "FENCE_MISMATCH"),
            mistake(&[(Payer, "UPDATE branch SET state = 4 WHERE state = 1")], "FENCE_MISMATCH"),
            mistake(
                &[(Payer, "UPDATE branch SET state = 4, decided_at = clock_timestamp() WHERE state = 1")],
                "FENCE_MISMATCH",
            ),
            mistake(&[(Payer, "UPDATE branch SET amount = amount + 1 WHERE state = 1")], "FENCE_MISMATCH"),
            mistake(&[(Payer, "UPDATE branch SET amount = amount + 1 WHERE state = 1")], "BRANCH_MISMATCH"),
            mistake(&[(Payer, "DELETE FROM branch WHERE state = 1")], "FENCE_MISMATCH"),
            mistake(&[(Payer, "DELETE FROM branch WHERE role = 1 AND state = 3")], "MONEY_CREATED"),
            mistake(&[(Payee, "UPDATE branch SET state = 4 WHERE state = 3")], "MONEY_LOST"),
            mistake(&[(Payee, "UPDATE branch SET branch = 7 WHERE state = 1")], "UNKNOWN_BRANCH"),
            mistake(&[(Payee, "UPDATE branch SET descriptor = 'x' WHERE state = 1")], "DESCRIPTOR_MISMATCH"),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_coordinators_rows_is_found() {
    let auditor = Auditor::after_some_holds().await;

    auditor
        .seed(&[
            mistake(
                &[(TheCoordinator, "UPDATE transaction SET phase = 4 WHERE phase = 2")],
                "PHASE_MISMATCH",
            ),
            mistake(
                &[(TheCoordinator, "UPDATE transaction SET phase = 6 WHERE phase = 4")],
                "PHASE_MISMATCH",
            ),
            mistake(&[(TheCoordinator, "UPDATE transaction SET cause = 5 WHERE phase = 4")], "DECIDED_EARLY"),
            mistake(
                &[(TheCoordinator, "UPDATE transaction SET decided_at = due_at WHERE phase = 6")],
                "CANCELLED_LATE",
            ),
            mistake(
                &[
                    (TheCoordinator, "DELETE FROM transaction WHERE phase = 2"),
                    (Payer, LONG_AGO),
                    (Payee, LONG_AGO),
                ],
                "ORPHAN_BRANCH",
            ),
            Mistake { changes: &[(TheCoordinator, "DELETE FROM wakeup")], kind: "FORGOTTEN", moves: false },
            Mistake {
                changes: &[(TheCoordinator, "INSERT INTO open_count VALUES ('shop', 0, 1)")],
                kind: "MISCOUNTED",
                moves: false,
            },
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_audited_is_not_looked_at_again() {
    let mut auditor = Auditor::after_some_holds().await;

    let first = auditor.round().await;
    let second = auditor.round().await;
    auditor.follower = follower(&auditor.system, &auditor.store, &auditor.shards);
    let after_a_restart = auditor.round().await;

    // An issue, three holds, a settlement, a release; and a payment.
    assert_eq!(first, Round { postings: 7, findings: 0, is_done: true });
    assert_eq!([second, after_a_restart], [Round { postings: 0, findings: 0, is_done: true }; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moves_later_is_compared_with_what_was_audited_before() {
    let mut auditor = Auditor::after_some_holds().await;
    auditor.round().await;
    let sql = auditor.sql(Payee).await;

    sql.batch_execute(PAID_TWICE).await.unwrap();
    let again = auditor.round().await;

    assert_eq!((again.postings, again.findings), (1, 1));
    let found = auditor.found().await;
    assert_eq!(found[0].kind, "FENCE_MISMATCH");
    assert!(found[0].expected.starts_with("recorded with its fence, at "), "{found:#?}");
    assert_eq!(auditor.run().await[0].kind, "FENCE_MISMATCH");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_move_is_found_by_a_full_audit_only() {
    let mut auditor = Auditor::after_some_holds().await;
    auditor.round().await;

    let edit = "UPDATE posting SET available_after = available_after + 1 WHERE version = 2";
    auditor.sql(Payer).await.batch_execute(edit).await.unwrap();
    let again = auditor.round().await;

    assert_eq!((again.postings, again.findings), (0, 0));
    assert_eq!(auditor.run().await[0].kind, "POSTING_CHAIN");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finding_is_kept_once() {
    let mut auditor = Auditor::after_some_holds().await;
    auditor.sql(Payer).await.batch_execute("UPDATE account SET available = available + 1").await.unwrap();

    let first = auditor.round().await;
    auditor.sql(TheCoordinator).await.batch_execute("DELETE FROM audited").await.unwrap();
    let second = auditor.round().await;

    assert_eq!((first.findings, second.findings), (1, 0));
    assert_eq!(second.postings, first.postings);
    assert_eq!(auditor.found().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn much_that_has_one_time_is_audited_in_parts() {
    const ACCOUNTS: i64 = 25_000;
    let mut auditor = Auditor::on(System::start().await).await;
    let sql = auditor.sql(Payer).await;
    // Accounts that somebody has brought in with what they own: those of them that live here.
    sql.batch_execute(&format!(
        "CREATE TABLE brought_in AS
             SELECT id, (lpad(to_hex(ms), 12, '0') || '70008000' || lpad(n::text, 12, '0'))::uuid AS transaction
             FROM (SELECT (extract(epoch FROM now()) * 1000)::int8) AS t (ms), generate_series(1, {ACCOUNTS}) AS n,
                  format('user\\%s', n) AS id, sha256(convert_to(id, 'UTF8')) AS hash
             WHERE (get_byte(hash, 0) * 256 + get_byte(hash, 1)) % 4096 IN (SELECT bucket FROM bucket);
         BEGIN;
         INSERT INTO account SELECT id, 'GOLD', 5, 0, 1, 1, now(), now() FROM brought_in;
         INSERT INTO branch (transaction_id, branch, role, state, decided_at, fenced_at, amount, account, descriptor)
             SELECT transaction, 32767, 3, 3, now(), now(), 5, id, ''::bytea FROM brought_in;
         INSERT INTO posting (account, version, transaction_id, branch, kind, amount, available_after, held_after, recorded_at)
             SELECT id, 1, transaction, 32767, 1, 5, 5, 0, now() FROM brought_in;
         COMMIT"
    ))
    .await
    .unwrap();
    let brought_in: i64 = sql.query_one("SELECT count(*) FROM brought_in", &[]).await.unwrap().get(0);
    assert!(brought_in > 10_000);

    let right = auditor.round().await;
    sql.batch_execute("UPDATE posting SET amount = 6 WHERE account = (SELECT max(id) FROM account)")
        .await
        .unwrap();
    auditor.sql(TheCoordinator).await.batch_execute("DELETE FROM audited").await.unwrap();
    let wrong = auditor.round().await;

    assert_eq!(right, Round { postings: brought_in.unsigned_abs(), findings: 0, is_done: true });
    assert_eq!(wrong.postings, right.postings);
    let kinds: BTreeSet<String> = auditor.found().await.into_iter().map(|found| found.kind).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["FENCE_MISMATCH", "POSTING_CHAIN"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_while_everything_works_finds_nothing() {
    const HOLDS: usize = 600;
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let mut auditor = Auditor::on(system).await;

    let lives = (0..HOLDS).map(|n| {
        let mut client = client.clone();
        let request = hold_due_in(&alice, &bob, 1, SignedDuration::from_millis(10_000 + 5 * n as i64));
        async move {
            client.create(&request).await.unwrap();
            if n % 3 == 0 {
                // It may be too late, which is as good.
                let _ = client.cancel(&request.id).await;
            }
            client.until_final(&request.id).await;
        }
    });
    let mut working = tokio::spawn(join_all(lives.collect::<Vec<_>>()));
    let mut looked_at = 0;
    loop {
        let is_over = working.is_finished();
        looked_at += auditor.round().await.postings;
        if is_over {
            break;
        }
    }
    (&mut working).await.unwrap();
    running.stop().cancel();
    running.ended().await.unwrap();

    // What was written last may not have been ripe for it yet.
    let all = async {
        while looked_at < 2 * HOLDS as u64 {
            looked_at += auditor.round().await.postings;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("all is looked at");
    assert_eq!(auditor.found().await, vec![]);
    assert_eq!(auditor.run().await, vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_auditor_in_the_background_says_what_it_finds_and_goes_on_after_a_restart() {
    let system = System::start().await;
    let mut coordinator = system.coordinator().await;
    let (alice, bob) = on_two_shards("user\\");
    coordinator.client.account(&alice, 100).await;
    coordinator.client.account(&bob, 0).await;
    coordinator.client.create(&hold(&alice, &bob, 10)).await.unwrap();
    system.shard_sql(0).await.batch_execute("UPDATE account SET available = 91").await.unwrap();

    let client = coordinator.client.clone();
    until("it is found", || async {
        let status = status(&client).await;
        status.findings > 0 && status.shards[0].audited_postings == 2
    })
    .await;
    let before = status(&client).await;
    coordinator.stop().await;
    coordinator = system.coordinator().await;
    let client = coordinator.client.clone();
    until("it goes on", || async {
        status(&client).await.shards[0].audited_until.unwrap().seconds
            > before.shards[0].audited_until.unwrap().seconds
    })
    .await;

    let after = status(&client).await;
    assert_eq!((before.shards[0].audited_postings, after.shards[0].audited_postings), (2, 2));
    assert!(after.first_finding_at.is_some());
    let request = v1::ListFindingsRequest { after_number: 0, page_size: 0 };
    let listed = client.clone().operator.list_findings(request).await.unwrap().into_inner();
    let kept = &listed.findings[0];
    let finding = kept.finding.clone().unwrap();
    assert_eq!((finding.kind.as_str(), finding.account.as_str()), ("BALANCE_MISMATCH", alice.as_str()));
    assert_eq!((listed.findings.len(), after.findings, listed.next_after_number), (1, 1, 0));
}

async fn status(client: &Client) -> v1::GetStatusResponse {
    client.clone().operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner()
}

/// Replays a shard. Answers the kinds that were found, what the accounts have, and how many postings that were.
async fn replay(client: &Client, shard: &str, at: Option<Timestamp>) -> (Vec<String>, Vec<(i64, i64)>, i64) {
    let request = v1::ReplayShardRequest { shard: shard.into(), at: at.map(time) };
    let mut stream = client.clone().operator.replay_shard(request).await.unwrap().into_inner();
    let (mut kinds, mut summary) = (Vec::new(), None);
    while let Some(message) = stream.message().await.unwrap() {
        match message.event {
            Some(Event::Finding(finding)) => kinds.push(finding.kind),
            Some(Event::Summary(all)) => summary = Some(all),
            Some(Event::Progress(progress)) => assert!(progress.done <= progress.total),
            None => {}
        }
    }
    let summary = summary.expect("a replay ends with a summary");
    assert_eq!(summary.findings as usize, kinds.len());
    let totals = summary.totals.iter().map(|total| (total.available, total.held)).collect();
    (kinds, totals, summary.postings)
}

#[tokio::test(flavor = "multi_thread")]
async fn balances_are_rebuilt_from_postings_alone() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    some_holds(&mut client).await;
    let sql = system.shard_sql(0).await;
    let after_the_first_hold = sql.query_one("SELECT recorded_at FROM posting WHERE version = 2", &[]).await;
    let after_the_first_hold: Timestamp = after_the_first_hold.unwrap().get(0);
    let before_everything = after_the_first_hold - SignedDuration::from_hours(1);

    let none = Vec::<String>::new();
    assert_eq!(replay(&client, "shard-0", None).await, (none.clone(), vec![(9_950, 40)], 6));
    assert_eq!(replay(&client, "shard-1", None).await, (none.clone(), vec![(10, 0)], 1));
    let then = replay(&client, "shard-0", Some(after_the_first_hold)).await;
    assert_eq!(then, (none.clone(), vec![(9_990, 10)], 2));
    assert_eq!(replay(&client, "shard-0", Some(before_everything)).await, (none, vec![(0, 0)], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balance_that_postings_do_not_add_up_to_is_found_by_replaying_them() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    some_holds(&mut client).await;
    let sql = connect(&system.config.shards[0].url).await;
    sql.batch_execute(&save(tables(Payer))).await.unwrap();

    for (change, expected) in [
        ("UPDATE account SET available = available + 1", vec!["BALANCE_MISMATCH"]),
        ("DELETE FROM account", vec!["BALANCE_MISMATCH"]),
        (
            "UPDATE posting SET available_after = available_after + 1 WHERE version = 6",
            vec!["REPLAY_MISMATCH"],
        ),
        // The last posting and the account agree, but not with what led to them.
        (
            "UPDATE posting SET amount = amount + 1 WHERE version = 2",
            vec!["REPLAY_MISMATCH", "BALANCE_MISMATCH"],
        ),
        ("DELETE FROM posting WHERE version = 3", vec!["REPLAY_MISMATCH", "BALANCE_MISMATCH"]),
        (
            "INSERT INTO posting SELECT * FROM posting WHERE version = 1",
            vec!["REPLAY_MISMATCH", "BALANCE_MISMATCH"],
        ),
    ] {
        sql.batch_execute(change).await.unwrap();
        let (kinds, ..) = replay(&client, "shard-0", None).await;

        assert_eq!(kinds, expected, "{change}");
        sql.batch_execute(&put_back(tables(Payer))).await.unwrap();
    }
    let unknown = v1::ReplayShardRequest { shard: "shard-7".into(), at: None };
    let refused = client.operator.replay_shard(unknown).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::NotFound, "SHARD_NOT_FOUND"));
}
