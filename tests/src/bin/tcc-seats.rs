//! `tcc-seats`: the seats of `participants/sdk/examples/seats.rs` as a program beside the tests, which they can kill.

use tcc_participant::{ServeError, Server};
use tcc_tests::examples::seats::Seats;

#[tokio::main]
async fn main() -> Result<(), ServeError> {
    Server::from_env()?.serve(Seats).await
}
