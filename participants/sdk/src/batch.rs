//! Natural group commit: many callers, few commits.
//!
//! A [`Batcher`] is a bounded queue with one or two executors, each of which owns a connection. While a batch is on its way
//! the next one gathers; when an executor is free it takes all that waits, up to a limit. There are no timers and no
//! linger: one caller alone waits for nothing, a thousand callers share one commit.
//!
//! A batch fails as a whole only when nothing can be known about it. If the server rejects it, it is split until the item
//! that is at fault stands alone, so neighbours never suffer. This module knows nothing of SQL; [`Executor`] is also the
//! seam at which tests put a store of their own.

use crate::{
    breaker::{Breaker, BreakerState, PROBE},
    retry::Backoff,
};
use std::{
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, mpsc, oneshot};

/// Does the work of a batch on one connection.
pub trait Executor: Send + 'static {
    /// One caller's part of a batch.
    type Item: Send + Sync + 'static;
    /// What that caller gets.
    type Answer: Send + 'static;

    /// Whether somebody waits for it, so that it must not stand in line behind what nobody waits for: such items have half of
    /// each batch to themselves.
    fn is_urgent(_: &Self::Item) -> bool {
        false
    }

    /// Whether the connection is there, as far as is known. If not, a batch connects first, and nothing of it is in doubt.
    fn is_connected(&self) -> bool {
        true
    }

    /// Makes the executor ready, dropping whatever connection it had.
    fn connect(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// How many of the batch that was answered last had no answer of their own.
    fn lost(&self) -> usize {
        0
    }

    /// Does all items in one transaction, or none. Answers in the order of the items, only after the commit.
    fn run(
        &mut self,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, Failure>> + Send;
}

/// Why a batch failed, by what is to be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The connection or the server is gone or out of resources. The batch may have happened.
    #[error("{0}")]
    Disconnected(String),
    /// Somebody else's commit came between. The batch did not happen; it is decided anew.
    #[error("{0}")]
    Conflict(String),
    /// The server does not take it. The batch did not happen; it is split.
    #[error("{0}")]
    Rejected(String),
    /// Somebody else holds a lock that it needs, for long. The batch did not happen; it is split.
    #[error("{0}")]
    Locked(String),
}

/// What a caller gets instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no answer from {target}: {why}")]
pub struct Unknown {
    /// The name of the batcher.
    pub target: Arc<str>,
    /// For people.
    pub why: String,
    /// The server rejected this item and serves others: it was not done. Otherwise it may have been done, or not.
    pub is_rejected: bool,
}

/// How a batcher works.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many items may wait. A caller above that waits with its item.
    pub queue: usize,
    /// How many items one batch takes at most. 256 is where the gain flattens.
    pub batch: usize,
    /// After this, a batch without an answer is given up, with its connection: its outcome is unknown.
    pub patience: Duration,
    /// Whether a target that answers too little is left alone for a moment.
    pub breaks: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue: 16_384, batch: 256, patience: Duration::from_secs(10), breaks: false }
    }
}

/// The queue's near end. Clones share it; when the last one is gone the executors finish what waits and stop.
pub struct Batcher<I, A> {
    name: Arc<str>,
    /// What is urgent, and everything else.
    queues: [mpsc::Sender<Job<I, A>>; 2],
    is_urgent: fn(&I) -> bool,
    /// How many executors have a connection, as far as they know; at the start all are taken to have one.
    serving: Arc<AtomicUsize>,
    trouble: Trouble,
    timer: Timer,
    breaker: Arc<Breaker>,
}

/// Why the connection that was tried last is not there. None, if it is.
type Trouble = Arc<std::sync::Mutex<Option<String>>>;

struct Job<I, A> {
    item: I,
    answer: oneshot::Sender<Result<A, Unknown>>,
}

