use super::*;
use std::sync::Arc;

const IMPRINT: FrameMeta = FrameMeta { key: Key::test(1), lead: 0, time: 0 };

fn chunk(capacity: u64) -> Chunk {
    Chunk::new(ChunkMemory::new(capacity).unwrap(), None)
}

fn append(chunk: &Chunk, values: &[&[u8]]) -> AppendOutcome {
    chunk.append(Batch::new(values, chunk.capacity()).unwrap(), None, IMPRINT)
}

#[test]
fn what_is_appended_is_read_until_the_chunk_is_full_and_then_it_stays_closed() {
    let chunk = chunk(4096);
    let mut n = 0;
    while let AppendOutcome::At(record) = append(&chunk, &[&[n as u8; 100]]) {
        assert_eq!(record, n);
        n += 1;
    }
    // 124 bytes are 16 words, plus 4 bytes of index: 31 of them take 4092.
    assert_eq!(n, 31);
    assert_eq!(chunk.end(), Some(ChunkPosition { records: 31, words: 31 * 16 }));
    assert_eq!(append(&chunk, &[b""]), AppendOutcome::Full, "a record that would fit comes too late");
    assert_eq!(chunk.reserved(), 31);
    for record in 0..n {
        assert_eq!(chunk.frame(record).unwrap().value, [record as u8; 100]);
        assert_eq!(frame::decode(chunk.whole_frame(record).unwrap().1, IMPRINT.key).unwrap().record, record);
    }
    assert!(chunk.frame(n).is_none());
}

#[test]
fn the_contiguous_end_stops_at_batches_and_not_within_them() {
    let chunk = chunk(1 << 16);
    append(&chunk, &[b"a"]);
    append(&chunk, &[b"b", b"c", b"d"]);
    append(&chunk, &[b"e"]);
    let start = ChunkPosition::default();
    assert_eq!(chunk.contiguous(start, 1), ChunkPosition { records: 1, words: 4 });
    assert_eq!(chunk.contiguous(start, 5), ChunkPosition { records: 4, words: 16 });
    assert_eq!(chunk.contiguous(start, u32::MAX), ChunkPosition { records: 5, words: 20 });
    assert_eq!(chunk.bytes(0..20).len(), 160);
}

#[test]
#[should_panic(expected = "scanned")]
fn unscanned_bytes_are_never_returned() {
    let chunk = chunk(4096);
    append(&chunk, &[b"a"]);
    chunk.bytes(0..4);
}

#[test]
fn an_expected_number_is_compared_and_a_wrong_one_changes_nothing() {
    let chunk = chunk(4096);
    let one: &[&[u8]] = &[b"x"];
    let batch = Batch::new(one, 4096).unwrap();
    assert_eq!(chunk.append(batch, Some(1), IMPRINT), AppendOutcome::Unexpected(0));
    assert_eq!(chunk.append(batch, Some(0), IMPRINT), AppendOutcome::At(0));
    assert_eq!(chunk.append(batch, Some(0), IMPRINT), AppendOutcome::Unexpected(1));
    assert_eq!(chunk.reserved(), 1);
}

#[test]
fn a_batch_that_no_empty_chunk_holds_is_refused_before_anything_is_reserved() {
    let value = vec![0; 4096];
    assert!(Batch::new(&[&value], 4096).is_err());
    assert!(
        Batch::new(&[&value[..4096 - 24 - 4 - 4]], 4096).is_ok(),
        "the value, header, padding and index fill it"
    );
    assert!(Batch::new(&[&value[..4096 - 24 - 7]], 4096).is_err());
}

#[test]
fn an_empty_chunk_that_a_too_large_batch_closes_stays_empty() {
    let chunk = chunk(4096);
    let value = vec![0; 5000];
    let large: &[&[u8]] = &[&value];
    assert_eq!(chunk.append(Batch::new(large, 8192).unwrap(), None, IMPRINT), AppendOutcome::Full);
    assert_eq!(chunk.end(), Some(ChunkPosition::default()));
}

#[test]
fn four_threads_get_dense_numbers_and_whole_frames() {
    let chunk = Arc::new(chunk(1 << 22));
    let mut all: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u8)
            .map(|thread| {
                let chunk = Arc::clone(&chunk);
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    while let AppendOutcome::At(first) = append(&chunk, &[&[thread; 33], &[thread; 5]]) {
                        mine.extend([first, first + 1]);
                        assert_eq!(chunk.frame(first).unwrap().value, [thread; 33]);
                        assert_eq!(chunk.frame(first + 1).unwrap().value, [thread; 5]);
                    }
                    mine
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_unstable();
    let end = chunk.end().unwrap();
    assert!(all.into_iter().eq(0..end.records));
    assert_eq!(chunk.contiguous(ChunkPosition::default(), u32::MAX), end);
}

#[test]
fn freed_chunk_memory_is_reused_clean() {
    let share = PoolShare::new(&Pool::new(1 << 20), false);
    let chunk = Chunk::new(ChunkMemory::new(4096).unwrap(), Some(Arc::clone(&share)));
    append(&chunk, &[b"a", b"b"]);
    drop(chunk);
    let memory = share.take(4096).unwrap();
    assert!(Chunk::new(memory, None).frame(0).is_none(), "a record of the last owner shows");
}

/// This many empty values, which take no memory here.
struct Empty(u32);

impl AppendValues for Empty {
    fn each(&self, mut f: impl FnMut(&[u8], u16)) {
        (0..self.0).for_each(|_| f(&[], 0));
    }
}

/// The count of records in `tail` has 26 bits, which a large batch that does not fit overflows. Adding it panicked where
/// overflows are looked for, before the chunk was closed; elsewhere so few records were counted that memory was handed on
/// with the slots of the others.
#[test]
fn a_batch_that_does_not_fit_and_overflows_the_count_of_records_closes_the_chunk_all_the_same() {
    let capacity = MAX_CAPACITY;
    let share = PoolShare::new(&Pool::new(8 << 30), false);
    for expected in [false, true] {
        // As if it had so many records, each of the smallest size, of which only the last one's slot is stored.
        let max = (capacity / (u64::from(MIN_WORDS) * WORD as u64 + 4)) as u32;
        let tail = ChunkPosition { records: max - 1, words: (max - 1) * MIN_WORDS };
        let chunk = Chunk::new(ChunkMemory::new(capacity).unwrap(), Some(Arc::clone(&share)));
        chunk.tail.store(tail.pack(), Ordering::Relaxed);
        let batch = Empty(1);
        let batch = Batch::new(&batch, capacity).unwrap();
        assert_eq!(chunk.append(batch, None, IMPRINT), AppendOutcome::At(max - 1));
        let batch = Empty(max);
        let batch = Batch::new(&batch, capacity).unwrap();
        let number = expected.then_some(max);
        assert_eq!(chunk.append(batch, number, IMPRINT), AppendOutcome::Full);
        let end = ChunkPosition { records: max, words: max * MIN_WORDS };
        assert_eq!((chunk.end(), chunk.reserved()), (Some(end), max));
        assert_eq!(chunk.append(batch, number, IMPRINT), AppendOutcome::Full, "it stays closed");
        drop(chunk);
        let chunk = Chunk::new(share.take(capacity).unwrap(), None);
        assert!(!chunk.is_published(max - 1), "a record of the last owner shows");
    }
}
