//! The names of logs and of what is left of them: what is acknowledged, and when a directory is emptied, if a name could
//! not be made durable.

use super::{
    super::*,
    setup::{Door, Open, without_backings},
};
use crate::disk::{
    gate::{Gate, Operation},
    sim::{Cut, Sim},
};
use std::sync::atomic::AtomicUsize;

const PLACE: &str = "/store";

fn open(disk: Arc<dyn crate::disk::Disk>) -> Store {
    Store::open_in(Environment::on(disk), Path::new(PLACE), without_backings()).unwrap()
}

/// Appends some records, waits until they are durable, and returns their number, as far as the log takes any.
fn acknowledged(store: &Store) -> u64 {
    let append = |log: Arc<OpenLog>| Ok(log.append(b"acknowledged").and_then(|at| log.wait_durable(at))?);
    (0..5).take_while(|_| store.get("a").and_then(append).is_ok()).count() as u64
}

/// What the next process finds after the power has failed now.
fn after_power_loss(sim: &Sim, store: Store) -> Store {
    let sim = sim.after(Cut::Power);
    std::mem::forget(store);
    open(Arc::new(sim))
}

/// A deletion that failed because no descriptor was left was undone, and nothing made that durable: the log went on
/// acknowledging records, and was deleted when the power failed.
#[test]
fn a_log_whose_deletion_failed_acknowledges_nothing_that_a_crash_deletes() {
    for (seed, undoing_fails) in (0..40).flat_map(|seed| [(seed, false), (seed, true)]) {
        let sim = Sim::new(seed);
        let fails = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&fails);
        let gate = Gate::new(Arc::new(sim.clone()), move |operation, path| {
            let hit = match operation {
                Operation::SyncDir => path == Path::new(PLACE) && asked.load(Ordering::SeqCst) > 0,
                Operation::Rename => {
                    path.to_string_lossy().contains(DELETED) && asked.load(Ordering::SeqCst) > 1
                }
                _ => false,
            };
            if hit { Err(io::Error::from_raw_os_error(24)) } else { Ok(()) }
        });
        let store = open(gate);
        store.create("a", &LogSettings::default()).unwrap();
        assert_eq!(acknowledged(&store), 5);
        fails.store(1 + usize::from(undoing_fails), Ordering::SeqCst);
        store.delete("a").unwrap_err();
        fails.store(0, Ordering::SeqCst);
        let more = acknowledged(&store);
        let store = after_power_loss(&sim, store);
        match store.get("a") {
            Ok(log) => assert_eq!(log.next_offset(), 5 + more),
            Err(error) => assert_eq!(more, 0, "{seed}, {undoing_fails}: {error}"),
        }
    }
}

/// Without a crash: a deletion could neither be made durable nor be undone. The log went on acknowledging
/// records in a directory that the next start removed.
#[test]
fn a_log_whose_deletion_could_not_be_undone_acknowledges_nothing_that_a_restart_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let (asked, at) = (Arc::clone(&fails), dir.path().to_owned());
    let gate = Gate::new(crate::disk::native(), move |operation, path| {
        let hit = match operation {
            Operation::SyncDir => path == at,
            Operation::Rename => path.to_string_lossy().contains(DELETED),
            _ => false,
        };
        if hit && asked.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    });
    let store = Store::open_in(Environment::on(gate), dir.path(), without_backings()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    acknowledged(&store);
    fails.store(true, Ordering::SeqCst);
    store.delete("a").unwrap_err();
    fails.store(false, Ordering::SeqCst);
    let more = acknowledged(&store);
    store.inner.turn();
    store.close().unwrap();
    let store = Store::open(dir.path(), without_backings()).unwrap();
    match store.get("a") {
        Ok(log) => assert_eq!(log.next_offset(), 5 + more),
        Err(error) => assert_eq!(more, 0, "{error}"),
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the lock is left");
}

/// Creating a log failed when its name was to be made durable, and could not be undone. When it was created again, its
/// name still was not durable, and was lost with all that the log had acknowledged.
#[test]
fn a_log_is_opened_only_when_its_name_is_durable() {
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let fails = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&fails);
        let gate = Gate::new(Arc::new(sim.clone()), move |operation, path| {
            let hit = match operation {
                Operation::SyncDir => path == Path::new(PLACE),
                Operation::Rename => path == Path::new("/store/a"),
                _ => false,
            };
            if hit && asked.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
        });
        let store = open(gate);
        fails.store(true, Ordering::SeqCst);
        store.create("a", &LogSettings::default()).unwrap_err();
        store.create("a", &LogSettings::default()).unwrap_err();
        fails.store(false, Ordering::SeqCst);
        assert!(!store.create("a", &LogSettings::default()).unwrap());
        assert_eq!(acknowledged(&store), 5);
        let store = after_power_loss(&sim, store);
        assert_eq!(store.get("a").unwrap().next_offset(), 5, "{seed}");
    }
}

