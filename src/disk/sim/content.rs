//! The content of a simulated file: as programs see it, and which of it a power failure undoes.

use super::random::Random;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// The unit that a device writes as a whole or not at all.
pub(super) const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

/// The bytes of a simulated file, now and as they were synced.
#[derive(Debug, Default, Clone)]
pub(super) struct Content {
    now: Vec<u8>,
    /// For sectors that were written since the last sync, by number: what the device has.
    behind: BTreeMap<usize, Sector>,
    /// What the device has for sectors whose sync has failed: a later sync does not write them, only another write does.
    lost: BTreeMap<usize, Sector>,
    /// The file's length on the device.
    length: usize,
    /// What the device has there beyond `now`.
    cut_off: Vec<u8>,
    /// Sectors that cannot be read until they are written.
    bad: BTreeSet<usize>,
}

impl Content {
    /// A file of this length of which nothing is on the device yet.
    pub(super) fn reserved(length: usize) -> Self {
        Self { now: vec![0; length], ..Self::default() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.now
    }

    /// Changes the content without anybody's knowledge, on the device too.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        self.sync();
        self.lost.clear();
        change(&mut self.now);
        self.length = self.now.len();
    }

    pub(super) fn is_readable(&self, range: Range<usize>) -> bool {
        self.bad.range(range.start / SECTOR..range.end.div_ceil(SECTOR)).next().is_none()
    }

    /// Makes a sector unreadable.
    pub(super) fn spoil(&mut self, sector: usize) {
        self.bad.insert(sector);
    }

    /// Makes everything readable again, with the content it had.
    pub(super) fn heal(&mut self) {
        self.bad.clear();
    }

    fn sector(&self, number: usize) -> Sector {
        let mut sector = [0; SECTOR];
        let from = self.now.get(number * SECTOR..).unwrap_or_default();
        let length = from.len().min(SECTOR);
        sector[..length].copy_from_slice(&from[..length]);
        sector
    }

    /// Writes to the page cache. The system may or may not have written back the earlier content.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8], random: &mut Random) {
        if bytes.is_empty() {
            return;
        }
        if self.now.len() < at + bytes.len() {
            self.now.resize(at + bytes.len(), 0);
        }
        for number in at / SECTOR..=(at + bytes.len() - 1) / SECTOR {
            self.bad.remove(&number);
            let old = self.sector(number);
            if let Some(behind) = self.behind.get_mut(&number) {
                if random.one_in(2) {
                    *behind = old;
                }
                continue;
            }
            let device = self.lost.get(&number).copied().unwrap_or(old);
            self.behind.insert(number, device);
        }
        self.now[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Sets the length, not yet on the device.
    pub(super) fn set_len(&mut self, length: usize) {
        if length < self.now.len() {
            let cut = self.now.split_off(length);
            if self.length > length && self.cut_off.is_empty() {
                self.cut_off = cut;
            }
            return;
        }
        self.now.resize(length, 0);
    }

    /// Makes everything that was written be on the device.
    pub(super) fn sync(&mut self) {
        for number in std::mem::take(&mut self.behind).into_keys() {
            self.lost.remove(&number);
        }
        self.length = self.now.len();
        self.cut_off = Vec::new();
    }

    /// Makes a sync fail: what was written is considered clean from now on, and some of it is not on the device.
    pub(super) fn fail_to_sync(&mut self, random: &mut Random) {
        for (number, sector) in std::mem::take(&mut self.behind) {
            if random.one_in(2) {
                self.lost.insert(number, sector);
            }
        }
    }

    /// The power fails: each sector that was not synced is kept or lost.
    pub(super) fn lose(&mut self, random: &mut Random) {
        // All of it is lost, or most, or little: each case occurs.
        let odds = [1, 2, 2, 2, 8, u64::MAX][random.below(6)];
        for (number, sector) in std::mem::take(&mut self.behind) {
            if random.one_in(odds) {
                self.put_back(number, &sector);
            }
        }
        if self.length != self.now.len() && random.one_in(2) {
            let cut = std::mem::take(&mut self.cut_off);
            self.now.extend_from_slice(&cut);
            self.now.resize(self.length, 0);
        }
        self.forget(random);
        self.sync();
    }

    /// Drops from the page cache everything that it considers clean, though the device does not have it.
    pub(super) fn reread(&mut self) {
        for (number, sector) in std::mem::take(&mut self.lost) {
            self.put_back(number, &sector);
        }
    }

    /// Drops from the page cache some of what it considers clean, though the device does not have it.
    pub(super) fn forget(&mut self, random: &mut Random) {
        for (number, sector) in std::mem::take(&mut self.lost) {
            if !self.behind.contains_key(&number) && random.one_in(2) {
                self.put_back(number, &sector);
            }
        }
    }

    fn put_back(&mut self, number: usize, sector: &Sector) {
        let from = (number * SECTOR).min(self.now.len());
        let to = (from + SECTOR).min(self.now.len());
        self.now[from..to].copy_from_slice(&sector[..to - from]);
    }
}
