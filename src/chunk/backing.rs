//! Backings: chunk memory as a file that outlives the process, so that records acknowledged in memory are lost with the
//! machine, but not with the process. Writing to it costs no system call; after a SIGKILL, opening the log restores
//! from it (`log/recovery/restore.rs`).
//!
//! ```text
//! | head, 4 KiB: its owner, and the segment it holds, if any | the chunk's bytes |
//! ```
//!
//! (Under loom there are no backings, because loom cannot see into mapped files.)
//!
//! The file is in a directory named after the log's id. The head has two parts, each with a CRC: the log's id, secret
//! and directory, which are written once; and the label, which identifies the segment whose frames the backing holds.
//! The label is written before the first frame, and cleared before the memory is used again. Frames need no extra
//! protection, because they do not verify with the key of another segment. `docs/format.md` draws every byte.
//!
//! # What always holds
//! - A backing is removed by the process that created it, when that frees the memory or closes the log; by an opening
//!   that finds no segment in it, or has proven that the disk has everything in it, or had it before it was trimmed;
//!   and when its log is deleted. Nothing else removes one: whatever cannot be understood is left where it is.

#[cfg(feature = "store")]
use crate::disk::is_transient;
use crate::{
    LogId,
    disk::{Aligned, Disk, MemoryDir, Node},
    reports,
};
use std::{
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// The length of the head, which precedes the chunk's bytes.
pub(crate) const HEAD: usize = 4096;
const MAGIC: &[u8; 8] = b"MILLIMG2";
/// The format of segments without a secret.
const MAGIC_1: &[u8; 8] = b"MILLIMG1";
/// The length of the part that is written once, including its CRC, but not the directory.
const FIXED: usize = 64;
/// Where the CRC of that part and the directory is.
const CRC: std::ops::Range<usize> = 28..32;
/// Where the label is.
const LABEL: std::ops::Range<usize> = 64..108;
const LABEL_1: std::ops::Range<usize> = 64..92;
/// Where the frame that precedes the segment is noted.
const BEFORE: usize = 112;
/// Where it is noted whether the segment was sealed.
const SEALED: usize = 120;
/// Where the path of the log's directory is.
const DIR: usize = 128;

/// How many segments of this process began, or were resumed, without the backing that they should have.
pub(crate) static SHM_FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// The length of the backing of a chunk of `capacity`.
pub(crate) const fn backing_bytes(capacity: u64) -> u64 {
    HEAD as u64 + capacity
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

/// The length of label and incarnation as stored in the head: fields of at most 8 bytes each, and a CRC.
#[cfg(not(loom))]
pub(super) const LABEL_BYTES: usize = LABEL.end - LABEL.start;

#[cfg(not(loom))]
impl Label {
    fn encode(&self, incarnation: u64) -> [u8; LABEL_BYTES] {
        let mut bytes = [0; LABEL_BYTES];
        bytes[..8].copy_from_slice(&self.base.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.created.to_le_bytes());
        bytes[24..32].copy_from_slice(&incarnation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.version.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// What precedes a segment's first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Not known yet: the preceding frame was not durable when the process ended.
    Unknown,
    /// No record has ever preceded it.
    Nothing,
    /// A frame with this CRC.
    Frame(u32),
}

impl Before {
    /// Packed into one word, so that it is never torn.
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Frame(crc) => 1 << 32 | u64::from(crc),
            Self::Nothing => 2 << 32,
        }
    }

    pub(super) fn unpack(word: u64) -> Self {
        match word >> 32 {
            1 => Self::Frame(word as u32),
            2 => Self::Nothing,
            _ => Self::Unknown,
        }
    }
}

/// The place of one log's backings.
#[derive(Debug)]
pub(crate) struct ShmBacking {
    memory: Box<dyn MemoryDir>,
    log: LogId,
    #[cfg(not(loom))]
    secret: [u8; 16],
    /// The log's directory; and, in `node`, how the file system identifies it, whatever its name.
    dir: PathBuf,
    node: Node,
    /// A random number for this opening of the log.
    #[cfg(not(loom))]
    incarnation: u64,
    /// Set when the log's writer has failed: records that only the backings have are left for the next opening.
    keep: AtomicBool,
    /// Whether a warning was logged that a chunk has no backing, since the last one got one.
    warned: AtomicBool,
    /// How many of the log's segments are counted in `SHM_FALLBACKS`.
    fallbacks: AtomicU64,
}

/// Reports that chunks of the log in `dir` have no backing; not for each of thousands of logs.
pub(crate) fn no_backing(dir: &Path, error: &io::Error) {
    let what = "no memory that outlives the process: records acknowledged in memory are lost with it";
    reports::failure(dir, error, what);
}

/// A backing found at opening.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FoundBacking {
    pub(crate) name: String,
    pub(crate) content: BackingContent,
}

/// What a backing found at opening holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BackingContent {
    /// It holds no segment.
    Spare,
    /// The frames of this segment, written by the process with this incarnation; what that process knew about the
    /// preceding frame; and whether it has sealed the segment, which means that all frames are on disk.
    Segment { label: Label, incarnation: u64, before: Before, sealed: bool, secret: Option<[u8; 16]> },
    /// It belongs to another directory, which has, or had, a log of the same id: a copy of this one, or its original.
    Elsewhere(PathBuf),
    /// It cannot be understood.
    Invalid,
}

