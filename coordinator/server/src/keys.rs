//! Forgets callers' keys, a week after what was created by them is final.

use crate::{schedule::Timers, store::keys::Keys};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often there is a look at what may be forgotten.
const INTERVAL: Duration = Duration::from_secs(60);

/// Looks once a minute, in the instance that serves slot 0, until asked to stop.
pub async fn keep(keys: Keys, timers: Timers, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let serves = timers.lock().serves(0);
        if serves && let Err(error) = keys.purge().await {
            tracing::warn!(%error, "cannot forget old idempotency keys; trying again in a minute");
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => {}
        }
    }
}
