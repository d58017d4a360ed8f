//! The JSON of the HTTP API: what the server writes and the client reads, or the other way round, is declared here once.
//! `/openapi.json` and `docs/api.md` describe the same. Records are not here: see `http/formats` and `wire`. Neither are
//! the book's API, which no client of ours speaks, and what is said of a body that is not understood (`http/object`).
//!
//! What always holds: a client ignores members that it does not know, so that a newer server may add some; the server
//! refuses them, so that a misspelt one is not taken for one that is missing. The order of the fields is the order in the
//! answers.

use crate::{json, log::Durability, settings::LogSettings};
use serde::{Deserialize, Serialize};

/// A description of a log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct LogInfo {
    /// Its name.
    pub name: String,
    /// Its id, in hexadecimal: another one if it was deleted and created again.
    pub id: String,
    /// When appends are acknowledged, unless they ask for something else.
    pub durability: Durability,
    /// The settings that it was created with.
    pub settings: LogSettings,
    /// The first offset that is left.
    pub first_offset: u64,
    /// The offset that the next record gets.
    pub next_offset: u64,
    /// Everything below this offset is on the disk.
    pub durable_offset: u64,
    /// The bytes of its files.
    pub bytes: u64,
    /// Why it cannot be appended to, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_writable: Option<String>,
    /// What is known to be damaged: found when the log was opened, or by the last scrub. At most 100 items.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<DamageInfo>,
}

/// Something that is damaged in a log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct DamageInfo {
    /// The first offset that is damaged.
    pub first_offset: u64,
    /// The offset after the last one; `first_offset` if no record is damaged.
    pub next_offset: u64,
    /// What is wrong.
    pub reason: String,
}

#[cfg(feature = "store")]
impl From<&crate::store::OpenLog> for LogInfo {
    fn from(log: &crate::store::OpenLog) -> Self {
        Self {
            name: log.name().to_owned(),
            id: log.id().to_string(),
            durability: log.durability(),
            settings: log.settings().clone(),
            first_offset: log.first_offset(),
            next_offset: log.next_offset(),
            durable_offset: log.durable_offset(),
            bytes: log.disk_bytes(),
            not_writable: log.writable().err().map(|error| error.to_string()),
            damage: log.known_damage().into_iter().map(DamageInfo::from).collect(),
        }
    }
}

#[cfg(feature = "store")]
impl From<crate::log::Damage> for DamageInfo {
    fn from(damage: crate::log::Damage) -> Self {
        Self { first_offset: damage.offsets.start, next_offset: damage.offsets.end, reason: damage.reason }
    }
}

/// One page of the names of logs.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct LogsPage {
    pub(crate) logs: Vec<String>,
    /// To be sent as `after` to get the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
    /// Those that could not be opened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unusable: Vec<String>,
}

/// Asks to drop whole segments below an offset.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trim {
    #[serde(deserialize_with = "json::number")]
    pub(crate) before: u64,
}

/// Where a log begins after it was trimmed.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Trimmed {
    pub(crate) first_offset: u64,
}

/// A line of the answer to an append session.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SessionLine {
    /// How many records of the body are stored. Those that were not in an earlier line follow each other in the log,
    /// unless they were stored before the session.
    pub records: u64,
    /// The offset of the last of them, unless none was stored by this session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_offset: Option<u64>,
    /// In the first line of a producer's session: its epoch, and how many records the producer had stored in sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// See `epoch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<u64>,
    /// In the last line: `complete`, or the code of the problem that has ended the session; then also its detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// See `end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(flatten)]
    pub(crate) numbers: ProblemNumbers,
}

/// Where the records of a batch are.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub(crate) struct Appended {
    pub(crate) first_offset: u64,
    pub(crate) last_offset: u64,
    pub(crate) count: u64,
    /// The batch was stored already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) repeated: bool,
}

/// A description of a producer.
#[cfg(feature = "server")] // the client has no use for it
#[derive(Debug, Serialize)]
pub(crate) struct ProducerInfo {
    pub(crate) id: String,
    pub(crate) epoch: u32,
    /// The sequence that is expected next in that epoch.
    pub(crate) next_seq: u64,
    pub(crate) last_offset: Option<u64>,
    pub(crate) mark: Option<String>,
    pub(crate) log_id: String,
}

