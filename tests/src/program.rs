//! How the demo and the bench end when they do not end by themselves.

use anyhow::{Context as _, bail};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Waits until somebody wants the program to stop, and answers with that. What it started is stopped on the way out, which
/// a signal alone would not do.
///
/// # Errors
///
/// Always.
pub async fn stopped<T>() -> anyhow::Result<T> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listening for signals")?;
    tokio::select! {
        _ = interrupt.recv() => bail!("stopped by Ctrl-C"),
        _ = terminate.recv() => bail!("stopped by SIGTERM"),
        _ = hang_up.recv() => bail!("stopped by SIGHUP"),
    }
}

/// Tells what went wrong. The last line is the one that is looked for, so a log that hangs on to the error comes before it.
pub fn failed(program: &str, error: &anyhow::Error) -> ExitCode {
    let text = format!("{error:#}");
    let (what, more) = text.split_once('\n').unwrap_or((&text, ""));
    eprint!("{more}{}", if more.is_empty() { "" } else { "\n" });
    println!("{program}: FAILED {what}");
    ExitCode::FAILURE
}
