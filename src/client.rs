//! A client of the HTTP API: appends in batches that are stored once however often they are sent, reads, and follows a
//! log across restarts of the server. Connections are kept open and shared; a [`Client`] is cheap to clone.
//!
//! # Example
//! ```no_run
//! # async fn run() -> Result<(), millstream::client::Error> {
//! use millstream::client::{Client, Format};
//! let client = Client::new("http://127.0.0.1:4437")?;
//! client.create("clicks", "{}").await?;
//! let mut producer = client.producer("clicks", "importer-1", Format::Lines);
//! producer.push(b"one").await?;
//! producer.push(b"two").await?;
//! let stored = producer.flush().await?;
//! for record in client.read("clicks", 0, 100).await?.records {
//!     println!("{}: {} bytes", record.offset, record.value.len());
//! }
//! # let _ = stored;
//! # Ok(())
//! # }
//! ```

use crate::{
    Code,
    wire::{self, AnswerFrame},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, body::Incoming, header::CONTENT_TYPE};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use std::time::{Duration, Instant};

/// For how long a request is tried again before the client gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one attempt may take: longer than the server lets any request wait.
const ATTEMPT: Duration = Duration::from_secs(90);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not that of an HTTP server.
    #[error("{url:?} is not an address such as http://127.0.0.1:4437")]
    BadUrl {
        /// The address that was given.
        url: String,
    },
    /// The server cannot be reached, or the connection broke.
    #[error("cannot reach {url}: {reason}; is the server running?")]
    Unreachable {
        /// Where the server was expected.
        url: String,
        /// What the system reported.
        reason: String,
    },
    /// The server refused the request.
    #[error("the server answers {status}, {code}: {detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The stable code, as listed in `docs/api.md`.
        code: String,
        /// What to do.
        detail: String,
        /// With which epoch and sequence a producer that is out of order must continue.
        expected: Option<(u64, u64)>,
    },
    /// The answer cannot be understood.
    #[error("the server's answer makes no sense: {reason}")]
    Answer {
        /// Why.
        reason: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: String,
    detail: String,
    expected_epoch: Option<u64>,
    expected_seq: Option<u64>,
}

/// What records are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Bytes without line ends.
    Lines,
    /// JSON on one line each.
    Ndjson,
    /// Any bytes, one record per batch.
    Whole,
}

impl Format {
    fn media_type(self) -> &'static str {
        match self {
            Self::Lines => "text/plain",
            Self::Ndjson => "application/x-ndjson",
            Self::Whole => "application/octet-stream",
        }
    }
}

/// Where a batch was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Stored {
    /// The offset of its first record.
    pub first_offset: u64,
    /// The number of records.
    pub count: u64,
}

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
    /// What was appended.
    pub value: Bytes,
}

