//! Searches for a segment's frames at every word of some bytes, whatever they are: values that look like headers, an
//! index, leftovers of other files. The answer is exact and takes bounded time: every place where a frame can start is
//! checked, none twice, at a cost that does not depend on the length its header gives.
//!
//! A CRC is linear: given the CRC of all bytes before each place, the CRC of any range takes two look-ups and a
//! multiplication (G. Castagnoli et al. 1993 for the polynomial; M. Adler's `crc32_combine` in zlib for the
//! multiplication modulo it).

use crate::frame::{self, Key, MIN_WORDS, WORD};
use std::sync::LazyLock;

/// What is found after a place where the frames break off.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Later {
    /// How many records of this segment were durable, according to the frames found.
    pub(crate) durable: u32,
    /// The frames that verify, each as its record and its word, in order.
    pub(crate) frames: Vec<(u32, u32)>,
}

/// For frames of up to this many bytes the CRC is computed directly, which is quicker.
const MAX_DIRECT_BYTES: usize = 512;

/// Looks at every word from `from` on, where the frame of `record` would start, for frames of that record and later
/// ones.
pub(crate) fn frames_from(bytes: &[u8], key: Key, from: u32, record: u32) -> Later {
    let mut later = Later::default();
    let mut prefixes = None;
    let (mut word, mut next, mut next_word) = (from as usize, record, from as usize);
    while let Some(skipped) = bytes.get(word * WORD..).and_then(frame::next_candidate) {
        word += skipped;
        let rest = &bytes[word * WORD..];
        let found = frame::plausible(rest, key).filter(|found| {
            // The records between the last known one and this one must have had room for at least a header each.
            let between = found.record.checked_sub(next).map(|records| records as usize * MIN_WORDS as usize);
            between.is_some_and(|words| words <= word - next_word)
        });
        let verified = found.filter(|found| {
            let length = frame::in_bytes(found.frame.words());
            let (crc, seed) = frame::claimed_crc(rest, key);
            crc == if length <= MAX_DIRECT_BYTES {
                crc32c::crc32c_append(seed, &rest[WORD..length])
            } else {
                let begin = word * WORD + WORD;
                prefixes.get_or_insert_with(|| Prefixes::new(bytes)).crc(seed, begin, word * WORD + length)
            }
        });
        let Some(found) = verified else {
            word += 1;
            continue;
        };
        if found.behind != u32::MAX {
            later.durable = later.durable.max(found.record.saturating_sub(found.behind));
        }
        later.frames.push((found.record, word as u32));
        next = found.record + 1;
        word += found.frame.words() as usize;
        next_word = word;
    }
    later
}

/// The CRC of any range of some bytes.
struct Prefixes<'a> {
    bytes: &'a [u8],
    /// The register after each multiple of [`STEP`] bytes, starting from 0.
    registers: Vec<u32>,
}

/// Bytes from one register to the next. Fewer than this are left to compute at each end of a range.
const STEP: usize = 512;

/// The CRC register after `bytes`, starting from `register`, without the inversions that turn a register into a CRC.
fn run(register: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!register, bytes)
}

impl<'a> Prefixes<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let after = |register: &mut u32, step: &[u8]| {
            *register = run(*register, step);
            Some(*register)
        };
        let registers = std::iter::once(0).chain(bytes.chunks(STEP).scan(0, after)).collect();
        Self { bytes, registers }
    }

    fn register(&self, end: usize) -> u32 {
        run(self.registers[end / STEP], &self.bytes[end / STEP * STEP..end])
    }

    /// The CRC of the bytes from `begin` to `end`, a whole number of words, starting from `seed`.
    fn crc(&self, seed: u32, begin: usize, end: usize) -> u32 {
        // The register is linear in its earlier value: subtract what the bytes before `begin` have left in it.
        let before = self.register(begin) ^ !seed;
        !(self.register(end) ^ append_zeros(before, (end - begin) / WORD))
    }
}

/// CRC-32C's polynomial, the highest power in bit 0.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// The product of two polynomials modulo [`POLYNOMIAL`].
const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 1 << 31);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = b >> 1 ^ if b & 1 == 1 { POLYNOMIAL } else { 0 };
        bit >>= 1;
    }
    product
}

/// Bits of a word count that one table covers; three tables cover more words than a segment has.
const DIGIT: u32 = 10;

/// The factor that `n << (DIGIT * table)` words of zeros multiply a register by.
static POWERS: LazyLock<[Vec<u32>; 3]> = LazyLock::new(|| {
    let mut base = 1 << 30; // x
    for _ in 0..6 {
        base = multiply(base, base); // to x^64, a word
    }
    [(); 3].map(|()| {
        let mut powers = vec![1 << 31]; // 1
        for n in 0..1 << DIGIT {
            powers.push(multiply(powers[n], base));
        }
        base = powers[1 << DIGIT];
        powers
    })
});

