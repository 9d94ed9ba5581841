//! Participants made with the SDK, on real PostgreSQL: the examples under the conformance kit, and what goes wrong between
//! a resource, its fences and its database.

use futures::future::join_all;
use prost::Message as _;
use std::net::SocketAddr;
use tcc_coordinator::dev::{Cluster, Options};
use tcc_core::{
    Operation::{self, Cancel, Confirm, Try},
    Outcome, Refusal, TransactionId,
};
use tcc_participant::{
    BatchResource, Branch, Reservation, Resource, Retry, ServeError, Server, Tx,
    conformance::{self, Kit, Part, Report, Subject},
    fence::SchemaError,
    serve::Running,
    wire::{read_outcome, write_call},
};
use tcc_proto::v1::{self, participant_service_client::ParticipantServiceClient};
use tcc_tests::{
    connect,
    examples::{COUPONS, Coupons, SEATS, STOCK, seats, stock, stock_in_batches},
    proxy::{CommitsBy, Proxy},
    until,
};
use tonic::transport::Channel;

/// A server with the tables of an example.
struct Database {
    cluster: Cluster,
}

impl Database {
    async fn with(tables: &str) -> Self {
        let settings = ["fsync=off", "synchronous_commit=off"].map(str::to_owned).to_vec();
        let start = move || Cluster::start(&Options { settings, ..Options::default() });
        let cluster = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        connect(&cluster.url()).await.batch_execute(tables).await.unwrap();
        Self { cluster }
    }

    fn server(&self, name: &str) -> Server {
        Server::new(name, &self.cluster.url()).unwrap().listen("127.0.0.1:0")
    }

    /// Of an item: how many are free, and how many reserved.
    async fn stock(&self, item: &str) -> (i32, i32) {
        let sql = "SELECT free, reserved FROM stock WHERE item = $1";
        let row = connect(&self.cluster.url()).await.query_one(sql, &[&item]).await.unwrap();
        (row.get(0), row.get(1))
    }

