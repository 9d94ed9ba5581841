//! How many there are at a time, in all and of each: connections of an address, requests of a caller.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
};

/// Counts by a key. Clones share them.
pub struct Counts<K>(Arc<Mutex<(u32, HashMap<K, u32>)>>);

impl<K> Clone for Counts<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// One that is counted until this is dropped.
pub struct Counted<K: Eq + Hash> {
    counts: Counts<K>,
    key: K,
}

impl<K: Eq + Hash + Clone> Counts<K> {
    /// Counts one more, unless there are so many in all or of its kind.
    #[must_use]
    pub fn one_more(&self, key: &K, most: u32, most_of_one: u32) -> Option<Counted<K>> {
        let mut counts = self.0.lock().expect("no holder panics");
        let (all, by_key) = &mut *counts;
        let here = by_key.get(key).copied().unwrap_or_default();
        if *all >= most || here >= most_of_one {
            return None;
        }
        *all += 1;
        by_key.insert(key.clone(), here + 1);
        Some(Counted { counts: self.clone(), key: key.clone() })
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().expect("no holder panics");
        counts.0 -= 1;
        if let Some(here) = counts.1.get_mut(&self.key) {
            *here -= 1;
            if *here == 0 {
                counts.1.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_at_most_so_many_in_all_and_of_each_and_who_leaves_makes_room() {
        let counts = Counts::default();
        let take = |key: &'static str| counts.one_more(&key, 3, 2);

        let (first, second) = (take("a"), take("a"));
        assert!(first.is_some() && second.is_some());
        assert!(take("a").is_none(), "two of one");
        let other = take("b");
        assert!(other.is_some());
        assert!(take("c").is_none(), "three in all");

        drop(first);
        assert!(take("c").is_some());
        let again = take("a");
        assert!(again.is_some());
        drop((second, other, again));
        assert!(counts.0.lock().unwrap().1.is_empty(), "nobody is remembered");
    }
}
