//! Clients that want transfers, ask again when they get no answer, and remember what they were told.

use crate::system::{SHARDS, System};
use anyhow::ensure;
use jiff::SignedDuration;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tcc_core::Timestamp;
use tcc_proto::v1::{self, OnMaturity, Phase};
use tcc_tests::{amount, from_proto, new_id, reason, time};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Accounts of each shard.
const ACCOUNTS: usize = 20;
/// What each of them begins with.
const FUNDS: i64 = 1_000_000;

/// What one client asked for, and what it was told.
#[derive(Debug, Clone)]
pub struct Promise {
    /// Its id. Of what was asked for by key it is empty until the client is told.
    pub id: String,
    /// The key that it was asked for by.
    pub key: Option<String>,
    /// When it falls due.
    pub due_at: Timestamp,
    /// It is to be released then.
    pub is_release: bool,
    /// It was told HELD.
    pub held: bool,
    /// It was told that it is refused, and why.
    pub refused: Option<String>,
    /// After it was told HELD it was told that there is no such hold.
    pub forgotten: bool,
    /// The final phase that it was told.
    pub told: Option<Phase>,
    /// It asked for the release.
    pub asked_cancel: bool,
    /// It asked for the payment.
    pub asked_confirm: bool,
    /// What it was told that contradicts itself.
    pub contradiction: Option<String>,
}

/// What all clients have to say.
pub struct Wants {
    /// What they were told.
    pub promises: Vec<Promise>,
    /// How often they asked for something, and how often they were answered: with a refusal, too.
    pub asked: u64,
    /// See above.
    pub answered: u64,
}

/// The accounts, shard by shard.
pub fn account(shard: usize, n: usize) -> String {
    let bucket = |id: &String| tcc_core::bucket_of(&tcc_core::AccountId::parse(id).expect("an account id"));
    let ids = (0..).map(|n| format!("user-{n}"));
    let mut mine = ids.filter(|id| usize::from(bucket(id)) % SHARDS == shard);
    mine.nth(n).expect("there is no end of them")
}

/// Opens the accounts. Answers how many units there are.
pub async fn open_accounts(system: &System) -> anyhow::Result<i64> {
    let mut client = system.client(0);
    for shard in 0..SHARDS {
        for n in 0..ACCOUNTS {
            client.account(&account(shard, n), FUNDS).await;
        }
    }
    Ok((SHARDS * ACCOUNTS) as i64 * FUNDS)
}

#[derive(Default)]
struct Tally {
    asked: AtomicU64,
    answered: AtomicU64,
}

/// Wants transfers until told to stop.
pub async fn want(system: System, clients: usize, seed: u64, stop: CancellationToken) -> Wants {
    let tally = Arc::new(Tally::default());
    let all: Arc<Vec<Vec<String>>> =
        Arc::new((0..SHARDS).map(|shard| (0..ACCOUNTS).map(|n| account(shard, n)).collect()).collect());
    let tasks: Vec<_> = (0..clients)
        .map(|n| {
            let client = Caller {
                system: system.clone(),
                tally: Arc::clone(&tally),
                accounts: Arc::clone(&all),
                rng: fastrand::Rng::with_seed(seed.wrapping_mul(1_000).wrapping_add(n as u64)),
            };
            tokio::spawn(client.work(stop.clone()))
        })
        .collect();
    let mut promises = Vec::new();
    for task in tasks {
        promises.extend(task.await.expect("a client does not panic"));
    }
    Wants {
        promises,
        asked: tally.asked.load(Ordering::Relaxed),
        answered: tally.answered.load(Ordering::Relaxed),
    }
}

struct Caller {
    system: System,
    tally: Arc<Tally>,
    accounts: Arc<Vec<Vec<String>>>,
    rng: fastrand::Rng,
}

impl Caller {
    async fn work(mut self, stop: CancellationToken) -> Vec<Promise> {
        let mut promises = Vec::new();
        while !stop.is_cancelled() {
            promises.push(self.transfer().await);
        }
        promises
    }

