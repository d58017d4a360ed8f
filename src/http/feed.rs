//! What the live tails of one log share within a runtime: the events at the log's end, which are rendered once for all of
//! them, and one task that waits for news and notifies the tails. News is that the log has grown, that it has not for the
//! time of a heartbeat, or that the server stops.
//!
//! A tail that begins at an offset which the log does not have yet waits for that offset by itself, as a long poll does:
//! appends before that offset do not wake it.

use super::{
    formats,
    memory::{Grant, Memory, Purpose, with_scratch},
    place::{self, Made, Next, Place, Wants},
};
use crate::{
    log::{Error, Reader},
    store::OpenLog,
    sync::lock,
};
use hyper::body::Bytes;
use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard, Notify, watch},
    task::AbortHandle,
};

/// The most bytes of events that are rendered at once.
const RENDER_BYTES: usize = 64 << 10;
/// How long a log must be without news before the piece rendered last is dropped although some tail has not fetched it.
/// A tail that fetches it later has it rendered again.
const LINGER: Duration = Duration::from_millis(100);

/// The feeds of one runtime, by the number of the open log.
#[derive(Default)]
pub(super) struct Feeds(Mutex<HashMap<u64, Weak<Feed>>>);

impl Feeds {
    /// Returns the feed of the log. Must be called within the runtime.
    pub(super) fn of(
        &self,
        log: &Arc<OpenLog>,
        heartbeat: Duration,
        stopped: &watch::Receiver<bool>,
    ) -> Arc<Feed> {
        let mut feeds = lock(&self.0);
        if let Some(feed) = feeds.get(&log.number()).and_then(Weak::upgrade) {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let feed = Arc::new(Feed::new(log, heartbeat, stopped.clone()));
        feeds.insert(log.number(), Arc::downgrade(&feed));
        feed
    }
}

/// The live tails of one log within a runtime.
pub(super) struct Feed {
    log: Arc<OpenLog>,
    latest: Arc<Mutex<Kept>>,
    news: Arc<News>,
    watcher: AbortHandle,
    /// For tails that wait by themselves.
    heartbeat: Duration,
    stopped: watch::Receiver<bool>,
    /// Held by the tail that has the next events rendered for all tails, if that takes more than a moment.
    large: AsyncMutex<()>,
}

/// What the watching task announces. The notification orders the data that it announces: Relaxed throughout.
#[derive(Default)]
struct News {
    any: Notify,
    /// How many times the log had no news for the duration of a heartbeat.
    beats: AtomicU64,
    stopped: AtomicBool,
}

/// What the feed has for a tail.
pub(super) enum Latest {
    /// The next events, and the offset after them.
    Events(Bytes, u64),
    /// The next events are large, or there is no memory for them at the moment.
    Large,
    /// Nothing: the tail is further behind.
    Behind,
}

/// Why a wait has ended.
pub(super) enum Wake {
    /// The log has grown.
    Grown,
    /// There was no news for the duration of a heartbeat: how many times by now.
    Beat(u64),
    /// The server is stopping.
    Stopped,
}

/// The piece rendered last. It takes memory of the budget, and requests are refused when that is used up: therefore it
/// is kept only until all tails have it, or there is no news for a moment.
struct Kept {
    reader: Reader,
    from: u64,
    events: Bytes,
    /// The number of tails that do not have it.
    missing: usize,
}

impl Feed {
    fn new(log: &Arc<OpenLog>, heartbeat: Duration, stopped: watch::Receiver<bool>) -> Self {
        let news = Arc::new(News::default());
        let end = log.visible_offset(); // before anybody waits: all records from here on are announced
        let reader = log.reader(end);
        let latest = Kept { from: reader.offset(), reader, events: Bytes::new(), missing: 0 };
        let latest = Arc::new(Mutex::new(latest));
        let told = stopped.clone();
        let watcher = watch(Arc::clone(log), end, Arc::clone(&news), Arc::clone(&latest), heartbeat, told);
        let watcher = tokio::spawn(watcher).abort_handle();
        let large = AsyncMutex::default();
        Self { log: Arc::clone(log), latest, news, watcher, heartbeat, stopped, large }
    }

    /// How many times the log had no news for the duration of a heartbeat.
    pub(super) fn beats(&self) -> u64 {
        self.news.beats.load(Ordering::Relaxed)
    }

