//! Random numbers from a seed.

/// `SplitMix64`, by Steele, Lea and Flood.
#[derive(Debug, Default, Clone)]
pub(crate) struct Random {
    state: u64,
    /// Choices that are used up before random numbers, the next one last; with them `fuzz/` decides.
    choices: Vec<u16>,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed, choices: Vec::new() }
    }

    /// The first choices are taken from these bytes, two bytes each; later ones are random.
    #[cfg(fuzzing)]
    pub(crate) fn by(bytes: &[u8]) -> Self {
        let choices =
            bytes.chunks_exact(2).rev().map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        Self { state: crc32c::crc32c(bytes).into(), choices }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.choices.pop().map_or_else(|| self.chance(), u64::from)
    }

    /// A random number that ignores `choices`; for the content of values, by which the model tells records apart.
    pub(crate) fn chance(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number below `limit`, which must not be 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True once in `odds` times, on average.
    pub(crate) fn one_in(&mut self, odds: u64) -> bool {
        self.next().is_multiple_of(odds)
    }

    /// One of `all`.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.chance().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }

    /// Another source, which is not affected by how often this one is used.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.chance())
    }
}
