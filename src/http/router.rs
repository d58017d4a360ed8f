//! Dispatches requests.

use super::{
    answer::{Answer, full, json},
    book,
    connection::{Exchange, RequestBody},
    context::{Asker, Context, DEFAULT_LOG},
    cursors,
    headers::REQUEST_ID,
    logs, params,
    problem::Problem,
    producers, range, records,
};
use crate::{
    Code,
    reports::{Reports, report},
};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Body as _,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Serialize;
use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, UNIX_EPOCH},
};

/// Answers a request.
pub(super) async fn answer(
    context: &Arc<Context>,
    exchange: &Exchange,
    mut request: Request<RequestBody>,
) -> Answer {
    let begun = Instant::now();
    let only_head = request.method() == Method::HEAD;
    if only_head {
        *request.method_mut() = Method::GET;
    }
    let mut id = request.headers().get(REQUEST_ID).and_then(kept_id);
    let route = Route::parse(request.uri().path());
    let label = route.as_ref().map_or("other", Route::label);
    let asker = Asker { share: &exchange.connection.share, only_head };
    let mut answer = answer_to(context, exchange, asker, route, request).await.unwrap_or_else(|problem| {
        // Generated only if a person may ask about it: one more header is a twentieth of a small request's time.
        let request = id.get_or_insert_with(new_request_id).to_str().unwrap_or("not text");
        if problem.is_ours() {
            static REPORTS: Reports = Reports::new();
            report!(REPORTS, problem.code(), error, { request, route = label, %problem }, "request failed");
        } else {
            if problem.is_overload() || problem.is_shortage() {
                context.memory.warn(&problem);
            }
            tracing::debug!(request, route = label, %problem, "request refused");
        }
        problem.into_response()
    });
    let (status, time) = (answer.status().as_u16(), begun.elapsed());
    tracing::debug!(request = ?id, route = label, status, ?time, "answered");
    context.metrics.answered(label, status, time);
    if only_head {
        answer = without_body(answer);
    }
    if let Some(id) = id {
        answer.headers_mut().insert(REQUEST_ID, id);
    }
    answer
}

/// The answer to a HEAD, made from the answer to a GET.
fn without_body(mut answer: Answer) -> Answer {
    let has_length = !matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if let Some(length) = answer.body().size_hint().exact().filter(|_| has_length) {
        answer.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    answer.map(|_| full(""))
}

/// The longest request id, in bytes, that is returned.
const MAX_REQUEST_ID_BYTES: usize = 200;

/// A copy, so that the id does not keep alive the whole header section that it came in. An empty one is none.
fn kept_id(id: &HeaderValue) -> Option<HeaderValue> {
    Some(id.as_bytes())
        .filter(|id| (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()))
        .and_then(|id| HeaderValue::from_bytes(id).ok())
}

/// A number unique within this process, after a prefix that is probably unique to this process.
fn new_request_id() -> HeaderValue {
    static PROCESS: LazyLock<u32> =
        LazyLock::new(|| std::process::id() ^ UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos()));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    HeaderValue::try_from(format!("{:08x}-{number:x}", *PROCESS))
        .unwrap_or_else(|_| HeaderValue::from_static("-"))
}

/// What a path refers to. The names are copies, so that they do not keep alive the header section that they came in.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Route {
    Book,
    Health,
    Ready,
    Metrics,
    OpenApi,
    Logs,
    Log { name: String },
    Records { name: String },
    Record { name: String, offset: String },
    Trim { name: String },
    Producer { name: String, id: String },
    Cursors { name: String },
    Cursor { name: String, cursor: String },
}

