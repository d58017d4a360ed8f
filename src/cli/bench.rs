//! `millstream bench`: appends to a server, or to logs in this process, at the highest rate or at a fixed one, and
//! measures.
//!
//! With a fixed rate, latency counts from when a request was due, and not from when it was sent: a server that stalls is
//! charged for all requests that should have come meanwhile (G. Tene calls the contrary coordinated omission).
//!
//! The load comes from one thread.

mod batches;
mod connection;
mod embedded;
mod http1;
mod http2;
mod load;
mod report;
mod run;
mod schedule;
mod series;
mod tails;

use super::{
    Outcome, Usage,
    failure::{CodedFailure, Failure},
    signals::{self, Interrupted, Signals},
    size, stdout,
    target::{Target, TargetFlags, block_on},
};
use batches::Spread;
use clap::ValueEnum;
use millstream::{Code, store::LogSettings};
use serde::Serialize;
use series::Measured;
use std::{
    cell::Cell,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// Measure how many records a server appends per second, and how long each request takes
///
/// Appends records at the highest rate, or at a fixed one (--rate), from one thread: to a server, or with --data to logs in
/// this process, without a server. Prints progress every second, and a summary at the end. The logs are called bench-0,
/// bench-1, …; they must not exist, and are deleted at the end. SIGINT or SIGTERM ends the measuring: what was answered
/// until then is printed, or that nothing was measured yet; the exit code is that of the signal.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[command(after_help = "Examples:\n  \
    millstream bench\n  \
    millstream bench --connections 8 --batch 5000 --format frames\n  \
    millstream bench --rate 20000 --html report.html\n  \
    millstream bench --session --connections 1 --batch 500 --rate 4000\n  \
    millstream bench --reads 50 --tails 4 --spread exponential\n  \
    millstream bench --data /tmp/logs")]
pub(super) struct Bench {
    /// Number of connections that append at once; with --data, of appends that are under way at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Records in each request, or sent together in a session
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Bytes of each record's value; on average, if --spread says so
    #[arg(long, default_value = "100", value_parser = size::within(1..=batches::MAX_VALUE_BYTES as u64))]
    bytes: usize,
    /// How the sizes of values are spread
    #[arg(long, value_enum, default_value_t = Spread::Constant)]
    spread: Spread,
    /// How records are sent
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// One append session for each connection, instead of a request for each batch
    #[arg(long, conflicts_with_all = ["http2", "reads", "data"])]
    session: bool,
    /// Use HTTP/2
    #[arg(long, conflicts_with = "data")]
    http2: bool,
    /// Requests on their way at once on each connection; with --session, batches [default: 1; with --session 64]
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pipeline: Option<u32>,
    /// How many of 100 requests read instead of appending: as many records as a batch has, up to 1000, anywhere in the log
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=99))]
    reads: u32,
    /// Number of readers that follow the logs meanwhile. How long a record takes to reach them is measured with values of 18
    /// bytes or more
    #[arg(long, value_name = "READERS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    tails: u32,
    /// Requests (in sessions: batches) per second of all connections together [default: as many as possible]
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// What to wait for: that records are on the disk, or in memory [default: the log's durability]
    #[arg(long, value_enum)]
    ack: Option<Ack>,
    /// Number of logs to spread requests over
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    logs: u32,
    /// Seconds to measure
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Seconds of warm-up before measuring
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=3600))]
    warm_up: u32,
    /// Print the results as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Write a page with plots to this file; it needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    at: TargetFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Text,
    Ndjson,
    Frames,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Ack {
    Durable,
    Memory,
}

