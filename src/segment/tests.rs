//! Pins the format with files that are checked in: `tests/golden/00000000000000000042.seg` in format 1, and the same
//! records in `tests/golden/2` in format 2.

use super::{
    file::SegmentFile,
    header::{Header, Secret},
    scan, sealed,
};
use crate::{
    chunk::{AppendValue, Batch, Chunk, ChunkMemory, ChunkPosition, FrameMeta},
    disk::{Disk, sim::Sim},
    frame::{EXTENDED, JSON},
    log::{Log, Options, Record},
};
use std::path::Path;

const GOLDEN: [(Secret, &str); 2] = [
    (Secret(None), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/00000000000000000042.seg")),
    (
        Secret(Some(*b"sixteen secrets.")),
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/2/00000000000000000042.seg"),
    ),
];

fn header(secret: Secret) -> Header {
    Header {
        log: crate::LogId(*b"sixteen byte id."),
        base: 42,
        capacity: 8192,
        created: 1_700_000_000_000,
        secret,
    }
}

/// A value with flags, as appenders make them.
struct Marked(&'static [u8], u16);

impl AppendValue for Marked {
    fn bytes(&self) -> &[u8] {
        self.0
    }

    fn flags(&self) -> u16 {
        self.1
    }
}

/// The extension block of a producer named p1, epoch 3, sequence 9, one record; followed by a JSON value.
const PRODUCED: &[u8] = b"\x12\x00\x03\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00p1[4]";

/// A record, a batch of two, an empty record, a JSON record, and one from a producer.
fn written(secret: Secret) -> Vec<u8> {
    let header = header(secret);
    let (sim, dir) = (Sim::new(1), Path::new("/golden"));
    sim.create_dir(dir).unwrap();
    let file = SegmentFile::prepare(&sim, dir, 0, header.capacity).unwrap();
    file.begin(&sim, dir, &header).unwrap();
    let chunk = Chunk::new(ChunkMemory::new(header.capacity).unwrap(), None);
    let batches: [&[&[u8]]; 3] = [&[b"one"], &[b"two, which takes more than a word", b"three"], &[b""]];
    for (n, values) in batches.into_iter().enumerate() {
        // Before the first batch nothing was durable; from the second on, everything before it.
        let lead = if n == 0 { 0 } else { 0u64.wrapping_sub(1) };
        let meta = FrameMeta { key: header.key(), lead, time: 10 * n as u64 };
        chunk.append(Batch::new(values, header.capacity).unwrap(), None, meta);
    }
    let meta = FrameMeta { key: header.key(), lead: 0u64.wrapping_sub(1), time: 30 };
    for marked in [Marked(b"{ }", JSON), Marked(PRODUCED, JSON | EXTENDED)] {
        chunk.append(Batch::new(&[marked], header.capacity).unwrap(), None, meta);
    }
    let all = chunk.contiguous(ChunkPosition::default(), u32::MAX);
    file.write(&chunk, ChunkPosition::default(), all).unwrap();
    let found = scan::scan(chunk.bytes(0..all.words), header.key());
    sealed::seal(
        file.file(),
        &header,
        scan::Summary { words: all.words, ..found.summary() },
        found.positions.iter().copied(),
    )
    .unwrap();
    sim.dump().into_values().next().unwrap()
}

#[test]
fn written_files_equal_the_golden_file() {
    for (secret, path) in GOLDEN {
        if std::env::var_os("MILLSTREAM_NEW_GOLDEN").is_some() {
            std::fs::write(path, written(secret)).unwrap();
        }
        assert!(
            written(secret) == std::fs::read(path).unwrap(),
            "the format has changed: it needs a new version"
        );
    }
}

#[test]
fn the_golden_files_can_be_read() {
    let early = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/2-early/00000000000000000042.seg");
    for path in GOLDEN.map(|(_, path)| path).into_iter().chain([early]) {
        can_be_read(&std::fs::read(path).unwrap());
    }
}

fn can_be_read(golden: &[u8]) {
    let (sim, dir) = (Sim::new(1), Path::new("/log"));
    let path = dir.join("00000000000000000042.seg");
    sim.create_dir(dir).unwrap();
    sim.create(&path, golden.len() as u64).unwrap();
    sim.damage(&path, |bytes| bytes.copy_from_slice(golden));
    let log = Log::open_on(std::sync::Arc::new(sim), dir, Options::default()).unwrap();
    let read: Vec<_> = log.iter(42).map(Result::unwrap).collect();
    let values: Vec<_> = read.iter().map(|record| (record.offset(), record.time(), record.value())).collect();
    let expected: [(u64, u64, &[u8]); 6] = [
        (42, 1_700_000_000_000, b"one"),
        (43, 1_700_000_000_010, b"two, which takes more than a word"),
        (44, 1_700_000_000_010, b"three"),
        (45, 1_700_000_000_020, b""),
        (46, 1_700_000_000_030, b"{ }"),
        (47, 1_700_000_000_030, b"[4]"),
    ];
    assert_eq!(values, expected);
    assert_eq!(
        read.iter().filter(|record| record.is_json()).map(Record::offset).collect::<Vec<_>>(),
        [46, 47]
    );
    let scrubbed = log.scrub(42, |_| true).unwrap().unwrap();
    assert_eq!((scrubbed.next, scrubbed.damage), (48, vec![]));
    assert_eq!(log.append(b"on").unwrap(), 48);
}
