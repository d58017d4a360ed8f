//! Repair of logs that are continued in the memory of a killed process, and what it must not give up.

use super::{
    super::super::{Durability, Error, Log, Options, Retention, repair},
    DIR, FIRST, files_in, kill, killed_with_memory, open, options, repaired, repaired_with, small, verified,
};
use crate::{
    LogId,
    chunk::{AppendOutcome, Batch, Chunk, ChunkMemory, ChunkPosition, FrameMeta},
    disk::{
        Disk,
        gate::{Gate, Operation},
        sim::Sim,
    },
    segment::{
        file::SegmentFile,
        header::{Header, Secret},
        scan, sealed,
    },
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub(super) fn in_memory(at: &Path) -> Options {
    Options { durability: Durability::Memory, ..options(1 << 16, 1 << 16, 1 << 20, Some(at)) }
}

pub(super) fn log_with_memory(at: &Path) -> Sim {
    killed_with_memory(in_memory(at))
}

fn is_whole_after_repair(disk: &Sim, at: &Path) {
    let report = verified(disk, Some(at));
    assert!(!report.damage.is_empty() && report.backings.len() == 1);
    repaired_with(disk, Some(at));
    assert_eq!(verified(disk, Some(at)).damage, []);
    let log = open(disk, in_memory(at)).unwrap();
    let expected = (0..15u64).map(|n| n.to_le_bytes().to_vec());
    assert!(super::values(&log).into_iter().eq(expected), "{} are there", log.next_offset());
    log.close().unwrap();
    assert!(files_in(at).is_empty(), "all of it is restored");
}

/// One header copy of the open segment has rotted: opening would rewrite it, and restore from the backing. `repair`
/// sealed the segment.
#[test]
fn repair_of_a_header_copy_leaves_the_open_segment_open() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = log_with_memory(at.path());
    disk.damage(Path::new(FIRST), |bytes| bytes[1024 + 20] ^= 1);
    is_whole_after_repair(&disk, at.path());
}

/// A frame of the open segment has rotted: opening mends it from the backing; `repair` gave it up, and everything after
/// it.
#[test]
fn repair_restores_a_frame_from_the_backing_of_a_killed_process() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = log_with_memory(at.path());
    disk.damage(Path::new(FIRST), |bytes| bytes[4096 + 3 * 32 + 25] ^= 1);
    is_whole_after_repair(&disk, at.path());
}

/// A sector of the open segment, or both sectors with its header, cannot be read: the log opens read-only, keeps the
/// backing, and says to repair it.
#[test]
fn repair_restores_from_the_backing_what_cannot_be_read() {
    for spoilt in [&[4096 + 512 * 3][..], &[4096 + 512], &[4096, 4096 + 9000]] {
        let at = tempfile::tempdir_in("/dev/shm").unwrap();
        let disk = log_with_memory(at.path());
        for &at in spoilt {
            disk.spoil_at(Path::new(FIRST), at);
        }
        let log = open(&disk, in_memory(at.path())).unwrap();
        assert!(matches!(log.append(b"no"), Err(Error::ReadOnly { .. })));
        drop(log);
        is_whole_after_repair(&disk, at.path());
    }
}

/// A value was a copy of the log's own file. When the sector with the first frames could not be read, their copies in
/// that value were found in their place, and contradicted the backing, which was then not used.
#[test]
fn repair_does_not_take_copies_in_a_value_for_the_frames_that_cannot_be_read() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let sim = Sim::new(1);
    let log = open(&sim, in_memory(at.path())).unwrap();
    let mut expected: Vec<Vec<u8>> = (0..4u64).map(|n| n.to_le_bytes().to_vec()).collect();
    for value in &expected {
        log.append(value).and_then(|at| log.wait_durable(at)).unwrap();
    }
    // Behind what shares the sector with the frames themselves.
    expected.push([&[0; 1024], &sim.dump()[Path::new(FIRST)][4096..8192]].concat());
    log.append(&expected[4]).and_then(|at| log.wait_durable(at)).unwrap();
    let disk = sim.snapshot();
    sim.hold(true);
    expected.extend((5..9u64).map(|n| n.to_le_bytes().to_vec()));
    for value in &expected[5..] {
        log.append(value).unwrap(); // acknowledged in memory
    }
    kill(log);
    disk.spoil_at(Path::new(FIRST), 4096);
    repaired_with(&disk, Some(at.path()));
    let log = open(&disk, in_memory(at.path())).unwrap();
    assert_eq!(log.damage(), []);
    assert!(super::values(&log) == expected, "{} are there", log.next_offset());
}

