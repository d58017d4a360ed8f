//! Which request goes where, and what all of them need.

use super::{
    book,
    commit::Lines,
    connection::{Arriving, Exchange},
    feed::Feeds,
    guard::Guard,
    logs,
    memory::{FREE, Memory, Purpose},
    metrics::Metrics,
    problem::Problem,
    records,
    server::Limits,
};
use crate::{
    log::{Durability, Error, Record},
    store::{self, LogSettings, OpenLog, Store},
};
use bytes::Bytes;
use http_body_util::{Either, Full, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde::Serialize;
use std::{
    io,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Instant, UNIX_EPOCH},
};
use tokio::sync::watch;

/// A whole answer, or one that is sent piece by piece.
pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;
pub(super) type Answer = Response<Body>;

/// What a request needs; one per runtime.
pub(super) struct Context {
    pub(super) store: Arc<Store>,
    pub(super) lines: Arc<Lines>,
    pub(super) feeds: Feeds,
    pub(super) limits: Arc<Limits>,
    pub(super) memory: Arc<Memory>,
    pub(super) guard: Arc<Guard>,
    pub(super) metrics: Arc<Metrics>,
    /// Whether the book's log has been recovered.
    pub(super) recovered: Arc<AtomicBool>,
    /// Turns true when the server shuts down: who waits ends the answer then.
    pub(super) stopped: watch::Receiver<bool>,
}

/// When an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ack {
    Durable,
    Memory,
}

impl Context {
    /// The log of this name. Where it has to be opened first, that is done off the runtime's thread.
    pub(super) async fn log(&self, name: &str) -> Result<Arc<OpenLog>, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log);
        }
        let name = name.to_owned();
        Ok(self.blocking(move |store| store.get(&name)).await??)
    }

    /// The settings of a log to append to, also of one that an append would create.
    pub(super) async fn settings(&self, name: &str) -> Result<LogSettings, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log.settings().clone());
        }
        let name = name.to_owned();
        match self.blocking(move |store| store.get(&name)).await? {
            Ok(log) => Ok(log.settings().clone()),
            Err(store::Error::NotFound { .. }) if self.limits.create_logs => Ok(LogSettings::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// [`log`](Self::log) for an append, which creates it where the server is set to.
    pub(super) async fn log_to_append(&self, name: &str) -> Result<Arc<OpenLog>, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log);
        }
        let (name, create) = (name.to_owned(), self.limits.create_logs);
        let found = self.blocking(move |store| match store.get(&name) {
            Err(store::Error::NotFound { .. }) if create => {
                match store.create(&name, &LogSettings::default()) {
                    Ok(_) | Err(store::Error::Exists { .. }) => store.get(&name),
                    Err(error) => Err(error),
                }
            }
            found => found,
        });
        Ok(found.await??)
    }

    /// Runs what may wait for a disk off the runtime's thread.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || run(&store)).await;
        done.map_err(|_| Problem::internal("the request failed unexpectedly"))
    }

    /// Reads one record; off the runtime's thread where it has to come from the disk.
    pub(super) async fn read(&self, log: &Arc<OpenLog>, offset: u64) -> Result<Record, Problem> {
        let found = if log.is_in_memory(offset) {
            log.read(offset)
        } else {
            let log = Arc::clone(log);
            self.blocking(move |_| log.read(offset)).await?
        };
        found.map_err(|error| Problem::from(error).of(log))?.ok_or_else(|| {
            let next = log.visible_offset();
            let detail = format!("there is no record at offset {offset} yet; the next one gets {next}");
            Problem::new(StatusCode::NOT_FOUND, "offset_not_found", detail).with("next_offset", next)
        })
    }

    /// Appends; where the disk is behind, waits a little for it.
    pub(super) async fn append<T>(
        &self,
        log: &Arc<OpenLog>,
        attempt: impl Fn() -> Result<T, Error>,
    ) -> Result<T, Problem> {
        match attempt() {
            Err(Error::WouldBlock) => {}
            done => return self.seen(log, done).await,
        }
        let retry = async {
            loop {
                let room = log.room(); // before the attempt, so that room made in between is not missed
                match attempt() {
                    Err(Error::WouldBlock) => room.await,
                    done => return done,
                }
            }
        };
        match tokio::time::timeout(self.limits.append_time, retry).await {
            Ok(done) => self.seen(log, done).await,
            Err(_) => Err(Problem::backpressure()),
        }
    }

    /// An append that is refused for what is in the log is told so once readers can see that. Otherwise a client that
    /// was told of a next offset could read and find less, and after a crash it would never have been there.
    async fn seen<T>(&self, log: &Arc<OpenLog>, done: Result<T, Error>) -> Result<T, Problem> {
        if let Err(Error::Unexpected { .. } | Error::ProducerOutOfOrder { .. }) = &done
            && let Some(last) = log.next_offset().checked_sub(1)
        {
            self.acknowledged(log, last, None).await?;
        }
        done.map_err(|error| Problem::from(error).of(log))
    }

    /// Waits until an append, whose last record is at `offset`, may be answered.
    pub(super) async fn acknowledged(
        &self,
        log: &Arc<OpenLog>,
        offset: u64,
        ack: Option<Ack>,
    ) -> Result<(), Problem> {
        let by_log = match log.durability() {
            Durability::Disk => Ack::Durable,
            Durability::Memory => Ack::Memory,
        };
        match ack.unwrap_or(by_log) {
            Ack::Durable => {
                self.metrics.waiters.inc();
                let done = self.lines.durable(log, offset).await;
                self.metrics.waiters.dec();
                done.map_err(|error| Problem::from(error).of(log))
            }
            Ack::Memory => {
                log.wait_published(offset);
                Ok(())
            }
        }
    }
}

