//! The formats of records: taking a body apart into payloads, and writing records out. No I/O.
//!
//! | type | a body to append | an answer |
//! | --- | --- | --- |
//! | `application/x-ndjson` | each line one JSON record, checked, kept as it came; blank lines are skipped | a line a record: `{"offset":…,"time":…,"json":…}`, or `"value":"<base64>"` for bytes |
//! | `application/json` | `{"records":[{"json":…},{"value":"<base64>"}]}` | `{"records":[…],"next_offset":…}`, its records as above |
//! | `text/plain` | each line one record of bytes; the line's end, `\n` or `\r\n`, is not part of it | each value and `\n` |
//! | `application/octet-stream` | one record | the values, one behind the other |
//! | `application/vnd.millstream.frames` | for each record: length and mark (`u32`), value | for each record: length and mark (`u32`), offset (`u64`), time (`u64`), value |
//!
//! Of frames all numbers are little-endian, and the mark is bit 31 of the length: the value is JSON. `time` is in
//! milliseconds since 1970.

use super::problem::Problem;
use crate::log::{Payload, RecordRef};
use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::StatusCode;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use std::{borrow::Cow, io::Write};

/// The mark of JSON in a frame's length.
const JSON_MARK: u32 = 1 << 31;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Ndjson,
    Json,
    Text,
    Bytes,
    Frames,
}

const NAMES: [(&str, Format); 6] = [
    ("application/x-ndjson", Format::Ndjson),
    ("application/ndjson", Format::Ndjson),
    ("application/json", Format::Json),
    ("text/plain", Format::Text),
    ("application/octet-stream", Format::Bytes),
    ("application/vnd.millstream.frames", Format::Frames),
];
/// What is said to who asks for another.
pub(super) const ACCEPTED: &str = "application/x-ndjson, application/json, text/plain, application/octet-stream, application/vnd.millstream.frames";

impl Format {
    /// By a media type, parameters aside.
    pub(super) fn of(media_type: &str) -> Option<Self> {
        let name = media_type.split(';').next().unwrap_or_default().trim();
        NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, format)| *format)
    }

    /// The media type of an answer.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
            Self::Bytes => "application/octet-stream",
            Self::Frames => "application/vnd.millstream.frames",
        }
    }
}

/// A record out of a body: a part of it, or what was decoded from it.
#[derive(Debug)]
pub(super) struct Value<'a> {
    bytes: Cow<'a, [u8]>,
    json: bool,
}

impl Value<'_> {
    pub(super) fn payload(&self) -> Payload<'_> {
        Payload { bytes: &self.bytes, json: self.json }
    }
}

/// Takes a body apart. `json_only`: every value must be JSON, and is marked so. `most`: bytes of a record.
pub(super) fn parse(
    format: Format,
    body: &[u8],
    json_only: bool,
    most: Option<u64>,
) -> Result<Vec<Value<'_>>, Problem> {
    let mut values = match format {
        Format::Ndjson => ndjson(body)?,
        Format::Text => lines(body).map(|(_, line)| bytes(line)).collect(),
        Format::Bytes => vec![bytes(body)],
        Format::Json => json(body)?,
        Format::Frames => frames(body)?,
    };
    if values.is_empty() {
        return Err(Problem::bad_request("empty_batch", "the body has no record; send at least one"));
    }
    for (n, value) in values.iter_mut().enumerate() {
        if most.is_some_and(|most| value.bytes.len() as u64 > most) {
            let detail = format!(
                "record {} of the body has {} bytes, over this log's limit of {}",
                n + 1,
                value.bytes.len(),
                most.unwrap_or_default()
            );
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "record_too_large", detail)
                .with("record", n as u64 + 1));
        }
        if json_only && !value.json {
            check_json(&value.bytes).map_err(|error| {
                let detail = format!("this log takes JSON only, and record {} is not: {error}", n + 1);
                Problem::bad_request("not_json", detail).with("record", n as u64 + 1)
            })?;
            value.json = true;
        }
    }
    Ok(values)
}

fn bytes(bytes: &[u8]) -> Value<'_> {
    Value { bytes: Cow::Borrowed(bytes), json: false }
}

/// The lines of a body with their numbers, without their ends; what follows the last end is a line if it is not
/// empty.
fn lines(body: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = body;
    (1..).map_while(move |number| {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', rest);
        let line = &rest[..end.unwrap_or(rest.len())];
        rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
        Some((number, line.strip_suffix(b"\r").unwrap_or(line)))
    })
}

