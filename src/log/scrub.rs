//! Scrubbing: verifying sealed segments while the log is used, one after the other, so that damage is found before
//! somebody reads it.
//!
//! What always holds: a scrub holds only a file. The log can be written to, trimmed, closed and deleted meanwhile, and what
//! is trimmed or deleted is not damage.

use super::{Damage, Error, Log, Shared, stats};
use crate::{
    disk::File,
    segment::{
        Segment,
        check::{self, Checked, Expected, Finding},
        file,
    },
    sync::{Arc, Ordering},
};
use std::{io, path::Path};

/// What [`Log::scrub`] has found in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scrubbed {
    /// The offset from which to continue: the end of the segment, or its beginning if the scrub was stopped.
    pub next: u64,
    /// How many bytes were read.
    pub bytes: u64,
    /// What is damaged in the segment. Beyond 1,000 runs of damaged records, the last item spans all the rest, including
    /// undamaged records among them.
    pub damage: Vec<Damage>,
}

/// The most runs of damaged records that are listed for a segment.
const MAX_LISTED: usize = 1000;

impl Log {
    /// Verifies a segment: the first sealed one that begins at `from` or later; `None` if there is none. All of its
    /// file is read, past the page cache where the system supports that, with some 2 MiB of memory; a damaged segment
    /// is read twice, with as much memory as its frames take.
    ///
    /// `pace` is called with the number of bytes after each read, of at most 1 MiB, and with 0 while a part is read
    /// that the disk cannot read. It may sleep, or stop the scrub by returning `false`; then nothing is reported, and
    /// the next scrub begins with this segment. The log can be used and trimmed meanwhile; a segment that is trimmed
    /// meanwhile is not damaged.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be known now whether the segment is damaged; [`Error::Failed`] if the log is being deleted.
    ///
    /// # Example
    /// ```
    /// # fn main() -> Result<(), millstream::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let log = millstream::Log::open(dir.path(), millstream::Options::default())?;
    /// log.append_wait_durable(b"a record")?;
    /// log.roll()?;
    /// let mut from = log.first_offset();
    /// while let Some(scrubbed) = log.scrub(from, |_| true)? {
    ///     assert_eq!(scrubbed.damage, []);
    ///     from = scrubbed.next;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scrub(&self, from: u64, mut pace: impl FnMut(u64) -> bool) -> Result<Option<Scrubbed>, Error> {
        scrub(&|| Some(Arc::clone(&self.shared)), from, &mut pace)
    }

    /// For scrubbing a log that may be closed meanwhile.
    #[cfg(feature = "store")]
    pub(crate) fn scrubber(&self) -> Scrubber {
        Scrubber(Arc::downgrade(&self.shared))
    }
}

/// Scrubs a log without keeping it open.
#[cfg(feature = "store")]
pub(crate) struct Scrubber(std::sync::Weak<Shared>);

#[cfg(feature = "store")]
impl Scrubber {
    /// See [`Log::scrub`]. If the log was closed meanwhile and there seems to be damage, returns [`Error::Closed`]:
    /// what opens it next may write to the file.
    pub(crate) fn scrub(
        &self,
        from: u64,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<Scrubbed>, Error> {
        scrub(&|| self.0.upgrade(), from, pace)
    }
}

/// Scrubs a segment of a log; `log` yields nothing once that is closed.
fn scrub(
    log: &dyn Fn() -> Option<Arc<Shared>>,
    from: u64,
    pace: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Scrubbed>, Error> {
    let shared = log().ok_or(Error::Closed)?;
    let Some((base, expected)) = shared.sealed_from(from) else { return Ok(None) };
    let path = shared.dir.join(file::name(base));
    let end = base + u64::from(expected.records);
    let file = shared.open_sealed(&path)?;
    drop(shared);
    let checked = match &file {
        Some(file) => {
            // A file that nobody needs any more takes room as long as it is open.
            let is_needed =
                || log().is_none_or(|shared| shared.has_segment(base) && !shared.ending.is_displaced());
            let pace = &mut |bytes| pace(bytes) && is_needed();
            check::check(&**file, &expected, pace).map_err(Error::io("read", &path))?
        }
        None => Checked::missing(&expected),
    };
    stats::scrubbed(checked.bytes);
    let mut scrubbed = Scrubbed { next: end, bytes: checked.bytes, damage: Vec::new() };
    if checked.findings.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Some(scrubbed));
    }
    let shared = log().ok_or(Error::Closed)?;
    shared.check_same_files()?;
    match checked.findings {
        _ if !shared.has_segment(base) => {}
        Some(findings) => {
            stats::scrub_found(findings.iter().map(|finding| u64::from(finding.count())).sum());
            scrubbed.damage = damage(findings, base, &path);
        }
        None => scrubbed.next = base, // `pace` has stopped it
    }
    Ok(Some(scrubbed))
}

/// What was found in the segment at `base`.
fn damage(findings: Vec<Finding>, base: u64, path: &Path) -> Vec<Damage> {
    let mut all: Vec<Damage> = Vec::new();
    for Finding { records, reason, unreadable } in findings {
        let offsets = base + u64::from(records.start)..base + u64::from(records.end);
        match all.get_mut(MAX_LISTED - 1) {
            Some(last) if !offsets.is_empty() && !last.offsets.is_empty() => {
                last.offsets.end = offsets.end;
                "among them are records that are not damaged".clone_into(&mut last.reason);
            }
            _ => all.push(Damage { unreadable, ..Damage::new(offsets, path, reason) }),
        }
    }
    all
}

impl Shared {
    /// The first sealed segment that begins at `from` or later, and what its file must hold.
    fn sealed_from(&self, from: u64) -> Option<(u64, Expected)> {
        let chain = self.chain.load_full();
        let first = chain.segments.partition_point(|segment| segment.base() < from);
        let expected = |segment: &Arc<Segment>| {
            // A damaged one may have no record; what is wrong with it was found when the log was opened.
            let sealed = segment.sealed.get().filter(|sealed| sealed.records > 0)?;
            let (records, words, is_damaged) = (sealed.records, sealed.words, sealed.is_damaged());
            Some((segment.base(), Expected { header: segment.header, records, words, is_damaged }))
        };
        chain.segments[first..].iter().find_map(expected)
    }

    /// Opens the file of a sealed segment; `None` if it is missing. If the log is being deleted, the file may be
    /// another log's.
    fn open_sealed(&self, path: &Path) -> Result<Option<Box<dyn File>>, Error> {
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match self.env.disk.open(path, false) {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_missing(&error) => match self.env.disk.list(&self.dir) {
                // The log is being deleted, and does not know it yet.
                Err(error) if is_missing(&error) => {
                    Err(Error::Failed { reason: "the log's directory is gone".into() })
                }
                _ => Ok(None),
            },
            Err(error) => Err(Error::io("open", path)(error)),
        }
    }

    /// Whether the segment that begins at `base` has not been trimmed.
    fn has_segment(&self, base: u64) -> bool {
        self.first_offset() <= base
    }

    /// Returns an error unless the log's files are still what this opening has made of them.
    fn check_same_files(&self) -> Result<(), Error> {
        self.check_not_displaced()?;
        match self.ending.get() {
            Some(end) if end.is_failure() => Ok(()), // then it can be read
            Some(_) => self.check_not_ended(),
            None if self.stopping.load(Ordering::SeqCst) => Err(Error::Closed),
            None => Ok(()),
        }
    }
}
