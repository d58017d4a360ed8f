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

mod dir;
mod head;

use crate::reports;
pub(crate) use dir::{BackingContent, BackingDir, FoundBacking};
#[cfg(feature = "store")]
pub(crate) use dir::{owners, remove_all};
#[cfg(not(loom))]
use head::Owner;
pub(crate) use head::{BACKING_HEAD_BYTES, Label, Predecessor, backing_bytes};
#[cfg(not(loom))]
pub(super) use head::{LABEL, LABEL_BYTES, PREDECESSOR_AT, SEALED_AT};
#[cfg(all(test, not(loom)))]
use std::path::PathBuf;
use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// How many segments of this process began, or were resumed, without the backing that they should have.
pub(crate) static SHM_FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// The backings that one opening of a log has.
#[derive(Debug)]
pub(crate) struct LogBackings {
    pub(crate) dir: BackingDir,
    #[cfg(not(loom))]
    secret: [u8; 16],
    /// A random number for this opening of the log.
    #[cfg(not(loom))]
    opening: u64,
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

impl LogBackings {
    /// Backings in `dir` for the log with this secret. `opening` is a random number, which no other opening of the log has.
    pub(crate) fn new(dir: BackingDir, secret: [u8; 16], opening: u64) -> Self {
        let _ = (secret, opening);
        Self {
            dir,
            #[cfg(not(loom))]
            secret,
            #[cfg(not(loom))]
            opening,
            keep: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            fallbacks: AtomicU64::new(0),
        }
    }

    /// The path of the backing that was created last; [`latest_labelled`](Self::latest_labelled) finds the one that
    /// holds the segment at `base`.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn latest(&self) -> Option<PathBuf> {
        let number = |name: &String| name.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
        self.dir.memory.list().unwrap().into_iter().max_by_key(number).map(|name| self.dir.memory.path(&name))
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn latest_labelled(&self, base: u64) -> PathBuf {
        let holds = |found: &FoundBacking| matches!(found.content, BackingContent::Segment { label, .. } if label.base == base);
        self.dir.memory.path(&self.dir.find().unwrap().into_iter().find(holds).unwrap().name)
    }

    /// From now on backings stay when they are dropped.
    pub(crate) fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
    }

    /// A chunk gets none, for this reason: reports that, once until one gets one.
    pub(crate) fn warn(&self, error: &io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            no_backing(&self.dir.log_dir, error);
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
        let name = format!("{:016x}-{number:020}", self.opening);
        let dir = &self.dir;
        let head = Owner::head(dir.log, &dir.log_dir, dir.node, self.secret);
        let file = dir.memory.create(&name, backing_bytes(capacity), &head)?;
        let backing = BackingFile { backings: std::sync::Arc::clone(self), name };
        let map = memmap2::MmapOptions::new().map_raw(&file)?;
        self.warned.store(false, Ordering::Relaxed);
        Ok((backing, map))
    }
}

/// One backing; its file is removed when this is dropped.
#[cfg(not(loom))]
#[derive(Debug)]
pub(super) struct BackingFile {
    backings: std::sync::Arc<LogBackings>,
    name: String,
}

#[cfg(not(loom))]
impl BackingFile {
    pub(super) fn label(&self, label: &Label) -> [u8; LABEL_BYTES] {
        label.encode(self.backings.opening)
    }
}

#[cfg(not(loom))]
impl Drop for BackingFile {
    fn drop(&mut self) {
        if !self.backings.keep.load(Ordering::SeqCst) {
            self.backings.dir.memory.remove(&self.name);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{
        head::{DIR_AT, LABEL},
        *,
    };
    use crate::LogId;
    #[cfg(feature = "store")]
    use crate::disk::{Disk, is_transient};
    use std::sync::Arc;

    fn backings(at: &Path, dir: &Path) -> Arc<LogBackings> {
        let disk = crate::disk::native();
        let node = disk.node(dir).unwrap();
        let dir = BackingDir::open(&*disk, at, LogId([1; 16]), dir, node).unwrap();
        Arc::new(LogBackings::new(dir, [2; 16], 77))
    }

    #[test]
    fn a_moved_directory_has_its_backings_and_a_copy_has_not() {
        let place = tempfile::tempdir().unwrap();
        let [dir, moved, copy] = ["dir", "moved", "copy"].map(|name| place.path().join(name));
        std::fs::create_dir(&dir).unwrap();
        let made = backings(place.path(), &dir);
        let mut memory = super::super::ChunkMemory::backed(4096, &made).unwrap();
        let label = Label { base: 7, capacity: 4096, created: 9, version: 2 };
        memory.label(&label, Predecessor::Frame(5));
        let content = |dir: &Path| backings(place.path(), dir).dir.find().unwrap().pop().unwrap().content;
        let segment = |opening| BackingContent::Segment {
            label,
            opening,
            predecessor: Predecessor::Frame(5),
            sealed: false,
            secret: Some([2; 16]),
        };
        assert_eq!(content(&dir), segment(made.opening));
        std::fs::rename(&dir, &moved).unwrap();
        assert_eq!(content(&moved), segment(made.opening));
        std::fs::create_dir(&copy).unwrap();
        assert_eq!(content(&copy), BackingContent::Elsewhere(dir.canonicalize().unwrap_or(dir)));
        memory.set_predecessor(Predecessor::Nothing);
        memory.set_sealed();
        assert!(matches!(
            content(&moved),
            BackingContent::Segment { predecessor: Predecessor::Nothing, sealed: true, .. }
        ));
        memory.label(&label, Predecessor::Frame(5));
        assert_eq!(content(&moved), segment(made.opening));
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
        let remove = |disk: &dyn Disk| remove_all(disk, place.path(), LogId([1; 16]), made.dir.node);
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
        memory.label(&Label { base: 7, capacity: 4096, created: 9, version: 2 }, Predecessor::Unknown);
        let path = made.latest().unwrap();
        let good = std::fs::read(&path).unwrap();
        let of_dir = place.path().canonicalize().unwrap().as_os_str().len();
        for at in (0..LABEL.end).chain(DIR_AT..DIR_AT + of_dir) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(made.dir.find().unwrap()[0].content, BackingContent::Invalid, "byte {at}");
        }
        std::fs::write(&path, &good[..100]).unwrap();
        assert_eq!(made.dir.find().unwrap()[0].content, BackingContent::Invalid);
    }
}
