//! Memory of killed processes whose history the log did not take, because a later process did not see it.

use super::{
    DIR, FIRST,
    again::{in_backings, kept, killed, remove},
    files_in, kill, open, options, repaired_with,
};
use crate::disk::sim::Sim;
use std::path::{Path, PathBuf};

/// A log with five records on the disk and `more` in memory, which another user has continued with two records.
fn continued_without_memory(at: &Path, more: usize, rolls: bool) -> Sim {
    let sim = Sim::new(1);
    let log = open(&sim, kept(at, 1 << 20)).unwrap();
    for _ in 0..5 {
        log.append(&[1; 40]).unwrap();
    }
    log.flush().unwrap();
    let disk = sim.snapshot();
    sim.hold(true);
    for _ in 0..more {
        log.append(&[2; 40]).unwrap();
    }
    kill(log);
    let log = open(&disk, options(8 << 10, 4 << 10, 1 << 20, None)).unwrap();
    log.append(&[3; 40]).unwrap();
    if rolls {
        log.roll().unwrap();
    }
    log.append(&[4; 40]).unwrap();
    log.close().unwrap();
    disk
}

/// Record 5 has rotted. In memory there is another one of that offset, of the same size.
#[test]
fn what_another_process_had_in_memory_does_not_take_the_place_of_a_lost_record() {
    for (more, rolls) in [(1, false), (1, true), (5, true)] {
        let at = tempfile::tempdir_in("/dev/shm").unwrap();
        let disk = continued_without_memory(at.path(), more, rolls);
        disk.damage(Path::new(FIRST), |bytes| bytes[4096 + 5 * 64 + 30] ^= 1);
        repaired_with(&disk, Some(at.path()));
        let log = open(&disk, kept(at.path(), 1 << 20)).unwrap();
        assert!(log.read(5).unwrap().unwrap().is_lost(), "{more} in memory, rolls: {rolls}");
        assert_eq!(log.read(6).unwrap().unwrap().value(), [4; 40]);
    }
}

fn base_of(path: &Path) -> u64 {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

fn remove_backing(at: &Path, base: u64) {
    let of_it = |path: &PathBuf| std::fs::read(path).unwrap()[64..72] == base.to_le_bytes();
    for path in files_in(at).into_iter().filter(of_it) {
        std::fs::remove_file(path).unwrap();
    }
}

/// A segment has lost a record and its footer, and the files of the next three are gone. Memory has the first and the
/// last of these: what was missing in between was counted as the damaged segment's, together with the first.
#[test]
fn the_first_of_several_missing_segments_is_filled_after_a_damaged_one() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let (disk, _, paths) = killed(at.path(), 9, 8);
    disk.damage(&paths[2], |bytes| {
        bytes[4096 + 3 * 32 + 25] ^= 1;
        let footer = bytes.len() - 4096;
        bytes[footer..].fill(0);
    });
    for path in &paths[3..6] {
        remove(&disk, path);
    }
    remove_backing(at.path(), base_of(&paths[2]));
    remove_backing(at.path(), base_of(&paths[4]));
    let there = in_backings(at.path());
    repaired_with(&disk, Some(at.path()));
    let log = open(&disk, kept(at.path(), 1 << 20)).unwrap();
    assert_eq!(log.damage(), []);
    for offset in base_of(&paths[3])..base_of(&paths[6]) {
        let is_lost = log.read(offset).unwrap().unwrap().is_lost();
        assert!(!is_lost || !there.contains_key(&offset), "{offset} of {}: lost in {DIR}", log.next_offset());
    }
}
