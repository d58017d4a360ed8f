//! Random logs of which up to two segment files are harmed: cut anywhere, a block zeroed, unreadable, a bit flipped, or
//! removed. They are opened, repaired and written to again. What is not lost is what was appended, what could be read
//! before the repair can be read after it, and what is appended afterwards stays.

use super::{DIR, kill, open, options};
use crate::{
    Durability, Error, Log, Options,
    disk::{
        Disk,
        sim::{Random, Sim},
    },
    log::{inspect::verify_on, repair::repair_on},
};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// By offset; `None` for one that is lost.
type Values = Vec<Option<Vec<u8>>>;

/// Appends batches, rolls, and trims if that is wanted.
fn work(random: &mut Random, log: &Log, all: &mut Values, max: usize, trims: bool) {
    for _ in 0..random.below(max) {
        match random.below(10) {
            0 => drop(log.roll().unwrap()),
            1 if trims => drop(log.trim(random.below(all.len() + 1) as u64).unwrap()),
            2 if trims && random.one_in(3) => drop(log.trim_to(all.len() as u64).unwrap()),
            _ => {
                let size = *random.pick(&[1usize, 40, 100, 1500]);
                let mut value = || {
                    let mut value = vec![0; random.below(size)];
                    random.fill(&mut value);
                    value
                };
                let one = value();
                let batch: Vec<Vec<u8>> = std::iter::once(one).chain((0..3).map(|_| value())).collect();
                let batch = &batch[..=random.below(4)];
                assert_eq!(log.append_batch_from(batch).unwrap(), all.len() as u64);
                all.extend(batch.iter().cloned().map(Some));
            }
        }
    }
}

fn segments(sim: &Sim) -> Vec<(PathBuf, Vec<u8>)> {
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "seg");
    sim.dump().into_iter().filter(|(path, _)| is_segment(path)).collect()
}

/// Harms a segment file, and says how. `None` if there is none.
fn harm(random: &mut Random, sim: &Sim) -> Option<String> {
    const BLOCK: usize = 4096;
    let files = segments(sim);
    let (path, bytes) = if random.one_in(2) { files.last()? } else { random.pick(&files) };
    let (length, filled) =
        (bytes.len(), bytes.iter().rposition(|&byte| byte != 0).map_or(1, |last| last + 1));
    let zero = |at: usize| {
        sim.damage(path, |bytes| {
            let end = bytes.len().min(at + BLOCK);
            bytes[at.min(end)..end].fill(0);
        });
    };
    let cut = |to: usize| sim.damage(path, |bytes| bytes.truncate(to));
    let at = random.below(filled);
    let what = match random.below(9) {
        0 => {
            cut(0);
            "cut to nothing"
        }
        1 => {
            cut(BLOCK);
            "cut to its header"
        }
        2 | 3 => {
            cut(at);
            "cut"
        }
        4 => {
            zero(0);
            "its header zeroed"
        }
        5 => {
            zero(at / BLOCK * BLOCK);
            "a block zeroed"
        }
        6 if at < length => {
            sim.spoil_at(path, at);
            "a sector unreadable"
        }
        7 if at < length => {
            sim.damage(path, |bytes| bytes[at] ^= 4);
            "a bit flipped"
        }
        _ if files.len() > 1 => {
            sim.remove(path).unwrap();
            sim.sync_dir(Path::new(DIR)).unwrap();
            "removed"
        }
        _ => "not harmed",
    };
    Some(format!("{} of {}, {length} bytes: {what} at {at}", path.display(), files.len()))
}

/// All that can be read, which must be what was appended.
fn read_all(log: &Log, all: &Values, place: &str) -> Values {
    let (first, next) = (log.first_offset(), log.next_offset());
    assert!(next <= all.len() as u64, "{place}: it ends at {next} of {}", all.len());
    let mut found: Values = vec![None; first as usize];
    for offset in first..next {
        let record = log.read(offset).ok().flatten().filter(|record| !record.is_lost());
        let value = record.map(|record| record.value().to_vec());
        if let (Some(value), Some(expected)) = (&value, &all[offset as usize]) {
            assert_eq!(value, expected, "{place}: another value at {offset}");
        }
        found.push(value);
    }
    found
}

