//! What operators ask for: the row is changed and the record written in one commit, then the engine goes on as with any
//! other transaction. There is no second way of doing anything here.

use super::{Engine, EngineError, drive};
use crate::store::{Acted, Action, Evidence, Record};
use std::{sync::Arc, time::Duration};
use tcc_core::{Attention, Phase, Timestamp, TransactionId};
use tokio::sync::oneshot;

impl Engine {
    /// Does something to a transaction, unless it stands otherwise than expected. A forced cancel is seen through for as long
    /// as `patience` lasts.
    ///
    /// # Errors
    ///
    /// [`EngineError::Draining`], [`EngineError::Store`].
    pub async fn act(
        self: &Arc<Self>,
        id: TransactionId,
        action: Action,
        expected: Option<(Phase, Attention)>,
        evidence: &Evidence,
        patience: Duration,
    ) -> Result<Acted, EngineError> {
        if self.is_draining() {
            return Err(EngineError::Draining);
        }
        let acted = self.store.act(id, action, expected, evidence).await?;
        let outcome = match &acted {
            Acted::Done { .. } => "done",
            Acted::Refused { .. } => "refused",
            Acted::Changed(_) => "changed",
            Acted::NotFound => "not_found",
        };
        self.metrics.acted(action.name(), outcome);
        tracing::warn!(%id, action = action.name(), outcome, actor = evidence.actor, reason = evidence.reason, "an operator acts");
        let Acted::Done { record, wake_at: Some(at) } = acted else { return Ok(acted) };
        self.timers.arm(at, id, record.place);
        if action != Action::ForceCancel {
            return Ok(Acted::Done { record, wake_at: Some(at) });
        }
        let (answer, answered) = oneshot::channel();
        self.spawn(Arc::clone(self).see_through(Record::clone(&record), at, answer));
        let record = match tokio::time::timeout(patience, answered).await {
            Ok(Ok(rested)) => Box::new(rested),
            // It goes on.
            Ok(Err(_)) | Err(_) => record,
        };
        Ok(Acted::Done { record, wake_at: Some(at) })
    }

    async fn see_through(self: Arc<Self>, record: Record, at: Timestamp, answer: oneshot::Sender<Record>) {
        let _active = self.activate(record.id());
        let rested = drive::Life::new(&self, record, at).drive().await;
        let _ = answer.send(rested.record);
    }
}