/// Answers a request.
pub(super) async fn answer(
    context: &Arc<Context>,
    exchange: &Exchange,
    request: Request<Arriving>,
) -> Answer {
    let begun = Instant::now();
    let mut id = request.headers().get(REQUEST_ID).and_then(kept_id);
    let route = route_of(request.uri().path());
    let mut answer = answer_to(context, exchange, request).await.unwrap_or_else(|problem| {
        // Made only where somebody may ask about it: a header more is a twentieth of a small request's time.
        let request = id.get_or_insert_with(new_request_id).to_str().unwrap_or("not text");
        if problem.is_ours() {
            tracing::error!(request, route, %problem, "request failed");
        } else {
            if problem.is_overload() {
                context.memory.warn();
            }
            tracing::debug!(request, route, %problem, "request refused");
        }
        problem.into_response()
    });
    let (status, time) = (answer.status().as_u16(), begun.elapsed());
    tracing::debug!(request = ?id, route, status, ?time, "answered");
    context.metrics.answered(route, status, time);
    if let Some(id) = id {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
}

/// The longest name of a request that comes back.
const REQUEST_ID_BYTES: usize = 200;

/// A copy, so that it does not keep the whole header section that it came in.
fn kept_id(id: &HeaderValue) -> Option<HeaderValue> {
    Some(id.as_bytes())
        .filter(|id| id.len() <= REQUEST_ID_BYTES)
        .and_then(|id| HeaderValue::from_bytes(id).ok())
}

/// What a client calls its request, or we do; in the answer and in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A number that no other request of this process has, behind one that is likely this process's alone.
fn new_request_id() -> HeaderValue {
    static PROCESS: LazyLock<u32> =
        LazyLock::new(|| std::process::id() ^ UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    HeaderValue::try_from(format!("{:08x}-{number:x}", *PROCESS))
        .unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// The name of a path in metrics and logs.
fn route_of(path: &str) -> &'static str {
    let mut parts = path.strip_prefix("/v1/logs").unwrap_or_default().split('/').skip(1);
    match (path, parts.next(), parts.next(), parts.next(), parts.next()) {
        ("/", ..) => "/",
        ("/healthz", ..) => "/healthz",
        ("/readyz", ..) => "/readyz",
        ("/metrics", ..) => "/metrics",
        ("/openapi.json", ..) => "/openapi.json",
        ("/v1/logs", ..) => "/v1/logs",
        (_, Some(_), None, ..) => "/v1/logs/{log}",
        (_, Some(_), Some("records"), None, _) => "/v1/logs/{log}/records",
        (_, Some(_), Some("records"), Some(_), None) => "/v1/logs/{log}/records/{offset}",
        (_, Some(_), Some("trim"), None, _) => "/v1/logs/{log}/trim",
        _ => "other",
    }
}

async fn answer_to(
    context: &Arc<Context>,
    exchange: &Exchange,
    request: Request<Arriving>,
) -> Result<Answer, Problem> {
    if exchange.is_too_many() {
        return Err(Problem::overloaded());
    }
    context.guard.check(&request)?;
    #[cfg(test)]
    if request.uri().path() == "/panics" {
        super::panics::here(context, request).await?;
        return Ok(health());
    }
    match (request.uri().path(), request.method()) {
        ("/", &Method::POST) => book::post(context, request).await,
        ("/healthz", &Method::GET) => Ok(health()),
        // In a box: hyper moves the answer's future about, which for the largest of these takes longer than the box.
        _ => Box::pin(answer_to_other(context, request)).await,
    }
}

async fn answer_to_other(context: &Arc<Context>, request: Request<Arriving>) -> Result<Answer, Problem> {
    match (request.uri().path(), request.method()) {
        ("/", &Method::GET) => return book::get(context, request).await,
        ("/", _) => return Err(Problem::method_not_allowed("GET, POST")),
        ("/readyz", &Method::GET) => return ready(context).await,
        ("/metrics", &Method::GET) => return context.metrics.render(&context.memory),
        ("/openapi.json", &Method::GET) => return Ok(openapi()),
        ("/healthz" | "/readyz" | "/metrics" | "/openapi.json", _) => {
            return Err(Problem::method_not_allowed("GET"));
        }
        _ => {}
    }
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let not_found = || Problem::new(StatusCode::NOT_FOUND, "not_found", "see docs/api.md for what is here");
    let rest = path.strip_prefix("/v1/logs").ok_or_else(not_found)?;
    let parts: Vec<&str> = rest.split('/').skip(1).collect();
    // Bodies that nobody reads are let go of at once: what came of them is not kept while the request waits.
    match (&parts[..], &method) {
        ([], &Method::GET) if rest.is_empty() => logs::list(context, &request.map(drop)),
        ([], _) if rest.is_empty() => Err(Problem::method_not_allowed("GET")),
        ([name], &Method::PUT) => logs::create(context, name, request).await,
        ([name], &Method::GET) => {
            drop(request);
            logs::describe(context, name).await
        }
        ([name], &Method::DELETE) => {
            drop(request);
            logs::delete(context, name).await
        }
        ([_], _) => Err(Problem::method_not_allowed("DELETE, GET, PUT")),
        ([name, "records"], &Method::POST) => records::append(context, name, request).await,
        ([name, "records"], &Method::GET) => records::range(context, name, request.map(drop)).await,
        ([_, "records"], _) => Err(Problem::method_not_allowed("GET, POST")),
        ([name, "records", offset], &Method::GET) => {
            records::one(context, name, offset, request.map(drop)).await
        }
        ([_, "records", _], _) => Err(Problem::method_not_allowed("GET")),
        ([name, "trim"], &Method::POST) => logs::trim(context, name, request).await,
        ([_, "trim"], _) => Err(Problem::method_not_allowed("POST")),
        _ => Err(not_found()),
    }
}

/// The API as a document; `tests/openapi.rs` holds it against what the server does.
fn openapi() -> Answer {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
        include_str!("openapi.json").replace("VERSION", env!("CARGO_PKG_VERSION")).into_bytes().into()
    });
    let mut answer = Response::new(full(DOCUMENT.clone()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// The process answers.
fn health() -> Answer {
    json(&Health { status: "ok" })
}

/// The book's log can be written; the problem says why not.
async fn ready(context: &Context) -> Result<Answer, Problem> {
    if !context.recovered.load(Ordering::Acquire) {
        return Err(Problem::recovering());
    }
    context.log(book::LOG).await?.writable()?;
    Ok(json(&Health { status: "ready" }))
}

/// A whole answer that is not small, within the memory for answers. It is made already: what is much larger than a few KiB
/// asks for that before.
pub(super) fn large(memory: &Arc<Memory>, bytes: Vec<u8>) -> Result<Body, Problem> {
    let mut grant = memory.grant(Purpose::Answer);
    if bytes.len() > FREE {
        grant.cover(bytes.len())?;
    }
    Ok(full(grant.hold(bytes)))
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Either::Left(Full::new(bytes.into()))
}

/// A value as JSON, with a newline at the end as Go's encoder writes one.
pub(super) fn json(value: &impl Serialize) -> Answer {
    json_of(full(json_text(value)))
}

pub(super) fn json_text(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(value).unwrap_or_default(); // structs of strings and numbers: cannot fail
    text.push(b'\n');
    text
}

pub(super) fn json_of(body: Body) -> Answer {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
