//! Values to append: of all sizes, and of bytes that the log could mistake for its own.

use super::run::Profile;
use crate::disk::sim::{Random, Sim};

/// The values of a batch, for which a segment of `limit` bytes may or may not have room.
pub(super) fn batch(random: &mut Random, sim: &Sim, limit: usize, profile: &Profile) -> Vec<Vec<u8>> {
    let large = profile.large;
    if let Some(size) = profile.uniform
        && !random.one_in(40)
    {
        let count = if random.one_in(3) { 1 + random.below(6) } else { 1 };
        return (0..count).map(|_| vec![random.chance() as u8; size]).collect();
    }
    match random.below(20) {
        0..9 => vec![value(random, sim, limit)],
        9..17 => (0..=random.below(6)).map(|_| value(random, sim, limit / 4)).collect(),
        17 => vec![vec![random.chance() as u8; random.below(9)]; 1 + random.below(limit / 32)],
        18 if large => {
            let size = random.below(9);
            vec![vec![7; size]; (1000 + random.below(20_000)).min(limit / 44)]
        }
        18 => vec![vec![1; random.below(limit)]],
        _ => {
            // As large as a segment has room for, or a little more or less.
            let size = (limit - 28).saturating_sub(random.below(64)) + random.below(16);
            vec![filled(random, sim, size)]
        }
    }
}

fn value(random: &mut Random, sim: &Sim, limit: usize) -> Vec<u8> {
    let max = *random.pick(&[1, 9, 17, 120, 120, 1200, 5000, limit / 2]);
    let size = random.below(max.clamp(1, limit.max(1)));
    filled(random, sim, size)
}

fn filled(random: &mut Random, sim: &Sim, size: usize) -> Vec<u8> {
    match random.below(4) {
        0 => vec![random.chance() as u8; size],
        1 => {
            let mut bytes = vec![0; size];
            random.fill(&mut bytes);
            bytes
        }
        // Bytes from the log's own files: headers, frames with what precedes and follows them, indexes, footers.
        2 => sim.sample(random, size).unwrap_or_default(),
        // Headers everywhere: lengths that fit, small numbers.
        _ => {
            let (length, record) = (random.below(400) as u32, random.below(2000) as u32);
            let words = [u64::from(length), u64::from(record), 1, random.next()];
            let bytes = words.iter().cycle().flat_map(|word| word.to_le_bytes());
            bytes.take(size).collect()
        }
    }
}
