//! The body of a session, taken apart into batches of whole records as it arrives.

use super::super::{
    context::Context,
    formats::{self, DecodedBatch, Format},
    memory::{Buffer, Memory, Purpose, UNCOUNTED_BYTES, UsedUp},
    permits::ConnectionShare,
    problem::Problem,
    segment_room::SegmentRoom,
    settings::Settings,
    upload,
};
use crate::{Code, chunk::record_needs, store::OpenLog, wire::Prefix};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The most bytes of a body that are appended at once, unless one record has more.
const PIECE_BYTES: usize = 64 << 10;
/// How often it is looked at whether the rest of a large record comes.
const LOOK: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub(super) struct Source {
    format: Format,
    log: Arc<OpenLog>,
    memory: Arc<Memory>,
    settings: Arc<Settings>,
    /// The most bytes that a record may have; and a piece, unless it is one record.
    most: usize,
    piece: usize,
    /// A record that has arrived in parts.
    joined: Option<Bytes>,
    /// What has arrived after that, and how many bytes of it are whole records.
    left: Bytes,
    whole: usize,
    /// The beginning of a record. Nothing is left then.
    begun: Option<Begun>,
    /// Whether nothing has been taken yet.
    is_first: bool,
    /// How many lines have been taken, to say which one is wrong.
    lines: u64,
}

/// The beginning of a record.
struct Begun {
    buffer: Buffer,
    since: Instant,
    /// When it was last looked at, and how many bytes have come since.
    looked: Instant,
    came: usize,
}

impl Source {
    pub(super) fn new(format: Format, context: &Context, log: &Arc<OpenLog>) -> Result<Self, Problem> {
        if !matches!(format, Format::Text | Format::Ndjson | Format::Frames) {
            let types = [Format::Text, Format::Ndjson, Format::Frames].map(Format::content_type).join(", ");
            let detail = format!("a session takes records that follow one another, as one of: {types}");
            return Err(Problem::new(Code::UnsupportedType, detail));
        }
        let most = context.store.batch_bytes(log.settings()) as usize;
        Ok(Self {
            format,
            log: Arc::clone(log),
            memory: Arc::clone(&context.memory),
            settings: Arc::clone(&context.settings),
            most,
            // However small its records are, a piece fits into a segment.
            piece: PIECE_BYTES.min(most / record_needs(0) as usize).max(1),
            joined: None,
            left: Bytes::new(),
            whole: 0,
            begun: None,
            is_first: true,
            lines: 0,
        })
    }

    /// Whether there are records to be taken.
    pub(super) fn has_whole_records(&self) -> bool {
        self.joined.is_some() || self.whole > 0
    }

    /// Adds what has arrived. To be called when there are no records to be taken.
    pub(super) async fn push(&mut self, data: Bytes) -> Result<(), Problem> {
        self.left = data;
        if let Some(begun) = &self.begun {
            let rest = completes(self.format, begun.buffer.bytes(), &self.left);
            let part = self.left.split_to(rest.unwrap_or(self.left.len()));
            self.extend(&part).await?;
            if rest.is_some() {
                self.joined = self.begun.take().map(|begun| begun.buffer.freeze());
            }
        }
        self.whole = whole(self.format, &self.left, usize::MAX);
        self.keep_beginning().await
    }

    /// The body has ended: a last line may have no end.
    pub(super) fn end(&mut self) -> Result<(), Problem> {
        let Some(begun) = self.begun.take() else { return Ok(()) };
        if self.format == Format::Frames {
            return Err(Problem::new(Code::InvalidFrame, "the body ends within a frame"));
        }
        self.joined = Some(begun.buffer.freeze());
        Ok(())
    }

    /// Takes the next records, which come after `taken` others; `None` if there are only blank lines.
    pub(super) async fn batch(&mut self, taken: u64) -> Result<Option<DecodedBatch>, Problem> {
        let piece = if let Some(joined) = self.joined.take() {
            joined
        } else {
            let length = if self.whole <= self.piece {
                self.whole
            } else {
                whole(self.format, &self.left, self.piece)
            };
            self.whole -= length;
            let piece = self.left.split_to(length);
            self.keep_beginning().await?;
            piece
        };
        let ends = if self.format == Format::Ndjson { memchr::memchr_iter(b'\n', &piece).count() } else { 0 };
        let batch = self.parse(piece);
        self.is_first = false;
        self.lines += ends as u64;
        batch.map_err(|problem| problem.after_records(taken))
    }

    fn parse(&self, piece: Bytes) -> Result<Option<DecodedBatch>, Problem> {
        let room = SegmentRoom::new(self.most as u64);
        let piece = if self.is_first { formats::without_mark(self.format, piece) } else { piece };
        let mut batch = formats::parse_part(self.format, piece, room, self.lines)?;
        if batch.records() == 0 {
            return Ok(None);
        }
        batch.check(self.log.settings())?;
        Ok(Some(batch))
    }

    /// If what is left is the beginning of a record, keeps it, so that it does not hold the memory in which it arrived.
    async fn keep_beginning(&mut self) -> Result<(), Problem> {
        if self.whole > 0 || self.left.is_empty() {
            return Ok(());
        }
        let beginning = std::mem::take(&mut self.left);
        self.extend(&beginning).await
    }

