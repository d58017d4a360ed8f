//! Which request goes where.

use super::{book, commit::Line, problem::Problem, server::Limits};
use crate::log::{Durability, Error, Log};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use std::sync::Arc;

pub(super) type Answer = Response<Full<Bytes>>;

/// What a request needs; one per runtime.
pub(super) struct Context {
    pub(super) log: Arc<Log>,
    pub(super) line: Arc<Line>,
    pub(super) limits: Arc<Limits>,
}

impl Context {
    /// Waits until an append may be acknowledged. With `Memory` it may at once: it can be read already.
    pub(super) async fn acknowledged(&self, offset: u64) -> Result<(), Error> {
        match self.log.durability() {
            Durability::Disk => self.line.durable(&self.log, offset).await,
            Durability::Memory => Ok(()),
        }
    }
}

/// Answers a request.
pub(super) async fn answer(context: Arc<Context>, request: Request<Incoming>) -> Answer {
    let done = match (request.uri().path(), request.method()) {
        ("/", &Method::POST) => book::post(&context, request).await,
        ("/", &Method::GET) => book::get(&context, request).await,
        ("/", _) => Err(Problem::method_not_allowed("GET, POST")),
        ("/healthz", &Method::GET) => health(&context),
        ("/healthz", _) => Err(Problem::method_not_allowed("GET")),
        _ => Err(Problem::new(StatusCode::NOT_FOUND, "not_found", "there are / and /healthz here")),
    };
    done.unwrap_or_else(|problem| {
        tracing::debug!(%problem, "request refused");
        problem.into_response()
    })
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

fn health(context: &Context) -> Result<Answer, Problem> {
    context.log.writable()?;
    Ok(json(&Health { status: "ok" }))
}

/// A value as JSON, with a newline at the end as Go's encoder writes one.
pub(super) fn json(value: &impl Serialize) -> Answer {
    let mut text = serde_json::to_vec(value).unwrap_or_default(); // structs of strings and numbers: cannot fail
    text.push(b'\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