/// The register after this many words of zeros.
fn append_zeros(register: u32, words: usize) -> u32 {
    let powers = &*POWERS;
    let digit = |table: u32| words >> (DIGIT * table) & ((1 << DIGIT) - 1);
    let times = |register, table: u32| match digit(table) {
        0 => register,
        n => multiply(powers[table as usize][n], register),
    };
    (0..3).fold(register, times)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{
        super::scan::{
            scan,
            tests::{KEY, frames},
        },
        *,
    };
    use crate::frame::{Stamp, decode, encode, words};
    use proptest::prelude::*;

    /// What `frames_from` finds, by decoding at each word.
    fn plainly(bytes: &[u8], from: u32, record: u32) -> Later {
        let mut later = Later::default();
        let (mut word, mut next, mut next_word) = (from, record, from);
        while frame::in_bytes(word) < bytes.len() {
            let found = decode(&bytes[frame::in_bytes(word)..], KEY);
            let Some(found) = found.filter(|found| {
                found.record >= next && (found.record - next).saturating_mul(3) <= word - next_word
            }) else {
                word += 1;
                continue;
            };
            if found.behind != u32::MAX {
                later.durable = later.durable.max(found.record.saturating_sub(found.behind));
            }
            later.frames.push((found.record, word));
            next = found.record + 1;
            word += found.frame.words();
            next_word = word;
        }
        later
    }

    /// A piece of a segment: zeros, noise, a frame, a torn frame, or words that look like headers.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let frame = (0..40u32, any::<u32>(), prop::collection::vec(any::<u8>(), 0..2000), any::<bool>());
        let frame = frame.prop_map(|(record, behind, value, whole)| {
            let mut bytes = vec![0; frame::in_bytes(words(value.len()))];
            encode(&mut bytes, KEY, Stamp { record, behind, time: 5, flags: 0 }, &value);
            if !whole {
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
            }
            bytes
        });
        prop_oneof![
            (0..20usize).prop_map(|words| vec![0; words * WORD]),
            prop::collection::vec(any::<u64>(), 0..20)
                .prop_map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect()),
            frame,
            (1..60usize, 0..600u32, 0..40u32)
                .prop_map(|(times, length, record)| header_like(length, record).repeat(times)),
        ]
    }

    /// Four words, the first of which starts what could be a frame of `length` bytes.
    fn header_like(length: u32, record: u32) -> Vec<u8> {
        let mut bytes = vec![0; frame::HEADER_BYTES + WORD];
        encode(&mut bytes[..frame::HEADER_BYTES], KEY, Stamp { record, behind: 0, time: 0, flags: 0 }, &[]);
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn a_search_finds_exactly_the_frames_that_verify(pieces in prop::collection::vec(piece(), 0..12), record in 0..6u32) {
            let bytes = pieces.concat();
            prop_assert_eq!(frames_from(&bytes, KEY, 0, record), plainly(&bytes, 0, record));
        }

        #[test]
        fn the_crc_of_a_range_is_that_of_its_bytes(
            bytes in prop::collection::vec(any::<u8>(), 8..9000), seed: u32, ends: [prop::sample::Index; 2],
        ) {
            let mut ends = ends.map(|end| end.index(bytes.len() / WORD + 1) * WORD);
            ends.sort_unstable();
            let [begin, end] = ends;
            prop_assert_eq!(
                Prefixes::new(&bytes).crc(seed, begin, end),
                crc32c::crc32c_append(seed, &bytes[begin..end])
            );
        }
    }

    #[test]
    fn zeros_are_appended_in_any_number() {
        for words in [1, 1023, 1024, 1025, (1 << 20) + 7, (1 << 27) - 1] {
            let mut register = 0x1234_5678;
            let zeros = vec![0; WORD << 10];
            for _ in 0..words >> 10 {
                register = run(register, &zeros);
            }
            register = run(register, &zeros[..(words & 1023) * WORD]);
            assert_eq!(append_zeros(0x1234_5678, words), register, "{words}");
        }
    }

    #[test]
    fn frames_after_a_hole_show_how_far_the_log_was_durable() {
        let mut bytes = frames(&[(0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 1, 0)]);
        bytes[40] ^= 1; // record 1
        assert_eq!(scan(&bytes, KEY).positions, [0]);
        assert_eq!(frames_from(&bytes, KEY, 4, 1), Later { durable: 2, frames: vec![(2, 8), (3, 12)] });
    }

    /// An earlier search gave up on such bytes, and recovery guessed. Only someone who knows the key can construct
    /// them: every third word starts what could be a frame that takes nearly all the rest.
    #[test]
    fn values_that_look_like_headers_everywhere_do_not_end_the_search() {
        let size = 16 << 20;
        let mut bytes = Vec::with_capacity(size + 64);
        while bytes.len() < size {
            let left = (((size - bytes.len()) as u32 / 4 * 3) & !7).max(8);
            bytes.extend_from_slice(&header_like(left, bytes.len() as u32 / 64)[..frame::HEADER_BYTES]);
        }
        let (word, record) = (bytes.len() as u32 / 8, size as u32 / 40);
        bytes.extend_from_slice(&frames(&[(record, 2, 0)]));
        let begun = std::time::Instant::now();
        let found = frames_from(&bytes, KEY, 0, 0);
        assert_eq!(found, Later { durable: record - 2, frames: vec![(record, word)] });
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
        println!("{:?}", begun.elapsed());
    }
}