impl ShmBacking {
    /// The backings of the log with this id and secret in `dir`, kept in the memory file system at `at`. `incarnation`
    /// is a number that no other opening of the log has.
    pub(crate) fn open(
        disk: &dyn Disk,
        at: &Path,
        log: LogId,
        secret: [u8; 16],
        dir: &Path,
        node: Node,
        incarnation: u64,
    ) -> io::Result<Self> {
        let _ = (secret, incarnation);
        let dir = dir.canonicalize().or_else(|_| std::path::absolute(dir))?;
        if dir.as_os_str().len() > HEAD - DIR {
            return Err(io::Error::other("the path of the log's directory is too long"));
        }
        Ok(Self {
            memory: disk.memory(at)?.of(&log.to_string()),
            log,
            #[cfg(not(loom))]
            secret,
            dir,
            node,
            #[cfg(not(loom))]
            incarnation,
            keep: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            fallbacks: AtomicU64::new(0),
        })
    }

    /// The backings left by processes that ended without closing the log.
    pub(crate) fn find(&self) -> io::Result<Vec<FoundBacking>> {
        let mut found = Vec::new();
        for name in self.memory.list()? {
            let mut head = [0; HEAD];
            match self.memory.open(&name).and_then(|mut file| file.read_exact(&mut head)) {
                Ok(()) => found.push(FoundBacking { content: self.content(&head), name }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // it was removed meanwhile
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    found.push(FoundBacking { name, content: BackingContent::Invalid });
                }
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn content(&self, head: &[u8; HEAD]) -> BackingContent {
        let Some(owner) = Owner::decode(head).filter(|owner| owner.log == self.log) else {
            return BackingContent::Invalid;
        };
        // A directory that was moved has another path but the same node; one that was remounted may have it the other
        // way round.
        let same_node = owner.node != (0, 0) && owner.node == self.node;
        if owner.dir != self.dir && !same_node {
            return BackingContent::Elsewhere(owner.dir);
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let at = LABEL.start;
        let (base, capacity, created) = (word(at), word(at + 8), word(at + 16));
        let covered =
            if owner.secret.is_some() { LABEL.start..LABEL.end - 4 } else { LABEL_1.start..LABEL_1.end - 4 };
        let crc = word(covered.end) as u32;
        if head[covered.clone()].iter().all(|&byte| byte == 0) {
            return BackingContent::Spare;
        }
        if crc != crc32c::crc32c(&head[covered]) {
            return BackingContent::Invalid;
        }
        let Some(secret) = owner.secret else {
            let label = Label { base, capacity, created, version: 1 };
            let (incarnation, before) = (0, Before::Unknown);
            return BackingContent::Segment { label, incarnation, before, sealed: false, secret: None };
        };
        let label = Label { base, capacity, created, version: word(at + 32) as u32 };
        let (incarnation, before) = (word(at + 24), Before::unpack(word(BEFORE)));
        BackingContent::Segment {
            label,
            incarnation,
            before,
            sealed: word(SEALED) == 1,
            secret: Some(secret),
        }
    }

    /// The bytes of the chunk in a backing.
    pub(crate) fn frames(&self, name: &str) -> io::Result<Aligned> {
        use std::os::unix::fs::FileExt;
        let file = self.memory.open(name)?;
        let length = file.metadata()?.len().saturating_sub(HEAD as u64) as usize;
        let mut frames = Aligned::new(length)?;
        file.read_exact_at(&mut frames[..length], HEAD as u64)?;
        Ok(frames)
    }

    pub(crate) fn remove(&self, name: &str) {
        self.memory.remove(name);
    }

    /// The path of a backing.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.memory.path(name)
    }

    /// The path of the backing that was created last; [`latest_labelled`](Self::latest_labelled) finds the one that
    /// holds the segment at `base`.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn latest(&self) -> Option<PathBuf> {
        let number = |name: &String| name.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
        self.memory.list().unwrap().into_iter().max_by_key(number).map(|name| self.memory.path(&name))
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn latest_labelled(&self, base: u64) -> PathBuf {
        let holds = |found: &FoundBacking| matches!(found.content, BackingContent::Segment { label, .. } if label.base == base);
        self.memory.path(&self.find().unwrap().into_iter().find(holds).unwrap().name)
    }

    /// The log's id.
    pub(crate) fn log(&self) -> LogId {
        self.log
    }

    /// From now on backings stay when they are dropped.
    pub(crate) fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
    }

    /// A chunk gets none, for this reason: reports that, once until one gets one.
    pub(crate) fn warn(&self, error: &io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            no_backing(&self.dir, error);
        }
    }

    /// Counts a segment that begins without a backing.
    pub(crate) fn begun_without(&self) {
        self.fallbacks.fetch_add(1, Ordering::Relaxed);
        SHM_FALLBACKS.fetch_add(1, Ordering::Relaxed);
    }

    /// How many have begun so.
    #[cfg(all(any(test, fuzzing), feature = "store", not(loom)))]
    pub(crate) fn fallbacks(&self) -> u64 {
        self.fallbacks.load(Ordering::Relaxed)
    }

    /// Creates and maps a backing for a chunk of `capacity`.
    #[cfg(not(loom))]
    pub(super) fn create(
        self: &std::sync::Arc<Self>,
        capacity: u64,
    ) -> io::Result<(BackingFile, memmap2::MmapRaw)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Backings of an earlier process may still exist, and that process may have had the same process id.
        let name = format!("{:016x}-{number:020}", self.incarnation);
        let file = self.memory.create(&name, backing_bytes(capacity), &self.head())?;
        let backing = BackingFile { backings: std::sync::Arc::clone(self), name };
        let map = memmap2::MmapOptions::new().map_raw(&file)?;
        self.warned.store(false, Ordering::Relaxed);
        Ok((backing, map))
    }