    /// Adds to the beginning of a record; if there is no memory for it, waits for some.
    async fn extend(&mut self, part: &[u8]) -> Result<(), Problem> {
        let now = Instant::now();
        let begun = self.begun.get_or_insert_with(|| {
            let buffer = Buffer::new(self.most, self.memory.grant(Purpose::Request));
            Begun { buffer, since: now, looked: now, came: 0 }
        });
        if part.len() > begun.buffer.left() {
            let detail = format!("a record has more than the {} bytes of a segment", self.most);
            return Err(Problem::new(Code::RecordTooLarge, detail));
        }
        begun.came += part.len();
        let Err(UsedUp) = begun.buffer.extend(part) else { return Ok(()) };
        begun.buffer.cover_within(part.len(), self.settings.queue_time, &upload::ASK).await?;
        (begun.looked, begun.came) = (Instant::now(), 0); // the client had to wait
        Ok(begun.buffer.extend(part)?)
    }

    /// When [`judge`](Self::judge) is to be called.
    pub(super) fn look_at(&self) -> Option<Instant> {
        let begun = self.begun.as_ref().filter(|begun| begun.buffer.held() > UNCOUNTED_BYTES)?;
        Some(begun.looked + LOOK)
    }

    /// An error if a large record takes too long to arrive; or comes slowly, while others wait for memory.
    pub(super) fn judge(&mut self, share: &ConnectionShare) -> Result<(), Problem> {
        let Some(begun) = self.begun.as_mut().filter(|begun| begun.buffer.held() > UNCOUNTED_BYTES) else {
            return Ok(());
        };
        let (most, held, took) = (self.settings.body_time, begun.buffer.held(), begun.looked.elapsed());
        if begun.since.elapsed() > most {
            let detail = format!("a record did not arrive within {} seconds", most.as_secs());
            return Err(Problem::new(Code::BodyTooSlow, detail));
        }
        let is_slow = upload::is_slow(held, begun.came, took, most);
        (begun.looked, begun.came) = (Instant::now(), 0);
        if is_slow && self.memory.has_waiting_beside(share.waiting_bodies()) {
            let detail = "a record came slowly, while others waited for the memory that it held";
            return Err(Problem::new(Code::BodyTooSlow, detail));
        }
        Ok(())
    }
}

/// How many bytes at the beginning are whole records: as many as are within `most`, and one if that has more; 0 if none is
/// whole.
fn whole(format: Format, bytes: &[u8], most: usize) -> usize {
    let within = &bytes[..bytes.len().min(most)];
    if format != Format::Frames {
        let end = memchr::memrchr(b'\n', within);
        let end = end.or_else(|| memchr::memchr(b'\n', bytes)); // none is within
        return end.map_or(0, |end| end + 1);
    }
    let mut end = 0;
    while let Some(length) = frame_bytes(&bytes[end..]).filter(|&length| length <= bytes.len() - end) {
        if end > 0 && end + length > most {
            break;
        }
        end += length;
    }
    end
}

/// How many bytes of `more` complete the record that begins with `begun`; `None` if it goes on after them.
fn completes(format: Format, begun: &[u8], more: &[u8]) -> Option<usize> {
    if format != Format::Frames {
        return memchr::memchr(b'\n', more).map(|end| end + 1);
    }
    let mut prefix = [0; Prefix::BYTES];
    let known = begun.iter().chain(more).take(prefix.len());
    prefix.iter_mut().zip(known).for_each(|(to, from)| *to = *from);
    if begun.len() + more.len() < prefix.len() {
        return None;
    }
    frame_bytes(&prefix)?.checked_sub(begun.len()).filter(|&rest| rest <= more.len())
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

    fn encoded(format: Format, records: &[Vec<u8>]) -> Vec<u8> {
        let mut body = Vec::new();
        for record in records {
            if format == Format::Frames {
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
            most in 1..100usize,
            is_frames: bool,
        ) {
            let format = if is_frames { Format::Frames } else { Format::Text };
            let body = encoded(format, &records);
            let (mut left, mut begun, mut pieces, mut cuts) = (&body[..], Vec::new(), Vec::new(), cuts.iter().cycle());
            while !left.is_empty() {
                let (mut data, rest) = left.split_at(left.len().min(*cuts.next().unwrap()));
                left = rest;
                if !begun.is_empty() {
                    let rest = completes(format, &begun, data);
                    let (part, after) = data.split_at(rest.unwrap_or(data.len()));
                    begun.extend_from_slice(part);
                    data = after;
                    if rest.is_some() {
                        pieces.push(std::mem::take(&mut begun));
                    }
                }
                loop {
                    let length = whole(format, data, most);
                    if length == 0 {
                        break;
                    }
                    let (piece, after) = data.split_at(length);
                    let first = if is_frames { frame_bytes(piece).unwrap() } else { whole(format, piece, 1) };
                    prop_assert!(length <= most.max(first), "{} of {}", length, most);
                    pieces.push(piece.to_vec());
                    data = after;
                }
                begun.extend_from_slice(data);
            }
            prop_assert!(begun.is_empty());
            for piece in &pieces {
                prop_assert_eq!(whole(format, piece, usize::MAX), piece.len());
            }
            prop_assert_eq!(pieces.concat(), body);
        }
    }
}
