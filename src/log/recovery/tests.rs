//! What recovery does with what crashes, rot and other processes leave. Each test is named after what went wrong.

mod again;
mod backings;
mod cut;
mod foreign;
#[cfg(feature = "store")]
mod full;
mod harmed;
mod histories;
#[cfg(feature = "store")]
mod little_memory;
mod mended;
mod old;
mod remembered;
mod repaired;
mod repairing;
mod several;
mod unreadable;

use super::{
    super::{Error, Log, Options, inspect, repair},
    dir::TORN,
};
use crate::{
    LogId,
    chunk::{AppendOutcome, Batch, Chunk, ChunkMemory, ChunkPosition, FrameMeta},
    disk::{
        Disk,
        sim::{Cut, Mode, Sim},
    },
    segment::{
        file::{self, SegmentFile},
        header::{Header, Secret},
        scan, sealed,
    },
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub(super) const DIR: &str = "/log";
pub(super) const FIRST: &str = "/log/00000000000000000000.seg";

pub(super) fn options(segment: u64, first: u64, memory: u64, shm_dir: Option<&Path>) -> Options {
    Options {
        segment_bytes: segment,
        first_segment_bytes: first,
        memory_bytes: memory,
        shm_dir: shm_dir.map(Path::to_owned),
        ..Options::default()
    }
}

pub(super) fn small(shm_dir: Option<&Path>) -> Options {
    options(8 << 10, 4 << 10, 64 << 10, shm_dir)
}

pub(super) fn open(sim: &Sim, options: Options) -> Result<Log, Error> {
    Log::open_on(Arc::new(sim.clone()), Path::new(DIR), options)
}

pub(super) fn repaired(sim: &Sim) -> repair::Repaired {
    repaired_with(sim, None)
}

pub(super) fn repaired_with(sim: &Sim, shm_dir: Option<&Path>) -> repair::Repaired {
    repair::repair_on(sim, Path::new(DIR), shm_dir, &mut |_, _| ()).unwrap()
}

pub(super) fn verified(sim: &Sim, shm_dir: Option<&Path>) -> inspect::Report {
    inspect::verify_on(sim, Path::new(DIR), shm_dir, &mut |_, _| ()).unwrap()
}

pub(super) fn values(log: &Log) -> Vec<Vec<u8>> {
    log.iter(log.first_offset()).map(|record| record.unwrap().value().to_vec()).collect()
}

/// Leaves everything as `SIGKILL` would: nothing is flushed, no mark is written, backings stay. The disk must be
/// rebooted.
pub(super) fn kill(log: Log) {
    std::mem::forget(log);
}

/// A log with ten records on the disk and fifteen in memory, whose process was killed.
pub(super) fn killed_with_memory(options: Options) -> Sim {
    let sim = Sim::new(1);
    let log = open(&sim, options).unwrap();
    for n in 0..10u64 {
        log.append(&n.to_le_bytes()).and_then(|at| log.wait_durable(at)).unwrap();
    }
    let disk = sim.snapshot();
    sim.hold(true);
    for n in 10..15u64 {
        log.append(&n.to_le_bytes()).unwrap(); // acknowledged in memory
    }
    kill(log);
    disk
}

/// Random bytes by `SplitMix64`.
pub(super) fn random(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = seed;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(z ^ z >> 31).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Changes a backing in place, because the killed log and threads that work for it may have it mapped.
pub(super) fn overwrite(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(bytes, 0)
        .unwrap();
}

/// All files below a directory, at any depth.
pub(super) fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| if entry.path().is_dir() { files_in(&entry.path()) } else { vec![entry.path()] })
        .collect()
}

