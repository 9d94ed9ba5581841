//! The auditor that never sleeps: it follows each shard, slice of time after slice, and keeps what it finds.
//!
//! Whatever moves money leaves a posting, so an audit of what was recorded since the last one is an audit of all that has
//! moved ([`Moved`] says what is looked at in a slice). Each transaction that a slice touches is then compared with its
//! fences on every shard, and each account that it names with its newest posting. How far it is stands in the coordinator's
//! database, as do the findings: whoever goes on, after a crash or on another instance, goes on there.
//!
//! A slice must be complete when it is read. So it ends before the [horizon](Shard::horizon), behind which everything is committed,
//! and ten seconds before that, for clocks: on a server whose clock is set back by less than that, new postings still lie after
//! what was audited. If it is set back by more, that shows in the time that passed here meanwhile, and what may lie
//! behind is audited again. Who was not there when it happened cannot know; then a full audit does.
//!
//! It works for a tenth of the time: holds go first. How far it is behind shows in the status.

use super::{AuditError, Finding, of_shard, pairs};
use crate::{
    shards::Shards,
    store::{Store, audited::Auditing},
};
use jiff::SignedDuration;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tcc_core::Timestamp;
use tcc_ledger::{
    Branches, ReadError, Shard,
    audit::{Moved, Slice},
};
use tcc_participant::{Failure, Postgres};
use tokio_util::sync::CancellationToken;

/// How often there is a look at what is new.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How old what is looked at is at least: a server's clock may be set back by less than this without anybody noticing.
const BEHIND: SignedDuration = SignedDuration::from_secs(10);
/// By more than this a clock does not differ from another one that runs beside it.
const DRIFT: SignedDuration = SignedDuration::from_secs(1);
/// How many postings and fences a slice should have. Twice as many are read at a time at most.
const CHUNK: i64 = 5_000;
/// After a slice it rests for so many times as long as that took.
const REST: u32 = 9;
/// But not longer than this: what took so long was mostly waiting for a second look.
const LONGEST_REST: Duration = Duration::from_secs(5);
/// So long it stays with one shard before it looks at the next one.
const TURN: Duration = Duration::from_secs(10);
/// The first slice of a shard, and the shortest there is.
const WIDTH: (SignedDuration, SignedDuration) =
    (SignedDuration::from_secs(1), SignedDuration::from_micros(1));

/// Why a round was not finished.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// What it notes in the coordinator's database cannot be read or written.
    #[error("coordinator database: {0}")]
    Notes(#[from] Failure),
    /// What is audited cannot be read.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl From<ReadError> for FollowError {
    fn from(error: ReadError) -> Self {
        Self::Audit(error.into())
    }
}

/// What one look at a shard, or at all, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// How many postings were looked at.
    pub postings: u64,
    /// How many findings were made that were not known.
    pub findings: u64,
    /// Whether everything that can be looked at was.
    pub is_done: bool,
}

