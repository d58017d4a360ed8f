//! Several segments at once, and logs that are harmed again after a repair.

use super::{
    DIR, backings, files_in, kill, open, options,
    repaired::{large, log_of_batches},
    repaired_with,
    repairing::remove_backing_of,
    verified,
};
use crate::{
    Durability, Error, Options,
    chunk::Predecessor,
    disk::{Disk, sim::Sim},
    frame,
    log::repair::repair_on,
    segment::{
        file,
        header::{Header, Secret},
        scan,
    },
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub(super) fn kept(at: &Path, memory: u64) -> Options {
    Options { durability: Durability::Memory, ..options(8 << 10, 4 << 10, memory, Some(at)) }
}

/// Segments of which all backings are there, and everything is durable, when the process is killed.
pub(super) fn killed(at: &Path, segments: usize, value: usize) -> (Sim, u64, Vec<PathBuf>) {
    let sim = Sim::new(1);
    let log = open(&sim, kept(at, 1 << 20)).unwrap();
    let mut next = 0;
    while log.shared.chain.load().segments.len() < segments {
        log.append(&vec![next as u8; value]).and_then(|at| log.wait_durable(at)).unwrap();
        next += 1;
    }
    let bases: Vec<u64> = log.shared.chain.load().segments.iter().map(|segment| segment.base()).collect();
    let disk = sim.snapshot();
    kill(log);
    (disk, next, bases.into_iter().map(|base| Path::new(DIR).join(file::name(base))).collect())
}

/// Records, by offset.
pub(super) type Records = BTreeMap<u64, Vec<u8>>;

/// What each backing has: its base, whether it was sealed, its records.
pub(super) fn backings_in(at: &Path) -> Vec<(u64, bool, Records)> {
    let mut all = Vec::new();
    for path in files_in(at) {
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        if bytes[64..108].iter().all(|&byte| byte == 0) {
            continue;
        }
        let (base, secret) = (word(64), Secret(Some(bytes[48..64].try_into().unwrap())));
        let log = crate::LogId(bytes[8..24].try_into().unwrap());
        let key = Header { log, base, capacity: word(72), created: word(80), secret }.key();
        let frames = &bytes[4096..];
        let positions = scan::scan(frames, key).positions;
        let records = (0u64..).zip(positions).map(|(record, word)| {
            let found = frame::decode(&frames[word as usize * 8..], key).unwrap();
            (base + record, found.frame.value.to_vec())
        });
        all.push((base, word(120) == 1, records.collect()));
    }
    all
}

/// What the backings have, by offset.
pub(super) fn in_backings(at: &Path) -> Records {
    backings_in(at).into_iter().flat_map(|(_, _, records)| records).collect()
}

pub(super) fn remove(disk: &Sim, path: &Path) {
    disk.remove(path).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
}

fn all_is_there(disk: &Sim, at: &Path, next: u64, value: usize) {
    repaired_with(disk, Some(at));
    let report = verified(disk, Some(at));
    assert_eq!((report.damage, report.lost), (vec![], 0));
    let log = open(disk, kept(at, 1 << 20)).unwrap();
    assert_eq!((log.damage(), log.next_offset()), (&[][..], next));
    for offset in 0..next {
        assert_eq!(log.read(offset).unwrap().unwrap().value(), vec![offset as u8; value], "{offset}");
    }
}

#[test]
fn neighbours_that_are_gone_are_both_mended() {
    let at = tempfile::tempdir().unwrap();
    let (disk, next, paths) = killed(at.path(), 6, 100);
    remove(&disk, &paths[2]);
    remove(&disk, &paths[3]);
    all_is_there(&disk, at.path(), next, 100);
}

#[test]
fn neighbours_of_which_one_is_cut_and_the_next_is_gone_are_both_mended() {
    let at = tempfile::tempdir().unwrap();
    let (disk, next, paths) = killed(at.path(), 6, 100);
    disk.damage(&paths[2], |bytes| bytes.truncate(4096 + 20 * 128));
    remove(&disk, &paths[3]);
    all_is_there(&disk, at.path(), next, 100);
}

/// A gap of which memory has only the first part.
#[test]
fn what_memory_has_of_a_gap_is_filled() {
    let at = tempfile::tempdir().unwrap();
    let (disk, _, paths) = killed(at.path(), 6, 100);
    let base = |n: usize| -> u64 { paths[n].file_stem().unwrap().to_str().unwrap().parse().unwrap() };
    remove(&disk, &paths[2]);
    remove(&disk, &paths[3]);
    remove_backing_of(at.path(), base(3));
    let there = in_backings(at.path());
    repaired_with(&disk, Some(at.path()));
    let log = open(&disk, kept(at.path(), 1 << 20)).unwrap();
    for offset in base(2)..base(3) {
        let record = log.read(offset).unwrap().unwrap();
        assert!(!record.is_lost() || !there.contains_key(&offset), "{offset} is lost");
    }
}

/// The first repair marks a record as lost, the second one another one.
#[test]
fn a_backing_stays_though_its_segment_is_repaired_twice() {
    for value in [20, 60, 100, 300] {
        let at = tempfile::tempdir().unwrap();
        let (disk, _, paths) = killed(at.path(), 5, value);
        let base: u64 = paths[2].file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let count = |at: &Path| in_backings(at).into_keys().filter(|offset| *offset == base + 3).count();
        assert_eq!(count(at.path()), 1);
        for record in [3, 1] {
            let size = (24 + value).next_multiple_of(8);
            let at_byte = 4096 + record * size + 24;
            disk.damage(&paths[2], |bytes| bytes[at_byte] ^= 1);
            repaired_with(&disk, None);
        }
        let log = open(&disk, kept(at.path(), 1 << 20)).unwrap();
        assert!(log.read(base + 3).unwrap().unwrap().is_lost(), "the test");
        assert_eq!(count(at.path()), 1, "the only copy of {} is gone (values of {value})", base + 3);
    }
}

/// A segment that was cut within a batch and repaired ends within a batch. Then its header is lost.
#[test]
fn a_segment_that_ends_within_a_batch_is_repaired_without_its_header() {
    let sim = log_of_batches();
    let path = Path::new("/log/00000000000000000060.seg");
    sim.damage(path, |bytes| bytes.truncate(4096 + 5 * 128));
    repaired_with(&sim, None);
    let readable = |sim: &Sim| {
        let log = open(sim, large()).unwrap();
        let all: Vec<u64> = (0..log.next_offset())
            .filter(|&offset| log.read(offset).is_ok_and(|found| found.is_some_and(|found| !found.is_lost())))
            .collect();
        (all, log.damage().to_vec())
    };
    let before = readable(&sim);
    sim.damage(path, |bytes| bytes[..4096].fill(0));
    let harmed = readable(&sim);
    assert_eq!(harmed.0, before.0, "no frame is harmed");
    repaired_with(&sim, None);
    assert_eq!(readable(&sim), before);
}

/// A segment is gone. In the one after it nothing was written yet, and its records are in memory only.
#[test]
fn a_gap_before_what_only_memory_has_is_not_marked() {
    let at = tempfile::tempdir().unwrap();
    let (sim, id, secret, _) = backings::closed(at.path(), 10);
    let small = || options(8 << 10, 4 << 10, 64 << 10, None);
    let log = open(&sim, small()).unwrap();
    assert_eq!(log.roll().unwrap(), 10);
    for n in 10..15u64 {
        log.append(&n.to_le_bytes()).unwrap();
    }
    assert_eq!(log.roll().unwrap(), 15);
    log.close().unwrap();
    let bytes = sim.dump()[Path::new("/log/00000000000000000010.seg")].clone();
    let last = u32::from_le_bytes(bytes[4096 + 4 * 32..][..4].try_into().unwrap());
    backings::begin_empty(&sim, id, secret, 15);
    let killed = backings::left_by(at.path(), id, secret, DIR, 7);
    backings::leave(&killed, secret, 15, 5, false, Predecessor::Frame(last));
    remove(&sim, Path::new("/log/00000000000000000010.seg"));
    let done = repair_on(&sim, Path::new(DIR), Some(at.path()), &mut |_, _| ());
    if let Ok(done) = done {
        let log = open(&sim, Options { shm_dir: Some(at.path().to_owned()), ..small() }).unwrap();
        let (next, appended) = (log.next_offset(), log.append(b"another one"));
        panic!("{done:?}; the log ends at {next} of 20, and then: {appended:?}");
    }
    assert!(matches!(done, Err(Error::BackingContinues { .. })), "{done:?}");
}

/// Where segments are cut: around sectors, blocks and frames.
const LENGTHS: &[u64] = &[
    0, 1, 100, 511, 512, 513, 1024, 1107, 1108, 2000, 4095, 4096, 4097, 4100, 4396, 4608, 5001, 8191, 8192,
    8200, 9000, 12287, 12288, 12300,
];

/// Segments on a real file system are cut anywhere, and repaired.
#[test]
fn segments_on_a_real_disk_are_cut_anywhere_and_repaired() {
    use crate::log::{inspect::verify, repair::repair_with_progress};
    let at = tempfile::tempdir().unwrap();
    let o = || options(8 << 10, 4 << 10, 1 << 20, None);
    let origin = at.path().join("origin");
    let log = crate::Log::open(&origin, o()).unwrap();
    for n in 0..200 {
        log.append(&[n; 100]).unwrap();
    }
    log.close().unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(&origin).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let files: Vec<_> =
        names.iter().filter(|name| Path::new(name).extension().is_some_and(|is| is == "seg")).collect();
    let mut failed = Vec::new();
    for which in [0, 2, files.len() - 1] {
        for &length in LENGTHS {
            let dir = at.path().join("log");
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir(&dir).unwrap();
            for name in &names {
                std::fs::copy(origin.join(name), dir.join(name)).unwrap();
            }
            let file = std::fs::File::options().write(true).open(dir.join(files[which])).unwrap();
            if file.metadata().unwrap().len() <= length {
                continue;
            }
            file.set_len(length).unwrap();
            drop(file);
            let attempt = || -> Result<(), String> {
                drop(crate::Log::open(&dir, o()).map_err(|e| format!("open: {e}"))?);
                repair_with_progress(&dir, None, |_, _| ()).map_err(|e| format!("repair: {e}"))?;
                let report = verify(&dir).map_err(|e| format!("verify: {e}"))?;
                if !report.damage.is_empty() {
                    return Err(format!("still damaged: {:?}", report.damage));
                }
                let log = crate::Log::open(&dir, o()).map_err(|e| format!("open again: {e}"))?;
                log.append_wait_durable(b"on").map_err(|e| format!("append: {e}"))?;
                log.close().map_err(|e| format!("close: {e}"))
            };
            if let Err(error) = attempt() {
                failed.push((which, length, error));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A segment's footer has rotted, and the next segment is gone. The missing records were taken for those of the former,
/// because its file is long enough for them, and the backing of the latter was not asked.
#[test]
fn neighbours_of_which_one_has_no_footer_and_the_next_is_gone_are_both_mended() {
    let at = tempfile::tempdir().unwrap();
    let (disk, next, paths) = killed(at.path(), 6, 100);
    disk.damage(&paths[2], |bytes| {
        let footer = bytes.len() - 4096;
        bytes[footer..].fill(0);
    });
    remove(&disk, &paths[3]);
    all_is_there(&disk, at.path(), next, 100);
}