/// The process died after index and footer were written, before the file was cut to size (`r1`): the old search took
/// positions in the index for headers and gave up, and recovery invented a record.
#[test]
fn a_crash_between_writing_index_and_footer_and_cutting_the_file_loses_nothing() {
    for (size, value) in [(256u64 << 10, 0usize), (1 << 20, 0), (1 << 20, 8), (4 << 20, 40)] {
        for format in [Secret(None), Secret(Some([5; 16]))] {
            let o = || options(size, size, 4 * size, None);
            let sim = Sim::new(1);
            let mut acknowledged = 0;
            if format.0.is_none() {
                // As the old code left it: a segment of format 1, and the next one begun.
                acknowledged = old_segment(&sim, size, value);
            } else {
                let log = open(&sim, o()).unwrap();
                let value = vec![7u8; value];
                let batch: Vec<&[u8]> = (0..1000).map(|_| &value[..]).collect();
                while log.shared.chain.load().segments.len() < 2 {
                    acknowledged = log.append_batch(&batch).unwrap() + 1000;
                    log.wait_durable(acknowledged - 1).unwrap();
                }
                log.close().unwrap();
            }
            let first = Path::new(FIRST);
            sim.damage(first, |bytes| bytes.resize(file::length(size) as usize, 0));
            let alone = sim.snapshot();
            assert_eq!(verified(&sim, None).damage, [], "{size} {value}");
            let log = open(&sim, o()).unwrap();
            assert_eq!((log.damage(), log.next_offset()), (&[][..], acknowledged), "{size} {value}");
            assert_eq!(log.append(b"on").unwrap(), acknowledged);
            log.close().unwrap();
            assert_eq!(verified(&sim, None).damage, []);
            assert_eq!(repaired(&sim).damage, []);
            // Nor is anything lost if the process died before the next segment was begun.
            for name in alone.dump().into_keys().filter(|name| name != first) {
                Disk::remove(&alone, &name).unwrap();
            }
            let records = verified(&alone, None).next;
            let log = open(&alone, o()).unwrap();
            assert_eq!((log.damage(), log.next_offset()), (&[][..], records));
            assert!(records > 0 && records <= acknowledged);
            log.append(b"on").unwrap();
        }
    }
}

/// Writes a full, sealed segment of format 1, and the next one, empty. Returns the number of records.
fn old_segment(sim: &Sim, size: u64, value: usize) -> u64 {
    let header = Header { log: LogId([3; 16]), base: 0, capacity: size, created: 9, secret: Secret(None) };
    let (chunk, value) = (Chunk::new(ChunkMemory::new(size).unwrap(), None), vec![7u8; value]);
    let meta = FrameMeta { key: header.key(), lead: 0, time: 1 };
    let mut records = 0;
    while let AppendOutcome::At(record) = chunk.append(Batch::new(&[&value[..]], size).unwrap(), None, meta) {
        records = u64::from(record) + 1;
    }
    let end = chunk.contiguous(ChunkPosition::default(), u32::MAX);
    Disk::create_dir(sim, Path::new(DIR)).unwrap();
    let file = SegmentFile::prepare(sim, Path::new(DIR), 0, size).unwrap();
    file.begin(sim, Path::new(DIR), &header).unwrap();
    file.write(&chunk, ChunkPosition::default(), end).unwrap();
    let found = scan::scan(chunk.bytes(0..end.words), header.key());
    sealed::seal(
        file.file(),
        &header,
        crate::segment::scan::Summary { words: end.words, ..found.summary() },
        found.positions.iter().copied(),
    )
    .unwrap();
    let next = SegmentFile::prepare(sim, Path::new(DIR), 1, size).unwrap();
    next.begin(sim, Path::new(DIR), &Header { base: records, ..header }).unwrap();
    records
}

/// The power fails at each operation of the simulated disk while a segment is sealed and cut (`r1b`).
#[test]
fn a_power_cut_while_tens_of_thousands_of_tiny_records_are_sealed_loses_nothing() {
    let o = || options(256 << 10, 256 << 10, 2 << 20, None);
    for fuse in 1..60 {
        let sim = Sim::new(fuse * 10);
        sim.cut_power_after(fuse);
        let mut acknowledged = 0;
        if let Ok(log) = open(&sim, o()) {
            let batch: Vec<&[u8]> = (0..2000).map(|_| &b"x"[..]).collect();
            for _ in 0..16 {
                let Ok(first) = log.append_batch(&batch) else { break };
                if log.wait_durable(first + 1999).is_err() {
                    break;
                }
                acknowledged = first + 2000;
            }
        }
        let log = open(&sim.reboot(), o()).unwrap_or_else(|error| panic!("fuse {fuse}: {error}"));
        assert_eq!(log.damage(), [], "fuse {fuse}");
        assert!(log.next_offset() >= acknowledged, "fuse {fuse}");
        log.append(b"on").unwrap();
    }
}

