//! What an application can ask for beside single holds: keys, batches, transfers, lists, watches, etags, accounts and balances.

use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use tcc_coordinator::store::{Store, keys::Keys};
use tcc_core::round_up;
use tcc_proto::v1::{
    self, AccountState, Cause, Phase, PostingKind, batch_create_holds_outcome::Outcome as ItemOutcome,
};
use tcc_tests::{
    Client, PATIENCE, System, alice_and_bob, amount, detail, from_proto, hold, new_id, on_shard,
    on_two_shards, reason, time,
};
use tonic::{Code, Request};

fn keyed(key: &str, payer: &str, payee: &str, value: i64) -> v1::CreateHoldRequest {
    v1::CreateHoldRequest { id: String::new(), idempotency_key: key.to_owned(), ..hold(payer, payee, value) }
}

fn of_caller<T>(caller: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("tcc-caller", caller.parse().unwrap());
    request
}

fn transfer(payer: &str, payee: &str, value: i64) -> v1::TransferRequest {
    v1::TransferRequest {
        id: new_id(),
        payer: payer.to_owned(),
        payee: payee.to_owned(),
        amount: Some(amount(value)),
        ..Default::default()
    }
}

async fn state(client: &mut Client, id: &str) -> AccountState {
    let request = v1::GetAccountRequest { id: id.to_owned() };
    client.ledger.get_account(request).await.unwrap().into_inner().account.unwrap().state()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_one_hold_for_its_caller_and_another_one_for_anybody_else() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let request = keyed("order-4711", &alice, &bob, 30);

    let first = client.create(&request).await.unwrap();
    let again = client.create(&request).await.unwrap();
    let elsewhere = client.holds.create_hold(of_caller("shop", request.clone())).await.unwrap().into_inner();

    assert_eq!((first.replayed, again.replayed, elsewhere.replayed), (false, true, false));
    assert_eq!(first.hold, again.hold);
    assert_ne!(first.hold.unwrap().id, elsewhere.hold.unwrap().id);
    assert_eq!(client.balances(&alice).await, (10_000 - 60, 60));

    let other = v1::CreateHoldRequest { amount: Some(amount(31)), ..request.clone() };
    let refused = client.create(&other).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED"));
    assert_eq!(detail(&refused, "field").as_deref(), Some("amount.value"));
    let labels = HashMap::from([("guild".to_owned(), "red".to_owned())]);
    let refused = client.create(&v1::CreateHoldRequest { labels, ..request }).await.unwrap_err();
    assert_eq!(detail(&refused, "field").as_deref(), Some("labels"));
    assert_eq!(client.balances(&alice).await, (10_000 - 60, 60));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_ask_at_once_with_one_key_get_one_hold() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let request = keyed("once", &alice, &bob, 30);

    let calls = (0..20).map(|_| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.create(&request).await.unwrap() }
    });
    let answers = futures::future::join_all(calls).await;

    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
    assert!(answers.iter().all(|answer| answer.hold == answers[0].hold));
    assert_eq!(client.balances(&alice).await, (10_000 - 30, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_replayed_by_key_and_by_id_and_says_so() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;

    for request in [keyed("too-much", &alice, &bob, 10_001), hold(&alice, &bob, 10_001)] {
        let first = client.create(&request).await.unwrap_err();
        client.account(&alice, 10_000).await;
        let again = client.create(&request).await.unwrap_err();

        assert_eq!(
            (reason(&first).as_str(), reason(&again).as_str()),
            ("INSUFFICIENT_FUNDS", "INSUFFICIENT_FUNDS")
        );
        assert_eq!((detail(&first, "replayed"), detail(&again, "replayed").as_deref()), (None, Some("true")));
        assert_eq!(detail(&first, "id"), detail(&again, "id"));
        let refused = client.until_final(&detail(&first, "id").unwrap()).await;
        assert_eq!((refused.phase(), refused.cause()), (Phase::Cancelled, Cause::Refused));
        let burn = v1::BurnRequest { id: new_id(), account: alice.clone(), amount: Some(amount(10_000)) };
        client.ledger.burn(burn).await.unwrap();
    }
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_kept_while_its_hold_is_open_and_a_week_after_it_is_final() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let config = system.config.coordinator.url.parse().unwrap();
    let keys = Keys::start(&config, Store::start(&config));
    let sql = system.sql().await;
    let kept = || async {
        let rows = sql.query("SELECT key FROM idempotency ORDER BY key", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    let look_now = "UPDATE idempotency SET look_at = clock_timestamp() - interval '1 second'";
    client.create(&keyed("open", &alice, &bob, 1)).await.unwrap();
    for key in ["young", "old"] {
        let id = client.create(&keyed(key, &alice, &bob, 1)).await.unwrap().hold.unwrap().id;
        client.cancel(&id).await.unwrap();
    }

    sql.batch_execute(look_now).await.unwrap();
    keys.purge().await.unwrap();
    assert_eq!(kept().await, ["old", "open", "young"]);

    let age = "UPDATE transaction t SET settled_at = settled_at - interval '7 days'
               FROM idempotency k WHERE k.transaction_id = t.id AND k.key = 'old'";
    sql.batch_execute(&format!("{age}; {look_now}")).await.unwrap();
    keys.purge().await.unwrap();
    assert_eq!(kept().await, ["open", "young"]);
    assert!(client.create(&keyed("young", &alice, &bob, 2)).await.is_err());
    assert!(!client.create(&keyed("old", &alice, &bob, 2)).await.unwrap().replayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_an_outcome_for_each_item() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.until_swept().await;
    let good = hold(&alice, &bob, 10);
    let holds = vec![
        good.clone(),
        hold(&alice, &bob, 20_000),
        hold(&alice, &bob, 0),
        v1::CreateHoldRequest { id: String::new(), ..good.clone() },
        keyed("in-a-batch", &alice, &bob, 20),
        v1::CreateHoldRequest { payee: "carol".into(), ..good.clone() },
    ];

    let batch = v1::BatchCreateHoldsRequest { holds };
    let answer = client.holds.batch_create_holds(batch.clone()).await.unwrap().into_inner();

    let said = answer.outcomes.into_iter().map(|outcome| match outcome.outcome.unwrap() {
        ItemOutcome::Created(created) => format!("{:?}", created.hold.unwrap().phase()),
        ItemOutcome::Error(error) => format!("{:?} {}", Code::from(error.code), error.reason),
    });
    let said: Vec<String> = said.collect();
    assert_eq!(
        said[1..5],
        [
            "FailedPrecondition INSUFFICIENT_FUNDS",
            "InvalidArgument AMOUNT_NOT_POSITIVE",
            "InvalidArgument IDEMPOTENCY_KEY_REQUIRED",
            "Held",
        ]
    );
    // Of the two with one id either may have been first.
    let of_one_id = [said[0].as_str(), said[5].as_str()];
    assert!(
        of_one_id == ["Held", "AlreadyExists ID_REUSED"]
            || of_one_id == ["AlreadyExists ID_REUSED", "NotFound ACCOUNT_NOT_FOUND"],
        "{said:?}"
    );

    let thousand = (0..1_000).map(|_| hold(&alice, &bob, 1)).collect();
    let answer =
        client.holds.batch_create_holds(v1::BatchCreateHoldsRequest { holds: thousand }).await.unwrap();
    let is_held =
        |outcome: &v1::BatchCreateHoldsOutcome| matches!(outcome.outcome, Some(ItemOutcome::Created(_)));
    assert_eq!(answer.into_inner().outcomes.iter().filter(|outcome| is_held(outcome)).count(), 1_000);
    let more = v1::BatchCreateHoldsRequest { holds: vec![hold(&alice, &bob, 1); 1_001] };
    assert_eq!(reason(&client.holds.batch_create_holds(more).await.unwrap_err()), "TOO_MANY_ITEMS");
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_paid_when_it_is_answered() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = transfer(&alice, &bob, 30);

    let paid = client.holds.transfer(request.clone()).await.unwrap().into_inner();
    let again = client.holds.transfer(request.clone()).await.unwrap().into_inner();

    let hold = paid.hold.clone().unwrap();
    assert_eq!((hold.phase(), hold.cause()), (Phase::Confirmed, Cause::Matured));
    assert_eq!(hold.due_at, hold.created_at);
    assert_eq!((paid.replayed, again.replayed), (false, true));
    assert_eq!(paid.hold, again.hold);
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((9_970, 0), (30, 0)));
    let cancel = client.cancel(&request.id).await.unwrap_err();
    assert_eq!(reason(&cancel), "HOLD_NOT_CANCELLABLE");

    let refused = client.holds.transfer(transfer(&alice, &bob, 9_971)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "INSUFFICIENT_FUNDS"));
    let other = v1::TransferRequest { payee: "carol".into(), ..request };
    assert_eq!(reason(&client.holds.transfer(other).await.unwrap_err()), "ID_REUSED");
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_transfers_between_the_same_two_are_all_paid_once() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;

    let calls = (0..200).map(|n| {
        let mut client = client.clone();
        let request = if n % 2 == 0 { transfer(&alice, &bob, 10) } else { transfer(&bob, &alice, 5) };
        async move { client.holds.transfer(request).await.map(|answer| answer.into_inner().hold.unwrap()) }
    });
    let answers = futures::future::join_all(calls).await;

    let paid =
        answers.iter().filter(|answer| answer.as_ref().is_ok_and(|hold| hold.phase() == Phase::Confirmed));
    let refused = answers
        .iter()
        .filter(|answer| answer.as_ref().is_err_and(|status| reason(status) == "INSUFFICIENT_FUNDS"));
    let (paid, refused) = (paid.count(), refused.count());
    assert_eq!(paid + refused, 200, "{answers:?}");
    let sum = client.balances(&alice).await.0 + client.balances(&bob).await.0;
    assert_eq!(sum, 10_000);
    client.audit_is_clean().await;
}

/// All pages of a list, and how many there were.
async fn list(client: &mut Client, mut request: v1::ListHoldsRequest) -> (Vec<v1::Hold>, usize) {
    let (mut holds, mut pages) = (Vec::new(), 0);
    loop {
        let page = client.holds.list_holds(request.clone()).await.unwrap().into_inner();
        holds.extend(page.holds);
        pages += 1;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return (holds, pages);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_what_is_asked_for_the_newest_first_page_by_page() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let carol = on_shard("carol", 0);
    client.account(&carol, 0).await;
    let mut ids = Vec::new();
    for n in 0..9 {
        let payee = if n % 3 == 0 { &carol } else { &bob };
        let labels = HashMap::from([("order".to_owned(), (n % 2).to_string())]);
        let request = v1::CreateHoldRequest { labels, ..hold(&alice, payee, 1 + n) };
        client.create(&request).await.unwrap();
        ids.push(request.id);
    }
    client.cancel(&ids[0]).await.unwrap();
    client.confirm(&ids[1]).await.unwrap();
    client.create(&hold(&alice, &bob, 1_000_000)).await.unwrap_err();
    let of_alice = v1::ListHoldsRequest { payer: alice.clone(), ..Default::default() };
    let listed = |holds: &[v1::Hold]| -> Vec<usize> {
        holds.iter().map(|hold| ids.iter().position(|id| *id == hold.id).unwrap_or(99)).collect()
    };

    let (all, pages) = list(&mut client, v1::ListHoldsRequest { page_size: 3, ..of_alice.clone() }).await;
    assert_eq!((listed(&all), pages), (vec![99, 8, 7, 6, 5, 4, 3, 2, 1, 0], 4));
    assert_eq!(all[9], client.hold(&ids[0]).await);

    let phases = vec![Phase::Held.into(), Phase::Confirmed.into()];
    let (some, _) = list(&mut client, v1::ListHoldsRequest { phases, ..of_alice.clone() }).await;
    assert_eq!(listed(&some), [8, 7, 6, 5, 4, 3, 2, 1]);
    let labels = HashMap::from([("order".to_owned(), "0".to_owned())]);
    let (some, _) = list(&mut client, v1::ListHoldsRequest { labels, ..of_alice.clone() }).await;
    assert_eq!(listed(&some), [8, 6, 4, 2, 0]);
    let (some, _) =
        list(&mut client, v1::ListHoldsRequest { payee: carol.clone(), ..of_alice.clone() }).await;
    assert_eq!(listed(&some), [6, 3, 0]);
    let of_carol = v1::ListHoldsRequest { payee: carol, page_size: 1, ..Default::default() };
    let (some, pages) = list(&mut client, of_carol).await;
    assert_eq!((listed(&some), pages >= 3), (vec![6, 3, 0], true));
    let created = |n: usize| all[9 - n].created_at;
    let (some, _) = list(
        &mut client,
        v1::ListHoldsRequest { created_from: created(3), created_until: created(6), ..of_alice.clone() },
    )
    .await;
    assert_eq!(listed(&some), [5, 4, 3]);
    let nobody = v1::ListHoldsRequest { payer: "nobody".into(), ..Default::default() };
    assert_eq!(list(&mut client, nobody).await, (Vec::new(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_token_is_good_for_its_own_list_and_its_own_caller_only() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    for _ in 0..3 {
        client.create(&hold(&alice, &bob, 1)).await.unwrap();
    }
    let first = v1::ListHoldsRequest { payer: alice.clone(), page_size: 1, ..Default::default() };
    let page_token = client.holds.list_holds(first.clone()).await.unwrap().into_inner().next_page_token;
    let next = v1::ListHoldsRequest { page_token: page_token.clone(), ..first };

    let forged = page_token.replace(['a', '1'], "2");
    let others = [
        Request::new(v1::ListHoldsRequest { payee: bob, ..next.clone() }),
        Request::new(v1::ListHoldsRequest { phases: vec![Phase::Held.into()], ..next.clone() }),
        Request::new(v1::ListHoldsRequest { page_token: forged, ..next.clone() }),
        of_caller("mallory", next.clone()),
    ];
    for other in others {
        let refused = client.holds.list_holds(other).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::InvalidArgument, "PAGE_TOKEN_INVALID")
        );
    }
    let larger = v1::ListHoldsRequest { page_size: 100, ..next };
    assert_eq!(client.holds.list_holds(larger).await.unwrap().into_inner().holds.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_goes_by_the_summaries_and_each_partition_has_one_index_of_them() {
    let system = System::start().await;
    let _coordinator = system.coordinator().await;
    let sql = system.shard_sql(0).await;

    let indexes = "SELECT count(*) FROM pg_inherits i
                   JOIN pg_index x ON x.indrelid = i.inhrelid
                   JOIN pg_class c ON c.oid = x.indexrelid
                   JOIN pg_am a ON a.oid = c.relam
                   WHERE i.inhparent = 'branch'::regclass AND a.amname = 'brin'";
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'branch'::regclass";
    let count = |statement: &'static str| {
        let sql = &sql;
        async move { sql.query_one(statement, &[]).await.unwrap().get::<_, i64>(0) }
    };
    assert_eq!(count(indexes).await, count(partitions).await);
    let leaf: String = sql
        .query_one(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'branch'::regclass LIMIT 1",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    sql.batch_execute("SET enable_seqscan = off; SET enable_indexscan = off").await.unwrap();
    let plan = format!(
        "EXPLAIN SELECT transaction_id FROM {leaf}
         WHERE account = 'alice' AND role = 1::int2 AND fenced_at >= now() - interval '1 hour'
           AND (transaction_id >= '00000000-0000-0000-0000-000000000000') IS TRUE
           AND (transaction_id < 'ffffffff-ffff-ffff-ffff-ffffffffffff') IS TRUE
         ORDER BY transaction_id DESC LIMIT 10"
    );
    let plan: Vec<String> = sql.query(&plan, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let plan = plan.join("\n");
    assert!(plan.contains("Bitmap Index Scan") && plan.contains("fenced_at"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_each_change_and_ends_with_the_last_one() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold(&alice, &bob, 30);
    client.create(&request).await.unwrap();

    let watch = v1::WatchHoldRequest { id: request.id.clone(), etag: String::new() };
    let mut stream = client.holds.watch_hold(watch).await.unwrap().into_inner();
    let held = stream.message().await.unwrap().unwrap().hold.unwrap();
    let resumed = v1::WatchHoldRequest { id: request.id.clone(), etag: held.etag.clone() };
    let mut resumed = client.holds.watch_hold(resumed).await.unwrap().into_inner();
    client.cancel(&request.id).await.unwrap();

    assert_eq!(held.phase(), Phase::Held);
    for stream in [&mut stream, &mut resumed] {
        let mut last = None;
        while let Some(told) = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap() {
            let phase = told.hold.unwrap().phase();
            assert_ne!(Some(phase), last, "told once");
            assert_ne!(phase, Phase::Held, "told before");
            last = Some(phase);
        }
        assert_eq!(last, Some(Phase::Cancelled));
    }
    let unknown = v1::WatchHoldRequest { id: new_id(), etag: String::new() };
    assert_eq!(reason(&client.holds.watch_hold(unknown).await.unwrap_err()), "HOLD_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_lets_a_change_happen_only_if_nothing_else_has() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let [one, other] = [hold(&alice, &bob, 10), hold(&alice, &bob, 20)];
    let held = client.create(&one).await.unwrap().hold.unwrap();
    client.create(&other).await.unwrap();
    let cancel = |id: &str, etag: &str| v1::CancelHoldRequest { id: id.to_owned(), etag: etag.to_owned() };
    let confirm = |id: &str, etag: &str| v1::ConfirmHoldRequest { id: id.to_owned(), etag: etag.to_owned() };

    for etag in ["2", "nonsense", "12"] {
        let refused = client.holds.cancel_hold(cancel(&one.id, etag)).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "ETAG_MISMATCH"), "{etag}");
        assert_eq!(detail(&refused, "etag"), Some(held.etag.clone()));
    }
    assert_eq!(client.hold(&one.id).await, held, "nothing was done");
    let cancelled =
        client.holds.cancel_hold(cancel(&one.id, &held.etag)).await.unwrap().into_inner().hold.unwrap();
    assert_eq!(cancelled.phase(), Phase::Cancelled);
    let late = client.holds.confirm_hold(confirm(&one.id, &held.etag)).await.unwrap_err();
    assert_eq!(reason(&late), "ETAG_MISMATCH");
    let again = client.holds.cancel_hold(cancel(&one.id, &cancelled.etag)).await.unwrap();
    assert_eq!(again.into_inner().hold, Some(cancelled));
    let paid = client.holds.confirm_hold(confirm(&other.id, &held.etag)).await.unwrap().into_inner();
    assert_eq!(paid.hold.unwrap().phase(), Phase::Confirmed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_validated_is_checked_to_the_end_and_leaves_nothing() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let labels = HashMap::from([("order".to_owned(), "Ärger 🐉".to_owned())]);
    let good = v1::CreateHoldRequest { validate_only: true, labels, ..hold(&alice, &bob, 30) };

    let due_at = time(round_up(from_proto(&good.due_at.unwrap())));
    // Until then something that is too late may have been lost.
    client.until_swept().await;

    let would_be = client.create(&good).await.unwrap();
    let hold = would_be.hold.unwrap();
    assert_eq!((would_be.replayed, hold.phase(), hold.etag.as_str()), (false, Phase::Unspecified, ""));
    assert_eq!((&hold.id, &hold.labels, hold.due_at), (&good.id, &good.labels, Some(due_at)));
    for (request, expected) in [
        (v1::CreateHoldRequest { amount: Some(amount(10_001)), ..good.clone() }, "INSUFFICIENT_FUNDS"),
        (v1::CreateHoldRequest { payee: "nobody".into(), ..good.clone() }, "ACCOUNT_NOT_FOUND"),
        (
            v1::CreateHoldRequest { due_at: Some(time(Timestamp::UNIX_EPOCH)), ..good.clone() },
            "DUE_TIME_IN_PAST",
        ),
    ] {
        assert_eq!(reason(&client.create(&request).await.unwrap_err()), expected);
    }
    let rows = "SELECT count(*) FROM transaction";
    assert_eq!(system.sql().await.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert_eq!(client.balances(&alice).await, (10_000, 0));

    client.create(&v1::CreateHoldRequest { validate_only: false, ..good.clone() }).await.unwrap();
    assert!(client.create(&good).await.unwrap().replayed);
    let other = v1::CreateHoldRequest { amount: Some(amount(1)), ..good };
    assert_eq!(reason(&client.create(&other).await.unwrap_err()), "ID_REUSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_account_takes_part_in_nothing_new_and_what_would_pay_it_is_returned() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let held = hold(&alice, &bob, 30);
    client.create(&held).await.unwrap();

    let block = v1::BlockAccountRequest { id: bob.clone() };
    for _ in 0..2 {
        let blocked = client.ledger.block_account(block.clone()).await.unwrap().into_inner().account.unwrap();
        assert_eq!(blocked.state(), AccountState::Blocked);
    }
    assert_eq!(reason(&client.create(&hold(&alice, &bob, 1)).await.unwrap_err()), "ACCOUNT_BLOCKED");
    let transferred = client.holds.transfer(transfer(&alice, &bob, 1)).await.unwrap_err();
    assert_eq!(reason(&transferred), "ACCOUNT_BLOCKED");
    assert_eq!(reason(&client.confirm(&held.id).await.unwrap_err()), "HOLD_NOT_CONFIRMABLE");
    let returned = client.until_final(&held.id).await;
    assert_eq!((returned.phase(), returned.cause()), (Phase::Cancelled, Cause::Vetoed));
    assert_eq!((returned.reason.as_str(), client.balances(&alice).await), ("ACCOUNT_BLOCKED", (10_000, 0)));

    client.ledger.unblock_account(v1::UnblockAccountRequest { id: bob.clone() }).await.unwrap();
    assert_eq!(state(&mut client, &bob).await, AccountState::Open);
    client.holds.transfer(transfer(&alice, &bob, 1)).await.unwrap();
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_closed_when_it_is_empty_and_stays_closed() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let held = hold(&alice, &bob, 10_000);
    client.create(&held).await.unwrap();
    let close = v1::CloseAccountRequest { id: alice.clone() };

    let refused = client.ledger.close_account(close.clone()).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "ACCOUNT_NOT_EMPTY"));
    assert_eq!(detail(&refused, "held").as_deref(), Some("10000"));
    client.cancel(&held.id).await.unwrap();
    assert_eq!(reason(&client.ledger.close_account(close.clone()).await.unwrap_err()), "ACCOUNT_NOT_EMPTY");
    let burn = v1::BurnRequest { id: new_id(), account: alice.clone(), amount: Some(amount(10_000)) };
    client.ledger.burn(burn).await.unwrap();
    for _ in 0..2 {
        let closed = client.ledger.close_account(close.clone()).await.unwrap().into_inner().account.unwrap();
        assert_eq!(closed.state(), AccountState::Closed);
    }

    let unblock = v1::UnblockAccountRequest { id: alice.clone() };
    assert_eq!(reason(&client.ledger.unblock_account(unblock).await.unwrap_err()), "ACCOUNT_CLOSED");
    let issue = v1::IssueRequest { id: new_id(), account: alice.clone(), amount: Some(amount(1)) };
    assert_eq!(reason(&client.ledger.issue(issue).await.unwrap_err()), "ACCOUNT_CLOSED");
    let nobody = v1::CloseAccountRequest { id: "nobody".into() };
    assert_eq!(reason(&client.ledger.close_account(nobody).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burn_takes_effect_once_and_never_takes_what_is_not_there() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    client.create(&hold(&alice, &bob, 4_000)).await.unwrap();
    let burn = v1::BurnRequest { id: new_id(), account: alice.clone(), amount: Some(amount(5_000)) };

    for _ in 0..3 {
        let account = client.ledger.burn(burn.clone()).await.unwrap().into_inner().account.unwrap();
        assert_eq!((account.available, account.held), (1_000, 4_000));
    }
    let more = v1::BurnRequest { id: new_id(), amount: Some(amount(1_001)), ..burn.clone() };
    assert_eq!(reason(&client.ledger.burn(more).await.unwrap_err()), "INSUFFICIENT_FUNDS");
    let as_issue =
        v1::IssueRequest { id: burn.id.clone(), account: alice.clone(), amount: burn.amount.clone() };
    assert_eq!(reason(&client.ledger.issue(as_issue).await.unwrap_err()), "ID_REUSED");

    let postings = v1::ListPostingsRequest { account: alice, after_version: 2, ..Default::default() };
    let postings = client.ledger.list_postings(postings).await.unwrap().into_inner().postings;
    assert_eq!(postings.iter().map(|posting| posting.kind()).collect::<Vec<_>>(), [PostingKind::Burn]);
    let summary = client.audit_is_clean().await;
    assert_eq!(summary.issued[0].value, 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balance_at_a_time_is_that_after_the_last_posting_before_it() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    for n in 1..=3 {
        client.create(&hold(&alice, &bob, n)).await.unwrap();
    }
    let postings = v1::ListPostingsRequest { account: alice.clone(), ..Default::default() };
    let postings = client.ledger.list_postings(postings).await.unwrap().into_inner().postings;
    assert_eq!(postings.len(), 4);
    let ask = |at: Option<Timestamp>| {
        let (mut client, account) = (client.clone(), alice.clone());
        async move {
            let request = v1::GetBalanceRequest { account, at: at.map(time) };
            client.ledger.get_balance(request).await.map(tonic::Response::into_inner)
        }
    };

    for (n, posting) in postings.iter().enumerate() {
        let at = from_proto(posting.recorded_at.as_ref().unwrap());
        let after = ask(Some(at)).await.unwrap();
        assert_eq!(
            (after.version, after.available, after.held),
            (posting.version, posting.available_after, posting.held_after)
        );
        assert_eq!(after.recorded_at, posting.recorded_at);
        let before = ask(Some(at - SignedDuration::from_micros(1))).await.unwrap();
        assert_eq!(before.version, n as i64);
    }
    let now = ask(None).await.unwrap();
    assert_eq!((now.version, now.available, now.held), (4, 9_994, 6));
    assert_eq!(ask(Some(Timestamp::from_second(1).unwrap())).await.unwrap().available, 0);
    let future = ask(Some(Timestamp::now() + SignedDuration::from_hours(1))).await.unwrap_err();
    assert_eq!(reason(&future), "TIME_INVALID");

    let bounded = v1::ListPostingsRequest {
        account: alice.clone(),
        recorded_from: postings[1].recorded_at,
        recorded_until: postings[3].recorded_at,
        ..Default::default()
    };
    let bounded = client.ledger.list_postings(bounded).await.unwrap().into_inner().postings;
    assert_eq!(bounded.iter().map(|posting| posting.version).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn holdings_add_up_at_every_moment() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let working = {
        let (mut client, alice, bob) = (client.clone(), alice.clone(), bob.clone());
        tokio::spawn(async move {
            for n in 0..60 {
                let request = hold(&alice, &bob, 1 + n);
                client.create(&request).await.unwrap();
                match n % 3 {
                    0 => drop(client.cancel(&request.id).await.unwrap()),
                    1 => drop(client.confirm(&request.id).await.unwrap()),
                    _ => {}
                }
            }
        })
    };

    let open = loop {
        let is_over = working.is_finished();
        let request = v1::GetHoldingsRequest { account: alice.clone() };
        let read = client.ledger.get_holdings(request).await.unwrap().into_inner();
        let sum: i64 = read.holds.iter().map(|hold| hold.amount.as_ref().unwrap().value).sum();
        assert_eq!((sum, read.truncated), (read.account.unwrap().held, false));
        if is_over {
            break read.holds.len();
        }
    };
    working.await.unwrap();
    assert_eq!(open, 20);
    let nobody = v1::GetHoldingsRequest { account: on_two_shards("nobody").0 };
    assert_eq!(reason(&client.ledger.get_holdings(nobody).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
}
