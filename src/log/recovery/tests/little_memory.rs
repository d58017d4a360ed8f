//! Opening a log when other logs have taken the budget.

use super::{DIR, open, options};
use crate::{
    Error, Log, LogId, Options,
    disk::{
        Disk,
        sim::{Cut, Sim},
    },
    log::{Environment, budget::Budget},
    segment::{
        file::SegmentFile,
        header::{Header, Secret},
    },
};
use std::{path::Path, sync::Arc};

const LIMIT: u64 = 3 << 17;

fn small() -> Options {
    options(1 << 16, 4 << 10, LIMIT, None)
}

/// Opens the log while other logs have all the memory.
fn open_within(sim: &Sim, budget: &Arc<Budget>) -> Result<Log, Error> {
    Log::open_within(&Environment::on(Arc::new(sim.clone())), budget, Path::new(DIR), small(), Arc::new(()))
}

fn segments(sim: &Sim) -> Vec<std::path::PathBuf> {
    sim.dump().into_keys().filter(|path| path.extension().is_some_and(|end| end == "seg")).collect()
}

/// Each opening sealed the segment that the last one had begun, however small it was.
#[test]
fn opening_in_little_memory_does_not_begin_a_segment_each_time() {
    let sim = Sim::new(1);
    open(&sim, small()).unwrap().close().unwrap();
    let budget = Budget::new(LIMIT);
    let others = budget.share(false);
    others.claim(LIMIT);
    for n in 0..20u64 {
        let log = open_within(&sim, &budget).unwrap();
        assert_eq!(log.append(b"x").unwrap(), n);
        log.close().unwrap();
    }
    assert!(segments(&sim).len() < 3, "{:?}", segments(&sim));
}

/// An empty segment took its full size in memory, whatever the budget was.
#[test]
fn an_empty_large_segment_does_not_go_over_the_budget() {
    let sim = Sim::new(1);
    let log = open(&sim, small()).unwrap();
    while log.shared.chain.load().segments.len() < 4 {
        log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    drop(log);
    let sim = sim.after(Cut::Kill);
    let last = segments(&sim).pop().unwrap();
    Disk::remove(&sim, &last).unwrap(); // as if the next one had not been begun
    open(&sim, small()).unwrap().close().unwrap(); // begins an empty one
    let (next, files) = (open(&sim, small()).unwrap().next_offset(), segments(&sim).len());
    let budget = Budget::new(LIMIT);
    let others = budget.share(false);
    others.claim(LIMIT);
    let before = budget.claimed();
    let log = open_within(&sim, &budget).unwrap();
    let took = budget.claimed() - before;
    assert!(took < 20 << 10, "{took}");
    assert_eq!(log.append(b"on").unwrap(), next);
    log.close().unwrap();
    assert_eq!(segments(&sim).len(), files, "it takes the empty one's place");
    assert_eq!(open(&sim, small()).unwrap().next_offset(), next + 1);
}

/// A log's only segment is empty, and does not start at 0: everything before it was trimmed. The segment that replaced
/// it started at 0, and gave the offsets a second time.
#[test]
fn an_empty_segment_is_replaced_at_its_own_offset() {
    let sim = Sim::new(1);
    let dir = Path::new(DIR);
    Disk::create_dir(&sim, dir).unwrap();
    let header = Header {
        log: LogId([1; 16]),
        base: 100,
        capacity: 64 << 10,
        created: 1_700_000_000_000,
        secret: Secret(Some([2; 16])),
    };
    let file = SegmentFile::prepare(&sim, dir, 0, header.capacity).unwrap();
    file.begin(&sim, dir, &header).unwrap();
    drop(file);
    // These options ask for smaller segments than that one.
    let log = open(&sim, options(16 << 10, 4 << 10, LIMIT, None)).unwrap();
    assert_eq!((log.first_offset(), log.next_offset()), (100, 100));
    assert_eq!(log.append(b"on").unwrap(), 100);
    log.close().unwrap();
    let log = open(&sim, options(16 << 10, 4 << 10, LIMIT, None)).unwrap();
    assert_eq!((log.damage(), log.first_offset(), log.next_offset()), (&[][..], 100, 101));
}
