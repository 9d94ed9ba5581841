//! Requests for transactions of any branches to domain types. Whatever passes here is trusted afterwards.

use super::{
    convert::{self, Asked, Name, Wrong, required},
    page::Filter,
    reason::{Violation, invalid, status, wrong},
};
use crate::{auth::Identity, config::Limits, store::Record};
use tcc_core::{
    Branch, Descriptor, Labels, Leg, ParticipantName, Phase, Request, Role, Timestamp, caller::is_name,
};
use tcc_participant::partitions::first_id;
use tcc_proto::{Reason, v1};
use tonic::Status;
use uuid::Uuid;

/// How many branches a transaction may have.
const BRANCHES: usize = 64;
/// How long one payload may be, in bytes, and all that the fences of a transaction's debits and credits keep: each of them keeps
/// all payloads, and a shard writes many fences at a time.
const PAYLOAD: (usize, usize) = (64 * 1024, 256 * 1024);

/// A transaction as asked for.
pub fn transaction(
    request: v1::CreateTransactionRequest,
    caller: &str,
    limits: &Limits,
) -> Result<Asked, Status> {
    let mut wrongs = Wrong::default();
    let v1::CreateTransactionRequest {
        id,
        branches,
        pivot,
        due_at,
        on_maturity,
        immediate,
        idempotency_key,
        labels,
        validate_only,
    } = request;
    let name = wrongs.take(convert::name(caller, &id, &idempotency_key));
    if immediate && !validate_only && name == Some(Name::None) {
        wrongs.0.push(convert::name_required());
    }
    let branches = all(branches, limits, &mut wrongs);
    let pivot = wrongs.take(decider(pivot, branches.len()));
    let end = if immediate {
        for (field, is_set) in [("due_at", due_at.is_some()), ("on_maturity", on_maturity != 0)] {
            if is_set {
                wrongs.0.push(wrong(field, Reason::FieldInvalid, "must be unset if it is immediate"));
            }
        }
        Some((Descriptor::at_once().due_at, Descriptor::at_once().on_maturity))
    } else {
        let due_at =
            due_at.ok_or_else(|| required("due_at")).and_then(|due_at| convert::time("due_at", due_at));
        let due_at = wrongs.take(due_at);
        let on_maturity = wrongs.take(convert::action(on_maturity));
        due_at.zip(on_maturity)
    };
    let labels = wrongs.take(convert::labels(labels));
    let (Some(name), Some(pivot), Some((due_at, on_maturity)), Some(labels), true) =
        (name, pivot, end, labels, wrongs.0.is_empty())
    else {
        return Err(invalid(&wrongs.0));
    };
    let key = match &name {
        Name::Key(key) => Some(key.clone()),
        Name::Id(_) | Name::None => None,
    };
    let owner = Some(caller.to_owned());
    let descriptor = Descriptor { branches, pivot, due_at, on_maturity, labels, key, owner };
    balanced(&descriptor)?;
    Ok(Asked { name, descriptor, is_due_at_once: immediate, validate_only })
}

/// The branches, as far as they are right.
fn all(branches: Vec<v1::TransactionPart>, limits: &Limits, wrongs: &mut Wrong) -> Vec<Branch> {
    match branches.len() {
        0 => wrongs.0.push(required("branches")),
        1..=BRANCHES => {}
        _ => {
            let message = format!("must be at most {BRANCHES}");
            wrongs.0.push(wrong("branches", Reason::TooManyItems, message));
            return Vec::new();
        }
    }
    let calls = branches.iter().map(|branch| match &branch.part {
        Some(v1::transaction_part::Part::Call(call)) => Some(call.payload.len()),
        _ => None,
    });
    let (sum, legs) = calls.fold((0, 0), |(sum, legs), call| match call {
        Some(length) => (sum + length, legs),
        None => (sum, legs + 1),
    });
    let most = PAYLOAD.1 / legs.max(1);
    if sum > most {
        let message =
            format!("must have at most {most} bytes of payload together, with {legs} debits and credits");
        wrongs.0.push(wrong("branches", Reason::PayloadTooLarge, message));
    }
    let one = |(index, branch)| {
        let read = one(branch, limits).map_err(|violation: Violation| Violation {
            field: format!("branches[{index}].{}", violation.field),
            ..violation
        });
        wrongs.take(read)
    };
    branches.into_iter().enumerate().filter_map(one).collect()
}

