//! Following a log: its records as a stream, from anywhere, for as long as it exists.

use super::{Client, Error, Page, Record, Trouble, path_of};
use crate::start::StartAt;
use futures_core::Stream;
use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::watch;

fn query(start: StartAt) -> String {
    match start {
        StartAt::Earliest => "offset=earliest".to_owned(),
        StartAt::Latest | StartAt::Last(0) => "offset=latest".to_owned(),
        StartAt::Offset(offset) => format!("offset={offset}"),
        StartAt::Last(records) => format!("offset=-{records}"),
        // With 12 digits or more: less may be taken for seconds, and is refused then.
        StartAt::Since(time) => format!("since={:012}", StartAt::millis(time)),
    }
}

/// A page that is being fetched, and the id of the log.
type Fetching = Pin<Box<dyn Future<Output = Result<(Page, Option<String>), Error>> + Send>>;

/// The records of a log in order, as a [`Stream`] and by [`next`](Self::next); see [`Client::tail`]. When
/// the records that it has were taken, it fetches the next ones: up to 10,000, or 1 MiB.
pub struct Tail {
    client: Client,
    log: String,
    /// The query of the next request, without what makes it wait.
    query: String,
    log_id: Option<String>,
    damaged_query: &'static str,
    ready: VecDeque<Record>,
    fetching: Option<Fetching>,
    trouble: Trouble,
    /// Whether an error has ended it.
    ended: bool,
}

impl Tail {
    pub(super) fn new(client: Client, log: &str, start: StartAt) -> Result<Self, Error> {
        path_of(log)?;
        Ok(Self {
            client,
            log: log.to_owned(),
            query: query(start),
            log_id: None,
            damaged_query: "",
            ready: VecDeque::new(),
            fetching: None,
            trouble: Trouble::new(None),
            ended: false,
        })
    }

    /// The next record, as soon as there is one, across restarts of the server. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::AnotherLog`]: the log was deleted, and created again. [`Error::NoSuchLog`]. [`Error::BeyondEnd`]: the log
    /// ends before the offset to begin with, so it may be another one. [`Error::Trimmed`]. [`Error::Damaged`]. [`Error::Refused`], except if
    /// the server says to try again. After an error there are no more records: each further call returns [`Error::Closed`].
    pub async fn next(&mut self) -> Result<Record, Error> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// Takes the records that have been fetched already.
    pub fn take_ready(&mut self) -> impl Iterator<Item = Record> + '_ {
        self.ready.drain(..)
    }

    /// Skips records that are damaged, or that the disk cannot read, instead of ending with [`Error::Damaged`].
    #[must_use]
    pub fn skip_damaged(mut self) -> Self {
        self.damaged_query = "&damaged=skip";
        self
    }

    /// What keeps the tail from reading at the moment, while it tries again: at the first failed attempt, and `None`
    /// when it has succeeded.
    pub fn trouble(&self) -> watch::Receiver<Option<Error>> {
        self.trouble.subscribe()
    }

    /// The id of the log, once the server has told it.
    pub fn log_id(&self) -> Option<&str> {
        self.log_id.as_deref()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Record, Error>> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Poll::Ready(Ok(record));
            }
            if self.ended {
                return Poll::Ready(Err(Error::Closed));
            }
            let (client, log, query, log_id) = (&self.client, &self.log, &self.query, &self.log_id);
            let trouble = &self.trouble;
            let fetching = self.fetching.get_or_insert_with(|| {
                // Only then does it wait: the first answer says where the log ends, and which log it is.
                let wait = if log_id.is_some() { client.wait() } else { String::new() };
                let id = log_id.as_ref().map_or_else(String::new, |id| format!("&log_id={id}"));
                let query = format!("{query}&limit=10000{}{id}", self.damaged_query);
                let (client, log, trouble) = (client.clone(), log.clone(), trouble.clone());
                Box::pin(async move { client.page_with_retries(&log, &query, &wait, &trouble).await })
            });
            let fetched = ready!(fetching.as_mut().poll(context));
            self.fetching = None;
            match fetched {
                Ok((Page { records, next_offset }, log_id)) => {
                    self.query = format!("offset={next_offset}");
                    self.log_id = log_id.or(self.log_id.take());
                    self.ready = records.into();
                }
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl Stream for Tail {
    type Item = Result<Record, Error>;

    /// As [`next`](Tail::next); `None` after an error.
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended && self.ready.is_empty() {
            return Poll::Ready(None);
        }
        self.poll(context).map(Some)
    }
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { log, query, log_id, .. } = self;
        f.debug_struct("Tail")
            .field("log", log)
            .field("next", query)
            .field("log_id", log_id)
            .finish_non_exhaustive()
    }
}