/// Follows all shards, until asked to stop.
pub async fn keep(coordinator: Postgres, store: Store, shards: Arc<Shards>, stop: CancellationToken) {
    let mut follower = Follower::new(&coordinator, store, Arc::clone(&shards), BEHIND);
    let mut failing: HashSet<String> = HashSet::new();
    while !stop.is_cancelled() {
        let mut is_done = true;
        for shard in shards.all() {
            let turn = tokio::select! {
                turn = follower.turn(shard) => turn,
                () = stop.cancelled() => return,
            };
            match turn {
                Ok(round) => {
                    is_done &= round.is_done;
                    failing.remove(shard.name());
                }
                // Each outage is told once.
                Err(error) if failing.insert(shard.name().to_owned()) => {
                    tracing::warn!(shard = shard.name(), %error, "cannot audit a shard; trying again");
                }
                Err(_) => {}
            }
        }
        if is_done {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

/// Audits what has moved.
pub struct Follower {
    auditing: Auditing,
    store: Store,
    shards: Arc<Shards>,
    behind: SignedDuration,
    /// What each shard's clock showed when it was last looked at.
    clocks: HashMap<String, (Instant, Timestamp)>,
    /// How long a slice of each shard is at the moment.
    widths: HashMap<String, SignedDuration>,
}

impl Follower {
    /// Looks at nothing that is younger than `behind`.
    #[must_use]
    pub fn new(coordinator: &Postgres, store: Store, shards: Arc<Shards>, behind: SignedDuration) -> Self {
        let auditing = Auditing::new(coordinator);
        Self { auditing, store, shards, behind, clocks: HashMap::new(), widths: HashMap::new() }
    }

    /// Looks at what has moved on each shard.
    ///
    /// # Errors
    ///
    /// [`FollowError`]: what was not looked at is looked at the next time.
    pub async fn round(&mut self) -> Result<Round, FollowError> {
        let shards = Arc::clone(&self.shards);
        let mut all = Round { postings: 0, findings: 0, is_done: true };
        for shard in shards.all() {
            let round = self.turn(shard).await?;
            all.postings += round.postings;
            all.findings += round.findings;
            all.is_done &= round.is_done;
        }
        Ok(all)
    }

    /// Looks at what has moved on one shard, for a while, unless another instance does.
    async fn turn(&mut self, shard: &Shard) -> Result<Round, FollowError> {
        let is_alone = self.auditing.lock(shard.name()).await?;
        let round = if is_alone { self.slices(shard).await } else { Ok(Round::nothing()) };
        self.auditing.disconnect();
        round
    }

    async fn slices(&mut self, shard: &Shard) -> Result<Round, FollowError> {
        let began = Instant::now();
        let (mut from, until) = self.bounds(shard).await?;
        shard.summarize(from).await?;
        let mut round = Round::nothing();
        while from < until {
            let looked = Instant::now();
            let Some((end, moved)) = self.slice(shard, from, until).await? else {
                // Soon more is known.
                return Ok(round);
            };
            round.postings += moved.postings;
            round.findings += moved.findings;
            from = end;
            self.auditing.set_audited(shard.name(), from, moved.postings as i64).await?;
            if from < until {
                if began.elapsed() > TURN {
                    return Ok(Round { is_done: false, ..round });
                }
                tokio::time::sleep((looked.elapsed() * REST).min(LONGEST_REST)).await;
            }
        }
        Ok(round)
    }

    /// From where to where everything is committed and has not been audited.
    async fn bounds(&mut self, shard: &Shard) -> Result<(Timestamp, Timestamp), FollowError> {
        let asked = Instant::now();
        let now = shard.now().await?;
        let answered = Instant::now();
        let seen = self.clocks.get(shard.name());
        let set_back = seen.map_or(SignedDuration::ZERO, |seen| set_back(*seen, (asked, now)));
        let until = shard.horizon().await? - self.behind;
        let audited = match self.auditing.audited(shard.name()).await? {
            Some(audited) => audited,
            None => shard.first_posting().await?,
        };
        let from = (audited - set_back).min(until);
        if from < audited {
            tracing::warn!(shard = shard.name(), %from, "a shard's clock was set back; some of it is audited again");
            self.auditing.set_audited(shard.name(), from, 0).await?;
        }
        self.clocks.insert(shard.name().to_owned(), (answered, now));
        Ok((from, until))
    }

    /// Looks at a slice that begins at `from`. Answers where it ends; `None`, if it cannot be judged yet.
    async fn slice(
        &mut self,
        shard: &Shard,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Option<(Timestamp, Round)>, FollowError> {
        let width = self.widths.entry(shard.name().to_owned()).or_insert(WIDTH.0);
        let (end, count) = loop {
            let end = from.checked_add(*width).map_or(until, |end| end.min(until));
            let count = shard.count_moved(from, end).await?;
            let is_fit = count <= 2 * CHUNK || *width == WIDTH.1;
            *width = next_width(*width, count);
            if is_fit {
                break (end, count);
            }
        };
        if count == 0 {
            return Ok(Some((end, Round::nothing())));
        }
        // More than that at one time is something that a person has written. It is divided by account.
        let parts = if count <= 2 * CHUNK { 1 } else { count / CHUNK };
        let mut round = Round::nothing();
        for part in 0..parts {
            let moved = shard.audit_moved(Slice { from, until: end, parts, part }).await?;
            round.postings += moved.postings;
            let Some(findings) = self.judge(shard, moved).await? else { return Ok(None) };
            round.findings += self.keep(&findings).await?;
        }
        Ok(Some((end, round)))
    }

    /// Compares what has moved with the coordinator and with all shards. `None`, if it is too early to say.
    async fn judge(&self, shard: &Shard, moved: Moved) -> Result<Option<Vec<Finding>>, FollowError> {
        let records = self.store.get_all(&moved.transactions).await.map_err(AuditError::from)?;
        let which = Branches::Of(&moved.transactions);
        let mut compared = pairs::compare(&self.store, &self.shards, records, which).await?;
        if compared.is_early {
            return Ok(None);
        }
        let mut findings = compared.findings;
        findings.extend(moved.findings.into_iter().map(|found| of_shard(shard.name(), found)));
        compared.accounts.entry(shard.name().to_owned()).or_default().extend(moved.accounts);
        for shard in self.shards.all() {
            let accounts: BTreeSet<String> = compared.accounts.remove(shard.name()).unwrap_or_default();
            let accounts: Vec<String> = accounts.into_iter().collect();
            if accounts.is_empty() {
                continue;
            }
            let found = shard.audit_accounts(&accounts).await?;
            findings.extend(found.into_iter().map(|found| of_shard(shard.name(), found)));
        }
        Ok(Some(findings))
    }

    /// Keeps findings, and tells those that are new. Answers how many.
    async fn keep(&mut self, findings: &[Finding]) -> Result<u64, FollowError> {
        let new = self.auditing.keep(findings).await?;
        for kept in &new {
            let Finding { kind, shard, transaction, account, expected, found } = &kept.finding;
            tracing::error!(
                kind,
                shard,
                transaction,
                account,
                expected,
                found,
                "the auditor has found something"
            );
        }
        Ok(new.len() as u64)
    }
}

impl Round {
    fn nothing() -> Self {
        Self { postings: 0, findings: 0, is_done: true }
    }
}

/// By how much a clock was set back between two readings, each with when it was made here: the first one was made before, the
/// second one after that moment.
fn set_back(first: (Instant, Timestamp), second: (Instant, Timestamp)) -> SignedDuration {
    let passed = SignedDuration::try_from(second.0 - first.0).unwrap_or(SignedDuration::MAX);
    let shown = second.1.duration_since(first.1);
    let set_back = passed.saturating_sub(shown);
    if set_back > DRIFT { set_back } else { SignedDuration::ZERO }
}

/// How long the next slice should be after one of this length had so many postings and fences: so that it has [`CHUNK`], but not
/// four times as long.
fn next_width(width: SignedDuration, count: i64) -> SignedDuration {
    let micros = width.as_micros() * i128::from(CHUNK) / i128::from(count.max(CHUNK / 4));
    SignedDuration::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)).max(WIDTH.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_grow_where_nothing_happens_and_shrink_where_much_does() {
        let second = SignedDuration::from_secs(1);

        assert_eq!(next_width(second, 0), second * 4);
        assert_eq!(next_width(second, CHUNK), second);
        assert_eq!(next_width(second, CHUNK * 10), second / 10);
        assert_eq!(next_width(SignedDuration::from_micros(1), i64::MAX), SignedDuration::from_micros(1));
        assert_eq!(next_width(SignedDuration::from_micros(i64::MAX), 0).as_micros(), i128::from(i64::MAX));
    }

    #[test]
    fn a_clock_that_was_set_back_shows_in_the_time_that_passed_here() {
        let (then, noon) = (Instant::now(), Timestamp::from_second(43_200).unwrap());
        let minute = SignedDuration::from_secs(60);
        let now = then + Duration::from_secs(60);

        assert_eq!(set_back((then, noon), (now, noon + minute)), SignedDuration::ZERO);
        assert_eq!(set_back((then, noon), (now, noon + minute * 2)), SignedDuration::ZERO, "forward");
        assert_eq!(set_back((then, noon), (now, noon)), minute);
        assert_eq!(set_back((then, noon), (now, noon + minute - DRIFT)), SignedDuration::ZERO, "it drifts");
    }
}
