//! What a client accepts as an answer: which format of records, or the live tail.

use super::{
    formats::{Format, NAMES, accepted, names},
    params,
    problem::Problem,
};
use crate::Code;
use hyper::header::{ACCEPT, HeaderMap};

/// The media type of a live tail.
const EVENTS: &str = "text/event-stream";

/// What a reader of a log asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerKind {
    /// The live tail, as events.
    Tail,
    /// Records in this format.
    Records(Format),
}

/// What `Accept` asks for. The type that the client prefers is chosen, and among equally preferred ones the first; but
/// the tail takes precedence, since nobody names it by accident.
pub(super) fn wanted(headers: &HeaderMap) -> Result<AnswerKind, Problem> {
    let named = params::list(headers, ACCEPT).filter(|range| !range.is_empty());
    let mut ranges: Vec<(&str, u16)> = named.map(weighed).collect();
    if ranges.is_empty() {
        return Ok(AnswerKind::Records(Format::Ndjson)); // any type
    }
    ranges.sort_by_key(|&(_, weight)| std::cmp::Reverse(weight));
    let max = ranges.first().map_or(0, |&(_, weight)| weight);
    if max > 0 && ranges.iter().any(|&(range, weight)| weight == max && range.eq_ignore_ascii_case(EVENTS)) {
        return Ok(AnswerKind::Tail);
    }
    // Once for each name, and not for each range: a header section holds tens of thousands of ranges.
    let mut is_refused = [false; NAMES];
    for &(range, _) in ranges.iter().filter(|&&(range, weight)| weight == 0 && range != "*/*") {
        for (refused, (name, _)) in is_refused.iter_mut().zip(names()) {
            *refused |= fits(range, name);
        }
    }
    let offered = |&(range, _): &(&str, u16)| {
        let offered = names()
            .zip(is_refused)
            .find(|&((name, _), refused)| fits(range, name) && !(refused && range.ends_with("/*")));
        offered.map(|((_, format), _)| format)
    };
    let format = ranges.iter().take_while(|&&(_, weight)| weight > 0).find_map(offered).ok_or_else(|| {
        let detail = format!("Accept must have one of: {}, {EVENTS}", accepted());
        Problem::new(Code::NotAcceptable, detail)
    })?;
    Ok(AnswerKind::Records(format))
}

/// Whether a range includes a media type: the type itself, all types of its kind, or all types.
fn fits(range: &str, name: &'static str) -> bool {
    let kind = |of: &'static str| of.split('/').next().unwrap_or_default();
    range == "*/*"
        || range.eq_ignore_ascii_case(name)
        || range.strip_suffix("/*").is_some_and(|range| range.eq_ignore_ascii_case(kind(name)))
}

/// A media type of `Accept` without its parameters, and how much the client prefers it, from 0 (not at all) to 1000.
fn weighed(range: &str) -> (&str, u16) {
    let mut parts = range.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let weight = |part: &str| {
        let number = part.strip_prefix(['q', 'Q'])?.trim_start().strip_prefix('=')?;
        let number: f64 = number.trim().parse().ok()?;
        #[expect(clippy::cast_sign_loss, reason = "it is not negative")]
        (number >= 0.0).then(|| (number * 1000.0).min(1000.0) as u16)
    };
    (name, parts.find_map(weight).unwrap_or(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights (`q=0`) were ignored, types were compared case-sensitively, and `text/event-streamx` started a tail.
    #[test]
    fn the_type_that_is_wanted_most_is_answered_whatever_its_case() {
        let of = |accept: &str| {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            wanted(&headers).ok()
        };
        for (accept, expected) in [
            ("*/*", Some(AnswerKind::Records(Format::Ndjson))),
            ("application/json;q=0, text/plain", Some(AnswerKind::Records(Format::Text))),
            ("application/json;q=0.5, Text/Plain; Q=0.6", Some(AnswerKind::Records(Format::Text))),
            ("text/html, application/*;q=0.1", Some(AnswerKind::Records(Format::Ndjson))),
            ("TEXT/*", Some(AnswerKind::Records(Format::Text))),
            (
                "application/x-ndjson;q=0, application/ndjson;q=0, */*",
                Some(AnswerKind::Records(Format::Json)),
            ),
            ("application/*;q=0, */*", Some(AnswerKind::Records(Format::Text))),
            ("application/json;q=0", None),
            ("*/*;q=0.0", None),
            ("text/html", None),
            ("text/event-streamx", None),
            ("TEXT/Event-Stream", Some(AnswerKind::Tail)),
            ("application/json, text/event-stream", Some(AnswerKind::Tail)),
            ("application/json, text/event-stream;q=0.5", Some(AnswerKind::Records(Format::Json))),
            ("text/event-stream;q=0", None),
            ("", Some(AnswerKind::Records(Format::Ndjson))), // it was refused
            (" , ", Some(AnswerKind::Records(Format::Ndjson))),
            (", text/plain", Some(AnswerKind::Records(Format::Text))),
        ] {
            assert_eq!(of(accept), expected, "{accept}");
        }
    }

    /// 62 KB of ranges took a server thread 3.3 s: each was compared with each other one.
    #[test]
    fn a_header_section_full_of_ranges_is_parsed_once() {
        let accept = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, value.parse().unwrap());
            let begun = std::time::Instant::now();
            let wanted = wanted(&headers).ok();
            (wanted, begun.elapsed())
        };
        let refused =
            format!("{}{}application/*;q=0", "application/*,".repeat(2200), "b/*;q=0,".repeat(3900));
        let weights = "a;q=0.0000000000,".repeat(3800);
        for (value, expected) in [
            (refused.clone(), None),
            (format!("{refused},text/*;q=0.1"), Some(AnswerKind::Records(Format::Text))),
            (weights, None),
        ] {
            let (found, time) = accept(&value);
            assert_eq!(found, expected);
            assert!(time < std::time::Duration::from_millis(100), "{time:?}");
        }
    }
}
