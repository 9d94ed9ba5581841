//! The tcc coordinator.
//!
//! Calls go down, values come back up: [`http`] turns JSON into gRPC, [`api`] turns requests into domain types, [`engine`]
//! lives transactions' lives, [`store`] keeps them, [`schedule`] wakes them. Three tasks watch over what they rest on: [`audit`]
//! checks the books, [`sweep`] rebuilds what the coordinator's database has lost, [`heads`] notices what a shard has lost. A
//! fourth, [`keys`], forgets what nobody may ask for any more. [`serve`] puts it all together, [`dev`] starts the servers that it
//! needs on a developer's machine. The rules are not here: phases, fences and decisions stand in `tcc-core`, the ledger in
//! `tcc-ledger`.

pub mod api;
pub mod audit;
pub mod config;
pub mod dev;
pub mod engine;
pub mod heads;
pub mod http;
pub mod keys;
pub mod schedule;
pub mod serve;
pub mod shards;
pub mod store;
pub mod sweep;
