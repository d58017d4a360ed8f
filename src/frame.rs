//! The frame: one record as it is stored in a chunk and in a segment file. No I/O, no allocation.
//!
//! ```text
//! byte 0        4        8        12       16                 22     24
//!      | crc    | length | record | behind | time             | flags | value … | zeros to a multiple of 8 |
//! ```
//!
//! All fields are little-endian. `length` is the length of the value in bytes. `record` counts from the segment's first
//! record. `behind` says how many records before this one (not counting itself) were not yet durable when it was
//! written, so a frame that verifies proves that all records before `record - behind` were durable. `time` is in
//! milliseconds since the segment was begun. A frame always occupies whole words of 8 bytes.
//!
//! `crc` is the CRC-32C of bytes 8 to the end of the padding, starting from `seed ^ length`; `record` and `behind` are
//! masked (exclusive or). Seed and mask form the segment's [`Key`], derived from the log's secret and the segment's
//! base offset. A frame left over in recycled memory, or copied from elsewhere, therefore does not verify in any other
//! segment, and nobody who cannot read the files can construct a value that contains frames. [`FRAME`] is set in every
//! frame, so that zeros are never a frame.

use crate::LogId;

/// Bytes in a word, the unit in which space is reserved.
pub(crate) const WORD: usize = 8;

/// The bytes of this many words.
#[inline]
pub(crate) fn in_bytes(words: impl Into<u64>) -> usize {
    words.into() as usize * WORD
}

/// Bytes before the value.
pub(crate) const HEADER_BYTES: usize = 24;
/// Words of the smallest frame, that of an empty value.
pub(crate) const MIN_WORDS: u32 = (HEADER_BYTES / WORD) as u32;

/// Set in every frame.
const FRAME: u16 = 0x8000;
/// The batch continues with the next record: this record counts only together with it.
pub(crate) const MORE: u16 = 0x0001;
/// The value was lost to damage, and `repair` put this frame in its place.
pub(crate) const LOST: u16 = 0x0002;
/// The value is JSON, according to the caller that appended it.
pub(crate) const JSON: u16 = 0x0004;
/// An extension block precedes the value: its length (`u16`), then that many bytes, such as a producer's sequence.
pub(crate) const EXTENDED: u16 = 0x0008;
/// Bytes of an extension block's length.
pub(crate) const EXTENSION_LENGTH: usize = 2;
const KNOWN: u16 = FRAME | MORE | LOST | JSON | EXTENDED;

/// What the frames of one segment are written and verified with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    /// The value that each CRC starts from.
    pub(crate) seed: u32,
    /// Masks `record` and `behind`, in the order in which they are stored. Without it a value could be made to look as
    /// if a frame started at every word, and recovery would have to compute a CRC for each of them.
    mask: u64,
}

impl Key {
    /// The key of the segment at `base`, in a log with this secret.
    pub(crate) fn new(secret: &[u8; 16], base: u64) -> Self {
        let seed = crc32c::crc32c_append(crc32c::crc32c(secret), &base.to_le_bytes());
        // A CRC is linear: a mask derived from the same 32 bits would add nothing that must be guessed.
        let half = u64::from_le_bytes(std::array::from_fn(|i| secret[i]));
        Self { seed, mask: half ^ base.wrapping_mul(0x9E37_79B9_7F4A_7C15) }
    }

    /// The key of the segment at `base` in format 1, whose logs have no secret: derived from what the API reveals about
    /// a log.
    pub(crate) fn version_1(log: LogId, base: u64) -> Self {
        Self { seed: crc32c::crc32c_append(crc32c::crc32c(log.as_bytes()), &base.to_le_bytes()), mask: 0 }
    }

    /// A key derived from a number, for tests of frames alone.
    #[cfg(any(test, fuzzing))]
    pub(crate) const fn test(seed: u32) -> Self {
        Self { seed, mask: (seed as u64) << 17 ^ seed as u64 }
    }

    /// Masks `record` and `behind` for storing, or unmasks them.
    #[inline]
    const fn hide(self, place: u64) -> u64 {
        place ^ self.mask
    }
}

/// What is stored about a record besides its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) record: u32,
    pub(crate) behind: u32,
    pub(crate) time: u64,
    pub(crate) flags: u16,
}

/// A frame, as far as it can be read without its segment's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) time: u64,
    pub(crate) flags: u16,
    pub(crate) value: &'a [u8],
    /// The extension before the value; empty if there is none.
    pub(crate) extension: &'a [u8],
    /// Everything after the header: extension block and value.
    pub(crate) body: &'a [u8],
}

impl Frame<'_> {
    /// The words this frame occupies.
    pub(crate) fn words(&self) -> u32 {
        words(self.body.len()) as u32
    }
}

/// A frame that verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verified<'a> {
    pub(crate) record: u32,
    pub(crate) behind: u32,
    pub(crate) frame: Frame<'a>,
}

