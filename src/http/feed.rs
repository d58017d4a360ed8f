//! What the live tails of one log share within a runtime: the events at the log's end, rendered once for all of them;
//! and one task that waits for the log to grow, for a while without news, and for the server to stop, and tells them.

use super::{
    commit::Instance,
    fetch::{self, Made, Next, Place, Wants},
    formats,
    memory::{Grant, Memory, Purpose, with_scratch},
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

/// Bytes of events that are rendered at once.
const PIECE: usize = 64 << 10;
/// How long a log must be without news for the piece rendered last to be let go of, where a tail has not come for it. Who comes
/// later has it rendered anew.
const LINGER: Duration = Duration::from_millis(100);

/// The feeds of one runtime, by open log.
#[derive(Default)]
pub(super) struct Feeds(Mutex<HashMap<Instance, Weak<Feed>>>);

impl Feeds {
    /// The log's feed. To be called within the runtime.
    pub(super) fn of(
        &self,
        log: &Arc<OpenLog>,
        heartbeat: Duration,
        stopped: &watch::Receiver<bool>,
    ) -> Arc<Feed> {
        let mut feeds = lock(&self.0);
        // A feed that is gone may have left its key to a log that came to lie in the same place: of that one it is not.
        if let Some(feed) =
            feeds.get(&Instance::of(log)).and_then(Weak::upgrade).filter(|feed| feed.is_of(log))
        {
            return feed;
        }
        feeds.retain(|_, feed| feed.strong_count() > 0);
        let feed = Arc::new(Feed::new(log, heartbeat, stopped.clone()));
        feeds.insert(Instance::of(log), Arc::downgrade(&feed));
        feed
    }
}

/// See the module's documentation.
pub(super) struct Feed {
    log: Arc<OpenLog>,
    latest: Arc<Mutex<Kept>>,
    news: Arc<News>,
    watcher: AbortHandle,
    /// Held by the tail that has what is next rendered for all, where that takes more than a moment.
    large: AsyncMutex<()>,
}

/// What the watching task tells. The notification orders what it is about: Relaxed throughout.
#[derive(Default)]
struct News {
    any: Notify,
    /// How often there was nothing for a while.
    beats: AtomicU64,
    stopped: AtomicBool,
}

/// What there is for a tail.
pub(super) enum Latest {
    /// The next events, and the offset behind them.
    Events(Bytes, u64),
    /// What is next is large, or there is no memory for it at the moment.
    Large,
    /// Nothing: it is further behind.
    Behind,
}

/// Why a wait is over.
pub(super) enum Wake {
    /// There is more.
    Grown,
    /// There was nothing for a while: so many times by now.
    Beat(u64),
    /// The server stops.
    Stopped,
}

/// The piece rendered last. It holds memory of the budget, which refuses requests when it is used up: so it is kept only until
/// all tails have it, or there is no news for a moment.
struct Kept {
    reader: Reader,
    from: u64,
    events: Bytes,
    /// Tails that do not have it.
    missing: usize,
}

impl Feed {
    fn new(log: &Arc<OpenLog>, heartbeat: Duration, stopped: watch::Receiver<bool>) -> Self {
        let news = Arc::new(News::default());
        let end = log.visible_offset(); // before anybody waits: what comes from here on is told
        let reader = log.reader(end);
        let latest = Kept { from: reader.offset(), reader, events: Bytes::new(), missing: 0 };
        let latest = Arc::new(Mutex::new(latest));
        let watcher = watch(Arc::clone(log), end, Arc::clone(&news), Arc::clone(&latest), heartbeat, stopped);
        let watcher = tokio::spawn(watcher).abort_handle();
        Self { log: Arc::clone(log), latest, news, watcher, large: AsyncMutex::default() }
    }

    /// How often there was nothing for a while.
    pub(super) fn beats(&self) -> u64 {
        self.news.beats.load(Ordering::Relaxed)
    }

    fn is_of(&self, log: &Arc<OpenLog>) -> bool {
        Arc::ptr_eq(&self.log, log)
    }

    /// The events from `offset` on, for one who is at the end, or a piece away from it.
    pub(super) fn latest(self: &Arc<Self>, offset: u64, memory: &Arc<Memory>) -> Result<Latest, Error> {
        let mut latest = lock(&self.latest);
        if offset == latest.from && !latest.events.is_empty() {
            latest.missing = latest.missing.saturating_sub(1);
            let last = latest.missing == 0;
            let events = if last { std::mem::take(&mut latest.events) } else { latest.events.clone() };
            return Ok(Latest::Events(events, latest.reader.offset()));
        }
        if offset < latest.reader.offset() || !self.log.is_in_memory(offset) {
            return Ok(Latest::Behind);
        }
        latest.reader.seek(offset); // of several tails the furthest leads, and the others catch up with it
        latest.events = Bytes::new(); // so that after an error they are not taken for those before the reader
        match render(&mut latest.reader, Place::Here, memory.grant(Purpose::Answer))? {
            Made::Wants(_) => Ok(Latest::Large),
            Made::Done(events) => {
                self.keep(&mut latest, offset, &events);
                Ok(Latest::Events(events, latest.reader.offset()))
            }
        }
    }

    /// Keeps events for the other tails, each of which has the feed. Says whether there are any.
    fn keep(self: &Arc<Self>, latest: &mut Kept, from: u64, events: &Bytes) -> bool {
        latest.missing = Arc::strong_count(self) - 1;
        if latest.missing > 0 {
            (latest.from, latest.events) = (from, events.clone());
        }
        latest.missing > 0
    }

    /// For the one that has what is [`Large`](Latest::Large) rendered: others wait here, and find it rendered.
    pub(super) async fn one_at_a_time(&self) -> MutexGuard<'_, ()> {
        self.large.lock().await
    }

    /// Shares what was rendered so, for a moment.
    pub(super) fn share(self: &Arc<Self>, from: u64, events: &Bytes, next: u64) {
        let mut latest = lock(&self.latest);
        if from < latest.reader.offset() || events.is_empty() {
            return; // somebody is ahead
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

    /// Waits until the record at `offset` can be read, or there was nothing for a while beyond `beats` times.
    ///
    /// # Errors
    /// It never can be read: why.
    pub(super) async fn wait(&self, offset: u64, beats: u64) -> Result<Wake, Error> {
        loop {
            let told = self.news.any.notified();
            tokio::pin!(told);
            told.as_mut().enable(); // before looking, so that nothing is missed in between
            if self.log.visible_offset() > offset {
                return Ok(Wake::Grown);
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
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Tells all who wait that there is more than up to `seen`, and so on, until there is nothing more to tell.
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
        seen = log.visible_offset(); // before telling: what comes after this is told in the next round
        news.any.notify_waiters();
        if over {
            return;
        }
    }
}

/// The next events of a reader; none where it is at the end.
pub(super) fn render(reader: &mut Reader, place: Place, mut grant: Grant) -> Result<Made<Bytes>, Error> {
    with_scratch(|out| {
        while out.len() < PIECE {
            match fetch::next(reader, place, &mut grant, out.len(), u64::MAX) {
                Ok(Next::Record(record)) => {
                    out.extend_from_slice(format!("id: {}\ndata: ", record.offset).as_bytes());
                    formats::object(out, &record);
                    out.extend_from_slice(b"\n\n");
                }
                Ok(Next::Wants(place, bytes)) if out.is_empty() => {
                    return Ok(Made::Wants(Wants { grant, place, bytes }));
                }
                Ok(Next::End | Next::Wants(..)) => break,
                // What was rendered goes out first; the reader stays where the error is told again.
                Err(Error::Damaged { offset }) if !out.is_empty() => {
                    reader.seek(offset);
                    break;
                }
                Err(Error::Trimmed { .. }) if !out.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Made::Done(grant.hold_copy(out)))
    })
}