    /// The events from `offset` on, for a tail that is at the end, or one piece behind.
    pub(super) fn latest(self: &Arc<Self>, offset: u64, memory: &Arc<Memory>) -> Result<Latest, Error> {
        let mut latest = lock(&self.latest);
        if offset == latest.from && !latest.events.is_empty() {
            latest.missing = latest.missing.saturating_sub(1);
            let last = latest.missing == 0;
            let events = if last { std::mem::take(&mut latest.events) } else { latest.events.clone() };
            return Ok(Latest::Events(events, latest.reader.offset()));
        }
        if offset < latest.reader.offset() || !self.log.reads_without_disk(offset) {
            return Ok(Latest::Behind);
        }
        latest.reader.seek(offset); // among several tails the furthest one leads, and the others catch up with it
        latest.events = Bytes::new(); // so that after an error they are not taken for the events before the reader
        match render(&mut latest.reader, Place::Here, memory.grant(Purpose::Answer))? {
            Made::Wants(_) => Ok(Latest::Large),
            Made::Done(events) => {
                self.keep(&mut latest, offset, &events);
                Ok(Latest::Events(events, latest.reader.offset()))
            }
        }
    }

    /// Keeps events for the other tails, each of which holds the feed. Returns whether there are any.
    fn keep(self: &Arc<Self>, latest: &mut Kept, from: u64, events: &Bytes) -> bool {
        latest.missing = Arc::strong_count(self) - 1;
        if latest.missing > 0 {
            (latest.from, latest.events) = (from, events.clone());
        }
        latest.missing > 0
    }

    /// Locks for the tail that has [`Large`](Latest::Large) events rendered: others wait here, and then find them
    /// rendered.
    pub(super) async fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.large.lock().await
    }

    /// Shares events rendered in this way, for a moment.
    pub(super) fn share(self: &Arc<Self>, from: u64, events: &Bytes, next: u64) {
        let mut latest = lock(&self.latest);
        if from < latest.reader.offset() || events.is_empty() {
            return; // another tail is ahead
        }
        latest.reader.seek(next);
        if self.keep(&mut latest, from, events) {
            let latest = Arc::clone(&self.latest);
            tokio::spawn(async move {
                tokio::time::sleep(LINGER).await;
                let mut latest = lock(&latest);
                if latest.from == from {
                    latest.events = Bytes::new();
                }
            });
        }
    }

    /// Waits until the record at `offset` can be read, or there have been more than `beats` heartbeats without news.
    ///
    /// # Errors
    /// Why the record can never be read.
    pub(super) async fn wait(&self, offset: u64, beats: u64) -> Result<Wake, Error> {
        loop {
            let told = self.news.any.notified();
            tokio::pin!(told);
            told.as_mut().enable(); // before checking, so that nothing is missed in between
            let end = self.log.visible_offset();
            if end > offset {
                return Ok(Wake::Grown);
            }
            if end < offset {
                // Boxed: most tails are at the end.
                return Box::pin(self.wait_beyond_the_end(offset)).await;
            }
            if self.news.stopped.load(Ordering::Relaxed) {
                return Ok(Wake::Stopped);
            }
            if self.beats() > beats {
                return Ok(Wake::Beat(self.beats()));
            }
            self.log.writable()?;
            told.await;
        }
    }

