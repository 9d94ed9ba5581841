//! The rules of the ledger as a pure function: the rows that were read and locked, an operation, its answer and the rows
//! that it leaves.
//!
//! A batch is decided one operation after the other on the same [`Books`], so an account touched by a thousand operations
//! is read once and written once, and no operation sees half of another. An operation that is refused leaves nothing but
//! its fence. Blocked, closed or nearly overflowing accounts say no to Try, and veto at the pivot; once a debit is held,
//! its release, its settlement and a credit that is not the pivot always apply.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use tcc_core::{
    AccountId, Admission, Currency, FenceState, Leg, Operation, Outcome, Refusal, Role, Timestamp,
    Transaction, TransactionId, bucket_of, decision::permits_next, fence::admit, money::BALANCE_LIMIT,
};
use tcc_participant::Call;

/// An account's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What it is denominated in.
    pub currency: Currency,
    /// What can be spent, in minor units.
    pub available: i64,
    /// What is frozen in its outgoing holds, in minor units.
    pub held: i64,
    /// What it may take part in.
    pub state: AccountState,
    /// The number of its postings.
    pub version: i64,
    /// When the newest posting was recorded.
    pub posted_at: Timestamp,
    /// When it was opened.
    pub created_at: Timestamp,
}

/// What an account may take part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountState {
    /// Everything.
    Open,
    /// No new hold, and no payment to it.
    Blocked,
    /// As blocked, for good.
    Closed,
}

/// What a posting moves from where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PostingKind {
    /// World to available.
    Issue = 1,
    /// Available to world.
    Burn = 2,
    /// Available to escrow.
    Hold = 3,
    /// Escrow to available.
    Release = 4,
    /// Escrow to clearing.
    Settle = 5,
    /// Clearing to available.
    Pay = 6,
}

/// A fence's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// What it admits next.
    pub state: FenceState,
    /// The descriptor of the transaction that made it.
    pub descriptor: Vec<u8>,
}

/// One caller's part of a batch.
#[derive(Debug, Clone)]
pub enum Op {
    /// Try, confirm or cancel branches of a transaction.
    Call(Call),
    /// Open an account.
    Open(AccountId, Currency),
    /// Block, unblock or close an account.
    SetState(AccountId, AccountState),
    /// Create or destroy units: a transaction of one branch, which takes effect at once.
    Issue(Arc<Transaction>),
}

/// What that caller gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Op::Call`], one for each branch that was asked.
    Outcomes(Vec<Outcome>),
    /// To [`Op::Open`]: the account, new or as it was. Its currency may be another one.
    Account(Account),
    /// To [`Op::SetState`]: the account as it is now, if there is one. If it is not in the state that was asked for, it cannot be.
    Stands(Option<Account>),
    /// To [`Op::Issue`]: the outcome, and the account after it unless there is none.
    Issued(Outcome, Option<Account>),
    /// The operation cannot be done here: the account belongs to another shard, or the books contradict themselves.
    Broken(String),
    /// Somebody else has held a row that the operation needs for long. It was not done; do it again later.
    LeftOut,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posting {
    /// Whose.
    pub account: AccountId,
    /// Which of that account's.
    pub version: i64,
    /// Because of which transaction.
    pub transaction: TransactionId,
    /// And which of its branches.
    pub branch: u16,
    /// From where to where.
    pub kind: PostingKind,
    /// How much.
    pub amount: i64,
    /// The account's balances after it.
    pub available_after: i64,
    /// See above.
    pub held_after: i64,
    /// The time of its fence's change, with which it is committed; or that of the account's posting before it, if that is later.
    pub recorded_at: Timestamp,
}

/// The branch number of an issue's or a burn's fence: one that no branch of a hold has, so that an id of both is no clash.
pub const ISSUE: u16 = i16::MAX as u16;

/// Identifies a fence.
pub type FenceKey = (TransactionId, u16);

/// The rows of a batch: as they were read, and as the operations so far left them.
#[derive(Debug)]
pub struct Books {
    /// Which buckets of accounts this shard serves.
    buckets: Arc<HashSet<u16>>,
    /// The time of the batch, by the server's clock.
    now: Timestamp,
    accounts: BTreeMap<AccountId, Entry<Account>>,
    fences: BTreeMap<FenceKey, FenceEntry>,
    postings: Vec<Posting>,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    read: Option<T>,
    now: T,
}

#[derive(Debug, Clone)]
struct FenceEntry {
    /// The state that was read; `None` if the fence was absent.
    read: Option<FenceState>,
    now: Fence,
    role: Role,
    account: AccountId,
    amount: i64,
}

