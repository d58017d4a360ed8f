//! The memory of a chunk: page-aligned bytes for the frames, and one slot per record. It is created and faulted in
//! ahead of time, in the background, and reused for the next chunk instead of being returned to the system. The memory
//! of the first chunk after opening is faulted in once the log is open.

#[cfg(not(loom))]
use super::backing::LABEL_BYTES;
use super::backing::Predecessor;
use crate::{frame::in_bytes, sync::AtomicU32};

/// A record takes at least the smallest frame, and 4 bytes in the sealed segment's index.
pub(crate) const MIN_RECORD_BYTES: u64 = (crate::frame::HEADER_BYTES + 4) as u64;

/// How much is faulted in at once. The system clears that much memory without giving the core to anybody else (64 MiB
/// in one call made requests on that core wait for 100 ms).
#[cfg(all(target_os = "linux", not(loom)))]
const POPULATE: usize = 1 << 20;

/// The footprints of all chunk memory of this process.
pub(crate) static CHUNK_BYTES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Memory for one chunk.
#[derive(Debug)]
pub(crate) struct ChunkMemory {
    capacity: u64,
    /// What precedes its segment, packed. Kept here as well as in the backing, because the successor of an empty
    /// segment inherits it.
    predecessor: std::sync::atomic::AtomicU64,
    /// One slot per record; 0 until the record is published. Rounded up to whole blocks of the spreading below.
    pub(super) slots: Box<[AtomicU32]>,
    #[cfg(not(loom))]
    map: memmap2::MmapRaw,
    /// Where the frames start in the mapping: after the head, if this is a backing.
    #[cfg(not(loom))]
    start: usize,
    #[cfg(not(loom))]
    backing: Option<super::backing::BackingFile>,
    #[cfg(not(loom))]
    is_faulted_in: std::sync::atomic::AtomicBool,
    #[cfg(loom)]
    map: model::Words,
}

fn unknown() -> std::sync::atomic::AtomicU64 {
    Predecessor::Unknown.pack().into()
}

