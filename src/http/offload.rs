//! Work that may take long, off the runtime's thread: for the disk, for a log, for one client.

use super::{context::Context, permits::Kind, problem::Problem, share::ConnectionShare};
use crate::{
    log::{Error, LastWrite},
    store::{OpenLog, Store},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

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

impl Context {
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
        let permit = self.permits.acquire(kind, &share.lines, patience).await?;
        let (done, result) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let _permit = permit; // held to the end, even if the client leaves earlier
            if !done.is_closed() {
                drop(done.send(run()));
            }
        });
        result.await.map_err(|_| Problem::internal_failure())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each epoch that a client asked for wrote the whole file: 5 MB for 230 bytes, some 20 times per second.
    #[test]
    fn a_large_file_of_a_log_is_written_for_clients_only_so_often() {
        let pause = |bytes, ago| WritePace::pause(LastWrite { bytes, ago: Duration::from_millis(ago) });
        assert_eq!([0, 400, 500, 100_000].map(|ago| pause(4 << 20, ago).as_millis()), [500, 100, 0, 0]);
        assert_eq!(pause(230, 0), Duration::ZERO);
    }
}
