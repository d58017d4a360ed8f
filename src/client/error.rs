//! What can go wrong between a client and its server.

use crate::{
    Code,
    api::{ProblemDocument, ProblemNumbers},
};
use std::{num::NonZeroU64, time::Duration};

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not that of an HTTP server.
    #[error("{url:?} is not an address such as http://127.0.0.1:4437: {reason}")]
    BadUrl {
        /// The address that was given, without the password, if there was one.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No log or cursor can have this name.
    #[error(
        "{name:?} is not a name of a log or a cursor: use 1 to {} of A-Z a-z 0-9 . _ -, not beginning with . or -",
        crate::name::MAX_NAME_BYTES
    )]
    BadName {
        /// The name that was given.
        name: String,
    },
    /// No record can have this mark.
    #[error(
        "{mark:?} cannot be a mark: use up to {} characters of ASCII, without control characters, and no space at either end",
        crate::MAX_PRODUCER_MARK_BYTES
    )]
    BadMark {
        /// The mark that was given.
        mark: String,
    },
    /// The server cannot be reached, or the connection broke. If something was sent, it is not known whether it was
    /// stored.
    #[error("cannot reach {url}: {reason}; is the server running?")]
    Unreachable {
        /// Where the server was expected.
        url: String,
        /// What the system reported.
        reason: String,
    },
    /// The log was deleted while it was used.
    #[error("the log {log:?} was deleted")]
    Deleted {
        /// Its name.
        log: String,
    },
    /// There is no log of this name.
    #[error("there is no log named {log:?}; create it first")]
    NoSuchLog {
        /// The name.
        log: String,
    },
    /// The records at the offset were trimmed.
    #[error("the offset was trimmed; the first offset is {first_offset}")]
    Trimmed {
        /// The first offset that is left.
        first_offset: u64,
    },
    /// There is no record at the offset yet.
    #[error("there is no record at the offset yet; the next one gets {next_offset}")]
    NotThere {
        /// The offset that the next record gets.
        next_offset: u64,
    },
    /// The log ends before the offset. If it was longer before, it was deleted and created again, or has lost records.
    #[error("the log ends at {next_offset}, before that offset")]
    BeyondEnd {
        /// The offset that the next record gets.
        next_offset: u64,
    },
    /// The log was deleted, and created again.
    #[error("the log was deleted, and another one created under its name: {detail}")]
    AnotherLog {
        /// What the server says.
        detail: String,
    },
    /// The record is damaged, or the disk cannot read it. [`Tail::skip_damaged`](super::Tail::skip_damaged) passes such
    /// records, and so does a range with `damaged=skip`.
    #[error("{detail}{}", .next_readable.map(|next| format!("; the next readable one is at {next}")).unwrap_or_default())]
    Damaged {
        /// Its offset.
        offset: u64,
        /// The first later offset whose record can be read, if the server knows it.
        next_readable: Option<u64>,
        /// What the server says.
        detail: String,
        /// [`Code::RecordDamaged`], or [`Code::RecordUnreadable`].
        code: Code,
    },
    /// The next offset is not the one that was expected; nothing was stored.
    #[error("the next offset is {next_offset}")]
    Unexpected {
        /// The next offset.
        next_offset: u64,
    },
    /// The cursor is not where it was expected; nothing was changed.
    #[error("{}", match .offset {
        Some(offset) => format!("the cursor is at {offset}"),
        None => "there is no cursor of this name".to_owned(),
    })]
    UnexpectedCursor {
        /// Where it is; `None` if it does not exist.
        offset: Option<u64>,
    },
    /// Another producer of the same id has begun a later epoch; nothing was stored.
    #[error("another producer of this id has taken over, in epoch {epoch}")]
    TakenOver {
        /// Its epoch.
        epoch: u32,
    },
    /// The log does not know the producer's earlier batches any more, and it is not known whether a batch was stored
    /// that got no answer: read the log to find out, then [`discard`](super::Producer::discard) the batch, or send its
    /// records again.
    #[error("it is not known whether the last batch was stored: the log has forgotten this producer")]
    Forgotten,
    /// The server refused the request for another reason. [`Code::may_be_stored`](crate::Code::may_be_stored) says whether
    /// an append may be stored all the same; if the code is not known, assume that it may.
    #[error("{}", match &**.code {
        "" => format!("the server at this address answers {status}, and is not a Millstream server"),
        code => format!("the server answers {status}, {code}: {detail}"),
    })]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The stable code, as listed in `docs/api.md`. Empty if the answer is not that of a Millstream server: it may be a
        /// proxy's.
        code: String,
        /// What to do.
        detail: String,
        /// When the server says to try again.
        retry_after: Option<Duration>,
    },
    /// The answer cannot be understood.
    #[error("the address does not answer like a Millstream server: {reason}")]
    Answer {
        /// Why.
        reason: String,
    },
    /// The task that sends what the producer has accepted has ended: its runtime was shut down, or it has panicked. What is
    /// not known to be stored is held, and may be stored; [`discard`](super::Producer::discard) returns it.
    #[error("the task of the producer has ended: its runtime was shut down, or it has panicked")]
    TaskEnded,
    /// The producer was closed, or an error has ended the tail.
    #[error("the producer is closed, or the tail has ended with an error")]
    Closed,
}

