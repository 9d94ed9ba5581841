//! What happens when something is missing, slow, killed or lying.

use jiff::SignedDuration;
use std::time::Duration;
use tcc_coordinator::serve;
use tcc_core::{Operation, TransactionId, descriptor::CREDIT};
use tcc_proto::v1::{self, Attention, Phase};
use tcc_tests::{
    Client, Coordinator, System, alice_and_bob, connect,
    gate::{Gate, Step, When},
    hold, hold_due_in, on_two_shards, reason, serve_on, servers, until,
};
use tonic::Code;
use tonic_types::StatusExt as _;

/// Creates them all at once; each must be held.
async fn create_all(client: &Client, requests: &[v1::CreateHoldRequest]) {
    let creating = requests.iter().map(|request| {
        let mut client = client.clone();
        async move { client.create(request).await.unwrap() }
    });
    futures::future::join_all(creating).await;
}

async fn reachable(client: &mut Client, shard: usize) -> bool {
    let status = client.operator.get_status(v1::GetStatusRequest {}).await;
    status.is_ok_and(|status| status.into_inner().shards[shard].reachable)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_on_a_shard_that_is_down_is_refused_before_any_effect_and_says_when_to_come_back() {
    let mut servers = servers().await;
    let Coordinator { mut client, .. } = serve_on(&servers).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    servers.shards[1].crash().unwrap();
    // Whoever asks first finds out.
    let first = hold(&alice, &bob, 10);
    let _ = tokio::time::timeout(Duration::from_millis(200), client.clone().create(&first)).await;
    until("the shard is known to be down", || {
        let mut client = client.clone();
        async move { !reachable(&mut client, 1).await }
    })
    .await;
    until("operators are told why", || {
        let mut client = client.clone();
        async move {
            let status = client.operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
            status.shards[0].trouble.is_empty() && !status.shards[1].trouble.is_empty()
        }
    })
    .await;

    let request = hold(&alice, &bob, 10);
    let refused = client.create(&request).await.unwrap_err();

    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "SHARD_UNAVAILABLE"));
    assert!(refused.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
    let absent = client.holds.get_hold(v1::GetHoldRequest { id: request.id.clone() }).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);

    servers.shards[1].launch().unwrap();
    until("the shard is known to be back", || {
        let mut client = client.clone();
        async move { reachable(&mut client, 1).await }
    })
    .await;
    assert_eq!(client.create(&request).await.unwrap().hold.unwrap().phase(), Phase::Held);
    client.until(&first.id, &[Phase::Held]).await;
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_whose_shard_is_down_when_it_falls_due_waits_and_is_paid_when_it_is_back() {
    let mut servers = servers().await;
    let Coordinator { mut client, .. } = serve_on(&servers).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(4));
    client.create(&request).await.unwrap();

    servers.shards[1].crash().unwrap();
    until("the hold shows that it is retried", || {
        let (mut client, id) = (client.clone(), request.id.clone());
        async move { client.hold(&id).await.attention() == Attention::Retrying }
    })
    .await;
    assert_eq!(client.balances(&alice).await, (9_990, 10), "the funds stay frozen meanwhile");

    servers.shards[1].launch().unwrap();
    let paid = client.until_final(&request.id).await;
    assert_eq!((paid.phase(), paid.attention()), (Phase::Confirmed, Attention::None));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_database_may_crash_under_load_and_nothing_is_lost_or_created() {
    let mut servers = servers().await;
    let Coordinator { mut client, .. } = serve_on(&servers).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let requests: Vec<_> = (0..300)
        .map(|n| hold_due_in(&alice, &bob, 10, SignedDuration::from_millis(12_000 + n * 10)))
        .collect();

    let creating = requests.iter().map(|request| {
        let (mut client, request) = (client.clone(), request.clone());
        tokio::spawn(async move {
            // An unknown outcome is asked for again with the same id.
            loop {
                match client.create(&request).await {
                    Ok(_) => return,
                    Err(status) => {
                        assert!(
                            matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded),
                            "{status:?}"
                        );
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        })
    });
    let creating: Vec<_> = creating.collect();
    for round in 0..2 {
        for server in [&mut servers.coordinator].into_iter().chain(&mut servers.shards) {
            server.crash().unwrap();
            server.launch().unwrap();
        }
        assert!(round < 2);
    }
    for task in creating {
        tokio::time::timeout(tcc_tests::PATIENCE, task).await.expect("in time").unwrap();
    }

    for request in &requests {
        assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    }
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((7_000, 0), (3_000, 0)));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_ends_first_is_an_unknown_outcome_and_the_same_id_finds_the_hold() {
    let system = System::start().await;
    let gate = Gate::default();
    let running = serve::start_with(&system.config, gate.between(), |store| store).await.unwrap();
    let Coordinator { mut client, .. } = Coordinator::on(running).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold(&alice, &bob, 10);
    gate.stop(TransactionId::parse(&request.id).unwrap(), Step::Ask(Operation::Try, CREDIT), When::After);

    let mut call = tonic::Request::new(request.clone());
    call.set_timeout(Duration::from_millis(600));
    let unknown = client.holds.create_hold(call).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::DeadlineExceeded, "OUTCOME_UNKNOWN"));
    assert_eq!(client.hold(&request.id).await.phase(), Phase::Trying);

    // A cancel goes past the life that hangs, and the fences refuse what it may still send.
    assert_eq!(client.cancel(&request.id).await.unwrap().phase(), Phase::Cancelled);
    assert_eq!(client.balances(&alice).await, (10_000, 0));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_stops_nothing() {
    let system = System::start().await;
    let Coordinator { mut client, .. } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let requests: Vec<_> = (0..50).map(|_| hold(&alice, &bob, 10)).collect();

    for request in &requests {
        let mut client = client.clone();
        let _ = tokio::time::timeout(Duration::from_micros(300), client.create(request)).await;
    }

    // Each was either never received or is seen through.
    for request in &requests {
        client.create(request).await.unwrap();
        assert_eq!(client.hold(&request.id).await.phase(), Phase::Held);
    }
    assert_eq!(client.balances(&alice).await, (9_500, 500));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_the_protocol_forbids_parks_the_hold_and_keeps_its_decision() {
    let system = System::start().await;
    let Coordinator { mut client, .. } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold(&alice, &bob, 10);
    client.create(&request).await.unwrap();
    // Somebody makes the payee's shard forget.
    let sql = system.shard_sql(1).await;
    let id = uuid::Uuid::parse_str(&request.id).unwrap();
    assert_eq!(sql.execute("DELETE FROM branch WHERE transaction_id = $1", &[&id]).await.unwrap(), 1);

    let mut call =
        tonic::Request::new(v1::ConfirmHoldRequest { id: request.id.clone(), etag: String::new() });
    call.set_timeout(Duration::from_secs(1));
    let asked = client.holds.confirm_hold(call).await.unwrap().into_inner().hold.unwrap();

    assert_eq!(asked.phase(), Phase::Confirming);
    until("the hold is parked", || {
        let (mut client, id) = (client.clone(), request.id.clone());
        async move { client.hold(&id).await.attention() == Attention::Parked }
    })
    .await;
    assert_eq!(client.balances(&alice).await, (9_990, 10), "the funds stay frozen");
    let status = client.operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.attention[0].attention(), Attention::Parked);
    assert!(status.attention[0].example_error.contains("NotTried"), "{status:?}");
    let (findings, _) = client.audit().await;
    assert!(findings.iter().any(|finding| finding.kind == "PHASE_MISMATCH"), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_its_shard_rejects_is_parked_after_many_tries_and_its_neighbours_are_paid() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let poisoned = hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(5));
    let sound: Vec<_> =
        (0..20).map(|_| hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(5))).collect();
    create_all(&client, &sound).await;
    client.create(&poisoned).await.unwrap();
    let shard = system.shard_sql(1).await;
    shard
        .batch_execute(
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.amount = 13 THEN RAISE EXCEPTION 'poison'; END IF; RETURN NEW; END $$;
             CREATE TRIGGER poison BEFORE UPDATE ON branch FOR EACH ROW EXECUTE FUNCTION poison()",
        )
        .await
        .unwrap();

    for request in &sound {
        assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    }
    let attention = |wanted: Attention| {
        let (mut client, id) = (client.clone(), poisoned.id.clone());
        async move { client.hold(&id).await.attention() == wanted }
    };
    until("the poisoned hold is retried", || attention(Attention::Retrying)).await;
    // Forty-nine failures later.
    system.sql().await.execute("UPDATE attention SET attempts = 49", &[]).await.unwrap();
    until("the poisoned hold is parked", || attention(Attention::Parked)).await;

    assert_eq!(client.hold(&poisoned.id).await.phase(), Phase::Held, "nobody else decides");
    assert_eq!(client.balances(&alice).await, (9_787, 13), "and its funds stay frozen");
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_hold_whose_try_had_to_be_repeated_is_paid_when_it_is_due() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let shard = system.shard_sql(1).await;
    shard
        .batch_execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
             CREATE TRIGGER fail BEFORE INSERT ON branch FOR EACH ROW EXECUTE FUNCTION fail()",
        )
        .await
        .unwrap();
    // Due before the retry interval is over, so that it has one wake-up for everything.
    let request = hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(4));
    let created = tokio::spawn({
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.create(&request).await }
    });
    let sql = system.sql().await;
    until("its Try is put off", || async {
        sql.query_one("SELECT count(*) FROM attention", &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    shard.batch_execute("DROP TRIGGER fail ON branch").await.unwrap();

    assert_eq!(created.await.unwrap().unwrap().hold.unwrap().phase(), Phase::Held);
    assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_push_after_a_commit_the_verify_pass_finds_every_wake_up() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    running.timers.stop_pushing();
    let requests: Vec<_> =
        (0..50).map(|n| hold_due_in(&alice, &bob, 10, SignedDuration::from_millis(5_000 + n * 10))).collect();
    create_all(&client, &requests).await;

    for request in &requests {
        assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    }

    assert!(running.timers.lock().missed() >= 50);
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_beyond_the_horizon_of_wake_ups_is_armed_again_on_the_way() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold_due_in(&alice, &bob, 10, SignedDuration::from_hours(24 * 120));
    client.create(&request).await.unwrap();
    let sql = system.sql().await;
    let id = uuid::Uuid::parse_str(&request.id).unwrap();
    let ahead = "SELECT max(extract(epoch FROM wake_at - clock_timestamp()))::float8 / 86400 FROM wakeup
                 WHERE transaction_id = $1";
    let days: f64 = sql.query_one(ahead, &[&id]).await.unwrap().get(0);
    assert!((89.9..90.1).contains(&days), "{days}");

    // Ninety days later: its wake-up fires, 30 days before its due time.
    let Coordinator { mut client, running: _running } = {
        Coordinator { client, running }.stop().await;
        sql.execute("UPDATE transaction SET held_at = held_at - interval '90 days' WHERE id = $1", &[&id])
            .await
            .unwrap();
        sql.execute("UPDATE transaction SET due_at = due_at - interval '90 days' WHERE id = $1", &[&id])
            .await
            .unwrap();
        sql.execute("DELETE FROM wakeup WHERE transaction_id = $1", &[&id]).await.unwrap();
        let insert =
            "INSERT INTO wakeup SELECT clock_timestamp(), id, slot, lane FROM transaction WHERE id = $1";
        sql.execute(insert, &[&id]).await.unwrap();
        system.coordinator().await
    };

    let waiting = "SELECT max(wake_at) = (SELECT due_at FROM transaction WHERE id = $1) FROM wakeup WHERE transaction_id = $1";
    until("it is armed for its due time", || async {
        sql.query_one(waiting, &[&id]).await.unwrap().get::<_, Option<bool>>(0) == Some(true)
    })
    .await;
    assert_eq!(client.hold(&request.id).await.phase(), Phase::Held);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_finds_a_hold_that_no_wake_up_would_ever_find() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold(&alice, &bob, 10);
    client.create(&request).await.unwrap();
    client.audit_is_clean().await;
    let id = uuid::Uuid::parse_str(&request.id).unwrap();

    let sql = system.sql().await;
    sql.execute("DELETE FROM wakeup WHERE transaction_id = $1", &[&id]).await.unwrap();

    let (findings, _) = client.audit().await;
    assert_eq!(findings.iter().map(|finding| finding.kind.as_str()).collect::<Vec<_>>(), ["FORGOTTEN"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issue_and_a_hold_may_have_the_same_id() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold(&alice, &bob, 10);
    let issue = v1::IssueRequest {
        id: request.id.clone(),
        account: alice.clone(),
        amount: Some(tcc_tests::amount(5)),
    };
    client.ledger.issue(issue).await.unwrap();

    client.create(&request).await.unwrap();
    client.confirm(&request.id).await.unwrap();

    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((9_995, 0), (10, 0)));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_not_there_at_the_start_joins_when_it_is_and_is_checked_first() {
    let mut servers = servers().await;
    servers.shards[1].crash().unwrap();
    let Coordinator { mut client, running } = serve_on(&servers).await;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 10_000).await;
    let absent = v1::CreateAccountRequest { id: bob.clone(), currency: tcc_tests::GOLD.into() };
    until("the shard is known to be down", || {
        let (mut client, absent) = (client.clone(), absent.clone());
        async move {
            let refused = client.ledger.create_account(absent).await;
            refused.is_err_and(|status| reason(&status) == "SHARD_UNAVAILABLE")
        }
    })
    .await;

    servers.shards[1].launch().unwrap();
    until("the shard has joined", || {
        let (mut client, absent) = (client.clone(), absent.clone());
        async move { client.ledger.create_account(absent).await.is_ok() }
    })
    .await;
    client.create(&hold(&alice, &bob, 10)).await.unwrap();
    client.audit_is_clean().await;

    // Its database now says that it is another shard, as a wrong url would: nothing is asked of it.
    connect(&servers.shards[1].url()).await.execute("UPDATE shard SET name = 'other'", &[]).await.unwrap();
    servers.shards[1].crash().unwrap();
    servers.shards[1].launch().unwrap();
    until("the shard is refused", || {
        let (mut client, request) = (client.clone(), hold(&alice, &bob, 10));
        async move { client.create(&request).await.is_err_and(|status| reason(&status) == "SHARD_UNAVAILABLE") }
    })
    .await;
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_hangs_holds_up_neither_the_others_nor_the_end() {
    let servers = servers().await;
    let Coordinator { mut client, running } = serve_on(&servers).await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let carol = tcc_tests::on_shard("carol", 0);
    client.account(&carol, 0).await;
    let hung: Vec<_> =
        (0..100).map(|_| hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(5))).collect();
    create_all(&client, &hung).await;
    let free = hold_due_in(&alice, &carol, 10, SignedDuration::from_secs(7));
    client.create(&free).await.unwrap();

    let processes = servers.shards[1].processes();
    let signal = |name: &str| {
        for pid in &processes {
            std::process::Command::new("kill").args([name, pid]).status().unwrap();
        }
    };
    signal("-STOP");
    until("all are being paid", || async { running.engine.active() >= hung.len() }).await;
    assert_eq!(client.until_final(&free.id).await.phase(), Phase::Confirmed);
    let stopping = tokio::time::Instant::now();
    Coordinator { client, running }.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(15));
    signal("-CONT");

    let Coordinator { mut client, running: _running } = serve_on(&servers).await;
    for request in &hung {
        assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    }
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_told_to_stop_finishes_what_is_under_way_and_the_next_one_goes_on() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let requests: Vec<_> =
        (0..200).map(|n| hold_due_in(&alice, &bob, 10, SignedDuration::from_millis(5_000 + n * 5))).collect();
    let creating: Vec<_> = requests
        .iter()
        .map(|request| {
            let (mut client, request) = (client.clone(), request.clone());
            tokio::spawn(async move { client.create(&request).await })
        })
        .collect();
    until("some are begun", || async { running.engine.active() > 0 }).await;

    let stopping = tokio::time::Instant::now();
    Coordinator { client: client.clone(), running }.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(15));
    for task in creating {
        // Answered, or turned away before any effect.
        if let Err(status) = task.await.unwrap() {
            assert!(
                matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled),
                "{status:?}"
            );
        }
    }

    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let rows = system.sql().await.query("SELECT id::text FROM transaction", &[]).await.unwrap();
    assert!(!rows.is_empty());
    for row in &rows {
        assert_eq!(client.until_final(row.get(0)).await.phase(), Phase::Confirmed);
    }
    assert_eq!(client.balances(&bob).await, (10 * rows.len() as i64, 0));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_do_not_belong_together_are_told_apart() {
    let system = System::start().await;
    system.coordinator().await.stop().await;

    let mut swapped = system.config.clone();
    let url = std::mem::take(&mut swapped.shards[0].url);
    swapped.shards[0].url = std::mem::replace(&mut swapped.shards[1].url, url);
    let error = serve::start(&swapped).await.err().expect("it does not start").to_string();
    assert!(
        error.contains("this database is shard \"shard-1\", but the configuration calls it \"shard-0\""),
        "{error}"
    );

    let mut renamed = system.config.clone();
    renamed.shards[0].name = "other".into();
    let error = serve::start(&renamed).await.err().expect("it does not start").to_string();
    assert!(error.contains("the map is fixed"), "{error}");

    let mut nowhere = system.config.clone();
    nowhere.coordinator.url = "host=/nonexistent user=postgres".into();
    let error = serve::start(&nowhere).await.err().expect("it does not start").to_string();
    assert!(error.contains("cannot reach the database of the coordinator"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_and_partitions_may_be_prepared_by_several_at_once() {
    let system = System::start().await;
    let prepare = |_| async {
        let mut client = connect(&system.config.coordinator.url).await;
        let shards = ["shard-0".to_owned(), "shard-1".to_owned()];
        tcc_coordinator::store::schema::prepare(&mut client, &shards).await.expect("it is prepared")
    };

    let maps = futures::future::join_all((0..4).map(prepare)).await;

    assert!(maps.iter().all(|map| *map == maps[0]));
    assert_eq!(maps[0].values().map(std::collections::HashSet::len).sum::<usize>(), 4096);
}
