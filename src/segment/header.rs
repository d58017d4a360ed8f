//! The first block of a segment file: what it is, whose it is, where it begins; and the mark that a clean close
//! leaves.

use crate::{disk::BLOCK, frame};

const MAGIC: [u8; 8] = *b"MILLSTRM";
/// The format this code writes, and the newest it reads.
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header that its CRC covers, which follows them.
const COVERED: usize = 60;
/// Where the mark is: in a sector of its own, so that writing it cannot tear the header.
const MARK: usize = 512;
const MARK_COVERED: usize = 8;

/// What a segment file says of itself. Never changes after the file was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Made at random when the log is created; the same in all its segments.
    pub(crate) log: [u8; 16],
    pub(crate) base: u64,
    /// Bytes that frames and index together may take.
    pub(crate) capacity: u64,
    /// Milliseconds since 1970.
    pub(crate) created: u64,
}

/// Why a block is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// It does not begin as a segment does.
    Foreign,
    /// A newer version of the format.
    Newer(u32),
    /// It was one, and does not verify.
    Damaged,
}

impl Header {
    /// The same for an image of the segment's chunk.
    pub(crate) fn label(&self) -> crate::chunk::Label {
        crate::chunk::Label { base: self.base, capacity: self.capacity, created: self.created }
    }

    /// The header block. `durable` is the mark: so many records are known to be durable, as a clean close knows.
    pub(crate) fn encode(&self, durable: u32) -> [u8; BLOCK as usize] {
        let mut block = [0; BLOCK as usize];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[16..32].copy_from_slice(&self.log);
        block[32..40].copy_from_slice(&self.base.to_le_bytes());
        block[40..48].copy_from_slice(&self.capacity.to_le_bytes());
        block[48..56].copy_from_slice(&self.created.to_le_bytes());
        let crc = crc32c::crc32c(&block[..COVERED]);
        block[COVERED..COVERED + 4].copy_from_slice(&crc.to_le_bytes());
        if durable > 0 {
            block[MARK..MARK + 4].copy_from_slice(&durable.to_le_bytes());
            let crc = crc32c::crc32c_append(self.seed(), &block[MARK..MARK + MARK_COVERED]);
            block[MARK + MARK_COVERED..MARK + MARK_COVERED + 4].copy_from_slice(&crc.to_le_bytes());
        }
        block
    }

    /// The header in `block`, and the mark: records that had been durable at the last clean close, or 0.
    pub(crate) fn decode(block: &[u8; BLOCK as usize]) -> Result<(Self, u32), BadHeader> {
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        if block[..8] != MAGIC {
            return Err(BadHeader::Foreign);
        }
        if u32_at(COVERED) != crc32c::crc32c(&block[..COVERED]) {
            return Err(BadHeader::Damaged);
        }
        if u32_at(8) != VERSION {
            return Err(BadHeader::Newer(u32_at(8)));
        }
        let log = std::array::from_fn(|i| block[16 + i]);
        let header = Self { log, base: u64_at(32), capacity: u64_at(40), created: u64_at(48) };
        if !super::CAPACITIES.contains(&header.capacity) || !header.capacity.is_multiple_of(BLOCK) {
            return Err(BadHeader::Damaged);
        }
        let crc = crc32c::crc32c_append(header.seed(), &block[MARK..MARK + MARK_COVERED]);
        let marked = u32_at(MARK + MARK_COVERED) == crc;
        Ok((header, if marked { u32_at(MARK) } else { 0 }))
    }

    /// What the CRCs of this segment's frames begin from.
    pub(crate) fn seed(&self) -> u32 {
        frame::seed(&self.log, self.base)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HEADER: Header = Header { log: [7; 16], base: 42, capacity: 1 << 18, created: 1_700_000_000_000 };

    #[test]
    fn a_header_decodes_to_itself_with_its_mark() {
        assert_eq!(Header::decode(&HEADER.encode(0)), Ok((HEADER, 0)));
        assert_eq!(Header::decode(&HEADER.encode(9)), Ok((HEADER, 9)));
    }

    #[test]
    fn a_changed_byte_is_damage_or_foreign_and_a_changed_mark_is_none() {
        for at in 0..64 {
            let mut block = HEADER.encode(9);
            block[at] ^= 0x10;
            let expected = if at < 8 { BadHeader::Foreign } else { BadHeader::Damaged };
            assert_eq!(Header::decode(&block), Err(expected), "byte {at}");
        }
        for at in MARK..MARK + 12 {
            let mut block = HEADER.encode(9);
            block[at] ^= 0x10;
            assert_eq!(Header::decode(&block), Ok((HEADER, 0)), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut block = HEADER.encode(0);
        block[8] = 2;
        let crc = crc32c::crc32c(&block[..COVERED]);
        block[COVERED..COVERED + 4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&block), Err(BadHeader::Newer(2)));
    }
}
