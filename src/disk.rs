//! The only place that touches files. The log uses [`Disk`] and [`File`]. Behind them are the system's files, written
//! past the page cache ([`direct`]) or through it ([`buffered`]), and a simulated disk for tests that loses data, tears
//! writes and fails (`sim`).

mod buffered;
mod calls;
#[cfg(target_os = "linux")]
mod direct;
#[cfg(all(test, not(loom)))]
pub(crate) mod gate;
mod native;
pub(crate) mod salvage;
pub(crate) mod shm;
#[cfg(all(any(test, all(fuzzing, feature = "store")), not(loom)))]
#[cfg_attr(not(test), allow(dead_code))] // tests need more of it than fuzzing does
pub(crate) mod sim;
pub(crate) mod tree;

pub(crate) use native::native;
use std::{
    io::{self, IoSlice},
    ops::Range,
    path::{Path, PathBuf},
};

/// The block in which files are written: `O_DIRECT` requires it. If a write to it is torn, whole sectors of 512 bytes
/// are old or new.
pub(crate) const BLOCK: u64 = 4096;

/// How a file system identifies a directory, whatever its name: device and number. A copy of the directory has another.
/// Zeros if it is not known.
pub(crate) type Node = (u64, u64);

/// A directory tree of files.
///
/// If [`is_transient`] or [`is_full`] recognises the error of any operation, here or on files, the operation has
/// changed nothing and may be tried again; only [`File::write_at`] may have written some of it before it found no room.
/// If a write or a sync was begun and its outcome is not known, the error is turned into an [`unknown`] one.
pub(crate) trait Disk: Send + Sync + std::fmt::Debug {
    /// Creates `dir` and its parents, unless they exist; their names are durable on return.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in `dir`.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a file of `length` bytes, all reserved. The name is durable only after [`sync_dir`](Self::sync_dir).
    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn File>>;
    /// Opens an existing file for reading and, if `write`, writing.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>>;
    /// Renames a file, replacing any file at `to`; or a directory. Durable only after [`sync_dir`](Self::sync_dir).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable only after [`sync_dir`](Self::sync_dir).
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Whether there is a directory at `path`. A symbolic link to one does not count: what it points to may have other
    /// names.
    #[cfg(feature = "store")]
    fn is_dir(&self, path: &Path) -> io::Result<bool>;
    /// The names of the directories in `dir`, without symbolic links.
    #[cfg(feature = "store")]
    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Removes a directory and everything in it. Durable only after [`sync_dir`](Self::sync_dir) of its parent.
    #[cfg(feature = "store")]
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Writes a file with these bytes, replacing any other. The bytes are durable on return, the name only after
    /// [`sync_dir`](Self::sync_dir).
    #[cfg(feature = "store")]
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// The user's directory in the memory file system at `at`, created if it is missing. Refused if anybody else could
    /// have created it or can look into it.
    fn memory(&self, at: &Path) -> io::Result<Box<dyn MemoryDir>>;
    /// Whether several threads may work on it for one caller, to save time: not where the order of operations is replayed.
    fn in_parallel(&self) -> bool {
        false
    }
    /// See [`Node`].
    fn node(&self, dir: &Path) -> io::Result<Node>;
    /// Takes the lock file at `path`, creating it if it is missing; `WouldBlock` if another holds it. It is held until
    /// the returned value is dropped or the process ends, in whatever way.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Takes the lock file at `path`, if it exists, in shared mode; `WouldBlock` if another holds it exclusively.
    /// `None` if there is no lock file.
    fn join_lock(&self, _path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        Ok(None)
    }
}

/// A directory in a file system that is memory: its files outlive the process, but not the machine.
pub(crate) trait MemoryDir: Send + Sync + std::fmt::Debug {
    /// The directory of one owner within this one. It is created along with its first file.
    fn of(&self, owner: &str) -> Box<dyn MemoryDir>;
    /// Removes the directory if it is empty.
    fn remove_if_empty(&self);
    /// Creates a file that starts with `head`, with all its memory reserved, so that writing to it never runs out of
    /// memory. It gets its name only after its head is written: a process that is killed in here leaves nothing behind.
    #[cfg(not(loom))]
    fn create(&self, name: &str, length: u64, head: &[u8]) -> io::Result<std::fs::File>;
    /// The names in it.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading.
    fn open(&self, name: &str) -> io::Result<std::fs::File>;
    /// The path of a file.
    fn path(&self, name: &str) -> PathBuf;
    /// Removes a file. What cannot be removed is found at the next start.
    fn remove(&self, name: &str);
}

