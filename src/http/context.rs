//! What handlers share: the store, limits and memory of the server, and how a log is looked up, read, appended to and
//! waited for.

use super::{
    commit::DurabilityWaiters,
    feed::Feeds,
    guard::Guard,
    log_permits::LogPermits,
    memory::Memory,
    metrics::Metrics,
    permits::{ConnectionShare, Kind, OFFLOAD_BYTES, Permits},
    problem::Problem,
    settings::Settings,
    waited::WaitedLogs,
};
use crate::{
    log::{Durability, Error, LastWrite, WaitFor},
    store::{self, LogSettings, OpenLog, Store},
};
use bytes::Bytes;
use std::{
    future::ready,
    ops::Deref,
    pin::pin,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};
use tokio::sync::{oneshot, watch};

/// How often to check whether an earlier large batch has been copied.
pub(super) const COPYING: Duration = Duration::from_millis(1);

/// The cost of parsing or appending these values, in bytes; a record counts as 64 bytes more.
pub(super) fn cost(bytes: usize, records: usize) -> usize {
    bytes.saturating_add(records.saturating_mul(64))
}

/// How often clients may cause a write of a small file of a log, such as that of its cursors: a request of a few bytes
/// writes the whole file, so the larger the file, the longer the pause after a write.
struct WritePace;

impl WritePace {
    /// How many bytes of one file are written per second on average, if clients ask for that all the time.
    const BYTES_PER_SECOND: u64 = 8 << 20;

    /// How long to wait until the next write.
    fn pause(LastWrite { bytes, ago }: LastWrite) -> Duration {
        Duration::from_millis(bytes.saturating_mul(1000) / Self::BYTES_PER_SECOND).saturating_sub(ago)
    }
}

/// The log of the book's API.
pub(super) const DEFAULT_LOG: &str = "default";

/// What all runtimes of a server share.
pub(super) struct ServerParts {
    pub(super) store: Arc<Store>,
    pub(super) permits: Arc<Permits>,
    pub(super) log_permits: Arc<LogPermits>,
    pub(super) waited: Arc<WaitedLogs>,
    pub(super) settings: Arc<Settings>,
    pub(super) memory: Arc<Memory>,
    pub(super) guard: Guard,
    pub(super) metrics: Metrics,
    /// Whether the book's log has been recovered.
    pub(super) recovered: AtomicBool,
    /// Becomes true when the server shuts down: waiting requests are answered then.
    pub(super) stopped: watch::Receiver<bool>,
}

/// What a request needs; there is one per runtime. What belongs to the whole server is found by dereferencing.
pub(super) struct Context {
    parts: Arc<ServerParts>,
    pub(super) waiters: Arc<DurabilityWaiters>,
    pub(super) feeds: Feeds,
    /// The document at `/openapi.json`, once somebody has asked for it.
    pub(super) document: OnceLock<Bytes>,
}

impl Deref for Context {
    type Target = ServerParts;

    fn deref(&self) -> &ServerParts {
        &self.parts
    }
}

/// Which connection a request came from, and how much of the answer it wants.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    /// The share of its connection.
    pub(super) share: &'a Arc<ConnectionShare>,
    /// Whether the request is a HEAD.
    pub(super) only_head: bool,
}

/// When an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ack {
    Durable,
    Memory,
}

impl Ack {
    /// When appends to this log are answered, unless they ask for something else.
    pub(super) fn by(log: &OpenLog) -> Self {
        match log.durability() {
            Durability::Disk => Self::Durable,
            Durability::Memory => Self::Memory,
        }
    }
}

/// Repeats an append until it finds room, and waits for `room` before each further attempt. Only the waiting has a limit of
/// time: an attempt that has begun may append, so its result is what is answered, however long it takes.
async fn when_there_is_room<T, F, R>(
    limit: Duration,
    room: impl Fn() -> R,
    attempt: impl Fn() -> F,
) -> Result<Result<T, Error>, Problem>
where
    F: Future<Output = Result<Result<T, Error>, Problem>>,
    R: Future<Output = ()>,
{
    let mut done = attempt().await?;
    if !matches!(done, Err(Error::WouldBlock)) {
        return Ok(done);
    }
    let until = Instant::now() + limit;
    let mut room = pin!(room()); // before the next attempt, so that room made in between is not missed
    loop {
        done = attempt().await?;
        if !matches!(done, Err(Error::WouldBlock)) {
            return Ok(done); // dropping `room` has the next caller woken
        }
        tokio::time::timeout_at(until.into(), room.as_mut()).await.map_err(|_| Problem::backpressure())?;
    }
}

