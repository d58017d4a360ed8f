//! What killed processes leave behind, restored by others: in a store that was moved, that was missing for a while, or
//! that was copied; with few descriptors, and with little memory. Each test runs itself again as the process that is
//! killed.

#[path = "support/shm.rs"]
mod shm;

use millstream::{
    Durability, Log, Options,
    store::{Store, StoreOptions},
};
use std::{
    path::Path,
    process::{Command, Output},
};

fn options(dir: &Path, segment_bytes: u64) -> Options {
    Options {
        durability: Durability::Memory,
        segment_bytes,
        first_segment_bytes: segment_bytes,
        memory_bytes: (segment_bytes * 12).max(1 << 20),
        shm_dir: Some(dir.to_owned()),
    }
}

fn store(dir: &Path, shm_dir: &Path) -> Store {
    let log = options(shm_dir, 1 << 20);
    Store::open(dir, StoreOptions { log, ..StoreOptions::default() }).unwrap()
}

/// Runs the named test of this file again, with these variables. When it finds them, it plays another part.
fn again(test: &str, variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).envs(variables.iter().copied()).output().unwrap()
}

fn variable(name: &str) -> Option<std::path::PathBuf> {
    std::env::var_os(name).map(Into::into)
}

/// Appends ten records that are on disk and ten that are acknowledged in memory, and dies. Run as a test on its own, it
/// does nothing.
#[test]
fn a_store_that_dies() {
    let (Some(dir), Some(shm_dir)) = (variable("LEFT_STORE"), variable("LEFT_SHM_DIR")) else { return };
    let store = store(&dir, &shm_dir);
    store.create("a", &millstream::store::LogSettings::default()).unwrap();
    let log = store.get("a").unwrap();
    for n in 0..20u64 {
        log.append(&n.to_le_bytes()).unwrap();
        if n == 9 {
            log.flush().unwrap();
        }
    }
    std::process::abort();
}

fn left() -> (tempfile::TempDir, tempfile::TempDir) {
    let (place, shm_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in(shm::dir()).unwrap());
    let store = place.path().join("store");
    let died = again("a_store_that_dies", &[("LEFT_STORE", &store), ("LEFT_SHM_DIR", shm_dir.path())]);
    assert!(!died.status.success() && store.join("a").is_dir());
    (place, shm_dir)
}

fn next_offset(dir: &Path, shm_dir: &Path) -> u64 {
    let store = store(dir, shm_dir);
    let log = store.get("a").unwrap();
    let next = log.next_offset();
    let numbers = log.iter(0).map(|record| u64::from_le_bytes(record.unwrap().value().try_into().unwrap()));
    assert!(numbers.eq(0..next));
    next
}

#[test]
fn records_acknowledged_in_memory_follow_a_moved_store() {
    for to in ["store", "moved", "deeper/moved"] {
        let (place, shm_dir) = left();
        let (from, to) = (place.path().join("store"), place.path().join(to));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::rename(from, &to).unwrap();
        assert_eq!(next_offset(&to, shm_dir.path()), 20);
    }
}

#[test]
fn records_acknowledged_in_memory_survive_a_missing_log_directory() {
    let (place, shm_dir) = left();
    let (dir, away) = (place.path().join("store"), place.path().join("not mounted"));
    std::fs::rename(&dir, &away).unwrap();
    // Another server of this user, and one that finds nothing at the store's own place.
    drop(store(&place.path().join("other"), shm_dir.path()));
    drop(store(&dir, shm_dir.path()));
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    assert_eq!(next_offset(&dir, shm_dir.path()), 20);
}

#[test]
fn a_copy_of_a_store_does_not_take_what_the_original_has_in_memory() {
    let (place, shm_dir) = left();
    let (dir, copy) = (place.path().join("store"), place.path().join("copy"));
    assert!(Command::new("cp").arg("-r").args([&dir, &copy]).status().unwrap().success());
    assert!(next_offset(&copy, shm_dir.path()) < 20, "it was on disk, or is not the copy's");
    assert_eq!(next_offset(&dir, shm_dir.path()), 20);
}

/// A copy cannot be told from a log that was moved to another file system, so it does not take the records; but they are
/// told of, as soon as the original is gone.
#[test]
fn what_a_log_has_in_memory_is_told_of_after_it_was_copied_and_removed() {
    let (place, shm_dir) = left();
    let (dir, copy) = (place.path().join("store"), place.path().join("copy"));
    assert!(Command::new("cp").arg("-r").args([&dir, &copy]).status().unwrap().success());
    let told = || millstream::verify_with_progress(copy.join("a"), Some(shm_dir.path()), |_, _| ());
    assert_eq!(told().unwrap().backings, Vec::<std::path::PathBuf>::new(), "they are the original's");
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(!told().unwrap().backings.is_empty());
    assert!(next_offset(&copy, shm_dir.path()) < 20, "it was on disk, or is not the copy's");
    assert!(!told().unwrap().backings.is_empty(), "they stay");
}

