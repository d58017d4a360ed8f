//! What programs that have a log inside need of it: checkpoints, batches from iterators, reading backward, figures.

use super::*;
use crate::disk::gate::{Gate, Operation};
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
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
        assert_eq!(log.append_wait_durable(b"checkpoint").unwrap(), from);
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
    log.append_wait_durable(b"c").unwrap();
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

/// The segment that opening begins has no record, and is as old as the opening.
#[test]
fn the_newest_time_is_that_of_a_record_also_after_opening() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    log.append_wait_durable(b"one").unwrap();
    let time = log.read(0).unwrap().unwrap().time();
    log.roll().unwrap();
    let rolled = super::super::environment::now(); // a segment may say that it is younger than its records
    let is_right =
        |log: &Log| log.stats().newest_time.is_some_and(|newest| (time..=rolled).contains(&newest));
    assert!(is_right(&log), "{time} {rolled} {:?}", log.stats());
    log.close().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let log = open(&sim).unwrap();
    assert!(is_right(&log), "{time} {rolled} {:?}", log.stats());
}

/// A record that came between its two looks at the active chunk made it wait for a segment that nobody had ended.
#[test]
fn rolling_returns_while_others_append() {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    let (rolls, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                log.roll().unwrap();
                rolls.fetch_add(1, SeqCst);
            }
        });
        let mut appended = 0u64;
        while begun.elapsed() < Duration::from_millis(1500) {
            log.append(&[1; 10]).unwrap();
            appended += 1;
            let (before, at) = (rolls.load(SeqCst), Instant::now());
            while rolls.load(SeqCst) < before + 3 {
                if at.elapsed() > Duration::from_secs(20) {
                    log.append_batch_from([[1; 10]; 200]).unwrap(); // so that it ends
                    over.store(true, SeqCst);
                    panic!("it waits, after {appended} appends");
                }
                std::thread::yield_now();
            }
            for _ in 0..(appended * 7919) % 997 {
                std::hint::spin_loop();
            }
        }
        over.store(true, SeqCst);
    });
}

/// A disk, and an action that is done once, when the segment with this base is opened.
fn acting_on(sim: Sim, act: impl Fn() + Send + Sync + 'static) -> (Arc<Gate>, Arc<AtomicU64>) {
    let armed = Arc::new(AtomicU64::new(u64::MAX));
    let at = Arc::clone(&armed);
    let gate = Gate::new(Arc::new(sim), move |operation, path| {
        let base = path.file_name().and_then(|name| name.to_str()).and_then(crate::segment::file::base_of);
        let is_it = operation == Operation::Open && base.is_some();
        if is_it && at.compare_exchange(base.unwrap(), u64::MAX, SeqCst, SeqCst).is_ok() {
            act();
        }
        Ok(())
    });
    (gate, armed)
}

/// What had been read ahead came after records that were gone, without an error.
#[test]
fn what_is_trimmed_while_a_log_is_read_backward_is_an_error_and_not_a_gap() {
    let shared = Arc::<std::sync::OnceLock<Arc<Shared>>>::default();
    let to = Arc::new(AtomicU64::new(0));
    let (gate, armed) = acting_on(Sim::new(1), {
        let (shared, to) = (Arc::clone(&shared), Arc::clone(&to));
        move || {
            shared.get().unwrap().trim(to.load(SeqCst)).unwrap();
        }
    });
    let log = Log::open_on(gate, Path::new(DIR), small()).unwrap();
    assert!(shared.set(Arc::clone(&log.shared)).is_ok());
    for _ in 0..3000 {
        log.append(&[1; 60]).unwrap();
    }
    log.roll().unwrap();
    let bases: Vec<u64> =
        log.shared.chain.load_full().segments.iter().map(|segment| segment.base()).collect();
    let mut iter = log.iter_range(0..2000);
    let mut last = 2000;
    for _ in 0..1023 {
        last -= 1;
        assert_eq!(iter.next_back().unwrap().unwrap().offset(), last);
    }
    // What is read next are the 256 records before: when it comes to the second segment of these, that is trimmed.
    let second = bases.iter().position(|&base| base > last - 256).unwrap();
    assert!(bases[second + 1] < last);
    to.store(bases[second + 1], SeqCst);
    armed.store(bases[second], SeqCst);
    let error = loop {
        match iter.next_back().unwrap() {
            Ok(record) => {
                last -= 1;
                assert_eq!(record.offset(), last);
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Trimmed { .. }), "{error}");
    assert_eq!(last, bases[second + 1], "what is left was read");
}

/// After small records, 256 large ones were read to return one.
#[test]
fn reading_backward_reads_little_ahead_where_large_records_precede_small_ones() {
    let reads = Arc::new(AtomicU64::new(0));
    let gate = Gate::new(Arc::new(Sim::new(1)), {
        let reads = Arc::clone(&reads);
        move |operation, _| {
            reads.fetch_add(u64::from(operation == Operation::Read), SeqCst);
            Ok(())
        }
    });
    let options =
        Options { segment_bytes: 1 << 20, first_segment_bytes: 1 << 20, memory_bytes: 4 << 20, ..small() };
    let log = Log::open_on(gate, Path::new(DIR), options).unwrap();
    let (large, little) = (300, 600);
    for _ in 0..large {
        log.append(&vec![1; 64 << 10]).unwrap();
    }
    log.roll().unwrap();
    for _ in 0..little {
        log.append(&[2; 1]).unwrap();
    }
    log.roll().unwrap();
    let mut iter = log.iter_range(..);
    let mut max = 0;
    for n in 0..large + little {
        let before = reads.load(SeqCst);
        let record = iter.next_back().unwrap().unwrap();
        assert_eq!(
            (record.offset(), record.value()[0]),
            (large + little - 1 - n, if n < little { 2 } else { 1 })
        );
        max = max.max(reads.load(SeqCst) - before);
    }
    assert!(max < 60, "{max} reads for one record");
}
