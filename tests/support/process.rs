//! What the system reports about a process: its memory, its descriptors, its processor time.

#![allow(dead_code, reason = "each test uses its part")]

use std::{fs, process::Child, time::Duration};

/// What [`Process::time`] may say more than a process has used for one thing: a few ticks of 10 ms, and what it does in the
/// background.
pub const TICKS: Duration = Duration::from_millis(100);

/// A process, observed from outside.
#[derive(Clone, Copy)]
pub struct Process(u32);

impl Process {
    pub fn of(child: &Child) -> Self {
        Self(child.id())
    }

    fn status(self, field: &str) -> usize {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
    }

    /// The resident bytes of its own memory: not of files, and not of chunks, which are backings.
    pub fn memory(self) -> usize {
        self.status("RssAnon")
    }

    /// The most bytes of any memory that were resident, since the start or the last [`reset_peak`](Self::reset_peak).
    pub fn peak(self) -> usize {
        self.status("VmHWM")
    }

    pub fn resident(self) -> usize {
        self.status("VmRSS")
    }

    pub fn reset_peak(self) {
        fs::write(format!("/proc/{}/clear_refs", self.0), "5").unwrap();
    }

    pub fn threads(self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.0)).unwrap().count()
    }

    pub fn descriptors(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0)).unwrap().count()
    }

    /// The processor time used so far.
    pub fn time(self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10) // a tick is 1/100 s on every Linux that we test on
    }
}
