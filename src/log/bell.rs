//! How the flusher's thread is woken, and how it sleeps, without missing a wake-up.
//!
//! The sleeper stores "idle" and then looks for work; an appender adds work and then looks for "idle". Both touch
//! the work by a read-modify-write of the same atomic, the chunk's tail, and of these the later one acquires from
//! the earlier: either the sleeper finds the work, or the appender finds it asleep.

use crate::sync::{AtomicBool, Ordering, thread};
use std::sync::OnceLock;

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Bell {
    thread: OnceLock<thread::Thread>,
    /// Set by one who waits: do not linger.
    kicked: AtomicBool,
    /// Set while the thread sleeps with nothing to do.
    idle: AtomicBool,
}

impl Bell {
    /// To be called once by the thread that sleeps, before anything else.
    pub(super) fn attach(&self) {
        let _ = self.thread.set(thread::current()); // set once
    }

    /// Somebody waits: commit without lingering.
    pub(super) fn kick(&self) {
        if !self.kicked.swap(true, Ordering::SeqCst) {
            self.unpark();
        }
    }

    /// Notes a kick for the thread itself, which need not be woken.
    pub(super) fn kick_self(&self) {
        self.kicked.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    /// Whether there was a kick since the last call. Work that came before the kick is seen after this.
    pub(super) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Whether the thread was asleep a moment ago: for what may as well be missed.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// To be called after each append, whose add to the chunk's tail was `AcqRel`.
    #[inline]
    pub(super) fn wake_if_idle(&self) {
        if self.idle.load(Ordering::Acquire) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if self.idle.swap(false, Ordering::SeqCst) {
            self.unpark();
        }
    }

    /// Before the thread is attached there is nobody to wake: it looks for work before it first sleeps.
    fn unpark(&self) {
        self.thread.get().into_iter().for_each(thread::Thread::unpark);
    }

    /// Sleeps until an append or a kick, unless there is something to do. `something` must look by a
    /// read-modify-write.
    pub(super) fn sleep_unless(&self, something: impl Fn() -> bool) {
        self.idle.store(true, Ordering::SeqCst);
        if !something() && !self.is_kicked() {
            thread::park();
        }
        self.idle.store(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::{
        chunk::{Batch, Chunk, Extent, Imprint, Memory},
        sync::Arc,
    };

    #[test]
    fn loom_an_append_while_the_flusher_falls_asleep_wakes_it() {
        loom::model(|| {
            let bell = Arc::new(Bell::default());
            let chunk = Arc::new(Chunk::new(Memory::new(64).unwrap(), None));
            let appender = {
                let (bell, chunk) = (Arc::clone(&bell), Arc::clone(&chunk));
                thread::spawn(move || {
                    let imprint = Imprint { seed: 1, lead: 0, time: 0 };
                    chunk.append(Batch::new(&[b""], 64).unwrap(), None, imprint);
                    bell.wake_if_idle();
                })
            };
            bell.attach();
            while chunk.reserved() == 0 {
                bell.sleep_unless(|| !chunk.is_at(Extent::default())); // loom: a deadlock is a lost wake-up
            }
            appender.join().unwrap();
        });
    }

    #[test]
    fn loom_a_kick_while_the_flusher_falls_asleep_wakes_it() {
        loom::model(|| {
            let bell = Arc::new(Bell::default());
            let waiter = Arc::clone(&bell);
            let waiter = thread::spawn(move || waiter.kick());
            bell.attach();
            while !bell.take_kick() {
                bell.sleep_unless(|| false);
            }
            waiter.join().unwrap();
        });
    }
}
