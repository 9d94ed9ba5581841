//! Following one hold, or one transaction, until it is final, over as many connections as that takes.

use crate::{Client, Error, Hold, ask, connect::Shared, convert};
use tcc_core::TransactionId;
use tcc_proto::v1;
use tokio::time::{Duration, Instant};
use tonic::{Status, Streaming};

/// How long it pauses before it asks again.
const PAUSE: Duration = Duration::from_millis(250);

/// What a server tells to whoever watches.
pub(crate) trait Told: Sized {
    /// What it is about.
    type Thing;
    /// For people.
    const WHAT: &'static str;

    /// Begins to watch, from what was seen last.
    fn open(
        shared: &Shared,
        id: TransactionId,
        etag: &str,
    ) -> impl Future<Output = Result<Streaming<Self>, Status>> + Send;

    /// As it stands.
    fn read(self) -> Result<Self::Thing, String>;

    /// By which it is known whether it has changed since.
    fn etag(thing: &Self::Thing) -> &str;

    /// Whether nothing can happen to it any more.
    fn is_final(thing: &Self::Thing) -> bool;
}

/// A watch that begins again by itself where it was.
#[derive(Debug)]
pub(crate) struct Follow<M> {
    client: Client,
    id: TransactionId,
    /// As it was told last.
    etag: String,
    stream: Option<Streaming<M>>,
    is_over: bool,
}

impl<M: Told> Follow<M> {
    pub(crate) fn new(client: Client, id: TransactionId) -> Self {
        Self { client, id, etag: String::new(), stream: None, is_over: false }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn id(&self) -> TransactionId {
        self.id
    }

    pub(crate) async fn next(&mut self) -> Result<Option<M::Thing>, Error> {
        let mut lost_at: Option<Instant> = None;
        while !self.is_over {
            let last = match self.message().await {
                Ok(Some(told)) => {
                    let thing = told.read().map_err(|why| Error::Unreadable { what: M::WHAT, why })?;
                    M::etag(&thing).clone_into(&mut self.etag);
                    self.is_over = M::is_final(&thing);
                    return Ok(Some(thing));
                }
                Ok(None) => "the stream ended".to_owned(),
                Err(status) => {
                    ask::is_over(M::WHAT, &status)?;
                    ask::told_of(&status)
                }
            };
            self.stream = None;
            let lost_at = *lost_at.get_or_insert_with(Instant::now);
            if lost_at.elapsed() + PAUSE >= self.client.patience {
                return Err(Error::Unknown { what: M::WHAT, after: lost_at.elapsed(), last });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    async fn message(&mut self) -> Result<Option<M>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = M::open(&self.client.shared, self.id, &self.etag).await?;
                self.stream.insert(stream)
            }
        };
        stream.message().await
    }
}

impl Told for v1::WatchHoldResponse {
    type Thing = Hold;
    const WHAT: &'static str = "watching a hold";

    async fn open(shared: &Shared, id: TransactionId, etag: &str) -> Result<Streaming<Self>, Status> {
        let message = v1::WatchHoldRequest { id: id.to_string(), etag: etag.to_owned() };
        Ok(shared.holds().watch_hold(shared.request(message)).await?.into_inner())
    }

    fn read(self) -> Result<Hold, String> {
        convert::hold(self.hold)
    }

    fn etag(hold: &Hold) -> &str {
        &hold.etag
    }

    fn is_final(hold: &Hold) -> bool {
        hold.is_final()
    }
}

/// A watch of one hold. It begins again by itself where it was.
#[derive(Debug)]
pub struct Watch {
    follow: Follow<v1::WatchHoldResponse>,
}

impl Watch {
    pub(crate) fn new(client: Client, id: TransactionId) -> Self {
        Self { follow: Follow::new(client, id) }
    }

    /// The hold as it stands, then as it stands after each change; `None` after it was told final.
    ///
    /// # Errors
    ///
    /// [`Error`]. [`Error::Unknown`] when there was no server to ask for the client's patience; it may be
    /// asked on.
    pub async fn next(&mut self) -> Result<Option<Hold>, Error> {
        self.follow.next().await
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
                None => return self.follow.client().get(self.follow.id()).await,
            }
        }
    }
}
