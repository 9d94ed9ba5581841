//! How many transactions a caller may have open at a time, over all instances.
//!
//! What is open is counted in the coordinator's database, by the statements that make and end transactions
//! ([`open`](crate::store::open)). Every instance reads the counts once a second, and adds what it has let in since. So a quota
//! costs no read when something is created, and may be exceeded by what all instances let in within a second; and room that
//! others make is noticed within a second. Nothing is read, and nothing counted, as long as no caller has a quota.

use crate::store::{Store, StoreError};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

/// How often the counts are read. Whoever is turned away may come back after that.
pub const READ_EVERY: Duration = Duration::from_secs(1);

/// The quotas of all callers. Clones share them.
#[derive(Clone)]
pub struct Quotas(Arc<Inner>);

struct Inner {
    store: Store,
    /// Of a caller that has none of its own; 0 if it has none then.
    usual: u32,
    counts: Mutex<Counts>,
    /// The counts were read once, and are from then on.
    is_read: OnceCell<()>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Counts {
    /// How often reading them has begun.
    reading: u64,
    of: HashMap<String, Count>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// As it was read.
    read: i64,
    /// Let in since the reading before began, if one is under way.
    before: i64,
    /// Let in since the last reading began.
    since: i64,
}

impl Count {
    fn open(self) -> i64 {
        self.read + self.before + self.since
    }
}

impl Counts {
    /// From here on what is let in is not sure to be in what is read.
    fn begin_reading(&mut self) {
        self.reading += 1;
        for count in self.of.values_mut() {
            count.before += std::mem::take(&mut count.since);
        }
    }

    /// What was let in before the reading began is in it, but for what was on its way.
    fn end_reading(&mut self, read: &HashMap<String, i64>) {
        self.of.retain(|caller, count| {
            let now = read.get(caller).copied().unwrap_or_default();
            *count = Count { read: now, before: 0, since: count.since };
            count.open() != 0
        });
        for (caller, now) in read {
            self.of.entry(caller.clone()).or_default().read = *now;
        }
    }

    /// Lets one in, if there is room. Answers in which reading that was.
    fn admit(&mut self, caller: &str, quota: u32) -> Option<u64> {
        let open = self.of.get(caller).copied().unwrap_or_default().open();
        if open >= i64::from(quota) {
            return None;
        }
        self.of.entry(caller.to_owned()).or_default().since += 1;
        Some(self.reading)
    }

    /// What was let in is not open. If the counts were read since, that is known already.
    fn give_back(&mut self, caller: &str, reading: u64) {
        let Some(count) = self.of.get_mut(caller) else { return };
        if reading == self.reading {
            count.since -= 1;
        } else if reading + 1 == self.reading && count.before > 0 {
            count.before -= 1;
        }
    }
}

/// What a quota says about one more transaction.
pub enum Room {
    /// There is no quota.
    Unbounded,
    /// It fits.
    For(Admitted),
    /// As many are open as this.
    None(u32),
}

/// One that was let in. Its place is given back when this goes, unless it is [kept](Admitted::keep).
pub struct Admitted {
    quotas: Quotas,
    caller: String,
    reading: u64,
    is_kept: bool,
}

impl Admitted {
    /// It is open, or may be.
    pub fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if !self.is_kept {
            self.quotas.counts(|counts| counts.give_back(&self.caller, self.reading));
        }
    }
}

impl Quotas {
    /// With the quota of callers that have none of their own, or 0. They are read until `stop`.
    #[must_use]
    pub fn new(store: Store, usual: u32, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner { store, usual, counts: Mutex::default(), is_read: OnceCell::new(), stop }))
    }

    /// Whether there is room for one more transaction of a caller, whose own quota this is, if it has one.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: nothing has been read yet.
    pub async fn admit(&self, caller: &str, own: Option<u32>) -> Result<Room, StoreError> {
        let quota = own.unwrap_or(self.0.usual);
        if quota == 0 {
            return Ok(Room::Unbounded);
        }
        self.0.is_read.get_or_try_init(|| self.begin()).await?;
        let Some(reading) = self.counts(|counts| counts.admit(caller, quota)) else {
            return Ok(Room::None(quota));
        };
        let (quotas, caller) = (self.clone(), caller.to_owned());
        Ok(Room::For(Admitted { quotas, caller, reading, is_kept: false }))
    }

    async fn begin(&self) -> Result<(), StoreError> {
        self.read().await?;
        let quotas = self.clone();
        tokio::spawn(async move {
            let stop = quotas.0.stop.clone();
            while stop.run_until_cancelled(tokio::time::sleep(READ_EVERY)).await.is_some() {
                if let Err(error) = quotas.read().await {
                    tracing::debug!(%error, "cannot read how many transactions are open; going on with what is known");
                }
            }
        });
        Ok(())
    }

    async fn read(&self) -> Result<(), StoreError> {
        self.counts(Counts::begin_reading);
        let read = self.0.store.open().await?;
        self.counts(|counts| counts.end_reading(&read));
        Ok(())
    }

    fn counts<T>(&self, with: impl FnOnce(&mut Counts) -> T) -> T {
        with(&mut self.0.counts.lock().expect("no holder panics"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(open: i64) -> HashMap<String, i64> {
        HashMap::from([("shop".to_owned(), open)])
    }

    #[test]
    fn what_is_let_in_counts_until_it_is_read() {
        let mut counts = Counts::default();
        counts.begin_reading();
        counts.end_reading(&read(1));

        assert!(counts.admit("shop", 3).is_some());
        counts.begin_reading();
        assert!(counts.admit("shop", 3).is_some(), "of three there were two");
        assert!(counts.admit("shop", 3).is_none(), "while it is read, what was let in before counts as well");
        counts.end_reading(&read(2));

        assert!(counts.admit("shop", 3).is_none(), "two were read, and one was let in since that began");
        assert!(counts.admit("other", 3).is_some());
    }

    #[test]
    fn a_place_is_given_back_once() {
        let mut counts = Counts::default();
        let reading = counts.admit("shop", 1).unwrap();
        assert!(counts.admit("shop", 1).is_none());

        counts.give_back("shop", reading);
        let reading = counts.admit("shop", 1).expect("there is room again");
        counts.begin_reading();
        counts.give_back("shop", reading);
        let reading = counts.admit("shop", 1).expect("while it is read, too");
        counts.end_reading(&HashMap::new());
        assert!(counts.admit("shop", 1).is_none());
        counts.begin_reading();
        counts.end_reading(&HashMap::new());
        counts.give_back("shop", reading);

        assert!(counts.admit("shop", 1).is_some());
        assert!(counts.admit("shop", 1).is_none(), "what was read has no place to give back");
    }

    #[test]
    fn nobody_is_remembered_who_has_nothing_open() {
        let mut counts = Counts::default();
        assert!(counts.admit("shop", 1).is_some());

        for _ in 0..2 {
            counts.begin_reading();
            counts.end_reading(&HashMap::new());
        }

        assert!(counts.of.is_empty());
    }
}