impl Context {
    /// The context of a runtime of this server.
    pub(super) fn new(parts: Arc<ServerParts>) -> Self {
        Self { parts, waiters: Arc::default(), feeds: Feeds::default(), document: OnceLock::new() }
    }

    /// Returns the log of this name. If it has to be opened first, that is done off the runtime's thread.
    pub(super) async fn log(&self, share: &ConnectionShare, name: &str) -> Result<Arc<OpenLog>, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log);
        }
        self.store.check(name)?;
        Ok(self.for_log(share, name, Store::get).await??)
    }

    /// Returns the settings of a log to append to, even if the append would create it.
    pub(super) async fn settings_of(
        &self,
        share: &ConnectionShare,
        name: &str,
    ) -> Result<LogSettings, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log.settings().clone());
        }
        let opened = match self.store.check(name) {
            Ok(()) => self.for_log(share, name, Store::get).await?,
            Err(error) => Err(error),
        };
        match opened {
            Ok(log) => Ok(log.settings().clone()),
            Err(store::Error::NotFound { .. }) if self.creates(name) => Ok(LogSettings::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether appending to a log of this name creates it: always for the book's log, which is also created at start.
    fn creates(&self, name: &str) -> bool {
        self.settings.create_logs || name == DEFAULT_LOG
    }

    /// Like [`log`](Self::log), but for an append, which creates the log if the server is configured to.
    pub(super) async fn log_to_append(
        &self,
        share: &ConnectionShare,
        name: &str,
    ) -> Result<Arc<OpenLog>, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log);
        }
        let create = self.creates(name);
        match self.store.check(name) {
            Err(store::Error::NotFound { .. }) if create => {}
            known => known?,
        }
        let found = self.for_log(share, name, move |store, name| match store.get(name) {
            Err(store::Error::NotFound { .. }) if create => {
                match store.create(name, &LogSettings::default()) {
                    Ok(_) | Err(store::Error::Exists { .. }) => store.get(name),
                    Err(error) => Err(error),
                }
            }
            found => found,
        });
        Ok(found.await??)
    }

    /// Runs something that may wait for a disk off the runtime's thread.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || run(&store)).await;
        done.map_err(|_| Problem::internal_failure())
    }

    /// Runs something that may take long for the log of this name, with a permit and off the runtime's thread; it runs to
    /// its end even if nobody waits for it any more.
    pub(super) async fn for_log<T: Send + 'static>(
        &self,
        share: &ConnectionShare,
        name: &str,
        run: impl FnOnce(&Store, &str) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = self.log_permits.acquire(name, &self.permits, share, self.settings.body_time).await?;
        let name = name.to_owned();
        let run = move |store: &Store| {
            let _permit = permit;
            run(store, &name)
        };
        self.blocking(run).await
    }

    /// Runs something that may take long for a log that is open, as [`for_log`](Self::for_log) does. The log stays open
    /// meanwhile.
    pub(super) async fn on_log<T: Send + 'static>(
        &self,
        share: &ConnectionShare,
        log: &Arc<OpenLog>,
        run: impl FnOnce(&OpenLog) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Problem> {
        let at = Arc::clone(log);
        let done = self.for_log(share, log.name(), move |_, _| run(&at)).await?;
        done.map_err(Problem::of_log(log))
    }

    /// Runs what writes a small file of a log, as [`on_log`](Self::on_log) does, once [`WritePace`] allows it:
    /// `last_write` says when and how much was last written, or nothing if there is nothing left to write. The pause is
    /// without the permit.
    pub(super) async fn on_log_at_write_pace<T: Send + 'static>(
        &self,
        share: &ConnectionShare,
        log: &Arc<OpenLog>,
        last_write: impl Fn(&OpenLog) -> Option<LastWrite> + Clone + Send + 'static,
        write: impl Fn(&OpenLog) -> Result<T, Error> + Clone + Send + 'static,
    ) -> Result<T, Problem> {
        loop {
            let (last_write, write) = (last_write.clone(), write.clone());
            // Another write may come in between. Then this one shares it, or comes a little early: that costs less than to
            // decide with the file locked, for which the engine would have to know the pace.
            let attempt = move |log: &OpenLog| match last_write(log).map(WritePace::pause) {
                Some(pause) if !pause.is_zero() => Ok(Err(pause)),
                _ => write(log).map(Ok),
            };
            match self.on_log(share, log, attempt).await? {
                Ok(done) => return Ok(done),
                Err(pause) => tokio::time::sleep(pause).await,
            }
        }
    }

    /// Runs something that only its client needs off the runtime's thread, with a permit; not at all if
    /// the client is gone by then.
    pub(super) async fn for_client<T: Send + 'static>(
        &self,
        share: &ConnectionShare,
        kind: Kind,
        patience: Duration,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = self.permits.acquire(kind, share, patience).await?;
        let (done, result) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let _permit = permit; // held to the end, even if the client leaves earlier
            if !done.is_closed() {
                drop(done.send(run()));
            }
        });
        result.await.map_err(|_| Problem::internal_failure())
    }

    /// Appends values of this [`cost`]: what takes more than a moment, off the runtime's thread. `append` is
    /// told whether it may wait for the copies of other appends.
    pub(super) async fn append<V: Send + Sync + 'static, T: Send + 'static>(
        &self,
        share: &ConnectionShare,
        log: &Arc<OpenLog>,
        cost: usize,
        values: V,
        append: fn(&OpenLog, &V, WaitFor) -> Result<T, Error>,
    ) -> Result<T, Problem> {
        let limit = self.settings.queue_time;
        if cost < OFFLOAD_BYTES {
            let attempt = || ready(Ok(append(log, &values, WaitFor::Nothing)));
            let done = when_there_is_room(limit, || log.room(), attempt).await?;
            return self.seen(log, done).await;
        }
        let values = Arc::new(values);
        let attempt = || {
            let (log, values) = (Arc::clone(log), Arc::clone(&values));
            let run = move || append(&log, &values, WaitFor::Copies);
            self.for_client(share, Kind::Append, limit, run)
        };
        let done = Box::pin(when_there_is_room(limit, || log.room(), attempt)).await?;
        self.seen(log, done).await
    }

    /// If an append is refused because of what is in the log, the answer waits until readers can see that content.
    /// Otherwise a client that was told the next offset could read and find fewer records, and after a crash they might
    /// never have existed.
    async fn seen<T>(&self, log: &Arc<OpenLog>, done: Result<T, Error>) -> Result<T, Problem> {
        if let Err(Error::Unexpected { .. } | Error::ProducerOutOfOrder { .. } | Error::NotARepeat { .. }) =
            &done
            && let Some(last) = log.next_offset().checked_sub(1)
        {
            self.acknowledged(log, last, None).await?;
        }
        done.map_err(Problem::of_log(log))
    }

    /// Completes when the server stops.
    pub(super) async fn stopping(&self) {
        let mut stopped = self.stopped.clone();
        let _ = stopped.wait_for(|stopped| *stopped).await; // or its sender is gone
    }

    /// Waits until an append whose last record is at `offset` may be answered.
    pub(super) async fn acknowledged(
        &self,
        log: &Arc<OpenLog>,
        offset: u64,
        ack: Option<Ack>,
    ) -> Result<(), Problem> {
        match ack.unwrap_or_else(|| Ack::by(log)) {
            Ack::Durable => {
                let _waiting = self.metrics.waiting(); // also counted down if the client leaves meanwhile
                let done = self.waiters.durable(log, offset).await;
                done.map_err(Problem::of_log(log))
            }
            Ack::Memory => {
                // Until earlier appends are copied: mostly they are, but a batch of many MiB takes milliseconds.
                while !log.is_published(offset) {
                    tokio::time::sleep(COPYING).await;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, future::pending};

    /// Each epoch that a client asked for wrote the whole file: 5 MB for 230 bytes, some 20 times per second.
    #[test]
    fn a_large_file_of_a_log_is_written_for_clients_only_so_often() {
        let pause = |bytes, ago| WritePace::pause(LastWrite { bytes, ago: Duration::from_millis(ago) });
        assert_eq!([0, 400, 500, 100_000].map(|ago| pause(4 << 20, ago).as_millis()), [500, 100, 0, 0]);
        assert_eq!(pause(230, 0), Duration::ZERO);
    }

    /// It was given up when the time was over, went on off the runtime's thread, and was stored all the same.
    #[test]
    fn an_append_that_has_begun_is_waited_for_and_its_result_is_answered() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let limit = Duration::from_millis(20);
        let attempts = Cell::new(0);
        let slow = || async {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 3 {
                return Ok(Err(Error::WouldBlock));
            }
            tokio::time::sleep(4 * limit).await;
            Ok(Ok(7))
        };
        let done = runtime.block_on(when_there_is_room(limit, || ready(()), slow));
        assert!(matches!(done, Ok(Ok(7))), "after {} attempts", attempts.get());
        let never = || ready(Ok(Err::<(), _>(Error::WouldBlock)));
        let refused = runtime.block_on(when_there_is_room(limit, pending::<()>, never)).err();
        assert!(refused.is_some_and(|problem| problem.to_string().starts_with("backpressure")));
    }
}