    async fn fences(&self) -> i64 {
        let sql = "SELECT count(*) FROM tcc_fence";
        connect(&self.cluster.url()).await.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// Speaks to a participant as the coordinator does.
#[derive(Clone)]
struct Caller {
    client: ParticipantServiceClient<Channel>,
    name: &'static str,
}

impl Caller {
    async fn to(address: SocketAddr, name: &'static str) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        Self { client: ParticipantServiceClient::new(endpoint.connect().await.unwrap()), name }
    }

    async fn ask(&self, operation: Operation, id: TransactionId, payload: &str) -> Outcome {
        let branch = v1::TransactionBranch { payload: payload.into(), ..Default::default() };
        let on_maturity = v1::OnMaturity::Confirm.into();
        let descriptor =
            v1::TransactionDescriptor { branches: vec![branch], on_maturity, ..Default::default() };
        let calls = vec![write_call(operation, id, 0, &descriptor.encode_to_vec())];
        let request = v1::CallRequest { participant: self.name.into(), calls };
        let response = self.client.clone().call(request).await.unwrap().into_inner();
        read_outcome(response.outcomes.into_iter().next().unwrap())
    }
}

fn new_id() -> TransactionId {
    TransactionId::from_uuid(uuid::Uuid::now_v7()).unwrap()
}

const FEW: conformance::Options = conformance::Options { seed: 1, schedules: 150, meetings: 20 };
/// The cells, the meetings and the random ones, if nothing is vetoed.
const SCHEDULES: u64 = 72 + 20 * 14 + 150;

/// Everything is asked, then the participant starts again, and everything is asked for again.
async fn conformance_of(
    first: Running,
    second: impl Future<Output = Result<Running, ServeError>>,
    subject: impl FnOnce(&str) -> Subject,
) -> Report {
    let subject = subject(&format!("http://{}", first.address));
    let mut kit = Kit::connect(subject).await.unwrap();
    kit.run(&FEW).await;
    first.stop().cancel();
    first.ended().await.unwrap();
    let _second = second.await.unwrap();
    kit.recall().await;
    kit.into_report()
}

/// A server on the port that another one had.
fn again(server: Server, first: &Running) -> Server {
    server.listen(&first.address.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_lines_make_a_right_participant() {
    let database = Database::with(STOCK).await;
    let first = database.server("stock").start(stock::Stock).await.unwrap();
    let second = again(database.server("stock"), &first).start(stock::Stock);

    let items = |address: &str| Subject::new(address, Part::Payload("item-%n".into()));
    let report = conformance_of(first, second, items).await;

    assert!(report.is_ok(), "{report}");
    assert_eq!(report.cells.len(), 18, "{:?}", report.cells);
    assert_eq!(report.effects_seen, SCHEDULES, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_in_batches_is_a_right_participant() {
    let database = Database::with(STOCK).await;
    let stock = || stock_in_batches::StockInBatches;
    let first = database.server("stock").start_batches(stock()).await.unwrap();
    let second = again(database.server("stock"), &first).start_batches(stock());

    let items = |address: &str| Subject::new(address, Part::Payload("item-%n".into()));
    let report = conformance_of(first, second, items).await;

    assert!(report.is_ok(), "{report}");
    assert_eq!(report.effects_seen, SCHEDULES, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn seats_are_a_right_participant_that_may_veto() {
    let database = Database::with(SEATS).await;
    let first = database.server("seats").start(seats::Seats).await.unwrap();
    let second = again(database.server("seats"), &first).start(seats::Seats);

    let seats = |address: &str| Subject {
        vetoed: Some(Part::Payload("early-%n".into())),
        ..Subject::new(address, Part::Payload("seat-%n".into()))
    };
    let report = conformance_of(first, second, seats).await;

    assert!(report.is_ok(), "{report}");
    assert_eq!(report.cells.len(), 21, "{:?}", report.cells);
}

#[tokio::test(flavor = "multi_thread")]
async fn coupons_in_python_are_a_right_participant_and_survive_a_kill() {
    let database = Database::with(COUPONS).await;
    let url = database.cluster.url();
    let first = Coupons::start(&url, "127.0.0.1:0").await.unwrap();
    let coupons = Subject::new(&first.address, Part::Payload("coupon-%n".into()));
    let mut kit = Kit::connect(coupons).await.unwrap();
    kit.run(&FEW).await;
    let listen = first.address.strip_prefix("http://").unwrap().to_owned();

    first.kill().await.unwrap();
    let _second = Coupons::start(&url, &listen).await.unwrap();
    kit.recall().await;

    let report = kit.into_report();
    assert!(report.is_ok(), "{report}");
    assert_eq!(report.effects_seen, SCHEDULES, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_want_one_seat_one_gets_it_and_the_others_are_told_who_was_first() {
    let database = Database::with(SEATS).await;
    let running = database.server("seats").start(seats::Seats).await.unwrap();
    let caller = Caller::to(running.address, "seats").await;
    let ids: Vec<TransactionId> = (0..30).map(|_| new_id()).collect();

    let answers = join_all(ids.iter().map(|id| caller.ask(Try, *id, "seat-7"))).await;

    let taken = Outcome::Refused(Refusal::own("SEAT_TAKEN"));
    let winners: Vec<_> = ids.iter().zip(&answers).filter(|(_, answer)| **answer == Outcome::Done).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| **answer == taken).count(), 29, "{answers:?}");
    let winner = *winners[0].0;
    assert_eq!(caller.ask(Confirm, winner, "seat-7").await, Outcome::Done);
    let sql = "SELECT taken_by, sold FROM seat WHERE seat = 'seat-7'";
    let row = connect(&database.cluster.url()).await.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, uuid::Uuid>(0), row.get::<_, bool>(1)), (winner.uuid(), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_of_a_show_that_is_not_approved_is_vetoed_and_free_again() {
    let database = Database::with(SEATS).await;
    let running = database.server("seats").start(seats::Seats).await.unwrap();
    let caller = Caller::to(running.address, "seats").await;
    let (first, second) = (new_id(), new_id());
    assert_eq!(caller.ask(Try, first, "early-1").await, Outcome::Done);

    let vetoed = caller.ask(Confirm, first, "early-1").await;

    let expected = Outcome::Vetoed(Refusal::own("SHOW_NOT_APPROVED"));
    assert_eq!(vetoed, expected);
    assert_eq!(caller.ask(Confirm, first, "early-1").await, expected, "a veto is sticky");
    assert_eq!(caller.ask(Try, second, "early-1").await, Outcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_unknown_and_takes_effect_once() {
    let database = Database::with(STOCK).await;
    let socket = database.cluster.home().join("s/.s.PGSQL.5432");
    let wire = Proxy::start(socket, CommitsBy::Commit).await.unwrap();
    let server = Server::new("stock", &wire.url()).unwrap().listen("127.0.0.1:0").connections(1);
    let running = server.start(stock::Stock).await.unwrap();
    let caller = Caller::to(running.address, "stock").await;
    let id = new_id();

    for (operation, left) in [(Try, (1, 1)), (Confirm, (1, 0))] {
        wire.cut_next_commit();
        let lost = caller.ask(operation, id, "item-1").await;

        assert!(matches!(lost, Outcome::Unknown(_)), "{operation:?}: {lost:?}");
        until("it is answered", || async {
            !matches!(caller.ask(operation, id, "item-1").await, Outcome::Unknown(_))
        })
        .await;
        assert_eq!(caller.ask(operation, id, "item-1").await, Outcome::Done, "{operation:?}");
        assert_eq!(database.stock("item-1").await, left, "{operation:?}");
    }
}

/// Does what its payload says.
struct Moody;

const SET: &str = "UPDATE stock SET free = free - 1 WHERE item = 'item-1'";

impl Resource for Moody {
    async fn reserve(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Reservation, Retry> {
        tx.execute(SET, &[]).await?;
        match branch.text().as_str() {
            "refuses" => return Ok(Reservation::Refused(Refusal::own("IN_A_BAD_MOOD"))),
            "retries" => return Err(Retry::because("come again")),
            "panics" => panic!("no mood at all"),
            "fails" => drop(tx.query("SELECT 1 / 0", &[]).await?),
            "ignores" => drop(tx.query("SELECT 1 / 0", &[]).await),
            "commits" => drop(tx.execute("COMMIT", &[]).await),
            "sleeps" => drop(tx.query("SELECT pg_sleep(0.5)", &[]).await?),
            _ => {}
        }
        Ok(Reservation::Made)
    }

    async fn confirm(&self, _: &Tx<'_>, _: &Branch) -> Result<(), Retry> {
        Ok(())
    }

    async fn cancel(&self, _: &Tx<'_>, _: &Branch) -> Result<(), Retry> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_resource_does_instead_of_its_work_leaves_nothing_and_hurts_nobody_else() {
    let database = Database::with(STOCK).await;
    let running = database.server("moody").start(Moody).await.unwrap();
    let caller = Caller::to(running.address, "moody").await;

    for (payload, why) in [
        ("retries", "come again"),
        ("panics", "no mood at all"),
        ("fails", "division by zero"),
        ("ignores", "aborted"),
    ] {
        let answer = caller.ask(Try, new_id(), payload).await;

        assert!(matches!(&answer, Outcome::Failed(text) if text.contains(why)), "{payload}: {answer:?}");
    }
    assert_eq!((database.stock("item-1").await, database.fences().await), ((2, 0), 0));

    assert_eq!(caller.ask(Try, new_id(), "works").await, Outcome::Done);
    assert_eq!((database.stock("item-1").await, database.fences().await), ((1, 0), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_before_a_refusal_is_undone_and_the_refusal_is_kept() {
    let database = Database::with(STOCK).await;
    let running = database.server("moody").start(Moody).await.unwrap();
    let caller = Caller::to(running.address, "moody").await;
    let id = new_id();

    let refused = caller.ask(Try, id, "refuses").await;

    assert_eq!(refused, Outcome::Refused(Refusal::own("IN_A_BAD_MOOD")));
    assert_eq!(caller.ask(Try, id, "refuses").await, refused);
    assert_eq!((database.stock("item-1").await, database.fences().await), ((2, 0), 1));
    assert_eq!(caller.ask(Cancel, id, "refuses").await, Outcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_ends_the_local_transaction_by_itself_is_not_taken_for_done() {
    let database = Database::with(STOCK).await;
    let running = database.server("moody").start(Moody).await.unwrap();
    let caller = Caller::to(running.address, "moody").await;
    let id = new_id();

    let answer = caller.ask(Try, id, "commits").await;

    assert!(matches!(&answer, Outcome::Unknown(why) if why.contains("by itself")), "{answer:?}");
    // The fence was written first, so it is with what was done.
    assert_eq!((database.stock("item-1").await, database.fences().await), ((1, 0), 1));
    assert_eq!(caller.ask(Try, id, "commits").await, Outcome::Done);
    assert_eq!(database.stock("item-1").await, (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_when_a_participant_is_told_to_stop_is_answered() {
    let database = Database::with(STOCK).await;
    let running = database.server("moody").start(Moody).await.unwrap();
    let caller = Caller::to(running.address, "moody").await;
    let sleeping = tokio::spawn(async move { caller.ask(Try, new_id(), "sleeps").await });
    let observer = connect(&database.cluster.url()).await;
    until("the resource sleeps", || async {
        let sql = "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()";
        !observer.query(sql, &[]).await.unwrap().is_empty()
    })
    .await;

    running.stop().cancel();
    let (answer, ended) = tokio::join!(sleeping, running.ended());

    assert_eq!(answer.unwrap(), Outcome::Done);
    ended.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_one_participants_and_no_others() {
    let database = Database::with(STOCK).await;
    let _running = database.server("stock").start(stock::Stock).await.unwrap();

    let other = database.server("seats").start(stock::Stock).await;

    let Err(ServeError::Schema(SchemaError::OtherParticipant { expected, found })) = other else {
        panic!("it started")
    };
    assert_eq!((expected.as_str(), found.as_str()), ("seats", "stock"));
}

/// Says what it may not say.
struct Insolent;

impl BatchResource for Insolent {
    async fn run(
        &self,
        _: &Tx<'_>,
        steps: &[&tcc_participant::Step],
    ) -> Result<Vec<tcc_participant::Effect>, Retry> {
        use tcc_participant::Effect::{Done, Refused, Vetoed};
        let no = Refusal::own("NO");
        let say = |step: &&tcc_participant::Step| match (step.operation, step.branch.text().as_str()) {
            (Confirm | Cancel, "refuses") => Refused(no),
            (Confirm, "vetoes") => Vetoed(no),
            _ => Done,
        };
        let mut effects: Vec<_> = steps.iter().map(say).collect();
        effects.truncate(if steps[0].branch.text() == "forgets" { 0 } else { effects.len() });
        Ok(effects)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_try_can_be_refused_and_only_a_declared_pivot_can_veto() {
    let database = Database::with(STOCK).await;
    let running = database.server("insolent").start_batches(Insolent).await.unwrap();
    let caller = Caller::to(running.address, "insolent").await;

    for (operation, payload) in [(Confirm, "refuses"), (Cancel, "refuses"), (Confirm, "vetoes")] {
        let id = new_id();
        assert_eq!(caller.ask(Try, id, payload).await, Outcome::Done);
        let answer = caller.ask(operation, id, payload).await;

        assert!(matches!(&answer, Outcome::Failed(why) if why.contains("only")), "{payload}: {answer:?}");
    }
    let short = caller.ask(Try, new_id(), "forgets").await;
    assert!(matches!(&short, Outcome::Failed(why) if why.contains("0 of 1")), "{short:?}");
}
