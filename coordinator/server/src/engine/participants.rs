//! Who takes part: from an account to its bucket to its shard, and from a name to whoever is registered under it.
//!
//! The shards are there from the start. Other participants come and go while the coordinator runs ([`crate::registry`]); a
//! name keeps its number for as long as the process lives. A transaction may name one that is not registered, any more or
//! yet: then it waits for that one, as for any participant that cannot be reached.

use futures::future::BoxFuture;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, RwLock, RwLockReadGuard},
};
use tcc_core::{AccountId, BUCKETS, Branch, Outcome, ParticipantName, Transaction, bucket_of};
use tcc_participant::{BreakerState, Call, Participant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many creations may be at one participant that is no shard. One that is slow must not take all the room there is.
const CREATIONS: usize = 512;

/// The participants and the map of buckets. Clones share them.
#[derive(Clone)]
pub struct Participants {
    by_bucket: Arc<[usize]>,
    table: Arc<RwLock<Table>>,
}

struct Table {
    all: Vec<Known>,
    /// Of those that are no shards.
    by_name: HashMap<ParticipantName, usize>,
}

struct Known {
    participant: Arc<dyn Participant>,
    /// How it is registered, if it is, and is no shard.
    terms: Option<Terms>,
    /// For creations, unless it is a shard.
    room: Option<Arc<Semaphore>>,
}

/// How a participant that is no shard may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// It may veto, so it must be the pivot.
    pub may_veto: bool,
    /// An operator lets no new transactions at it. What is under way goes on.
    pub is_drained: bool,
}

/// The branches of one transaction at one participant.
#[derive(Clone)]
pub struct Part {
    /// Who.
    pub participant: Arc<dyn Participant>,
    /// Its number.
    pub index: usize,
    /// Which branches: the pivot first if it is among them, or the ledger's lead.
    pub branches: Vec<u16>,
}

/// All branches of one transaction, by who is asked when.
pub struct Parts {
    /// Asked first.
    pub pivot: Part,
    /// If the pivot is not the ledger's: the part of the ledger that goes before its others.
    pub lead: Option<Part>,
    /// The other parts of the ledger.
    pub ledger: Vec<Part>,
    /// The branches of other participants, each for itself.
    pub others: Vec<Part>,
}

impl Parts {
    /// All of them, the pivot's first.
    pub fn iter(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.pivot).chain(&self.lead).chain(&self.ledger).chain(&self.others)
    }
}

/// Nobody is registered under a name.
struct Nobody(ParticipantName);

impl Participant for Nobody {
    fn name(&self) -> &str {
        self.0.as_str()
    }

    fn is_reachable(&self) -> bool {
        false
    }

    fn trouble(&self) -> Option<String> {
        Some("nobody is registered under this name".into())
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Vec<Outcome>> {
        let unknown = Outcome::Unknown(format!("no participant {} is registered", self.0));
        Box::pin(async move { call.branches.iter().take(1).map(|_| unknown.clone()).collect() })
    }
}

impl Participants {
    /// Puts the shards on the map.
    ///
    /// # Panics
    ///
    /// If a bucket is mapped to no shard: the map was read from the database and checked against the configuration.
    #[must_use]
    pub fn new(shards: Vec<Arc<dyn Participant>>, map: &HashMap<String, HashSet<u16>>) -> Self {
        let mut by_bucket = vec![usize::MAX; usize::from(BUCKETS)];
        for (index, shard) in shards.iter().enumerate() {
            for bucket in map.get(shard.name()).into_iter().flatten() {
                by_bucket[usize::from(*bucket)] = index;
            }
        }
        assert!(by_bucket.iter().all(|index| *index < shards.len()), "every bucket has a shard");
        let all = shards.into_iter().map(|participant| Known { participant, terms: None, room: None });
        let table = Table { all: all.collect(), by_name: HashMap::new() };
        Self { by_bucket: by_bucket.into(), table: Arc::new(RwLock::new(table)) }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table().all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table().all.is_empty()
    }

    /// The name of a participant.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        self.table().all[index].participant.name().to_owned()
    }

    /// Whether a participant is worth asking.
    #[must_use]
    pub fn is_reachable(&self, index: usize) -> bool {
        self.table().all[index].participant.is_reachable()
    }

    /// Why a participant is not, for people, if that is known.
    #[must_use]
    pub fn trouble(&self, index: usize) -> Option<String> {
        self.table().all[index].participant.trouble()
    }

    /// How the breaker of a participant stands.
    #[must_use]
    pub fn breaker(&self, index: usize) -> BreakerState {
        self.table().all[index].participant.breaker()
    }

    /// The index of the shard that keeps an account.
    #[must_use]
    pub fn index_of(&self, account: &AccountId) -> usize {
        self.by_bucket[usize::from(bucket_of(account))]
    }

