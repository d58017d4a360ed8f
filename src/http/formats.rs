//! The formats of records: splitting a body into payloads, and writing records out. No I/O.
//!
//! | type | a body to append | an answer |
//! | --- | --- | --- |
//! | `application/x-ndjson` | each line is one JSON record, checked, stored unchanged; blank lines are skipped | one line per record: `{"offset":…,"time":…,"json":…}`, or `"value":"<base64>"` for bytes |
//! | `application/json` | `{"records":[{"json":…},{"value":"<base64>"}]}`, or a list of JSON values | `{"records":[…],"next_offset":…}`, with records as above |
//! | `text/plain` | each line is one record of bytes; the end of the line, `\n` or `\r\n`, is not part of it | each value, followed by `\n` |
//! | `application/octet-stream` | one record | the values, one after the other |
//! | `application/vnd.millstream.frames` | wire frames, as drawn in `wire.rs` | wire frames with offset and time |
//!
//! `time` is in milliseconds since 1970. A record that is marked as lost is `{"offset":…,"lost":true}` in JSON, and a frame
//! without a value whose time is the largest number; among values it is one without bytes.

mod json;

use super::{memory::Grant, problem::Problem, segment_room::SegmentRoom};
use crate::{
    Code,
    chunk::AppendValues,
    frame::JSON,
    log::{Head, RecordRef},
    settings::{LogSettings, Values, check_json},
    wire::{self, AnswerFrame, AppendFrame, LOST_TIME},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use std::io::Write;

macro_rules! formats {
    ($($name:ident $media_type:expr;)*) => {
        /// See the module's documentation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Format {
            $($name,)*
        }

        impl Format {
            /// All formats; `Accept: */*` chooses the first.
            const ALL: &[Self] = &[$(Self::$name,)*];

            /// The media type of a body to append, and the one that `Accept` names.
            const fn media_type(self) -> &'static str {
                match self { $(Self::$name => $media_type,)* }
            }
        }
    };
}

formats! {
    Ndjson "application/x-ndjson";
    Json "application/json";
    Text "text/plain";
    Bytes "application/octet-stream";
    Frames wire::MEDIA_TYPE;
}

/// Other media types that clients may use for a format.
const ALIASES: [(&str, Format); 4] = [
    ("application/ndjson", Format::Ndjson),
    ("application/jsonl", Format::Ndjson),
    ("application/x-jsonlines", Format::Ndjson),
    ("application/json-lines", Format::Ndjson),
];

/// How many [`names`] there are.
pub(super) const NAMES: usize = Format::ALL.len() + ALIASES.len();

/// All media types of formats, with the formats.
pub(super) fn names() -> impl Iterator<Item = (&'static str, Format)> {
    Format::ALL.iter().map(|format| (format.media_type(), *format)).chain(ALIASES)
}

/// The types that `Content-Type` and `Accept` may name, as listed in an error.
pub(super) fn accepted() -> String {
    Format::ALL.iter().map(|format| format.media_type()).collect::<Vec<_>>().join(", ")
}

/// What an answer has before, between and after its records.
#[derive(Clone, Copy)]
pub(super) struct Envelope {
    pub(super) opening: &'static [u8],
    pub(super) separator: &'static [u8],
    /// What follows the last record, and may say the offset to read from next. `None` if an answer without its end is as
    /// good as a whole one.
    closing: Option<fn(u64) -> String>,
}

impl Envelope {
    /// For records that say themselves where they end.
    const NONE: Self = Self { opening: b"", separator: b"", closing: None };

    /// What follows the records of an answer after which to continue at `next`.
    pub(super) fn closing(&self, next: u64) -> String {
        self.closing.map(|closing| closing(next)).unwrap_or_default()
    }
}

/// About how many records a body has, before it is parsed; more rather than fewer.
pub(super) fn likely_records(format: Format, body: &[u8]) -> usize {
    let count = |byte| memchr::memchr_iter(byte, body).count();
    match format {
        Format::Text | Format::Ndjson => count(b'\n'),
        Format::Json => count(b',') + 1,
        Format::Bytes => 1,
        Format::Frames => {
            std::iter::successors(AppendFrame::split(body), |(_, rest)| AppendFrame::split(rest)).count()
        }
    }
}

