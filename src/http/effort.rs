//! How much work a body is, and how long a compressed one may take to decode. Its size does not say: a block of DEFLATE
//! that only describes a code, and has no data, is 11 bytes that take as long to decode as kilobytes of data, and decode to
//! nothing. So the decoder gets the body in small steps; before each, the time that it took so far is compared with what it
//! has decoded.
//!
//! The time is the processor's, of the thread that decodes: it does not count how long the thread waits for a processor.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    time::Duration,
};

/// How much work it is to parse a body. Each kind has permits of its own, so that a body never waits behind larger ones.
///
/// How much a compressed body is, is only known when it is decoded. It begins as the kind that its compressed size belongs
/// to. If it turns out to be more, because it decodes to more bytes or takes longer than that kind may, what was decoded is
/// dropped, and it starts over with a permit for the next kind. So a body that waits for a permit holds only what was
/// received of it; what is decoded in vain is at most 1 MiB for the second kind of work, and 9 MiB for the third.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Light,
    Medium,
    Heavy,
}

/// The most bytes of a body that is light work.
const MAX_LIGHT_BYTES: usize = 1 << 20;
/// The most bytes of a body that is medium work.
const MAX_MEDIUM_BYTES: usize = 8 << 20;

impl Work {
    /// The least work that a body of this many bytes can be.
    pub(super) fn of(bytes: usize) -> Self {
        let works = [Self::Light, Self::Medium];
        works.into_iter().find(|work| bytes <= work.bytes()).unwrap_or(Self::Heavy)
    }

    /// The next kind of work, for a body that is more than this.
    pub(super) fn next(self) -> Self {
        if self == Self::Light { Self::Medium } else { Self::Heavy }
    }

    /// The most bytes that this kind of work is for.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Light => MAX_LIGHT_BYTES,
            Self::Medium => MAX_MEDIUM_BYTES,
            Self::Heavy => usize::MAX,
        }
    }
}

/// The bytes of a body that a decoder gets at once. If they are blocks without data, decoding them takes a millisecond.
const STEP_BYTES: usize = 4 << 10;

/// How much time decoding may take.
struct Allowance {
    /// Allowed whatever the body decodes to; also the most time that can be saved up, so that data that decodes quickly
    /// does not pay for blocks that decode to nothing.
    first: Duration,
    /// For each byte that was decoded, in nanoseconds.
    per_byte: u64,
    /// The limit for the whole body.
    max: Duration,
}

/// Usual bodies decode at 190 MB/s or more (measured: text of 16 letters, by gzip). The first two kinds of work allow a
/// quarter of that rate, and at most one and a half times what the largest usual body of the kind takes; with a slower
/// machine more bodies move on to the next kind. The last kind allows a rate that no machine is below, because a body that
/// is slower is refused.
fn allowance(work: Work) -> Allowance {
    let millis = Duration::from_millis;
    match work {
        Work::Light => Allowance { first: millis(1), per_byte: 20, max: millis(8) },
        Work::Medium => Allowance { first: millis(10), per_byte: 20, max: millis(80) },
        Work::Heavy => Allowance { first: millis(1000), per_byte: 200, max: Duration::MAX },
    }
}

/// The processor time that this thread has used.
fn time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap_or_default() // it is never negative
}

/// What decoding a body has taken so far, and what it may take.
pub(super) struct Effort {
    allowance: Allowance,
    begun: Duration,
    /// When it was last checked.
    checked: Cell<Duration>,
    /// How much time was left then.
    left: Cell<Duration>,
    /// How many bytes were decoded since then.
    decoded: Cell<u64>,
}

impl Effort {
    /// Begins to measure, on the thread that decodes.
    pub(super) fn new(work: Work) -> Self {
        let allowance = allowance(work);
        let begun = time();
        let (checked, left) = (Cell::new(begun), Cell::new(allowance.first));
        Self { allowance, begun, checked, left, decoded: Cell::new(0) }
    }

    /// Notes that `bytes` more bytes were decoded.
    pub(super) fn decoded(&self, bytes: usize) {
        self.decoded.set(self.decoded.get().saturating_add(bytes as u64));
    }

