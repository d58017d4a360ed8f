//! A body of JSON, converted to frames: one record at a time, within the memory budget.

use super::super::{
    memory::{Buffer, Grant},
    object::not_parsed,
    problem::Problem,
    segment_room::SegmentRoom,
};
use crate::{
    Code,
    json::{Members, Object},
    wire::Prefix,
};
use base64::{DecodeError, DecodeSliceError, Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<'a> {
    /// As written in the body: the parser would copy a string that contains escapes.
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    json: Option<&'a RawValue>,
}

/// `"json":null` is the JSON value null, not a missing one.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Converts a body of JSON to frames. Of an object with records that is never longer: `{"json":1},` becomes 5 bytes. An
/// array, each element of which is a record, may become two and a half times as long: `1,` becomes 5 bytes too.
pub(super) fn frames(body: &[u8], room: SegmentRoom, grant: Grant) -> Result<Bytes, Problem> {
    let is_array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let max = if is_array { body.len().saturating_mul(5) / 2 + Prefix::BYTES } else { body.len() };
    let mut frames = FrameWriter { out: Buffer::new(max, grant), room, records: 0, refused: None };
    let mut from = serde_json::Deserializer::from_slice(body);
    let parsed = if is_array {
        let record = |frames: &mut FrameWriter, raw: &RawValue| frames.json(raw);
        List { frames: &mut frames, expected: "a list of JSON values", record }.deserialize(&mut from)
    } else {
        Document(&mut frames).deserialize(&mut from)
    };
    let done = parsed.and_then(|()| from.end());
    match (frames.refused, done) {
        (Some(problem), _) => Err(problem),
        (None, Err(error)) => Err(not_parsed(
            body,
            &error,
            r#"{"records":[{"json":…},{"value":"<base64>"}]}, or a list of JSON values"#,
        )),
        (None, Ok(())) => Ok(frames.out.freeze()),
    }
}

/// Converts records from JSON to frames: one at a time, so that their number costs no memory.
struct FrameWriter {
    out: Buffer,
    room: SegmentRoom,
    records: u64,
    /// Why parsing stopped.
    refused: Option<Problem>,
}

impl FrameWriter {
    fn record(&mut self, record: &Record<'_>) -> Result<(), Problem> {
        self.records += 1;
        let n = self.records;
        match (record.value, record.json) {
            (Some(raw), None) => {
                let quoted = raw.get().strip_prefix('"').and_then(|text| text.strip_suffix('"'));
                let base64 = quoted.ok_or_else(|| {
                    let detail = format!("the value of record {n} is not a string; send base64");
                    Problem::new(Code::InvalidRequest, detail).with(|numbers| numbers.record = Some(n))
                })?;
                self.frame(base64::decoded_len_estimate(base64.len()), false, |space| {
                    decoded(base64, space).map_err(|error| {
                        let detail = format!("the value of record {n} {}", not_base64(&error));
                        Problem::new(Code::InvalidBase64, detail).with(|numbers| numbers.record = Some(n))
                    })
                })
            }
            (None, Some(raw)) => self.json(raw),
            _ => {
                let detail = format!("record {n} must have just one of \"json\" and \"value\"");
                Err(Problem::new(Code::InvalidRequest, detail).with(|numbers| numbers.record = Some(n)))
            }
        }
    }

    fn json(&mut self, raw: &RawValue) -> Result<(), Problem> {
        self.frame(raw.get().len(), true, |space| {
            space.copy_from_slice(raw.get().as_bytes());
            Ok(space.len())
        })
    }

    /// Writes a frame with a value of up to `max` bytes; `write` returns how many it has.
    fn frame(
        &mut self,
        max: usize,
        json: bool,
        write: impl FnOnce(&mut [u8]) -> Result<usize, Problem>,
    ) -> Result<(), Problem> {
        let at = self.out.len();
        let mut length = 0;
        self.out.grow(Prefix::BYTES + max, |space| {
            length = write(&mut space[Prefix::BYTES..])?;
            Ok::<_, Problem>(Prefix::BYTES + length)
        })??;
        self.room.record(length)?; // so it is short enough for a prefix
        self.out.as_mut()[at..][..Prefix::BYTES].copy_from_slice(&Prefix::new(length, json).to_bytes());
        Ok(())
    }
}

