//! The file of the last segment is cut at a block, as files mostly are, within a batch or a record. It then may have the
//! length that sealing what precedes would have cut it to.

use super::{FIRST, again::in_backings, kill, open, options, repaired_with, verified};
use crate::{Durability, Log, Options, disk::sim::Sim};
use std::path::Path;

/// A log with a record, and what is appended after it, all durable and closed. Then its file is cut after so many blocks.
fn cut_after(blocks: usize, append: impl FnOnce(&Log)) -> Sim {
    let sim = Sim::new(1);
    let log = open(&sim, options(1 << 16, 1 << 16, 1 << 20, None)).unwrap();
    log.append(&[7; 100]).unwrap();
    append(&log);
    log.flush().unwrap();
    log.close().unwrap();
    sim.damage(Path::new(FIRST), |bytes| bytes.truncate(4096 + blocks * 4096));
    sim
}

/// A record, and a batch of a hundred, all durable, closed cleanly. Then the file is cut at each block.
#[test]
fn cut_at_a_block_within_a_batch() {
    let mut wrong = Vec::new();
    for blocks in 1..5 {
        let sim = cut_after(blocks, |log| {
            log.append_batch_from(vec![[8; 100]; 100]).unwrap();
        });
        let report = verified(&sim, None);
        let log = open(&sim, options(1 << 16, 1 << 16, 1 << 20, None)).unwrap();
        let (damage, next) = (log.damage().to_vec(), log.next_offset());
        if damage.is_empty() {
            let given = log.append(b"another");
            wrong.push(format!("{blocks} blocks left: verify {report:?}; no damage when opened, ends at {next}; next append gets {given:?}; torn {:?}",
                sim.dump().keys().collect::<Vec<_>>()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn cut_at_a_block_within_a_large_record() {
    let mut wrong = Vec::new();
    for blocks in 1..8 {
        let sim = cut_after(blocks, |log| {
            log.append(&vec![8; 20_000]).unwrap();
            log.append(&[9; 100]).unwrap();
        });
        let log = open(&sim, options(1 << 16, 1 << 16, 1 << 20, None)).unwrap();
        let (damage, next) = (log.damage().to_vec(), log.next_offset());
        if damage.is_empty() && next < 3 {
            wrong.push(format!(
                "{blocks} blocks left: no damage, ends at {next}; next append gets {:?}",
                log.append(b"another")
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Memory of a killed process has all of it: opening leaves that alone, and `repair` takes it.
#[test]
fn cut_at_a_block_within_a_batch_with_memory() {
    for repair_first in [true, false] {
        let at = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = || Options {
            durability: Durability::Memory,
            ..options(1 << 16, 1 << 16, 1 << 20, Some(at.path()))
        };
        let sim = Sim::new(1);
        let log = open(&sim, options()).unwrap();
        log.append(&[7; 100]).unwrap();
        log.append_batch_from(vec![[8; 100]; 100]).unwrap();
        log.flush().unwrap();
        let disk = sim.snapshot();
        kill(log);
        disk.damage(Path::new(FIRST), |bytes| bytes.truncate(4096 + 3 * 4096));
        if repair_first {
            repaired_with(&disk, Some(at.path()));
            let log = open(&disk, options()).unwrap();
            assert_eq!((log.damage(), log.next_offset()), (&[][..], 101));
        } else {
            let log = open(&disk, options()).unwrap();
            assert_ne!(log.damage(), []);
            log.append(b"another").unwrap_err();
            log.close().unwrap();
            assert_eq!(in_backings(at.path()).len(), 101);
        }
    }
}
