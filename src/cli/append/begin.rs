//! How `millstream append` begins: what is known of the log, and of an import that is run again.

use super::{
    super::{failure::Failure, target::Target},
    Append,
    input::{Input, Records},
    outage::{is_temporary, patiently, until_given_up},
    sink::{Sink, Writer},
};
use millstream::{
    RECORD_EXTRA_BYTES,
    client::{self, Client, ProducerOptions},
    import::Progress,
    store::{LogSettings, OpenLog},
};
use std::{pin::Pin, sync::Arc, time::Duration};

/// A log that records can be appended to, and what is known of it.
pub(super) enum Destination<'a> {
    Server(&'a Client),
    /// With the bytes of its segments.
    Directory(Arc<OpenLog>, u64),
}

/// What an append begins with.
pub(super) struct Begun {
    pub(super) sink: Sink,
    pub(super) records: Records,
    pub(super) passed_over: u64,
    /// Completes when the server was away for too long, or has refused a batch for good.
    pub(super) until_given_up: Pin<Box<dyn Future<Output = client::Error>>>,
}

impl Append {
    /// Finds out what is known of the log and the import, and begins to read.
    pub(super) async fn begin(
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
                let id = self.import.clone().unwrap_or_else(unique_name);
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
        let record_bytes = settings.record_bytes.map_or(fits, |max| max.min(fits));
        let records = input.read(record_bytes, settings);
        Ok(Begun { sink, records, passed_over, until_given_up })
    }

    /// Creates the log, or compares the settings that are given with those that it has.
    pub(super) async fn create(&self, target: &Target) -> Result<(), Failure> {
        let settings = match target.describe(&self.log).await {
            Ok(_) if !self.settings.is_some() => return Ok(()),
            Ok(described) => described.settings,
            Err(error) if is_temporary(&error) => return Err(error),
            Err(_) => LogSettings::default(), // it does not exist, or this says what is wrong with it
        };
        target.create(&self.log, &self.settings.over(settings)).await.map(drop)
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
}

/// A name that nothing else uses.
fn unique_name() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("cli-{}-{}", std::process::id(), now.as_nanos())
}
