//! The memory budget of one log, or of all logs of a store: which sealed segments' chunks stay in memory for readers,
//! and which are evicted when room is needed: those that were sealed first, across all logs.

use crate::{
    chunk::{Chunk, ChunkMemory, Pool, PoolShare, backing_bytes},
    segment::Segment,
    sync::{Arc, Mutex, into_inner, lock},
};
use std::collections::VecDeque;

/// Which sealed segments' chunks are in memory, oldest seal first, and how many bytes they may take.
pub(crate) struct Budget {
    pool: Arc<Pool>,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// Sealed segments whose chunks are still in memory, and claimed; the one that was sealed first is at the front.
    segments: VecDeque<(Arc<PoolShare>, Arc<Segment>)>,
    bytes: u64,
}

impl Recent {
    /// Releases the claim of a segment that was taken off the list. With the lock of the list: see [`Budget::end`].
    fn release(&mut self, share: &PoolShare, segment: &Segment) {
        self.bytes -= footprint(segment);
        share.release(segment.header.capacity);
    }
}

/// Room for a chunk that is being created. Returned when this is dropped, unless the chunk has been created.
#[must_use]
pub(crate) struct Claim {
    share: Option<Arc<PoolShare>>,
    capacity: u64,
}

impl Claim {
    /// The size of the chunk.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Less is needed, for a smaller chunk.
    pub(super) fn reduce(&mut self, capacity: u64) {
        self.share.iter().for_each(|share| share.reduce(self.capacity, capacity));
        self.capacity = capacity;
    }

    /// Hands the claim over to the chunk, which has been created: releasing the chunk releases the claim.
    pub(super) fn hand_over(mut self) {
        self.share = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.share.iter().for_each(|share| share.release(self.capacity));
    }
}

fn footprint(segment: &Segment) -> u64 {
    ChunkMemory::footprint(segment.header.capacity)
}

