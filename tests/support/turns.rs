//! Turns of tests that keep processors busy. Others mostly wait, so more tests can run at once than there are processors
//! (`RUST_TEST_THREADS=4`); those that measure, or load the machine, would then disturb each other more than they may.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    num::NonZero,
    sync::{Condvar, Mutex},
    thread,
};

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// A turn, until this is dropped.
pub struct Turn(());

impl Turn {
    /// Waits for a turn, of which there are as many as processors.
    #[must_use]
    pub fn take() -> Self {
        let most = thread::available_parallelism().map_or(1, NonZero::get);
        let taken = TAKEN.lock().unwrap();
        *GIVEN_BACK.wait_while(taken, |taken| *taken >= most).unwrap() += 1;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap() -= 1;
        GIVEN_BACK.notify_one();
    }
}