/// A log whose creation could not be undone was not known any more, if it could not be looked for at that moment.
#[test]
fn a_half_created_log_that_cannot_be_looked_for_is_looked_for_when_it_is_used() {
    for undone in [false, true] {
        let sim = Sim::new(1);
        let fails = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&fails);
        let gate = Gate::new(Arc::new(sim.clone()), move |operation, path| {
            let hit = match operation {
                Operation::Create => true,
                Operation::Rename => !undone && path == Path::new("/store/a"),
                Operation::List => path == Path::new("/store/a"),
                _ => false,
            };
            if hit && asked.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(24)) } else { Ok(()) }
        });
        let store = open(gate);
        fails.store(true, Ordering::SeqCst);
        store.create("a", &LogSettings::default()).unwrap_err();
        fails.store(false, Ordering::SeqCst);
        assert_eq!(acknowledged(&store), if undone { 0 } else { 5 });
        assert_eq!(store.names(None, 9).len(), usize::from(!undone), "it is listed, and cannot be used");
        assert_eq!(store.create("a", &LogSettings::default()).unwrap(), undone);
        assert_eq!(acknowledged(&store), 5);
    }
}

/// The names of logs were read before the lock was taken, so a log that the process before had created last was not
/// found until the next start.
#[test]
fn a_store_finds_what_another_process_has_created_before_it_released_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let other = Mutex::new(Some(Store::open(dir.path(), without_backings()).unwrap()));
    let at = dir.path().join(COMMON_LOCK);
    let gate = Gate::new(crate::disk::native(), move |operation, path| {
        if operation == Operation::Lock && path == at {
            let store = other.lock().unwrap().take().unwrap();
            store.create("a", &LogSettings::default()).unwrap();
            assert_eq!(acknowledged(&store), 5);
            store.close().unwrap();
        }
        Ok(())
    });
    let store = Store::open_in(Environment::on(gate), dir.path(), without_backings()).unwrap();
    assert_eq!(store.names(None, 9), ["a"]);
    assert_eq!(store.get("a").unwrap().next_offset(), 5);
}

/// The names were synced first, and then those taken that were to be removed: among them one that had come in between,
/// and was back as an emptied log after the power had failed.
#[test]
fn what_is_left_of_a_log_is_emptied_only_if_its_name_was_there_before_the_sync() {
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let phase = Arc::new(AtomicUsize::new(0));
        let inner: Arc<Mutex<Option<std::sync::Weak<Inner>>>> = Arc::default();
        let (now, reached) = (Arc::clone(&phase), Arc::clone(&inner));
        let gate = Gate::new(Arc::new(sim.clone()), move |operation, path| {
            let is_store = path == Path::new(PLACE);
            match (operation, now.load(Ordering::SeqCst)) {
                (Operation::SyncedDir, 1) if is_store => {
                    now.store(2, Ordering::SeqCst);
                    let inner = reached.lock().unwrap().as_ref().and_then(std::sync::Weak::upgrade).unwrap();
                    let settings = LogSettings { values: Values::Json, ..LogSettings::default() };
                    assert!(inner.make_log("b", &settings, &Entry::new(false)).is_err());
                    now.store(4, Ordering::SeqCst);
                    Ok(())
                }
                (Operation::Create, 2 | 3) => {
                    now.store(3, Ordering::SeqCst);
                    Err(io::Error::from_raw_os_error(28))
                }
                (Operation::SyncDir, 3) if is_store => Err(io::Error::from_raw_os_error(5)),
                _ => Ok(()),
            }
        });
        let store = open(gate);
        *inner.lock().unwrap() = Some(Arc::downgrade(&store.inner));
        store.inner.to_remove().push(PathBuf::from("/store/.deleted-0-x"));
        phase.store(1, Ordering::SeqCst);
        store.inner.retry_removals();
        assert_eq!(phase.load(Ordering::SeqCst), 4);
        let store = after_power_loss(&sim, store);
        for name in store.names(None, 9) {
            let values = store.get(&name).unwrap().settings().values;
            assert_eq!((&*name, values), ("b", Values::Json), "{seed}: without its settings");
        }
    }
}

/// Flushers that never run: all commits are those of callers that wait.
struct Idle;

impl crate::log::Schedule for Idle {
    fn soon(&self, _: Arc<dyn crate::log::Run>) {}
    fn later(&self, _: Arc<dyn crate::log::Run>, _: Duration, _: bool) -> u64 {
        0
    }
    fn bring_forward(&self, _: u64, _: Arc<dyn crate::log::Run>) {}
    fn others_wait(&self) -> bool {
        false
    }
}

