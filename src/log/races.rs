//! The whole path of a record under shuttle: append, roll, flush, read, wait, close, with more threads and longer runs
//! than loom can do. Shuttle runs one thread at a time, switches to another at each atomic, lock and wait as its seed
//! says, and reports a deadlock, which here is a lost wake-up. It does not see weak memory orderings: those are left to
//! loom.
//!
//! `RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --no-default-features --lib --release -- shuttle_`;
//! `MILLSTREAM_SHUTTLE_RUNS` sets the number of runs of each.

use super::{
    Durability, Environment, Error, Log, Options,
    task::{Run, Schedule},
};
use crate::{
    disk::sim::Sim,
    sync::{Condvar, Mutex, lock, thread},
};
use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

const DIR: &str = "/log";

fn runs() -> usize {
    std::env::var("MILLSTREAM_SHUTTLE_RUNS").map_or(300, |runs| runs.parse().unwrap())
}

/// Schedules the threads at random. Not by few switches at places that matter (PCT): such a schedule is unfair, and an
/// appender that waits for the copy of another one, as it does for some nanoseconds, would wait for ever.
fn check(run: impl Fn() + Send + Sync + 'static) {
    // The stack of a thread of the model is 32 KiB by default, which is less than opening a log takes.
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    shuttle::Runner::new(shuttle::scheduler::RandomScheduler::new(runs()), config).run(run);
}

/// A pool of threads of the model. What is due later is due at once.
#[derive(Clone, Default)]
struct Pool(Arc<(Mutex<Queue>, Condvar)>);

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<dyn Run>>,
    /// Due only when all others had a turn.
    later: VecDeque<Arc<dyn Run>>,
    over: bool,
}

impl Pool {
    fn begin(threads: usize) -> (Self, Vec<thread::JoinHandle<()>>) {
        let pool = Self::default();
        let work = |pool: Self| {
            move || {
                while let Some(task) = pool.next() {
                    task.run();
                }
            }
        };
        let threads = (0..threads).map(|_| thread::spawn(work(pool.clone()))).collect();
        (pool, threads)
    }

    fn next(&self) -> Option<Arc<dyn Run>> {
        let mut queue = lock(&self.0.0);
        loop {
            if let Some(task) = queue.ready.pop_front() {
                return Some(task);
            }
            if queue.over {
                return None;
            }
            if let Some(task) = queue.later.pop_front() {
                drop(queue);
                thread::yield_now(); // time goes by
                return Some(task);
            }
            queue = self.0.1.wait(queue).unwrap();
        }
    }

