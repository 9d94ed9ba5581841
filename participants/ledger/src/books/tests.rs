//! The ledger's rules against a model that is too simple to be wrong: two numbers for each account, one state for each branch.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use tcc_core::{Amount, Branch, Descriptor, OnMaturity};

const GOLD: &str = "GOLD";

fn everything() -> Arc<HashSet<u16>> {
    Arc::new((0..tcc_core::BUCKETS).collect())
}

fn name(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

fn id(n: u8) -> TransactionId {
    TransactionId::mint(Timestamp::from_second(1_790_000_000).unwrap(), [n; 10])
}

fn hold(n: u8, payer: &str, payee: &str, amount: i64) -> Arc<Transaction> {
    let descriptor = Descriptor::hold(
        name(payer),
        name(payee),
        Amount::new(amount).unwrap(),
        Currency::parse(GOLD).unwrap(),
        Timestamp::UNIX_EPOCH,
        OnMaturity::Confirm,
    );
    Arc::new(Transaction::new(id(n), descriptor))
}

fn issue(n: u8, account: &str, amount: i64) -> Op {
    let descriptor =
        Descriptor::issue(name(account), Amount::new(amount).unwrap(), Currency::parse(GOLD).unwrap());
    Op::Issue(Arc::new(Transaction::new(id(n), descriptor)))
}

fn books_with(accounts: &[(&str, i64)]) -> Books {
    let mut books = Books::new(everything(), Timestamp::UNIX_EPOCH);
    for (n, (account, amount)) in accounts.iter().enumerate() {
        books.decide(&Op::Open(name(account), Currency::parse(GOLD).unwrap()));
        if *amount > 0 {
            books.decide(&issue(200 + n as u8, account, *amount));
        }
    }
    books
}

fn call(operation: Operation, transaction: &Arc<Transaction>, branches: &[u16]) -> Op {
    Op::Call(Call { operation, transaction: Arc::clone(transaction), branches: branches.to_vec() })
}

fn outcomes(
    books: &mut Books,
    operation: Operation,
    transaction: &Arc<Transaction>,
    branches: &[u16],
) -> Vec<Outcome> {
    match books.decide(&call(operation, transaction, branches)) {
        Answer::Outcomes(outcomes) => outcomes,
        other => panic!("{other:?}"),
    }
}

fn balances(books: &Books, account: &str) -> (i64, i64) {
    let now = &books.accounts[&name(account)].now;
    (now.available, now.held)
}

#[test]
fn a_hold_freezes_then_pays() {
    let mut books = books_with(&[("alice", 100), ("bob", 0)]);
    let hold = hold(1, "alice", "bob", 30);

    assert_eq!(outcomes(&mut books, Operation::Try, &hold, &[1, 0]), [Outcome::Done, Outcome::Done]);
    assert_eq!((balances(&books, "alice"), balances(&books, "bob")), ((70, 30), (0, 0)));

    assert_eq!(outcomes(&mut books, Operation::Confirm, &hold, &[1, 0]), [Outcome::Done, Outcome::Done]);
    assert_eq!((balances(&books, "alice"), balances(&books, "bob")), ((70, 0), (30, 0)));
}

#[test]
fn a_refused_pivot_keeps_the_other_branch_from_being_asked() {
    let mut books = books_with(&[("alice", 100)]);
    let hold = hold(1, "alice", "nobody", 30);

    let answers = outcomes(&mut books, Operation::Try, &hold, &[1, 0]);

    assert_eq!(answers, [Outcome::Refused(Refusal::AccountNotFound)]);
    assert_eq!(balances(&books, "alice"), (100, 0));
}

#[test]
fn a_veto_is_sticky_and_only_the_pivot_has_one() {
    let mut books = books_with(&[("alice", 100), ("bob", 0)]);
    let hold = hold(1, "alice", "bob", 30);
    outcomes(&mut books, Operation::Try, &hold, &[1, 0]);
    books.accounts.get_mut(&name("bob")).unwrap().now.state = AccountState::Blocked;
    books.accounts.get_mut(&name("alice")).unwrap().now.state = AccountState::Closed;

    let vetoed = [Outcome::Vetoed(Refusal::AccountBlocked)];
    assert_eq!(outcomes(&mut books, Operation::Confirm, &hold, &[1, 0]), vetoed);
    books.accounts.get_mut(&name("bob")).unwrap().now.state = AccountState::Open;
    assert_eq!(outcomes(&mut books, Operation::Confirm, &hold, &[1, 0]), vetoed);

    assert_eq!(outcomes(&mut books, Operation::Cancel, &hold, &[1, 0]), [Outcome::Done, Outcome::Done]);
    assert_eq!((balances(&books, "alice"), balances(&books, "bob")), ((100, 0), (0, 0)));
}

#[test]
fn settling_applies_to_a_blocked_payer() {
    let mut books = books_with(&[("alice", 100), ("bob", 0)]);
    let hold = hold(1, "alice", "bob", 30);
    outcomes(&mut books, Operation::Try, &hold, &[1, 0]);
    books.accounts.get_mut(&name("alice")).unwrap().now.state = AccountState::Blocked;

    assert_eq!(outcomes(&mut books, Operation::Confirm, &hold, &[1, 0]), [Outcome::Done, Outcome::Done]);
    assert_eq!(balances(&books, "alice"), (70, 0));
}

#[test]
fn the_same_id_with_another_body_is_told_so() {
    let mut books = books_with(&[("alice", 100), ("bob", 0)]);
    outcomes(&mut books, Operation::Try, &hold(1, "alice", "bob", 30), &[0]);

    for operation in [Operation::Try, Operation::Confirm, Operation::Cancel] {
        let answers = outcomes(&mut books, operation, &hold(1, "alice", "bob", 31), &[0]);
        assert_eq!(answers, [Outcome::OtherDescriptor], "{operation:?}");
    }
    assert_eq!(balances(&books, "alice"), (70, 30));
}

#[test]
fn a_nearly_full_account_refuses_try_and_vetoes_confirm() {
    let mut books = books_with(&[("alice", 100), ("bob", 0)]);
    let early = hold(1, "alice", "bob", 30);
    outcomes(&mut books, Operation::Try, &early, &[1]);
    books.accounts.get_mut(&name("bob")).unwrap().now.available = BALANCE_LIMIT - 29;

    let overflow = Refusal::BalanceOverflow;
    assert_eq!(outcomes(&mut books, Operation::Confirm, &early, &[1]), [Outcome::Vetoed(overflow)]);
    assert_eq!(
        outcomes(&mut books, Operation::Try, &hold(2, "alice", "bob", 30), &[1]),
        [Outcome::Refused(overflow)]
    );
    assert_eq!(outcomes(&mut books, Operation::Try, &hold(3, "alice", "bob", 29), &[1]), [Outcome::Done]);
}

#[test]
fn an_account_of_another_shard_is_not_touched() {
    let mut books = Books::new(Arc::default(), Timestamp::UNIX_EPOCH);

    let answer = books.decide(&Op::Open(name("alice"), Currency::parse(GOLD).unwrap()));

    assert_eq!(answer, Answer::Broken("account alice belongs to another shard".into()));
    assert!(books.into_writes().new_accounts.is_empty());
}

/// What the model remembers.
#[derive(Default)]
struct Model {
    balances: HashMap<u8, (i64, i64)>,
    states: HashMap<(u8, u16), &'static str>,
    issued: i64,
}

/// A transaction's body follows from its number, so that repeating a number repeats the body.
fn body(n: u8) -> (u8, u8, i64) {
    (n % 4, (n / 4) % 3 + 4, i64::from(n % 7) * 10 + 1)
}

impl Model {
    fn apply(&mut self, n: u8, index: u16, operation: Operation) -> &'static str {
        let (payer, payee, amount) = body(n);
        let state = self.states.get(&(n, index)).copied();
        let account = if index == 0 { payer } else { payee };
        let (answer, next) = match (operation, state) {
            (Operation::Try, None) => {
                // Account 6 does not exist.
                let (available, held) = self.balances.get(&account).copied().unwrap_or((-1, 0));
                if account == 6 || (index == 0 && available < amount) {
                    ("refused", "refused")
                } else {
                    if index == 0 {
                        self.balances.insert(account, (available - amount, held + amount));
                    }
                    ("done", "tried")
                }
            }
            (Operation::Confirm, Some("tried")) => {
                let (available, held) = self.balances[&account];
                let after = if index == 0 { (available, held - amount) } else { (available + amount, held) };
                self.balances.insert(account, after);
                ("done", "confirmed")
            }
            (Operation::Cancel, Some("tried")) => {
                let (available, held) = self.balances[&account];
                if index == 0 {
                    self.balances.insert(account, (available + amount, held - amount));
                }
                ("done", "cancelled")
            }
            (Operation::Cancel, None) => ("done", "cancelled"),
            (Operation::Confirm, None) => return "not tried",
            (Operation::Try, Some("refused")) => ("refused", "refused"),
            (Operation::Try, Some("tried")) | (Operation::Confirm, Some("confirmed")) => {
                ("done", state.unwrap())
            }
            (Operation::Cancel, Some("cancelled" | "refused")) => ("done", state.unwrap()),
            (_, Some("confirmed")) => ("already confirmed", "confirmed"),
            (_, Some(state)) => ("already cancelled", state),
        };
        self.states.insert((n, index), next);
        answer
    }
}

