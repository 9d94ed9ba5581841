//! Lists of holds, page by page.

use crate::{
    Client, Error, Hold,
    ask::{Answer, Repeat},
    convert,
};
use tcc_core::{Phase, Timestamp};
use tcc_proto::v1;

/// A list of holds, the newest ids first. It remembers which page comes next.
#[derive(Debug, Clone)]
#[must_use = "ask it for a page"]
pub struct List {
    client: Client,
    request: v1::ListHoldsRequest,
    is_over: bool,
}

impl List {
    pub(crate) fn new(client: Client, request: v1::ListHoldsRequest) -> Self {
        Self { client, request, is_over: false }
    }

    /// Only those in this phase, or in another one that is asked for so.
    pub fn phase(mut self, phase: Phase) -> Self {
        self.request.phases.push(convert::to_phase(phase).into());
        self
    }

    /// Only those with this label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.labels.insert(key.into(), value.into());
        self
    }

    /// Only those created then or later.
    pub fn created_from(mut self, time: Timestamp) -> Self {
        self.request.created_from = Some(convert::to_time(time));
        self
    }

    /// Only those created before then.
    pub fn created_until(mut self, time: Timestamp) -> Self {
        self.request.created_until = Some(convert::to_time(time));
        self
    }

    /// How many a page has at most: 1 to 1,000.
    pub fn page_size(mut self, holds: u16) -> Self {
        self.request.page_size = holds.into();
        self
    }

    /// The next page; `None` after the last one. A page may be short, even empty, although there are more.
    ///
    /// # Errors
    ///
    /// [`Error`]. The same page may be asked for again then.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Hold>>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let call = |shared: &crate::connect::Shared, request| {
            let mut holds = shared.holds();
            async move { holds.list_holds(request).await }
        };
        let read = |response: v1::ListHoldsResponse| {
            let holds: Result<Vec<Hold>, String> =
                response.holds.into_iter().map(|hold| convert::hold(Some(hold))).collect();
            Ok(Answer::Is((holds?, response.next_page_token)))
        };
        let page = self.client.ask("listing holds", Repeat::Safe, self.request.clone(), call, read).await?;
        let (holds, next) = page;
        self.is_over = next.is_empty();
        self.request.page_token = next;
        Ok(Some(holds))
    }
}
