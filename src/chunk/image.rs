//! Images: chunk memory as a file that outlives the process, so that what was acknowledged in memory is lost with
//! the machine, and not with the process. Writing to it costs no system call; after SIGKILL, opening the log takes
//! it up again (`log/images.rs`).
//!
//! ```text
//! | head, 4 KiB: whose it is, and the segment it holds, if any | the chunk's bytes |
//! ```
//!
//! (Under loom there are none: it cannot see into mapped files.)
//!
//! The file is in a directory that is named by the log's id. The head says, in two parts with a CRC each: the log's id and its
//! directory, written once; and base offset, capacity and creation time of the segment, written before its first
//! frame and cleared when the memory is to be used again. Frames need no more than they have: the seed of another
//! segment does not verify them.

use crate::disk::MemoryDir;
use std::{
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Bytes before the chunk's.
pub(crate) const HEAD: usize = 4096;
const MAGIC: &[u8; 8] = b"MILLIMG1";
/// Where the label is, and the directory.
const LABEL: std::ops::Range<usize> = 64..92;
const DIR: usize = 128;

/// Chunks of this process that were to have an image and have none.
pub(crate) static WITHOUT_IMAGE: AtomicU64 = AtomicU64::new(0);

/// Which segment's frames an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    pub(crate) created: u64,
}

impl Label {
    pub(super) fn encode(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&self.base.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.created.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let label = Self { base: word(0)?, capacity: word(8)?, created: word(16)? };
        // All zeros is no label: its CRC would not be zero.
        (bytes == label.encode()).then_some(label)
    }
}

/// Where one log's images are.
#[derive(Debug)]
pub(crate) struct Images {
    memory: MemoryDir,
    log: [u8; 16],
    /// The log's directory.
    dir: PathBuf,
    /// Set when the log's writer has failed: what the images have and the disk has not is for the next opening.
    keep: AtomicBool,
    /// Whether it was said that a chunk had to do without; how many had to is in `WITHOUT_IMAGE`.
    #[cfg(not(loom))]
    warned: AtomicBool,
}

/// An image found at opening.
pub(crate) struct Found {
    pub(crate) label: Label,
    pub(crate) frames: Vec<u8>,
}

/// The directory of a log's images: its id in hexadecimal digits.
fn place(log: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*log))
}

impl Images {
    /// The images of the log with this id in `dir`, kept in the memory file system at `at`.
    pub(crate) fn open(at: &Path, log: [u8; 16], dir: &Path) -> io::Result<Self> {
        let dir = dir.canonicalize().or_else(|_| std::path::absolute(dir))?;
        if dir.as_os_str().len() > HEAD - DIR {
            return Err(io::Error::other("the log's directory has too long a name"));
        }
        let memory = MemoryDir::open(at)?.of(&place(&log));
        Ok(Self {
            memory,
            log,
            dir,
            keep: AtomicBool::new(false),
            #[cfg(not(loom))]
            warned: AtomicBool::new(false),
        })
    }

    /// What a process that ended without closing the log has left, if it holds a segment; and the names of all, for
    /// when they are not needed any more. An image of a copy of this log, in another directory that `is_there`, is
    /// none of ours.
    pub(crate) fn find(&self, is_there: impl Fn(&Path) -> bool) -> io::Result<(Vec<Found>, Vec<String>)> {
        let (mut found, mut names) = (Vec::new(), Vec::new());
        for name in self.memory.list()? {
            let mut bytes = Vec::new();
            self.memory.open_file(&name)?.read_to_end(&mut bytes)?;
            let owner = bytes.first_chunk().and_then(owner);
            if owner.is_none_or(|(dir, _)| dir != self.dir && is_there(&dir)) {
                continue;
            }
            if let Some(label) = bytes.get(LABEL).and_then(Label::decode) {
                bytes.drain(..HEAD);
                found.push(Found { label, frames: bytes });
            }
            names.push(name);
        }
        Ok((found, names))
    }

    pub(crate) fn remove(&self, name: &str) {
        self.memory.remove(name);
    }

