//! Request bodies: read whole, within a size and a time, and parsed as JSON.

use super::{problem::Problem, server::Limits};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{StatusCode, body::Body};
use serde::Deserialize;
use std::io::Read;

/// Reads a body. What is announced to be too large is not read at all.
pub(super) async fn read<B>(body: B, limits: &Limits) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let limit = limits.body_bytes;
    let too_large = || {
        let detail = format!("the body is over the limit of {limit} bytes; send less at once");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(limits.body_time, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(Problem::bad_request("body_incomplete", format!("the body ended early: {error}")))
        }
        Err(_) => {
            let detail = format!("the body did not arrive within {} seconds", limits.body_time.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail))
        }
    }
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    pub(super) fn of(header: Option<&str>) -> Result<Self, Problem> {
        match header.map_or("identity", str::trim) {
            "identity" | "" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                "Content-Encoding must be gzip, zstd or identity",
            )),
        }
    }

    /// The body as it was before it was compressed, up to `limit` bytes.
    pub(super) fn decode(self, body: Bytes, limit: usize) -> Result<Bytes, Problem> {
        let broken = |error: std::io::Error| {
            let detail = format!("the body does not decode as its Content-Encoding says: {error}");
            Problem::bad_request("invalid_encoding", detail)
        };
        let mut decoded = Vec::new();
        let most = limit as u64 + 1;
        match self {
            Self::Identity => return Ok(body),
            Self::Gzip => {
                flate2::bufread::MultiGzDecoder::new(&body[..]).take(most).read_to_end(&mut decoded)
            }
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(&body[..])
                .and_then(|decoder| decoder.take(most).read_to_end(&mut decoded)),
        }
        .map_err(broken)?;
        if decoded.len() > limit {
            let detail =
                format!("the body is over the limit of {limit} bytes once decoded; send less at once");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
        }
        Ok(decoded.into())
    }
}

/// Parses a body: `invalid_json` for what is no JSON, `invalid_request` for JSON that is not what is `expected`.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], expected: &str) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            Problem::bad_request("invalid_request", format!("{error}; send {expected}"))
        } else {
            Problem::bad_request("invalid_json", format!("the body is not JSON: {error}; send {expected}"))
        }
    })
}
