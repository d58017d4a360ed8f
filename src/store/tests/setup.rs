//! What the tests of stores set up: doors that hold up a disk, clocks, logs of several segments.

use super::{super::*, trouble::options};
pub(super) use crate::log::environment::clocks::{Clocks, NOW};
use crate::{
    disk::sim::{Cut, Sim},
    log::Options,
};
use std::{sync::Condvar, thread, time::Instant};

pub(super) fn without_backings() -> StoreOptions {
    let options = options();
    StoreOptions { log: Options { shm_dir: None, ..options.log }, ..options }
}

#[derive(Default)]
pub(super) struct Door(Mutex<(bool, bool)>, Condvar);

impl Door {
    pub(super) fn shut(&self, shut: bool) {
        self.0.lock().unwrap().0 = shut;
        self.1.notify_all();
    }
    pub(super) fn pass(&self) {
        let mut held = self.0.lock().unwrap();
        if held.0 {
            held.1 = true;
            self.1.notify_all();
        }
        drop(self.1.wait_while(held, |held| held.0).unwrap());
    }
    pub(super) fn wait_for_somebody(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |held| !held.1).unwrap());
    }
}

pub(super) struct Open<'a>(pub(super) &'a Door);
impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.shut(false);
    }
}

/// A store whose log `a` has so many durable records of 1,000 bytes.
pub(super) fn filled(
    env: Environment,
    options: StoreOptions,
    settings: &LogSettings,
    records: usize,
) -> (Store, Arc<OpenLog>) {
    let store = Store::open_in(env, Path::new("/store"), options).unwrap();
    store.create("a", settings).unwrap();
    let log = store.get("a").unwrap();
    for _ in 0..records {
        log.append(&[7; 1000]).and_then(|at| log.wait_durable(at)).unwrap();
    }
    (store, log)
}

/// Such a store as a killed process left it, with sealed segments only; and the offset after the log's last record.
pub(super) fn sealed(clocks: &Arc<Clocks>, settings: &LogSettings, records: usize) -> (Sim, u64) {
    let sim = Sim::new(3);
    let (store, log) = filled(clocks.on(Arc::new(sim.clone())), without_backings(), settings, records);
    let end = log.next_offset();
    drop(log);
    drop(store);
    let sim = sim.after(Cut::Kill);
    let last = sim.dump().into_keys().rfind(|path| path.extension().is_some_and(|end| end == "seg")).unwrap();
    sim.remove(&last).unwrap();
    (sim, end)
}

/// The housekeeper closes all logs but one, for which the door is shut.
pub(super) fn closes_all_but_one(mut store: Store, door: &Door, what: &str) {
    thread::sleep(Duration::from_millis(200)); // zeros are written ahead
    door.shut(true);
    store.housekeeper = Some(Housekeeper::start(&store.inner).unwrap());
    door.wait_for_somebody();
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.counts().open > 1 {
        assert!(Instant::now() < deadline, "{what}: a log is not closed");
        thread::sleep(Duration::from_millis(10));
    }
    door.shut(false);
    store.close().unwrap();
}
