//! Who takes part: from an account to its bucket to its participant.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tcc_core::{AccountId, BUCKETS, Transaction, bucket_of};
use tcc_participant::{BreakerState, Participant};

/// The participants and the map of buckets.
#[derive(Clone)]
pub struct Participants {
    all: Vec<Arc<dyn Participant>>,
    by_bucket: Vec<usize>,
}

/// The branches of one transaction at one participant.
pub struct Part<'a> {
    /// Who.
    pub participant: &'a Arc<dyn Participant>,
    /// Its number.
    pub index: usize,
    /// Which branches, the pivot first if it is among them.
    pub branches: Vec<u16>,
}

impl Participants {
    /// Puts participants on the map.
    ///
    /// # Panics
    ///
    /// If a bucket is mapped to no participant: the map was read from the database and checked against the configuration.
    #[must_use]
    pub fn new(all: Vec<Arc<dyn Participant>>, map: &HashMap<String, HashSet<u16>>) -> Self {
        let mut by_bucket = vec![usize::MAX; usize::from(BUCKETS)];
        for (index, participant) in all.iter().enumerate() {
            for bucket in map.get(participant.name()).into_iter().flatten() {
                by_bucket[usize::from(*bucket)] = index;
            }
        }
        assert!(by_bucket.iter().all(|index| *index < all.len()), "every bucket has a participant");
        Self { all, by_bucket }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The name of a participant.
    #[must_use]
    pub fn name(&self, index: usize) -> &str {
        self.all[index].name()
    }

    /// Whether a participant is worth asking.
    #[must_use]
    pub fn is_reachable(&self, index: usize) -> bool {
        self.all[index].is_reachable()
    }

    /// How the breaker of a participant stands.
    #[must_use]
    pub fn breaker(&self, index: usize) -> BreakerState {
        self.all[index].breaker()
    }

    /// The index of the participant that keeps an account.
    #[must_use]
    pub fn index_of(&self, account: &AccountId) -> usize {
        self.by_bucket[usize::from(bucket_of(account))]
    }

    /// A transaction's branches by participant, the pivot's participant first.
    #[must_use]
    pub fn parts(&self, transaction: &Transaction) -> Vec<Part<'_>> {
        let pivot = transaction.descriptor.pivot;
        let others = (0..transaction.descriptor.branches.len() as u16).filter(|index| *index != pivot);
        let mut parts: Vec<(usize, Vec<u16>)> = Vec::with_capacity(2);
        for index in std::iter::once(pivot).chain(others) {
            let participant = self.index_of(&transaction.branch(index).account);
            match parts.iter_mut().find(|(known, _)| *known == participant) {
                Some((_, branches)) => branches.push(index),
                None => parts.push((participant, vec![index])),
            }
        }
        let part = |(index, branches)| Part { participant: &self.all[index], index, branches };
        parts.into_iter().map(part).collect()
    }

    /// The name of a participant that the transaction needs and that does not answer.
    #[must_use]
    pub fn unreachable(&self, transaction: &Transaction) -> Option<String> {
        let mut parts = self.parts(transaction).into_iter();
        parts.find(|part| !part.participant.is_reachable()).map(|part| part.participant.name().to_owned())
    }
}
