//! What the simulation knows about a log's cursors.

use crate::{Error, Log};
use std::collections::{BTreeMap, BTreeSet};

/// The names of the cursors.
pub(super) const CURSORS: [&str; 3] = ["mailer", "indexer", "biller"];

/// What is known of a log's cursors.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownCursors {
    /// Where each may be: in one place, unless a change was not answered, or has failed. A cursor that was never set is not
    /// in here.
    may_be: BTreeMap<&'static str, BTreeSet<Option<u64>>>,
    /// A bit of their file was flipped, and they have not been removed since.
    pub(super) harmed: bool,
}

impl KnownCursors {
    /// Where one may be.
    pub(super) fn may_be(&mut self, name: &'static str) -> &mut BTreeSet<Option<u64>> {
        self.may_be.entry(name).or_insert_with(|| [None].into())
    }

    /// Each may have been removed.
    pub(super) fn may_be_removed(&mut self) {
        for name in CURSORS {
            self.may_be(name).insert(None);
        }
    }

    /// Compares the cursors of a log that was just opened with what is known of them; if reads may have failed, only if
    /// their file could be read.
    pub(super) fn check(&mut self, place: &str, log: &Log, reads_failed: bool) {
        let end = log.next_offset();
        let found = match log.cursors() {
            Ok(found) => found,
            Err(Error::CursorsDamaged { .. }) if self.harmed || reads_failed => return,
            Err(error) => panic!("{place}: cursors: {error}"),
        };
        let unknown = found.keys().find(|name| !CURSORS.contains(&name.as_str()));
        assert!(unknown.is_none(), "{place}: there is a cursor {unknown:?}");
        for name in CURSORS {
            let (at, may_be) = (found.get(name).copied(), self.may_be(name));
            let is_known = may_be.iter().any(|known| known.map(|known| known.min(end)) == at);
            assert!(is_known, "{place}: cursor {name} is at {at:?}, and was at {may_be:?}, the end is {end}");
            // What was beyond the end of a log is only written if the log can be.
            if log.writable().is_ok() {
                may_be.clear();
            }
            may_be.insert(at);
        }
    }
}
