//! How long something is retried, and the pauses between the attempts.

use super::PAUSES;
use crate::pauses::Pauses;
use std::time::{Duration, Instant};

/// The least time that an attempt gets. An attempt that is broken off may have succeeded; only an answer shows that it
/// failed.
const MIN_ATTEMPT: Duration = Duration::from_millis(250);

/// How long something is retried. The time counts from the beginning of the first attempt that failed, and includes the
/// pauses between attempts, each of which is twice as long as the one before. If the first attempt alone took all of
/// the time, there is one more. No attempt begins in the last quarter of a second (or in the last quarter, if the time
/// is less than a second), so that there is time for an answer.
///
/// # Example
/// ```
/// # async fn run() -> Result<(), millstream::client::Error> {
/// use millstream::client::{Client, Patience};
/// use std::time::Duration;
/// let client = Client::new("http://127.0.0.1:4437")?.with_max_silence(Duration::from_secs(2));
/// let (mut patience, mut last) = (Patience::new(Duration::from_secs(10)), None);
/// let described = loop {
///     match patience.attempt(client.describe("clicks")).await {
///         Some(Err(error)) if error.is_temporary() => last = Some(error),
///         Some(done) => break done?,
///         None => {}
///     }
///     if !patience.pause().await {
///         return last.map_or(Ok(()), Err);
///     }
/// };
/// # Ok(())
/// # }
/// ```
pub struct Patience {
    max: Duration,
    pauses: Pauses,
    /// When the last attempt began.
    attempt: Instant,
    /// When the first attempt that failed began.
    begun: Option<Instant>,
    /// When the next attempt is to be broken off, if at all.
    until: Option<Instant>,
}

impl std::fmt::Debug for Patience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patience").field("max", &self.max).field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl Patience {
    /// Nothing has failed yet.
    pub fn new(max: Duration) -> Self {
        Self { max, pauses: Pauses::new(PAUSES), attempt: Instant::now(), begun: None, until: None }
    }

    /// Makes an attempt. `None` if it was broken off, because the time was over; that does not happen to the first one.
    pub async fn attempt<T>(&mut self, attempt: impl Future<Output = T>) -> Option<T> {
        self.attempt = Instant::now();
        match self.until {
            Some(until) => {
                let until = until.max(self.attempt + MIN_ATTEMPT);
                tokio::time::timeout_at(until.into(), attempt).await.ok()
            }
            None => Some(attempt.await),
        }
    }

    /// Pauses after an attempt that has failed, or was broken off; returns whether there is to be another one.
    pub async fn pause(&mut self) -> bool {
        let is_first = self.begun.is_none();
        let begun = *self.begun.get_or_insert(self.attempt);
        let left = self.max.saturating_sub(begun.elapsed()).saturating_sub(MIN_ATTEMPT.min(self.max / 4));
        let pause = self.pauses.next();
        if left.is_zero() {
            if is_first {
                tokio::time::sleep(pause).await;
            }
            return is_first;
        }
        self.until = begun.checked_add(self.max);
        tokio::time::sleep(pause.min(left)).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    /// Tries something that fails after a while each time: returns how often, and how long that has taken.
    async fn tried(max: u64, each: Option<u64>) -> (u32, u64) {
        let (mut patience, mut attempts, begun) =
            (Patience::new(Duration::from_millis(max)), 0, Instant::now());
        loop {
            attempts += 1;
            patience
                .attempt(async {
                    match each {
                        Some(each) => tokio::time::sleep(Duration::from_millis(each)).await,
                        None if attempts == 1 => {}
                        None => std::future::pending().await,
                    }
                })
                .await;
            if !patience.pause().await {
                return (attempts, begun.elapsed().as_millis() as u64);
            }
        }
    }

    /// It counted from the end of the first attempt, and a pause or an attempt that had begun went on beyond its end.
    #[test]
    fn attempts_and_pauses_end_with_the_patience() {
        run(async {
            for (max, each, attempts) in [(1500, Some(0), 6..30), (1000, Some(500), 2..4), (700, None, 2..3)]
            {
                let (tried, took) = tried(max, each).await;
                assert!(attempts.contains(&tried), "{max}, {each:?}: {tried} attempts");
                assert!((max - 251..max + 400).contains(&took), "{max}, {each:?}: {took} ms");
            }
        });
    }

    /// An attempt that begins when the time is almost over would be broken off before its answer.
    #[test]
    fn an_attempt_that_is_answered_soon_is_not_broken_off() {
        run(async {
            for max in [1, 20, 100, 300] {
                let mut patience = Patience::new(Duration::from_millis(max));
                loop {
                    let answer = tokio::time::sleep(Duration::from_millis(5));
                    assert!(patience.attempt(answer).await.is_some(), "{max} ms");
                    if !patience.pause().await {
                        break;
                    }
                }
            }
        });
    }

    #[test]
    fn a_first_attempt_that_lasts_longer_than_the_patience_is_followed_by_another_one() {
        run(async {
            let (tried, took) = tried(100, Some(300)).await;
            assert!(tried == 2 && (600..1200).contains(&took), "{tried} attempts in {took} ms");
        });
    }
}
