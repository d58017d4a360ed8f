//! What a session has appended and what of it is stored, which its client is told line by line.

use super::{
    super::{appending::Ack, context::Context, problem::Problem},
    or_never,
};
use crate::store::OpenLog;
use std::{collections::VecDeque, ops::Range, pin::Pin, sync::Arc};

/// The most batches on their way to the disk.
const MAX_UNACKNOWLEDGED: usize = 4096;

/// Records that follow each other in the log, and are on their way to the disk.
struct Unacknowledged {
    first: u64,
    /// The offset after the last one.
    end: u64,
    /// How many records of the body have been taken with them.
    taken: u64,
}

/// How many records of the body are stored, and the offset of the last of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stored {
    pub(super) records: u64,
    pub(super) last_offset: Option<u64>,
}

type Commit = Pin<Box<dyn Future<Output = Result<(), Problem>> + Send>>;

/// What is on its way to the disk, and what is stored.
pub(super) struct Progress {
    ack: Ack,
    /// The batches that are not stored yet, in order.
    unacknowledged: VecDeque<Unacknowledged>,
    /// Completes when the first of them is stored.
    commit: Option<Commit>,
    stored: Stored,
    /// Whether the client is still to be told what is stored.
    has_news: bool,
}

impl Progress {
    pub(super) fn new(ack: Ack) -> Self {
        let (unacknowledged, stored) = (VecDeque::new(), Stored::default());
        Self { ack, unacknowledged, commit: None, stored, has_news: false }
    }

    pub(super) fn stored(&self) -> Stored {
        self.stored
    }

    /// Whether nothing more may be appended until something is stored.
    pub(super) fn is_full(&self) -> bool {
        self.unacknowledged.len() >= MAX_UNACKNOWLEDGED
    }

    /// Whether all that was appended is stored, or no longer waited for.
    pub(super) fn is_all_stored(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// Whether the client is to be told what is stored. It is, then.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// The client is told again what is stored, so that it sees that the session goes on.
    pub(super) fn repeat(&mut self) {
        self.has_news = true;
    }

    /// These records of the body were stored by an earlier session.
    pub(super) fn were_stored(&mut self, records: u64) {
        (self.stored.records, self.has_news) = (records, true);
    }

    /// A batch was appended at these offsets. With it, so many records of the body have been `taken`.
    pub(super) fn appended(&mut self, offsets: Range<u64>, taken: u64) {
        self.unacknowledged.push_back(Unacknowledged { first: offsets.start, end: offsets.end, taken });
    }

    /// What was appended is no longer waited for: it is not known whether it is stored.
    pub(super) fn give_up(&mut self) {
        self.unacknowledged.clear();
    }

    /// Begins to wait for the first batch that is not stored, unless that has begun.
    pub(super) fn begin_commit(&mut self, context: &Arc<Context>, log: &Arc<OpenLog>) {
        if let Some(batch) = self.unacknowledged.front().filter(|_| self.commit.is_none()) {
            let (context, log, ack) = (Arc::clone(context), Arc::clone(log), self.ack);
            let last = batch.end - 1;
            self.commit = Some(Box::pin(async move { context.acknowledged(&log, last, Some(ack)).await }));
        }
    }

    /// Waits until the first batch is stored; without end if that has not begun. May be dropped and called again.
    pub(super) async fn committed(&mut self, log: &OpenLog) -> Result<(), Problem> {
        let done = or_never(self.commit.as_mut()).await;
        self.commit = None;
        done?;
        self.acknowledge(log);
        Ok(())
    }

    /// Removes the batches that are stored from the queue: at most a run of them without gaps, so that the offset of
    /// each record is known from that of the last.
    fn acknowledge(&mut self, log: &OpenLog) {
        let is_stored = |batch: &Unacknowledged| match self.ack {
            Ack::Durable => batch.end <= log.durable_offset(),
            Ack::Memory => log.is_published(batch.end - 1),
        };
        let mut next = None;
        while let Some(batch) = self.unacknowledged.front()
            && is_stored(batch)
            && next.is_none_or(|next| next == batch.first)
        {
            next = Some(batch.end);
            self.stored = Stored { records: batch.taken, last_offset: Some(batch.end - 1) };
            self.has_news = true;
            self.unacknowledged.pop_front();
        }
    }
}
