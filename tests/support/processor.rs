//! Processors for tests that keep one busy. Others mostly wait, so more tests can run at once than there are processors
//! (`RUST_TEST_THREADS=8`); those that measure, or load the machine, would then disturb each other more than they may.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    num::NonZero,
    sync::{Condvar, Mutex},
    thread,
};

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();
/// Is held while waiting, so that a test that waits for all processors is not overtaken by those that take one.
static NEXT: Mutex<()> = Mutex::new(());

/// Processors, until this is dropped.
pub struct Processor(usize);

impl Processor {
    /// Waits until a processor is free.
    #[must_use]
    pub fn take() -> Self {
        Self::some(1)
    }

    /// Waits until all are free: for tests that compare how fast something is at one time and at another.
    #[must_use]
    pub fn take_all() -> Self {
        Self::some(Self::all())
    }

    fn all() -> usize {
        thread::available_parallelism().map_or(1, NonZero::get)
    }

    fn some(count: usize) -> Self {
        let _next = NEXT.lock().unwrap();
        let taken = TAKEN.lock().unwrap();
        *GIVEN_BACK.wait_while(taken, |taken| *taken + count > Self::all()).unwrap() += count;
        Self(count)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap() -= self.0;
        GIVEN_BACK.notify_one();
    }
}
