//! The only place that touches files. The log speaks to [`Disk`] and [`File`]; behind them are the system's files,
//! written past the page cache ([`direct`]) or through it ([`buffered`]), and a simulated disk for tests that
//! loses, tears and fails (`sim`).

mod buffered;
mod direct;
#[cfg(all(test, not(loom)))]
pub(crate) mod gate;
mod native;
pub(crate) mod salvage;
pub(crate) mod shm;
#[cfg(all(any(test, fuzzing), not(loom)))]
#[cfg_attr(not(test), allow(dead_code))] // tests need more of it than fuzzing does
pub(crate) mod sim;
#[cfg(feature = "store")]
pub(crate) mod tree;

pub(crate) use native::native;
pub(crate) use shm::MemoryDir;
use std::{
    io::{self, IoSlice},
    path::Path,
};

/// The block in which files are written: `O_DIRECT` asks for it, and a device tears no smaller part of it than a
/// sector of 512 bytes.
pub(crate) const BLOCK: u64 = 4096;

/// What a file system knows a directory by, whatever its name: device and number. A copy of it has another; zeros if
/// it is not known.
pub(crate) type Node = (u64, u64);

/// A directory tree of files.
///
/// An error that [`is_transient`] or [`is_full`] recognises says of any operation, here and on files, that it has changed nothing,
/// and may be tried again. Where a write or a sync was begun and nothing is known of what it has come to, the error is made
/// [`unknown`].
pub(crate) trait Disk: Send + Sync + std::fmt::Debug {
    /// Makes `dir` and its parents, unless they are there; their names are durable on return.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in `dir`.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// A new file of `length` bytes, all reserved. The name is durable only after [`sync_dir`](Self::sync_dir).
    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn File>>;
    /// A file that exists, for reading and, if `write`, writing.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>>;
    /// Renames a file over whatever is at `to`, or a directory. Durable only after [`sync_dir`](Self::sync_dir).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable only after [`sync_dir`](Self::sync_dir).
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names of the directories in `dir`.
    #[cfg(feature = "store")]
    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Removes a directory and all that is in it. Durable only after [`sync_dir`](Self::sync_dir) of the one it was in.
    #[cfg(feature = "store")]
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// A file of these bytes, in place of any other. They are durable on return; the name is only after
    /// [`sync_dir`](Self::sync_dir).
    #[cfg(feature = "store")]
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// See [`Node`].
    fn node(&self, dir: &Path) -> io::Result<Node>;
    /// Takes the lock file at `path`, made where it is missing; `WouldBlock` where somebody holds it. Held until
    /// the returned value is dropped, or the process ends in whatever way.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
    /// Takes the lock file at `path`, if there is one, together with others who do this; `WouldBlock` where somebody
    /// has it alone.
    fn join_lock(&self, _path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        Ok(None)
    }
}

/// One open file.
pub(crate) trait File: Send + Sync + std::fmt::Debug {
    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `position` on; `UnexpectedEof` where the file ends before.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<()>;
    /// As [`read_at`](Self::read_at), of much that will not be read again soon: past the page cache, where the system
    /// has that. Only where `buf` begins and `position` is at a multiple of 512.
    fn read_once(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        self.read_at(buf, position)
    }
    /// Writes `parts` one behind the other from `position` on, and returns when they are durable. Position,
    /// addresses and lengths are multiples of [`BLOCK`]. After an error nothing is known of the range.
    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Makes durable what was written to the file, by whomever. Where the system can be told, what is read from now on
    /// comes from the device: if a sync has failed before, memory may have what the device has not, and takes it for
    /// written.
    fn sync(&self) -> io::Result<()>;
    /// Sets the length; durable on return.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Reserves the blocks of the first `length` bytes, so that writing them cannot find the disk full, where the system has
    /// that. What is there stays; the file is no shorter than that then.
    fn reserve(&self, length: u64) -> io::Result<()>;
}

/// Memory to write from and read into: aligned to [`BLOCK`], a multiple of it long, zeroed.
#[derive(Debug)]
pub(crate) struct Aligned(memmap2::MmapMut);

impl Aligned {
    /// At least `length` bytes.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let map = memmap2::MmapMut::map_anon(length.max(1).next_multiple_of(BLOCK as usize))?;
        // Half the time of reading 64 MiB goes into faulting in small pages. Advice: without, it is only slower.
        #[cfg(target_os = "linux")]
        let _ = (length > 1 << 21).then(|| map.advise(memmap2::Advice::HugePage));
        Ok(Self(map))
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

/// Whether an error says that the system had no descriptors or memory for an operation, or broke off before it: that may pass.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::AGAIN, Errno::INTR];
    error.raw_os_error().is_some_and(|number| passing.contains(&Errno::from_raw_os_error(number)))
        || matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::Interrupted)
}

/// An error after which nothing is known of what was written or synced, whatever the system calls it. A sync that failed for lack of
/// memory has failed: the next one may succeed, and say nothing of what was lost.
pub(crate) fn unknown(error: io::Error) -> io::Error {
    /// Says what the other says, and is of no particular kind.
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Unknown(io::Error);
    io::Error::other(Unknown(error))
}

/// Whether an error says that the file system is mounted for reading only.
pub(crate) fn is_read_only(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ReadOnlyFilesystem
}

/// Whether an error says that there is no room: the disk is full, or the user's share of it, or the process may not make
/// files that large (`RLIMIT_FSIZE`; where SIGXFSZ is not ignored, the process ends instead).
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