    /// The part of the head that does not change.
    #[cfg(not(loom))]
    fn head(&self) -> Vec<u8> {
        let dir = self.dir.as_os_str().as_bytes();
        let mut head = vec![0; DIR];
        head[..8].copy_from_slice(MAGIC);
        head[8..24].copy_from_slice(self.log.as_bytes());
        head[24..28].copy_from_slice(&(dir.len() as u32).to_le_bytes());
        head[32..40].copy_from_slice(&self.node.0.to_le_bytes());
        head[40..48].copy_from_slice(&self.node.1.to_le_bytes());
        head[48..FIXED].copy_from_slice(&self.secret);
        head.extend_from_slice(dir);
        let crc = Owner::checksum(&head, dir);
        head[CRC].copy_from_slice(&crc.to_le_bytes());
        head
    }
}

/// Where the label is in the memory, and the notes about the preceding frame and about sealing.
#[cfg(not(loom))]
pub(super) const LABEL_AT: usize = LABEL.start;
#[cfg(not(loom))]
pub(super) const BEFORE_AT: usize = BEFORE;
#[cfg(not(loom))]
pub(super) const SEALED_AT: usize = SEALED;

impl Drop for ShmBacking {
    fn drop(&mut self) {
        self.memory.remove_if_empty();
    }
}