    fn check(&self) -> io::Result<()> {
        let Allowance { first, per_byte, max } = self.allowance;
        let now = time();
        let took = now.saturating_sub(self.checked.replace(now));
        let for_bytes = Duration::from_nanos(self.decoded.replace(0).saturating_mul(per_byte));
        let left = self.left.get().saturating_add(for_bytes).checked_sub(took);
        let Some(left) = left.filter(|_| now.saturating_sub(self.begun) <= max) else {
            return Err(io::Error::other(Overtime));
        };
        self.left.set(left.min(first));
        Ok(())
    }
}

/// The body takes longer than it may.
#[derive(Debug, thiserror::Error)]
#[error("it takes too long for what it decodes to")]
pub(super) struct Overtime;

impl Overtime {
    /// Whether this is why a decoder has stopped.
    pub(super) fn is(error: &io::Error) -> bool {
        matches!(error.get_ref(), Some(inner) if inner.is::<Self>())
    }
}

/// A body that its decoder gets in steps, for as long as it may go on.
#[derive(Clone)]
pub(super) struct Steps<'a> {
    rest: &'a [u8],
    /// How much of that is left of the current step.
    step: usize,
    effort: &'a Effort,
}

impl<'a> Steps<'a> {
    pub(super) fn new(body: &'a [u8], effort: &'a Effort) -> Self {
        Self { rest: body, step: 0, effort }
    }

    /// Whether the decoder has got everything.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

impl BufRead for Steps<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.step == 0 && !self.rest.is_empty() {
            self.effort.check()?;
            self.step = STEP_BYTES.min(self.rest.len());
        }
        Ok(&self.rest[..self.step])
    }

    fn consume(&mut self, bytes: usize) {
        (self.rest, self.step) = (&self.rest[bytes..], self.step - bytes);
    }
}

