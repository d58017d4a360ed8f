//! Where something is read, and with how much memory: the steps of [`fetch`](super::fetch). None of them blocks.

use super::{
    formats,
    memory::{Grant, UNCOUNTED_BYTES},
    permits::{Kind, OFFLOAD_BYTES},
};
use crate::{
    log::{Ahead, Error, Reader, RecordRef},
    store::OpenLog,
};

/// Records from this size on are very large: reading one takes many times what others take, in time and, for a moment,
/// in memory.
const EXCLUSIVE_READ_BYTES: usize = 1 << 20;

/// Where something is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// On the runtime's thread.
    Here,
    /// Off the runtime's thread, with a permit.
    Permit,
    /// Off the runtime's thread, in one of the few permits for very large records.
    LargePermit,
}

impl Place {
    /// The place to try first.
    pub(super) fn first(log: &OpenLog, offset: u64) -> Self {
        if log.reads_without_disk(offset) { Self::Here } else { Self::Permit }
    }

    /// The place where a record must be read.
    fn of(ahead: &Ahead) -> Self {
        match ahead.length().max(ahead.cold_bytes) {
            EXCLUSIVE_READ_BYTES.. => Self::LargePermit,
            OFFLOAD_BYTES.. => Self::Permit,
            _ if ahead.hot => Self::Here,
            _ => Self::Permit,
        }
    }

    pub(super) fn kind(self) -> Option<Kind> {
        match self {
            Self::Here => None,
            Self::Permit => Some(Kind::Read),
            Self::LargePermit => Some(Kind::ReadLarge),
        }
    }
}

/// The result of an attempt to make something.
pub(super) enum Made<T> {
    Done(T),
    /// Nothing yet, and nothing was read.
    Wants(Wants),
}

/// What the next attempt needs.
pub(super) struct Wants {
    pub(super) grant: Grant,
    pub(super) place: Place,
    /// The bytes of memory that it needs.
    pub(super) bytes: usize,
}

/// Where a record must be read next time, unless it may be read in `place` and there is memory for `bytes` of it.
pub(super) fn elsewhere(place: Place, ahead: &Ahead, bytes: usize, grant: &mut Grant) -> Option<Place> {
    let needs = Place::of(ahead);
    let is_fine = needs <= place && (bytes <= UNCOUNTED_BYTES || grant.cover(bytes).is_ok());
    (!is_fine).then(|| place.max(needs))
}

/// What a reader has next.
pub(super) enum Next<'a> {
    Record(RecordRef<'a>),
    /// Nothing, or a record of more bytes than were asked for.
    End,
    /// A record that was not read: it must be read in this place, with this many bytes of memory.
    Wants(Place, usize),
}

/// Reads the next record if its value has at most `max` bytes, it may be read in `place`, and there is memory for what
/// is rendered from it after `so_far` bytes.
pub(super) fn next<'a>(
    reader: &'a mut Reader,
    place: Place,
    grant: &mut Grant,
    so_far: usize,
    max: u64,
) -> Result<Next<'a>, Error> {
    if place == Place::Here && !reader.next_without_disk() {
        return Ok(Next::Wants(Place::Permit, so_far));
    }
    let Some(ahead) = reader.peek()?.filter(|ahead| ahead.length() as u64 <= max) else {
        return Ok(Next::End);
    };
    let json = ahead.head.is_some_and(|head| head.json);
    let bytes = so_far + formats::rendered_bytes(ahead.length(), json);
    if let Some(place) = elsewhere(place, &ahead, bytes, grant) {
        return Ok(Next::Wants(place, bytes));
    }
    Ok(reader.read_next()?.map_or(Next::End, Next::Record))
}
