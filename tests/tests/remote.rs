//! Participants that are somewhere else: a ledger's shard behind the wire, and participants that are gone, hang, lie, or are
//! somebody else.

use futures::future::{BoxFuture, join_all, pending};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tcc_coordinator::dev::{Cluster, Options as ClusterOptions};
use tcc_core::{
    AccountId, Amount, Currency, Descriptor, OnMaturity,
    Operation::{self, Cancel, Confirm, Try},
    Outcome, Refusal, Timestamp, Transaction, TransactionId,
    descriptor::{CREDIT, DEBIT},
};
use tcc_ledger::{Shard, heads::Heads};
use tcc_participant::{
    Call, Participant, Remote, Step,
    conformance::{self, Part, Subject},
    remote::Options,
    serve::{InProcess, Running, Served, start},
    wire::Description,
};
use tcc_tests::{PATIENCE, connect, memory::Memory, until};

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
    let due_at = Timestamp::UNIX_EPOCH;
    let amount = Amount::new(amount).unwrap();
    let hold =
        Descriptor::hold(account("alice"), account("bob"), amount, gold(), due_at, OnMaturity::Confirm);
    Arc::new(Transaction::new(new_id(), hold))
}

/// A shard that serves every bucket, in this process and behind the wire.
struct Ledger {
    shard: Shard,
    running: Running,
    url: String,
    _cluster: Cluster,
}

impl Ledger {
    async fn start() -> Self {
        let settings = ["fsync=off", "synchronous_commit=off"].map(str::to_owned).to_vec();
        let start_cluster = move || Cluster::start(&ClusterOptions { settings, ..ClusterOptions::default() });
        let cluster = tokio::task::spawn_blocking(start_cluster).await.unwrap().unwrap();
        let url = cluster.url();
        let buckets: HashSet<u16> = (0..tcc_core::BUCKETS).collect();
        tcc_ledger::prepare(&mut connect(&url).await, "shard-0", &buckets).await.unwrap();
        let shard = Shard::start("shard-0", &url.parse().unwrap(), buckets, Heads::default());
        let served = InProcess { participant: Arc::new(shard.clone()), may_veto: true };
        let running = start(Arc::new(served), "127.0.0.1:0", None).await.unwrap();
        Self { shard, running, url, _cluster: cluster }
    }

    async fn fund(&self, id: &str, amount: i64) {
        self.shard.open(account(id), gold()).await.unwrap();
        if amount > 0 {
            let issue = Descriptor::issue(account(id), Amount::new(amount).unwrap(), gold());
            self.shard.issue(Arc::new(Transaction::new(new_id(), issue))).await.unwrap();
        }
    }

    async fn balances(&self, id: &str) -> (i64, i64) {
        let account = self.shard.account(&account(id)).await.unwrap().unwrap();
        (account.available, account.held)
    }
}

/// Of participants that say that they may veto.
const VETOES: Options = Options { may_veto: true, ..Options::LIKELY };

async fn remote_to(running: &Running, name: &str, options: &Options) -> Remote {
    let remote = Remote::start(name, &format!("http://{}", running.address), options).unwrap();
    until("it is reachable", || async { remote.is_reachable() }).await;
    remote
}

