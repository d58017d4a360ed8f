//! Answers: whole ones, and those that are sent piece by piece.

use super::{
    memory::{FREE, Memory, Purpose},
    problem::Problem,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, combinators::UnsyncBoxBody};
use hyper::{
    Response,
    body::{Frame, SizeHint},
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// A whole answer, or one that is sent piece by piece.
pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;
pub(super) type Answer = Response<Body>;

/// A whole answer that is not small, within the memory for answers. It exists already: anything much larger than a few
/// KiB must be granted its memory before it is made.
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

/// Stands for the body of an answer when only its head is requested: it has nothing but a length, if the body has one.
pub(super) fn only_head(length: Option<u64>) -> Body {
    Either::Right(OnlyHead(length.map_or_else(SizeHint::new, SizeHint::with_exact)).boxed_unsync())
}

struct OnlyHead(SizeHint);

impl hyper::body::Body for OnlyHead {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        self.0
    }
}

/// A value as JSON, followed by a newline as written by Go's encoder.
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
