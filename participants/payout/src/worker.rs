//! Asks the provider, and asks again, until it is known what became of each payout.
//!
//! It goes by the table alone: what is in line or asked for is there, whoever put it there, before or after a crash, and
//! whatever a coordinator remembers. First due, first asked. For each payout:
//!
//! 1. It is committed that it is asked for (its fence is `confirming`). Whoever dies after that has perhaps asked.
//! 2. If it may have been asked for before, it is looked up, where the provider can be asked; it is asked for again only if
//!    it is not there. Where it cannot be looked up it is asked for with the same key, as long as the provider knows the key
//!    again. After that it stays unknown, says so, and waits for a person.
//! 3. What became of it is committed. Anything else, no answer above all, is unknown: it is asked again, after a pause that
//!    grows, for ever.
//!
//! A refusal proves that nothing was done only if no other request of the same payout can still arrive. After one without an
//! answer it is therefore believed only when that is so long ago that it cannot.
//!
//! A provider that does not answer is left alone ([`Breaker`]): what is due waits in line, where it can still be cancelled.
//! When it answers again, those that were put off come back at once, first due first.

use crate::{
    book::{Book, Ending, Leave, Waiting},
    breaker::Breaker,
    provider::{PayoutId, Provider, Said},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};
use tcc_participant::retry::Backoff;
use tokio::{
    sync::{Notify, Semaphore, broadcast},
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// So many of the line are read at a time, beside those that are put off.
const WINDOW: usize = 256;
/// How often the line is read when nobody says that something is in it.
const POLL: Duration = Duration::from_secs(1);
/// When one payout is asked for again: after 1 s, doubling, up to a minute.
const AGAIN: Backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60) };
/// So many that have ended are kept for whoever waits for one of them.
const ENDED: usize = 1_024;
/// How long a provider is left alone that wants no more and does not say for how long.
const TOO_MANY: Duration = Duration::from_secs(1);

/// What a provider can take, and for how long it remembers.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    /// For how long it knows a key again.
    pub key_memory: Duration,
    /// For how long a request without an answer may still arrive.
    pub late: Duration,
    /// How many requests a second.
    pub calls_per_second: u32,
    /// How many at a time.
    pub at_a_time: usize,
}

/// Asks one provider for the payouts of one book.
pub struct Worker<B, P> {
    book: B,
    provider: P,
    manners: Manners,
    /// Since when it works; not at all if somebody else does.
    working_since: Mutex<Option<Instant>>,
    breaker: Mutex<Breaker>,
    pace: tokio::sync::Mutex<Interval>,
    known: Mutex<HashMap<PayoutId, Known>>,
    /// Something is in line, or may be asked for again.
    look: Notify,
    /// Who has ended.
    ended: broadcast::Sender<PayoutId>,
}

/// Whether what a person has found out is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It is.
    Certainly,
    /// Nobody knows.
    Perhaps,
    /// The provider is being asked for it just now.
    Busy,
    /// Another process asks the provider.
    Elsewhere,
}

/// What is known of a payout that is not over.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Somebody is at it.
    is_busy: bool,
    /// Not before then.
    until: Option<Instant>,
    /// Since when nobody knows.
    unknown_since: Option<Instant>,
    /// When a request without an answer was given up.
    doubtful_since: Option<Instant>,
}

impl<B: Book, P: Provider> Worker<B, P> {
    /// A worker that does nothing yet.
    pub fn new(book: B, provider: P, manners: Manners) -> Arc<Self> {
        let mut pace = interval(Duration::from_secs(1) / manners.calls_per_second.max(1));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Arc::new(Self {
            book,
            provider,
            manners,
            working_since: Mutex::default(),
            breaker: Mutex::default(),
            pace: tokio::sync::Mutex::new(pace),
            known: Mutex::default(),
            look: Notify::new(),
            ended: broadcast::Sender::new(ENDED),
        })
    }

    /// Something new is in line.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Says from now on who has ended, one way or the other.
    pub fn endings(&self) -> broadcast::Receiver<PayoutId> {
        self.ended.subscribe()
    }

