//! Rolling on request, before the active segment is full: for a checkpoint, after which everything before it is to be
//! dropped.

use super::{Error, Log, Shared, line::Turn, room::WaitFor};
use crate::{segment::Segment, sync::Arc};
use std::time::Duration;

impl Log {
    /// Ends the segment that is being written, and returns the offset at which the next one begins: that of the next
    /// record. Waits until everything before it is durable, and sealed. Each call makes a segment, unless the last one has
    /// no record.
    ///
    /// To checkpoint: call `roll`, append a record that describes the checkpoint, wait until it is durable, then
    /// [`trim`](Self::trim) to the returned offset.
    ///
    /// # Errors
    /// As [`append`](Self::append), and as [`wait_durable`](Self::wait_durable).
    ///
    /// # Example
    /// ```
    /// # fn main() -> Result<(), millstream::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
    /// log.append_batch_from(["a", "b", "c"])?;
    /// let from = log.roll()?;
    /// log.append_wait_durable(b"all before this is in the database")?;
    /// assert_eq!(log.trim(from)?, 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn roll(&self) -> Result<u64, Error> {
        self.shared.roll()
    }
}

impl Shared {
    /// Ends the active segment, if it has records, and waits until it is sealed; returns the offset at which the next
    /// begins.
    fn roll(&self) -> Result<u64, Error> {
        self.writable()?;
        let active = self.active.load_full();
        // Read once: a record that is appended after this lies after the end, and so does its segment.
        let mut end = active.segment.base();
        if active.chunk.reserved() > 0 {
            let mut turn = Turn::new(self.roll.line());
            self.wait_until_next_is_ready(&active, &mut turn)?;
            active.chunk.close();
            self.next_active(&active, 0, WaitFor::Anything, &mut turn)?;
            end += u64::from(active.chunk.reserved());
        }
        if let Some(last) = end.checked_sub(1) {
            self.wait_durable(last)?;
        }
        let is_open = |segment: &Arc<Segment>| segment.base() < end && segment.sealed.get().is_none();
        while self.chain.load().segments.iter().any(is_open) {
            self.writable()?;
            self.flush.kick(); // the flusher leaves the segment, which queues it for sealing
            self.env.flushers.help();
            self.env.maintenance.help();
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(end)
    }
}