fn ndjson(body: &[u8]) -> Result<Vec<Value<'_>>, Problem> {
    let mut values = Vec::new();
    for (number, line) in lines(body) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        check_json(line).map_err(|error| {
            let detail = format!("line {number} is not JSON: {error}; nothing of the body was stored");
            Problem::bad_request("invalid_json", detail).with("line", number)
        })?;
        values.push(Value { bytes: Cow::Borrowed(line), json: true });
    }
    Ok(values)
}

fn check_json(value: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| error.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Records<'a> {
    #[serde(borrow)]
    records: Vec<Record<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<'a> {
    #[serde(borrow)]
    value: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    json: Option<&'a RawValue>,
}

/// `"json":null` is the JSON value null, not a missing one.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

fn json(body: &[u8]) -> Result<Vec<Value<'_>>, Problem> {
    let expected = r#"{"records":[{"json":…},{"value":"<base64>"}]}"#;
    let Records { records } = super::body::parse(body, expected)?;
    let value = |(n, record): (usize, Record<'_>)| match (record.value, record.json) {
        (Some(base64), None) => match BASE64_STANDARD.decode(base64.as_bytes()) {
            Ok(bytes) => Ok(Value { bytes: Cow::Owned(bytes), json: false }),
            Err(error) => {
                let detail = format!("the value of record {} is not base64: {error}", n + 1);
                Err(Problem::bad_request("invalid_base64", detail).with("record", n as u64 + 1))
            }
        },
        (None, Some(raw)) => Ok(Value { bytes: Cow::Owned(raw.get().as_bytes().to_vec()), json: true }),
        _ => {
            let detail = format!("record {} must have just one of \"json\" and \"value\"", n + 1);
            Err(Problem::bad_request("invalid_request", detail).with("record", n as u64 + 1))
        }
    };
    records.into_iter().enumerate().map(value).collect()
}

fn frames(mut body: &[u8]) -> Result<Vec<Value<'_>>, Problem> {
    let mut values = Vec::new();
    while !body.is_empty() {
        let number = values.len() as u64 + 1;
        let truncated = || {
            let detail = format!("the body ends within frame {number}: its length is wrong, or it was cut");
            Problem::bad_request("invalid_frame", detail).with("record", number)
        };
        let (head, rest) = body.split_first_chunk::<4>().ok_or_else(truncated)?;
        let head = u32::from_le_bytes(*head);
        let value = rest.get(..(head & !JSON_MARK) as usize).ok_or_else(truncated)?;
        body = &rest[value.len()..];
        let json = head & JSON_MARK != 0;
        if json {
            check_json(value).map_err(|error| {
                let detail = format!("frame {number} is marked as JSON and is not: {error}");
                Problem::bad_request("invalid_json", detail).with("record", number)
            })?;
        }
        values.push(Value { bytes: Cow::Borrowed(value), json });
    }
    Ok(values)
}

/// Writes one record as part of an answer.
pub(super) fn render(format: Format, out: &mut Vec<u8>, record: &RecordRef<'_>) {
    match format {
        Format::Ndjson => {
            object(out, record);
            out.push(b'\n');
        }
        Format::Json => object(out, record), // commas are between them, see `records`
        Format::Text => {
            out.extend_from_slice(record.value);
            out.push(b'\n');
        }
        Format::Bytes => out.extend_from_slice(record.value),
        Format::Frames => {
            let mark = if record.json { JSON_MARK } else { 0 };
            out.extend_from_slice(&(record.value.len() as u32 | mark).to_le_bytes());
            out.extend_from_slice(&record.offset.to_le_bytes());
            out.extend_from_slice(&record.time.to_le_bytes());
            out.extend_from_slice(record.value);
        }
    }
}

/// A record as a JSON object on one line.
pub(super) fn object(out: &mut Vec<u8>, record: &RecordRef<'_>) {
    let RecordRef { offset, time, json, value, .. } = record;
    let _ = write!(out, r#"{{"offset":{offset},"time":{time},"#); // to memory: cannot fail
    if *json {
        out.extend_from_slice(b"\"json\":");
        let start = out.len();
        out.extend_from_slice(value);
        // Line ends in JSON are white space between its tokens, never within strings.
        if memchr::memchr2(b'\n', b'\r', value).is_some() {
            out[start..]
                .iter_mut()
                .filter(|byte| matches!(byte, b'\n' | b'\r'))
                .for_each(|byte| *byte = b' ');
        }
        out.push(b'}');
    } else {
        out.extend_from_slice(b"\"value\":\"");
        let start = out.len();
        out.resize(start + base64::encoded_len(value.len(), true).unwrap_or(0), 0);
        let written = BASE64_STANDARD.encode_slice(value, &mut out[start..]);
        debug_assert_eq!(written, Ok(out.len() - start));
        out.extend_from_slice(b"\"}");
    }
}
