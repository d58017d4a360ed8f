//! What the simulation gives a log or a store in place of the system: a disk, tasks that are run one turn at a time on
//! the simulation's own thread, clocks that stand still until they are moved, and random numbers from a seed.

use crate::{
    disk::sim::{Random, Sim},
    log::{Environment, Machine, Run, Schedule},
};
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Tasks that wait for their turn, each with its key.
#[derive(Default)]
pub(super) struct TaskPool {
    waiting: Mutex<Vec<(u64, Arc<dyn Run>)>>,
    keys: AtomicU64,
}

impl TaskPool {
    fn add(&self, task: Arc<dyn Run>) -> u64 {
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().unwrap().push((key, task));
        key
    }

    /// Runs a turn of one of the tasks, chosen at random. Because threads may be slow, it may also be a task that was
    /// scheduled for later.
    pub(super) fn turn(&self, random: &mut Random) -> bool {
        let task = {
            let mut waiting = self.waiting.lock().unwrap();
            if waiting.is_empty() {
                return false;
            }
            let at = random.below(waiting.len());
            waiting.swap_remove(at).1
        };
        task.run();
        true
    }

    fn clear(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        drop(waiting);
    }
}

/// The pool as a log sees it: a turn that waits for its time does not keep the pool alive.
struct PoolSchedule(Arc<TaskPool>);

impl Schedule for PoolSchedule {
    fn soon(&self, task: Arc<dyn Run>) {
        self.0.add(task);
    }

    fn later(&self, task: Arc<dyn Run>, _: Duration, _: bool) -> u64 {
        self.0.add(task)
    }

    fn bring_forward(&self, key: u64, task: Arc<dyn Run>) {
        self.0.waiting.lock().unwrap().retain(|(waits, _)| *waits != key);
        self.0.add(task);
    }

    fn others_wait(&self) -> bool {
        !self.0.waiting.lock().unwrap().is_empty()
    }

    fn help(&self) {
        let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap());
        for (_, task) in waiting {
            task.run();
        }
    }
}

/// The clocks and the random numbers.
pub(super) struct Clock {
    now: AtomicU64,
    elapsed: AtomicU64,
    random: Mutex<Random>,
}

impl Clock {
    pub(super) fn pass(&self, millis: u64) {
        self.now.fetch_add(millis, Ordering::Relaxed);
        self.elapsed.fetch_add(millis, Ordering::Relaxed);
    }

    /// Sets the wall clock forward or back.
    pub(super) fn jump(&self, millis: i64) {
        let now = self.now.load(Ordering::Relaxed);
        self.now.store(now.saturating_add_signed(millis), Ordering::Relaxed);
    }
}

impl Machine for Clock {
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed.load(Ordering::Relaxed))
    }

    fn advance_simulated(&self, time: Duration) -> bool {
        self.pass(time.as_millis() as u64 + 1);
        true
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.random.lock().unwrap().fill(bytes);
        Ok(())
    }
}

/// One process's world. Dropping it ends what is left of the process.
pub(super) struct World {
    pub(super) sim: Sim,
    pub(super) flushers: Arc<TaskPool>,
    pub(super) maintenance: Arc<TaskPool>,
    /// Whether the memory file system has little room, or none, now and then.
    pub(super) is_scarce: bool,
}

impl World {
    pub(super) fn new(sim: Sim, random: &mut Random) -> Self {
        let world = Self { sim, flushers: Arc::default(), maintenance: Arc::default(), is_scarce: false };
        // One thread may commit while another seals or makes a spare segment.
        let (flushers, inside) = (Arc::clone(&world.flushers), AtomicBool::new(false));
        let chance = Mutex::new(random.fork());
        world.sim.set_meanwhile(Some(Arc::new(move || {
            if inside.swap(true, Ordering::Relaxed) {
                return;
            }
            let mut random = {
                let mut chance = chance.lock().unwrap();
                if chance.one_in(3) { Some(chance.fork()) } else { None }
            };
            if let Some(random) = &mut random {
                flushers.turn(random);
            }
            inside.store(false, Ordering::Relaxed);
        })));
        let disk = world.sim.clone();
        world.sim.set_memory_gate(move |step| disk.memory_step(step));
        world
    }

    pub(super) fn environment(&self, clock: &Arc<Clock>) -> Environment {
        Environment {
            trusted_time: Arc::default(),
            disk: Arc::new(self.sim.clone()),
            machine: Arc::clone(clock) as Arc<dyn Machine>,
            flushers: Arc::new(PoolSchedule(Arc::clone(&self.flushers))),
            maintenance: Arc::new(PoolSchedule(Arc::clone(&self.maintenance))),
        }
    }

    /// Runs a turn of some task, if any is waiting; returns whether there was one.
    pub(super) fn turn(&self, random: &mut Random) -> bool {
        let (one, other) = if random.one_in(2) {
            (&self.flushers, &self.maintenance)
        } else {
            (&self.maintenance, &self.flushers)
        };
        one.turn(random) || other.turn(random)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.sim.set_meanwhile(None);
        self.flushers.clear();
        self.maintenance.clear();
        self.sim.remove_memory_gate();
    }
}

pub(super) fn clock(random: &mut Random) -> Arc<Clock> {
    Arc::new(Clock {
        now: AtomicU64::new(1_764_000_000_000),
        elapsed: AtomicU64::new(0),
        random: Mutex::new(random.fork()),
    })
}
