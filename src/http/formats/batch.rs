//! Splitting a body into the records of a batch.

use super::{Format, json};
use crate::{
    Code,
    chunk::AppendValues,
    frame::JSON,
    http::{memory::Grant, problem::Problem, segment_room::SegmentRoom},
    import::BYTE_ORDER_MARK,
    settings::{LogSettings, Values, check_json},
    wire::AppendFrame,
};
use bytes::Bytes;

/// A body of records. The records are found again each time that they are iterated over, so that none costs more memory
/// than its bytes.
#[derive(Debug)]
pub(in crate::http) struct DecodedBatch {
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
    pub(in crate::http) fn records(&self) -> u64 {
        self.records
    }

    /// The number of bytes of their values.
    pub(in crate::http) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The batch without its first records.
    pub(in crate::http) fn without_first(mut self, records: u64) -> Self {
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
    pub(in crate::http) fn check(&mut self, settings: &LogSettings) -> Result<(), Problem> {
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

/// Parses a body whose records may take `room`. What is decoded is in the budget that `grant` belongs to.
pub(in crate::http) fn parse(
    format: Format,
    body: Bytes,
    room: SegmentRoom,
    grant: Grant,
) -> Result<DecodedBatch, Problem> {
    let batch = match format {
        Format::Json => {
            let body = json::frames(&without_byte_order_mark(format, body), room, grant)?;
            counted(body, Shape::Frames, room, |body, count| check_frames(body, false, 0, count))?
        }
        _ => parse_part(format, without_byte_order_mark(format, body), room, 0)?,
    };
    if batch.records == 0 {
        return Err(Problem::new(Code::EmptyBatch, "the body has no record; send at least one"));
    }
    Ok(batch)
}

/// The body, or the first part of one, without its byte order mark, which some editors write: it is no part of the
/// first line.
pub(in crate::http) fn without_byte_order_mark(format: Format, body: Bytes) -> Bytes {
    let is_text = match format {
        Format::Text | Format::Json | Format::Ndjson => true,
        Format::Bytes | Format::Frames => false,
    };
    if is_text && body.starts_with(BYTE_ORDER_MARK) { body.slice(BYTE_ORDER_MARK.len()..) } else { body }
}

/// Parses a part of a body that comes after `before` lines or frames, and that may have no records. For all formats but JSON,
/// where a part cannot be parsed alone.
pub(in crate::http) fn parse_part(
    format: Format,
    body: Bytes,
    room: SegmentRoom,
    before: u64,
) -> Result<DecodedBatch, Problem> {
    match format {
        Format::Ndjson => counted(body, Shape::JsonLines, room, |body, count| {
            json_lines(body).try_for_each(|(number, line)| {
                check_json(line).map_err(|error| {
                    let number = before + number;
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
            counted(body, Shape::Frames, room, |body, count| check_frames(body, true, before, count))
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

/// Refuses frames that are incomplete or, if JSON is to be `checked`, whose values marked as JSON are not JSON. `before`
/// frames of the body came before these.
fn check_frames(
    body: &[u8],
    checked: bool,
    before: u64,
    count: &mut dyn FnMut(&[u8]) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let (mut left, mut number) = (body, 0);
    while !left.is_empty() {
        number += 1;
        let Some((AppendFrame { json, value }, rest)) = AppendFrame::split(left) else {
            let detail =
                format!("the body ends within frame {}: its length is wrong, or it was cut", before + number);
            return Err(
                Problem::new(Code::InvalidFrame, detail).with(|numbers| numbers.record = Some(number))
            );
        };
        if json && checked {
            check_json(value).map_err(|error| {
                let detail = format!("frame {} is marked as JSON and is not: {error}", before + number);
                Problem::new(Code::InvalidJson, detail).with(|numbers| numbers.record = Some(number))
            })?;
        }
        count(value)?;
        left = rest;
    }
    Ok(())
}
