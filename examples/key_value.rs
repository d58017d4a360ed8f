//! A key-value store that keeps its changes in a log, with checkpoints: `cargo run --no-default-features --example
//! key_value [DIR]`. Each run continues where the one before has ended, also if that was killed.
//!
//! Each change is a record. A checkpoint writes the whole map as one batch at the beginning of a segment; when that is
//! durable, everything before it is trimmed. Opening reads from the last complete checkpoint.

use millstream::{Error, Log, Options};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The kinds of records; the key's length follows, then the key, then the value.
const PUT: u8 = b'p';
const REMOVE: u8 = b'r';
/// One entry of a checkpoint. A checkpoint is a batch, so it is there whole or not at all; its first record is
/// `CHECKPOINT`.
const CHECKPOINT: u8 = b'c';
const ENTRY: u8 = b'e';

struct KeyValue {
    log: Log,
    map: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn encode(kind: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut record = vec![kind];
    record.extend_from_slice(&(key.len() as u32).to_le_bytes());
    record.extend_from_slice(key);
    record.extend_from_slice(value);
    record
}

fn decode(record: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&kind, rest) = record.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (key, value) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((kind, key, value))
}

impl KeyValue {
    fn open(dir: &Path) -> Result<Self, Error> {
        // A map of some MiB needs neither large segments nor much memory.
        let options = Options::default().with_segment_bytes(4 << 20).with_memory_bytes(16 << 20);
        let log = Log::open(dir, options)?;
        let mut map = BTreeMap::new();
        for record in log.iter(log.first_offset()) {
            let record = record?;
            match decode(record.value()) {
                Some((CHECKPOINT, ..)) => map.clear(),
                Some((PUT | ENTRY, key, value)) => drop(map.insert(key.to_vec(), value.to_vec())),
                Some((REMOVE, key, _)) => drop(map.remove(key)),
                _ => eprintln!("record {} is none of this program's", record.offset()),
            }
        }
        Ok(Self { log, map })
    }

    /// Durable on return.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.log.append_wait_durable(&encode(PUT, key, value))?;
        self.map.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    /// Durable on return.
    fn remove(&mut self, key: &[u8]) -> Result<(), Error> {
        self.log.append_wait_durable(&encode(REMOVE, key, b""))?;
        self.map.remove(key);
        Ok(())
    }

    /// Writes the whole map, and forgets what led to it. What a batch may take limits the size of the map: a segment.
    fn checkpoint(&self) -> Result<(), Error> {
        let from = self.log.roll()?; // the checkpoint begins a segment, so that all before it can be dropped
        let mut records = vec![encode(CHECKPOINT, b"", b"")];
        records.extend(self.map.iter().map(|(key, value)| encode(ENTRY, key, value)));
        let first = self.log.append_batch_from(&records)?;
        self.log.wait_durable(first + records.len() as u64 - 1)?;
        self.log.trim(from)?;
        Ok(())
    }
}

fn main() -> Result<(), Error> {
    let dir: PathBuf =
        std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("millstream-kv"), Into::into);
    let mut store = KeyValue::open(&dir)?;
    let run =
        store.map.get(&b"run"[..]).and_then(|run| String::from_utf8_lossy(run).parse().ok()).unwrap_or(0) + 1;
    store.put(b"run", run.to_string().as_bytes())?;
    for n in 0..1000 {
        store.put(format!("key {}", n % 100).as_bytes(), format!("value {n} of run {run}").as_bytes())?;
    }
    store.remove(b"key 99")?;
    if run % 2 == 0 {
        store.checkpoint()?;
    }
    // What is read back is what is there.
    let KeyValue { log, map } = store;
    let records = log.next_offset() - log.first_offset();
    log.close()?;
    let again = KeyValue::open(&dir)?;
    assert_eq!(again.map, map);
    println!("run {run}: {} keys, {records} records in the log", map.len());
    Ok(())
}
