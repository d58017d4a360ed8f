//! Recovery: what a directory holds, and opening it for use.
//!
//! A [`survey`] looks at the files and [judges](judge) each segment; it changes nothing, and `verify` prints its
//! result. Opening first completes the files from the backings that a killed process has left ([`restore`]), then acts
//! on the survey ([`open`](mod@open)): a torn end is [kept aside](aside), zeroed and synced before the first append, so
//! that the next recovery cannot stop at it; damage makes the log read-only. What `repair` takes from backings is in
//! [`mend`](mod@mend) and [`fill`](mod@fill), by their [`history`]. [`dir`] has the names, the locks and the ids.

mod aside;
mod dir;
mod fill;
mod full;
mod history;
mod judge;
mod left;
mod mend;
mod open;
mod restore;
mod survey;

#[cfg(feature = "store")]
pub(super) use dir::ensure_free;
#[cfg(feature = "store")]
pub(crate) use dir::{COMMON_LOCK, SETTINGS, id_of, is_ours, only_ours};
#[cfg(feature = "store")]
pub(in crate::log) use dir::{CURSORS, PRODUCERS};
pub(super) use dir::{DAMAGED, lock};
pub(super) use fill::{Filling, fill};
pub(super) use full::Full;
#[cfg(feature = "store")]
pub(super) use full::has_room;
pub(super) use history::Candidates;
pub(super) use judge::{Copies, HeaderSource, State};
pub(super) use left::is_gone;
pub(super) use mend::{Mended, mend};
pub(super) use open::{Content, Opened, open, rewrite_header, seal};
pub(super) use survey::{Survey, SurveyedSegment, deep_survey};

#[cfg(all(test, not(loom)))]
mod tests;
