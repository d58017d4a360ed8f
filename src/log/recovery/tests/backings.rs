//! Backings of killed processes: what is restored from them, what is kept, and what must never come of them.

use super::{
    DIR, FIRST, files_in, kill, killed_with_memory, open, options, overwrite, repaired, small, values,
    verified,
};
use crate::{
    Durability, Log, LogId, Options,
    chunk::{
        AppendOutcome, BackingDir, Batch, Chunk, ChunkMemory, ChunkPosition, FrameMeta, Label, LogBackings,
        Predecessor,
    },
    disk::{
        Disk,
        gate::{Gate, Operation},
        sim::Sim,
    },
    segment::{
        file::SegmentFile,
        header::{Header, Secret},
    },
};
use std::{path::Path, sync::Arc};

/// What a power failure left after a torn record got into the chunk's backing, and came back after a SIGKILL (`r3`).
#[test]
fn a_torn_end_does_not_come_back_from_the_backing() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let o = |backings| options(8 << 10, 8 << 10, 64 << 10, backings);
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let log = open(&sim, o(None)).unwrap();
        for n in 0..12u8 {
            log.append(&[n; 100]).and_then(|at| log.wait_durable(at)).unwrap();
        }
        sim.cut_power_after(1);
        // The power may fail before the last of them.
        let last = (0..16).map_while(|_| log.append(&[0xEE; 100]).ok()).last();
        let _ = last.map(|last| log.wait_durable(last));
        drop(log);
        let disk = sim.reboot();
        let log = open(&disk, o(Some(at.path()))).unwrap();
        assert_eq!(log.damage(), [], "seed {seed}");
        let mut end = 0;
        for _ in 0..4 {
            end = log.append(&[0x22; 100]).unwrap() + 1;
            log.wait_durable(end - 1).unwrap();
        }
        kill(log);
        let log = open(&disk.reboot(), o(Some(at.path()))).unwrap();
        assert_eq!(log.next_offset(), end, "seed {seed}: a record that nobody appended");
        log.close().unwrap();
    }
}

/// A torn end is followed by records in the next segment that were acknowledged in memory (`r11`).
#[test]
fn records_acknowledged_in_memory_are_not_displaced_by_a_torn_end() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let o =
        || Options { durability: Durability::Memory, ..options(8 << 10, 8 << 10, 64 << 10, Some(at.path())) };
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let log = open(&sim, options(8 << 10, 8 << 10, 64 << 10, None)).unwrap();
        for n in 0..12u8 {
            log.append(&[n; 100]).and_then(|at| log.wait_durable(at)).unwrap();
        }
        sim.cut_power_after(1);
        let last = (0..40).fold(0, |last, _| log.append(&[0xEE; 100]).unwrap_or(last));
        let _ = log.wait_durable(last);
        drop(log);
        let disk = sim.reboot();
        let log = open(&disk, o()).unwrap();
        let from = log.next_offset();
        for _ in 0..4 {
            log.append(&[0x22; 100]).unwrap();
        }
        log.flush().unwrap();
        let frozen = disk.snapshot();
        let large = log.append(&vec![0x33; 7000]).unwrap();
        assert_eq!(large, from + 4);
        kill(log);
        let log = open(&frozen, o()).unwrap();
        assert_eq!(log.read(large).unwrap().unwrap().value(), vec![0x33; 7000], "seed {seed}");
        assert_eq!(log.next_offset(), large + 1);
        log.close().unwrap();
    }
}

/// Rot in the open segment, and a backing that has all of its records and more (`r5`): the backing mends it.
#[test]
fn rot_in_the_open_segment_is_restored_from_the_backing_of_a_killed_process() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let o = |backings| Options { durability: Durability::Memory, ..small(backings) };
    let disk = killed_with_memory(o(Some(at.path())));
    disk.damage(Path::new(FIRST), |bytes| bytes[4096 + 3 * 32 + 25] ^= 1);
    // A process that cannot see the backings finds damage, and repairs it: the backings stay for one that can.
    let other = disk.snapshot();
    let log = open(&other, o(None)).unwrap();
    assert_eq!(log.damage()[0].offsets, 3..4);
    drop(log);
    assert_ne!(repaired(&other).damage, []);
    let log = open(&other, o(Some(at.path()))).unwrap();
    assert_eq!(log.next_offset(), 10, "the record that was given up is not replaced");
    log.close().unwrap();
    assert!(!files_in(at.path()).is_empty());
    assert_eq!(verified(&disk, Some(at.path())).backings.len(), 1);
    let log = open(&disk, o(Some(at.path()))).unwrap();
    assert_eq!(log.damage(), []);
    assert_eq!(values(&log), (0..15u64).map(|n| n.to_le_bytes().to_vec()).collect::<Vec<_>>());
    log.close().unwrap();
    assert!(files_in(at.path()).is_empty(), "restored, and no longer needed");
}