/// The bytes of base64 that are decoded at once if it contains escapes.
pub(super) const BASE64_STEP_BYTES: usize = 4096;

/// Whether it is a line end, with which long base64 is broken into lines: they are left out wherever it is read.
pub(in crate::http) fn is_line_end(letter: u8) -> bool {
    matches!(letter, b'\n' | b'\r')
}

/// What is wrong with something that is not base64, after its name.
pub(in crate::http) fn not_base64(error: &DecodeSliceError) -> String {
    let why = match error {
        DecodeSliceError::DecodeError(DecodeError::InvalidByte(_, byte)) if byte.is_ascii_graphic() => {
            format!("{:?} is where it may not be", char::from(*byte))
        }
        DecodeSliceError::DecodeError(DecodeError::InvalidByte(..)) => "it has another character".to_owned(),
        DecodeSliceError::DecodeError(DecodeError::InvalidLastSymbol { .. }) => {
            "its last character stands for more bits than there are".to_owned()
        }
        _ => "it has not four characters for each three bytes".to_owned(),
    };
    format!("is not base64: {why}; use A-Z a-z 0-9 + / with = at the end")
}

/// Decodes base64 as written between the quotes of JSON; if it contains escapes, block by block, so that no copy of it
/// is made.
fn decoded(quoted: &str, into: &mut [u8]) -> Result<usize, DecodeSliceError> {
    if memchr::memchr(b'\\', quoted.as_bytes()).is_none() {
        return BASE64_STANDARD.decode_slice(quoted, into);
    }
    let mut letters = quoted.bytes();
    let (mut block, mut at, mut padded) = ([0; BASE64_STEP_BYTES], 0, false);
    loop {
        let mut length = 0;
        while length < BASE64_STEP_BYTES
            && let Some(letter) = unescaped(&mut letters)
        {
            if !is_line_end(letter) {
                block[length] = letter;
                length += 1;
            }
        }
        if length == 0 {
            return Ok(at);
        }
        if padded {
            return Err(DecodeError::InvalidByte(at, b'=').into()); // there is more after the padding
        }
        padded = block[length - 1] == b'=';
        at += BASE64_STANDARD.decode_slice(&block[..length], &mut into[at..])?;
    }
}

/// The next character of base64, which may be escaped; 0 if it is invalid.
fn unescaped(letters: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let letter = letters.next()?;
    if letter != b'\\' {
        return Some(letter);
    }
    match letters.next()? {
        b'/' => Some(b'/'),
        b'n' => Some(b'\n'),
        b'r' => Some(b'\r'),
        b'u' => {
            let digits = letters.take(4).map(|digit| char::from(digit).to_digit(16).unwrap_or(0));
            Some(u8::try_from(digits.fold(0, |code, digit| code * 16 + digit)).unwrap_or(0))
        }
        _ => Some(0),
    }
}

/// `{"records":[…]}`
struct Document<'a>(&'a mut FrameWriter);
/// `[…]`, each element of which is a record as `T` has it.
struct List<'a, T> {
    frames: &'a mut FrameWriter,
    expected: &'static str,
    record: fn(&mut FrameWriter, T) -> Result<(), Problem>,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with records")
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        let mut map = Members::new(map);
        let mut found = false;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key != "records" {
                return Err(de::Error::unknown_field(&key, &["records"]));
            }
            if found {
                return Err(de::Error::duplicate_field("records"));
            }
            found = true;
            map.next_value_seed(List {
                frames: &mut *self.0,
                expected: "a list of records",
                record: |frames, Object(record): Object<Record<'de>>| frames.record(&record),
            })?;
        }
        if found { Ok(()) } else { Err(de::Error::missing_field("records")) }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for List<'_, T> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<'_, T> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(record) = list.next_element()? {
            if let Err(problem) = (self.record)(self.frames, record) {
                self.frames.refused = Some(problem);
                return Err(de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
