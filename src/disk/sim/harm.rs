//! What harms the data on a simulated device, apart from its failures: flipped bits and spoiled sectors.

use super::{Random, Sim, content::SECTOR};
use std::path::{Path, PathBuf};

impl Sim {
    /// Some bytes of a segment file, for values that look like what the log itself writes.
    #[cfg(feature = "store")]
    pub(crate) fn sample(&self, random: &mut Random, length: usize) -> Option<Vec<u8>> {
        let state = self.state();
        let mut files = state.names.files();
        files.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "seg"));
        if files.is_empty() {
            return None;
        }
        let bytes = state.names.file(random.pick(&files).1).ok()?.bytes();
        let used = bytes.iter().rposition(|&byte| byte != 0)? + 1;
        let at = random.below(used) / 8 * 8;
        Some(bytes[at..(at + length).min(bytes.len())].to_vec())
    }

    /// Flips a bit of a file on the device; returns which.
    #[cfg(feature = "store")]
    pub(crate) fn flip_in(&self, random: &mut Random, path: &Path) -> Option<(usize, u8)> {
        let mut state = self.state();
        let file = state.names.find(path).ok()?;
        let content = state.names.file_mut(file).ok()?;
        let (at, bit) = (random.below(content.bytes().len().max(1)), 1 << random.below(8));
        content.bytes().get(at)?;
        content.change(|bytes| bytes[at] ^= bit);
        Some((at, bit))
    }

    /// A byte of some segment file, mostly from the part that is not zeros.
    #[cfg(feature = "store")]
    fn somewhere(&self, random: &mut Random, of: &Path) -> Option<(PathBuf, usize)> {
        let state = self.state();
        let mut files = state.names.files();
        files.retain(|(path, file)| {
            path.starts_with(of)
                && path.extension().is_some_and(|extension| extension == "seg")
                && state.names.file(*file).is_ok_and(|file| !file.bytes().is_empty())
        });
        if files.is_empty() {
            return None;
        }
        let (path, file) = random.pick(&files).clone();
        let bytes = state.names.file(file).ok()?.bytes();
        let used = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0) + 1;
        // The header is small, but matters as much.
        let within = if random.one_in(4) { used.min(1200) } else { used };
        Some((path, random.below(within)))
    }

    /// Flips a bit of some segment file on the device; returns where.
    #[cfg(feature = "store")]
    pub(crate) fn flip(&self, random: &mut Random, of: &Path) -> Option<(PathBuf, usize)> {
        let (path, at) = self.somewhere(random, of)?;
        let bit = random.below(8);
        self.damage(&path, |bytes| bytes[at] ^= 1 << bit);
        Some((path, at))
    }

    /// Makes a sector of some segment file unreadable until it is written or [healed](Self::heal); returns a byte in
    /// it.
    #[cfg(feature = "store")]
    pub(crate) fn spoil(&self, random: &mut Random, of: &Path) -> Option<(PathBuf, usize)> {
        let (path, at) = self.somewhere(random, of)?;
        self.spoil_at(&path, at);
        Some((path, at))
    }

    /// Makes the sector with this byte unreadable.
    pub(crate) fn spoil_at(&self, path: &Path, at: usize) {
        let mut state = self.state();
        let file = state.names.find(path).unwrap();
        state.names.file_mut(file).unwrap().spoil(at / SECTOR);
    }

    /// Makes all sectors readable again, with the content they had.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        for (_, file) in state.names.files() {
            state.names.file_mut(file).unwrap().heal();
        }
    }
}