impl ChunkMemory {
    /// Memory for a chunk of `capacity` bytes, a multiple of the page size. It is not faulted in yet.
    ///
    /// # Errors
    /// The system refuses the mapping.
    pub(crate) fn new(capacity: u64) -> std::io::Result<Self> {
        let length = usize::try_from(capacity).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        #[cfg(not(loom))]
        {
            let map = memmap2::MmapMut::map_anon(length)?;
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage); // saves TLB misses; only advice
            Ok(Self::over(capacity, map.into(), 0, None))
        }
        #[cfg(loom)]
        Ok(Self {
            capacity,
            predecessor: unknown(),
            slots: slots(capacity),
            map: model::Words::new(length / 8),
        })
    }

    /// Like [`new`](Self::new), but as a backing among `backings`.
    ///
    /// # Errors
    /// There is no room for one, or whatever else keeps it from being created.
    pub(crate) fn backed(
        capacity: u64,
        backings: &std::sync::Arc<super::backing::LogBackings>,
    ) -> std::io::Result<Self> {
        #[cfg(not(loom))]
        {
            let (backing, map) = backings.create(capacity)?;
            Ok(Self::over(capacity, map, super::backing::BACKING_HEAD_BYTES, Some(backing)))
        }
        #[cfg(loom)]
        {
            let _ = (capacity, backings);
            Err(std::io::ErrorKind::Unsupported.into())
        }
    }

    /// Whether this is a backing.
    pub(crate) fn has_backing(&self) -> bool {
        #[cfg(not(loom))]
        return self.backing.is_some();
        #[cfg(loom)]
        false
    }

    #[cfg(not(loom))]
    fn over(
        capacity: u64,
        map: memmap2::MmapRaw,
        start: usize,
        backing: Option<super::backing::BackingFile>,
    ) -> Self {
        CHUNK_BYTES.fetch_add(Self::footprint(capacity), std::sync::atomic::Ordering::Relaxed);
        let is_faulted_in = false.into();
        Self { capacity, predecessor: unknown(), slots: slots(capacity), map, start, backing, is_faulted_in }
    }

    /// Faults in the frames' memory if that was not done, which saves appenders 250 ns per page. Any thread may call this
    /// at any time. Only advice: if the system refuses it, appends are slower.
    pub(crate) fn fault_in(&self) {
        #[cfg(not(loom))]
        // Relaxed: nothing depends on it; if two threads do it at once, one finds nothing to do.
        if !self.is_faulted_in.swap(true, std::sync::atomic::Ordering::Relaxed) {
            populate(&self.map);
        }
    }

    /// Notes what precedes the segment that it holds from now on, and in the backing, if this is one, also which
    /// segment that is. Must be called before the first frame is written.
    pub(crate) fn label(&mut self, label: &super::backing::Label, predecessor: Predecessor) {
        // The old notes must be gone before the new label is there.
        #[cfg(not(loom))]
        if self.backing.is_some() {
            self.note(super::backing::SEALED_AT).store(0, std::sync::atomic::Ordering::Relaxed);
        }
        self.set_predecessor(predecessor);
        #[cfg(not(loom))]
        if let Some(bytes) = self.backing.as_ref().map(|backing| backing.label(label)) {
            self.write_label(bytes);
        }
        let _ = label;
    }

    #[cfg(not(loom))]
    fn write_label(&mut self, bytes: [u8; LABEL_BYTES]) {
        let at = super::backing::LABEL.start;
        assert!(at + bytes.len() <= super::backing::PREDECESSOR_AT);
        // SAFETY: the label ends before the note about the preceding frame, which is within the head, as asserted; and
        // `&mut self` means that nobody else in this process can reach it. Other processes only read backings of logs
        // that nobody has open.
        unsafe { self.map.as_mut_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Notes what precedes its segment, also in the backing, if this is one. Any thread may call this at any time.
    pub(crate) fn set_predecessor(&self, predecessor: Predecessor) {
        #[cfg(not(loom))]
        if self.backing.is_some() {
            // Relaxed: it is read by another process, after this one has ended.
            self.note(super::backing::PREDECESSOR_AT)
                .store(predecessor.pack(), std::sync::atomic::Ordering::Relaxed);
        }
        // Relaxed: read by whoever commits, which one thread does at a time, with a lock.
        self.predecessor.store(predecessor.pack(), std::sync::atomic::Ordering::Relaxed);
    }

    /// What [`set_predecessor`](Self::set_predecessor) has noted.
    pub(crate) fn predecessor(&self) -> Predecessor {
        Predecessor::unpack(self.predecessor.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// Notes in the backing, if this is one, that its segment was sealed.
    pub(crate) fn set_sealed(&self) {
        #[cfg(not(loom))]
        if self.backing.is_some() {
            // Relaxed: as above.
            self.note(super::backing::SEALED_AT).store(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// One of the words of the head that may be written at any time.
    #[cfg(not(loom))]
    fn note(&self, at: usize) -> &std::sync::atomic::AtomicU64 {
        assert!(at == super::backing::PREDECESSOR_AT || at == super::backing::SEALED_AT);
        assert!(
            self.start == super::backing::BACKING_HEAD_BYTES && at.is_multiple_of(8) && at + 8 <= self.start
        );
        // SAFETY: the word is within the head, which the mapping has if there is a backing, as asserted; it is aligned,
        // because the mapping starts at a page; and every access to these bytes while the mapping lives is through this
        // atomic.
        unsafe { std::sync::atomic::AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    /// Bytes that frames and index together may take.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes of a chunk's frames and slots: what counts against the memory budget.
    pub(crate) const fn footprint(capacity: u64) -> u64 {
        capacity + (capacity / MIN_RECORD_BYTES + SPREAD_SLOTS as u64) * 4
    }

    /// Makes used memory as good as new. The frames may stay: they do not verify with another segment's key, and
    /// nothing reads where no slot points.
    pub(crate) fn clean(&mut self, records: u32) {
        #[cfg(not(loom))]
        if self.backing.is_some() {
            self.write_label([0; LABEL_BYTES]);
        }
        let used = (records as usize).next_multiple_of(SPREAD_SLOTS).min(self.slots.len());
        for slot in &mut self.slots[..used] {
            #[cfg(not(loom))]
            {
                *slot.get_mut() = 0;
            }
            #[cfg(loom)]
            slot.with_mut(|slot| *slot = 0);
        }
    }

    /// The slot of a record; `None` past the last one.
    #[inline]
    pub(super) fn slot(&self, record: u32) -> Option<&AtomicU32> {
        self.slots.get(spread(record))
    }

    /// Fills the memory from its start with the content of a segment file; for recovery, which alone holds it.
    pub(crate) fn load(&mut self, bytes: &[u8]) {
        #[cfg(not(loom))]
        // SAFETY: the mapping has `capacity` bytes from `start` on, lives as long as `self`, is mapped for writing, and
        // `&mut self` means that nobody else can reach it.
        let all = unsafe {
            std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.capacity as usize)
        };
        #[cfg(loom)]
        let all = self.map.all_mut();
        all[..bytes.len()].copy_from_slice(bytes);
    }

    /// # Safety
    /// `words` words from `word` on must lie within the capacity, and nobody else may read or write them meanwhile.
    #[inline]
    pub(super) unsafe fn write(&self, word: u32, words: u32, fill: impl FnOnce(&mut [u8])) {
        debug_assert!(in_bytes(word + words) as u64 <= self.capacity);
        #[cfg(not(loom))]
        // SAFETY: within the mapping and exclusive, by this function's contract.
        unsafe {
            let at = self.map.as_mut_ptr().add(self.start + in_bytes(word));
            fill(std::slice::from_raw_parts_mut(at, in_bytes(words)));
        }
        #[cfg(loom)]
        // SAFETY: as above; the model checks that it holds.
        unsafe {
            fill(self.map.exclusive(word, words));
        }
    }

    /// # Safety
    /// `words` words from `word` on must lie within the capacity; they must have been written before, in the sense of
    /// happens-before, and must not be written again while this memory has its present owner.
    #[inline]
    pub(super) unsafe fn read(&self, word: u32, words: u32) -> &[u8] {
        debug_assert!(in_bytes(word + words) as u64 <= self.capacity);
        #[cfg(not(loom))]
        // SAFETY: within the mapping, and immutable from now on, by this function's contract.
        unsafe {
            let at = self.map.as_ptr().add(self.start + in_bytes(word));
            std::slice::from_raw_parts(at, in_bytes(words))
        }
        #[cfg(loom)]
        // SAFETY: as above; the model checks that it holds.
        unsafe {
            self.map.shared(word, words)
        }
    }
}

#[cfg(not(loom))]
impl Drop for ChunkMemory {
    fn drop(&mut self) {
        CHUNK_BYTES.fetch_sub(Self::footprint(self.capacity), std::sync::atomic::Ordering::Relaxed);
    }
}

fn slots(capacity: u64) -> Box<[AtomicU32]> {
    let records = (capacity / MIN_RECORD_BYTES) as usize;
    (0..records.next_multiple_of(SPREAD_SLOTS)).map(|_| AtomicU32::new(0)).collect()
}

#[cfg(not(loom))]
fn populate(map: &memmap2::MmapRaw) {
    #[cfg(not(target_os = "linux"))]
    let _ = map;
    #[cfg(target_os = "linux")]
    for start in (0..map.len()).step_by(POPULATE) {
        let now = POPULATE.min(map.len() - start);
        let _ = map.advise_range(memmap2::Advice::PopulateWrite, start, now);
        std::thread::yield_now();
    }
}

/// The number of slots in a block of the spreading.
const SPREAD_SLOTS: usize = 256;

/// Where a record's slot is: the two low hex digits of its number are swapped, so that records appended one after the
/// other by different threads do not share a cache line (measured: 1.2 to 1.5 times faster for two threads).
#[inline]
const fn spread(record: u32) -> usize {
    let record = record as usize;
    (record & !0xFF) | (record & 0xF) << 4 | (record >> 4) & 0xF
}

/// Memory whose every access loom checks for races.
#[cfg(loom)]
mod model {
    use crate::frame::in_bytes;

    #[derive(Debug)]
    pub(super) struct Words {
        guards: Vec<loom::cell::UnsafeCell<()>>,
        bytes: std::cell::UnsafeCell<Box<[u8]>>,
        start: *mut u8,
    }
    // SAFETY: every access goes through a guard, and loom fails the model if two of them race.
    unsafe impl Send for Words {}
    // SAFETY: as above.
    unsafe impl Sync for Words {}

    impl Words {
        pub(super) fn new(words: usize) -> Self {
            let mut bytes = vec![0; words * 8].into_boxed_slice();
            let start = bytes.as_mut_ptr();
            let guards = (0..words).map(|_| loom::cell::UnsafeCell::new(())).collect();
            Self { guards, bytes: std::cell::UnsafeCell::new(bytes), start }
        }

        pub(super) fn all_mut(&mut self) -> &mut [u8] {
            self.bytes.get_mut()
        }

        /// # Safety
        /// Must be within the memory, and exclusive, which loom checks.
        #[allow(clippy::mut_from_ref)]
        pub(super) unsafe fn exclusive(&self, word: u32, words: u32) -> &mut [u8] {
            for guard in &self.guards[word as usize..(word + words) as usize] {
                guard.with_mut(|_| ());
            }
            // SAFETY: within the memory, as the slicing above has checked.
            unsafe { std::slice::from_raw_parts_mut(self.start.add(in_bytes(word)), in_bytes(words)) }
        }

        /// # Safety
        /// Must be within the memory, and not be written meanwhile, which loom checks.
        pub(super) unsafe fn shared(&self, word: u32, words: u32) -> &[u8] {
            for guard in &self.guards[word as usize..(word + words) as usize] {
                guard.with(|_| ());
            }
            // SAFETY: within the memory, as the slicing above has checked.
            unsafe { std::slice::from_raw_parts(self.start.add(in_bytes(word)), in_bytes(words)) }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn spreading_is_a_permutation_of_every_block_and_parts_neighbours() {
        let mut seen: Vec<usize> = (0..1024).map(spread).collect();
        for pair in seen.windows(2) {
            assert_ne!(pair[0] / 16, pair[1] / 16, "neighbours share a cache line of 16 slots");
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..1024));
    }

    #[test]
    fn cleaning_clears_the_slots_of_all_used_records() {
        let mut memory = ChunkMemory::new(1 << 16).unwrap();
        for record in 0..300 {
            memory.slot(record).unwrap().store(record + 1, crate::sync::Ordering::Relaxed);
        }
        memory.clean(300);
        assert!(memory.slots.iter().all(|slot| slot.load(crate::sync::Ordering::Relaxed) == 0));
    }
}
