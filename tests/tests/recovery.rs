//! What people on call see and do: every action is recorded, and none of them can create or lose a unit.

use jiff::SignedDuration;
use tcc_proto::v1::{
    self, Attention, Cause, OperatorActionKind as Kind, Phase, execute_plan_response::Event,
};
use tcc_tests::{Client, Coordinator, System, alice_and_bob, hold, hold_due_in, reason, until};
use tonic::{Code, Status};

/// Lets the shard's server reject every change of a fence of this amount. Answers how to stop that.
async fn poison(system: &System, shard: usize, amount: i64) -> String {
    let name = format!("poison_{amount}");
    let sql = format!(
        "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.amount = {amount} THEN RAISE EXCEPTION 'no {amount} here'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER {name} BEFORE UPDATE ON branch FOR EACH ROW EXECUTE FUNCTION {name}()"
    );
    system.shard_sql(shard).await.batch_execute(&sql).await.unwrap();
    format!("DROP TRIGGER {name} ON branch")
}

async fn until_attention(client: &Client, id: &str, wanted: Attention) {
    until("its attention is as wanted", || {
        let (mut client, id) = (client.clone(), id.to_owned());
        async move { client.hold(&id).await.attention() == wanted }
    })
    .await;
}

/// Waits until a hold has failed, and then has failed often enough.
async fn until_parked(system: &System, client: &Client, id: &str) {
    until_attention(client, id, Attention::Retrying).await;
    let uuid = uuid::Uuid::parse_str(id).unwrap();
    let sql = "UPDATE attention SET attempts = 49 WHERE transaction_id = $1";
    system.sql().await.execute(sql, &[&uuid]).await.unwrap();
    until_attention(client, id, Attention::Parked).await;
}

async fn act(client: &mut Client, id: &str, action: Kind) -> Result<v1::Hold, Status> {
    let request = v1::ActRequest {
        id: id.into(),
        action: action.into(),
        reason: "a test".into(),
        ticket: "T-1".into(),
    };
    Ok(client.recovery.act(request).await?.into_inner().hold.expect("an answer has a hold"))
}

async fn plan(client: &mut Client, action: Kind, ids: &[&str]) -> v1::Plan {
    let request = v1::CreatePlanRequest {
        action: action.into(),
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    };
    client.recovery.create_plan(request).await.unwrap().into_inner().plan.expect("an answer has a plan")
}

/// Executes a plan to its end. Answers what became of each transaction, and of the whole.
async fn execute(client: &mut Client, id: &str) -> (Vec<v1::PlanItem>, v1::Plan) {
    let request = v1::ExecutePlanRequest {
        id: id.into(),
        reason: "a test".into(),
        ticket: "T-2".into(),
        max_per_second: 1_000,
    };
    let mut stream = client.recovery.execute_plan(request).await.unwrap().into_inner();
    let (mut items, mut end) = (Vec::new(), None);
    while let Some(answer) = stream.message().await.unwrap() {
        match answer.event {
            Some(Event::Item(item)) => items.push(item),
            Some(Event::Plan(plan)) => end = Some(plan),
            None => {}
        }
    }
    (items, end.expect("an execution ends with the plan"))
}

async fn items(client: &mut Client, plan: &str) -> Vec<v1::PlanItem> {
    client.recovery.get_plan(v1::GetPlanRequest { id: plan.into() }).await.unwrap().into_inner().items
}

async fn actions(client: &mut Client, target: &str) -> Vec<v1::OperatorAction> {
    let request = v1::ListActionsRequest { target: target.into(), ..Default::default() };
    client.recovery.list_actions(request).await.unwrap().into_inner().actions
}

