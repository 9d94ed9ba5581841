//! The client crate against a server: the example of its documentation, what it promises, and answers that
//! are lost on the way.

use jiff::{SignedDuration, Timestamp};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tcc_client::{
    AccountId, Branch, Cause, Client, ConnectError, Currency, Labels, Money, ParticipantName, Phase, Reason,
    TransactionId, new_id,
};
use tcc_coordinator::config::Config;
use tcc_tests::{
    Coordinator, System, on_two_shards,
    parties::Parties,
    secure::{self, Authority, Known},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

#[allow(dead_code)]
#[path = "../../coordinator/client/examples/schedule.rs"]
mod schedule;

#[allow(dead_code)]
#[path = "../../coordinator/client/examples/ticket.rs"]
mod ticket;

fn gold(value: i64) -> Money {
    Money::new(value, "GOLD").unwrap()
}

fn in_an_hour() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(1)
}

/// Somebody with 1,000 units and somebody without, on different shards.
async fn two_accounts(client: &Client) -> (AccountId, AccountId) {
    let (payer, payee) = on_two_shards("user");
    let (payer, payee) = (AccountId::parse(&payer).unwrap(), AccountId::parse(&payee).unwrap());
    for account in [&payer, &payee] {
        client.open(account, &Currency::parse("GOLD").unwrap()).await.unwrap();
    }
    client.issue(new_id(), &payer, gold(1_000)).await.unwrap();
    (payer, payee)
}

async fn balances(client: &Client, account: &AccountId) -> (i64, i64) {
    let account = client.account(account).await.unwrap();
    (account.available, account.held)
}

