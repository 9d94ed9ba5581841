//! Compiles the proto files in pure Rust: no `protoc` is needed.

use protox::prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 7] = [
    "tcc/v1/types.proto",
    "tcc/v1/hold_service.proto",
    "tcc/v1/ledger_service.proto",
    "tcc/v1/operator_service.proto",
    "tcc/v1/recovery_service.proto",
    "tcc/v1/participant_service.proto",
    "tcc/v1/transaction_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let set = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("tcc_descriptor.bin");
    fs::write(out, set.encode_to_vec())?;
    tonic_prost_build::configure().codec_path("crate::codec::Protobuf").compile_fds(set)?;
    Ok(())
}