/// A refusal, with what a producer needs to know of it.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: Error,
    /// The epoch and the sequence that the server expects of the producer.
    pub(super) expected: Option<(u64, u64)>,
    /// Whether it is known that the attempt has stored nothing.
    pub(super) stored_nothing: bool,
    /// Whether less at once may be accepted.
    pub(super) too_large: Option<TooLarge>,
}

/// Why something was too large, as far as the answer says it.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooLarge {
    /// The number of the record that is too large, from 1.
    pub(super) record: Option<NonZeroU64>,
    /// Whether it is too large for the log. Otherwise the body was, and any other body of that size would be.
    pub(super) for_log: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, expected: None, stored_nothing: false, too_large: None }
    }
}

impl Refusal {
    /// Reads an answer that is not a success.
    pub(super) fn parse(status: u16, body: &[u8], retry_after: Option<Duration>, log: &str) -> Self {
        let problem: ProblemDocument = serde_json::from_slice(body).unwrap_or_default();
        let ProblemDocument { code, detail, numbers, .. } = problem;
        let ProblemNumbers {
            first_offset,
            next_offset,
            offset,
            next_readable,
            expected_epoch,
            expected_seq,
            record,
            ..
        } = numbers;
        let expected = expected_epoch.zip(expected_seq);
        let known = Code::parse(&code);
        // A proxy refuses what is too large for it unread.
        let too_large = (status == Code::BodyTooLarge.status()).then_some(TooLarge {
            record: record.and_then(NonZeroU64::new),
            for_log: known == Some(Code::RecordTooLarge),
        });
        let stored_nothing = too_large.is_some() || known.is_some_and(|code| !code.may_be_stored());
        let error = match (known, first_offset, next_offset) {
            (Some(Code::LogNotFound), ..) => Error::NoSuchLog { log: log.to_owned() },
            (Some(Code::LogDeleted), ..) => Error::Deleted { log: log.to_owned() },
            (Some(Code::OffsetTrimmed), Some(first_offset), _) => Error::Trimmed { first_offset },
            (Some(Code::OffsetNotFound), _, Some(next_offset)) => Error::NotThere { next_offset },
            (Some(Code::OffsetBeyondEnd), _, Some(next_offset)) => Error::BeyondEnd { next_offset },
            (Some(code @ (Code::RecordDamaged | Code::RecordUnreadable)), ..) if offset.is_some() => {
                Error::Damaged { offset: offset.unwrap_or_default(), next_readable, detail, code }
            }
            (Some(Code::UnexpectedCursor), ..) => Error::UnexpectedCursor { offset },
            (Some(Code::AnotherLog), ..) => Error::AnotherLog { detail },
            (Some(Code::UnexpectedOffset), _, Some(next_offset)) => Error::Unexpected { next_offset },
            _ => Error::Refused { status, code, detail, retry_after },
        };
        Self { error, expected, stored_nothing, too_large }
    }
}

impl Error {
    /// The stable code with which the server has refused, or would have. `None` if no server has answered, or with a code
    /// that this version does not know.
    pub fn code(&self) -> Option<Code> {
        Some(match self {
            Self::BadName { .. } => Code::InvalidLogName,
            Self::BadMark { .. } => Code::InvalidProducer,
            Self::Deleted { .. } => Code::LogDeleted,
            Self::NoSuchLog { .. } => Code::LogNotFound,
            Self::Trimmed { .. } => Code::OffsetTrimmed,
            Self::NotThere { .. } => Code::OffsetNotFound,
            Self::BeyondEnd { .. } => Code::OffsetBeyondEnd,
            Self::AnotherLog { .. } => Code::AnotherLog,
            Self::Damaged { code, .. } => *code,
            Self::Unexpected { .. } => Code::UnexpectedOffset,
            Self::UnexpectedCursor { .. } => Code::UnexpectedCursor,
            Self::TakenOver { .. } | Self::Forgotten => Code::ProducerOutOfOrder,
            Self::Refused { code, .. } => return Code::parse(code),
            Self::BadUrl { .. }
            | Self::Unreachable { .. }
            | Self::Answer { .. }
            | Self::TaskEnded
            | Self::Closed => return None,
        })
    }

    /// Whether the same request may succeed a little later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            // A proxy's answer has no code.
            Self::Refused { status, code, .. } => {
                Code::parse(code).map_or([429, 502, 503, 504, 507].contains(status), Code::is_temporary)
            }
            _ => false,
        }
    }
}
