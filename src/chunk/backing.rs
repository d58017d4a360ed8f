//! Backings: chunk memory as a file that outlives the process, so that what was acknowledged in memory is lost with
//! the machine, and not with the process. Writing to it costs no system call; after SIGKILL, opening the log takes
//! it up again (`log/recovery/restore.rs`).
//!
//! ```text
//! | head, 4 KiB: whose it is, and the segment it holds, if any | the chunk's bytes |
//! ```
//!
//! (Under loom there are none: it cannot see into mapped files.)
//!
//! The file is in a directory that is named by the log's id. The head says, in parts with a CRC each: the log's id,
//! secret and directory, written once; and the label, which is the segment whose frames the backing holds, written
//! before its first frame and cleared when the memory is to be used again. Frames need no more than they have: the key
//! of another segment does not verify them. `docs/format.md` draws every byte.
//!
//! # What always holds
//! - A backing is removed by the process that made it when the log is closed, and by an opening that has proven that
//!   the disk has all that is in it. Nothing else removes one: what cannot be understood is left where it is.

#[cfg(not(loom))]
use crate::disk::is_transient;
use crate::{
    LogId,
    disk::{Aligned, MemoryDir, Node},
};
use std::{
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Bytes before the chunk's.
pub(crate) const HEAD: usize = 4096;
const MAGIC: &[u8; 8] = b"MILLIMG2";
/// The format of segments without a secret.
const MAGIC_1: &[u8; 8] = b"MILLIMG1";
/// Bytes of the part that is written once, but for the directory and, at the end of the first row, the CRC.
const FIXED: usize = 64;
/// Where the CRC of that is.
const CRC: std::ops::Range<usize> = 28..32;
/// Where the label is.
const LABEL: std::ops::Range<usize> = 64..108;
const LABEL_1: std::ops::Range<usize> = 64..92;
/// Where the frame before the segment is noted.
const BEFORE: usize = 112;
/// Where it says whether the segment was sealed.
const SEALED: usize = 120;
/// Where the log's directory is.
const DIR: usize = 128;

/// Chunks of this process that were to have a backing and have none.
pub(crate) static SHM_FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// Which segment's frames a backing has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    pub(crate) created: u64,
    /// The format of the segment.
    pub(crate) version: u32,
}

/// Label and incarnation as they stand in the head: at most 8 bytes at a time, so that `LABEL` is a whole number of
/// these and a CRC.
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

/// What stands before a segment's first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// It is not known yet: the frame before was not durable when the process ended.
    Unknown,
    /// No record has ever been there.
    Nothing,
    /// A frame with this CRC.
    Frame(u32),
}

impl Before {
    /// As one word, so that it is never torn.
    #[cfg(not(loom))]
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

/// Where one log's backings are.
#[derive(Debug)]
pub(crate) struct ShmBacking {
    memory: MemoryDir,
    log: LogId,
    #[cfg(not(loom))]
    secret: [u8; 16],
    /// The log's directory, and what the file system knows it by, whatever its name.
    dir: PathBuf,
    node: Node,
    /// A random number of this opening of the log.
    #[cfg(not(loom))]
    incarnation: u64,
    /// Set when the log's writer has failed: what the backings have and the disk has not is for the next opening.
    keep: AtomicBool,
    /// Whether it was said that a chunk had to do without; how many had to is in `SHM_FALLBACKS`.
    #[cfg(not(loom))]
    warned: AtomicBool,
}

/// A backing found at opening.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FoundBacking {
    pub(crate) name: String,
    pub(crate) content: Content,
}

/// What a backing found at opening is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// It holds no segment.
    Spare,
    /// It holds this segment's frames, which a process of this number has written, and what that knew of the frame
    /// before them; and whether it has sealed the segment, which is when all of them are on disk.
    Segment { label: Label, incarnation: u64, before: Before, sealed: bool, secret: Option<[u8; 16]> },
    /// Another directory's, which has, or had, a log of the same id: a copy of this one, or what this one is a copy of.
    Elsewhere(PathBuf),
    /// It cannot be understood.
    Strange,
}

