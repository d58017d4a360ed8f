//! The log against a plain `Vec`: random appends, batches, conditional appends, reads, trims, flushes and
//! reopenings, in tiny segments.

#[path = "support/shm.rs"]
mod shm;

use millstream::{Durability, Error, Log, Options};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Append(u16),
    Batch(Vec<u16>),
    AppendIf(i8, u16),
    Read(prop::sample::Index),
    Scan(prop::sample::Index),
    Trim(prop::sample::Index),
    Flush,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let length = 0..1500u16;
    prop_oneof![
        8 => length.clone().prop_map(Step::Append),
        4 => prop::collection::vec(0..300u16, 1..8).prop_map(Step::Batch),
        2 => (-2..3i8, length).prop_map(|(by, length)| Step::AppendIf(by, length)),
        4 => any::<prop::sample::Index>().prop_map(Step::Read),
        1 => any::<prop::sample::Index>().prop_map(Step::Scan),
        1 => any::<prop::sample::Index>().prop_map(Step::Trim),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

fn value(offset: usize, length: u16) -> Vec<u8> {
    (0..usize::from(length)).map(|n| (offset * 31 + n) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_log_does_what_a_vec_does(steps in prop::collection::vec(step(), 1..120), memory: bool) {
        let dir = tempfile::tempdir().unwrap();
        let durability = if memory { Durability::Memory } else { Durability::Disk };
        let options = || Options {
            durability, segment_bytes: 8192, first_segment_bytes: 4096, memory_bytes: 64 << 10,
            shm_dir: Some(shm::dir().to_owned()),
        };
        let mut log = Log::open(dir.path(), options()).unwrap();
        let mut model: Vec<Vec<u8>> = Vec::new();
        let mut first = 0;
        for step in steps {
            match step {
                Step::Append(length) => {
                    let value = value(model.len(), length);
                    prop_assert_eq!(log.append(&value).unwrap(), model.len() as u64);
                    model.push(value);
                }
                Step::Batch(lengths) => {
                    let values: Vec<_> =
                        lengths.iter().enumerate().map(|(n, &length)| value(model.len() + n, length)).collect();
                    let parts: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
                    prop_assert_eq!(log.append_batch(&parts).unwrap(), model.len() as u64);
                    model.extend(values);
                }
                Step::AppendIf(by, length) => {
                    let value = value(model.len(), length);
                    let Some(expected) = (model.len() as u64).checked_add_signed(i64::from(by)) else { continue };
                    match log.append_if(expected, &value) {
                        Ok(offset) => {
                            prop_assert_eq!((by, offset), (0, expected));
                            model.push(value);
                        }
                        Err(Error::Unexpected { next, .. }) => {
                            prop_assert!(by != 0);
                            prop_assert_eq!(next, model.len() as u64);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                Step::Read(at) => {
                    log.flush().unwrap();
                    let offset = at.index(model.len() + 1);
                    match log.read(offset as u64) {
                        Ok(record) => {
                            prop_assert!(offset >= first);
                            prop_assert_eq!(record.as_ref().map(millstream::Record::value), model.get(offset).map(Vec::as_slice));
                        }
                        Err(Error::Trimmed { first: left, .. }) => prop_assert!(offset < first && left == first as u64),
                        Err(error) => panic!("{error}"),
                    }
                }
                Step::Scan(at) => {
                    log.flush().unwrap();
                    let from = first + at.index(model.len() - first + 1);
                    let read: Vec<_> = log.iter(from as u64).map(|record| record.unwrap().value().to_vec()).collect();
                    prop_assert!(read == model[from..]);
                }
                Step::Trim(at) => {
                    let before = at.index(model.len() + 1) as u64;
                    let left = log.trim(before).unwrap();
                    prop_assert!(left <= before.max(first as u64) && left >= first as u64);
                    first = left as usize;
                }
                Step::Flush => {
                    log.flush().unwrap();
                    prop_assert_eq!(log.durable_offset(), model.len() as u64);
                }
                Step::Reopen => {
                    log.close().unwrap();
                    log = Log::open(dir.path(), options()).unwrap();
                    prop_assert_eq!(log.damage(), &[]);
                }
            }
            prop_assert_eq!(log.next_offset(), model.len() as u64);
            prop_assert_eq!(log.first_offset(), first as u64);
        }
        log.close().unwrap();
        prop_assert_eq!(millstream::verify(dir.path()).unwrap().damage, vec![]);
    }
}
