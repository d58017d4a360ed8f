//! Where `append` appends: a producer on a server, or a log in a directory. Both collect records into batches, and append
//! one when it is large enough, or a while after its first record.

use super::{Failure, input::Next};
use millstream::{
    BATCH_EXTRA_BYTES, Error as LogError, Payload, ProducerBatch, RECORD_EXTRA_BYTES,
    client::{Producer, ProducerOptions, Stored},
    import::Progress,
    store::{OpenLog, Values},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The most bytes that a record takes in a segment.
fn cost(record: &[u8]) -> u64 {
    record.len() as u64 + RECORD_EXTRA_BYTES.end()
}

/// What was appended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Appended {
    pub(super) records: u64,
    pub(super) first_offset: Option<u64>,
    pub(super) last_offset: Option<u64>,
}

impl Appended {
    fn note(&mut self, first: u64, records: u64) {
        self.records += records;
        self.first_offset.get_or_insert(first);
        self.last_offset = Some(first + records - 1);
    }

    /// What of it is stored, if only the records before this offset are. They follow each other in the log.
    fn limited_to(self, end: u64) -> Self {
        let first_offset = self.first_offset.filter(|&first| first < end);
        let last_offset = first_offset.and(self.last_offset).map(|last| last.min(end - 1));
        let records = first_offset.zip(last_offset).map_or(0, |(first, last)| last + 1 - first);
        Self { records, first_offset, last_offset }
    }
}

/// Where `append` appends to.
pub(super) enum Sink {
    Server(Producer),
    Directory(Writer),
}

impl Sink {
    pub(super) async fn push(&mut self, next: Next, is_import: bool) -> Result<(), Failure> {
        let Next { record, json, at, .. } = &next;
        match self {
            Self::Server(producer) if is_import => {
                producer.push_marked(record, *json, &at.to_string()).await?;
            }
            Self::Server(producer) if *json => producer.push_json(record).await?,
            Self::Server(producer) => producer.push(record).await?,
            Self::Directory(writer) => writer.push(next).await?,
        }
        Ok(())
    }

    /// When [`append`](Self::append) is to be called next; a producer does that by itself.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Server(_) => None,
            Self::Directory(writer) => writer.due,
        }
    }

    /// Appends what was collected.
    pub(super) async fn append(&mut self) -> Result<(), Failure> {
        match self {
            Self::Server(_) => Ok(()),
            Self::Directory(writer) => writer.append().await,
        }
    }

    /// Waits until all is stored.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::Server(producer) => Ok(producer.flush().await?),
            Self::Directory(writer) => writer.flush().await,
        }
    }

    /// What is known to be stored.
    pub(super) fn appended(&self) -> Appended {
        match self {
            Self::Server(producer) => {
                let Stored { records, first_offset, last_offset, .. } = producer.stored();
                Appended { records, first_offset, last_offset }
            }
            Self::Directory(writer) => writer.appended.limited_to(writer.log.durable_offset()),
        }
    }

    /// Whether more than that may be stored. To be called before [`appended`](Self::appended): what becomes stored
    /// between the calls is then known to be.
    pub(super) fn may_have_stored_more(&self) -> bool {
        match self {
            Self::Server(producer) => producer.may_be_stored(),
            Self::Directory(writer) => {
                writer.appended.last_offset.is_some_and(|last| last >= writer.log.durable_offset())
            }
        }
    }
}

/// Collects records for a log in a directory.
pub(super) struct Writer {
    log: Arc<OpenLog>,
    /// The import's name, its epoch, and the sequence of the next batch.
    producer: Option<(String, u32, u64)>,
    /// The most bytes that a batch may take in a segment.
    max: u64,
    linger: Duration,
    batch: Batch,
    due: Option<Instant>,
    appended: Appended,
}

/// Records that are appended together.
#[derive(Default)]
struct Batch {
    records: Vec<Next>,
    bytes: u64,
}

impl Writer {
    /// Batches have no more than `batch_bytes`, and fit segments of `segment_bytes`. With the name of an import and its
    /// epoch, each has a mark.
    pub(super) fn new(
        log: Arc<OpenLog>,
        segment_bytes: u64,
        batch_bytes: u64,
        producer: Option<(String, u32)>,
    ) -> Self {
        Self {
            log,
            producer: producer.map(|(name, epoch)| (name, epoch, 0)),
            max: batch_bytes.min(segment_bytes.saturating_sub(BATCH_EXTRA_BYTES)),
            linger: ProducerOptions::default().linger,
            batch: Batch::default(),
            due: None,
            appended: Appended::default(),
        }
    }

    async fn push(&mut self, mut next: Next) -> Result<(), Failure> {
        next.room = None; // it is collected, and no longer read ahead
        next.json |= self.log.settings().values == Values::Json;
        let bytes = cost(&next.record);
        if self.batch.bytes + bytes > self.max {
            self.append().await?;
        }
        self.batch.bytes += bytes;
        self.batch.records.push(next);
        self.due.get_or_insert_with(|| Instant::now() + self.linger);
        Ok(())
    }

    async fn append(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.batch);
        self.due = None;
        let records = batch.records.len() as u64;
        if records == 0 {
            return Ok(());
        }
        match append(&self.log, &batch.records, self.producer.as_ref()).await {
            Ok(first) => self.appended.note(first, records),
            Err(error) => {
                return Err(self.durable().await.err().unwrap_or(error));
            }
        }
        if let Some((_, _, sequence)) = &mut self.producer {
            *sequence += 1;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        self.append().await?;
        self.durable().await
    }

    /// Waits until what was appended is durable.
    async fn durable(&mut self) -> Result<(), Failure> {
        let Some(last) = self.appended.last_offset else { return Ok(()) };
        Ok(self.log.durable(last).await?)
    }
}

async fn append(
    log: &Arc<OpenLog>,
    batch: &[Next],
    producer: Option<&(String, u32, u64)>,
) -> Result<u64, Failure> {
    let payloads: Vec<_> =
        batch.iter().map(|next| Payload { bytes: &next.record, json: next.json }).collect();
    let last = batch.last().map_or(Progress::default(), |next| next.at);
    let mark = last.to_string();
    loop {
        let appended = match producer {
            None => log.try_append_payloads(&payloads, None),
            Some((name, epoch, sequence)) => {
                let batch = ProducerBatch::new(name, *epoch, *sequence).with_mark(&mark);
                log.try_append_once(&batch, &payloads, None).map(|done| done.first_offset)
            }
        };
        match appended {
            // Until the disk has caught up.
            Err(LogError::WouldBlock) => {
                let log = Arc::clone(log);
                tokio::task::spawn_blocking(move || log.flush()).await??;
            }
            done => return Ok(done?),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
