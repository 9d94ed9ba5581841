//! Participants without code: what three SQL functions may return, and what comes of it.

use tcc_coordinator::dev::{Cluster, Options};
use tcc_core::{Operation, Outcome, Refusal};
use tcc_participant::{
    ServeError, Server,
    serve::Running,
    sql::{self, FunctionError, Names},
};
use tcc_tests::{
    caller::{Caller, new_transaction},
    connect,
    examples::{TICKETS, tickets},
};

use Operation::{Cancel, Confirm, Try};

const INVALID: Outcome = Outcome::Refused(Refusal::own("PAYLOAD_INVALID"));

async fn cluster(tables: &str) -> Cluster {
    let settings = ["fsync=off", "synchronous_commit=off"].map(str::to_owned).to_vec();
    let start = move || Cluster::start(&Options { settings, ..Options::default() });
    let cluster = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
    connect(&cluster.url()).await.batch_execute(tables).await.unwrap();
    cluster
}

async fn served(cluster: &Cluster, names: &Names) -> Result<(Running, Caller), ServeError> {
    let server = Server::new("tickets", &cluster.url()).unwrap().listen("127.0.0.1:0");
    let running = sql::start(server, names).await?;
    let caller = Caller::to(&format!("http://{}", running.address), "tickets");
    Ok((running, caller))
}

/// Of an event: how many tickets are free, and how many are sold.
async fn tickets_of(cluster: &Cluster, event: &str) -> (i32, i32) {
    let sql = "SELECT free, sold FROM tickets.event WHERE name = $1";
    let row = connect(&cluster.url()).await.query_one(sql, &[&event]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_functions_are_a_participant() {
    let cluster = cluster(TICKETS).await;
    let (_running, caller) = served(&cluster, &tickets()).await.unwrap();
    let (sold, given_back, too_many) = (new_transaction(), new_transaction(), new_transaction());
    let one = br#"{"event": "event-1", "count": 1}"#;

    assert_eq!(caller.ask(Try, sold, one).await, Outcome::Done);
    assert_eq!(caller.ask(Try, given_back, one).await, Outcome::Done);
    let sold_out = Outcome::Refused(Refusal::own("SOLD_OUT"));
    assert_eq!(caller.ask(Try, too_many, one).await, sold_out);
    assert_eq!(caller.ask(Confirm, sold, one).await, Outcome::Done);
    assert_eq!(caller.ask(Cancel, given_back, one).await, Outcome::Done);

    assert_eq!(caller.ask(Try, too_many, one).await, sold_out, "a refusal is for ever");
    assert_eq!(tickets_of(&cluster, "event-1").await, (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_no_function_can_take_is_refused_and_not_tried_for_ever() {
    let cluster = cluster(TICKETS).await;
    let (_running, caller) = served(&cluster, &tickets()).await.unwrap();

    for payload in [&b"{"[..], b"", b"\xff", b"\"\\u0000\"", b"a\0b"] {
        assert_eq!(caller.ask(Try, new_transaction(), payload).await, INVALID, "{payload:?}");
    }
    let no_count = caller.ask(Try, new_transaction(), br#"{"event": "event-1"}"#).await;
    assert_eq!(no_count, Outcome::Refused(Refusal::own("NO_SUCH_COUNT")));
}

const ODD: &str = "
    CREATE TABLE note (id uuid);
    CREATE FUNCTION odd_reserve(id uuid, branch int, payload text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO note VALUES (id);
        IF payload = 'raises' THEN RAISE EXCEPTION 'no mood'; END IF;
        RETURN nullif(payload, 'fine');
    END $$;
    CREATE FUNCTION odd_end(id uuid, branch int, payload bytea) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION \"Odd Veto\"(id uuid, branch int, payload bytea) RETURNS text LANGUAGE sql AS $$SELECT 'TOO_LATE'$$";

fn odd() -> Names {
    Names {
        reserve: "odd_reserve".into(),
        confirm: "odd_end".into(),
        cancel: "public.odd_end".into(),
        veto: Some("\"Odd Veto\"".into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_function_did_before_it_refused_or_raised_is_undone() {
    let cluster = cluster(ODD).await;
    let (_running, caller) = served(&cluster, &odd()).await.unwrap();
    let (raises, fine) = (new_transaction(), new_transaction());

    let raised = caller.ask(Try, raises, b"raises").await;
    let shapeless = caller.ask(Try, new_transaction(), b"not a reason").await;
    let refused = caller.ask(Try, new_transaction(), b"NO").await;
    let reserved = caller.ask(Try, fine, b"fine").await;

    assert!(matches!(&raised, Outcome::Failed(why) if why.contains("no mood")), "{raised:?}");
    assert!(
        matches!(&shapeless, Outcome::Failed(why) if why.contains("is no reason") || why.contains("a reason is")),
        "{shapeless:?}"
    );
    assert_eq!((refused, reserved), (Outcome::Refused(Refusal::own("NO")), Outcome::Done));
    let notes = connect(&cluster.url()).await.query("SELECT id FROM note", &[]).await.unwrap();
    assert_eq!(notes.iter().map(|row| row.get::<_, uuid::Uuid>(0)).collect::<Vec<_>>(), [fine.uuid()]);
    assert_eq!(caller.ask(Confirm, fine, b"fine").await, Outcome::Vetoed(Refusal::own("TOO_LATE")));
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_are_not_there_or_say_nothing_are_told_at_the_start() {
    let cluster = cluster(ODD).await;
    let with = |reserve: &str| Names { reserve: reserve.into(), ..odd() };

    let missing = served(&cluster, &with("odd_reserv")).await.err();
    let mute = served(&cluster, &with("odd_end")).await.err();

    assert!(
        matches!(&missing, Some(ServeError::Functions(FunctionError::Missing(name))) if name == "odd_reserv")
    );
    assert!(matches!(&mute, Some(ServeError::Functions(FunctionError::NotText(name))) if name == "odd_end"));
}
