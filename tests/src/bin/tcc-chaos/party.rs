//! Those who take part beside the shards: seats, coupons in Python, and `tcc-ledgerd` on one of the shards, each a process that
//! fails; and clients that want tickets, which all of them take part in.
//!
//! A ticket is money from one account for another, a coupon and a seat, which decides. In the end each of them is there as a
//! whole or not at all.

use crate::{
    clients::{account, is_unknown},
    site::taken,
    system::{SHARDS, System},
};
use anyhow::Context as _;
use jiff::SignedDuration;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tcc_coordinator::{
    config::{Config, ParticipantConfig},
    dev::{Cluster, Options},
};
use tcc_proto::v1::Phase;
use tcc_tests::{
    connect,
    examples::{COUPONS, Coupons, Example, House, SEATS},
    parties::{call, credit, debit, due_in},
    process::Tccd,
};
use tokio::{sync::Mutex, task::block_in_place, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The shard on which `tcc-ledgerd` works.
pub const APART: usize = SHARDS - 1;
/// So many seats and coupons there are.
const TICKETS: u32 = 3_000;
/// So many clients want one at a time.
const CLIENTS: usize = 8;

/// A process beside the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The seats.
    Seats,
    /// The coupons.
    Coupons,
    /// The ledger of one shard.
    Ledgerd,
}

/// All of them. Their own databases do not fail.
pub struct Parties {
    cluster: Cluster,
    seats: Mutex<Option<Example>>,
    coupons: Mutex<Option<Example>>,
    ledgerd: Mutex<Tccd>,
    /// Where the seats and the coupons listen.
    listens: [String; 2],
}

impl Parties {
    /// Starts them. `ledger` has the databases of the ledger.
    pub async fn start(ledger: &Config) -> anyhow::Result<Self> {
        let options = Options { settings: vec!["fsync=off".into()], ..Options::default() };
        let cluster = block_in_place(|| Cluster::start(&options)).context("starting a server")?;
        let admin = connect(&cluster.url()).await;
        for (name, tables) in [("seats", SEATS), ("coupons", COUPONS)] {
            admin.batch_execute(&format!("CREATE DATABASE {name}")).await?;
            connect(&url(&cluster, name)).await.batch_execute(tables).await?;
        }
        let seats = House::start(&url(&cluster, "seats"), "127.0.0.1:0").await?;
        let coupons = Coupons::start(&url(&cluster, "coupons"), "127.0.0.1:0").await?;
        let ledgerd = Tccd::ledgerd(ledger, &format!("shard-{APART}")).await?;
        let listens = [seats.listens(), coupons.listens()];
        let (seats, coupons) = (Mutex::new(Some(seats)), Mutex::new(Some(coupons)));
        Ok(Self { cluster, seats, coupons, ledgerd: Mutex::new(ledgerd), listens })
    }

    /// Makes them known to a `tccd`.
    pub async fn join(&self, config: &mut Config) {
        let [seats, coupons] = &self.listens;
        let quick = |name: &str, listens: &str| ParticipantConfig {
            deadline_ms: 3_000,
            ..ParticipantConfig::new(name, &format!("http://{listens}"))
        };
        config.participants =
            vec![ParticipantConfig { may_veto: true, ..quick("seats", seats) }, quick("coupons", coupons)];
        self.ledgerd.lock().await.url().clone_into(&mut config.shards[APART].address);
    }

    /// One of them is killed, and started again after a while.
    pub async fn kill(&self, party: Party, after: Duration) -> anyhow::Result<()> {
        match party {
            Party::Ledgerd => {
                let mut ledgerd = taken(&self.ledgerd).await?;
                ledgerd.kill().await?;
                sleep(after).await;
                // Its databases may be down at the moment.
                while ledgerd.restart().await.is_err() {
                    sleep(Duration::from_millis(200)).await;
                }
                Ok(())
            }
            Party::Seats | Party::Coupons => {
                let place = if party == Party::Seats { &self.seats } else { &self.coupons };
                let mut example = taken(place).await?;
                example.take().context("it does not run")?.kill().await?;
                sleep(after).await;
                *example = Some(self.example(party).await?);
                Ok(())
            }
        }
    }

    /// One of them answers nothing for a while.
    pub async fn freeze(&self, party: Party, lasts: Duration) -> anyhow::Result<()> {
        match party {
            Party::Ledgerd => {
                let ledgerd = taken(&self.ledgerd).await?;
                ledgerd.signal("STOP").await?;
                sleep(lasts).await;
                ledgerd.signal("CONT").await
            }
            Party::Seats | Party::Coupons => {
                let place = if party == Party::Seats { &self.seats } else { &self.coupons };
                let example = taken(place).await?;
                let example = example.as_ref().context("it does not run")?;
                example.signal("STOP").await?;
                sleep(lasts).await;
                example.signal("CONT").await
            }
        }
    }

    async fn example(&self, party: Party) -> anyhow::Result<Example> {
        let [seats, coupons] = &self.listens;
        match party {
            Party::Seats => House::start(&url(&self.cluster, "seats"), seats).await,
            Party::Coupons | Party::Ledgerd => Coupons::start(&url(&self.cluster, "coupons"), coupons).await,
        }
    }

    /// All of them run.
    pub async fn mend(&self) -> anyhow::Result<()> {
        for (party, place) in [(Party::Seats, &self.seats), (Party::Coupons, &self.coupons)] {
            let mut example = place.lock().await;
            if example.is_none() {
                *example = Some(self.example(party).await?);
            }
        }
        let mut ledgerd = self.ledgerd.lock().await;
        if ledgerd.has_ended()? { ledgerd.restart().await } else { Ok(()) }
    }
}

