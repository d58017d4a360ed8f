//! The head of a backing: which log it belongs to, and which segment it holds.

use crate::{LogId, disk::Node};
use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The length of the head, which precedes the chunk's bytes.
pub(crate) const BACKING_HEAD_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"MILLIMG2";
/// The format of segments without a secret.
const MAGIC_1: &[u8; 8] = b"MILLIMG1";
/// The length of the part that is written once, including its CRC, but not the directory.
const FIXED: usize = 64;
/// Where the CRC of that part and the directory is.
const CRC: std::ops::Range<usize> = 28..32;
/// Where the label is.
pub(in crate::chunk) const LABEL: std::ops::Range<usize> = 64..108;
/// Where the label is in the format of segments without a secret.
pub(super) const LABEL_1: std::ops::Range<usize> = 64..92;
/// Where the frame that precedes the segment is noted.
pub(in crate::chunk) const PREDECESSOR_AT: usize = 112;
/// Where it is noted whether the segment was sealed.
pub(in crate::chunk) const SEALED_AT: usize = 120;
/// Where the path of the log's directory is.
pub(super) const DIR_AT: usize = 128;

/// The length of the backing of a chunk of `capacity`.
pub(crate) const fn backing_bytes(capacity: u64) -> u64 {
    BACKING_HEAD_BYTES as u64 + capacity
}

/// Identifies the segment whose frames a backing holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    pub(crate) created: u64,
    /// The format of the segment.
    pub(crate) version: u32,
}

/// The length of label and opening as stored in the head: fields of at most 8 bytes each, and a CRC.
#[cfg(not(loom))]
pub(in crate::chunk) const LABEL_BYTES: usize = LABEL.end - LABEL.start;

#[cfg(not(loom))]
impl Label {
    pub(super) fn encode(&self, opening: u64) -> [u8; LABEL_BYTES] {
        let mut bytes = [0; LABEL_BYTES];
        bytes[..8].copy_from_slice(&self.base.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.created.to_le_bytes());
        bytes[24..32].copy_from_slice(&opening.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.version.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// What precedes a segment's first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Predecessor {
    /// Not known yet: the preceding frame was not durable when the process ended.
    Unknown,
    /// No record has ever preceded it.
    Nothing,
    /// A frame with this CRC.
    Frame(u32),
}

impl Predecessor {
    /// Packed into one word, so that it is never torn.
    pub(in crate::chunk) fn pack(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Frame(crc) => 1 << 32 | u64::from(crc),
            Self::Nothing => 2 << 32,
        }
    }

    pub(in crate::chunk) fn unpack(word: u64) -> Self {
        match word >> 32 {
            1 => Self::Frame(word as u32),
            2 => Self::Nothing,
            _ => Self::Unknown,
        }
    }
}

/// The owner of a backing.
pub(super) struct Owner {
    pub(super) log: LogId,
    pub(super) dir: PathBuf,
    /// Zeros if it is not known.
    pub(super) node: Node,
    pub(super) secret: Option<[u8; 16]>,
}

impl Owner {
    /// Whether it is known to be the directory with this node, whatever its name.
    pub(super) fn is_at(&self, node: Node) -> bool {
        self.node == node && node != (0, 0)
    }

    fn checksum(head: &[u8], dir: &[u8]) -> u32 {
        let fixed = crc32c::crc32c_append(crc32c::crc32c(&head[..CRC.start]), &head[CRC.end..FIXED]);
        crc32c::crc32c_append(fixed, dir)
    }

    /// The part of the head that does not change.
    #[cfg(not(loom))]
    pub(super) fn head(log: LogId, dir: &Path, node: Node, secret: [u8; 16]) -> Vec<u8> {
        let dir = dir.as_os_str().as_bytes();
        let mut head = vec![0; DIR_AT];
        head[..8].copy_from_slice(MAGIC);
        head[8..24].copy_from_slice(log.as_bytes());
        head[24..28].copy_from_slice(&(dir.len() as u32).to_le_bytes());
        head[32..40].copy_from_slice(&node.0.to_le_bytes());
        head[40..48].copy_from_slice(&node.1.to_le_bytes());
        head[48..FIXED].copy_from_slice(&secret);
        head.extend_from_slice(dir);
        let crc = Self::checksum(&head, dir);
        head[CRC].copy_from_slice(&crc.to_le_bytes());
        head
    }

    pub(super) fn decode(head: &[u8; BACKING_HEAD_BYTES]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let (length, crc) = (word(24) as u32 as usize, word(CRC.start) as u32);
        let dir = head.get(DIR_AT..)?.get(..length)?;
        let (expected, node, secret) = if head.starts_with(MAGIC) {
            let secret = std::array::from_fn(|i| head[48 + i]);
            (Self::checksum(head, dir), (word(32), word(40)), Some(secret))
        } else if head.starts_with(MAGIC_1) {
            (crc32c::crc32c_append(crc32c::crc32c(&head[..CRC.start]), dir), (0, 0), None)
        } else {
            return None;
        };
        let dir = PathBuf::from(std::ffi::OsStr::from_bytes(dir));
        let log = std::array::from_fn(|i| head[8 + i]);
        (crc == expected).then_some(Self { log: LogId(log), dir, node, secret })
    }
}
