//! Std's atomics, locks and shared pointers; or loom's under `--cfg loom`, shuttle's under `--cfg shuttle`, so that the
//! models run the code that ships. The lock-free modules take these types only from here, and so does everything that
//! shuttle's threads may wait for.

#[cfg(loom)]
pub(crate) use loom::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
};
#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
};
#[cfg(shuttle)]
pub(crate) use std::sync::Arc;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
};

use std::ops::Deref;

/// Locks, whether or not another holder panicked: no lock in this crate guards a state that can be half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// [`lock`] for mutexes that loom and shuttle must not see: those in statics, where theirs cannot be, and those that real
/// threads of the process wait for.
pub(crate) fn lock_std<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits until another thread notifies. Ignores poisoning, for the reason given at [`lock`].
pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs a model with all orders of threads that interrupt each other up to three times, or as often as
/// `LOOM_MAX_PREEMPTIONS` says.
#[cfg(all(test, loom))]
pub(crate) fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(run);
}

/// A flag that is set as long as this exists: the right to do what one thread does at a time, if at all. It protects no
/// memory: Relaxed.
pub(crate) struct Busy<F: Deref<Target = AtomicBool>>(F);

impl<F: Deref<Target = AtomicBool>> Busy<F> {
    /// Sets the flag; `None` if it is set already.
    pub(crate) fn begin(flag: F) -> Option<Self> {
        (!flag.swap(true, Ordering::Relaxed)).then(|| Self(flag))
    }
}

impl<F: Deref<Target = AtomicBool>> Drop for Busy<F> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Makes this thread yield to others (`nice`): if there are more threads than processors, 5 leaves it a third of the time
/// that each of the others has, 10 a tenth. If that is not allowed, it keeps its priority.
#[cfg(feature = "store")]
pub(crate) fn yield_more(by: i32) {
    #[cfg(target_os = "linux")] // where it is for this thread alone
    if let Ok(ours) = rustix::process::getpriority_process(None) {
        let _ = rustix::process::setpriority_process(None, (ours + by).min(19));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = by;
}

/// The value of a shared pointer, for the last one that holds it: of several that let go at once, one gets it.
pub(crate) fn into_inner<T>(shared: Arc<T>) -> Option<T> {
    #[cfg(not(loom))]
    return Arc::into_inner(shared);
    #[cfg(loom)] // which lacks it: of several, none may get it
    Arc::try_unwrap(shared).ok()
}

/// [`lock`] for reading.
#[cfg(feature = "store")]
pub(crate) fn read_lock<T>(lock: &std::sync::RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// [`lock`] for writing.
#[cfg(feature = "store")]
pub(crate) fn write_lock<T>(lock: &std::sync::RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// [`lock`], unless another thread holds the lock.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    use std::sync::TryLockError;
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// A shared pointer that is replaced as a whole: `arc_swap`, or, for loom and shuttle, which cannot see into
/// `arc_swap`, a lock with the same contract.
pub(crate) struct Swap<T> {
    #[cfg(not(any(loom, shuttle)))]
    inner: arc_swap::ArcSwap<T>,
    #[cfg(any(loom, shuttle))]
    inner: Mutex<Arc<T>>,
}

#[cfg(not(any(loom, shuttle)))]
impl<T> Swap<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self { inner: arc_swap::ArcSwap::new(value) }
    }

    /// The current value, without touching its reference count where that can be avoided.
    #[inline]
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<T>> {
        self.inner.load()
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        self.inner.load_full()
    }

    /// Replaces `current` with `new`, if it is still there (Acquire and Release); returns whether it was.
    pub(crate) fn replace(&self, current: &Arc<T>, new: Arc<T>) -> bool {
        let previous = self.inner.compare_and_swap(current, new);
        Arc::ptr_eq(&previous, current)
    }
}

#[cfg(any(loom, shuttle))]
impl<T> Swap<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self { inner: Mutex::new(value) }
    }

    pub(crate) fn load(&self) -> Arc<T> {
        self.load_full()
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        Arc::clone(&lock(&self.inner))
    }

    pub(crate) fn replace(&self, current: &Arc<T>, new: Arc<T>) -> bool {
        let mut held = lock(&self.inner);
        let same = Arc::ptr_eq(&held, current);
        if same {
            *held = new;
        }
        same
    }
}

