//! A run: several processes one after the other on one disk, all driven by one seed.

use super::{
    model::KnownLog,
    world::{Clock, clock},
};
use crate::disk::sim::{Random, Sim};
use std::{collections::BTreeMap, ops::AddAssign, sync::Arc};

/// The directory of the store.
pub(super) const ROOT: &str = "/data";

/// How large and how wild a run is.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    pub(super) generations: usize,
    /// The most operations of a process.
    pub(super) operations: usize,
    pub(super) segments: &'static [u64],
    pub(super) logs: usize,
    /// Whether values may be tens of thousands of tiny records, or megabytes of random bytes.
    pub(super) large: bool,
    /// The size of most values, if given: what one crash leaves then has exactly the place of what comes after it.
    pub(super) uniform: Option<usize>,
    pub(super) faults: bool,
    /// Whether bits flip, and directories are moved.
    pub(super) harm: bool,
}

/// What was done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) generations: u64,
    pub(super) operations: u64,
    pub(super) records: u64,
    pub(super) steps: u64,
    /// Logs that were opened without room on the disk.
    pub(super) full: u64,
    /// Of these, those that were shorter than they are with room.
    pub(super) short: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.generations += other.generations;
        self.operations += other.operations;
        self.records += other.records;
        self.steps += other.steps;
        self.full += other.full;
        self.short += other.short;
    }
}

/// The state of a run, from one process to the next.
pub(super) struct Simulation {
    pub(super) seed: u64,
    pub(super) random: Random,
    pub(super) profile: Profile,
    pub(super) disk: Sim,
    pub(super) clock: Arc<Clock>,
    /// The machine's memory file system.
    pub(super) at: tempfile::TempDir,
    pub(super) logs: BTreeMap<String, KnownLog>,
    pub(super) counts: Counts,
}

/// The result of a run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) counts: Counts,
    pub(super) digest: u32,
    pub(super) trace: String,
}

fn profile(random: &mut Random) -> Profile {
    let large = random.one_in(25);
    let uniform = random.one_in(4).then(|| *random.pick(&[8, 100, 700]));
    Profile {
        generations: 3 + random.below(6) + if uniform.is_some() { 6 } else { 0 },
        operations: match uniform {
            Some(_) => 30,
            None if large => 40,
            None => 120,
        },
        segments: if uniform.is_some() {
            &[32 << 10]
        } else if large {
            &[64 << 10, 1 << 20, 4 << 20]
        } else {
            &[4 << 10, 8 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10]
        },
        logs: if uniform.is_some() { 1 } else { *random.pick(&[1, 1, 2, 3]) },
        large,
        uniform,
        faults: random.one_in(2) && uniform.is_none(),
        harm: random.one_in(2) && uniform.is_none(),
    }
}

/// Runs a seed; panics if something that is promised does not hold.
#[cfg(test)]
pub(super) fn run(seed: u64, trace: bool) -> Outcome {
    run_by(Random::new(seed.wrapping_mul(0x2545_F491_4F6C_DD1D)), seed, trace)
}

/// A run in which `random` makes all choices.
pub(super) fn run_by(mut random: Random, seed: u64, trace: bool) -> Outcome {
    let disk = Sim::new(random.fork().next());
    if trace {
        disk.begin_trace();
    }
    let memory = crate::log::Options::default().shm_dir; // in tests, a place of their own
    let at =
        memory.map_or_else(tempfile::tempdir, tempfile::tempdir_in).or_else(|_| tempfile::tempdir()).unwrap();
    let (profile, clock) = (profile(&mut random), clock(&mut random));
    let mut run = Simulation {
        seed,
        random,
        profile,
        disk,
        clock,
        at,
        logs: BTreeMap::new(),
        counts: Counts::default(),
    };
    run.disk.note(format_args!("seed {seed}: {:?}", run.profile));
    for _ in 0..run.profile.generations {
        run.generation();
    }
    let (_, digest) = run.disk.steps();
    Outcome { counts: run.counts, digest, trace: run.disk.take_trace() }
}

impl Drop for Simulation {
    /// Prints what led to a failure.
    fn drop(&mut self) {
        if std::thread::panicking() {
            print!("{}", self.disk.take_trace());
        }
    }
}
