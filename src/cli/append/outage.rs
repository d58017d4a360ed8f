//! A server that is away for a while.

use super::super::{
    failure::{CodedFailure, Failure},
    stderr,
};
use millstream::client::{self, Patience};
use std::{pin::pin, time::Duration};
use tokio::sync::watch;

/// Whether the same may succeed a little later.
pub(super) fn is_temporary(failure: &Failure) -> bool {
    failure.downcast_ref::<client::Error>().is_some_and(client::Error::is_temporary)
}

/// Tries until it succeeds, or `patience` is over.
pub(super) async fn patiently<T>(
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
pub(super) async fn until_given_up(
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