async fn ask(
    remote: &Remote,
    operation: Operation,
    transaction: &Arc<Transaction>,
    branches: &[u16],
) -> Vec<Outcome> {
    let transaction = Arc::clone(transaction);
    remote.call(Call { operation, transaction, branches: branches.to_vec() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_behind_the_wire_is_the_same_shard() {
    let ledger = Ledger::start().await;
    ledger.fund("alice", 100).await;
    ledger.fund("bob", 0).await;
    let remote = remote_to(&ledger.running, "shard-0", &VETOES).await;
    let (paid, released, too_much) = (hold(30), hold(20), hold(500));
    let both = [CREDIT, DEBIT];

    let tried = join_all([&paid, &released, &too_much].map(|hold| ask(&remote, Try, hold, &both))).await;
    let confirmed = ask(&remote, Confirm, &paid, &both).await;
    let cancelled = ask(&remote, Cancel, &released, &both).await;
    let late = ask(&remote, Cancel, &paid, &both).await;

    let done = vec![Outcome::Done, Outcome::Done];
    assert_eq!(tried[0], done);
    assert_eq!(tried[1], done);
    assert_eq!(tried[2], [Outcome::Done, Outcome::Refused(Refusal::InsufficientFunds)]);
    assert_eq!((confirmed, cancelled), (done.clone(), done));
    assert_eq!(late, [Outcome::AlreadyConfirmed], "the pivot does not permit the other branch");
    assert_eq!((ledger.balances("alice").await, ledger.balances("bob").await), ((70, 0), (30, 0)));
    assert!(ledger.shard.audit(|_, _| ()).await.unwrap().findings.is_empty());
    let described = remote.described().unwrap();
    assert_eq!((described.name.as_str(), described.may_veto), ("shard-0", true));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_a_right_participant() {
    let ledger = Ledger::start().await;
    let accounts: Vec<String> = (0..600).map(|n| format!("kit-{n}")).collect();
    join_all(accounts.iter().map(|id| ledger.fund(id, 2))).await;
    let address = format!("http://{}", ledger.running.address);
    let debit = Part::Debit { account: "kit-%n".into(), currency: "GOLD".into() };

    let options = conformance::Options { seed: 1, schedules: 150, meetings: 20 };
    let report = conformance::verify(Subject::new(&address, debit), &options).await.unwrap();

    assert!(report.is_ok(), "{report}");
    assert_eq!(report.effects_seen, 72 + 280 + 150, "{report}");
    assert!(ledger.shard.audit(|_, _| ()).await.unwrap().findings.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_cannot_be_done_fails_alone() {
    let ledger = Ledger::start().await;
    ledger.fund("alice", 1_000_000).await;
    ledger.fund("bob", 0).await;
    connect(&ledger.url)
        .await
        .batch_execute(
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.amount = 13 THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$;
             CREATE TRIGGER poison BEFORE INSERT ON branch FOR EACH ROW EXECUTE FUNCTION poison()",
        )
        .await
        .unwrap();
    let remote = remote_to(&ledger.running, "shard-0", &VETOES).await;
    let holds: Vec<_> = (1..=100).map(hold).collect();

    let answers = join_all(holds.iter().map(|hold| ask(&remote, Try, hold, &[DEBIT]))).await;

    for (hold, answer) in holds.iter().zip(answers) {
        match hold.leg(DEBIT).unwrap().amount.get() {
            13 => {
                assert!(matches!(&answer[0], Outcome::Failed(why) if why.contains("poison")), "{answer:?}");
            }
            _ => assert_eq!(answer, [Outcome::Done]),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_that_is_gone_is_not_reachable_and_is_found_when_it_is_back() {
    let memory = Memory::new(None);
    let running = memory.serve().await.unwrap();
    let remote = remote_to(&running, "memory", &VETOES).await;
    let (address, transaction) = (running.address, hold(1));
    assert_eq!(ask(&remote, Try, &transaction, &[DEBIT]).await, [Outcome::Done]);
    running.stop().cancel();
    running.ended().await.unwrap();

    until("it is known to be gone", || async {
        let answer = ask(&remote, Confirm, &transaction, &[DEBIT]).await;
        assert!(matches!(answer[0], Outcome::Unknown(_)), "{answer:?}");
        !remote.is_reachable()
    })
    .await;
    let _back = start(Arc::clone(&memory) as Arc<dyn Served>, &address.to_string(), None).await.unwrap();
    until("it is back", || async { remote.is_reachable() }).await;

    assert_eq!(ask(&remote, Confirm, &transaction, &[DEBIT]).await, [Outcome::Done]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_of_another_name_is_never_called() {
    let memory = Memory::new(None);
    let running = memory.serve().await.unwrap();
    let remote = Remote::start("seats", &format!("http://{}", running.address), &Options::default()).unwrap();

    let answer = ask(&remote, Cancel, &hold(1), &[DEBIT]).await;

    assert!(matches!(&answer[0], Outcome::Unknown(_)), "{answer:?}");
    assert!(!remote.is_reachable());
    assert_eq!(remote.described(), None);
    until("it says why", || async {
        remote.trouble().is_some_and(|why| why.contains(r#"it calls itself "memory""#))
    })
    .await;
}

/// Answers whatever it is told to, or nothing.
struct Stubborn(Option<Outcome>);

impl Served for Stubborn {
    fn describe(&self) -> Description {
        Description::of("stubborn", false)
    }

    fn answer(&self, _: Step) -> BoxFuture<'_, Outcome> {
        match &self.0 {
            Some(outcome) => Box::pin(std::future::ready(outcome.clone())),
            None => Box::pin(pending()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_is_handed_on_as_it_is() {
    for lie in [Outcome::NotTried, Outcome::Vetoed(Refusal::own("NO")), Outcome::AlreadyConfirmed] {
        let running = start(Arc::new(Stubborn(Some(lie.clone()))), "127.0.0.1:0", None).await.unwrap();
        let remote = remote_to(&running, "stubborn", &Options::default()).await;

        assert_eq!(ask(&remote, Cancel, &hold(1), &[CREDIT, DEBIT]).await, [lie]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_that_hangs_is_unknown_after_the_deadline() {
    let running = start(Arc::new(Stubborn(None)), "127.0.0.1:0", None).await.unwrap();
    let options = Options { deadline: Duration::from_millis(200), ..Options::default() };
    let remote = remote_to(&running, "stubborn", &options).await;
    let holds: Vec<_> = (1..=20).map(hold).collect();

    let asked = join_all(holds.iter().map(|hold| ask(&remote, Try, hold, &[DEBIT])));
    let answers = tokio::time::timeout(PATIENCE, asked).await.unwrap();

    assert!(answers.iter().all(|answer| matches!(answer[0], Outcome::Unknown(_))), "{answers:?}");
    until("it is left alone for a while", || async {
        ask(&remote, Try, &holds[0], &[DEBIT]).await;
        !remote.is_reachable()
    })
    .await;
}

/// Answers everything but one transaction.
struct SlowAt(TransactionId);

impl Served for SlowAt {
    fn describe(&self) -> Description {
        Description::of("slow", false)
    }

    fn answer(&self, step: Step) -> BoxFuture<'_, Outcome> {
        if step.branch.transaction == self.0 {
            return Box::pin(pending());
        }
        Box::pin(std::future::ready(Outcome::Done))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_slow_again_holds_up_itself_only() {
    let holds: Vec<_> = (1..=20).map(hold).collect();
    let slow = &holds[7];
    let running = start(Arc::new(SlowAt(slow.id)), "127.0.0.1:0", None).await.unwrap();
    let options = Options { deadline: Duration::from_millis(300), requests: 1, ..Options::default() };
    let remote = remote_to(&running, "slow", &options).await;
    let all = || join_all(holds.iter().map(|hold| ask(&remote, Try, hold, &[DEBIT])));
    // Those that shared its request have no answer, either.
    all().await;

    until("every other call is answered", || async {
        let answers = all().await;
        holds.iter().zip(&answers).all(|(hold, answer)| (hold.id == slow.id) != (answer[0] == Outcome::Done))
    })
    .await;
}
