//! Errors as clients see them: RFC 9457 problem documents with a stable `code`.

use super::router::{Answer, full};
use crate::{
    log::Error,
    store::{self, OpenLog},
};
use hyper::{
    Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde::Serialize;
use std::fmt::{self, Display, Write};

const OVERLOADED: &str = "overloaded";
const DISK_FULL: &str = "disk_full";
const CANNOT_GROW: &str = "cannot_grow";
const RECOVERING: &str = "recovering";

/// Bytes of a problem's detail: as JSON up to six times as many, so that every refusal stays below 4 KiB.
const DETAIL: usize = 512;

/// The text of something, cut to so many bytes while it is made: a client's own text may be in it, as long as its body.
pub(super) fn cut(text: impl Display, most: usize) -> String {
    struct Cut(String, usize);
    impl Write for Cut {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let left = self.1 - self.0.len();
            if text.len() <= left {
                self.0.push_str(text);
                return Ok(());
            }
            let end = (0..=left).rev().find(|&end| text.is_char_boundary(end));
            self.0.push_str(&text[..end.unwrap_or(0)]);
            Err(fmt::Error) // no more of it
        }
    }
    let mut cut = Cut(String::new(), most);
    if write!(cut, "{text}").is_err() {
        cut.0.push('…');
    }
    cut.0
}

/// Why a request was not done. Nothing was stored, except where the code is `writer_failed`.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {detail}")]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    /// `Allow` or `Retry-After`.
    header: Option<(HeaderName, &'static str)>,
    /// What a program needs to go on, such as the next offset.
    numbers: Vec<(&'static str, u64)>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    #[serde(flatten)]
    numbers: std::collections::BTreeMap<&'static str, u64>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Display) -> Self {
        Self { status, code, detail: cut(detail, DETAIL), header: None, numbers: Vec::new() }
    }

    /// Whether it is the server that failed, and somebody should look: at this request, and not at what it is one of
    /// thousands for, which is told where it begins.
    pub(super) fn is_ours(&self) -> bool {
        let told = matches!(self.code, OVERLOADED | DISK_FULL | CANNOT_GROW | RECOVERING);
        self.status.is_server_error() && !told
    }

    /// What it is of this log: what fails because the log was deleted meanwhile is told as for one that is not there.
    pub(super) fn of(self, log: &OpenLog) -> Self {
        if self.status.is_server_error() && log.is_deleted() {
            store::Error::NotFound { name: log.name().to_owned() }.into()
        } else {
            self
        }
    }

    /// Whether it is for want of memory: clients make that happen, as often as they like.
    pub(super) fn is_overload(&self) -> bool {
        self.code == OVERLOADED
    }

    /// The request cannot be understood: 400.
    pub(super) fn bad_request(code: &'static str, detail: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// Adds a member with a number to the document.
    pub(super) fn with(mut self, name: &'static str, number: u64) -> Self {
        self.numbers.push((name, number));
        self
    }

    /// A bug of ours, such as a panic while reading.
    pub(super) fn internal(detail: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    pub(super) fn method_not_allowed(allowed: &'static str) -> Self {
        let detail = format!("use one of: {allowed}");
        let mut problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail);
        problem.header = Some((ALLOW, allowed));
        problem
    }

    /// The disk is behind: 429, to be tried again in a second.
    pub(super) fn backpressure() -> Self {
        let detail = "the disk is behind and memory is used up; send the request again a little later";
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "backpressure", detail);
        problem.header = Some((RETRY_AFTER, "1"));
        problem
    }

    /// The server holds as much for its clients as it may: 503, to be tried again in a second.
    pub(super) fn overloaded() -> Self {
        let detail =
            "the server holds as much for its clients as it may; send the request again a little later";
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, detail);
        problem.header = Some((RETRY_AFTER, "1"));
        problem
    }

    /// The book's log is not open yet: 503, to be tried again in a second.
    pub(super) fn recovering() -> Self {
        let mut problem =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, RECOVERING, "the log is being recovered; ask again");
        problem.header = Some((RETRY_AFTER, "1"));
        problem
    }

    /// The system lacks something for the moment: 503, to be tried again in a second.
    fn lacking(code: &'static str, error: &Error) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error);
        problem.header = Some((RETRY_AFTER, "1"));
        problem
    }

    pub(super) fn into_response(self) -> Answer {
        let document = Document {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            numbers: self.numbers.into_iter().collect(),
        };
        let mut text = serde_json::to_vec(&document).unwrap_or_default(); // strings and a number: cannot fail
        text.push(b'\n');
        let mut response = Response::new(full(text));
        *response.status_mut() = self.status;
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::WouldBlock => return Self::backpressure(),
            Error::Unexpected { next, .. } => {
                let next = *next;
                return Self::new(StatusCode::PRECONDITION_FAILED, "unexpected_offset", &error)
                    .with("next_offset", next);
            }
            Error::Trimmed { first, .. } => {
                let first = *first;
                return Self::new(StatusCode::GONE, "offset_trimmed", &error).with("first_offset", first);
            }
            Error::ProducerOutOfOrder { expected_epoch, expected_sequence } => {
                let (epoch, sequence) = (u64::from(*expected_epoch), *expected_sequence);
                return Self::new(StatusCode::CONFLICT, "producer_out_of_order", &error)
                    .with("expected_epoch", epoch)
                    .with("expected_seq", sequence);
            }
            Error::BadProducer => (StatusCode::BAD_REQUEST, "invalid_producer"),
            Error::EmptyBatch => (StatusCode::BAD_REQUEST, "empty_batch"),
            Error::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "record_too_large"),
            Error::Damaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "record_damaged"),
            Error::ReadOnly { .. } => (StatusCode::SERVICE_UNAVAILABLE, "read_only"),
            Error::Failed { .. } => (StatusCode::SERVICE_UNAVAILABLE, "writer_failed"),
            Error::Closed => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Error::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, DISK_FULL),
            Error::CannotGrow { .. } => return Self::lacking(CANNOT_GROW, &error),
            error if error.is_full() => (StatusCode::INSUFFICIENT_STORAGE, DISK_FULL),
            error if error.is_transient() => return Self::lacking("out_of_resources", error),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self::new(status, code, &error)
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        let (status, code) = match error {
            store::Error::Log(error) => return error.into(),
            store::Error::NotFound { .. } => (StatusCode::NOT_FOUND, "log_not_found"),
            store::Error::BadName { .. } => (StatusCode::BAD_REQUEST, "invalid_log_name"),
            store::Error::Exists { .. } => (StatusCode::CONFLICT, "log_exists"),
            store::Error::BadSettings { .. } => (StatusCode::BAD_REQUEST, "invalid_settings"),
        };
        Self::new(status, code, &error)
    }
}