    /// Registers a participant under its name, in place of whoever was.
    pub fn register(&self, name: &ParticipantName, participant: Arc<dyn Participant>, terms: Terms) {
        let index = self.index_by_name(name);
        let mut table = self.table.write().expect("no holder panics");
        table.all[index].participant = participant;
        table.all[index].terms = Some(terms);
    }

    /// Changes how a participant may be asked.
    pub fn set_terms(&self, name: &ParticipantName, terms: Terms) {
        let index = self.index_by_name(name);
        self.table.write().expect("no holder panics").all[index].terms = Some(terms);
    }

    /// Nobody is registered under this name any more.
    pub fn unregister(&self, name: &ParticipantName) {
        let index = self.index_by_name(name);
        let mut table = self.table.write().expect("no holder panics");
        table.all[index].participant = Arc::new(Nobody(name.clone()));
        table.all[index].terms = None;
    }

    /// How the participant of this name is registered; `None` if it is not.
    #[must_use]
    pub fn terms(&self, name: &ParticipantName) -> Option<Terms> {
        let table = self.table();
        table.by_name.get(name).and_then(|index| table.all[*index].terms)
    }

    /// The number of a name that was ever registered here, or of one that waits for that.
    #[must_use]
    pub fn index_by_name(&self, name: &ParticipantName) -> usize {
        if let Some(index) = self.table().by_name.get(name) {
            return *index;
        }
        let mut table = self.table.write().expect("no holder panics");
        if let Some(index) = table.by_name.get(name) {
            return *index;
        }
        let index = table.all.len();
        table.by_name.insert(name.clone(), index);
        let room = Some(Arc::new(Semaphore::new(CREATIONS)));
        table.all.push(Known { participant: Arc::new(Nobody(name.clone())), terms: None, room });
        index
    }

    /// A transaction's branches by participant. A participant of the ledger does all of its branches together; others do each
    /// for itself.
    #[must_use]
    pub fn parts(&self, transaction: &Transaction) -> Parts {
        let descriptor = &transaction.descriptor;
        let lead = descriptor.lead();
        let mut ledger: Vec<(usize, Vec<u16>)> = Vec::with_capacity(2);
        let mut others: Vec<(usize, Vec<u16>)> = Vec::new();
        let all = (0..descriptor.branches.len() as u16).filter(|index| Some(*index) != lead);
        for index in lead.into_iter().chain(all) {
            match transaction.branch(index) {
                Branch::Ledger(leg) => {
                    let shard = self.index_of(&leg.account);
                    match ledger.iter_mut().find(|(known, _)| *known == shard) {
                        Some((_, branches)) => branches.push(index),
                        None => ledger.push((shard, vec![index])),
                    }
                }
                Branch::Other(request) => {
                    others.push((self.index_by_name(&request.participant), vec![index]));
                }
            }
        }
        let table = self.table();
        let part = |(index, branches): (usize, Vec<u16>)| Part {
            participant: Arc::clone(&table.all[index].participant),
            index,
            branches,
        };
        let mut ledger = ledger.into_iter().map(&part);
        let is_pivot = |(_, branches): &(usize, Vec<u16>)| branches == &[descriptor.pivot];
        match others.iter().position(is_pivot) {
            Some(pivot) => {
                let pivot = part(others.remove(pivot));
                let others = others.into_iter().map(&part).collect();
                Parts { pivot, lead: ledger.next(), ledger: ledger.collect(), others }
            }
            None => {
                let pivot = ledger.next().expect("a transaction has a pivot");
                let others = others.into_iter().map(&part).collect();
                Parts { pivot, lead: None, ledger: ledger.collect(), others }
            }
        }
    }

    /// The name of a participant that the transaction needs and that does not answer, and whether it is a shard.
    #[must_use]
    pub fn unreachable(&self, transaction: &Transaction) -> Option<(String, bool)> {
        let parts = self.parts(transaction);
        let part = parts.iter().find(|part| !part.participant.is_reachable())?;
        let is_shard = part.branches.iter().all(|index| transaction.leg(*index).is_some());
        Some((part.participant.name().to_owned(), is_shard))
    }