/// A server that believes everybody, and a client of it.
async fn plain(system: &System) -> (Coordinator, Client) {
    let mut coordinator = system.coordinator().await;
    coordinator.client.until_swept().await;
    let client = Client::at(&format!("http://{}", coordinator.running.address)).named("shop");
    (coordinator, client.connect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_goes_through_over_tls_with_an_api_key_or_a_certificate() {
    let system = System::start().await;
    let (authority, mut known) = (Authority::new(), Known::new());
    let roles = ["application", "ledger_admin"];
    let key = known.caller("shop", &roles, &["*"]);
    known.caller_with_certificate("till", &roles, "till.test");
    let server = authority.certificate(&["localhost", "127.0.0.1"]);
    let tls = Some(known.certify(&server, Some(&authority)));
    let config = Config { tls, ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    let at = || Client::at(&format!("https://{}", running.address)).authority(&authority.pem);

    schedule::conversation(&at().api_key(&key).connect().await.unwrap()).await.unwrap();
    let (certificate, own_key) = authority.certificate(&["till.test"]);
    let till = at().certificate(certificate, own_key).connect().await.unwrap();
    let alice = AccountId::parse("alice").unwrap();
    assert_eq!(balances(&till, &alice).await, (30, 0));
    ticket::conversation(&at().api_key(&key).connect().await.unwrap()).await.unwrap();
    let shares = ["buyer", "house", "agency"].map(|id| AccountId::parse(id).unwrap());
    let [buyer, house, agency] = &shares;
    assert_eq!(balances(&till, buyer).await, (60, 0));
    assert_eq!((balances(&till, house).await, balances(&till, agency).await), ((36, 0), (4, 0)));

    let nobody = at().connect().await.unwrap().account(&alice).await.unwrap_err();
    assert_eq!(nobody.reason(), Some(Reason::TokenMissing));
    let forged = at().api_key("tcc_nonsense").connect().await.unwrap().account(&alice).await.unwrap_err();
    assert_eq!(forged.reason(), Some(Reason::TokenInvalid));
    let stranger = Client::at(&format!("https://{}", running.address)).authority(Authority::new().pem);
    assert!(matches!(stranger.connect().await, Err(ConnectError::Unreachable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_what_the_call_promises_or_a_no() {
    let system = System::start().await;
    let (coordinator, client) = plain(&system).await;
    let (alice, bob) = two_accounts(&client).await;
    let hold = |value| client.hold(&alice, &bob, gold(value)).pay_out_at(in_an_hour());

    let kept = hold(10).key("order-1").label("order", "1");
    let created = kept.send().await.unwrap();
    assert_eq!((created.hold.phase, created.replayed), (Phase::Held, false));
    assert_eq!(created.hold.labels, Labels::new([("order".to_owned(), "1".to_owned())]).unwrap());
    assert_eq!(kept.send().await.map(|again| (again.hold.id, again.replayed)), Ok((created.hold.id, true)));
    let other = hold(11).key("order-1").send().await.unwrap_err();
    assert_eq!(other.reason(), Some(Reason::IdempotencyKeyReused));
    assert_eq!(other.no().unwrap().detail("field"), Some("amount.value"));

    let refused = hold(5_000);
    assert_eq!(refused.validate().await.unwrap_err().reason(), Some(Reason::InsufficientFunds));
    let first = refused.send().await.unwrap_err();
    let again = refused.send().await.unwrap_err();
    assert_eq!(first.reason(), Some(Reason::InsufficientFunds));
    assert_eq!((first.no().unwrap().is_replayed(), again.no().unwrap().is_replayed()), (false, true));

    let seen = client.get(created.hold.id).await.unwrap();
    let cancelled = client.cancel_unchanged(&seen).await.unwrap();
    assert_eq!(cancelled.phase, Phase::Cancelled);
    let stale = client.confirm_unchanged(&seen).await.unwrap_err();
    assert_eq!(stale.reason(), Some(Reason::EtagMismatch));
    assert_eq!(client.confirm(seen.id).await.unwrap_err().reason(), Some(Reason::HoldNotConfirmable));

    let paid = client.transfer(&alice, &bob, gold(7)).label("order", "2").send().await.unwrap();
    assert_eq!((paid.hold.phase, paid.replayed), (Phase::Confirmed, false));
    let early = hold(20).send().await.unwrap().hold.id;
    assert_eq!(client.confirm(early).await.unwrap().phase, Phase::Confirmed);
    assert_eq!(client.cancel(early).await.unwrap_err().reason(), Some(Reason::HoldNotCancellable));
    let soon = Timestamp::now() + SignedDuration::from_secs(1);
    let released = client.hold(&alice, &bob, gold(30)).release_at(soon).send().await.unwrap().hold.id;
    assert_eq!(client.watch(released).until_final().await.unwrap().phase, Phase::Cancelled);

    let mut list = client.holds_of_payer(&alice).phase(Phase::Confirmed).page_size(1);
    let mut ids = Vec::new();
    while let Some(page) = list.next_page().await.unwrap() {
        ids.extend(page.into_iter().map(|hold| hold.id));
    }
    assert_eq!(ids, [early, paid.hold.id]);
    let mut labelled = client.holds_of_payee(&bob).label("order", "2").created_from(seen.created_at);
    assert_eq!(labelled.next_page().await.unwrap().unwrap().len(), 1);
    assert_eq!(client.get(new_id()).await.unwrap_err().reason(), Some(Reason::HoldNotFound));

    let before = client.balance_at(&bob, seen.created_at).await.unwrap();
    assert_eq!((before.available, before.version), (0, 0));
    assert_eq!((balances(&client, &alice).await, balances(&client, &bob).await), ((973, 0), (27, 0)));
    client.block(&bob).await.unwrap();
    assert_eq!(hold(1).send().await.unwrap_err().reason(), Some(Reason::AccountBlocked));
    client.unblock(&bob).await.unwrap();
    client.burn(new_id(), &bob, gold(27)).await.unwrap();
    client.close(&bob).await.unwrap();
    coordinator.client.clone().audit_is_clean().await;
}

/// A wire to a server that loses answers.
struct Wire {
    address: SocketAddr,
    /// What the server says next is lost, with the connection.
    loses_next: Arc<AtomicBool>,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let loses_next = Arc::new(AtomicBool::new(false));
        let loses = Arc::clone(&loses_next);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, server, Arc::clone(&loses)));
            }
        });
        Self { address, loses_next }
    }
}

async fn relay(client: TcpStream, server: SocketAddr, loses_next: Arc<AtomicBool>) {
    let server = TcpStream::connect(server).await.unwrap();
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let asking = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(1..) = from_server.read(&mut buffer).await.inspect(|length| buffer.truncate(*length)) {
        if loses_next.swap(false, Ordering::SeqCst) || to_client.write_all(&buffer).await.is_err() {
            break;
        }
        buffer.resize(64 * 1024, 0);
    }
    asking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_on_the_way_is_asked_again_and_done_once() {
    let system = System::start().await;
    let (coordinator, direct) = plain(&system).await;
    let (alice, bob) = two_accounts(&direct).await;
    let wire = Wire::to(coordinator.running.address).await;
    let lost = Arc::new(AtomicU64::new(0));
    let client = Client::at(&format!("http://{}", wire.address)).attempt(Duration::from_secs(5)).on_lost({
        let lost = Arc::clone(&lost);
        move |_| {
            lost.fetch_add(1, Ordering::SeqCst);
        }
    });
    let client = client.connect().await.unwrap();
    let cut = || wire.loses_next.store(true, Ordering::SeqCst);

    let mut ids = Vec::new();
    for _ in 0..10 {
        cut();
        let hold = client.hold(&alice, &bob, gold(10)).pay_out_at(in_an_hour()).send().await.unwrap().hold;
        assert_eq!(hold.phase, Phase::Held);
        ids.push(hold.id);
    }
    assert_eq!(balances(&direct, &alice).await, (900, 100));
    for id in &ids[..5] {
        cut();
        assert_eq!(client.cancel(*id).await.unwrap().phase, Phase::Cancelled);
    }
    cut();
    assert_eq!(client.transfer(&alice, &bob, gold(3)).send().await.unwrap().hold.phase, Phase::Confirmed);
    cut();
    client.issue(new_id(), &bob, gold(4)).await.unwrap();
    let mut watch = client.watch(ids[9]);
    assert_eq!(watch.next().await.unwrap().unwrap().phase, Phase::Held);
    cut();
    direct.confirm(ids[9]).await.unwrap();
    assert_eq!(watch.until_final().await.unwrap().phase, Phase::Confirmed);

    assert!(lost.load(Ordering::SeqCst) >= 10, "{lost:?}");
    assert_eq!((balances(&direct, &alice).await, balances(&direct, &bob).await), ((947, 40), (17, 0)));
    coordinator.client.clone().audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_has_its_outcome_and_is_done_once_though_answers_are_lost() {
    let system = System::start().await;
    let (coordinator, direct) = plain(&system).await;
    let (alice, bob) = two_accounts(&direct).await;
    let nobody = AccountId::parse("nobody").unwrap();
    let wire = Wire::to(coordinator.running.address).await;
    let client = Client::at(&format!("http://{}", wire.address)).connect().await.unwrap();
    let to = |payee: &AccountId, value| client.hold(&alice, payee, gold(value)).pay_out_at(in_an_hour());
    // More than one request takes, and one unit more than there are.
    let many: Vec<_> = (0..1_001).map(|_| to(&bob, 1)).collect();

    wire.loses_next.store(true, Ordering::SeqCst);
    let outcomes = client.send_all(&many).await;

    assert_eq!(outcomes.len(), many.len());
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].reason(), Some(Reason::InsufficientFunds));
    assert_eq!(balances(&direct, &alice).await, (0, 1_000));
    let first = outcomes.iter().flatten().next().unwrap().hold.clone();
    client.cancel(first.id).await.unwrap();

    let few = [to(&bob, 1), to(&nobody, 1), to(&bob, 1).id(first.id), to(&bob, 1).key("no key")];
    let outcomes = client.send_all(&few).await;

    assert_eq!(outcomes[0].as_ref().unwrap().hold.phase, Phase::Held);
    let reasons: Vec<_> =
        outcomes[1..].iter().map(|outcome| outcome.as_ref().unwrap_err().reason().unwrap()).collect();
    assert_eq!(
        reasons,
        [Reason::AccountNotFound, Reason::IdReused, Reason::IdempotencyKeyInvalid],
        "{outcomes:?}"
    );
    assert!(client.send_all(&few[..1]).await[0].as_ref().unwrap().replayed);
    assert!(client.send_all(&[]).await.is_empty());
    coordinator.client.clone().audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_with_other_participants_is_an_answer_that_it_promises_or_a_no() {
    let parties = Parties::start().await;
    let mut coordinator = parties.system.coordinator().await;
    coordinator.client.until_swept().await;
    coordinator.client.until_reachable(&["seats", "coupons"]).await;
    let at = format!("http://{}", coordinator.running.address);
    let client = Client::at(&at).named("shop").connect().await.unwrap();
    let (alice, bob) = two_accounts(&client).await;
    let [seats, coupons] = ["seats", "coupons"].map(|name| ParticipantName::parse(name).unwrap());
    let ticket = |seat: &str, n: u32| {
        let money = client.transaction().debit(&alice, gold(10)).credit(&bob, gold(10));
        money.call(&seats, "reserve", seat).pivot().call(&coupons, "reserve", format!("coupon-{n}"))
    };

    let held = ticket("seat-1", 1).cancel_at(in_an_hour()).key("ticket-1").label("show", "1");
    let begun = held.send().await.unwrap();
    assert_eq!((begun.transaction.phase, begun.replayed), (Phase::Held, false));
    assert_eq!((begun.transaction.pivot, begun.transaction.branches.len()), (2, 4));
    assert_eq!(begun.transaction.caller, "shop");
    let wanted =
        Branch::Call { participant: seats.clone(), operation: "reserve".into(), payload: "seat-1".into() };
    assert_eq!(begun.transaction.branches[2], wanted);
    let again = held.send().await.unwrap();
    assert_eq!((again.transaction.id, again.replayed), (begun.transaction.id, true));

    let taken = ticket("seat-1", 2).at_once();
    let refused = taken.send().await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::ParticipantRefused));
    assert_eq!(refused.no().unwrap().detail("refusal"), Some("SEAT_TAKEN"));
    assert!(taken.send().await.unwrap_err().no().unwrap().is_replayed());
    let vetoed = ticket("early-1", 3).confirm_at(in_an_hour()).send().await.unwrap().transaction;
    let no = client.confirm_transaction(vetoed.id).await.unwrap_err();
    assert_eq!(no.reason(), Some(Reason::TransactionNotConfirmable));
    let end = client.watch_transaction(vetoed.id).until_final().await.unwrap();
    assert_eq!(
        (end.phase, end.cause, end.reason.as_str()),
        (Phase::Cancelled, Some(Cause::Vetoed), "SHOW_NOT_APPROVED")
    );

    let seen = client.get_transaction(begun.transaction.id).await.unwrap();
    let confirmed = client.confirm_transaction_unchanged(&seen).await.unwrap();
    assert_eq!(confirmed.phase, Phase::Confirmed);
    let stale = client.cancel_transaction_unchanged(&seen).await.unwrap_err();
    assert_eq!(stale.reason(), Some(Reason::EtagMismatch));
    let late = client.cancel_transaction(seen.id).await.unwrap_err();
    assert_eq!(late.reason(), Some(Reason::TransactionNotCancellable));
    assert_eq!(parties.seat("seat-1").await, (Some(seen.id.uuid()), true));

    // The deadline of one that nobody confirms.
    let soon = Timestamp::now() + SignedDuration::from_secs(1);
    let forgotten = ticket("seat-2", 4).cancel_at(soon).send().await.unwrap().transaction;
    let end = client.watch_transaction(forgotten.id).until_final().await.unwrap();
    assert_eq!((end.phase, end.cause), (Phase::Cancelled, Some(Cause::Matured)));

    assert!(ticket("seat-3", 5).at_once().validate().await.is_ok());
    let nobody = client.transaction().call(&ParticipantName::parse("cinema").unwrap(), "", "x").at_once();
    assert_eq!(nobody.send().await.unwrap_err().reason(), Some(Reason::ParticipantNotFound));
    assert_eq!(
        client.get_transaction(new_id()).await.unwrap_err().reason(),
        Some(Reason::TransactionNotFound)
    );
    let mut list = client.transactions().page_size(1);
    let mut ids = Vec::new();
    while let Some(page) = list.next_page().await.unwrap() {
        ids.extend(page.into_iter().map(|one| one.id));
    }
    assert_eq!((ids.len(), &ids[..1], &ids[3..]), (4, &[forgotten.id][..], &[seen.id][..]));
    let mut labelled = client.transactions().label("show", "1").phase(Phase::Confirmed).of_caller("shop");
    assert_eq!(labelled.next_page().await.unwrap().unwrap().len(), 1);
    assert_eq!((balances(&client, &alice).await, balances(&client, &bob).await), ((990, 0), (10, 0)));
    coordinator.client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_answers_are_lost_is_done_once() {
    let system = System::start().await;
    let (coordinator, direct) = plain(&system).await;
    let (alice, bob) = two_accounts(&direct).await;
    let wire = Wire::to(coordinator.running.address).await;
    let at = format!("http://{}", wire.address);
    let client = Client::at(&at).named("shop").attempt(Duration::from_secs(5)).connect().await.unwrap();
    let pays = |value| client.transaction().debit(&alice, gold(value)).credit(&bob, gold(value));
    let cut = || wire.loses_next.store(true, Ordering::SeqCst);

    let mut held = Vec::new();
    for _ in 0..4 {
        cut();
        held.push(pays(10).cancel_at(in_an_hour()).send().await.unwrap().transaction.id);
    }
    cut();
    assert_eq!(client.confirm_transaction(held[0]).await.unwrap().phase, Phase::Confirmed);
    cut();
    assert_eq!(client.cancel_transaction(held[1]).await.unwrap().phase, Phase::Cancelled);
    cut();
    assert_eq!(pays(3).at_once().send().await.unwrap().transaction.phase, Phase::Confirmed);
    let mut watch = client.watch_transaction(held[3]);
    assert_eq!(watch.next().await.unwrap().unwrap().phase, Phase::Held);
    cut();
    direct.confirm_transaction(held[3]).await.unwrap();
    assert_eq!(watch.until_final().await.unwrap().phase, Phase::Confirmed);

    assert_eq!(direct.confirm_transaction(held[2]).await.unwrap().phase, Phase::Confirmed);
    assert_eq!((balances(&direct, &alice).await, balances(&direct, &bob).await), ((967, 0), (33, 0)));
    coordinator.client.clone().audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_nobody_does_not_say_that_it_was_not_done() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::at(&format!("http://{unused}")).lazy().unwrap().within(Duration::from_millis(300));
    let (alice, bob) = (AccountId::parse("alice").unwrap(), AccountId::parse("bob").unwrap());

    let unknown = client.hold(&alice, &bob, gold(1)).pay_out_at(in_an_hour()).send().await.unwrap_err();
    let watched = client.watch(new_id()).until_final().await.unwrap_err();

    assert!(unknown.is_unknown() && watched.is_unknown(), "{unknown}; {watched}");
    assert!(TransactionId::parse("7").is_err());
}