impl Verified<'_> {
    pub(crate) fn stamp(&self) -> Stamp {
        let Self { record, behind, frame: Frame { time, flags, .. } } = *self;
        Stamp { record, behind, time, flags }
    }
}

/// The words that a value of `length` bytes occupies as a frame.
#[inline]
pub(crate) const fn words(length: usize) -> u64 {
    MIN_WORDS as u64 + length.div_ceil(WORD) as u64
}

#[inline]
fn checksum(seed: u32, length: u32, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(seed ^ length, rest)
}

/// Writes the frame of `value` into `dst`, which must be exactly as long as the frame.
#[inline]
pub(crate) fn encode(dst: &mut [u8], key: Key, stamp: Stamp, value: &[u8]) {
    let length = value.len() as u32;
    let (header, body) = dst.split_at_mut(HEADER_BYTES);
    // The last word, if the value fills only part of it, is assembled in a register and stored at once: the checksum
    // reads it back a moment later, which stalls if the word comes from two stores (measured: a fifth of an append).
    let (whole, rest) = value.split_at(value.len() / WORD * WORD);
    body[..whole.len()].copy_from_slice(whole);
    if let Some(last) = body.get_mut(whole.len()..).filter(|last| !last.is_empty()) {
        let word = match value.last_chunk::<WORD>() {
            Some(end) => u64::from_le_bytes(*end) >> (8 * (WORD - rest.len())),
            None => rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
        };
        last.copy_from_slice(&word.to_le_bytes());
    }
    let place = key.hide(u64::from(stamp.record) | u64::from(stamp.behind) << 32);
    let time = stamp.time & ((1 << 48) - 1) | u64::from(stamp.flags | FRAME) << 48;
    header[8..16].copy_from_slice(&place.to_le_bytes());
    header[16..24].copy_from_slice(&time.to_le_bytes());
    let crc = checksum(key.seed, length, &dst[8..]);
    dst[..8].copy_from_slice(&(u64::from(crc) | u64::from(length) << 32).to_le_bytes());
}

/// The words of the frame at the start of `bytes`, from its header alone; for skipping from frame to frame where the
/// frames are known to be whole. `None` if `bytes` ends before the length.
#[inline]
pub(crate) fn peek_words(bytes: &[u8]) -> Option<u64> {
    let head = bytes.first_chunk::<8>()?;
    Some(words((u64::from_le_bytes(*head) >> 32) as usize))
}

/// Reads the frame at the start of `bytes` without checking its CRC; for frames that this process wrote or verified.
#[inline]
pub(crate) fn parse(bytes: &[u8]) -> Option<Frame<'_>> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| header[n * WORD + i]));
    let (first, last) = (word(0), word(2));
    let body = body.get(..(first >> 32) as usize)?;
    let (time, flags) = (last & ((1 << 48) - 1), (last >> 48) as u16 & !FRAME);
    if flags & EXTENDED == 0 {
        return Some(Frame { time, flags, value: body, extension: &[], body });
    }
    let (length, rest) = body.split_first_chunk::<EXTENSION_LENGTH>()?;
    let (extension, value) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    Some(Frame { time, flags, value, extension, body })
}

/// What a header says, before anything is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) record: u32,
    pub(crate) time: u64,
    pub(crate) flags: u16,
    /// Words of the frame.
    pub(crate) words: u64,
    /// Bytes of the value.
    pub(crate) length: usize,
}

/// Bytes from which [`head`] says all it can: the header, and how long an extension block is.
pub(crate) const PEEK_BYTES: usize = HEADER_BYTES + EXTENSION_LENGTH;

/// The head of the frame that begins `bytes`, of which [`PEEK_BYTES`] are enough. `None` if it cannot be one.
pub(crate) fn head(bytes: &[u8], key: Key) -> Option<Head> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| header[n * WORD + i]));
    let (body, raw_flags) = ((word(0) >> 32) as usize, (word(2) >> 48) as u16);
    if raw_flags & FRAME == 0 || raw_flags & !KNOWN != 0 {
        return None;
    }
    let flags = raw_flags & !FRAME;
    let before = match flags & EXTENDED {
        0 => 0,
        _ => EXTENSION_LENGTH + usize::from(u16::from_le_bytes(*rest.first_chunk()?)),
    };
    let (record, time) = (key.hide(word(1)) as u32, word(2) & ((1 << 48) - 1));
    Some(Head { record, time, flags, words: words(body), length: body.checked_sub(before)? })
}

/// How many words into `bytes` the first frame can begin, judging by its flags alone: one in 4,096 random words has
/// flags that a frame can have.
#[inline]
pub(crate) fn next_candidate(bytes: &[u8]) -> Option<usize> {
    let may_end_header = |word: &[u8]| {
        let flags = u16::from_le_bytes([word[WORD - 2], word[WORD - 1]]);
        flags & FRAME != 0 && flags & !KNOWN == 0
    };
    bytes.get(HEADER_BYTES - WORD..)?.chunks_exact(WORD).position(may_end_header)
}

