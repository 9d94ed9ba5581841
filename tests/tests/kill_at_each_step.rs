//! A coordinator is killed while transactions stand at every step of create, confirm and cancel; the next one brings each
//! of them to its end from the tables alone.

use jiff::SignedDuration;
use std::collections::HashMap;
use tcc_coordinator::serve;
use tcc_core::{
    Event, Operation, TransactionId,
    descriptor::{CREDIT, DEBIT},
};
use tcc_proto::v1::{CreateHoldRequest, Phase, TransferRequest};
use tcc_tests::{
    Client, Coordinator, System,
    gate::{Gate, Step, When},
    hold, hold_due_in, on_shard, on_two_shards, until,
};

/// What a client wants of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wish {
    /// To be paid when due.
    Pay,
    /// To be paid at once.
    Transfer,
    /// To be cancelled by request.
    Cancel,
    /// More than the payer has.
    Refuse,
}

use Step::{Advance, Ask, Begin, Wake};
use When::{After, Before};

fn steps() -> Vec<(Wish, Step)> {
    vec![
        (Wish::Pay, Begin),
        (Wish::Pay, Ask(Operation::Try, DEBIT)),
        (Wish::Pay, Ask(Operation::Try, CREDIT)),
        (Wish::Pay, Advance(Event::Tried)),
        (Wish::Pay, Wake),
        (Wish::Pay, Ask(Operation::Confirm, CREDIT)),
        (Wish::Pay, Ask(Operation::Confirm, DEBIT)),
        (Wish::Pay, Advance(Event::AllConfirmed)),
        (Wish::Transfer, Begin),
        (Wish::Transfer, Ask(Operation::Try, CREDIT)),
        (Wish::Transfer, Advance(Event::Tried)),
        (Wish::Transfer, Ask(Operation::Confirm, CREDIT)),
        (Wish::Transfer, Ask(Operation::Confirm, DEBIT)),
        (Wish::Transfer, Advance(Event::AllConfirmed)),
        (Wish::Cancel, Advance(Event::CancelRequested)),
        (Wish::Cancel, Ask(Operation::Cancel, CREDIT)),
        (Wish::Cancel, Ask(Operation::Cancel, DEBIT)),
        (Wish::Cancel, Advance(Event::AllCancelled)),
        (Wish::Refuse, Advance(Event::Refused)),
        (Wish::Refuse, Ask(Operation::Cancel, CREDIT)),
        (Wish::Refuse, Ask(Operation::Cancel, DEBIT)),
        (Wish::Refuse, Advance(Event::AllCancelled)),
    ]
}

/// The final phase that a kill at this step must lead to, if the client does not ask again.
fn end(wish: Wish, step: Step, when: When) -> Option<Phase> {
    match (wish, step, when) {
        // The row was never written: there is nothing to resume, and nothing was done.
        (_, Begin, Before) => None,
        // The request never reached the row: it stays held.
        (Wish::Cancel, Advance(Event::CancelRequested), Before) => Some(Phase::Held),
        (Wish::Pay | Wish::Transfer, ..) => Some(Phase::Confirmed),
        (Wish::Cancel | Wish::Refuse, ..) => Some(Phase::Cancelled),
    }
}

/// Runs a coordinator with a gate on a runtime of its own, and shuts that down with everything in it: as a kill does, but
/// for the connections, which the kernel closes in both cases.
struct Doomed {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Doomed {
    fn start(system: &System, gate: &Gate) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (config, store_gate, gate) = (system.config.clone(), gate.clone(), gate.clone());
        let client = runtime.block_on(async move {
            let running =
                serve::start_with(&config, gate.between(), move |store| store_gate.store(store)).await;
            let running = running.expect("the coordinator starts");
            Client::connect(&format!("http://{}", running.address)).await
        });
        Self { runtime, client }
    }

    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

#[test]
fn whatever_a_kill_interrupts_is_resumed_from_the_tables() {
    let outside = tokio::runtime::Runtime::new().unwrap();
    let system = outside.block_on(System::start());
    let gate = Gate::default();
    let doomed = Doomed::start(&system, &gate);
    let (alice, bob) = on_two_shards("user");
    // A second pair on one shard: there both branches are one operation.
    let (carol, dave) = (on_shard("carol", 0), on_shard("dave", 0));

    let mut cases: HashMap<String, (Wish, Step, When, CreateHoldRequest)> = HashMap::new();
    for (payer, payee) in [(&alice, &bob), (&carol, &dave)] {
        for (wish, step) in steps() {
            for when in [Before, After] {
                let amount = if wish == Wish::Refuse { 1_000_000 } else { 10 };
                let request = match wish {
                    Wish::Pay => hold_due_in(payer, payee, amount, SignedDuration::from_secs(6)),
                    Wish::Transfer | Wish::Cancel | Wish::Refuse => hold(payer, payee, amount),
                };
                gate.stop(TransactionId::parse(&request.id).unwrap(), step, when);
                cases.insert(request.id.clone(), (wish, step, when, request));
            }
        }
    }
    let mut client = doomed.client.clone();
    let requests: Vec<_> = cases.values().cloned().collect();
    doomed.runtime.block_on(async move {
        for account in [&alice, &bob, &carol, &dave] {
            client.account(account, if account == &alice || account == &carol { 10_000 } else { 0 }).await;
        }
        for (wish, _, _, request) in requests {
            let mut client = client.clone();
            tokio::spawn(async move {
                if wish == Wish::Transfer {
                    let CreateHoldRequest { id, payer, payee, amount, .. } = request;
                    let transfer = TransferRequest { id, payer, payee, amount, ..Default::default() };
                    let _ = client.holds.transfer(transfer).await;
                    return;
                }
                let created = client.create(&request).await;
                if wish == Wish::Cancel && created.is_ok() {
                    let _ = client.cancel(&request.id).await;
                }
            });
        }
    });
    outside.block_on(until("every transaction stands at its step", || async {
        gate.stopped().len() == cases.len()
    }));
    doomed.kill();

    outside.block_on(async {
        let Coordinator { mut client, .. } = system.coordinator().await;
        let mut paid = 0;
        let mut still_held = 0;
        for (id, (wish, step, when, _)) in &cases {
            match end(*wish, *step, *when) {
                None => {
                    let absent =
                        client.holds.get_hold(tcc_proto::v1::GetHoldRequest { id: id.clone() }).await;
                    assert_eq!(
                        tcc_tests::reason(&absent.unwrap_err()),
                        "HOLD_NOT_FOUND",
                        "{step:?} {when:?}"
                    );
                }
                Some(phase) => {
                    let hold = client.until(id, &[phase]).await;
                    assert_eq!(hold.phase(), phase, "{wish:?} {step:?} {when:?}");
                    paid += i64::from(phase == Phase::Confirmed);
                    still_held += i64::from(phase == Phase::Held);
                }
            }
        }
        let (alice, bob) = on_two_shards("user");
        let mut sums = (0, 0, 0);
        for (payer, payee) in [(&alice, &bob), (&on_shard("carol", 0), &on_shard("dave", 0))] {
            let (available, held) = client.balances(payer).await;
            let (received, _) = client.balances(payee).await;
            assert_eq!(available + held + received, 10_000);
            sums = (sums.0 + available, sums.1 + held, sums.2 + received);
        }
        assert_eq!(sums, (20_000 - 10 * (paid + still_held), 10 * still_held, 10 * paid));
        client.audit_is_clean().await;
    });
}
