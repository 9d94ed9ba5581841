//! Following one hold until it is final, over as many connections as that takes.

use crate::{Client, Error, Hold, ask, convert};
use tcc_core::TransactionId;
use tcc_proto::v1;
use tokio::time::{Duration, Instant};
use tonic::Streaming;

/// How long it pauses before it asks again.
const PAUSE: Duration = Duration::from_millis(250);
const WHAT: &str = "watching a hold";

/// A watch of one hold. It begins again by itself where it was.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    id: TransactionId,
    /// Of the hold as it was told last.
    etag: String,
    stream: Option<Streaming<v1::WatchHoldResponse>>,
    is_over: bool,
}

impl Watch {
    pub(crate) fn new(client: Client, id: TransactionId) -> Self {
        Self { client, id, etag: String::new(), stream: None, is_over: false }
    }

    /// The hold as it stands, then as it stands after each change; `None` after it was told final.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Error::Unknown`] when there was no server to ask for the client's patience; it may be
    /// asked on.
    pub async fn next(&mut self) -> Result<Option<Hold>, Error> {
        let mut lost_at: Option<Instant> = None;
        while !self.is_over {
            let last = match self.message().await {
                Ok(Some(told)) => {
                    let hold = convert::hold(told.hold);
                    let hold = hold.map_err(|why| Error::Unreadable { what: WHAT, why })?;
                    self.etag.clone_from(&hold.etag);
                    self.is_over = hold.is_final();
                    return Ok(Some(hold));
                }
                Ok(None) => "the stream ended".to_owned(),
                Err(status) => {
                    ask::is_over(WHAT, &status)?;
                    ask::told_of(&status)
                }
            };
            self.stream = None;
            let lost_at = *lost_at.get_or_insert_with(Instant::now);
            if lost_at.elapsed() + PAUSE >= self.client.patience {
                return Err(Error::Unknown { what: WHAT, after: lost_at.elapsed(), last });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// The hold when it is final.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    pub async fn until_final(mut self) -> Result<Hold, Error> {
        loop {
            match self.next().await? {
                Some(hold) if hold.is_final() => return Ok(hold),
                Some(_) => {}
                // It was told before.
                None => return self.client.get(self.id).await,
            }
        }
    }

    async fn message(&mut self) -> Result<Option<v1::WatchHoldResponse>, tonic::Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let message = v1::WatchHoldRequest { id: self.id.to_string(), etag: self.etag.clone() };
                let request = self.client.shared.request(message);
                let stream = self.client.shared.holds().watch_hold(request).await?.into_inner();
                self.stream.insert(stream)
            }
        };
        stream.message().await
    }
}
