//! What an application sees: holds that pay, release, refuse and repeat, on real PostgreSQL.

use jiff::SignedDuration;
use tcc_proto::v1::{self, Attention, Cause, OnMaturity, Phase};
use tcc_tests::{System, from_proto, hold, hold_due_in, new_id, on_shard, on_two_shards, reason, time};
use tonic::Code;

/// The code that the registry has for a reason.
fn code(reason: &str) -> Code {
    reason.parse::<tcc_proto::Reason>().expect("a reason of the registry").code()
}

fn soon() -> SignedDuration {
    SignedDuration::from_secs(3)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_freezes_the_funds_and_pays_when_due_and_not_before() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;

    let request = hold_due_in(&alice, &bob, 30, soon());
    let held = client.create(&request).await.unwrap().hold.unwrap();
    assert_eq!((held.phase(), held.attention()), (Phase::Held, Attention::None));
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((70, 30), (0, 0)));

    let paid = client.until_final(&request.id).await;
    assert_eq!((paid.phase(), paid.cause()), (Phase::Confirmed, Cause::Matured));
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((70, 0), (30, 0)));
    let due_at = from_proto(&paid.due_at.unwrap());
    assert!(from_proto(&paid.decided_at.unwrap()) >= due_at);
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_branches_on_one_shard_are_held_and_paid() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = (on_shard("alice", 1), on_shard("bob", 1));
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;

    let request = hold_due_in(&alice, &bob, 30, soon());
    client.create(&request).await.unwrap();

    assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((70, 0), (30, 0)));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_hold_releases_and_is_never_paid() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;
    let request = hold_due_in(&alice, &bob, 30, soon());
    client.create(&request).await.unwrap();

    let cancelled = client.cancel(&request.id).await.unwrap();
    assert_eq!((cancelled.phase(), cancelled.cause()), (Phase::Cancelled, Cause::Requested));
    assert_eq!(client.balances(&alice).await, (100, 0));
    assert_eq!(client.cancel(&request.id).await.unwrap(), cancelled, "repeating it changes nothing");

    // A later hold is paid, so the time of the cancelled one has come and gone.
    let later = hold_due_in(&alice, &bob, 1, soon() + soon());
    client.create(&later).await.unwrap();
    client.until_final(&later.id).await;
    assert_eq!(client.hold(&request.id).await, cancelled);
    assert_eq!(client.balances(&bob).await, (1, 0));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_can_be_confirmed_before_its_time_and_then_not_cancelled() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;
    let request = hold(&alice, &bob, 30);
    client.create(&request).await.unwrap();

    let paid = client.confirm(&request.id).await.unwrap();
    assert_eq!((paid.phase(), paid.cause()), (Phase::Confirmed, Cause::Requested));
    assert_eq!(client.confirm(&request.id).await.unwrap(), paid);

    let refused = client.cancel(&request.id).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "HOLD_NOT_CANCELLABLE")
    );
    assert_eq!(client.balances(&bob).await, (30, 0));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_is_to_be_released_is_released_when_due() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;
    let mut request = hold_due_in(&alice, &bob, 30, soon());
    request.on_maturity = OnMaturity::Cancel.into();
    let held = client.create(&request).await.unwrap().hold.unwrap();
    assert_eq!(held.on_maturity(), OnMaturity::Cancel, "the choice is echoed");

    let released = client.until_final(&request.id).await;
    assert_eq!((released.phase(), released.cause()), (Phase::Cancelled, Cause::Matured));
    assert_eq!(client.balances(&alice).await, (100, 0));

    let refused = client.confirm(&request.id).await.unwrap_err();
    assert_eq!(reason(&refused), "HOLD_NOT_CONFIRMABLE");
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_final_touches_no_balance_and_is_the_same_for_ever() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;
    let silver = v1::CreateAccountRequest { id: on_shard("silver", 1), currency: "SILVER".into() };
    client.ledger.create_account(silver.clone()).await.unwrap();

    let cases = [
        (hold(&alice, &bob, 101), "INSUFFICIENT_FUNDS"),
        (hold(&alice, "nobody", 1), "ACCOUNT_NOT_FOUND"),
        (hold("nobody", &bob, 1), "ACCOUNT_NOT_FOUND"),
        (hold(&alice, &silver.id, 1), "CURRENCY_MISMATCH"),
    ];
    for (request, expected) in &cases {
        let refused = client.create(request).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (code(expected), *expected));
        let hold = client.until_final(&request.id).await;
        assert_eq!(
            (hold.phase(), hold.cause(), hold.reason.as_str()),
            (Phase::Cancelled, Cause::Refused, *expected)
        );
    }
    client.account("nobody", 100).await;
    for (request, expected) in &cases {
        let again = client.create(request).await.unwrap_err();
        assert_eq!(reason(&again), *expected, "the same request gets the same refusal");
    }
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((100, 0), (0, 0)));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payee_who_is_blocked_meanwhile_vetoes_and_the_payer_is_refunded() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;
    let request = hold_due_in(&alice, &bob, 30, soon());
    client.create(&request).await.unwrap();
    let sql = system.shard_sql(1).await;
    assert_eq!(sql.execute("UPDATE account SET state = 2 WHERE id = $1", &[&bob]).await.unwrap(), 1);

    let vetoed = client.until_final(&request.id).await;

    assert_eq!((vetoed.phase(), vetoed.cause()), (Phase::Cancelled, Cause::Vetoed));
    assert_eq!(vetoed.reason, "ACCOUNT_BLOCKED");
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((100, 0), (0, 0)));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_and_body_is_one_hold_however_often_and_concurrently() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;
    let request = hold(&alice, &bob, 30);

    let calls = (0..20).map(|_| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.create(&request).await.unwrap() }
    });
    let answers = futures::future::join_all(calls).await;

    let first_answers = answers.iter().filter(|answer| !answer.replayed).count();
    assert_eq!(first_answers, 1);
    assert!(answers.iter().all(|answer| answer.hold == answers[0].hold));
    assert_eq!(client.balances(&alice).await, (70, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_another_body_is_refused_and_names_the_field() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;
    let request = hold(&alice, &bob, 30);
    client.create(&request).await.unwrap();

    let later = time(from_proto(request.due_at.as_ref().unwrap()) + SignedDuration::from_secs(1));
    let others = [
        ("payee", v1::CreateHoldRequest { payee: "carol".into(), ..request.clone() }),
        ("amount.value", v1::CreateHoldRequest { amount: Some(tcc_tests::amount(31)), ..request.clone() }),
        ("due_at", v1::CreateHoldRequest { due_at: Some(later), ..request.clone() }),
        ("on_maturity", v1::CreateHoldRequest { on_maturity: OnMaturity::Cancel.into(), ..request.clone() }),
    ];
    for (field, other) in others {
        let refused = client.create(&other).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::AlreadyExists, "ID_REUSED"));
        assert!(refused.message().contains(field), "{}", refused.message());
    }
    assert_eq!(client.balances(&alice).await, (70, 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_id_is_answered_even_when_its_due_time_has_passed() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;
    let request = hold_due_in(&alice, &bob, 30, soon());
    client.create(&request).await.unwrap();
    let paid = client.until_final(&request.id).await;

    let again = client.create(&request).await.unwrap();

    assert!(again.replayed);
    assert_eq!(again.hold, Some(paid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_without_an_id_gets_one() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 100).await;
    client.account(&bob, 0).await;

    let request = v1::CreateHoldRequest { id: String::new(), ..hold(&alice, &bob, 30) };
    let made = client.create(&request).await.unwrap().hold.unwrap();

    assert_eq!(client.hold(&made.id).await, made);
}

#[tokio::test(flavor = "multi_thread")]
async fn issues_take_effect_once_per_id_and_postings_tell_the_story() {
    let system = System::start().await;
    let mut client = system.coordinator().await.client;
    let (alice, bob) = on_two_shards("user");
    client.account(&alice, 0).await;
    client.account(&bob, 0).await;
    let issue =
        v1::IssueRequest { id: new_id(), account: alice.clone(), amount: Some(tcc_tests::amount(100)) };
    for _ in 0..3 {
        let account = client.ledger.issue(issue.clone()).await.unwrap().into_inner().account.unwrap();
        assert_eq!((account.available, account.version), (100, 1));
    }
    let other = v1::IssueRequest { amount: Some(tcc_tests::amount(101)), ..issue.clone() };
    assert_eq!(reason(&client.ledger.issue(other).await.unwrap_err()), "ID_REUSED");
    let unknown = v1::IssueRequest { id: new_id(), account: "nobody".into(), ..issue.clone() };
    assert_eq!(reason(&client.ledger.issue(unknown).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
    for (amount, confirm) in [(10, true), (20, false)] {
        let request = hold(&alice, &bob, amount);
        client.create(&request).await.unwrap();
        if confirm { client.confirm(&request.id).await } else { client.cancel(&request.id).await }.unwrap();
    }

    let mut page = v1::ListPostingsRequest { account: alice.clone(), page_size: 2, ..Default::default() };
    let mut story = Vec::new();
    loop {
        let answer = client.ledger.list_postings(page.clone()).await.unwrap().into_inner();
        story.extend(answer.postings.iter().map(|p| (p.kind(), p.version, p.available_after, p.held_after)));
        if answer.next_after_version == 0 {
            break;
        }
        page.after_version = answer.next_after_version;
    }

    use v1::PostingKind::{Hold, Issue, Release, Settle};
    let expected =
        [(Issue, 1, 100, 0), (Hold, 2, 90, 10), (Settle, 3, 90, 0), (Hold, 4, 70, 20), (Release, 5, 90, 0)];
    assert_eq!(story, expected);
    client.audit_is_clean().await;
}