impl Bench {
    pub(super) fn run(&self) -> Outcome {
        // Before minutes of measuring, in case it cannot be created.
        let page = self
            .html
            .as_ref()
            .map(|path| std::fs::File::create(path).map_err(|error| with_path(path, &error)));
        let page = page.transpose()?;
        let target = self.at.open_or_create()?;
        if matches!(target, Target::Directory(_)) && (self.session || self.http2) {
            return Err(Usage("--session and --http2 take a server".to_owned()).into()); // where a variable names a directory
        }
        let (Ended { measured, signalled }, deleted) = block_on(self.measure(&target))?;
        if let Some(measured) = &measured {
            if let (Some(path), Some(mut page)) = (&self.html, page) {
                page.write_all(report::html(self, measured).as_bytes())
                    .map_err(|error| with_path(path, &error))?;
            }
            let text = if self.json { report::json(self, measured)? } else { report::table(self, measured) };
            stdout::write(|out| out.write_all(text.as_bytes()))?;
        }
        deleted?;
        Ok(match (signalled, measured) {
            (Some(signal), None) => {
                let what = "interrupted before the end of the warm-up: nothing was measured";
                return Err(Interrupted { signal, what }.into());
            }
            (Some(signal), Some(_)) => signals::exit_code(signal),
            (None, Some(measured)) if measured.failed() == 0 => ExitCode::SUCCESS,
            (None, _) => ExitCode::FAILURE,
        })
    }

    /// Creates the logs, runs the load, and deletes the logs that it has created, however that has ended. Also returns
    /// whether they are deleted.
    async fn measure(&self, target: &Target) -> Result<(Ended, Result<(), Failure>), Failure> {
        let mut signals = Signals::new()?;
        let created = Cell::new(0);
        let ended = self.create_and_load(target, &created, &mut signals).await;
        let deleted = tokio::select! {
            deleted = delete_logs(target, created.get()) => deleted,
            signal = signals.next() => {
                Err(Interrupted { signal, what: "interrupted again: not all of its logs are deleted" }.into())
            }
        };
        Ok((ended?, deleted))
    }

    async fn create_and_load(
        &self,
        target: &Target,
        created: &Cell<u32>,
        signals: &mut Signals,
    ) -> Result<Ended, Failure> {
        tokio::select! {
            created = self.create_logs(target, created) => created?,
            signal = signals.next() => return Ok(Ended { measured: None, signalled: Some(signal) }),
        }
        load::run(self, target, signals).await
    }

    /// Counts in `created` those that it has created, or is about to.
    async fn create_logs(&self, target: &Target, created: &Cell<u32>) -> Result<(), Failure> {
        for n in 0..self.logs {
            let name = log_name(n);
            if target.has(&name).await? {
                let words = format!(
                    "there is a log named {name} already, of another bench, or left by one that was killed"
                );
                return Err(CodedFailure::new(Code::LogExists, words).into());
            }
            created.set(n + 1);
            target.create(&name, &LogSettings::default()).await?;
        }
        Ok(())
    }

    fn warm_up(&self) -> Duration {
        Duration::from_secs(self.warm_up.into())
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// The most requests, or batches, that are on their way at once on a connection.
    fn in_flight(&self) -> u32 {
        self.pipeline.unwrap_or(if self.session { 64 } else { 1 })
    }

    /// How many send one request after the other, where each of those on their way has a sender.
    fn senders(&self) -> u32 {
        self.connections * self.in_flight()
    }
}

fn with_path(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn log_name(n: u32) -> String {
    format!("bench-{n}")
}

/// Deletes the first `count` logs, and goes on if one cannot be deleted.
async fn delete_logs(target: &Target, count: u32) -> Result<(), Failure> {
    let mut result = Ok(());
    for n in 0..count {
        let name = log_name(n);
        if let Err(error) = target.delete(&name).await
            && target.has(&name).await.unwrap_or(true)
        {
            result = result.and(Err(error));
        }
    }
    result
}

/// How a run has ended.
struct Ended {
    /// Nothing if it was interrupted before the time that is measured.
    measured: Option<Box<Measured>>,
    /// The number of the signal that has ended it.
    signalled: Option<u8>,
}
