//! Which segments exist: the chain by which readers find them.

use super::{Shared, clock};
use crate::{segment::Segment, sync::Arc};

/// The segments in the order of their offsets, never none. The last one, or the last few with
/// [`Durability::Memory`](super::Durability::Memory), may not be in here yet, and are found by their links.
pub(crate) struct Chain {
    pub(super) segments: Vec<Arc<Segment>>,
}

impl Chain {
    /// The first offset that is left.
    pub(super) fn first(&self) -> u64 {
        self.segments.first().map_or(0, |segment| segment.base())
    }

    /// Bytes of all segment files.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file_bytes()).sum()
    }

    /// The segment that has this offset, or would have it next; `None` if it was trimmed.
    pub(super) fn locate(&self, offset: u64) -> Option<Arc<Segment>> {
        let after = self.segments.partition_point(|segment| segment.base() <= offset);
        let mut segment = Arc::clone(self.segments.get(after.checked_sub(1)?)?);
        if after == self.segments.len() {
            while let Some(next) = segment.next.load_full().filter(|next| next.base() <= offset) {
                segment = next;
            }
        }
        Some(segment)
    }

    /// Where the first segment after `offset` begins.
    pub(super) fn begins_after(&self, offset: u64) -> Option<u64> {
        let after = self.segments.partition_point(|segment| segment.base() <= offset);
        let linked = || {
            let mut next = self.segments.last()?.next.load_full();
            while let Some(segment) = next.as_ref().filter(|segment| segment.base() <= offset) {
                next = segment.next.load_full();
            }
            next
        };
        self.segments.get(after).cloned().or_else(linked).map(|segment| segment.base())
    }
}

/// When the newest record of the first of these segments was appended, as far as the clock can be believed.
pub(super) fn newest(segments: &[Arc<Segment>], now: u64) -> u64 {
    clock::newest(
        segments[0].newest_record(),
        segments[1..].iter().map(|segment| segment.header.created),
        now,
    )
}

impl Shared {
    /// Adds a segment that was begun, in place of one with the same base that ended empty.
    pub(super) fn chain_add(&self, segment: &Arc<Segment>) {
        self.chain_edit(|segments| {
            segments.retain(|old| old.base() != segment.base());
            segments.push(Arc::clone(segment));
        });
    }

    pub(super) fn chain_edit(&self, edit: impl Fn(&mut Vec<Arc<Segment>>)) {
        loop {
            let old = self.chain.load_full();
            let mut segments = old.segments.clone();
            edit(&mut segments);
            if self.chain.replace(&old, Arc::new(Chain { segments })) {
                return;
            }
        }
    }
}