impl Read for Steps<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(space)?;
        self.consume(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            body::Encoding,
            formats::Format,
            memory::{Memory, Purpose},
            meter::Meter,
            problem::Problem,
            segment_room::SegmentRoom,
        },
        *,
    };
    use bytes::Bytes;
    use std::io::Write;

    fn decode(encoding: Encoding, body: &Bytes, work: Work) -> (Result<Option<Bytes>, Problem>, Duration) {
        let memory = Memory::new(256 << 20);
        let meter = Meter::new(Format::Bytes, SegmentRoom::new(64 << 20));
        let begun = time();
        let decoded = encoding.decode(body.clone(), 64 << 20, work, memory.grant(Purpose::Request), meter);
        (decoded, time().saturating_sub(begun))
    }

    /// A number's bits in the order in which DEFLATE has them.
    fn put(bits: &mut Vec<bool>, count: u32, number: u32) {
        bits.extend((0..count).map(|at| number >> at & 1 == 1));
    }

    /// DEFLATE of about so many bytes that decodes to nothing: blocks that describe a code, and have no data.
    fn hollow(bytes: usize) -> Vec<u8> {
        let mut bits = Vec::new();
        for _ in 0..4 {
            put(&mut bits, 3, 0b100); // not the last block; it describes its code
            put(&mut bits, 14, 14 << 10); // of 257 symbols and one distance; by 18 lengths
            for at in 0..18 {
                put(&mut bits, 3, u32::from(at == 2 || at == 17)); // for "many zeros" and "one", one bit each
            }
            for zeros in [138, 118] {
                put(&mut bits, 1, 1);
                put(&mut bits, 7, zeros - 11);
            }
            put(&mut bits, 2, 0); // symbol 256, and the distance, have one bit
            put(&mut bits, 1, 0); // symbol 256: the end of the block
        }
        let blocks: Vec<u8> = bits
            .chunks(8)
            .map(|byte| byte.iter().rev().fold(0, |all, &bit| all << 1 | u8::from(bit)))
            .collect();
        assert_eq!((bits.len(), blocks.len()), (360, 45), "four blocks end with a byte");
        let mut body = blocks.repeat(bytes / blocks.len());
        body.extend_from_slice(&[1, 0, 0, 0xff, 0xff]); // the last block: stored, empty
        body
    }

    fn in_gzip(deflate: &[u8]) -> Vec<u8> {
        [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff], deflate, &[0; 8]].concat()
    }

    fn in_zlib(deflate: &[u8]) -> Vec<u8> {
        [&[0x78, 0x9c], deflate, &[0, 0, 0, 1]].concat()
    }

    /// 60 KB of such blocks were as light work as 60 KB of text, and took 12 ms; 16 MiB took the only permit for large
    /// bodies for 3.5 s.
    #[test]
    fn what_takes_long_and_decodes_to_nothing_is_more_work_and_in_the_end_refused() {
        for (encoding, body) in
            [(Encoding::Gzip, in_gzip(&hollow(500))), (Encoding::Deflate, in_zlib(&hollow(500)))]
        {
            let (decoded, _) = decode(encoding, &body.into(), Work::Light);
            assert_eq!(decoded.ok().flatten().as_deref(), Some(&b""[..]), "it is a valid body: {encoding:?}");
        }
        let empty_member = in_gzip(&hollow(0));
        let empty_frame = zstd::encode_all(&b""[..], 0).unwrap();
        for (encoding, body) in [
            (Encoding::Gzip, in_gzip(&hollow(1 << 20))),
            (Encoding::Deflate, in_zlib(&hollow(1 << 20))),
            (Encoding::Gzip, empty_member.repeat((1 << 20) / empty_member.len())),
            (Encoding::Zstd, empty_frame.repeat((1 << 20) / empty_frame.len())),
        ] {
            let (decoded, took) = decode(encoding, &body.into(), Work::Light);
            assert!(matches!(decoded, Ok(None)), "{encoding:?}: {decoded:?} after {took:?}");
            assert!(took < Duration::from_millis(50), "{encoding:?} took {took:?}");
        }
        let body = Bytes::from(in_gzip(&hollow(32 << 20)));
        let (decoded, took) = decode(Encoding::Gzip, &body, Work::Medium);
        assert!(
            matches!(decoded, Ok(None)) && took < Duration::from_millis(150),
            "{decoded:?} after {took:?}"
        );
        let (decoded, took) = decode(Encoding::Gzip, &body, Work::Heavy);
        let refused = decoded.err().map(|problem| problem.to_string()).unwrap_or_default();
        assert!(refused.starts_with("invalid_encoding"), "{refused} after {took:?}");
        assert!(took < Duration::from_millis(1500), "it took {took:?}");
        // Nor after bytes that are cheap to decode.
        let mut zeros = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        zeros.write_all(&vec![0; 60 << 20]).unwrap();
        let body = Bytes::from([zeros.finish().unwrap(), in_gzip(&hollow(32 << 20))].concat());
        let (decoded, took) = decode(Encoding::Gzip, &body, Work::Heavy);
        let refused = decoded.err().map(|problem| problem.to_string()).unwrap_or_default();
        assert!(refused.starts_with("invalid_encoding"), "{refused} after {took:?}");
        assert!(took < Duration::from_millis(2500), "it took {took:?}");
    }

    /// Not even by a machine that is five times slower, and this is the code of a debug build.
    #[test]
    fn usual_bodies_are_never_refused_for_the_time_that_they_take() {
        let mut state = 1_u64;
        let random: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(4 << 20)
        .collect();
        let text: Vec<u8> = random.iter().map(|byte| b"etaoin shrdlu,.\n"[usize::from(byte & 15)]).collect();
        for (what, plain) in [("random bytes", random), ("text", text), ("zeros", vec![0; 4 << 20])] {
            let level = flate2::Compression::new(6);
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
            gzip.write_all(&plain).unwrap();
            let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), level);
            zlib.write_all(&plain).unwrap();
            for (encoding, body) in [
                (Encoding::Gzip, gzip.finish().unwrap()),
                (Encoding::Deflate, zlib.finish().unwrap()),
                (Encoding::Zstd, zstd::encode_all(&plain[..], 3).unwrap()),
            ] {
                let (decoded, took) = decode(encoding, &body.into(), Work::Heavy);
                assert!(
                    decoded.ok().flatten().is_some_and(|decoded| decoded == plain),
                    "{what}: {encoding:?}"
                );
                let Allowance { first, per_byte, .. } = allowance(Work::Heavy);
                let allowed = first + Duration::from_nanos(plain.len() as u64 * per_byte);
                assert!(took * 5 < allowed, "{what}: {encoding:?} took {took:?}");
            }
        }
    }
}
