//! Logs that are repaired, and go on: segments of which little or nothing is left.

use super::{open, options, repaired, verified};
use crate::{Log, Options, Retention, disk::sim::Sim};
use std::path::Path;

const SECOND: &str = "/log/00000000000000000050.seg";

pub(super) fn large() -> Options {
    options(1 << 20, 1 << 20, 8 << 20, None)
}

fn value(n: u64) -> Vec<u8> {
    vec![n as u8; 1000]
}

fn fill(log: &Log, range: std::ops::Range<u64>) {
    for n in range {
        let at = log.append(&value(n)).unwrap();
        assert_eq!(at, n);
        log.wait_durable(at).unwrap();
    }
}

/// A sealed segment of fifty records, and an open one without any.
fn log_whose_last_segment_is_empty() -> Sim {
    let sim = Sim::new(1);
    let log = open(&sim, large()).unwrap();
    fill(&log, 0..50);
    log.close().unwrap();
    // The first segment is too large for these options: it is sealed, and the next one is begun.
    open(&sim, options(1 << 15, 1 << 15, 8 << 20, None)).unwrap().close().unwrap();
    assert!(sim.dump().contains_key(Path::new(SECOND)));
    sim
}

/// After `repair`, the chain had two segments of one base: trimming the empty one removed the file that was being written.
fn an_empty_segment_is_harmed_and_repaired(harm: impl FnOnce(&mut Vec<u8>), trim: impl FnOnce(&Log)) {
    let sim = log_whose_last_segment_is_empty();
    sim.damage(Path::new(SECOND), harm);
    let log = open(&sim, large()).unwrap();
    assert!(!log.damage().is_empty());
    drop(log);
    repaired(&sim);
    assert_eq!(verified(&sim, None).damage, []);
    let log = open(&sim, large()).unwrap();
    fill(&log, 50..60);
    trim(&log);
    let there = sim.dump().contains_key(Path::new(SECOND));
    fill(&log, 60..70);
    log.close().unwrap();
    let log = open(&sim, large()).unwrap();
    assert!(
        there && log.next_offset() == 70,
        "the file being written is there: {there}; acknowledged as durable: 70, there are {}..{}, id {:?}",
        log.first_offset(),
        log.next_offset(),
        log.id()
    );
}

#[test]
fn an_empty_segment_without_a_byte_is_repaired_and_trimming_keeps_its_successor() {
    an_empty_segment_is_harmed_and_repaired(Vec::clear, |log| {
        log.trim(50).unwrap();
    });
}

#[test]
fn an_empty_segment_that_was_cut_is_repaired_and_trimming_keeps_its_successor() {
    an_empty_segment_is_harmed_and_repaired(
        |bytes| bytes.truncate(4096),
        |log| {
            log.trim(50).unwrap();
        },
    );
}

#[test]
fn an_empty_segment_without_its_header_is_repaired_and_retention_keeps_its_successor() {
    an_empty_segment_is_harmed_and_repaired(
        |bytes| bytes[..4096].fill(0),
        |log| {
            log.retain(Retention::default().with_bytes(1000)).unwrap();
        },
    );
}

/// Each batch has three records. Segments at 0, 60 and 120.
pub(super) fn log_of_batches() -> Sim {
    let sim = Sim::new(1);
    let log = open(&sim, large()).unwrap();
    for segment in 0..3 {
        for _ in 0..20 {
            log.append_batch(&[&[segment; 100], &[segment; 100], &[segment; 100]]).unwrap();
        }
        if segment < 2 {
            assert_eq!(log.roll().unwrap(), 60 * (u64::from(segment) + 1));
        }
    }
    log.flush().unwrap();
    log.close().unwrap();
    sim
}

fn opens(sim: &Sim) {
    let log = open(sim, large()).unwrap();
    assert_eq!(log.damage(), []);
    let next = log.next_offset();
    assert_eq!(log.append(b"on").unwrap(), next);
    log.close().unwrap();
}

/// After `repair`, opening panicked each time.
#[test]
fn a_segment_that_was_cut_within_a_batch_is_repaired_and_opens() {
    let sim = log_of_batches();
    sim.damage(Path::new("/log/00000000000000000060.seg"), |bytes| bytes.truncate(4096 + 4 * 128));
    assert!(!open(&sim, large()).unwrap().damage().is_empty());
    repaired(&sim);
    assert_eq!(verified(&sim, None).damage, []);
    opens(&sim);
    let log = open(&sim, large()).unwrap();
    // Of the batch in which it was cut, one record was whole.
    let is_lost = |offset: &u64| log.read(*offset).unwrap().unwrap().is_lost();
    assert_eq!((0..180).filter(is_lost).collect::<Vec<_>>(), (64..120).collect::<Vec<_>>());
}

/// The last frame still said that its batch goes on, and without a footer the segment was damaged again.
#[test]
fn the_footer_of_a_segment_that_was_cut_within_a_batch_and_repaired_may_rot() {
    let sim = log_of_batches();
    let path = Path::new("/log/00000000000000000120.seg");
    sim.damage(path, |bytes| {
        bytes[512..1024].fill(0); // no mark: it was killed
        bytes.truncate(4096 + 4 * 128);
    });
    repaired(&sim);
    opens(&sim);
    sim.damage(path, |bytes| {
        let at = bytes.len() - 4096 + 33;
        bytes[at] ^= 1;
    });
    opens(&sim);
}

/// What fills a gap took its name, and nothing was left of it.
#[test]
fn a_segment_that_was_cut_within_its_first_record_is_kept_aside() {
    let sim = log_of_batches();
    let path = Path::new("/log/00000000000000000060.seg");
    sim.damage(path, |bytes| bytes.truncate(4096 + 100));
    let before = sim.dump()[path].clone();
    let repaired = repaired(&sim);
    opens(&sim);
    let dump = sim.dump();
    assert!(repaired.kept.iter().any(|kept| dump.get(kept) == Some(&before)), "{repaired:?}");
}
