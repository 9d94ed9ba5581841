//! One client's watch of one transaction. It polls, whichever instance changes it; less and less often while nothing happens.

use super::reason::{self, What};
use crate::{
    engine::{Engine, EngineError},
    store::{Record, Seen},
};
use futures::stream::{self, BoxStream};
use std::{sync::Arc, time::Duration};
use tcc_core::{Attention, TransactionId};
use tonic::Status;

/// A watch looks after this time, doubled each time until something changes,
const LOOK_FIRST: Duration = Duration::from_millis(100);
/// up to this one.
const LOOK_LAST: Duration = Duration::from_secs(1);

/// Tells a transaction that there is as it stands, unless the client was told so last, and then each change, until it is final.
pub fn watch<V: Send + 'static>(
    engine: Arc<Engine>,
    id: TransactionId,
    told: Option<(Seen, Attention)>,
    what: What,
    view: impl Fn(&Record) -> V + Send + 'static,
) -> BoxStream<'static, Result<V, Status>> {
    let watch = Watch { engine, id, told, what, is_over: false };
    Box::pin(stream::unfold((watch, view), |(mut watch, view)| async move {
        let told = watch.next().await?;
        Some((told.map(|record| view(&record)), (watch, view)))
    }))
}

struct Watch {
    engine: Arc<Engine>,
    id: TransactionId,
    /// As the client was told last.
    told: Option<(Seen, Attention)>,
    what: What,
    is_over: bool,
}

impl Watch {
    /// The next change; `None` after the last one, or after an error.
    async fn next(&mut self) -> Option<Result<Record, Status>> {
        let mut pause = LOOK_FIRST;
        while !self.is_over {
            let record = match self.look().await {
                Ok(record) => record,
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(reason::of_engine(self.what, error)));
                }
            };
            self.is_over = record.standing.phase.is_final();
            let now = (record.standing.seen(), record.standing.attention);
            if self.told.replace(now) != Some(now) {
                return Some(Ok(record));
            }
            if !self.is_over {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_LAST);
            }
        }
        None
    }

    async fn look(&self) -> Result<Record, EngineError> {
        if self.engine.is_draining() {
            return Err(EngineError::Draining);
        }
        self.engine.store().get(self.id).await?.ok_or(EngineError::NotFound(self.id))
    }
}
