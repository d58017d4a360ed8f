//! Processors for tests that keep one busy. Others mostly wait, so more tests can run at once than there are processors
//! (`RUST_TEST_THREADS=4`); those that measure, or load the machine, would then disturb each other more than they may.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    num::NonZero,
    sync::{Condvar, Mutex},
    thread,
};

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// A processor, until this is dropped.
pub struct Processor(());

impl Processor {
    /// Waits until a processor is free.
    #[must_use]
    pub fn take() -> Self {
        let most = thread::available_parallelism().map_or(1, NonZero::get);
        let taken = TAKEN.lock().unwrap();
        *GIVEN_BACK.wait_while(taken, |taken| *taken >= most).unwrap() += 1;
        Self(())
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap() -= 1;
        GIVEN_BACK.notify_one();
    }
}