/// A backing with an older history was restored after a newer one (`r6`), or removed.
#[test]
fn a_backing_of_another_history_is_neither_taken_up_nor_removed() {
    let (sim, at) = (Sim::new(1), tempfile::tempdir_in("/dev/shm").unwrap());
    let o = |backings| Options { durability: Durability::Memory, ..small(backings) };
    let log = open(&sim, o(Some(at.path()))).unwrap();
    for _ in 0..16 {
        log.append(&[1; 100]).unwrap();
    }
    log.flush().unwrap();
    while !log.shared.roll.is_ready() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let disk = sim.snapshot();
    sim.hold(true);
    for _ in 16..40 {
        log.append(&[1; 100]).unwrap();
    }
    let next_segment = log.shared.active.load_full().segment.base();
    kill(log);
    assert_ne!(next_segment, 0, "the test");
    let backings = files_in(at.path()).len();
    // A process that knows nothing about the backings: another user, or another place for them.
    let log = open(&disk, o(None)).unwrap();
    while log.next_offset() < 4096 / 132 {
        log.append(&[2; 100]).unwrap();
    }
    let end = log.next_offset();
    log.close().unwrap();
    for _ in 0..2 {
        let log = open(&disk, o(Some(at.path()))).unwrap();
        assert_eq!(log.next_offset(), end);
        let kinds: Vec<u8> = values(&log).iter().map(|value| value[0]).collect();
        assert!(kinds.iter().enumerate().all(|(n, &kind)| kind == if n < 16 { 1 } else { 2 }), "{kinds:?}");
        log.close().unwrap();
        assert_eq!(files_in(at.path()).len(), backings, "what only memory has is never removed");
    }
    assert!(!verified(&disk, Some(at.path())).backings.is_empty(), "they are reported");
}

/// Who begins a segment while others still copy into the one before it cannot note its last record: the flusher does.
#[test]
fn each_backing_notes_what_precedes_it_however_appenders_meet() {
    let (sim, at) = (Sim::new(1), tempfile::tempdir_in("/dev/shm").unwrap());
    let o =
        Options { durability: Durability::Memory, ..options(1 << 20, 1 << 20, 64 << 20, Some(at.path())) };
    let log = open(&sim, o).unwrap();
    let value = vec![7; 300_000];
    let mut noted = 0;
    for _ in 0..10 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| log.append(&value).map(drop).unwrap()));
            }
        });
        log.flush().unwrap();
        for path in files_in(at.path()) {
            let Ok(bytes) = std::fs::read(&path) else { continue }; // its memory was taken for another chunk
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let (base, capacity, predecessor) = (word(64), word(72), word(112));
            if capacity > 0 && base < log.next_offset() {
                assert_ne!(predecessor, 0, "{base}");
                noted += 1;
            }
        }
    }
    assert!(noted > 100, "{noted}");
    log.close().unwrap();
}

/// Leaves a backing of a segment at `base` as a killed process would, with `records` whole records and, if `torn`, a
/// batch whose second half is missing.
pub(super) fn leave(
    backings: &Arc<LogBackings>,
    secret: Secret,
    base: u64,
    records: u64,
    torn: bool,
    predecessor: Predecessor,
) {
    leave_begun(backings, secret, (base, CREATED), records, torn, predecessor);
}

/// When the segments of [`leave`] and [`begin_empty`] were begun.
const CREATED: u64 = 1_700_000_000_000;

