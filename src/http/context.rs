//! What handlers share: the store, limits and memory of the server, and how a log is looked up.

use super::{
    commit::DurabilityWaiters, feed::Feeds, guard::Guard, log_permits::LogPermits, memory::Memory,
    metrics::Metrics, permits::Permits, problem::Problem, settings::Settings, share::ConnectionShare,
    waited::WaitedLogs,
};
use crate::store::{self, LogSettings, OpenLog, Store};
use bytes::Bytes;
use std::{
    ops::Deref,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};
use tokio::sync::watch;

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

    /// Like [`log`](Self::log), but for an append, which creates the log if the server is configured to. If a log without
    /// records would refuse the append, as `check_first` says, none is created, and that is the answer.
    pub(super) async fn log_to_append(
        &self,
        share: &ConnectionShare,
        name: &str,
        check_first: impl FnOnce() -> Result<(), Problem>,
    ) -> Result<Arc<OpenLog>, Problem> {
        if let Some(log) = self.store.get_open(name) {
            return Ok(log);
        }
        let creates = self.creates(name);
        let refused = check_first().err();
        let create = creates && refused.is_none();
        let known = match self.store.check(name) {
            Err(store::Error::NotFound { .. }) if create => Ok(()),
            known => known,
        };
        let get_or_create = move |store: &Store, name: &str| match store.get(name) {
            Err(store::Error::NotFound { .. }) if create => {
                match store.create(name, &LogSettings::default()) {
                    Ok(_) | Err(store::Error::Exists { .. }) => store.get(name),
                    Err(error) => Err(error),
                }
            }
            found => found,
        };
        let found = match known {
            Ok(()) => self.for_log(share, name, get_or_create).await?,
            Err(error) => Err(error),
        };
        match (found, refused) {
            (Err(store::Error::NotFound { .. }), Some(refused)) if creates => Err(refused),
            (found, _) => Ok(found?),
        }
    }

    /// Completes when the server stops.
    pub(super) async fn stopping(&self) {
        let mut stopped = self.stopped.clone();
        let _ = stopped.wait_for(|stopped| *stopped).await; // or its sender is gone
    }
}
