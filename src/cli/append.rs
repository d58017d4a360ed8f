//! `millstream append`.

use super::{
    Cli, Outcome, progress,
    settings::SettingsFlags,
    signals::{self, Signals},
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
    pin::pin,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Append lines, JSON lines, or a whole file to a log
///
/// If the server cannot be reached, batches are sent again, and each is stored only once. With --import, the command
/// can be run again after an interruption, or when the file has grown: what is stored already is passed over, and a
/// file that has changed otherwise is refused. On SIGINT or SIGTERM, what was read is appended before the command
/// ends; on a second one, it ends at once. If it fails, it says what it has appended.
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
    /// A name for this import, to be given again when it is run again. A last line without its end is left for then. The log
    /// forgets the name 7 days after the last batch, or when 10,000 others came after it: then all is stored again
    #[arg(long, alias = "producer", value_name = "NAME")]
    import: Option<String>,
    /// With --import: also append a last line that has no end; the file is complete
    #[arg(long, requires = "import")]
    last_line: bool,
    /// For how many seconds to go on trying if the server cannot be reached
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    patience: u64,
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
    /// Whether a last line without its end was left for the next run.
    is_unfinished: bool,
    /// The signal that has ended it; what was read until then is stored.
    signalled: Option<u8>,
    /// Why it was not all.
    failure: Option<Failure>,
    /// Whether more than that may have been stored: of what was sent last, there was no answer.
    is_uncertain: bool,
}

/// Why an append to a server has failed, and whether something may have been stored of which there was no answer.
struct Broken {
    failure: Failure,
    is_uncertain: bool,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self { failure, is_uncertain: false }
    }
}

