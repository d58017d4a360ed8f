//! Standard error, whose reader may be slow or gone: writing to it must never stop the writer.
//!
//! The server's log goes through a bounded queue to a thread of its own. Lines that do not fit into the queue are
//! counted, and the count is reported later; errors of writing are ignored.

use super::counted;
use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

/// The most lines that wait to be written.
const MAX_QUEUED_LINES: usize = 4096;
/// The time between two attempts to add to a full queue.
const POLL: Duration = Duration::from_millis(5);

/// Prints one line, if anybody reads it.
pub(super) fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}"); // if nobody reads it, there is nobody to tell
}

/// What is said of a server that cannot be reached: when that is noticed, and when it is over.
#[derive(Default)]
pub(super) struct Outage {
    is_said: bool,
}

impl Outage {
    /// Says what keeps the server from answering now, or that nothing does any more.
    pub(super) fn say(&mut self, trouble: Option<String>) {
        if let Some(line) = self.line(trouble) {
            say(format_args!("{line}"));
        }
    }

    /// `None` for the end of an outage of which nothing was said, because it was over too soon.
    fn line(&mut self, trouble: Option<String>) -> Option<String> {
        let was_said = std::mem::replace(&mut self.is_said, trouble.is_some());
        trouble.or_else(|| was_said.then(|| "the server answers again".to_owned()))
    }
}

enum Item {
    Line(Box<[u8]>),
    /// Answered when all lines before it have been written.
    Flush(SyncSender<()>),
}

/// Writes lines of a log to standard error, each in one call.
#[derive(Clone)]
pub(super) struct Lines {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    pub(super) fn new() -> io::Result<Self> {
        let (queue, items) = sync_channel(MAX_QUEUED_LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let this = Self { queue, lost: Arc::clone(&lost) };
        std::thread::Builder::new()
            .name("millstream-stderr".into())
            .spawn(move || write_all(&items, &lost, &mut io::stderr()))?;
        Ok(this)
    }

    /// Waits until all lines so far have been written, but no longer than `max`.
    pub(super) fn flush(&self, max: Duration) {
        let begun = Instant::now();
        let (done, written) = sync_channel(1);
        let mut item = Item::Flush(done);
        while let Err(TrySendError::Full(full)) = self.queue.try_send(item) {
            if begun.elapsed() >= max {
                return;
            }
            item = full;
            std::thread::sleep(POLL);
        }
        let _ = written.recv_timeout(max.saturating_sub(begun.elapsed()));
    }
}

fn write_all(items: &Receiver<Item>, lost: &AtomicU64, out: &mut impl Write) {
    for item in items {
        match item {
            Item::Line(line) => {
                let lost = lost.swap(0, Ordering::Relaxed); // a counter that orders nothing else
                if lost > 0 {
                    let _ = writeln!(
                        out,
                        "{} missing here: standard error was read too slowly",
                        counted(lost, "line")
                    );
                }
                let _ = out.write_all(&line); // it may no longer have a reader
            }
            Item::Flush(done) => drop(done.try_send(())), // the sender may no longer wait
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(line.into())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a busy machine, the server was said to answer again although nobody had been told that it was away.
    #[test]
    fn the_end_of_an_outage_is_said_only_if_its_beginning_was() {
        let mut outage = Outage::default();
        assert_eq!(outage.line(None), None);
        assert_eq!(outage.line(Some("away".to_owned())).as_deref(), Some("away"));
        assert_eq!(outage.line(None).as_deref(), Some("the server answers again"));
        assert_eq!(outage.line(None), None);
    }

    #[test]
    fn records_that_do_not_fit_are_counted_and_write_errors_end_nothing() {
        struct Sometimes(Vec<u8>, usize);
        impl Write for Sometimes {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                if self.1.is_multiple_of(2) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                self.0.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (queue, items) = sync_channel(2);
        let mut lines = Lines { queue, lost: Arc::default() };
        for line in [b"1\n", b"2\n", b"3\n", b"4\n"] {
            lines.write_all(line).unwrap();
        }
        let lost = Arc::clone(&lines.lost);
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        drop(lines);
        let mut out = Sometimes(Vec::new(), 0);
        write_all(&items, &lost, &mut out);
        let text = String::from_utf8(out.0).unwrap();
        assert!(text.contains("2 lines"), "{text:?}");
        assert_eq!(lost.load(Ordering::Relaxed), 0);
    }
}