impl ShmBacking {
    /// The backings of the log with this id and secret in `dir`, kept in the memory file system at `at`. `incarnation` is a
    /// number that no other opening of the log has.
    pub(crate) fn open(
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
            return Err(io::Error::other("the log's directory has too long a name"));
        }
        Ok(Self {
            memory: MemoryDir::open(at)?.of(&log.to_string()),
            log,
            #[cfg(not(loom))]
            secret,
            dir,
            node,
            #[cfg(not(loom))]
            incarnation,
            keep: AtomicBool::new(false),
            #[cfg(not(loom))]
            warned: AtomicBool::new(false),
        })
    }

    /// What processes that ended without closing the log have left.
    pub(crate) fn find(&self) -> io::Result<Vec<FoundBacking>> {
        let mut found = Vec::new();
        for name in self.memory.list()? {
            let mut head = [0; HEAD];
            match self.memory.open_file(&name).and_then(|mut file| file.read_exact(&mut head)) {
                Ok(()) => found.push(FoundBacking { content: self.content(&head), name }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // it went meanwhile
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    found.push(FoundBacking { name, content: Content::Strange });
                }
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn content(&self, head: &[u8; HEAD]) -> Content {
        let Some(owner) = Owner::decode(head).filter(|owner| owner.log == self.log) else {
            return Content::Strange;
        };
        // Moved, it has another path and is the same directory; mounted again, perhaps the other way round.
        let same_node = owner.node != (0, 0) && owner.node == self.node;
        if owner.dir != self.dir && !same_node {
            return Content::Elsewhere(owner.dir);
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let at = LABEL.start;
        let (base, capacity, created) = (word(at), word(at + 8), word(at + 16));
        let covered =
            if owner.secret.is_some() { LABEL.start..LABEL.end - 4 } else { LABEL_1.start..LABEL_1.end - 4 };
        let crc = word(covered.end) as u32;
        if head[covered.clone()].iter().all(|&byte| byte == 0) {
            return Content::Spare;
        }
        if crc != crc32c::crc32c(&head[covered]) {
            return Content::Strange;
        }
        let Some(secret) = owner.secret else {
            let label = Label { base, capacity, created, version: 1 };
            let (incarnation, before) = (0, Before::Unknown);
            return Content::Segment { label, incarnation, before, sealed: false, secret: None };
        };
        let label = Label { base, capacity, created, version: word(at + 32) as u32 };
        let (incarnation, before) = (word(at + 24), Before::unpack(word(BEFORE)));
        Content::Segment { label, incarnation, before, sealed: word(SEALED) == 1, secret: Some(secret) }
    }

    /// The bytes of the chunk in a backing.
    pub(crate) fn frames(&self, name: &str) -> io::Result<Aligned> {
        use std::os::unix::fs::FileExt;
        let file = self.memory.open_file(name)?;
        let length = file.metadata()?.len().saturating_sub(HEAD as u64) as usize;
        let mut frames = Aligned::new(length)?;
        file.read_exact_at(&mut frames[..length], HEAD as u64)?;
        Ok(frames)
    }

    pub(crate) fn remove(&self, name: &str) {
        self.memory.remove(name);
    }

    /// Where a backing is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.memory.path(name)
    }

    /// The path of the backing that was made last, and of the one that holds the segment at `base`.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn latest(&self) -> Option<PathBuf> {
        let number = |name: &String| name.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
        self.memory.list().unwrap().into_iter().max_by_key(number).map(|name| self.memory.path(&name))
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn latest_labelled(&self, base: u64) -> PathBuf {
        let holds = |found: &FoundBacking| matches!(found.content, Content::Segment { label, .. } if label.base == base);
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

    /// A new backing for a chunk of `capacity`, mapped; `None`, noted and said once, where there is no room.
    #[cfg(not(loom))]
    ///
    /// # Errors
    /// What may go better the next time: a moment without descriptors must not take a chunk its backing.
    pub(super) fn create(
        self: &std::sync::Arc<Self>,
        capacity: u64,
    ) -> io::Result<Option<(BackingFile, memmap2::MmapRaw)>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // What an earlier process left may still be there, and have had the same process id.
        let name = format!("{:016x}-{number:020}", self.incarnation);
        let made = self.memory.create(&name, HEAD as u64 + capacity, &self.head()).and_then(|file| {
            let backing = BackingFile { backings: std::sync::Arc::clone(self), name };
            Ok((backing, memmap2::MmapOptions::new().map_raw(&file)?))
        });
        match made {
            Ok(made) => Ok(Some(made)),
            Err(error) if is_transient(&error) => Err(error),
            Err(error) => {
                SHM_FALLBACKS.fetch_add(1, Ordering::Relaxed);
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        dir = %self.dir.display(), %error,
                        "no memory that outlives the process: what is acknowledged in memory is lost with it"
                    );
                }
                Ok(None)
            }
        }
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

/// Where the label is in the memory, and the note of the frame before.
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

/// One backing; its file goes when this is dropped.
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

/// Removes the backings of the log with this id in this directory: for one that was deleted.
///
/// # Errors
/// There may be some left then, to be removed another time.
#[cfg(feature = "store")]
pub(crate) fn remove_all(at: &Path, log: LogId, node: Node) -> io::Result<()> {
    let memory = MemoryDir::open(at)?.of(&log.to_string());
    for name in memory.list()? {
        let mut head = [0; HEAD];
        match memory.open_file(&name).and_then(|mut file| file.read_exact(&mut head)) {
            // Later: nobody else would find it.
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

/// The directories of logs that backings are kept for, in the memory file system at `at`.
#[cfg(feature = "store")]
pub(crate) fn owners(at: &Path) -> io::Result<Vec<(PathBuf, LogId)>> {
    let all = MemoryDir::open(at)?;
    let mut owners = Vec::new();
    for log in all.list()? {
        let memory = all.of(&log);
        for name in memory.list().unwrap_or_default() {
            let mut head = [0; HEAD];
            // It may have gone meanwhile.
            if memory.open_file(&name).and_then(|mut file| file.read_exact(&mut head)).is_ok()
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

/// Whose a backing is.
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
        let node = crate::disk::native().node(dir).unwrap();
        Arc::new(ShmBacking::open(at, LogId([1; 16]), [2; 16], dir, node, 77).unwrap())
    }

    #[test]
    fn a_moved_directory_has_its_backings_and_a_copy_has_not() {
        let place = tempfile::tempdir().unwrap();
        let [dir, moved, copy] = ["dir", "moved", "copy"].map(|name| place.path().join(name));
        std::fs::create_dir(&dir).unwrap();
        let made = backings(place.path(), &dir);
        let mut memory = super::super::Memory::shared(4096, Some(&made)).unwrap();
        let label = Label { base: 7, capacity: 4096, created: 9, version: 2 };
        memory.label(&label, Before::Frame(5));
        let content = |dir: &Path| backings(place.path(), dir).find().unwrap().pop().unwrap().content;
        let segment = |incarnation| Content::Segment {
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
        assert_eq!(content(&copy), Content::Elsewhere(dir.canonicalize().unwrap_or(dir)));
        memory.set_before(Before::Nothing);
        memory.set_sealed();
        assert!(matches!(content(&moved), Content::Segment { before: Before::Nothing, sealed: true, .. }));
        memory.label(&label, Before::Frame(5));
        assert_eq!(content(&moved), segment(made.incarnation));
        memory.clean(0);
        assert_eq!(content(&moved), Content::Spare);
    }

    /// One opening of a log goes while another makes its first backing: the directory was removed in between, and the chunk had
    /// none, though there was room.
    #[test]
    fn a_backing_is_made_whoever_removes_the_empty_directory() {
        let (place, over) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
        let made = backings(place.path(), place.path());
        let (at, stops) = (place.path().to_owned(), Arc::clone(&over));
        let other = std::thread::spawn(move || {
            while !stops.load(Ordering::SeqCst) {
                drop(backings(&at, &at));
            }
        });
        for n in 0..300 {
            assert!(made.create(4096).unwrap().is_some(), "{n} were made");
        }
        over.store(true, Ordering::SeqCst);
        other.join().unwrap();
    }

    /// A moment without descriptors while a log is deleted: its backings stayed for good.
    #[cfg(feature = "store")]
    #[test]
    fn backings_of_a_deleted_log_that_cannot_be_looked_at_for_a_moment_are_an_error() {
        let place = tempfile::tempdir().unwrap();
        let made = backings(place.path(), place.path());
        let memory = super::super::Memory::shared(4096, Some(&made)).unwrap();
        let remove = || remove_all(place.path(), LogId([1; 16]), made.node);
        crate::disk::shm::GATE.set(Some(Box::new(|what| match what {
            "open backing" => Err(io::Error::from_raw_os_error(24)),
            _ => Ok(()),
        })));
        assert!(remove().is_err_and(|error| is_transient(&error)));
        crate::disk::shm::GATE.set(None);
        assert!(made.latest().is_some());
        remove().unwrap();
        assert!(made.latest().is_none());
        drop(memory);
    }

    #[test]
    fn a_changed_bit_makes_a_backing_strange_and_never_one_of_another_log() {
        let place = tempfile::tempdir().unwrap();
        let made = backings(place.path(), place.path());
        let mut memory = super::super::Memory::shared(4096, Some(&made)).unwrap();
        memory.label(&Label { base: 7, capacity: 4096, created: 9, version: 2 }, Before::Unknown);
        let path = made.latest().unwrap();
        let good = std::fs::read(&path).unwrap();
        let of_dir = place.path().canonicalize().unwrap().as_os_str().len();
        for at in (0..LABEL.end).chain(DIR..DIR + of_dir) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(made.find().unwrap()[0].content, Content::Strange, "byte {at}");
        }
        std::fs::write(&path, &good[..100]).unwrap();
        assert_eq!(made.find().unwrap()[0].content, Content::Strange);
    }
}