/// One backing; its file is removed when this is dropped.
#[cfg(not(loom))]
#[derive(Debug)]
pub(super) struct BackingFile {
    backings: std::sync::Arc<ShmBacking>,
    name: String,
}

#[cfg(not(loom))]
impl BackingFile {
    pub(super) fn label(&self, label: &Label) -> [u8; LABEL_BYTES] {
        label.encode(self.backings.incarnation)
    }
}

#[cfg(not(loom))]
impl Drop for BackingFile {
    fn drop(&mut self) {
        if !self.backings.keep.load(Ordering::SeqCst) {
            self.backings.memory.remove(&self.name);
        }
    }
}

/// Removes the backings of the log with this id in this directory, after the log was deleted.
///
/// # Errors
/// Some backings may be left then, to be removed another time.
#[cfg(feature = "store")]
pub(crate) fn remove_all(disk: &dyn Disk, at: &Path, log: LogId, node: Node) -> io::Result<()> {
    let memory = disk.memory(at)?.of(&log.to_string());
    for name in memory.list()? {
        let mut head = [0; HEAD];
        match memory.open(&name).and_then(|mut file| file.read_exact(&mut head)) {
            // The caller must try again later, because nobody else would find it.
            Err(error) if is_transient(&error) => return Err(error),
            Err(_) => {}
            Ok(()) => {
                let owner = Owner::decode(&head).filter(|owner| owner.node == node && node != (0, 0));
                if owner.is_some() {
                    memory.remove(&name);
                }
            }
        }
    }
    memory.remove_if_empty();
    Ok(())
}

/// The directories and ids of logs that have backings in the memory file system at `at`.
#[cfg(feature = "store")]
pub(crate) fn owners(disk: &dyn Disk, at: &Path) -> io::Result<Vec<(PathBuf, LogId)>> {
    let all = disk.memory(at)?;
    let mut owners = Vec::new();
    for log in all.list()? {
        let memory = all.of(&log);
        for name in memory.list().unwrap_or_default() {
            let mut head = [0; HEAD];
            // It may have been removed meanwhile.
            if memory.open(&name).and_then(|mut file| file.read_exact(&mut head)).is_ok()
                && let Some(owner) = Owner::decode(&head)
            {
                owners.push((owner.dir, owner.log));
            }
        }
    }
    owners.sort();
    owners.dedup();
    Ok(owners)
}

/// The owner of a backing.
struct Owner {
    log: LogId,
    dir: PathBuf,
    /// Zeros if it is not known.
    node: Node,
    secret: Option<[u8; 16]>,
}

impl Owner {
    fn checksum(head: &[u8], dir: &[u8]) -> u32 {
        let fixed = crc32c::crc32c_append(crc32c::crc32c(&head[..CRC.start]), &head[CRC.end..FIXED]);
        crc32c::crc32c_append(fixed, dir)
    }