fn said(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Refused(_) => "refused",
        Outcome::AlreadyConfirmed => "already confirmed",
        Outcome::AlreadyCancelled => "already cancelled",
        Outcome::NotTried => "not tried",
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Random operations in random order, cut into batches that read what the last one wrote: answers and balances are the
    /// model's, nothing is lost or created after any step, and a refused operation changes nothing.
    #[test]
    fn the_books_agree_with_the_model(
        funds in proptest::collection::vec(0_i64..200, 4),
        steps in proptest::collection::vec((0_u8..24, 0_u16..2, 0_u8..3, proptest::bool::weighted(0.1)), 1..200),
    ) {
        let mut model = Model::default();
        let mut books = Books::new(everything(), Timestamp::UNIX_EPOCH);
        for account in 0..6_u8 {
            books.decide(&Op::Open(name(&account.to_string()), Currency::parse(GOLD).unwrap()));
            let amount = funds.get(usize::from(account)).copied().unwrap_or(0);
            if amount > 0 {
                books.decide(&issue(100 + account, &account.to_string(), amount));
            }
            model.balances.insert(account, (amount, 0));
            model.issued += amount;
        }
        let mut journal: Vec<Posting> = Vec::new();
        for (n, index, operation, ends_batch) in steps {
            let (payer, payee, amount) = body(n);
            let transaction = hold(n, &payer.to_string(), &payee.to_string(), amount);
            let operation = [Operation::Try, Operation::Confirm, Operation::Cancel][usize::from(operation)];
            let before: Vec<_> = books.accounts.values().map(|entry| entry.now.clone()).collect();

            let answer = outcomes(&mut books, operation, &transaction, &[index]);

            prop_assert_eq!(said(&answer[0]), model.apply(n, index, operation));
            if answer[0] != Outcome::Done {
                let after: Vec<_> = books.accounts.values().map(|entry| entry.now.clone()).collect();
                prop_assert_eq!(before, after);
            }
            for (account, expected) in &model.balances {
                prop_assert_eq!(balances(&books, &account.to_string()), *expected);
            }
            if ends_batch {
                journal.extend(books.postings.clone());
                books = reread(books);
            }
        }
        journal.extend(books.postings.clone());
        prop_assert_eq!(zero_sum(&journal), model.issued);
        check_chains(&journal)?;
    }
}

