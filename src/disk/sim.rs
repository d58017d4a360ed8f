//! A simulated disk for tests: it fails when told to, loses power in the middle of a write, tears that write at
//! sectors, and forgets names that were not synced. What [`File::write_at`] has returned for, it keeps.

use super::{Disk, File, Node};
use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

const SECTOR: usize = 512;

/// Names and what they stand for: an index into the contents.
type Names = BTreeMap<PathBuf, usize>;

#[derive(Debug, Default)]
struct State {
    contents: Vec<Vec<u8>>,
    names: Names,
    durable_names: Names,
    locked: Vec<PathBuf>,
    random: u64,
    /// Changing operations until the power goes.
    fuse: Option<u64>,
    off: bool,
    /// Changing operations until one fails with an I/O error.
    fault: Option<u64>,
    /// Bytes that may be reserved in all; beyond it the disk is full.
    room: Option<u64>,
    /// Writes wait while this is set.
    held: bool,
}

/// See the module's documentation. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sim(Arc<Mutex<State>>);

impl State {
    fn random(&mut self) -> u64 {
        // SplitMix64, by Steele, Lea and Flood.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn alive(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    /// Counts a changing operation: `Err` if it is not to happen, `Ok(true)` if it is to happen in part.
    fn step(&mut self) -> io::Result<bool> {
        self.alive()?;
        if let Some(fault) = &mut self.fault {
            *fault = fault.saturating_sub(1);
            if *fault == 0 {
                self.fault = None;
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        if let Some(fuse) = &mut self.fuse {
            *fuse = fuse.saturating_sub(1);
            if *fuse == 0 {
                self.off = true;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        let sim = Self::default();
        sim.state().random = seed;
        sim
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The power goes at the `operations`-th changing operation from now.
    pub(crate) fn cut_power_after(&self, operations: u64) {
        self.state().fuse = Some(operations);
    }

    /// The `operations`-th changing operation from now fails with an I/O error, and changes nothing.
    pub(crate) fn fail_after(&self, operations: u64) {
        self.state().fault = Some(operations);
    }

    /// Only so many bytes may be reserved in all; `None` lifts the limit.
    pub(crate) fn set_room(&self, room: Option<u64>) {
        self.state().room = room;
    }

    /// Makes writes wait, or go on.
    pub(crate) fn hold(&self, held: bool) {
        self.state().held = held;
    }

    /// What is there when the power comes back: each name that was not synced is there or not, by chance. The
    /// old disk stays off.
    pub(crate) fn reboot(&self) -> Self {
        let mut old = self.state();
        old.off = true;
        let mut names = old.durable_names.clone();
        let changed: Vec<_> = old.names.keys().chain(old.durable_names.keys()).cloned().collect();
        let mut moved = Vec::new();
        for path in changed {
            if old.names.get(&path) != old.durable_names.get(&path) && old.random().is_multiple_of(2) {
                match old.names.get(&path) {
                    Some(&content) => {
                        names.insert(path, content);
                        moved.push(content);
                    }
                    None => drop(names.remove(&path)),
                }
            }
        }
        // A rename is atomic: where the new name is there, the old one of the same file is not.
        names.retain(|path, content| !moved.contains(content) || old.names.get(path) == Some(content));
        let state = State {
            contents: old.contents.clone(),
            durable_names: names.clone(),
            names,
            random: old.random(),
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A copy of the disk as it is; the old one goes on.
    pub(crate) fn snapshot(&self) -> Self {
        let old = self.state();
        let state = State {
            contents: old.contents.clone(),
            durable_names: old.names.clone(),
            names: old.names.clone(),
            random: old.random,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Changes the contents of a file behind the log's back.
    pub(crate) fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let content = state.find(path).unwrap();
        change(&mut state.contents[content]);
    }

    /// All files and what is in them.
    pub(crate) fn dump(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        state.names.iter().map(|(path, &content)| (path.clone(), state.contents[content].clone())).collect()
    }
}

impl Disk for Sim {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.state().alive()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        let inside = state.names.keys().filter_map(|path| path.strip_prefix(dir).ok());
        Ok(inside.filter_map(|path| Some(path.iter().next()?.to_str()?.to_owned())).collect())
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn File>> {
        let mut state = self.state();
        let used: u64 = state.names.values().map(|&content| state.contents[content].len() as u64).sum();
        if state.room.is_some_and(|room| used + length > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.step()?;
        let content = state.contents.len();
        state.contents.push(vec![0; length as usize]);
        state.names.insert(path.to_owned(), content);
        Ok(Box::new(SimFile { disk: self.clone(), content }))
    }

    fn open(&self, path: &Path, _: bool) -> io::Result<Box<dyn File>> {
        let state = self.state();
        state.alive()?;
        Ok(Box::new(SimFile { disk: self.clone(), content: state.find(path)? }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let content = state.find(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        state.find(path)?;
        state.names.remove(path);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.step()? {
            return Err(io::Error::other("the power went during a sync"));
        }
        let names = state.names.clone();
        state.durable_names.retain(|path, _| path.parent() != Some(dir));
        state.durable_names.extend(names.into_iter().filter(|(path, _)| path.parent() == Some(dir)));
        Ok(())
    }

    #[cfg(feature = "store")]
    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        let inside = state.names.keys().filter_map(|path| path.strip_prefix(dir).ok());
        let deep = inside.filter(|path| path.iter().count() > 1);
        let names: std::collections::BTreeSet<_> =
            deep.filter_map(|path| Some(path.iter().next()?.to_str()?.to_owned())).collect();
        Ok(names.into_iter().collect())
    }

    #[cfg(feature = "store")]
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        state.names.retain(|path, _| !path.starts_with(dir));
        Ok(())
    }

    #[cfg(feature = "store")]
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.step()?;
        let content = state.contents.len();
        state.contents.push(bytes.to_vec());
        state.names.insert(path.to_owned(), content);
        Ok(())
    }

    fn node(&self, _: &Path) -> io::Result<Node> {
        Ok((0, 0))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state();
        state.alive()?;
        if state.locked.iter().any(|held| held == path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locked.push(path.to_owned());
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned() }))
    }
}

struct SimLock {
    disk: Sim,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locked.retain(|held| *held != self.path);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Sim,
    content: usize,
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.disk.state();
        state.alive()?;
        Ok(state.contents[self.content].len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        let state = self.disk.state();
        state.alive()?;
        let from = state.contents[self.content].get(position as usize..).unwrap_or_default();
        buf.copy_from_slice(from.get(..buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        while self.disk.state().held {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut state = self.disk.state();
        let torn = state.step()?;
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        assert!(position.is_multiple_of(super::BLOCK) && (bytes.len() as u64).is_multiple_of(super::BLOCK));
        let end = position as usize + bytes.len();
        if state.contents[self.content].len() < end {
            state.contents[self.content].resize(end, 0);
        }
        // A torn write: some of its sectors arrive, in no particular order.
        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
            if !torn || state.random().is_multiple_of(2) {
                let at = position as usize + n * SECTOR;
                state.contents[self.content][at..at + sector.len()].copy_from_slice(sector);
            }
        }
        if torn { Err(io::Error::other("the power went during a write")) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        if self.disk.state().step()? { Err(io::Error::other("the power went during a sync")) } else { Ok(()) }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let torn = state.step()?;
        if !torn || state.random().is_multiple_of(2) {
            state.contents[self.content].resize(length as usize, 0);
        }
        if torn { Err(io::Error::other("the power went during a truncation")) } else { Ok(()) }
    }
}
