//! What programs that have a log inside need of it: checkpoints, batches from iterators, reading backward, figures.

use super::*;
use crate::disk::gate::{Gate, Operation};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

#[test]
fn a_checkpoint_that_rolls_frees_everything_before_it() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    assert_eq!((log.roll().unwrap(), log.roll().unwrap()), (0, 0), "nothing to end");
    for n in 1..=3 {
        log.append_batch_from((0..10).map(|n| vec![n; 50])).unwrap();
        let from = log.roll().unwrap();
        assert_eq!((from, log.durable_offset()), (11 * n - 1, from));
        assert_eq!(log.append_wait(b"checkpoint").unwrap(), from);
        assert_eq!(log.trim(from).unwrap(), from, "all before the checkpoint is dropped");
        assert_eq!(log.stats().segments, 1);
    }
    log.close().unwrap();
    assert_eq!(values(&open(&sim).unwrap()), [b"checkpoint"]);
}

/// Values are asked for their bytes before anything is reserved: here each of them appends to the same log.
#[test]
fn batches_come_from_any_iterator_and_run_none_of_its_code_after_reserving() {
    struct Appends<'a>(&'a Log, AtomicUsize);
    impl AsRef<[u8]> for Appends<'_> {
        fn as_ref(&self) -> &[u8] {
            if self.1.fetch_add(1, SeqCst) == 0 {
                self.0.append(b"first").unwrap();
            }
            b"x"
        }
    }
    let log = open(&Sim::new(1)).unwrap();
    let first = log.append_batch_from((0..3).map(|_| Appends(&log, AtomicUsize::new(0)))).unwrap();
    assert_eq!((first, log.next_offset()), (3, 6));
    log.flush().unwrap();
    assert_eq!(values(&log)[3..], [b"x"; 3]);
    assert!(matches!(log.append_batch_from(None::<&str>), Err(Error::EmptyBatch)));
    assert_eq!(log.try_append_batch_from(["a", "b"]).unwrap(), 6);
}

#[test]
fn records_are_read_from_both_ends_each_once_wherever_they_are() {
    let sim = Sim::new(1);
    let reads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reads);
    let gate = Gate::new(Arc::new(sim), move |operation, _| {
        count.fetch_add(usize::from(operation == Operation::Read), SeqCst);
        Ok(())
    });
    let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
    let count = 3000u64;
    for n in 0..count {
        log.append(&vec![n as u8; n as usize * 37 % 290]).unwrap();
    }
    log.flush().unwrap();
    let offsets = |records: &mut dyn Iterator<Item = Result<Record, Error>>| -> Vec<u64> {
        records
            .map(|record| record.unwrap())
            .inspect(|record| {
                let n = record.offset();
                assert_eq!(record.value(), vec![n as u8; n as usize * 37 % 290]);
            })
            .map(|record| record.offset())
            .collect()
    };
    let all: Vec<u64> = (0..count).collect();
    let backward: Vec<u64> = all.iter().rev().copied().collect();
    let before = reads.load(SeqCst);
    assert_eq!(offsets(&mut log.iter(0).rev()), backward);
    let (once, segments) = (reads.load(SeqCst) - before, log.stats().segments as usize);
    assert!(once < 12 * segments, "{once} reads of {segments} segments");
    assert_eq!(offsets(&mut log.iter_range(..)), all);
    assert_eq!(offsets(&mut log.iter_range(7..=9)), [7, 8, 9]);
    assert_eq!(offsets(&mut log.iter_range(7..9).rev()), [8, 7]);
    assert_eq!(offsets(&mut log.iter_range(count - 1..u64::MAX).rev()), [count - 1]);
    assert!(log.iter_range(9..9).next_back().is_none() && log.iter_range(count..).next().is_none());

    let mut both = log.iter_range(100..1100);
    let (mut front, mut back) = (Vec::new(), Vec::new());
    while let Some(record) = both.next() {
        front.push(record.unwrap().offset());
        back.extend(both.next_back().map(|record| record.unwrap().offset()));
    }
    back.reverse();
    assert_eq!([front, back].concat(), all[100..1100]);

    // What is trimmed ends it, with an error that says so.
    let first = log.trim(1000).unwrap();
    let mut left = log.iter_range(0..first + 2).rev();
    assert_eq!(left.next().unwrap().unwrap().offset(), first + 1);
    assert_eq!(left.next().unwrap().unwrap().offset(), first);
    assert!(matches!(left.next(), Some(Err(Error::Trimmed { .. }))));
    assert!(left.next().is_none());
}

#[test]
fn the_figures_of_a_log_are_its_own_and_since_it_was_opened() {
    let begun = super::super::environment::now(); // times may be of the moment at which the log was opened
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    assert_eq!((log.stats().newest_time, log.stats().appended_records), (None, 0));
    log.append_batch_from(["a", "b"]).unwrap();
    log.flush().unwrap();
    log.close().unwrap();
    let log = open(&sim).unwrap();
    log.append_wait(b"c").unwrap();
    let stats = log.stats();
    assert_eq!((stats.appended_records, stats.committed_bytes), (1, 32));
    assert_eq!(
        (stats.first_offset, stats.durable_offset, stats.visible_offset, stats.next_offset),
        (0, 3, 3, 3)
    );
    assert_eq!((stats.segments, stats.disk_bytes), (1, log.disk_bytes()));
    assert_eq!(stats.chunk_bytes, crate::chunk::ChunkMemory::footprint(4096));
    let newest = stats.newest_time.unwrap();
    assert!((begun..=super::super::environment::now()).contains(&newest), "{newest}");
}
