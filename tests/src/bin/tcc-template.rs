//! Makes the databases that a test's system begins with, once for all tests: `tcc-template FOLDER`, and the tests are run with
//! `TCC_TEMPLATE=FOLDER`. Without it each test makes its own.

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).ok_or_else(|| anyhow::anyhow!("tcc-template FOLDER"))?;
    tcc_tests::System::template(folder.as_ref()).await;
    Ok(())
}
