//! The extension block of a producer's batch, which its first frame has before the value.

use super::ProducerBatch;
use crate::frame::EXTENSION_LENGTH;

/// Set in a block's count if it has a mark.
const MARKED: u32 = 1 << 31;

/// The extension block of a batch's first frame: its length, epoch, sequence, count, and id; if it has a mark, also the
/// length of the id before that, and the mark after it. The count is [set](set_count) when it is known.
pub(super) fn block(batch: &ProducerBatch<'_>) -> Vec<u8> {
    let mark = batch.mark.map_or(0, |mark| 1 + mark.len());
    let length = 4 + 8 + 4 + batch.id.len() + mark;
    let mut block = Vec::with_capacity(EXTENSION_LENGTH + length);
    block.extend_from_slice(&(length as u16).to_le_bytes());
    block.extend_from_slice(&batch.epoch.to_le_bytes());
    block.extend_from_slice(&batch.sequence.to_le_bytes());
    block.extend_from_slice(&if batch.mark.is_some() { MARKED } else { 0 }.to_le_bytes());
    if batch.mark.is_some() {
        block.push(batch.id.len() as u8); // at most 64
    }
    block.extend_from_slice(batch.id.as_bytes());
    block.extend_from_slice(batch.mark.unwrap_or_default().as_bytes());
    block
}

/// Sets the count in a new block, which may have the first value after it.
pub(super) fn set_count(block: &mut [u8], count: u64) {
    let at = EXTENSION_LENGTH + 4 + 8; // after the length, the epoch and the sequence
    for (byte, count) in block[at..].iter_mut().zip((count as u32).to_le_bytes()) {
        *byte |= count;
    }
}

pub(super) fn parse_block(block: &[u8]) -> Option<(ProducerBatch<'_>, u64)> {
    let (epoch, rest) = block.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count);
    let (id, mark) = if count & MARKED == 0 {
        (rest, None)
    } else {
        let (&length, rest) = rest.split_first()?;
        let (id, mark) = rest.split_at_checked(usize::from(length))?;
        (id, Some(std::str::from_utf8(mark).ok()?))
    };
    let batch = ProducerBatch {
        id: std::str::from_utf8(id).ok()?,
        epoch: u32::from_le_bytes(*epoch),
        sequence: u64::from_le_bytes(*sequence),
        mark,
    };
    Some((batch, u64::from(count & !MARKED)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::log::{BATCH_EXTRA_BYTES, MAX_PRODUCER_ID_BYTES, MAX_PRODUCER_MARK_BYTES};

    #[test]
    fn the_longest_id_and_mark_fit_beside_a_batch() {
        let (id, mark) = ("i".repeat(MAX_PRODUCER_ID_BYTES), "m".repeat(MAX_PRODUCER_MARK_BYTES));
        let block = block(&ProducerBatch::new(&id, u32::MAX, u64::MAX).with_mark(&mark));
        assert!(block.len() as u64 + crate::frame::WORD as u64 <= BATCH_EXTRA_BYTES, "{}", block.len());
    }
}
