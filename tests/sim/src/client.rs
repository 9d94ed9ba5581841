//! Clients that want things in every order, and remember what they were told.

use crate::{
    shard::{accounts, gold},
    world::World,
};
use futures::future::join_all;
use std::{sync::Arc, time::Duration};
use tcc_coordinator::{
    engine::{EngineError, Origin},
    store::Record,
};
use tcc_core::{Amount, Cause, Descriptor, OnMaturity, Phase, Timestamp, Transaction, TransactionId};
use tokio::time::sleep;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients come within so many milliseconds.
const COME_WITHIN_MS: u64 = 60_000;

/// What one client asked for, and what it was told.
#[derive(Debug, Clone)]
pub struct Promise {
    /// What it asked for.
    pub transaction: Transaction,
    /// It was told HELD, before anything was decided.
    pub held: bool,
    /// The final phase that it was told.
    pub told: Option<(Phase, Option<Cause>)>,
    /// It asked for the release.
    pub asked_cancel: bool,
    /// It asked for the payment.
    pub asked_confirm: bool,
    /// What it was told that contradicts itself.
    pub contradictions: Vec<String>,
}

/// All clients of a world, to their ends.
pub async fn all(world: &Arc<World>, transactions: u64) -> Vec<Promise> {
    let clients = (0..transactions).map(|_| tokio::spawn(one(Arc::clone(world))));
    let clients: Vec<_> = clients.collect();
    join_all(clients).await.into_iter().map(|promise| promise.expect("a client does not panic")).collect()
}

async fn one(world: Arc<World>) -> Promise {
    world.while_up_to(COME_WITHIN_MS).await;
    let mut promise = Promise {
        transaction: transaction(&world),
        held: false,
        told: None,
        asked_cancel: false,
        asked_confirm: false,
        contradictions: Vec::new(),
    };
    promise.create(&world).await;
    let (wants, patience_ms) = world.chance(|rng| (rng.u8(0..4), if rng.bool() { 800 } else { 12_000 }));
    for _ in 0..wants {
        world.while_up_to(patience_ms).await;
        match world.chance(|rng| rng.u8(0..8)) {
            0..=2 => promise.cancel(&world).await,
            3..=4 => promise.confirm(&world).await,
            5 => promise.get(&world).await,
            6 => promise.create_other(&world).await,
            _ => promise.create(&world).await,
        }
    }
    promise
}

fn transaction(world: &World) -> Transaction {
    let now = world.now();
    let random = world.chance(|rng| std::array::from_fn(|_| rng.u8(..)));
    let id = TransactionId::mint(now, random);
    let account = |shard: u16| {
        let all = accounts(shard);
        let pick = world.chance(|rng| rng.usize(0..all.len()));
        all[pick].clone()
    };
    let (from, to) = world.chance(|rng| (rng.u16(0..2), rng.u16(0..2)));
    let payer = account(from);
    let mut payee = account(to);
    while payee == payer {
        payee = account(to);
    }
    let (amount, delay_ms, is_release) =
        world.chance(|rng| (rng.i64(1..60), rng.i64(50..20_000), rng.u8(0..4) == 0));
    let due_us = now.as_microsecond() + delay_ms * 1_000;
    let due_at = Timestamp::from_microsecond(due_us).expect("a time of this century");
    let on_maturity = if is_release { OnMaturity::Cancel } else { OnMaturity::Confirm };
    let amount = Amount::new(amount).expect("more than nothing");
    Transaction::new(id, Descriptor::hold(payer, payee, amount, gold(), due_at, on_maturity))
}

impl Promise {
    /// Asks until there is an answer, or for as long as it likes.
    async fn create(&mut self, world: &Arc<World>) {
        for _ in 0..20 {
            if let Some(instance) = world.any_instance() {
                let created =
                    instance.engine.create(self.transaction.clone(), Origin::default(), PATIENCE).await;
                match created {
                    Ok(created) => return self.hear(world, &created.record),
                    Err(EngineError::IdReused { field, .. }) => {
                        return self.contradictions.push(format!("its own body differs in {field}"));
                    }
                    Err(_) => {}
                }
            }
            if world.chance(|rng| rng.u8(0..12)) == 0 {
                return;
            }
            world.while_up_to(3_000).await;
        }
    }

    /// Asks for something else under the same id, which must be refused if the first was ever answered. (Not where the row may
    /// be lost: until the sweep has passed the id is free, and the fences, which know better, make the second one park.)
    async fn create_other(&mut self, world: &Arc<World>) {
        let is_known = (self.held || self.told.is_some()) && !world.forgets();
        let Some(instance) = world.any_instance().filter(|_| is_known) else { return };
        let descriptor = &self.transaction.descriptor;
        let (debit, credit) = descriptor.as_hold().expect("a hold");
        let amount = Amount::new(debit.amount.get() + 1).expect("more than nothing");
        let (payer, payee) = (debit.account.clone(), credit.account.clone());
        let (due_at, on_maturity) = (descriptor.due_at, descriptor.on_maturity);
        let other = Descriptor::hold(payer, payee, amount, gold(), due_at, on_maturity);
        let other = Transaction::new(self.transaction.id, other);
        match instance.engine.create(other, Origin::default(), PATIENCE).await {
            Ok(created) if created.record.standing.phase != Phase::Cancelled => {
                self.contradictions.push("its id was taken for another body".into());
            }
            _ => {}
        }
    }

    async fn cancel(&mut self, world: &Arc<World>) {
        self.asked_cancel = true;
        let Some(instance) = world.any_instance() else { return };
        match instance.engine.cancel(self.transaction.id, None, None, PATIENCE).await {
            Ok(record) => self.hear(world, &record),
            Err(EngineError::TooLate { record, .. }) => self.hear(world, &record),
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }

    async fn confirm(&mut self, world: &Arc<World>) {
        self.asked_confirm = true;
        let Some(instance) = world.any_instance() else { return };
        match instance.engine.confirm_now(self.transaction.id, None, None, PATIENCE).await {
            Ok(record) => self.hear(world, &record),
            Err(EngineError::TooLate { record, .. }) => self.hear(world, &record),
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }

    async fn get(&mut self, world: &Arc<World>) {
        let Some(instance) = world.any_instance() else { return };
        if let Ok(Some(record)) = instance.engine.store().get(self.transaction.id).await {
            self.hear(world, &record);
        }
    }

    fn hear(&mut self, world: &World, record: &Record) {
        let (phase, cause) = (record.standing.phase, record.standing.cause);
        world.note("told", Some(self.transaction.id));
        if record.transaction.encoded != self.transaction.encoded {
            self.contradictions.push("it was told of another transaction".into());
        }
        if let Some((told, _)) = self.told
            && phase.is_final()
            && told != phase
        {
            self.contradictions.push(format!("it was told {told}, and then {phase}"));
        }
        if phase.is_final() {
            self.told = Some((phase, cause));
        }
        // Of what was cancelled before and then forgotten, a late Cancel may still be under way.
        if phase == Phase::Held && !world.db().ever_cancelled.contains(&self.transaction.id) {
            self.held = true;
        }
    }
}
