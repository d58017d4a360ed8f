//! Imports that can be repeated: records are taken from something that can be read again from its beginning, a file that
//! grows for example, and each is stored once however often the import is started.
//!
//! The way: a producer (see [`ProducerBatch`](crate::ProducerBatch)) sends with each batch a mark that says how far the
//! import has come, and what it has read up to there. When it starts again, it gets the mark back, skips that part of
//! the source, and continues after it. If that part is not what was read then, the import is refused: nobody knows
//! which of its records would be new.

use crate::wire::Prefix;
use std::{
    fmt,
    io::{self, BufRead, Read},
    str::FromStr,
};

/// U+FEFF in UTF-8, which some editors write at the beginning of text.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// What each record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// A line, without its line end (`\n` or `\r\n`).
    Lines,
    /// A line that is JSON; lines of white space are skipped.
    Json,
    /// Everything there is: one record, unless it is empty.
    Whole,
    /// A frame of `application/vnd.millstream.frames`, as in a body to append (see `docs/api.md`); it says whether the
    /// record is JSON.
    Frames,
}

impl Split {
    /// What `append --format` and marks call it.
    fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Json => "ndjson",
            Self::Whole => "whole",
            Self::Frames => "frames",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Lines, Self::Json, Self::Whole, Self::Frames].into_iter().find(|split| split.name() == name)
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far an import has come. As text, it is the mark of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The bytes of the source that were read.
    pub bytes: u64,
    /// The number of records in them.
    pub records: u64,
    /// CRC-32C of these bytes.
    crc: u32,
    /// Whether the last record ended with the source, not with a line end: more bytes would have been a part of it.
    open: bool,
    /// What the records are. Marks of earlier versions do not say it.
    split: Option<Split>,
}

impl Progress {
    /// Whether the last record ended with the source, and not with a line end: it may be a part of what will be there
    /// later.
    pub fn is_open(&self) -> bool {
        self.open
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, records, crc, open, split } = self;
        write!(
            f,
            "import: {bytes} bytes, {records} records, crc {crc:08x}, {}",
            if *open { "open" } else { "closed" }
        )?;
        split.map_or(Ok(()), |split| write!(f, ", {split}"))
    }
}

/// The text is not the mark of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not the mark of an import")]
pub struct NoProgress;

impl FromStr for Progress {
    type Err = NoProgress;

    fn from_str(text: &str) -> Result<Self, NoProgress> {
        let fields = text.strip_prefix("import: ").ok_or(NoProgress)?;
        let mut fields = fields.split(", ");
        let mut field = |before: &str, after: &str| fields.next()?.strip_prefix(before)?.strip_suffix(after);
        let mut parsed = || {
            let bytes = field("", " bytes")?.parse().ok()?;
            let records = field("", " records")?.parse().ok()?;
            let crc = u32::from_str_radix(field("crc ", "")?, 16).ok()?;
            let open = match field("", "")? {
                "open" => true,
                "closed" => false,
                _ => return None,
            };
            let split = match field("", "") {
                Some(name) => Some(Split::named(name)?),
                None => None,
            };
            Some(Self { bytes, records, crc, open, split })
        };
        let progress = parsed().ok_or(NoProgress)?;
        if progress.to_string() == text { Ok(progress) } else { Err(NoProgress) }
    }
}

/// Why an import cannot continue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source does not begin with what was imported.
    #[error("its first {bytes} bytes are not those that were imported: {why}; import it under another name")]
    Changed {
        /// The bytes that were imported.
        bytes: u64,
        /// In what way they differ.
        why: &'static str,
    },
    /// It was split into other records when it was imported: nobody knows which of these would be new.
    #[error(
        "its records were taken as {imported}, and not as {given}; import it as {imported}, or under another name"
    )]
    AnotherSplit {
        /// What the records were.
        imported: Split,
        /// What they are to be now.
        given: Split,
    },
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
}

