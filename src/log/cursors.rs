//! Cursors: named positions of consumers in a log, each the offset of the record that its consumer wants next. They are
//! kept in the file `cursors.json` beside the segments, which is replaced as a whole; callers that wait share a write.
//!
//! # What always holds
//! - What is answered is durable: the file is written first, and only then does the table have the change.
//! - A cursor is never beyond what readers see, so that it never skips a record that it has not seen. A log may lose
//!   records that its readers saw, if it keeps them only in memory, or through damage and `repair`; then the cursors
//!   beyond its end are set to the end when the log is opened, before anything can be appended there.

#[cfg(feature = "server")]
use super::requests::LastWrite;
use super::{
    Error, Log, Shared,
    limits::MAX_CURSORS_PER_LOG,
    recovery::CURSORS as CURSORS_FILE,
    requests::{Answered, Request, Requests},
};
use crate::{
    disk::{is_full, tree},
    name::is_name,
    sync::{Arc, Mutex, MutexGuard, lock, try_lock},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// More bytes than the file has: for each cursor its name and its offset.
pub(super) const MAX_FILE_BYTES: u64 = MAX_CURSORS_PER_LOG as u64 * 256;

/// The content of `cursors.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    cursors: BTreeMap<String, u64>,
    /// CRC-32C of the field above as JSON.
    crc: u32,
}

impl Content {
    fn new(cursors: BTreeMap<String, u64>) -> Self {
        let crc = crc32c::crc32c(&serde_json::to_vec(&cursors).unwrap_or_default()); // plain data: cannot fail
        Self { cursors, crc }
    }

    /// The cursors in a file; `None` if it does not verify.
    fn parse(text: &[u8]) -> Option<BTreeMap<String, u64>> {
        let Self { cursors, crc } = serde_json::from_slice(text).ok()?;
        Some(Self::new(cursors)).filter(|content| content.crc == crc).map(|content| content.cursors)
    }
}

/// A change of one cursor.
#[derive(Debug, Clone)]
struct Change {
    name: String,
    /// Where it is to be; `None` to remove it.
    to: Option<u64>,
    condition: Condition,
}

/// Where a cursor must be before a change.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Condition {
    Anywhere,
    /// It must not exist.
    Nowhere,
    At(u64),
}

impl Condition {
    fn holds(self, was: Option<u64>) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Nowhere => was.is_none(),
            Self::At(offset) => was == Some(offset),
        }
    }
}

/// Where the cursor was before.
type Answer = Result<Option<u64>, Error>;

/// A log's cursors.
#[derive(Default)]
pub(super) struct Cursors {
    /// Locked only for moments.
    table: Mutex<Table>,
    /// Locked by the thread that writes the file, from before it copies the table until the change is in the table.
    file: Mutex<Written>,
    asked: Arc<Requests<Change, Option<u64>>>,
}

#[derive(Debug, Default)]
struct Table {
    offsets: BTreeMap<String, u64>,
    /// The file does not verify, or cannot be read: nothing is known until the cursors are removed.
    is_damaged: bool,
}

/// The last write of the file.
#[derive(Debug, Default)]
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "the server asks"))]
struct Written {
    bytes: u64,
    at: Duration,
}

