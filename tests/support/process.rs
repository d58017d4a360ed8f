//! What the system says of a process: its memory, its descriptors, its time on the processors.

#![allow(dead_code, reason = "each test uses its part")]

use std::{fs, process::Child, time::Duration};

/// A process that is looked at from outside.
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

    /// Bytes of its own memory that are resident: not those of files, and not of chunks, which are backings.
    pub fn memory(self) -> usize {
        self.status("RssAnon")
    }

    /// The most that was resident of all, since the start or the last [`reset_peak`](Self::reset_peak).
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

    /// Time on the processors, so far.
    pub fn time(self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10) // a tick is 1/100 s wherever Linux runs on what we test on
    }
}
