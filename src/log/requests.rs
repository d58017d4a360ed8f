//! Requests that share a write: each adds itself to a list, and whoever gets the file next serves all that are in the
//! list by then. The others find their answers when they get the file.

use crate::sync::{Arc, Mutex, MutexGuard, lock};
#[cfg(feature = "server")]
use std::time::Duration;
use std::{collections::BTreeMap, sync::OnceLock};

/// The last write of a file that requests share: whoever limits how often it is written decides by that.
#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastWrite {
    /// The size of the file, which is written as a whole.
    pub(crate) bytes: u64,
    /// How long ago it was.
    pub(crate) ago: Duration,
}

/// The requests that are to be served, in the order in which they came.
pub(super) struct Requests<T, A> {
    listed: Mutex<Listed<T, A>>,
}

struct Listed<T, A> {
    next: u64,
    requests: BTreeMap<u64, (T, Arc<OnceLock<A>>)>,
}

/// A request in the list. Leaves it when this is dropped, unless it is being served.
pub(super) struct Request<T, A> {
    list: Arc<Requests<T, A>>,
    number: u64,
    answer: Arc<OnceLock<A>>,
}

impl<T, A> Default for Requests<T, A> {
    fn default() -> Self {
        Self { listed: Mutex::new(Listed { next: 0, requests: BTreeMap::new() }) }
    }
}

impl<T: Clone, A> Requests<T, A> {
    /// Adds a request to the list.
    pub(super) fn add(self: &Arc<Self>, request: T) -> Request<T, A> {
        let answer = Arc::<OnceLock<A>>::default();
        let mut listed = self.listed();
        let number = listed.next;
        listed.next += 1;
        listed.requests.insert(number, (request, Arc::clone(&answer)));
        Request { list: Arc::clone(self), number, answer }
    }

    /// Those without an answer. One thread serves requests at a time, so each is served once.
    pub(super) fn unanswered(&self) -> Vec<(T, Arc<OnceLock<A>>)> {
        let listed = self.listed();
        listed.requests.values().filter(|(_, answer)| answer.get().is_none()).cloned().collect()
    }
}

impl<T, A> Requests<T, A> {
    /// Locked only for moments.
    fn listed(&self) -> MutexGuard<'_, Listed<T, A>> {
        lock(&self.listed)
    }
}

impl<T, A: Clone> Request<T, A> {
    /// The answer, if it was served.
    pub(super) fn answer(&self) -> Option<A> {
        self.answer.get().cloned()
    }
}

impl<T, A> Drop for Request<T, A> {
    fn drop(&mut self) {
        self.list.listed().requests.remove(&self.number);
    }
}
