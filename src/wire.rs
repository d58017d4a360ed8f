//! Wire frames: records in `application/vnd.millstream.frames`, as the server and the client exchange them. No I/O.
//!
//! Frames follow one another without anything between them. All numbers are little-endian; bit 31 of the length is set
//! if the value is JSON, and does not count. The time is in milliseconds since 1970; a record that is marked as lost has
//! no value, and the largest time.
//!
//! ```text
//! in a body to append             in an answer
//!
//! 0      4          4+length      0      4      12     20         20+length
//! ├──────┼────────────┤           ├──────┼──────┼──────┼────────────┤
//! │length│ value      │           │length│offset│ time │ value      │
//! └──────┴────────────┘           └──────┴──────┴──────┴────────────┘
//!   u32                             u32    u64    u64
//! ```
//!
//! What always holds: a frame that is cut anywhere is not accepted, and no length that a peer claims is believed before
//! that many bytes have arrived. The frames of segment files are different: see `frame.rs`.

/// The media type of a body that consists of wire frames.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.millstream.frames";
/// The header with the id of the log that was read: a log that is created again after it was deleted has another one.
pub(crate) const LOG_ID: &str = "millstream-log-id";
/// The header with the offset to read from next.
pub(crate) const NEXT_OFFSET: &str = "millstream-next-offset";

/// What each frame begins with: the length of its value, and whether the value is JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// Less than 2 GiB.
    pub(crate) length: u32,
    pub(crate) json: bool,
}

impl Prefix {
    pub(crate) const BYTES: usize = 4;
    /// The mark of JSON in the length.
    const JSON: u32 = 1 << 31;

    /// The prefix of a value, which fits into a segment and so is shorter than 2 GiB.
    #[inline]
    pub(crate) fn new(length: usize, json: bool) -> Self {
        debug_assert!(length < Self::JSON as usize);
        Self { length: length as u32, json }
    }

    #[inline]
    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        (self.length | if self.json { Self::JSON } else { 0 }).to_le_bytes()
    }

    #[inline]
    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let word = u32::from_le_bytes(bytes);
        Self { length: word & !Self::JSON, json: word & Self::JSON != 0 }
    }
}

/// A frame in a body to append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AppendFrame<'a> {
    pub(crate) json: bool,
    pub(crate) value: &'a [u8],
}

impl<'a> AppendFrame<'a> {
    /// The first frame of a body, and what follows it; `None` if the body ends before the frame does.
    #[inline]
    pub(crate) fn split(body: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (prefix, rest) = body.split_first_chunk()?;
        let Prefix { length, json } = Prefix::from_bytes(*prefix);
        let (value, rest) = rest.split_at_checked(length as usize)?;
        Some((Self { json, value }, rest))
    }
}

/// A frame in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerFrame<'a> {
    pub(crate) offset: u64,
    pub(crate) time: u64,
    pub(crate) json: bool,
    pub(crate) value: &'a [u8],
}

/// The time in the frame of a record that is marked as lost.
pub(crate) const LOST_TIME: u64 = u64::MAX;

impl<'a> AnswerFrame<'a> {
    /// The bytes of a frame before its value.
    #[cfg(any(feature = "server", test))]
    pub(crate) const HEAD_BYTES: usize = Prefix::BYTES + 8 + 8;

    #[cfg(any(feature = "server", test))]
    #[inline]
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&Prefix::new(self.value.len(), self.json).to_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(self.value);
    }

    /// The first frame of an answer, and what follows it; `None` if the answer ends before the frame does.
    #[cfg(any(feature = "client", test))]
    pub(crate) fn split(answer: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (prefix, rest) = answer.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (time, rest) = rest.split_first_chunk()?;
        let Prefix { length, json } = Prefix::from_bytes(*prefix);
        let (value, rest) = rest.split_at_checked(length as usize)?;
        let (offset, time) = (u64::from_le_bytes(*offset), u64::from_le_bytes(*time));
        Some((Self { offset, time, json, value }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A client in any language has these bytes from `docs/api.md`.
    #[test]
    fn the_bytes_of_frames_are_as_documented() {
        let append = b"\x02\0\0\x8012\x01\0\0\0x";
        let (first, rest) = AppendFrame::split(append).unwrap();
        assert_eq!(first, AppendFrame { json: true, value: b"12" });
        let second = AppendFrame { json: false, value: b"x" };
        assert_eq!(AppendFrame::split(rest), Some((second, &[][..])));

        let mut answer = Vec::new();
        AnswerFrame { offset: 0x0102, time: 0x03, json: true, value: b"12" }.write(&mut answer);
        assert_eq!(answer, b"\x02\0\0\x80\x02\x01\0\0\0\0\0\0\x03\0\0\0\0\0\0\x0012");
    }

    /// Whoever reserves memory for what a frame claims gives away 2 GiB for four bytes.
    #[test]
    fn a_length_without_its_bytes_is_not_a_frame() {
        assert_eq!(AppendFrame::split(&[0xff; 4]), None);
        assert_eq!(AnswerFrame::split(&[0xff; AnswerFrame::HEAD_BYTES]), None);
        assert_eq!(Prefix::from_bytes([0xff; 4]), Prefix { length: u32::MAX >> 1, json: true });
    }

    proptest! {
        #[test]
        fn written_frames_are_read_and_cut_ones_are_not(
            offset: u64, time: u64, json: bool, value: Vec<u8>, rest: Vec<u8>,
        ) {
            let frame = AnswerFrame { offset, time, json, value: &value };
            let mut answer = Vec::new();
            frame.write(&mut answer);
            prop_assert_eq!(answer.len(), AnswerFrame::HEAD_BYTES + value.len());
            for end in 0..answer.len() {
                prop_assert_eq!(AnswerFrame::split(&answer[..end]), None);
            }
            answer.extend_from_slice(&rest);
            prop_assert_eq!(AnswerFrame::split(&answer), Some((frame, &rest[..])));

            let mut append = [&Prefix::new(value.len(), json).to_bytes()[..], &value].concat();
            for end in 0..append.len() {
                prop_assert_eq!(AppendFrame::split(&append[..end]), None);
            }
            append.extend_from_slice(&rest);
            let frame = AppendFrame { json, value: &value };
            prop_assert_eq!(AppendFrame::split(&append), Some((frame, &rest[..])));
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes: Vec<u8>) {
            if let Some((frame, rest)) = AnswerFrame::split(&bytes) {
                let mut again = Vec::new();
                frame.write(&mut again);
                prop_assert_eq!([&again, rest].concat(), bytes);
            }
        }
    }
}
