//! `millstream bench`: appends to a server at the highest rate, or at a fixed one, and measures.
//!
//! With a fixed rate, latency counts from when a request was due, and not from when it was sent: a server that stalls is
//! charged for all requests that should have come meanwhile (G. Tene calls the contrary coordinated omission).
//!
//! The load comes from one thread, over connections of HTTP/1.1 that each have one request in flight, or one session.

mod connection;
mod load;
mod report;
mod series;

use super::{
    Outcome,
    signals::{self, Signals},
    size, stdout,
    target::{At, Failure, Target, block_on},
};
use clap::ValueEnum;
use millstream::{
    client::{Client, Error},
    store::LogSettings,
};
use serde::Serialize;
use series::Series;
use std::{cell::Cell, path::PathBuf, process::ExitCode, time::Duration};

/// Measure how fast a server appends, and how long it takes
///
/// Appends records at the highest rate, or at a fixed one (--rate), from one thread. Prints progress every second, and a
/// summary at the end. The logs are called bench-0, bench-1, …; they must not exist, and are deleted at the end, also after
/// SIGINT or SIGTERM.
#[derive(Debug, Clone, clap::Args, Serialize)]
#[command(after_help = "Examples:\n  \
    millstream bench\n  \
    millstream bench --connections 8 --batch 5000 --format frames\n  \
    millstream bench --rate 20000 --html report.html\n  \
    millstream bench --session --connections 1 --batch 500 --rate 4000")]
pub(super) struct Bench {
    /// Number of connections that append at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Records in each request, or sent together in a session
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Bytes of each record's value
    #[arg(long, default_value = "100", value_parser = size::within(1..=16 << 20))]
    bytes: usize,
    /// How records are sent
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// One append session for each connection, instead of a request for each batch
    #[arg(long)]
    session: bool,
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
    json: bool,
    /// Write a page with plots to this file; it needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    #[serde(skip)]
    at: At,
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
        let Target::Server(client) = self.at.open()? else {
            return Err("bench needs a server (--url): it measures what clients of one get".into());
        };
        let measured = match block_on(self.measure(&client))? {
            Ended::Measured(measured) => measured,
            Ended::Signalled(signal) => return Ok(signals::exit_code(signal)),
        };
        if let Some(path) = &self.html {
            let page = report::html(self, &measured);
            std::fs::write(path, page).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let text = if self.json { report::json(self, &measured)? } else { report::table(self, &measured) };
        stdout::write(|out| out.write_all(text.as_bytes()))?;
        Ok(if measured.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Creates the logs, runs the load, and deletes the logs that it has created, however that has ended.
    async fn measure(&self, client: &Client) -> Result<Ended, Failure> {
        let mut signals = Signals::new()?;
        let created = Cell::new(0);
        let ended = tokio::select! {
            measured = self.create_and_load(client, &created) => measured.map(|measured| Ended::Measured(Box::new(measured))),
            signal = signals.next() => Ok(Ended::Signalled(signal)),
        };
        let deleted = tokio::select! {
            deleted = delete_logs(client, created.get()) => deleted,
            _ = signals.next() => Err("interrupted again: not all of its logs are deleted".into()),
        };
        let ended = ended?;
        deleted?;
        Ok(ended)
    }

    async fn create_and_load(&self, client: &Client, created: &Cell<u32>) -> Result<Series, Failure> {
        self.create_logs(client, created).await?;
        load::run(self, client.authority()).await
    }

    /// Counts in `created` those that it has created, or is about to.
    async fn create_logs(&self, client: &Client, created: &Cell<u32>) -> Result<(), Failure> {
        for n in 0..self.logs {
            let name = log_name(n);
            match client.describe(&name).await {
                Err(Error::NoSuchLog { .. } | Error::Deleted { .. }) => {}
                known => {
                    known?;
                    return Err(format!("there is a log named {name}: delete it first").into());
                }
            }
            created.set(n + 1);
            client.create(&name, &LogSettings::default()).await?;
        }
        Ok(())
    }

    fn warm_up(&self) -> Duration {
        Duration::from_secs(self.warm_up.into())
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// The time from one request of a connection to the next, if there is a rate.
    fn interval(&self) -> Option<Duration> {
        self.rate.map(|rate| Duration::from_secs(1) * self.connections / rate)
    }
}

fn log_name(n: u32) -> String {
    format!("bench-{n}")
}

/// Deletes the first `count` logs, and goes on if one cannot be deleted.
async fn delete_logs(client: &Client, count: u32) -> Result<(), Failure> {
    let mut result = Ok(());
    for n in 0..count {
        match client.delete(&log_name(n)).await {
            Ok(()) | Err(Error::NoSuchLog { .. } | Error::Deleted { .. }) => {}
            Err(error) => result = result.and(Err(error)),
        }
    }
    Ok(result?)
}

/// How a run has ended.
enum Ended {
    Measured(Box<Series>),
    /// By the signal of this number.
    Signalled(u8),
}
