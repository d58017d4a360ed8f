//! Directories as the code of format 1 left them.

use super::{DIR, FIRST, files_in, open, options, random, values};
use crate::{
    Durability, LogId, Options,
    chunk::BackingDir,
    disk::{Disk, sim::Sim},
    frame::{self, Stamp},
    segment::{
        FRAMES_AT,
        file::SegmentFile,
        header::{Header, Secret},
    },
};
use std::{os::unix::fs::PermissionsExt, path::Path};

const SEGMENT: u64 = 8 << 10;

fn header(base: u64) -> Header {
    Header { log: LogId([3; 16]), base, capacity: SEGMENT, created: 1_700_000_000_000, secret: Secret(None) }
}

/// Frames of these values, from a record of the segment on.
fn frames(header: &Header, first: u32, values: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (record, value) in (first..).zip(values) {
        let at = bytes.len();
        bytes.resize(at + frame::in_bytes(frame::words(value.len())), 0);
        let stamp = Stamp { record, behind: 0, time: 1, flags: 0 };
        frame::encode(&mut bytes[at..], header.key(), stamp, value);
    }
    bytes
}

/// Begins a segment whose file has these frames.
fn segment(sim: &Sim, header: &Header, frames: &[u8]) {
    let dir = Path::new(DIR);
    let _ = Disk::create_dir(sim, dir);
    let file = SegmentFile::prepare(sim, dir, 0, header.capacity).unwrap();
    file.begin(sim, dir, header).unwrap();
    let at = FRAMES_AT as usize;
    sim.damage(Path::new(FIRST), |bytes| bytes[at..at + frames.len()].copy_from_slice(frames));
}

/// Leaves a backing of the first format, as a killed process did.
fn backing(at: &Path, number: u32, header: &Header, frames: &[u8]) {
    let dir = BackingDir::open(&*crate::disk::native(), at, header.log, Path::new(DIR), (0, 0)).unwrap();
    let path = dir.path(&format!("4711-{number}"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let private = std::fs::Permissions::from_mode(0o700);
    for dir in path.ancestors().skip(1).take_while(|dir| *dir != at) {
        std::fs::set_permissions(dir, private.clone()).unwrap();
    }
    let mut bytes = vec![0; 4096 + SEGMENT as usize];
    bytes[..8].copy_from_slice(b"MILLIMG1");
    bytes[8..24].copy_from_slice(header.log.as_bytes());
    bytes[24..28].copy_from_slice(&(DIR.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..28]), DIR.as_bytes());
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    bytes[128..128 + DIR.len()].copy_from_slice(DIR.as_bytes());
    bytes[64..72].copy_from_slice(&header.base.to_le_bytes());
    bytes[72..80].copy_from_slice(&header.capacity.to_le_bytes());
    bytes[80..88].copy_from_slice(&header.created.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[64..88]);
    bytes[88..92].copy_from_slice(&crc.to_le_bytes());
    bytes[4096..4096 + frames.len()].copy_from_slice(frames);
    std::fs::write(path, bytes).unwrap();
}

/// A torn end was cut off in the file and kept in the image, where it follows what was appended since; then the process
/// was killed (`r3`, `r11`). Where the next segment begins shows which records were never appended there.
#[test]
fn what_was_acknowledged_is_there_where_old_code_left_a_torn_end_in_memory() {
    let (kept, stale, large) = ([0x22; 100], [0xEE; 100], [0x33; 7000]);
    for (on_disk, next) in [(16, true), (12, true), (16, false)] {
        let (sim, at) = (Sim::new(1), tempfile::tempdir_in("/dev/shm").unwrap());
        let whole = frames(&header(0), 0, &[&kept[..]; 16]);
        segment(&sim, &header(0), &whole[..whole.len() / 16 * on_disk]);
        let torn = frames(&header(0), 16, &[&stale[..]; 14]);
        backing(at.path(), 0, &header(0), &[&whole[..], &torn].concat());
        if next {
            backing(at.path(), 1, &header(16), &frames(&header(16), 0, &[&large[..]]));
        }
        let options = Options {
            durability: Durability::Memory,
            ..options(SEGMENT, SEGMENT, 8 * SEGMENT, Some(at.path()))
        };
        let log = open(&sim, options.clone()).unwrap();
        assert_eq!(log.damage(), []);
        let found = values(&log);
        assert!(found.len() >= 16 && found[..16].iter().all(|value| value == &kept));
        if next {
            assert_eq!(found.len(), 17, "{on_disk}");
            assert_eq!(found[16], large);
        }
        let end = found.len() as u64;
        assert_eq!(log.append(b"on").unwrap(), end);
        log.close().unwrap();
        assert_eq!(open(&sim, options).unwrap().next_offset(), end + 1);
        assert_eq!(files_in(at.path()), Vec::<std::path::PathBuf>::new(), "all of it is on the disk");
    }
}

/// Memory of an older process, which no opening had taken up, begins within the records of a newer one. They were cut off
/// where it begins, and its records took their places.
#[test]
fn memory_of_an_older_process_does_not_cut_off_what_a_newer_one_has_acknowledged() {
    let (acknowledged, other) = ([0x22; 100], [0x44; 100]);
    for on_disk in [0, 3, 5, 9] {
        let (sim, at) = (Sim::new(1), tempfile::tempdir_in("/dev/shm").unwrap());
        let older = Header { created: header(0).created - 1000, ..header(5) };
        backing(at.path(), 0, &older, &frames(&older, 0, &[&other[..]; 2]));
        let whole = frames(&header(0), 0, &[&acknowledged[..]; 16]);
        segment(&sim, &header(0), &whole[..whole.len() / 16 * on_disk]);
        backing(at.path(), 1, &header(0), &whole);
        let options = Options {
            durability: Durability::Memory,
            ..options(SEGMENT, SEGMENT, 8 * SEGMENT, Some(at.path()))
        };
        let log = open(&sim, options).unwrap();
        assert_eq!(log.damage(), []);
        assert_eq!(values(&log), vec![acknowledged; 16], "{on_disk}");
        assert_eq!(files_in(at.path()).len(), 2, "the older one stays, and the log has one of its own");
    }
}

/// The power failed in a large value of random bytes, in a segment of the first format (`r2`).
#[test]
fn a_torn_large_value_of_format_1_is_a_torn_tail() {
    const LARGE: usize = 300 << 10;
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let header = Header { capacity: 1 << 20, ..header(0) };
        let (small, value) = (frames(&header, 0, &[&b"small"[..]; 10]), random(LARGE, seed));
        let torn = frames(&header, 10, &[&value]);
        segment(&sim, &header, &[&small[..], &torn].concat());
        // A sector that did not arrive.
        let lost = FRAMES_AT as usize + small.len() + random(1, seed)[0] as usize * 1024;
        sim.damage(Path::new(FIRST), |bytes| bytes[lost..lost + 512].fill(0));
        let log = open(&sim, options(1 << 20, 1 << 20, 4 << 20, None)).unwrap();
        assert_eq!((log.damage(), log.next_offset()), (&[][..], 10), "{seed}");
        assert_eq!(log.append(b"on").unwrap(), 10);
        log.close().unwrap();
    }
}