    fn end(self, threads: Vec<thread::JoinHandle<()>>) {
        lock(&self.0.0).over = true;
        self.0.1.notify_all();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

impl Schedule for Pool {
    fn soon(&self, task: Arc<dyn Run>) {
        lock(&self.0.0).ready.push_back(task);
        self.0.1.notify_one();
    }

    fn later(&self, task: Arc<dyn Run>, _: Duration, _: bool) -> u64 {
        lock(&self.0.0).later.push_back(task);
        self.0.1.notify_one();
        0
    }

    fn bring_forward(&self, _: u64, task: Arc<dyn Run>) {
        self.soon(task);
    }

    fn others_wait(&self) -> bool {
        !lock(&self.0.0).ready.is_empty()
    }
}

/// Segments of the smallest size, so that a few records roll.
fn options(durability: Durability) -> Options {
    Options {
        durability,
        segment_bytes: 4096,
        first_segment_bytes: 4096,
        memory_bytes: 24 << 10,
        shm_dir: None,
    }
}

/// Opens a log in the model, runs `with` on it, and closes it.
fn with_log(durability: Durability, with: impl FnOnce(&Arc<Log>)) {
    let sim = Sim::new(1);
    let ((flushers, f), (maintenance, k)) = (Pool::begin(1), Pool::begin(1));
    let env = Environment {
        flushers: Arc::new(flushers.clone()),
        maintenance: Arc::new(maintenance.clone()),
        ..Environment::on(Arc::new(sim))
    };
    let log = Arc::new(Log::open_in(&env, Path::new(DIR), options(durability)).unwrap());
    with(&log);
    let acknowledged = log.next_offset();
    Arc::into_inner(log).unwrap().close().unwrap();
    let log = Log::open_in(&env, Path::new(DIR), options(durability)).unwrap();
    assert_eq!((log.next_offset(), log.damage()), (acknowledged, &[][..]), "what was appended is there");
    log.close().unwrap();
    flushers.end(f);
    maintenance.end(k);
}

/// Large enough that three fill a segment.
fn value(thread: u8, n: u8) -> Vec<u8> {
    let mut value = vec![thread; 1200];
    value[1] = n;
    value
}

#[test]
fn shuttle_offsets_are_dense_and_readers_that_follow_see_each_record_once_in_order() {
    for durability in [Durability::Disk, Durability::Memory] {
        check(move || {
            with_log(durability, |log| {
                const EACH: u8 = 4;
                let appenders: Vec<_> = (0..2u8)
                    .map(|number| {
                        let log = Arc::clone(log);
                        thread::spawn(move || {
                            let mut appender = log.appender();
                            for n in 0..EACH {
                                let value = value(number, n);
                                let first = if n % 2 == 0 {
                                    appender.append(&value).unwrap()
                                } else {
                                    appender.append_batch(&[&value, &value[..2]]).unwrap()
                                };
                                log.wait_durable(first).unwrap();
                                assert!(log.durable_offset() > first);
                            }
                        })
                    })
                    .collect();
                let reader = {
                    let log = Arc::clone(log);
                    thread::spawn(move || {
                        let (mut reader, mut seen) = (log.reader(0), [Vec::new(), Vec::new()]);
                        let all = 2 * (u64::from(EACH) + u64::from(EACH) / 2);
                        while reader.offset() < all {
                            assert!(reader.wait(None).unwrap());
                            while let Some(record) = reader.read_next().unwrap() {
                                seen[usize::from(record.value[0])].push(record.value[1]);
                            }
                        }
                        seen
                    })
                };
                appenders.into_iter().for_each(|appender| appender.join().unwrap());
                for seen in reader.join().unwrap() {
                    assert_eq!(seen, [0, 1, 1, 2, 3, 3]);
                }
            });
        });
    }
}

#[test]
fn shuttle_of_conditional_appends_at_one_offset_one_succeeds() {
    check(|| {
        with_log(Durability::Disk, |log| {
            let contenders: Vec<_> = (0..3u8)
                .map(|number| {
                    let log = Arc::clone(log);
                    thread::spawn(move || {
                        let mut won = 0;
                        for _ in 0..3 {
                            let next = log.next_offset();
                            match log.append_if(next, &value(number, 0)) {
                                Ok(offset) => {
                                    assert_eq!(offset, next);
                                    won += 1;
                                }
                                Err(Error::Unexpected { expected, next: now }) => {
                                    assert!(expected == next && now > next)
                                }
                                Err(error) => panic!("{error}"),
                            }
                        }
                        won
                    })
                })
                .collect();
            let won: u64 = contenders.into_iter().map(|contender| contender.join().unwrap()).sum();
            assert_eq!(log.next_offset(), won);
        });
    });
}

#[test]
fn shuttle_a_log_that_is_closed_has_all_that_was_acknowledged_and_nobody_waits_for_ever() {
    for durability in [Durability::Disk, Durability::Memory] {
        check(move || {
            let sim = Sim::new(1);
            let ((flushers, f), (maintenance, k)) = (Pool::begin(2), Pool::begin(1));
            let env = Environment {
                flushers: Arc::new(flushers.clone()),
                maintenance: Arc::new(maintenance.clone()),
                ..Environment::on(Arc::new(sim))
            };
            let log = Log::open_in(&env, Path::new(DIR), options(durability)).unwrap();
            let appenders: Vec<_> = (0..2u8)
                .map(|number| {
                    let mut appender = log.appender();
                    thread::spawn(move || {
                        let mut last = None;
                        for n in 0..6 {
                            match appender.append(&value(number, n)) {
                                Ok(offset) => last = Some(offset),
                                Err(Error::Closed) => break,
                                Err(error) => panic!("{error}"),
                            }
                        }
                        last
                    })
                })
                .collect();
            let mut reader = log.reader(0);
            let follower = thread::spawn(move || {
                loop {
                    match reader.wait(None) {
                        Ok(true) => while reader.read_next().unwrap().is_some() {},
                        Ok(false) => panic!("without a deadline"),
                        Err(Error::Closed) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            thread::yield_now();
            log.close().unwrap();
            let last = appenders.into_iter().filter_map(|appender| appender.join().unwrap()).max();
            follower.join().unwrap();
            let log = Log::open_in(&env, Path::new(DIR), options(durability)).unwrap();
            assert!(
                last.is_none_or(|last| log.next_offset() == last + 1),
                "{last:?} of {}",
                log.next_offset()
            );
            log.close().unwrap();
            flushers.end(f);
            maintenance.end(k);
        });
    }
}
