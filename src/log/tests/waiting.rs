//! Callers that wait: for room, for the disk, each of them with or without a thread of its own.

use super::*;
use crate::disk::sim::Sim;
use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn poll<F: Future>(future: Pin<&mut F>, woken: &Arc<Woken>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(woken))))
}

/// Polls whenever it is woken.
fn finish<F: Future>(mut future: Pin<&mut F>) -> F::Output {
    let (woken, deadline) = (Arc::<Woken>::default(), Instant::now() + Duration::from_secs(10));
    let mut polled = 0;
    loop {
        if let Poll::Ready(done) = poll(future.as_mut(), &woken) {
            return done;
        }
        while woken.0.load(SeqCst) == polled {
            assert!(Instant::now() < deadline, "it is never woken");
            std::thread::yield_now();
        }
        polled = woken.0.load(SeqCst);
    }
}

/// A log whose memory is used up, on a disk that does not write until it is told to.
fn full() -> (Sim, Log, u64) {
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    sim.hold(true);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut refusals = 0;
    while refusals < 20 {
        assert!(Instant::now() < deadline);
        if let Err(error) = log.try_append(&[3; 500]) {
            assert!(matches!(error, Error::WouldBlock), "{error}");
            refusals += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let next = log.next_offset();
    (sim, log, next)
}

/// Tasks in the order in which they were woken.
struct InTurn(usize, Arc<std::sync::Mutex<std::collections::VecDeque<usize>>>);

impl Wake for InTurn {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push_back(self.0);
    }
}

/// Room for one more segment woke all that waited: 45,126 refusals for 30,000 appends.
#[test]
fn of_many_async_appends_each_is_polled_when_it_is_its_turn() {
    const TASKS: usize = 200;
    let (sim, log, next) = full();
    let queue = Arc::default();
    let mut tasks: Vec<_> = (0..TASKS)
        .map(|n| {
            let waker = Waker::from(Arc::new(InTurn(n, Arc::clone(&queue))));
            (Box::pin(log.append_async([n as u8; 500])), waker, None)
        })
        .collect();
    for (future, waker, _) in &mut tasks {
        assert!(future.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
    }
    log.shared.roll.line().bump();
    let woken = queue.lock().unwrap().len();
    sim.hold(false);
    assert!((1..TASKS / 2).contains(&woken), "{woken} were woken"); // a few by the maintenance task, as time goes by
    let (deadline, mut polls, mut left) = (Instant::now() + Duration::from_secs(10), 0, TASKS);
    while left > 0 {
        assert!(Instant::now() < deadline, "some are never woken");
        let Some(n) = queue.lock().unwrap().pop_front() else {
            std::thread::yield_now();
            continue;
        };
        let (future, waker, done) = &mut tasks[n];
        if done.is_none() {
            polls += 1;
            if let Poll::Ready(offset) = future.as_mut().poll(&mut Context::from_waker(waker)) {
                (*done, left) = (Some(offset.unwrap()), left - 1);
            }
        }
    }
    let offsets: Vec<u64> = tasks.iter().map(|(.., done)| done.unwrap() - next).collect();
    // Of two events, the turn of the second may come before the room of the first is there.
    let near = |(n, offset): (usize, &u64)| (*offset as usize).abs_diff(n) < TASKS / 4;
    assert!(offsets.iter().enumerate().all(near), "not in the order in which they came: {offsets:?}");
    assert!(polls < TASKS + TASKS / 2, "{polls} polls for {TASKS} appends");
}

#[test]
fn a_future_that_is_dropped_in_its_turn_passes_it_on_and_one_that_is_forgotten_is_passed_over() {
    for forgotten in [false, true] {
        let (sim, log, next) = full();
        let mut first = Box::pin(log.append_async(b"first"));
        let mut second = pin!(log.append_async(b"second"));
        let woken = [Arc::<Woken>::default(), Arc::default()];
        assert!(poll(first.as_mut(), &woken[0]).is_pending());
        assert!(poll(second.as_mut(), &woken[1]).is_pending());
        sim.hold(false);
        let deadline = Instant::now() + Duration::from_secs(10);
        let wait_for = |woken: &Woken| {
            while woken.0.load(SeqCst) == 0 {
                assert!(Instant::now() < deadline, "it never has its turn");
                std::thread::yield_now();
            }
        };
        wait_for(&woken[0]);
        let kept = forgotten.then_some(first);
        wait_for(&woken[1]);
        assert!(matches!(finish(second.as_mut()), Ok(at) if at == next));
        drop(kept);
        assert_eq!(log.next_offset(), next + 1, "what was not polled is not appended");
    }
}

#[test]
fn an_async_append_is_durable_when_it_says_so_and_ends_when_the_log_does() {
    let (sim, log, next) = full();
    let mut waits = pin!(log.append_durable(b"x".to_vec()));
    let woken = Arc::<Woken>::default();
    assert!(poll(waits.as_mut(), &woken).is_pending());
    sim.hold(false);
    assert!(matches!(finish(waits.as_mut()), Ok(at) if at == next));
    assert!(log.durable_offset() > next);
    assert!(matches!(finish(pin!(log.append_async(vec![0; 9000]))), Err(Error::TooLarge { .. })));
    drop(log);

    let (sim, log, next) = full();
    let mut waits = pin!(log.append_async(b"x"));
    assert!(poll(waits.as_mut(), &woken).is_pending());
    log.shared.stop();
    assert!(matches!(finish(waits.as_mut()), Err(Error::Closed)));
    assert!(matches!(finish(pin!(log.append_async(b"x"))), Err(Error::Closed)));
    assert_eq!(log.next_offset(), next);
    sim.hold(false);
}

/// It waited for ever, as long as nobody appended.
#[test]
fn waiting_for_an_offset_that_was_never_given_is_an_error_at_once() {
    let log = open(&Sim::new(1)).unwrap();
    let never = |waited: Result<(), Error>| match waited {
        Err(Error::NotAppended { offset: 7, next }) => next,
        other => panic!("{other:?}"),
    };
    assert_eq!(never(log.wait_durable(7)), 0);
    assert_eq!(log.append_wait_durable(b"x").unwrap(), 0);
    assert_eq!(log.durable_offset(), 1);
    assert_eq!(never(log.wait_durable_for(7, Duration::MAX).map(drop)), 1);
}

#[test]
fn waiting_for_a_disk_that_does_not_write_ends_in_time() {
    let (sim, log, next) = full();
    let begun = Instant::now();
    assert!(!log.wait_durable_for(next - 1, Duration::from_millis(20)).unwrap());
    assert!(begun.elapsed() >= Duration::from_millis(20));
    sim.hold(false);
    assert!(log.wait_durable_for(next - 1, Duration::from_secs(10)).unwrap());
    assert!(log.wait_durable_for(next - 1, Duration::ZERO).unwrap());
}

/// It was dropped with the lock held that dropping the other future takes.
#[test]
fn a_waker_that_owns_another_future_of_the_log_may_be_dropped() {
    struct Task(#[expect(dead_code, reason = "it is only dropped")] std::sync::Mutex<Option<crate::Durable>>);
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let sim = Sim::new(1);
    let log = open(&sim).unwrap();
    sim.hold(true);
    let at = log.append(b"x").unwrap();
    let poll = |future: &mut crate::Durable, waker: &Waker| {
        assert!(Pin::new(future).poll(&mut Context::from_waker(waker)).is_pending());
    };
    let mut inner = log.durable(at);
    poll(&mut inner, Waker::noop());
    let mut outer = log.durable(at);
    let task = Waker::from(Arc::new(Task(std::sync::Mutex::new(Some(inner)))));
    poll(&mut outer, &task);
    drop(task); // the log has the last one
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(outer);
        let _ = done.send(());
    });
    let ended = is_done.recv_timeout(Duration::from_secs(5));
    sim.hold(false);
    if ended.is_err() {
        std::mem::forget(log); // closing it would wait for the lock as well
    }
    assert_eq!(ended, Ok(()), "it waits for itself");
}
