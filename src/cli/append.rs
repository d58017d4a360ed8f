//! `millstream append`.

use super::{
    Cli, Outcome, progress,
    settings::SettingsFlags,
    size, stderr, stdout,
    target::{At, Failure, Target, block_on},
};
use clap::{CommandFactory, ValueEnum, error::ErrorKind};
use indicatif::ProgressBar;
use millstream::{
    Error as LogError, Payload, ProducerBatch,
    client::{self, Client, Producer, ProducerOptions, Stored},
    import::{Progress, Source, Split},
    store::{LogSettings, OpenLog, Store, Values},
};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// Append lines, JSON lines, or a whole file to a log
///
/// If the server cannot be reached, batches are sent again, and each is stored only once. With --import, the command
/// can be run again after an interruption, or when the file has grown: what is stored already is passed over, and a
/// file that has changed otherwise is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream append events app.log\n  \
    tail -f app.log | millstream append events -\n  \
    millstream append events dump.ndjson --format ndjson --import dump-2026-01\n  \
    millstream append clicks clicks.ndjson --format ndjson --create --retention-seconds 86400")]
pub(super) struct Append {
    /// The log
    log: String,
    /// The file; - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// What each record is
    #[arg(long, value_enum, default_value_t = Records::Lines)]
    format: Records,
    /// Bytes per batch, such as 1MiB
    #[arg(long, default_value = "1MiB", value_parser = size::within(1..=1 << 31))]
    batch_bytes: usize,
    /// A name for this import, to be given again when it is run again
    #[arg(long, alias = "producer", value_name = "NAME")]
    import: Option<String>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    /// Create the log first if it does not exist; if it does, it must have the settings that are given
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    settings: SettingsFlags,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Records {
    /// Each line, without its line end
    Lines,
    /// Each line, which must be JSON
    Ndjson,
    /// The whole file
    Whole,
    /// Each frame, as `read --frames` prints them
    Frames,
}

/// A record, and how far the source was read with it.
struct Next {
    record: Vec<u8>,
    json: bool,
    at: Progress,
}

/// What was done.
#[derive(Default)]
struct Done {
    stored: u64,
    passed_over: u64,
    first_offset: Option<u64>,
    last_offset: Option<u64>,
    /// The signal that has ended it; what was read until then is stored.
    signalled: Option<u8>,
}

/// The numbers of these signals.
const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

impl Append {
    pub(super) fn run(&self) -> Outcome {
        if !self.create && self.settings.is_some() {
            let error = "settings are for a new log: they need --create";
            Cli::command().error(ErrorKind::MissingRequiredArgument, error).exit();
        }
        let from: Box<dyn Read + Send> =
            if self.file.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(self.open()?) };
        let length = std::fs::metadata(&self.file).map_or(0, |metadata| metadata.len());
        let bar = if length > 0 { progress::bytes(length) } else { ProgressBar::hidden() };
        let split = match self.format {
            Records::Lines => Split::Lines,
            Records::Ndjson => Split::Json,
            Records::Whole => Split::Whole,
            Records::Frames => Split::Frames,
        };
        let source = Source::new(BufReader::with_capacity(1 << 20, bar.wrap_read(from)), split);
        let target = self.at.open()?;
        if self.create {
            block_on(self.create(&target))?;
        }
        let done = match target {
            Target::Server(client) => block_on(self.send(&client, source))?,
            Target::Directory(store) => self.store(&store, source)?,
        };
        bar.finish_and_clear();
        self.report(&done)?;
        // As shells report a command that a signal has ended.
        Ok(done.signalled.map_or(ExitCode::SUCCESS, |signal| ExitCode::from(128 + signal)))
    }

    async fn create(&self, target: &Target) -> Result<(), Failure> {
        if self.settings.is_some() || target.describe(&self.log).await.is_err() {
            target.create(&self.log, &self.settings.over(LogSettings::default())).await?;
        }
        Ok(())
    }

    fn open(&self) -> Result<File, Failure> {
        let path = self.file.display();
        Ok(File::open(&self.file).map_err(|error| format!("cannot open {path}: {error}"))?)
    }

    fn report(&self, done: &Done) -> Result<(), Failure> {
        let Done { stored, passed_over, first_offset, last_offset, .. } = done;
        if self.json {
            let mut report = serde_json::json!({
                "log": self.log, "records": stored, "first_offset": first_offset, "last_offset": last_offset,
            });
            if self.import.is_some() {
                report["passed_over"] = (*passed_over).into();
            }
            return stdout::line(format_args!("{report}"));
        }
        let at = match (first_offset, last_offset) {
            (Some(first), Some(last)) if first < last => format!(", offsets {first} to {last}"),
            (Some(only), _) => format!(", offset {only}"),
            _ => String::new(),
        };
        let passed = match passed_over {
            0 => String::new(),
            over => format!("; {over} stored before were passed over"),
        };
        stdout::line(format_args!("{stored} records appended to {}{at}{passed}", self.log))
    }

    /// Skips what a mark says was imported.
    fn resume(&self, source: &mut Source<impl BufRead>, mark: Option<&str>) -> Result<u64, Failure> {
        let (Some(name), Some(mark)) = (&self.import, mark) else { return Ok(0) };
        let imported: Progress = mark.parse().map_err(|_| {
            format!("{name:?} is the name of a producer of another kind, whose mark is {mark:?}; choose another name")
        })?;
        let path = self.file.display();
        source
            .resume(&imported)
            .map_err(|error| format!("{path} is not what was imported as {name:?}: {error}"))?;
        Ok(imported.records)
    }

