//! `millstream append`.

mod input;
mod sink;

use super::{
    Outcome, Usage, counted,
    failure::{CodedFailure, Failure},
    progress,
    settings::SettingsFlags,
    signals::{self, Interrupted, Signals},
    size, stderr, stdout,
    target::{Target, TargetFlags, block_on},
};
use clap::ValueEnum;
use indicatif::ProgressBar;
use input::{Input, Next, Records};
use millstream::{
    Code, PRODUCER_ID_BYTES, RECORD_EXTRA_BYTES,
    client::{self, Client, Patience, ProducerOptions},
    import::{Progress, Split},
    is_producer_id,
    store::{LogSettings, OpenLog},
};
use sink::{Appended, Sink, Writer};
use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    pin::{Pin, pin},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Append lines, JSON lines, or a whole file to a log
///
/// If the server cannot be reached, batches are sent again, and each is stored only once. With --import, the command
/// can be run again after an interruption, or when the file has grown: what is stored already is passed over, and a
/// file that has changed otherwise is refused. On SIGINT or SIGTERM, what was read is appended before the command
/// ends; on a second one, it ends at once.
///
/// If it fails, it says what it has appended: with --format ndjson, the lines before the first one that is wrong. If it was
/// run with --import, correct that line and run the same command again: it appends the rest, and nothing twice.
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
    #[arg(long, value_enum, default_value_t = Format::Lines)]
    format: Format,
    /// Bytes per batch, such as 1MiB
    #[arg(long, default_value = "1MiB", value_parser = size::within(1..=1 << 31))]
    batch_bytes: usize,
    /// A name for this import, to be given again, with the same --format, when it is run again. A last line without a line
    /// end is left for the next run. The log forgets the name after 7 days without a batch, or after 10,000 other names; a
    /// later run then stores everything again
    #[arg(long, alias = "producer", value_name = "NAME", value_parser = import_name)]
    import: Option<String>,
    /// With --import: also append a last line that has no end; the file is complete
    #[arg(long, requires = "import")]
    last_line: bool,
    /// Seconds for which a request is retried if the server cannot be reached, or does not answer; pauses between
    /// attempts count
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    patience: u64,
    /// Print what was done as JSON. "unfinished" says that a part of a record was read, and not appended. After a failure,
    /// "error" says why, "code" is its code, and "uncertain" says whether more than "records" may be stored, because what was
    /// sent got no answer: with --import, the next run finds out; otherwise, read what the log has after the last offset
    #[arg(long)]
    pub(super) json: bool,
    /// Create the log first if it does not exist; if it does, it must have the settings that are given
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    settings: SettingsFlags,
    #[command(flatten)]
    at: TargetFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Each line, without its line end
    Lines,
    /// Each line, which must be JSON
    Ndjson,
    /// The whole file, unless it is empty
    Whole,
    /// Each frame, as `read --frames` prints them
    Frames,
}

/// A name for an import, which is the id of a producer.
fn import_name(text: &str) -> Result<String, String> {
    let expected = || {
        format!(
            "it must be 1 to {PRODUCER_ID_BYTES} printable characters of ASCII, with no space at either end"
        )
    };
    is_producer_id(text).then(|| text.to_owned()).ok_or_else(expected)
}

/// What was done.
#[derive(Default)]
struct Done {
    appended: Appended,
    passed_over: u64,
    /// Whether a last line without its end was left for the next run.
    is_unfinished: bool,
    /// Whether a part of a record was read before a signal, and is not stored.
    is_cut: bool,
    /// The signal that has ended it; what was read until then is stored.
    signalled: Option<u8>,
    /// Why it was not all.
    failure: Option<Failure>,
    /// Whether more than that may have been stored.
    is_uncertain: bool,
}

/// A log that records can be appended to, and what is known of it.
enum Destination<'a> {
    Server(&'a Client),
    /// With the bytes of its segments.
    Directory(Arc<OpenLog>, u64),
}

/// What an append begins with.
struct Begun {
    sink: Sink,
    records: Records,
    passed_over: u64,
    /// Completes when the server was away for too long, or has refused a batch for good.
    until_given_up: Pin<Box<dyn Future<Output = client::Error>>>,
}

