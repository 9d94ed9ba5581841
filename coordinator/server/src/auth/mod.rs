//! Who asks, and whether that one may.
//!
//! Every request passes one gate, before its message is read: [`gate`] finds out who asks ([`callers`] knows API keys and
//! certificates, [`tokens`] the tokens of an identity provider), looks into the one table of [`methods`], and counts. What is
//! not allowed is denied, what is not in the table does not exist. The [`mod@identity`] goes along with the request; on whose
//! accounts it may act is decided in `api`, where the account is known.

pub mod callers;
pub mod gate;
pub mod identity;
pub mod methods;
pub mod tokens;

pub use gate::{Gate, Peer};
pub use identity::{Identity, Role, identity};
