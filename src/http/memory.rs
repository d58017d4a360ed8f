//! One budget of memory for everything that clients make the server hold: bodies being received, bodies being parsed,
//! and answers being sent. Anything that would exceed it is refused before it is read or rendered. The exception is an
//! answer that is the only one: it gets its memory even beyond the budget, so that a record that is larger than the
//! part for answers can be read.
//!
//! A [`Grant`] is a part of the budget, returned when it is dropped. A [`Buffer`] is bytes that hold their grant: small
//! ones are on the heap; large ones are mappings of their own, which return to the system as soon as they are dropped,
//! whatever else was allocated meanwhile (the C library's heap keeps everything below memory that is still in use).
//!
//! The budget does not include what each connection needs in any case, which is bounded by the limit of connections:
//! see `connection`.

mod buffer;

pub(super) use buffer::Buffer;

use super::problem::Problem;
use crate::{pauses::Pauses, reports::Rarely, sync::lock};
use bytes::Bytes;
use memmap2::{MmapMut, MmapOptions};
use std::{
    cell::Cell,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Grants grow by this many bytes, so that a body costs one atomic operation per step and not one per read.
const STEP_BYTES: usize = 16 << 10;
/// A grant up to this size may use the part of the budget that larger ones have to leave free.
const SMALL_BYTES: usize = 64 << 10;
/// An answer up to this size gets its memory without a queue (see `fetch`), and may use the part that larger ones have to
/// leave free.
pub(super) const UNQUEUED_BYTES: usize = 1 << 20;
/// Up to this many bytes are considered part of what a request takes anyway, and are not counted.
pub(super) const UNCOUNTED_BYTES: usize = 4 << 10;
/// The size of a mapping for a piece of an answer, which is that of most pieces and a little more.
const MAPPED_BYTES: usize = 68 << 10;
/// The most mappings that are kept for later pieces.
const MAX_SPARE: usize = 32;
/// The most bytes of scratch memory that a thread keeps.
const MAX_SCRATCH_BYTES: usize = 128 << 10;

/// What memory is used for. Each purpose has a cap below the whole budget, so that neither keeps out the other. Within it,
/// larger grants have lower caps, so that small ones always find room. In sixteenths of the budget:
///
/// | [`Size`] of the grant | requests | answers |
/// | --- | --- | --- |
/// | small | 14 | 12 |
/// | medium | 13 | 10 |
/// | large | 12 | 8 |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Bodies being received, or parsed.
    Request,
    /// Answers being sent.
    Answer,
}

/// How large a grant is: larger ones leave room for smaller ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Medium,
    Large,
}

impl Size {
    pub(super) fn of(bytes: usize) -> Self {
        if bytes <= SMALL_BYTES {
            Self::Small
        } else if bytes <= UNQUEUED_BYTES {
            Self::Medium
        } else {
            Self::Large
        }
    }
}

/// The budget. The counters protect no other memory: Relaxed throughout.
#[derive(Debug)]
pub(super) struct Memory {
    limit: usize,
    used: AtomicUsize,
    requests: AtomicUsize,
    answers: AtomicUsize,
    /// Bodies that wait for memory, by [`Size`].
    waiting: [AtomicUsize; 3],
    refused: AtomicU64,
    /// Mappings for reuse, each of at least [`MAPPED_BYTES`] bytes.
    spare: Mutex<Vec<MmapMut>>,
    refusals: Rarely,
}

/// The budget is used up for now.
#[derive(Debug)]
pub(super) struct UsedUp;

impl From<UsedUp> for Problem {
    fn from(UsedUp: UsedUp) -> Self {
        Self::overloaded()
    }
}

