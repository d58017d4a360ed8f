//! What frames are there, judged by the frames alone. No I/O.

use crate::frame::{self, MORE, WORD};

/// The frames from the start of a segment, as far as each verifies and follows the one before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The word of each record. Whole batches only.
    pub(crate) positions: Vec<u32>,
    /// Words they take.
    pub(crate) words: u32,
    /// When the first was appended, and the last; milliseconds since the segment was begun.
    pub(crate) times: (u64, u64),
}

/// Scans the frames' region of a segment.
pub(crate) fn scan(bytes: &[u8], seed: u32) -> Scan {
    let mut positions = Vec::new();
    let (mut word, mut time) = (0, 0);
    let mut whole = Scan::default(); // to the end of the last whole batch
    let mut count = 0;
    while let Some(frame) = bytes.get(word * WORD..).and_then(|rest| frame::decode(rest, seed)) {
        if frame.stamp.record as usize != positions.len() {
            break;
        }
        if positions.is_empty() {
            time = frame.stamp.time;
        }
        positions.push(word as u32);
        word += frame.words() as usize;
        if frame.stamp.flags & MORE == 0 {
            count = positions.len();
            (whole.words, whole.times) = (word as u32, (time, frame.stamp.time));
        }
    }
    positions.truncate(count);
    Scan { positions, ..whole }
}

/// What is found behind a place where the frames do not go on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// So many records of this segment had been durable, by what the frames found say of themselves.
    pub(crate) durable: u32,
    /// The frames that verify: record and word, in order.
    pub(crate) frames: Vec<(u32, u32)>,
}

/// How much may be checksummed while looking, in multiples of the segment's size. Values can be made to look like
/// headers at every word; who does that must not make recovery take hours.
const EFFORT: usize = 64;

/// Looks at every word from `from` on for frames of records from `record` on. `None` if the bytes are made so that
/// looking would take too long: then nothing is known.
pub(crate) fn beyond(bytes: &[u8], seed: u32, from: u32, record: u32) -> Option<Beyond> {
    let mut found = Beyond::default();
    let mut effort = bytes.len().saturating_mul(EFFORT);
    let (mut word, mut next) = (from as usize, record);
    while let Some(rest) = bytes.get(word * WORD..).filter(|rest| rest.len() >= frame::HEADER) {
        let plausible = frame::parse(rest).filter(|frame| frame.stamp.record >= next);
        let Some(plausible) = plausible else {
            word += 1;
            continue;
        };
        effort = effort.checked_sub(plausible.words() as usize * WORD)?;
        let Some(frame) = frame::decode(rest, seed) else {
            word += 1;
            continue;
        };
        let stamp = frame.stamp;
        if stamp.behind != u32::MAX {
            found.durable = found.durable.max(stamp.record.saturating_sub(stamp.behind));
        }
        found.frames.push((stamp.record, word as u32));
        next = stamp.record + 1;
        word += frame.words() as usize;
    }
    Some(found)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::frame::{Stamp, encode, words};

    fn frames(stamps: &[(u32, u32, u16)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(record, behind, flags) in stamps {
            let start = bytes.len();
            bytes.resize(start + words(5) as usize * WORD, 0);
            encode(
                &mut bytes[start..],
                3,
                Stamp { record, behind, time: u64::from(record) + 10, flags },
                b"value",
            );
        }
        bytes
    }

    #[test]
    fn a_scan_ends_at_the_last_whole_batch() {
        let bytes = frames(&[(0, 0, 0), (1, 1, MORE), (2, 2, 0), (3, 3, MORE), (4, 4, MORE)]);
        let found = scan(&bytes, 3);
        assert_eq!(found, Scan { positions: vec![0, 4, 8], words: 12, times: (10, 12) });
        assert_eq!(scan(&bytes, 4), Scan::default(), "another segment's seed");
        assert_eq!(scan(&frames(&[(1, 0, 0)]), 3), Scan::default(), "the first record is 0");
    }

    #[test]
    fn frames_behind_a_hole_say_how_far_the_log_was_durable() {
        let mut bytes = frames(&[(0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 1, 0)]);
        bytes[40] ^= 1; // record 1
        assert_eq!(scan(&bytes, 3).positions, [0]);
        assert_eq!(beyond(&bytes, 3, 4, 1), Some(Beyond { durable: 2, frames: vec![(2, 8), (3, 12)] }));
    }

    #[test]
    fn values_that_look_like_headers_everywhere_end_the_search() {
        // Each word: a length of nearly all, and a record number that would be next.
        let word = (u64::from(u32::MAX) & 5 | (1 << 18) << 32).to_le_bytes();
        let bytes: Vec<u8> = word.iter().copied().cycle().take(1 << 20).collect();
        assert_eq!(beyond(&bytes, 3, 0, 0), None);
    }
}
