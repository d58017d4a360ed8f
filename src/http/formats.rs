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
use bytes::Bytes;
use hyper::StatusCode;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use std::{borrow::Cow, io::Write, ops::Range};

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

/// A body taken apart into records.
#[derive(Debug)]
pub(super) struct Batch {
    body: Bytes,
    values: Vec<Value>,
}

/// A record out of a body.
#[derive(Debug)]
struct Value {
    place: Place,
    json: bool,
}

#[derive(Debug)]
enum Place {
    /// A part of the body.
    Body(Range<usize>),
    /// What was decoded from one.
    Decoded(Vec<u8>),
}

impl Value {
    /// `part` is a part of `body`.
    fn part(body: &[u8], part: &[u8], json: bool) -> Self {
        let start = part.as_ptr() as usize - body.as_ptr() as usize;
        Self { place: Place::Body(start..start + part.len()), json }
    }

    fn bytes<'a>(&'a self, body: &'a [u8]) -> &'a [u8] {
        match &self.place {
            Place::Body(range) => &body[range.clone()],
            Place::Decoded(bytes) => bytes,
        }
    }
}

impl Batch {
    pub(super) fn payloads(&self) -> Vec<Payload<'_>> {
        self.values.iter().map(|value| Payload { bytes: value.bytes(&self.body), json: value.json }).collect()
    }

    /// Refuses what a log with these settings does not take. `json_only`: every value must be JSON, and is marked so.
    /// `most`: bytes of a record.
    pub(super) fn check(&mut self, json_only: bool, most: Option<u64>) -> Result<(), Problem> {
        for (n, value) in self.values.iter_mut().enumerate() {
            let bytes = value.bytes(&self.body);
            if let Some(most) = most.filter(|&most| bytes.len() as u64 > most) {
                let length = bytes.len();
                let detail = format!(
                    "record {} of the body has {length} bytes, over this log's limit of {most}",
                    n + 1
                );
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "record_too_large", detail)
                    .with("record", n as u64 + 1));
            }
            if json_only && !value.json {
                check_json(bytes).map_err(|error| {
                    let detail = format!("this log takes JSON only, and record {} is not: {error}", n + 1);
                    Problem::bad_request("not_json", detail).with("record", n as u64 + 1)
                })?;
                value.json = true;
            }
        }
        Ok(())
    }
}

