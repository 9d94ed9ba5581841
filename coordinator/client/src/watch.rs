//! Following one hold, or one transaction, until it is final, over as many connections as that takes.

use crate::{Client, Error, Hold, ask};
use tcc_core::TransactionId;
use tokio::time::{Duration, Instant};
use tonic::{Status, Streaming};

/// How long it pauses before it asks again.
const PAUSE: Duration = Duration::from_millis(250);

/// What can be watched.
pub trait Watched: Sized {
    /// What the server tells of it.
    type Told;
    /// For people.
    const WATCHING: &'static str;

    /// Begins to watch, from what was seen last.
    fn watch(
        client: &Client,
        id: TransactionId,
        etag: &str,
    ) -> impl Future<Output = Result<Streaming<Self::Told>, Status>> + Send;

    /// As it stands.
    fn read(told: Self::Told) -> Result<Self, String>;

    /// Asks how it stands, once.
    fn get(client: &Client, id: TransactionId) -> impl Future<Output = Result<Self, Error>> + Send;

    /// By which it is known whether it has changed since.
    fn etag(&self) -> &str;

    /// Whether nothing can happen to it any more.
    fn is_final(&self) -> bool;
}

/// A watch of one hold, or one transaction. It begins again by itself where it was.
#[derive(Debug)]
pub struct Watch<T: Watched = Hold> {
    client: Client,
    id: TransactionId,
    /// As it was told last.
    etag: String,
    stream: Option<Streaming<T::Told>>,
    is_over: bool,
}

impl<T: Watched> Watch<T> {
    pub(crate) fn new(client: Client, id: TransactionId) -> Self {
        Self { client, id, etag: String::new(), stream: None, is_over: false }
    }

    /// How it stands, then how it stands after each change; `None` after it was told final.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Error::Unknown`] when there was no server to ask for the client's patience; it may be
    /// asked on.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        let mut lost_at: Option<Instant> = None;
        while !self.is_over {
            let last = match self.message().await {
                Ok(Some(told)) => {
                    let what = T::WATCHING;
                    let thing = T::read(told).map_err(|why| Error::Unreadable { what, why })?;
                    thing.etag().clone_into(&mut self.etag);
                    self.is_over = thing.is_final();
                    return Ok(Some(thing));
                }
                Ok(None) => "the stream ended".to_owned(),
                Err(status) => {
                    ask::is_over(T::WATCHING, &status)?;
                    ask::told_of(&status)
                }
            };
            self.stream = None;
            let lost_at = *lost_at.get_or_insert_with(Instant::now);
            if lost_at.elapsed() + PAUSE >= self.client.patience {
                return Err(Error::Unknown { what: T::WATCHING, after: lost_at.elapsed(), last });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// How it stands when it is final.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    pub async fn until_final(mut self) -> Result<T, Error> {
        loop {
            match self.next().await? {
                Some(thing) if thing.is_final() => return Ok(thing),
                Some(_) => {}
                // It was told before.
                None => return T::get(&self.client, self.id).await,
            }
        }
    }

    async fn message(&mut self) -> Result<Option<T::Told>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = T::watch(&self.client, self.id, &self.etag).await?;
                self.stream.insert(stream)
            }
        };
        stream.message().await
    }
}
