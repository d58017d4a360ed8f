//! Errors as clients see them: RFC 9457 problem documents with a stable `code`.

use super::answer::{Answer, full};
use crate::{
    Code, LogId,
    api::{ProblemDocument, ProblemNumbers, SessionLine},
    log::{Error, Reader, unwritable},
    store::{self, OpenLog, ValueError},
};
use hyper::{
    Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
};
use std::fmt::{self, Display, Write};

/// The most bytes of a problem's detail: as JSON up to six times as many, so that every refusal stays below 4 KiB.
const MAX_DETAIL_BYTES: usize = 512;

/// Formats something, truncating it to `max` bytes while it is made: it may include a client's own text, as long as
/// its body. Characters that are not plain text where it is shown (control characters, characters that change the
/// direction of a line) are escaped: they could add lines to the server's log, or control a terminal.
pub(super) fn truncated(text: impl Display, max: usize) -> String {
    struct Truncated(String, usize);
    impl Truncated {
        fn push(&mut self, character: char) -> fmt::Result {
            if self.0.len() + character.len_utf8() > self.1 {
                return Err(fmt::Error); // stops formatting
            }
            self.0.push(character);
            Ok(())
        }
    }
    impl Write for Truncated {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            text.chars().try_for_each(|character| match character {
                ' '..='~' => self.push(character),
                _ => character.escape_debug().try_for_each(|character| self.push(character)),
            })
        }
    }
    let mut short = Truncated(String::new(), max);
    if write!(short, "{text}").is_err() {
        short.0.push('…');
    }
    short.0
}

