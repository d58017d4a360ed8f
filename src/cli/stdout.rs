//! Standard output, which has nothing but data. If it cannot be written, the command fails; if nobody reads it any more,
//! as with `| head`, the reader has enough: that is no failure, but what has failed otherwise has failed.

use super::failure::Failure;
use std::io::{self, Write};

/// Writes one line.
pub(super) fn line(line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    write(|out| writeln!(out, "{line}"))
}

/// Writes a value as JSON, on one line.
pub(super) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    line(format_args!("{}", serde_json::to_string(value)?))
}

/// Writes by `print`, and sees to it that all of it is written, unless nobody reads any more.
pub(super) fn write(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    write_if_read(print).map(drop)
}

/// Like [`write`], but ends the process if nobody reads any more: for commands that would otherwise go on.
pub(super) fn write_or_end(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    if write_if_read(print)? { Ok(()) } else { std::process::exit(0) }
}

/// Writes by `print`; returns whether anybody still reads.
fn write_if_read(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<bool, Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match print(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("cannot write to standard output: {error}").into()),
        Ok(()) => Ok(true),
    }
}

/// Completes when nobody reads standard output any more; never if that cannot be known.
pub(super) async fn reader_is_gone() {
    let (gone, noticed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        use rustix::event::{PollFd, PollFlags, poll};
        let stdout = io::stdout();
        // Without events to wait for, only errors are reported: for a pipe, that it has no reader.
        let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
        while let Err(rustix::io::Errno::INTR) = poll(&mut ends, None) {}
        // Fails if nobody waits for it any more.
        let _ = gone.send(ends[0].revents().intersects(PollFlags::ERR | PollFlags::HUP));
    });
    if noticed.await != Ok(true) {
        std::future::pending::<()>().await;
    }
}