/// The next batch: it reads everything that this one left.
fn reread(books: Books) -> Books {
    let mut next = Books::new(everything(), Timestamp::UNIX_EPOCH);
    for (id, entry) in books.accounts {
        next.read_account(id, entry.now);
    }
    for (key, entry) in books.fences {
        next.read_fence(key, entry.now, entry.role, entry.account, entry.amount);
    }
    next
}

/// Every kind takes from one book what it adds to another, so the books sum to zero; answers what came from the world.
fn zero_sum(journal: &[Posting]) -> i64 {
    let mut books: HashMap<&str, i64> = HashMap::new();
    for posting in journal {
        let (debit, credit) = match posting.kind {
            PostingKind::Issue => ("world", "available"),
            PostingKind::Burn => ("available", "world"),
            PostingKind::Hold => ("available", "escrow"),
            PostingKind::Release => ("escrow", "available"),
            PostingKind::Settle => ("escrow", "clearing"),
            PostingKind::Pay => ("clearing", "available"),
        };
        *books.entry(debit).or_default() -= posting.amount;
        *books.entry(credit).or_default() += posting.amount;
        assert_eq!(books.values().sum::<i64>(), 0);
    }
    -books.get("world").copied().unwrap_or(0)
}

/// Versions without gaps, and balances that follow from the ones before.
fn check_chains(journal: &[Posting]) -> Result<(), TestCaseError> {
    let mut last: HashMap<&AccountId, (i64, i64, i64)> = HashMap::new();
    for posting in journal {
        let (version, available, held) = last.get(&posting.account).copied().unwrap_or((0, 0, 0));
        let (to_available, to_held) = match posting.kind {
            PostingKind::Issue | PostingKind::Pay => (1, 0),
            PostingKind::Burn => (-1, 0),
            PostingKind::Hold => (-1, 1),
            PostingKind::Release => (1, -1),
            PostingKind::Settle => (0, -1),
        };
        prop_assert_eq!(posting.version, version + 1);
        prop_assert_eq!(posting.available_after, available + to_available * posting.amount);
        prop_assert_eq!(posting.held_after, held + to_held * posting.amount);
        last.insert(&posting.account, (posting.version, posting.available_after, posting.held_after));
    }
    Ok(())
}