    /// Why the provider is not asked at this moment.
    pub fn held_up(&self) -> Option<&'static str> {
        let breaker = self.breaker.lock().expect("no holder panics");
        breaker.is_open().then_some("the provider does not answer; it is tried again by itself")
    }

    /// Works until `stop`, and then until what it has begun is done.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        // Whoever worked meanwhile has asked for what is not known here.
        self.known.lock().expect("no holder panics").clear();
        *self.working_since.lock().expect("no holder panics") = Some(Instant::now());
        let slots = Arc::new(Semaphore::new(self.manners.at_a_time.max(1)));
        let (mut line, mut tasks) = (VecDeque::new(), JoinSet::new());
        while !stop.is_cancelled() {
            while tasks.try_join_next().is_some() {}
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await.expect("it is never closed");
                if let Err(later) = self.admit() {
                    sleep_until(later).await;
                    // What was read before the pause is no longer the line.
                    return Err(None);
                }
                if line.is_empty() {
                    line = self.read_line().await;
                }
                let taken = std::iter::from_fn(|| line.pop_front()).find(|waiting| self.take(waiting));
                match taken {
                    Some(waiting) => Ok((waiting, slot)),
                    None => Err(Some(self.next_look())),
                }
            };
            let Some(next) = stop.run_until_cancelled(next).await else { break };
            match next {
                Ok((waiting, slot)) => {
                    let worker = Arc::clone(&self);
                    tasks.spawn(async move {
                        worker.work(waiting).await;
                        drop(slot);
                    });
                }
                Err(None) => line.clear(),
                Err(Some(at)) => {
                    self.unused();
                    let wait = async { drop(timeout(at - Instant::now(), self.look.notified()).await) };
                    stop.run_until_cancelled(wait).await;
                }
            }
        }
        *self.working_since.lock().expect("no holder panics") = None;
        while tasks.join_next().await.is_some() {}
    }

    async fn read_line(&self) -> VecDeque<Waiting> {
        let (most, busy) = {
            let known = self.known.lock().expect("no holder panics");
            let busy = known.iter().filter(|(_, known)| known.is_busy).map(|(id, _)| *id);
            (WINDOW + known.len(), busy.collect::<HashSet<_>>())
        };
        let line = match self.book.line(most).await {
            Ok(line) => line,
            Err(why) => {
                tracing::warn!(why, "the line of payouts cannot be read");
                return VecDeque::new();
            }
        };
        if line.len() < most {
            // This is all there is. What is not in it was cancelled, or settled by somebody else.
            let there: HashSet<PayoutId> = line.iter().map(|waiting| waiting.order.id).collect();
            let mut known = self.known.lock().expect("no holder panics");
            known.retain(|id, known| known.is_busy || there.contains(id));
        }
        // What somebody was at may be over by now, whatever was read.
        line.into_iter().filter(|waiting| !busy.contains(&waiting.order.id)).collect()
    }

    /// Writes down what a person has found out, and who that was.
    pub async fn settle(&self, waiting: &Waiting, ending: Ending, by: &str) -> Settled {
        let id = waiting.order.id;
        if self.working_since.lock().expect("no holder panics").is_none() {
            return Settled::Elsewhere;
        }
        let mut is_free = false;
        self.remember(id, |known| {
            is_free = !known.is_busy;
            known.is_busy = true;
        });
        if !is_free {
            return Settled::Busy;
        }
        if self.book.end(waiting, ending, Some(by)).await {
            self.forget(id);
            Settled::Certainly
        } else {
            self.put_off(id);
            Settled::Perhaps
        }
    }

    /// Whether it is this payout's turn. If so, nobody else takes it.
    fn take(&self, waiting: &Waiting) -> bool {
        let since = *self.working_since.lock().expect("no holder panics");
        let mut known = self.known.lock().expect("no holder panics");
        let entry = known.entry(waiting.order.id).or_insert_with(|| Known {
            // Whoever had asked before this worker began may have done so just then.
            doubtful_since: waiting.asked_for.and(since),
            ..Known::default()
        });
        let is_free = !entry.is_busy && entry.until.is_none_or(|until| until <= Instant::now());
        entry.is_busy |= is_free;
        is_free
    }

    fn next_look(&self) -> Instant {
        let known = self.known.lock().expect("no holder panics");
        let poll = Instant::now() + POLL;
        let waits = known.values().filter(|known| !known.is_busy).filter_map(|known| known.until);
        waits.min().map_or(poll, |until| until.min(poll))
    }

    fn admit(&self) -> Result<(), Instant> {
        self.breaker.lock().expect("no holder panics").admit(Instant::now())
    }

    fn unused(&self) {
        self.breaker.lock().expect("no holder panics").unused();
    }

    /// One payout, one time.
    async fn work(&self, waiting: Waiting) {
        let id = waiting.order.id;
        // Each time: meanwhile it may have been cancelled, or a person has said what became of it.
        match self.book.ask(&waiting).await {
            Leave::Given { was_asked: true } if waiting.asked_for.is_none() => {
                // Somebody else has asked since the line was read, perhaps just now.
                self.unused();
                self.remember(id, |known| known.doubtful_since = Some(Instant::now()));
                return self.put_off(id);
            }
            Leave::Given { .. } => {}
            Leave::Over => {
                self.unused();
                return self.forget(id);
            }
            Leave::NotNow => {
                self.unused();
                return self.put_off(id);
            }
        }
        let said = self.find_out(&waiting).await;
        let ending = match said {
            Said::Paid { reference } => Ending::Paid { reference },
            Said::Never(refusal) => Ending::Never(refusal),
            Said::Pending => {
                self.book.remark(&waiting, "the provider has it, and has not paid it yet").await;
                return self.put_off(id);
            }
            Said::TooMany(_) | Said::NotThere => return self.put_off(id),
            Said::Unknown(why) => {
                tracing::debug!(id = %id.transaction, why, "a payout is not known");
                self.book.remark(&waiting, &why).await;
                return self.put_off(id);
            }
        };
        if self.book.end(&waiting, ending, None).await {
            self.forget(id);
        } else {
            self.put_off(id);
        }
    }

    /// What became of it, or of asking for it.
    async fn find_out(&self, waiting: &Waiting) -> Said {
        let order = &waiting.order;
        if let Some(age) = waiting.asked_for {
            let is_remembered = age + self.manners.late < self.manners.key_memory;
            if !is_remembered && self.is_doubtful(order.id) {
                self.unused();
                return Said::Unknown("it was asked for, and that may still arrive".into());
            }
            if self.provider.can_look_up() {
                match self.call(self.provider.look_up(order)).await {
                    Said::NotThere => {}
                    said => return said,
                }
            } else if !is_remembered {
                self.unused();
                return Said::Unknown(
                    "it was asked for so long ago that the provider may have forgotten its key, and it cannot be looked \
                     up; find out, and say so with `tccctl payout settle`"
                        .into(),
                );
            }
        }
        match self.call(self.provider.send(order)).await {
            Said::Never(refusal) if self.is_doubtful(order.id) => Said::Unknown(format!(
                "the provider refuses it ({refusal}), but was asked before without an answer; that may still arrive"
            )),
            Said::Unknown(why) => {
                self.remember(order.id, |known| known.doubtful_since = Some(Instant::now()));
                Said::Unknown(why)
            }
            // A look-up's word, and no answer to this.
            Said::NotThere => Said::Unknown("the provider says that it is not there".into()),
            said => said,
        }
    }

    /// Whether a request without an answer may still arrive.
    fn is_doubtful(&self, id: PayoutId) -> bool {
        let known = self.known.lock().expect("no holder panics");
        let since = known.get(&id).and_then(|known| known.doubtful_since);
        since.is_some_and(|since| since.elapsed() < self.manners.late)
    }

    /// One request, at the provider's pace.
    async fn call(&self, request: impl Future<Output = Said>) -> Said {
        self.pace.lock().await.tick().await;
        let said = request.await;
        self.note(&said);
        said
    }

    fn note(&self, said: &Said) {
        let now = Instant::now();
        let answers_again = {
            let mut breaker = self.breaker.lock().expect("no holder panics");
            match said {
                Said::TooMany(pause) => {
                    breaker.leave_alone(pause.unwrap_or(TOO_MANY), now);
                    false
                }
                said => {
                    let was_open = breaker.is_open();
                    let closed = breaker.note(!matches!(said, Said::Unknown(_)), now);
                    if !was_open && breaker.is_open() {
                        tracing::warn!("the provider does not answer; payouts wait in line");
                    }
                    closed
                }
            }
        };
        if answers_again {
            tracing::info!("the provider answers again");
            let mut known = self.known.lock().expect("no holder panics");
            known.values_mut().for_each(|known| known.until = None);
            drop(known);
            self.look();
        }
    }

    fn remember(&self, id: PayoutId, change: impl FnOnce(&mut Known)) {
        change(self.known.lock().expect("no holder panics").entry(id).or_default());
    }

    fn put_off(&self, id: PayoutId) {
        let now = Instant::now();
        self.remember(id, |known| {
            let since = *known.unknown_since.get_or_insert(now);
            known.until = Some(now + AGAIN.delay_after(now - since));
            known.is_busy = false;
        });
    }

    fn forget(&self, id: PayoutId) {
        self.known.lock().expect("no holder panics").remove(&id);
        // Nobody has to wait for it.
        drop(self.ended.send(id));
    }
}