/// The power fails while a large value is written (`r2`): one of random bytes; and one of bytes that imitate headers
/// and frames of this very log, as far as the API reveals them.
#[test]
fn a_torn_large_value_is_a_torn_tail_whatever_its_bytes() {
    for (segment, value) in [(16u64 << 20, 1usize << 20), (1 << 20, 300 << 10)] {
        for seed in 0..6 {
            let o = || options(segment, segment, 4 * segment, None);
            let sim = Sim::new(seed);
            let log = open(&sim, o()).unwrap();
            for n in 0..10u64 {
                log.append(&n.to_le_bytes()).and_then(|at| log.wait_durable(at)).unwrap();
            }
            let bytes = if seed % 2 == 0 { random(value, seed) } else { imitation(&log, value) };
            sim.cut_power_after(1);
            let at = log.append(&bytes).unwrap();
            assert!(log.wait_durable(at).is_err());
            let live = sim.reboot();
            let kept_before = crate::stats().torn_ends_kept;
            let log = open(&live, o()).unwrap();
            let next = log.next_offset();
            assert_eq!(log.damage(), [], "{segment} {seed}");
            // It may have arrived as a whole.
            assert!(next == 10 || log.read(10).unwrap().unwrap().value() == bytes, "{segment} {seed}");
            assert_eq!(log.append(b"on").unwrap(), next);
            log.close().unwrap();
            let report = verified(&live, None);
            assert_eq!((report.damage, report.next), (vec![], next + 1));
            // What was cut off is kept: nobody could know that it was never acknowledged.
            assert!(
                report.torn.len() <= 1
                    && report.torn.iter().all(|path| path.to_string_lossy().ends_with(TORN))
            );
            assert!(report.torn.is_empty() || crate::stats().torn_ends_kept > kept_before, "it is counted");
        }
    }
}

/// Frames as they would be in the log's first segment if its key were derived from the log's id, as in format 1: frames
/// of later records, which say that everything before them is durable.
fn imitation(log: &Log, length: usize) -> Vec<u8> {
    let key = crate::frame::Key::version_1(log.id(), 0);
    let mut bytes = Vec::with_capacity(length);
    for record in 11.. {
        let start = bytes.len();
        if start + 32 > length {
            break;
        }
        bytes.resize(start + 32, 0);
        let stamp = crate::frame::Stamp { record, behind: 0, time: 0, flags: 0 };
        crate::frame::encode(&mut bytes[start..], key, stamp, b"a record");
    }
    bytes
}

/// One bit of a sealed segment's footer has rotted, and all records are kept; likewise one bit of its index.
#[test]
fn rot_in_a_footer_or_an_index_is_made_good_and_loses_nothing() {
    for (size, value) in [(8u64 << 20, 40usize), (256 << 10, 900), (256 << 10, 0)] {
        for rot in ["footer", "index", "last footer"] {
            let o = || options(size, size, 4 * size, None);
            let sim = Sim::new(1);
            let log = open(&sim, o()).unwrap();
            let value = vec![7u8; value];
            let batch: Vec<&[u8]> = (0..100).map(|_| &value[..]).collect();
            while log.shared.chain.load().segments.len() < 2 {
                log.append_batch(&batch).and_then(|at| log.wait_durable(at + 99)).unwrap();
            }
            let next = log.next_offset();
            let index = 4 * log.shared.chain.load().segments[1].header.base as usize;
            log.close().unwrap();
            if rot == "last footer" {
                let names: Vec<_> = sim.dump().into_keys().collect();
                names[1..].iter().for_each(|name| Disk::remove(&sim, name).unwrap());
            }
            sim.damage(Path::new(FIRST), |bytes| {
                let back = if rot == "index" { 4096 + index.next_multiple_of(4096) - 40 } else { 4096 - 33 };
                let at = bytes.len() - back;
                bytes[at] ^= 1;
            });
            assert_eq!(verified(&sim, None).damage.len(), 1, "{rot}");
            let log = open(&sim, o()).unwrap_or_else(|error| panic!("{rot}: {error}"));
            assert_eq!(log.damage(), [], "{rot}");
            if rot != "last footer" {
                assert_eq!(log.next_offset(), next);
            }
            assert_eq!(values(&log).len() as u64, log.next_offset());
            log.append(b"on").unwrap();
        }
    }
}

/// A record is found even if the index and an earlier frame are damaged.
#[test]
fn with_a_damaged_index_and_a_damaged_frame_all_other_records_are_served() {
    let sim = Sim::new(1);
    let log = open(&sim, small(None)).unwrap();
    for n in 0..200u8 {
        log.append(&[n; 100]).unwrap();
    }
    log.close().unwrap();
    sim.damage(Path::new(FIRST), |bytes| {
        bytes[4096 + 3 * 128 + 50] ^= 1;
        let index = bytes.len() - 8192;
        bytes[index + 4..index + 80].fill(0xFF);
    });
    let log = open(&sim, small(None)).unwrap();
    for offset in 0..200 {
        match log.read(offset) {
            Err(Error::Damaged { offset: 3 }) => assert_eq!(offset, 3),
            read => assert_eq!(read.unwrap().unwrap().value(), [offset as u8; 100]),
        }
    }
}