/// A caller that waited for its record was about to name a segment file when its log was deleted. It did so in the
/// directory of the next log of that name, with a file that was that log's: which could not be opened any more.
#[test]
fn a_caller_that_waits_for_a_deleted_log_names_no_file_of_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let (door, armed) = (Arc::new(Door::default()), Arc::new(AtomicBool::new(false)));
    let (held, asked) = (Arc::clone(&door), Arc::clone(&armed));
    let gate = Gate::new(crate::disk::native(), move |operation, path| {
        let hit = operation == Operation::Rename && path.ends_with("next-1.tmp");
        if hit && asked.swap(false, Ordering::SeqCst) {
            held.pass();
        }
        Ok(())
    });
    let env = Environment { flushers: Arc::new(Idle), ..Environment::on(gate) };
    let store = Store::open_in(env, dir.path(), without_backings()).unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let log = store.get("a").unwrap();
    door.shut(true);
    armed.store(true, Ordering::SeqCst);
    let _opens = Open(&door);
    let waiter =
        std::thread::spawn(
            move || {
                while log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).is_ok() {}
            },
        );
    door.wait_for_somebody();
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| store.delete("a").unwrap());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!deleting.is_finished(), "it does not wait for whoever writes");
        door.shut(false);
    });
    waiter.join().unwrap();
    store.create("a", &LogSettings::default()).unwrap();
    let log = store.get("a").unwrap();
    for _ in 0..60 {
        log.append(&[8; 300]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    drop(log);
    store.close().unwrap();
    let store = Store::open(dir.path(), without_backings()).unwrap();
    assert_eq!(store.get("a").unwrap().next_offset(), 60);
}

/// A log that was moved to another disk, with a symbolic link in its place, was not found, until somebody created it: that
/// failed, and the log was there, acknowledged records as durable, and was not found after the next start. A file became a
/// log in the same way, and deleting that log took the file away.
#[test]
fn what_is_not_a_directory_is_not_a_log_and_does_not_become_one() {
    let (place, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = place.path().join("store");
    let options = without_backings();
    let store = Store::open(&dir, options.clone()).unwrap();
    store.create("moved", &LogSettings::default()).unwrap();
    store.get("moved").unwrap().append(b"one").unwrap();
    store.close().unwrap();
    std::fs::rename(dir.join("moved"), elsewhere.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("moved"), dir.join("moved")).unwrap();
    std::fs::write(dir.join("file"), "of the user").unwrap();
    let store = Store::open(&dir, options).unwrap();
    for name in ["moved", "file"] {
        let is_refused = |error| matches!(error, Error::Log(LogError::NotALog { .. }));
        assert!(store.create(name, &LogSettings::default()).is_err_and(is_refused), "{name}");
        assert!(matches!(store.get(name), Err(Error::NotFound { .. })), "{name}");
        assert!(matches!(store.delete(name), Err(Error::NotFound { .. })), "{name}");
    }
    assert!(store.names(None, 10).is_empty());
    store.close().unwrap();
    assert_eq!(std::fs::read(dir.join("file")).unwrap(), b"of the user");
    assert!(elsewhere.path().join("moved").is_dir() && dir.join("moved").is_symlink());
}

/// An empty directory became a log when somebody looked at it; one of somebody else was a log that could not be opened,
/// and a broken one was reported only once somebody had asked for it.
#[test]
fn what_the_directories_of_a_store_are_is_known_when_it_is_opened() {
    let place = tempfile::tempdir().unwrap();
    let dir = |name: &str| place.path().join(name);
    let open = || Store::open(place.path(), without_backings()).unwrap();
    let store = open();
    for name in ["broken", "mixed", "whole", "bare"] {
        store.create(name, &LogSettings::default()).unwrap();
        store.get(name).unwrap().append(b"one").unwrap();
    }
    store.close().unwrap();
    std::fs::write(dir("broken").join("log.json"), "{").unwrap();
    std::fs::write(dir("mixed").join("notes.txt"), "of somebody else").unwrap();
    std::fs::remove_file(dir("bare").join("log.json")).unwrap(); // as of a program without a store
    for name in ["empty", "foreign", "begun"] {
        std::fs::create_dir(dir(name)).unwrap();
    }
    std::fs::create_dir(dir("foreign").join("photos")).unwrap();
    std::fs::write(dir("begun").join("lock"), "").unwrap(); // its first records may be in memory only
    for round in 0..2 {
        let store = open();
        let names = store.names(None, 10);
        let all = ["bare", "begun", "broken", "empty", "mixed", "whole"];
        assert_eq!(
            names,
            all.iter().copied().filter(|&name| name != "empty" || round > 0).collect::<Vec<_>>()
        );
        assert_eq!((store.unusable(&names), store.counts().unusable), (vec!["broken", "mixed"], 2));
        let is_found = |name| !matches!(store.get(name), Err(Error::NotFound { .. }));
        assert!(!is_found("foreign") && is_found("empty") == (round > 0));
        let settings = LogSettings { record_bytes: Some(7), ..LogSettings::default() };
        let refused = store.create("foreign", &settings);
        assert!(
            matches!(&refused, Err(Error::Log(LogError::NotALog { found, .. })) if found == "photos"),
            "{refused:?}"
        );
        assert!(!is_found("foreign") && store.counts().logs == names.len() as u64);
        assert_eq!(store.create("empty", &settings).unwrap(), round == 0);
        assert_eq!(*store.get("empty").unwrap().settings(), settings);
        for name in ["bare", "begun", "whole"] {
            assert_eq!(store.get(name).unwrap().next_offset(), u64::from(name != "begun"), "{name}");
        }
        store.close().unwrap();
        assert!(dir("foreign").join("photos").is_dir());
    }
}