#[test]
fn an_account_is_closed_when_it_is_empty_and_stays_closed() {
    let mut books = books_with(&[("alice", 100), ("bob", 0)]);
    let set =
        |books: &mut Books, account: &str, state| match books.decide(&Op::SetState(name(account), state)) {
            Answer::Stands(account) => account.map(|account| account.state),
            other => panic!("{other:?}"),
        };
    outcomes(&mut books, Operation::Try, &hold(1, "alice", "bob", 100), &[0]);

    assert_eq!(
        set(&mut books, "alice", AccountState::Closed),
        Some(AccountState::Open),
        "it holds something"
    );
    assert_eq!(set(&mut books, "alice", AccountState::Blocked), Some(AccountState::Blocked));
    assert_eq!(set(&mut books, "bob", AccountState::Closed), Some(AccountState::Closed));
    assert_eq!(set(&mut books, "bob", AccountState::Open), Some(AccountState::Closed));
    assert_eq!(set(&mut books, "nobody", AccountState::Blocked), None);
}

#[test]
fn a_burn_takes_what_is_available_once() {
    let mut books = books_with(&[("alice", 100)]);
    let burn = |n: u8, amount: i64| {
        let (amount, gold) = (Amount::new(amount).unwrap(), Currency::parse(GOLD).unwrap());
        Op::Issue(Arc::new(Transaction::new(id(n), Descriptor::burn(name("alice"), amount, gold))))
    };
    let outcome = |books: &mut Books, op: &Op| match books.decide(op) {
        Answer::Issued(outcome, _) => outcome,
        other => panic!("{other:?}"),
    };

    assert_eq!(outcome(&mut books, &burn(1, 60)), Outcome::Done);
    assert_eq!(outcome(&mut books, &burn(1, 60)), Outcome::Done, "again");
    assert_eq!(outcome(&mut books, &burn(2, 41)), Outcome::Refused(Refusal::InsufficientFunds));
    assert_eq!(outcome(&mut books, &issue(1, "alice", 60)), Outcome::OtherDescriptor);
    assert_eq!(balances(&books, "alice"), (40, 0));
}

