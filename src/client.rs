//! A client of the HTTP API: appends in batches that are stored once however often they are sent, reads, and follows a
//! log across restarts of the server. Connections are kept open and shared; a [`Client`] is cheap to clone.
//!
//! # Example
//! ```no_run
//! # async fn run() -> Result<(), millstream::client::Error> {
//! use millstream::client::{Client, LogSettings};
//! let client = Client::new("http://127.0.0.1:4437")?;
//! client.create("clicks", &LogSettings::default()).await?;
//! let producer = client.producer("clicks", "importer-1")?;
//! producer.push(b"one").await?; // sent in the background, with what comes soon after it
//! let offset = producer.submit(b"two", false).await?.await?; // once it is stored
//! producer.close().await?;
//! for record in client.read("clicks", 0, 100).await?.records {
//!     println!("{}: {} bytes", record.offset, record.value.len());
//! }
//! # let _ = offset;
//! # Ok(())
//! # }
//! ```

mod address;
mod cursor;
mod error;
mod patience;
mod producer;
mod tail;

pub use crate::{
    api::{CursorInfo, DamageInfo, LogInfo, SessionLine},
    settings::{InvalidSettings, LogSettings, ValueError, Values},
    start::StartAt,
};
pub use cursor::Cursor;
pub use error::Error;
pub use patience::Patience;
pub use producer::{Epoch, Producer, ProducerOptions, Stored, Ticket};
pub use tail::Tail;

/// The earlier name of [`Epoch`].
#[deprecated = "use `Epoch`"]
pub type Opened = Epoch;

use crate::{
    api::{LogsPage, Trim, Trimmed},
    name,
    pauses::Pauses,
    wire::{self, AnswerFrame},
};
use bytes::{Bytes, BytesMut};
use error::Refusal;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Incoming, header::RETRY_AFTER};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Deserialize, Serialize};
use std::{ops::RangeInclusive, time::Duration};
use tokio::sync::watch;

/// How long a server may be silent, unless [`Client::with_max_silence`] says otherwise: longer than a server with its
/// default settings lets any request wait.
pub const MAX_SILENCE: Duration = Duration::from_secs(90);

/// How long the server is asked to wait for records at the most.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Its offset.
    pub offset: u64,
    /// When it was appended, in milliseconds since 1970.
    pub time: u64,
    /// Whether it is JSON.
    pub json: bool,
    /// Whether it was lost to damage, and marked so by `repair`: then it has no value.
    pub lost: bool,
    /// What was appended.
    pub value: Bytes,
}

impl Record {
    /// Writes it as a frame of a body to append: see `application/vnd.millstream.frames` in `docs/api.md`. There, one that
    /// is lost would be a record without a value.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write_frame(&self, out: &mut (impl std::io::Write + ?Sized)) -> std::io::Result<()> {
        out.write_all(&wire::Prefix::new(self.value.len(), self.json).to_bytes())?;
        out.write_all(&self.value)
    }
}

#[cfg(feature = "store")]
impl From<&crate::RecordRef<'_>> for Record {
    fn from(record: &crate::RecordRef<'_>) -> Self {
        let &crate::RecordRef { offset, time, json, lost, value, .. } = record;
        Self { offset, time, json, lost, value: Bytes::copy_from_slice(value) }
    }
}

/// A range that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The records, in the order of their offsets.
    pub records: Vec<Record>,
    /// The offset at which to continue.
    pub next_offset: u64,
}

/// A client of the HTTP API. Cheap to clone: clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    url: String,
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    max_silence: Duration,
}

impl Client {
    /// The server's host and port, as in its address.
    pub fn authority(&self) -> &str {
        let rest = self.url.strip_prefix("http://").unwrap_or(&self.url);
        rest.split_once('/').map_or(rest, |(authority, _)| authority)
    }

