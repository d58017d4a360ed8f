//! Opens a directory of mutated segment files. Whatever was changed: no panic, no value that was not appended, and
//! after `repair` the log can be written to.
#![no_main]

#[path = "../../tests/support/shm.rs"]
mod shm;

use libfuzzer_sys::fuzz_target;
use millstream::{Error, Log, Options};
use std::{fs, path::PathBuf, sync::OnceLock};

fn options() -> Options {
    Options {
        segment_bytes: 8192,
        first_segment_bytes: 4096,
        memory_bytes: 64 << 10,
        shm_dir: None,
        ..Options::default()
    }
}

fn value(offset: u64) -> Vec<u8> {
    (0..offset * 37 % 400).map(|n| (offset * 31 + n) as u8).collect()
}

/// The files of a log of four segments, the last one not sealed.
fn files() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), options()).unwrap();
        for offset in 0..70 {
            log.append(&value(offset)).unwrap();
        }
        log.close().unwrap();
        let mut paths: Vec<PathBuf> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths
            .iter()
            .map(|path| (named(path), fs::read(path).unwrap()))
            .filter(|(name, _)| name != "lock")
            .collect()
    })
}

/// What is read is what was appended, or is reported as damaged.
fn check(log: &Log) {
    for offset in log.first_offset()..log.next_offset().min(200) {
        match log.read(offset) {
            Ok(Some(record)) if record.is_lost() => {}
            Ok(Some(record)) if offset < 70 => assert_eq!(record.value(), value(offset)),
            Ok(_) | Err(Error::Damaged { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

// Each mutation: which file, what to do, where, and with what.
fuzz_target!(|mutations: Vec<(u8, u8, u16, u8)>| {
    let dir = tempfile::tempdir_in(shm::dir()).unwrap();
    let mut files = files().to_vec();
    for (file, what, at, byte) in mutations.into_iter().take(16) {
        let n = usize::from(file) % files.len();
        let bytes = &mut files[n].1;
        let at = usize::from(at) % bytes.len().max(1);
        match what % 6 {
            0..=2 if !bytes.is_empty() => bytes[at] ^= byte,
            3 => bytes.truncate(at),
            4 => bytes[at..].fill(byte),
            5 => bytes.extend(std::iter::repeat_n(byte, at % 9000)),
            _ => {}
        }
        if what == 255 && files.len() > 1 {
            files.remove(n);
        }
    }
    for (name, bytes) in &files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let Ok(log) = Log::open(dir.path(), options()) else { return };
    check(&log);
    drop(log);
    if millstream::repair(dir.path()).is_ok() {
        let log = Log::open(dir.path(), options()).unwrap();
        check(&log);
        let offset = log.append(b"on it goes").unwrap();
        log.wait_durable(offset).unwrap();
        assert_eq!(log.read(offset).unwrap().unwrap().value(), b"on it goes");
    }
});
