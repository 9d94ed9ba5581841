//! The payouts' worker on a virtual clock: outages of minutes, memories of hours, and answers that prove nothing.

use futures::future::BoxFuture;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tcc_core::{Refusal, Timestamp, TransactionId};
use tcc_payout::{
    book::{Book, Ending, Leave, Waiting},
    provider::{Order, PayoutId, Provider, Said},
    worker::{Manners, Settled, Worker},
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const CLOSED: Refusal = Refusal::own("ACCOUNT_CLOSED");
const MANNERS: Manners = Manners {
    key_memory: Duration::from_secs(24 * 3_600),
    late: Duration::from_secs(60),
    calls_per_second: 50,
    at_a_time: 8,
};

fn id(number: u64) -> PayoutId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    PayoutId { transaction: TransactionId::mint(Timestamp::UNIX_EPOCH, random), branch: 0 }
}

/// A book in memory. A payout's number is its due time.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<u64, Page>>>);

#[derive(Clone, Default)]
struct Page {
    asked_at: Option<Instant>,
    ending: Option<Ending>,
    remark: String,
}

impl Memory {
    fn put(&self, numbers: impl Iterator<Item = u64>) {
        self.0.lock().unwrap().extend(numbers.map(|number| (number, Page::default())));
    }

    fn page(&self, number: u64) -> Page {
        self.0.lock().unwrap()[&number].clone()
    }

    fn open(&self) -> usize {
        self.0.lock().unwrap().values().filter(|page| page.ending.is_none()).count()
    }

    fn write<T>(&self, waiting: &Waiting, change: impl FnOnce(&mut Page) -> T) -> T {
        let number = waiting.order.amount as u64;
        change(self.0.lock().unwrap().get_mut(&number).expect("it is in the book"))
    }
}

impl Book for Memory {
    async fn line(&self, most: usize) -> Result<Vec<Waiting>, String> {
        let book = self.0.lock().unwrap();
        let open = book.iter().filter(|(_, page)| page.ending.is_none());
        let waiting = open.map(|(number, page)| Waiting {
            order: Order {
                id: id(*number),
                recipient: "r".into(),
                destination: "d".into(),
                amount: *number as i64,
                currency: "GOLD".into(),
            },
            asked_for: page.asked_at.map(|at| at.elapsed()),
            descriptor: Vec::new(),
        });
        Ok(waiting.take(most).collect())
    }

    async fn ask(&self, waiting: &Waiting) -> Leave {
        self.write(waiting, |page| match page.ending {
            Some(_) => Leave::Over,
            None => {
                let was_asked = page.asked_at.is_some();
                page.asked_at.get_or_insert_with(Instant::now);
                Leave::Given { was_asked }
            }
        })
    }

    async fn end(&self, waiting: &Waiting, ending: Ending, _: Option<&str>) -> bool {
        self.write(waiting, |page| page.ending = Some(ending));
        true
    }

    async fn remark(&self, waiting: &Waiting, why: &str) {
        self.write(waiting, |page| why.clone_into(&mut page.remark));
    }
}

/// What a provider does with a request.
#[derive(Debug, Clone, PartialEq)]
enum Mood {
    /// It pays.
    Pays,
    /// Nobody answers, and nothing is done.
    Silent,
    /// It pays, and nobody answers.
    PaysSilently,
    /// It refuses.
    Refuses,
}

/// A provider whose mood the test sets, and which writes down what it is asked.
#[derive(Clone)]
struct Fake(Arc<Mutex<Mind>>);

struct Mind {
    mood: Mood,
    can_look_up: bool,
    memory: Duration,
    keys: HashMap<String, Instant>,
    paid: Vec<u64>,
    /// When it was sent what.
    sent: Vec<(Instant, u64)>,
    looked_up: usize,
}

impl Fake {
    fn new(mood: Mood, can_look_up: bool) -> Self {
        Self(Arc::new(Mutex::new(Mind {
            mood,
            can_look_up,
            memory: MANNERS.key_memory,
            keys: HashMap::new(),
            paid: Vec::new(),
            sent: Vec::new(),
            looked_up: 0,
        })))
    }

