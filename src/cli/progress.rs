//! Progress bars: on standard error, and only if that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// A bar for a number of bytes.
pub(super) fn bytes(length: u64) -> ProgressBar {
    bar(length, "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} to go")
}

/// A bar for segments; their number is set by the first call of [`advance`].
pub(super) fn segments() -> ProgressBar {
    bar(0, "{bar:40} {pos} of {len} segments, {eta} to go")
}

fn bar(length: u64, style: &str) -> ProgressBar {
    match ProgressStyle::with_template(style) {
        Ok(style) if std::io::stderr().is_terminal() => ProgressBar::new(length).with_style(style),
        _ => ProgressBar::hidden(),
    }
}

/// Advances a bar for segments.
pub(super) fn advance(bar: &ProgressBar, done: usize, all: usize) {
    bar.set_length(all as u64);
    bar.set_position(done as u64);
}
