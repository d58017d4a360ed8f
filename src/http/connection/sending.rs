//! Whether the client of a connection takes what it is sent, as far as the system says.

use super::{eviction::MIN_BYTES_PER_SECOND, pace::Pace, since::Since};
use crate::{
    http::unsent::{SocketAddresses, Unsent},
    sync::lock,
};
use std::{io, sync::Mutex};

/// A client that takes nothing for this many milliseconds is slow.
const SLOW_MILLIS: u64 = 1_000;

/// What is known of the data to be sent on a connection.
#[derive(Default)]
pub(super) struct Sending {
    /// Since when the system has taken nothing of what is to be sent; none while it takes data.
    stuck: Since,
    /// What was last observed about that.
    sample: Mutex<UnsentSample>,
    /// The addresses by which the system is asked about it.
    addresses: Option<SocketAddresses>,
    /// How fast the client takes an answer with HTTP/1. With HTTP/2, each stream has a pace of its own.
    pub(super) pace: Pace,
}

/// How many bytes were unsent at the time `at`, and since when the connection had been stuck by then.
#[derive(Debug, Clone, Copy, Default)]
struct UnsentSample {
    stuck: Option<u64>,
    at: u64,
    unsent: u64,
}

impl Sending {
    pub(super) fn new(addresses: Option<SocketAddresses>) -> Self {
        Self { addresses, ..Self::default() }
    }

    /// Whether the system takes nothing.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.is_set()
    }

    /// Records how much the system has taken of what it was given; `None` if it takes nothing.
    pub(super) fn taken(&self, bytes: Option<u64>, now: u64) {
        if let Some(bytes) = bytes {
            self.stuck.clear();
            self.pace.took(bytes);
        } else {
            self.stuck.set_first(now);
        }
    }

    /// Whether a client to which sending failed counts as given up: the system gave it up, or it disappeared after it had
    /// taken nothing for a while. Otherwise it has left of its own accord.
    pub(super) fn was_given_up(&self, error: &io::Error, now: u64) -> bool {
        let slow = self.stuck.get().is_some_and(|since| now >= since + SLOW_MILLIS);
        slow || error.kind() == io::ErrorKind::TimedOut
    }

    /// Whether the client has taken nothing, or almost nothing, for longer than it may. The system takes more from us
    /// only when it has delivered much of what it has: what a slow client takes in between shows in how much is left.
    pub(super) fn takes_nothing(&self, now: u64, body_time: u64, system: &Unsent) -> bool {
        let stuck = self.stuck.get();
        let time = stuck.map_or(0, |since| now.saturating_sub(since));
        if stuck.is_none() || time < SLOW_MILLIS.min(body_time / 4) {
            return false;
        }
        let mut sample = lock(&self.sample);
        let fresh = sample.stuck != stuck;
        let over = now - sample.at.min(now) > body_time;
        if !fresh && !over {
            return false;
        }
        let Some(unsent) = self.addresses.as_ref().and_then(|addresses| system.of(now, addresses)) else {
            return time > body_time; // all that is known is that it has no room
        };
        let least = MIN_BYTES_PER_SECOND * (now - sample.at.min(now)) / 1000;
        let steady = fresh || unsent + least <= sample.unsent;
        *sample = UnsentSample { stuck, at: now, unsent };
        !steady
    }
}
