//! What `append` reads. Reading blocks, so a thread of its own does it: what was read is appended in time. It reads only
//! so far ahead, and when it is told to stop, it takes nothing more from the file, but still splits what it has.

use super::CodedFailure;
use millstream::{
    import::{Error, Progress, Source, Split},
    store::LogSettings,
};
use std::{
    io::{self, BufReader, Read},
    sync::Arc,
};
use tokio::{
    runtime::Handle,
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TrySendError},
        watch,
    },
};

/// The most bytes of records that were read and not handed over yet, beside one record more.
const MAX_AHEAD_BYTES: u32 = 4 << 20;
/// The most such records.
const MAX_AHEAD_RECORDS: usize = 1024;
/// The bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// A record, and how far the source was read with it.
pub(super) struct Next {
    pub(super) record: Vec<u8>,
    pub(super) json: bool,
    pub(super) at: Progress,
    /// Why its log does not take it, if so.
    pub(super) refused: Option<CodedFailure>,
    /// Its part of [`MAX_AHEAD_BYTES`], until it is dropped.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// How far a file was read.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    bytes: u64,
    ends_line: bool,
    /// Whether all of that was split, and the file is asked for more.
    asks: bool,
    /// Whether nothing more is to be read.
    stopped: bool,
}

/// Why nothing more is read, although nothing is wrong.
#[derive(Debug, thiserror::Error)]
#[error("it was stopped")]
struct Stopped;

fn is_stop(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<Stopped>())
}

/// A file that says how far it was read, and can be stopped.
struct Watched<R> {
    from: R,
    reading: Arc<watch::Sender<Reading>>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stopped = false;
        self.reading.send_modify(|reading| (reading.asks, stopped) = (true, reading.stopped));
        if stopped {
            return Err(io::Error::other(Stopped));
        }
        let read = self.from.read(buffer);
        self.reading.send_modify(|reading| {
            stopped = reading.stopped; // and then somebody relies on it that nothing more comes
            reading.asks = stopped;
            if !stopped && let Ok(bytes @ 1..) = read {
                reading.bytes += bytes as u64;
                reading.ends_line = buffer[bytes - 1] == b'\n';
            }
        });
        if stopped { Err(io::Error::other(Stopped)) } else { read }
    }
}

/// What is to be appended, before its first record is read.
pub(super) struct Input {
    source: Source<BufReader<Watched<Box<dyn Read + Send>>>>,
    has_lines: bool,
    reading: Arc<watch::Sender<Reading>>,
}

impl Input {
    pub(super) fn new(from: Box<dyn Read + Send>, split: Split) -> Self {
        let reading = Arc::new(watch::Sender::new(Reading::default()));
        let watched = Watched { from, reading: Arc::clone(&reading) };
        let source = Source::new(BufReader::with_capacity(BUFFER_BYTES, watched), split);
        Self { source, has_lines: matches!(split, Split::Lines | Split::Json), reading }
    }

    /// Skips what was imported.
    pub(super) async fn resume(mut self, imported: Progress) -> Result<Self, Error> {
        let skipping = move || self.source.resume(&imported).map(|()| self);
        let skipped = tokio::task::spawn_blocking(skipping).await;
        skipped.map_err(|error| Error::Io(io::Error::other(error)))?
    }

    /// Begins to read records of at most `record_bytes`, for a log with these settings.
    pub(super) fn read(self, record_bytes: u64, settings: LogSettings) -> Records {
        let Self { mut source, has_lines, reading } = self;
        let (sender, queue) = mpsc::channel(MAX_AHEAD_RECORDS);
        let (room, runtime) = (Arc::new(Semaphore::new(MAX_AHEAD_BYTES as usize)), Handle::current());
        let last = source.progress();
        source.limit_records(record_bytes);
        std::thread::spawn(move || {
            let mut record = Vec::new();
            loop {
                let next = match source.next(&mut record) {
                    Ok(false) => return,
                    Ok(true) => {
                        let bytes = u32::try_from(record.len()).unwrap_or(u32::MAX).min(MAX_AHEAD_BYTES);
                        let room = Arc::clone(&room)
                            .try_acquire_many_owned(bytes)
                            .or_else(|_| runtime.block_on(Arc::clone(&room).acquire_many_owned(bytes)));
                        // A server would count from the beginning of a batch.
                        let refused = settings.check_value(&record, source.is_json()).err().map(|error| {
                            CodedFailure::new((&error).into(), format!("{}: {error}", source.name()))
                        });
                        Ok(Next {
                            refused,
                            record: std::mem::take(&mut record),
                            json: source.is_json(),
                            at: source.progress(),
                            room: room.ok(), // it is never closed
                        })
                    }
                    Err(error) if is_stop(&error) => return,
                    Err(error) => Err(error),
                };
                let goes_on = next.is_ok();
                let sent = match sender.try_send(next) {
                    Err(TrySendError::Full(next)) => sender.blocking_send(next).is_ok(),
                    sent => sent.is_ok(),
                };
                if !sent || !goes_on {
                    return;
                }
            }
        });
        Records { queue, taken: Vec::new().into_iter(), has_lines, last, reading }
    }
}

