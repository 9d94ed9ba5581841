//! The tcc coordinator.
//!
//! Calls go down, values come back up: [`api`] turns requests into domain types, [`engine`] lives transactions' lives,
//! [`store`] keeps them, [`schedule`] wakes them. Before that, [`listener`] takes connections, [`http`] turns JSON into gRPC, and
//! [`auth`] finds out who asks and whether that one may; [`tls`], [`watched`], [`counted`] and [`databases`] are what they are made of. Three tasks watch over what they
//! rest on: [`audit`] checks the books, [`sweep`] rebuilds what the coordinator's database has lost, [`heads`] notices what a
//! shard has lost. A fourth, [`keys`], forgets what nobody may ask for any more. [`telemetry`] tells whoever watches how it goes,
//! and [`recovery`] what is wrong with a single transaction. [`serve`] puts it all together, [`direct`] only what reads, [`dev`] starts
//! the servers that it needs on a developer's machine. [`registry`] knows the participants that are no shards. The rules are not
//! here: phases, fences and decisions stand in `tcc-core`, the ledger in
//! `tcc-ledger`.

pub mod api;
pub mod audit;
pub mod auth;
pub mod config;
pub mod counted;
pub mod databases;
pub mod dev;
pub mod direct;
pub mod engine;
#[cfg(test)]
mod fuzz;
pub mod heads;
pub mod http;
pub mod keys;
pub mod listener;
pub mod quota;
pub mod recovery;
pub mod registry;
pub mod schedule;
pub mod serve;
pub mod shards;
pub mod store;
pub mod sweep;
pub mod telemetry;
pub mod tls;
pub mod watched;