/// A named position of a consumer in a log: the offset of the record that it wants next. Kept with the log, and gone with
/// it.
///
/// # Example
/// ```
/// # fn main() -> Result<(), millstream::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
/// let cursor = log.cursor("mailer")?;
/// log.append_wait_durable(b"one")?;
/// let mut reader = log.reader(cursor.offset()?.unwrap_or(0));
/// while let Some(record) = reader.read_next()? {
///     // Process the record, and then:
///     cursor.set(record.offset + 1)?;
/// }
/// assert_eq!(cursor.offset()?, Some(1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cursor {
    shared: Arc<Shared>,
    name: String,
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Cursor {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The offset of the record that its consumer wants next; `None` if it was never set, or was removed. It may be below
    /// the log's first offset, if the records were trimmed. Does not touch the disk.
    ///
    /// # Errors
    /// [`Error::CursorsDamaged`].
    pub fn offset(&self) -> Result<Option<u64>, Error> {
        self.shared.with_cursors(|cursors| cursors.get(&self.name).copied())
    }

    /// Sets it to an offset, forward or backward. Durable on return; callers that do this at once share a write.
    ///
    /// # Errors
    /// [`Error::BeyondEnd`] if readers cannot have come there; [`Error::TooManyCursors`], [`Error::CursorsDamaged`],
    /// [`Error::ReadOnly`], [`Error::Failed`], [`Error::Full`], [`Error::Closed`]. After [`Error::Io`] the cursor is
    /// where it was, or where it was to be.
    pub fn set(&self, offset: u64) -> Result<(), Error> {
        self.change(Some(offset), Condition::Anywhere).map(drop)
    }

    /// Sets it, as [`set`](Self::set) does, if it is at `expected` now; with `None`, if it does not exist yet.
    ///
    /// # Errors
    /// As [`set`](Self::set), and [`Error::UnexpectedCursor`], which says where it is.
    pub fn set_if(&self, expected: Option<u64>, offset: u64) -> Result<(), Error> {
        self.change(Some(offset), expected.map_or(Condition::Nowhere, Condition::At)).map(drop)
    }

    /// Removes it; returns whether it existed. Durable on return.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn remove(&self) -> Result<bool, Error> {
        self.change(None, Condition::Anywhere).map(|was| was.is_some())
    }

    /// Returns where it was.
    fn change(&self, to: Option<u64>, condition: Condition) -> Answer {
        self.make_change(&self.ask_for_change(to, condition)?)
    }

    /// Asks for a change, `to` as in [`set`](Self::set), or `None` to remove it. It is made by
    /// [`make_change`](Self::make_change) for it or for another one. Does not touch the disk.
    pub(crate) fn ask_for_change(&self, to: Option<u64>, condition: Condition) -> Result<AskedChange, Error> {
        self.shared.writable()?;
        if let Some(offset) = to {
            let end = self.shared.visible().get();
            if offset > end {
                return Err(Error::BeyondEnd { offset, end });
            }
        }
        let change = Change { name: self.name.clone(), to, condition };
        Ok(AskedChange(self.shared.cursors.asked.add(change)))
    }

    /// Makes a change that was asked for, if that has not been done; returns where the cursor was.
    pub(crate) fn make_change(&self, asked: &AskedChange) -> Answer {
        self.shared.make_change(asked)
    }

    /// The last write of the file, if this change has yet to cause one: `None` if it was made together with another
    /// one. If the file is being written, waits for that.
    #[cfg(feature = "server")]
    pub(crate) fn last_write(&self, asked: &AskedChange) -> Option<LastWrite> {
        let file = self.shared.cursors.file();
        let ago = self.shared.env.machine.elapsed().saturating_sub(file.at);
        (!asked.0.is_answered()).then_some(LastWrite { bytes: file.bytes, ago })
    }
}

/// A requested change. Dropping this withdraws the request, unless it is already being carried out.
pub(crate) struct AskedChange(Request<Change, Option<u64>>);

impl Log {
    /// The cursor of this name, which need not exist yet. A name is one that a log can have.
    ///
    /// # Errors
    /// [`Error::BadCursor`].
    pub fn cursor(&self, name: &str) -> Result<Cursor, Error> {
        if is_name(name) {
            Ok(Cursor { shared: Arc::clone(&self.shared), name: name.to_owned() })
        } else {
            Err(Error::BadCursor)
        }
    }

    /// All cursors, by name, with their offsets. Does not touch the disk.
    ///
    /// # Errors
    /// [`Error::CursorsDamaged`].
    pub fn cursors(&self) -> Result<BTreeMap<String, u64>, Error> {
        self.shared.with_cursors(BTreeMap::clone)
    }

    /// How many visible records are at or after `offset`.
    #[cfg(any(feature = "server", feature = "client"))]
    pub(crate) fn lag_of(&self, offset: u64) -> u64 {
        self.visible_offset().saturating_sub(offset.max(self.first_offset()))
    }

    /// Calls `see` with each cursor. Does nothing if the file is damaged; whoever uses a cursor gets the error.
    #[cfg(feature = "server")]
    pub(crate) fn each_cursor(&self, mut see: impl FnMut(&str, u64)) {
        let all =
            |cursors: &BTreeMap<String, u64>| cursors.iter().for_each(|(name, offset)| see(name, *offset));
        let _ = self.shared.with_cursors(all);
    }

    /// Removes all cursors, also if their file is damaged. Durable on return.
    ///
    /// # Errors
    /// As [`Cursor::set`].
    pub fn remove_cursors(&self) -> Result<(), Error> {
        let mut file = self.shared.cursors.file();
        self.shared.writable()?;
        self.shared.write_cursors(&mut file, BTreeMap::new())
    }
}

