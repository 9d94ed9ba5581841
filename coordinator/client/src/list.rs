//! Lists of holds or transactions, page by page.

use crate::{Client, Error, Hold, convert};
use std::{collections::HashMap, fmt};
use tcc_core::{Phase, Timestamp};

/// What there are lists of.
pub trait Listed: Sized {
    /// Whose are listed.
    type Of: Clone + fmt::Debug;

    /// A page, and the token of the next one, which is empty after the last.
    fn page(
        client: &Client,
        of: &Self::Of,
        which: &Which,
    ) -> impl Future<Output = Result<(Vec<Self>, String), Error>> + Send;
}

/// Which of them, as requests have it.
#[derive(Debug, Clone, Default)]
pub struct Which {
    pub(crate) phases: Vec<i32>,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) created_from: Option<prost_types::Timestamp>,
    pub(crate) created_until: Option<prost_types::Timestamp>,
    pub(crate) page_size: i32,
    pub(crate) page_token: String,
}

/// A list of holds, or of transactions, the newest ids first. It remembers which page comes next.
#[derive(Debug, Clone)]
#[must_use = "ask it for a page"]
pub struct List<T: Listed = Hold> {
    client: Client,
    pub(crate) of: T::Of,
    which: Which,
    is_over: bool,
}

impl<T: Listed> List<T> {
    pub(crate) fn new(client: Client, of: T::Of) -> Self {
        Self { client, of, which: Which::default(), is_over: false }
    }

    /// Only those in this phase, or in another one that is asked for so.
    pub fn phase(mut self, phase: Phase) -> Self {
        self.which.phases.push(convert::to_phase(phase).into());
        self
    }

    /// Only those with this label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.which.labels.insert(key.into(), value.into());
        self
    }

    /// Only those created then or later.
    pub fn created_from(mut self, time: Timestamp) -> Self {
        self.which.created_from = Some(convert::to_time(time));
        self
    }

    /// Only those created before then.
    pub fn created_until(mut self, time: Timestamp) -> Self {
        self.which.created_until = Some(convert::to_time(time));
        self
    }

    /// How many a page has at most: 1 to 1,000.
    pub fn page_size(mut self, size: u16) -> Self {
        self.which.page_size = size.into();
        self
    }

    /// The next page; `None` after the last one. A page may be short, even empty, although there are more.
    ///
    /// # Errors
    ///
    /// [`Error`]. The same page may be asked for again then.
    pub async fn next_page(&mut self) -> Result<Option<Vec<T>>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let (page, next) = T::page(&self.client, &self.of, &self.which).await?;
        self.is_over = next.is_empty();
        self.which.page_token = next;
        Ok(Some(page))
    }
}