impl Format {
    /// The format of a media type, ignoring its parameters.
    pub(super) fn of(media_type: &str) -> Option<Self> {
        let name = media_type.split(';').next().unwrap_or_default().trim();
        names().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, format)| format)
    }

    /// The `Content-Type` of an answer.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Ndjson | Self::Json | Self::Bytes | Self::Frames => self.media_type(),
        }
    }

    /// What an answer of several records has around them.
    pub(super) fn envelope(self) -> Envelope {
        match self {
            Self::Json => Envelope {
                opening: b"{\"records\":[",
                separator: b",",
                closing: Some(|next| format!("],\"next_offset\":{next}}}\n")),
            },
            Self::Ndjson | Self::Text | Self::Bytes | Self::Frames => Envelope::NONE,
        }
    }

    /// Whether an answer is one document, so that a part of it cannot be parsed: it must have an end.
    pub(super) fn is_single_document(self) -> bool {
        self.envelope().closing.is_some()
    }
}

/// A body of records. The records are found again each time that they are iterated over, so that none costs more memory
/// than its bytes.
#[derive(Debug)]
pub(super) struct DecodedBatch {
    body: Bytes,
    shape: Shape,
    /// Whether all records are marked as JSON, regardless of the shape.
    json: bool,
    records: u64,
    bytes: u64,
}

/// How records are laid out in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// The body is one record.
    One,
    Lines,
    /// Each line that is not blank is a record of JSON.
    JsonLines,
    Frames,
}

impl AppendValues for DecodedBatch {
    #[inline]
    fn each(&self, mut f: impl FnMut(&[u8], u16)) {
        let marked = |json| if json || self.json { JSON } else { 0 };
        match self.shape {
            Shape::One => f(&self.body, marked(false)),
            Shape::Lines => lines(&self.body).for_each(|(_, line)| f(line, marked(false))),
            Shape::JsonLines => json_lines(&self.body).for_each(|(_, line)| f(line, marked(true))),
            Shape::Frames => {
                let mut left = &self.body[..];
                while let Some((AppendFrame { json, value }, rest)) = AppendFrame::split(left) {
                    f(value, marked(json));
                    left = rest;
                }
            }
        }
    }
}

impl DecodedBatch {
    /// The number of records.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// The number of bytes of their values.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The batch without its first records.
    pub(super) fn without_first(mut self, records: u64) -> Self {
        let (mut rest, mut bytes) = (&self.body[..], 0);
        for _ in 0..records {
            let (value, after) = match self.shape {
                Shape::One => rest.split_at(rest.len()),
                Shape::Lines => first_line(rest),
                Shape::JsonLines => {
                    let mut line = first_line(rest);
                    while is_blank(line.0) && !line.1.is_empty() {
                        line = first_line(line.1);
                    }
                    line
                }
                Shape::Frames => {
                    AppendFrame::split(rest).map_or((rest, &[][..]), |(frame, after)| (frame.value, after))
                }
            };
            (rest, bytes) = (after, bytes + value.len() as u64);
        }
        let from = self.body.len() - rest.len();
        self.body = self.body.slice(from..);
        (self.records, self.bytes) =
            (self.records - records.min(self.records), self.bytes - bytes.min(self.bytes));
        self
    }

