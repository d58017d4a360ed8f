//! The body of a session, taken apart into batches of whole records as it arrives.

use super::super::{
    body,
    context::Context,
    effort::Work,
    formats::{self, DecodedBatch, Format},
    memory::{Buffer, Memory, Purpose, UNCOUNTED_BYTES},
    permits::OFFLOAD_BYTES,
    problem::Problem,
    segment_room::SegmentRoom,
    settings::Settings,
    share::ConnectionShare,
    upload::ArrivalPace,
};
use crate::{BATCH_EXTRA_BYTES, Code, chunk::record_needs, store::OpenLog, wire::Prefix};
use bytes::Bytes;
use std::sync::Arc;
use tokio::time::Instant;

/// The most bytes of a body that are appended at once, unless one record has more: as much as is done without a permit.
const MAX_PART_BYTES: usize = 64 << 10;
/// The most records of a body that are appended at once, likewise.
const MAX_PART_RECORDS: usize = 2000;

/// Takes the body of a session apart into batches.
pub(super) struct Source {
    format: Format,
    log: Arc<OpenLog>,
    memory: Arc<Memory>,
    settings: Arc<Settings>,
    /// The most bytes that a record may have.
    most: usize,
    /// The most bytes that a part may have, unless it is one record.
    most_of_part: usize,
    /// The bytes of a segment.
    segment: usize,
    /// A record that has arrived in parts.
    joined: Option<Bytes>,
    /// What has arrived after that.
    left: Bytes,
    /// How many bytes of it are taken next; 0 if it has no whole record.
    next: usize,
    /// The beginning of a record. While there is one, `left` is empty.
    begun: Option<Begun>,
    /// Whether nothing has been taken yet.
    is_first: bool,
    /// How many lines have been taken, to say which one is wrong.
    lines: u64,
}

/// The beginning of a record.
struct Begun {
    /// As long as it is small it takes nothing of the budget: a client may send a part of a line, and the rest much later.
    small: Vec<u8>,
    large: Option<Buffer>,
    /// Since when it is large.
    since: Instant,
    pace: ArrivalPace,
}

impl Begun {
    fn bytes(&self) -> &[u8] {
        self.large.as_ref().map_or(&self.small, Buffer::bytes)
    }

    fn freeze(self) -> Bytes {
        self.large.map_or_else(|| self.small.into(), Buffer::freeze)
    }
}

/// Refuses formats whose records do not follow one another.
pub(in crate::http) fn check_format(format: Format) -> Result<(), Problem> {
    if matches!(format, Format::Text | Format::Ndjson | Format::Frames) {
        return Ok(());
    }
    let types = [Format::Text, Format::Ndjson, Format::Frames].map(Format::content_type).join(", ");
    let detail = format!("a session takes records that follow one another, as one of: {types}");
    Err(Problem::new(Code::UnsupportedType, detail))
}

impl Source {
    pub(super) fn new(format: Format, context: &Context, log: &Arc<OpenLog>) -> Self {
        let segment = context.store.batch_bytes(log.settings()) as usize;
        let most = segment.min(context.settings.body_bytes);
        Self {
            format,
            log: Arc::clone(log),
            memory: Arc::clone(&context.memory),
            settings: Arc::clone(&context.settings),
            most,
            segment,
            // However small its records are, a part fits into a segment.
            most_of_part: MAX_PART_BYTES
                .min(segment.saturating_sub(BATCH_EXTRA_BYTES as usize) / record_needs(0) as usize)
                .max(1),
            joined: None,
            left: Bytes::new(),
            next: 0,
            begun: None,
            is_first: true,
            lines: 0,
        }
    }

    /// Whether there are records to be taken.
    pub(super) fn has_whole_records(&self) -> bool {
        self.joined.is_some() || self.next > 0
    }

    /// Adds what has arrived. To be called when there are no records to be taken.
    pub(super) async fn push(&mut self, data: Bytes, share: &ConnectionShare) -> Result<(), Problem> {
        self.left = data;
        if let Some(begun) = &self.begun {
            let rest = completes(self.format, begun.bytes(), &self.left);
            let part = self.left.split_to(rest.unwrap_or(self.left.len()));
            self.extend(&part, share).await?;
            if rest.is_some() {
                self.joined = self.begun.take().map(Begun::freeze);
            }
        }
        self.look_for_next(share).await
    }

    /// The body has ended: a last line may have no end.
    pub(super) fn end(&mut self) -> Result<(), Problem> {
        let Some(begun) = self.begun.take() else { return Ok(()) };
        if self.format == Format::Frames {
            return Err(Problem::new(Code::InvalidFrame, "the body ends within a frame"));
        }
        self.joined = Some(begun.freeze());
        Ok(())
    }

    /// Takes the next records, which come after `taken` others; `None` if there are only blank lines.
    pub(super) async fn batch(
        &mut self,
        context: &Context,
        share: &ConnectionShare,
        taken: u64,
    ) -> Result<Option<DecodedBatch>, Problem> {
        let bytes = if let Some(joined) = self.joined.take() {
            joined
        } else {
            let bytes = self.left.split_to(self.next);
            self.look_for_next(share).await?;
            bytes
        };
        let ends = if self.format == Format::Ndjson { memchr::memchr_iter(b'\n', &bytes).count() } else { 0 };
        let part = Part {
            format: self.format,
            log: Arc::clone(&self.log),
            room: SegmentRoom::new(self.segment as u64),
            is_first: self.is_first,
            lines: self.lines,
        };
        self.is_first = false;
        self.lines += ends as u64;
        let batch = if bytes.len() < OFFLOAD_BYTES {
            part.parse(bytes)
        } else {
            let work = Work::of(bytes.len());
            Box::pin(body::with_permit(context, share, work, move || part.parse(bytes))).await?
        };
        batch.map_err(|problem| problem.after_records(taken))
    }

