//! The producer of a session, and how many records it has stored.

use super::super::{
    context::Context,
    formats::DecodedBatch,
    problem::Problem,
    producers::{self, ProducerHeaders},
    share::ConnectionShare,
};
use crate::{
    Code,
    chunk::AppendValues,
    frame::JSON,
    log::{Content, Error, Produced, ProducerBatch, StoredBatch, WaitFor},
    store::OpenLog,
};
use hyper::header::HeaderMap;
use std::{collections::VecDeque, sync::Arc};

/// What a producer's mark begins with, before the number of records that it has stored in sessions. Batches without a
/// session have no such marks.
pub(in crate::http) const MARK: &str = "session ";

/// How many records a producer with this mark has stored in sessions.
fn stored(mark: Option<&str>) -> Result<u64, Problem> {
    mark.map_or(Some(0), |mark| mark.strip_prefix(MARK)?.parse().ok()).ok_or_else(|| {
        let detail = "this producer appends without sessions, with marks of its own: use another id";
        Problem::new(Code::InvalidProducer, detail)
    })
}

/// How many of the body's first records are stored already; `first` is the producer's number for the first of them.
fn skips(first: Option<u64>, stored: u64, epoch: u32) -> Result<u64, Problem> {
    stored.checked_sub(first.unwrap_or(stored)).ok_or_else(|| {
        let detail =
            format!("the producer has stored {stored} records in sessions, and this one begins later");
        Problem::new(Code::ProducerOutOfOrder, detail).with(|numbers| {
            numbers.expected_epoch = Some(epoch.into());
            numbers.expected_seq = Some(stored);
        })
    })
}

/// The producer as which a session is to append.
pub(in crate::http) struct WantedProducer {
    id: String,
    /// Which of the producer's records is the first of the body, if it says so.
    first: Option<u64>,
}

impl WantedProducer {
    /// The producer named by the headers of a request, if any.
    pub(in crate::http) fn parse(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let bad = |detail: &str| Problem::new(Code::InvalidProducer, detail);
        if headers.contains_key("producer-epoch") || headers.contains_key("producer-mark") {
            let detail =
                "a session begins an epoch and marks its batches: leave out Producer-Epoch and Producer-Mark";
            return Err(bad(detail));
        }
        let ProducerHeaders { id, sequence: first, .. } = ProducerHeaders::parse(headers)?;
        let Some(id) = id else {
            return if first.is_none() { Ok(None) } else { Err(bad("Producer-Seq comes with Producer-Id")) };
        };
        Ok(Some(Self { id: id.to_owned(), first }))
    }

    /// An error if a log that has no records refuses the session.
    pub(in crate::http) fn check_first(&self) -> Result<(), Problem> {
        skips(self.first, 0, 0).map(drop)
    }
}

/// The batches that the producer's last session stored last, as far as the log remembers them, to be compared with what the
/// body repeats of them.
#[derive(Clone, Default)]
struct Remembered {
    /// Oldest first.
    batches: VecDeque<StoredBatch>,
    /// The number of the producer's record that the first of them begins with.
    from: u64,
    /// What the body has of that one so far.
    content: Content,
}

impl Remembered {
    /// The session's batches end at the offset `mark_end`: what comes after that was appended without a session.
    /// `stored` is the number of the record after the last one of the session's batches, and `first` that of the body's
    /// first one: a batch of which it has only a part is not compared.
    fn new(mut batches: Vec<StoredBatch>, mark_end: u64, stored: u64, first: u64) -> Self {
        batches.retain(|batch| batch.first_offset + batch.count <= mark_end);
        let records = batches.iter().map(|batch| batch.count).sum();
        let from = stored.saturating_sub(records);
        let mut remembered = Self { batches: batches.into(), from, content: Content::default() };
        while remembered.from < first && !remembered.batches.is_empty() {
            remembered.next();
        }
        remembered
    }

    /// Takes the producer's record of this number, which is stored; numbers follow each other. An error if it completes a
    /// batch, and what is stored of that is different.
    fn compare(&mut self, number: u64, value: &[u8], json: bool) -> Result<(), Error> {
        let Some(batch) = self.batches.front() else { return Ok(()) };
        let StoredBatch { first_offset, count, .. } = *batch;
        if number < self.from {
            return Ok(());
        }
        self.content.add(value, json);
        if number + 1 < self.from + count {
            return Ok(());
        }
        let is_same = self.content.is_of(batch);
        self.next();
        if is_same { Ok(()) } else { Err(Error::NotARepeat { first_offset, count }) }
    }

    fn next(&mut self) {
        self.from += self.batches.pop_front().map_or(0, |batch| batch.count);
        self.content = Content::default();
    }
}

/// A producer in its session.
#[derive(Clone)]
pub(super) struct Producer {
    id: String,
    pub(super) epoch: u32,
    /// The number of the next batch.
    pub(super) sequence: u64,
    /// How many records it has stored in sessions; and how many of the next ones of the body are among them.
    pub(super) stored: u64,
    pub(super) skips: u64,
    remembered: Remembered,
}

impl Producer {
    /// Begins the producer's next epoch.
    pub(super) async fn begin(
        wanted: WantedProducer,
        context: &Context,
        share: &ConnectionShare,
        log: &Arc<OpenLog>,
    ) -> Result<Self, Problem> {
        let WantedProducer { id, first } = wanted;
        // Before the epoch begins, which ends a session that this one cannot continue.
        let known = producers::known_state(context, share, log, &id).await?;
        let (mark, epoch) = known.map_or((None, 0), |known| (known.mark, known.epoch));
        skips(first, stored(mark.as_deref())?, epoch)?;
        let begun = producers::begin_epoch(context, share, log, &id, None).await?;
        let stored = stored(begun.mark.as_deref())?;
        let skips = skips(first, stored, begun.epoch)?;
        let batches = begun.earlier.map_or_else(Vec::new, |(_, batches)| batches);
        let remembered = Remembered::new(batches, begun.mark_end.unwrap_or(0), stored, stored - skips);
        Ok(Self { id, epoch: begun.epoch, sequence: 0, stored, skips, remembered })
    }

    /// How many of a batch's first records are stored already. An error if the stored records differ from them.
    pub(super) fn skip(&mut self, batch: &DecodedBatch) -> Result<u64, Error> {
        let skipped = self.skips.min(batch.records());
        let (first, mut number, mut compared) = (self.stored - self.skips, 0, Ok(()));
        batch.each(|value, flags| {
            if number < skipped && compared.is_ok() {
                compared = self.remembered.compare(first + number, value, flags & JSON != 0);
            }
            number += 1;
        });
        self.skips -= skipped;
        compared.map(|()| skipped)
    }

    /// Appends a batch as the producer's next one; returns its first offset. If one of that number is stored, it is not
    /// of a session.
    pub(super) fn append(
        &self,
        log: &OpenLog,
        batch: &DecodedBatch,
        wait_for: WaitFor,
    ) -> Result<u64, Error> {
        let mark = format!("{MARK}{}", self.stored + batch.records());
        let named = ProducerBatch::new(&self.id, self.epoch, self.sequence).with_mark(&mark);
        let Produced { first_offset, count, repeated } =
            log.try_append_values_once(&named, batch, None, wait_for)?;
        if repeated { Err(Error::NotARepeat { first_offset, count }) } else { Ok(first_offset) }
    }
}