    /// Refuses what a log with these settings does not accept. If it accepts only JSON, every value is marked as JSON.
    pub(super) fn check(&mut self, settings: &LogSettings) -> Result<(), Problem> {
        let json_only = settings.values == Values::Json;
        if !json_only && settings.record_bytes.is_none() {
            return Ok(());
        }
        let (mut n, mut refused) = (0, None);
        self.each(|bytes, flags| {
            n += 1;
            if refused.is_some() {
                return;
            }
            let checked = if flags & JSON == 0 {
                settings.check_value(bytes, false)
            } else {
                settings.check_length(bytes) // that it is JSON was checked when the body was parsed
            };
            refused = checked.err().map(|error| {
                let problem = Problem::refused_value(&error, format_args!("record {n} of the body: {error}"));
                problem.with(|numbers| numbers.record = Some(n))
            });
        });
        self.json |= json_only;
        refused.map_or(Ok(()), Err)
    }
}

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Parses a body whose records may take `room`. What is decoded is in the budget that `grant` belongs to.
pub(super) fn parse(
    format: Format,
    body: Bytes,
    room: SegmentRoom,
    grant: Grant,
) -> Result<DecodedBatch, Problem> {
    let batch = match format {
        Format::Json => {
            let body = json::frames(&without_byte_order_mark(format, body), room, grant)?;
            counted(body, Shape::Frames, room, |body, count| check_frames(body, false, count))?
        }
        _ => parse_part(format, without_byte_order_mark(format, body), room, 0)?,
    };
    if batch.records == 0 {
        return Err(Problem::new(Code::EmptyBatch, "the body has no record; send at least one"));
    }
    Ok(batch)
}

/// The body, or the first part of one, without its byte order mark, which some editors write: it is no part of the first line.
pub(super) fn without_byte_order_mark(format: Format, body: Bytes) -> Bytes {
    let marked = !matches!(format, Format::Bytes | Format::Frames) && body.starts_with(BYTE_ORDER_MARK);
    if marked { body.slice(BYTE_ORDER_MARK.len()..) } else { body }
}

/// Parses a part of a body after so many `lines`; it may have no records. For all formats but JSON, where a part cannot be parsed alone.
pub(super) fn parse_part(
    format: Format,
    body: Bytes,
    room: SegmentRoom,
    lines: u64,
) -> Result<DecodedBatch, Problem> {
    match format {
        Format::Ndjson => counted(body, Shape::JsonLines, room, |body, count| {
            json_lines(body).try_for_each(|(number, line)| {
                check_json(line).map_err(|error| {
                    let number = lines + number;
                    let detail =
                        format!("line {number} is not JSON: {error}; nothing of its batch was stored");
                    Problem::new(Code::InvalidJson, detail).with(|numbers| numbers.line = Some(number))
                })?;
                count(line)
            })
        }),
        Format::Text => counted(body, Shape::Lines, room, |body, count| {
            self::lines(body).try_for_each(|(_, line)| count(line))
        }),
        Format::Bytes => counted(body, Shape::One, room, |body, count| count(body)),
        Format::Json | Format::Frames => {
            counted(body, Shape::Frames, room, |body, count| check_frames(body, true, count))
        }
    }
}

/// The batch that a body is in this shape, its values counted by `each`.
fn counted(
    body: Bytes,
    shape: Shape,
    mut room: SegmentRoom,
    each: impl FnOnce(&[u8], &mut dyn FnMut(&[u8]) -> Result<(), Problem>) -> Result<(), Problem>,
) -> Result<DecodedBatch, Problem> {
    let (mut records, mut bytes) = (0, 0);
    each(&body, &mut |value| {
        records += 1;
        bytes += value.len() as u64;
        room.record(value.len())
    })?;
    Ok(DecodedBatch { body, shape, json: false, records, bytes })
}

/// The lines of a body with their numbers, without their line ends; what follows the last line end is a line if it is
/// not empty.
fn lines(body: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = body;
    (1..).map_while(move |number| {
        if rest.is_empty() {
            return None;
        }
        let line;
        (line, rest) = first_line(rest);
        Some((number, line))
    })
}

/// The first line without its end, and what follows it.
#[inline]
fn first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b'\n', bytes);
    let line = &bytes[..end.unwrap_or(bytes.len())];
    (line.strip_suffix(b"\r").unwrap_or(line), &bytes[end.map_or(bytes.len(), |end| end + 1)..])
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// The lines that are not blank.
fn json_lines(body: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    lines(body).filter(|(_, line)| !is_blank(line))
}

