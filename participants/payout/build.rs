//! A migration that is added must be embedded, though no Rust file changes.
fn main() {
    println!("cargo::rerun-if-changed=../../migrations/payout");
}
