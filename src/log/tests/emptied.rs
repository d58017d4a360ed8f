//! Chunks that end without a record, and claims of a log that has ended.

use super::{super::budget::Budget, *};
use std::sync::Arc;

/// A log of a store whose memory the others have: a large batch gets a chunk of its own, which is left for a small one.
fn crowded(sim: &Sim, budget: &crate::sync::Arc<Budget>) -> Log {
    let options = Options {
        segment_bytes: 256 << 10,
        first_segment_bytes: 64 << 10,
        memory_bytes: 4 << 20,
        shm_dir: None,
        ..Options::default()
    };
    sim.create_dir(Path::new(DIR)).unwrap();
    Log::open_within(&Environment::on(Arc::new(sim.clone())), budget, Path::new(DIR), options, Arc::new(()))
        .unwrap()
}

/// Each large batch left an empty chunk behind, with its descriptor, its memory, and its backing, outside every budget:
/// the segment before it led to it.
#[test]
fn a_chunk_that_ends_without_a_record_is_let_go() {
    let budget = Budget::new(4 << 20);
    let others = budget.share(false);
    others.claim(4 << 20);
    let sim = Sim::new(1);
    let log = crowded(&sim, &budget);
    let mut skipped = 0;
    for _ in 0..30 {
        log.append_wait_durable(&vec![7; 100 << 10]).unwrap();
        let begun = Instant::now();
        while log.shared.active.load().chunk.reserved() > 0 && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(1)); // until it has left the large chunk
        }
        skipped += u64::from(log.shared.active.load().chunk.reserved() == 0);
    }
    assert!(skipped > 10, "{skipped}");
    let begun = Instant::now();
    loop {
        let chain = log.shared.chain.load_full();
        let mut held = 0;
        for segment in &chain.segments {
            let is_listed = |found: &crate::sync::Arc<crate::segment::Segment>| {
                chain.segments.iter().any(|listed| crate::sync::Arc::ptr_eq(listed, found))
            };
            let mut next = segment.next.load_full();
            while let Some(found) = next.filter(|found| !is_listed(found)) {
                let is_active = crate::sync::Arc::ptr_eq(&found, &log.shared.active.load_full().segment);
                let is_held = found.chunk.load_full().is_some() || found.file().is_some();
                held += u64::from(is_held && !is_active);
                next = found.next.load_full();
            }
        }
        if held <= 1 {
            return; // the last one may be about to be let go
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{held} empty chunks are held");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The claim of the last chunk stayed as long as a caller held one of its records.
#[test]
fn a_closed_log_claims_no_memory_whoever_holds_its_records() {
    let budget = Budget::new(4 << 20);
    let log = crowded(&Sim::new(1), &budget);
    log.append_wait_durable(b"x").unwrap();
    let record = log.read(0).unwrap().unwrap();
    assert!(budget.claimed() > 0);
    log.close().unwrap();
    assert_eq!(budget.claimed(), 0);
    assert_eq!(record.value(), b"x");
    drop(record);
    assert_eq!(budget.claimed(), 0);
}
