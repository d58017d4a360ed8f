//! `millstream append`.

mod begin;
mod input;
mod outage;
mod report;
mod sink;

use super::{
    Outcome, Usage,
    failure::{CodedFailure, Failure},
    progress,
    settings::SettingsFlags,
    signals::{self, Interrupted, Signals},
    size,
    target::{Target, TargetFlags, block_on},
};
use begin::{Begun, Destination};
use clap::ValueEnum;
use indicatif::ProgressBar;
use input::{Input, Next, Records};
use millstream::{
    Code, MAX_PRODUCER_ID_BYTES, client,
    import::{Progress, Split},
    is_producer_id,
};
use report::Done;
pub(super) use report::WITHOUT_LOG;
use sink::Sink;
use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    pin::pin,
    process::ExitCode,
    time::Duration,
};
use tokio::sync::oneshot;

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
            "it must be 1 to {MAX_PRODUCER_ID_BYTES} printable characters of ASCII, with no space at either end"
        )
    };
    is_producer_id(text).then(|| text.to_owned()).ok_or_else(expected)
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