fn one(branch: v1::TransactionPart, limits: &Limits) -> Result<Branch, Violation> {
    use v1::transaction_part::Part;
    match branch.part {
        None => Err(wrong("part", Reason::FieldRequired, "is required: a debit, a credit or a call")),
        Some(Part::Debit(entry)) => leg("debit", Role::Debit, &entry, limits),
        Some(Part::Credit(entry)) => leg("credit", Role::Credit, &entry, limits),
        Some(Part::Call(call)) => request(call),
    }
}

fn leg(field: &str, role: Role, entry: &v1::LedgerEntry, limits: &Limits) -> Result<Branch, Violation> {
    let within =
        |violation: Violation| Violation { field: format!("{field}.{}", violation.field), ..violation };
    let account = convert::account("account", &entry.account).map_err(within)?;
    let (amount, currency) = convert::money(entry.amount.as_ref(), limits).map_err(within)?;
    Ok(Branch::Ledger(Leg { role, account, amount, currency }))
}

fn request(call: v1::ParticipantCall) -> Result<Branch, Violation> {
    let v1::ParticipantCall { participant, operation, payload } = call;
    let participant = participant_name("call.participant", &participant)?;
    if !operation.is_empty() && !is_name(&operation) {
        let message = "must be up to 64 printable ASCII characters without spaces";
        return Err(wrong("call.operation", Reason::FieldInvalid, message));
    }
    if payload.len() > PAYLOAD.0 {
        let message = format!("must have at most {} bytes", PAYLOAD.0);
        return Err(wrong("call.payload", Reason::PayloadTooLarge, message));
    }
    Ok(Branch::Other(Request { participant, operation, payload }))
}

/// The name of a participant.
pub fn participant_name(field: &str, text: &str) -> Result<ParticipantName, Violation> {
    if text.is_empty() {
        return Err(required(field));
    }
    ParticipantName::parse(text).map_err(|error| wrong(field, Reason::FieldInvalid, error.to_string()))
}

fn decider(pivot: Option<u32>, branches: usize) -> Result<u16, Violation> {
    let last = branches.saturating_sub(1);
    let pivot = pivot.map_or(Some(last), |pivot| usize::try_from(pivot).ok());
    pivot.filter(|pivot| *pivot <= last).and_then(|pivot| u16::try_from(pivot).ok()).ok_or_else(|| {
        wrong("pivot", Reason::FieldInvalid, "must be the index of a branch; the first one has 0")
    })
}

/// A lone credit would create money, and a lone debit lose it.
fn balanced(descriptor: &Descriptor) -> Result<(), Status> {
    let Some((currency, sum)) = descriptor.imbalance().into_iter().next() else { return Ok(()) };
    let what = if sum > 0 {
        "the credits give more than the debits take"
    } else {
        "the debits take more than the credits give"
    };
    let message = format!("{what}: by {} {currency}", sum.unsigned_abs());
    let metadata = [("currency", currency.to_string()), ("credits_less_debits", sum.to_string())];
    Err(status(Reason::BranchesUnbalanced, message, metadata))
}

/// Which transactions are listed.
#[derive(Debug)]
pub struct Listing {
    /// Whose.
    pub owner: String,
    /// How many a page has.
    pub size: usize,
    /// Their ids were made then or later.
    pub ids_from: Uuid,
    /// Their ids are smaller.
    pub before: Uuid,
    /// Makes the token of the next page.
    pub filter: Filter,
    which: Which,
}