impl Memory {
    /// Creates a budget of `limit` bytes.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let zero = || AtomicUsize::new(0);
        Arc::new(Self {
            limit,
            used: zero(),
            requests: zero(),
            answers: zero(),
            waiting: [zero(), zero(), zero()],
            refused: AtomicU64::new(0),
            spare: Mutex::default(),
            refusals: Rarely::default(),
        })
    }

    /// The smallest possible budget for bodies of this size: the largest one has to fit, together with what is made
    /// from it.
    pub(super) fn least(body_bytes: usize, decoded_bytes: usize) -> usize {
        let largest = body_bytes.max(decoded_bytes).saturating_mul(2).saturating_add(1 << 20);
        largest.saturating_add(largest / 3)
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn part(&self, purpose: Purpose) -> &AtomicUsize {
        match purpose {
            Purpose::Request => &self.requests,
            Purpose::Answer => &self.answers,
        }
    }

    /// How much may be used for a purpose when a grant grows to `bytes`.
    fn max(&self, purpose: Purpose, bytes: usize) -> usize {
        let sixteenths = match (purpose, Size::of(bytes)) {
            (Purpose::Request, Size::Small) => 14,
            (Purpose::Request, Size::Medium) => 13,
            (Purpose::Request, Size::Large) | (Purpose::Answer, Size::Small) => 12,
            (Purpose::Answer, Size::Medium) => 10,
            (Purpose::Answer, Size::Large) => 8,
        };
        self.limit / 16 * sixteenths
    }

    /// Whether `bytes` could be granted at this moment.
    pub(super) fn has_room(&self, purpose: Purpose, bytes: usize) -> bool {
        let fits = |used: &AtomicUsize, max| used.load(Ordering::Relaxed).saturating_add(bytes) <= max;
        fits(&self.used, self.limit) && fits(self.part(purpose), self.max(purpose, bytes))
    }

    /// Whether more than half of what grants that are not small may use for a purpose is in use: a reason to use less.
    pub(super) fn is_tight(&self, purpose: Purpose) -> bool {
        self.part(purpose).load(Ordering::Relaxed) > self.max(purpose, usize::MAX) / 2
    }

    /// Takes `bytes` more for a grant that has `granted` already.
    fn take(&self, purpose: Purpose, bytes: usize, granted: usize) -> Result<(), UsedUp> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let of_part = self.part(purpose).fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used <= self.limit && of_part <= self.max(purpose, granted + bytes) {
            return Ok(());
        }
        // A record may be larger than the part for answers: one at a time can be read nevertheless.
        if purpose == Purpose::Answer && of_part == granted + bytes {
            return Ok(());
        }
        self.give_back(purpose, bytes);
        if purpose == Purpose::Answer {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        Err(UsedUp)
    }

    /// Notes that a body of this many bytes waits for memory, until this is dropped. `own` counts those of its connection.
    pub(super) fn body_waits<'a>(&'a self, bytes: usize, own: &'a AtomicUsize) -> WaitingBody<'a> {
        let size = Size::of(bytes);
        let counts = [&self.waiting[size as usize], own];
        for count in counts {
            count.fetch_add(1, Ordering::Relaxed);
        }
        WaitingBody(counts)
    }

    /// Whether bodies of such a size wait for memory.
    pub(super) fn has_waiting_of(&self, size: Size) -> bool {
        self.waiting[size as usize].load(Ordering::Relaxed) > 0
    }

    /// Whether more bodies wait for memory than `own`, those of one connection.
    pub(super) fn has_waiting_beside(&self, own: &AtomicUsize) -> bool {
        let all: usize = self.waiting.iter().map(|waiting| waiting.load(Ordering::Relaxed)).sum();
        all > own.load(Ordering::Relaxed)
    }

    /// How many answers have been refused their memory so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// How much should be freed if answers are refused: enough for the next ones, and not all at once.
    pub(super) fn short(&self) -> u64 {
        self.limit as u64 / 16
    }

    fn give_back(&self, purpose: Purpose, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.part(purpose).fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns an empty grant, to be grown.
    pub(super) fn grant(self: &Arc<Self>, purpose: Purpose) -> Grant {
        Grant { memory: Arc::clone(self), purpose, bytes: 0 }
    }

    /// Holds an answer that exists already within the memory for answers: anything much larger than a few KiB must be
    /// granted its memory before it is made.
    pub(super) fn hold_answer(self: &Arc<Self>, bytes: Vec<u8>) -> Result<Bytes, UsedUp> {
        let mut grant = self.grant(Purpose::Answer);
        if bytes.len() > UNCOUNTED_BYTES {
            grant.cover(bytes.len())?;
        }
        Ok(grant.hold(bytes))
    }

    /// Warns that requests are refused: only now and then, however many there are.
    pub(super) fn warn(&self, problem: &Problem) {
        if self.refusals.claim() {
            let (used, limit) = (self.used(), self.limit);
            tracing::warn!(used, limit, %problem, "requests are refused");
        }
    }
}

/// A body that waits for memory.
#[derive(Debug)]
pub(super) struct WaitingBody<'a>([&'a AtomicUsize; 2]);