    /// Appends to a log on a server. What was read is sent before the command ends, also on SIGINT and SIGTERM.
    async fn send(
        &self,
        client: &Client,
        mut source: Source<impl BufRead + Send + 'static>,
    ) -> Result<Done, Failure> {
        let id = self.import.clone().unwrap_or_else(unnamed);
        let mut options = ProducerOptions::default();
        options.batch_bytes = self.batch_bytes;
        let patience = options.patience;
        let producer = client.producer_with(&self.log, &id, options)?;
        let mut trouble = producer.trouble();
        tokio::spawn(async move {
            while trouble.changed().await.is_ok() {
                match trouble.borrow_and_update().as_ref() {
                    Some(error) => {
                        stderr::say(format_args!("{error}; trying again for {} s", patience.as_secs()));
                    }
                    None => stderr::say(format_args!("the server answers again")),
                }
            }
        });
        let opened = producer.open().await?;
        let passed_over = self.resume(&mut source, opened.mark.as_deref())?;
        // Reading blocks: on a thread of its own, so that what was read is sent in time.
        let (sender, mut records) = mpsc::channel::<io::Result<Next>>(1024);
        std::thread::spawn(move || {
            let mut record = Vec::new();
            loop {
                let next = match source.next(&mut record) {
                    Ok(false) => return,
                    Ok(true) => Ok(Next {
                        record: std::mem::take(&mut record),
                        json: source.is_json(),
                        at: source.progress(),
                    }),
                    Err(error) => Err(error),
                };
                if sender.blocking_send(next).is_err() {
                    return;
                }
            }
        });
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut signalled = None;
        loop {
            let next = tokio::select! {
                next = records.recv() => next,
                _ = interrupt.recv(), if signalled.is_none() => { signalled = Some(SIGINT); records.close(); continue }
                _ = terminate.recv(), if signalled.is_none() => { signalled = Some(SIGTERM); records.close(); continue }
            };
            let Some(next) = next else { break };
            let next = next.map_err(|error| self.unreadable(&error))?;
            self.push(&producer, &next).await?;
        }
        let Stored { records: stored, first_offset, last_offset, .. } = producer.close().await?;
        Ok(Done { stored, passed_over, first_offset, last_offset, signalled })
    }

    fn unreadable(&self, error: &io::Error) -> Failure {
        format!("cannot read {}: {error}", self.file.display()).into()
    }

    async fn push(&self, producer: &Producer, next: &Next) -> Result<(), client::Error> {
        let Next { record, json, at } = next;
        match (&self.import, json) {
            (Some(_), json) => producer.push_marked(record, *json, &at.to_string()).await,
            (None, true) => producer.push_json(record).await,
            (None, false) => producer.push(record).await,
        }
    }

    /// Appends to a log in a directory.
    fn store(&self, store: &Store, mut source: Source<impl BufRead>) -> Result<Done, Failure> {
        let log = store.get(&self.log)?;
        let mut done = Done::default();
        let mut producer = None;
        if let Some(name) = &self.import {
            let opened = log.begin_epoch(name)?;
            done.passed_over = self.resume(&mut source, opened.mark.as_deref())?;
            producer = Some((name.as_str(), opened.epoch, 0));
        }
        let (mut batch, mut bytes, mut record) = (Vec::new(), 0, Vec::new());
        loop {
            let more = source.next(&mut record).map_err(|error| self.unreadable(&error))?;
            if more {
                let json = source.is_json() || log.settings().values == Values::Json;
                let checked = log.settings().check_value(&record, json);
                checked
                    .map_err(|error| format!("record {}: {error}", done.stored + batch.len() as u64 + 1))?;
                bytes += record.len();
                batch.push((std::mem::take(&mut record), json));
            }
            if !batch.is_empty() && (!more || bytes >= self.batch_bytes) {
                let first = append(&log, &batch, producer, &source.progress().to_string())?;
                producer = producer.map(|(name, epoch, sequence)| (name, epoch, sequence + 1));
                done.stored += batch.len() as u64;
                done.first_offset.get_or_insert(first);
                done.last_offset = Some(first + batch.len() as u64 - 1);
                batch.clear();
                bytes = 0;
            }
            if !more {
                break;
            }
        }
        done.last_offset.map(|last| log.wait_durable(last)).transpose()?;
        Ok(done)
    }
}

fn append(
    log: &OpenLog,
    batch: &[(Vec<u8>, bool)],
    producer: Option<(&str, u32, u64)>,
    mark: &str,
) -> Result<u64, Failure> {
    let payloads: Vec<_> = batch.iter().map(|(bytes, json)| Payload { bytes, json: *json }).collect();
    loop {
        let appended = match producer {
            None => log.try_append_payloads(&payloads, None),
            Some((name, epoch, sequence)) => {
                let batch = ProducerBatch::new(name, epoch, sequence).with_mark(mark);
                log.try_append_once(&batch, &payloads, None).map(|done| done.first_offset)
            }
        };
        match appended {
            // Until the disk has caught up.
            Err(LogError::WouldBlock) => log.flush()?,
            done => return Ok(done?),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A name that nothing else uses.
fn unnamed() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("cli-{}-{}", std::process::id(), now.as_nanos())
}
