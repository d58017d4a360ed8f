//! Which connection is closed to make room for another, and which answers are ended to make room for others.
//!
//! When the limit of connections is reached, one is closed for each new one: among those of the lowest rank that
//! occurs, the one without progress for longest. A body that arrives at less than 1 KiB per second does not count as
//! progress.
//!
//! | rank | connections |
//! | --- | --- |
//! | 1 | no request for 1 s since it was accepted; a body without progress for 5 s |
//! | 2 | between two requests for 5 s |
//! | 3 | a body without progress for 1 s; an answer that the client has not read for 5 s |
//! | 4 | between two requests for 1 s |
//! | 5 | waiting for the server, or for news (a long poll, a live tail), for 5 s |
//! | 6 | waiting for news: it costs little to ask again |
//! | 7 | just accepted: clients that are about to send a request |
//! | 8 | between two requests: the same, and they have been served |

use super::{Connection, Connections, stream::Stream};
use std::{cmp::Reverse, sync::Arc};

/// The bytes per second that a client must take or send to count as slow rather than stuck.
pub(super) const MIN_BYTES_PER_SECOND: u64 = 1 << 10;
/// How long, in milliseconds, a connection must have made no progress to count as still.
const STILL_MILLIS: u64 = 5_000;
/// A connection that was accepted, or answered, less than this many milliseconds ago may be about to send a request; a
/// body that has been arriving for less is not known to be slow.
const JUST_COME_MILLIS: u64 = 1_000;

/// What the client of a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// It has not sent a request yet.
    Nothing,
    /// The server waits for it to send a body.
    Sends,
    /// The server waits for it to take an answer.
    Takes,
    /// It waits for the server.
    Waits,
    /// It waits for news only: long polls, live tails.
    Listens,
    /// It is between two requests.
    Idles,
}

/// In which order connections are closed to make room, see the module's documentation; `None` if it must not be closed.
pub(super) fn eviction_rank(doing: Doing, still: u64) -> Option<u8> {
    match doing {
        Doing::Nothing if still >= JUST_COME_MILLIS => Some(1),
        Doing::Sends if still >= STILL_MILLIS => Some(1),
        Doing::Idles if still >= STILL_MILLIS => Some(2),
        Doing::Sends if still >= JUST_COME_MILLIS => Some(3),
        Doing::Takes if still >= STILL_MILLIS => Some(3),
        Doing::Idles if still >= JUST_COME_MILLIS => Some(4),
        Doing::Waits | Doing::Listens if still >= STILL_MILLIS => Some(5),
        Doing::Listens => Some(6),
        Doing::Nothing => Some(7),
        Doing::Idles => Some(8),
        Doing::Sends | Doing::Takes | Doing::Waits => None,
    }
}

/// Whether `bytes` in `time` milliseconds are progress of a body. Bytes that arrive within one tick of the coarse clock
/// are added up.
pub(super) fn is_progress(bytes: u64, time: u64) -> bool {
    time > 0 && bytes >= MIN_BYTES_PER_SECOND * time / 1000
}

/// Something that holds an answer.
enum Holder {
    Connection(Arc<Connection>),
    Stream(Arc<Stream>),
}

impl Connections {
    /// While other answers are refused for lack of memory, ends those that would hold theirs for longer than a client may
    /// take for a body, `max` milliseconds: largest first, until `enough` bytes are free again. Without that, eight
    /// clients that take a large record at 1 KiB per second keep everybody else from reading any, for hours.
    pub(super) fn end_slow(mine: &[Arc<Connection>], now: u64, max: u64, enough: u64) {
        let mut slow = Vec::new();
        for connection in mine {
            if let Some(held) = connection.sending.pace.held_slowly(now, max) {
                slow.push((held, Holder::Connection(Arc::clone(connection))));
            }
            for stream in connection.streams() {
                if let Some(held) = stream.pace.held_slowly(now, max) {
                    slow.push((held, Holder::Stream(stream)));
                }
            }
        }
        slow.sort_by_key(|(held, _)| Reverse(*held));
        let mut freed = 0;
        for (held, holder) in slow {
            if freed >= enough {
                break;
            }
            freed += held;
            match holder {
                Holder::Connection(connection) => {
                    connection.abort("it takes an answer slowly, and others are refused");
                }
                Holder::Stream(stream) => stream.end_slow(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte every 3 s counted as progress of a body, and its sender was closed after all clients that were between
    /// two requests.
    #[test]
    fn a_body_moves_from_a_floor_on_and_the_slow_go_before_those_that_were_served() {
        assert!(
            !is_progress(1, 3_000)
                && !is_progress(1_000, 1_000)
                && is_progress(1_024, 1_000)
                && is_progress(3, 2)
        );
        assert!(!is_progress(1 << 20, 0), "what arrives in one moment is added up");
        // In order, connections that may be the first to be closed at each of two times.
        let order = [
            (Doing::Sends, STILL_MILLIS),
            (Doing::Idles, STILL_MILLIS),
            (Doing::Sends, JUST_COME_MILLIS),
            (Doing::Idles, STILL_MILLIS - 1),
            (Doing::Waits, STILL_MILLIS),
            (Doing::Listens, STILL_MILLIS),
            (Doing::Listens, STILL_MILLIS - 1),
            (Doing::Nothing, JUST_COME_MILLIS - 1),
            (Doing::Idles, JUST_COME_MILLIS - 1),
        ];
        assert!(order.is_sorted_by_key(|&(doing, still)| eviction_rank(doing, still)));
        assert_eq!(
            eviction_rank(Doing::Nothing, JUST_COME_MILLIS),
            eviction_rank(Doing::Sends, STILL_MILLIS)
        );
        assert!(eviction_rank(Doing::Takes, STILL_MILLIS) < eviction_rank(Doing::Idles, STILL_MILLIS - 1));
        for (doing, still) in [
            (Doing::Sends, JUST_COME_MILLIS - 1),
            (Doing::Takes, STILL_MILLIS - 1),
            (Doing::Waits, STILL_MILLIS - 1),
        ] {
            assert_eq!(eviction_rank(doing, still), None, "{doing:?}");
        }
    }
}
