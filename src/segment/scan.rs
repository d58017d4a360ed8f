//! The frames from the start of a segment, up to the first that does not verify. No I/O.

use crate::frame::{self, Key, LOST, MORE, WORD};

/// The frames from the start of a segment, as long as each verifies and follows the one before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The word of each record. Whole batches only, but for records that are [known](scan_with) to be there.
    pub(crate) positions: Vec<u32>,
    /// The words that the frames take.
    pub(crate) words: u32,
    /// When the first and the last record were appended, in milliseconds since the segment was begun.
    pub(crate) times: (u64, u64),
    /// The CRC in the last frame.
    pub(crate) last_crc: Option<u32>,
    /// How many of the records are marks of lost ones.
    pub(crate) lost: u32,
}

/// What the footer says about the frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    pub(crate) words: u32,
    pub(crate) times: (u64, u64),
    pub(crate) last_crc: Option<u32>,
}

impl Scan {
    pub(crate) fn records(&self) -> u32 {
        self.positions.len() as u32
    }

    /// What a footer says about these frames.
    pub(crate) fn summary(&self) -> Summary {
        Summary { words: self.words, times: self.times, last_crc: self.last_crc }
    }

    /// The scan without the records from `records` on.
    pub(crate) fn first(mut self, bytes: &[u8], key: Key, records: u32) -> Self {
        let Some(&word) = self.positions.get(records as usize) else { return self };
        let is_lost = |at: &&u32| {
            let found = bytes.get(frame::in_bytes(**at)..).and_then(frame::parse);
            found.is_some_and(|frame| frame.flags & LOST != 0)
        };
        self.lost -= self.positions[records as usize..].iter().filter(is_lost).count() as u32;
        self.positions.truncate(records as usize);
        let last = self.positions.last().and_then(|&at| bytes.get(frame::in_bytes(at)..));
        self.words = word;
        self.times.1 = last.and_then(frame::parse).map_or(0, |last| last.time);
        self.last_crc = last.map(|last| frame::claimed_crc(last, key).0);
        self
    }
}

/// Scans the frames' region of a segment.
pub(crate) fn scan(bytes: &[u8], key: Key) -> Scan {
    scan_with(bytes, key, 0)
}

/// Scans the frames' region of a segment of which it is known for certain that it has at least `known` records: each of
/// them counts if its frame is there, even if the rest of its batch is not.
pub(crate) fn scan_with(bytes: &[u8], key: Key, known: u32) -> Scan {
    let (mut positions, mut word, mut first_time) = (Vec::new(), 0, 0);
    let mut whole = Scan::default(); // up to the end of the last whole batch, without the positions
    let (mut count, mut lost) = (0, 0);
    while let Some(rest) = bytes.get(word * WORD..)
        && let Some(found) = frame::decode(rest, key)
    {
        if found.record as usize != positions.len() {
            break;
        }
        if positions.is_empty() {
            first_time = found.frame.time;
        }
        positions.push(word as u32);
        word += found.frame.words() as usize;
        lost += u32::from(found.frame.flags & LOST != 0);
        if found.frame.flags & MORE == 0 || positions.len() <= known as usize {
            (count, whole.lost) = (positions.len(), lost);
            (whole.words, whole.times) = (word as u32, (first_time, found.frame.time));
            whole.last_crc = Some(frame::claimed_crc(rest, key).0);
        }
    }
    positions.truncate(count);
    Scan { positions, ..whole }
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests {
    use super::*;
    use crate::frame::{Stamp, encode, words};

    pub(in super::super) const KEY: Key = Key::test(3);

    /// Frames with these records, behinds and flags, one after the other.
    pub(in super::super) fn frames(stamps: &[(u32, u32, u16)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(record, behind, flags) in stamps {
            let start = bytes.len();
            bytes.resize(start + frame::in_bytes(words(5)), 0);
            let stamp = Stamp { record, behind, time: u64::from(record) + 10, flags };
            encode(&mut bytes[start..], KEY, stamp, b"value");
        }
        bytes
    }

    #[test]
    fn a_scan_ends_at_the_last_whole_batch() {
        let bytes = frames(&[(0, 0, 0), (1, 1, MORE), (2, 2, 0), (3, 3, MORE), (4, 4, MORE)]);
        let found = scan(&bytes, KEY);
        let last_crc = Some(u32::from_le_bytes(*bytes[64..].first_chunk().unwrap()));
        assert_eq!(found, Scan { positions: vec![0, 4, 8], words: 12, times: (10, 12), last_crc, lost: 0 });
        assert_eq!(scan(&bytes, Key::test(4)), Scan::default(), "another segment's key");
        assert_eq!(scan(&frames(&[(1, 0, 0)]), KEY), Scan::default(), "the first record must be 0");
    }

    #[test]
    fn records_that_are_known_to_be_there_count_without_the_rest_of_their_batch() {
        let bytes = frames(&[(0, 0, 0), (1, 1, MORE), (2, 2, MORE), (3, 3, 0), (4, 4, MORE)]);
        let cut = &bytes[..3 * 32 + 20];
        let counts = |bytes: &[u8]| [0, 1, 2, 3, 4, 5].map(|known| scan_with(bytes, KEY, known).records());
        assert_eq!(counts(cut), [1, 1, 2, 3, 3, 3]);
        assert_eq!(counts(&bytes), [4, 4, 4, 4, 4, 5]);
    }

    #[test]
    fn the_first_records_of_a_scan_do_not_depend_on_those_after_them() {
        let bytes = frames(&[(0, 0, LOST), (1, 1, 0), (2, 2, LOST)]);
        for records in 0..4 {
            let fewer = scan(&bytes[..(records as usize * 32).min(bytes.len())], KEY);
            let first = scan(&bytes, KEY).first(&bytes, KEY, records);
            assert_eq!(
                (first.positions, first.words, first.last_crc, first.lost),
                (fewer.positions, fewer.words, fewer.last_crc, records.div_ceil(2).min(2))
            );
        }
    }
}