    /// Creates a client of the server at `url`, such as `http://127.0.0.1:4437` or `127.0.0.1:4437`. It connects when it
    /// is used.
    ///
    /// # Errors
    /// [`Error::BadUrl`].
    pub fn new(url: &str) -> Result<Self, Error> {
        let url = address::parse(url)?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        Ok(Self {
            url,
            http: legacy::Client::builder(TokioExecutor::new()).build(connector),
            max_silence: MAX_SILENCE,
        })
    }

    /// How long the server may be silent: from when a request is sent until its answer begins, and from each piece of the
    /// answer to the next. After that it counts as unreachable ([`Error::Unreachable`]), and what can be tried again is.
    /// Default: [`MAX_SILENCE`].
    #[must_use]
    pub fn with_max_silence(mut self, max_silence: Duration) -> Self {
        self.max_silence = max_silence;
        self
    }

    /// The part of a query that says how long the server is to wait for records: well below the silence that it may keep.
    fn wait(&self) -> String {
        format!("&wait={}ms", MAX_WAIT.min(self.max_silence / 3).as_millis())
    }

    /// Waits for the server, as long as it may be silent.
    async fn heard<T, E: std::error::Error + 'static>(
        &self,
        what: &str,
        heard: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        let reason = match tokio::time::timeout(self.max_silence, heard).await {
            Ok(Ok(heard)) => return Ok(heard),
            Ok(Err(error)) if is_no_http(&error) => {
                return Err(Error::Answer { reason: root_cause(&error) });
            }
            Ok(Err(error)) => root_cause(&error),
            Err(_) => format!("{what} within {:?}", self.max_silence),
        };
        Err(Error::Unreachable { url: self.url.clone(), reason })
    }

    /// Takes an answer that no Millstream server gives as a sign that the server is away, and something else has its
    /// port for a moment. Only for callers that the server has answered before: for others, such an answer means that the
    /// address is wrong.
    fn as_if_away(&self, error: Error) -> Error {
        let reason = match error {
            Error::Answer { reason } => reason,
            Error::Refused { status: status @ 404, code, .. } if code.is_empty() => {
                format!("something else answers ({status})")
            }
            error => return error,
        };
        Error::Unreachable { url: self.url.clone(), reason }
    }

    /// Sends a request once; errors say that it was about `log`.
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        log: &str,
    ) -> Result<hyper::Response<Incoming>, Refusal> {
        let answer = self.heard("no answer", self.http.request(request)).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let seconds = answer.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
        let body = self.body(answer).await?;
        Err(Refusal::parse(status.as_u16(), &body, seconds.map(Duration::from_secs), log))
    }

    /// Sends a request once, and returns the whole body of the answer.
    async fn whole(&self, request: Request<Full<Bytes>>, log: &str) -> Result<Bytes, Refusal> {
        let answer = self.send(request, log).await?;
        Ok(self.body(answer).await?)
    }

    /// Sends a request once, because it must not be repeated or is not worth repeating. Returns the answer's body.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        log: &str,
    ) -> Result<Bytes, Error> {
        let request = self.request(method, path, &[], body.into())?;
        self.whole(request, log).await.map_err(|refusal| refusal.error)
    }

    /// The whole body of an answer, which may be long in coming, but not silent for long.
    async fn body(&self, answer: hyper::Response<Incoming>) -> Result<Bytes, Error> {
        let (mut body, mut whole) = (answer.into_body(), BytesMut::new());
        loop {
            let piece = async { body.frame().await.transpose() };
            let Some(piece) = self.heard("nothing more of the answer", piece).await? else { break };
            whole.extend_from_slice(piece.data_ref().map_or(&[], |data| data));
        }
        Ok(whole.freeze())
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body)).map_err(|error| Error::Answer { reason: error.to_string() })
    }

    /// Creates a log, unless it exists with the same settings.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::Unreachable`], [`Error::Refused`].
    pub async fn create(&self, log: &str, settings: &LogSettings) -> Result<LogInfo, Error> {
        understood(&self.ask(Method::PUT, &path_of(log)?, json(settings)?, log).await?)
    }

    /// Returns the server's description of a log.
    ///
    /// # Errors
    /// As [`create`](Self::create), and [`Error::NoSuchLog`].
    pub async fn describe(&self, log: &str) -> Result<LogInfo, Error> {
        understood(&self.ask(Method::GET, &path_of(log)?, "", log).await?)
    }

    /// Deletes a log.
    ///
    /// # Errors
    /// As [`describe`](Self::describe).
    pub async fn delete(&self, log: &str) -> Result<(), Error> {
        nothing(&self.ask(Method::DELETE, &path_of(log)?, "", log).await?)
    }

    /// Drops whole segments below `before`, or all records if that is the next offset; returns the first offset that is
    /// left.
    ///
    /// # Errors
    /// As [`describe`](Self::describe), and [`Error::BeyondEnd`].
    pub async fn trim(&self, log: &str, before: u64) -> Result<u64, Error> {
        let body = json(&Trim { before })?;
        let answer = self.ask(Method::POST, &format!("{}/trim", path_of(log)?), body, log).await?;
        Ok(understood::<Trimmed>(&answer)?.first_offset)
    }

    /// Returns the names of all logs.
    ///
    /// # Errors
    /// As [`describe`](Self::describe).
    pub async fn logs(&self) -> Result<Vec<String>, Error> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page = self.ask(Method::GET, &format!("/v1/logs?limit=1000{after}"), "", "").await?;
            let LogsPage { logs, next, .. } = understood(&page)?;
            all.extend(logs);
            let Some(next) = next else { return Ok(all) };
            after = format!("&after={next}");
        }
    }

    /// Reads up to `limit` records from `offset` on, or as many as the server puts into one answer.
    ///
    /// # Errors
    /// As [`describe`](Self::describe).
    pub async fn read(&self, log: &str, offset: u64, limit: u64) -> Result<Page, Error> {
        self.read_query(log, &format!("offset={offset}&limit={limit}")).await
    }

    /// Like [`read`](Self::read), with the parameters of a query as in `docs/api.md`.
    ///
    /// # Errors
    /// As [`describe`](Self::describe).
    pub async fn read_query(&self, log: &str, query: &str) -> Result<Page, Error> {
        self.page(log, query).await.map(|(page, _)| page)
    }

    /// The page that [`read_query`](Self::read_query) returns, and the id of the log.
    async fn page(&self, log: &str, query: &str) -> Result<(Page, Option<String>), Error> {
        let path = format!("{}/records?{query}", path_of(log)?);
        let headers = [("accept", wire::MEDIA_TYPE)];
        let request = self.request(Method::GET, &path, &headers, Bytes::new())?;
        let answer = self.send(request, log).await.map_err(|refusal| refusal.error)?;
        let next = answer.headers().get(wire::NEXT_OFFSET).and_then(|next| next.to_str().ok()?.parse().ok());
        let next_offset = next.ok_or_else(|| Error::Answer { reason: "no next offset".into() })?;
        let log_id = answer.headers().get(wire::LOG_ID).and_then(|id| id.to_str().ok());
        let log_id = log_id.map(str::to_owned); // older servers do not say it
        Ok((Page { records: frames(&self.body(answer).await?)?, next_offset }, log_id))
    }

    /// Like [`page`](Self::page), with `wait` appended to the query. Retries while the server cannot be reached, or
    /// says to try again, and reports that through `trouble`; retries omit `wait`, so that recovery is noticed at once.
    async fn page_with_retries(
        &self,
        log: &str,
        query: &str,
        wait: &str,
        trouble: &Trouble,
    ) -> Result<(Page, Option<String>), Error> {
        let (pauses, mut whole) = (Pauses::new(PAUSES), format!("{query}{wait}"));
        loop {
            match self.page(log, &whole).await {
                Err(error) if error.is_temporary() => {
                    tell(trouble, Some(error));
                    tokio::time::sleep(pauses.next()).await;
                    query.clone_into(&mut whole);
                }
                done => {
                    tell(trouble, None);
                    return done;
                }
            }
        }
    }

    /// The records of a log in order, from `start` on, as a stream that waits for more, across restarts of the server, and
    /// that notices when the log is deleted and another one created under its name.
    ///
    /// # Errors
    /// [`Error::BadName`].
    pub fn tail(&self, log: &str, start: StartAt) -> Result<Tail, Error> {
        Tail::new(self.clone(), log, start)
    }

    /// Waits for records from `offset` on, however long that takes, and across restarts of the server. It does not notice
    /// when the log is deleted and created again: [`tail`](Self::tail) does.
    ///
    /// # Errors
    /// [`Error::Refused`], except if the server says to try again.
    pub async fn follow(&self, log: &str, offset: u64) -> Result<Page, Error> {
        let query = format!("offset={offset}&limit=10000");
        let trouble = Trouble::new(None);
        loop {
            let (page, _) = self.page_with_retries(log, &query, &self.wait(), &trouble).await?;
            if !page.records.is_empty() {
                return Ok(page);
            }
        }
    }

    /// Creates a producer for one log, with the default options. Each batch is stored once, however often it is sent. A
    /// producer with the same id that is still running, or has requests on the way, is fenced off. Must be called within a
    /// runtime.
    ///
    /// # Errors
    /// [`Error::BadName`].
    pub fn producer(&self, log: &str, id: &str) -> Result<Producer, Error> {
        self.producer_with(log, id, ProducerOptions::default())
    }

    /// Like [`producer`](Self::producer), with these options.
    ///
    /// # Errors
    /// As [`producer`](Self::producer).
    pub fn producer_with(&self, log: &str, id: &str, options: ProducerOptions) -> Result<Producer, Error> {
        path_of(log)?;
        Ok(Producer::new(self.clone(), log.to_owned(), id.to_owned(), options))
    }
}