    async fn transfer(&mut self) -> Promise {
        let request = self.request();
        let mut promise = Promise {
            id: request.id.clone(),
            key: Some(request.idempotency_key.clone()).filter(|key| !key.is_empty()),
            due_at: request.due_at.as_ref().map(from_proto).expect("it has one"),
            is_release: request.on_maturity() == OnMaturity::Cancel,
            held: false,
            refused: None,
            forgotten: false,
            told: None,
            asked_cancel: false,
            asked_confirm: false,
            contradiction: None,
        };
        for _ in 0..8 {
            let mut client = self.instance();
            let answer = self.asked(client.create(&request).await);
            match answer {
                Ok(created) => {
                    promise.hear(created.hold.as_ref());
                    break;
                }
                Err(status) if is_unknown(&status) => self.pause(300).await,
                Err(status) => {
                    // Anything else was not taken at all, such as what has fallen due since it was first asked for.
                    let is_refused = status.code() == Code::FailedPrecondition;
                    promise.refused = is_refused.then(|| reason(&status));
                    break;
                }
            }
        }
        match self.rng.u8(0..10) {
            // Nobody knows what it is called.
            _ if promise.id.is_empty() => {}
            0..=2 => {
                self.pause(400).await;
                promise.asked_cancel = true;
                let mut client = self.instance();
                promise.hear_again(self.asked(client.cancel(&promise.id).await));
            }
            3 => {
                self.pause(400).await;
                promise.asked_confirm = true;
                let mut client = self.instance();
                promise.hear_again(self.asked(client.confirm(&promise.id).await));
            }
            4 => {
                self.pause(400).await;
                let mut client = self.instance();
                let get = client.holds.get_hold(v1::GetHoldRequest { id: promise.id.clone() }).await;
                let get = get.map(|answer| answer.into_inner().hold.unwrap_or_default());
                promise.hear_again(self.asked(get));
            }
            _ => {}
        }
        promise
    }

    fn request(&mut self) -> v1::CreateHoldRequest {
        let mut account = || {
            let shard = self.rng.usize(0..SHARDS);
            self.accounts[shard][self.rng.usize(0..ACCOUNTS)].clone()
        };
        let payer = account();
        let mut payee = account();
        while payee == payer {
            payee = account();
        }
        let delay = SignedDuration::from_millis(self.rng.i64(500..8_000));
        let is_release = self.rng.u8(0..5) == 0;
        let on_maturity = if is_release { OnMaturity::Cancel } else { OnMaturity::Confirm };
        let is_by_key = self.rng.u8(0..4) == 0;
        let [id, idempotency_key] =
            if is_by_key { [String::new(), new_id()] } else { [new_id(), String::new()] };
        v1::CreateHoldRequest {
            id,
            idempotency_key,
            payer,
            payee,
            amount: Some(amount(self.rng.i64(1..500))),
            due_at: Some(time(Timestamp::now() + delay)),
            on_maturity: on_maturity.into(),
            ..Default::default()
        }
    }

    fn instance(&mut self) -> tcc_tests::Client {
        let instance = self.rng.usize(0..self.system.instances.len());
        self.system.client(instance)
    }

    async fn pause(&mut self, most_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.rng.u64(0..most_ms))).await;
    }

    fn asked<T>(&self, answer: Result<T, Status>) -> Result<T, Status> {
        self.tally.asked.fetch_add(1, Ordering::Relaxed);
        let is_answered = answer.as_ref().err().is_none_or(|status| !is_unknown(status));
        self.tally.answered.fetch_add(u64::from(is_answered), Ordering::Relaxed);
        answer
    }
}

/// Whether it may have been done, or may be done when it is asked for again.
pub fn is_unknown(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Cancelled
            | Code::ResourceExhausted
    )
}

impl Promise {
    fn hear_again(&mut self, answer: Result<v1::Hold, Status>) {
        match answer {
            Ok(hold) => self.hear(Some(&hold)),
            Err(status) => self.forgotten |= self.held && status.code() == Code::NotFound,
        }
    }

    fn hear(&mut self, hold: Option<&v1::Hold>) {
        let Some(hold) = hold else { return };
        if self.id.is_empty() {
            self.id.clone_from(&hold.id);
        } else if self.id != hold.id {
            self.contradiction = Some(format!("it was told of {}", hold.id));
        }
        let phase = hold.phase();
        if !matches!(phase, Phase::Confirmed | Phase::Cancelled) {
            self.held |= phase == Phase::Held;
            return;
        }
        if let Some(told) = self.told.filter(|told| *told != phase) {
            self.contradiction = Some(format!("it was told {told:?}, and then {phase:?}"));
        }
        self.told = Some(phase);
    }
}

/// That nobody was told nothing would be no proof.
pub fn enough(promises: &[Promise]) -> anyhow::Result<()> {
    ensure!(promises.iter().any(|promise| promise.told == Some(Phase::Cancelled)), "no cancel was accepted");
    ensure!(promises.iter().any(|promise| promise.held), "no hold was accepted");
    Ok(())
}
