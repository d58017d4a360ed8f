//! What all connections of a run share: what they are to send, and what was measured.

use super::{
    Bench,
    batches::{Batch, batches, stamp},
    schedule::Schedule,
    series::{Measured, Series},
};
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    time::Instant,
};

/// The most records that one read asks for.
const MAX_READ_RECORDS: u64 = 1000;

/// The state of a run. Everything happens on one thread.
pub(super) struct Run {
    pub(super) bench: Bench,
    batches: Vec<Batch>,
    begun: Instant,
    pub(super) measured: RefCell<Measured>,
    /// How many records each log has, as far as that was answered.
    stored: RefCell<Vec<u64>>,
    /// How many requests were begun.
    begun_requests: Cell<u64>,
    random: RefCell<fastrand::Rng>,
    /// Whether nothing more is appended.
    pub(super) over: Cell<bool>,
}

/// What is done next.
pub(super) enum Next<'a> {
    Append { log: usize, batch: &'a Batch, body: Bytes },
    Read { log: usize, offset: u64, limit: u64 },
}

impl Next<'_> {
    pub(super) fn log(&self) -> usize {
        match self {
            Self::Append { log, .. } | Self::Read { log, .. } => *log,
        }
    }

    /// What is to be remembered of it until it is answered.
    fn sent(&self, due: Instant) -> Sent {
        let what = match self {
            Self::Append { batch, .. } => {
                What::Append { records: batch.values.len() as u64, bytes: batch.bytes }
            }
            Self::Read { offset, .. } => What::Read { offset: *offset },
        };
        Sent { due, log: self.log(), what }
    }
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    due: Instant,
    log: usize,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Append { records: u64, bytes: u64 },
    Read { offset: u64 },
}

/// An answer to it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answer {
    /// Of a read: where the next one would begin.
    pub(super) next_offset: u64,
    /// Of a read: the bytes that were read.
    pub(super) bytes: u64,
}

impl Run {
    pub(super) fn new(bench: &Bench) -> Self {
        let batches = batches(bench);
        let begun = Instant::now();
        Self {
            bench: bench.clone(),
            batches,
            begun,
            measured: Measured::new(begun, bench.warm_up(), bench.duration(), bench.rate.is_some()).into(),
            stored: RefCell::new(vec![0; bench.logs as usize]),
            begun_requests: Cell::new(0),
            random: RefCell::new(fastrand::Rng::with_seed(2)),
            over: Cell::new(false),
        }
    }

    /// When the requests of the `n`th sender of `senders` are due.
    pub(super) fn schedule(&self, n: u32, senders: u32) -> Schedule {
        Schedule::new(&self.bench, self.begun, n, senders)
    }

    /// When nothing more is sent.
    pub(super) fn end(&self) -> Instant {
        self.begun + self.bench.warm_up() + self.bench.duration()
    }

    /// Begins the request that is due at this time; `None` if that is after the end. What was due before is sent, however
    /// late.
    pub(super) fn begin(&self, turn: usize, due: Instant) -> Option<(Next<'_>, Sent)> {
        if due >= self.end() {
            return None;
        }
        let next = self.next(turn, due);
        let sent = next.sent(due);
        self.series(&sent, |series| series.sent(due));
        Some((next, sent))
    }

    /// What a request that was due at this time is to do; `turn` chooses its log. Reads are spread evenly among appends.
    fn next(&self, turn: usize, due: Instant) -> Next<'_> {
        let number = self.begun_requests.replace(self.begun_requests.get() + 1);
        let log = turn % self.bench.logs as usize;
        let reads = |number: u64| number * u64::from(self.bench.reads) / 100;
        if reads(number) != reads(number + 1) {
            let limit = u64::from(self.bench.batch).min(MAX_READ_RECORDS);
            let last = self.stored.borrow()[log].saturating_sub(limit);
            return Next::Read { log, offset: self.random.borrow_mut().u64(0..=last), limit };
        }
        let batch = &self.batches[number as usize % self.batches.len()];
        let body = match self.bench.tails {
            0 => batch.body.clone(),
            _ => batch.stamped(due.duration_since(self.begun)),
        };
        Next::Append { log, batch, body }
    }

    /// It was answered: with success, or with a refusal, in words.
    pub(super) fn answered(&self, sent: &Sent, answer: Result<Answer, String>) {
        let (records, bytes) = match (answer, sent.what) {
            (Err(why), _) => return self.series(sent, |series| series.failed(sent.due, || why)),
            (Ok(_), What::Append { records, bytes }) => (records, bytes),
            (Ok(answer), What::Read { offset }) => (answer.next_offset.saturating_sub(offset), answer.bytes),
        };
        if let What::Append { .. } = sent.what {
            self.stored.borrow_mut()[sent.log] += records;
        }
        self.series(sent, |series| series.answered(sent.due, Instant::now(), records, bytes));
    }

    fn series(&self, sent: &Sent, tell: impl FnOnce(&mut Series)) {
        let mut measured = self.measured.borrow_mut();
        tell(match sent.what {
            What::Append { .. } => &mut measured.appends,
            What::Read { .. } => &mut measured.reads,
        });
    }

    /// A connection has failed.
    pub(super) fn broken(&self, error: &dyn std::fmt::Display) {
        self.measured.borrow_mut().appends.failed_many(1, || error.to_string());
    }

    /// How many records are known to be in a log.
    pub(super) fn stored(&self, log: usize) -> u64 {
        self.stored.borrow()[log]
    }

    /// A tail has got a record with this value, which says when it was due if it is the first of a batch.
    pub(super) fn tailed(&self, value: &[u8]) {
        let due = stamp(value).map(|time| self.begun + time);
        self.measured.borrow_mut().tails.delivered(due, Instant::now(), value.len() as u64);
    }
}
