//! loom models of the chunk alone. `docs/models.md` lists what each of them was seen to catch.

use super::*;
use crate::sync::{Arc, model, thread};

const IMPRINT: FrameMeta = FrameMeta { key: Key::test(1), lead: 0, time: 0 };

fn chunk(capacity: u64) -> Arc<Chunk> {
    Arc::new(Chunk::new(ChunkMemory::new(capacity).unwrap(), None))
}

fn append(chunk: &Chunk, values: &[&[u8]]) -> AppendOutcome {
    chunk.append(Batch::new(values, chunk.capacity()).unwrap(), None, IMPRINT)
}

#[test]
fn loom_two_appenders_race_and_numbers_stay_dense() {
    model(|| {
        let chunk = chunk(256);
        let other = Arc::clone(&chunk);
        let thread = thread::spawn(move || append(&other, &[b"b"]));
        let mine = append(&chunk, &[b"a"]);
        let theirs = thread.join().unwrap();
        let (AppendOutcome::At(mine), AppendOutcome::At(theirs)) = (mine, theirs) else { panic!("both fit") };
        assert_eq!(mine + theirs, 1);
        assert_eq!(chunk.frame(mine).unwrap().value, b"a");
        assert_eq!(chunk.frame(theirs).unwrap().value, b"b");
        assert_eq!(chunk.contiguous(ChunkPosition::default(), u32::MAX).records, 2);
    });
}

#[test]
fn loom_a_batch_beside_a_single_appears_as_a_whole() {
    model(|| {
        let chunk = chunk(256);
        let (batcher, single) = (Arc::clone(&chunk), Arc::clone(&chunk));
        let batcher = thread::spawn(move || append(&batcher, &[b"x", b"y"]));
        let single = thread::spawn(move || append(&single, &[b"s"]));
        // At any moment, what is contiguous is a whole number of batches and can be read.
        let seen = chunk.contiguous(ChunkPosition::default(), u32::MAX);
        let values: Vec<_> = (0..seen.records).map(|record| chunk.frame(record).unwrap().value[0]).collect();
        assert!(
            matches!(&values[..], [] | [b's'] | [b'x', b'y'] | [b's', b'x', b'y'] | [b'x', b'y', b's']),
            "{values:?}"
        );
        assert_eq!(chunk.bytes(0..seen.words).len() as u64, seen.bytes());
        batcher.join().unwrap();
        single.join().unwrap();
        assert_eq!(chunk.contiguous(ChunkPosition::default(), u32::MAX).records, 3);
    });
}

#[test]
fn loom_one_appender_closes_and_the_end_is_where_the_records_stop() {
    model(|| {
        let chunk = chunk(64); // two frames of an empty value are 2 × 28
        let other = Arc::clone(&chunk);
        let thread = thread::spawn(move || {
            (0..2).filter(|_| matches!(append(&other, &[b""]), AppendOutcome::At(_))).count()
        });
        let mine = (0..2).filter(|_| matches!(append(&chunk, &[b""]), AppendOutcome::At(_))).count();
        let placed = mine + thread.join().unwrap();
        assert_eq!(placed, 2);
        assert_eq!(
            chunk.end(),
            Some(ChunkPosition { records: 2, words: 6 }),
            "closed once, with the right end"
        );
        assert_eq!(chunk.reserved(), 2);
        assert!(chunk.frame(0).is_some() && chunk.frame(1).is_some());
    });
}

#[test]
fn loom_an_expected_append_wins_or_sees_who_was_first() {
    model(|| {
        let chunk = chunk(256);
        let other = Arc::clone(&chunk);
        let thread = thread::spawn(move || append(&other, &[b"b"]));
        let one: &[&[u8]] = &[b"a"];
        let mine = chunk.append(Batch::new(one, 256).unwrap(), Some(0), IMPRINT);
        let theirs = thread.join().unwrap();
        match mine {
            AppendOutcome::At(0) => assert_eq!(theirs, AppendOutcome::At(1)),
            AppendOutcome::Unexpected(1) => assert_eq!(theirs, AppendOutcome::At(0)),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn loom_memory_is_used_again_only_after_the_last_reader_has_dropped_the_chunk() {
    model(|| {
        let share = PoolShare::new(&Pool::new(1 << 20), false);
        let chunk = Arc::new(Chunk::new(ChunkMemory::new(64).unwrap(), Some(Arc::clone(&share))));
        append(&chunk, &[b"a"]);
        let reader = Arc::clone(&chunk);
        let reader = thread::spawn(move || assert_eq!(reader.frame(0).unwrap().value, b"a"));
        drop(chunk);
        if let Some(memory) = share.take(64) {
            append(&Chunk::new(memory, None), &[b"b"]); // a race here, to loom, if the reader still reads
        }
        reader.join().unwrap();
    });
}