#[test]
fn only_what_changed_is_written() {
    let mut books = books_with(&[("alice", 100), ("bob", 0), ("carol", 100)]);
    let (moved, again) = (hold(1, "alice", "bob", 30), hold(2, "carol", "bob", 30));
    outcomes(&mut books, Operation::Try, &moved, &[0]);
    outcomes(&mut books, Operation::Try, &again, &[0]);
    let mut books = reread(books);

    outcomes(&mut books, Operation::Confirm, &moved, &[0]);
    outcomes(&mut books, Operation::Try, &again, &[0]);
    let writes = books.into_writes();

    assert_eq!(writes.moved_fences, [((moved.id, 0), FenceState::Confirmed)]);
    let changed = writes.changed_accounts.iter();
    let changed: Vec<_> = changed.map(|(id, now, read)| (id.as_str(), now.held, read.held)).collect();
    assert_eq!(changed, [("alice", 0, 30)]);
    assert!(writes.new_fences.is_empty() && writes.new_accounts.is_empty());
    assert_eq!(writes.postings.len(), 1);
}

#[test]
fn credits_that_are_more_than_the_debits_are_not_tried() {
    let mut books = books_with(&[("alice", 100), ("bob", 0)]);
    let leg = |role, account, amount| {
        let (amount, currency) = (Amount::new(amount).unwrap(), Currency::parse(GOLD).unwrap());
        Branch::Ledger(Leg { role, account: name(account), amount, currency })
    };
    let of = |n: u8, debit: i64, credit: i64| {
        let branches = vec![leg(Role::Debit, "alice", debit), leg(Role::Credit, "bob", credit)];
        let descriptor = Descriptor { branches, owner: Some("shop".into()), ..Descriptor::at_once() };
        Arc::new(Transaction::new(id(n), descriptor))
    };
    let (creates, balanced, loses) = (of(1, 5, 7), of(2, 5, 5), of(3, 7, 5));

    let answer = books.decide(&call(Operation::Try, &creates, &[1]));

    assert_eq!(answer, Answer::Broken("its credits are more than its debits: it would create 2 GOLD".into()));
    // What only takes creates nothing: it is for the coordinator to see that it is balanced.
    for (transaction, branch) in [(&creates, 0), (&balanced, 1), (&loses, 1)] {
        assert_eq!(outcomes(&mut books, Operation::Try, transaction, &[branch]), [Outcome::Done]);
    }
}

#[test]
fn a_refused_burn_stays_refused() {
    let mut books = books_with(&[("alice", 100)]);
    let (amount, gold) = (Amount::new(101).unwrap(), Currency::parse(GOLD).unwrap());
    let burn = Op::Issue(Arc::new(Transaction::new(id(1), Descriptor::burn(name("alice"), amount, gold))));
    let refused = Outcome::Refused(Refusal::InsufficientFunds);

    for funds in [100, 101] {
        books.accounts.get_mut(&name("alice")).unwrap().now.available = funds;
        let answer = books.decide(&burn);
        assert!(matches!(answer, Answer::Issued(outcome, _) if outcome == refused), "with {funds}");
    }
}

#[test]
fn what_is_held_counts_for_what_an_account_can_own() {
    let mut books = books_with(&[("alice", 100), ("bob", 0)]);
    let bob = &mut books.accounts.get_mut(&name("bob")).unwrap().now;
    (bob.available, bob.held) = (BALANCE_LIMIT - 40, 20);

    let too_much = outcomes(&mut books, Operation::Try, &hold(1, "alice", "bob", 21), &[1]);
    let just_so = outcomes(&mut books, Operation::Try, &hold(2, "alice", "bob", 20), &[1]);

    assert_eq!(too_much, [Outcome::Refused(Refusal::BalanceOverflow)]);
    assert_eq!(just_so, [Outcome::Done]);
}

#[test]
fn states_and_kinds_have_the_numbers_that_are_in_the_tables() {
    let states = [AccountState::Open, AccountState::Blocked, AccountState::Closed];

    assert_eq!(states.map(AccountState::number), [1, 2, 3]);
    assert_eq!(
        [0, 1, 2, 3, 4].map(AccountState::from_number),
        [None, Some(states[0]), Some(states[1]), Some(states[2]), None]
    );
    for kind in PostingKind::ALL {
        assert_eq!(PostingKind::from_number(kind as i16), Some(kind));
    }
    assert_eq!((PostingKind::from_number(0), PostingKind::from_number(7)), (None, None));
}