    /// [`wait`](Self::wait) for a tail that is not notified when the log grows. Its heartbeats are its own: a log that
    /// has news for others has none for this tail.
    async fn wait_beyond_the_end(&self, offset: u64) -> Result<Wake, Error> {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            seen = tokio::time::timeout(self.heartbeat, self.log.visible(offset)) => match seen {
                Ok(seen) => seen.map(|()| Wake::Grown),
                Err(_) => Ok(Wake::Beat(self.beats())),
            },
            _ = stopped.wait_for(|stopped| *stopped) => Ok(Wake::Stopped),
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Notifies all waiting tails each time that the log grows beyond `seen`, until there is nothing more to announce.
async fn watch(
    log: Arc<OpenLog>,
    mut seen: u64,
    news: Arc<News>,
    latest: Arc<Mutex<Kept>>,
    heartbeat: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let mut over = false;
        let grown = async {
            let mut grown = pin!(log.visible(seen));
            if let Ok(grown) = tokio::time::timeout(LINGER, grown.as_mut()).await {
                return grown;
            }
            lock(&latest).events = Bytes::new();
            grown.await
        };
        tokio::select! {
            grown = tokio::time::timeout(heartbeat, grown) => match grown {
                Ok(grown) => over = grown.is_err(),
                Err(_) => drop(news.beats.fetch_add(1, Ordering::Relaxed)),
            },
            _ = stopped.wait_for(|stopped| *stopped) => {
                news.stopped.store(true, Ordering::Relaxed);
                over = true;
            }
        }
        seen = log.visible_offset(); // before notifying: what comes after this is announced in the next round
        news.any.notify_waiters();
        if over {
            return;
        }
    }
}

/// The next events of a reader; empty if it is at the end.
pub(super) fn render(reader: &mut Reader, place: Place, mut grant: Grant) -> Result<Made<Bytes>, Error> {
    with_scratch(|out| {
        while out.len() < RENDER_BYTES {
            match place::next(reader, place, &mut grant, out.len(), u64::MAX) {
                Ok(Next::Record(record)) => {
                    if record.lost {
                        out.extend_from_slice(b"event: lost\n");
                    }
                    out.extend_from_slice(format!("id: {}\ndata: ", record.offset).as_bytes());
                    formats::object(out, &record);
                    out.extend_from_slice(b"\n\n");
                }
                Ok(Next::Wants(place, bytes)) if out.is_empty() => {
                    return Ok(Made::Wants(Wants { grant, place, bytes }));
                }
                // What was rendered is sent first; the reader stays where the same error is returned again.
                Err(error) if out.is_empty() => return Err(error),
                Ok(Next::End | Next::Wants(..)) | Err(Error::Trimmed { .. }) => break,
                Err(error) => {
                    reader.seek(error.bad_record().ok_or(error)?);
                    break;
                }
            }
        }
        Ok(Made::Done(grant.hold_copy(out)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LogSettings, Store, StoreOptions};
    use std::future::{Future, poll_fn};

    /// Each append woke all tails, wherever they were: 8,000 beyond the end left an appender a sixth of its rate.
    #[test]
    fn a_tail_beyond_the_end_is_woken_when_its_offset_comes_and_not_by_each_append() {
        const BEAT: Duration = Duration::from_secs(20);
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        store.create("a", &LogSettings::default()).unwrap();
        let log = store.get("a").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (stop, stopped) = watch::channel(false);
            let feed = Feeds::default().of(&log, BEAT, &stopped);
            let follow = |offset: u64| {
                let (feed, polls) = (Arc::clone(&feed), Arc::new(AtomicU64::new(0)));
                let counted = Arc::clone(&polls);
                let task = tokio::spawn(async move {
                    let beats = feed.beats();
                    let mut wait = pin!(feed.wait(offset, beats));
                    poll_fn(|context| {
                        counted.fetch_add(1, Ordering::Relaxed);
                        wait.as_mut().poll(context)
                    })
                    .await
                });
                (task, polls)
            };
            let append = async || {
                log.append(b"x").unwrap();
                log.visible(log.next_offset() - 1).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await; // until the watcher has told the tails
            };
            let ((at_end, _), (later, wakes), (never, _)) = (follow(0), follow(30), follow(1_000_000_000));
            tokio::time::sleep(Duration::from_millis(2)).await;
            for _ in 0..30 {
                append().await;
            }
            assert!(at_end.is_finished(), "the one at the end was not told");
            let woken = wakes.load(Ordering::Relaxed);
            assert!(woken <= 2 && !later.is_finished(), "it was woken {woken} times");
            append().await;
            assert!(matches!(later.await.unwrap(), Ok(Wake::Grown)));
            // A log that has news for others has none for this tail.
            let quick = Feeds::default().of(&log, Duration::from_millis(50), &stopped);
            let beats = tokio::spawn(async move { quick.wait(1_000_000_000, 0).await });
            for _ in 0..30 {
                append().await;
            }
            assert!(matches!(beats.await.unwrap(), Ok(Wake::Beat(_))));
            let (gone, _) = follow(1_000_000_000);
            stop.send(true).unwrap();
            assert!(matches!(never.await.unwrap(), Ok(Wake::Stopped)));
            assert!(matches!(gone.await.unwrap(), Ok(Wake::Stopped)));
            stop.send(false).unwrap();
            let (gone, _) = follow(1_000_000_000);
            tokio::time::sleep(Duration::from_millis(2)).await;
            store.delete("a").unwrap();
            let ended =
                tokio::time::timeout(BEAT / 4, gone).await.expect("it is not told that the log is gone");
            assert!(matches!(ended.unwrap(), Err(Error::Failed { .. })));
        });
    }
}
