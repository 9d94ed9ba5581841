//! Participants whose answers the protocol forbids: each parks the transaction that it is about, calls a person, and hurts nothing
//! else.

use futures::{FutureExt as _, future::BoxFuture, future::join_all};
use jiff::SignedDuration;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tcc_coordinator::config::ParticipantConfig;
use tcc_core::{
    Operation::{self, Cancel, Confirm, Try},
    Outcome, Refusal, TransactionId,
};
use tcc_participant::{
    Step,
    serve::{Running, Served, start},
    wire::Description,
};
use tcc_proto::v1::{self, Attention, Cause, OperatorActionKind as Kind, Phase};
use tcc_tests::{
    Client, Coordinator, System, alice_and_bob, hold, hold_due_in,
    parties::{call, credit, debit, due_in},
    reason, scrape, until,
};

const SOON: SignedDuration = SignedDuration::from_millis(1_500);
const LATER: SignedDuration = SignedDuration::from_hours(1);
const NO: Refusal = Refusal::own("NO");

/// Says DONE to everything, but for what a test tells it to say.
#[derive(Default)]
struct Liar {
    says: Mutex<HashMap<(TransactionId, Operation), Outcome>>,
    asked: AtomicUsize,
}

impl Liar {
    fn say(&self, id: &str, to: Operation, outcome: Outcome) {
        self.says.lock().unwrap().insert((TransactionId::parse(id).unwrap(), to), outcome);
    }
}

impl Served for Liar {
    fn describe(&self) -> Description {
        Description::of("liar", false)
    }

    fn answer(&self, step: Step) -> BoxFuture<'_, Outcome> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let says = self.says.lock().unwrap().get(&(step.branch.transaction, step.operation)).cloned();
        std::future::ready(says.unwrap_or(Outcome::Done)).boxed()
    }
}

/// A coordinator that knows the liar as one that may not veto, and two accounts.
struct Court {
    system: System,
    liar: Arc<Liar>,
    _serves: Running,
    alice: String,
    bob: String,
}

impl Court {
    async fn opens() -> (Self, Coordinator) {
        let liar = Arc::<Liar>::default();
        let serves = start(Arc::clone(&liar) as Arc<dyn Served>, "127.0.0.1:0", None).await.unwrap();
        let mut system = System::start().await;
        system.config.participants = vec![ParticipantConfig::new("liar", &serves.url())];
        let mut coordinator = system.coordinator().await;
        let (alice, bob) = alice_and_bob(&mut coordinator.client).await;
        coordinator.client.until_reachable(&["liar"]).await;
        (Self { system, liar, _serves: serves, alice, bob }, coordinator)
    }

    /// Alice pays bob 1, and the liar has the pivot, or has not.
    fn case(&self, delay: SignedDuration, is_pivot: bool) -> v1::CreateTransactionRequest {
        let branches = vec![debit(&self.alice, 1), credit(&self.bob, 1), call("liar", "x")];
        v1::CreateTransactionRequest { pivot: Some(if is_pivot { 2 } else { 1 }), ..due_in(delay, branches) }
    }

    /// Of both, available and held.
    async fn balances(&self, client: &mut Client) -> ((i64, i64), (i64, i64)) {
        (client.balances(&self.alice).await, client.balances(&self.bob).await)
    }
}

async fn until_parked(client: &Client, id: &str) -> v1::Transaction {
    until("a person is asked", || {
        let (mut client, id) = (client.clone(), id.to_owned());
        async move { client.transaction(&id).await.is_ok_and(|one| one.attention() == Attention::Parked) }
    })
    .await;
    client.clone().transaction(id).await.unwrap()
}

/// Creates, and then asks what the lie is about, without waiting for answers that do not come.
async fn asked(client: &Client, request: &v1::CreateTransactionRequest, to: Operation) {
    let (mut client, request) = (client.clone(), request.clone());
    tokio::spawn(async move {
        let begun = client.begin(&request).await;
        match to {
            Try => drop(begun),
            Confirm => drop(client.confirm_transaction(&request.id).await),
            Cancel => drop(client.cancel_transaction(&request.id).await),
        }
    });
}

