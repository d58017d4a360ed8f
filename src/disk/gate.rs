//! A disk for tests that asks before each operation: the test may let it through, make it wait, or make it fail.

use super::{Disk, File, MemoryDir, Node};
use std::{
    io::{self, IoSlice},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// The operation that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    CreateDir,
    List,
    Create,
    Open,
    Rename,
    Remove,
    SyncDir,
    RemoveDir,
    WriteFile,
    Read,
    Write,
    SetLength,
    Reserve,
    /// After a directory was synced.
    SyncedDir,
    Lock,
}

type Ask = Arc<dyn Fn(Operation, &Path) -> io::Result<()> + Send + Sync>;
type Bad = Arc<Mutex<Option<Range<u64>>>>;

/// A disk whose operations a test lets through, holds up, or makes fail.
#[derive(Clone)]
pub(crate) struct Gate {
    disk: Arc<dyn Disk>,
    ask: Ask,
    bad: Bad,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.disk.fmt(f)
    }
}

impl Gate {
    /// A gate in front of `disk`. A file is asked about under the path that it was opened by.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        ask: impl Fn(Operation, &Path) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { disk, ask: Arc::new(ask), bad: Bad::default() })
    }

    /// Sets which bytes cannot be read, of any file.
    pub(crate) fn set_bad(&self, bytes: Option<Range<u64>>) {
        *self.bad.lock().unwrap() = bytes;
    }

    fn file(&self, file: Box<dyn File>, path: &Path) -> Box<dyn File> {
        Box::new(GateFile {
            file,
            ask: Arc::clone(&self.ask),
            bad: Arc::clone(&self.bad),
            path: path.to_owned(),
        })
    }
}

impl Disk for Gate {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        (self.ask)(Operation::CreateDir, dir)?;
        self.disk.create_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        (self.ask)(Operation::List, dir)?;
        self.disk.list(dir)
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn File>> {
        (self.ask)(Operation::Create, path)?;
        Ok(self.file(self.disk.create(path, length)?, path))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn File>> {
        (self.ask)(Operation::Open, path)?;
        Ok(self.file(self.disk.open(path, write)?, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.ask)(Operation::Rename, from)?;
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        (self.ask)(Operation::Remove, path)?;
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        (self.ask)(Operation::SyncDir, dir)?;
        self.disk.sync_dir(dir)?;
        (self.ask)(Operation::SyncedDir, dir)
    }

    #[cfg(feature = "store")]
    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        (self.ask)(Operation::List, path)?;
        self.disk.is_dir(path)
    }

    #[cfg(feature = "store")]
    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        (self.ask)(Operation::List, dir)?;
        self.disk.dirs(dir)
    }

    #[cfg(feature = "store")]
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        (self.ask)(Operation::RemoveDir, dir)?;
        self.disk.remove_dir(dir)
    }

    #[cfg(feature = "store")]
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        (self.ask)(Operation::WriteFile, path)?;
        self.disk.write_file(path, bytes)
    }

    fn memory(&self, at: &Path) -> io::Result<Box<dyn MemoryDir>> {
        self.disk.memory(at)
    }

    fn node(&self, dir: &Path) -> io::Result<Node> {
        self.disk.node(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        (self.ask)(Operation::Lock, path)?;
        self.disk.lock(path)
    }

    fn join_lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send + Sync>>> {
        self.disk.join_lock(path)
    }
}

struct GateFile {
    file: Box<dyn File>,
    ask: Ask,
    bad: Bad,
    path: PathBuf,
}

impl GateFile {
    fn ask_to_read(&self, buf: &[u8], position: u64) -> io::Result<()> {
        (self.ask)(Operation::Read, &self.path)?;
        let bad = self.bad.lock().unwrap().clone();
        let end = position + buf.len() as u64;
        if bad.is_some_and(|bad| bad.start < end && position < bad.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }
}

impl std::fmt::Debug for GateFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl File for GateFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        self.ask_to_read(buf, position)?;
        self.file.read_at(buf, position)
    }

    fn read_once(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        self.ask_to_read(buf, position)?;
        self.file.read_once(buf, position)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        (self.ask)(Operation::Write, &self.path)?;
        self.file.write_at(parts, position)
    }

    fn sync(&self) -> io::Result<()> {
        (self.ask)(Operation::Write, &self.path)?;
        self.file.sync()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        (self.ask)(Operation::SetLength, &self.path)?;
        self.file.set_len(length)
    }

    fn reserve(&self, length: u64, written: Range<u64>) -> io::Result<()> {
        (self.ask)(Operation::Reserve, &self.path)?;
        self.file.reserve(length, written)
    }
}
