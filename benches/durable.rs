//! Durable appends compared with the bare disk: each record durable before the next, and at full rate.

mod common;

use common::{SIZES, dir, frame_bytes, group, open};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{
    fs::File,
    io::Write,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// `O_DIRECT | O_DSYNC` if supported, otherwise plain writes with `fdatasync`.
struct Bare {
    file: File,
    direct: bool,
}

impl Bare {
    /// Creates a file of `bytes` bytes, all of them written already.
    fn new(dir: &Path, bytes: usize) -> Self {
        let path = dir.join("bare");
        let mut file = File::create(&path).unwrap();
        for _ in 0..bytes >> 20 {
            file.write_all(&vec![0; 1 << 20]).unwrap();
        }
        file.sync_all().unwrap();
        let flags = (rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC).bits();
        let direct = File::options().write(true).custom_flags(flags.cast_signed()).open(&path);
        let is_direct = direct.is_ok();
        Self { file: direct.unwrap_or(file), direct: is_direct }
    }

    fn write(&self, block: &[u8], at: u64) {
        self.file.write_all_at(block, at).unwrap();
        if !self.direct {
            self.file.sync_data().unwrap();
        }
    }
}

fn aligned(bytes: usize) -> memmap2::MmapMut {
    let mut block = memmap2::MmapMut::map_anon(bytes).unwrap();
    block.fill(5);
    block
}

fn one_by_one(criterion: &mut Criterion) {
    for size in SIZES {
        let value = vec![7u8; size];
        let mut group = group(criterion, &format!("durable, each before the next/{size} B"));
        group.throughput(Throughput::Elements(1));
        group.bench_function("floor: bare 4 KiB writes to blocks written before", |bencher| {
            let place = dir();
            let bare = Bare::new(place.path(), 64 << 20);
            let block = aligned(4096);
            let mut n = 0;
            bencher.iter(|| {
                bare.write(&block, n % (16 << 10) * 4096);
                n += 1;
            });
        });
        for threads in [1, 2u64] {
            group.bench_function(format!("{threads} threads, append and wait_durable"), |bencher| {
                let place = dir();
                let log = open(place.path());
                bencher.iter_custom(|times| {
                    let begun = Instant::now();
                    std::thread::scope(|scope| {
                        for _ in 0..threads {
                            scope.spawn(|| {
                                for _ in 0..times.div_ceil(threads) {
                                    let offset = log.append(&value).unwrap();
                                    log.wait_durable(offset).unwrap();
                                }
                            });
                        }
                    });
                    begun.elapsed()
                });
            });
        }
        group.finish();
    }
}

/// 256 MiB each time: how fast the disk takes writes of 8 MiB, and how fast the log makes frames durable.
fn flat_out(criterion: &mut Criterion) {
    const TOTAL: usize = 256 << 20;
    for size in SIZES {
        let mut group = group(criterion, &format!("durable, at full rate/{size} B"));
        group.throughput(Throughput::Bytes(TOTAL as u64));
        group.bench_function("floor: bare 8 MiB writes", |bencher| {
            let place = dir();
            let bare = Bare::new(place.path(), TOTAL);
            let block = aligned(8 << 20);
            bencher.iter(|| (0..TOTAL >> 23).for_each(|n| bare.write(&block, (n as u64) << 23)));
        });
        for threads in [1, 2u64] {
            let value = vec![7u8; size];
            let each = (TOTAL / frame_bytes(size)) as u64 / threads;
            group.bench_function(format!("{threads} threads, frames made durable"), |bencher| {
                let place = dir();
                let log = open(place.path());
                bencher.iter_custom(|times| {
                    let mut time = Duration::ZERO;
                    for _ in 0..times {
                        let begun = Instant::now();
                        std::thread::scope(|scope| {
                            for _ in 0..threads {
                                scope.spawn(|| {
                                    let mut appender = log.appender();
                                    for _ in 0..each {
                                        appender.append(&value).unwrap();
                                    }
                                });
                            }
                        });
                        log.flush().unwrap();
                        time += begun.elapsed();
                        log.trim(u64::MAX).unwrap();
                    }
                    time
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, one_by_one, flat_out);
criterion_main!(benches);
