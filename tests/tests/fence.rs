//! The fence table on real PostgreSQL: each cell, and races for one row between connections.

use std::{collections::HashSet, sync::Arc};
use tcc_coordinator::dev::{Cluster, Options};
use tcc_core::{
    AccountId, Amount, Currency, Descriptor, OnMaturity, Operation, Outcome, Refusal, Role, Timestamp,
    Transaction, TransactionId,
    descriptor::{CREDIT, DEBIT},
};
use tcc_ledger::{Listing, OpenDebit, Shard, heads::Heads};
use tcc_participant::{Call, Participant as _};

struct Ledger {
    shard: Shard,
    url: String,
    _cluster: Cluster,
}

fn account(id: &str) -> AccountId {
    AccountId::parse(id).unwrap()
}

fn gold() -> Currency {
    Currency::parse("GOLD").unwrap()
}

fn new_id() -> TransactionId {
    TransactionId::from_uuid(uuid::Uuid::now_v7()).unwrap()
}

fn hold(amount: i64) -> Arc<Transaction> {
    hold_to("bob", amount)
}

fn hold_to(payee: &str, amount: i64) -> Arc<Transaction> {
    let amount = Amount::new(amount).unwrap();
    let due_at = Timestamp::UNIX_EPOCH;
    let descriptor =
        Descriptor::hold(account("alice"), account(payee), amount, gold(), due_at, OnMaturity::Confirm);
    Arc::new(Transaction::new(new_id(), descriptor))
}

impl Ledger {
    /// One shard that serves every bucket, with alice who has 1,000,000 and bob who has nothing.
    async fn start() -> Self {
        let settings = ["fsync=off", "synchronous_commit=off"].map(str::to_owned).to_vec();
        let start = move || Cluster::start(&Options { settings, ..Options::default() });
        let cluster = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        let url = cluster.url();
        let buckets: HashSet<u16> = (0..tcc_core::BUCKETS).collect();
        let mut client = tcc_tests::connect(&url).await;
        tcc_ledger::prepare(&mut client, "shard-0", &buckets).await.unwrap();
        let ledger = Self { shard: another(&url), url, _cluster: cluster };
        for id in ["alice", "bob"] {
            ledger.shard.open(account(id), gold()).await.unwrap();
        }
        let million = Descriptor::issue(account("alice"), Amount::new(1_000_000).unwrap(), gold());
        let (issued, _) = ledger.shard.issue(Arc::new(Transaction::new(new_id(), million))).await.unwrap();
        assert_eq!(issued, Outcome::Done);
        ledger
    }

    async fn ask(&self, operation: Operation, transaction: &Arc<Transaction>, branch: u16) -> Outcome {
        ask(&self.shard, operation, transaction, branch).await
    }

    async fn balances(&self, id: &str) -> (i64, i64) {
        let account = self.shard.account(&account(id)).await.unwrap().unwrap();
        (account.available, account.held)
    }

    async fn books_are_clean(&self) {
        let findings = self.shard.audit(|_, _| ()).await.unwrap().findings;
        assert!(findings.is_empty(), "{findings:#?}");
    }
}

/// Executors and connections of its own, on the same database: as another process would have.
fn another(url: &str) -> Shard {
    Shard::start("shard-0", &url.parse().unwrap(), (0..tcc_core::BUCKETS).collect(), Heads::default())
}

async fn ask(shard: &Shard, operation: Operation, transaction: &Arc<Transaction>, branch: u16) -> Outcome {
    let call = Call { operation, transaction: Arc::clone(transaction), branches: vec![branch] };
    shard.call(call).await.remove(0)
}

use Operation::{Cancel, Confirm, Try};

