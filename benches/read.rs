//! Reading from memory, by offset and in order, compared with the floor: a walk over the same bytes.

mod common;

use common::{SIZES, dir, frame_bytes, group, open};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn read(criterion: &mut Criterion) {
    for size in SIZES {
        let records = ((32 << 20) / frame_bytes(size)) as u64;
        let place = dir();
        let log = open(place.path());
        for n in 0..records {
            log.append(&vec![n as u8; size]).unwrap();
        }
        log.flush().unwrap();
        let mut group = group(criterion, &format!("read/{size} B"));
        group.throughput(Throughput::Elements(records));
        // These bytes in a plain vector, walked from frame to frame by the length in each frame.
        let mut plain = vec![3u8; records as usize * frame_bytes(size)];
        for frame in plain.chunks_exact_mut(frame_bytes(size)) {
            frame[4..8].copy_from_slice(&(size as u32).to_le_bytes());
        }
        group.bench_function("floor: a walk over the same bytes in a vector", |bencher| {
            bencher.iter(|| {
                let (mut rest, mut sum) = (&plain[..], 0);
                while let Some(length) = rest.get(4..8) {
                    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
                    let (frame, later) = rest.split_at(24 + length.next_multiple_of(8));
                    sum += u64::from(frame[24..24 + length][0]);
                    rest = later;
                }
                sum
            });
        });
        group.bench_function("scan by a reader", |bencher| {
            bencher.iter(|| {
                let (mut reader, mut sum) = (log.reader(0), 0);
                while let Some(record) = reader.read_next().unwrap() {
                    sum += u64::from(record.value[0]);
                }
                sum
            });
        });
        // An odd step visits every record once, far from the one before.
        let step = 7919 % records;
        group.bench_function("by offset, with a reader", |bencher| {
            bencher.iter(|| {
                let (mut reader, mut offset) = (log.reader(0), 0);
                for _ in 0..records {
                    offset = (offset + step) % records;
                    black_box(reader.read(offset).unwrap().unwrap().value[0]);
                }
            });
        });
        group.bench_function("by offset, as a Record", |bencher| {
            bencher.iter(|| {
                let mut offset = 0;
                for _ in 0..records {
                    offset = (offset + step) % records;
                    black_box(log.read(offset).unwrap().unwrap().value()[0]);
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, read);
criterion_main!(benches);