/// What a batch leaves to be written.
#[derive(Debug)]
pub struct Writes {
    /// The time of it all.
    pub now: Timestamp,
    /// Fences that were absent, in the order of their keys.
    pub new_fences: Vec<NewFence>,
    /// Fences that were `tried` when read, and their state now.
    pub moved_fences: Vec<(FenceKey, FenceState)>,
    /// Accounts that were absent, in the order of their ids.
    pub new_accounts: Vec<(AccountId, Account)>,
    /// Accounts that changed, each as it is now and as it was read.
    pub changed_accounts: Vec<(AccountId, Account, Account)>,
    /// New lines of the journal.
    pub postings: Vec<Posting>,
}

/// A fence to be inserted.
#[derive(Debug)]
pub struct NewFence {
    /// Its key.
    pub key: FenceKey,
    /// Its row.
    pub fence: Fence,
    /// What the branch does.
    pub role: Role,
    /// To which account.
    pub account: AccountId,
    /// How much.
    pub amount: i64,
}

impl Books {
    /// Books of a shard that serves these buckets, with no row read yet. `now` is the time of the batch, by the server's clock.
    #[must_use]
    pub fn new(buckets: Arc<HashSet<u16>>, now: Timestamp) -> Self {
        Self { buckets, now, accounts: BTreeMap::new(), fences: BTreeMap::new(), postings: Vec::new() }
    }

    /// Takes an account's row that was read and locked.
    pub fn read_account(&mut self, id: AccountId, account: Account) {
        self.accounts.insert(id, Entry { read: Some(account.clone()), now: account });
    }

    /// Takes a fence's row that was read and locked.
    pub fn read_fence(&mut self, key: FenceKey, fence: Fence, role: Role, account: AccountId, amount: i64) {
        self.fences.insert(key, FenceEntry { read: Some(fence.state), now: fence, role, account, amount });
    }

    /// Does one operation.
    pub fn decide(&mut self, op: &Op) -> Answer {
        match op {
            Op::Call(call) => self.call(call),
            Op::Open(id, currency) => self.open(id, currency),
            Op::SetState(id, state) => self.set_state(id, *state),
            Op::Issue(transaction) => self.issue(transaction),
        }
    }

    /// What is to be written, once every operation is done.
    #[must_use]
    pub fn into_writes(self) -> Writes {
        let mut writes = Writes {
            now: self.now,
            new_fences: Vec::new(),
            moved_fences: Vec::new(),
            new_accounts: Vec::new(),
            changed_accounts: Vec::new(),
            postings: self.postings,
        };
        for (id, entry) in self.accounts {
            match entry.read {
                None => writes.new_accounts.push((id, entry.now)),
                Some(read) if read != entry.now => writes.changed_accounts.push((id, entry.now, read)),
                Some(_) => {}
            }
        }
        for (key, entry) in self.fences {
            let FenceEntry { read, now, role, account, amount } = entry;
            match read {
                None => writes.new_fences.push(NewFence { key, fence: now, role, account, amount }),
                Some(state) if state != now.state => writes.moved_fences.push((key, now.state)),
                Some(_) => {}
            }
        }
        writes
    }

    /// The branches of a call in their order, each only if the one before it permits.
    fn call(&mut self, call: &Call) -> Answer {
        let mut outcomes = Vec::with_capacity(call.branches.len());
        for index in &call.branches {
            match self.branch(&call.transaction, *index, call.operation) {
                Ok(outcome) => {
                    let goes_on = permits_next(call.operation, &outcome);
                    outcomes.push(outcome);
                    if !goes_on {
                        break;
                    }
                }
                Err(broken) => return Answer::Broken(broken),
            }
        }
        Answer::Outcomes(outcomes)
    }

    fn branch(
        &mut self,
        transaction: &Transaction,
        index: u16,
        operation: Operation,
    ) -> Result<Outcome, String> {
        let branch = transaction.leg(index).ok_or_else(|| format!("branch {index} is not the ledger's"))?;
        self.check_bucket(&branch.account)?;
        let key = (transaction.id, index);
        let fence = self.fences.get(&key);
        if fence.is_some_and(|fence| fence.now.descriptor != transaction.encoded) {
            return Ok(Outcome::OtherDescriptor);
        }
        let (state, outcome) = match admit(fence.map(|fence| fence.now.state), operation) {
            Admission::Answer(outcome) => return Ok(outcome),
            Admission::Stop => (FenceState::Stopped, Outcome::Done),
            Admission::Run => match operation {
                Operation::Try => match self.reserve(transaction, branch, key)? {
                    Ok(()) => (FenceState::Tried, Outcome::Done),
                    Err(refusal) => (FenceState::Refused(refusal), Outcome::Refused(refusal)),
                },
                Operation::Confirm => {
                    match self.finish(branch, key, transaction.descriptor.pivot == index)? {
                        Ok(()) => (FenceState::Confirmed, Outcome::Done),
                        Err(refusal) => (FenceState::Vetoed(refusal), Outcome::Vetoed(refusal)),
                    }
                }
                Operation::Cancel => {
                    self.release(branch, key)?;
                    (FenceState::Cancelled, Outcome::Done)
                }
            },
        };
        self.set_fence(transaction, branch, index, state);
        Ok(outcome)
    }