/// Brings a fence of a new transaction into each of its states: (name, operations that lead there, branch).
fn states() -> Vec<(&'static str, Arc<Transaction>, u16, Vec<Operation>)> {
    vec![
        ("absent", hold(10), DEBIT, vec![]),
        ("tried", hold(10), DEBIT, vec![Try]),
        ("refused", hold(5_000_000), DEBIT, vec![Try]),
        ("confirmed", hold(10), DEBIT, vec![Try, Confirm]),
        ("cancelled", hold(10), DEBIT, vec![Try, Cancel]),
        ("vetoed", hold_to("carol", 10), CREDIT, vec![Try, Confirm]),
        ("stopped", hold(10), DEBIT, vec![Cancel]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cell_of_the_fence_table_answers_as_documented_and_moves_only_what_it_may() {
    let ledger = Ledger::start().await;
    let no = Refusal::InsufficientFunds;
    let veto = Outcome::Vetoed(Refusal::AccountBlocked);
    // What the fence is, the operation, its answer, and what it does to alice's available and held.
    let cells = [
        ("absent", Try, Outcome::Done, (-10, 10)),
        ("absent", Confirm, Outcome::NotTried, (0, 0)),
        ("absent", Cancel, Outcome::Done, (0, 0)),
        ("tried", Try, Outcome::Done, (0, 0)),
        ("tried", Confirm, Outcome::Done, (0, -10)),
        ("tried", Cancel, Outcome::Done, (10, -10)),
        ("refused", Try, Outcome::Refused(no), (0, 0)),
        ("refused", Confirm, Outcome::AlreadyCancelled, (0, 0)),
        ("refused", Cancel, Outcome::Done, (0, 0)),
        ("confirmed", Try, Outcome::AlreadyConfirmed, (0, 0)),
        ("confirmed", Confirm, Outcome::Done, (0, 0)),
        ("confirmed", Cancel, Outcome::AlreadyConfirmed, (0, 0)),
        ("cancelled", Try, Outcome::AlreadyCancelled, (0, 0)),
        ("cancelled", Confirm, Outcome::AlreadyCancelled, (0, 0)),
        ("cancelled", Cancel, Outcome::Done, (0, 0)),
        ("vetoed", Try, Outcome::AlreadyCancelled, (0, 0)),
        ("vetoed", Confirm, veto.clone(), (0, 0)),
        ("vetoed", Cancel, Outcome::Done, (0, 0)),
        ("stopped", Try, Outcome::AlreadyCancelled, (0, 0)),
        ("stopped", Confirm, Outcome::AlreadyCancelled, (0, 0)),
        ("stopped", Cancel, Outcome::Done, (0, 0)),
    ];
    let sql = tcc_tests::connect(&ledger.url).await;
    let ways = [false, true];
    for ((name, operation, expected, (available, held)), with_locks) in
        cells.into_iter().flat_map(|cell| ways.map(|way| (cell.clone(), way)))
    {
        // Carol can be paid when a hold is tried, and not when it is confirmed.
        ledger.shard.open(account("carol"), gold()).await.unwrap();
        sql.execute("UPDATE account SET state = 1 WHERE id = 'carol'", &[]).await.unwrap();
        let (_, transaction, branch, leading) =
            states().into_iter().find(|(state, ..)| *state == name).unwrap();
        for step in leading {
            if step == Confirm && name == "vetoed" {
                sql.execute("UPDATE account SET state = 2 WHERE id = 'carol'", &[]).await.unwrap();
            }
            ledger.ask(step, &transaction, branch).await;
        }
        sql.execute("UPDATE account SET state = 1 WHERE id = 'carol'", &[]).await.unwrap();
        let before = ledger.balances("alice").await;
        // It takes the fence to be tried, until it meets one that is not: then it works with locks for a while.
        let shard = another(&ledger.url);
        if with_locks {
            assert_eq!(ask(&shard, Confirm, &hold(10), DEBIT).await, Outcome::NotTried);
        }

        let answer = ask(&shard, operation, &transaction, branch).await;

        let cell = format!("{name} {operation:?} with_locks={with_locks}");
        assert_eq!(answer, expected, "{cell}");
        let after = ledger.balances("alice").await;
        assert_eq!((after.0 - before.0, after.1 - before.1), (available, held), "{cell}");
        assert_eq!(ledger.balances("carol").await, (0, 0));
    }
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_body_under_a_known_id_is_told_so_in_every_state() {
    let ledger = Ledger::start().await;
    for (name, transaction, branch, leading) in states().into_iter().filter(|(name, ..)| *name != "vetoed") {
        for step in &leading {
            ledger.ask(*step, &transaction, branch).await;
        }
        let other =
            Descriptor { due_at: Timestamp::from_second(1).unwrap(), ..transaction.descriptor.clone() };
        let other = Arc::new(Transaction::new(transaction.id, other));
        if name != "absent" {
            for operation in [Try, Confirm, Cancel] {
                let answer = ledger.ask(operation, &other, branch).await;
                assert_eq!(answer, Outcome::OtherDescriptor, "{name} {operation:?}");
            }
        }
    }
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_confirm_and_a_cancel_that_race_for_one_fence_exactly_one_wins() {
    let ledger = Ledger::start().await;
    let rival = another(&ledger.url);
    let mut wins = (0, 0);
    for _ in 0..200 {
        let transaction = hold(10);
        ledger.ask(Try, &transaction, DEBIT).await;

        let (confirm, cancel) = tokio::join!(
            ask(&ledger.shard, Confirm, &transaction, DEBIT),
            ask(&rival, Cancel, &transaction, DEBIT)
        );

        match (confirm, cancel) {
            (Outcome::Done, Outcome::AlreadyConfirmed) => wins.0 += 1,
            (Outcome::AlreadyCancelled, Outcome::Done) => wins.1 += 1,
            both => panic!("{both:?}"),
        }
    }
    assert_eq!(ledger.balances("alice").await, (1_000_000 - 10 * wins.0, 0));
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_try_and_an_empty_cancel_that_race_nothing_stays_frozen_once_both_are_answered() {
    let ledger = Ledger::start().await;
    let rival = another(&ledger.url);
    for _ in 0..200 {
        let transaction = hold(10);

        let (tried, cancelled) = tokio::join!(
            ask(&ledger.shard, Try, &transaction, DEBIT),
            ask(&rival, Cancel, &transaction, DEBIT)
        );

        assert_eq!(cancelled, Outcome::Done);
        assert!(matches!(tried, Outcome::Done | Outcome::AlreadyCancelled), "{tried:?}");
        assert_eq!(ask(&rival, Try, &transaction, DEBIT).await, Outcome::AlreadyCancelled);
    }
    assert_eq!(ledger.balances("alice").await, (1_000_000, 0));
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_try_on_many_connections_freezes_once() {
    let ledger = Ledger::start().await;
    let rivals: Vec<Shard> = (0..4).map(|_| another(&ledger.url)).collect();
    for _ in 0..50 {
        let transaction = hold(10);

        let tries = rivals.iter().map(|shard| ask(shard, Try, &transaction, DEBIT));
        let answers = futures::future::join_all(tries).await;

        assert!(answers.iter().all(|answer| *answer == Outcome::Done), "{answers:?}");
    }
    assert_eq!(ledger.balances("alice").await, (999_500, 500));
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_meet_at_one_account_again_and_again_lose_no_posting() {
    let ledger = Ledger::start().await;
    let rivals = [another(&ledger.url), another(&ledger.url)];
    let holds: Vec<Vec<_>> = (0..2).map(|_| (0..400).map(|_| hold(10)).collect()).collect();

    // Each tries its own holds, then ends those of the other: every second one is taken, the others are given back.
    let tries = rivals.iter().zip(&holds).map(|(shard, holds)| {
        futures::future::join_all(holds.iter().map(move |hold| ask(shard, Try, hold, DEBIT)))
    });
    let tried = futures::future::join_all(tries).await;
    let ends = rivals.iter().zip(holds.iter().rev()).map(|(shard, holds)| {
        let end = |n: usize| if n.is_multiple_of(2) { Confirm } else { Cancel };
        let asked = holds.iter().enumerate().map(move |(n, hold)| ask(shard, end(n), hold, DEBIT));
        futures::future::join_all(asked)
    });
    let ended = futures::future::join_all(ends).await;

    assert!(tried.iter().chain(&ended).flatten().all(|answer| *answer == Outcome::Done));
    assert_eq!(ledger.balances("alice").await, (1_000_000 - 400 * 10, 0));
    assert_eq!(ledger.shard.account(&account("alice")).await.unwrap().unwrap().version, 1 + 1_600);
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_holds_is_left_out_and_its_neighbours_are_done() {
    let ledger = Ledger::start().await;
    let held = hold(1);
    assert_eq!(ledger.ask(Try, &held, DEBIT).await, Outcome::Done);
    let locker = tcc_tests::connect(&ledger.url).await;
    locker.batch_execute("BEGIN; SELECT FROM account WHERE id = 'bob' FOR UPDATE").await.unwrap();

    let others: Vec<_> = (1..=50).map(hold).collect();
    let credit = hold_to("bob", 5);
    assert_eq!(ledger.ask(Try, &credit, CREDIT).await, Outcome::Done, "a Try of a credit changes no account");
    let (confirmed, tried) = tokio::join!(
        ledger.ask(Confirm, &credit, CREDIT),
        futures::future::join_all(others.iter().map(|hold| ledger.ask(Try, hold, DEBIT)))
    );

    assert!(matches!(&confirmed, Outcome::Unknown(why) if why.contains("held")), "{confirmed:?}");
    assert!(tried.iter().all(|answer| *answer == Outcome::Done), "{tried:?}");
    locker.batch_execute("COMMIT").await.unwrap();
    assert_eq!(ledger.ask(Confirm, &credit, CREDIT).await, Outcome::Done);
    locker
        .batch_execute(&format!("BEGIN; SELECT FROM branch WHERE transaction_id = '{}' FOR UPDATE", held.id))
        .await
        .unwrap();
    let kept = ledger.ask(Cancel, &held, DEBIT).await;
    assert!(matches!(&kept, Outcome::Unknown(why) if why.contains("held")), "{kept:?}");
    locker.batch_execute("COMMIT").await.unwrap();
    assert_eq!(ledger.ask(Cancel, &held, DEBIT).await, Outcome::Done);
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_database_rejects_hurts_nobody_but_itself() {
    let ledger = Ledger::start().await;
    let sql = tcc_tests::connect(&ledger.url).await;
    sql.batch_execute(
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.amount = 13 THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER poison BEFORE INSERT ON branch FOR EACH ROW EXECUTE FUNCTION poison()",
    )
    .await
    .unwrap();
    let holds: Vec<_> = (1..=100).map(hold).collect();

    let answers = futures::future::join_all(holds.iter().map(|hold| ledger.ask(Try, hold, DEBIT))).await;

    for (hold, answer) in holds.iter().zip(answers) {
        match hold.leg(DEBIT).unwrap().amount.get() {
            13 => assert!(matches!(&answer, Outcome::Failed(why) if why.contains("poison")), "{answer:?}"),
            _ => assert_eq!(answer, Outcome::Done),
        }
    }
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_of_a_shard_finds_what_was_tampered_with() {
    let ledger = Ledger::start().await;
    let transaction = hold(10);
    ledger.ask(Try, &transaction, DEBIT).await;
    ledger.books_are_clean().await;
    let sql = tcc_tests::connect(&ledger.url).await;
    let cases = [
        ("UPDATE account SET available = available + 1 WHERE id = 'alice'", "BALANCE_MISMATCH"),
        ("UPDATE account SET held = held + 1 WHERE id = 'alice'", "ESCROW_MISMATCH"),
        ("UPDATE posting SET amount = amount + 1 WHERE kind = 3", "POSTING_CHAIN"),
        ("DELETE FROM posting WHERE version = 1", "VERSION_GAP"),
        (
            "UPDATE posting SET recorded_at = recorded_at - interval '1 hour' WHERE version = 2",
            "POSTING_TIME",
        ),
        ("UPDATE branch SET state = 3 WHERE role = 1", "FENCE_MISMATCH"),
        ("UPDATE branch SET amount = amount + 1 WHERE role = 1", "FENCE_MISMATCH"),
        ("DELETE FROM branch WHERE role = 1", "FENCE_MISMATCH"),
        ("DELETE FROM bucket", "WRONG_SHARD"),
    ];
    for (tamper, expected) in cases {
        sql.batch_execute(
            "CREATE TABLE IF NOT EXISTS saved_account AS TABLE account;
             CREATE TABLE IF NOT EXISTS saved_posting AS TABLE posting;
             CREATE TABLE IF NOT EXISTS saved_branch AS TABLE branch;
             CREATE TABLE IF NOT EXISTS saved_bucket AS TABLE bucket",
        )
        .await
        .unwrap();

        sql.batch_execute(tamper).await.unwrap();
        let findings = ledger.shard.audit(|_, _| ()).await.unwrap().findings;

        assert!(findings.iter().any(|finding| finding.kind == expected), "{tamper}: {findings:#?}");
        sql.batch_execute(
            "TRUNCATE account, posting, branch, bucket; INSERT INTO account TABLE saved_account;
             INSERT INTO posting TABLE saved_posting; INSERT INTO branch TABLE saved_branch;
             INSERT INTO bucket TABLE saved_bucket",
        )
        .await
        .unwrap();
    }
    ledger.books_are_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_goes_on_where_its_time_ended_and_holdings_have_the_newest() {
    let ledger = Ledger::start().await;
    let mut ids = Vec::new();
    // Ids may be a day old when they are new.
    for minutes in [0, 1, 40, 90, 400, 700, 1_300] {
        let time = Timestamp::now() - jiff::SignedDuration::from_mins(minutes);
        let id = TransactionId::mint(time, [minutes as u8; 10]);
        let hold = Arc::new(Transaction::new(id, hold(10).descriptor.clone()));
        assert_eq!(ledger.ask(Operation::Try, &hold, DEBIT).await, Outcome::Done);
        ids.push(id);
    }
    let alice = account("alice");

    let (mut listed, mut before, mut pages) = (Vec::new(), uuid::Uuid::max(), 0);
    loop {
        let (from, until) = (Timestamp::UNIX_EPOCH, std::time::Instant::now());
        let which = Listing { account: &alice, role: Role::Debit, from, before, limit: 100, until };
        let page = ledger.shard.listed(which).await.unwrap();
        pages += 1;
        listed.extend(page.ids);
        let Some(reached) = page.reached else { break };
        assert!(reached < before, "each page gets somewhere");
        before = reached;
    }
    let newest = ledger.shard.holdings(&alice, 3).await.unwrap().unwrap();
    let all = ledger.shard.holdings(&alice, 100).await.unwrap().unwrap();

    assert_eq!(listed, ids.iter().map(|id| id.uuid()).collect::<Vec<_>>());
    assert!(pages > 3, "{pages}");
    let held = |open: &[OpenDebit]| open.iter().map(|debit| debit.transaction.id).collect::<Vec<_>>();
    assert_eq!((held(&newest.open), newest.is_truncated), (ids[..3].to_vec(), true));
    assert_eq!((held(&all.open), all.is_truncated), (ids, false));
}