impl Append {
    pub(super) fn run(&self) -> Outcome {
        if !self.create && self.settings.is_some() {
            return Err(Usage("settings are for a new log: they need --create".to_owned()).into());
        }
        let mut target = None;
        let mut done = self
            .append_file(&mut target)
            .unwrap_or_else(|failure| Done { failure: Some(failure), ..Done::default() });
        done.failure = done.failure.take().map(|failure| self.in_own_words(failure, &done));
        let Done { signalled, failure, .. } = self.report(done)?;
        match (failure, signalled) {
            (Some(failure), Some(_)) => {
                std::mem::forget(target); // closing it may take as long as what the second signal has ended
                Err(failure)
            }
            (Some(failure), None) => Err(failure),
            (None, Some(signal)) => Ok(signals::exit_code(signal)),
            (None, None) => Ok(ExitCode::SUCCESS),
        }
    }

    /// Appends the file; fails if it could not begin. The `target` is what it was appended to.
    fn append_file(&self, target: &mut Option<Target>) -> Result<Done, Failure> {
        let from: Box<dyn Read + Send> =
            if self.file.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(self.open()?) };
        let length = std::fs::metadata(&self.file).map_or(0, |metadata| metadata.len());
        let bar = if length > 0 { progress::bytes(length) } else { ProgressBar::hidden() };
        let split = match self.format {
            Format::Lines => Split::Lines,
            Format::Ndjson => Split::Json,
            Format::Whole => Split::Whole,
            Format::Frames => Split::Frames,
        };
        let input = Input::new(Box::new(bar.wrap_read(from)), split);
        let found = if self.create { self.at.open_or_create() } else { self.at.open() };
        let opened = match found? {
            // One that is stopped is as good as away, however long it keeps the connection; and there is time to ask again.
            Target::Server(client) => {
                let max_silence = (Duration::from_secs(self.patience) / 2).min(client::MAX_SILENCE);
                Target::Server(Box::new(client.with_max_silence(max_silence)))
            }
            directory @ Target::Directory(_) => directory,
        };
        let target = target.insert(opened);
        let done = block_on(self.append(target, input))?;
        bar.finish_and_clear();
        Ok(done)
    }

    /// Creates the log, or compares the settings that are given with those that it has.
    async fn create(&self, target: &Target) -> Result<(), Failure> {
        let settings = match target.describe(&self.log).await {
            Ok(_) if !self.settings.is_some() => return Ok(()),
            Ok(described) => described.settings,
            Err(error) if is_temporary(&error) => return Err(error),
            Err(_) => LogSettings::default(), // it does not exist, or this says what is wrong with it
        };
        target.create(&self.log, &self.settings.over(settings)).await.map(drop)
    }

    fn open(&self) -> Result<File, Failure> {
        let path = self.file.display();
        Ok(File::open(&self.file).map_err(|error| format!("cannot open {path}: {error}"))?)
    }

    fn cannot_read(&self, error: &io::Error) -> Failure {
        let words = format!("cannot read {}: {error}", self.file.display());
        // The source says so of a record that is too large.
        if error.kind() == io::ErrorKind::InvalidData {
            CodedFailure::new(Code::RecordTooLarge, words).into()
        } else {
            words.into()
        }
    }

    /// A failure in the words of this command, which has imports, and no producers.
    fn in_own_words(&self, failure: Failure, done: &Done) -> Failure {
        let coded = CodedFailure::of(&*failure);
        match &self.import {
            Some(name) if coded.is(Code::ProducerOutOfOrder) => {
                let words = format!("another run of the import {name:?} has taken over");
                CodedFailure { words, ..coded }.into()
            }
            // All before it are stored, and it is alone: what is too large together is divided.
            _ if coded.is(Code::RecordTooLarge) && !failure.is::<CodedFailure>() => {
                let number = done.passed_over + done.appended.records + 1;
                let words = format!(
                    "record {number} is larger than the log takes: a record must fit in a segment, with some 28 bytes beside \
                     it, and have no more than `record_bytes`; split it"
                );
                CodedFailure { words, ..coded }.into()
            }
            _ => failure,
        }
    }

    /// Says what was done. If that is not all, and nothing was stored, the failure says it.
    fn report(&self, done: Done) -> Result<Done, Failure> {
        let Done { appended, passed_over, is_unfinished, failure, is_uncertain, .. } = &done;
        let (Appended { records: stored, first_offset, last_offset }, is_uncertain) =
            (appended, *is_uncertain);
        if *is_unfinished {
            stderr::say(format_args!(
                "the last line has no end: it is left for the next run (--last-line appends it as it is)"
            ));
        }
        if done.is_cut {
            stderr::say(format_args!("a part of a record was read before the signal: it is not appended"));
        }
        if self.json {
            let mut report = serde_json::json!({
                "log": self.log, "records": stored, "first_offset": first_offset, "last_offset": last_offset,
            });
            if self.import.is_some() {
                report["passed_over"] = (*passed_over).into();
            }
            if *is_unfinished || done.is_cut {
                report["unfinished"] = true.into();
            }
            if let Some(failure) = failure {
                let CodedFailure { words, code } = CodedFailure::of(&**failure).or_without_log(WITHOUT_LOG);
                (report["error"], report["code"]) = (words.into(), code.into());
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
            1 => "; 1 stored before was passed over".to_owned(),
            over => format!("; {over} stored before were passed over"),
        };
        let all = match failure {
            Some(_) if is_uncertain => {
                "; then it failed, and it is not known whether later records were stored"
            }
            Some(_) => "; then it failed",
            None => "",
        };
        let stored = counted(*stored, "record");
        stdout::line(format_args!("{stored} appended to {}{at}{passed}{all}", self.log))?;
        Ok(done)
    }

    /// Skips what a mark says was imported; returns the number of its records.
    async fn resume(&self, input: Input, mark: Option<&str>) -> Result<(Input, u64), Failure> {
        let (Some(name), Some(mark)) = (&self.import, mark) else { return Ok((input, 0)) };
        let imported: Progress = mark.parse().map_err(|_| {
            format!("{name:?} is the name of a producer of another kind, whose mark is {mark:?}; choose another name")
        })?;
        let path = self.file.display();
        let skipped = input.resume(imported).await;
        let input =
            skipped.map_err(|error| format!("{path} is not what was imported as {name:?}: {error}"))?;
        Ok((input, imported.records))
    }

    /// Appends. What was read is stored before the command ends, also on SIGINT and SIGTERM.
    async fn append(&self, target: &Target, input: Input) -> Result<Done, Failure> {
        let destination = match target {
            Target::Server(client) => Destination::Server(client),
            // This blocks: until it is done, a signal ends the process.
            Target::Directory(store) => {
                if self.create {
                    self.create(target).await?;
                }
                let log = store.get(&self.log)?;
                let segment_bytes = log.settings().segment_bytes.unwrap_or(store.options().log.segment_bytes);
                Destination::Directory(log, segment_bytes)
            }
        };
        let mut signals = Signals::new()?;
        let begun = tokio::select! {
            begun = self.begin(target, destination, input) => begun?,
            signal = signals.next() => {
                return Err(Interrupted { signal, what: "interrupted before anything was appended" }.into());
            }
        };
        let Begun { mut sink, records, passed_over, mut until_given_up } = begun;
        let (mut done, mut signalled) = (Done { passed_over, ..Done::default() }, None);
        let result = {
            let (stop, stopped) = oneshot::channel();
            let pushing = self.push_all(&mut sink, records, stopped, &mut done);
            let (mut pushing, mut stop) = (pin!(pushing), Some(stop));
            loop {
                tokio::select! {
                    result = &mut pushing => break result,
                    error = &mut until_given_up => break Err(Failure::from(error)),
                    signal = signals.next() => match stop.take() {
                        Some(stop) => (signalled, _) = (Some(signal), stop.send(())),
                        None => break Err(Interrupted { signal, what: "interrupted by a second signal" }.into()),
                    },
                }
            }
        };
        (done.failure, done.signalled) = (result.err(), signalled);
        (done.is_uncertain, done.appended) = (sink.may_have_stored_more(), sink.appended());
        Ok(done)
    }

    /// Finds out what is known of the log and the import, and begins to read.
    async fn begin(
        &self,
        target: &Target,
        destination: Destination<'_>,
        input: Input,
    ) -> Result<Begun, Failure> {
        let patience = Duration::from_secs(self.patience);
        let mut until_given_up: Pin<Box<dyn Future<Output = _>>> = Box::pin(std::future::pending());
        let (sink, mark, settings, fits) = match destination {
            Destination::Server(client) => {
                if self.create {
                    patiently(patience, async || self.create(target).await).await?;
                }
                let mut options = ProducerOptions::default();
                (options.batch_bytes, options.patience, options.same_log) =
                    (self.batch_bytes, patience, true);
                let id = self.import.clone().unwrap_or_else(unnamed);
                let producer = client.producer_with(&self.log, &id, options)?;
                until_given_up =
                    Box::pin(self::until_given_up(producer.gives_up(), producer.trouble(), patience));
                let begun = tokio::select! {
                    begun = producer.begin_epoch() => begun?,
                    error = &mut until_given_up => return Err(error.into()),
                };
                // So that errors can name records as they are in the input; the server checks them as well.
                let described = client.describe(&self.log).await;
                let settings =
                    described.map_or_else(|_| LogSettings::default(), |described| described.settings);
                let fits = begun.max_record_bytes();
                (Sink::Server(producer), begun.mark, settings, fits)
            }
            Destination::Directory(log, segment_bytes) => {
                let begun = self.import.as_ref().map(|name| log.begin_epoch(name)).transpose()?;
                let (epoch, mark) = begun.map_or((0, None), |begun| (begun.epoch, begun.mark));
                let producer = self.import.clone().map(|name| (name, epoch));
                let settings = log.settings().clone();
                let writer = Writer::new(log, segment_bytes, self.batch_bytes as u64, producer);
                (
                    Sink::Directory(writer),
                    mark,
                    settings,
                    segment_bytes.saturating_sub(*RECORD_EXTRA_BYTES.start()),
                )
            }
        };
        let (input, passed_over) = self.resume(input, mark.as_deref()).await?;
        let record_bytes = settings.record_bytes.map_or(fits, |most| most.min(fits));
        let records = input.read(record_bytes, settings);
        Ok(Begun { sink, records, passed_over, until_given_up })
    }

    /// Appends all records, or those that were read until `stopped`, and waits until they are stored.
    async fn push_all(
        &self,
        sink: &mut Sink,
        mut records: Records,
        stopped: oneshot::Receiver<()>,
        done: &mut Done,
    ) -> Result<(), Failure> {
        let stop = records.stop();
        let mut stopping = pin!(async {
            let _ = stopped.await; // its sender is there for as long as this runs
            stop.stop().await;
        });
        let (mut failure, mut goes_on) = (None, true);
        while failure.is_none() {
            let due = sink.due();
            let next = tokio::select! {
                biased; // what has been read needs no more than a look
                next = records.next() => next,
                () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                    sink.append().await?;
                    continue;
                }
                () = &mut stopping, if goes_on => {
                    goes_on = false;
                    records.end();
                    continue;
                }
            };
            match next {
                None => break,
                Some(Ok(next)) if self.is_unfinished(&next.at) => {
                    done.is_unfinished = true;
                    break;
                }
                Some(Ok(Next { refused: Some(coded), .. })) => failure = Some(Failure::from(coded)),
                Some(Ok(next)) => sink.push(next, self.import.is_some()).await?,
                Some(Err(error)) => failure = Some(self.cannot_read(&error)),
            }
        }
        done.is_cut = !goes_on && records.are_cut();
        sink.flush().await?; // what was read before a failure is stored
        failure.map_or(Ok(()), Err)
    }

    /// Whether a record may be the beginning of one that a later run will find.
    fn is_unfinished(&self, at: &Progress) -> bool {
        let has_lines = matches!(self.format, Format::Lines | Format::Ndjson);
        self.import.is_some() && !self.last_line && has_lines && at.is_open()
    }
}

