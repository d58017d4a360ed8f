//! Where a command begins to read.

use super::target::{Failure, Target};
use millstream::client::{LogInfo, StartAt};

/// The offset that `--offset` means.
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
