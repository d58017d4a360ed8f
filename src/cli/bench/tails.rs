//! Readers that follow the logs while they grow, until they have all that was stored.

use super::{log_name, run::Run};
use millstream::{
    Log,
    client::{Client, StartAt},
};
use std::{iter, time::Duration};

/// How often a tail that has read everything looks whether the run is over.
const CHECK_PAUSE: Duration = Duration::from_millis(20);

/// Follows a log of a server.
pub(super) async fn of_server(
    run: &Run,
    log: usize,
    client: &Client,
) -> Result<(), millstream::client::Error> {
    let mut tail = client.tail(&log_name(log as u32), StartAt::Earliest)?;
    let mut got = 0;
    while !is_over(run, log, got) {
        let Ok(record) = tokio::time::timeout(CHECK_PAUSE, tail.next()).await else { continue };
        for record in iter::once(record?).chain(tail.take_ready()) {
            got = record.offset + 1;
            run.tailed(&record.value);
        }
    }
    Ok(())
}

/// Follows a log of this process.
pub(super) async fn embedded(run: &Run, log: usize, open: &Log) -> Result<(), millstream::Error> {
    let mut reader = open.reader(0);
    while !is_over(run, log, reader.offset()) {
        let Ok(visible) = tokio::time::timeout(CHECK_PAUSE, reader.visible()).await else { continue };
        visible?;
        while let Some(record) = reader.read_next()? {
            run.tailed(record.value);
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Whether nothing more comes.
fn is_over(run: &Run, log: usize, got: u64) -> bool {
    run.over.get() && got >= run.stored(log)
}
