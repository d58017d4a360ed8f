//! Where a time is in a log: segments are found by when their newest records were appended, and a record in one of them by
//! halving.

use super::{Error, Log, Shared, chain::newest};

impl Shared {
    /// The offsets of the first segment that may have a record that was appended at `time` or later; from the end on,
    /// if no segment has one.
    fn segment_since(&self, time: u64) -> (u64, u64) {
        let mut segments = self.chain.load_full().segments.clone();
        while let Some(next) = segments.last().and_then(|last| last.next.load_full()) {
            segments.push(next); // with records in memory only
        }
        let now = self.env.machine.now();
        let last = segments.len().saturating_sub(1);
        let old = (0..last).take_while(|&n| newest(&segments[n..], now) < time).count();
        let from = segments.get(old).map_or(0, |segment| segment.base());
        (from, segments.get(old + 1).map_or(u64::MAX, |segment| segment.base()))
    }
}

impl Log {
    /// The offset of the first record that was appended at `time` (milliseconds since 1970) or later; the next offset
    /// if there is none. Reads about as many records as a segment's length has binary digits. If the clock was wrong
    /// for a while, this goes by what can be believed: a record whose time lies in the future counts as older than the
    /// segment after it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn offset_since(&self, time: u64) -> Result<u64, Error> {
        let (mut low, mut high) = self.shared.segment_since(time);
        high = high.min(self.visible_offset());
        let mut reader = self.reader(low);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut at = middle;
            let known = loop {
                match reader.time_of(at) {
                    // The one after it is as old, or younger.
                    Err(error) if error.bad_record().is_some() => {
                        at = self.next_readable(at + 1)?;
                        if at >= high {
                            break Ok(None);
                        }
                    }
                    known => break known,
                }
            };
            match known {
                Ok(Some(known)) if known < time => low = at + 1,
                Ok(_) => high = middle,
                Err(Error::Trimmed { first, .. }) => low = first.max(low),
                Err(error) => return Err(error),
            }
        }
        Ok(low)
    }
}