/// The records, as they are read.
pub(super) struct Records {
    queue: mpsc::Receiver<io::Result<Next>>,
    /// Those that were in it at once.
    taken: std::vec::IntoIter<io::Result<Next>>,
    has_lines: bool,
    /// How far the source was read with the last one.
    last: Progress,
    reading: Arc<watch::Sender<Reading>>,
}

impl Records {
    /// The next one; none at the end.
    pub(super) async fn next(&mut self) -> Option<io::Result<Next>> {
        if self.taken.len() == 0 {
            let mut taken = Vec::new();
            self.queue.recv_many(&mut taken, MAX_AHEAD_RECORDS).await;
            self.taken = taken.into_iter();
        }
        let next = self.taken.next();
        if let Some(Ok(next)) = &next {
            self.last = next.at;
        }
        next
    }

    pub(super) fn stop(&self) -> Stop {
        Stop { reading: Arc::clone(&self.reading) }
    }

    /// To be called when they were [stopped](Stop::stop): the end comes after what was read until then.
    pub(super) fn end(&mut self) {
        self.queue.close();
    }

    /// Whether a part of a record was read behind the last one.
    pub(super) fn are_cut(&self) -> bool {
        let reading = *self.reading.borrow();
        if self.has_lines { reading.bytes > 0 && !reading.ends_line } else { reading.bytes > self.last.bytes }
    }
}

/// Stops the reading.
pub(super) struct Stop {
    reading: Arc<watch::Sender<Reading>>,
}

impl Stop {
    /// Completes when all that was read is among the [`Records`]; never if the end of the file has come first.
    pub(super) async fn stop(&self) {
        self.reading.send_modify(|reading| reading.stopped = true);
        let _ = self.reading.subscribe().wait_for(|reading| reading.asks).await; // its sender is here
    }
}

#[cfg(test)]
mod tests {
    use super::{super::block_on, *};
    use std::time::Duration;

    /// Gives some bytes once, and then no more until the other end of a pipe is closed.
    fn then_waits(bytes: Vec<u8>) -> (Box<dyn Read + Send>, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (Box::new(io::Cursor::new(bytes).chain(reader)), writer)
    }

    #[test]
    fn all_that_was_read_comes_after_the_reading_was_stopped_and_a_part_of_a_record_is_noticed() {
        block_on(async {
            for (end, is_cut) in [("", false), ("hal", true)] {
                let (from, _more) = then_waits((String::from("line\n").repeat(50_000) + end).into());
                let mut records = Input::new(from, Split::Lines).read(100, LogSettings::default());
                let (stop, mut came, mut is_stopped) = (records.stop(), 0, false);
                let mut stopping = std::pin::pin!(stop.stop());
                assert!(records.next().await.is_some());
                loop {
                    tokio::select! {
                        next = records.next() => match next {
                            Some(next) => came += usize::from(next.unwrap().record == b"line"),
                            None => break,
                        },
                        () = &mut stopping, if !is_stopped => {
                            is_stopped = true;
                            records.end();
                        }
                    }
                }
                assert_eq!((came, records.are_cut()), (49_999, is_cut));
            }
            Ok(())
        })
        .unwrap();
    }

    /// It was taken for the stop, and the append for a success.
    #[test]
    fn what_is_wrong_in_what_was_read_is_said_also_after_the_reading_was_stopped() {
        block_on(async {
            let (from, _more) = then_waits(("line\n".repeat(50_000) + &"x".repeat(200)).into());
            let mut records = Input::new(from, Split::Lines).read(100, LogSettings::default());
            assert!(records.next().await.is_some());
            let stop = records.stop();
            let stopping = tokio::spawn(async move { stop.stop().await });
            let (mut came, mut error) = (1, None);
            while let Some(next) = records.next().await {
                match next {
                    Ok(_) => came += 1,
                    Err(other) => error = Some(other.to_string()),
                }
            }
            stopping.abort();
            let expected = "record 50001 has more than 100 bytes, the most that can be appended there";
            assert_eq!((came, error.as_deref()), (50_000, Some(expected)));
            Ok(())
        })
        .unwrap();
    }

    /// It read 1,024 records ahead, however large they were.
    #[test]
    fn no_more_is_read_ahead_than_there_is_room_for() {
        const RECORD: usize = 1 << 20;
        block_on(async {
            let line = "x".repeat(RECORD - 1) + "\n";
            let mut records = Input::new(Box::new(io::Cursor::new(line.repeat(40))), Split::Lines)
                .read(u64::MAX, LogSettings::default());
            let read = || records.reading.borrow().bytes as usize / RECORD;
            let mut before = 0;
            while read() < 4 || read() > before {
                before = read();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            assert!((4..8).contains(&before), "{before} MiB are read ahead");
            let mut came = 0;
            while let Some(next) = records.next().await {
                came += usize::from(next.is_ok());
            }
            assert_eq!(came, 40);
            Ok(())
        })
        .unwrap();
    }
}
