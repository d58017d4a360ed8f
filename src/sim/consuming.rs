//! Consumers of a run: each has a cursor in each log. What was answered about one is there in the next process, unless the
//! log has become shorter; then it is at the log's end.

use super::{
    cursors::{CURSORS, KnownCursors},
    process::Process,
    run::Simulation,
};
use crate::{Error, Log};

impl Simulation {
    /// A consumer sets its cursor or removes it, or all are removed.
    pub(super) fn consume(&mut self, process: &Process) {
        let Some((name, log)) = self.usable(process) else { return };
        if self.random.one_in(8) {
            return self.remove_cursors(process, &name, &log);
        }
        let of = *self.random.pick(&CURSORS);
        let cursor = log.cursor(of).expect("it is a name");
        let at = match cursor.offset() {
            Err(Error::CursorsDamaged { .. }) if self.logs[&name].cursors.harmed || process.faults() > 0 => {
                return self.remove_cursors(process, &name, &log);
            }
            at => at.unwrap_or_else(|error| panic!("{}: {error}", self.place(&process.world.sim))),
        };
        let end = log.visible_offset();
        let to = match self.random.below(8) {
            0 => None,
            1 => Some(end + 1 + self.random.below(3) as u64),
            2..5 => Some(end),
            _ => Some(self.random.below(end as usize + 1) as u64),
        };
        let expected = match self.random.below(4) {
            0 => Some(at),
            1 => Some(at.map_or(Some(0), |at| Some(at + 1))),
            _ => None,
        };
        process
            .world
            .sim
            .note(format_args!("cursor {of} of {name}, at {at:?}, to {to:?}, if at {expected:?}"));
        let changed = match (to, expected) {
            (None, _) => cursor.remove().map(|was| assert_eq!(was, at.is_some())),
            (Some(to), None) => cursor.set(to),
            (Some(to), Some(expected)) => cursor.set_if(expected, to),
        };
        let place = self.place(&process.world.sim);
        let off = process.is_off();
        let known = self.logs.get_mut(&name).expect("it is used").cursors.may_be(of);
        assert!(known.contains(&at), "{place}: {name:?}: cursor {of} is at {at:?}, and was at {known:?}");
        match changed {
            Ok(()) => {
                assert!(to.is_none_or(|to| to <= end), "{place}: {name:?}: {to:?} is beyond {end}");
                let is_asked = to.is_none() || expected.is_none_or(|expected| expected == at);
                assert!(is_asked, "{place}: {name:?}: cursor {of} was at {at:?}, and not {expected:?}");
                if !off {
                    known.clear();
                }
                known.insert(to);
            }
            Err(Error::BeyondEnd { .. }) => assert!(to.is_some_and(|to| to > end), "{place}"),
            Err(Error::UnexpectedCursor { offset }) => {
                assert!(offset == at && expected.is_some_and(|expected| expected != at), "{place}");
            }
            Err(error) => {
                known.insert(to);
                self.excused_of_cursors(process, &name, &log, &error);
            }
        }
    }

    fn remove_cursors(&mut self, process: &Process, name: &str, log: &Log) {
        process.world.sim.note(format_args!("remove the cursors of {name}"));
        let removed = log.remove_cursors();
        let known = &mut self.logs.get_mut(name).expect("it is used").cursors;
        match removed {
            Ok(()) if !process.is_off() => *known = KnownCursors::default(),
            Ok(()) => known.may_be_removed(),
            Err(error) => {
                known.may_be_removed();
                self.excused_of_cursors(process, name, log, &error);
            }
        }
    }

    /// Asserts that a change of cursors failed with the log, or because of the disk.
    fn excused_of_cursors(&mut self, process: &Process, name: &str, log: &Log, error: &Error) {
        if log.writable().is_err() {
            return self.excused(process, name, error);
        }
        let place = self.place(&process.world.sim);
        assert!(process.is_off() || process.faults() > 0, "{place}: {name:?}: cursors: {error}");
    }
}
