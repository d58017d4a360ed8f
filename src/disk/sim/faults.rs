//! What fails on a simulated disk, and when.

use super::random::Random;
use std::io;

/// What an operation does, which decides how it can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepKind {
    /// Opens or locks something: nothing has been written when it fails.
    Open,
    Create,
    Read,
    Write,
    Sync,
    /// Changes a directory.
    Change,
}

/// How files are written, which decides what is lost if it was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// A write goes past the page cache and is on the device when it returns: one step.
    #[default]
    Direct,
    /// A write goes to the page cache, and a sync follows: two steps.
    Buffered,
}

/// How a generation of processes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Cut {
    /// The machine loses power: what was not synced is kept or lost, sector by sector, name by name.
    #[default]
    Power,
    /// The process is killed: everything it wrote is kept.
    Kill,
}

pub(super) const EIO: i32 = 5;
const EINTR: i32 = 4;
const ENOMEM: i32 = 12;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
/// Once a write has found no room, fewer than this many find none either. Closing a log waits for room for a while, so
/// it is not many.
const DRY: usize = 5;

/// What is going to fail.
#[derive(Debug, Default, Clone)]
pub(super) struct Plan {
    /// The number of steps until the end, and how it ends.
    pub(super) fuse: Option<(u64, Cut)>,
    /// The number of steps that change something until one fails with an I/O error.
    pub(super) fault: Option<u64>,
    /// One in this many steps fails.
    pub(super) odds: Option<u64>,
    /// Bytes that may be reserved in total; beyond that the disk is full.
    pub(super) room: Option<u64>,
    /// Whether room was taken away on this disk.
    pub(super) tight: bool,
    /// Writes wait while this is set.
    pub(super) held: bool,
    /// How many more writes find no room, though it was reserved.
    pub(super) dry: u64,
    /// How many steps have failed so far that may have written something.
    pub(super) fatal: u64,
    /// How many others.
    pub(super) passing: u64,
}

impl Plan {
    /// Whether this is the step at which the process or the machine ends.
    pub(super) fn ends(&mut self) -> Option<Cut> {
        let (steps, cut) = self.fuse.as_mut()?;
        *steps = steps.saturating_sub(1);
        (*steps == 0).then_some(*cut)
    }

    /// The error that this step fails with, if it does.
    pub(super) fn fails(&mut self, kind: StepKind, random: &mut Random) -> Option<io::Error> {
        if matches!(kind, StepKind::Create | StepKind::Write | StepKind::Sync | StepKind::Change)
            && let Some(fault) = &mut self.fault
        {
            *fault = fault.saturating_sub(1);
            if *fault == 0 {
                self.fault = None;
                self.fatal += 1;
                return Some(io::Error::from_raw_os_error(EIO));
            }
        }
        if kind == StepKind::Write && self.dry > 0 {
            self.dry -= 1;
            self.passing += 1;
            return Some(crate::disk::of_write(io::Error::from_raw_os_error(ENOSPC)));
        }
        if !random.one_in(self.odds?) {
            return None;
        }
        let errors: &[i32] = match kind {
            StepKind::Open => &[EMFILE, ENOMEM, EINTR],
            StepKind::Create => &[EMFILE, ENOMEM, EINTR, ENOSPC],
            StepKind::Read => &[EIO, ENOMEM, EINTR],
            StepKind::Write | StepKind::Sync | StepKind::Change => &[EIO, ENOSPC, EINTR, ENOMEM],
        };
        // As the disk of the system reports it.
        let error = io::Error::from_raw_os_error(*random.pick(errors));
        let error = match kind {
            StepKind::Write => crate::disk::of_write(error),
            StepKind::Sync => crate::disk::unknown(error),
            _ => error,
        };
        match kind {
            StepKind::Write if crate::disk::is_full(&error) => {
                self.passing += 1;
                self.dry = random.below(DRY) as u64;
            }
            StepKind::Write | StepKind::Sync | StepKind::Change => self.fatal += 1,
            _ => self.passing += 1,
        }
        Some(error)
    }
}