    fn set(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    fn sent(&self) -> Vec<(Instant, u64)> {
        self.0.lock().unwrap().sent.clone()
    }

    fn paid(&self) -> Vec<u64> {
        self.0.lock().unwrap().paid.clone()
    }
}

impl Provider for Fake {
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Said> {
        Box::pin(async move {
            let number = order.amount as u64;
            let mood = {
                let mut mind = self.0.lock().unwrap();
                mind.sent.push((Instant::now(), number));
                mind.mood.clone()
            };
            let pay = || {
                let mut mind = self.0.lock().unwrap();
                let (memory, now) = (mind.memory, Instant::now());
                let is_known = mind.keys.get(&order.id.key()).is_some_and(|at| now - *at < memory);
                if !is_known {
                    mind.keys.insert(order.id.key(), now);
                    mind.paid.push(number);
                }
            };
            match mood {
                Mood::Pays => {
                    sleep(Duration::from_millis(20)).await;
                    pay();
                    Said::Paid { reference: number.to_string() }
                }
                Mood::Refuses => Said::Never(CLOSED),
                Mood::Silent | Mood::PaysSilently => {
                    if mood == Mood::PaysSilently {
                        pay();
                    }
                    sleep(Duration::from_secs(10)).await;
                    Said::Unknown("no answer".into())
                }
            }
        })
    }

    fn can_look_up(&self) -> bool {
        self.0.lock().unwrap().can_look_up
    }