/// Leaves a backing like [`leave`], of a segment that was begun at some other time.
fn leave_begun(
    backings: &Arc<LogBackings>,
    secret: Secret,
    (base, created): (u64, u64),
    records: u64,
    torn: bool,
    predecessor: Predecessor,
) {
    let label = Label { base, capacity: 8192, created, version: 2 };
    let header = Header { log: backings.dir.log(), base, capacity: 8192, created, secret };
    let mut memory = ChunkMemory::backed(label.capacity, backings).unwrap();
    memory.label(&label, predecessor);
    let chunk = Chunk::new(memory, None);
    let meta = FrameMeta { key: header.key(), lead: 0, time: 0 };
    for record in 0..records {
        let value = (base + record).to_le_bytes();
        let placed = chunk.append(Batch::new(&[&value[..]], 8192).unwrap(), None, meta);
        assert!(matches!(placed, AppendOutcome::At(_)));
    }
    if torn {
        let (half, lost) = ([1u8; 100], [2u8; 100]);
        chunk.append(Batch::new(&[&half[..], &lost[..]], 8192).unwrap(), None, meta);
        let end = chunk.contiguous(ChunkPosition::default(), u32::MAX).words;
        drop(chunk);
        let at = backings.latest().unwrap();
        let mut bytes = std::fs::read(&at).unwrap();
        bytes[4096 + end as usize * 8 - 50] ^= 1;
        overwrite(&at, &bytes);
    }
}

/// A log of this many records of 8 bytes that was closed, and the CRC in the frame of the last one.
pub(super) fn closed(at: &Path, records: u64) -> (Sim, LogId, Secret, Option<u32>) {
    closed_on(Sim::new(1), at, records)
}

fn closed_on(sim: Sim, at: &Path, records: u64) -> (Sim, LogId, Secret, Option<u32>) {
    let log = open(&sim, small(Some(at))).unwrap();
    for n in 0..records {
        log.append(&n.to_le_bytes()).unwrap();
    }
    let (id, secret) = (log.id(), log.shared.secret);
    log.close().unwrap();
    let file = &sim.dump()[Path::new(FIRST)];
    let last = records.checked_sub(1).map(|last| file[4096 + last as usize * 32..][..4].try_into().unwrap());
    (sim, id, secret, last.map(u32::from_le_bytes))
}

/// Where a process keeps backings that it leaves: that of the log in `dir`, with a number of its own.
pub(super) fn left_by(at: &Path, id: LogId, secret: Secret, dir: &str, opening: u64) -> Arc<LogBackings> {
    let dir = Path::new(dir);
    let backings = BackingDir::open(&*crate::disk::native(), at, id, dir, (0, 0))
        .map(|dir| LogBackings::new(dir, secret.0.unwrap(), opening))
        .unwrap();
    backings.keep();
    Arc::new(backings)
}

#[test]
fn records_of_a_backing_are_restored_and_a_backing_that_does_not_follow_is_kept() {
    let at = tempfile::tempdir().unwrap();
    let (sim, id, secret, last) = closed(at.path(), 10);
    let last = last.unwrap();
    let opening = std::cell::Cell::new(1);
    let backings = |id, dir: &str| {
        opening.set(opening.get() + 1);
        left_by(at.path(), id, secret, dir, opening.get())
    };
    assert_eq!(backings(id, DIR).dir.find().unwrap().len(), 0, "a clean close leaves none");
    let killed = backings(id, DIR);
    leave(&killed, secret, 10, 20, false, Predecessor::Frame(last));
    leave(&killed, secret, 30, 5, true, Predecessor::Unknown); // its last batch is torn; the records before that are whole
    leave(&killed, secret, 37, 5, false, Predecessor::Unknown); // does not follow
    leave(&killed, secret, 3, 4, false, Predecessor::Unknown); // another history: the disk has other records there
    leave(&backings(id, DIR), secret, 35, 5, false, Predecessor::Unknown); // what precedes it is not known
    leave(&backings(id, DIR), secret, 10, 25, false, Predecessor::Frame(last ^ 1)); // after another record
    leave(&backings(LogId([7; 16]), "/other"), secret, 35, 5, false, Predecessor::Unknown); // another log's
    leave(&backings(id, "/copy"), secret, 35, 5, false, Predecessor::Unknown); // a copy's
    let log = open(&sim, small(Some(at.path()))).unwrap();
    let numbers = |log: &Log| -> Vec<u64> {
        values(log).iter().map(|value| u64::from_le_bytes(value[..].try_into().unwrap())).collect()
    };
    assert_eq!(numbers(&log), (0..35).collect::<Vec<_>>());
    assert_eq!(log.durable_offset(), 35);
    assert_eq!(log.append(&35u64.to_le_bytes()).unwrap(), 35);
    log.close().unwrap();
    assert_eq!(
        backings(id, DIR).dir.find().unwrap().len(),
        4 + 1,
        "those that do not follow, and the copy's"
    );
    assert_eq!(backings(LogId([7; 16]), "/other").dir.find().unwrap().len(), 1, "another log's");
    assert_eq!(numbers(&open(&sim, small(Some(at.path()))).unwrap()), (0..36).collect::<Vec<_>>());
}

