//! Where the records of a session's body end.

use super::super::{formats::Format, problem::Problem};
use crate::{Code, wire::Prefix};

/// How the records of a body follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Framing {
    /// Each is a line.
    Lines,
    /// Each is a frame: its length comes before it.
    Frames,
}

impl Framing {
    /// The framing of a format. Refuses formats whose records do not follow one another.
    pub(in crate::http) fn of(format: Format) -> Result<Self, Problem> {
        match format {
            Format::Text | Format::Ndjson => Ok(Self::Lines),
            Format::Frames => Ok(Self::Frames),
            Format::Json | Format::Bytes => {
                let types =
                    [Format::Text, Format::Ndjson, Format::Frames].map(Format::content_type).join(", ");
                let detail = format!("a session takes records that follow one another, as one of: {types}");
                Err(Problem::new(Code::UnsupportedType, detail))
            }
        }
    }

    /// How many bytes at the beginning are whole records: as many as are within `max` bytes, and this many `records`;
    /// one if that has more bytes; 0 if none is whole.
    pub(super) fn whole(self, bytes: &[u8], max: usize, records: usize) -> usize {
        match self {
            Self::Lines => whole_lines(bytes, max, records),
            Self::Frames => whole_frames(bytes, max, records),
        }
    }

    /// How many bytes of `more` complete the record that begins with `begun`; `None` if it goes on after them.
    pub(super) fn completes(self, begun: &[u8], more: &[u8]) -> Option<usize> {
        match self {
            Self::Lines => memchr::memchr(b'\n', more).map(|end| end + 1),
            Self::Frames => {
                let mut prefix = [0; Prefix::BYTES];
                let known = begun.iter().chain(more).take(prefix.len());
                prefix.iter_mut().zip(known).for_each(|(to, from)| *to = *from);
                if begun.len() + more.len() < prefix.len() {
                    return None;
                }
                frame_bytes(&prefix)?.checked_sub(begun.len()).filter(|&rest| rest <= more.len())
            }
        }
    }

    /// An error if a body may not end with a record that has no end.
    pub(super) fn check_unended(self) -> Result<(), Problem> {
        match self {
            Self::Lines => Ok(()),
            Self::Frames => Err(Problem::new(Code::InvalidFrame, "the body ends within a frame")),
        }
    }

    /// How many lines or frames these whole records are: what says which one is wrong. Blank lines count.
    pub(super) fn count(self, bytes: &[u8]) -> u64 {
        match self {
            Self::Lines => memchr::memchr_iter(b'\n', bytes).count() as u64,
            Self::Frames => {
                let lengths = std::iter::successors(frame_bytes(bytes), |&end| {
                    Some(end + frame_bytes(bytes.get(end..)?)?)
                });
                lengths.take_while(|&end| end <= bytes.len()).count() as u64
            }
        }
    }

    /// How many bytes the record that begins with `begun` has, if it says so.
    pub(super) fn announced(self, begun: &[u8]) -> Option<usize> {
        match self {
            Self::Lines => None,
            Self::Frames => frame_bytes(begun),
        }
    }
}

fn whole_lines(bytes: &[u8], max: usize, records: usize) -> usize {
    let within = &bytes[..bytes.len().min(max)];
    let end = memchr::memrchr(b'\n', within);
    let end = end.or_else(|| memchr::memchr(b'\n', bytes)); // none is within
    let Some(end) = end else { return 0 };
    let nth = (records <= end).then(|| memchr::memchr_iter(b'\n', &bytes[..end]).nth(records - 1)).flatten();
    nth.unwrap_or(end) + 1
}

fn whole_frames(bytes: &[u8], max: usize, records: usize) -> usize {
    let mut end = 0;
    for _ in 0..records {
        match frame_bytes(&bytes[end..]).filter(|&length| length <= bytes.len() - end) {
            Some(length) if end == 0 || end + length <= max => end += length,
            _ => break,
        }
    }
    end
}

/// The bytes of the frame that begins here; `None` if its prefix is not whole.
fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let prefix = bytes.first_chunk().copied().map(Prefix::from_bytes)?;
    Some(Prefix::BYTES + prefix.length as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(framing: Framing, records: &[Vec<u8>]) -> Vec<u8> {
        let mut body = Vec::new();
        for record in records {
            if framing == Framing::Frames {
                body.extend_from_slice(&Prefix::new(record.len(), false).to_bytes());
                body.extend_from_slice(record);
            } else {
                body.extend(record.iter().filter(|&&byte| byte != b'\n'));
                body.push(b'\n');
            }
        }
        body
    }

    proptest! {
        /// Wherever a body is cut, each record is found once, and whole.
        #[test]
        fn records_are_found_wherever_a_body_is_cut(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            cuts in prop::collection::vec(1..50usize, 1..20),
            max in 1..100usize,
            at_once in 1..5usize,
            is_frames: bool,
        ) {
            let framing = if is_frames { Framing::Frames } else { Framing::Lines };
            let body = encoded(framing, &records);
            let (mut left, mut begun, mut pieces, mut cuts) = (&body[..], Vec::new(), Vec::new(), cuts.iter().cycle());
            while !left.is_empty() {
                let (mut data, rest) = left.split_at(left.len().min(*cuts.next().unwrap()));
                left = rest;
                if !begun.is_empty() {
                    let rest = framing.completes(&begun, data);
                    let (part, after) = data.split_at(rest.unwrap_or(data.len()));
                    begun.extend_from_slice(part);
                    data = after;
                    if rest.is_some() {
                        pieces.push(std::mem::take(&mut begun));
                    }
                }
                loop {
                    let length = framing.whole(data, max, at_once);
                    if length == 0 {
                        break;
                    }
                    let (piece, after) = data.split_at(length);
                    let first = if is_frames { frame_bytes(piece).unwrap() } else { framing.whole(piece, 1, 1) };
                    prop_assert!(length <= max.max(first), "{} of {}", length, max);
                    pieces.push(piece.to_vec());
                    data = after;
                }
                begun.extend_from_slice(data);
            }
            prop_assert!(begun.is_empty());
            for piece in &pieces {
                prop_assert_eq!(framing.whole(piece, usize::MAX, usize::MAX), piece.len());
                let first = framing.whole(piece, usize::MAX, at_once);
                prop_assert_eq!(first, piece.len(), "more than {} records", at_once);
            }
            prop_assert_eq!(pieces.concat(), body);
        }
    }
}