/// Refuses frames that are incomplete or, if JSON is to be `checked`, whose values marked as JSON are not JSON.
fn check_frames(
    body: &[u8],
    checked: bool,
    count: &mut dyn FnMut(&[u8]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let (mut left, mut number) = (body, 0);
    while !left.is_empty() {
        number += 1;
        let Some((AppendFrame { json, value }, rest)) = AppendFrame::split(left) else {
            let detail = format!("the body ends within frame {number}: its length is wrong, or it was cut");
            return Err(
                Problem::new(Code::InvalidFrame, detail).with(|numbers| numbers.record = Some(number))
            );
        };
        if json && checked {
            check_json(value).map_err(|error| {
                let detail = format!("frame {number} is marked as JSON and is not: {error}");
                Problem::new(Code::InvalidJson, detail).with(|numbers| numbers.record = Some(number))
            })?;
        }
        count(value)?;
        left = rest;
    }
    Ok(())
}

/// The most bytes that a record with a value of `length` bytes takes in an answer.
pub(super) fn rendered_bytes(length: usize, json: bool) -> usize {
    const NAMES_AND_NUMBERS: usize = 100;
    NAMES_AND_NUMBERS + if json { length } else { length.div_ceil(3) * 4 }
}

/// The number of bytes that [`render`] writes for a record.
pub(super) fn length(format: Format, offset: u64, record: Head) -> u64 {
    let digits = |number: u64| u64::from(number.checked_ilog10().unwrap_or(0)) + 1;
    let Head { time, json, lost, length } = record;
    let length = length as u64;
    let value = if lost {
        r#"{"offset":,"lost":true}"#.len() as u64 - digits(time)
    } else if json {
        r#"{"offset":,"time":,"json":}"#.len() as u64 + length
    } else {
        r#"{"offset":,"time":,"value":""}"#.len() as u64 + length.div_ceil(3) * 4
    };
    match format {
        Format::Ndjson => value + digits(offset) + digits(time) + 1,
        Format::Json => value + digits(offset) + digits(time),
        Format::Text => length + 1,
        Format::Bytes => length,
        Format::Frames => length + AnswerFrame::HEAD_BYTES as u64,
    }
}

/// Writes one record as part of an answer.
pub(super) fn render(format: Format, out: &mut Vec<u8>, record: &RecordRef<'_>) {
    match format {
        Format::Ndjson => {
            object(out, record);
            out.push(b'\n');
        }
        Format::Json => object(out, record), // `reading` writes what is around it
        Format::Text => {
            out.extend_from_slice(record.value);
            out.push(b'\n');
        }
        Format::Bytes => out.extend_from_slice(record.value),
        Format::Frames => {
            let &RecordRef { offset, time, json, lost, value, .. } = record;
            let time = if lost { LOST_TIME } else { time };
            AnswerFrame { offset, time, json, value }.write(out);
        }
    }
}

/// Writes a record as a JSON object on one line.
pub(super) fn object(out: &mut Vec<u8>, record: &RecordRef<'_>) {
    if record.lost {
        lost_json(out, record.offset);
    } else {
        record_json(out, record.offset, record.time, record.json, record.value);
    }
}

/// Writes a record that is marked as lost as a JSON object on one line, as the API returns it.
pub fn lost_json(out: &mut Vec<u8>, offset: u64) {
    let _ = write!(out, r#"{{"offset":{offset},"lost":true}}"#); // to memory: cannot fail
}

/// Writes a record as a JSON object on one line, as the API returns it.
pub fn record_json(out: &mut Vec<u8>, offset: u64, time: u64, json: bool, value: &[u8]) {
    let _ = write!(out, r#"{{"offset":{offset},"time":{time},"#); // to memory: cannot fail
    if json {
        out.extend_from_slice(b"\"json\":");
        let start = out.len();
        out.extend_from_slice(value);
        // Line ends in JSON are white space between tokens, never within strings.
        if memchr::memchr2(b'\n', b'\r', value).is_some() {
            out[start..]
                .iter_mut()
                .filter(|byte| matches!(byte, b'\n' | b'\r'))
                .for_each(|byte| *byte = b' ');
        }
        out.push(b'}');
    } else {
        out.extend_from_slice(b"\"value\":\"");
        base64(out, value);
        out.extend_from_slice(b"\"}");
    }
}

pub(super) fn base64(out: &mut Vec<u8>, value: &[u8]) {
    let start = out.len();
    out.resize(start + base64::encoded_len(value.len(), true).unwrap_or(0), 0);
    let written = BASE64_STANDARD.encode_slice(value, &mut out[start..]);
    debug_assert_eq!(written, Ok(out.len() - start));
}

#[cfg(test)]
mod tests {
    use super::super::memory::{Memory, Purpose};
    use super::{json::BLOCK, *};
    use crate::wire::Prefix;
    use proptest::prelude::*;

    /// The bytes of a record, and whether they are JSON.
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

    proptest! {
        /// A batch without its first records is that of the others.
        #[test]
        fn a_batch_can_begin_later(records in prop::collection::vec(record(), 1..8), at: prop::sample::Index) {
            for format in [Format::Text, Format::Ndjson, Format::Frames] {
                let Some(body) = body(format, &records) else { continue };
                let room = SegmentRoom::new(1 << 20);
                let whole = parse_part(format, [&b"\n \n"[..], &body].concat().into(), room, 0);
                let whole = if format == Format::Ndjson { whole } else { parse_part(format, body.into(), room, 0) };
                let whole = whole.unwrap();
                let values = |batch: &DecodedBatch| {
                    let mut values = Vec::new();
                    batch.each(|value, flags| values.push((value.to_vec(), flags)));
                    values
                };
                let (all, first) = (values(&whole), at.index(whole.records() as usize + 1));
                let rest = whole.without_first(first as u64);
                prop_assert_eq!(&values(&rest)[..], &all[first..]);
                let bytes: usize = all[first..].iter().map(|(value, _)| value.len()).sum();
                prop_assert_eq!((rest.records(), rest.bytes()), ((all.len() - first) as u64, bytes as u64));
            }
        }
    }

    /// The batch as a client sends it; `None` if the format cannot represent it.
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
                    out.extend_from_slice(&Prefix::new(bytes.len(), *json).to_bytes());
                    out.extend_from_slice(bytes);
                }
            }
        }
        Some(out)
    }

    /// Clients, and the fuzzer, learn of a format from these.
    #[test]
    fn every_format_is_described_fuzzed_and_tried_by_hostile_clients() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        if !root.join("fuzz").exists() {
            return; // this is the published package
        }
        for file in [
            "src/http/openapi.json",
            "docs/api.md",
            "fuzz/fuzz_targets/body.rs",
            "fuzz/http.dict",
            "tests/hostile/bodies.rs",
        ] {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            for format in Format::ALL {
                assert!(text.contains(format.media_type()), "{file} does not have {format:?}");
            }
        }
    }

    fn parsed(format: Format, body: &[u8]) -> Result<Vec<Record>, String> {
        let grant = Memory::new(1 << 30).grant(Purpose::Request);
        let batch = parse(format, Bytes::copy_from_slice(body), SegmentRoom::new(1 << 30), grant);
        let mut batch = batch.map_err(|problem| problem.to_string())?;
        batch.check(&LogSettings::default()).map_err(|problem| problem.to_string())?;
        let mut records = Vec::new();
        batch.each(|bytes, flags| records.push((bytes.to_vec(), flags & JSON != 0)));
        assert_eq!(batch.records(), records.len() as u64);
        assert_eq!(batch.bytes(), records.iter().map(|(bytes, _)| bytes.len() as u64).sum::<u64>());
        Ok(records)
    }

    /// The parser copied each of them, even one without escapes, outside the budget.
    #[test]
    fn base64_that_is_escaped_is_decoded_in_place() {
        let long: Vec<u8> = (0..20_000).map(|n: u32| ((n * n) >> 3) as u8).collect();
        for value in [&b"hi?>"[..], b"", &long, &long[..BLOCK / 4 * 3], &long[..7]] {
            let base64 = BASE64_STANDARD.encode(value);
            let escape = |letter: u8| ["\\u00".to_owned(), format!("{letter:02X}")];
            let escaped = base64.bytes().flat_map(escape).collect::<Vec<_>>().concat();
            for text in [base64.replace('/', "\\/"), base64, escaped] {
                let body = format!(r#"{{"records":[{{"value":"{text}"}}]}}"#);
                assert_eq!(parsed(Format::Json, body.as_bytes()), Ok(vec![(value.to_vec(), false)]));
            }
        }
        let padded = format!("{}==\\u0041AAA", "A".repeat(BLOCK - 2));
        for text in ["\\n", "\\u0141AAA", "\\ud800AAA", "AAA\\u003dAAAA", &padded] {
            let body = format!(r#"{{"records":[{{"value":"{text}"}}]}}"#);
            let refused = parsed(Format::Json, body.as_bytes()).unwrap_err();
            assert!(refused.starts_with("invalid_base64"), "{text:.40}: {refused}");
        }
        let long = "x".repeat(1 << 20);
        for (text, expected) in [
            (r#"{"records":[{"value":7}]}"#.to_owned(), "invalid_request"),
            (r#"{"records":[{"value":null,"json":null}]}"#.to_owned(), ""),
            (r#"{"\u0072ecords":[{"\u0076alue":""}]}"#.to_owned(), ""),
            (format!(r#"{{"\u0041{long}":[]}}"#), "invalid_request"),
            (format!(r#"{{"records":[{{"\u0041{long}":1}}]}}"#), "invalid_request"),
            (r#"{"\u0041\ud800":[]}"#.to_owned(), "invalid_request"),
        ] {
            let refused = parsed(Format::Json, text.as_bytes()).err().unwrap_or_default();
            assert!(refused.starts_with(expected) && refused.len() < 600, "{text:.40}: {refused}");
            assert_eq!(refused.is_empty(), expected.is_empty(), "{text:.40}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn any_batch_in_any_format_is_what_was_sent_and_reads_back_in_any(
            records in prop::collection::vec(record(), 1..8), first: u32, time in 0..1u64 << 48,
        ) {
            for &format in Format::ALL {
                let Some(body) = body(format, &records) else { continue };
                prop_assert_eq!(parsed(format, &body).unwrap(), records.clone(), "{:?}", format);
                // A last line may have no end.
                prop_assert!(likely_records(format, &body) + 1 >= records.len(), "{:?}", format);
            }
            let mut out = [const { Vec::new() }; Format::ALL.len()];
            for (n, (value, json)) in records.iter().enumerate() {
                let record = RecordRef::new(u64::from(first) + n as u64, time, *json, value);
                for (format, out) in Format::ALL.iter().zip(&mut out) {
                    let before = out.len();
                    render(*format, out, &record);
                    prop_assert_eq!((out.len() - before) as u64, length(*format, record.offset, record.head()));
                    prop_assert!(out.len() - before <= rendered_bytes(value.len(), *json));
                }
            }
            // In JSON, each record is on one line, with its offset and its unchanged value.
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
            for (offset, (value, json)) in (u64::from(first)..).zip(&records) {
                let (frame, rest) = AnswerFrame::split(frames).unwrap();
                prop_assert_eq!(frame, AnswerFrame { offset, time, json: *json, value });
                frames = rest;
            }
            prop_assert!(frames.is_empty());
        }

        #[test]
        fn a_cut_body_is_refused_or_has_the_first_of_its_records_and_nothing_panics(
            records in prop::collection::vec(record(), 1..8), at: prop::sample::Index, noise: Vec<u8>,
        ) {
            for &format in Format::ALL {
                let _ = parsed(format, &noise);
                let Some(body) = body(format, &records) else { continue };
                let cut = &body[..at.index(body.len() + 1)];
                // The length of each body is announced, so that a truncated one does not come this far; what does was
                // made like that. Any part of lines or bytes is a body; with the other formats, only whole records are.
                if let (Ok(some), Format::Json | Format::Frames) = (parsed(format, cut), format) {
                    prop_assert!(records.starts_with(&some));
                }
            }
        }
    }
}