/// What to do if there is no such log.
pub(super) const WITHOUT_LOG: &str = "create it first, or append with --create";

/// Whether the same may succeed a little later.
fn is_temporary(failure: &Failure) -> bool {
    failure.downcast_ref::<client::Error>().is_some_and(client::Error::is_temporary)
}

/// Tries until it succeeds, or `patience` is over.
async fn patiently<T>(
    patience: Duration,
    attempt: impl AsyncFn() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (mut trying, mut last, mut outage) = (Patience::new(patience), None, stderr::Outage::default());
    loop {
        match trying.attempt(attempt()).await {
            Some(Err(error)) if is_temporary(&error) => {
                if last.is_none() {
                    outage.say(Some(trouble_words(&*error, patience)));
                }
                last = Some(error);
            }
            Some(done) => {
                outage.say(None);
                return done;
            }
            None => {} // the patience is over
        }
        if !trying.pause().await
            && let Some(error) = last
        {
            return Err(error);
        }
    }
}

fn trouble_words(error: &(dyn std::error::Error + 'static), patience: Duration) -> String {
    let CodedFailure { words, .. } = CodedFailure::of(error);
    format!("{words}; trying again for {} s in all", patience.as_secs())
}

/// Says what keeps the producer from storing. Completes with that when the producer gives up.
async fn until_given_up(
    gives_up: impl Future<Output = client::Error>,
    mut trouble: watch::Receiver<Option<client::Error>>,
    patience: Duration,
) -> client::Error {
    let (mut gives_up, mut outage) = (pin!(gives_up), stderr::Outage::default());
    loop {
        tokio::select! {
            biased;
            error = &mut gives_up => return error,
            Ok(()) = trouble.changed() => {
                let trouble = trouble.borrow_and_update();
                outage.say(trouble.as_ref().map(|error| trouble_words(error, patience)));
            }
        }
    }
}

/// A name that nothing else uses.
fn unnamed() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("cli-{}-{}", std::process::id(), now.as_nanos())
}
