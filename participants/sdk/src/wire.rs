//! What goes over the wire, as the values that both ends work with.
//!
//! Whatever comes is checked here and trusted afterwards. What does not have its form never becomes an answer that it is
//! not: a call without form fails, an outcome without form is a failure, too.

use crate::resource::{Branch, Step};
use prost::Message as _;
use tcc_core::{Operation, Outcome, Refusal, Timestamp, TransactionId};
use tcc_proto::v1::{self, BranchOperation, OutcomeKind};

/// The version of the protocol between coordinator and participants.
pub const PROTOCOL_VERSION: i32 = 1;
/// So many calls are in one request at most.
pub const MAX_CALLS: usize = 256;
/// A request is no larger than this.
pub const MAX_REQUEST: usize = 8 * 1024 * 1024;

/// What a participant says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What it calls itself.
    pub name: String,
    /// The version of the protocol that it speaks.
    pub protocol_version: i32,
    /// Whether it may veto where it has the pivot.
    pub may_veto: bool,
    /// Its clock, if it told.
    pub time: Option<Timestamp>,
    /// What it is made with.
    pub software: String,
}

impl Description {
    /// Of a participant that is made with this crate.
    #[must_use]
    pub fn of(name: &str, may_veto: bool) -> Self {
        Self {
            name: name.to_owned(),
            protocol_version: PROTOCOL_VERSION,
            may_veto,
            time: Some(Timestamp::now()),
            software: concat!("tcc-participant/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// A refusal whose reason has not the form of one: it is a refusal all the same.
const UNNAMED: Refusal = Refusal::own("UNNAMED");

/// Writes an operation on a branch.
#[must_use]
pub fn write_call(
    operation: Operation,
    transaction: TransactionId,
    branch: u16,
    descriptor: &[u8],
) -> v1::BranchCall {
    let operation = match operation {
        Operation::Try => BranchOperation::Try,
        Operation::Confirm => BranchOperation::Confirm,
        Operation::Cancel => BranchOperation::Cancel,
    };
    v1::BranchCall {
        operation: operation.into(),
        transaction_id: transaction.to_string(),
        branch: branch.into(),
        transaction_descriptor: descriptor.to_vec(),
    }
}

/// Reads an operation on a branch.
///
/// # Errors
///
/// What is wrong with it, for people.
pub fn read_call(call: v1::BranchCall) -> Result<Step, String> {
    let operation = match call.operation() {
        BranchOperation::Try => Operation::Try,
        BranchOperation::Confirm => Operation::Confirm,
        BranchOperation::Cancel => Operation::Cancel,
        BranchOperation::Unspecified => return Err(format!("there is no operation {}", call.operation)),
    };
    let transaction = TransactionId::parse(&call.transaction_id)
        .map_err(|error| format!("transaction id {:?}: {error}", call.transaction_id))?;
    let descriptor = v1::TransactionDescriptor::decode(call.transaction_descriptor.as_slice())
        .map_err(|error| format!("the transaction's descriptor: {error}"))?;
    // Fences keep the number in 15 bits.
    let index = u16::try_from(call.branch).ok().filter(|index| *index <= i16::MAX as u16);
    let body = index.and_then(|index| descriptor.branches.get(usize::from(index)));
    let (Some(index), Some(body)) = (index, body) else {
        return Err(format!("the transaction has no branch {}", call.branch));
    };
    let due_at = Timestamp::from_microsecond(descriptor.due_at_us)
        .map_err(|_| format!("due_at_us {} is out of range", descriptor.due_at_us))?;
    let branch = Branch {
        transaction,
        index,
        is_pivot: descriptor.pivot == call.branch,
        due_at,
        caller: descriptor.caller.clone(),
        operation: body.operation.clone(),
        payload: body.payload.clone(),
        descriptor: call.transaction_descriptor,
    };
    Ok(Step { operation, branch })
}

/// Writes an outcome.
#[must_use]
pub fn write_outcome(outcome: Outcome) -> v1::BranchOutcome {
    let (mut reason, mut detail) = (String::new(), String::new());
    let kind = match outcome {
        Outcome::Done => OutcomeKind::Done,
        Outcome::Refused(refusal) => {
            refusal.code().clone_into(&mut reason);
            OutcomeKind::Refused
        }
        Outcome::Vetoed(refusal) => {
            refusal.code().clone_into(&mut reason);
            OutcomeKind::Vetoed
        }
        Outcome::AlreadyConfirmed => OutcomeKind::AlreadyConfirmed,
        Outcome::AlreadyCancelled => OutcomeKind::AlreadyCancelled,
        Outcome::NotTried => OutcomeKind::NotTried,
        Outcome::OtherDescriptor => OutcomeKind::OtherDescriptor,
        Outcome::Unknown(why) => {
            detail = why;
            OutcomeKind::Unknown
        }
        Outcome::Failed(why) => {
            detail = why;
            OutcomeKind::Failed
        }
    };
    v1::BranchOutcome { kind: kind.into(), reason, detail }
}

/// Reads an outcome. One that the fence table forbids is read as what it is: to notice is for whoever asked.
#[must_use]
pub fn read_outcome(outcome: v1::BranchOutcome) -> Outcome {
    let refusal = || Refusal::from_code(&outcome.reason).unwrap_or(UNNAMED);
    match outcome.kind() {
        OutcomeKind::Done => Outcome::Done,
        OutcomeKind::Refused => Outcome::Refused(refusal()),
        OutcomeKind::Vetoed => Outcome::Vetoed(refusal()),
        OutcomeKind::AlreadyConfirmed => Outcome::AlreadyConfirmed,
        OutcomeKind::AlreadyCancelled => Outcome::AlreadyCancelled,
        OutcomeKind::NotTried => Outcome::NotTried,
        OutcomeKind::OtherDescriptor => Outcome::OtherDescriptor,
        OutcomeKind::Unknown => Outcome::Unknown(outcome.detail),
        OutcomeKind::Failed => Outcome::Failed(outcome.detail),
        OutcomeKind::Unspecified => Outcome::Failed(format!("there is no outcome {}", outcome.kind)),
    }
}

/// Writes what a participant says of itself.
#[must_use]
pub fn write_description(description: Description) -> v1::DescribeResponse {
    let time = |time: Timestamp| prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    };
    v1::DescribeResponse {
        protocol_version: description.protocol_version,
        name: description.name,
        may_veto: description.may_veto,
        time: description.time.map(time),
        software: description.software,
    }
}

/// Reads what a participant says of itself.
#[must_use]
pub fn read_description(response: v1::DescribeResponse) -> Description {
    Description {
        name: response.name,
        protocol_version: response.protocol_version,
        may_veto: response.may_veto,
        time: response.time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok()),
        software: response.software,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcc_core::{AccountId, Amount, Currency, Descriptor, OnMaturity, Transaction, descriptor::CREDIT};

    fn hold() -> Transaction {
        let account = |id| AccountId::parse(id).unwrap();
        let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [1; 10]);
        let due_at = Timestamp::from_microsecond(1_790_000_000_000_001).unwrap();
        let amount = Amount::new(250).unwrap();
        let gold = Currency::parse("GOLD").unwrap();
        let hold =
            Descriptor::hold(account("alice"), account("bob"), amount, gold, due_at, OnMaturity::Cancel);
        Transaction::new(id, hold)
    }

    #[test]
    fn what_the_coordinator_encodes_is_what_the_proto_file_says() {
        let hold = hold();

        let read = v1::TransactionDescriptor::decode(hold.encoded.as_slice()).unwrap();

        let branch = |role: v1::BranchRole, account: &str| v1::TransactionBranch {
            role: role.into(),
            account: account.into(),
            amount: 250,
            currency: "GOLD".into(),
            ..Default::default()
        };
        assert_eq!(
            read.branches,
            [branch(v1::BranchRole::Debit, "alice"), branch(v1::BranchRole::Credit, "bob")]
        );
        assert_eq!(
            (read.pivot, read.due_at_us, read.on_maturity()),
            (1, 1_790_000_000_000_001, v1::OnMaturity::Cancel)
        );
    }

    #[test]
    fn a_call_reads_back() {
        let hold = hold();

        let step = read_call(write_call(Operation::Confirm, hold.id, CREDIT, &hold.encoded)).unwrap();

        assert_eq!(step.operation, Operation::Confirm);
        assert_eq!((step.branch.transaction, step.branch.index), (hold.id, CREDIT));
        assert!(step.branch.is_pivot);
        assert_eq!(step.branch.due_at, hold.descriptor.due_at);
        assert_eq!(step.branch.descriptor, hold.encoded);
    }

    #[test]
    fn a_call_without_form_is_told_what_is_wrong() {
        let good = write_call(Operation::Try, hold().id, 0, &hold().encoded);
        let wrong = [
            (v1::BranchCall { operation: 0, ..good.clone() }, "operation 0"),
            (v1::BranchCall { operation: 9, ..good.clone() }, "operation 9"),
            (v1::BranchCall { transaction_id: "7".into(), ..good.clone() }, "transaction id"),
            (v1::BranchCall { branch: 2, ..good.clone() }, "no branch 2"),
            (v1::BranchCall { branch: 70_000, ..good.clone() }, "no branch 70000"),
            (v1::BranchCall { transaction_descriptor: vec![0xff], ..good.clone() }, "descriptor"),
            (v1::BranchCall { transaction_descriptor: vec![], ..good }, "no branch 0"),
        ];

        for (call, expected) in wrong {
            let error = read_call(call).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn every_outcome_reads_back() {
        let own = Refusal::own("SEAT_TAKEN");
        for outcome in [
            Outcome::Done,
            Outcome::Refused(own),
            Outcome::Refused(Refusal::InsufficientFunds),
            Outcome::Vetoed(own),
            Outcome::AlreadyConfirmed,
            Outcome::AlreadyCancelled,
            Outcome::NotTried,
            Outcome::OtherDescriptor,
            Outcome::Unknown("cut".into()),
            Outcome::Failed("poison".into()),
        ] {
            assert_eq!(read_outcome(write_outcome(outcome.clone())), outcome);
        }
    }

    #[test]
    fn an_outcome_without_form_is_a_failure_and_a_refusal_without_reason_a_refusal() {
        let outcome = |kind, reason: &str| {
            read_outcome(v1::BranchOutcome { kind, reason: reason.into(), detail: String::new() })
        };

        assert!(matches!(outcome(0, ""), Outcome::Failed(_)));
        assert!(matches!(outcome(99, ""), Outcome::Failed(_)));
        assert_eq!(outcome(OutcomeKind::Refused.into(), "no seat"), Outcome::Refused(UNNAMED));
    }
}
