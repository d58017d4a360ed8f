//! The simulation: engine, flusher, maintenance, store and recovery on a simulated disk and machine, in one thread. A
//! seed chooses everything that can happen: what is appended, when background tasks get their turns, what fails, and
//! when a process is killed or the power fails. What is promised is checked after each opening, and at each answer.
//!
//! `cargo test --lib sim::` runs several hundred seeds. `MILLSTREAM_SIM_SEEDS=from..to` runs those instead, and
//! `MILLSTREAM_SIM_SEED=n` runs a single one, with a trace of each step.

mod consuming;
mod cursors;
#[cfg(test)]
mod found;
mod harm;
mod left;
mod model;
mod process;
mod producing;
mod run;
mod values;
mod work;
mod world;

/// A run in which these bytes make the first choices, for `fuzz/`.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    // A trace takes time, so it is only made on request, for an input that was found to fail.
    let trace = std::env::var_os("MILLSTREAM_SIM_TRACE").is_some();
    if trace {
        drop(std::panic::take_hook()); // libFuzzer's hook ends the process before the trace is printed
    }
    run::run_by(crate::disk::sim::Random::by(bytes), 0, trace);
}

#[cfg(test)]
mod tests {
    use super::run::{Counts, run};
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering},
        },
    };

    /// The seeds that are run by default.
    const SEEDS: std::ops::Range<u64> = 0..500;

    fn range() -> std::ops::Range<u64> {
        let given = std::env::var("MILLSTREAM_SIM_SEEDS").ok().filter(|given| !given.is_empty());
        let Some(given) = given else { return SEEDS };
        let (from, to) = given.split_once("..").expect("MILLSTREAM_SIM_SEEDS=from..to");
        from.parse().unwrap()..to.parse().unwrap()
    }

    /// Runs the seeds on as many threads as there are cores; returns what was done, and which seeds failed.
    fn run_all(seeds: std::ops::Range<u64>) -> (Counts, Vec<u64>) {
        let next = AtomicU64::new(seeds.start);
        let total = Mutex::new((Counts::default(), Vec::new()));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end {
                            return;
                        }
                        let done = catch_unwind(AssertUnwindSafe(|| run(seed, false).counts));
                        let (counts, failed) = &mut *total.lock().unwrap();
                        match done {
                            Ok(done) => *counts += done,
                            Err(_) => failed.push(seed),
                        }
                    }
                });
            }
        });
        total.into_inner().unwrap()
    }

    #[test]
    fn what_is_promised_holds_for_every_seed() {
        if let Ok(seed) = std::env::var("MILLSTREAM_SIM_SEED") {
            let outcome = run(seed.parse().unwrap(), true);
            println!("{}\n{:?}", outcome.trace, outcome.counts);
            return;
        }
        let begun = std::time::Instant::now();
        let (counts, failed) = run_all(range());
        println!("seeds {:?}: {counts:?} in {:?}", range(), begun.elapsed());
        assert!(failed.is_empty(), "{} seeds: {failed:?}", failed.len());
        // They are too rare for a few hundred seeds.
        let many = range().end - range().start >= 6000;
        assert!(!many || counts.full > 0 && counts.short > 0, "disks without room are not tried: {counts:?}");
    }

    #[test]
    fn a_seed_replays_exactly() {
        for seed in 0..20 {
            let (one, other) = (run(seed, true), run(seed, true));
            assert!(one.trace.lines().count() as u64 >= one.counts.steps, "not every step is in the trace");
            if one != other {
                let lines = one.trace.lines().zip(other.trace.lines());
                let first = lines.enumerate().find(|(_, (one, other))| one != other);
                panic!("seed {seed} ran in two ways: {first:?}");
            }
        }
    }
}
