//! The stable codes of errors over HTTP: one table, from which problem documents, the client's errors, `/openapi.json`
//! and the table in `docs/api.md` are generated.

use crate::settings::ValueError;

macro_rules! codes {
    ($($name:ident $status:literal $text:literal $again:ident $stored:ident $advice:literal;)*) => {
        /// Why a request was refused. [`as_str`](Self::as_str) is the `code` of a problem document.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = concat!("`", $text, "` (", stringify!($status), "): ", $advice, ".")] $name,)*
        }

        impl Code {
            /// All codes, in the order of their statuses.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code as written in a problem document.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status that goes with the code.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// What a client can do about it.
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$name => $advice,)* }
            }

            const fn again(self) -> Again {
                match self { $(Self::$name => Again::$again,)* }
            }

            const fn stored(self) -> Stored {
                match self { $(Self::$name => Stored::$stored,)* }
            }
        }
    };
}

/// Whether the same request may succeed if it is sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Only after something else has changed.
    Never,
    /// A little later.
    Soon,
    /// A little later; the answer says when, in `Retry-After`.
    After,
}

/// What is stored of an append that was refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    Nothing,
    /// It is not known.
    Perhaps,
}

codes! {
    InvalidJson 400 "invalid_json" Never Nothing "correct the body; `line` or `record` says where";
    InvalidRequest 400 "invalid_request" Never Nothing "correct the body; the detail says what is expected";
    InvalidBase64 400 "invalid_base64" Never Nothing "correct the body; `line` or `record` says where";
    InvalidFrame 400 "invalid_frame" Never Nothing "correct the body; `record` says where";
    InvalidEncoding 400 "invalid_encoding" Never Nothing "correct the body: it is not what `Content-Encoding` says";
    NotJson 400 "not_json" Never Nothing "correct the body; the log takes JSON only";
    EmptyBatch 400 "empty_batch" Never Nothing "send at least one record";
    InvalidQuery 400 "invalid_query" Never Nothing "correct the request's parameters";
    InvalidOffset 400 "invalid_offset" Never Nothing "name an offset as the detail says";
    OffsetMissing 400 "offset_missing" Never Nothing "name an offset";
    InvalidLogName 400 "invalid_log_name" Never Nothing "choose another name";
    InvalidSettings 400 "invalid_settings" Never Nothing "correct the settings";
    InvalidProducer 400 "invalid_producer" Never Nothing "correct the producer's headers";
    InvalidCursor 400 "invalid_cursor" Never Nothing "correct the cursor's name";
    InvalidHost 400 "invalid_host" Never Nothing "name one `Host`: a name or an address, with or without a port";
    InvalidHttp 400 "invalid_http" Never Nothing "correct the request: it is not HTTP/1.1 (RFC 9112)";
    BodyIncomplete 400 "body_incomplete" Soon Nothing "send it again";
    OriginNotAllowed 403 "origin_not_allowed" Never Nothing "the request comes from a page of another origin, in a browser: allow it with `serve --allow-origin`";
    NotFound 404 "not_found" Never Nothing "see the detail";
    LogNotFound 404 "log_not_found" Never Nothing "create the log first";
    LogDeleted 404 "log_deleted" Never Nothing "it was deleted while you waited for it, appended to it, or read it: create it again, if it is to exist";
    ProducerNotFound 404 "producer_not_found" Never Nothing "begin an epoch: `POST /v1/logs/{log}/producers/{id}`";
    CursorNotFound 404 "cursor_not_found" Never Nothing "set the cursor first: `PUT /v1/logs/{log}/cursors/{name}`";
    OffsetNotFound 404 "offset_not_found" Never Nothing "wait for the record, or read before `next_offset`";
    MethodNotAllowed 405 "method_not_allowed" Never Nothing "use a method that `Allow` names";
    NotAcceptable 406 "not_acceptable" Never Nothing "accept a type that the detail names";
    BodyTooSlow 408 "body_too_slow" Soon Nothing "send it again, faster";
    ProducerOutOfOrder 409 "producer_out_of_order" Never Nothing "an epoch older than `expected_epoch` has been fenced off; otherwise begin an epoch (`POST /v1/logs/{log}/producers/{id}`), and send what is new in it";
    NotARepeat 409 "not_a_repeat" Never Nothing "a batch with this number and other records is stored: begin an epoch (`POST /v1/logs/{log}/producers/{id}`), and send what is new in it";
    EpochsUsedUp 409 "epochs_used_up" Never Nothing "there is no epoch after the one that the producer is in: use another id, or this one when the log has forgotten it, 7 days after its last batch";
    TooManyCursors 409 "too_many_cursors" Never Nothing "remove cursors that are not used any more";
    LogExists 409 "log_exists" Never Nothing "it has other settings: use it as it is, or delete it";
    AnotherLog 409 "another_log" Never Nothing "the log with the id that you named was deleted: decide where to begin in this one";
    OffsetTrimmed 410 "offset_trimmed" Never Nothing "continue at `first_offset`";
    RecordLost 410 "record_lost" Never Nothing "it was lost to damage, and `millstream repair` has marked it so: read the next one";
    UnexpectedOffset 412 "unexpected_offset" Never Nothing "read up to `next_offset`, and decide again";
    UnexpectedRecord 412 "unexpected_record" Never Nothing "the log has another record there than `If-Match` names: ask without it";
    UnexpectedCursor 412 "unexpected_cursor" Never Nothing "the cursor is at `offset`, or does not exist: decide again";
    BodyTooLarge 413 "body_too_large" Never Nothing "send less at once";
    RecordTooLarge 413 "record_too_large" Never Nothing "send less at once: a batch must fit a segment, where each record takes some 28 bytes for itself";
    AddressTooLong 414 "address_too_long" Never Nothing "shorten the address";
    UnsupportedType 415 "unsupported_type" Never Nothing "send a type that the detail names";
    UnsupportedEncoding 415 "unsupported_encoding" Never Nothing "send an encoding that the detail names";
    OffsetBeyondEnd 416 "offset_beyond_end" Never Nothing "continue at `next_offset`, or wait (`wait`, `follow`, `text/event-stream`); if the log was longer before, it was deleted and created again, or has lost records";
    UnknownHost 421 "unknown_host" Never Nothing "call the server by an address, or by a name of its own: `serve --allow-host`";
    Backpressure 429 "backpressure" After Nothing "send it again after `Retry-After`";
    HeaderTooLarge 431 "header_too_large" Never Nothing "send fewer or shorter header fields: see `serve --max-header-bytes`";
    RecordDamaged 500 "record_damaged" Never Nothing "continue at `next_readable`, or read with `damaged=skip`; see what is damaged with `millstream verify`";
    RecordUnreadable 500 "record_unreadable" Never Nothing "the disk reports an error where the record is: try again later, continue at `next_readable`, or read with `damaged=skip`";
    CursorsDamaged 500 "cursors_damaged" Never Nothing "where the log's consumers are is not known: remove all of its cursors (`DELETE /v1/logs/{log}/cursors`), and set them again";
    Internal 500 "internal" Never Perhaps "see the server's log; after an append, read the end of the log";
    LogUnusable 500 "log_unusable" Never Nothing "its directory cannot be used as a log: the detail says why; see `millstream verify`";
    ReadOnly 503 "read_only" Never Nothing "repair the log with `millstream repair`";
    WriterFailed 503 "writer_failed" Never Perhaps "it is not known whether the records were stored: restart the server, and read them back";
    ShuttingDown 503 "shutting_down" Soon Nothing "try again";
    Recovering 503 "recovering" After Nothing "try again after `Retry-After`";
    Overloaded 503 "overloaded" After Nothing "the memory for requests and answers is used up (`--max-http-memory-bytes`), or too many requests do the same at once: send it again after `Retry-After`";
    CannotGrow 503 "cannot_grow" After Nothing "wait: the server has no descriptors or memory for the next segment";
    OutOfResources 503 "out_of_resources" After Nothing "wait: the server has no descriptors or memory for this";
    DiskFull 507 "disk_full" Soon Nothing "make room, or trim";
}

impl Code {
    /// The code that a problem document contains; `None` if this version does not know it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }

    /// Whether the same request may succeed a little later.
    pub fn is_temporary(self) -> bool {
        self.again() != Again::Never
    }

    /// Whether records of an append that was refused with it may be stored all the same: then they are sent again only by a
    /// producer, or after the end of the log was read. With all other codes nothing was stored.
    pub fn may_be_stored(self) -> bool {
        self.stored() == Stored::Perhaps
    }

    /// Whether the answer says when to try again, in `Retry-After`.
    pub fn has_retry_after(self) -> bool {
        self.again() == Again::After
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<&ValueError> for Code {
    /// The code with which a server refuses such a value.
    fn from(error: &ValueError) -> Self {
        match error {
            ValueError::TooLarge { .. } => Self::RecordTooLarge,
            ValueError::NotJson { .. } => Self::NotJson,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_parses_to_itself() {
        for &code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(code));
            assert!((400..600).contains(&code.status()));
        }
        assert!(Code::ALL.is_sorted_by_key(|code| code.status()));
        assert_eq!(Code::parse("internal "), None);
    }
}
