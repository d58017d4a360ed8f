//! The formats of records: splitting a body into values, and writing records out. No I/O.
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

mod batch;
mod json;
mod render;

use crate::wire::{self, AppendFrame};
pub(super) use batch::{DecodedBatch, parse, parse_part, without_byte_order_mark};
pub(super) use json::{is_line_end, not_base64};
pub(super) use render::{base64, length, object, render, rendered_bytes};
pub use render::{lost_json, record_json};

macro_rules! formats {
    ($($name:ident $media_type:expr;)*) => {
        /// A format of records in a body or an answer.
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

#[cfg(test)]
mod tests {
    use super::super::{
        memory::{Memory, Purpose},
        segment_room::SegmentRoom,
    };
    use super::{json::BASE64_STEP_BYTES, *};
    use crate::{
        chunk::AppendValues,
        frame::JSON,
        log::RecordRef,
        settings::LogSettings,
        wire::{AnswerFrame, Prefix},
    };
    use base64::{Engine, prelude::BASE64_STANDARD};
    use bytes::Bytes;
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
        for value in [&b"hi?>"[..], b"", &long, &long[..BASE64_STEP_BYTES / 4 * 3], &long[..7]] {
            let base64 = BASE64_STANDARD.encode(value);
            let escape = |letter: u8| ["\\u00".to_owned(), format!("{letter:02X}")];
            let escaped = base64.bytes().flat_map(escape).collect::<Vec<_>>().concat();
            let lines = |end: &str| {
                base64.as_bytes().chunks(76).map(String::from_utf8_lossy).collect::<Vec<_>>().join(end)
            };
            for text in
                [base64.replace('/', "\\/"), lines("\\n"), lines("\\r\\u000a"), base64.clone(), escaped]
            {
                let body = format!(r#"{{"records":[{{"value":"{text}"}}]}}"#);
                assert_eq!(parsed(Format::Json, body.as_bytes()), Ok(vec![(value.to_vec(), false)]));
            }
        }
        let padded = format!("{}==\\u0041AAA", "A".repeat(BASE64_STEP_BYTES - 2));
        for text in ["\\t", "\\u0141AAA", "\\ud800AAA", "AAA\\u003dAAAA", &padded] {
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