impl From<client::Error> for Broken {
    fn from(error: client::Error) -> Self {
        let is_uncertain = match &error {
            client::Error::Forgotten
            | client::Error::Answer { .. }
            | client::Error::TakenOver { .. }
            | client::Error::TaskEnded => true,
            client::Error::Refused { status, .. } => *status >= 500 || error.is_temporary(),
            _ => error.is_temporary(),
        };
        Self { failure: error.into(), is_uncertain }
    }
}

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
        let Done { signalled, failure, .. } = self.report(done)?;
        match (failure, signalled) {
            (Some(failure), _) => Err(failure),
            (None, Some(signal)) => Ok(signals::exit_code(signal)),
            (None, None) => Ok(ExitCode::SUCCESS),
        }
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

    /// Says what was done. If that is not all, and nothing was stored, the failure says it.
    fn report(&self, done: Done) -> Result<Done, Failure> {
        let Done { stored, passed_over, first_offset, last_offset, is_unfinished, failure, .. } = &done;
        let is_uncertain = done.is_uncertain;
        if *is_unfinished {
            stderr::say(format_args!(
                "the last line has no end: it is left for the next run (--last-line appends it as it is)"
            ));
        }
        if self.json {
            let mut report = serde_json::json!({
                "log": self.log, "records": stored, "first_offset": first_offset, "last_offset": last_offset,
            });
            if self.import.is_some() {
                report["passed_over"] = (*passed_over).into();
            }
            if let Some(failure) = failure {
                report["error"] = failure.to_string().into();
                report["uncertain"] = is_uncertain.into();
            }
            return stdout::line(format_args!("{report}")).map(|()| done);
        }
        if failure.is_some() && *stored == 0 && !is_uncertain {
            return Ok(done);
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
        let all = match failure {
            Some(_) if is_uncertain => ", and then it failed: of those after them it is not known",
            Some(_) => ", and then it failed",
            None => "",
        };
        stdout::line(format_args!("{stored} records appended to {}{at}{passed}{all}", self.log))?;
        Ok(done)
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
        options.patience = Duration::from_secs(self.patience);
        let producer = client.producer_with(&self.log, &id, options)?;
        let mut lasting = pin!(lasting(producer.trouble(), options.patience));
        let mut signals = Signals::new()?;
        let opened = tokio::select! {
            opened = producer.begin_epoch() => opened?,
            error = &mut lasting => return Err(error.into()),
            signal = signals.next() => return Ok(Done { signalled: Some(signal), ..Done::default() }),
        };
        let passed_over = self.resume(&mut source, opened.mark.as_deref())?;
        let mut records = read_beside(source);
        let (mut signalled, mut is_unfinished) = (None, false);
        let result = {
            let (stop, stopped) = oneshot::channel();
            let pushing = self.push_all(&producer, &mut records, stopped, &mut is_unfinished);
            let (mut pushing, mut stop) = (pin!(pushing), Some(stop));
            loop {
                tokio::select! {
                    result = &mut pushing => break result,
                    error = &mut lasting => break Err(Broken::from(error)),
                    signal = signals.next() => match stop.take() {
                        Some(stop) => (signalled, _) = (Some(signal), stop.send(())),
                        None => break Err(Broken { failure: "ended by a second signal".into(), is_uncertain: true }),
                    },
                }
            }
        };
        let Stored { records: stored, first_offset, last_offset, .. } = producer.stored();
        let (failure, is_uncertain) =
            result.err().map_or((None, false), |broken| (Some(broken.failure), broken.is_uncertain));
        Ok(Done {
            stored,
            passed_over,
            first_offset,
            last_offset,
            is_unfinished,
            signalled,
            failure,
            is_uncertain,
        })
    }

    /// Hands over all records, or those that come until `stopped`, and waits until they are stored.
    async fn push_all(
        &self,
        producer: &Producer,
        records: &mut mpsc::Receiver<io::Result<Next>>,
        mut stopped: oneshot::Receiver<()>,
        is_unfinished: &mut bool,
    ) -> Result<(), Broken> {
        let any = LogSettings::default();
        let (mut failure, mut goes_on) = (None, true);
        loop {
            let next = tokio::select! {
                next = records.recv() => next,
                _ = &mut stopped, if goes_on => {
                    goes_on = false;
                    records.close();
                    continue;
                }
            };
            match next {
                None => break,
                Some(Ok(next)) if self.is_unfinished(&next.at) => {
                    *is_unfinished = true;
                    break;
                }
                // The server would count from the beginning of a batch.
                Some(Ok(next)) => match check(&any, &next.record, next.json, next.at.records) {
                    Ok(()) => self.push(producer, &next).await?,
                    Err(error) => failure = Some(error),
                },
                Some(Err(error)) => failure = Some(self.unreadable(&error)),
            }
            if failure.is_some() {
                break; // what was read before is stored
            }
        }
        producer.flush().await?;
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Whether a record may be the beginning of one that a later run will find.
    fn is_unfinished(&self, at: &Progress) -> bool {
        let has_lines = matches!(self.format, Records::Lines | Records::Ndjson);
        self.import.is_some() && !self.last_line && has_lines && at.is_open()
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
        let segment = log.settings().segment_bytes.unwrap_or(store.options().log.segment_bytes) as usize;
        let most = self.batch_bytes.min(segment.saturating_sub(BATCH_EXTRA_BYTES));
        let mut batch = Batch::default();
        let result = loop {
            let mut record = Vec::new();
            let next = match source.next(&mut record) {
                Ok(true) if self.is_unfinished(&source.progress()) => {
                    done.is_unfinished = true;
                    Ok(None)
                }
                Ok(true) => {
                    let json = source.is_json() || log.settings().values == Values::Json;
                    let number = source.progress().records;
                    check(log.settings(), &record, json, number).map(|()| Some((record, json)))
                }
                Ok(false) => Ok(None),
                Err(error) => Err(self.unreadable(&error)),
            };
            let more = next.as_ref().map_or(0, |next| next.as_ref().map_or(0, |(record, _)| cost(record)));
            if !batch.records.is_empty() && (more == 0 || batch.bytes + more > most) {
                match append(&log, &batch, producer) {
                    Ok(first) => done.note(first, batch.records.len() as u64),
                    Err(failure) => break Err(failure),
                }
                producer = producer.map(|(name, epoch, sequence)| (name, epoch, sequence + 1));
                batch = Batch::default();
            }
            match next {
                Ok(Some((record, json))) => {
                    batch.bytes += more;
                    batch.records.push((record, json));
                    batch.mark = source.progress();
                }
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        let durable = done.last_offset.map(|last| log.wait_durable(last)).transpose();
        if durable.is_err() {
            done.limit_to(log.durable_offset());
            done.is_uncertain = true;
        }
        done.failure = result.and(durable.map(drop).map_err(Failure::from)).err();
        Ok(done)
    }
}

impl Done {
    /// Records were stored.
    fn note(&mut self, first: u64, records: u64) {
        self.stored += records;
        self.first_offset.get_or_insert(first);
        self.last_offset = Some(first + records - 1);
    }

    /// Of what was appended, one record behind the other, only those before this offset are stored.
    fn limit_to(&mut self, end: u64) {
        let first = self.first_offset.filter(|&first| first < end);
        let last = first.and(self.last_offset).map(|last| last.min(end - 1));
        self.stored = first.zip(last).map_or(0, |(first, last)| last + 1 - first);
        (self.first_offset, self.last_offset) = (first, last);
    }
}

/// Records that are appended together to a log in a directory.
#[derive(Default)]
struct Batch {
    records: Vec<(Vec<u8>, bool)>,
    bytes: usize,
    /// How far the source was read with them.
    mark: Progress,
}

/// What a batch takes in a segment beside its records, and more.
const BATCH_EXTRA_BYTES: usize = 1024;

/// What a record takes in a segment at the most.
fn cost(record: &[u8]) -> usize {
    record.len() + 40
}

fn append(log: &OpenLog, batch: &Batch, producer: Option<(&str, u32, u64)>) -> Result<u64, Failure> {
    let payloads: Vec<_> = batch.records.iter().map(|(bytes, json)| Payload { bytes, json: *json }).collect();
    let mark = batch.mark.to_string();
    loop {
        let appended = match producer {
            None => log.try_append_payloads(&payloads, None),
            Some((name, epoch, sequence)) => {
                let batch = ProducerBatch::new(name, epoch, sequence).with_mark(&mark);
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

/// Reads the records on a thread of their own, since reading blocks: so what was read is sent in time.
fn read_beside(mut source: Source<impl BufRead + Send + 'static>) -> mpsc::Receiver<io::Result<Next>> {
    let (sender, records) = mpsc::channel(1024);
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
    records
}

/// An error that says which record it is, if it is not what the settings of its log say.
fn check(settings: &LogSettings, record: &[u8], json: bool, number: u64) -> Result<(), Failure> {
    Ok(settings.check_value(record, json).map_err(|error| format!("record {number}: {error}"))?)
}

/// Says what keeps the producer from storing. Completes with that when it has lasted for `patience`.
async fn lasting(mut trouble: watch::Receiver<Option<client::Error>>, patience: Duration) -> client::Error {
    let mut since = None;
    loop {
        let last = since.map_or(patience, |since: Instant| patience.saturating_sub(since.elapsed()));
        match tokio::time::timeout(last, trouble.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return std::future::pending().await, // the producer has ended
            Err(_) => match trouble.borrow().clone().filter(|_| since.is_some()) {
                Some(error) => return error,
                None => continue,
            },
        }
        if let Some(error) = trouble.borrow_and_update().as_ref() {
            stderr::say(format_args!("{error}; trying again for {} s", patience.as_secs()));
            since.get_or_insert_with(Instant::now);
        } else {
            stderr::say(format_args!("the server answers again"));
            since = None;
        }
    }
}

/// A name that nothing else uses.
fn unnamed() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("cli-{}-{}", std::process::id(), now.as_nanos())
}