/// Takes the chunk from a sealed segment; unless somebody still reads it, gives its memory back at once, and not to the
/// pool.
fn discard_chunk(segment: &Segment) {
    segment.chunk.take().and_then(into_inner).into_iter().for_each(Chunk::discard);
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { pool: Pool::new(limit), recent: Mutex::new(Recent::default()) })
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn claimed(&self) -> u64 {
        self.pool.claimed()
    }

    /// Creates a log's share of it; `is_backed`: its chunks should have backings.
    pub(super) fn share(&self, is_backed: bool) -> Arc<PoolShare> {
        PoolShare::new(&self.pool, is_backed)
    }

    /// Claims room for a chunk of `capacity`, if there is enough, including the room of chunks that could be evicted.
    pub(super) fn try_claim(&self, share: &Arc<PoolShare>, capacity: u64) -> Option<Claim> {
        let bytes = ChunkMemory::footprint(capacity);
        while !share.try_claim(capacity) {
            if self.pool.excess(bytes) > lock(&self.recent).bytes {
                return None; // evicting them would not help
            }
            self.make_room(bytes); // another log may claim it first
        }
        Some(Claim { share: Some(Arc::clone(share)), capacity })
    }

    /// Claims room for a chunk of the smallest size, which is granted even if the budget is exceeded.
    pub(super) fn claim_least(share: &Arc<PoolShare>, capacity: u64) -> Claim {
        share.claim(capacity);
        Claim { share: Some(Arc::clone(share)), capacity }
    }

    /// Whether more is claimed than the limit, even if all chunks that could be evicted were evicted.
    pub(super) fn is_over(&self) -> bool {
        let excess = self.pool.excess(0);
        excess > 0 && excess > lock(&self.recent).bytes
    }

    /// Whether at least half of the limit is left after one more chunk of `capacity`, not counting what is kept for
    /// readers.
    pub(super) fn has_half(&self, capacity: u64) -> bool {
        let kept = lock(&self.recent).bytes;
        self.pool.claimed().saturating_sub(kept) + ChunkMemory::footprint(capacity) <= self.pool.limit() / 2
    }

    /// If the budget is exceeded, frees pooled memory first, then evicts chunks of sealed segments, the first sealed
    /// first.
    pub(super) fn shrink(&self) {
        self.make_room(0);
        self.pool.shrink();
    }

    fn make_room(&self, bytes: u64) {
        loop {
            let oldest = {
                let mut recent = lock(&self.recent);
                if self.pool.excess(bytes) == 0 {
                    return;
                }
                recent.segments.pop_front().inspect(|(share, segment)| recent.release(share, segment))
            };
            let Some((_, segment)) = oldest else { return };
            segment.chunk.clear();
        }
    }

    /// Makes room in the memory file system for the backing of a chunk of `capacity`: everything in sealed segments is on
    /// the disk. Gives up pooled backings first, then those of sealed segments, first this log's, then the others', the
    /// first sealed first. If all of that would not be enough, does so only if `whatever_there_is`. Returns whether
    /// anything was given up.
    pub(super) fn give_up_backings(
        &self,
        share: &Arc<PoolShare>,
        capacity: u64,
        whatever_there_is: bool,
    ) -> bool {
        let needs = backing_bytes(capacity);
        let size = |segment: &Segment| {
            let chunk = segment.chunk.load_full().filter(|chunk| chunk.has_backing());
            chunk.map_or(0, |chunk| backing_bytes(chunk.capacity()))
        };
        let mut given = Vec::new();
        {
            let mut recent = lock(&self.recent);
            let mut sum = self.pool.backed();
            if !whatever_there_is && sum + recent.segments.iter().map(|(_, of)| size(of)).sum::<u64>() < needs
            {
                return false;
            }
            for is_own in [true, false] {
                recent.segments.retain(|(of, segment)| {
                    let bytes =
                        if Arc::ptr_eq(of, share) == is_own && sum < needs { size(segment) } else { 0 };
                    sum += bytes;
                    if bytes > 0 {
                        given.push((Arc::clone(of), Arc::clone(segment)));
                    }
                    bytes == 0
                });
            }
            for (of, segment) in &given {
                recent.release(of, segment);
            }
        }
        let pooled = self.pool.give_up_backings(needs);
        for (_, segment) in &given {
            discard_chunk(segment); // what a reader still holds goes to the pool later, and is given up by the next call
        }
        pooled > 0 || !given.is_empty()
    }

    /// Keeps the chunk of a sealed segment, with its claim, as long as there is room.
    pub(super) fn keep(&self, share: &Arc<PoolShare>, segment: &Arc<Segment>) {
        {
            let mut recent = lock(&self.recent);
            recent.bytes += footprint(segment);
            recent.segments.push_back((Arc::clone(share), Arc::clone(segment)));
        }
        self.make_room(0);
    }

    /// Gives back the chunks of a log that has ended, and releases all of its claims. What callers still hold of its
    /// records is not counted any more. With the lock, so that no other log releases a claim of this one afterwards.
    pub(super) fn end(&self, share: &Arc<PoolShare>) {
        for segment in self.forget(share, u64::MAX) {
            discard_chunk(&segment);
        }
        let recent = lock(&self.recent);
        share.release_all();
        drop(recent);
        share.free_all();
    }

    /// Releases the chunks of a log's segments below `first`, which were trimmed: readers that hold them keep them.
    /// Returns the segments.
    pub(super) fn forget(&self, share: &Arc<PoolShare>, first: u64) -> Vec<Arc<Segment>> {
        let mut gone = Vec::new();
        let mut recent = lock(&self.recent);
        recent.segments.retain(|(of, segment)| {
            let trimmed = Arc::ptr_eq(of, share) && segment.base() < first;
            if trimmed {
                gone.push(Arc::clone(segment));
            }
            !trimmed
        });
        for segment in &gone {
            recent.release(share, segment);
        }
        drop(recent); // before the segments and their memory are dropped
        gone
    }
}