fn url(cluster: &Cluster, name: &str) -> String {
    cluster.url().replace("dbname=postgres", &format!("dbname={name}"))
}

/// What a client asked for, and what it was told.
#[derive(Debug, Clone)]
pub struct Ticket {
    id: String,
    /// Which seat and which coupon.
    n: u32,
    held: bool,
    told: Option<Phase>,
    asked_cancel: bool,
}

/// Wants tickets until told to stop, or until they are sold out.
pub async fn want(system: System, seed: u64, stop: CancellationToken) -> Vec<Ticket> {
    let next = Arc::new(AtomicU32::new(0));
    let buyers = (0..CLIENTS).map(|buyer| {
        let (system, next, stop) = (system.clone(), Arc::clone(&next), stop.clone());
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(77).wrapping_add(buyer as u64));
        tokio::spawn(async move {
            let mut tickets = Vec::new();
            while !stop.is_cancelled() {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= TICKETS {
                    break;
                }
                tickets.push(buy(&system, n, &mut rng).await);
            }
            tickets
        })
    });
    let mut tickets = Vec::new();
    for buyer in buyers.collect::<Vec<_>>() {
        tickets.extend(buyer.await.expect("a buyer does not panic"));
    }
    tickets
}

async fn buy(system: &System, n: u32, rng: &mut fastrand::Rng) -> Ticket {
    let (payer, payee) = (rng.usize(0..SHARDS), rng.usize(0..SHARDS));
    let price = rng.i64(1..500);
    let branches = vec![
        debit(&account(payer, rng.usize(0..10)), price),
        credit(&account(payee, rng.usize(10..20)), price),
        call("coupons", &format!("coupon-{n}")),
        call("seats", &format!("seat-{n}")),
    ];
    let request = due_in(SignedDuration::from_millis(rng.i64(500..6_000)), branches);
    let mut ticket = Ticket { id: request.id.clone(), n, held: false, told: None, asked_cancel: false };
    for _ in 0..8 {
        let mut client = system.client(rng.usize(0..system.instances.len()));
        match client.begin(&request).await {
            Ok(transaction) => {
                ticket.hear(transaction.phase());
                break;
            }
            Err(status) if is_unknown(&status) => sleep(Duration::from_millis(rng.u64(0..300))).await,
            Err(_) => break,
        }
    }
    if rng.u8(0..3) == 0 {
        sleep(Duration::from_millis(rng.u64(0..400))).await;
        ticket.asked_cancel = true;
        let mut client = system.client(rng.usize(0..system.instances.len()));
        if let Ok(transaction) = client.cancel_transaction(&ticket.id).await {
            ticket.hear(transaction.phase());
        }
    }
    ticket
}

impl Ticket {
    fn hear(&mut self, phase: Phase) {
        self.held |= phase == Phase::Held;
        if matches!(phase, Phase::Confirmed | Phase::Cancelled) {
            self.told = Some(phase);
        }
    }
}

/// What became of the tickets.
#[derive(Debug, Default)]
pub struct Tickets {
    /// How many are sold: paid, with a coupon, for a seat.
    pub sold: usize,
    /// How many are not there as a whole, or not as their clients were told.
    pub broken: usize,
    /// How many seats and coupons wait for transactions of which the coordinator's database has lost the first row.
    pub left: usize,
}

/// Phases as in the table.
const CONFIRMED: i16 = 4;
const CANCELLED: i16 = 6;

/// Compares all of them with the databases. Everything is final.
pub async fn check(system: &System, parties: &Parties, tickets: &[Ticket]) -> anyhow::Result<Tickets> {
    let coordinator = connect(&system.urls[0]).await;
    let seats = connect(&url(&parties.cluster, "seats")).await;
    let coupons = connect(&url(&parties.cluster, "coupons")).await;
    let mut found = Tickets::default();
    for ticket in tickets {
        let id: Uuid = ticket.id.parse().context("an id")?;
        let phase = coordinator.query_opt("SELECT phase FROM transaction WHERE id = $1", &[&id]).await?;
        let phase: Option<i16> = phase.map(|row| row.get(0));
        let seat = format!("seat-{}", ticket.n);
        let row = seats.query_one("SELECT taken_by, sold FROM seat WHERE seat = $1", &[&seat]).await?;
        let (has_seat, is_sold) = (row.get::<_, Option<Uuid>>(0) == Some(id), row.get::<_, bool>(1));
        let coupon = format!("coupon-{}", ticket.n);
        let row = coupons.query_one("SELECT remaining FROM coupon WHERE name = $1", &[&coupon]).await?;
        let has_coupon = row.get::<_, i32>(0) == 1;
        let told = ticket.told.map(|told| if told == Phase::Confirmed { CONFIRMED } else { CANCELLED });
        let is_whole = match phase {
            Some(CONFIRMED) => has_seat && is_sold && has_coupon,
            Some(CANCELLED) => !has_seat && !is_sold && !has_coupon && (!ticket.held || ticket.asked_cancel),
            Some(_) => false,
            // Nobody was told of it.
            None => !is_sold && !ticket.held && told.is_none(),
        };
        found.sold += usize::from(phase == Some(CONFIRMED));
        found.left += usize::from(phase.is_none() && (has_seat || has_coupon));
        if !is_whole || told.is_some_and(|told| Some(told) != phase) {
            found.broken += 1;
            println!("{ticket:?}: phase {phase:?}, seat {has_seat} {is_sold}, coupon {has_coupon}");
        }
    }
    Ok(found)
}
