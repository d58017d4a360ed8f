//! The directory of one log's backings in the memory file system.

use super::head::{
    BACKING_HEAD_BYTES, DIR_AT, LABEL, LABEL_1, Label, Owner, PREDECESSOR_AT, Predecessor, SEALED_AT,
};
#[cfg(feature = "store")]
use crate::disk::is_transient;
use crate::{
    LogId,
    disk::{Aligned, Disk, MemoryDir, Node},
};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Finds, creates and removes the backings of one log.
#[derive(Debug)]
pub(crate) struct BackingDir {
    pub(super) memory: Box<dyn MemoryDir>,
    pub(super) log: LogId,
    /// The log's directory; and, in `node`, how the file system identifies it, whatever its name.
    pub(super) log_dir: PathBuf,
    pub(super) node: Node,
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
    /// The frames of this segment, written by the process whose opening of the log has this number; what that process
    /// knew about the preceding frame; and whether it has sealed the segment, which means that all frames are on disk.
    Segment { label: Label, opening: u64, predecessor: Predecessor, sealed: bool, secret: Option<[u8; 16]> },
    /// It belongs to another directory, which has, or had, a log of the same id: a copy of this one, or its original.
    Elsewhere(PathBuf),
    /// It cannot be understood.
    Invalid,
}

impl BackingDir {
    /// Of the log with this id in `dir`, in the memory file system at `at`.
    pub(crate) fn open(disk: &dyn Disk, at: &Path, log: LogId, dir: &Path, node: Node) -> io::Result<Self> {
        let log_dir = dir.canonicalize().or_else(|_| std::path::absolute(dir))?;
        if log_dir.as_os_str().len() > BACKING_HEAD_BYTES - DIR_AT {
            return Err(io::Error::other("the path of the log's directory is too long"));
        }
        Ok(Self { memory: disk.memory(at)?.of(&log.to_string()), log, log_dir, node })
    }

