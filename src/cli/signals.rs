//! The signals that ask a command to end.

use std::{io, process::ExitCode};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The numbers of these signals.
const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    pub(super) fn new() -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { interrupt, terminate })
    }

    /// The number of the next one.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => SIGINT,
            _ = self.terminate.recv() => SIGTERM,
        }
    }
}

/// A signal has ended a command before it was done.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(super) struct Interrupted {
    pub(super) signal: u8,
    pub(super) what: &'static str,
}

/// How shells report a command that a signal has ended.
pub(super) fn exit_code(signal: u8) -> ExitCode {
    ExitCode::from(128 + signal)
}
