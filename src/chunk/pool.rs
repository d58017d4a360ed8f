//! The memory that the chunks of one log, or of all logs of a store, may take; and freed chunk memory, kept for reuse.
//!
//! A log claims memory for a chunk before it is created, and releases the claim when it drops the chunk. When the last
//! holder drops the chunk, which may be a reader much later, the memory comes back here.

use super::{ChunkMemory, backing_bytes};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// How many pieces of freed memory are kept per log. More would only be colder: appends to memory that has long left
/// the processor's cache take twice as long.
const MAX_KEPT: usize = 2;

/// A limit for the memory of chunks, and freed memory for new ones.
#[derive(Debug)]
pub(crate) struct Pool {
    limit: u64,
    /// The sum of all claimed footprints.
    claimed: AtomicU64,
    free: Mutex<Free>,
    shares: AtomicU64,
}

#[derive(Debug, Default)]
struct Free {
    /// Oldest first: the number of the share that had it, the memory, and the number of records whose slots were used.
    memory: Vec<(u64, ChunkMemory, u32)>,
    bytes: u64,
}

impl Free {
    fn remove(&mut self, at: usize) -> (ChunkMemory, u32) {
        let (_, memory, dirty) = self.memory.remove(at);
        self.bytes -= ChunkMemory::footprint(memory.capacity());
        (memory, dirty)
    }
}

impl Pool {
    /// A pool for at most `limit` bytes of footprints.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        let (claimed, shares) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { limit, claimed, free: Mutex::new(Free::default()), shares })
    }

    // The counts order nothing, so all accesses are Relaxed. A sum that is a moment old refuses a chunk for which
    // there is room, or frees a little more than needed.

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// The sum of all claimed footprints.
    pub(crate) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// By how much a claim of `bytes` would exceed the limit.
    pub(crate) fn excess(&self, bytes: u64) -> u64 {
        (self.claimed.load(Ordering::Relaxed) + bytes).saturating_sub(self.limit)
    }

    /// Returns pooled memory to the system until claims and pooled memory fit the limit.
    pub(crate) fn shrink(&self) {
        loop {
            let oldest = {
                let mut free = lock(&self.free);
                let fits = self.excess(free.bytes) == 0;
                if fits || free.memory.is_empty() { None } else { Some(free.remove(0)) }
            };
            if oldest.is_none() {
                return; // otherwise drop it outside the lock, because unmapping takes time
            }
        }
    }

    /// The bytes of all pooled backings.
    pub(crate) fn backed(&self) -> u64 {
        let free = lock(&self.free);
        let backed = free.memory.iter().filter(|(_, memory, _)| memory.has_backing());
        backed.map(|(_, memory, _)| backing_bytes(memory.capacity())).sum()
    }

    /// Returns pooled backings to the system, at least `bytes` of them if there are as many; returns how many.
    pub(crate) fn give_up_backings(&self, bytes: u64) -> u64 {
        let (mut given, mut sum) = (Vec::new(), 0);
        let mut free = lock(&self.free);
        while sum < bytes
            && let Some(at) = free.memory.iter().position(|(_, memory, _)| memory.has_backing())
        {
            let (memory, _) = free.remove(at);
            sum += backing_bytes(memory.capacity());
            given.push(memory);
        }
        drop(free); // unmap only after that
        sum
    }
}

/// A log's share of a pool: its claims, and the memory it has freed, which other logs do not take.
#[derive(Debug)]
pub(crate) struct PoolShare {
    pool: Arc<Pool>,
    number: u64,
    claimed: AtomicU64,
    /// Whether the log's chunks should have backings: then memory without one is not used for another chunk.
    is_backed: bool,
    /// Whether the log has ended: then nothing is pooled for it. Changed and looked at with the pool's lock.
    has_ended: AtomicBool,
}