    fn decode(head: &[u8; HEAD]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let (length, crc) = (word(24) as u32 as usize, word(CRC.start) as u32);
        let dir = head.get(DIR..)?.get(..length)?;
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn backings(at: &Path, dir: &Path) -> Arc<ShmBacking> {
        let disk = crate::disk::native();
        let node = disk.node(dir).unwrap();
        Arc::new(ShmBacking::open(&*disk, at, LogId([1; 16]), [2; 16], dir, node, 77).unwrap())
    }

    #[test]
    fn a_moved_directory_has_its_backings_and_a_copy_has_not() {
        let place = tempfile::tempdir().unwrap();
        let [dir, moved, copy] = ["dir", "moved", "copy"].map(|name| place.path().join(name));
        std::fs::create_dir(&dir).unwrap();
        let made = backings(place.path(), &dir);
        let mut memory = super::super::ChunkMemory::backed(4096, &made).unwrap();
        let label = Label { base: 7, capacity: 4096, created: 9, version: 2 };
        memory.label(&label, Before::Frame(5));
        let content = |dir: &Path| backings(place.path(), dir).find().unwrap().pop().unwrap().content;
        let segment = |incarnation| BackingContent::Segment {
            label,
            incarnation,
            before: Before::Frame(5),
            sealed: false,
            secret: Some([2; 16]),
        };
        assert_eq!(content(&dir), segment(made.incarnation));
        std::fs::rename(&dir, &moved).unwrap();
        assert_eq!(content(&moved), segment(made.incarnation));
        std::fs::create_dir(&copy).unwrap();
        assert_eq!(content(&copy), BackingContent::Elsewhere(dir.canonicalize().unwrap_or(dir)));
        memory.set_before(Before::Nothing);
        memory.set_sealed();
        assert!(matches!(
            content(&moved),
            BackingContent::Segment { before: Before::Nothing, sealed: true, .. }
        ));
        memory.label(&label, Before::Frame(5));
        assert_eq!(content(&moved), segment(made.incarnation));
        memory.clean(0);
        assert_eq!(content(&moved), BackingContent::Spare);
    }

    /// One opening of a log ended while another created its first backing: the directory was removed in between, and
    /// the chunk got no backing, though there was room.
    #[test]
    fn a_backing_is_created_even_if_its_empty_directory_is_removed_meanwhile() {
        let (place, over) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let made = backings(place.path(), place.path());
        let (at, stops) = (place.path().to_owned(), Arc::clone(&over));
        let other = std::thread::spawn(move || {
            while !stops.load(Ordering::SeqCst) {
                drop(backings(&at, &at));
            }
        });
        for n in 0..300 {
            made.create(4096).unwrap_or_else(|error| panic!("{n} were made: {error}"));
        }
        over.store(true, Ordering::SeqCst);
        other.join().unwrap();
    }

    /// There were no descriptors for a moment while a log was deleted: its backings stayed for good.
    #[cfg(feature = "store")]
    #[test]
    fn backings_of_a_deleted_log_that_cannot_be_looked_at_for_a_moment_are_an_error() {
        let place = tempfile::tempdir().unwrap();
        let made = backings(place.path(), place.path());
        let memory = super::super::ChunkMemory::backed(4096, &made).unwrap();
        let remove = |disk: &dyn Disk| remove_all(disk, place.path(), LogId([1; 16]), made.node);
        let sim = crate::disk::sim::Sim::new(1);
        sim.set_memory_gate(|step| match step {
            "open backing" => Err(io::Error::from_raw_os_error(24)),
            _ => Ok(()),
        });
        assert!(remove(&sim).is_err_and(|error| is_transient(&error)));
        assert!(made.latest().is_some());
        remove(&*crate::disk::native()).unwrap();
        assert!(made.latest().is_none());
        drop(memory);
    }

    #[test]
    fn a_changed_bit_makes_a_backing_unreadable_and_never_one_of_another_log() {
        let place = tempfile::tempdir().unwrap();
        let made = backings(place.path(), place.path());
        let mut memory = super::super::ChunkMemory::backed(4096, &made).unwrap();
        memory.label(&Label { base: 7, capacity: 4096, created: 9, version: 2 }, Before::Unknown);
        let path = made.latest().unwrap();
        let good = std::fs::read(&path).unwrap();
        let of_dir = place.path().canonicalize().unwrap().as_os_str().len();
        for at in (0..LABEL.end).chain(DIR..DIR + of_dir) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(made.find().unwrap()[0].content, BackingContent::Invalid, "byte {at}");
        }
        std::fs::write(&path, &good[..100]).unwrap();
        assert_eq!(made.find().unwrap()[0].content, BackingContent::Invalid);
    }
}
