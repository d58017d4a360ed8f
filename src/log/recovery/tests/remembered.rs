//! Nothing is lost that a backing has: random logs, of which neighbouring segments are harmed while all that they held is
//! in the memory of a killed process. `MILLSTREAM_HARM_SEEDS=0..10000` tries more.

use super::{
    DIR,
    again::{in_backings, kept, remove},
    harmed::seeds,
    kill, open,
};
use crate::{
    Error,
    disk::sim::{Random, Sim},
    log::repair::repair_on,
};
use std::path::{Path, PathBuf};

fn bytes(random: &mut Random, below: usize) -> Vec<u8> {
    let mut value = vec![0; random.below(below)];
    random.fill(&mut value);
    value
}

/// A log after a kill: its disk, and all that was appended to it. A process before the last one may have closed it.
fn killed(random: &mut Random, seed: u64, at: &Path) -> (Sim, Vec<Vec<u8>>) {
    let (mut sim, mut all) = (Sim::new(seed), Vec::new());
    let rounds = 1 + random.below(2);
    for round in 0..rounds {
        let log = open(&sim, kept(at, 1 << 20)).unwrap();
        for _ in 0..5 + random.below(40) {
            if random.one_in(8) {
                log.roll().unwrap();
                continue;
            }
            let size = *random.pick(&[1usize, 40, 100, 1500]);
            let batch: Vec<Vec<u8>> = (0..=random.below(4)).map(|_| bytes(random, size)).collect();
            assert_eq!(log.append_batch_from(&batch).unwrap(), all.len() as u64);
            all.extend(batch);
        }
        log.flush().unwrap();
        if round + 1 < rounds {
            log.close().unwrap();
            continue;
        }
        let (disk, held) = (sim.snapshot(), sim.clone());
        held.hold(true);
        for _ in 0..random.below(6) {
            let value = bytes(random, 200);
            let Ok(offset) = log.try_append(&value) else { break };
            assert_eq!(offset, all.len() as u64);
            all.push(value);
        }
        kill(log);
        held.hold(false); // or its threads would wait for ever
        sim = disk;
    }
    (sim, all)
}

/// Harms up to three neighbouring segments, and says which, how, and where.
fn harm(random: &mut Random, sim: &Sim) -> Vec<(usize, usize, usize)> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|is| is == "seg");
    let files: Vec<PathBuf> = sim.dump().into_keys().filter(is_segment).collect(); // in order
    let from = random.below(files.len());
    let count = 1 + random.below(3);
    let mut harmed = Vec::new();
    for (n, path) in files.iter().enumerate().skip(from).take(count) {
        let bytes = sim.dump()[path].clone();
        let filled = bytes.iter().rposition(|&byte| byte != 0).map_or(1, |last| last + 1);
        let (place, how) = (random.below(filled), random.below(6));
        match how {
            0 => sim.damage(path, |bytes| bytes.truncate(place)),
            1 => sim.damage(path, |bytes| bytes.truncate(4096)),
            2 if n > 0 => remove(sim, path),
            3 => sim.damage(path, |bytes| bytes[..4096].fill(0)),
            4 => sim.damage(path, |bytes| {
                let block = place / 4096 * 4096;
                let end = bytes.len().min(block + 4096);
                bytes[block..end].fill(0);
            }),
            _ => sim.damage(path, |bytes| bytes[place] ^= 4),
        }
        harmed.push((n, how, place));
    }
    harmed
}

/// What is wrong after a repair, if anything is.
fn wrong(seed: u64) -> Option<String> {
    let mut random = Random::new(seed);
    let at = tempfile::tempdir().unwrap();
    let (sim, all) = killed(&mut random, seed, at.path());
    let there = in_backings(at.path());
    let harmed = harm(&mut random, &sim);
    let place = format!("seed {seed}, harmed (which, how, where) {harmed:?}");
    match repair_on(&sim, Path::new(DIR), Some(at.path()), &mut |_, _| ()) {
        Ok(_) => {}
        // Not one header is left, or a person has to decide.
        Err(Error::Corrupt { reason, .. }) if reason.contains("header") => return None,
        Err(Error::BackingContinues { .. }) => return None,
        Err(error) => panic!("{place}: {error}"),
    }
    let log = open(&sim, kept(at.path(), 1 << 20)).unwrap_or_else(|error| panic!("{place}: {error}"));
    let mut lost = Vec::new();
    for (offset, value) in (0..).zip(&all) {
        let is_there = there.get(&offset).inspect(|there| assert_eq!(*there, value, "{place}")).is_some();
        let is_whole = log.read(offset).ok().flatten().is_some_and(|found| found.value() == *value);
        if is_there && !is_whole {
            lost.push(offset);
        }
    }
    let (damage, next) = (log.damage(), log.next_offset());
    let is_whole = lost.is_empty() && damage.is_empty() && next <= all.len() as u64;
    (!is_whole).then(|| format!("{place}: lost {lost:?}, {damage:?}, ends at {next} of {}", all.len()))
}

#[test]
fn nothing_is_lost_by_repair_that_memory_has() {
    let wrong: Vec<String> = seeds(0..40).filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
