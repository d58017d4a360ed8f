//! Bodies that are JSON objects, such as settings: what they may be, and what is wrong with others.

use super::problem::{Problem, truncated};
use crate::{Code, import::BYTE_ORDER_MARK, json::Object};
use serde::{Deserialize, de::IgnoredAny};

/// The most bytes of a parser's message that are quoted, so that there is room for what to send instead.
const MAX_QUOTED_BYTES: usize = 300;

/// Parses a body: `invalid_json` if it is not JSON, `invalid_request` if it is JSON other than what is `expected`.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], expected: &str) -> Result<T, Problem> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let parsed = serde_json::from_slice(body);
    parsed.map(|Object(parsed)| parsed).map_err(|error| not_parsed(body, &error, expected))
}

/// What is wrong with a body: if it is not JSON at all, this is reported, whatever else is wrong.
pub(super) fn not_parsed(body: &[u8], error: &serde_json::Error, expected: &str) -> Problem {
    let not_json = |why: &dyn std::fmt::Display| {
        let why = truncated(why, MAX_QUOTED_BYTES);
        Problem::new(Code::InvalidJson, format_args!("the body is not JSON: {why}; send {expected}"))
    };
    // What is ignored is not checked to be UTF-8.
    if let Err(error) = std::str::from_utf8(body) {
        return not_json(&error);
    }
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(body) {
        return not_json(&error);
    }
    Problem::new(
        Code::InvalidRequest,
        format_args!("{}; send {expected}", truncated(error, MAX_QUOTED_BYTES)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `null` instead of one of several words was reported as not being JSON.
    #[test]
    fn json_of_the_wrong_shape_is_not_reported_as_invalid_json() {
        let code = |body: &str| {
            let refused = parse::<crate::store::LogSettings>(body.as_bytes(), "x").err();
            refused.map_or(String::new(), |problem| problem.to_string().split(':').next().unwrap().to_owned())
        };
        for body in [r#"{"values":null}"#, r#"{"values":7}"#, r#"{"x":1}"#, "[]", "null"] {
            assert_eq!(code(body), "invalid_request", "{body}");
        }
        for body in ["{", r#"{"values":nul}"#, r#"{"x":1"#, ""] {
            assert_eq!(code(body), "invalid_json", "{body}");
        }
        assert_eq!(code(r#"{"\u0076alues":"json"}"#), "");
        // What is not UTF-8 was reported as JSON of the wrong shape.
        let refused = parse::<crate::store::LogSettings>(b"[\"\xff\"]", "x").err();
        assert!(refused.unwrap().to_string().starts_with("invalid_json"));
    }
}
