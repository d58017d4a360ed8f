//! Opens a store in which a log's `log.json` and `producers.json` consist of arbitrary bytes. In any case: no panic, no
//! record is lost or changed, a batch that was stored is not stored again under its number, and the log continues, or
//! says why it does not.
#![no_main]

#[path = "../../tests/support/shm.rs"]
mod shm;

use libfuzzer_sys::fuzz_target;
use millstream::{
    Options, Payload, ProducerBatch,
    store::{LogSettings, Store, StoreOptions},
};
use std::{collections::BTreeMap, fs, sync::OnceLock};

const BATCHES: u64 = 12;
const NAMES: [&str; 2] = ["log.json", "producers.json"];

fn options() -> StoreOptions {
    let log = Options {
        segment_bytes: 8192,
        first_segment_bytes: 4096,
        memory_bytes: 256 << 10,
        shm_dir: None,
        ..Options::default()
    };
    StoreOptions { log, ..StoreOptions::default() }
}

fn value(n: u64) -> Vec<u8> {
    (0..n * 37 % 400).map(|at| (n * 31 + at) as u8).collect()
}

fn produce(store: &Store, sequence: u64) -> Result<(u64, bool), String> {
    let log = store.get("a").map_err(|error| error.to_string())?;
    let batch = ProducerBatch::new("p", 3, sequence);
    let value = value(sequence);
    let payload = Payload { bytes: &value, json: false };
    log.learn_producers().map_err(|error| error.to_string())?;
    let stored = log.try_append_once(&batch, &[payload], None).map_err(|error| error.to_string())?;
    log.flush().map_err(|error| error.to_string())?;
    Ok((stored.first_offset, stored.repeated))
}

fn place() -> tempfile::TempDir {
    tempfile::tempdir_in(shm::dir()).unwrap()
}

/// The files of the log `a`, as a server leaves them.
fn files() -> &'static BTreeMap<String, Vec<u8>> {
    static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = place();
        let store = Store::open(dir.path(), options()).unwrap();
        store.create("a", &LogSettings { retention_bytes: Some(1 << 30), ..LogSettings::default() }).unwrap();
        for sequence in 0..BATCHES {
            assert_eq!(produce(&store, sequence).unwrap(), (sequence, false));
        }
        store.close().unwrap();
        let entries = fs::read_dir(dir.path().join("a")).unwrap().map(|entry| entry.unwrap());
        let named = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
        let files: BTreeMap<_, _> =
            entries.map(|entry| (named(&entry), fs::read(entry.path()).unwrap())).collect();
        assert!(NAMES.iter().all(|name| files.contains_key(*name)), "{:?}", files.keys());
        files
    })
}

/// Arbitrary bytes, or the content of the file with some bytes changed; and whether the checksum is corrected.
fn change(old: &[u8], any: bool, mend: bool, bytes: &[u8]) -> Vec<u8> {
    let mut new = if any { bytes.to_vec() } else { old.to_vec() };
    if !any {
        for edit in bytes.chunks_exact(3).take(8) {
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % new.len();
            new[at] = edit[2];
        }
    }
    if mend && let Ok(mut whole) = serde_json::from_slice::<serde_json::Value>(&new) {
        let crc = millstream::fuzzing::checksum_of_producers(&new);
        if let (Some(crc), Some(members)) = (crc, whole.as_object_mut()) {
            members.insert("crc".into(), crc.into());
            new = serde_json::to_vec(&whole).unwrap();
        }
    }
    new
}

fuzz_target!(|input: (bool, bool, bool, Vec<u8>)| {
    let (producers, any, mend, bytes) = input;
    let name = NAMES[usize::from(producers)];
    let dir = place();
    fs::create_dir(dir.path().join("a")).unwrap();
    for (file, old) in files() {
        let new = if file == name { change(old, any, mend, &bytes) } else { old.clone() };
        fs::write(dir.path().join("a").join(file), new).unwrap();
    }
    let store = Store::open(dir.path(), options()).unwrap();
    let Ok(log) = store.get("a") else {
        assert!(!producers, "producers.json is derived from the log, which opens without it");
        drop(store);
        let report = millstream::verify(dir.path().join("a")).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        return;
    };
    // With some settings, the oldest records may have been dropped; the others are as they were appended.
    for offset in log.first_offset()..BATCHES {
        assert_eq!(log.read(offset).unwrap().unwrap().value(), value(offset));
    }
    if producers && !mend {
        let last = produce(&store, BATCHES - 1).unwrap();
        assert_eq!(last, (BATCHES - 1, true), "a batch is stored twice");
        assert_eq!(produce(&store, BATCHES).unwrap(), (BATCHES, false));
    } else {
        let _ = produce(&store, BATCHES); // a file with a correct checksum is believed
    }
    drop(log);
    store.close().unwrap();
});
