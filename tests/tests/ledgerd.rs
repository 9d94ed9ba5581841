//! A shard on which `tcc-ledgerd` works: the same shard, out of process.

use jiff::SignedDuration;
use tcc_coordinator::config::Config;
use tcc_proto::v1::Phase;
use tcc_tests::{
    Coordinator, System, alice_and_bob, hold, hold_due_in, new_id, on_shard, process::Tccd, reason, until,
};

/// A system in which `tcc-ledgerd` works on both shards.
struct Apart {
    system: System,
    ledgers: [Tccd; 2],
}

impl Apart {
    async fn start() -> Self {
        let mut system = System::start().await;
        let ledgerd = async |config: &Config, shard| Tccd::ledgerd(config, shard).await.expect("it starts");
        let ledgers = [ledgerd(&system.config, "shard-0").await, ledgerd(&system.config, "shard-1").await];
        for (shard, ledger) in system.config.shards.iter_mut().zip(&ledgers) {
            ledger.url().clone_into(&mut shard.address);
        }
        Self { system, ledgers }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_are_paid_cancelled_and_refused_as_on_any_shard() {
    let apart = Apart::start().await;
    let Coordinator { mut client, .. } = apart.system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let carol = on_shard("carol", 0);
    client.account(&carol, 0).await;

    let paid = hold_due_in(&alice, &bob, 10, SignedDuration::from_millis(500));
    client.create(&paid).await.unwrap();
    let cancelled = hold(&alice, &bob, 20);
    client.create(&cancelled).await.unwrap();
    let refused = client.create(&hold(&bob, &alice, 1_000_000)).await.unwrap_err();
    let together = hold_due_in(&alice, &carol, 5, SignedDuration::from_millis(500));
    client.create(&together).await.unwrap();

    assert_eq!(client.cancel(&cancelled.id).await.unwrap().phase(), Phase::Cancelled);
    assert_eq!(reason(&refused), "INSUFFICIENT_FUNDS");
    for id in [&paid.id, &together.id] {
        assert_eq!(client.until_final(id).await.phase(), Phase::Confirmed);
    }
    assert_eq!(client.balances(&alice).await, (10_000 - 15, 0));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_is_a_shard_that_is_down_and_loses_nothing() {
    let mut apart = Apart::start().await;
    let Coordinator { mut client, .. } = apart.system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let mut due = Vec::new();
    for _ in 0..50 {
        let request = hold_due_in(&alice, &bob, 1, SignedDuration::from_secs(1));
        client.create(&request).await.unwrap();
        due.push(request);
    }

    apart.ledgers[1].kill().await.unwrap();
    until("a hold that needs it is refused before any effect", || {
        let (mut client, request) = (client.clone(), hold(&alice, &bob, 1));
        async move { client.create(&request).await.is_err_and(|status| reason(&status) == "SHARD_UNAVAILABLE") }
    })
    .await;
    apart.ledgers[1].restart().await.unwrap();

    for request in &due {
        assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    }
    let after = hold(&alice, &bob, 1);
    until("holds are taken again", || {
        let (mut client, request) = (client.clone(), after.clone());
        async move { client.create(&request).await.is_ok() }
    })
    .await;
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_an_operator_drains_is_not_asked_through_it_either() {
    let apart = Apart::start().await;
    let Coordinator { mut client, .. } = apart.system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let sql = apart.system.sql().await;

    sql.execute("UPDATE shard SET drained = true WHERE name = 'shard-1'", &[]).await.unwrap();
    until("a hold that needs it is refused", || {
        let (mut client, request) = (client.clone(), hold(&alice, &bob, 1));
        async move { client.create(&request).await.is_err_and(|status| reason(&status) == "SHARD_UNAVAILABLE") }
    })
    .await;
    sql.execute("UPDATE shard SET drained = false WHERE name = 'shard-1'", &[]).await.unwrap();
    let again = tcc_proto::v1::CreateHoldRequest { id: new_id(), ..hold(&alice, &bob, 1) };
    until("it is asked again", || {
        let (mut client, request) = (client.clone(), again.clone());
        async move { client.create(&request).await.is_ok() }
    })
    .await;
    client.audit_is_clean().await;
}