impl Route {
    /// `None` if the path does not exist.
    fn parse(path: &str) -> Option<Self> {
        let route = match path {
            "/" => Self::Book,
            "/healthz" => Self::Health,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/openapi.json" => Self::OpenApi,
            "/v1/logs" => Self::Logs,
            _ => {
                let mut parts = path.strip_prefix("/v1/logs/")?.split('/');
                let name = parts.next()?.to_owned();
                match (parts.next(), parts.next(), parts.next()) {
                    (None, ..) => Self::Log { name },
                    (Some("records"), None, _) => Self::Records { name },
                    (Some("records"), Some(offset), None) => Self::Record { name, offset: offset.into() },
                    (Some("trim"), None, _) => Self::Trim { name },
                    (Some("cursors"), None, _) => Self::Cursors { name },
                    (Some("cursors"), Some(cursor), None) => Self::Cursor { name, cursor: cursor.into() },
                    (Some("producers"), Some(id), None) => Self::Producer { name, id: id.into() },
                    _ => return None,
                }
            }
        };
        Some(route)
    }

    /// The name of the route in metrics, the server's log and `/openapi.json`.
    fn label(&self) -> &'static str {
        match self {
            Self::Book => "/",
            Self::Health => "/healthz",
            Self::Ready => "/readyz",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
            Self::Logs => "/v1/logs",
            Self::Log { .. } => "/v1/logs/{log}",
            Self::Records { .. } => "/v1/logs/{log}/records",
            Self::Record { .. } => "/v1/logs/{log}/records/{offset}",
            Self::Trim { .. } => "/v1/logs/{log}/trim",
            Self::Producer { .. } => "/v1/logs/{log}/producers/{id}",
            Self::Cursors { .. } => "/v1/logs/{log}/cursors",
            Self::Cursor { .. } => "/v1/logs/{log}/cursors/{name}",
        }
    }

    /// The methods that it has, as `Allow` lists them; HEAD wherever there is GET.
    fn methods(&self) -> &'static str {
        match self {
            Self::Book | Self::Records { .. } | Self::Producer { .. } => "GET, HEAD, POST",
            Self::Health | Self::Ready | Self::Metrics | Self::OpenApi | Self::Logs | Self::Record { .. } => {
                "GET, HEAD"
            }
            Self::Log { .. } | Self::Cursor { .. } => "DELETE, GET, HEAD, PUT",
            Self::Cursors { .. } => "DELETE, GET, HEAD",
            Self::Trim { .. } => "POST",
        }
    }
}

async fn answer_to(
    context: &Arc<Context>,
    exchange: &Exchange,
    asker: Asker<'_>,
    route: Option<Route>,
    request: Request<RequestBody>,
) -> Result<Answer, Problem> {
    if exchange.is_too_many() && !matches!(route, Some(Route::Health | Route::Ready)) {
        return Err(Problem::too_many_streams());
    }
    context.guard.check(&request)?;
    // Only a body of unknown length can have a Transfer-Encoding.
    if request.body().size_hint().upper().is_none() {
        check_framing(request.headers())?;
    }
    #[cfg(test)]
    if request.uri().path() == "/panics" {
        super::panics::here(context, request).await?;
        return Ok(health());
    }
    let route = route.ok_or_else(|| {
        Problem::new(Code::NotFound, "there is no such route; GET /openapi.json has all of them")
    })?;
    match (&route, request.method()) {
        (Route::Book, &Method::POST) => book::post(context, asker, request).await,
        (Route::Health, &Method::GET) => Ok(health()),
        // Boxed: hyper moves the answer's future around, which for the largest of these takes longer than the
        // allocation.
        _ => Box::pin(answer_to_other(context, asker, route, request)).await,
    }
}

/// Refuses a body that is compressed for the transfer (`Transfer-Encoding: gzip, chunked`), because it would be stored
/// compressed.
fn check_framing(headers: &HeaderMap) -> Result<(), Problem> {
    match params::header(headers, "transfer-encoding")? {
        Some(coding) if !coding.eq_ignore_ascii_case("chunked") => {
            Err(Problem::new(Code::InvalidRequest, "Transfer-Encoding must be chunked, or not be there"))
        }
        _ => Ok(()),
    }
}