    /// Room for a creation at each participant that it needs and that is no shard. `None`: one has enough to do.
    #[must_use]
    pub fn enter(&self, transaction: &Transaction) -> Option<Vec<OwnedSemaphorePermit>> {
        let mut entered: Vec<(usize, OwnedSemaphorePermit)> = Vec::new();
        for branch in &transaction.descriptor.branches {
            let Branch::Other(request) = branch else { continue };
            let index = self.index_by_name(&request.participant);
            if entered.iter().any(|(known, _)| *known == index) {
                continue;
            }
            let room = self.table().all[index].room.clone()?;
            entered.push((index, room.try_acquire_owned().ok()?));
        }
        Some(entered.into_iter().map(|(_, permit)| permit).collect())
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcc_core::{Amount, Currency, Descriptor, Leg, Request, Role, Timestamp, TransactionId};

    struct Named(&'static str);

    impl Participant for Named {
        fn name(&self) -> &str {
            self.0
        }

        fn is_reachable(&self) -> bool {
            true
        }

        fn call(&self, _: Call) -> BoxFuture<'_, Vec<Outcome>> {
            Box::pin(async { Vec::new() })
        }
    }

    fn two_shards() -> Participants {
        let map = (0..2_u16).map(|n| (format!("shard-{n}"), (0..BUCKETS).filter(|b| b % 2 == n).collect()));
        Participants::new(vec![Arc::new(Named("shard-0")), Arc::new(Named("shard-1"))], &map.collect())
    }

    fn account(shard: u16) -> AccountId {
        let ids = (0..).map(|n| AccountId::parse(&format!("a{n}")).unwrap());
        ids.into_iter().find(|id| bucket_of(id) % 2 == shard).unwrap()
    }

    fn leg(role: Role, shard: u16) -> Branch {
        let (amount, currency) = (Amount::new(5).unwrap(), Currency::parse("GOLD").unwrap());
        Branch::Ledger(Leg { role, account: account(shard), amount, currency })
    }

    fn seats() -> ParticipantName {
        ParticipantName::parse("seats").unwrap()
    }

    fn seat() -> Branch {
        Branch::Other(Request { participant: seats(), operation: String::new(), payload: Vec::new() })
    }

    fn of(branches: Vec<Branch>, pivot: u16) -> Transaction {
        let descriptor = Descriptor { branches, pivot, owner: Some(String::new()), ..Descriptor::at_once() };
        Transaction::new(TransactionId::mint(Timestamp::UNIX_EPOCH, [1; 10]), descriptor)
    }

    fn shown(parts: &Parts) -> Vec<(&str, &[u16])> {
        parts.iter().map(|part| (part.participant.name(), part.branches.as_slice())).collect()
    }

    #[test]
    fn a_pivot_of_the_ledger_is_decided_together_with_what_is_on_its_shard() {
        let hold = of(vec![leg(Role::Debit, 0), leg(Role::Debit, 1), seat(), leg(Role::Credit, 1)], 3);

        let parts = two_shards().parts(&hold);

        assert_eq!(shown(&parts), [("shard-1", &[3, 1][..]), ("shard-0", &[0]), ("seats", &[2])]);
        assert!(parts.lead.is_none());
    }

    #[test]
    fn behind_a_pivot_elsewhere_the_ledger_has_a_lead_and_each_other_branch_goes_alone() {
        let branches = vec![leg(Role::Debit, 0), seat(), leg(Role::Credit, 1), seat(), leg(Role::Debit, 1)];

        let parts = two_shards().parts(&of(branches, 3));

        let expected = [("seats", &[3][..]), ("shard-1", &[2, 4]), ("shard-0", &[0]), ("seats", &[1])];
        assert_eq!(shown(&parts), expected);
        assert!(parts.lead.is_some());
    }

    #[test]
    fn a_name_keeps_its_number_whoever_is_registered_under_it() {
        let participants = two_shards();
        let transaction = of(vec![seat()], 0);
        let terms = Terms { may_veto: false, is_drained: false };

        let before = participants.unreachable(&transaction);
        participants.register(&seats(), Arc::new(Named("seats")), terms);
        let index = participants.index_by_name(&seats());
        let then = (participants.unreachable(&transaction), participants.terms(&seats()));
        participants.unregister(&seats());

        assert_eq!((before, then), (Some(("seats".into(), false)), (None, Some(terms))));
        assert_eq!(participants.unreachable(&transaction), Some(("seats".into(), false)));
        assert_eq!((participants.index_by_name(&seats()), participants.len()), (index, 3));
        assert_eq!(participants.terms(&seats()), None);
    }

    #[test]
    fn a_participant_with_enough_to_do_takes_no_more_and_is_counted_once_for_each_transaction() {
        let participants = two_shards();
        let transaction = of(vec![seat(), seat()], 0);

        let inside: Vec<_> = (0..CREATIONS).map(|_| participants.enter(&transaction).unwrap()).collect();

        assert!(participants.enter(&transaction).is_none());
        assert!(participants.enter(&of(vec![leg(Role::Debit, 0), leg(Role::Credit, 1)], 1)).is_some());
        drop(inside);
        assert!(participants.enter(&transaction).is_some());
    }
}
