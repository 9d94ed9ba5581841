//! The one statement that moves a phase, on a real table: every event meets every row that it may find, and applies exactly
//! where the protocol says so.

use jiff::SignedDuration;
use std::sync::Arc;
use tcc_coordinator::store::{Acted, Action, Advance, Begin, Evidence, Place, Store, schema};
use tcc_core::{
    AccountId, Amount, Attention, Cause, Currency, Descriptor, Event, OnMaturity, Phase, Timestamp,
    Transaction, TransactionId,
};
use tcc_tests::{System, connect, new_id, until};

/// A row, and what is asked of it.
#[derive(Debug, Clone, Copy)]
struct Case {
    phase: Phase,
    event: Event,
    is_due: bool,
    flipped: bool,
    on_maturity: OnMaturity,
    attention: Attention,
    /// The branches were asked when the database ran on another server.
    from_another_server: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for phase in Phase::ALL {
        for event in Event::ALL {
            for bits in 0..16_u8 {
                let is = |bit: u8| bits & (1 << bit) != 0;
                let on_maturity = if is(2) { OnMaturity::Cancel } else { OnMaturity::Confirm };
                let attention = if is(3) { Attention::Parked } else { Attention::Retrying };
                for from_another_server in [false, true] {
                    let (is_due, flipped) = (is(0), is(1));
                    cases.push(Case {
                        phase,
                        event,
                        is_due,
                        flipped,
                        on_maturity,
                        attention,
                        from_another_server,
                    });
                }
            }
        }
    }
    cases
}

/// What the protocol says: the phase that it leads to, or that it has no meaning, or comes too late.
fn target(case: Case) -> Option<Phase> {
    let target = case.phase.after(case.event)?;
    let is_allowed = match case.event {
        Event::CancelRequested => !case.is_due,
        Event::ConfirmRequested => {
            case.attention != Attention::Parked && (case.on_maturity == OnMaturity::Confirm || !case.is_due)
        }
        Event::Tried | Event::TimedOut => !case.from_another_server,
        Event::CancelForced => !(case.phase == Phase::Confirming && case.flipped),
        event => !(event.is_flip() && case.flipped),
    };
    is_allowed.then_some(target)
}

/// The coordinator's tables, and what works on them.
struct Tables {
    sql: tokio_postgres::Client,
    store: Store,
    /// When their server started.
    server: Timestamp,
    _system: System,
}

impl Tables {
    async fn new() -> Self {
        let system = System::start().await;
        let url = &system.config.coordinator.url;
        let mut sql = connect(url).await;
        schema::prepare(&mut sql, &["shard-0".into(), "shard-1".into()]).await.unwrap();
        let server: Timestamp = sql.query_one("SELECT pg_postmaster_start_time()", &[]).await.unwrap().get(0);
        let store = Store::start(&url.parse().unwrap());
        until("the store is connected", || async { store.advance.is_reachable() }).await;
        Self { sql, store, server, _system: system }
    }
}

impl Tables {
    /// Puts a row there that is due in an hour.
    async fn put(&self, phase: Phase, owner: Option<&str>) -> TransactionId {
        let id = TransactionId::parse(&new_id()).unwrap();
        let due_at = Timestamp::now() + SignedDuration::from_hours(1);
        let transaction = transaction(id, due_at, OnMaturity::Confirm);
        self.sql
            .execute(
                "INSERT INTO transaction (id, phase, created_at, due_at, on_maturity, slot, lane, descriptor, owner)
                 VALUES ($1, $2, now(), $3, 1, 0, 0, $4, $5)",
                &[&id.uuid(), &phase.number(), &due_at, &transaction.encoded, &owner],
            )
            .await
            .unwrap();
        id
    }
}

