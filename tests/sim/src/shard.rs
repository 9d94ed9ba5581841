//! A shard in memory: the real rules of the ledger on tables that nothing is lost from, behind a wire on which everything can
//! go wrong.

use crate::{
    bugs::Bug,
    faults::{Branches, Fault, Step},
    world::World,
};
use futures::future::BoxFuture;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tcc_core::{
    AccountId, BUCKETS, Currency, FenceState, Operation, Outcome, Role, Timestamp, TransactionId, bucket_of,
    descriptor::{CREDIT, DEBIT},
};
use tcc_ledger::{
    Account, AccountState, BranchRow, PostingKind,
    books::{Answer, Books, Fence, FenceKey, NewFence, Op, Posting, Writes},
};
use tcc_participant::{Call, Participant};
use tokio::time::sleep;

/// The tables of a shard.
pub struct Shard {
    bug: Option<Bug>,
    buckets: Arc<HashSet<u16>>,
    /// Its accounts.
    pub accounts: BTreeMap<AccountId, Account>,
    /// Its fences.
    pub fences: BTreeMap<FenceKey, FenceRow>,
    /// Its journal.
    pub postings: Vec<Posting>,
}

/// A fence with what is stored beside it.
#[derive(Debug, Clone)]
pub struct FenceRow {
    /// The fence.
    pub fence: Fence,
    role: Role,
    account: AccountId,
    amount: i64,
    /// When it was written.
    pub fenced_at: Timestamp,
}

/// How many accounts each shard has.
pub const ACCOUNTS: usize = 4;
/// What each account begins with.
pub const FUNDS: i64 = 400;

impl Shard {
    /// A shard with some accounts.
    #[must_use]
    pub fn new(number: u16, now: Timestamp, bug: Option<Bug>) -> Self {
        let account = Account {
            currency: gold(),
            available: FUNDS,
            held: 0,
            state: AccountState::Open,
            version: 0,
            posted_at: now,
            created_at: now,
        };
        Self {
            bug,
            buckets: Arc::new((0..BUCKETS).filter(|bucket| bucket % 2 == number).collect()),
            accounts: accounts(number).into_iter().map(|id| (id, account.clone())).collect(),
            fences: BTreeMap::new(),
            postings: Vec::new(),
        }
    }

    /// Which buckets it serves.
    #[must_use]
    pub fn buckets(&self) -> HashSet<u16> {
        (*self.buckets).clone()
    }

    /// Does an operation, in one local transaction.
    pub fn run(&mut self, op: &Op, now: Timestamp) -> Answer {
        let mut books = Books::new(Arc::clone(&self.buckets), now);
        if let Op::Call(call) = op {
            let id = call.transaction.id;
            for (key, row) in self.fences.range((id, 0)..=(id, u16::MAX)) {
                let fence = Fence { state: self.seen(row, call.operation), ..row.fence.clone() };
                books.read_fence(*key, fence, row.role, row.account.clone(), row.amount);
            }
            for branch in &call.branches {
                let id = &call.transaction.leg(*branch).expect("a hold is the ledger's").account;
                if let Some(account) = self.accounts.get(id) {
                    books.read_account(id.clone(), account.clone());
                }
            }
        }
        let answer = books.decide(op);
        let mut writes = books.into_writes();
        self.spoil(&mut writes);
        let Writes { new_fences, moved_fences, changed_accounts, postings, .. } = writes;
        for new in new_fences {
            let NewFence { key, fence, role, account, amount } = new;
            self.fences.insert(key, FenceRow { fence, role, account, amount, fenced_at: now });
        }
        for (key, state) in moved_fences {
            if let Some(row) = self.fences.get_mut(&key) {
                row.fence.state = state;
            }
        }
        for (id, account, _) in changed_accounts {
            self.accounts.insert(id, account);
        }
        self.postings.extend(postings);
        answer
    }

    /// The state of a fence, as an operation sees it.
    fn seen(&self, row: &FenceRow, operation: Operation) -> FenceState {
        let is_pay = operation == Operation::Confirm && row.role == Role::Credit;
        match (self.bug, row.fence.state) {
            (Some(Bug::NoFenceOnPay), FenceState::Confirmed) if is_pay => FenceState::Tried,
            (Some(Bug::VetoIsNotSticky), FenceState::Vetoed(_)) if is_pay => FenceState::Tried,
            (_, state) => state,
        }
    }

