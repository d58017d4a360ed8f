//! The first block of a segment file: what the file is, which log it belongs to, where it starts; and the mark that a
//! clean close leaves.

use crate::{LogId, disk::BLOCK, frame::Key};

const MAGIC: [u8; 8] = *b"MILLSTRM";
/// The format of new segments, and the newest one that is read. Format 1, whose logs have no secret, can be read, and
/// segments that are open in it continue to be written.
pub(crate) const VERSION: u32 = 2;
/// Bytes of the header covered by the CRC that follows them: all of the header in format 1, and what identifies the
/// version in any format.
const COVERED: usize = 60;
/// Where the secret is, from format 2 on. A CRC of everything before follows it.
const SECRET: usize = 64;
const SECRET_COVERED: usize = SECRET + 16;
/// Where a copy of all of this is, from format 2 on: without its header a segment cannot be verified, so an unreadable
/// sector must not destroy it.
const COPY: usize = 1024;
/// Where the mark is: in a sector of its own, so that writing it cannot tear the header.
const MARK: usize = 512;
const MARK_COVERED: usize = 8;
/// The part of the header's block that is lost along with the mark when its sector cannot be read.
pub(crate) const MARK_SECTOR: std::ops::Range<usize> = MARK..MARK + 512;

/// What a segment file says about itself. Never changes after the file was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Random, chosen when the log is created; the same in all its segments.
    pub(crate) log: LogId,
    pub(crate) base: u64,
    /// Bytes that frames and index together may take.
    pub(crate) capacity: u64,
    /// Milliseconds since 1970.
    pub(crate) created: u64,
    pub(crate) secret: Secret,
}

/// What the keys of a log's segments are derived from: 16 random bytes that only the log's files hold. `None` in
/// segments of format 1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) Option<[u8; 16]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Secret(…)" } else { "Secret(none)" })
    }
}

/// Why a block is not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// It does not start the way a segment does.
    Foreign,
    /// It has a newer version of the format.
    Newer(u32),
    /// It is a header, but does not verify.
    Damaged,
}

/// A header that verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) header: Header,
    /// How many records were durable at the last clean close, or 0.
    pub(crate) mark: u32,
    /// Whether both of its copies verified.
    pub(crate) whole: bool,
}

impl Header {
    /// What a backing of the segment's chunk says of the segment.
    pub(crate) fn label(&self) -> crate::chunk::Label {
        crate::chunk::Label {
            base: self.base,
            capacity: self.capacity,
            created: self.created,
            version: self.version(),
        }
    }

