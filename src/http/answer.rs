//! Answers: whole ones, and those that are sent piece by piece.

use super::headers::ACCEL_BUFFERING;
use crate::LogId;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::{Frame, SizeHint},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Serialize;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// An extension of answers that end only with their client, such as live tails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Endless;

pub(super) fn log_id(id: LogId) -> HeaderValue {
    HeaderValue::try_from(id.to_string()).unwrap_or_else(|_| HeaderValue::from_static("")) // hexadecimal: cannot fail
}

/// Tells proxies that they may not keep the answer, change it, or hold it back to collect more; nginx has a header of its
/// own for the last.
pub(super) fn keep_from_proxies(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
}

/// A whole answer, or one that is sent piece by piece.
pub(super) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, io::Error>>;
pub(super) type Answer = Response<Body>;

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Either::Left(Full::new(bytes.into()))
}

/// A body that is rendered piece by piece, each when the connection has room for it: `next` makes a piece, and what
/// makes the one after it; `None` ends the body. An error breaks off the answer, so that nobody considers it complete,
/// and so does a panic.
pub(super) fn piece_by_piece<S, F>(state: S, next: fn(S) -> F) -> Body
where
    S: 'static,
    F: Future<Output = io::Result<Option<(Bytes, S)>>> + Send + 'static,
{
    Either::Right(PieceByPiece { piece: Some(Box::pin(next(state))), next }.boxed_unsync())
}

struct PieceByPiece<S, F> {
    /// `None` once it has ended.
    piece: Option<Pin<Box<F>>>,
    next: fn(S) -> F,
}

impl<S, F: Future<Output = io::Result<Option<(Bytes, S)>>>> hyper::body::Body for PieceByPiece<S, F> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let Some(piece) = &mut this.piece else { return Poll::Ready(None) };
        let made = match ready!(piece.as_mut().poll(context)) {
            Ok(Some((bytes, state))) => {
                piece.set((this.next)(state));
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        };
        this.piece = None;
        Poll::Ready(made)
    }
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

/// The answer of a request that has removed something.
pub(super) fn no_content() -> Answer {
    let mut answer = Response::new(full(""));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::body::Body as _;
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        task::Waker,
    };

    /// A task that was to send the pieces, and panicked, left what looked like a whole answer.
    #[test]
    fn body_chunks_are_produced_on_demand_and_an_error_or_a_panic_does_not_end_the_body_cleanly() {
        static MADE: AtomicU32 = AtomicU32::new(0);
        async fn next((piece, end): (u32, Option<bool>)) -> io::Result<Option<(Bytes, (u32, Option<bool>))>> {
            MADE.store(piece, Ordering::Relaxed);
            match (piece, end) {
                (3, None) => Ok(None),
                (3, Some(false)) => Err(io::Error::other("broken off")),
                (3, Some(true)) => std::panic::resume_unwind(Box::new("as it was asked to")),
                _ => Ok(Some((Bytes::from(vec![piece as u8]), (piece + 1, end)))),
            }
        }
        for end in [None, Some(false), Some(true)] {
            MADE.store(0, Ordering::Relaxed);
            let mut body = piece_by_piece((1, end), next);
            let mut poll = || {
                let polled = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
                let Poll::Ready(frame) = polled else { panic!("nothing is waited for") };
                frame.map(|frame| frame.map(|frame| frame.into_data().unwrap()[0]).map_err(drop))
            };
            for piece in [1, 2] {
                assert_eq!((poll(), MADE.load(Ordering::Relaxed)), (Some(Ok(piece)), u32::from(piece)));
            }
            match end {
                None => assert_eq!((poll(), poll()), (None, None)),
                Some(false) => assert_eq!((poll(), poll()), (Some(Err(())), None)),
                Some(true) => {
                    let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut poll));
                    assert!(polled.is_err());
                }
            }
        }
    }
}
