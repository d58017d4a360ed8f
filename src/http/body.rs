//! Request bodies: read whole, within a size and a time, and parsed as JSON.

use super::{problem::Problem, server::Limits};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{StatusCode, body::Body};
use serde::Deserialize;

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
