//! A buffer that grows within the budget: on the heap while it is small, in a mapping once it is large.

use super::{Grant, UsedUp};
use bytes::Bytes;
use memmap2::{MmapMut, MmapOptions};
use std::{ops::RangeInclusive, time::Duration};

/// Buffers larger than this are mappings.
pub(super) const MAX_HEAP_BYTES: usize = 64 << 10;

/// Bytes that grow, within the budget.
#[derive(Debug)]
pub(in crate::http) struct Buffer {
    storage: Storage,
    length: usize,
    max: usize,
    grant: Grant,
}

#[derive(Debug)]
enum Storage {
    Heap(Vec<u8>),
    Mapped(MmapMut),
}

impl Buffer {
    /// Creates an empty buffer that can grow to `max` bytes.
    pub(in crate::http) fn new(max: usize, grant: Grant) -> Self {
        Self { storage: Storage::Heap(Vec::new()), length: 0, max, grant }
    }

    pub(in crate::http) fn len(&self) -> usize {
        self.length
    }

    pub(in crate::http) fn bytes(&self) -> &[u8] {
        self.as_ref()
    }

    /// The bytes of the budget that it holds.
    pub(in crate::http) fn held(&self) -> usize {
        self.grant.bytes
    }

    /// Takes memory for this many bytes in all; nothing, if there is none.
    pub(in crate::http) fn cover(&mut self, bytes: usize) -> Result<(), UsedUp> {
        self.grant.cover(bytes)
    }

    /// Covers `bytes` more than it has, as [`Grant::cover_within`] does.
    pub(in crate::http) async fn cover_within(
        &mut self,
        bytes: usize,
        patience: Duration,
        pauses: &RangeInclusive<Duration>,
    ) -> Result<(), UsedUp> {
        self.grant.cover_within(self.length + bytes.min(self.left()), patience, pauses).await
    }

    /// How many more bytes fit.
    pub(in crate::http) fn left(&self) -> usize {
        self.max - self.length
    }

    /// Gives `write` up to `bytes` bytes after the end, no more than are [`left`](Self::left); it returns how many of
    /// them to keep.
    pub(in crate::http) fn grow<E>(
        &mut self,
        bytes: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Result<&[u8], E>, UsedUp> {
        let start = self.length;
        let end = start + bytes.min(self.left());
        self.grant.cover(end)?;
        if end > MAX_HEAP_BYTES
            && let Storage::Heap(heap) = &mut self.storage
        {
            // Without reserving swap: only pages that are written to take memory.
            let mapped = MmapOptions::new().len(self.max).no_reserve_swap().map_anon();
            let mut mapped = mapped.map_err(|_| UsedUp)?;
            mapped[..start].copy_from_slice(&heap[..start]);
            self.storage = Storage::Mapped(mapped);
        }
        let space = match &mut self.storage {
            Storage::Heap(heap) => {
                if heap.len() < end {
                    heap.reserve(end - heap.len());
                    heap.resize(end, 0);
                }
                &mut heap[start..end]
            }
            Storage::Mapped(mapped) => &mut mapped[start..end],
        };
        match write(space) {
            Ok(written) => {
                self.length = start + written.min(end - start);
                Ok(Ok(&self.bytes()[start..]))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// Appends; what exceeds the maximum size is left out.
    pub(in crate::http) fn extend(&mut self, bytes: &[u8]) -> Result<(), UsedUp> {
        let write = |space: &mut [u8]| {
            space.copy_from_slice(&bytes[..space.len()]);
            Ok::<_, std::convert::Infallible>(space.len())
        };
        self.grow(bytes.len(), write).map(|_| ())
    }

    /// Returns the bytes, which are then shared and hold the grant.
    pub(in crate::http) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.storage {
            Storage::Heap(heap) => &heap[..self.length],
            Storage::Mapped(mapped) => &mapped[..self.length],
        }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        match &mut self.storage {
            Storage::Heap(heap) => &mut heap[..self.length],
            Storage::Mapped(mapped) => &mut mapped[..self.length],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Memory, Purpose},
        *,
    };
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_buffer_holds_what_was_written_to_it(
            parts in prop::collection::vec((any::<u8>(), 0..50_000usize), 0..12), max in 1..300_000usize,
        ) {
            let memory = Memory::new(1 << 20);
            let mut buffer = Buffer::new(max, memory.grant(Purpose::Request));
            let mut expected = Vec::new();
            for (byte, length) in parts {
                let part = vec![byte; length];
                expected.extend_from_slice(&part);
                buffer.extend(&part).unwrap();
                prop_assert!(memory.used() >= buffer.len());
            }
            expected.truncate(max);
            let bytes = buffer.freeze();
            prop_assert_eq!(&bytes[..], &expected[..]);
            drop(bytes);
            prop_assert_eq!(memory.used(), 0);
        }
    }
}
