//! What must be true in the end: of the books, of each transaction, and of what each client was told.

use crate::{client::Promise, shard::FUNDS, world::World};
use std::collections::BTreeMap;
use std::time::Duration;
use tcc_core::{AccountId, Attention, FenceState, OnMaturity, Phase, Timestamp, TransactionId};
use tcc_ledger::{PostingKind, books::Posting};
use tokio::time::sleep;

/// How long what is left may take once nothing fails any more.
const PATIENCE: Duration = Duration::from_secs(600);

/// Waits until everything is final, or should be.
pub async fn until_final(world: &World) {
    let end = world.now() + PATIENCE;
    while world.now() < end {
        let is_open = world.db().rows.values().any(|row| !row.standing.phase.is_final());
        let is_swept = (0..world.shards()).all(|shard| {
            let shard = world.shard(shard);
            let db = world.db();
            shard.fences.keys().all(|(id, _)| db.rows.contains_key(id))
        });
        if !is_open && is_swept {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Everything that is wrong.
pub async fn all(world: &World, promises: &[Promise]) -> Vec<String> {
    let mut wrong = Vec::new();
    books(world, &mut wrong);
    let asked: BTreeMap<TransactionId, &Promise> =
        promises.iter().map(|promise| (promise.transaction.id, promise)).collect();
    let ids: Vec<TransactionId> = world.db().rows.keys().copied().collect();
    for id in ids {
        if !asked.contains_key(&id) {
            wrong.push(format!("{id}: nobody asked for it"));
        }
    }
    for promise in promises {
        let id = promise.transaction.id;
        for what in transaction(world, promise) {
            wrong.push(format!("{id}: {what}"));
        }
    }
    wrong
}

/// No unit is lost or created, and every posting follows from the one before.
fn books(world: &World, wrong: &mut Vec<String>) {
    let (mut total, mut accounts, mut clearing) = (0, 0, 0);
    for shard in 0..world.shards() {
        let shard = world.shard(shard);
        let mut last: BTreeMap<AccountId, (i64, i64, i64)> = BTreeMap::new();
        for posting in &shard.postings {
            let (available, held, version) = last.get(&posting.account).copied().unwrap_or((FUNDS, 0, 0));
            let (to_available, to_held, to_clearing) = match posting.kind {
                PostingKind::Issue => (posting.amount, 0, 0),
                PostingKind::Burn => (-posting.amount, 0, 0),
                PostingKind::Hold => (-posting.amount, posting.amount, 0),
                PostingKind::Release => (posting.amount, -posting.amount, 0),
                PostingKind::Settle => (0, -posting.amount, posting.amount),
                PostingKind::Pay => (posting.amount, 0, -posting.amount),
            };
            let after = (available + to_available, held + to_held, version + 1);
            if after != (posting.available_after, posting.held_after, posting.version) {
                wrong.push(format!("{posting:?} does not follow from {:?}", (available, held, version)));
            }
            clearing += to_clearing;
            last.insert(posting.account.clone(), after);
        }
        for (id, account) in &shard.accounts {
            let (available, held, version) = last.get(id).copied().unwrap_or((FUNDS, 0, 0));
            if (account.available, account.held, account.version) != (available, held, version) {
                wrong.push(format!("{id} is not the sum of its postings"));
            }
            if account.held != 0 {
                wrong.push(format!("{} of {id} stay frozen", account.held));
            }
            total += account.available + account.held;
            accounts += 1;
        }
    }
    if (total, clearing) != (accounts * FUNDS, 0) {
        wrong.push(format!("there are {total} units instead of {}, clearing {clearing}", accounts * FUNDS));
    }
}

/// One transaction: its row, its fences, its postings, and what its client was told.
fn transaction(world: &World, promise: &Promise) -> Vec<String> {
    let mut wrong = promise.contradictions.clone();
    let transaction = &promise.transaction;
    let id = transaction.id;
    let (fences, postings) = evidence(world, id);
    let row = world.db().rows.get(&id).cloned();
    let Some(row) = row else {
        if !fences.is_empty() || promise.held || promise.told.is_some() {
            wrong.push(format!("it is unknown, with fences {fences:?}; told {:?}", promise.told));
        }
        return wrong;
    };
    let phase = row.standing.phase;
    if !phase.is_final() || row.standing.attention != Attention::None {
        wrong.push(format!("it is {phase} for ever, {:?}", row.standing.attention));
    }
    let is_paid = |state: &FenceState| *state == FenceState::Confirmed;
    let fits = match phase {
        Phase::Confirmed => fences.len() == 2 && fences.values().all(is_paid),
        _ => !fences.values().any(is_paid),
    };
    if !fits {
        wrong.push(format!("{phase} with fences {fences:?}"));
    }
    if let Some((told, cause)) = promise.told
        && told != phase
    {
        wrong.push(format!("its client was told {told} ({cause:?}), and it is {phase}"));
    }

    let due_at = transaction.descriptor.due_at;
    let is_vetoed = fences.values().any(|state| matches!(state, FenceState::Vetoed(_)));
    let is_to_be_paid = transaction.descriptor.on_maturity == OnMaturity::Confirm;
    if promise.held && !promise.asked_cancel && is_to_be_paid && !is_vetoed && phase != Phase::Confirmed {
        wrong.push(format!("its client was told HELD and never cancelled it, and it is {phase}"));
    }
    let paid: Vec<&Posting> = postings.iter().filter(|posting| posting.kind == PostingKind::Pay).collect();
    let is_early = |at: Timestamp| at < due_at || !is_to_be_paid;
    if paid.len() > 1 || paid.iter().any(|pay| is_early(pay.recorded_at) && !promise.asked_confirm) {
        wrong.push(format!("due at {due_at}, and paid: {paid:?}"));
    }
    wrong
}

/// The fences of a transaction by branch, and its postings.
fn evidence(world: &World, id: TransactionId) -> (BTreeMap<u16, FenceState>, Vec<Posting>) {
    let (mut fences, mut postings) = (BTreeMap::new(), Vec::new());
    for shard in 0..world.shards() {
        let shard = world.shard(shard);
        let range = shard.fences.range((id, 0)..=(id, u16::MAX));
        fences.extend(range.map(|((_, branch), row)| (*branch, row.fence.state)));
        postings.extend(shard.postings.iter().filter(|posting| posting.transaction == id).cloned());
    }
    (fences, postings)
}