fn transaction(id: TransactionId, due_at: Timestamp, on_maturity: OnMaturity) -> Transaction {
    let descriptor = Descriptor::hold(
        AccountId::parse("alice").unwrap(),
        AccountId::parse("bob").unwrap(),
        Amount::new(1).unwrap(),
        Currency::parse("GOLD").unwrap(),
        due_at,
        on_maturity,
    );
    Transaction::new(id, descriptor)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_named_by_a_key_is_begun_only_on_the_server_that_has_the_key() {
    let Tables { store, server, _system, .. } = Tables::new().await;
    let due_at = Timestamp::now() + SignedDuration::from_hours(1);

    for (keyed_on, is_begun) in
        [(None, true), (Some(server), true), (Some(server - SignedDuration::from_secs(1)), false)]
    {
        let id = TransactionId::parse(&new_id()).unwrap();
        let transaction = Arc::new(transaction(id, due_at, OnMaturity::Confirm));
        let begun = store
            .begin
            .call(Begin { transaction, place: Place::default(), keyed_on, counted_for: None, trace: None })
            .await
            .unwrap();

        assert_eq!(begun.is_some(), is_begun, "{keyed_on:?}");
        assert_eq!(store.get(id).await.unwrap().is_some(), is_begun, "{keyed_on:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_applies_exactly_where_the_protocol_says_so() {
    let Tables { sql, store, server, _system } = Tables::new().await;
    let now = Timestamp::now();
    let put = sql
        .prepare(
            "INSERT INTO transaction (id, phase, attention, flipped, created_at, due_at, on_maturity, slot, lane, descriptor)
             VALUES ($1, $2, $3, $4, now(), $5, $6, 0, 0, $7)",
        )
        .await
        .unwrap();

    let mut asked = Vec::new();
    for case in cases() {
        let id = TransactionId::parse(&new_id()).unwrap();
        let due_at = if case.is_due {
            now - SignedDuration::from_secs(60)
        } else {
            now + SignedDuration::from_hours(1)
        };
        let transaction = transaction(id, due_at, case.on_maturity);
        let (phase, attention) = (case.phase.number(), case.attention.number());
        let then = case.on_maturity.number();
        let row: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&id.uuid(), &phase, &attention, &case.flipped, &due_at, &then, &transaction.encoded];
        sql.execute(&put, &row).await.unwrap();
        asked.push((case, id));
    }
    let moved = futures::future::join_all(asked.iter().map(|(case, id)| {
        let then = if case.from_another_server { server - SignedDuration::from_secs(1) } else { server };
        store.advance.call(Advance { server: Some(then), ..Advance::new(*id, case.event) })
    }))
    .await;

    for ((case, id), moved) in asked.iter().zip(moved) {
        let row = sql
            .query_one(
                "SELECT phase, flipped, (SELECT count(*) FROM wakeup WHERE transaction_id = id) FROM transaction WHERE id = $1",
                &[&id.uuid()],
            )
            .await
            .unwrap();
        let (phase, flipped, wakeups): (i16, bool, i64) = (row.get(0), row.get(1), row.get(2));
        let moved = moved.unwrap().map(|advanced| advanced.standing);
        match target(*case) {
            Some(target) => {
                let standing = moved.unwrap_or_else(|| panic!("{case:?} did not move"));
                assert_eq!(standing.phase, target, "{case:?}");
                // A row that has gone back to HELD may be moved by whoever remembers what was asked.
                assert!(case.is_due || standing.cause != Some(Cause::Matured), "{case:?}");
                assert_eq!(phase, target.number(), "{case:?}");
                assert_eq!(flipped, case.flipped || case.event.is_flip(), "{case:?}");
                // What is not final is found again.
                assert_eq!(wakeups, i64::from(!target.is_final()), "{case:?}");
            }
            None => {
                assert!(moved.is_none(), "{case:?} moved to {moved:?}");
                assert_eq!((phase, flipped, wakeups), (case.phase.number(), case.flipped, 0), "{case:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_decides_about_its_own_only() {
    let tables = Tables::new().await;
    for (event, then) in
        [(Event::CancelRequested, Phase::Cancelling), (Event::ConfirmRequested, Phase::Confirming)]
    {
        for owner in [None, Some("shop")] {
            for asks in [None, Some("shop"), Some("other")] {
                let id = tables.put(Phase::Held, owner).await;
                let asked = Advance { owner: asks.map(str::to_owned), ..Advance::new(id, event) };

                let moved = tables.store.advance.call(asked).await.unwrap();

                let phase = moved.map(|advanced| advanced.standing.phase);
                assert_eq!(
                    phase,
                    (asks == owner).then_some(then),
                    "{event:?} of {owner:?}, asked by {asks:?}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_seen_it_in_a_phase_moves_it_from_that_phase_only() {
    let tables = Tables::new().await;
    for seen in [Phase::Trying, Phase::Held] {
        for stands in [Phase::Trying, Phase::Held] {
            let id = tables.put(stands, None).await;
            let asked = Advance { only_from: Some(seen), ..Advance::new(id, Event::CancelRequested) };

            let moved = tables.store.advance.call(asked).await.unwrap();

            assert_eq!(moved.is_some(), seen == stands, "seen {seen:?}, stands {stands:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_events_of_one_transaction_in_one_batch_both_happen() {
    let tables = Tables::new().await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(tables.put(Phase::Trying, None).await);
    }
    let both = ids.iter().flat_map(|id| {
        let tried = Advance { server: Some(tables.server), ..Advance::new(*id, Event::Tried) };
        [tried, Advance::new(*id, Event::CancelRequested)]
    });

    let moved = futures::future::join_all(both.map(|asked| tables.store.advance.call(asked))).await;

    let phases: Vec<Option<Phase>> =
        moved.into_iter().map(|moved| moved.unwrap().map(|advanced| advanced.standing.phase)).collect();
    assert_eq!(phases, [Some(Phase::Held), Some(Phase::Cancelling)].repeat(50));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_cancel_moves_a_row_and_leaves_its_evidence() {
    let tables = Tables::new().await;
    let id = tables.put(Phase::Confirming, None).await;
    let evidence = Evidence {
        actor: "carol".into(),
        address: String::new(),
        reason: "because".into(),
        ticket: String::new(),
        plan: None,
    };

    let acted = tables.store.act(id, Action::ForceCancel, None, &evidence).await.unwrap();

    let Acted::Done { record, wake_at } = acted else { panic!("{acted:?}") };
    assert_eq!((record.standing.phase, wake_at.is_some()), (Phase::Cancelling, true));
    let noted = "SELECT count(*) FROM operator_action WHERE target = $1 AND action = 'force-cancel'";
    assert_eq!(tables.sql.query_one(noted, &[&id.to_string()]).await.unwrap().get::<_, i64>(0), 1);
}