    /// Try. The outer error is broken books, the inner one a refusal, before which nothing was changed.
    fn reserve(
        &mut self,
        transaction: &Transaction,
        branch: &Leg,
        key: FenceKey,
    ) -> Result<Result<(), Refusal>, String> {
        let creates = |(currency, sum): (&Currency, i128)| (sum > 0).then(|| format!("{sum} {currency}"));
        if branch.role == Role::Credit
            && let Some(what) = transaction.descriptor.imbalance().into_iter().find_map(creates)
        {
            return Err(format!("its credits are more than its debits: it would create {what}"));
        }
        if let Some(refusal) = self.refusal(branch) {
            return Ok(Err(refusal));
        }
        match branch.role {
            Role::Debit => self.post(branch, key, PostingKind::Hold).map(Ok),
            Role::Credit => Ok(Ok(())),
            Role::Issue | Role::Burn => {
                Err("an issue or a burn takes effect at once; it cannot be tried".into())
            }
        }
    }

    /// Confirm. Only a credit that is the pivot may still say no.
    fn finish(&mut self, branch: &Leg, key: FenceKey, is_pivot: bool) -> Result<Result<(), Refusal>, String> {
        if branch.role == Role::Debit {
            return self.post(branch, key, PostingKind::Settle).map(Ok);
        }
        if is_pivot && let Some(refusal) = self.refusal(branch) {
            return Ok(Err(refusal));
        }
        self.post(branch, key, PostingKind::Pay).map(Ok)
    }

    fn release(&mut self, branch: &Leg, key: FenceKey) -> Result<(), String> {
        match branch.role {
            Role::Debit => self.post(branch, key, PostingKind::Release),
            // A credit reserved nothing.
            Role::Credit | Role::Issue | Role::Burn => Ok(()),
        }
    }

    fn open(&mut self, id: &AccountId, currency: &Currency) -> Answer {
        if let Err(broken) = self.check_bucket(id) {
            return Answer::Broken(broken);
        }
        let now = self.now;
        let entry = self.accounts.entry(id.clone()).or_insert_with(|| Entry {
            read: None,
            now: Account {
                currency: currency.clone(),
                available: 0,
                held: 0,
                state: AccountState::Open,
                version: 0,
                posted_at: now,
                created_at: now,
            },
        });
        Answer::Account(entry.now.clone())
    }

    /// What is closed stays closed, and is closed only when it is empty: nothing could ever leave it.
    fn set_state(&mut self, id: &AccountId, state: AccountState) -> Answer {
        if let Err(broken) = self.check_bucket(id) {
            return Answer::Broken(broken);
        }
        Answer::Stands(self.accounts.get_mut(id).map(|entry| {
            let account = &mut entry.now;
            let is_empty = account.available == 0 && account.held == 0;
            let may_change = match state {
                AccountState::Closed => is_empty,
                AccountState::Open | AccountState::Blocked => true,
            };
            if account.state != AccountState::Closed && may_change {
                account.state = state;
            }
            account.clone()
        }))
    }

    fn issue(&mut self, transaction: &Transaction) -> Answer {
        let Some(branch) = transaction.leg(0) else {
            return Answer::Broken("an issue has one branch, on an account".into());
        };
        if let Err(broken) = self.check_bucket(&branch.account) {
            return Answer::Broken(broken);
        }
        let key = (transaction.id, ISSUE);
        let outcome = match self.fences.get(&key) {
            Some(fence) if fence.now.descriptor != transaction.encoded => Outcome::OtherDescriptor,
            Some(fence) => match fence.now.state {
                FenceState::Refused(refusal) => Outcome::Refused(refusal),
                _ => Outcome::Done,
            },
            None => match self.refusal(branch) {
                Some(refusal) => {
                    self.set_fence(transaction, branch, ISSUE, FenceState::Refused(refusal));
                    Outcome::Refused(refusal)
                }
                None => {
                    let kind = if branch.role == Role::Burn { PostingKind::Burn } else { PostingKind::Issue };
                    if let Err(broken) = self.post(branch, key, kind) {
                        return Answer::Broken(broken);
                    }
                    self.set_fence(transaction, branch, ISSUE, FenceState::Confirmed);
                    Outcome::Done
                }
            },
        };
        Answer::Issued(outcome, self.accounts.get(&branch.account).map(|entry| entry.now.clone()))
    }

