//! Memory of killed processes whose history the log did not take, because a later process did not see it.

use super::{
    DIR, FIRST,
    again::{in_backings, kept, killed, remove},
    backings, files_in, kill, open, options, repaired_with,
    repairing::remove_backing_of,
};
use crate::{
    Error, LogId, chunk::Predecessor, disk::sim::Sim, log::repair::repair_on, segment::header::Secret,
};
use std::path::Path;

/// A log with five records on the disk and `more` in memory, which another user has continued with two records.
pub(super) fn continued_without_memory(at: &Path, more: usize, rolls: bool) -> Sim {
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
    remove_backing_of(at.path(), base_of(&paths[2]));
    remove_backing_of(at.path(), base_of(&paths[4]));
    let there = in_backings(at.path());
    repaired_with(&disk, Some(at.path()));
    let log = open(&disk, kept(at.path(), 1 << 20)).unwrap();
    assert_eq!(log.damage(), []);
    for offset in base_of(&paths[3])..base_of(&paths[6]) {
        let is_lost = log.read(offset).unwrap().unwrap().is_lost();
        assert!(!is_lost || !there.contains_key(&offset), "{offset} of {}: lost in {DIR}", log.next_offset());
    }
}

/// The id and the secret of the log that has these backings.
fn identity(at: &Path) -> (LogId, Secret) {
    let bytes = std::fs::read(&files_in(at)[0]).unwrap();
    (LogId(bytes[8..24].try_into().unwrap()), Secret(Some(bytes[48..64].try_into().unwrap())))
}

/// The files of three segments are gone, and memory has the last two of them; and other records of the first of these two,
/// which the second does not follow.
#[test]
fn the_end_of_a_gap_is_filled_with_what_the_records_after_it_follow() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let (disk, _, paths) = killed(at.path(), 7, 100);
    let bases: Vec<u64> = paths.iter().map(|path| base_of(path)).collect();
    paths[2..5].iter().for_each(|path| remove(&disk, path));
    remove_backing_of(at.path(), bases[2]);
    let there = in_backings(at.path());
    let (id, secret) = identity(at.path());
    let other = backings::left_by(at.path(), id, secret, DIR, 77);
    backings::leave(&other, secret, bases[3], bases[4] - bases[3], false, Predecessor::Unknown);
    repaired_with(&disk, Some(at.path()));
    let log = open(&disk, kept(at.path(), 1 << 20)).unwrap();
    for offset in bases[3]..bases[5] {
        assert_eq!(log.read(offset).unwrap().unwrap().value(), there[&offset], "{offset}");
    }
}

/// The files of two segments are gone. Memory has some records of the first, which was not sealed: it is not known whether
/// these are the log's.
#[test]
fn what_may_be_the_beginning_of_a_gap_is_neither_taken_nor_given_up() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let (disk, _, paths) = killed(at.path(), 6, 100);
    let last = disk.dump()[&paths[1]].len() - 4096 + 60; // the CRC of the last frame, in the footer
    let last = u32::from_le_bytes(disk.dump()[&paths[1]][last..][..4].try_into().unwrap());
    for path in &paths[2..4] {
        remove(&disk, path);
        remove_backing_of(at.path(), base_of(path));
    }
    let (id, secret) = identity(at.path());
    let other = backings::left_by(at.path(), id, secret, DIR, 77);
    backings::leave(&other, secret, base_of(&paths[2]), 5, false, Predecessor::Frame(last));
    let before = disk.dump();
    let refused = repair_on(&disk, Path::new(DIR), Some(at.path()), &mut |_, _| ());
    assert!(matches!(refused, Err(Error::BackingContinues { .. })), "{refused:?}");
    assert_eq!(disk.dump(), before);
}

/// The last segment was cut, and a process that does not see its backing has sealed it with fewer records, some of which
/// are others.
#[test]
fn a_sealed_backing_with_more_than_its_segment_stays() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let (disk, _, paths) = killed(at.path(), 5, 100);
    let (base, there) = (base_of(&paths[3]), in_backings(at.path()));
    remove(&disk, &paths[4]);
    remove_backing_of(at.path(), base_of(&paths[4]));
    disk.damage(&paths[3], |bytes| {
        bytes.truncate(4096 + 10 * 128);
        bytes.resize(4096 + (8 << 10) + 12288, 0); // as it is before it is sealed
    });
    let log = open(&disk, options(8 << 10, 4 << 10, 1 << 20, None)).unwrap();
    assert_eq!((log.damage(), log.append(&[0xAA; 100]).unwrap()), (&[][..], base + 10));
    log.roll().unwrap();
    log.append(b"after").unwrap();
    log.close().unwrap();
    let log = open(&disk, kept(at.path(), 1 << 20)).unwrap();
    assert_eq!(log.next_offset(), base + 12);
    log.close().unwrap();
    assert_eq!(in_backings(at.path()).get(&(base + 11)), there.get(&(base + 11)));
}
