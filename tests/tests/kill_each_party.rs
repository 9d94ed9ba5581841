//! Transactions over a shard out of process, seats, coupons in Python and the other shard, while each of these, and the
//! coordinator, is killed and started again.

use futures::future::join_all;
use jiff::SignedDuration;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use tcc_coordinator::config::ParticipantConfig;
use tcc_proto::v1::{CreateTransactionRequest, Phase};
use tcc_tests::{
    Client, System, alice_and_bob, connect,
    examples::{Coupons, Example, House},
    parties::{Urls, call, credit, databases, debit, due_in},
    process::Tccd,
    reason, until,
};
use tonic::Code;

/// So many transactions are asked for while somebody is dead, and as many after that.
const WHILE_DEAD: u32 = 8;
/// What each of them is about.
const PRICE: i64 = 10;

/// Everybody, each in a process of its own.
struct Everybody {
    /// The databases.
    _system: System,
    urls: Urls,
    tccd: Tccd,
    ledgerd: Tccd,
    seats: Option<Example>,
    coupons: Option<Example>,
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Ledgerd,
    Seats,
    Coupons,
    Tccd,
}

impl Everybody {
    async fn start() -> Self {
        let mut system = System::start().await;
        let urls = databases(&system).await;
        let ledgerd = Tccd::ledgerd(&system.config, "shard-0").await.expect("tcc-ledgerd starts");
        let seats = House::start(&urls.seats, "127.0.0.1:0").await.expect("the seats start");
        let coupons = Coupons::start(&urls.coupons, "127.0.0.1:0").await.expect("the coupons start");
        ledgerd.url().clone_into(&mut system.config.shards[0].address);
        system.config.participants = vec![
            ParticipantConfig { may_veto: true, ..ParticipantConfig::new("seats", &seats.address) },
            ParticipantConfig::new("coupons", &coupons.address),
        ];
        let tccd = Tccd::start(&system.config).await.expect("tccd starts");
        Self { _system: system, urls, tccd, ledgerd, seats: Some(seats), coupons: Some(coupons) }
    }

    /// Kills one, waits until it is missed, and starts it again.
    async fn kill(&mut self, victim: Victim, missed: impl Future<Output = ()>) {
        match victim {
            Victim::Ledgerd => {
                self.ledgerd.kill().await.unwrap();
                missed.await;
                self.ledgerd.restart().await.unwrap();
            }
            Victim::Tccd => {
                self.tccd.kill().await.unwrap();
                missed.await;
                self.tccd.restart().await.unwrap();
            }
            Victim::Seats => {
                let seats = self.seats.take().expect("they run");
                let listens = seats.listens();
                seats.kill().await.unwrap();
                missed.await;
                self.seats = Some(House::start(&self.urls.seats, &listens).await.unwrap());
            }
            Victim::Coupons => {
                let coupons = self.coupons.take().expect("they run");
                let listens = coupons.listens();
                coupons.kill().await.unwrap();
                missed.await;
                self.coupons = Some(Coupons::start(&self.urls.coupons, &listens).await.unwrap());
            }
        }
    }
}

/// A ticket for seat n: half of them are cancelled as soon as they are held.
async fn buy(mut client: Client, request: CreateTransactionRequest, n: u32) {
    if client.begin(&request).await.is_ok() && n % 2 == 1 {
        let _ = client.cancel_transaction(&request.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_of_anybody_leaves_all_of_a_transaction_or_nothing() {
    let mut all = Everybody::start().await;
    let mut client = Client::connect(all.tccd.url()).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_reachable(&["seats", "coupons"]).await;
    let (asked, is_over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let buying = {
        let (asked, is_over, url) = (Arc::clone(&asked), Arc::clone(&is_over), all.tccd.url().to_owned());
        let (alice, bob) = (alice.clone(), bob.clone());
        tokio::spawn(async move {
            let (mut requests, mut running) = (BTreeMap::new(), Vec::new());
            while !is_over.load(Ordering::SeqCst) {
                let n = asked.fetch_add(1, Ordering::SeqCst);
                let branches = vec![
                    debit(&alice, PRICE),
                    credit(&bob, PRICE),
                    call("coupons", &format!("coupon-{n}")),
                    call("seats", &format!("seat-{n}")),
                ];
                let request = due_in(SignedDuration::from_millis(800), branches);
                requests.insert(n, request.clone());
                running.push(tokio::spawn(buy(Client::lazy(&url), request, n)));
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            join_all(running).await;
            requests
        })
    };
    let more = || {
        let (asked, from) = (Arc::clone(&asked), asked.load(Ordering::SeqCst));
        async move {
            until("more is asked for", || async { asked.load(Ordering::SeqCst) >= from + WHILE_DEAD }).await;
        }
    };

    for victim in [Victim::Ledgerd, Victim::Seats, Victim::Coupons, Victim::Tccd] {
        more().await;
        all.kill(victim, more()).await;
    }
    more().await;
    is_over.store(true, Ordering::SeqCst);
    let requests = buying.await.unwrap();

    let mut phases = BTreeMap::new();
    for (n, request) in &requests {
        let mut client = client.clone();
        let phase = match client.transaction(&request.id).await {
            Ok(_) => Some(client.end_of(&request.id).await.phase()),
            // Nobody heard of it.
            Err(status) => {
                assert_eq!(
                    (status.code(), reason(&status).as_str()),
                    (Code::NotFound, "TRANSACTION_NOT_FOUND")
                );
                None
            }
        };
        phases.insert(*n, phase);
    }
    let confirmed = phases.values().filter(|phase| **phase == Some(Phase::Confirmed)).count() as i64;
    let cancelled = phases.values().filter(|phase| **phase == Some(Phase::Cancelled)).count();
    assert!(confirmed > 8 && cancelled > 4, "{confirmed} confirmed, {cancelled} cancelled");
    let (seats, coupons) = (connect(&all.urls.seats).await, connect(&all.urls.coupons).await);
    for (n, phase) in &phases {
        let is_confirmed = *phase == Some(Phase::Confirmed);
        let id: uuid::Uuid = requests[n].id.parse().unwrap();
        let (seat, coupon) = (format!("seat-{n}"), format!("coupon-{n}"));
        let row = seats.query_one("SELECT taken_by, sold FROM seat WHERE seat = $1", &[&seat]).await.unwrap();
        let taken: (Option<uuid::Uuid>, bool) = (row.get(0), row.get(1));
        assert_eq!(taken, (is_confirmed.then_some(id), is_confirmed), "{seat}, {phase:?}");
        let row =
            coupons.query_one("SELECT remaining FROM coupon WHERE name = $1", &[&coupon]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 2 - i32::from(is_confirmed), "{coupon}, {phase:?}");
    }
    for fences in [&seats, &coupons] {
        let open = fences.query_one("SELECT count(*) FROM tcc_fence WHERE state = 1", &[]).await.unwrap();
        assert_eq!(open.get::<_, i64>(0), 0, "nothing is left open");
    }
    assert_eq!(client.balances(&alice).await, (10_000 - PRICE * confirmed, 0));
    assert_eq!(client.balances(&bob).await, (PRICE * confirmed, 0));
    client.audit_is_clean().await;
}