/// What is asked of each transaction of a list.
#[derive(Debug, PartialEq, Eq)]
struct Which {
    owner: String,
    phases: Vec<Phase>,
    labels: Labels,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Listing {
    /// Whether a transaction is to be listed.
    pub fn has(&self, record: &Record) -> bool {
        let Which { phases, labels, from, until, .. } = &self.which;
        (phases.is_empty() || phases.contains(&record.standing.phase))
            && record.transaction.descriptor.labels.contain(labels)
            && from.is_none_or(|from| record.standing.created_at >= from)
            && until.is_none_or(|until| record.standing.created_at < until)
    }
}

/// A list as asked for.
pub fn listing(
    request: v1::ListTransactionsRequest,
    caller: &Identity,
    now: Timestamp,
) -> Result<Listing, Status> {
    let mut wrongs = Wrong::default();
    let v1::ListTransactionsRequest { caller: whose, phases, labels, .. } = request;
    let owner = if whose.is_empty() { caller.caller.clone() } else { whose };
    if !caller.may_see_of(&owner) {
        return Err(super::reason::not_your_own("caller"));
    }
    let phases: Option<Vec<Phase>> = wrongs.take(phases.into_iter().map(convert::asked_phase).collect());
    let labels = wrongs.take(convert::labels(labels));
    let from = wrongs.take(convert::time_if_any("created_from", request.created_from));
    let until = wrongs.take(convert::time_if_any("created_until", request.created_until));
    let size = wrongs.take(convert::page_size(request.page_size, convert::PAGE.0, convert::PAGE.1));
    let (Some(phases), Some(labels), Some(from), Some(until), Some(size)) =
        (phases, labels, from, until, size)
    else {
        return Err(invalid(&wrongs.0));
    };
    let which = Which { owner: owner.clone(), phases, labels, from, until };
    let filter = Filter::new(&caller.caller, &which);
    let before = match request.page_token.as_str() {
        "" => first_id(until.map_or(now, |until| until.min(now)) + convert::ID_MAX_LEAD * 2),
        token => filter.open(token)?,
    };
    let ids_from = first_id(from.map_or(Timestamp::UNIX_EPOCH, |from| from - convert::ID_MAX_AGE * 2));
    Ok(Listing { owner, size, ids_from, before, filter, which })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tcc_core::OnMaturity;
    use tonic_types::StatusExt as _;
    use v1::transaction_part::Part;

    fn part(part: Part) -> v1::TransactionPart {
        v1::TransactionPart { part: Some(part) }
    }

    fn entry(account: &str, value: i64, currency: &str) -> v1::LedgerEntry {
        let amount = Some(v1::Amount { value, currency: currency.into() });
        v1::LedgerEntry { account: account.into(), amount }
    }

    fn seat(payload: Vec<u8>) -> v1::TransactionPart {
        let (participant, operation) = ("seats".to_owned(), "reserve".to_owned());
        part(Part::Call(v1::ParticipantCall { participant, operation, payload }))
    }

    /// Alice pays bob 5, and gets a seat.
    fn good() -> v1::CreateTransactionRequest {
        v1::CreateTransactionRequest {
            branches: vec![
                part(Part::Debit(entry("alice", 5, "GOLD"))),
                part(Part::Credit(entry("bob", 5, "GOLD"))),
                seat(b"A1".to_vec()),
            ],
            due_at: Some(prost_types::Timestamp { seconds: 1_790_000_100, nanos: 0 }),
            on_maturity: v1::OnMaturity::Cancel.into(),
            ..Default::default()
        }
    }

    fn read(request: v1::CreateTransactionRequest) -> Result<Asked, Status> {
        transaction(request, "shop", &Limits::default())
    }

    fn wrong_fields(request: v1::CreateTransactionRequest) -> Vec<String> {
        let status = read(request).unwrap_err();
        let details = status.get_details_bad_request().expect("fields are named");
        details.field_violations.into_iter().map(|violation| violation.field).collect()
    }

    fn reason_of(request: v1::CreateTransactionRequest) -> String {
        read(request).unwrap_err().get_details_error_info().expect("every error has a reason").reason
    }

    #[test]
    fn the_last_branch_is_the_pivot_unless_another_one_is_named() {
        let last = read(good()).unwrap().descriptor;
        let first = read(v1::CreateTransactionRequest { pivot: Some(0), ..good() }).unwrap().descriptor;

        assert_eq!((last.pivot, first.pivot), (2, 0));
        assert_eq!((last.owner.as_deref(), last.on_maturity), (Some("shop"), OnMaturity::Cancel));
        assert_eq!(crate::api::view::asked_transaction(&last).branches, good().branches);
        assert_eq!(wrong_fields(v1::CreateTransactionRequest { pivot: Some(3), ..good() }), ["pivot"]);
    }

    #[test]
    fn what_would_create_or_lose_money_is_refused_in_each_currency() {
        let with = |branches| v1::CreateTransactionRequest { branches, ..good() };
        let credit = || part(Part::Credit(entry("bob", 5, "GOLD")));
        let debit = |value, currency| part(Part::Debit(entry("alice", value, currency)));

        for branches in [
            vec![credit()],
            vec![debit(5, "GOLD")],
            vec![debit(4, "GOLD"), credit()],
            vec![debit(5, "RUBY"), credit()],
            vec![credit(), seat(Vec::new())],
            vec![debit(5, "GOLD"), credit(), credit()],
        ] {
            assert_eq!(reason_of(with(branches)), "BRANCHES_UNBALANCED");
        }
        let split = [debit(2, "GOLD"), debit(3, "GOLD"), credit()];
        assert!(read(with(split.to_vec())).is_ok());
        assert!(read(with(vec![seat(Vec::new())])).is_ok());
    }

    #[test]
    fn each_field_that_is_wrong_is_named_with_its_branch() {
        let branches = vec![
            part(Part::Debit(entry("a b", 5, "GOLD"))),
            part(Part::Credit(entry("bob", 0, "GOLD"))),
            v1::TransactionPart { part: None },
            part(Part::Call(v1::ParticipantCall { participant: "Seats".into(), ..Default::default() })),
        ];

        let fields = wrong_fields(v1::CreateTransactionRequest { branches, due_at: None, ..good() });

        let expected = [
            "branches[0].debit.account",
            "branches[1].credit.amount.value",
            "branches[2].part",
            "branches[3].call.participant",
            "due_at",
        ];
        assert_eq!(fields, expected);
    }

    #[test]
    fn branches_and_payloads_are_bounded() {
        let with = |branches| v1::CreateTransactionRequest { branches, ..good() };

        assert_eq!(reason_of(with(Vec::new())), "FIELD_REQUIRED");
        assert_eq!(reason_of(with(vec![seat(Vec::new()); 65])), "TOO_MANY_ITEMS");
        assert_eq!(reason_of(with(vec![seat(vec![0; 65_537])])), "PAYLOAD_TOO_LARGE");
        assert_eq!(reason_of(with(vec![seat(vec![0; 65_536]); 5])), "PAYLOAD_TOO_LARGE");
        assert!(read(with(vec![seat(vec![0; 65_536]); 4])).is_ok());
        let with_money =
            |length| vec![seat(vec![0; length]); 3].into_iter().chain(good().branches.into_iter().take(2));
        assert_eq!(reason_of(with(with_money(65_536).collect())), "PAYLOAD_TOO_LARGE");
        assert!(read(with(with_money(43_690).collect())).is_ok());
        assert!(read(with(vec![seat(Vec::new()); 64])).is_ok());
    }

    #[test]
    fn an_immediate_one_has_a_name_and_no_due_time() {
        let immediate = v1::CreateTransactionRequest { immediate: true, ..good() };

        let fields = wrong_fields(immediate.clone());
        let asked = read(v1::CreateTransactionRequest {
            due_at: None,
            on_maturity: 0,
            idempotency_key: "k".into(),
            ..immediate
        });

        assert_eq!(fields, ["idempotency_key", "due_at", "on_maturity"]);
        assert!(asked.unwrap().descriptor.is_due_at_once());
    }

    #[test]
    fn a_due_time_of_1970_does_not_make_it_immediate() {
        let epoch = Some(prost_types::Timestamp { seconds: 0, nanos: 0 });

        let asked = read(v1::CreateTransactionRequest { due_at: epoch, ..good() }).unwrap();

        let now = Timestamp::from_second(1_790_000_000).unwrap();
        assert_eq!(asked.fresh(now, &Limits::default()).unwrap_err().reason, Reason::DueTimeInPast);
    }

    proptest! {
        #[test]
        fn whatever_bytes_decode_to_is_taken_balanced_or_told_what_is_wrong(bytes: Vec<u8>) {
            use prost::Message as _;
            if let Ok(request) = v1::CreateTransactionRequest::decode(bytes.as_slice()) {
                match read(request) {
                    Ok(asked) => prop_assert!(asked.descriptor.imbalance().is_empty()),
                    Err(status) => prop_assert!(status.get_details_error_info().is_some(), "{status:?}"),
                }
            }
        }

        #[test]
        fn what_is_taken_is_balanced(legs in proptest::collection::vec((any::<bool>(), -1_i64..4, 0_usize..2), 0..6),
                                     pivot in proptest::option::of(0_u32..7)) {
            let branches = legs.iter().map(|(is_debit, value, currency)| {
                let entry = entry("a", *value, ["GOLD", "RUBY"][*currency]);
                part(if *is_debit { Part::Debit(entry) } else { Part::Credit(entry) })
            });
            let request = v1::CreateTransactionRequest { branches: branches.collect(), pivot, ..good() };
            let sum = |name: usize| legs.iter().filter(|(.., currency)| *currency == name)
                .map(|(is_debit, value, _)| if *is_debit { -value } else { *value }).sum::<i64>();
            let is_good = !legs.is_empty() && legs.iter().all(|(_, value, _)| *value > 0)
                && sum(0) == 0 && sum(1) == 0 && pivot.is_none_or(|pivot| (pivot as usize) < legs.len());

            prop_assert_eq!(read(request).is_ok(), is_good);
        }
    }
}