    /// The path of the image that was made last, and of the one that holds the segment at `base`.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn latest(&self) -> Option<PathBuf> {
        let number = |name: &String| name.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
        self.memory.list().unwrap().into_iter().max_by_key(number).map(|name| self.memory.path(&name))
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn latest_labelled(&self, base: u64) -> PathBuf {
        let names = self.memory.list().unwrap();
        let holds = |name: &String| {
            let bytes = std::fs::read(self.memory.path(name)).unwrap();
            Label::decode(&bytes[LABEL]).is_some_and(|label| label.base == base)
        };
        self.memory.path(&names.into_iter().find(holds).unwrap())
    }

    /// The log's id.
    pub(crate) fn log(&self) -> [u8; 16] {
        self.log
    }

    /// From now on images stay when they are dropped.
    pub(crate) fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
    }

    /// A new image for a chunk of `capacity`, mapped; `None`, noted and said once, where there is no room.
    #[cfg(not(loom))]
    pub(super) fn create(self: &std::sync::Arc<Self>, capacity: u64) -> Option<(Image, memmap2::MmapRaw)> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", std::process::id());
        let made = self.memory.create(&name, HEAD as u64 + capacity, &self.head()).and_then(|file| {
            let image = Image { images: std::sync::Arc::clone(self), name };
            Ok((image, memmap2::MmapOptions::new().map_raw(&file)?))
        });
        match made {
            Ok(made) => Some(made),
            Err(error) => {
                WITHOUT_IMAGE.fetch_add(1, Ordering::Relaxed);
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        dir = %self.dir.display(), %error,
                        "no memory that outlives the process: what is acknowledged in memory is lost with it"
                    );
                }
                None
            }
        }
    }

    /// The part of the head that does not change.
    #[cfg(not(loom))]
    fn head(&self) -> Vec<u8> {
        let dir = self.dir.as_os_str().as_bytes();
        let mut head = vec![0; DIR];
        head[..8].copy_from_slice(MAGIC);
        head[8..24].copy_from_slice(&self.log);
        head[24..28].copy_from_slice(&(dir.len() as u32).to_le_bytes());
        head.extend_from_slice(dir);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..28]), dir);
        head[28..32].copy_from_slice(&crc.to_le_bytes());
        head
    }
}

/// Where the label is in the memory.
#[cfg(not(loom))]
pub(super) const LABEL_AT: usize = LABEL.start;

impl Drop for Images {
    fn drop(&mut self) {
        self.memory.remove_if_empty();
    }
}

/// One image; its file goes when this is dropped.
#[cfg(not(loom))]
#[derive(Debug)]
pub(super) struct Image {
    images: std::sync::Arc<Images>,
    name: String,
}

#[cfg(not(loom))]
impl Drop for Image {
    fn drop(&mut self) {
        if !self.images.keep.load(Ordering::SeqCst) {
            self.images.memory.remove(&self.name);
        }
    }
}

/// Removes the images of logs that are gone: `exists` says whether the log of this id is in that directory.
#[cfg(feature = "store")]
pub(crate) fn sweep(at: &Path, exists: impl Fn(&Path, [u8; 16]) -> bool) -> io::Result<()> {
    let all = MemoryDir::open(at)?;
    for log in all.list()? {
        let memory = all.of(&log);
        for name in memory.list().unwrap_or_default() {
            let mut head = [0; HEAD];
            // It may have gone meanwhile.
            if memory.open_file(&name).and_then(|mut file| file.read_exact(&mut head)).is_err() {
                continue;
            }
            let Some((dir, log)) = owner(&head) else { continue };
            if !exists(&dir, log) {
                tracing::debug!(dir = %dir.display(), "removing the image of a log that is gone");
                memory.remove(&name);
            }
        }
        memory.remove_if_empty();
    }
    Ok(())
}

fn owner(head: &[u8; HEAD]) -> Option<(PathBuf, [u8; 16])> {
    let number = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let dir = head.get(DIR..)?.get(..number(24)? as usize)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..28]), dir);
    let log = *head[8..].first_chunk()?;
    let verified = head.starts_with(MAGIC) && number(28) == Some(crc);
    verified.then(|| (PathBuf::from(std::ffi::OsStr::from_bytes(dir)), log))
}