/// A record has rotted on the disk and in the backing: it is lost, and all others are kept.
#[test]
fn repair_keeps_what_a_backing_has_after_a_record_that_is_lost_in_both() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = log_with_memory(at.path());
    disk.damage(Path::new(FIRST), |bytes| bytes[4096 + 3 * 32 + 25] ^= 1);
    for backing in files_in(at.path()) {
        let mut bytes = std::fs::read(&backing).unwrap();
        bytes[4096 + 3 * 32 + 25] ^= 1;
        super::overwrite(&backing, &bytes);
    }
    repaired_with(&disk, Some(at.path()));
    let log = open(&disk, in_memory(at.path())).unwrap();
    assert_eq!(log.damage(), []);
    assert_eq!(log.next_offset(), 15);
    assert!(log.read(3).unwrap().unwrap().is_lost());
    assert_eq!(log.read(14).unwrap().unwrap().value(), 14u64.to_le_bytes());
}

/// A log whose last segment is on the disk, and whose later records are only in memory. Returns the number of records,
/// and the last segment's base.
fn log_that_goes_on_in_memory(at: &Path) -> (Sim, u64, u64) {
    let sim = Sim::new(1);
    let (full, appended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_full, all_appended) = (Arc::clone(&full), Arc::clone(&appended));
    let gate = Gate::new(Arc::new(sim.clone()), move |operation, _| {
        if operation != Operation::Rename || !is_full.load(Ordering::SeqCst) {
            return Ok(());
        }
        // Appends are refused from the first failure on, so all come before it.
        while !all_appended.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(std::io::Error::from_raw_os_error(28))
    });
    let log = Log::open_on(gate, Path::new(DIR), on_disk_and_in_memory(at)).unwrap();
    let mut n = 0u64;
    while log.shared.chain.load().segments.len() < 3 {
        log.append(&[n as u8; 100]).and_then(|at| log.wait_durable(at)).unwrap();
        n += 1;
    }
    full.store(true, Ordering::SeqCst); // no segment is begun from now on: records after this one are only in memory
    let last = Arc::clone(log.shared.chain.load().segments.last().unwrap());
    while n < last.base() + PER_SEGMENT + 5 {
        log.append(&[n as u8; 100]).unwrap();
        n += 1;
    }
    appended.store(true, Ordering::SeqCst);
    while last.sealed.get().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let disk = sim.snapshot();
    kill(log);
    (disk, n, last.base())
}

fn on_disk_and_in_memory(at: &Path) -> Options {
    Options { durability: Durability::Memory, ..small(Some(at)) }
}

/// Removes a segment's own backing, which would mend it.
pub(super) fn remove_backing_of(at: &Path, base: u64) {
    for backing in files_in(at) {
        if std::fs::read(&backing).unwrap()[64..72] == base.to_le_bytes() {
            std::fs::remove_file(backing).unwrap();
        }
    }
}

/// Records of 100 bytes in a segment of 8 KiB.
const PER_SEGMENT: u64 = 8192 / 132;

