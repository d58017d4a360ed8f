//! What handlers share: the store, limits and memory of the server, and how a log is found, read, appended to and waited
//! for.

use super::{
    commit::DurabilityWaiters,
    feed::Feeds,
    guard::Guard,
    line::{Kind, Line},
    memory::Memory,
    metrics::Metrics,
    problem::Problem,
    server::Limits,
    turns::Turns,
};
use crate::{
    Code,
    log::{Durability, Error},
    store::{self, LogSettings, OpenLog, Store},
};
use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// What a request needs; one per runtime.
pub(super) struct Context {
    pub(super) store: Arc<Store>,
    pub(super) waiters: Arc<DurabilityWaiters>,
    pub(super) feeds: Feeds,
    pub(super) turns: Arc<Turns>,
    pub(super) limits: Arc<Limits>,
    pub(super) memory: Arc<Memory>,
    pub(super) guard: Arc<Guard>,
    pub(super) metrics: Arc<Metrics>,
    /// Whether the book's log has been recovered.
    pub(super) recovered: Arc<AtomicBool>,
    /// Turns true when the server shuts down: waiting requests are answered then.
    pub(super) stopped: watch::Receiver<bool>,
}

/// Whose request it is, and how much of the answer is wanted.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    /// Its connection's.
    pub(super) line: &'a Arc<Line>,
    /// It is a HEAD.
    pub(super) only_head: bool,
}

/// When an append is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ack {
    Durable,
    Memory,
}

impl Context {
    /// The log of this name. Where it has to be opened first, that is done off the runtime's thread.
    pub(super) async fn log(&self, name: &str) -> Result<Arc<OpenLog>, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log);
        }
        Ok(self.in_turn(name, Store::get).await??)
    }

    /// The settings of a log to append to, also of one that an append would create.
    pub(super) async fn settings(&self, name: &str) -> Result<LogSettings, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log.settings().clone());
        }
        match self.in_turn(name, Store::get).await? {
            Ok(log) => Ok(log.settings().clone()),
            Err(store::Error::NotFound { .. }) if self.creates(name) => Ok(LogSettings::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether appending to a log of this name makes it: to the book's log always, as starting does.
    fn creates(&self, name: &str) -> bool {
        self.limits.create_logs || name == super::book::LOG
    }

    /// [`log`](Self::log) for an append, which creates it where the server is set to.
    pub(super) async fn log_to_append(&self, name: &str) -> Result<Arc<OpenLog>, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log);
        }
        let create = self.creates(name);
        let found = self.in_turn(name, move |store, name| match store.get(name) {
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

    /// Runs what may wait for a disk off the runtime's thread.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || run(&store)).await;
        done.map_err(|_| Problem::new(Code::Internal, "the request failed unexpectedly"))
    }

    /// Runs what may take long for the log of this name, in its turn, off the runtime's thread; to its end, also where nobody waits
    /// for it any more.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        name: &str,
        run: impl FnOnce(&Store, &str) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = self.turns.turn(name).await;
        let name = name.to_owned();
        let run = move |store: &Store| {
            let _turn = turn;
            run(store, &name)
        };
        self.blocking(run).await
    }

    /// Runs what only its client needs off the runtime's thread, in the turn of its connection; not at all where the client is gone
    /// by then.
    pub(super) async fn for_client<T: Send + 'static>(
        &self,
        line: &Line,
        kind: Kind,
        patience: Duration,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = self.memory.turn(kind, line, patience).await?;
        let (done, result) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let _turn = turn; // held to the end, also where the client leaves before
            if !done.is_closed() {
                drop(done.send(run()));
            }
        });
        result.await.map_err(|_| Problem::new(Code::Internal, "the request failed unexpectedly"))
    }

    /// Appends; where the disk is behind, waits a little for it.
    pub(super) async fn append<T>(
        &self,
        log: &Arc<OpenLog>,
        attempt: impl Fn() -> Result<T, Error>,
    ) -> Result<T, Problem> {
        match attempt() {
            Err(Error::WouldBlock) => {}
            done => return self.seen(log, done).await,
        }
        let retry = async {
            loop {
                let room = log.room(); // before the attempt, so that room made in between is not missed
                match attempt() {
                    Err(Error::WouldBlock) => room.await,
                    done => return done,
                }
            }
        };
        match tokio::time::timeout(self.limits.append_time, retry).await {
            Ok(done) => self.seen(log, done).await,
            Err(_) => Err(Problem::backpressure()),
        }
    }

    /// An append that is refused for what is in the log is told so once readers can see that. Otherwise a client that
    /// was told of a next offset could read and find less, and after a crash it would never have been there.
    async fn seen<T>(&self, log: &Arc<OpenLog>, done: Result<T, Error>) -> Result<T, Problem> {
        if let Err(Error::Unexpected { .. } | Error::ProducerOutOfOrder { .. }) = &done
            && let Some(last) = log.next_offset().checked_sub(1)
        {
            self.acknowledged(log, last, None).await?;
        }
        done.map_err(|error| Problem::from(error).of(log))
    }

    /// Waits until an append, whose last record is at `offset`, may be answered.
    pub(super) async fn acknowledged(
        &self,
        log: &Arc<OpenLog>,
        offset: u64,
        ack: Option<Ack>,
    ) -> Result<(), Problem> {
        let by_log = match log.durability() {
            Durability::Disk => Ack::Durable,
            Durability::Memory => Ack::Memory,
        };
        match ack.unwrap_or(by_log) {
            Ack::Durable => {
                let _waiting = self.metrics.waiting(); // also where the client goes meanwhile
                let done = self.waiters.durable(log, offset).await;
                done.map_err(|error| Problem::from(error).of(log))
            }
            Ack::Memory => {
                log.wait_published(offset);
                Ok(())
            }
        }
    }
}