/// Takes a body apart.
pub(super) fn parse(format: Format, body: Bytes) -> Result<Batch, Problem> {
    let values = match format {
        Format::Ndjson => ndjson(&body)?,
        Format::Text => lines(&body).map(|(_, line)| Value::part(&body, line, false)).collect(),
        Format::Bytes => vec![Value::part(&body, &body, false)],
        Format::Json => json(&body)?,
        Format::Frames => frames(&body)?,
    };
    if values.is_empty() {
        return Err(Problem::bad_request("empty_batch", "the body has no record; send at least one"));
    }
    Ok(Batch { body, values })
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

fn ndjson(body: &[u8]) -> Result<Vec<Value>, Problem> {
    let mut values = Vec::new();
    for (number, line) in lines(body) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        check_json(line).map_err(|error| {
            let detail = format!("line {number} is not JSON: {error}; nothing of the body was stored");
            Problem::bad_request("invalid_json", detail).with("line", number)
        })?;
        values.push(Value::part(body, line, true));
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

fn json(body: &[u8]) -> Result<Vec<Value>, Problem> {
    let expected = r#"{"records":[{"json":…},{"value":"<base64>"}]}"#;
    let Records { records } = super::body::parse(body, expected)?;
    let value = |(n, record): (usize, Record<'_>)| match (record.value, record.json) {
        (Some(base64), None) => match BASE64_STANDARD.decode(base64.as_bytes()) {
            Ok(bytes) => Ok(Value { place: Place::Decoded(bytes), json: false }),
            Err(error) => {
                let detail = format!("the value of record {} is not base64: {error}", n + 1);
                Err(Problem::bad_request("invalid_base64", detail).with("record", n as u64 + 1))
            }
        },
        (None, Some(raw)) => Ok(Value::part(body, raw.get().as_bytes(), true)),
        _ => {
            let detail = format!("record {} must have just one of \"json\" and \"value\"", n + 1);
            Err(Problem::bad_request("invalid_request", detail).with("record", n as u64 + 1))
        }
    };
    records.into_iter().enumerate().map(value).collect()
}

fn frames(body: &[u8]) -> Result<Vec<Value>, Problem> {
    let (mut values, mut left) = (Vec::new(), body);
    while !left.is_empty() {
        let number = values.len() as u64 + 1;
        let truncated = || {
            let detail = format!("the body ends within frame {number}: its length is wrong, or it was cut");
            Problem::bad_request("invalid_frame", detail).with("record", number)
        };
        let (head, rest) = left.split_first_chunk::<4>().ok_or_else(truncated)?;
        let head = u32::from_le_bytes(*head);
        let value = rest.get(..(head & !JSON_MARK) as usize).ok_or_else(truncated)?;
        left = &rest[value.len()..];
        let json = head & JSON_MARK != 0;
        if json {
            check_json(value).map_err(|error| {
                let detail = format!("frame {number} is marked as JSON and is not: {error}");
                Problem::bad_request("invalid_json", detail).with("record", number)
            })?;
        }
        values.push(Value::part(body, value, json));
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A record's bytes, and whether they are JSON.
    type Record = (Vec<u8>, bool);

    fn record() -> impl Strategy<Value = Record> {
        let json = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
            any::<Vec<u8>>().prop_map(|list| format!("{{ \"list\": {list:?} }}")),
        ];
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60).prop_map(|bytes| (bytes, false)),
            json.prop_map(|json| (json.into_bytes(), true)),
        ]
    }

    /// The batch as a client sends it; `None` where the format cannot have it.
    fn body(format: Format, records: &[Record]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let one_line = |bytes: &[u8]| !bytes.contains(&b'\n') && !bytes.ends_with(b"\r");
        match format {
            Format::Bytes => {
                let [(bytes, false)] = records else { return None };
                out.extend_from_slice(bytes);
            }
            Format::Text | Format::Ndjson => {
                for (bytes, json) in records {
                    if *json != (format == Format::Ndjson) || !one_line(bytes) {
                        return None;
                    }
                    out.extend_from_slice(bytes);
                    out.push(b'\n');
                }
            }
            Format::Json => {
                let object = |(bytes, json): &Record| match json {
                    true => format!(r#"{{"json":{}}}"#, String::from_utf8_lossy(bytes)),
                    false => format!(r#"{{"value":"{}"}}"#, BASE64_STANDARD.encode(bytes)),
                };
                let objects: Vec<_> = records.iter().map(object).collect();
                out = format!(r#"{{"records":[{}]}}"#, objects.join(",")).into_bytes();
            }
            Format::Frames => {
                for (bytes, json) in records {
                    let mark = if *json { JSON_MARK } else { 0 };
                    out.extend_from_slice(&(bytes.len() as u32 | mark).to_le_bytes());
                    out.extend_from_slice(bytes);
                }
            }
        }
        Some(out)
    }

    const ALL: [Format; 5] = [Format::Ndjson, Format::Json, Format::Text, Format::Bytes, Format::Frames];

    fn parsed(format: Format, body: &[u8]) -> Result<Vec<Record>, String> {
        let mut batch = parse(format, Bytes::copy_from_slice(body)).map_err(|problem| problem.to_string())?;
        batch.check(false, None).map_err(|problem| problem.to_string())?;
        let owned = |payload: Payload<'_>| (payload.bytes.to_vec(), payload.json);
        Ok(batch.payloads().into_iter().map(owned).collect())
    }

    proptest! {
        #[test]
        fn any_batch_in_any_format_is_what_was_sent_and_reads_back_in_any(
            records in prop::collection::vec(record(), 1..8), first: u32, time in 0..1u64 << 48,
        ) {
            for format in ALL {
                let Some(body) = body(format, &records) else { continue };
                prop_assert_eq!(parsed(format, &body).unwrap(), records.clone(), "{:?}", format);
            }
            let mut out = [const { Vec::new() }; 5];
            for (n, (value, json)) in records.iter().enumerate() {
                let record = RecordRef::new(u64::from(first) + n as u64, time, *json, value);
                ALL.iter().zip(&mut out).for_each(|(format, out)| render(*format, out, &record));
            }
            // As JSON each is on a line, with its offset, and its value as it was.
            let lines: Vec<&[u8]> = out[0].strip_suffix(b"\n").unwrap().split(|&byte| byte == b'\n').collect();
            prop_assert_eq!(lines.len(), records.len());
            for (n, (line, (value, json))) in lines.into_iter().zip(&records).enumerate() {
                let object: serde_json::Value = serde_json::from_slice(line).unwrap();
                prop_assert_eq!(object["offset"].as_u64(), Some(u64::from(first) + n as u64));
                prop_assert_eq!(object["time"].as_u64(), Some(time));
                if *json {
                    let meant: serde_json::Value = serde_json::from_slice(value).unwrap();
                    prop_assert_eq!(&object["json"], &meant);
                    prop_assert!(line.windows(value.len()).any(|part| part == &value[..]), "printed again");
                } else {
                    let bytes = BASE64_STANDARD.decode(object["value"].as_str().unwrap()).unwrap();
                    prop_assert_eq!(&bytes, value);
                }
            }
            let bytes: Vec<u8> = records.iter().flat_map(|(value, _)| value.clone()).collect();
            prop_assert_eq!(&out[3], &bytes);
            let mut frames = &out[4][..];
            for (value, json) in &records {
                let (head, rest) = frames.split_at(20);
                let mark = if *json { JSON_MARK } else { 0 };
                prop_assert_eq!(head[..4].to_vec(), (value.len() as u32 | mark).to_le_bytes());
                prop_assert_eq!(&rest[..value.len()], &value[..]);
                frames = &rest[value.len()..];
            }
            prop_assert!(frames.is_empty());
        }

        #[test]
        fn a_cut_body_is_refused_or_has_the_first_of_its_records_and_nothing_panics(
            records in prop::collection::vec(record(), 1..8), at: prop::sample::Index, noise: Vec<u8>,
        ) {
            for format in ALL {
                let _ = parsed(format, &noise);
                let Some(body) = body(format, &records) else { continue };
                let cut = &body[..at.index(body.len() + 1)];
                // A length is announced with each body, so that a cut one does not come this far; what comes is a
                // body that was made so. Of lines and bytes any part is a body; of the others only whole records are.
                if let (Ok(some), Format::Json | Format::Frames) = (parsed(format, cut), format) {
                    prop_assert!(records.starts_with(&some));
                }
            }
        }
    }
}
