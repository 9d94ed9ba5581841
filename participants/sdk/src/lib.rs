//! Taking part in transactions of tcc.
//!
//! A participant has something that can be reserved, and then taken or given back: seats, stock, coupons, money. This crate
//! makes taking part safe. You write three functions, each of which works in a local transaction of your own PostgreSQL
//! database; the SDK opens it, keeps the fence in it, commits it, and answers.
//!
//! ```no_run
//! use tcc_participant::{Branch, Refusal, Reservation, Resource, Retry, Server, Tx};
//!
//! const SOLD_OUT: Refusal = Refusal::own("SOLD_OUT");
//!
//! struct Stock;
//!
//! impl Resource for Stock {
//!     async fn reserve(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Reservation, Retry> {
//!         let sql = "UPDATE stock SET free = free - 1, reserved = reserved + 1 WHERE item = $1 AND free > 0";
//!         match tx.execute(sql, &[&branch.text()]).await? {
//!             0 => Ok(Reservation::Refused(SOLD_OUT)),
//!             _ => Ok(Reservation::Made),
//!         }
//!     }
//!
//!     async fn confirm(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
//!         tx.execute("UPDATE stock SET reserved = reserved - 1 WHERE item = $1", &[&branch.text()]).await?;
//!         Ok(())
//!     }
//!
//!     async fn cancel(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
//!         let sql = "UPDATE stock SET free = free + 1, reserved = reserved - 1 WHERE item = $1";
//!         tx.execute(sql, &[&branch.text()]).await?;
//!         Ok(())
//!     }
//! }
//!
//! # async fn serve() -> Result<(), tcc_participant::ServeError> {
//! Server::new("stock", "postgresql://stock@localhost/stock")?.listen("0.0.0.0:7080").serve(Stock).await
//! # }
//! ```
//!
//! # What you may rely on
//!
//! - `reserve` is called for a branch at most once to effect, and never after the branch was cancelled.
//! - `confirm` or `cancel` is called only for what was reserved, once to effect, and never both.
//! - Each runs in one local transaction with its fence: both are committed, or neither is.
//! - An error by `?` rolls everything back, and the operation comes again, for as long as it takes. So what can never work must
//!   be refused, by [`Reservation::Refused`], and only `reserve` can. A resource that must be able to say no later declares
//!   [`Resource::MAY_VETO`], and takes part only as the pivot of a transaction.
//! - A transaction with the id of another one and another body is turned away before it reaches you.
//!
//! What you must not do: call other systems from these functions, since that would not be rolled back; or keep what the
//! payload says about the branch anywhere but in the local transaction. For a Confirm that takes place elsewhere there is
//! [`Effect::Outside`], and `participants/payout`, which does it right.
//!
//! # What it takes
//!
//! PostgreSQL 15 or newer, and a database that is this participant's alone, or a schema. The server creates two tables beside
//! yours, `tcc_fence` and `tcc_participant`, and its history of migrations, `tcc_schema_history`. It serves
//! `tcc.v1.ParticipantService`, health and reflection; SIGTERM drains it. [`Server::telemetry`] says where metrics are served.
//!
//! With a database `stock` that has the table of `examples/stock.rs`, and two of each of `item-0` to `item-1999` in it:
//!
//! ```sh
//! TCC_PARTICIPANT=stock TCC_DATABASE_URL=postgresql:///stock cargo run --example stock     # serves on 127.0.0.1:7080
//! tccctl participants verify http://127.0.0.1:7080 --payload 'item-%n'                     # is it right?
//! tccctl participants add stock http://127.0.0.1:7080 --reason "the new warehouse"         # now transactions may call it
//! ```
//!
//! Away from this machine it needs a certificate, and should ask coordinators for theirs: [`Server::tls`].
//!
//! Whoever owns a database and writes no Rust writes three SQL functions instead: [`sql`].
//!
//! For thousands of operations a second implement [`BatchResource`], which does many steps in one local transaction.
//!
//! # Is it right?
//!
//! [`conformance`] asks a participant in any language everything that a coordinator could, in any order, and tells what it
//! does wrong. `tccctl participants verify` does it from the command line.
//!
//! # What the coordinator uses
//!
//! [`Participant`] is what the engine calls, [`Remote`] is one that is called over gRPC. The rest is what the coordinator and
//! the participants in this repository share to work fast and without doubt: [`batch`] turns many callers into few commits,
//! [`postgres`] says how a server is reached, [`roles`] as whom, [`session`] owns one connection to it and tells a commit from
//! a guess, [`telemetry`] counts, [`retry`] computes delays, and [`crash`] lets tests kill a process at any of its statements.
//!
//! This crate compiles without the coordinator. Its only tables are the SDK's own.

pub mod batch;
pub mod breaker;
pub mod conformance;
pub mod crash;
pub mod fence;
pub mod participant;
pub mod partitions;
pub mod postgres;
pub mod remote;
pub mod resource;
pub mod retry;
pub mod roles;
pub mod serve;
pub mod session;
pub mod sql;
pub mod telemetry;
mod tx;
pub mod wire;

pub use batch::{Batcher, Executor, Failure};
pub use breaker::BreakerState;
pub use participant::{Call, Participant};
pub use postgres::Postgres;
pub use remote::Remote;
pub use resource::{BatchResource, Branch, Effect, Reservation, Resource, Retry, Step};
pub use serve::{ServeError, Server, Tls};
pub use session::Session;
pub use tcc_core::{Operation, Outcome, Refusal};
pub use tokio_postgres;
pub use tx::Tx;
