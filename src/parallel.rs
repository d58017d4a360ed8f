//! Two things at once, on another thread for the time of a call, where that saves time; one after the other where no
//! thread can be started, and where the caller says so, because the order of operations is replayed.

use std::{
    panic::resume_unwind,
    sync::Mutex,
    thread::{Builder, scope},
};

/// Does both, and returns the results: `beside` on another thread if `parallel`, otherwise after `main`.
pub(crate) fn join<A, B: Send>(
    parallel: bool,
    main: impl FnOnce() -> A,
    beside: impl FnOnce() -> B + Send,
) -> (A, B) {
    // Taken by the thread, or if none could be started, by this one.
    let beside = Mutex::new(Some(beside));
    let run = || beside.lock().ok().and_then(|mut beside| beside.take()).map(|beside| beside());
    scope(|threads| {
        let thread =
            parallel.then(|| Builder::new().name("millstream-open".into()).spawn_scoped(threads, run));
        let done = main();
        let beside = match thread {
            Some(Ok(thread)) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            _ => run(),
        };
        (done, beside.unwrap_or_else(|| unreachable!("it was not taken before")))
    })
}

/// Calls `make` for each item, and returns the results in their order: on `threads` threads, each with a part of the
/// items that follow one another.
pub(crate) fn map<T: Sync, R: Send>(threads: usize, items: &[T], make: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let make_all = |items: &[T]| items.iter().map(&make).collect::<Vec<_>>();
    let mut parts = items.chunks(items.len().div_ceil(threads).max(1));
    let Some(first) = parts.next() else { return Vec::new() };
    scope(|scope| {
        let started: Vec<_> = parts
            .map(|part| {
                let thread = Builder::new().name("millstream-open".into());
                (part, thread.spawn_scoped(scope, move || make_all(part)))
            })
            .collect();
        let mut results = make_all(first);
        for (part, thread) in started {
            results.extend(match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(_) => make_all(part),
            });
        }
        results
    })
}

/// Calls `run` with a function that returns what `make` makes of each item, in their order, and then `None`. If `parallel`,
/// another thread makes the next one meanwhile, so that there are two at a time.
pub(crate) fn prefetch<T: Sync, R: Send, O>(
    parallel: bool,
    items: &[T],
    make: impl Fn(&T) -> R + Sync,
    run: impl FnOnce(&mut dyn FnMut() -> Option<R>) -> O,
) -> O {
    let make = &make;
    scope(|threads| {
        let (sender, receiver) = crossbeam::channel::bounded(0);
        let make_all = move || {
            for item in items {
                if sender.send(make(item)).is_err() {
                    return; // nobody asks for more
                }
            }
        };
        let is_beside = parallel
            && items.len() > 1
            && Builder::new().name("millstream-open".into()).spawn_scoped(threads, make_all).is_ok();
        let mut items = items.iter();
        run(&mut || if is_beside { receiver.recv().ok() } else { items.next().map(make) })
    })
}

#[cfg(all(test, not(loom), not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn both_are_done_in_either_way() {
        for parallel in [false, true] {
            let (mut there, here) = (String::new(), String::from("here"));
            let results = join(parallel, || here.len(), || there.push_str("there"));
            assert_eq!((results, &*there), ((4, ()), "there"));
        }
    }

    #[test]
    fn what_is_made_ahead_comes_in_order_and_no_more_is_made_than_is_asked_for() {
        for parallel in [false, true] {
            let items: Vec<u32> = (0..100).collect();
            let count = std::sync::atomic::AtomicU32::new(0);
            let make = |item: &u32| {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                item * 2
            };
            let all = prefetch(parallel, &items, make, |next| std::iter::from_fn(next).collect::<Vec<_>>());
            assert_eq!(all, (0..100).map(|n| n * 2).collect::<Vec<_>>());
            count.store(0, std::sync::atomic::Ordering::Relaxed);
            let third = prefetch(parallel, &items, make, |next| (next(), next(), next()).2);
            assert_eq!(third, Some(4));
            assert!(count.load(std::sync::atomic::Ordering::Relaxed) <= 4);
        }
    }

    #[test]
    fn results_are_in_the_order_of_the_items() {
        for items in [0, 1, 2, 3, 4, 5, 100] {
            let items: Vec<usize> = (0..items).collect();
            for threads in [1, 2, 4] {
                assert_eq!(map(threads, &items, |item| *item), items, "{threads}");
            }
        }
    }

    #[test]
    fn a_panic_beside_is_a_panic_of_the_caller() {
        let both = std::panic::catch_unwind(|| join(true, || 1, || panic!("beside")));
        assert!(both.is_err_and(|panic| panic.downcast_ref() == Some(&"beside")));
        let make = |item: &u32| assert!(*item < 2);
        let ahead =
            std::panic::catch_unwind(|| prefetch(true, &[1, 2, 3], make, |next| while next().is_some() {}));
        assert!(ahead.is_err());
    }
}
