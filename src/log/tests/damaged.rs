//! What reading records costs that are damaged, or that a damaged index does not lead to.

use super::{DIR, Sim};
use crate::{
    log::{Log, Options},
    segment::sealed,
};
use std::{path::Path, sync::Arc};

const SEGMENT: &str = "/log/00000000000000000000.seg";
/// Records of 32 bytes with their headers: more than a segment has room for, so that the first one is sealed.
const RECORDS: usize = 150_000;

fn open(sim: &Sim) -> Log {
    let options = Options {
        segment_bytes: 4 << 20,
        first_segment_bytes: 4 << 20,
        memory_bytes: 64 << 20,
        shm_dir: None,
        ..Options::default()
    };
    Log::open_on(Arc::new(sim.clone()), Path::new(DIR), options).unwrap()
}

/// Operations of the disk, and bytes that were read, since tracing began.
fn read(sim: &Sim) -> (usize, usize) {
    let trace = sim.take_trace();
    let reads = trace.lines().filter_map(|line| line.split_once(" read "));
    let bytes: usize = reads.filter_map(|(_, of)| of.rsplit(' ').next()?.parse::<usize>().ok()).sum();
    (trace.lines().count(), bytes)
}

/// For each of them all frames of the segment were read and searched, and the disk was asked for the unreadable ones
/// one by one.
#[test]
fn all_frames_of_a_segment_are_looked_at_once_whatever_does_not_verify() {
    const LOST: u64 = 32_640;
    for what in ["a bit", "a sector", "a sector of the index"] {
        let sim = Sim::new(1);
        let log = open(&sim);
        for _ in 0..RECORDS / 1000 {
            log.append_batch(&[&[7; 8][..]; 1000]).unwrap();
        }
        log.close().unwrap();
        let file = &sim.dump()[Path::new(SEGMENT)];
        let footer: [u8; 40] = *file[file.len() - 4096..].first_chunk().unwrap();
        let words = u32::from_le_bytes(footer[36..].try_into().unwrap());
        let (from, at) = match what {
            "a sector of the index" => (0, sealed::index_at(words) as usize),
            _ => (LOST, 4096 + LOST as usize * 32),
        };
        match what {
            "a bit" => sim.damage(Path::new(SEGMENT), |bytes| bytes[at + 20] ^= 1),
            _ => sim.spoil_at(Path::new(SEGMENT), at),
        }
        let log = open(&sim);
        assert_eq!(log.damage(), [], "{what}");
        sim.begin_trace();
        let mut good = 0;
        for offset in (from..from + 16).cycle().take(64) {
            good += usize::from(log.read(offset).is_ok());
        }
        let mut reader = log.reader(from);
        while reader.offset() < from + 16 {
            let at = reader.offset();
            match reader.read_next() {
                Ok(_) => good += 1,
                Err(_) => reader.seek(at + 1),
            }
        }
        let (operations, bytes) = read(&sim);
        println!("{what}: {good} of 80 read, {operations} operations, {bytes} bytes");
        let expected = match what {
            "a bit" => 15 * 5,
            "a sector" => 0,
            _ => 16 * 5,
        };
        assert_eq!(good, expected, "{what}");
        assert!(operations < 272 + 80 * 6 + 272 && bytes < 3 * RECORDS * 32, "{what}: {operations}, {bytes}");
        // As soon as it can be read again, it is.
        sim.heal();
        if what != "a bit" {
            assert_eq!(log.read(from + 3).unwrap().unwrap().value(), [7; 8], "{what}");
        }
    }
}
