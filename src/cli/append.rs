//! `millstream append`.

use super::{
    Outcome, progress,
    target::{At, Failure, Target, block_on},
};
use clap::ValueEnum;
use indicatif::ProgressBar;
use millstream::client::{Format, Producer};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

/// Append lines, JSON lines, or a whole file to a log
///
/// If the server cannot be reached, batches are sent again, and each is stored only once. With --producer, an import
/// that was interrupted can be started again with the same file: what is stored already is skipped.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream append events app.log\n  \
    tail -f app.log | millstream append events -\n  \
    millstream append events dump.ndjson --format ndjson --producer import-2026-01")]
pub(super) struct Append {
    /// The log
    log: String,
    /// The file; - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// What each record is
    #[arg(long, value_enum, default_value_t = Records::Lines)]
    format: Records,
    /// Bytes per batch
    #[arg(long, default_value_t = 1 << 20)]
    batch_bytes: usize,
    /// A name for this import, to be given again when it is started again after an interruption
    #[arg(long)]
    producer: Option<String>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
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
}

impl Append {
    pub(super) fn run(&self) -> Outcome {
        let source: Box<dyn Read> =
            if self.file.as_os_str() == "-" { Box::new(io::stdin()) } else { Box::new(self.open()?) };
        let length = std::fs::metadata(&self.file).map_or(0, |metadata| metadata.len());
        let bar = if length > 0 { progress::bytes(length) } else { ProgressBar::hidden() };
        let source = BufReader::with_capacity(1 << 20, bar.wrap_read(source));
        let count = match self.at.open()? {
            Target::Server(client) => {
                let id = self.producer.clone().unwrap_or_else(unnamed);
                let format = match self.format {
                    Records::Lines => Format::Lines,
                    Records::Ndjson => Format::Ndjson,
                    Records::Whole => Format::Whole,
                };
                // A named import is split into the same batches each time; records from a pipe should not wait for
                // long.
                let linger = if self.producer.is_some() { Duration::MAX } else { Duration::from_millis(100) };
                let producer = client.producer(&self.log, &id, format).batching(self.batch_bytes, linger);
                block_on(self.send(source, producer))?
            }
            Target::Directory(store) => {
                let log = store.get(&self.log)?;
                let mut last = None;
                let count = self.each(source, |record| {
                    let payload =
                        [millstream::Payload { bytes: record, json: self.format == Records::Ndjson }];
                    if self.format == Records::Ndjson {
                        serde_json::from_slice::<serde::de::IgnoredAny>(record)?;
                    }
                    loop {
                        match log.try_append_payloads(&payload, None) {
                            Err(millstream::Error::WouldBlock) => log.flush()?,
                            done => {
                                last = Some(done?);
                                return Ok(());
                            }
                        }
                    }
                })?;
                last.map(|last| log.wait_durable(last)).transpose()?;
                count
            }
        };
        bar.finish_and_clear();
        if self.json {
            println!("{}", serde_json::json!({ "log": self.log, "records": count }));
        } else {
            println!("{count} records appended to {}", self.log);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn open(&self) -> Result<File, Failure> {
        let path = self.file.display();
        Ok(File::open(&self.file).map_err(|error| format!("cannot open {path}: {error}"))?)
    }

    async fn send(&self, source: impl BufRead, mut producer: Producer) -> Result<u64, Failure> {
        let mut source = source;
        let mut record = Vec::new();
        while self.next(&mut source, &mut record)? {
            producer.push(&record).await?;
        }
        producer.flush().await?;
        Ok(producer.stored())
    }

    fn each(
        &self,
        mut source: impl BufRead,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let (mut count, mut record) = (0, Vec::new());
        while self.next(&mut source, &mut record)? {
            take(&record)?;
            count += 1;
        }
        Ok(count)
    }

    /// Reads the next record; returns `false` at the end.
    fn next(&self, source: &mut impl BufRead, record: &mut Vec<u8>) -> io::Result<bool> {
        record.clear();
        if self.format == Records::Whole {
            return Ok(source.read_to_end(record)? > 0);
        }
        loop {
            record.clear();
            if source.read_until(b'\n', record)? == 0 {
                return Ok(false);
            }
            if record.last() == Some(&b'\n') {
                record.pop();
                if record.last() == Some(&b'\r') {
                    record.pop();
                }
            }
            if self.format == Records::Lines || !record.iter().all(u8::is_ascii_whitespace) {
                return Ok(true);
            }
        }
    }
}

/// A name that nothing else uses.
fn unnamed() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("cli-{}-{}", std::process::id(), now.as_nanos())
}
