//! `millstream read` and `millstream tail`.

use super::{
    Outcome, stdout,
    target::{At, Failure, Target, block_on},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use millstream::client::{Client, Record};
use std::process::ExitCode;

/// Print records, each value on its own line
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream read events --offset 100 --limit 10\n  \
    millstream read events --json | jq .json.page")]
pub(super) struct Read {
    /// The log
    log: String,
    /// Where to begin [default: the first record of the log]
    #[arg(long)]
    offset: Option<u64>,
    /// The most records to print [default: all]
    #[arg(long)]
    limit: Option<u64>,
    /// Print each record as a JSON object with offset and time
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

/// Print the last records of a log, and with --follow new ones as they are appended
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream tail events\n  \
    millstream tail -f events --lines 0")]
pub(super) struct Tail {
    /// The log
    log: String,
    /// Keep printing new records, even if the server restarts
    #[arg(short, long)]
    follow: bool,
    /// How many of the last records to print first
    #[arg(short = 'n', long, default_value_t = 10)]
    lines: u64,
    /// Print each record as a JSON object with offset and time
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

impl Read {
    pub(super) fn run(&self) -> Outcome {
        let target = self.at.open()?;
        block_on(async {
            let offset = match self.offset {
                Some(offset) => offset,
                None => number(&target.describe(&self.log).await?, "first_offset")?,
            };
            print(&target, &self.log, offset, self.limit.unwrap_or(u64::MAX), self.json).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Tail {
    pub(super) fn run(&self) -> Outcome {
        let target = self.at.open()?;
        block_on(async {
            let described = target.describe(&self.log).await?;
            let (first, next) = (number(&described, "first_offset")?, number(&described, "next_offset")?);
            let from = next.saturating_sub(self.lines).max(first);
            match &target {
                Target::Server(client) if self.follow => follow(client, &self.log, from, self.json).await,
                // Nobody else has the directory open, so no records will be added.
                _ => print(&target, &self.log, from, u64::MAX, self.json).await,
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn number(described: &serde_json::Value, name: &str) -> Result<u64, Failure> {
    described[name].as_u64().ok_or_else(|| format!("the server does not say {name}").into())
}

/// Prints new records until the server refuses.
async fn follow(client: &Client, log: &str, offset: u64, json: bool) -> Result<(), Failure> {
    let mut next = offset;
    let mut gone = std::pin::pin!(stdout::reader_is_gone());
    loop {
        let range = tokio::select! {
            range = client.follow(log, next) => range?,
            () = &mut gone => return Ok(()),
        };
        write(&range.records, json)?;
        next = range.next_offset;
    }
}

/// Prints up to `limit` records, as far as they exist.
async fn print(target: &Target, log: &str, offset: u64, limit: u64, json: bool) -> Result<(), Failure> {
    let (mut next, mut left) = (offset, limit);
    while left > 0 {
        let range = target.read(log, next, left.min(10_000)).await?;
        if range.records.is_empty() {
            break;
        }
        write(&range.records, json)?;
        left -= range.records.len() as u64;
        next = range.next_offset;
    }
    Ok(())
}

fn write(records: &[Record], json: bool) -> Result<(), Failure> {
    stdout::write(|out| {
        for record in records {
            if json {
                let Record { offset, time, value, .. } = record;
                write!(out, r#"{{"offset":{offset},"time":{time},"#)?;
                if record.json {
                    write!(out, r#""json":{}}}"#, String::from_utf8_lossy(value).replace(['\n', '\r'], " "))?;
                } else {
                    write!(out, r#""value":"{}"}}"#, BASE64_STANDARD.encode(value))?;
                }
            } else {
                out.write_all(&record.value)?;
            }
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}
