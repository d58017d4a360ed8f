//! What the scrubber has found in a log.

use crate::{log::Damage, sync::lock};
use std::{ops::Range, sync::Mutex};

/// The most findings that are kept, and listed, for a log.
const MAX_FINDINGS: usize = 100;

/// What the scrubber has found in a log, until a later scrub finds otherwise. The store keeps it while the log is closed.
#[derive(Debug, Default)]
pub(super) struct Findings(Mutex<Vec<Damage>>);

impl Findings {
    /// Replaces what is known of these offsets.
    pub(super) fn replace(&self, offsets: Range<u64>, found: Vec<Damage>) {
        let mut all = lock(&self.0);
        all.retain(|damage| !offsets.contains(&damage.offsets.start));
        let at = all.partition_point(|damage| damage.offsets.start < offsets.start);
        all.splice(at..at, found);
        all.truncate(MAX_FINDINGS);
    }

    /// What was found when the log was opened, and what is not yet listed there of offsets from `first` on.
    pub(super) fn with(&self, opening: &[Damage], first: u64) -> Vec<Damage> {
        let is_new = |found: &&Damage| {
            let is_it = |known: &Damage| (&known.offsets, &known.path) == (&found.offsets, &found.path);
            found.offsets.start >= first && !opening.iter().any(is_it)
        };
        let findings = lock(&self.0);
        opening.iter().chain(findings.iter().filter(is_new)).take(MAX_FINDINGS).cloned().collect()
    }
}
