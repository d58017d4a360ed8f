//! A thousand tasks that append to one log whose memory is small: how often an append is refused before it succeeds.
//! `cargo bench --bench room`; `MILLSTREAM_BENCH_DIR` chooses the disk.

use millstream::{Error, Log, Options};
use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

const TASKS: u64 = 1000;
const EACH: u64 = 30;

struct Task {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    queue: Sender<Arc<Task>>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let _ = self.queue.send(Arc::clone(&self));
    }
}

/// Runs `futures` on this thread until all are done.
fn run(futures: impl Iterator<Item = Pin<Box<dyn Future<Output = ()> + Send>>>) {
    let (queue, woken): (Sender<Arc<Task>>, Receiver<_>) = channel();
    let mut left = 0;
    for future in futures {
        left += 1;
        Arc::new(Task { future: Mutex::new(Some(future)), queue: queue.clone() }).wake();
    }
    while left > 0 {
        let task = woken.recv().unwrap();
        let mut slot = task.future.lock().unwrap();
        let waker = Waker::from(Arc::clone(&task));
        if let Some(future) = &mut *slot
            && let Poll::Ready(()) = future.as_mut().poll(&mut Context::from_waker(&waker))
        {
            *slot = None;
            left -= 1;
        }
    }
}

fn refusals() -> u64 {
    millstream::stats().backpressure
}

/// As callers did it before there was `append_async`: each waits for room, and tries again.
async fn retry(log: &Log) -> Result<u64, Error> {
    let mut room = pin!(log.room());
    loop {
        match log.try_append(&[7; 1000]) {
            Err(Error::WouldBlock) => room.as_mut().await,
            done => return done,
        }
    }
}

fn main() {
    let dir = std::env::var_os("MILLSTREAM_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    for (round, how) in ["append_async", "room", "append_async", "room"].into_iter().enumerate() {
        let dir = tempfile::tempdir_in(&dir).unwrap();
        let options = Options { segment_bytes: 64 << 10, memory_bytes: 256 << 10, ..Options::default() };
        let log = Log::open(dir.path(), options).unwrap();
        let (before, begun) = (refusals(), Instant::now());
        run((0..TASKS).map(|_| {
            let log = log.clone();
            let task = async move {
                for _ in 0..EACH {
                    let done =
                        if how == "room" { retry(&log).await } else { log.append_async([7; 1000]).await };
                    done.unwrap();
                }
            };
            Box::pin(task) as Pin<Box<dyn Future<Output = ()> + Send>>
        }));
        let refused = refusals() - before;
        println!(
            "round {round}, {how}: {} appends in {:.2} s, refused {refused} times ({:.3} per append)",
            TASKS * EACH,
            begun.elapsed().as_secs_f64(),
            refused as f64 / (TASKS * EACH) as f64,
        );
    }
}