impl PoolShare {
    pub(crate) fn new(pool: &Arc<Pool>, is_backed: bool) -> Arc<Self> {
        let number = pool.shares.fetch_add(1, Ordering::Relaxed);
        let (claimed, has_ended) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Self { pool: Arc::clone(pool), number, claimed, is_backed, has_ended })
    }

    /// The sum of this log's claims.
    pub(crate) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Claims memory for a chunk of `capacity`, whether or not there is room within the limit.
    pub(crate) fn claim(&self, capacity: u64) {
        let bytes = ChunkMemory::footprint(capacity);
        self.claimed.fetch_add(bytes, Ordering::Relaxed);
        self.pool.claimed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Claims memory for a chunk of `capacity` if there is room within the limit; returns whether it did. This is one
    /// step, so that concurrent claims never exceed the limit together.
    pub(crate) fn try_claim(&self, capacity: u64) -> bool {
        let bytes = ChunkMemory::footprint(capacity);
        let limit = self.pool.limit;
        let with = |claimed: u64| claimed.checked_add(bytes).filter(|&sum| sum <= limit);
        let done = self.pool.claimed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).is_ok();
        if done {
            self.claimed.fetch_add(bytes, Ordering::Relaxed);
        }
        done
    }

    pub(crate) fn release(&self, capacity: u64) {
        let bytes = ChunkMemory::footprint(capacity);
        self.claimed.fetch_sub(bytes, Ordering::Relaxed);
        self.pool.claimed.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Releases all claims of a log that has ended.
    pub(crate) fn release_all(&self) {
        let claimed = self.claimed.swap(0, Ordering::Relaxed);
        self.pool.claimed.fetch_sub(claimed, Ordering::Relaxed);
    }

    /// Returns to the system what is pooled of a log that has ended.
    pub(crate) fn free_all(&self) {
        let mut gone = Vec::new();
        let mut free = lock(&self.pool.free);
        self.has_ended.store(true, Ordering::Relaxed);
        while let Some(at) = free.memory.iter().position(|(number, ..)| *number == self.number) {
            gone.push(free.remove(at));
        }
        drop(free); // unmap only after that
    }

    /// Reduces a claim for a chunk of `from` to one for a chunk of `to`, which is smaller.
    pub(crate) fn reduce(&self, from: u64, to: u64) {
        let bytes = ChunkMemory::footprint(from) - ChunkMemory::footprint(to);
        self.claimed.fetch_sub(bytes, Ordering::Relaxed);
        self.pool.claimed.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes memory back; `dirty` is the number of records whose slots were used. If it does not fit the limit, or
    /// enough memory is pooled already, or it lacks a backing that the next chunk may get, it is returned to the system.
    pub(super) fn put(&self, memory: ChunkMemory, dirty: u32) {
        if self.is_backed && !memory.has_backing() {
            return;
        }
        let bytes = ChunkMemory::footprint(memory.capacity());
        let mut free = lock(&self.pool.free);
        if self.has_ended.load(Ordering::Relaxed) {
            return;
        }
        let ours = free.memory.iter().filter(|(number, ..)| *number == self.number).count();
        if ours < MAX_KEPT && self.pool.excess(free.bytes + bytes) == 0 {
            free.bytes += bytes;
            free.memory.push((self.number, memory, dirty));
        }
    }

    /// Clean memory of exactly this capacity that this log had, if there is any: the one that came back last, which is
    /// likely to be in the processor's cache. The log's memory of other capacities is freed, because capacities mostly
    /// grow.
    pub(crate) fn take(&self, capacity: u64) -> Option<ChunkMemory> {
        let (mut found, mut others) = (None, Vec::new());
        {
            let mut free = lock(&self.pool.free);
            while let Some(at) = free.memory.iter().rposition(|(number, memory, _)| {
                *number == self.number && (found.is_none() || memory.capacity() != capacity)
            }) {
                let (memory, dirty) = free.remove(at);
                if memory.capacity() == capacity {
                    found = Some((memory, dirty));
                } else {
                    others.push(memory);
                }
            }
        }
        let (mut memory, dirty) = found?;
        memory.clean(dirty);
        Some(memory)
    }
}

impl Drop for PoolShare {
    fn drop(&mut self) {
        self.release_all();
        self.free_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn put(share: &PoolShare, capacity: u64) {
        share.put(ChunkMemory::new(capacity).unwrap(), 0);
    }

    #[test]
    fn freed_memory_is_pooled_for_its_log_within_the_limit() {
        let one = ChunkMemory::footprint(4096);
        let pool = Pool::new(3 * one);
        let (a, b) = (PoolShare::new(&pool, false), PoolShare::new(&pool, false));
        b.claim(4096);
        put(&a, 4096);
        put(&b, 4096);
        put(&a, 4096); // exceeds the limit
        assert!(b.take(4096).is_some());
        assert!(b.take(4096).is_none(), "the pooled memory is another log's");
        assert_eq!(pool.excess(3 * one), one);
        a.claim(4096);
        a.claim(4096);
        pool.shrink();
        assert!(a.take(4096).is_none(), "pooled memory makes room for claims");
        a.release(4096);
        put(&a, 4096);
        drop(a);
        assert_eq!((pool.excess(2 * one), lock(&pool.free).bytes), (0, 0), "a dropped share has nothing");
    }

    #[test]
    fn pooled_memory_of_another_size_is_freed() {
        let pool = Pool::new(1 << 20);
        let share = PoolShare::new(&pool, false);
        put(&share, 4096);
        put(&share, 8192);
        assert_eq!(share.take(8192).unwrap().capacity(), 8192);
        assert_eq!(lock(&pool.free).bytes, 0);
    }
}