#[test]
fn deleting_a_log_removes_its_backings_even_if_the_process_ends_halfway() {
    let (place, shm_dir) = left();
    let dir = place.path().join("store");
    std::fs::rename(dir.join("a"), dir.join(".deleted-1-a")).unwrap();
    drop(store(&dir, shm_dir.path()));
    let left = walk(shm_dir.path());
    assert_eq!(left, 0, "bytes of memory that nobody can find any more");
}

/// Servers that tests had killed left gigabytes in `/dev/shm`.
#[test]
fn nothing_stays_in_memory_of_a_test_that_is_killed() {
    if let Some(told) = variable("LEFT_PLACE") {
        std::fs::write(shm::dir().join("left"), "").unwrap();
        std::fs::write(told, shm::dir().to_str().unwrap()).unwrap();
        std::process::abort();
    }
    let place = tempfile::tempdir().unwrap();
    let told = place.path().join("told");
    again("nothing_stays_in_memory_of_a_test_that_is_killed", &[("LEFT_PLACE", &told)]);
    let shm_dir = std::fs::read_to_string(told).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while Path::new(&shm_dir).exists() {
        assert!(std::time::Instant::now() < deadline, "{shm_dir} stays");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }

    // If the shell that waits for the end was killed too.
    for name in ["millstream-tests-1", "millstream-tests-2", "millstream-0", "millstream-tests-x"] {
        std::fs::create_dir_all(place.path().join(name).join("deep")).unwrap();
    }
    shm::sweep(place.path(), |pid| pid == "1");
    let left = |name: &str| place.path().join(name).exists();
    assert!(!left("millstream-tests-2"));
    assert!(["millstream-tests-1", "millstream-0", "millstream-tests-x"].into_iter().all(left));
}

fn walk(dir: &Path) -> u64 {
    let bytes = |entry: std::fs::DirEntry| {
        if entry.path().is_dir() { walk(&entry.path()) } else { entry.metadata().unwrap().len() }
    };
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(bytes).sum()
}

/// Opening held one descriptor per segment: with the usual limit, a log of 64 GiB could not be opened.
#[test]
fn a_log_of_more_segments_than_there_are_descriptors_is_opened_and_verified() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let small = |shm_dir: &Path| Options { shm_dir: None, ..options(shm_dir, 4 << 10) };
    if let Some(dir) = variable("LEFT_SEGMENTS") {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).unwrap();
        let next = Log::open(&dir, small(&dir)).unwrap().next_offset();
        assert_eq!(millstream::verify(&dir).unwrap().next, next);
        assert_eq!(millstream::repair(&dir).unwrap().damage, []);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), small(dir.path())).unwrap();
    for _ in 0..600 {
        log.append(&[1; 1900]).unwrap();
    }
    log.close().unwrap();
    let test = "a_log_of_more_segments_than_there_are_descriptors_is_opened_and_verified";
    let output = again(test, &[("LEFT_SEGMENTS", dir.path())]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// All backings of a log were read at once: 364 MiB for these.
#[test]
fn opening_after_a_kill_takes_the_memory_of_one_segment_and_not_of_all() {
    const SEGMENT: u64 = 16 << 20;
    if let Some(dir) = variable("LEFT_LARGE") {
        let options = || options(&variable("LEFT_SHM_DIR").unwrap(), SEGMENT);
        if variable("LEFT_FILL").is_some() {
            let log = Log::open(&dir, options()).unwrap();
            let value = vec![1; 100_000];
            for _ in 0..1500 {
                log.append(&value).unwrap();
            }
            std::process::abort();
        }
        let log = Log::open(&dir, options()).unwrap();
        assert_eq!(log.next_offset(), 1500);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        println!("peak {kib} KiB");
        // One backing, one segment's file, the new chunk, and the process itself.
        assert!(kib << 10 < 5 * SEGMENT, "{kib} KiB");
        return;
    }
    let (place, shm_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in(shm::dir()).unwrap());
    let test = "opening_after_a_kill_takes_the_memory_of_one_segment_and_not_of_all";
    let variables = [("LEFT_LARGE", place.path()), ("LEFT_SHM_DIR", shm_dir.path())];
    again(test, &[&variables[..], &[("LEFT_FILL", Path::new("1"))]].concat());
    assert!(walk(shm_dir.path()) > 6 * SEGMENT, "{}", walk(shm_dir.path()));
    let output = again(test, &variables);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