/// A [`Swap`] that may be empty.
pub(crate) struct SwapOption<T> {
    #[cfg(not(any(loom, shuttle)))]
    inner: arc_swap::ArcSwapOption<T>,
    #[cfg(any(loom, shuttle))]
    inner: Mutex<Option<Arc<T>>>,
}

#[cfg(not(any(loom, shuttle)))]
impl<T> SwapOption<T> {
    pub(crate) fn new(value: Option<Arc<T>>) -> Self {
        Self { inner: arc_swap::ArcSwapOption::new(value) }
    }

    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        self.inner.load_full()
    }

    pub(crate) fn clear(&self) {
        self.inner.store(None);
    }

    pub(crate) fn take(&self) -> Option<Arc<T>> {
        self.inner.swap(None)
    }

    pub(crate) fn set(&self, value: Arc<T>) {
        self.inner.store(Some(value));
    }

    /// Sets the value if there is none yet; returns whether it was set.
    pub(crate) fn set_first(&self, value: Arc<T>) -> bool {
        self.inner.compare_and_swap(&None::<Arc<T>>, Some(value)).is_none()
    }
}

#[cfg(any(loom, shuttle))]
impl<T> SwapOption<T> {
    pub(crate) fn new(value: Option<Arc<T>>) -> Self {
        Self { inner: Mutex::new(value) }
    }

    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        lock(&self.inner).clone()
    }

    pub(crate) fn clear(&self) {
        drop(self.take());
    }

    pub(crate) fn take(&self) -> Option<Arc<T>> {
        lock(&self.inner).take()
    }

    pub(crate) fn set(&self, value: Arc<T>) {
        *lock(&self.inner) = Some(value);
    }

    pub(crate) fn set_first(&self, value: Arc<T>) -> bool {
        let mut held = lock(&self.inner);
        let first = held.is_none();
        if first {
            *held = Some(value);
        }
        first
    }
}

/// Waits a little longer each time: crossbeam's `Backoff`, or a plain yield for loom and shuttle, which must be told
/// that another thread has to run first.
pub(crate) struct Backoff {
    #[cfg(not(any(loom, shuttle)))]
    inner: crossbeam::utils::Backoff,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        #[cfg(not(any(loom, shuttle)))]
        return Self { inner: crossbeam::utils::Backoff::new() };
        #[cfg(any(loom, shuttle))]
        Self {}
    }

    pub(crate) fn snooze(&self) {
        #[cfg(not(any(loom, shuttle)))]
        self.inner.snooze();
        #[cfg(any(loom, shuttle))]
        thread::yield_now();
    }

    /// Starts again with the shortest wait.
    pub(crate) fn reset(&self) {
        #[cfg(not(any(loom, shuttle)))]
        self.inner.reset();
    }

    /// Whether any longer wait should be done by parking.
    pub(crate) fn is_completed(&self) -> bool {
        #[cfg(not(any(loom, shuttle)))]
        return self.inner.is_completed();
        #[cfg(any(loom, shuttle))]
        true
    }
}

#[cfg(all(test, feature = "store", target_os = "linux", not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// It was set to `by`, which a privileged process that had been niced was allowed to.
    #[test]
    fn a_thread_yields_to_the_one_that_began_it() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        std::thread::spawn(move || {
            rustix::process::setpriority_process(None, (priority() + 7).min(19)).unwrap();
            let ours = priority();
            std::thread::spawn(move || {
                yield_more(5);
                assert_eq!(priority(), (ours + 5).min(19));
            })
            .join()
            .unwrap();
        })
        .join()
        .unwrap();
    }
}
