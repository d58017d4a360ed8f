//! Where a command begins to read.

use super::{failure::Failure, target::Target};
use millstream::{
    client::{LogInfo, StartAt},
    http::{TIMES, parse_time},
};

/// The flags that say where to begin.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct StartFlags {
    /// Where to begin: an offset, -K for the last K records, earliest, or latest, which is after the last record
    #[arg(long, allow_hyphen_values = true, conflicts_with_all = ["since", "cursor"])]
    offset: Option<StartAt>,
    /// Begin with the first record that was appended at this time or later: 2026-01-02T03:04:05Z, a date, how long ago,
    /// such as 15m, or milliseconds since 1970, of 12 digits or more
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "cursor")]
    since: Option<String>,
    /// Begin where this cursor of the log is. Reading does not move it; `cursors set` does
    #[arg(long, value_name = "NAME")]
    cursor: Option<String>,
}

/// The first number that is taken for a time in milliseconds, in March 1973: what is less was meant in seconds, and would
/// be in 1970. Stricter than the server, which takes 0 and other numbers of few digits: programs ask it from the beginning.
const MIN_MILLIS: u64 = 100_000_000_000;

/// A time, as it was given: how long ago it is counts from when it is used, by the clock of the log.
fn time(text: &str) -> Result<String, String> {
    let millis = parse_time(text).ok_or_else(|| format!("it must be {TIMES}"))?;
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && millis < MIN_MILLIS {
        return Err(format!(
            "a number is in milliseconds since 1970, and has 12 digits or more: {text} s are {text}000"
        ));
    }
    Ok(text.to_owned())
}

impl StartFlags {
    /// Where that is; `otherwise` if no flag says it.
    pub(super) async fn at(
        &self,
        otherwise: StartAt,
        target: &Target,
        log: &str,
        skip_damaged: bool,
    ) -> Result<StartAt, Failure> {
        Ok(match (&self.since, &self.cursor) {
            (Some(time), _) => StartAt::Offset(target.since(log, time, skip_damaged).await?),
            (None, Some(cursor)) => StartAt::Offset(target.cursor(log, cursor).await?.offset),
            (None, None) => self.offset.unwrap_or(otherwise),
        })
    }
}

/// The offset that this is.
pub(super) async fn resolve(start: StartAt, target: &Target, log: &str) -> Result<u64, Failure> {
    if let StartAt::Offset(offset) = start {
        return Ok(offset);
    }
    let LogInfo { first_offset: first, next_offset: next, .. } = target.describe(log).await?;
    Ok(match start {
        StartAt::Earliest => first,
        StartAt::Latest => next,
        StartAt::Last(records) => next.saturating_sub(records).max(first),
        other => return Err(format!("--offset cannot be {other:?}").into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_may_be_one_of_seconds_is_no_time() {
        for text in ["0", "1767323045", "99999999999"] {
            assert!(time(text).unwrap_err().contains("milliseconds"), "{text}");
        }
        for text in ["100000000000", "1767323045000", "1970-01-02", "1970-01-01T00:00:00Z", "10m", "0s"] {
            assert_eq!(time(text), Ok(text.to_owned()));
        }
        assert!(time("yesterday").unwrap_err().contains("15m"));
    }
}