    /// The session goes on after it could not read: the client had to wait.
    pub(super) fn resumed(&mut self) {
        if let Some(begun) = &mut self.begun {
            (begun.since, begun.pace) = (Instant::now(), ArrivalPace::begin());
        }
    }

    /// Looks for whole records in what is left. If it is only the beginning of one, keeps that, so that it does not
    /// hold the memory in which it arrived.
    async fn look_for_next(&mut self, share: &ConnectionShare) -> Result<(), Problem> {
        self.next = whole(self.format, &self.left, self.most_of_part, MAX_PART_RECORDS);
        if self.next > 0 || self.left.is_empty() {
            return Ok(());
        }
        let beginning = std::mem::take(&mut self.left);
        self.extend(&beginning, share).await
    }

    /// Adds to the beginning of a record; if there is no memory for it, waits for some.
    async fn extend(&mut self, part: &[u8], share: &ConnectionShare) -> Result<(), Problem> {
        let begun = self.begun.get_or_insert_with(|| Begun {
            small: Vec::new(),
            large: None,
            since: Instant::now(),
            pace: ArrivalPace::begin(),
        });
        let length = begun.bytes().len() + part.len();
        if length > self.most {
            let detail = format!("a record has more than {} bytes", self.most);
            return Err(Problem::new(Code::RecordTooLarge, detail));
        }
        begun.pace.came(part.len());
        if begun.large.is_none() && length <= UNCOUNTED_BYTES {
            begun.small.extend_from_slice(part);
            return Ok(());
        }
        if begun.large.is_none() {
            (begun.since, begun.pace) = (Instant::now(), ArrivalPace::begin());
            begun.pace.came(part.len());
        }
        let fresh = || Buffer::new(self.most, self.memory.grant(Purpose::Request));
        let mut buffer = begun.large.take().unwrap_or_else(fresh);
        let small = std::mem::take(&mut begun.small);
        for part in [&small, part] {
            begun.pace.extend(&mut buffer, part, &self.memory, share, self.settings.queue_time).await?;
        }
        begun.large = Some(buffer);
        Ok(())
    }

    /// When [`check_pace`](Self::check_pace) is to be called.
    pub(super) fn pace_due(&self) -> Option<Instant> {
        let begun = self.begun.as_ref().filter(|begun| begun.large.is_some())?;
        Some(begun.pace.due())
    }

    /// An error if a large record takes too long to arrive; or comes slowly, while others wait for memory.
    pub(super) fn check_pace(&mut self, share: &ConnectionShare) -> Result<(), Problem> {
        let Some(begun) = &mut self.begun else { return Ok(()) };
        let Some(held) = begun.large.as_ref().map(Buffer::held) else { return Ok(()) };
        let most = self.settings.body_time;
        if begun.since.elapsed() > most {
            let detail = format!("a record did not arrive within {} seconds", most.as_secs());
            return Err(Problem::new(Code::BodyTooSlow, detail));
        }
        if begun.pace.take_verdict(held, &self.memory, share, most) {
            let detail = "a record came slowly, while others waited for the memory that it held";
            return Err(Problem::new(Code::BodyTooSlow, detail));
        }
        Ok(())
    }
}

/// A part of a body that is to be parsed.
struct Part {
    format: Format,
    log: Arc<OpenLog>,
    room: SegmentRoom,
    is_first: bool,
    lines: u64,
}

impl Part {
    /// The batch in it; `None` if there are only blank lines.
    fn parse(self, bytes: Bytes) -> Result<Option<DecodedBatch>, Problem> {
        let bytes = if self.is_first { formats::without_byte_order_mark(self.format, bytes) } else { bytes };
        let mut batch = formats::parse_part(self.format, bytes, self.room, self.lines)?;
        if batch.records() == 0 {
            return Ok(None);
        }
        batch.check(self.log.settings())?;
        Ok(Some(batch))
    }
}

/// How many bytes at the beginning are whole records: as many as are within `most` bytes, and this many `records`; one
/// if that has more bytes; 0 if none is whole.
fn whole(format: Format, bytes: &[u8], most: usize, records: usize) -> usize {
    let within = &bytes[..bytes.len().min(most)];
    if format != Format::Frames {
        let end = memchr::memrchr(b'\n', within);
        let end = end.or_else(|| memchr::memchr(b'\n', bytes)); // none is within
        let Some(end) = end else { return 0 };
        let nth =
            (records <= end).then(|| memchr::memchr_iter(b'\n', &bytes[..end]).nth(records - 1)).flatten();
        return nth.unwrap_or(end) + 1;
    }
    let mut end = 0;
    for _ in 0..records {
        match frame_bytes(&bytes[end..]).filter(|&length| length <= bytes.len() - end) {
            Some(length) if end == 0 || end + length <= most => end += length,
            _ => break,
        }
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
            at_once in 1..5usize,
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
                    let length = whole(format, data, most, at_once);
                    if length == 0 {
                        break;
                    }
                    let (piece, after) = data.split_at(length);
                    let first = if is_frames { frame_bytes(piece).unwrap() } else { whole(format, piece, 1, 1) };
                    prop_assert!(length <= most.max(first), "{} of {}", length, most);
                    pieces.push(piece.to_vec());
                    data = after;
                }
                begun.extend_from_slice(data);
            }
            prop_assert!(begun.is_empty());
            for piece in &pieces {
                prop_assert_eq!(whole(format, piece, usize::MAX, usize::MAX), piece.len());
                let first = whole(format, piece, usize::MAX, at_once);
                prop_assert_eq!(first, piece.len(), "more than {} records", at_once);
            }
            prop_assert_eq!(pieces.concat(), body);
        }
    }
}