    /// The backings left by processes that ended without closing the log.
    pub(crate) fn find(&self) -> io::Result<Vec<FoundBacking>> {
        let mut found = Vec::new();
        for name in self.memory.list()? {
            match self.memory.open(&name).and_then(|file| read_head(&file)) {
                Ok(head) => found.push(FoundBacking { content: self.content(&head), name }),
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

    fn content(&self, head: &[u8; BACKING_HEAD_BYTES]) -> BackingContent {
        let Some(owner) = Owner::decode(head).filter(|owner| owner.log == self.log) else {
            return BackingContent::Invalid;
        };
        // A directory that was moved has another path but the same node; after a remount it may have the same path but
        // another node.
        if owner.dir != self.log_dir && !owner.is_at(self.node) {
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
            let (opening, predecessor) = (0, Predecessor::Unknown);
            return BackingContent::Segment { label, opening, predecessor, sealed: false, secret: None };
        };
        let label = Label { base, capacity, created, version: word(at + 32) as u32 };
        let (opening, predecessor) = (word(at + 24), Predecessor::unpack(word(PREDECESSOR_AT)));
        BackingContent::Segment {
            label,
            opening,
            predecessor,
            sealed: word(SEALED_AT) == 1,
            secret: Some(secret),
        }
    }

    /// The bytes of the chunk in a backing. Changing them does not change the backing. If there is room to spare, they
    /// are mapped and not copied; the backing's memory then stays until they are dropped.
    pub(crate) fn frames(&self, name: &str) -> io::Result<Aligned> {
        let file = self.memory.open(name)?;
        let length = file.metadata()?.len().saturating_sub(BACKING_HEAD_BYTES as u64) as usize;
        #[cfg(target_os = "linux")]
        if self.is_of_this_directory(&file)
            && self.free_bytes() >= (BACKING_HEAD_BYTES + length) as u64
            && let Some(frames) = mapped(&file, length)
        {
            return Ok(frames);
        }
        let mut frames = Aligned::new(length)?;
        file.read_exact_at(&mut frames[..length], BACKING_HEAD_BYTES as u64)?;
        Ok(frames)
    }

    /// Reads bytes of the chunk in a backing, from byte `at` on. Returns how many there are, if it ends before that.
    pub(crate) fn read_at(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let file = self.memory.open(name)?;
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], BACKING_HEAD_BYTES as u64 + at + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    pub(crate) fn remove(&self, name: &str) {
        self.memory.remove(name);
    }

    /// Removes these backings. Their names are gone on return; the memory of some of them is given back a moment later, by
    /// another thread, because that takes 10 ms for 64 MiB.
    pub(crate) fn remove_each(&self, names: &[&str]) {
        /// The most files that are kept open at once.
        const MAX_OPEN: usize = 8;
        let open: Vec<_> =
            names.iter().take(MAX_OPEN).filter_map(|name| self.memory.open(name).ok()).collect();
        for name in names {
            self.memory.remove(name);
        }
        // Where memory is short, the next chunk needs it at once.
        let needs =
            open.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).max().unwrap_or(0);
        if self.free_bytes() >= needs.saturating_mul(4) && !open.is_empty() {
            // If there is no thread to be had, they are closed here.
            let _ = std::thread::Builder::new().name("millstream-free".into()).spawn(move || drop(open));
        }
    }

    /// The room that is left in the memory file system; 0 if that is not known.
    fn free_bytes(&self) -> u64 {
        let found = rustix::fs::statvfs(self.memory.path(""));
        found.map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Whether a backing is certainly of this directory, and not of one of the same path, in a copy of its file system that
    /// another process has mounted there.
    #[cfg(target_os = "linux")]
    fn is_of_this_directory(&self, file: &File) -> bool {
        read_head(file).is_ok_and(|head| Owner::decode(&head).is_some_and(|owner| owner.is_at(self.node)))
    }

    /// The path of a backing.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.memory.path(name)
    }

    /// The log's id.
    pub(crate) fn log(&self) -> LogId {
        self.log
    }
}

impl Drop for BackingDir {
    fn drop(&mut self) {
        self.memory.remove_if_empty();
    }
}

/// The head of a backing.
fn read_head(file: &File) -> io::Result<[u8; BACKING_HEAD_BYTES]> {
    let mut head = [0; BACKING_HEAD_BYTES];
    file.read_exact_at(&mut head, 0)?;
    Ok(head)
}

/// Removes the backings of the log with this id in this directory, after the log was deleted.
///
/// # Errors
/// Some backings may be left then, to be removed another time.
#[cfg(feature = "store")]
pub(crate) fn remove_all(disk: &dyn Disk, at: &Path, log: LogId, node: Node) -> io::Result<()> {
    let memory = disk.memory(at)?.of(&log.to_string());
    for name in memory.list()? {
        match memory.open(&name).and_then(|file| read_head(&file)) {
            // The caller must try again later, because nobody else would find it.
            Err(error) if is_transient(&error) => return Err(error),
            Ok(head) if Owner::decode(&head).is_some_and(|owner| owner.is_at(node)) => memory.remove(&name),
            _ => {}
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
            // It may have been removed meanwhile.
            if let Ok(head) = memory.open(&name).and_then(|file| read_head(&file))
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

/// Maps `length` bytes after the head of a backing, which saves fresh memory and a copy; `None` if they have to be
/// read. Only memory that is there is mapped: in another file system, or in a sparse file, a page that cannot be had
/// would end the process.
#[cfg(target_os = "linux")]
fn mapped(file: &File, length: usize) -> Option<Aligned> {
    use crate::disk::BLOCK;
    use std::os::unix::fs::MetadataExt;
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    let metadata = file.metadata().ok()?;
    let is_there = metadata.blocks() * 512 >= metadata.len()
        && length > 0
        && metadata.len() == (BACKING_HEAD_BYTES + length) as u64
        && (length as u64).is_multiple_of(BLOCK);
    if !is_there || rustix::fs::fstatfs(file).ok()?.f_type != TMPFS {
        return None;
    }
    // SAFETY: the file does not change while it is mapped. Only this user can open its directory, and only the holder of the
    // log's lock, which is the caller, uses it. The writer has released that lock: by closing the log, which waits until nothing
    // writes to its memory, or by ending, after which it has no mappings.
    let map =
        unsafe { memmap2::MmapOptions::new().offset(BACKING_HEAD_BYTES as u64).len(length).map_copy(file) }
            .ok()?;
    // Where a page has gone bad, this is an error, and so is reading it; using it would end the process. Before Linux 5.14 there
    // is no such advice.
    map.advise(memmap2::Advice::PopulateRead).ok()?;
    Some(map.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::disk::BLOCK;

    /// A page of a mapped file that cannot be had ends the process.
    #[test]
    fn only_backings_of_which_all_is_there_are_mapped() {
        let at = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = |length: u64, reserve: bool| {
            let path = at.path().join("backing");
            let file = File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
            file.set_len(length).unwrap();
            if reserve {
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
                file.write_all_at(b"frame", BACKING_HEAD_BYTES as u64).unwrap();
            }
            file
        };
        let length = 4 * BLOCK as usize;
        let whole = file((BACKING_HEAD_BYTES + length) as u64, true);
        let mut frames = mapped(&whole, length).unwrap();
        assert!(frames.len() == length && frames.starts_with(b"frame"));
        frames[0] = b'F';
        let mut first = [0];
        whole.read_exact_at(&mut first, BACKING_HEAD_BYTES as u64).unwrap();
        assert_eq!(&first, b"f", "what is changed is a copy");
        assert!(mapped(&whole, length - 1).is_none() && mapped(&whole, length + 1).is_none());
        assert!(mapped(&file((BACKING_HEAD_BYTES + length) as u64, false), length).is_none(), "sparse");
        assert!(mapped(&file((BACKING_HEAD_BYTES + length + 7) as u64, true), length + 7).is_none());
        assert!(mapped(&file(BACKING_HEAD_BYTES as u64, true), 0).is_none());
        let elsewhere = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        elsewhere.write_all_at(&vec![7; BACKING_HEAD_BYTES + length], 0).unwrap();
        assert!(mapped(&elsewhere, length).is_none(), "on a disk");
    }
}
