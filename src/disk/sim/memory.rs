//! The memory file system beside a simulated disk: the system's own, but a test may make each step fail, and say how
//! much room there is.

use super::super::{MemoryDir, native};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

type AskStep = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

/// What limits a simulated disk's memory file system.
#[derive(Default)]
pub(super) struct Limits {
    /// What is asked before each step, if anything.
    pub(super) ask: Option<AskStep>,
    /// The bytes that all files may have together, if there is a limit.
    pub(super) room: Option<u64>,
}

pub(super) type MemoryGate = Arc<Mutex<Limits>>;

fn pass(gate: &MemoryGate, step: &str) -> io::Result<()> {
    let ask = gate.lock().unwrap().ask.clone();
    ask.map_or(Ok(()), |ask| ask(step))
}

pub(super) fn open(at: &Path, gate: &MemoryGate) -> io::Result<Box<dyn MemoryDir>> {
    pass(gate, "open memory")?;
    Ok(Box::new(GatedDir { dir: native().memory(at)?, at: at.to_owned(), gate: Arc::clone(gate) }))
}

/// The bytes of all files below `dir`.
fn used(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => used(&entry.path()),
        found => found.map_or(0, |found| found.len()),
    };
    entries.map(size).sum()
}

struct GatedDir {
    dir: Box<dyn MemoryDir>,
    /// Where the memory file system is.
    at: PathBuf,
    gate: MemoryGate,
}

impl std::fmt::Debug for GatedDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.dir.fmt(f)
    }
}

impl MemoryDir for GatedDir {
    fn of(&self, owner: &str) -> Box<dyn MemoryDir> {
        Box::new(Self { dir: self.dir.of(owner), at: self.at.clone(), gate: Arc::clone(&self.gate) })
    }

    fn remove_if_empty(&self) {
        if pass(&self.gate, "remove memory").is_ok() {
            self.dir.remove_if_empty();
        }
    }

    fn create(&self, name: &str, length: u64, head: &[u8]) -> io::Result<fs::File> {
        pass(&self.gate, "make backing")?;
        if self.gate.lock().unwrap().room.is_some_and(|room| used(&self.at) + length > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.dir.create(name, length, head)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        pass(&self.gate, "list backings")?;
        self.dir.list()
    }

    fn open(&self, name: &str) -> io::Result<fs::File> {
        pass(&self.gate, "open backing")?;
        self.dir.open(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path(name)
    }

    fn remove(&self, name: &str) {
        if pass(&self.gate, "remove backing").is_ok() {
            self.dir.remove(name);
        }
    }
}