/// Something that is imported.
///
/// # Example
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use millstream::import::{Progress, Source, Split};
/// let mut record = Vec::new();
/// let mut first = Source::new(&b"one\ntwo\n"[..], Split::Lines);
/// while first.next(&mut record)? {} // and append each of them
/// let mark = first.progress().to_string(); // sent with the last batch
///
/// let mut grown = Source::new(&b"one\ntwo\nthree\n"[..], Split::Lines);
/// grown.resume(&mark.parse::<Progress>()?)?;
/// assert!(grown.next(&mut record)? && record == b"three");
///
/// let mut changed = Source::new(&b"One\ntwo\nthree\n"[..], Split::Lines);
/// assert!(changed.resume(&mark.parse::<Progress>()?).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Source<R> {
    from: R,
    split: Split,
    progress: Progress,
    /// Whether the last record is JSON.
    json: bool,
    /// The most bytes of a record.
    record_bytes: u64,
    /// The lines that were read, of a source that has some.
    lines: u64,
}

impl<R: BufRead> Source<R> {
    /// Begins at the beginning.
    pub fn new(from: R, split: Split) -> Self {
        let json = split == Split::Json;
        let progress = Progress { split: Some(split), ..Progress::default() };
        Self { from, split, progress, json, record_bytes: u64::MAX, lines: 0 }
    }

    /// Refuses records of more bytes than this: [`next`](Self::next) returns an error that says which record it is, and
    /// does not read the rest of it.
    pub fn limit_records(&mut self, bytes: u64) {
        self.record_bytes = bytes;
    }

    /// How far it was read.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether the record that was read last is JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// What people call the record that was read last: by its number, and the line that it is in if that is another one.
    pub fn name(&self) -> String {
        self.name_of(self.progress.records)
    }

    fn name_of(&self, record: u64) -> String {
        match self.lines {
            0 => format!("record {record}"),
            line if line == record => format!("record {record}"),
            line => format!("record {record} (line {line})"),
        }
    }

    /// Skips the part of the source that was imported before. Must be called before anything is read.
    ///
    /// # Errors
    /// [`Error::AnotherSplit`], before anything is read; [`Error::Changed`] if the source does not begin with it;
    /// [`Error::Io`].
    pub fn resume(&mut self, imported: &Progress) -> Result<(), Error> {
        if let Some(other) = imported.split.filter(|&split| split != self.split) {
            return Err(Error::AnotherSplit { imported: other, given: self.split });
        }
        let changed = |why| Error::Changed { bytes: imported.bytes, why };
        let (mut left, mut crc) = (imported.bytes, 0);
        while left > 0 {
            let bytes = filled(&mut self.from)?;
            if bytes.is_empty() {
                return Err(changed("it is shorter"));
            }
            let skipped = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            crc = crc32c::crc32c_append(crc, &bytes[..skipped]);
            if matches!(self.split, Split::Lines | Split::Json) {
                self.lines += bytes[..skipped].iter().map(|&byte| u64::from(byte == b'\n')).sum::<u64>();
            }
            self.from.consume(skipped);
            left -= skipped as u64;
        }
        if crc != imported.crc {
            return Err(changed("they differ"));
        }
        self.progress = Progress { split: Some(self.split), ..*imported };
        if imported.open && !filled(&mut self.from)?.is_empty() {
            // A line end only says that the record was complete.
            let mut rest = Vec::new();
            if self.split != Split::Whole {
                self.take_line(&mut rest, LINE_END_BYTES)?;
            }
            if rest != b"\n" && rest != b"\r\n" {
                return Err(changed("the record at their end goes on"));
            }
        }
        Ok(())
    }

    /// Reads the next record into `record`; returns `false` at the end.
    ///
    /// # Errors
    /// What the source reports; [`InvalidData`](io::ErrorKind::InvalidData) if the record is
    /// [too large](Self::limit_records).
    pub fn next(&mut self, record: &mut Vec<u8>) -> io::Result<bool> {
        record.clear();
        if self.split == Split::Frames {
            return self.take_frame(record);
        }
        loop {
            let max = self.record_bytes.saturating_add(1); // which is too large
            if self.split == Split::Whole {
                self.from.by_ref().take(max).read_to_end(record)?;
                self.note_read(record);
            } else {
                let is_first = self.progress.bytes == 0;
                self.take_line(record, max.saturating_add(LINE_END_BYTES))?;
                if is_first && record.starts_with(BYTE_ORDER_MARK) {
                    record.drain(..BYTE_ORDER_MARK.len()); // it is no part of the first line, as in a body
                }
            }
            if record.is_empty() {
                return Ok(false);
            }
            self.progress.open = self.split == Split::Whole || record.last() != Some(&b'\n');
            // One that is longer may not be blank to its end.
            let is_whole = !self.progress.open || record.len() as u64 <= self.record_bytes;
            if self.split == Split::Json && is_whole && record.iter().all(u8::is_ascii_whitespace) {
                record.clear();
                continue;
            }
            if !self.progress.open {
                record.pop();
                if record.last() == Some(&b'\r') {
                    record.pop();
                }
            }
            if record.len() as u64 > self.record_bytes {
                return Err(self.too_large());
            }
            self.progress.records += 1;
            return Ok(true);
        }
    }