/// A log on a disk: closed, or killed with some records in memory only, or not even that.
fn a_log(random: &mut Random, seed: u64, options: &dyn Fn() -> Options) -> (Sim, Values) {
    let (mut sim, mut all) = (Sim::new(seed), Values::new());
    let is_in_memory = options().shm_dir.is_some();
    let rounds = 1 + random.below(3);
    for round in 1..=rounds {
        let log = open(&sim, options()).unwrap();
        work(random, &log, &mut all, 14, true);
        log.flush().unwrap();
        if round == rounds && is_in_memory {
            let disk = sim.snapshot();
            sim.hold(true);
            for _ in 0..random.below(6) {
                let mut value = vec![0; random.below(200)];
                random.fill(&mut value);
                match log.try_append(&value) {
                    Ok(offset) => assert_eq!(offset, all.len() as u64),
                    Err(_) => break,
                }
                all.push(Some(value));
            }
            kill(log);
            sim = disk;
        } else if random.one_in(3) {
            let disk = sim.snapshot();
            drop(log);
            if !is_in_memory {
                sim = disk; // before it was closed
            }
        } else {
            log.close().unwrap();
        }
    }
    (sim, all)
}

/// Repairs a harmed log, goes on with it, and returns what it has then; `None` if it is beyond repair.
fn repaired(
    random: &mut Random,
    sim: &Sim,
    options: &dyn Fn() -> Options,
    all: &Values,
    place: &str,
) -> Option<Values> {
    let before = if random.one_in(3) {
        Values::new()
    } else {
        match open(sim, options()) {
            Ok(log) => {
                let found = read_all(&log, all, place);
                if log.writable().is_ok() {
                    work(random, &log, &mut found.clone(), 1, false);
                }
                found
            }
            Err(Error::Corrupt { .. }) => return None,
            Err(error) => panic!("{place}: {error}"),
        }
    };
    sim.heal();
    let shm = options().shm_dir.filter(|_| random.one_in(2));
    let repair = |shm| repair_on(sim, Path::new(DIR), shm, &mut |_, _| ());
    let repaired = match repair(shm.as_deref()) {
        Err(Error::BackingContinues { .. }) => repair(None),
        repaired => repaired,
    };
    match repaired {
        Ok(_) => {}
        Err(Error::Corrupt { .. }) => return None,
        Err(error) => panic!("{place}: {error}"),
    }
    assert_eq!(verify_on(sim, Path::new(DIR), None, &mut |_, _| ()).unwrap().damage, [], "{place}");
    let log = open(sim, options()).unwrap_or_else(|error| panic!("{place}: {error}"));
    assert_eq!(log.damage(), [], "{place}");
    log.writable().unwrap_or_else(|error| panic!("{place}: {error}"));
    let mut all = read_all(&log, all, place);
    for (offset, value) in before.iter().enumerate().skip(log.first_offset() as usize) {
        assert!(value.is_none() || all.get(offset) == Some(value), "{place}: {offset} was there before");
    }
    work(random, &log, &mut all, 10, true);
    Some(all)
}

fn one(seed: u64, in_memory: bool) {
    let mut random = Random::new(seed);
    let shm = tempfile::tempdir().unwrap();
    let shm_dir = in_memory.then(|| shm.path().to_owned());
    let durability = if in_memory { Durability::Memory } else { Durability::Disk };
    let segment_bytes = *random.pick(&[1u64 << 13, 1 << 14, 1 << 16]);
    let options =
        || Options { durability, shm_dir: shm_dir.clone(), ..options(segment_bytes, 1 << 12, 1 << 20, None) };
    let (sim, all) = a_log(&mut random, seed, &options);
    let mut harmed = Vec::new();
    harmed.extend(harm(&mut random, &sim));
    if random.one_in(4) {
        harmed.extend(harm(&mut random, &sim));
    }
    let place = format!("seed {seed}, {harmed:?}");
    let Some(mut all) = repaired(&mut random, &sim, &options, &all, &place) else { return };
    for round in 0..3 {
        let log = open(&sim, options()).unwrap_or_else(|error| panic!("{place}, round {round}: {error}"));
        assert_eq!(log.damage(), [], "{place}, round {round}");
        let found = read_all(&log, &all, &place);
        let first = log.first_offset() as usize;
        assert_eq!(found.get(first..), all.get(first..), "{place}, round {round}");
        work(&mut random, &log, &mut all, 10, true);
    }
}

/// `MILLSTREAM_HARM_SEEDS=0..10000` tries others, or more.
pub(super) fn seeds(default: Range<u64>) -> Range<u64> {
    let given = std::env::var("MILLSTREAM_HARM_SEEDS").ok();
    given.map_or(default, |given| {
        let (from, to) = given.split_once("..").expect("such as 0..1000");
        from.parse().unwrap()..to.parse().unwrap()
    })
}

#[test]
fn harmed_logs_are_repaired_and_go_on() {
    seeds(0..200).for_each(|seed| one(seed, false));
}

#[test]
fn harmed_logs_with_records_in_memory_are_repaired_and_go_on() {
    seeds(0..40).for_each(|seed| one(seed, true));
}