impl<I, A> Clone for Batcher<I, A> {
    fn clone(&self) -> Self {
        Self {
            name: Arc::clone(&self.name),
            queues: self.queues.clone(),
            is_urgent: self.is_urgent,
            serving: Arc::clone(&self.serving),
            trouble: Arc::clone(&self.trouble),
            timer: Arc::clone(&self.timer),
            breaker: Arc::clone(&self.breaker),
        }
    }
}

/// Is told how long each batch took.
type Timer = Arc<OnceLock<Box<dyn Fn(Duration) + Send + Sync>>>;

impl<I: Send + Sync + 'static, A: Send + 'static> Batcher<I, A> {
    /// Starts one task per executor. They share the queue; each connects by itself, again and again if it must.
    pub fn start<E>(name: &str, executors: Vec<E>, limits: Limits) -> Self
    where
        E: Executor<Item = I, Answer = A>,
    {
        let (urgent, urgent_waiting) = mpsc::channel(limits.queue);
        let (other, other_waiting) = mpsc::channel(limits.queue);
        let waiting = Arc::new(Mutex::new([urgent_waiting, other_waiting]));
        let name: Arc<str> = name.into();
        let serving = Arc::new(AtomicUsize::new(executors.len()));
        let trouble = Trouble::default();
        let timer = Timer::default();
        let breaker = Arc::<Breaker>::default();
        for executor in executors {
            let worker = Worker {
                name: Arc::clone(&name),
                executor,
                waiting: Arc::clone(&waiting),
                serving: Arc::clone(&serving),
                trouble: Arc::clone(&trouble),
                timer: Arc::clone(&timer),
                is_serving: true,
                breaker: Arc::clone(&breaker),
                limits,
            };
            tokio::spawn(worker.work());
        }
        Self { name, queues: [urgent, other], is_urgent: E::is_urgent, serving, trouble, timer, breaker }
    }

    /// Puts an item into the next batch and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`Unknown`]: it may have been done. Do it again.
    pub async fn call(&self, item: I) -> Result<A, Unknown> {
        let (answer, answered) = oneshot::channel();
        let unknown =
            |why: &str| Unknown { target: Arc::clone(&self.name), why: why.to_owned(), is_rejected: false };
        if !self.is_reachable() {
            return Err(unknown("it is not reachable"));
        }
        let queue = &self.queues[usize::from(!(self.is_urgent)(&item))];
        queue.send(Job { item, answer }).await.map_err(|_| unknown("it has stopped"))?;
        answered.await.map_err(|_| unknown("it stopped while working"))?
    }

    /// Tells somebody how long each batch takes from now on. Only the first one who asks is told.
    pub fn timed_by(&self, timer: impl Fn(Duration) + Send + Sync + 'static) {
        let _ = self.timer.set(Box::new(timer));
    }

    /// Whether an executor has a connection, and the target is not left alone. If not, calls are answered at once.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.breaker() != BreakerState::Open
    }

    /// Whether an executor has a connection, whatever comes over it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.serving.load(Ordering::Relaxed) > 0
    }

    /// How its breaker stands. Without a connection it is open.
    #[must_use]
    pub fn breaker(&self) -> BreakerState {
        if self.is_connected() { self.breaker.state() } else { BreakerState::Open }
    }

    /// Why it is not reachable, for people. `None` if it is, or if no attempt to connect has failed yet.
    ///
    /// # Panics
    ///
    /// Never: no holder of its lock does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if !self.is_connected() {
            self.trouble.lock().expect("no holder panics").clone()
        } else if self.breaker.state() == BreakerState::Open {
            Some(LEFT_ALONE.into())
        } else {
            None
        }
    }

    /// How many items wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queues.iter().map(|queue| queue.max_capacity() - queue.capacity()).sum()
    }
}

/// The queues' far end, which executors share.
type Queue<I, A> = Arc<Mutex<[mpsc::Receiver<Job<I, A>>; 2]>>;