    fn spoil(&self, writes: &mut Writes) {
        match self.bug {
            Some(Bug::CancelWithoutTombstone) => {
                writes.new_fences.retain(|new| new.fence.state != FenceState::Stopped);
            }
            Some(Bug::FenceApartFromEffect) if self.fences.len().is_multiple_of(7) => {
                writes.changed_accounts.clear();
                writes.postings.clear();
            }
            Some(Bug::AmountIsCut) => {
                for posting in writes.postings.iter_mut().filter(|posting| posting.amount > 31) {
                    let cut = posting.amount - (posting.amount & 31);
                    for (id, account, _) in &mut writes.changed_accounts {
                        if *id == posting.account && posting.kind == PostingKind::Pay {
                            account.available -= cut;
                            posting.available_after -= cut;
                            posting.amount &= 31;
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// The fences of a transaction, as the sweep reads them.
    #[must_use]
    pub fn branches_of(&self, id: TransactionId) -> Vec<BranchRow> {
        let rows = self.fences.range((id, 0)..=(id, u16::MAX));
        rows.map(|((transaction, branch), row)| BranchRow {
            transaction: *transaction,
            branch: *branch,
            role: row.role,
            state: row.fence.state,
            account: row.account.as_str().to_owned(),
            amount: row.amount,
            descriptor: row.fence.descriptor.clone(),
            age_us: 0,
        })
        .collect()
    }

    /// Blocks an account, or lets it go on.
    pub fn toggle(&mut self, account: usize) {
        let index = account % self.accounts.len();
        if let Some(account) = self.accounts.values_mut().nth(index) {
            account.state = match account.state {
                AccountState::Open => AccountState::Blocked,
                _ => AccountState::Open,
            };
        }
    }

    /// Lets every account go on.
    pub fn unblock_all(&mut self) {
        self.accounts.values_mut().for_each(|account| account.state = AccountState::Open);
    }
}

/// The one currency.
#[must_use]
pub fn gold() -> Currency {
    Currency::parse("GOLD").expect("a currency")
}

/// A shard's name.
#[must_use]
pub fn name(shard: usize) -> String {
    format!("shard-{shard}")
}

/// A shard's accounts.
#[must_use]
pub fn accounts(shard: u16) -> Vec<AccountId> {
    let id = |n| AccountId::parse(&format!("user-{n}")).expect("an account id");
    (0..).map(id).filter(|id| bucket_of(id) % 2 == shard).take(ACCOUNTS).collect()
}

/// The wire from an instance to a shard.
pub struct Wire {
    /// Where everything is.
    pub world: Arc<World>,
    /// Who asks.
    pub instance: usize,
    /// Which shard.
    pub shard: usize,
    /// Its name.
    pub name: String,
}

impl Wire {
    fn run(world: &World, shard: usize, call: &Call) -> Vec<Outcome> {
        let now = world.now();
        match world.shard(shard).run(&Op::Call(call.clone()), now) {
            Answer::Outcomes(outcomes) => outcomes,
            other => vec![Outcome::Failed(format!("{other:?}"))],
        }
    }

    fn later(&self, call: &Call) {
        let (world, shard, call) = (Arc::clone(&self.world), self.shard, call.clone());
        tokio::spawn(async move {
            world.while_up_to(10_000).await;
            Self::run(&world, shard, &call);
            world.note("late", Some(call.transaction.id));
        });
    }

    async fn ask(&self, call: Call) -> Vec<Outcome> {
        let world = &self.world;
        let unknown = || match world.has(Bug::UnknownIsDone) {
            true => vec![Outcome::Done; call.branches.len()],
            false => vec![Outcome::Unknown("no answer".into())],
        };
        world.alive(self.instance).await;
        world.while_up_to(4).await;
        if !world.shard_answers(self.shard) {
            return unknown();
        }
        match world.fault(Step::Ask(call.operation, branches(&call.branches))) {
            None => {}
            Some(Fault::Before) => return unknown(),
            Some(Fault::After) => {
                Self::run(world, self.shard, &call);
                return unknown();
            }
            Some(Fault::Late) => {
                self.later(&call);
                return unknown();
            }
            Some(Fault::Twice) => self.later(&call),
            Some(Fault::Slow) => {
                let seconds = world.chance(|rng| rng.u64(1..12));
                sleep(Duration::from_secs(seconds)).await;
            }
            Some(Fault::CrashBefore) => {
                world.kill(self.instance);
                std::future::pending::<()>().await;
            }
            Some(Fault::CrashAfter) => {
                Self::run(world, self.shard, &call);
                world.kill(self.instance);
                std::future::pending::<()>().await;
            }
        }
        let outcomes = Self::run(world, self.shard, &call);
        world.note("answer", Some(call.transaction.id));
        world.while_up_to(3).await;
        world.alive(self.instance).await;
        outcomes
    }
}

impl Participant for Wire {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_reachable(&self) -> bool {
        self.world.shard_answers(self.shard)
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Vec<Outcome>> {
        Box::pin(self.ask(call))
    }
}

fn branches(branches: &[u16]) -> Branches {
    match branches {
        [CREDIT] => Branches::Pivot,
        [DEBIT] => Branches::Debit,
        _ => Branches::Both,
    }
}

/// The mistake of a janitor who knows nothing of pivots.
pub async fn release_by_time_out(world: Arc<World>) {
    loop {
        sleep(Duration::from_secs(2)).await;
        let ids: Vec<TransactionId> = world.db().rows.keys().copied().collect();
        for id in ids {
            let transaction = Arc::clone(&world.db().rows[&id].transaction);
            for shard in 0..world.shards() {
                let is_tried = |row: &FenceRow| row.fence.state == FenceState::Tried;
                if world.shard(shard).fences.get(&(id, DEBIT)).is_some_and(is_tried)
                    && world.chance(|rng| rng.u8(0..20)) == 0
                {
                    let transaction = Arc::clone(&transaction);
                    let call = Call { operation: Operation::Cancel, transaction, branches: vec![DEBIT] };
                    Wire::run(&world, shard, &call);
                }
            }
        }
    }
}
