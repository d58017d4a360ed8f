//! `millstream read` and `millstream tail`.

use super::{
    Outcome, start, stderr, stdout,
    target::{At, Failure, Target, block_on},
};
use millstream::{
    client::{self, Record, StartAt},
    http::{lost_json, record_json},
};
use std::process::ExitCode;

/// Print records, each value on its own line
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream read events --offset 100 --limit 10\n  \
    millstream read events --offset -2\n  \
    millstream read events --since 15m --json | jq .json.page\n  \
    millstream read events --cursor mailer --limit 100\n  \
    millstream read images --offset 7 --limit 1 --raw > image.png")]
#[expect(clippy::struct_excessive_bools, reason = "they are flags of a command")]
pub(super) struct Read {
    /// The log
    log: String,
    /// Where to begin: an offset, -K for the last K records, earliest, or latest
    #[arg(long, allow_hyphen_values = true, default_value = "earliest", conflicts_with = "since")]
    offset: StartAt,
    /// Begin with the first record that was appended at this time or later: 2026-01-02T03:04:05Z, a date, or how long
    /// ago, such as 15m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Begin where this cursor of the log is, which stays there: `cursors set` moves it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["offset", "since"])]
    cursor: Option<String>,
    /// The most records to print [default: all]
    #[arg(long)]
    limit: Option<u64>,
    /// Print each record as a JSON object with offset and time
    #[arg(long)]
    json: bool,
    /// Print only the bytes of the values, with nothing between them
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print frames, as `append --format frames` takes them: any bytes, and what is JSON stays JSON
    #[arg(long, conflicts_with_all = ["json", "raw"])]
    frames: bool,
    /// Pass records that are damaged, or that the disk cannot read, instead of stopping there
    #[arg(long)]
    skip_damaged: bool,
    #[command(flatten)]
    at: At,
}

/// How records are printed.
#[derive(Debug, Clone, Copy)]
enum Form {
    Lines,
    Json,
    Raw,
    Frames,
}

impl Form {
    fn json_if(json: bool) -> Self {
        if json { Self::Json } else { Self::Lines }
    }
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
    /// Begin where this cursor of the log is, which stays there: `cursors set` moves it
    #[arg(long, value_name = "NAME", conflicts_with = "lines")]
    cursor: Option<String>,
    /// Print each record as a JSON object with offset and time
    #[arg(long)]
    json: bool,
    /// Pass records that are damaged, or that the disk cannot read, instead of stopping there
    #[arg(long)]
    skip_damaged: bool,
    #[command(flatten)]
    at: At,
}

impl Read {
    pub(super) fn run(&self) -> Outcome {
        let target = self.at.open()?;
        block_on(async {
            let offset = match (&self.since, &self.cursor) {
                (Some(time), _) => target.since(&self.log, time, self.skip_damaged).await?,
                (None, Some(cursor)) => target.cursor(&self.log, cursor).await?.offset,
                (None, None) => start::resolve(self.offset, &target, &self.log).await?,
            };
            let form = match (self.raw, self.frames) {
                (true, _) => Form::Raw,
                (_, true) => Form::Frames,
                _ => Form::json_if(self.json),
            };
            print(&target, &self.log, offset, self.limit.unwrap_or(u64::MAX), form, self.skip_damaged).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Tail {
    pub(super) fn run(&self) -> Outcome {
        let target = self.at.open()?;
        block_on(async {
            let form = Form::json_if(self.json);
            let start = match &self.cursor {
                Some(cursor) => StartAt::Offset(target.cursor(&self.log, cursor).await?.offset),
                None => StartAt::Last(self.lines),
            };
            if self.follow {
                let Target::Server(client) = &target else {
                    return Err(
                        "--follow takes a server: nobody adds records to a directory that is open here"
                            .into(),
                    );
                };
                let tail = client.tail(&self.log, start)?;
                return follow(if self.skip_damaged { tail.skip_damaged() } else { tail }, form).await;
            }
            let from = start::resolve(start, &target, &self.log).await?;
            print(&target, &self.log, from, u64::MAX, form, self.skip_damaged).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints new records until the server refuses.
async fn follow(mut tail: client::Tail, form: Form) -> Result<(), Failure> {
    let mut gone = std::pin::pin!(stdout::reader_is_gone());
    let mut trouble = tail.trouble();
    loop {
        let first = tokio::select! {
            record = tail.next() => record?,
            () = &mut gone => return Ok(()),
            Ok(()) = trouble.changed() => {
                match trouble.borrow_and_update().as_ref() {
                    Some(error) => stderr::say(format_args!("{error}; trying again")),
                    None => stderr::say(format_args!("the server answers again")),
                }
                continue;
            }
        };
        let records: Vec<Record> = std::iter::once(first).chain(tail.take_ready()).collect();
        write(&records, form)?;
    }
}

/// Prints up to `limit` records, as far as they exist.
async fn print(
    target: &Target,
    log: &str,
    offset: u64,
    limit: u64,
    form: Form,
    skip_damaged: bool,
) -> Result<(), Failure> {
    let (mut next, mut left) = (offset, limit);
    while left > 0 {
        let range = target.read(log, next, left.min(10_000), skip_damaged).await?;
        if range.next_offset <= next {
            break;
        }
        write(&range.records, form)?;
        left -= range.records.len() as u64;
        next = range.next_offset;
    }
    Ok(())
}

fn write(records: &[Record], form: Form) -> Result<(), Failure> {
    stdout::write_or_end(|out| {
        for record in records {
            match form {
                Form::Json if record.lost => {
                    let mut line = Vec::new();
                    lost_json(&mut line, record.offset);
                    line.push(b'\n');
                    out.write_all(&line)?;
                }
                // There is no mark for it among values.
                _ if record.lost => {
                    let offset = record.offset;
                    stderr::say(format_args!("the record at offset {offset} was lost to damage"));
                }
                Form::Raw => out.write_all(&record.value)?,
                Form::Frames => record.write_frame(out)?,
                Form::Lines => {
                    out.write_all(&record.value)?;
                    out.write_all(b"\n")?;
                }
                Form::Json => {
                    let Record { offset, time, json, value, .. } = record;
                    let mut line = Vec::new();
                    record_json(&mut line, *offset, *time, *json, value);
                    line.push(b'\n');
                    out.write_all(&line)?;
                }
            }
        }
        Ok(())
    })
}
