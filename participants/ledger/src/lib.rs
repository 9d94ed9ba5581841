//! A ledger shard: the participant that keeps accounts on one PostgreSQL server.
//!
//! [`books`] decides, as a pure function over the rows of a batch; [`executor`] reads and locks those rows, writes what was
//! decided, and commits; [`Shard`] is the handle that the engine and the API hold. [`audit`] checks the books, [`heads`]
//! notices when the server has lost some of them. All SQL on a shard's tables stands in this crate; it knows nothing of the coordinator or of gRPC.

pub mod audit;
pub mod books;
pub mod executor;
pub mod heads;
mod reads;
mod schema;
mod shard;

pub use books::{Account, AccountState, PostingKind, refusal};
pub use reads::{
    BalanceRow, BranchRow, Branches, FenceRow, Holdings, Listed, Listing, OpenDebit, PostingRow, Postings,
    ReadError,
};
pub use schema::{SchemaError, ensure_partitions, prepare};
pub use shard::{Shard, ShardError};