async fn describe(client: &mut Client, id: &str) -> v1::DescribeHoldResponse {
    client.recovery.describe_hold(v1::DescribeHoldRequest { id: id.into() }).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_described_requeued_and_paid_and_the_record_says_who_did_it() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let heal = poison(&system, 1, 13).await;
    let request = hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(1));
    client.create(&request).await.unwrap();
    until_parked(&system, &client, &request.id).await;

    let seen = describe(&mut client, &request.id).await;
    let list = client.recovery.list_attention(v1::ListAttentionRequest::default()).await.unwrap();
    system.shard_sql(1).await.batch_execute(&heal).await.unwrap();
    act(&mut client, &request.id, Kind::Requeue).await.unwrap();
    let paid = client.until_final(&request.id).await;

    assert!(!seen.recovers_by_itself);
    assert!(
        seen.diagnosis.contains("no 13 here") && seen.diagnosis.contains("Nothing is decided"),
        "{seen:?}"
    );
    assert_eq!(seen.next_command, format!("tccctl parked requeue {} --reason REASON", request.id));
    let places: Vec<_> = seen.money.iter().map(|place| place.place.as_str()).collect();
    assert!(places[0].starts_with("frozen in escrow of") && places[1].ends_with("not paid"), "{places:?}");
    assert!(seen.branches.iter().all(|branch| branch.state == "tried"));
    assert!(seen.timeline.iter().any(|event| event.what.starts_with("hold 13 GOLD")), "{seen:?}");
    let item = &list.into_inner().items[0];
    assert_eq!((item.hold.as_ref().unwrap().id.as_str(), item.attempts), (request.id.as_str(), 50));
    assert_eq!((paid.phase(), paid.attention()), (Phase::Confirmed, Attention::None));
    let [action] = actions(&mut client, &request.id).await.try_into().unwrap();
    assert_eq!((action.action.as_str(), action.ticket.as_str()), ("requeue", "T-1"));
    assert_eq!((action.before.as_str(), action.after.as_str()), ("HELD PARKED", "HELD RETRYING"));
    assert!(action.address.starts_with("127.0.0.1:"), "{action:?}");
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_of_actions_is_neither_changed_nor_deleted() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold(&alice, &bob, 10);
    client.create(&request).await.unwrap();
    act(&mut client, &request.id, Kind::Pause).await.unwrap();
    let sql = system.sql().await;

    for statement in [
        "UPDATE operator_action SET reason = 'another one'",
        "DELETE FROM operator_action",
        "TRUNCATE operator_action",
    ] {
        let refused = sql.batch_execute(statement).await.unwrap_err();
        assert!(refused.as_db_error().unwrap().message().contains("evidence"), "{statement}: {refused:?}");
    }

    assert_eq!(actions(&mut client, "").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_hold_is_not_paid_until_it_is_resumed_and_a_client_may_still_cancel_one() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let due = hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(1));
    let other = hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(1));
    let far = hold(&alice, &bob, 10);
    for request in [&due, &other, &far] {
        client.create(request).await.unwrap();
    }

    act(&mut client, &due.id, Kind::Pause).await.unwrap();
    act(&mut client, &far.id, Kind::Pause).await.unwrap();
    // By then the paused one was due, too.
    client.until_final(&other.id).await;
    let paused = client.hold(&due.id).await;
    let cancelled = client.cancel(&far.id).await.unwrap();
    act(&mut client, &due.id, Kind::Resume).await.unwrap();
    let paid = client.until_final(&due.id).await;

    assert_eq!((paused.phase(), paused.attention()), (Phase::Held, Attention::Paused));
    assert_eq!((cancelled.phase(), cancelled.cause()), (Phase::Cancelled, Cause::Requested));
    assert_eq!((paid.phase(), paid.attention()), (Phase::Confirmed, Attention::None));
    assert_eq!(client.balances(&bob).await, (20, 0));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_is_paused_and_resumed_long_before_it_is_due_is_as_it_was() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let request = hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(2));
    client.create(&request).await.unwrap();

    act(&mut client, &request.id, Kind::Pause).await.unwrap();
    let resumed = act(&mut client, &request.id, Kind::Resume).await.unwrap();

    assert_eq!((resumed.phase(), resumed.attention()), (Phase::Held, Attention::None));
    client.audit_is_clean().await;
    assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_cancel_releases_what_the_payees_shard_cannot_pay() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let heal = poison(&system, 1, 13).await;
    let request = hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(1));
    client.create(&request).await.unwrap();
    until_parked(&system, &client, &request.id).await;
    // What made paying fail would make releasing fail, too.
    system.shard_sql(1).await.batch_execute(&heal).await.unwrap();

    let direct = act(&mut client, &request.id, Kind::ForceCancel).await.unwrap_err();
    let plan = plan(&mut client, Kind::ForceCancel, &[&request.id]).await;
    assert_eq!(client.hold(&request.id).await.attention(), Attention::Parked, "a plan changes nothing");
    let (items, end) = execute(&mut client, &plan.id).await;
    let cancelled = client.until_final(&request.id).await;

    assert_eq!((direct.code(), reason(&direct).as_str()), (Code::FailedPrecondition, "PLAN_REQUIRED"));
    assert_eq!((plan.transactions, plan.refused, plan.amounts[0].value), (1, 0, 13));
    assert_eq!((items[0].outcome.as_str(), end.done), ("done", 1), "{items:?}");
    assert_eq!((cancelled.phase(), cancelled.cause()), (Phase::Cancelled, Cause::Operator));
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((10_000, 0), (0, 0)));
    let [action] = actions(&mut client, &request.id).await.try_into().unwrap();
    assert_eq!((action.action.as_str(), &action.plan), ("force-cancel", &plan.id));
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_force_releases_what_the_payee_was_paid_and_the_plan_says_how_much_that_would_create() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    // The payee is paid, and then the payer's escrow cannot be settled.
    let heal = poison(&system, 0, 13).await;
    let request = hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(1));
    client.create(&request).await.unwrap();
    until_parked(&system, &client, &request.id).await;

    let plan = plan(&mut client, Kind::ForceCancel, &[&request.id]).await;
    let (done, end) = execute(&mut client, &plan.id).await;

    let refusal = items(&mut client, &plan.id).await.remove(0).refusal;
    assert!(refusal.starts_with("FORCE_UNSAFE: ") && refusal.contains("13 GOLD"), "{refusal}");
    assert_eq!((plan.transactions, plan.refused, end.done, done.len()), (0, 1, 0, 0));
    assert!(actions(&mut client, &request.id).await.is_empty());
    let seen = describe(&mut client, &request.id).await;
    assert!(seen.diagnosis.contains("is paid, which is final; do not cancel"), "{}", seen.diagnosis);
    system.shard_sql(0).await.batch_execute(&heal).await.unwrap();
    act(&mut client, &request.id, Kind::Requeue).await.unwrap();
    assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_cancel_that_has_become_unsafe_since_the_plan_is_refused() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let heal = poison(&system, 1, 13).await;
    let request = hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(1));
    client.create(&request).await.unwrap();
    until_parked(&system, &client, &request.id).await;
    let plan = plan(&mut client, Kind::ForceCancel, &[&request.id]).await;
    // Between the plan and its execution somebody pays after all: the row says nothing of it, the fence does.
    let uuid = uuid::Uuid::parse_str(&request.id).unwrap();
    let shard = system.shard_sql(1).await;
    shard.batch_execute(&heal).await.unwrap();
    act(&mut client, &request.id, Kind::Requeue).await.unwrap();
    assert_eq!(client.until_final(&request.id).await.phase(), Phase::Confirmed);
    let back = "UPDATE transaction SET phase = 2, attention = 3, settled_at = NULL WHERE id = $1";
    system.sql().await.execute(back, &[&uuid]).await.unwrap();

    let (done, end) = execute(&mut client, &plan.id).await;

    assert_eq!((done[0].outcome.as_str(), end.failed), ("refused", 1), "{done:?}");
    assert!(done[0].detail.starts_with("FORCE_UNSAFE"), "{done:?}");
    assert_eq!(client.balances(&bob).await, (13, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_does_exactly_its_set_and_leaves_alone_what_has_changed_since() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let requests: Vec<_> = (0..5).map(|_| hold(&alice, &bob, 10)).collect();
    for request in &requests {
        client.create(request).await.unwrap();
    }
    let ids: Vec<&str> = requests.iter().map(|request| request.id.as_str()).collect();
    act(&mut client, ids[3], Kind::Pause).await.unwrap();

    let plan = plan(&mut client, Kind::Pause, &ids[..4]).await;
    client.cancel(ids[1]).await.unwrap();
    let (done, end) = execute(&mut client, &plan.id).await;
    let (again, _) = execute(&mut client, &plan.id).await;

    assert_eq!((plan.transactions, plan.refused, plan.amounts[0].value), (3, 1, 30));
    let outcomes: Vec<_> = done.iter().map(|item| item.outcome.as_str()).collect();
    assert_eq!(outcomes, ["done", "changed", "done"]);
    assert_eq!((end.done, end.changed, end.failed), (2, 1, 0));
    assert!(again.is_empty(), "what has an outcome is not done again");
    assert_eq!(client.hold(ids[1]).await.phase(), Phase::Cancelled);
    assert_eq!(client.hold(ids[4]).await.attention(), Attention::None, "it is not in the plan");
    assert_eq!(client.hold(ids[2]).await.attention(), Attention::Paused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_was_broken_off_is_gone_on_with_and_one_that_has_expired_is_not_begun() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let requests: Vec<_> = (0..4).map(|_| hold(&alice, &bob, 10)).collect();
    for request in &requests {
        client.create(request).await.unwrap();
    }
    let ids: Vec<&str> = requests.iter().map(|request| request.id.as_str()).collect();
    let begun = plan(&mut client, Kind::Pause, &ids).await;
    let expired = plan(&mut client, Kind::Pause, &ids[..1]).await;
    let sql = system.sql().await;
    let slowly = v1::ExecutePlanRequest {
        id: begun.id.clone(),
        reason: "a test".into(),
        ticket: String::new(),
        max_per_second: 1,
    };
    let mut stream = client.recovery.execute_plan(slowly).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    drop(stream);
    // The execution had done one, and had not kept that it was done.
    sql.batch_execute("UPDATE plan_item SET outcome = NULL; UPDATE plan SET expires_at = created_at")
        .await
        .unwrap();

    let (done, end) = execute(&mut client, &begun.id).await;
    let late = v1::ExecutePlanRequest { id: expired.id.clone(), reason: "late".into(), ..Default::default() };
    let late = client.recovery.execute_plan(late).await.unwrap_err();

    assert!(done.iter().all(|item| item.outcome == "done"), "{done:?}");
    assert_eq!((end.done, end.changed), (4, 0));
    assert_eq!(actions(&mut client, ids[0]).await.len(), 1, "nothing is done twice");
    assert_eq!(reason(&late), "PLAN_EXPIRED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_shard_takes_nothing_new_keeps_what_is_due_and_goes_on_when_it_is_resumed() {
    let system = System::start().await;
    let Coordinator { mut client, running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let due = hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(4));
    client.create(&due).await.unwrap();
    let drain =
        || v1::DrainShardRequest { name: "shard-1".into(), reason: "a disk".into(), ticket: String::new() };
    client.recovery.drain_shard(drain()).await.unwrap();
    let drained = |client: &Client| {
        let mut client = client.clone();
        async move {
            let status = client.operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
            status.shards[1].drained
        }
    };
    until("the instance knows it", || drained(&client)).await;

    let refused = client.create(&hold(&alice, &bob, 10)).await.unwrap_err();
    let again = client.recovery.drain_shard(drain()).await.unwrap_err();
    until("what is due waits", || async { running.engine.waiting(1) == 1 }).await;
    assert_eq!(client.hold(&due.id).await.phase(), Phase::Held);
    let resume =
        v1::ResumeShardRequest { name: "shard-1".into(), reason: "a new one".into(), ticket: String::new() };
    client.operator.resume_shard(resume).await.unwrap();

    assert_eq!(client.until_final(&due.id).await.phase(), Phase::Confirmed);
    assert_eq!((reason(&refused), reason(&again)), ("SHARD_UNAVAILABLE".into(), "SHARD_DRAINED".into()));
    let done: Vec<_> = actions(&mut client, "shard-1").await.into_iter().map(|action| action.after).collect();
    assert_eq!(done, ["drained", "working"]);
    client.audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_settled_by_hand_and_acknowledged_is_not_shown_as_needing_attention() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    poison(&system, 1, 13).await;
    let request = hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(1));
    client.create(&request).await.unwrap();
    until_parked(&system, &client, &request.id).await;

    act(&mut client, &request.id, Kind::Acknowledge).await.unwrap();
    let twice = act(&mut client, &request.id, Kind::Acknowledge).await.unwrap_err();

    let all = v1::ListAttentionRequest { include_acknowledged: true, ..Default::default() };
    let all = client.recovery.list_attention(all).await.unwrap().into_inner().items;
    let open = client.recovery.list_attention(v1::ListAttentionRequest::default()).await.unwrap();
    let status = client.operator.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((all.len(), open.into_inner().items.len(), status.attention.len()), (1, 0, 0));
    assert_eq!(reason(&twice), "ACTION_REFUSED");
    assert_eq!(client.hold(&request.id).await.attention(), Attention::Parked, "it stays as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_action_is_refused_with_its_reason_and_changes_nothing() {
    let system = System::start().await;
    let Coordinator { mut client, running: _running } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    poison(&system, 1, 13).await;
    let (held, paused, paid, released, parked) = (
        hold(&alice, &bob, 10),
        hold(&alice, &bob, 10),
        hold(&alice, &bob, 10),
        hold(&alice, &bob, 10),
        hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(1)),
    );
    for request in [&held, &paused, &paid, &released, &parked] {
        client.create(request).await.unwrap();
    }
    act(&mut client, &paused.id, Kind::Pause).await.unwrap();
    client.confirm(&paid.id).await.unwrap();
    client.cancel(&released.id).await.unwrap();
    until_parked(&system, &client, &parked.id).await;
    let all = [&held, &paused, &paid, &released, &parked];
    let mut before = Vec::new();
    for request in all {
        before.push(client.hold(&request.id).await);
    }
    let recorded = actions(&mut client, "").await.len();

    let every = [Kind::Retry, Kind::Requeue, Kind::Acknowledge, Kind::Pause, Kind::Resume];
    let possible = [
        (&held, Kind::Pause),
        (&paused, Kind::Resume),
        (&parked, Kind::Requeue),
        (&parked, Kind::Acknowledge),
    ];
    let mut refused = 0;
    for request in all {
        for action in every {
            if possible.iter().any(|(id, possible)| id.id == request.id && *possible == action) {
                continue;
            }
            let error = act(&mut client, &request.id, action).await.unwrap_err();
            assert_eq!(reason(&error), "ACTION_REFUSED", "{action:?} of {request:?}");
            refused += 1;
        }
        let error = act(&mut client, &request.id, Kind::ForceCancel).await.unwrap_err();
        assert_eq!(reason(&error), "PLAN_REQUIRED");
        refused += 1;
    }
    let unknown = tcc_tests::new_id();
    for (id, action, why, code) in [
        (held.id.as_str(), Kind::Pause as i32, "", Code::InvalidArgument),
        (&held.id, Kind::Pause as i32, "  ", Code::InvalidArgument),
        (&held.id, 0, "why", Code::InvalidArgument),
        (&held.id, 99, "why", Code::InvalidArgument),
        ("7", Kind::Pause as i32, "why", Code::InvalidArgument),
        ("", Kind::Pause as i32, "why", Code::InvalidArgument),
        (&unknown, Kind::Pause as i32, "why", Code::NotFound),
    ] {
        let request = v1::ActRequest { id: id.into(), action, reason: why.into(), ticket: String::new() };
        assert_eq!(client.recovery.act(request).await.unwrap_err().code(), code, "{id:?} {action} {why:?}");
        refused += 1;
    }

    for (request, before) in all.into_iter().zip(before) {
        assert_eq!(client.hold(&request.id).await, before);
    }
    assert_eq!(actions(&mut client, "").await.len(), recorded, "{refused} refusals leave no action");
    assert!(refused >= 30);
}
