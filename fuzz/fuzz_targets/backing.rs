//! Opens a log whose backings in shared memory, left by a killed process, have been changed, or consist of arbitrary
//! bytes. In any case: no panic; the records that were on the disk are kept; no record appears that was not appended,
//! and none at another offset; the log continues, or is read-only and says why.
#![no_main]

#[path = "../../tests/support/shm.rs"]
mod shm;

use libfuzzer_sys::fuzz_target;
use millstream::{Durability, Error, Log, Options};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

struct Left {
    /// Always the same directory: a backing records the directory of its log.
    dir: PathBuf,
    shm_dir: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
    memory: Vec<(PathBuf, Vec<u8>)>,
    durable: u64,
}

const RECORDS: u64 = 60;

fn value(offset: u64) -> Vec<u8> {
    (0..20 + offset * 37 % 300).map(|n| (offset * 31 + n) as u8).collect()
}

fn below(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn options(shm_dir: &Path) -> Options {
    Options {
        durability: Durability::Memory,
        segment_bytes: 8192,
        first_segment_bytes: 8192,
        memory_bytes: 128 << 10,
        shm_dir: Some(shm_dir.to_owned()),
    }
}

/// What a process leaves if it is killed with records that are only in memory: copied while it still runs.
fn left() -> &'static Left {
    static LEFT: OnceLock<Left> = OnceLock::new();
    LEFT.get_or_init(|| {
        let place = tempfile::tempdir_in(shm::dir()).unwrap().keep();
        let (dir, shm_dir) = (place.join("log"), place.join("shm"));
        fs::create_dir(&shm_dir).unwrap();
        let log = Log::open(&dir, options(&shm_dir)).unwrap();
        for offset in 0..RECORDS - 20 {
            log.append(&value(offset)).unwrap();
        }
        log.flush().unwrap();
        let files = below(&dir);
        let durable = log.durable_offset();
        for offset in RECORDS - 20..RECORDS {
            log.append(&value(offset)).unwrap();
        }
        let memory = below(&shm_dir);
        log.close().unwrap();
        assert!(durable >= RECORDS - 20 && !memory.is_empty());
        Left { dir, shm_dir, files, memory, durable }
    })
}

// Each change: of which backing, what kind, where (in words of 4 bytes near the beginning, or anywhere), and with what.
fuzz_target!(|input: (Vec<(u8, u8, u16, u32)>, Vec<u8>)| {
    let (changes, raw) = input;
    let left = left();
    for (path, _) in below(&left.dir).iter().chain(&below(&left.shm_dir)) {
        fs::remove_file(path).unwrap();
    }
    for (path, bytes) in &left.files {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let mut memory = left.memory.clone();
    for (which, what, at, with) in changes.into_iter().take(16) {
        let n = usize::from(which) % memory.len();
        let bytes = &mut memory[n].1;
        let length = bytes.len().max(1);
        let head = usize::from(at) % 64 * 4;
        let anywhere = usize::from(at) % length;
        match what % 8 {
            0 | 1 if head + 4 <= bytes.len() => bytes[head..head + 4].copy_from_slice(&with.to_le_bytes()),
            2 | 3 if anywhere < bytes.len() => bytes[anywhere] ^= with as u8,
            4 => bytes.truncate(anywhere),
            5 => *bytes = raw.clone(),
            6 => bytes.iter_mut().skip(anywhere).zip(&raw).for_each(|(old, new)| *old = *new),
            7 => {
                let other = memory[with as usize % memory.len()].1.clone(); // one in the place of another
                memory[n].1 = other;
            }
            _ => {}
        }
    }
    for (path, bytes) in &memory {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let Ok(log) = Log::open(&left.dir, options(&left.shm_dir)) else { return };
    assert!(log.next_offset() >= left.durable, "what was on the disk is gone");
    assert!(log.next_offset() <= RECORDS, "more than was ever appended");
    for offset in log.first_offset()..log.next_offset() {
        match log.read(offset) {
            Ok(Some(record)) if record.is_lost() => panic!("nobody has repaired it"),
            Ok(Some(record)) => assert_eq!(record.value(), value(offset), "offset {offset}"),
            Err(Error::Damaged { .. }) => assert!(!log.damage().is_empty()),
            other => panic!("offset {offset}: {other:?}"),
        }
    }
    if log.damage().is_empty() && log.writable().is_ok() {
        let next = log.next_offset();
        assert_eq!(log.append(b"on it goes").unwrap(), next);
        log.flush().unwrap();
        assert_eq!(log.read(next).unwrap().unwrap().value(), b"on it goes");
        log.close().unwrap();
    }
});
