//! An append to a log: repeated until there is room, and answered when its records are where the client wants them.

use super::{
    context::Context,
    permits::{Kind, OFFLOAD_BYTES},
    problem::Problem,
    share::ConnectionShare,
};
use crate::{
    log::{Durability, Error, WaitFor},
    store::OpenLog,
};
use std::{
    future::ready,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often to check whether an earlier large batch has been copied.
pub(super) const COPY_POLL: Duration = Duration::from_millis(1);

/// The cost of parsing or appending these values, in bytes; a record counts as 64 bytes more.
pub(super) fn cost(bytes: usize, records: usize) -> usize {
    bytes.saturating_add(records.saturating_mul(64))
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
    /// Appends values of this [`cost`]; off the runtime's thread, if that takes more than a moment. `append` is told whether
    /// it may wait until earlier appends have been copied.
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
            return self.when_visible(log, done).await;
        }
        let values = Arc::new(values);
        let attempt = || {
            let (log, values) = (Arc::clone(log), Arc::clone(&values));
            let run = move || append(&log, &values, WaitFor::Copies);
            self.for_client(share, Kind::Append, limit, run)
        };
        let done = Box::pin(when_there_is_room(limit, || log.room(), attempt)).await?;
        self.when_visible(log, done).await
    }

    /// If an append is refused because of what is in the log, the answer waits until readers can see that content.
    /// Otherwise a client that was told the next offset could read and find fewer records, and after a crash they might
    /// never have existed.
    async fn when_visible<T>(&self, log: &Arc<OpenLog>, done: Result<T, Error>) -> Result<T, Problem> {
        if let Err(Error::Unexpected { .. } | Error::ProducerOutOfOrder { .. } | Error::NotARepeat { .. }) =
            &done
            && let Some(last) = log.next_offset().checked_sub(1)
        {
            self.acknowledged(log, last, None).await?;
        }
        done.map_err(Problem::of_log(log))
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
                    tokio::time::sleep(COPY_POLL).await;
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