/// Why a request was not carried out. [`Code::may_be_stored`] says whether something may be stored all the same.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {detail}")]
pub(super) struct Problem {
    code: Code,
    detail: String,
    /// The methods that are allowed, if the method is what is wrong.
    allowed: Option<&'static str>,
    /// What a program needs to continue, such as the next offset.
    numbers: Option<Box<ProblemNumbers>>,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Display) -> Self {
        Self { code, detail: truncated(detail, MAX_DETAIL_BYTES), allowed: None, numbers: None }
    }

    /// Whether the server has failed, and a person should look into this request. Conditions that affect thousands of
    /// requests are reported once, where they begin, and not here.
    pub(super) fn is_ours(&self) -> bool {
        use Code::{CannotGrow, DiskFull, OutOfResources, Overloaded, Recovering};
        let told = matches!(self.code, Overloaded | OutOfResources | DiskFull | CannotGrow | Recovering);
        self.code.status() >= 500 && !told
    }

    /// Its code, as clients see it.
    pub(super) fn code(&self) -> &'static str {
        self.code.as_str()
    }

    /// What the problem is for this log: a failure because the log was deleted meanwhile is reported as that.
    pub(super) fn of(self, log: &OpenLog) -> Self {
        if self.code.status() >= 500 && log.is_deleted() {
            Self::new(Code::LogDeleted, format_args!("the log named {:?} was deleted meanwhile", log.name()))
        } else {
            self
        }
    }

    /// What an error of this log is for clients: see [`of`](Self::of).
    pub(super) fn of_log(log: &OpenLog) -> impl Fn(Error) -> Self {
        move |error| Self::from(error).of(log)
    }

    /// Whether the cause is a lack of memory, permits or streams: clients can cause it as often as they like.
    pub(super) fn is_overload(&self) -> bool {
        self.code == Code::Overloaded
    }

    /// Whether the cause is that the system had no descriptors or memory, which clients can cause as well.
    pub(super) fn is_shortage(&self) -> bool {
        self.code == Code::OutOfResources
    }

    /// Whether the log does not exist, or does not any more.
    pub(super) fn is_of_no_log(&self) -> bool {
        matches!(self.code, Code::LogNotFound | Code::LogDeleted)
    }

    /// What the problem is for a reader of the book's log: the first append creates it, and until then it is empty.
    pub(super) fn of_no_record(self, offset: u64) -> Self {
        if self.is_of_no_log() { Self::no_record(offset, 0) } else { self }
    }

    /// What a reader has met; if it is damage, with the offset at which to continue.
    pub(super) fn of_reading(error: Error, reader: &mut Reader) -> Self {
        let Some(offset) = error.bad_record() else { return error.into() };
        let at = reader.offset();
        let next = reader.seek_readable(offset + 1).map(|()| reader.offset());
        reader.seek(at);
        Self::from(error).with(|numbers| numbers.next_readable = next.ok())
    }

    /// There is no record at this offset yet.
    pub(super) fn no_record(offset: u64, next: u64) -> Self {
        let detail = format!("there is no record at offset {offset} yet; the next one gets {next}");
        Self::new(Code::OffsetNotFound, detail).with(|numbers| numbers.next_offset = Some(next))
    }

    /// Refuses a log that is not the one that a client means.
    pub(super) fn check_id(log: &OpenLog, wanted: Option<LogId>) -> Result<(), Self> {
        match wanted {
            Some(wanted) if wanted != log.id() => {
                Err(store::Error::AnotherLog { name: log.name().to_owned(), id: Some(log.id()) }.into())
            }
            _ => Ok(()),
        }
    }

    /// A client reads where nothing is, and does not wait.
    pub(super) fn beyond_the_end(offset: u64, next: u64) -> Self {
        let detail = format!("the log ends at {next}, before offset {offset}");
        Self::new(Code::OffsetBeyondEnd, detail).with(|numbers| numbers.next_offset = Some(next))
    }

    /// The problem with a part of a body, where `records` records came before that part.
    pub(super) fn after_records(mut self, records: u64) -> Self {
        if let Some(numbers) = &mut self.numbers {
            numbers.record = numbers.record.map(|record| record + records);
        }
        self
    }

    /// The last line of a session that it ends.
    pub(super) fn into_end(self, records: u64, last_offset: Option<u64>) -> SessionLine {
        let (end, detail) = (Some(self.code.as_str().to_owned()), Some(self.detail));
        let numbers = self.numbers.map(|numbers| *numbers).unwrap_or_default();
        SessionLine { records, last_offset, end, detail, numbers, ..SessionLine::default() }
    }

    /// Adds a number to the document.
    pub(super) fn with(mut self, set: impl FnOnce(&mut ProblemNumbers)) -> Self {
        set(self.numbers.get_or_insert_default());
        self
    }

    pub(super) fn method_not_allowed(allowed: &'static str) -> Self {
        let problem = Self::new(Code::MethodNotAllowed, format!("use one of: {allowed}"));
        Self { allowed: Some(allowed), ..problem }
    }

    /// What was to make the answer has ended without one: it has panicked.
    pub(super) fn internal_failure() -> Self {
        Self::new(Code::Internal, "the request failed unexpectedly")
    }

    /// A log does not take a value.
    pub(super) fn refused_value(error: &ValueError, detail: impl Display) -> Self {
        Self::new(error.into(), detail)
    }

    /// The disk is behind.
    pub(super) fn backpressure() -> Self {
        let detail = "the disk is behind and memory is used up; send the request again a little later";
        Self::new(Code::Backpressure, detail)
    }

    /// The server holds as much for its clients as it is allowed to.
    pub(super) fn overloaded() -> Self {
        let detail = "the memory for bodies and answers is used up; send the request again a little later";
        Self::new(Code::Overloaded, detail)
    }

    /// Requests wait for more logs than may be kept open.
    pub(super) fn too_many_waits() -> Self {
        let detail = "too many logs are being waited for; wait for fewer, or try again a little later";
        Self::new(Code::Overloaded, detail)
    }

    /// The server does as much at once as it is allowed to.
    pub(super) fn no_permit() -> Self {
        let detail = "too many requests have large bodies or answers; send the request again a little later";
        Self::new(Code::Overloaded, detail)
    }

    /// Other requests are at work on the log, or on too many logs at once.
    pub(super) fn log_is_busy() -> Self {
        let detail = "the log is busy: another request is at work on it, or requests are at work on as many logs as may be at once; try again a little later";
        Self::new(Code::Overloaded, detail)
    }

    /// As many requests are in flight as are allowed.
    pub(super) fn too_many_streams() -> Self {
        let detail =
            "too many requests are in flight with HTTP/2; send the request again when some are answered";
        Self::new(Code::Overloaded, detail)
    }

    pub(super) fn into_response(self) -> Answer {
        let status = self.status();
        let (headers, text) = self.into_parts();
        let mut response = Response::new(full(text));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).unwrap_or_default()
    }

    /// Its answer's headers and body.
    pub(super) fn into_parts(self) -> (HeaderMap, Vec<u8>) {
        let status = self.status();
        let document = ProblemDocument {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            code: self.code.as_str().to_owned(),
            detail: self.detail,
            numbers: self.numbers.map(|numbers| *numbers).unwrap_or_default(),
        };
        let mut text = serde_json::to_vec(&document).unwrap_or_default(); // strings and numbers: cannot fail
        text.push(b'\n');
        let mut headers = HeaderMap::new();
        if let Some(allowed) = self.allowed {
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        if self.code.has_retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        (headers, text)
    }
}