/// The last record of the sealed segment before the records in memory has rotted. Opening recognises the backing by the
/// CRC in the footer; after `repair` the footer had another.
#[test]
fn repair_keeps_the_crc_that_a_backing_is_bound_to() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let (disk, next, base) = log_that_goes_on_in_memory(at.path());
    let path = Path::new(DIR).join(crate::segment::file::name(base));
    remove_backing_of(at.path(), base);
    disk.damage(&path, |bytes| bytes[4096 + (PER_SEGMENT - 1) as usize * 128 + 60] ^= 1);
    repaired_with(&disk, Some(at.path()));
    // And the index, after that.
    disk.damage(&path, |bytes| {
        let index = bytes.len() - 8192;
        bytes[index] ^= 1;
    });
    repaired_with(&disk, Some(at.path()));
    assert_eq!(verified(&disk, None).damage, []);
    let log = open(&disk, on_disk_and_in_memory(at.path())).unwrap();
    assert_eq!(log.next_offset(), next, "backings {:?}", files_in(at.path()));
}

/// A record of a sealed segment has rotted that is still in the memory of the killed process.
#[test]
fn repair_restores_a_sealed_segment_from_its_backing() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let (disk, next, base) = log_that_goes_on_in_memory(at.path());
    let path = Path::new(DIR).join(crate::segment::file::name(base));
    let whole = disk.dump()[&path].clone();
    disk.damage(&path, |bytes| bytes[4096 + 5 * 128 + 60] ^= 1);
    disk.spoil_at(&path, 4096 + 20 * 128);
    repaired_with(&disk, Some(at.path()));
    assert!(disk.dump()[&path] == whole);
    assert_eq!(verified(&disk, None).damage, []);
    let log = open(&disk, on_disk_and_in_memory(at.path())).unwrap();
    assert_eq!((log.next_offset(), super::values(&log).len() as u64), (next, next));
}

/// The record that memory is bound to is lost, and nothing identifies it any more: its offsets would be given to other
/// records.
#[test]
fn repair_does_not_give_up_what_a_backing_continues_unless_told_to() {
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let (disk, next, base) = log_that_goes_on_in_memory(at.path());
    let path = Path::new(DIR).join(crate::segment::file::name(base));
    disk.damage(&path, |bytes| {
        bytes[4096 + (PER_SEGMENT - 1) as usize * 128 + 60] ^= 1;
        let footer = bytes.len() - 4096;
        bytes[footer] ^= 1;
        bytes.truncate(footer); // and it is not known how many records there were
    });
    remove_backing_of(at.path(), base);
    let before = disk.dump();
    let repaired = repair::repair_on(&disk, Path::new(DIR), Some(at.path()), &mut |_, _| ());
    let error = repaired.unwrap_err();
    assert!(matches!(&error, Error::BackingContinues { path: of, .. } if *of == path), "{error}");
    assert!(disk.dump() == before, "nothing may be changed");
    self::repaired(&disk);
    assert!(!files_in(at.path()).is_empty());
    let log = open(&disk, on_disk_and_in_memory(at.path())).unwrap();
    assert!(log.next_offset() < next && log.append(b"on").is_ok());
}

