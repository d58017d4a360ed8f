//! What many open logs need from the process: descriptors, threads, memory, mappings. It is alone in its process,
//! because it counts them.
#![cfg(target_os = "linux")]

#[path = "support/shm.rs"]
mod shm;

use millstream::store::{LogSettings, Store, StoreOptions};
use std::time::Duration;

const LOGS: usize = 2000;

fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn an_open_log_takes_a_descriptor_a_mapping_and_less_than_100_kib_and_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    let mut options =
        StoreOptions { open_logs: LOGS, idle: Duration::from_secs(3600), ..StoreOptions::default() };
    options.log.shm_dir = Some(shm::dir().to_owned());
    let store = Store::open(dir.path(), options).unwrap();
    let before = (descriptors(), mappings(), status("VmRSS"));
    let names: Vec<String> = (0..LOGS).map(|n| format!("log-{n}")).collect();
    for name in &names {
        store.create(name, &LogSettings::default()).unwrap();
        store.get(name).unwrap().append(&[1; 100]).unwrap();
    }
    for name in &names {
        store.get(name).unwrap().flush().unwrap();
    }
    assert_eq!((store.counts().logs, store.counts().open), (LOGS as u64, LOGS as u64));
    assert!(descriptors() <= before.0 + LOGS + 32, "{} descriptors", descriptors());
    assert!(mappings() <= before.1 + LOGS + 200, "{} mappings", mappings());
    assert!(status("Threads") <= 16 + 4 + 8, "{} threads", status("Threads"));
    let kib = (status("VmRSS") - before.2) / LOGS as u64;
    assert!(kib < 100, "{kib} KiB a log");
    for name in &names {
        assert_eq!(store.get(name).unwrap().read(0).unwrap().unwrap().value(), [1; 100]);
    }
    store.close().unwrap();
    assert!(descriptors() <= before.0 + 32, "{} descriptors stay", descriptors());
}
