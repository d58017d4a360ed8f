//! Answers to what is not HTTP. hyper answers by itself, with a head alone, what it cannot parse, so that no handler
//! sees it: such a head is recognised when it is written, and a problem document is written instead.

use super::problem::Problem;
use crate::Code;

/// What an answer without a body has in its head, as hyper writes it.
const NO_BODY: &str = "content-length: 0\r\n";

/// What is to be written instead of this head; `None` if it is not one of those that hyper makes by itself. Our own
/// refusals have a body, or at least the type that it would have.
pub(super) fn instead_of(head: &[u8]) -> Option<Vec<u8>> {
    let (code, detail) = match (head.get(..8)?, head.get(8..12)?) {
        (b"HTTP/1.1" | b"HTTP/1.0", b" 400") => (
            Code::InvalidHttp,
            "the request is not HTTP/1.1: its first line, or a field of its header section, is malformed",
        ),
        (b"HTTP/1.1" | b"HTTP/1.0", b" 414") => (Code::AddressTooLong, "the address is too long"),
        (b"HTTP/1.1" | b"HTTP/1.0", b" 431") => (Code::HeaderTooLarge, HEADER_TOO_LARGE),
        _ => return None,
    };
    let head = std::str::from_utf8(head).ok().filter(|head| head.ends_with("\r\n\r\n"))?;
    if !head.contains(NO_BODY) || head.contains("content-type") {
        return None;
    }
    let (headers, body) = Problem::new(code, detail).into_parts();
    let fields = headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap_or("")));
    let fields = fields.chain([format!("content-length: {}\r\n", body.len())]).collect::<String>();
    Some([head.replacen(NO_BODY, &fields, 1).into_bytes(), body].concat())
}

/// What is wrong with a header section that is too large.
pub(super) const HEADER_TOO_LARGE: &str =
    "the header section is too large, has too many fields, or a number that is too large";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_heads_of_refusals_without_a_body_become_problem_documents() {
        let head = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let text = String::from_utf8(instead_of(head.as_bytes()).unwrap()).unwrap();
        let (new, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(body.contains(r#""status":400,"code":"invalid_http","#), "{body}");
        assert!(new.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"), "{new}");
        for field in [&*format!("content-length: {}", body.len()), "content-type: application/problem+json"] {
            assert_eq!(new.lines().filter(|line| *line == field).count(), 1, "{new}");
        }
        for other in [
            &head.replace("400", "200"),
            &head.replace("400", "404"),
            &head.replace("length: 0", "length: 5"),
            &head.replace("date: x", "content-type: application/problem+json"),
            &head[..head.len() - 2],
            "",
        ] {
            assert_eq!(instead_of(other.as_bytes()), None, "{other}");
        }
    }
}