#[test]
fn a_header_with_a_broken_sector_is_restored_from_its_copy() {
    for at in [0, 9, 20, 70, 1024, 1100] {
        let sim = Sim::new(1);
        let log = open(&sim, small(None)).unwrap();
        log.append(b"alone in its segment").unwrap();
        log.close().unwrap();
        sim.damage(Path::new(FIRST), |bytes| bytes[at / 512 * 512..][..512].fill(0xEE));
        assert_eq!(verified(&sim, None).damage.len(), 1, "it is reported");
        let log = open(&sim, small(None)).unwrap();
        assert_eq!((log.damage(), values(&log)), (&[][..], vec![b"alone in its segment".to_vec()]));
        log.append(b"on").unwrap();
        log.close().unwrap();
        assert_eq!(verified(&sim, None).damage, []);
    }
}

/// A second segment file starts before the first one ends: it has another history, and was copied here. The whole log
/// used to be refused.
#[test]
fn a_segment_with_more_records_than_the_next_leaves_room_for_is_damage_and_the_rest_is_served() {
    let sim = Sim::new(1);
    let log = open(&sim, small(None)).unwrap();
    for n in 0..20u8 {
        log.append(&[n; 100]).unwrap();
    }
    log.close().unwrap();
    let bytes = sim.dump()[Path::new(FIRST)].clone();
    let header = Header::decode(bytes[..].first_chunk().unwrap()).unwrap().header;
    let next = SegmentFile::prepare(&sim, Path::new(DIR), 1, 8192).unwrap();
    next.begin(&sim, Path::new(DIR), &Header { base: 15, ..header }).unwrap();
    let log = open(&sim, small(None)).unwrap();
    assert!(log.damage()[0].reason.contains("more records than the segment after it"), "{:?}", log.damage());
    assert_eq!(values(&log).len(), 15);
    drop(log);
    repaired(&sim);
    let log = open(&sim, small(None)).unwrap();
    assert_eq!(log.append(b"on").unwrap(), 15);
}

/// Nothing of a batch's torn end counts, even if there is damage before it.
#[test]
fn after_damage_only_durable_records_count_as_lost() {
    let sim = Sim::new(7);
    let log = open(&sim, options(64 << 10, 64 << 10, 512 << 10, None)).unwrap();
    for n in 0..10u8 {
        log.append(&[n; 100]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    sim.cut_power_after(1);
    let torn: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n; 100]).collect();
    let torn: Vec<&[u8]> = torn.iter().map(|value| &value[..]).collect();
    let at = log.append_batch(&torn).unwrap();
    assert!(log.wait_durable(at).is_err());
    let live = sim.reboot();
    live.damage(Path::new(FIRST), |bytes| bytes[4096 + 3 * 128 + 50] ^= 1);
    let log = open(&live, options(64 << 10, 64 << 10, 512 << 10, None)).unwrap();
    assert_eq!(log.damage()[0].offsets, 3..4);
    assert!(log.next_offset() == 10 || log.next_offset() == 110, "{}", log.next_offset());
}

/// A process was killed between `pwrite` and `fdatasync`: what was only in the page cache was taken to be durable
/// (`r17`), and lost with the power.
#[test]
fn what_recovery_finds_is_synced_before_it_is_called_durable() {
    let mut found_in_cache = 0;
    for seed in 0..30 {
        for steps in 1..4 {
            let sim = Sim::new(seed);
            sim.set_mode(Mode::Buffered);
            let log = open(&sim, small(None)).unwrap();
            sim.end_after(steps, Cut::Kill); // before the write, before its sync, or after that
            let acknowledged = log.append(b"in the page cache").and_then(|at| log.wait_durable(at)).is_ok();
            let killed = sim.after(Cut::Kill);
            drop(log);
            let log = open(&killed, small(None)).unwrap();
            let durable = log.durable_offset();
            found_in_cache += u32::from(durable > 0 && !acknowledged);
            let rebooted = killed.reboot();
            drop(log);
            let log = open(&rebooted, small(None)).unwrap();
            assert_eq!((log.damage(), log.next_offset()), (&[][..], durable), "seed {seed}, step {steps}");
        }
    }
    assert!(found_in_cache > 30, "{found_in_cache}");
}

