//! The batches that are appended: made before the run, of values whose sizes are spread as the flags say.

use super::{Bench, Format};
use bytes::Bytes;
use clap::ValueEnum;
use serde::Serialize;
use std::{ops::Range, time::Duration};

/// The largest value.
pub(super) const MAX_VALUE_BYTES: usize = 16 << 20;
/// What all batches together may take, unless there would be too few of them.
const ALL_BYTES: usize = 64 << 20;
/// Batches whose sizes differ are sent in turn: this many.
const VARIANTS: std::ops::RangeInclusive<usize> = 8..=1024;
/// The length of a time in a value: so many digits, which no other value begins with.
const STAMP_BYTES: usize = 16;

/// How the sizes of values are spread around their mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Spread {
    /// All of one size
    Constant,
    /// From 1 byte to twice the mean, each size equally often
    Uniform,
    /// Many small ones and few large ones
    Exponential,
}

impl Spread {
    fn size(self, mean: usize, random: &mut fastrand::Rng) -> usize {
        let size = match self {
            Self::Constant => mean,
            Self::Uniform => random.usize(1..2 * mean),
            // At least 0: the logarithm is that of a number of at most 1.
            #[allow(clippy::cast_sign_loss)]
            Self::Exponential => (-(1.0 - random.f64()).ln() * mean as f64).round() as usize,
        };
        size.clamp(1, MAX_VALUE_BYTES)
    }
}

/// A batch as it is sent.
pub(super) struct Batch {
    pub(super) body: Bytes,
    /// Where the values are in it.
    pub(super) values: Vec<Range<usize>>,
    /// The bytes of all values.
    pub(super) bytes: u64,
}

impl Batch {
    /// The body, with a time in its first value if that is large enough.
    pub(super) fn stamped(&self, time: Duration) -> Bytes {
        // Behind the first byte, which in JSON is a quote.
        let Some(first) = self.values.first().filter(|value| value.len() >= STAMP_BYTES + 2) else {
            return self.body.clone();
        };
        let place = first.start + 1..first.start + 1 + STAMP_BYTES;
        let mut body = self.body.to_vec();
        let digits = format!("{:0STAMP_BYTES$}", time.as_nanos());
        body[place].copy_from_slice(digits.as_bytes());
        body.into()
    }
}

/// The time in a value, if it has one.
pub(super) fn stamp(value: &[u8]) -> Option<Duration> {
    let digits = value.get(1..=STAMP_BYTES)?;
    let nanos = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// Makes the batches. They are the same in each run with the same flags.
pub(super) fn batches(bench: &Bench) -> Vec<Batch> {
    let records = bench.batch as usize;
    let count = match bench.spread {
        Spread::Constant => 1,
        _ => (ALL_BYTES / (records * bench.bytes)).clamp(*VARIANTS.start(), *VARIANTS.end()),
    };
    let mut random = fastrand::Rng::with_seed(1);
    let batch = |_| batch(bench.format, (0..records).map(|_| bench.spread.size(bench.bytes, &mut random)));
    (0..count).map(batch).collect()
}

fn batch(format: Format, sizes: impl Iterator<Item = usize>) -> Batch {
    let (mut body, mut values, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (n, size) in sizes.enumerate() {
        let mut value: Vec<u8> = (0..size).map(|at| b'a' + ((n + at) % 26) as u8).collect();
        match format {
            Format::Text => {}
            Format::Frames => body.extend_from_slice(&(size as u32).to_le_bytes()),
            // A string of that many bytes, with its quotes where there is room for them; otherwise a number.
            Format::Ndjson => match &mut value[..] {
                [first, .., last] => (*first, *last) = (b'"', b'"'),
                all => all.fill(b'1'),
            },
        }
        values.push(body.len()..body.len() + size);
        body.extend_from_slice(&value);
        if format != Format::Frames {
            body.push(b'\n');
        }
        bytes += size as u64;
    }
    Batch { body: body.into(), values, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_comes_back_from_the_first_value_and_from_no_other() {
        for format in [Format::Text, Format::Ndjson, Format::Frames] {
            let batch = batch(format, [18, 100, 17].into_iter());
            let time = Duration::from_nanos(1_234_567_890_123);
            let body = batch.stamped(time);
            let stamps: Vec<_> = batch.values.iter().map(|value| stamp(&body[value.clone()])).collect();
            assert_eq!(stamps, [Some(time), None, None]);
            assert_eq!((body.len(), batch.bytes), (batch.body.len(), 135));
            if format == Format::Ndjson {
                body.split(|&byte| byte == b'\n').take(3).for_each(|line| {
                    serde_json::from_slice::<String>(line).unwrap();
                });
            }
        }
        let small = batch(Format::Text, [17].into_iter());
        assert_eq!(small.stamped(Duration::from_secs(1)), small.body);
    }

    #[test]
    fn sizes_have_the_mean_that_was_asked_for() {
        let mut random = fastrand::Rng::with_seed(7);
        for spread in [Spread::Constant, Spread::Uniform, Spread::Exponential] {
            let sizes: Vec<_> = (0..100_000).map(|_| spread.size(1000, &mut random)).collect();
            let mean = sizes.iter().sum::<usize>() / sizes.len();
            assert!((980..=1020).contains(&mean) && sizes.iter().all(|&size| size > 0), "{spread:?}: {mean}");
            let distinct = sizes.iter().collect::<std::collections::BTreeSet<_>>().len();
            assert_eq!(distinct == 1, spread == Spread::Constant);
        }
    }
}