/// One open file.
pub(crate) trait File: Send + Sync + std::fmt::Debug {
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `position` on; `UnexpectedEof` if the file ends before that.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<()>;
    /// Like [`read_at`](Self::read_at), for large reads that will not be repeated soon: past the page cache, where the
    /// system supports that. The address of `buf` and `position` must be multiples of 512.
    fn read_once(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        self.read_at(buf, position)
    }
    /// Writes `parts` one after the other from `position` on; they are durable on return. Position, addresses and
    /// lengths must be multiples of [`BLOCK`]. After an error nothing is known about the range. If [`is_full`] recognises
    /// the error, blocks could not be allocated for all of it: nothing outside the range has changed, and once the whole
    /// range is written again, it is as if nothing had happened. That happens also in a file whose room was reserved:
    /// where the file system cannot reserve any, and where blocks are shared with a copy of the file.
    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Makes everything that any process has written to the file durable. Where the system supports it, later reads
    /// come from the device: after a failed sync, memory may hold data that the device does not have, and treat it as
    /// written.
    fn sync(&self) -> io::Result<()>;
    /// Sets the length; durable on return.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Reserves the blocks of the first `length` bytes, so that writing them cannot find the disk full, where the
    /// system supports that; of those in `written`, which are not written again, only what is missing. Existing content
    /// stays; afterwards the file is at least `length` bytes long.
    fn reserve(&self, length: u64, written: Range<u64>) -> io::Result<()>;
}

/// Memory to write from and to read into: aligned to [`BLOCK`], a multiple of it long, zeroed.
#[derive(Debug)]
pub(crate) struct Aligned(memmap2::MmapMut);

impl Aligned {
    /// At least `length` bytes.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(length.max(1).next_multiple_of(BLOCK as usize))?;
        // Half the time of reading 64 MiB goes into faulting in small pages. This is only advice: without it, reads are
        // slower.
        #[cfg(target_os = "linux")]
        let _ = (length > 1 << 21).then(|| map.advise(memmap2::Advice::HugePage));
        Ok(Self(map))
    }
}

impl From<memmap2::MmapMut> for Aligned {
    /// From whole blocks that begin at a block.
    fn from(map: memmap2::MmapMut) -> Self {
        debug_assert!(map.len().is_multiple_of(BLOCK as usize));
        Self(map)
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Whether an error says that the system lacked descriptors or memory for an operation, or interrupted it before it
/// began. Such an error may pass.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN, Errno::INTR];
    error.raw_os_error().is_some_and(|number| passing.contains(&Errno::from_raw_os_error(number)))
        || matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted)
}

/// Turns an error into one after which nothing is known about what was written or synced, whatever the system calls it.
/// A sync that failed for lack of memory has failed: the next one may succeed without reporting what was lost.
pub(crate) fn unknown(error: io::Error) -> io::Error {
    /// Displays as the inner error, and is of no particular kind.
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Unknown(io::Error);
    io::Error::other(Unknown(error))
}

/// The error of a write: [`unknown`], unless it says that there was no room. A write fails for lack of room when it
/// cannot allocate blocks, before anything is handed to the device for them, so that no later sync can miss it. (A sync
/// that fails for the same reason has lost what others wrote, and is not excused.)
pub(crate) fn of_write(error: io::Error) -> io::Error {
    if is_full(&error) { error } else { unknown(error) }
}

/// Whether an error says that the file system is mounted read-only.
pub(crate) fn is_read_only(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ReadOnlyFilesystem
}

/// Whether an error says that there is no room: the disk is full, the user's quota is used up, or the process may not
/// write files that large (`RLIMIT_FSIZE`; if SIGXFSZ is not ignored, the process is killed instead).
pub(crate) fn is_full(error: &io::Error) -> bool {
    is_out_of_space(error) || error.kind() == io::ErrorKind::FileTooLarge
}

/// Whether an error says that there is no room on the disk, or in the quota, whatever the size of the file.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
