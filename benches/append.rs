//! Appending to memory, while the flusher writes what came before, compared with the floor: copy and checksum. Bursts
//! that fit into memory are timed; the time in which the disk catches up is not.

mod common;

use common::{SIZES, copy_and_checksum, dir, frame_bytes, group, open};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millstream::Log;
use std::time::{Duration, Instant};

/// Bytes of frames per burst.
const BURST: usize = 128 << 20;

/// Appends `total` records in batches from `threads` threads; returns the time of the slowest thread.
fn burst(log: &Log, value: &[u8], batch: usize, threads: u64, total: u64) -> Duration {
    let values = vec![value; batch];
    let each = (total / threads / batch as u64).max(1);
    let barrier = std::sync::Barrier::new(threads as usize);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut appender = log.appender();
                    barrier.wait();
                    let begun = Instant::now();
                    for _ in 0..each {
                        appender.append_batch(&values).unwrap();
                    }
                    begun.elapsed()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).max().unwrap()
    })
}

fn append(criterion: &mut Criterion) {
    for size in SIZES {
        let value = vec![7u8; size];
        let max = (BURST / frame_bytes(size)) as u64;
        let mut group = group(criterion, &format!("append/{size} B"));
        group.throughput(Throughput::Elements(1));
        group.bench_function("floor: copy + CRC-32C, 1 thread", |bencher| {
            bencher.iter_custom(|times| copy_and_checksum(&value, times));
        });
        for (threads, batch) in [(1, 1), (1, 16), (2, 1), (2, 16)] {
            // One log for all samples, whose first chunks have been allocated and faulted in: that happens once in a
            // log's life.
            let place = dir();
            let log = open(place.path());
            for _ in 0..3 {
                burst(&log, &value, 16, 1, max);
                log.flush().unwrap();
                log.trim(u64::MAX).unwrap();
            }
            group.bench_function(format!("{threads} threads, batches of {batch}"), |bencher| {
                bencher.iter_custom(|times| {
                    let (mut left, mut time) = (times, Duration::ZERO);
                    while left > 0 {
                        let now = left.min(max);
                        let least = threads * batch as u64;
                        // A burst smaller than one batch per thread is timed as one, and counted proportionally.
                        let measured = burst(&log, &value, batch, threads, now.max(least));
                        time += if now < least { measured * now as u32 / least as u32 } else { measured };
                        left -= now;
                        log.flush().unwrap();
                        log.trim(u64::MAX).unwrap();
                    }
                    time
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