struct Worker<E: Executor> {
    name: Arc<str>,
    executor: E,
    waiting: Queue<E::Item, E::Answer>,
    serving: Arc<AtomicUsize>,
    trouble: Trouble,
    timer: Timer,
    /// Whether this one is counted there.
    is_serving: bool,
    breaker: Arc<Breaker>,
    limits: Limits,
}

/// What is said while the breaker is open.
const LEFT_ALONE: &str = "it answers too little at the moment, and is left alone";
/// How long connecting may take, handshake and preparations included.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a batch that conflicts is decided anew before it is split.
const CONFLICTS: u32 = 8;

impl<E: Executor> Worker<E> {
    async fn work(mut self) {
        loop {
            if !self.connect().await {
                return;
            }
            loop {
                let jobs = self.gather().await;
                if jobs.is_empty() {
                    return;
                }
                if self.breaker.state() == BreakerState::Open {
                    jobs.into_iter().for_each(|job| self.answer(job, Err(self.unknown(LEFT_ALONE, false))));
                    continue;
                }
                if let Err(why) = self.reconnect().await {
                    jobs.into_iter().for_each(|job| self.answer(job, Err(self.unknown(&why, false))));
                    break;
                }
                if !self.do_all(jobs).await {
                    break;
                }
            }
        }
    }

    /// Connects, however long it takes; meanwhile whoever waits is told so. `false` when nobody is left to work for.
    async fn connect(&mut self) -> bool {
        for attempt in 0.. {
            let connected = tokio::time::timeout(CONNECT, self.executor.connect()).await;
            let why = match connected {
                Ok(Ok(())) => {
                    tracing::debug!(target_name = &*self.name, "connected");
                    self.set_trouble(None);
                    self.set_serving(true);
                    return true;
                }
                Ok(Err(failure)) => failure.to_string(),
                Err(_) => format!("connecting takes more than {} s", CONNECT.as_secs()),
            };
            if attempt == 0 {
                tracing::warn!(target_name = &*self.name, why, "cannot connect; trying again");
            }
            self.set_trouble(Some(&why));
            self.set_serving(false);
            if !self.turn_away(&why).await {
                return false;
            }
            tokio::time::sleep(Backoff::CONNECTION.delay(attempt)).await;
        }
        unreachable!("attempts do not end")
    }

    /// A connection that was lost while nothing was to be done is made anew, once.
    async fn reconnect(&mut self) -> Result<(), String> {
        if self.executor.is_connected() {
            return Ok(());
        }
        match tokio::time::timeout(CONNECT, self.executor.connect()).await {
            Ok(connected) => connected.map_err(|failure| failure.to_string()),
            Err(_) => Err(format!("connecting takes more than {} s", CONNECT.as_secs())),
        }
    }

    fn set_trouble(&self, why: Option<&str>) {
        *self.trouble.lock().expect("no holder panics") = why.map(str::to_owned);
    }

