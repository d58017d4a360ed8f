//! Whether the records of a body fit into a segment, checked while the body is decoded.

use super::problem::Problem;
use super::{formats::Format, segment_room::SegmentRoom};
use crate::{chunk::record_needs, wire::Prefix};

/// Looks at a body while it is decoded, and refuses it as soon as its records can no longer fit into a segment: a small
/// body may decode to millions of them. It never counts more than what the records need.
pub(super) struct Meter {
    format: Format,
    room: SegmentRoom,
    /// For NDJSON: whether the current line has anything other than white space.
    begun: bool,
    /// For wire frames: the bytes of the current value that are still to come, and the part of the next prefix that
    /// has arrived.
    value: u64,
    prefix: [u8; Prefix::BYTES],
    prefix_bytes: usize,
}

impl Meter {
    pub(super) fn new(format: Format, room: SegmentRoom) -> Self {
        Self { format, room, begun: false, value: 0, prefix: [0; Prefix::BYTES], prefix_bytes: 0 }
    }

    pub(super) fn see(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let empty = record_needs(0);
        match self.format {
            Format::Text => {
                let lines = memchr::memchr_iter(b'\n', bytes).count() as u64;
                let values = (bytes.len() as u64).saturating_sub(2 * lines);
                self.room.take(lines * empty + values)
            }
            Format::Ndjson => {
                let mut lines = 0;
                for &byte in bytes {
                    if byte == b'\n' {
                        lines += u64::from(self.begun);
                        self.begun = false;
                    } else {
                        self.begun |= !byte.is_ascii_whitespace();
                    }
                }
                self.room.take(lines * empty)
            }
            Format::Bytes => self.room.take(bytes.len() as u64),
            Format::Frames => self.frames(bytes),
            // Because of white space and base64, nothing is known before the body is parsed.
            Format::Json => Ok(()),
        }
    }

    fn frames(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let skipped = self.value.min(bytes.len() as u64);
            self.value -= skipped;
            bytes = &bytes[skipped as usize..];
            let wanted = (self.prefix.len() - self.prefix_bytes).min(bytes.len());
            self.prefix[self.prefix_bytes..][..wanted].copy_from_slice(&bytes[..wanted]);
            self.prefix_bytes += wanted;
            bytes = &bytes[wanted..];
            if self.prefix_bytes == self.prefix.len() {
                self.value = u64::from(Prefix::from_bytes(self.prefix).length);
                self.prefix_bytes = 0;
                self.room.record(self.value as usize)?;
            }
        }
        Ok(())
    }
}