    /// The header block. `durable` is the mark: how many records are known to be durable, which only a clean close
    /// knows.
    pub(crate) fn encode(&self, durable: u32) -> [u8; BLOCK as usize] {
        let mut block = [0; BLOCK as usize];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&self.version().to_le_bytes());
        block[16..32].copy_from_slice(self.log.as_bytes());
        block[32..40].copy_from_slice(&self.base.to_le_bytes());
        block[40..48].copy_from_slice(&self.capacity.to_le_bytes());
        block[48..56].copy_from_slice(&self.created.to_le_bytes());
        let crc = crc32c::crc32c(&block[..COVERED]);
        block[COVERED..COVERED + 4].copy_from_slice(&crc.to_le_bytes());
        if let Some(secret) = self.secret.0 {
            block[SECRET..SECRET_COVERED].copy_from_slice(&secret);
            let crc = crc32c::crc32c(&block[..SECRET_COVERED]);
            block[SECRET_COVERED..SECRET_COVERED + 4].copy_from_slice(&crc.to_le_bytes());
            block.copy_within(..SECRET_COVERED + 4, COPY);
        }
        if durable > 0 {
            block[MARK..MARK + 4].copy_from_slice(&durable.to_le_bytes());
            let crc = crc32c::crc32c_append(self.key().seed, &block[MARK..MARK + MARK_COVERED]);
            block[MARK + MARK_COVERED..MARK + MARK_COVERED + 4].copy_from_slice(&crc.to_le_bytes());
        }
        block
    }

    /// Decodes and verifies a header block.
    pub(crate) fn decode(block: &[u8; BLOCK as usize]) -> Result<Decoded, BadHeader> {
        let (first, copy) = (Self::decode_at(block, 0), Self::decode_at(block, COPY));
        let (header, whole) = match (first, copy) {
            (Ok(header), copy) => (header, header.version() == 1 || copy == Ok(header)),
            (Err(BadHeader::Newer(version)), _) => return Err(BadHeader::Newer(version)),
            (Err(_), Ok(header)) => (header, false),
            (Err(error), Err(_)) => return Err(error),
        };
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        let crc = crc32c::crc32c_append(header.key().seed, &block[MARK..MARK + MARK_COVERED]);
        let marked = u32_at(MARK + MARK_COVERED) == crc;
        Ok(Decoded { header, mark: if marked { u32_at(MARK) } else { 0 }, whole })
    }

    fn decode_at(block: &[u8; BLOCK as usize], at: usize) -> Result<Self, BadHeader> {
        let block = &block[at..at + SECRET_COVERED + 4];
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| block[at + i]));
        if block[..8] != MAGIC {
            return Err(BadHeader::Foreign);
        }
        if u32_at(COVERED) != crc32c::crc32c(&block[..COVERED]) {
            return Err(BadHeader::Damaged);
        }
        let secret = match u32_at(8) {
            1 => None,
            VERSION => Some(std::array::from_fn(|i| block[SECRET + i])),
            newer => return Err(BadHeader::Newer(newer)),
        };
        if secret.is_some() && u32_at(SECRET_COVERED) != crc32c::crc32c(&block[..SECRET_COVERED]) {
            return Err(BadHeader::Damaged);
        }
        let log = std::array::from_fn(|i| block[16 + i]);
        let secret = Secret(secret);
        let header =
            Self { log: LogId(log), base: u64_at(32), capacity: u64_at(40), created: u64_at(48), secret };
        if !super::CAPACITIES.contains(&header.capacity) || !header.capacity.is_multiple_of(BLOCK) {
            return Err(BadHeader::Damaged);
        }
        Ok(header)
    }

    /// The version of the format.
    pub(crate) fn version(&self) -> u32 {
        if self.secret.0.is_some() { VERSION } else { 1 }
    }

    /// The key that this segment's frames are written and verified with.
    pub(crate) fn key(&self) -> Key {
        match &self.secret.0 {
            Some(secret) => Key::new(secret, self.base),
            None => Key::version_1(self.log, self.base),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        log: LogId([7; 16]),
        base: 42,
        capacity: 1 << 18,
        created: 1_700_000_000_000,
        secret: Secret(Some([9; 16])),
    };

    fn decoded(header: Header, mark: u32, whole: bool) -> Decoded {
        Decoded { header, mark, whole }
    }

    #[test]
    fn a_header_round_trips_with_its_mark_in_either_format() {
        for header in [HEADER, Header { secret: Secret(None), ..HEADER }] {
            assert_eq!(Header::decode(&header.encode(0)), Ok(decoded(header, 0, true)));
            assert_eq!(Header::decode(&header.encode(9)), Ok(decoded(header, 9, true)));
        }
    }

    #[test]
    fn the_secret_makes_the_key_and_is_not_printed() {
        let other = Header { secret: Secret(Some([8; 16])), ..HEADER };
        assert_ne!(HEADER.key(), other.key());
        assert_eq!(
            HEADER.key(),
            Header { log: LogId([1; 16]), ..HEADER }.key(),
            "the key does not depend on anything that the API shows"
        );
        assert!(!format!("{HEADER:?}").contains('9'));
    }

    #[test]
    fn a_changed_byte_is_restored_from_the_copy_and_a_changed_mark_is_not_a_mark() {
        for at in (0..SECRET_COVERED + 4).flat_map(|at| [at, COPY + at]) {
            let mut block = HEADER.encode(9);
            block[at] ^= 0x10;
            assert_eq!(Header::decode(&block), Ok(decoded(HEADER, 9, false)), "byte {at}");
            block[(at + COPY) % (2 * COPY)] ^= 0x20;
            let expected = if at % COPY < 8 { BadHeader::Foreign } else { BadHeader::Damaged };
            assert_eq!(Header::decode(&block), Err(expected), "byte {at}");
        }
        for at in MARK..MARK + 12 {
            let mut block = HEADER.encode(9);
            block[at] ^= 0x10;
            assert_eq!(Header::decode(&block), Ok(decoded(HEADER, 0, true)), "byte {at}");
        }
        let old = Header { secret: Secret(None), ..HEADER };
        for at in 0..64 {
            let mut block = old.encode(9);
            block[at] ^= 0x10;
            let expected = if at < 8 { BadHeader::Foreign } else { BadHeader::Damaged };
            assert_eq!(Header::decode(&block), Err(expected), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_distinguished_from_damage() {
        let mut block = HEADER.encode(0);
        block[8] = 3;
        let crc = crc32c::crc32c(&block[..COVERED]);
        block[COVERED..COVERED + 4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&block), Err(BadHeader::Newer(3)));
    }
}
