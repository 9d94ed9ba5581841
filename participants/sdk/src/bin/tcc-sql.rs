//! `tcc-sql`: a participant without code, for a database that has three functions. The environment says which.

use std::process::ExitCode;
use tcc_participant::{ServeError, Server, sql};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcc-sql: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), ServeError> {
    sql::serve(Server::from_env()?, &sql::Names::from_env()?).await
}