/// Answers to all but the two that [`answer_to`] does by itself.
async fn answer_to_other(
    context: &Arc<Context>,
    asker: Asker<'_>,
    route: Route,
    request: Request<RequestBody>,
) -> Result<Answer, Problem> {
    use Route::{Book, Cursor, Cursors, Log, Logs, Metrics, OpenApi, Producer, Ready, Record, Records, Trim};
    // What is not needed of a request is dropped at once, and not kept while it waits: its header section, and what has
    // arrived of a body that nobody reads.
    match (route, request.method()) {
        (Book, &Method::GET) => book::get(context, asker, request).await,
        (Ready, &Method::GET) => ready(context, asker).await,
        (Metrics, &Method::GET) => context.metrics.render(&context.memory),
        (OpenApi, &Method::GET) => Ok(openapi(context)),
        (Logs, &Method::GET) => logs::list(context, &request.map(drop)),
        (Log { name }, &Method::PUT) => logs::create(context, asker, &name, request).await,
        (Log { name }, &Method::GET) => {
            without_parameters(request)?;
            logs::describe(context, asker, &name).await
        }
        (Log { name }, &Method::DELETE) => logs::delete(context, asker, &name, request.map(drop)).await,
        (Trim { name }, &Method::POST) => logs::trim(context, asker, &name, request).await,
        (Records { name }, &Method::POST) => records::append(context, asker, &name, request).await,
        (Records { name }, &Method::GET) => range::range(context, asker, &name, request.map(drop)).await,
        (Record { name, offset }, &Method::GET) => {
            records::one(context, asker, &name, &offset, request.map(drop)).await
        }
        (Producer { name, id }, &Method::POST) => {
            producers::begin(context, asker, &name, &id, request.map(drop)).await
        }
        (Producer { name, id }, &Method::GET) => {
            without_parameters(request)?;
            producers::describe(context, asker, &name, &id).await
        }
        (Cursors { name }, &Method::GET) => {
            without_parameters(request)?;
            cursors::list(context, asker, &name).await
        }
        (Cursors { name }, &Method::DELETE) => {
            cursors::remove_all(context, asker, &name, request.map(drop)).await
        }
        (Cursor { name, cursor }, &Method::PUT) => {
            cursors::set(context, asker, &name, &cursor, request).await
        }
        (Cursor { name, cursor }, &Method::GET) => {
            without_parameters(request)?;
            cursors::describe(context, asker, &name, &cursor).await
        }
        (Cursor { name, cursor }, &Method::DELETE) => {
            cursors::remove(context, asker, &name, &cursor, request.map(drop)).await
        }
        (route, _) => Err(Problem::method_not_allowed(route.methods())),
    }
}

/// Refuses all parameters, and drops the request.
fn without_parameters<B>(request: Request<B>) -> Result<(), Problem> {
    params::none(&request)?;
    drop(request); // so that its header section is not held while waiting
    Ok(())
}

/// The document at `/openapi.json`, with the limits of this server; `tests/program/openapi.rs` compares it with what the server
/// does.
fn openapi(context: &Context) -> Answer {
    let made = || {
        let codes: Vec<String> = Code::ALL.iter().map(|code| format!("{:?}", code.as_str())).collect();
        let segment_bytes = context.store.options().log.largest_segment_bytes().to_string();
        let document = include_str!("openapi.json").replace("VERSION", env!("CARGO_PKG_VERSION"));
        let document = document.replace("\"SEGMENT_BYTES\"", &segment_bytes);
        document.replace("\"CODES\"", &codes.join(", ")).into_bytes().into()
    };
    let mut answer = Response::new(full(context.document.get_or_init(made).clone()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// Says that the process answers.
fn health() -> Answer {
    json(&Health { status: "ok" })
}

/// Says whether the book's log can be written or created; otherwise the problem says why not.
async fn ready(context: &Context, asker: Asker<'_>) -> Result<Answer, Problem> {
    if !context.recovered.load(Ordering::Acquire) {
        return Err(Problem::new(Code::Recovering, "the log is being recovered; ask again"));
    }
    match context.log(asker.share, DEFAULT_LOG).await {
        Ok(log) => log.writable()?,
        Err(problem) if problem.is_of_no_log() => {} // deleted: the next append creates it
        Err(problem) => return Err(problem),
    }
    Ok(json(&Health { status: "ready" }))
}
