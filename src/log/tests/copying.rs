//! Appends behind one whose records are still being copied.

use crate::{
    chunk::AppendValues,
    log::{Durability, Log, MayBlock, Options},
};
use std::{
    cell::Cell,
    path::Path,
    sync::{Barrier, Mutex, mpsc},
    time::{Duration, Instant},
};

fn open(dir: &Path) -> Log {
    let options = Options { durability: Durability::Memory, shm_dir: None, ..Options::default() };
    Log::open(dir, options).unwrap()
}

/// Three values, of which the last one is copied only when the door is opened.
struct Slow<'a> {
    passes: Cell<u32>,
    begun: &'a Barrier,
    door: &'a Mutex<mpsc::Receiver<()>>,
}

impl AppendValues for Slow<'_> {
    fn each(&self, mut f: impl FnMut(&[u8], u16)) {
        self.passes.set(self.passes.get() + 1);
        for n in 0..3 {
            // They are gone through once to be counted, and once to be copied.
            if n == 2 && self.passes.get() == 2 {
                self.begun.wait();
                self.door.lock().unwrap().recv().unwrap();
            }
            f(&[n; 100], 0);
        }
    }
}

/// Appends behind a large batch turned in a loop until that was copied, on the thread that answers all requests.
#[test]
fn an_append_that_may_not_wait_is_seen_when_the_copy_before_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let (open_door, door) = mpsc::channel();
    let (begun, door) = (Barrier::new(2), Mutex::new(door));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let values = Slow { passes: Cell::new(0), begun: &begun, door: &door };
            log.try_append_values(&values, None, MayBlock::ForCopies).unwrap()
        });
        begun.wait();
        let begun = Instant::now();
        let (log, offset) = (&log, log.try_append_values(&[&b"x"[..]][..], None, MayBlock::No).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5) && offset == 3);
        assert!(!log.is_published(offset) && log.read(offset).unwrap().is_none());
        let waiting = scope.spawn(move || log.wait_published(offset));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        open_door.send(()).unwrap();
        waiting.join().unwrap();
        assert_eq!(slow.join().unwrap(), 0);
        assert!(log.is_published(offset) && log.is_published(u64::MAX));
        assert_eq!(log.read(offset).unwrap().unwrap().value(), b"x");
    });
}
