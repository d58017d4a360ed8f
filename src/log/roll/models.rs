//! loom models of rolling. `docs/models.md` lists what each was seen to catch.

use super::*;
use crate::{
    LogId,
    chunk::{AppendOutcome, Batch, ChunkMemory, ChunkPosition, FrameMeta},
    frame::Key,
    log::{
        task::{Task, TurnEnd, models::Pool},
        wait::Frontier,
    },
    segment::header::Secret,
    sync::{model, thread},
};

/// Two frames of an empty value are 2 × 28 bytes: a chunk of 32 holds one record.
const ONE_RECORD: u64 = 32;

fn segment(base: u64) -> Arc<Segment> {
    let header = Header { log: LogId([0; 16]), base, capacity: ONE_RECORD, created: 0, secret: Secret(None) };
    let chunk = Arc::new(Chunk::new(ChunkMemory::new(ONE_RECORD).unwrap(), None));
    Arc::new(Segment::new(header, None, chunk))
}

fn start() -> (Arc<Segment>, Arc<Swap<Active>>) {
    let first = segment(0);
    let active = Active::of(Arc::clone(&first)).unwrap();
    (first, Arc::new(Swap::new(active)))
}

fn try_append(active: &Active) -> Option<u64> {
    let meta = FrameMeta { key: Key::test(1), lead: 0, time: 0 };
    match active.chunk.append(Batch::new(&[b""], ONE_RECORD).unwrap(), None, meta) {
        AppendOutcome::At(record) => Some(active.segment.base() + u64::from(record)),
        _ => None,
    }
}

/// As `append` does, with a successor that is always ready.
fn append(swap: &Swap<Active>) -> u64 {
    loop {
        let active = swap.load_full();
        if let Some(offset) = try_append(&active) {
            return offset;
        }
        if !install_successor(swap, &active, |base| Some(segment(base)), drop, || ()) {
            thread::yield_now(); // the closer is between its two instructions
        }
    }
}

/// The offsets that the segments have, in order.
fn offsets(first: &Arc<Segment>) -> Vec<u64> {
    let (mut all, mut segment) = (Vec::new(), Some(Arc::clone(first)));
    while let Some(this) = segment {
        let chunk = this.chunk.load_full().unwrap();
        all.extend(
            (0..4)
                .filter(|&record| chunk.frame(record).is_some())
                .map(|record| this.base() + u64::from(record)),
        );
        segment = this.next.load_full();
    }
    all
}

#[test]
fn loom_appenders_that_roll_together_lose_and_repeat_no_offset() {
    model(|| {
        let (first, swap) = start();
        let other = Arc::clone(&swap);
        let thread = thread::spawn(move || append(&other));
        let mut got = vec![append(&swap), append(&swap), thread.join().unwrap()];
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2]);
        assert_eq!(offsets(&first), [0, 1, 2]);
    });
}

#[test]
fn loom_a_late_appender_continues_while_the_closer_sleeps() {
    model(|| {
        let (first, swap) = start();
        assert_eq!(append(&swap), 0);
        let closer = {
            let active = swap.load_full();
            // Closes the chunk, and is put to sleep before it installs the next one.
            thread::spawn(move || assert_eq!(try_append(&active), None))
        };
        assert_eq!(append(&swap), 1);
        closer.join().unwrap();
        assert_eq!(offsets(&first), [0, 1]);
    });
}

#[test]
fn loom_a_reader_at_the_frontier_sees_whole_records_across_a_roll() {
    model(|| {
        let (first, swap) = start();
        let frontier = Arc::new(Frontier::new(0));
        let reader = {
            let (first, frontier) = (Arc::clone(&first), Arc::clone(&frontier));
            thread::spawn(move || {
                let visible = frontier.get();
                let seen = offsets(&first);
                assert!(seen.len() as u64 >= visible, "{visible} are visible, and {seen:?} can be read");
            })
        };
        for _ in 0..2 {
            let offset = append(&swap);
            frontier.advance(offset + 1);
        }
        reader.join().unwrap();
    });
}

#[test]
fn loom_what_is_appended_while_the_log_is_closed_lies_before_the_end_that_closing_has_found() {
    model(|| {
        let (first, swap) = start();
        let stopping = Arc::new(AtomicBool::new(false));
        let appender = {
            let (swap, stopping) = (Arc::clone(&swap), Arc::clone(&stopping));
            thread::spawn(move || {
                let mut last = None;
                // The first chunk takes one, and the second is moved on to.
                while last != Some(1) {
                    let active = swap.load_full();
                    if let Some(offset) = try_append(&active) {
                        last = Some(offset);
                        continue;
                    }
                    let Some(active) = active_if_running(&swap, &stopping) else { break };
                    if !install_successor(&swap, &active, |base| Some(segment(base)), drop, || ()) {
                        thread::yield_now();
                    }
                }
                last
            })
        };
        stop(&swap, &stopping);
        let active = swap.load_full();
        let end = active.segment.base() + u64::from(active.chunk.reserved());
        let last = appender.join().unwrap();
        assert!(last.is_none_or(|last| last < end), "{last:?} was appended to a log that has ended at {end}");
        assert_eq!(try_append(&swap.load_full()), None);
        drop(first);
    });
}

/// A flusher that has come to the end of the first segment, and how many records of the second it has seen.
struct AtTheEnd {
    first: Arc<Segment>,
    seen: AtomicU64,
    task: std::sync::OnceLock<std::sync::Weak<Task<AtTheEnd>>>,
}

/// As `Shared::flusher_turn` does.
fn flush(at: &AtTheEnd) {
    let task = at.task.get().and_then(std::sync::Weak::upgrade).unwrap();
    loop {
        task.take_kick();
        let end = match at.first.next.load_full() {
            None => task.sleep_unless(|| false),
            Some(next) => {
                let chunk = next.chunk.load_full().unwrap();
                let seen = chunk.reserved();
                at.seen.store(seen.into(), Ordering::Relaxed);
                let position = ChunkPosition { records: seen, words: seen * 3 };
                task.sleep_unless(|| !chunk.probe_quiescent(position))
            }
        };
        if end == TurnEnd::Over {
            return;
        }
    }
}

#[test]
fn loom_the_flusher_of_a_closed_segment_sleeps_until_a_successor_is_linked() {
    model(|| {
        let (first, swap) = start();
        assert_eq!(append(&swap), 0);
        let closed = swap.load_full();
        assert_eq!(try_append(&closed), None);
        let pool = Pool::new();
        let task = Task::new(std::sync::Arc::new(pool.clone()), flush, |_| panic!("a turn panicked"));
        let at = Arc::new(AtTheEnd { first, seen: AtomicU64::new(0), task: std::sync::OnceLock::new() });
        at.task.set(std::sync::Arc::downgrade(&task)).unwrap();
        task.start(Arc::clone(&at));
        let linker = {
            let (swap, task) = (Arc::clone(&swap), std::sync::Arc::clone(&task));
            thread::spawn(move || {
                install_successor(&swap, &closed, |base| Some(segment(base)), drop, || task.kick());
            })
        };
        let appender = {
            let (swap, task) = (Arc::clone(&swap), std::sync::Arc::clone(&task));
            thread::spawn(move || {
                let appended = try_append(&swap.load_full()).is_some();
                task.wake_if_idle(Duration::ZERO);
                appended
            })
        };
        pool.run_next();
        let appended = appender.join().unwrap();
        linker.join().unwrap();
        pool.run_all();
        assert_eq!(at.seen.load(Ordering::Relaxed), u64::from(appended));
        task.stop();
        pool.clear();
    });
}