impl From<&Error> for Code {
    /// The code with which a server refuses what has failed with this error.
    fn from(error: &Error) -> Self {
        match error {
            Error::WouldBlock => Self::Backpressure,
            Error::Unexpected { .. } => Self::UnexpectedOffset,
            Error::Trimmed { .. } => Self::OffsetTrimmed,
            Error::ProducerOutOfOrder { .. } => Self::ProducerOutOfOrder,
            Error::NotARepeat { .. } => Self::NotARepeat,
            Error::BadProducer | Error::EpochTooHigh => Self::InvalidProducer,
            Error::EpochsUsedUp => Self::EpochsUsedUp,
            Error::BeyondEnd { .. } => Self::OffsetBeyondEnd,
            Error::BadCursor => Self::InvalidCursor,
            Error::TooManyCursors => Self::TooManyCursors,
            Error::UnexpectedCursor { .. } => Self::UnexpectedCursor,
            Error::CursorsDamaged { .. } => Self::CursorsDamaged,
            Error::EmptyBatch => Self::EmptyBatch,
            Error::TooLarge { .. } => Self::RecordTooLarge,
            Error::Damaged { .. } => Self::RecordDamaged,
            Error::Unreadable { .. } => Self::RecordUnreadable,
            Error::ReadOnly { .. } => Self::ReadOnly,
            Error::Failed { .. } => Self::WriterFailed,
            Error::Closed => Self::ShuttingDown,
            Error::Full { .. } => Self::DiskFull,
            Error::CannotGrow { .. } => Self::CannotGrow,
            Error::Io { .. } if error.is_full() => Self::DiskFull,
            Error::Io { .. } if error.is_transient() => Self::OutOfResources,
            // Something is wrong with a log's directory, with how the server was started, or with the server.
            Error::InUse { .. }
            | Error::NotALog { .. }
            | Error::Newer { .. }
            | Error::Corrupt { .. }
            | Error::BackingContinues { .. } => Self::LogUnusable,
            Error::Io { .. }
            | Error::NotAppended { .. }
            | Error::BadOptions { .. }
            | Error::OneLog { .. } => Self::Internal,
        }
    }
}

impl From<&store::Error> for Code {
    /// The code with which a server refuses what has failed with this error.
    fn from(error: &store::Error) -> Self {
        match error {
            store::Error::Log(error) => error.into(),
            store::Error::NotFound { .. } => Self::LogNotFound,
            store::Error::BadName { .. } => Self::InvalidLogName,
            store::Error::Exists { .. } => Self::LogExists,
            store::Error::AnotherLog { .. } => Self::AnotherLog,
            store::Error::BadSettings { .. } => Self::InvalidSettings,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        if let Error::WouldBlock = error {
            return Self::backpressure();
        }
        let code = Code::from(&error);
        let problem = match code {
            // What the system said, and not on which file: that is for the server's log.
            Code::DiskFull => Self::new(
                code,
                error.system_reason().map_or_else(String::new, |said| unwritable(&said.to_string(), said)),
            ),
            Code::RecordUnreadable => Self::new(code, "the disk cannot read the record"),
            _ => Self::new(code, &error),
        };
        match error {
            Error::Unexpected { next, .. } => problem.with(|numbers| numbers.next_offset = Some(next)),
            Error::Trimmed { first, .. } => problem.with(|numbers| numbers.first_offset = Some(first)),
            Error::BeyondEnd { end, .. } => problem.with(|numbers| numbers.next_offset = Some(end)),
            Error::UnexpectedCursor { offset } => problem.with(|numbers| numbers.offset = offset),
            Error::Damaged { offset } | Error::Unreadable { offset, .. } => {
                problem.with(|numbers| numbers.offset = Some(offset))
            }
            Error::ProducerOutOfOrder { expected_epoch, expected_sequence } => problem.with(|numbers| {
                numbers.expected_epoch = Some(expected_epoch.into());
                numbers.expected_seq = Some(expected_sequence);
            }),
            _ => problem,
        }
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Log(error) => error.into(),
            error => Self::new(Code::from(&error), &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// The detail named the file on which there was no room.
    #[test]
    fn clients_are_not_told_where_the_data_is() {
        let no_room = || std::io::Error::from_raw_os_error(28);
        let error = Error::io("make a segment file in", std::path::Path::new("/secret: place"))(no_room());
        let expected = "the disk is full: No space left on device (os error 28); make room, or trim the log";
        let full = Error::Full { reason: error.to_string().into(), source: Arc::new(no_room()) };
        for error in [error, full] {
            assert_eq!(Problem::from(error).detail, expected);
        }
        let read_only =
            Error::io("write", std::path::Path::new("/secret: place"))(std::io::Error::from_raw_os_error(30));
        let expected = "the file system is read-only: Read-only file system (os error 30); make it writable";
        let source = Arc::new(std::io::Error::from_raw_os_error(30));
        let read_only = Error::Full { reason: read_only.to_string().into(), source };
        assert_eq!(Problem::from(read_only).detail, expected);
    }

    /// The name of an unknown member was logged unchanged, with line ends and terminal control sequences.
    #[test]
    fn text_from_clients_is_logged_on_one_line() {
        let problem = Problem::new(
            Code::InvalidRequest,
            "x\n2026 ERROR \u{1b}[31m\u{85}\u{202e}\u{2028} é \"q\" 'r' \\",
        );
        let said = problem.to_string();
        assert_eq!(said, r#"invalid_request: x\n2026 ERROR \u{1b}[31m\u{85}\u{202e}\u{2028} é "q" 'r' \"#);
        assert_eq!(truncated("ab\ncd", 4), "ab\\n…");
        assert_eq!(truncated("ab\ncd", 3), "ab\\…");
        assert_eq!(truncated("éé", 3), "é…");
    }
}
