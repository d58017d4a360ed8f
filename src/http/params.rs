//! Parameters, and other small parts of a request's head.

use super::problem::Problem;
use crate::{Code, LogId};
use hyper::{
    Request,
    header::{HeaderMap, HeaderName},
};
use std::{
    borrow::Cow,
    ops::RangeInclusive,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A parameter's name and value.
type Parameter<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The first characters of a client's own text, to be quoted in a problem's detail.
pub(super) fn beginning(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

/// The query's parameters, decoded. A repeated parameter is refused: an intermediate proxy may use the other value. All
/// previous names are kept to detect that, so callers must stop at the first unknown one.
pub(super) fn of<B>(request: &Request<B>) -> impl Iterator<Item = Result<Parameter<'_>, Problem>> {
    let mut seen = Vec::new();
    form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).map(move |(name, value)| {
        if seen.contains(&name) {
            let detail = format!("{:?} occurs more than once", beginning(&name, 50));
            return Err(Problem::new(Code::InvalidQuery, detail));
        }
        seen.push(name.clone());
        Ok((name, value))
    })
}

/// Refuses all parameters.
pub(super) fn none<B>(request: &Request<B>) -> Result<(), Problem> {
    of(request).next().map_or(Ok(()), |parameter| Err(unknown(&parameter?.0, "none")))
}

/// The answer to an unknown parameter.
pub(super) fn unknown(name: &str, known: &str) -> Problem {
    let name = beginning(name, 50);
    Problem::new(
        Code::InvalidQuery,
        format!("{name:?} is not a parameter of this request; its parameters are: {known}"),
    )
}

/// The answer to an invalid value of a parameter.
pub(super) fn invalid(name: &str, expected: &str) -> Problem {
    Problem::new(Code::InvalidQuery, format!("{name} must be {expected}"))
}

/// The answer to two parameters that specify the same thing.
pub(super) fn one_of(names: &str) -> Problem {
    Problem::new(Code::InvalidQuery, format!("send one of {names}: each says where to begin"))
}

/// A whole number within a range.
pub(super) fn number(name: &str, value: &str, range: RangeInclusive<u64>) -> Result<u64, Problem> {
    let expected = || format!("a whole number from {} to {}", range.start(), range.end());
    parse_number(value, &range).ok_or_else(|| invalid(name, &expected()))
}

/// A whole number within a range, of digits only; `None` if it is none.
pub(super) fn parse_number(value: &str, range: &RangeInclusive<u64>) -> Option<u64> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { value.parse().ok() } else { None };
    number.filter(|number| range.contains(number))
}

/// `true` or `false`.
pub(super) fn yes_or_no(name: &str, value: &str) -> Result<bool, Problem> {
    value.parse().map_err(|_| invalid(name, "true or false"))
}

/// The id of a log.
pub(super) fn log_id(value: &str) -> Result<LogId, Problem> {
    LogId::parse(value).ok_or_else(|| invalid("log_id", "the `id` that GET /v1/logs/{log} returns"))
}

/// The parameter called `known`, of a request that has no other.
pub(super) fn only<B, T>(
    request: &Request<B>,
    known: &str,
    parse: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Option<T>, Problem> {
    let mut found = None;
    for parameter in of(request) {
        match parameter? {
            (name, value) if name == known => found = Some(parse(&value)?),
            (name, _) => return Err(unknown(&name, known)),
        }
    }
    Ok(found)
}

/// The id that the log must have, of a request that has no other parameter.
pub(super) fn only_log_id<B>(request: &Request<B>) -> Result<Option<LogId>, Problem> {
    only(request, "log_id", log_id)
}

/// A duration such as `30s` or `500ms`, of at most `max`.
pub(super) fn duration(name: &str, value: &str, max: Duration) -> Result<Duration, Problem> {
    parse_duration(value)
        .filter(|duration| *duration <= max)
        .ok_or_else(|| invalid(name, &format!("a time such as 30s or 500ms, at most {}s", max.as_secs())))
}

/// A duration such as `15m`. An `M` would be months, which nobody means who writes `15M`.
fn parse_duration(value: &str) -> Option<Duration> {
    let has_capitals = value.bytes().any(|byte| byte.is_ascii_uppercase());
    humantime::parse_duration(value).ok().filter(|_| !has_capitals)
}

/// A point in time; see [`parse_time`]. A number that must be meant in seconds is refused: in milliseconds, it would be in
/// 1970 to 1973.
pub(super) fn time(name: &str, value: &str) -> Result<u64, Problem> {
    if SECONDS.contains(&value.len())
        && let Some(millis) = parse_number(value, &(0..=u64::MAX))
    {
        let detail =
            format!("in milliseconds since 1970, which have 12 digits or more: {millis} s are {millis}000");
        return Err(invalid(name, &detail));
    }
    parse_time(value).ok_or_else(|| invalid(name, TIMES))
}

/// How many digits a number has that is taken for seconds since 1970, from March 1973 to the year 5138.
const SECONDS: RangeInclusive<usize> = 9..=11;

/// What [`parse_time`] accepts, for messages.
pub const TIMES: &str = "a time by RFC 3339 such as 2026-01-02T03:04:05.678Z or …+02:00, a date, milliseconds since 1970, or how \
     long ago, such as 15m";

/// A point in time as the API takes it, in milliseconds since 1970: by RFC 3339 with any offset, a date alone (its
/// beginning in UTC), such a number, or how long ago it is. What is before 1970 is 1970.
pub fn parse_time(value: &str) -> Option<u64> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return value.parse().ok();
    }
    if let Some(ago) = parse_duration(value) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return Some(now.saturating_sub(ago).as_millis() as u64);
    }
    // In a query a plus that is not encoded is a space.
    let value = value.replacen(' ', "+", 1);
    let value = if value.len() == DATE_LENGTH { value + "T00:00:00Z" } else { value };
    let at = value.parse::<jiff::Timestamp>().ok().filter(|_| ends_with_offset(&value))?;
    Some(u64::try_from(at.as_millisecond()).unwrap_or(0))
}

