//! The gRPC API: requests become domain types at once, answers leave as late as possible.
//!
//! Nothing is decided here. `convert` is the only place that reads requests (`branches` those of any branches), `view` shows what
//! there is, and `reason` is the only one that builds a `tonic::Status`, from the registry in `tcc-proto`. The engine and the shards never see a prost type.

mod branches;
pub(crate) mod convert;
mod creation;
mod evidence;
mod holds;
mod ledger;
mod operator;
pub(crate) mod page;
pub(crate) mod reason;
mod recovery;
mod transactions;
pub(crate) mod view;
mod watch;

pub use creation::Creations;
pub use holds::Holds;
pub use ledger::Ledger;
pub use operator::Operator;
pub use recovery::Recoveries;
pub use transactions::Transactions;