/// The epoch that a producer has begun.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct BegunEpoch {
    pub(crate) id: String,
    pub(crate) epoch: u32,
    pub(crate) mark: Option<String>,
    /// The last epoch that has batches.
    pub(crate) earlier: Option<EarlierEpoch>,
    pub(crate) log_id: String,
    /// The bytes of the log's segments: a batch must fit. Earlier servers do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) segment_bytes: Option<u64>,
    /// The most bytes of a body. Earlier servers do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_body_bytes: Option<u64>,
}

/// An earlier epoch of a producer, and its last batches.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct EarlierEpoch {
    pub(crate) epoch: u32,
    pub(crate) batches: Vec<EarlierBatch>,
}

/// Where a batch of an earlier epoch is.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct EarlierBatch {
    pub(crate) seq: u64,
    pub(crate) first_offset: u64,
    pub(crate) count: u64,
}

/// Where a cursor is to be.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CursorPosition {
    #[serde(deserialize_with = "json::number")]
    pub(crate) offset: u64,
}

/// A named position of a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct CursorInfo {
    /// Its name.
    pub name: String,
    /// The offset of the record that its consumer wants next.
    pub offset: u64,
    /// How many visible records are at or after `offset`.
    pub lag: u64,
    /// The log's id, in hexadecimal.
    pub log_id: String,
}

#[cfg(feature = "store")]
impl CursorInfo {
    /// Describes a cursor that is at `offset`.
    pub fn new(log: &crate::store::OpenLog, name: &str, offset: u64) -> Self {
        Self { name: name.to_owned(), offset, lag: log.lag_of(offset), log_id: log.id().to_string() }
    }
}

/// All cursors of a log.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct CursorsInfo {
    pub(crate) cursors: Vec<CursorInfo>,
}

/// A problem document (RFC 9457). A client reads it leniently, because a proxy may have written it.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct ProblemDocument {
    #[serde(skip_deserializing)]
    pub(crate) r#type: &'static str,
    #[serde(skip_deserializing)]
    pub(crate) title: &'static str,
    /// Clients have it from the head of the answer.
    #[serde(skip_deserializing)]
    pub(crate) status: u16,
    /// A [`Code`](crate::Code), unless a newer server or a proxy has another.
    pub(crate) code: String,
    pub(crate) detail: String,
    #[serde(flatten)]
    pub(crate) numbers: ProblemNumbers,
}

/// What a program needs to continue after a problem; which of them there are depends on its code.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct ProblemNumbers {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expected_epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expected_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_offset: Option<u64>,
    /// Which line of the body is wrong, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_offset: Option<u64>,
    /// The first offset after a damaged record at which a record can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_readable: Option<u64>,
    /// Where a cursor is, or which record is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<u64>,
    /// Which record of the body is wrong, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) record: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an older or newer server, or a proxy, answers.
    #[test]
    fn clients_read_answers_with_other_members_and_without_those_that_are_left_out() {
        let page: LogsPage = serde_json::from_str(r#"{"logs":["a"],"new":1}"#).unwrap();
        assert_eq!((page.logs.len(), page.next, page.unusable.len()), (1, None, 0));
        let appended = r#"{"first_offset":1,"last_offset":2,"count":2}"#;
        let read: Appended = serde_json::from_str(appended).unwrap();
        assert!(!read.repeated);
        assert_eq!(serde_json::to_string(&read).unwrap(), appended);
        let begun = r#"{"id":"p","epoch":7,"mark":null,"earlier":null,"log_id":"x"}"#;
        let read: BegunEpoch = serde_json::from_str(begun).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), begun);
        let problem = r#"{"status":"failed","code":"x","next_offset":3,"other":[]}"#;
        let read: ProblemDocument = serde_json::from_str(problem).unwrap();
        assert_eq!((&*read.code, read.numbers.next_offset, read.numbers.record), ("x", Some(3), None));
        assert!(serde_json::from_str::<Trim>(r#"{"before":1,"after":2}"#).is_err());
    }

    #[test]
    fn a_problem_has_only_the_numbers_that_it_was_given() {
        let numbers =
            ProblemNumbers { expected_seq: Some(1), expected_epoch: Some(2), ..ProblemNumbers::default() };
        let (code, detail) = ("c".into(), "d".into());
        let document =
            ProblemDocument { r#type: "about:blank", title: "T", status: 409, code, detail, numbers };
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"type":"about:blank","title":"T","status":409,"code":"c","detail":"d","expected_epoch":2,"expected_seq":1}"#
        );
    }
}
