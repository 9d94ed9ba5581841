//! The gRPC API of tcc, generated from `proto/tcc/v1`.
//!
//! Beside the generated types stands what both ends must agree on: the [reasons](reason) of errors, and the [codec]. The
//! generated types stay at the edges: the coordinator's `api` and the clients turn them into domain types at once, and the
//! engine never sees them.

pub mod codec;
pub mod reason;

pub use reason::Reason;

/// Package `tcc.v1`. The proto files are its documentation.
#[allow(missing_docs, rustdoc::all, clippy::all)]
pub mod v1 {
    tonic::include_proto!("tcc.v1");
}

/// The compiled proto files, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("tcc_descriptor");