impl Shared {
    /// Calls `read` with all cursors; an error if their file is damaged.
    fn with_cursors<T>(&self, read: impl FnOnce(&BTreeMap<String, u64>) -> T) -> Result<T, Error> {
        let table = self.cursors.table();
        if table.is_damaged {
            return Err(Error::CursorsDamaged { path: self.dir.join(CURSORS_FILE) });
        }
        Ok(read(&table.offsets))
    }

    /// Reads the cursors when the log is opened, and sets those beyond its end to the end. Returns why that cannot be
    /// written, if nothing can: then the log must not be appended to.
    pub(super) fn load_cursors(&self) -> Result<Option<Error>, Error> {
        let path = self.dir.join(CURSORS_FILE);
        let text = tree::read_or_nothing(&*self.env.disk, &path).map_err(Error::io("read", &path))?;
        let Some(text) = text else { return Ok(None) };
        let Some(mut cursors) = Content::parse(&text) else {
            tracing::error!(path = %path.display(), "damaged: the log's cursors cannot be used until they are removed");
            self.cursors.table().is_damaged = true;
            return Ok(None);
        };
        let end = self.next_offset();
        let mut is_shorter = false;
        for (name, offset) in cursors.iter_mut().filter(|(_, offset)| **offset > end) {
            tracing::warn!(
                dir = %self.dir.display(), cursor = name, offset, end,
                "the log has lost records that a consumer has seen: its cursor is set to the end of the log"
            );
            (*offset, is_shorter) = (end, true);
        }
        // Before anything is appended: after another crash, the old file would skip what is appended now. A log that
        // cannot be written to does not grow.
        self.cursors.table().offsets.clone_from(&cursors);
        if is_shorter && self.writable().is_ok() {
            return match self.write_cursors(&mut self.cursors.file(), cursors) {
                Err(error) if error.keeps_from_writing() => Ok(Some(error)),
                written => written.map(|()| None),
            };
        }
        Ok(None)
    }

    /// Writes the file, and then has these cursors in the table.
    fn write_cursors(&self, file: &mut Written, cursors: BTreeMap<String, u64>) -> Result<(), Error> {
        let content = Content::new(cursors);
        let text = serde_json::to_vec(&content).unwrap_or_default(); // plain data
        let path = self.dir.join(CURSORS_FILE);
        *file = Written { bytes: text.len() as u64, at: self.env.machine.elapsed() };
        tree::replace(&*self.env.disk, &path, &text).map_err(|error| {
            if is_full(&error) { Error::full(error) } else { Error::io("write", &path)(error) }
        })?;
        *self.cursors.table() = Table { offsets: content.cursors, is_damaged: false };
        Ok(())
    }

    /// Makes a change that was asked for, if that has not been done.
    fn make_change(&self, AskedChange(asked): &AskedChange) -> Answer {
        let mut file = self.cursors.file();
        asked.answer(|all| self.make_changes(&mut file, all))
    }

    /// Makes the changes in order, with one write. Refusals are answered after it, too: what they are based on must be
    /// durable.
    fn make_changes(&self, file: &mut Written, all: &[(Change, Answered<Option<u64>>)]) -> Result<(), Error> {
        self.writable()?;
        let before = self.with_cursors(BTreeMap::clone)?;
        let mut after = before.clone();
        let answers: Vec<Answer> = all.iter().map(|(change, _)| change.make(&mut after)).collect();
        if after != before {
            self.write_cursors(file, after)?;
        }
        for ((_, answer), made) in all.iter().zip(answers) {
            let _ = answer.set(made); // it has none yet
        }
        Ok(())
    }
}

impl Change {
    /// Returns where the cursor was.
    fn make(&self, cursors: &mut BTreeMap<String, u64>) -> Answer {
        let was = cursors.get(&self.name).copied();
        if !self.condition.holds(was) {
            return Err(Error::UnexpectedCursor { offset: was });
        }
        match self.to {
            Some(_) if was.is_none() && cursors.len() >= MAX_CURSORS_PER_LOG => {
                return Err(Error::TooManyCursors);
            }
            Some(to) => cursors.insert(self.name.clone(), to),
            None => cursors.remove(&self.name),
        };
        Ok(was)
    }
}

impl Cursors {
    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    fn file(&self) -> MutexGuard<'_, Written> {
        lock(&self.file)
    }

    /// Whether the file is being written.
    pub(super) fn is_writing_file(&self) -> bool {
        try_lock(&self.file).is_none()
    }

    /// Waits until the file is not being written. Must be called when the log is no longer writable, so that it is not
    /// written again.
    pub(super) fn settle(&self) {
        drop(self.file());
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
