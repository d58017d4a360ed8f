//! `millstream read` and `millstream tail`.

use super::{
    Outcome, Usage,
    failure::{CodedFailure, Failure},
    start::{self, StartFlags},
    stderr, stdout,
    target::{Target, TargetFlags, block_on},
};
use millstream::{
    client::{self, Record, StartAt},
    http::{lost_json, record_json},
};
use std::process::ExitCode;

/// Print records, each value on its own line: from the first one on, unless a flag says where to begin
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream read events --offset 100 --limit 10\n  \
    millstream read events --offset 100 --until 110\n  \
    millstream read events --offset -2\n  \
    millstream read events --since 15m --json | jq .json.page\n  \
    millstream read events --cursor mailer --limit 100\n  \
    millstream read images --offset 7 --limit 1 --raw > image.png")]
pub(super) struct Read {
    /// The log
    log: String,
    #[command(flatten)]
    begin: StartFlags,
    #[command(flatten)]
    pub(super) what: What,
    #[command(flatten)]
    at: TargetFlags,
}

/// Which records are printed from the beginning on, and how: `read` and `tail` take the same.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags of a command")]
pub(super) struct What {
    /// End before the record at this offset [default: at the end of the log, or never with --follow]
    #[arg(long, value_name = "OFFSET")]
    until: Option<u64>,
    /// The most records to print [default: all]
    #[arg(long)]
    limit: Option<u64>,
    /// Print each record as a JSON object with offset and time
    #[arg(long)]
    pub(super) json: bool,
    /// Print only the bytes of the values, with nothing between them
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print frames, as `append --format frames` takes them: any bytes, and what is JSON stays JSON
    #[arg(long, conflicts_with_all = ["json", "raw"])]
    frames: bool,
    /// Skip records that are damaged, or that the disk cannot read, instead of stopping there
    #[arg(long)]
    skip_damaged: bool,
}

impl What {
    fn form(&self) -> Form {
        match (self.json, self.raw, self.frames) {
            (true, ..) => Form::Json,
            (_, true, _) => Form::Raw,
            (.., true) => Form::Frames,
            _ => Form::Lines,
        }
    }

    /// The part of the log that begins there.
    fn part(&self, from: u64) -> Part {
        Part { from, until: self.until.unwrap_or(u64::MAX), limit: self.limit.unwrap_or(u64::MAX) }
    }
}

/// How records are printed.
#[derive(Debug, Clone, Copy)]
enum Form {
    Lines,
    Json,
    Raw,
    Frames,
}

/// Print the last records of a log, or those from where a flag says on; with --follow, also new ones as they are appended
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream tail events\n  \
    millstream tail -f events --lines 0\n  \
    millstream tail -f events --offset 100\n  \
    millstream tail -f events --lines 0 --limit 1 --json\n  \
    millstream tail -f events --since 15m")]
pub(super) struct Tail {
    /// The log
    log: String,
    /// Keep printing new records, even if the server restarts
    #[arg(short, long)]
    follow: bool,
    /// How many of the last records to print first
    #[arg(short = 'n', long, default_value_t = 10, conflicts_with_all = ["offset", "since", "cursor"])]
    lines: u64,
    #[command(flatten)]
    begin: StartFlags,
    #[command(flatten)]
    pub(super) what: What,
    #[command(flatten)]
    at: TargetFlags,
}

impl Read {
    pub(super) fn run(&self) -> Outcome {
        let target = self.at.open()?;
        let skip_damaged = self.what.skip_damaged;
        block_on(async {
            let start = self.begin.at(StartAt::Earliest, &target, &self.log, skip_damaged).await?;
            let from = start::resolve(start, &target, &self.log).await?;
            print(&target, &self.log, self.what.part(from), self.what.form(), skip_damaged).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Tail {
    pub(super) fn run(&self) -> Outcome {
        let target = self.at.open()?;
        let skip_damaged = self.what.skip_damaged;
        block_on(async {
            let otherwise = StartAt::Last(self.lines);
            let start = self.begin.at(otherwise, &target, &self.log, skip_damaged).await?;
            if self.follow {
                let Target::Server(client) = &target else {
                    let error =
                        "--follow takes a server: nobody adds records to a directory that is open here";
                    return Err(Usage(error.to_owned()).into());
                };
                let tail = client.tail(&self.log, start)?;
                let tail = if skip_damaged { tail.skip_damaged() } else { tail };
                let from = if let StartAt::Offset(from) = start { from } else { 0 };
                return follow(tail, self.what.part(from), self.what.form()).await;
            }
            let from = start::resolve(start, &target, &self.log).await?;
            print(&target, &self.log, self.what.part(from), self.what.form(), skip_damaged).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints new records until the server refuses, or the part has ended.
async fn follow(mut tail: client::Tail, part: Part, form: Form) -> Result<(), Failure> {
    let mut gone = std::pin::pin!(stdout::reader_is_gone());
    let (mut trouble, mut outage) = (tail.trouble(), stderr::Outage::default());
    let (mut next, mut left) = (part.from, part.limit);
    while left > 0 && next < part.until {
        let first = tokio::select! {
            record = tail.next() => record?,
            () = &mut gone => return Ok(()),
            Ok(()) = trouble.changed() => {
                let trouble = trouble.borrow_and_update();
                let words = trouble.as_ref().map(|error| CodedFailure::of(error).words);
                outage.say(words.map(|words| words + "; trying again"));
                continue;
            }
        };
        let mut records: Vec<Record> = std::iter::once(first).chain(tail.take_ready()).collect();
        next = records.last().map_or(next, |record| record.offset + 1);
        records.retain(|record| record.offset < part.until);
        records.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        write(&records, form)?;
        left -= records.len() as u64;
    }
    Ok(())
}

/// A part of a log.
#[derive(Debug, Clone, Copy)]
struct Part {
    from: u64,
    /// The offset after the last record.
    until: u64,
    /// The most records.
    limit: u64,
}

/// Prints the records of a part of a log, as far as they exist.
async fn print(
    target: &Target,
    log: &str,
    part: Part,
    form: Form,
    skip_damaged: bool,
) -> Result<(), Failure> {
    let (mut next, mut left) = (part.from, part.limit);
    while left > 0 && next < part.until {
        let max = left.min(part.until - next).min(10_000);
        let mut range = target.read(log, next, max, skip_damaged).await?;
        if range.next_offset <= next {
            break;
        }
        range.records.retain(|record| record.offset < part.until); // those that were skipped do not count
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