/// After an unclean stop, rot in the last commit's acknowledged records cannot be told from a torn end: it is cut off,
/// and kept.
#[test]
fn a_torn_end_is_kept_aside_within_bounds_and_reported() {
    let disk = Sim::new(1);
    for n in 0..20u64 {
        let log = open(&disk, small(None)).unwrap();
        let next = log.next_offset();
        log.close().unwrap();
        let path =
            disk.dump().into_keys().rfind(|path| path.extension().is_some_and(|e| e == "seg")).unwrap();
        let end = verified(&disk, None).next;
        assert_eq!(end, next);
        disk.damage(&path, |bytes| bytes[4096 + 512..4096 + 1024].fill(n as u8 + 1));
        let log = open(&disk, small(None)).unwrap();
        assert_eq!((log.damage(), log.next_offset()), (&[][..], next));
        log.close().unwrap();
        let torn = verified(&disk, None).torn;
        assert_eq!(torn.len() as u64, (n + 1).min(8));
        let kept = &disk.dump()[torn.last().unwrap()];
        assert_eq!(kept[512..], [n as u8 + 1; 512], "the newest is kept");
    }
}

/// A bit flips anywhere in any file of a log. Every record served is what was appended; lost records are reported, and
/// only what can be lost is: nothing if the bit is in a header, an index or a footer, and one record if it is in its
/// frame.
#[test]
fn a_flipped_bit_anywhere_in_a_segment_loses_at_most_the_record_that_it_is_in() {
    let sim = Sim::new(1);
    let log = open(&sim, small(None)).unwrap();
    let value = |n: u64| vec![n as u8; (n * 37 % 290) as usize];
    for n in 0..90 {
        log.append(&value(n)).and_then(|at| log.wait_durable(at)).unwrap();
    }
    log.close().unwrap();
    let files = sim.dump();
    assert!(files.len() > 2);
    for (path, bytes) in files {
        let frames = 4096..4096 + scan_of(&bytes).words as usize * 8;
        for at in (0..84).chain(512..524).chain((84..bytes.len()).step_by(29)) {
            let sim = sim.snapshot();
            sim.damage(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            let log =
                open(&sim, small(None)).unwrap_or_else(|error| panic!("{}: {at}: {error}", path.display()));
            let lost = (0..90).filter(|&offset| match log.read(offset) {
                Err(Error::Damaged { .. }) => true,
                read => {
                    assert_eq!(read.unwrap().unwrap().value(), value(offset), "{}: {at}", path.display());
                    false
                }
            });
            let lost = lost.count();
            assert_eq!(lost, usize::from(frames.contains(&at)), "{}: {at}", path.display());
            assert_eq!(log.next_offset(), 90);
            if lost == 0 {
                assert_eq!(log.append(b"on").unwrap(), 90);
            }
            drop(log);
            repaired(&sim);
            assert!(open(&sim, small(None)).unwrap().append(b"on").unwrap() >= 90);
        }
    }
}

pub(super) fn scan_of(bytes: &[u8]) -> scan::Scan {
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap().header;
    scan::scan(&bytes[4096..], header.key())
}

/// Looking for frames in a torn end took as long as its bytes made it. The bounds are ten times what it takes
/// (`docs/performance.md`), because other tests run beside.
#[test]
fn opening_takes_no_longer_whatever_follows_the_last_record() {
    use std::{
        os::unix::fs::FileExt,
        time::{Duration, Instant},
    };
    const SEGMENT: usize = 64 << 20;
    let o = options(SEGMENT as u64, SEGMENT as u64, 4 * SEGMENT as u64, None);
    let opened_after = |torn: &dyn Fn(&Log) -> Vec<u8>| {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), o.clone()).unwrap();
        for n in 0..10u64 {
            log.append(&n.to_le_bytes()).unwrap();
        }
        let torn = torn(&log);
        log.close().unwrap();
        let file =
            std::fs::File::options().write(true).open(dir.path().join(Path::new(FIRST).file_name().unwrap()));
        file.unwrap().write_all_at(&torn, 4096 + 10 * 32).unwrap();
        let begun = Instant::now();
        let log = Log::open(dir.path(), o.clone()).unwrap();
        let took = begun.elapsed();
        assert_eq!((log.damage(), log.next_offset()), (&[][..], 10));
        took
    };
    let length = SEGMENT - 10 * 32;
    let zeros = opened_after(&|_| vec![0; length]);
    for (what, torn) in [
        ("random bytes", &(|_: &Log| random(length, 1)) as &dyn Fn(&Log) -> Vec<u8>),
        ("frames as a client can make them", &|log| imitation(log, length)),
    ] {
        let took = opened_after(torn);
        println!("{what}: {took:?}, zeros: {zeros:?}");
        assert!(took < (10 * zeros).max(Duration::from_secs(1)), "{what}: {took:?}, zeros: {zeros:?}");
    }
}
