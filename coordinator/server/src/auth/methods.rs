//! Who may call what: the one table. What is not in it cannot be called, and a test fails on an RPC that is missing.
//!
//! A role opens a method; on whose accounts it may then act is decided where the account is known, in `api`.

use super::identity::{Identity, Role};
use std::{collections::HashMap, sync::LazyLock};

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whoever connects.
    Anyone,
    /// Whoever has one of these roles.
    Having(&'static [Role]),
}

use Role::{Application, LedgerAdmin, Operator, Viewer};

/// Reads of one account or hold.
const READERS: Access = Access::Having(&[Application, LedgerAdmin, Operator, Viewer]);
/// Reads of transactions that are somebody's own.
const OWNERS: Access = Access::Having(&[Application, Operator, Viewer]);

/// Each method by its path.
pub const METHODS: &[(&str, Access)] = &[
    ("/tcc.v1.HoldService/CreateHold", Access::Having(&[Application])),
    ("/tcc.v1.HoldService/BatchCreateHolds", Access::Having(&[Application])),
    ("/tcc.v1.HoldService/Transfer", Access::Having(&[Application])),
    ("/tcc.v1.HoldService/GetHold", READERS),
    ("/tcc.v1.HoldService/ListHolds", READERS),
    ("/tcc.v1.HoldService/WatchHold", READERS),
    ("/tcc.v1.HoldService/CancelHold", Access::Having(&[Application])),
    ("/tcc.v1.HoldService/ConfirmHold", Access::Having(&[Application])),
    ("/tcc.v1.TransactionService/CreateTransaction", Access::Having(&[Application])),
    ("/tcc.v1.TransactionService/GetTransaction", OWNERS),
    ("/tcc.v1.TransactionService/ListTransactions", OWNERS),
    ("/tcc.v1.TransactionService/WatchTransaction", OWNERS),
    ("/tcc.v1.TransactionService/ConfirmTransaction", Access::Having(&[Application])),
    ("/tcc.v1.TransactionService/CancelTransaction", Access::Having(&[Application])),
    ("/tcc.v1.LedgerService/CreateAccount", Access::Having(&[LedgerAdmin])),
    ("/tcc.v1.LedgerService/GetAccount", READERS),
    ("/tcc.v1.LedgerService/GetHoldings", READERS),
    ("/tcc.v1.LedgerService/GetBalance", READERS),
    ("/tcc.v1.LedgerService/BlockAccount", Access::Having(&[LedgerAdmin])),
    ("/tcc.v1.LedgerService/UnblockAccount", Access::Having(&[LedgerAdmin])),
    ("/tcc.v1.LedgerService/CloseAccount", Access::Having(&[LedgerAdmin])),
    ("/tcc.v1.LedgerService/Issue", Access::Having(&[LedgerAdmin])),
    ("/tcc.v1.LedgerService/Burn", Access::Having(&[LedgerAdmin])),
    ("/tcc.v1.LedgerService/ListPostings", READERS),
    ("/tcc.v1.OperatorService/GetStatus", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.OperatorService/ResumeShard", Access::Having(&[Operator])),
    ("/tcc.v1.OperatorService/RunAudit", Access::Having(&[Operator])),
    ("/tcc.v1.OperatorService/ReplayShard", Access::Having(&[Operator])),
    ("/tcc.v1.OperatorService/ListFindings", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.OperatorService/ListParticipants", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.OperatorService/AddParticipant", Access::Having(&[Operator])),
    ("/tcc.v1.OperatorService/DrainParticipant", Access::Having(&[Operator])),
    ("/tcc.v1.OperatorService/ResumeParticipant", Access::Having(&[Operator])),
    ("/tcc.v1.OperatorService/RemoveParticipant", Access::Having(&[Operator])),
    ("/tcc.v1.RecoveryService/ListAttention", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.RecoveryService/DescribeHold", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.RecoveryService/Act", Access::Having(&[Operator])),
    ("/tcc.v1.RecoveryService/CreatePlan", Access::Having(&[Operator])),
    ("/tcc.v1.RecoveryService/GetPlan", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.RecoveryService/ListPlans", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.RecoveryService/ExecutePlan", Access::Having(&[Operator])),
    ("/tcc.v1.RecoveryService/ListActions", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.RecoveryService/ListInstances", Access::Having(&[Operator, Viewer])),
    ("/tcc.v1.RecoveryService/DrainInstance", Access::Having(&[Operator])),
    ("/tcc.v1.RecoveryService/DrainShard", Access::Having(&[Operator])),
    // A load balancer has no credentials. It learns whether this instance serves, nothing else.
    ("/grpc.health.v1.Health/Check", Access::Anyone),
    ("/grpc.health.v1.Health/Watch", READERS),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", READERS),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", READERS),
];

/// Who may call the method with this path. `None`: there is none.
#[must_use]
pub fn access(path: &str) -> Option<Access> {
    static BY_PATH: LazyLock<HashMap<&'static str, Access>> =
        LazyLock::new(|| METHODS.iter().copied().collect());
    BY_PATH.get(path).copied()
}

impl Access {
    /// Whether somebody with this identity has it.
    #[must_use]
    pub fn is_granted_to(self, identity: &Identity) -> bool {
        match self {
            Self::Anyone => true,
            Self::Having(roles) => roles.iter().any(|role| identity.is(*role)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use std::collections::HashSet;

    /// Every RPC of the API, as its descriptors have it. Participants are called, and do not call.
    fn served() -> HashSet<String> {
        let files = prost_types::FileDescriptorSet::decode(tcc_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut served = HashSet::new();
        for file in files.file.iter().filter(|file| file.package().starts_with("tcc.")) {
            for service in file.service.iter().filter(|service| service.name() != "ParticipantService") {
                for method in &service.method {
                    served.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        served
    }

    #[test]
    fn every_rpc_is_in_the_table_and_nothing_else() {
        let listed: Vec<String> = METHODS.iter().map(|(path, _)| (*path).to_owned()).collect();
        let of_tcc: HashSet<String> =
            listed.iter().filter(|path| path.starts_with("/tcc.")).cloned().collect();

        assert_eq!(of_tcc, served());
        assert_eq!(listed.iter().collect::<HashSet<_>>().len(), listed.len(), "none twice");
    }

    #[test]
    fn only_health_is_open_to_anyone() {
        let open: Vec<&str> =
            METHODS.iter().filter(|(_, access)| *access == Access::Anyone).map(|(path, _)| *path).collect();

        assert_eq!(open, ["/grpc.health.v1.Health/Check"]);
    }
}