    fn set_serving(&mut self, is_serving: bool) {
        match (self.is_serving, is_serving) {
            (false, true) => self.serving.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.serving.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
        self.is_serving = is_serving;
    }

    /// Answers whoever waits, unless a colleague is serving them.
    async fn turn_away(&mut self, why: &str) -> bool {
        let Ok(mut waiting) = self.waiting.try_lock() else { return true };
        let mut is_open = false;
        for queue in waiting.iter_mut() {
            loop {
                match queue.try_recv() {
                    Ok(job) => self.answer(job, Err(self.unknown(why, false))),
                    Err(mpsc::error::TryRecvError::Empty) => break is_open = true,
                    Err(mpsc::error::TryRecvError::Disconnected) => break,
                }
            }
        }
        is_open
    }

    /// All that waits, up to the limit; at least one job, or none when the queue has closed.
    async fn gather(&mut self) -> Vec<Job<E::Item, E::Answer>> {
        let mut waiting = self.waiting.lock().await;
        let [urgent, other] = &mut *waiting;
        let mut jobs = Vec::new();
        loop {
            let is_probing = self.breaker.state() == BreakerState::HalfOpen;
            let limit = if is_probing { self.limits.batch.min(PROBE) } else { self.limits.batch };
            fill(&mut jobs, urgent, limit.div_ceil(2));
            fill(&mut jobs, other, limit);
            fill(&mut jobs, urgent, limit);
            if !jobs.is_empty() {
                return jobs;
            }
            tokio::select! {
                biased;
                Some(job) = urgent.recv() => jobs.push(job),
                Some(job) = other.recv() => jobs.push(job),
                else => return jobs,
            }
        }
    }

    /// Does the jobs, in halves where it must. `false` when the connection is lost.
    async fn do_all(&mut self, jobs: Vec<Job<E::Item, E::Answer>>) -> bool {
        let mut parts = vec![jobs];
        while let Some(mut part) = parts.pop() {
            let (items, answers): (Vec<_>, Vec<_>) = part.drain(..).map(|job| (job.item, job.answer)).unzip();
            match self.run(&items).await {
                Ok(results) => {
                    debug_assert_eq!(results.len(), answers.len());
                    let lost = self.executor.lost().min(results.len());
                    self.count(results.len() - lost, lost);
                    for (answer, result) in answers.into_iter().zip(results) {
                        // A caller that no longer waits is no reason not to have done its work.
                        let _ = answer.send(Ok(result));
                    }
                }
                Err(Failure::Disconnected(why)) => {
                    tracing::warn!(
                        target_name = &*self.name,
                        why,
                        items = items.len(),
                        "a batch has no answer"
                    );
                    self.count(0, items.len());
                    for answer in answers {
                        let _ = answer.send(Err(self.unknown(&why, false)));
                    }
                    for job in parts.into_iter().flatten() {
                        self.answer(job, Err(self.unknown(&why, false)));
                    }
                    return false;
                }
                Err(Failure::Locked(why)) if items.len() == 1 => {
                    for answer in answers {
                        let _ = answer.send(Err(self.unknown(&why, false)));
                    }
                }
                Err(Failure::Conflict(why) | Failure::Rejected(why)) if items.len() == 1 => {
                    tracing::warn!(target_name = &*self.name, why, "an item cannot be done");
                    for answer in answers {
                        let _ = answer.send(Err(self.unknown(&why, true)));
                    }
                }
                Err(Failure::Conflict(_) | Failure::Rejected(_) | Failure::Locked(_)) => {
                    let mut left: Vec<_> =
                        items.into_iter().zip(answers).map(|(item, answer)| Job { item, answer }).collect();
                    let right = left.split_off(left.len() / 2);
                    parts.push(right);
                    parts.push(left);
                }
            }
        }
        true
    }

    async fn run(&mut self, items: &[E::Item]) -> Result<Vec<E::Answer>, Failure> {
        let mut last = Failure::Conflict(String::new());
        for _ in 0..CONFLICTS {
            let began = Instant::now();
            let ran = tokio::time::timeout(self.limits.patience, self.executor.run(items)).await;
            if let Some(timer) = self.timer.get() {
                timer(began.elapsed());
            }
            match ran {
                Ok(Err(Failure::Conflict(why))) => last = Failure::Conflict(why),
                Ok(result) => return result,
                Err(_) => {
                    return Err(Failure::Disconnected(format!(
                        "no answer for {} s",
                        self.limits.patience.as_secs()
                    )));
                }
            }
        }
        Err(last)
    }

    fn count(&self, answered: usize, lost: usize) {
        if self.limits.breaks {
            self.breaker.count(answered, lost);
        }
    }

    fn answer(&self, job: Job<E::Item, E::Answer>, result: Result<E::Answer, Unknown>) {
        let _ = job.answer.send(result);
    }

    fn unknown(&self, why: &str, is_rejected: bool) -> Unknown {
        Unknown { target: Arc::clone(&self.name), why: why.to_owned(), is_rejected }
    }
}

/// Takes what waits, up to so many in all.
fn fill<J>(jobs: &mut Vec<J>, queue: &mut mpsc::Receiver<J>, limit: usize) {
    while jobs.len() < limit
        && let Ok(job) = queue.try_recv()
    {
        jobs.push(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use std::sync::atomic::AtomicBool;

    /// Doubles numbers. 13 is poison, and 17 is locked; `cuts` batches lose the connection; `conflicts` batches conflict first.
    struct Doubler {
        batches: Arc<std::sync::Mutex<Vec<usize>>>,
        urgent: Arc<std::sync::Mutex<Vec<usize>>>,
        cuts: usize,
        conflicts: usize,
        /// So many of each batch have no answer of their own.
        unanswered: usize,
        gate: Option<Arc<tokio::sync::Semaphore>>,
        started: Arc<AtomicBool>,
        way: Arc<Way>,
    }

    /// The way to the server.
    #[derive(Default)]
    struct Way {
        is_closed: AtomicBool,
        is_cut: AtomicBool,
        connects: AtomicUsize,
    }

    impl Executor for Doubler {
        type Item = u32;
        type Answer = u32;

        fn is_urgent(item: &u32) -> bool {
            *item >= 1_000
        }

        fn is_connected(&self) -> bool {
            !self.way.is_cut.load(Ordering::SeqCst)
        }

        fn lost(&self) -> usize {
            self.unanswered
        }

        async fn connect(&mut self) -> Result<(), Failure> {
            if self.way.is_closed.load(Ordering::SeqCst) {
                return Err(Failure::Disconnected("no way".into()));
            }
            self.way.is_cut.store(false, Ordering::SeqCst);
            self.way.connects.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        async fn run(&mut self, items: &[u32]) -> Result<Vec<u32>, Failure> {
            self.started.store(true, Ordering::SeqCst);
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            self.batches.lock().unwrap().push(items.len());
            self.urgent.lock().unwrap().push(items.iter().filter(|item| Self::is_urgent(item)).count());
            if self.cuts > 0 {
                self.cuts -= 1;
                return Err(Failure::Disconnected("cut".into()));
            }
            if self.conflicts > 0 {
                self.conflicts -= 1;
                return Err(Failure::Conflict("rival".into()));
            }
            if items.contains(&13) {
                return Err(Failure::Rejected("poison".into()));
            }
            if items.contains(&17) {
                return Err(Failure::Locked("locked".into()));
            }
            Ok(items.iter().map(|item| item * 2).collect())
        }
    }

    fn doubler() -> (Doubler, Arc<std::sync::Mutex<Vec<usize>>>) {
        let batches = Arc::new(std::sync::Mutex::new(Vec::new()));
        (
            Doubler {
                batches: Arc::clone(&batches),
                urgent: Arc::default(),
                cuts: 0,
                conflicts: 0,
                unanswered: 0,
                gate: None,
                started: Arc::default(),
                way: Arc::default(),
            },
            batches,
        )
    }

    #[tokio::test]
    async fn whoever_waits_while_a_batch_is_on_its_way_shares_the_next_one() {
        let (mut executor, batches) = doubler();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        executor.gate = Some(Arc::clone(&gate));
        let started = Arc::clone(&executor.started);
        let batcher = Batcher::start("doubler", vec![executor], Limits::default());

        let call = |n| {
            tokio::spawn({
                let batcher = batcher.clone();
                async move { batcher.call(n).await }
            })
        };
        let first = call(100);
        while !started.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (101..200).map(call).collect();
        while batcher.queued() < 99 {
            tokio::task::yield_now().await;
        }
        assert_eq!(batcher.queued(), 99);
        gate.add_permits(2);
        let answers = join_all([first].into_iter().chain(others)).await;

        assert!(
            answers.into_iter().enumerate().all(|(n, answer)| answer.unwrap() == Ok((n as u32 + 100) * 2))
        );
        assert_eq!(*batches.lock().unwrap(), [1, 99]);
    }

    #[tokio::test]
    async fn what_is_urgent_has_half_of_each_batch_and_all_that_is_left() {
        let (mut executor, batches) = doubler();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        executor.gate = Some(Arc::clone(&gate));
        let urgent = Arc::clone(&executor.urgent);
        let limits = Limits { batch: 9, ..Limits::default() };
        let batcher = Batcher::start("doubler", vec![executor], limits);
        let mut calls = futures::future::join_all((100..121).chain(1_000..1_020).map(|n| batcher.call(n)));
        // All of them wait before the executor first looks.
        assert!(futures::poll!(&mut calls).is_pending());

        gate.add_permits(10);
        calls.await;

        assert_eq!(*batches.lock().unwrap(), [9, 9, 9, 9, 5]);
        assert_eq!(*urgent.lock().unwrap(), [5, 5, 5, 5, 0]);
    }

    #[tokio::test]
    async fn an_item_that_cannot_be_done_is_unknown_and_its_neighbours_are_done() {
        let (executor, _) = doubler();
        let batcher = Batcher::start("doubler", vec![executor], Limits::default());

        let answers = join_all((0..100).map(|n| batcher.call(n))).await;

        for (n, answer) in answers.into_iter().enumerate() {
            match n {
                13 => assert!(answer.unwrap_err().is_rejected),
                17 => assert!(!answer.unwrap_err().is_rejected, "who has locked it lets go some time"),
                _ => assert_eq!(answer, Ok(n as u32 * 2)),
            }
        }
    }

    #[tokio::test]
    async fn a_lost_connection_makes_the_batch_unknown_and_the_next_one_works() {
        let (mut executor, _) = doubler();
        executor.cuts = 1;
        let batcher = Batcher::start("doubler", vec![executor], Limits::default());

        assert_eq!(batcher.call(1).await.unwrap_err().why, "cut");
        while !batcher.is_reachable() {
            tokio::task::yield_now().await;
        }
        assert_eq!(batcher.call(2).await, Ok(4));
    }

    #[tokio::test]
    async fn a_target_that_answers_nothing_is_left_alone_and_then_asked_a_little() {
        let (mut executor, batches) = doubler();
        executor.cuts = 5;
        let limits = Limits { breaks: true, ..Limits::default() };
        let batcher = Batcher::start("doubler", vec![executor], limits);

        // The first one of these is lost, and with it more than a tenth.
        let answers = join_all((100..200).map(|n| batcher.call(n))).await;
        assert!(answers.iter().all(Result::is_err));
        assert_eq!(batcher.breaker(), BreakerState::Open);
        let asked = batches.lock().unwrap().len();
        assert!(batcher.call(1).await.is_err());
        assert_eq!(batches.lock().unwrap().len(), asked, "nothing is asked while it is open");
        while join_all((100..200).map(|n| batcher.call(n))).await.iter().all(Result::is_err) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(batcher.breaker(), BreakerState::Closed);
        assert_eq!(batches.lock().unwrap()[asked], PROBE);
    }

    #[tokio::test]
    async fn a_batch_that_conflicts_is_decided_anew() {
        let (mut executor, batches) = doubler();
        executor.conflicts = 2;
        let batcher = Batcher::start("doubler", vec![executor], Limits::default());

        assert_eq!(batcher.call(2).await, Ok(4));
        assert_eq!(*batches.lock().unwrap(), [1, 1, 1]);
    }

    #[tokio::test]
    async fn what_conflicts_again_and_again_is_told_so() {
        let (mut executor, batches) = doubler();
        executor.conflicts = usize::MAX;
        let batcher = Batcher::start("doubler", vec![executor], Limits::default());

        assert!(batcher.call(2).await.unwrap_err().is_rejected);
        assert_eq!(batches.lock().unwrap().len(), CONFLICTS as usize);
    }

    #[tokio::test]
    async fn without_a_connection_whoever_waits_is_told_why_until_there_is_one() {
        let (executor, _) = doubler();
        let way = Arc::clone(&executor.way);
        way.is_closed.store(true, Ordering::SeqCst);
        let batcher = Batcher::start("doubler", vec![executor], Limits::default());

        assert_eq!(batcher.call(1).await.unwrap_err().why, "no way");
        while batcher.is_connected() {
            tokio::task::yield_now().await;
        }
        assert_eq!(batcher.breaker(), BreakerState::Open);
        assert_eq!(batcher.trouble().as_deref(), Some("no way"));
        assert_eq!(batcher.call(1).await.unwrap_err().why, "it is not reachable");
        way.is_closed.store(false, Ordering::SeqCst);
        while !batcher.is_reachable() {
            tokio::task::yield_now().await;
        }
        assert!(batcher.is_connected());
        assert_eq!((batcher.call(1).await, batcher.trouble()), (Ok(2), None));
    }

    #[tokio::test]
    async fn a_connection_lasts_and_one_that_was_lost_meanwhile_is_made_anew() {
        let (executor, _) = doubler();
        let way = Arc::clone(&executor.way);
        let batcher = Batcher::start("doubler", vec![executor], Limits::default());
        let connects = || way.connects.load(Ordering::SeqCst);

        let first = [batcher.call(1).await, batcher.call(2).await];
        assert_eq!((first, connects()), ([Ok(2), Ok(4)], 1));
        way.is_cut.store(true, Ordering::SeqCst);
        assert_eq!((batcher.call(3).await, connects()), (Ok(6), 2));
        way.is_closed.store(true, Ordering::SeqCst);
        way.is_cut.store(true, Ordering::SeqCst);
        assert_eq!(batcher.call(4).await.unwrap_err().why, "no way");
    }

    #[tokio::test]
    async fn what_has_no_answer_of_its_own_counts_as_lost() {
        // A tenth is still borne.
        for (unanswered, then) in
            [(3, BreakerState::Closed), (5, BreakerState::Closed), (6, BreakerState::Open)]
        {
            let (mut executor, _) = doubler();
            executor.unanswered = unanswered;
            let limits = Limits { breaks: true, ..Limits::default() };
            let batcher = Batcher::start("doubler", vec![executor], limits);

            let answers = join_all((100..150).map(|n| batcher.call(n))).await;

            assert!(answers.iter().all(Result::is_ok));
            assert_eq!(batcher.breaker(), then, "{unanswered} of 50");
            assert_eq!(batcher.trouble().is_some(), then == BreakerState::Open);
        }
    }

    #[tokio::test]
    async fn how_long_each_batch_takes_is_told() {
        let (executor, batches) = doubler();
        let batcher = Batcher::start("doubler", vec![executor], Limits::default());
        let told = Arc::new(AtomicUsize::new(0));
        let timer = Arc::clone(&told);
        batcher.timed_by(move |_| {
            timer.fetch_add(1, Ordering::SeqCst);
        });

        batcher.call(1).await.unwrap();
        batcher.call(2).await.unwrap();

        assert_eq!((told.load(Ordering::SeqCst), batches.lock().unwrap().len()), (2, 2));
    }

    #[test]
    fn an_executor_that_says_no_more_is_always_ready_and_in_no_hurry() {
        struct Plain;
        impl Executor for Plain {
            type Item = ();
            type Answer = ();
            async fn connect(&mut self) -> Result<(), Failure> {
                Ok(())
            }
            async fn run(&mut self, _: &[()]) -> Result<Vec<()>, Failure> {
                Ok(Vec::new())
            }
        }

        assert!(!Plain::is_urgent(&()) && Plain.is_connected());
        assert_eq!(Plain.lost(), 0);
    }
}
