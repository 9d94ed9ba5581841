//! Transactions of any branches: the ledger, seats that may veto, coupons in Python, and participants that are not what they
//! should be.

use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all, pending},
};
use jiff::SignedDuration;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};
use tcc_coordinator::{config::ParticipantConfig, serve};
use tcc_core::{Operation, TransactionId};
use tcc_participant::{
    Outcome, Step as Asked,
    serve::{Running, Served, start},
    wire::Description,
};
use tcc_proto::v1::{self, Attention, Cause, Phase};
use tcc_tests::{
    Client, Coordinator, System, alice_and_bob, detail,
    gate::{Gate, Step, When},
    hold, new_id, on_shard,
    parties::{Parties, call, credit, debit, due_in, immediate},
    reason, until,
};
use tonic::{Code, Request};

const SOON: SignedDuration = SignedDuration::from_millis(1_500);
const LATER: SignedDuration = SignedDuration::from_hours(1);

/// A coordinator that reaches everybody, and two accounts.
async fn ready(parties: &Parties) -> (Client, String, String) {
    let Coordinator { mut client, .. } = parties.system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_reachable(&["seats", "coupons"]).await;
    client.until_swept().await;
    (client, alice, bob)
}

/// Alice pays bob 10, with a coupon, for a seat: the seat decides.
fn ticket(alice: &str, bob: &str, n: u32) -> Vec<v1::TransactionPart> {
    vec![
        debit(alice, 10),
        credit(bob, 10),
        call("coupons", &format!("coupon-{n}")),
        call("seats", &format!("seat-{n}")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_happens_when_it_is_due_or_none_of_it() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let sold = due_in(SOON, ticket(&alice, &bob, 1));
    let taken = due_in(SOON, ticket(&alice, &bob, 1));
    let cancelled = due_in(LATER, ticket(&alice, &bob, 2));
    let too_dear =
        due_in(SOON, [vec![debit(&alice, 90_000), credit(&bob, 90_000)], ticket(&alice, &bob, 3)].concat());

    let held = client.begin(&sold).await.unwrap();
    assert_eq!((held.phase(), held.pivot, held.branches), (Phase::Held, 3, sold.branches.clone()));
    let refused = client.begin(&taken).await.unwrap_err();
    client.begin(&cancelled).await.unwrap();
    let poor = client.begin(&too_dear).await.unwrap_err();
    assert_eq!(client.cancel_transaction(&cancelled.id).await.unwrap().phase(), Phase::Cancelled);

    assert_eq!(
        (reason(&refused).as_str(), detail(&refused, "refusal").as_deref()),
        ("PARTICIPANT_REFUSED", Some("SEAT_TAKEN"))
    );
    assert_eq!(reason(&poor), "INSUFFICIENT_FUNDS");
    let end = client.end_of(&sold.id).await;
    assert_eq!((end.phase(), end.cause()), (Phase::Confirmed, Cause::Matured));
    for undone in [&taken, &too_dear] {
        assert_eq!(client.end_of(&undone.id).await.phase(), Phase::Cancelled);
    }
    assert_eq!(parties.seat("seat-1").await, (Some(held.id.parse().unwrap()), true));
    for n in [2, 3] {
        assert_eq!(parties.seat(&format!("seat-{n}")).await, (None, false));
    }
    let left = [1, 2, 3].map(|n| format!("coupon-{n}"));
    let left = join_all(left.iter().map(|coupon| parties.coupons_left(coupon))).await;
    assert_eq!(left, [1, 2, 2]);
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((9_990, 0), (10, 0)));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pivot_vetoes_is_undone_everywhere() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let mut branches = ticket(&alice, &bob, 1);
    branches[3] = call("seats", "early-1");
    let request = due_in(SOON, branches.clone());
    let at_once = immediate([branches[..3].to_vec(), vec![call("seats", "early-2")]].concat());

    client.begin(&request).await.unwrap();
    let refused = client.begin(&at_once).await.unwrap_err();

    assert_eq!(detail(&refused, "refusal").as_deref(), Some("SHOW_NOT_APPROVED"));
    let end = client.end_of(&request.id).await;
    assert_eq!(
        (end.phase(), end.cause(), end.reason.as_str()),
        (Phase::Cancelled, Cause::Vetoed, "SHOW_NOT_APPROVED")
    );
    assert_eq!(parties.seat("early-1").await, (None, false));
    assert_eq!(parties.coupons_left("coupon-1").await, 2);
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((10_000, 0), (0, 0)));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_for_a_confirmation_is_cancelled_at_its_deadline() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let manual = |delay, n| v1::CreateTransactionRequest {
        on_maturity: v1::OnMaturity::Cancel.into(),
        ..due_in(delay, ticket(&alice, &bob, n))
    };
    let (confirmed, forgotten) = (manual(LATER, 1), manual(SOON, 2));
    for request in [&confirmed, &forgotten] {
        client.begin(request).await.unwrap();
    }

    let answer = client.confirm_transaction(&confirmed.id).await.unwrap();
    let end = client.end_of(&forgotten.id).await;
    let late = client.confirm_transaction(&forgotten.id).await.unwrap_err();

    assert_eq!((answer.phase(), answer.cause()), (Phase::Confirmed, Cause::Requested));
    assert_eq!((end.phase(), end.cause()), (Phase::Cancelled, Cause::Matured));
    assert_eq!(reason(&late), "TRANSACTION_NOT_CONFIRMABLE");
    assert_eq!(
        reason(&client.cancel_transaction(&confirmed.id).await.unwrap_err()),
        "TRANSACTION_NOT_CANCELLABLE"
    );
    assert_eq!(client.balances(&alice).await, (9_990, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_branches_are_tried_together_and_repeated_once() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let money = (0..15).flat_map(|_| [debit(&alice, 1), credit(&bob, 1)]);
    let coupons = (0..33).map(|n| call("coupons", &format!("coupon-{n}")));
    let branches: Vec<_> = money.chain(coupons).chain([call("seats", "seat-64")]).collect();
    assert_eq!(branches.len(), 64);
    let request = immediate(branches);

    let first = client.begin(&request).await.unwrap();
    let again = client.transactions.create_transaction(request.clone()).await.unwrap().into_inner();
    let mut other = request.clone();
    other.branches[40] = call("coupons", "coupon-2000");
    let refused = client.begin(&other).await.unwrap_err();

    assert_eq!((first.phase(), first.immediate), (Phase::Confirmed, true));
    assert!(again.replayed && again.transaction.as_ref() == Some(&first));
    assert_eq!(
        (reason(&refused).as_str(), detail(&refused, "field").as_deref()),
        ("ID_REUSED", Some("branches"))
    );
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((9_985, 0), (15, 0)));
    assert_eq!(parties.coupons_left("coupon-40").await, 2);
    assert_eq!(parties.coupons_left("coupon-32").await, 1);
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_before_anything_is_done() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let refused = async |client: &mut Client, branches, pivot| {
        let request = v1::CreateTransactionRequest { pivot, ..due_in(LATER, branches) };
        reason(&client.begin(&request).await.unwrap_err())
    };

    assert_eq!(
        refused(&mut client, vec![credit(&bob, 5), call("coupons", "coupon-1")], None).await,
        "BRANCHES_UNBALANCED"
    );
    assert_eq!(refused(&mut client, ticket(&alice, &bob, 1), Some(2)).await, "PIVOT_INVALID");
    let two_seats = vec![call("seats", "seat-1"), call("seats", "seat-2")];
    assert_eq!(refused(&mut client, two_seats, None).await, "PIVOT_INVALID");
    assert_eq!(refused(&mut client, vec![call("cinema", "x")], None).await, "PARTICIPANT_NOT_FOUND");
    let checked =
        v1::CreateTransactionRequest { validate_only: true, ..due_in(LATER, ticket(&alice, &bob, 1)) };
    let answer = client.begin(&checked).await.unwrap();
    assert_eq!((answer.phase(), answer.id), (Phase::Unspecified, checked.id.clone()));
    assert_eq!(client.transaction(&checked.id).await.unwrap_err().code(), Code::NotFound);
    assert_eq!((parties.seat("seat-1").await, parties.coupons_left("coupon-1").await), ((None, false), 2));
}

fn as_caller<T>(caller: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("tcc-caller", caller.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_decides_about_what_is_somebody_elses_and_holds_are_apart() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let request = due_in(LATER, ticket(&alice, &bob, 1));
    client.transactions.create_transaction(as_caller("shop", request.clone())).await.unwrap();
    let held = hold(&alice, &bob, 5);
    client.create(&held).await.unwrap();
    let (id, etag) = (request.id.clone(), String::new());
    let cancel = v1::CancelTransactionRequest { id: id.clone(), etag: etag.clone() };
    let confirm = v1::ConfirmTransactionRequest { id: id.clone(), etag: etag.clone() };

    // Others may spend of every account here, and nevertheless it is not theirs.
    let by_other =
        client.transactions.cancel_transaction(as_caller("other", cancel.clone())).await.unwrap_err();
    let confirmed = client.transactions.confirm_transaction(as_caller("other", confirm)).await.unwrap_err();
    let as_hold = client.cancel(&id).await.unwrap_err();
    let paid_as_hold = client.confirm(&id).await.unwrap_err();
    let hold_here = client.cancel_transaction(&held.id).await.unwrap_err();

    assert_eq!(
        [by_other, confirmed, hold_here].map(|status| reason(&status)),
        ["TRANSACTION_NOT_FOUND"; 3].map(str::to_owned)
    );
    assert_eq!(
        [as_hold, paid_as_hold].map(|status| reason(&status)),
        ["HOLD_NOT_FOUND"; 2].map(str::to_owned)
    );
    assert_eq!(
        client.holds.get_hold(v1::GetHoldRequest { id: id.clone() }).await.unwrap_err().code(),
        Code::NotFound
    );
    let of_alice = v1::ListHoldsRequest { payer: alice.clone(), ..Default::default() };
    let listed = client.holds.list_holds(of_alice).await.unwrap().into_inner().holds;
    assert_eq!(listed.iter().map(|hold| &hold.id).collect::<Vec<_>>(), [&held.id]);
    let cancelled = client.transactions.cancel_transaction(as_caller("shop", cancel)).await.unwrap();
    assert_eq!(cancelled.into_inner().transaction.unwrap().phase(), Phase::Cancelled);
    assert_eq!(client.hold(&held.id).await.phase(), Phase::Held);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_lists_its_own_in_pages_and_finds_them_by_key() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    client.until_swept().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let labels = [("kind".to_owned(), if n % 2 == 0 { "even" } else { "odd" }.to_owned())].into();
        let keyed = v1::CreateTransactionRequest {
            id: String::new(),
            idempotency_key: format!("ticket-{n}"),
            labels,
            ..due_in(LATER, ticket(&alice, &bob, n))
        };
        for _ in 0..2 {
            let answer =
                client.transactions.create_transaction(as_caller("shop", keyed.clone())).await.unwrap();
            ids.push(answer.into_inner().transaction.unwrap().id);
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 5, "each key stands for one");
    let page = async |token: String, labels: &[(String, String)]| {
        let labels = labels.iter().cloned().collect();
        let request =
            v1::ListTransactionsRequest { page_size: 2, page_token: token, labels, ..Default::default() };
        client
            .clone()
            .transactions
            .list_transactions(as_caller("shop", request))
            .await
            .map(tonic::Response::into_inner)
    };

    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let answer = page(token, &[]).await.unwrap();
        listed.extend(answer.transactions.into_iter().map(|transaction| transaction.id));
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let odd = page(String::new(), &[("kind".into(), "odd".into())]).await.unwrap();
    let nobody = client
        .transactions
        .list_transactions(as_caller("other", v1::ListTransactionsRequest::default()))
        .await;

    ids.sort();
    ids.reverse();
    assert_eq!(listed, ids);
    assert_eq!(odd.transactions.iter().map(|one| &one.id).collect::<Vec<_>>(), [&listed[1], &listed[3]]);
    assert!(nobody.unwrap().into_inner().transactions.is_empty());
}

/// A participant that answers what it is told to.
struct Puppet {
    name: &'static str,
    answer: Box<dyn Fn(Operation) -> BoxFuture<'static, Outcome> + Send + Sync>,
}

impl Served for Puppet {
    fn describe(&self) -> Description {
        Description::of(self.name, false)
    }

    fn answer(&self, step: Asked) -> BoxFuture<'_, Outcome> {
        (self.answer)(step.operation)
    }
}

async fn puppet(
    name: &'static str,
    answer: impl Fn(Operation) -> BoxFuture<'static, Outcome> + Send + Sync + 'static,
) -> Running {
    start(Arc::new(Puppet { name, answer: Box::new(answer) }), "127.0.0.1:0", None).await.unwrap()
}

fn says(outcome: Outcome) -> BoxFuture<'static, Outcome> {
    async move { outcome }.boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pivot_that_takes_its_word_back_creates_no_money_and_is_parked() {
    // It confirms, and then says that it had cancelled.
    let word = Arc::new(AtomicU8::new(0));
    let heard = Arc::clone(&word);
    let liar = puppet("liar", move |operation| {
        says(match (operation, heard.load(Ordering::SeqCst)) {
            (Operation::Confirm, 1) => Outcome::AlreadyCancelled,
            _ => Outcome::Done,
        })
    })
    .await;
    let mut system = System::start().await;
    system.config.participants = vec![ParticipantConfig::new("liar", &liar.url())];
    let gate = Gate::default();
    let config = system.config.clone();
    let (alice, bob) = (on_shard("alice", 0), on_shard("bob", 1));
    let request = due_in(LATER, vec![debit(&alice, 10), credit(&bob, 10), call("liar", "x")]);
    gate.stop(TransactionId::parse(&request.id).unwrap(), Step::Ask(Operation::Confirm, 0), When::Before);
    {
        let gate_of_store = gate.clone();
        let running =
            serve::start_with(&config, gate.between(), move |store| gate_of_store.store(store)).await;
        let Coordinator { running, mut client } = Coordinator::on(running.unwrap()).await;
        client.account(&alice, 100).await;
        client.account(&bob, 0).await;
        client.until_reachable(&["liar"]).await;
        client.begin(&request).await.unwrap();
        let confirming = client.clone();
        let id = request.id.clone();
        tokio::spawn(async move { confirming.clone().confirm_transaction(&id).await });
        until("bob is paid, and alice's debit is not asked for", || {
            let gate = gate.clone();
            let mut client = client.clone();
            let bob = bob.clone();
            async move { gate.stopped().len() == 1 && client.balances(&bob).await == (10, 0) }
        })
        .await;
        running.stop().cancel();
    }

    word.store(1, Ordering::SeqCst);
    let Coordinator { mut client, .. } = system.coordinator().await;
    let parked = async |client: &mut Client| client.transaction(&request.id).await.unwrap().attention();
    until("a person is asked", || {
        let mut client = client.clone();
        async move { parked(&mut client).await == Attention::Parked }
    })
    .await;

    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((90, 10), (10, 0)));
    let report = client.recovery.describe_hold(v1::DescribeHoldRequest { id: request.id.clone() }).await;
    let report = report.unwrap().into_inner();
    let shown: Vec<_> =
        report.branches.iter().map(|one| (one.role.as_str(), one.participant.as_str())).collect();
    assert_eq!(shown, [("DEBIT", "shard-0"), ("CREDIT", "shard-1"), ("CALL", "liar")]);
    assert!(!report.recovers_by_itself, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_holds_up_its_own_transactions_only() {
    let hanging = puppet("hanging", |_| pending().boxed()).await;
    let mut parties = Parties::start().await;
    let hangs = ParticipantConfig { deadline_ms: 500, ..ParticipantConfig::new("hanging", &hanging.url()) };
    parties.system.config.participants.push(hangs);
    let (mut client, alice, bob) = ready(&parties).await;
    client.until_reachable(&["hanging"]).await;
    let money = |value| vec![debit(&alice, value), credit(&bob, value)];

    // More than there is room for at one participant.
    for _ in 0..600 {
        let request = due_in(LATER, [money(1), vec![call("hanging", "x")]].concat());
        let mut client = client.clone();
        tokio::spawn(async move { client.begin(&request).await });
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(client.begin(&immediate(money(1))).await.unwrap().phase(), Phase::Confirmed);
        assert_eq!(client.create(&hold(&alice, &bob, 1)).await.unwrap().hold.unwrap().phase(), Phase::Held);
        slowest = slowest.max(began.elapsed());
    }
    until("what needs it is refused before any effect", || {
        let mut client = client.clone();
        let request = due_in(LATER, [money(1), vec![call("hanging", "x")]].concat());
        async move { client.begin(&request).await.is_err_and(|error| reason(&error) == "PARTICIPANT_UNAVAILABLE") }
    })
    .await;

    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn participants_are_added_drained_and_removed_while_every_instance_runs() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let Coordinator { client: mut other, .. } = parties.system.coordinator().await;
    let late = puppet("late", |_| says(Outcome::Done)).await;
    let why = || ("a test".to_owned(), "T-1".to_owned());
    let (reason_given, ticket_given) = why();
    let added = v1::AddParticipantRequest {
        name: "late".into(),
        address: late.url(),
        reason: reason_given,
        ticket: ticket_given,
        ..Default::default()
    };

    client.operator.add_participant(added.clone()).await.unwrap();
    other.until_reachable(&["late"]).await;
    client.until_reachable(&["late"]).await;
    let request = due_in(LATER, vec![debit(&alice, 10), credit(&bob, 10), call("late", "x")]);
    other.begin(&request).await.unwrap();
    let twice = client.operator.add_participant(added.clone()).await.unwrap_err();
    let abroad = v1::AddParticipantRequest {
        name: "abroad".into(),
        address: "http://10.0.0.1:1".into(),
        ..added.clone()
    };
    let in_the_clear = client.operator.add_participant(abroad).await.unwrap_err();
    let remove = || {
        let (reason, ticket) = why();
        v1::RemoveParticipantRequest { name: "late".into(), reason, ticket }
    };
    let working = client.operator.remove_participant(remove()).await.unwrap_err();
    let (reason_given, ticket_given) = why();
    let drain =
        v1::DrainParticipantRequest { name: "late".into(), reason: reason_given, ticket: ticket_given };
    client.operator.drain_participant(drain).await.unwrap();
    until("both refuse what is new", || {
        let (mut client, mut other) = (client.clone(), other.clone());
        async move {
            let new = || due_in(LATER, vec![call("late", "x")]);
            let refused = |answer: Result<_, tonic::Status>| {
                answer.is_err_and(|error| reason(&error) == "PARTICIPANT_DRAINED")
            };
            refused(client.begin(&new()).await) && refused(other.begin(&new()).await)
        }
    })
    .await;
    let needed = client.operator.remove_participant(remove()).await.unwrap_err();
    let confirmed = client.confirm_transaction(&request.id).await.unwrap();
    until("nothing needs it", || {
        let (mut client, request) = (client.clone(), remove());
        async move {
            for id in unfinished(&mut client).await {
                // It may have been decided meanwhile, which is as good.
                let _ = client.cancel_transaction(&id).await;
            }
            client.operator.remove_participant(request).await.is_ok()
        }
    })
    .await;

    assert_eq!(
        [twice, working, needed].map(|error| reason(&error)),
        ["PARTICIPANT_EXISTS", "PARTICIPANT_IN_USE", "PARTICIPANT_IN_USE"].map(str::to_owned)
    );
    assert_eq!(reason(&in_the_clear), "FIELD_INVALID");
    assert_eq!(confirmed.phase(), Phase::Confirmed, "what was under way goes on");
    until("both forget it", || {
        let mut other = other.clone();
        async move {
            other
                .begin(&due_in(LATER, vec![call("late", "x")]))
                .await
                .is_err_and(|error| reason(&error) == "PARTICIPANT_NOT_FOUND")
        }
    })
    .await;
    let actions = v1::ListActionsRequest { target: "late".into(), ..Default::default() };
    let actions = client.recovery.list_actions(actions).await.unwrap().into_inner().actions;
    let named: Vec<_> = actions.iter().map(|action| action.action.as_str()).collect();
    assert_eq!(named, ["add-participant", "drain-participant", "remove-participant"]);
}

async fn unfinished(client: &mut Client) -> Vec<String> {
    let request = v1::ListTransactionsRequest { phases: vec![Phase::Held.into()], ..Default::default() };
    let listed = client.transactions.list_transactions(request).await.unwrap().into_inner();
    listed.transactions.into_iter().map(|transaction| transaction.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_that_is_gone_makes_its_transactions_wait_and_a_new_one_is_refused() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let waiting = due_in(SOON, ticket(&alice, &bob, 1));
    client.begin(&waiting).await.unwrap();
    let address = parties.seats.address.to_string();
    parties.seats.stop().cancel();

    until("it is not reachable", || {
        let mut client = client.clone();
        let request = due_in(LATER, vec![call("seats", "seat-2")]);
        async move { client.begin(&request).await.is_err_and(|error| reason(&error) == "PARTICIPANT_UNAVAILABLE") }
    })
    .await;
    assert_eq!(client.transaction(&waiting.id).await.unwrap().phase(), Phase::Held);
    assert_eq!(client.balances(&alice).await, (9_990, 10), "nothing follows before the pivot has answered");
    let urls = tcc_tests::parties::url(&parties.system, "seats");
    let again = tcc_participant::Server::new("seats", &urls).unwrap().listen(&address);
    let _again = again.start(tcc_tests::examples::seats::Seats).await.unwrap();

    assert_eq!(client.end_of(&waiting.id).await.phase(), Phase::Confirmed);
    assert_eq!(client.balances(&alice).await, (9_990, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_row_was_lost_is_rebuilt_as_its_participants_say() {
    let parties = Parties::start().await;
    let Coordinator { running, mut client } = parties.system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_reachable(&["seats", "coupons"]).await;
    let held = due_in(LATER, ticket(&alice, &bob, 1));
    let cancelled = due_in(LATER, ticket(&alice, &bob, 2));
    let confirmed = due_in(LATER, ticket(&alice, &bob, 3));
    for request in [&held, &cancelled, &confirmed] {
        client.begin(request).await.unwrap();
    }
    client.cancel_transaction(&cancelled.id).await.unwrap();
    client.confirm_transaction(&confirmed.id).await.unwrap();
    running.stop().cancel();
    running.ended().await.unwrap();
    let sql = parties.system.sql().await;
    sql.batch_execute("DELETE FROM transaction; DELETE FROM wakeup; DELETE FROM sweep").await.unwrap();

    let Coordinator { mut client, .. } = parties.system.coordinator().await;
    until("it is rebuilt", || {
        let mut client = client.clone();
        let ids = [held.id.clone(), cancelled.id.clone(), confirmed.id.clone()];
        async move {
            let mut phases = Vec::new();
            for id in &ids {
                phases.push(client.transaction(id).await.map(|one| one.phase()).ok());
            }
            phases == [Some(Phase::Held), Some(Phase::Cancelled), Some(Phase::Confirmed)]
        }
    })
    .await;

    let rebuilt = client.transaction(&held.id).await.unwrap();
    assert_eq!((rebuilt.branches, rebuilt.pivot), (held.branches.clone(), 3));
    assert_eq!(client.confirm_transaction(&held.id).await.unwrap().phase(), Phase::Confirmed);
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((9_980, 0), (20, 0)));
    assert_eq!(parties.seat("seat-2").await, (None, false));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_for_a_hold_and_a_transaction_is_told() {
    let parties = Parties::start().await;
    let (mut client, alice, bob) = ready(&parties).await;
    let id = new_id();
    let transaction =
        v1::CreateTransactionRequest { id: id.clone(), ..due_in(LATER, ticket(&alice, &bob, 1)) };
    client.begin(&transaction).await.unwrap();

    let refused =
        client.create(&v1::CreateHoldRequest { id: id.clone(), ..hold(&alice, &bob, 5) }).await.unwrap_err();

    assert_eq!(reason(&refused), "ID_REUSED");
    assert_eq!(client.transaction(&id).await.unwrap().phase(), Phase::Held);
}