/// What the header at the start of `bytes` says, if it can be the header of a frame that fits: its flags are known and
/// its padding is zero. Checks everything about a frame but its CRC.
#[inline]
pub(crate) fn plausible(bytes: &[u8], key: Key) -> Option<Verified<'_>> {
    let raw_flags = u16::from_le_bytes([*bytes.get(22)?, *bytes.get(23)?]);
    if raw_flags & FRAME == 0 || raw_flags & !KNOWN != 0 {
        return None;
    }
    let frame = parse(bytes)?;
    let padding = bytes.get(HEADER_BYTES + frame.body.len()..in_bytes(frame.words()))?;
    if padding.iter().any(|&byte| byte != 0) {
        return None;
    }
    let place = key.hide(u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i])));
    Some(Verified { record: place as u32, behind: (place >> 32) as u32, frame })
}

/// The CRC stored in the frame at the start of `bytes`, and the seed to compute it from, over bytes 8 to the end of the
/// frame.
#[inline]
pub(crate) fn claimed_crc(bytes: &[u8], key: Key) -> (u32, u32) {
    let first = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
    (first as u32, key.seed ^ (first >> 32) as u32)
}

/// Reads and verifies the frame at the start of `bytes`. `None` if there is none: too short, unknown flags, padding
/// that is not zero, or a CRC that does not match.
pub(crate) fn decode(bytes: &[u8], key: Key) -> Option<Verified<'_>> {
    let found = plausible(bytes, key)?;
    let (crc, seed) = claimed_crc(bytes, key);
    let rest = &bytes[WORD..in_bytes(found.frame.words())];
    (crc == crc32c::crc32c_append(seed, rest)).then_some(found)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(seed: u32, stamp: Stamp, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xAA; in_bytes(words(value.len()))];
        encode(&mut bytes, Key::test(seed), stamp, value);
        bytes
    }

    proptest! {
        #[test]
        fn encoded_frames_decode(
            seed: u32, record: u32, behind: u32, time in 0..1u64 << 48, more: bool,
            value in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let stamp = Stamp { record, behind, time, flags: if more { MORE } else { 0 } };
            let bytes = encoded(seed, stamp, &value);
            let found = decode(&bytes, Key::test(seed)).unwrap();
            prop_assert_eq!((found.stamp(), found.frame.value, found.frame.body), (stamp, &value[..], &value[..]));
            prop_assert_eq!(peek_words(&bytes), Some(bytes.len() as u64 / 8));
            let head = head(&bytes[..PEEK_BYTES.min(bytes.len())], Key::test(seed)).unwrap();
            prop_assert_eq!((head.record, head.time, head.flags), (record, stamp.time, stamp.flags));
            prop_assert_eq!((head.words, head.length), (bytes.len() as u64 / 8, value.len()));
        }

        #[test]
        fn a_changed_bit_or_seed_or_a_cut_does_not_verify(
            seed: u32, value in prop::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, bit in 0..8u8,
        ) {
            let stamp = Stamp { record: 7, behind: 1, time: 9, flags: 0 };
            let good = encoded(seed, stamp, &value);
            let mut bad = good.clone();
            bad[at.index(good.len())] ^= 1 << bit;
            prop_assert_eq!(decode(&bad, Key::test(seed)), None);
            prop_assert_eq!(decode(&good, Key::test(seed ^ 1)), None);
            prop_assert_eq!(decode(&good[..at.index(good.len())], Key::test(seed)), None);
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(seed: u32, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(found) = decode(&bytes, Key::test(seed)) {
                let again = encoded(seed, found.stamp(), found.frame.body);
                prop_assert_eq!(&again[..], &bytes[..in_bytes(found.frame.words())]);
            }
        }
    }

    #[test]
    fn an_extension_block_is_distinguished_from_the_value_and_a_false_one_is_not_a_frame() {
        let stamp = Stamp { record: 1, behind: 0, time: 0, flags: EXTENDED };
        let bytes = encoded(1, stamp, b"\x03\0extvalue");
        let frame = decode(&bytes, Key::test(1)).unwrap().frame;
        assert_eq!((frame.extension, frame.value, frame.words()), (&b"ext"[..], &b"value"[..], 5));
        let head = head(&bytes[..PEEK_BYTES], Key::test(1)).unwrap();
        assert_eq!((head.record, head.flags, head.words, head.length), (1, EXTENDED, 5, 5));
        for lies in [&b""[..], b"\x01", b"\x02\0x", b"\xff\xffxyz"] {
            assert_eq!(decode(&encoded(1, stamp, lies), Key::test(1)), None);
        }
    }

    #[test]
    fn zeros_are_not_a_frame_under_any_seed_that_makes_their_crc_zero() {
        // CRC-32C is invertible, so such a seed is known to exist without searching; the flag must reject it.
        for seed in 0..1u32 << 16 {
            assert_eq!(decode(&[0; 64], Key::test(seed.wrapping_mul(0x9E37_79B9))), None);
        }
    }
}