#[cfg(feature = "store")]
impl From<&crate::Record> for Record {
    fn from(record: &crate::Record) -> Self {
        let value = Bytes::copy_from_slice(record.value());
        Self { offset: record.offset(), time: record.time(), json: record.is_json(), value }
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

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Client {
    url: String,
    http: legacy::Client<HttpConnector, Full<Bytes>>,
}

impl Client {
    /// Creates a client of the server at `url`, such as `http://127.0.0.1:4437`. It connects when it is used.
    ///
    /// # Errors
    /// [`Error::BadUrl`].
    pub fn new(url: &str) -> Result<Self, Error> {
        let plain = url.trim_end_matches('/');
        let uri: Option<hyper::Uri> = plain.parse().ok();
        if uri.is_none_or(|uri| uri.scheme_str() != Some("http") || uri.host().is_none()) {
            return Err(Error::BadUrl { url: url.to_owned() });
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        Ok(Self {
            url: plain.to_owned(),
            http: legacy::Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<hyper::Response<Incoming>, Error> {
        let unreachable = |reason: String| Error::Unreachable { url: self.url.clone(), reason };
        let answer = tokio::time::timeout(ATTEMPT, self.http.request(request))
            .await
            .map_err(|_| unreachable("no answer in time".into()))?
            .map_err(|error| unreachable(with_cause(&error)))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body =
            answer.into_body().collect().await.map_err(|error| unreachable(error.to_string()))?.to_bytes();
        let Problem { code, detail, expected_epoch, expected_seq } =
            serde_json::from_slice(&body).unwrap_or_default();
        let expected = expected_epoch.zip(expected_seq);
        Err(Error::Refused { status: status.as_u16(), code, detail, expected })
    }

    /// Sends a request once, because it must not be repeated or is not worth repeating. Returns the answer's body.
    async fn ask(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Bytes, Error> {
        let request = self.request(method, path, &[], body.into())?;
        self.body(self.send(request).await?).await
    }

    async fn body(&self, answer: hyper::Response<Incoming>) -> Result<Bytes, Error> {
        let whole = answer.into_body().collect().await;
        let reason =
            |error: hyper::Error| Error::Unreachable { url: self.url.clone(), reason: with_cause(&error) };
        Ok(whole.map_err(reason)?.to_bytes())
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

    /// Creates a log with settings in JSON, as in `docs/api.md`; returns the server's description of it, in JSON.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Refused`].
    pub async fn create(&self, log: &str, settings: &str) -> Result<Bytes, Error> {
        self.ask(Method::PUT, &format!("/v1/logs/{log}"), settings.to_owned()).await
    }

    /// Returns the server's description of a log, in JSON.
    ///
    /// # Errors
    /// The same as [`create`](Self::create).
    pub async fn describe(&self, log: &str) -> Result<Bytes, Error> {
        self.ask(Method::GET, &format!("/v1/logs/{log}"), "").await
    }

    /// Deletes a log.
    ///
    /// # Errors
    /// The same as [`create`](Self::create).
    pub async fn delete(&self, log: &str) -> Result<(), Error> {
        self.ask(Method::DELETE, &format!("/v1/logs/{log}"), "").await.map(drop)
    }

    /// Drops whole segments below `before`; returns the first offset that is left.
    ///
    /// # Errors
    /// The same as [`create`](Self::create).
    pub async fn trim(&self, log: &str, before: u64) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Trimmed {
            first_offset: u64,
        }
        let body = format!(r#"{{"before":{before}}}"#);
        let answer = self.ask(Method::POST, &format!("/v1/logs/{log}/trim"), body).await?;
        Ok(understood::<Trimmed>(&answer)?.first_offset)
    }

    /// Returns the names of all logs.
    ///
    /// # Errors
    /// The same as [`create`](Self::create).
    pub async fn logs(&self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Page {
            logs: Vec<String>,
            next: Option<String>,
        }
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page = self.ask(Method::GET, &format!("/v1/logs?limit=1000{after}"), "").await?;
            let Page { logs, next } = understood(&page)?;
            all.extend(logs);
            let Some(next) = next else { return Ok(all) };
            after = format!("&after={next}");
        }
    }

    /// Reads up to `limit` records from `offset` on, or as many as the server puts into one answer.
    ///
    /// # Errors
    /// The same as [`create`](Self::create).
    pub async fn read(&self, log: &str, offset: u64, limit: u64) -> Result<Page, Error> {
        self.read_from(log, &format!("offset={offset}&limit={limit}")).await
    }

    /// Like [`read`](Self::read), with the parameters of a query as in `docs/api.md`.
    ///
    /// # Errors
    /// The same as [`create`](Self::create).
    pub async fn read_from(&self, log: &str, query: &str) -> Result<Page, Error> {
        let path = format!("/v1/logs/{log}/records?{query}");
        let headers = [("accept", wire::MEDIA_TYPE)];
        let answer = self.send(self.request(Method::GET, &path, &headers, Bytes::new())?).await?;
        let next =
            answer.headers().get("millstream-next-offset").and_then(|next| next.to_str().ok()?.parse().ok());
        let next_offset = next.ok_or_else(|| Error::Answer { reason: "no next offset".into() })?;
        Ok(Page { records: frames(&self.body(answer).await?)?, next_offset })
    }

    /// Waits for records from `offset` on, however long that takes, and across restarts of the server.
    ///
    /// # Errors
    /// [`Error::Refused`], except if the server says to try again.
    pub async fn follow(&self, log: &str, offset: u64) -> Result<Page, Error> {
        let mut pause = Pause::default();
        loop {
            match self.read_from(log, &format!("offset={offset}&limit=10000&wait=30s")).await {
                Ok(range) if range.records.is_empty() => pause = Pause::default(),
                Err(error) if error.is_temporary() => pause.wait().await,
                done => return done,
            }
        }
    }

    /// Creates a producer for one log, whose batches are stored once, however often they have to be sent. No other
    /// producer may use this `id`, and it must be the same when this one starts again with the same records: what is
    /// stored already is then skipped.
    pub fn producer(&self, log: &str, id: &str, format: Format) -> Producer {
        Producer {
            client: self.clone(),
            log: log.to_owned(),
            id: id.to_owned(),
            format,
            sequence: 0,
            stored: 0,
            batch: Vec::new(),
            records: 0,
            since: None,
            batch_bytes: 1 << 20,
            linger: Duration::from_millis(100),
        }
    }
}

impl Error {
    /// Whether the same request may succeed a little later.
    fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // A proxy's answer has no code.
            Self::Refused { status, code, .. } => {
                Code::parse(code).map_or([429, 502, 503, 504, 507].contains(status), Code::is_temporary)
            }
            _ => false,
        }
    }
}

/// Collects records into batches and sends them to a log: by size, or after a while.
#[derive(Debug)]
pub struct Producer {
    client: Client,
    log: String,
    id: String,
    format: Format,
    sequence: u64,
    stored: u64,
    batch: Vec<u8>,
    records: u64,
    since: Option<Instant>,
    batch_bytes: usize,
    linger: Duration,
}

impl Producer {
    /// Sends a batch when it has this many bytes (default: 1 MiB), or when a record is pushed this long after its first
    /// one (default: 100 ms). A batch that was ended by time will differ when an import starts again: if that matters,
    /// set `linger` to [`Duration::MAX`].
    #[must_use]
    pub fn batching(mut self, bytes: usize, linger: Duration) -> Self {
        (self.batch_bytes, self.linger) = (bytes.max(1), linger);
        self
    }

    /// Adds a record; before that, sends the current batch if it is full.
    ///
    /// # Errors
    /// The same as [`flush`](Self::flush).
    pub async fn push(&mut self, record: &[u8]) -> Result<(), Error> {
        let late = self.since.is_some_and(|since| since.elapsed() >= self.linger);
        let full = self.batch.len() + record.len() >= self.batch_bytes || self.format == Format::Whole;
        if self.records > 0 && (late || full) {
            self.flush().await?;
        }
        self.batch.extend_from_slice(record);
        if self.format != Format::Whole {
            self.batch.push(b'\n');
        }
        self.records += 1;
        self.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Sends the current batch; if the server cannot be reached or says to try again, keeps trying for a minute.
    /// Returns where the batch is stored; `None` if it was empty, or the server had it from an earlier run.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Refused`]: the batch is kept, and the next call sends it again.
    pub async fn flush(&mut self) -> Result<Option<Stored>, Error> {
        if self.records == 0 {
            return Ok(None);
        }
        let body = Bytes::copy_from_slice(&self.batch);
        let sequence = self.sequence.to_string();
        let path = format!("/v1/logs/{}/records", self.log);
        let headers = [
            (CONTENT_TYPE.as_str(), self.format.media_type()),
            ("producer-id", &self.id),
            ("producer-epoch", "0"),
            ("producer-seq", &sequence),
        ];
        let (begun, mut pause) = (Instant::now(), Pause::default());
        let stored = loop {
            let request = self.client.request(Method::POST, &path, &headers, body.clone())?;
            let answer = match self.client.send(request).await {
                Ok(answer) => self.client.body(answer).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => break Some(understood::<Stored>(&answer)?),
                // The producer is past this batch: an earlier run has stored it.
                Err(Error::Refused { expected: Some((0, expected)), .. }) if expected > self.sequence => {
                    break None;
                }
                Err(error) if error.is_temporary() && begun.elapsed() < PATIENCE => pause.wait().await,
                Err(error) => return Err(error),
            }
        };
        self.sequence += 1;
        self.stored += self.records;
        self.batch.clear();
        (self.records, self.since) = (0, None);
        Ok(stored)
    }

    /// The number of records that are known to be stored.
    pub fn stored(&self) -> u64 {
        self.stored
    }
}

/// Pauses that double, up to 2 s.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(Duration::from_millis(20))
    }
}

impl Pause {
    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(2));
    }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), with_cause)
}

fn understood<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|error| Error::Answer { reason: error.to_string() })
}

fn frames(body: &Bytes) -> Result<Vec<Record>, Error> {
    let (mut left, mut records) = (&body[..], Vec::new());
    while !left.is_empty() {
        let (frame, rest) = AnswerFrame::split(left)
            .ok_or_else(|| Error::Answer { reason: "it ends within a record".into() })?;
        let AnswerFrame { offset, time, json, value } = frame;
        records.push(Record { offset, time, json, value: body.slice_ref(value) });
        left = rest;
    }
    Ok(records)
}
