//! Requests that share a write: each adds itself to a list, and whoever gets the file next serves all that are in the
//! list by then. The others find their answers when they get the file.

use super::Error;
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

/// The answer to a request, once it was served.
pub(super) type Answered<V> = Arc<OnceLock<Result<V, Error>>>;

/// The requests that are to be served, in the order in which they came.
pub(super) struct Requests<T, V> {
    listed: Mutex<Listed<T, V>>,
}

struct Listed<T, V> {
    next: u64,
    requests: BTreeMap<u64, (T, Answered<V>)>,
}

/// A request in the list. Leaves it when this is dropped, unless it is being served.
pub(super) struct Request<T, V> {
    list: Arc<Requests<T, V>>,
    number: u64,
    answer: Answered<V>,
}

impl<T, V> Default for Requests<T, V> {
    fn default() -> Self {
        Self { listed: Mutex::new(Listed { next: 0, requests: BTreeMap::new() }) }
    }
}

impl<T: Clone, V> Requests<T, V> {
    /// Adds a request to the list.
    pub(super) fn add(self: &Arc<Self>, request: T) -> Request<T, V> {
        let answer = Answered::<V>::default();
        let mut listed = self.listed();
        let number = listed.next;
        listed.next += 1;
        listed.requests.insert(number, (request, Arc::clone(&answer)));
        Request { list: Arc::clone(self), number, answer }
    }

    fn unanswered(&self) -> Vec<(T, Answered<V>)> {
        let listed = self.listed();
        listed.requests.values().filter(|(_, answer)| answer.get().is_none()).cloned().collect()
    }
}

impl<T, V> Requests<T, V> {
    /// Locked only for moments.
    fn listed(&self) -> MutexGuard<'_, Listed<T, V>> {
        lock(&self.listed)
    }
}

impl<T, V> Request<T, V> {
    /// Whether it was served.
    pub(super) fn is_answered(&self) -> bool {
        self.answer.get().is_some()
    }
}

impl<T: Clone, V: Clone> Request<T, V> {
    /// Returns the answer. If there is none yet, `serve` is called first, with all requests that have none; those that it
    /// does not answer get its error. One thread at a time may call this for the requests of a list.
    pub(super) fn answer(
        &self,
        serve: impl FnOnce(&[(T, Answered<V>)]) -> Result<(), Error>,
    ) -> Result<V, Error> {
        if !self.is_answered() {
            let all = self.list.unanswered();
            if let Err(error) = serve(&all) {
                for (_, answer) in all {
                    let _ = answer.set(Err(error.clone())); // or it has one already
                }
            }
        }
        self.answer.get().cloned().unwrap_or(Err(Error::Closed)) // it is set by now
    }
}

impl<T, V> Drop for Request<T, V> {
    fn drop(&mut self) {
        self.list.listed().requests.remove(&self.number);
    }
}
