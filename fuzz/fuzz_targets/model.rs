//! Bytes decoded into operations, which are applied to a log with tiny segments and to a `Vec`: both behave the same.
//! The log is also copied while it is open, and opened from the copy, as after a kill: what was durable is kept.
#![no_main]

#[path = "../../tests/support/shm.rs"]
mod shm;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use millstream::{Durability, Error, Log, Options};
use std::{fs, path::Path};

#[derive(Debug, Arbitrary)]
enum Step {
    Append(u16),
    Tiny(u8),
    Batch(Vec<u8>),
    AppendIf(i8, u8),
    Read(u16),
    Scan(u16),
    Trim(u16),
    Flush,
    Reopen(bool),
    Copy,
}

fn options(memory: bool, first: u8) -> Options {
    Options {
        durability: if memory { Durability::Memory } else { Durability::Disk },
        segment_bytes: 8192,
        first_segment_bytes: 4096 << (first % 2),
        memory_bytes: 64 << 10,
        shm_dir: None,
    }
}

fn value(offset: usize, length: usize) -> Vec<u8> {
    (0..length).map(|n| (offset * 31 + n) as u8).collect()
}

fn place() -> tempfile::TempDir {
    tempfile::tempdir_in(shm::dir()).unwrap()
}

/// A copy of the directory while the log is open has at least all durable records, and nothing else.
fn copy(dir: &Path, log: &Log, model: &[Vec<u8>]) {
    let copy = place();
    let durable = log.durable_offset();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        // A file that was removed meanwhile was trimmed, or only prepared.
        let _ = fs::copy(entry.path(), copy.path().join(entry.file_name()));
    }
    let copied = Log::open(copy.path(), options(false, 0)).unwrap();
    assert_eq!(copied.damage(), &[]);
    assert!(copied.next_offset() >= durable && copied.next_offset() <= model.len() as u64);
    for offset in copied.first_offset()..copied.next_offset() {
        assert!(copied.read(offset).unwrap().unwrap().value() == model[offset as usize]);
    }
    copied.close().unwrap();
}

fuzz_target!(|input: (bool, u8, Vec<Step>)| {
    let (memory, first_size, steps) = input;
    let dir = place();
    let mut log = Log::open(dir.path(), options(memory, first_size)).unwrap();
    let (mut model, mut first): (Vec<Vec<u8>>, usize) = (Vec::new(), 0);
    for step in steps.into_iter().take(64) {
        let next = model.len();
        match step {
            Step::Append(length) => {
                let value = value(next, usize::from(length) % 5000);
                assert_eq!(log.append(&value).unwrap(), next as u64);
                model.push(value);
            }
            Step::Tiny(count) => {
                for n in 0..usize::from(count) {
                    let value = value(next + n, n % 9);
                    assert_eq!(log.append(&value).unwrap(), (next + n) as u64);
                    model.push(value);
                }
            }
            Step::Batch(lengths) if lengths.is_empty() => {
                assert!(matches!(log.append_batch(&[]), Err(Error::EmptyBatch)));
            }
            Step::Batch(lengths) => {
                let values: Vec<Vec<u8>> = lengths
                    .iter()
                    .enumerate()
                    .map(|(n, length)| value(next + n, usize::from(*length)))
                    .collect();
                let parts: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
                match log.append_batch(&parts) {
                    Ok(offset) => {
                        assert_eq!(offset, next as u64);
                        model.extend(values);
                    }
                    Err(Error::TooLarge { bytes, limit }) => assert!(bytes > limit),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::AppendIf(by, length) => {
                let Some(expected) = (next as u64).checked_add_signed(i64::from(by)) else { continue };
                let value = value(next, usize::from(length));
                match log.append_if(expected, &value) {
                    Ok(offset) => {
                        assert_eq!((by, offset), (0, expected));
                        model.push(value);
                    }
                    Err(Error::Unexpected { next: told, .. }) => assert!(by != 0 && told == next as u64),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Read(at) => {
                log.flush().unwrap();
                let offset = usize::from(at) % (next + 1);
                match log.read(offset as u64) {
                    Ok(record) => {
                        assert!(offset >= first);
                        assert_eq!(
                            record.as_ref().map(|record| record.value()),
                            model.get(offset).map(Vec::as_slice)
                        );
                    }
                    Err(Error::Trimmed { first: left, .. }) => {
                        assert!(offset < first && left == first as u64)
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Scan(at) => {
                log.flush().unwrap();
                let from = first + usize::from(at) % (next - first + 1);
                let read: Vec<_> =
                    log.iter(from as u64).map(|record| record.unwrap().value().to_vec()).collect();
                assert!(read == model[from..]);
            }
            Step::Trim(at) => {
                let before = u64::from(at) % (next as u64 + 1);
                let left = log.trim(before).unwrap();
                assert!(left <= before.max(first as u64) && left >= first as u64);
                first = left as usize;
            }
            Step::Flush => {
                log.flush().unwrap();
                assert_eq!(log.durable_offset(), next as u64);
            }
            Step::Reopen(memory) => {
                log.close().unwrap();
                log = Log::open(dir.path(), options(memory, first_size)).unwrap();
                assert_eq!(log.damage(), &[]);
            }
            Step::Copy => copy(dir.path(), &log, &model),
        }
        assert_eq!((log.next_offset(), log.first_offset()), (model.len() as u64, first as u64));
    }
    log.close().unwrap();
    assert_eq!(millstream::verify(dir.path()).unwrap().damage, vec![]);
});