/// A chunk replaced an empty one before anything was known to precede it, and its memory, from the pool, had a backing with
/// a lower number than the empty one's. Only backings with lower numbers were asked what precedes it.
#[test]
fn what_precedes_a_backing_is_known_from_any_that_begins_at_the_same_record() {
    for empty_first in [true, false] {
        let at = tempfile::tempdir().unwrap();
        let (sim, id, secret, last) = closed(at.path(), 10);
        let killed = left_by(at.path(), id, secret, DIR, 9);
        let mut both = [(0, Predecessor::Frame(last.unwrap())), (20, Predecessor::Unknown)];
        if !empty_first {
            both.reverse();
        }
        for (records, predecessor) in both {
            leave(&killed, secret, 10, records, false, predecessor);
        }
        let log = open(&sim, small(Some(at.path()))).unwrap();
        assert_eq!(log.next_offset(), 30, "{empty_first}");
        log.close().unwrap();
    }
}

/// Two processes began a segment at the same offset in the same millisecond, after different records. The second one
/// was killed before it wrote any, and the memory of the first was restored after the records of the second. The
/// simulation found it (seed 106213).
#[test]
fn an_empty_segment_is_continued_only_by_a_backing_bound_to_its_predecessor() {
    for same in [true, false] {
        let at = tempfile::tempdir().unwrap();
        let (sim, id, secret, last) = closed(at.path(), 10);
        let last = last.unwrap();
        begin_empty(&sim, id, secret, 10);
        let killed = left_by(at.path(), id, secret, DIR, 9);
        leave(&killed, secret, 10, 20, false, Predecessor::Frame(if same { last } else { last ^ 1 }));
        let log = open(&sim, small(Some(at.path()))).unwrap();
        assert_eq!(log.next_offset(), if same { 30 } else { 10 });
        log.close().unwrap();
        assert_eq!(killed.dir.find().unwrap().len(), usize::from(!same), "what does not follow is kept");
    }
}

/// Any backing continued a log that had been trimmed to its end, in the order of their names: one of another history
/// displaced what had been acknowledged.
#[test]
fn an_emptied_log_is_continued_by_the_backing_whose_segment_was_begun() {
    for other in [CREATED - 1, CREATED + 1] {
        let at = tempfile::tempdir().unwrap();
        let (sim, id, secret, _) = closed(at.path(), 10);
        begin_empty(&sim, id, secret, 10);
        Disk::remove(&sim, Path::new(FIRST)).unwrap();
        let strange = left_by(at.path(), id, secret, DIR, 1);
        leave_begun(&strange, secret, (10, other), 25, false, Predecessor::Frame(1));
        leave(&left_by(at.path(), id, secret, DIR, 9), secret, 10, 20, false, Predecessor::Frame(2));
        let kept_before = crate::stats().backings_kept;
        let log = open(&sim, small(Some(at.path()))).unwrap();
        assert_eq!((log.first_offset(), log.next_offset()), (10, 30), "{other}");
        log.close().unwrap();
        assert_eq!(strange.dir.find().unwrap().len(), 1, "it is kept");
        assert!(crate::stats().backings_kept > kept_before, "and counted");
    }
}

#[test]
fn a_backing_continues_the_open_segment_only_if_both_begin_alike() {
    for same in [true, false] {
        let (sim, at) = (Sim::new(1), tempfile::tempdir().unwrap());
        let log = open(&sim, small(Some(at.path()))).unwrap();
        for n in 0..10u64 {
            log.append(&n.to_le_bytes()).unwrap();
        }
        log.flush().unwrap();
        let backings = log.shared.roll.backings().unwrap();
        let backing = backings.latest_labelled(0);
        let mut bytes = std::fs::read(&backing).unwrap();
        let key = log.shared.active.load().segment.key;
        log.close().unwrap();
        // As if two more had been appended before the process was killed.
        for record in 10..12u32 {
            let at = 4096 + record as usize * 32;
            let stamp = crate::frame::Stamp { record, behind: 1, time: 0, flags: 0 };
            crate::frame::encode(&mut bytes[at..at + 32], key, stamp, &u64::from(record).to_le_bytes());
        }
        if !same {
            bytes[4096 + 30] ^= 1;
        }
        std::fs::create_dir_all(backing.parent().unwrap()).unwrap();
        overwrite(&backing, &bytes);
        let expected = if same { 12 } else { 10 };
        let log = open(&sim, small(Some(at.path()))).unwrap();
        assert_eq!(values(&log).len(), expected);
        assert!(!same || !backing.exists());
    }
}

