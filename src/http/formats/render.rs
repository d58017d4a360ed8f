//! Writing records out.

use super::Format;
use crate::{
    log::{Head, RecordRef},
    wire::{AnswerFrame, LOST_TIME},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use std::io::Write;

/// The most bytes that a record with a value of `length` bytes takes in an answer.
pub(in crate::http) fn rendered_bytes(length: usize, json: bool) -> usize {
    const NAMES_AND_NUMBERS: usize = 100;
    NAMES_AND_NUMBERS + if json { length } else { length.div_ceil(3) * 4 }
}

/// The number of bytes that [`render`] writes for a record.
pub(in crate::http) fn length(format: Format, offset: u64, record: Head) -> u64 {
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
pub(in crate::http) fn render(format: Format, out: &mut Vec<u8>, record: &RecordRef<'_>) {
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
pub(in crate::http) fn object(out: &mut Vec<u8>, record: &RecordRef<'_>) {
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

pub(in crate::http) fn base64(out: &mut Vec<u8>, value: &[u8]) {
    let start = out.len();
    out.resize(start + base64::encoded_len(value.len(), true).unwrap_or(0), 0);
    let written = BASE64_STANDARD.encode_slice(value, &mut out[start..]);
    debug_assert_eq!(written, Ok(out.len() - start));
}