    /// Why the account says no to a branch, if it does.
    fn refusal(&self, branch: &Leg) -> Option<Refusal> {
        refusal(self.accounts.get(&branch.account).map(|entry| &entry.now), branch)
    }

    /// Moves the branch's amount and writes the line for it. Changes nothing if that is impossible.
    fn post(
        &mut self,
        branch: &Leg,
        (transaction, index): FenceKey,
        kind: PostingKind,
    ) -> Result<(), String> {
        let broken =
            |what: &str| format!("{kind:?} of {} on account {}: {what}", branch.amount.get(), branch.account);
        let entry =
            self.accounts.get_mut(&branch.account).ok_or_else(|| broken("there is no such account"))?;
        let amount = branch.amount.get();
        let (available_change, held_change) = kind.change(amount);
        let add = |balance: i64, change: i64| balance.checked_add(change).filter(|sum| *sum >= 0);
        let available =
            add(entry.now.available, available_change).ok_or_else(|| broken("available out of range"))?;
        let held = add(entry.now.held, held_change).ok_or_else(|| broken("held out of range"))?;
        entry.now.available = available;
        entry.now.held = held;
        entry.now.version += 1;
        entry.now.posted_at = entry.now.posted_at.max(self.now);
        self.postings.push(Posting {
            account: branch.account.clone(),
            version: entry.now.version,
            transaction,
            branch: index,
            kind,
            amount,
            available_after: available,
            held_after: held,
            recorded_at: entry.now.posted_at,
        });
        Ok(())
    }

    fn set_fence(&mut self, transaction: &Transaction, branch: &Leg, index: u16, state: FenceState) {
        let entry = self.fences.entry((transaction.id, index)).or_insert_with(|| FenceEntry {
            read: None,
            now: Fence { state, descriptor: transaction.encoded.clone() },
            role: branch.role,
            account: branch.account.clone(),
            amount: branch.amount.get(),
        });
        entry.now.state = state;
    }

    fn check_bucket(&self, account: &AccountId) -> Result<(), String> {
        if self.buckets.contains(&bucket_of(account)) {
            Ok(())
        } else {
            Err(format!("account {account} belongs to another shard"))
        }
    }
}

/// Why an account says no to a branch, if it does: it does not exist, has another currency, is not open, has less than is to
/// be taken, or would own more than an account can.
#[must_use]
pub fn refusal(account: Option<&Account>, branch: &Leg) -> Option<Refusal> {
    let Some(account) = account else { return Some(Refusal::AccountNotFound) };
    if account.currency != branch.currency {
        return Some(Refusal::CurrencyMismatch);
    }
    match account.state {
        AccountState::Open => {}
        AccountState::Blocked => return Some(Refusal::AccountBlocked),
        AccountState::Closed => return Some(Refusal::AccountClosed),
    }
    let amount = branch.amount.get();
    match branch.role {
        Role::Debit | Role::Burn if account.available < amount => Some(Refusal::InsufficientFunds),
        // In i128, where the sum of three i64 always fits.
        Role::Credit | Role::Issue
            if i128::from(account.available) + i128::from(account.held) + i128::from(amount)
                > i128::from(BALANCE_LIMIT) =>
        {
            Some(Refusal::BalanceOverflow)
        }
        _ => None,
    }
}

impl AccountState {
    /// The number in the tables: 1 to 3.
    #[must_use]
    pub fn number(self) -> i16 {
        self as i16 + 1
    }

    /// The reverse of [`AccountState::number`].
    #[must_use]
    pub fn from_number(number: i16) -> Option<Self> {
        [Self::Open, Self::Blocked, Self::Closed].into_iter().find(|state| state.number() == number)
    }
}

impl PostingKind {
    /// Every kind, in the order of its number in the tables.
    pub const ALL: [Self; 6] = [Self::Issue, Self::Burn, Self::Hold, Self::Release, Self::Settle, Self::Pay];

    /// What it does to what the account has available, and to what it holds. The table `posting_kind` says the same.
    #[must_use]
    pub fn change(self, amount: i64) -> (i64, i64) {
        match self {
            Self::Issue | Self::Pay => (amount, 0),
            Self::Burn => (-amount, 0),
            Self::Hold => (-amount, amount),
            Self::Release => (amount, -amount),
            Self::Settle => (0, -amount),
        }
    }

    /// The reverse of the number in the tables.
    #[must_use]
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as i16 == number)
    }
}

#[cfg(test)]
mod tests;