/// A bit flips in a backing: the restored records are ones that were appended, as far as they go, and nothing on disk
/// is touched.
#[test]
fn a_flipped_bit_in_a_backing_shows_nothing_false_and_harms_nothing_on_disk() {
    let (sim, at) = (Sim::new(1), tempfile::tempdir_in("/dev/shm").unwrap());
    let o = |backings| Options { durability: Durability::Memory, ..small(backings) };
    let value = |n: u64| vec![n as u8; 20 + n as usize];
    let log = open(&sim, o(Some(at.path()))).unwrap();
    for n in 0..10 {
        log.append(&value(n)).and_then(|at| log.wait_durable(at)).unwrap();
    }
    let disk = sim.snapshot();
    sim.hold(true);
    for n in 10..20 {
        log.append(&value(n)).unwrap();
    }
    kill(log);
    let backing = files_in(at.path()).pop().unwrap();
    let good = std::fs::read(&backing).unwrap();
    let mut whole = 0;
    for flipped in (0..200).chain((200..4096 + 1600).step_by(11)) {
        let disk = disk.snapshot();
        let mut bad = good.clone();
        bad[flipped] ^= 1 << (flipped % 8);
        std::fs::create_dir_all(backing.parent().unwrap()).unwrap();
        overwrite(&backing, &bad);
        let log = open(&disk, o(Some(at.path()))).unwrap();
        let read = values(&log);
        assert!(
            read.len() >= 10 && read.iter().enumerate().all(|(n, read)| *read == value(n as u64)),
            "{flipped}"
        );
        assert_eq!(log.damage(), []);
        whole += usize::from(read.len() == 20);
        // If records that only the backing has could not be restored, it is kept.
        drop(log);
        let kept = backing.exists() || !verified(&disk, None).torn.is_empty();
        assert!(read.len() == 20 || kept, "{flipped}: {} records", read.len());
        let _ = std::fs::remove_file(&backing);
    }
    assert!(whole > 100, "{whole}: bits that flipped where there is nothing");
}

/// The next segment's file was begun, and is empty; its records are in the backing only.
pub(super) fn begin_empty(sim: &Sim, log: LogId, secret: Secret, base: u64) {
    let header = Header { log, base, capacity: 8192, created: CREATED, secret };
    let file = SegmentFile::prepare(sim, Path::new(DIR), 0, 8192).unwrap();
    file.begin(sim, Path::new(DIR), &header).unwrap();
}