    /// Reads the next frame. Its length is not believed before as many bytes were read.
    fn take_frame(&mut self, value: &mut Vec<u8>) -> io::Result<bool> {
        let mut prefix = Vec::with_capacity(Prefix::BYTES);
        self.from.by_ref().take(Prefix::BYTES as u64).read_to_end(&mut prefix)?;
        if prefix.is_empty() {
            return Ok(false);
        }
        let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within a frame");
        let Prefix { length, json } = Prefix::from_bytes(*prefix.first_chunk().ok_or_else(cut)?);
        if u64::from(length) > self.record_bytes {
            return Err(self.too_large());
        }
        self.from.by_ref().take(length.into()).read_to_end(value)?;
        if value.len() < length as usize {
            return Err(cut());
        }
        self.note_read(&prefix);
        self.note_read(value);
        (self.json, self.progress.open) = (json, false);
        self.progress.records += 1;
        Ok(true)
    }

    /// The error about the record after those that were read.
    fn too_large(&self) -> io::Error {
        let (record, max) = (self.name_of(self.progress.records + 1), self.record_bytes);
        let error = format!("{record} has more than {max} bytes, the most that can be appended there");
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Reads up to and including the next line end, but no more than `max` bytes.
    fn take_line(&mut self, line: &mut Vec<u8>, max: u64) -> io::Result<()> {
        self.from.by_ref().take(max).read_until(b'\n', line)?;
        self.note_read(line);
        self.lines += u64::from(!line.is_empty());
        if line.last() == Some(&b'\n') {
            self.progress.open = false;
        }
        Ok(())
    }

    fn note_read(&mut self, bytes: &[u8]) {
        self.progress.bytes += bytes.len() as u64;
        self.progress.crc = crc32c::crc32c_append(self.progress.crc, bytes);
    }
}

/// The bytes of the longest line end, `\r\n`.
const LINE_END_BYTES: u64 = 2;

fn filled(from: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match from.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    from.fill_buf() // what was found above: a borrow that is returned cannot be looked at before
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::BufReader;

    fn all(source: &mut Source<impl BufRead>) -> Vec<(Vec<u8>, Progress)> {
        let (mut all, mut record) = (Vec::new(), Vec::new());
        while source.next(&mut record).unwrap() {
            all.push((record.clone(), source.progress()));
        }
        all
    }

    fn of(bytes: &[u8], split: Split) -> Source<BufReader<&[u8]>> {
        Source::new(BufReader::with_capacity(3, bytes), split)
    }

    fn records(bytes: &[u8], split: Split) -> Vec<Vec<u8>> {
        all(&mut of(bytes, split)).into_iter().map(|(record, _)| record).collect()
    }

    #[test]
    fn records_are_split_as_said() {
        assert_eq!(records(b"a\r\n\nb\r\n c", Split::Lines), [&b"a"[..], b"", b"b", b" c"]);
        assert_eq!(records(b"1\n \n\n{}\r\n", Split::Json), [&b"1"[..], b"{}"]);
        assert_eq!(records(b"a\nb\n", Split::Whole), [b"a\nb\n"]);
        assert!(records(b"", Split::Whole).is_empty() && records(b"", Split::Lines).is_empty());
    }

    #[test]
    fn a_record_that_is_too_large_is_named_and_not_read_to_its_end() {
        let frame = |bytes: &[u8]| [&Prefix::new(bytes.len(), false).to_bytes(), bytes].concat();
        for (split, before, fits, too_large) in [
            (Split::Lines, &b"1\n"[..], b"12345678\r\n".to_vec(), vec![b'9'; 1 << 20]),
            (Split::Lines, b"1\n", b"12345678".to_vec(), b"123456789\n".to_vec()),
            (Split::Json, b"1\n", b"12345678\n".to_vec(), vec![b'9'; 1 << 20]),
            // It was two lines, the first of them blank.
            (Split::Json, b"1\n", b"       8\r\n          \n".to_vec(), [&[b' '; 11][..], b"2\n"].concat()),
            (Split::Whole, b"", b"12345678".to_vec(), vec![b'9'; 1 << 20]),
            (Split::Frames, &frame(b"1"), frame(b"12345678"), frame(&vec![b'9'; 1 << 20])),
        ] {
            let refused = |end: &[u8]| {
                let bytes = [before, end].concat();
                let (mut source, mut record) = (of(&bytes, split), Vec::new());
                source.limit_records(8);
                while source.next(&mut record)? {}
                Ok(source.progress().records)
            };
            let first = u64::from(!before.is_empty());
            assert_eq!(refused(&fits).map_err(|error: io::Error| error.to_string()), Ok(first + 1));
            let said = refused(&too_large).unwrap_err().to_string();
            assert_eq!(
                said,
                format!("record {} has more than 8 bytes, the most that can be appended there", first + 1)
            );
        }
        // Of what is behind it, no more was read than a buffer takes.
        let mut source = Source::new(BufReader::with_capacity(16, io::repeat(b'x')), Split::Lines);
        source.limit_records(8);
        assert_eq!(source.next(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_record_has_the_number_of_its_line_in_its_name_if_blank_lines_are_before_it() {
        let text = b"1\n\n \n2\n3";
        let named = |source: &mut Source<BufReader<&[u8]>>| {
            let (mut names, mut record) = (Vec::new(), Vec::new());
            while source.next(&mut record).unwrap() {
                names.push(source.name());
            }
            names
        };
        assert_eq!(named(&mut of(text, Split::Json)), ["record 1", "record 2 (line 4)", "record 3 (line 5)"]);
        assert_eq!(named(&mut of(text, Split::Lines)).last().unwrap(), "record 5");
        assert_eq!(named(&mut of(text, Split::Whole)), ["record 1"]);
        for end in [3, 7] {
            let mut before = of(&text[..end], Split::Json);
            all(&mut before);
            let mut again = of(text, Split::Json);
            again.resume(&before.progress()).unwrap();
            assert_eq!(named(&mut again).last().unwrap(), "record 3 (line 5)", "after {end} bytes");
        }
    }

    /// What was added to a file was taken for what was stored; a file of another content likewise.
    #[test]
    fn an_import_of_a_grown_file_continues_and_of_a_changed_one_is_refused() {
        let resumed = |split, before: &[u8], now: &[u8]| {
            let mut source = of(before, split);
            all(&mut source);
            let mark: Progress = source.progress().to_string().parse().unwrap();
            let mut source = of(now, split);
            source
                .resume(&mark)
                .map(|()| all(&mut source).into_iter().map(|(record, _)| record).collect::<Vec<_>>())
        };
        for split in [Split::Lines, Split::Json] {
            assert_eq!(resumed(split, b"1\n2\n", b"1\n2\n3\n").unwrap(), [b"3"]);
            assert_eq!(resumed(split, b"1\n2", b"1\n2\n3").unwrap(), [b"3"]);
            assert_eq!(resumed(split, b"1\n2", b"1\n2\r\n3").unwrap(), [b"3"]);
            assert!(resumed(split, b"1\n2", b"1\n2").unwrap().is_empty());
            assert!(resumed(split, b"1\n2", b"1\n2\n").unwrap().is_empty());
            assert_eq!(resumed(split, b"", b"1\n").unwrap(), [b"1"]);
            for (before, now) in [
                (&b"1\n2\n"[..], &b"1\n3\n"[..]),
                (b"1\n2\n", b"1\n"),
                (b"1\n2", b"1\n23\n"),
                (b"1\n", b"2\n1\n"),
            ] {
                assert!(
                    matches!(resumed(split, before, now), Err(Error::Changed { .. })),
                    "{before:?} {now:?}"
                );
            }
        }
        assert!(resumed(Split::Whole, b"1\n2\n", b"1\n2\n").unwrap().is_empty());
        for now in [&b"1\n2\n3"[..], b"1\n", b"1\n3\n"] {
            assert!(matches!(resumed(Split::Whole, b"1\n2\n", now), Err(Error::Changed { .. })));
        }
    }

    /// Records were passed over by their number, of others than had been stored.
    #[test]
    fn an_import_of_other_records_of_the_same_bytes_is_refused_before_anything_is_read() {
        let bytes = b"1\n2\n";
        let mut source = of(bytes, Split::Lines);
        all(&mut source);
        let mark = source.progress().to_string();
        for other in [Split::Json, Split::Whole, Split::Frames] {
            let mut again = of(bytes, other);
            let error = again.resume(&mark.parse().unwrap()).unwrap_err();
            assert!(matches!(error, Error::AnotherSplit { imported: Split::Lines, given } if given == other));
            assert_eq!(again.progress().bytes, 0, "{error}");
        }
        // A mark of an early version fits any `Split`; the next mark names one.
        let early = mark.strip_suffix(", lines").unwrap();
        for split in [Split::Lines, Split::Json] {
            let mut again = of(b"1\n2\n3\n", split);
            again.resume(&early.parse().unwrap()).unwrap();
            assert_eq!(all(&mut again).len(), 1);
            assert!(again.progress().to_string().ends_with(split.name()));
        }
    }

    /// It was stored with the first line, and made a line of JSON a wrong one.
    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let values = |source: &mut Source<BufReader<&'static [u8]>>| {
            all(source).into_iter().map(|(value, _)| value).collect::<Vec<_>>()
        };
        for split in [Split::Lines, Split::Json] {
            let mut source = of(b"\xEF\xBB\xBF1\n2\n", split);
            assert_eq!(values(&mut source), [&b"1"[..], b"2"]);
            let mut again = of(b"\xEF\xBB\xBF1\n2\n\xEF\xBB\xBF3\n", split);
            again.resume(&source.progress()).unwrap();
            assert_eq!(values(&mut again), [b"\xEF\xBB\xBF3"], "not at the beginning");
        }
        assert_eq!(values(&mut of(b"\xEF\xBB\xBF1", Split::Whole)), [b"\xEF\xBB\xBF1"]);
    }

    #[test]
    fn only_import_marks_parse_as_import_marks() {
        let mark = "import: 12 bytes, 3 records, crc 0000abcd, closed";
        for good in [mark, &format!("{mark}, lines"), &format!("{mark}, ndjson")] {
            assert_eq!(good.parse::<Progress>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "line 7",
            "import: 12 bytes",
            &mark[..mark.len() - 1],
            &format!("{mark}, x"),
            &format!("{mark}, "),
            &format!("{mark}, lines, lines"),
            &mark.replace("12", "+12"),
        ] {
            assert_eq!(bad.parse::<Progress>(), Err(NoProgress), "{bad:?}");
        }
    }

    proptest! {
        /// Wherever an import is interrupted, and whatever is added in between, each record comes once.
        #[test]
        fn an_import_may_be_interrupted_anywhere(
            lines in prop::collection::vec("[ab \r]{0,4}", 0..12), cut in 0..13_usize, rest in 0..40_usize, json: bool,
        ) {
            let split = if json { Split::Json } else { Split::Lines };
            let text: Vec<u8> = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
            let whole = records(&text, split);
            // Of the first run, which sees a part that ends with a line, only some records are stored.
            let seen = text[..rest.min(text.len())].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            let first = all(&mut of(&text[..seen], split));
            let stored = &first[..cut.min(first.len())];
            let mark = stored.last().map_or(Progress::default(), |(_, progress)| *progress);
            let mut again = of(&text, split);
            again.resume(&mark.to_string().parse().unwrap()).unwrap();
            prop_assert_eq!(again.progress().records, stored.len() as u64);
            let both: Vec<_> = stored.iter().chain(&all(&mut again)).map(|(record, _)| record.clone()).collect();
            prop_assert_eq!(both, whole);
        }
    }
}