/// All that the fence table forbids, but the two that it depends on who says it.
fn lies() -> Vec<(bool, Operation, Outcome)> {
    use Outcome::{AlreadyCancelled, AlreadyConfirmed, NotTried, OtherDescriptor, Refused, Vetoed};
    let never = |operation| [NotTried, OtherDescriptor, Vetoed(NO)].map(|lie| (operation, lie));
    let of_anybody = [
        &never(Try)[..],
        &[(Confirm, NotTried), (Confirm, OtherDescriptor), (Confirm, AlreadyConfirmed)],
        &[(Confirm, Refused(NO)), (Cancel, AlreadyCancelled), (Cancel, Refused(NO))],
        &never(Cancel)[..],
    ]
    .concat();
    let of_who_has_no_say = [(Confirm, AlreadyCancelled), (Confirm, Vetoed(NO)), (Cancel, AlreadyConfirmed)];
    let all = |is_pivot, lies: &[(Operation, Outcome)]| -> Vec<_> {
        lies.iter().map(|(to, lie)| (is_pivot, *to, lie.clone())).collect()
    };
    [all(true, &of_anybody), all(false, &of_anybody), all(false, &of_who_has_no_say)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_that_the_fence_table_forbids_parks_its_transaction_and_hurts_nothing_else() {
    let (court, Coordinator { mut client, running }) = Court::opens().await;
    let watched: SocketAddr = running.telemetry.expect("metrics are served");
    let lies = lies();
    let cases: Vec<_> = lies.iter().map(|(is_pivot, ..)| court.case(LATER, *is_pivot)).collect();
    for (case, (_, to, lie)) in cases.iter().zip(&lies) {
        court.liar.say(&case.id, *to, lie.clone());
        asked(&client, case, *to).await;
    }

    let parked = join_all(cases.iter().map(|case| until_parked(&client, &case.id))).await;
    let honest = [court.case(LATER, true), court.case(LATER, false), court.case(LATER, true)];
    for request in &honest {
        assert_eq!(client.begin(request).await.unwrap().phase(), Phase::Held);
    }
    let paid = hold_due_in(&court.alice, &court.bob, 1, SOON);
    client.create(&paid).await.unwrap();

    for (transaction, (is_pivot, to, lie)) in parked.iter().zip(&lies) {
        let expected = match to {
            Try => Phase::Trying,
            Confirm => Phase::Confirming,
            Cancel => Phase::Cancelling,
        };
        assert_eq!(transaction.phase(), expected, "{lie:?} to {to:?}, pivot: {is_pivot}");
    }
    for request in &honest[..2] {
        assert_eq!(client.confirm_transaction(&request.id).await.unwrap().phase(), Phase::Confirmed);
    }
    assert_eq!(client.cancel_transaction(&honest[2].id).await.unwrap().phase(), Phase::Cancelled);
    assert_eq!(client.until_final(&paid.id).await.phase(), Phase::Confirmed);
    // Behind a pivot that lies, and before all have tried, everything stays frozen. Where the ledger has the pivot, it has
    // decided, and its own branches follow it.
    let of =
        |wanted: Operation| lies.iter().filter(|(is_pivot, to, _)| !is_pivot && *to == wanted).count() as i64;
    let (moved, released) = (of(Confirm) + 3, of(Cancel));
    let held = lies.len() as i64 - of(Confirm) - released;
    assert_eq!(court.balances(&mut client).await, ((10_000 - moved - held, held), (moved, 0)));
    client.audit_is_clean().await;
    let metrics = scrape(watched).await;
    let count = lies.len();
    for alarm in [
        format!("tcc_transactions_attention{{attention=\"parked\"}} {count}.0\n"),
        format!("tcc_put_off_total{{attention=\"parked\"}} {count}\n"),
    ] {
        assert!(metrics.contains(&alarm), "no {alarm} in {metrics}");
    }
    let listed =
        client.recovery.list_attention(v1::ListAttentionRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.items.len(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_veto_of_one_that_is_not_known_to_veto_is_not_believed() {
    let (court, Coordinator { mut client, .. }) = Court::opens().await;
    let (asked_for, due) = (court.case(LATER, true), court.case(SOON, true));
    for case in [&asked_for, &due] {
        court.liar.say(&case.id, Confirm, Outcome::Vetoed(NO));
    }

    asked(&client, &asked_for, Confirm).await;
    client.begin(&due).await.unwrap();

    for (case, phase) in [(&asked_for, Phase::Confirming), (&due, Phase::Held)] {
        assert_eq!(until_parked(&client, &case.id).await.phase(), phase);
        let seen = describe(&mut client, &case.id).await;
        assert!(seen.diagnosis.contains("liar answered Vetoed"), "{seen:?}");
    }
    assert_eq!(court.balances(&mut client).await, ((9_998, 2), (0, 0)), "nothing is released");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_it_has_confirmed_is_believed_only_where_somebody_may_have_asked_it_to() {
    let (court, Coordinator { mut client, running }) = Court::opens().await;
    let cases = [court.case(LATER, true), court.case(LATER, true), court.case(LATER, true)];
    let [unasked, forced, before_start] = &cases;
    for case in &cases {
        court.liar.say(&case.id, Cancel, Outcome::AlreadyConfirmed);
    }
    let lost = || Outcome::Unknown("the answer is lost".into());
    court.liar.say(&forced.id, Confirm, lost());

    asked(&client, unasked, Cancel).await;
    let seen = until_parked(&client, &unasked.id).await;
    assert_eq!(seen.phase(), Phase::Cancelling);
    let described = describe(&mut client, &unasked.id).await;
    assert!(described.diagnosis.contains("liar answered AlreadyConfirmed"), "{described:?}");
    assert_eq!(court.balances(&mut client).await, ((9_999, 1), (0, 0)), "nobody is paid");

    // It was asked to confirm, and nobody heard what it said, when an operator took it back.
    asked(&client, forced, Confirm).await;
    until("it is asked", || {
        let mut client = client.clone();
        async move { client.transaction(&forced.id).await.is_ok_and(|one| one.phase() == Phase::Confirming) }
    })
    .await;
    force_cancel(&client, &forced.id).await;
    court.liar.say(&forced.id, Confirm, Outcome::Done);
    let end = client.end_of(&forced.id).await;
    assert_eq!((end.phase(), end.cause()), (Phase::Confirmed, Cause::Operator));

    // It fell due while nobody knew what had come of the cancel.
    let falls_due = court.case(SignedDuration::from_secs(4), true);
    court.liar.say(&falls_due.id, Cancel, lost());
    client.begin(&falls_due).await.unwrap();
    asked(&client, &falls_due, Cancel).await;
    until("its time has come", || async {
        jiff::Timestamp::now() > tcc_tests::from_proto(falls_due.due_at.as_ref().unwrap())
    })
    .await;
    assert_eq!(client.transaction(&falls_due.id).await.unwrap().phase(), Phase::Cancelling);
    court.liar.say(&falls_due.id, Cancel, Outcome::AlreadyConfirmed);
    assert_eq!(client.end_of(&falls_due.id).await.phase(), Phase::Confirmed);

    // The database may have forgotten what was asked before this instance came.
    client.begin(before_start).await.unwrap();
    running.stop().cancel();
    running.ended().await.unwrap();
    let Coordinator { mut client, .. } = court.system.coordinator().await;
    client.until_reachable(&["liar"]).await;
    let refused = client.cancel_transaction(&before_start.id).await.unwrap_err();
    assert_eq!(reason(&refused), "TRANSACTION_NOT_CANCELLABLE");
    assert_eq!(client.end_of(&before_start.id).await.phase(), Phase::Confirmed);

    assert_eq!(client.transaction(&unasked.id).await.unwrap().attention(), Attention::Parked);
    assert_eq!(court.balances(&mut client).await, ((9_996, 1), (3, 0)));
    client.audit_is_clean().await;
    assert!(client.create(&hold(&court.alice, &court.bob, 1)).await.is_ok());
}

async fn describe(client: &mut Client, id: &str) -> v1::DescribeHoldResponse {
    client.recovery.describe_hold(v1::DescribeHoldRequest { id: id.into() }).await.unwrap().into_inner()
}

/// Again if it has changed between the plan and its execution, as by being put off.
async fn force_cancel(client: &Client, id: &str) {
    until("the operator has asked", || {
        let (mut client, id) = (client.clone(), id.to_owned());
        async move {
            let action = Kind::ForceCancel.into();
            let request = v1::CreatePlanRequest { action, ids: vec![id.clone()], ..Default::default() };
            let plan = client.recovery.create_plan(request).await.unwrap().into_inner().plan.expect("a plan");
            let (reason, ticket) = ("a test".to_owned(), "T-1".to_owned());
            let request = v1::ExecutePlanRequest { id: plan.id, reason, ticket, max_per_second: 100 };
            let mut stream = client.recovery.execute_plan(request).await.unwrap().into_inner();
            while stream.message().await.unwrap().is_some() {}
            client.transaction(&id).await.unwrap().cause() == Cause::Operator
        }
    })
    .await;
}
