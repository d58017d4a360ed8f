//! Segments that are cut, removed or rotten, while a killed process has left backings that have all of them: `repair` takes
//! what is lost from there, and nothing that is not this log's; and no backing goes that has what the disk lacks.

use super::{DIR, FIRST, backings, files_in, kill, open, options, repaired_with, small, verified};
use crate::{
    Durability, Options,
    chunk::Predecessor,
    disk::{
        Disk,
        gate::{Gate, Operation},
        sim::Sim,
    },
    log::repair::{repair_on, repair_with_progress},
    segment::file,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

fn in_memory(at: &Path) -> Options {
    Options { durability: Durability::Memory, ..small(Some(at)) }
}

/// Five segments are begun, and everything is durable, when the process is killed. Readers have kept the sealed ones in
/// memory, and so their backings. Returns the disk, the next offset, and the file of a segment in the middle.
fn killed(at: &Path, value: usize) -> (Sim, u64, PathBuf) {
    let sim = Sim::new(1);
    let log = open(&sim, in_memory(at)).unwrap();
    let (mut next, mut base) = (0, 0);
    loop {
        let segments = log.shared.chain.load().segments.clone();
        match segments.len() {
            4 => base = segments[3].base(),
            5 => break,
            _ => {}
        }
        log.append(&vec![next as u8; value]).and_then(|at| log.wait_durable(at)).unwrap();
        next += 1;
    }
    let disk = sim.snapshot();
    kill(log);
    (disk, next, Path::new(DIR).join(file::name(base)))
}

/// How many backings have a segment of this file's base.
fn backings_of(at: &Path, path: &Path) -> usize {
    let base: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let heads = files_in(at).into_iter().filter_map(|path| std::fs::read(path).ok());
    heads.filter(|head| head.get(64..72) == Some(&base.to_le_bytes())).count()
}

fn all_is_mended(value: usize, harm: impl FnOnce(&Sim, &Path)) {
    let at = tempfile::tempdir().unwrap();
    let (disk, next, path) = killed(at.path(), value);
    harm(&disk, &path);
    repaired_with(&disk, Some(at.path()));
    let report = verified(&disk, Some(at.path()));
    assert_eq!((report.damage, report.lost), (vec![], 0));
    let log = open(&disk, in_memory(at.path())).unwrap();
    assert_eq!((log.damage(), log.next_offset()), (&[][..], next));
    for offset in 0..next {
        assert_eq!(log.read(offset).unwrap().unwrap().value(), vec![offset as u8; value]);
    }
}

fn cut(bytes: usize) -> impl FnOnce(&Sim, &Path) {
    move |disk, path| disk.damage(path, |file| file.truncate(bytes))
}

/// All that was missing was marked as lost, and where whole frames were left, the backing was removed.
#[test]
fn segments_in_the_middle_that_are_cut_or_gone_are_mended_from_their_backings() {
    all_is_mended(100, cut(4096 + 20 * 128));
    all_is_mended(1, cut(4096 + 20 * 32));
    all_is_mended(100, cut(4096));
    all_is_mended(100, cut(0));
    all_is_mended(100, |disk, path| {
        disk.remove(path).unwrap();
        disk.sync_dir(Path::new(DIR)).unwrap();
    });
}

/// The first segment was closed once, with a mark, and then continued. It was mended as a whole, and the gap after it
/// filled all the same.
#[test]
fn a_gap_is_not_filled_after_the_segment_before_it_was_mended() {
    let at = tempfile::tempdir().unwrap();
    let sim = Sim::new(1);
    let log = open(&sim, in_memory(at.path())).unwrap();
    for n in 0..4 {
        log.append(&[n; 100]).unwrap();
    }
    log.close().unwrap();
    let log = open(&sim, in_memory(at.path())).unwrap();
    while log.shared.chain.load().segments.len() < 4 {
        log.append(&[7; 100]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    let disk = sim.snapshot();
    kill(log);
    disk.damage(Path::new(FIRST), |bytes| bytes.truncate(4096));
    repaired_with(&disk, Some(at.path()));
    let report = verified(&disk, Some(at.path()));
    assert_eq!((report.damage, report.lost), (vec![], 0));
}

/// Both were sealed, and had the same header: opening took the backing for one that the disk has.
#[test]
fn a_backing_that_has_what_repair_has_marked_as_lost_stays() {
    let harm = [cut_in_the_middle as fn(&mut Vec<u8>), |bytes| bytes[4096 + 5 * 128 + 60] ^= 1];
    for harm in harm {
        let at = tempfile::tempdir().unwrap();
        let (disk, next, path) = killed(at.path(), 100);
        if backings_of(at.path(), &path) == 0 {
            continue; // it was given up for room
        }
        disk.damage(&path, harm);
        repaired_with(&disk, None);
        let log = open(&disk, in_memory(at.path())).unwrap();
        assert_eq!(log.next_offset(), next);
        let is_lost = |offset| log.read(offset).unwrap().unwrap().is_lost();
        assert!((0..next).any(is_lost), "nothing was lost");
        assert_eq!(backings_of(at.path(), &path), 1);
    }
}

fn cut_in_the_middle(bytes: &mut Vec<u8>) {
    bytes.truncate(4096 + 20 * 128);
}

/// With no record in common, every backing of that base was taken for this log's.
#[test]
fn repair_takes_nothing_from_a_backing_that_follows_another_record() {
    for (wrong, is_taken) in [(1, false), (0, true)] {
        let at = tempfile::tempdir().unwrap();
        let (sim, id, secret, last) = backings::closed(at.path(), 10);
        let log = open(&sim, small(None)).unwrap();
        assert_eq!(log.roll().unwrap(), 10);
        for n in 0..5 {
            log.append(&[0xBB, n]).unwrap();
        }
        assert_eq!(log.roll().unwrap(), 15);
        log.append(b"after").unwrap();
        log.close().unwrap();
        let killed = backings::left_by(at.path(), id, secret, DIR, 7);
        backings::leave(&killed, secret, 10, 5, false, Predecessor::Frame(last.unwrap() ^ wrong));
        sim.damage(Path::new("/log/00000000000000000010.seg"), |bytes| bytes.fill(0));
        repaired_with(&sim, Some(at.path()));
        let log = open(&sim, small(None)).unwrap();
        for offset in 10..15 {
            assert_eq!(log.read(offset).unwrap().unwrap().is_lost(), !is_taken, "{offset}");
        }
    }
}

/// No room could be reserved for the copy of nothing.
#[test]
fn a_file_without_a_byte_is_repaired_on_a_real_file_system() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("log");
    let options = || options(8 << 10, 4 << 10, 1 << 20, None);
    let log = crate::Log::open(&dir, options()).unwrap();
    for n in 0..100 {
        log.append(&[n; 100]).unwrap();
    }
    log.close().unwrap();
    let paths = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let last = paths.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).max();
    std::fs::write(last.unwrap(), b"").unwrap();
    assert!(!crate::Log::open(&dir, options()).unwrap().damage().is_empty());
    repair_with_progress(&dir, None, |_, _| ()).unwrap();
    crate::Log::open(&dir, options()).unwrap().writable().unwrap();
}

/// Each attempt kept another copy, for which there was less and less room.
#[test]
fn repeated_attempts_to_repair_keep_one_copy() {
    let sim = Sim::new(1);
    let log = open(&sim, small(None)).unwrap();
    for n in 0..100 {
        log.append(&[n; 100]).unwrap();
    }
    log.close().unwrap();
    sim.damage(Path::new(FIRST), |bytes| bytes[4096 + 5 * 128 + 60] ^= 1);
    let full = Gate::new(Arc::new(sim.clone()), |operation, path| {
        let is_segment =
            path.extension().is_some_and(|extension| extension == "tmp") && !path.ends_with("next-kept.tmp");
        let is_refused = operation == Operation::Create && is_segment;
        if is_refused { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    });
    for _ in 0..5 {
        repair_on(&*full, Path::new(DIR), None, &mut |_, _| ()).unwrap_err();
    }
    let is_kept = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "damaged");
    assert_eq!(sim.dump().into_keys().filter(is_kept).count(), 1);
}