    fn look_up<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Said> {
        Box::pin(async move {
            let mut mind = self.0.lock().unwrap();
            mind.looked_up += 1;
            if mind.mood == Mood::Silent {
                return Said::Unknown("no answer".into());
            }
            match mind.paid.contains(&(order.amount as u64)) {
                true => Said::Paid { reference: order.amount.to_string() },
                false => Said::NotThere,
            }
        })
    }
}

/// Starts a worker, until the token is cancelled.
fn work(book: &Memory, provider: &Fake) -> CancellationToken {
    let stop = CancellationToken::new();
    tokio::spawn(Worker::new(book.clone(), provider.clone(), MANNERS).run(stop.clone()));
    stop
}

async fn until(what: &str, patience: Duration, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(100)).await;
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn an_outage_of_ten_minutes_is_a_backlog_that_drains_in_the_order_of_due_times() {
    let (book, provider) = (Memory::default(), Fake::new(Mood::Silent, true));
    book.put(0..5_000);
    let _stop = work(&book, &provider).drop_guard();

    sleep(10 * MINUTE).await;
    let during = provider.sent().len();
    assert!(during < 100, "a provider that does not answer is left alone, and was asked {during} times");
    assert_eq!(book.open(), 5_000, "nothing has failed");
    provider.set(Mood::Pays);
    let back = Instant::now();
    until("all are paid", 5 * MINUTE, || book.open() == 0).await;

    let mut paid = provider.paid();
    let (mut late, mut last) = (0, 0);
    for number in &paid {
        late += usize::from(*number + 64 < last);
        last = last.max(*number);
    }
    assert!(late <= during, "{late} were paid out of order");
    paid.sort_unstable();
    assert!(paid.iter().copied().eq(0..5_000), "each is paid once");
    let took = back.elapsed();
    assert!(took >= Duration::from_secs(4_900 / 50), "the provider's rate is kept: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_paid_without_an_answer_is_looked_up_and_not_paid_again() {
    for can_look_up in [true, false] {
        let (book, provider) = (Memory::default(), Fake::new(Mood::PaysSilently, can_look_up));
        book.put(0..5);
        let stop = work(&book, &provider);
        until("all are asked for", MINUTE, || provider.sent().len() >= 5).await;

        // The worker is gone in the middle, and the next one knows nothing but the book.
        stop.cancel();
        provider.set(Mood::Pays);
        let _stop = work(&book, &provider).drop_guard();
        until("all are known", 5 * MINUTE, || book.open() == 0).await;

        let paid: HashSet<u64> = provider.paid().into_iter().collect();
        assert_eq!((provider.paid().len(), paid.len()), (5, 5), "can_look_up: {can_look_up}");
        let again = provider.sent().len() - 5;
        assert_eq!(again == 0, can_look_up, "{again} were sent again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_silence_is_believed_only_when_nothing_can_arrive_any_more() {
    let (book, provider) = (Memory::default(), Fake::new(Mood::Silent, false));
    book.put(0..1);
    let _stop = work(&book, &provider).drop_guard();
    until("it is asked for", MINUTE, || provider.sent().len() == 1).await;
    sleep(Duration::from_secs(10)).await;
    let silent_until = Instant::now();
    provider.set(Mood::Refuses);

    until("it is asked for again", MINUTE, || provider.sent().len() >= 2).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(book.page(0).ending, None, "the first request may still arrive");
    assert!(book.page(0).remark.contains("ACCOUNT_CLOSED"), "{}", book.page(0).remark);
    until("it is believed", 5 * MINUTE, || book.open() == 0).await;

    assert_eq!(book.page(0).ending, Some(Ending::Never(CLOSED)));
    assert!(silent_until.elapsed() >= MANNERS.late - Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_first_refusal_is_believed_at_once() {
    let (book, provider) = (Memory::default(), Fake::new(Mood::Refuses, false));
    book.put(0..1);
    let _stop = work(&book, &provider).drop_guard();

    until("it is believed", Duration::from_secs(1), || book.open() == 0).await;

    assert_eq!(provider.sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn past_the_providers_memory_it_is_looked_up_or_a_person_is_needed_and_nobody_is_paid_twice() {
    for can_look_up in [true, false] {
        let (book, provider) = (Memory::default(), Fake::new(Mood::PaysSilently, can_look_up));
        book.put(0..1);
        let stop = work(&book, &provider);
        until("it is asked for", MINUTE, || provider.paid() == [0]).await;
        stop.cancel();
        sleep(MANNERS.key_memory).await;
        provider.set(Mood::Pays);
        let before = provider.sent().len();

        let _stop = work(&book, &provider).drop_guard();
        sleep(10 * MINUTE).await;

        assert_eq!(provider.paid(), [0], "can_look_up: {can_look_up}");
        assert_eq!(provider.sent().len(), before, "it is not sent again");
        let page = book.page(0);
        match can_look_up {
            true => assert_eq!(page.ending, Some(Ending::Paid { reference: "0".into() })),
            false => {
                assert_eq!(page.ending, None);
                assert!(page.remark.contains("tccctl payout settle"), "{}", page.remark);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_person_has_settled_is_not_asked_for_again() {
    let (book, provider) = (Memory::default(), Fake::new(Mood::Silent, false));
    book.put(0..3);
    let stop = CancellationToken::new();
    let worker = Worker::new(book.clone(), provider.clone(), MANNERS);
    tokio::spawn(Arc::clone(&worker).run(stop.clone()));
    let _stop = stop.drop_guard();
    until("all are asked for", MINUTE, || provider.sent().len() >= 3).await;
    let waiting = book.line(3).await.unwrap().remove(1);
    let busy = worker.settle(&waiting, Ending::Never(CLOSED), "me").await;
    assert_eq!(busy, Settled::Busy, "it is being asked for just now");
    sleep(Duration::from_millis(10_100)).await;

    assert_eq!(worker.settle(&waiting, Ending::Never(CLOSED), "me").await, Settled::Certainly);
    provider.set(Mood::Pays);
    until("the others are paid", 5 * MINUTE, || book.open() == 0).await;

    let mut paid = provider.paid();
    paid.sort_unstable();
    assert_eq!(paid, [0, 2]);
    assert_eq!(book.page(1).ending, Some(Ending::Never(CLOSED)));
}