impl Drop for WaitingBody<'_> {
    fn drop(&mut self) {
        for count in self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A part of the budget.
#[derive(Debug)]
pub(super) struct Grant {
    memory: Arc<Memory>,
    purpose: Purpose,
    bytes: usize,
}

impl Grant {
    /// How many bytes it is for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Grows the grant to cover `bytes`.
    pub(super) fn cover(&mut self, bytes: usize) -> Result<(), UsedUp> {
        if bytes > self.bytes {
            // The first step is small, as most bodies are.
            let step = if bytes <= UNCOUNTED_BYTES { UNCOUNTED_BYTES } else { STEP_BYTES };
            let more = (bytes - self.bytes).next_multiple_of(step);
            self.memory.take(self.purpose, more, self.bytes)?;
            self.bytes += more;
        }
        Ok(())
    }

    /// Grows the grant to cover `bytes`: asks for them until there is room, or patience ends, with a pause after each
    /// attempt. There is no queue: a request takes what it needs as soon as that is free, so that one that needs much
    /// does not delay those that need little.
    pub(super) async fn cover_within(
        &mut self,
        bytes: usize,
        patience: Duration,
        pauses: &RangeInclusive<Duration>,
    ) -> Result<(), UsedUp> {
        let begun = Instant::now();
        let pauses = Pauses::new(pauses.clone());
        while let Err(used_up) = self.cover(bytes) {
            if begun.elapsed() >= patience {
                return Err(used_up);
            }
            tokio::time::sleep(pauses.next()).await;
        }
        Ok(())
    }

    /// Gives back what exceeds `bytes`.
    fn shrink(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.memory.give_back(self.purpose, self.bytes - bytes);
            self.bytes = bytes;
        }
    }

    /// Returns a copy of the bytes that holds its part of the budget, whoever has it. Unless it is small, it is in a
    /// mapping: a client may keep it for long, among allocations of others.
    pub(super) fn hold_copy(mut self, bytes: &[u8]) -> Bytes {
        if bytes.len() <= buffer::MAX_HEAP_BYTES / 8 {
            return self.hold(Bytes::copy_from_slice(bytes));
        }
        self.shrink(bytes.len());
        let spare = if bytes.len() <= MAPPED_BYTES { lock(&self.memory.spare).pop() } else { None };
        let fresh =
            || MmapOptions::new().len(bytes.len().max(MAPPED_BYTES)).no_reserve_swap().map_anon().ok();
        match spare.or_else(fresh) {
            Some(mut mapped) => {
                mapped[..bytes.len()].copy_from_slice(bytes);
                Bytes::from_owner(Piece { mapped: Some(mapped), length: bytes.len(), grant: self })
            }
            None => self.hold(Bytes::copy_from_slice(bytes)),
        }
    }

    /// Returns bytes that hold their part of the budget, whoever has them.
    pub(super) fn hold(mut self, bytes: impl Into<Bytes>) -> Bytes {
        let bytes = bytes.into();
        if bytes.len() <= UNCOUNTED_BYTES {
            return bytes;
        }
        self.shrink(bytes.len());
        Bytes::from_owner(Granted(bytes, self))
    }
}

/// A piece of an answer, in a mapping that is reused.
struct Piece {
    /// `None` only while being dropped.
    mapped: Option<MmapMut>,
    length: usize,
    grant: Grant,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.mapped.as_ref().map_or(&[], |mapped| &mapped[..self.length])
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let Some(mapped) = self.mapped.take().filter(|mapped| mapped.len() == MAPPED_BYTES) else { return };
        let mut spare = lock(&self.grant.memory.spare);
        if spare.len() < MAX_SPARE {
            spare.push(mapped);
        }
    }
}

/// Lends the thread's scratch memory, empty, to make something that is then copied to its final place.
pub(super) fn with_scratch<T>(run: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    thread_local!(static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) });
    let mut scratch = KEPT.take();
    scratch.clear();
    let made = run(&mut scratch);
    if scratch.capacity() <= MAX_SCRATCH_BYTES {
        KEPT.set(scratch);
    }
    made
}

/// Bytes, with their grant.
struct Granted(Bytes, #[allow(dead_code, reason = "given back when dropped")] Grant);

impl AsRef<[u8]> for Granted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.memory.give_back(self.purpose, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_requests_leave_room_for_answers_and_for_small_ones_and_all_is_given_back() {
        let memory = Memory::new(16 << 20);
        let mut large = memory.grant(Purpose::Request);
        large.cover(12 << 20).unwrap();
        assert!(large.cover((12 << 20) + 1).is_err(), "three quarters are what bodies may have");
        assert!(!memory.has_room(Purpose::Request, UNQUEUED_BYTES + 1));
        assert!(memory.has_room(Purpose::Request, UNQUEUED_BYTES));
        let mut small = memory.grant(Purpose::Request);
        small.cover(1000).unwrap();
        let mut answer = memory.grant(Purpose::Answer);
        answer.cover(3 << 20).unwrap();
        let mut other = memory.grant(Purpose::Answer);
        other.cover(1 << 10).unwrap();
        assert!(answer.cover(5 << 20).is_err());
        assert!(memory.used() <= 16 << 20 && memory.is_tight(Purpose::Request));
        drop((large, small, other));
        answer.cover(20 << 20).unwrap(); // one at a time, whatever its size
        drop(answer);
        assert_eq!(memory.used(), 0);
        assert!(!memory.is_tight(Purpose::Request));
    }

    /// Many small answers could use up all of the budget, and bodies were refused.
    #[test]
    fn small_grants_for_one_purpose_leave_room_for_the_other() {
        for (purpose, other, room) in
            [(Purpose::Answer, Purpose::Request, 4 << 20), (Purpose::Request, Purpose::Answer, 2 << 20)]
        {
            let memory = Memory::new(16 << 20);
            let grants = || std::iter::repeat_with(|| memory.grant(purpose)).take(1000);
            let small: Vec<_> =
                grants().map_while(|mut grant| grant.cover(SMALL_BYTES).is_ok().then_some(grant)).collect();
            let mut large = memory.grant(other);
            large.cover(room).unwrap();
            assert_eq!(memory.used(), 16 << 20, "{} small ones", small.len());
        }
    }
}