/// The name of a killed log's last segment was not durable, and the file of the one after it was made from memory: of
/// these names, a loss of power took the first one only. The simulation found it (seed 10016486).
#[test]
fn the_name_of_the_last_segment_is_durable_before_a_next_one_is_restored() {
    let mut cut = 0;
    for (seed, steps) in (0..8).flat_map(|seed| (1..50).map(move |steps| (seed, steps))) {
        let at = tempfile::tempdir().unwrap();
        let (sim, id, secret, last) = closed_on(Sim::new(seed), at.path(), 10);
        let gate = Gate::new(Arc::new(sim.clone()), |operation, _| match operation {
            Operation::SyncDir => Err(std::io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        });
        let header = Header { log: id, base: 10, capacity: 8192, created: CREATED, secret };
        let file = SegmentFile::prepare(&sim, Path::new(DIR), 0, 8192).unwrap();
        assert!(file.begin(&*gate, Path::new(DIR), &header).is_err());
        let killed = left_by(at.path(), id, secret, DIR, 9);
        leave(&killed, secret, 10, 20, false, Predecessor::Frame(last.unwrap()));
        leave(&killed, secret, 30, 5, false, Predecessor::Unknown);
        sim.cut_power_after(steps);
        cut += u32::from(open(&sim, small(Some(at.path()))).is_err());
        let log = open(&sim.reboot(), small(None)).unwrap();
        assert_eq!(log.damage(), [], "seed {seed}, {steps} steps");
    }
    assert!(cut > 200, "{cut}");
}

/// `repair` looked for memory that goes on after the last segment only, and that was the empty one: it marked the last
/// record before it as lost, and the memory did not fit that any more.
#[test]
fn repair_does_not_give_up_what_a_backing_continues_after_an_empty_segment() {
    use crate::log::repair::repair_on;
    for rot in [false, true] {
        let at = tempfile::tempdir().unwrap();
        let (sim, id, secret, last) = closed(at.path(), 10);
        begin_empty(&sim, id, secret, 10);
        let killed = left_by(at.path(), id, secret, DIR, 9);
        leave(&killed, secret, 10, 20, false, Predecessor::Frame(last.unwrap()));
        if rot {
            sim.damage(Path::new(FIRST), |bytes| bytes[4096 + 9 * 32 + 25] ^= 1);
            let repaired = repair_on(&sim, Path::new(DIR), Some(at.path()), &mut |_, _| ());
            assert!(matches!(repaired, Err(crate::Error::BackingContinues { .. })), "{repaired:?}");
            assert_eq!(killed.dir.find().unwrap().len(), 1);
            // Nothing was changed, and the bit may flip back.
            sim.damage(Path::new(FIRST), |bytes| bytes[4096 + 9 * 32 + 25] ^= 1);
        }
        let log = open(&sim, small(Some(at.path()))).unwrap();
        assert_eq!((log.damage(), log.next_offset()), (&[][..], 30));
        log.close().unwrap();
    }
}

/// Where the footer does not say which CRC the last frame has, it was read from the frame, and if that could not be read,
/// the log did not open.
#[test]
fn an_unreadable_record_before_an_empty_segment_is_an_error_for_its_readers_only() {
    use crate::segment::{region::Region, scan, sealed};
    for (spoiled, begun) in [(false, true), (true, true), (true, false)] {
        let at = tempfile::tempdir().unwrap();
        let (sim, id, secret, _) = closed(at.path(), 200);
        let names = sim.dump().into_keys();
        let path = names.filter(|path| path.extension().is_some_and(|end| end == "seg")).max().unwrap();
        let block: [u8; 4096] = sim.dump()[&path][..4096].try_into().unwrap();
        let header = Header::decode(&block).unwrap().header;
        let file = Disk::open(&sim, &path, true).unwrap();
        let bytes = Region::read(&*file, file.len().unwrap(), false).unwrap();
        let found = scan::scan(&bytes, header.key());
        let mut summary = found.summary();
        let last = summary.last_crc.take().unwrap();
        sealed::seal(&*file, &header, summary, found.positions.iter().copied()).unwrap();
        drop(file);
        if spoiled {
            sim.spoil_at(&path, 4096 + *found.positions.last().unwrap() as usize * 8);
        }
        if begun {
            begin_empty(&sim, id, secret, 200);
        }
        let killed = left_by(at.path(), id, secret, DIR, 9);
        leave(&killed, secret, 200, 20, false, Predecessor::Frame(last));
        let left = killed.latest().unwrap();
        let log = open(&sim, small(Some(at.path()))).unwrap();
        // What is bound to the record, by nothing else, is kept.
        assert_eq!(log.next_offset(), if begun { 220 } else { 200 });
        assert_eq!(left.exists(), !begun);
        assert_eq!(log.read(199).is_err(), spoiled);
        log.append(b"goes on").unwrap();
        log.close().unwrap();
    }
}

/// A process that is killed while it loads the memory of its chunk: with a label, half of a frame was taken for another
/// history, kept and reported for good.
#[test]
fn what_was_loaded_and_not_labelled_is_removed_by_the_next_opening() {
    let at = tempfile::tempdir().unwrap();
    let (sim, id, secret, _) = closed(at.path(), 10);
    let frames = sim.dump()[Path::new(FIRST)][4096..].to_vec();
    for bytes in [10 * 32 - 16, 10 * 32] {
        let killed = left_by(at.path(), id, secret, DIR, 7);
        let mut memory = ChunkMemory::backed(8192, &killed).unwrap();
        memory.load(&frames[..bytes]);
        drop((memory, killed));
        let log = open(&sim, small(Some(at.path()))).unwrap();
        assert_eq!(log.next_offset(), 10);
        log.close().unwrap();
        assert_eq!(left_by(at.path(), id, secret, DIR, 8).dir.find().unwrap().len(), 0, "{bytes}");
    }
}