/// Whether a time ends with `Z`, or hours and minutes of a day as RFC 3339 has them; its digits are verified otherwise.
fn ends_with_offset(time: &str) -> bool {
    match time.as_bytes().last_chunk() {
        Some([_, _, _, _, _, b'Z' | b'z']) => true,
        Some([b'+' | b'-', hours @ .., b':', _, _]) => hours <= b"23",
        _ => false,
    }
}

/// The length of a date, as in 2026-01-02.
const DATE_LENGTH: usize = 10;

/// The value of a header as text; a header that occurs more than once is refused.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match (value.to_str(), values.next()) {
        (Ok(value), None) => Ok(Some(value)),
        (Err(_), None) => Err(Problem::new(Code::InvalidRequest, format!("the header {name} is not text"))),
        (_, Some(_)) => {
            Err(Problem::new(Code::InvalidRequest, format!("the header {name} occurs more than once")))
        }
    }
}

/// The values of a header that is a list, in one or more fields; fields that are not text are left out.
pub(super) fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a time in UTC was taken, and one before 1970 was said not to be one.
    #[test]
    fn times_are_accepted_as_people_and_programs_write_them() {
        let at = 1_767_323_045_678;
        for (value, millis) in [
            ("2026-01-02T03:04:05.678Z", at),
            ("2026-01-02t03:04:05.678z", at),
            ("2026-01-02T05:04:05.678+02:00", at),
            ("2026-01-02T05:04:05.678 02:00", at), // as `+` arrives
            ("2026-01-01T22:04:05.678-05:00", at),
            ("2026-01-03T03:03:05.678+23:59", at),
            ("2026-01-02T00:00:00Z", 1_767_312_000_000),
            ("2026-01-02", 1_767_312_000_000),
            ("1767323045678", at),
            ("0", 0),
            ("1969-12-31T23:59:59Z", 0),
        ] {
            assert_eq!(time("since", value).ok(), Some(millis), "{value}");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let ago = time("since", "15m").unwrap();
        assert!((now - 15 * 60_000..now - 15 * 60_000 + 5000).contains(&ago), "{ago} at {now}");
        assert_eq!(time("since", "100years").ok(), Some(0));
        for bad in [
            "",
            "yesterday",
            "2026-13-01",
            "2026-01-02T03:04",
            "-1",
            "1.5",
            "2026-01-02T03:04:05",
            "99999999999999999999",
            "15M", // it was 15 months
            "15Min",
            "2026-01-02T03:04:05+24:00",
            "2026-01-02T03:04:05-25:00",
            "2026-01-02T03:04:05+02:60",
            "2026-01-02T03:04:05+02",
            "2026-01-02T03:04:05+02:00[Europe/Berlin]",
        ] {
            assert!(time("since", bad).is_err(), "{bad}");
        }
        // A range from such a time on was the whole log.
        for (seconds, millis) in [("1700000000", "1700000000000"), ("999999999", "999999999000")] {
            let refused = time("since", seconds).unwrap_err().to_string();
            assert!(refused.contains(millis), "{refused}");
        }
        assert_eq!(time("since", "000300000000").ok(), Some(300_000_000));
    }
}