/// The error because of which something is being retried; `None` while all is well.
type Trouble = watch::Sender<Option<Error>>;

/// Publishes the error; wakes receivers only when trouble begins or ends.
fn tell(trouble: &Trouble, error: Option<Error>) {
    trouble.send_if_modified(|last| {
        let changes = last.is_some() != error.is_some();
        *last = error;
        changes
    });
}

/// Whether a log or a cursor can have this name.
pub fn is_name(name: &str) -> bool {
    name::is_name(name)
}

/// The path of a log.
fn path_of(log: &str) -> Result<String, Error> {
    if name::is_name(log) {
        Ok(format!("/v1/logs/{log}"))
    } else {
        Err(Error::BadName { name: log.to_owned() })
    }
}

/// The first pause before a request is sent again, and the longest.
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(2);

fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

/// Whether the error is that an answer is not HTTP.
fn is_no_http(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse)
        || error.source().is_some_and(is_no_http)
}

fn json(body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|error| Error::Answer { reason: error.to_string() })
}

fn understood<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|error| Error::Answer { reason: error.to_string() })
}

/// What a server answers when something is removed.
fn nothing(answer: &[u8]) -> Result<(), Error> {
    if answer.is_empty() { Ok(()) } else { Err(Error::Answer { reason: "there is a body".into() }) }
}

fn frames(body: &Bytes) -> Result<Vec<Record>, Error> {
    let (mut left, mut records) = (&body[..], Vec::new());
    while !left.is_empty() {
        let (frame, rest) = AnswerFrame::split(left)
            .ok_or_else(|| Error::Answer { reason: "it ends within a record".into() })?;
        let AnswerFrame { offset, time, json, value } = frame;
        let lost = time == wire::LOST_TIME;
        records.push(Record { offset, time, json, lost, value: body.slice_ref(value) });
        left = rest;
    }
    Ok(records)
}