/// Both copies of a sealed segment's header have rotted: a header was reconstructed with a time in 1970, and `repair` wrote
/// that. Retention dropped records that were seconds old.
#[test]
fn repair_of_a_header_does_not_make_records_old() {
    let sim = Sim::new(1);
    let log = open(&sim, small(None)).unwrap();
    let begun = super::super::super::environment::now();
    for n in 0..300u64 {
        log.append(&[n as u8; 100]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    log.close().unwrap();
    let files: Vec<_> = sim.dump().into_keys().collect();
    assert!(files.len() > 4);
    // The first segment, one in between, and the last.
    for path in [&files[0], &files[2], &files[files.len() - 1]] {
        sim.damage(path, |bytes| {
            bytes[3] ^= 1;
            bytes[1027] ^= 1;
        });
    }
    repaired(&sim);
    let log = open(&sim, small(None)).unwrap();
    assert_eq!(log.damage(), []);
    let times: Vec<_> = (0..300).map(|offset| log.read(offset).unwrap().unwrap().time()).collect();
    assert!(times.iter().all(|&time| (begun - 1000..begun + 60_000).contains(&time)), "{times:?}");
    let first = log.retain(Retention::default().with_age(Duration::from_secs(30 * 24 * 3600))).unwrap();
    assert_eq!(first, 0);
}

/// A log of format 1 has only one segment with a secret so far, and its header cannot be read for a while: without the
/// secret none of its frames verifies. As if it were the log's only header, nothing may be given up for that.
#[test]
fn losing_the_only_header_with_a_secret_is_like_losing_the_only_header() {
    let sim = Sim::new(1);
    let size = 8192;
    let header = Header { log: LogId([3; 16]), base: 0, capacity: size, created: 9, secret: Secret(None) };
    let chunk = Chunk::new(ChunkMemory::new(size).unwrap(), None);
    let meta = FrameMeta { key: header.key(), lead: 0, time: 1 };
    let mut records = 0;
    let append = || chunk.append(Batch::new(&[&[7u8; 100][..]], size).unwrap(), None, meta);
    while let AppendOutcome::At(record) = append() {
        records = u64::from(record) + 1;
    }
    let end = chunk.contiguous(ChunkPosition::default(), u32::MAX);
    Disk::create_dir(&sim, Path::new(DIR)).unwrap();
    let file = SegmentFile::prepare(&sim, Path::new(DIR), 0, size).unwrap();
    file.begin(&sim, Path::new(DIR), &header).unwrap();
    file.write(&chunk, ChunkPosition::default(), end).unwrap();
    let found = scan::scan(chunk.bytes(0..end.words), header.key());
    sealed::seal(file.file(), &header, found.summary(), found.positions.iter().copied()).unwrap();
    let o = || options(1 << 16, 1 << 16, 1 << 20, None);
    let log = open(&sim, o()).unwrap();
    assert_eq!(log.next_offset(), records);
    for n in 0..10u8 {
        log.append(&[n; 100]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    log.close().unwrap();
    let second = Path::new(DIR).join(crate::segment::file::name(records));
    for at in [100, 1100] {
        sim.spoil_at(&second, at);
    }
    let log = open(&sim, o()).unwrap();
    assert!(matches!(log.append(b"no"), Err(Error::ReadOnly { .. })));
    assert_eq!(super::values(&log).len() as u64, records, "the rest is served");
    drop(log);
    let before = sim.dump();
    let repaired = repair::repair_on(&sim, Path::new(DIR), None, &mut |_, _| ());
    assert!(matches!(&repaired, Err(Error::Corrupt { path, .. }) if *path == second), "{repaired:?}");
    assert!(sim.dump() == before);
    sim.heal();
    let log = open(&sim, o()).unwrap();
    assert_eq!((log.damage(), log.next_offset()), (&[][..], records + 10));
}

/// The sector of the mark could not be read for a while, and the header's copy had rotted: opening rewrote the header,
/// and the mark was gone. Rot in the last record was then cut off as a torn end.
#[test]
fn an_unreadable_mark_is_not_taken_to_be_absent() {
    let sim = Sim::new(1);
    let log = open(&sim, small(None)).unwrap();
    for n in 0..10u8 {
        log.append(&[n; 100]).unwrap();
    }
    log.close().unwrap();
    sim.damage(Path::new(FIRST), |bytes| bytes[4096 + 9 * 128 + 50] ^= 1);
    sim.damage(Path::new(FIRST), |bytes| bytes[1030] ^= 1);
    sim.spoil_at(Path::new(FIRST), 600);
    let log = open(&sim, small(None)).unwrap();
    assert!(matches!(log.append(b"no"), Err(Error::ReadOnly { .. })));
    assert!(!log.damage().is_empty() && log.damage().iter().all(|damage| damage.unreadable));
    drop(log);
    sim.heal();
    assert_eq!(open(&sim, small(None)).unwrap().damage()[0].offsets, 9..10);
}
