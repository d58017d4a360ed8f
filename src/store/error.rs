//! What can go wrong with a store of logs.

use super::MAX_NAME_BYTES;
use crate::{LogId, log::Error as LogError};

/// What can go wrong with a store, beyond what can with a log.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No log has this name.
    #[error("there is no log named {name:?}; create it first")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// Not a valid name for a log.
    #[error(
        "{name:?} is not a name for a log: use 1 to {MAX_NAME_BYTES} of A-Z a-z 0-9 . _ -, not starting with . or -"
    )]
    BadName {
        /// The name given.
        name: String,
    },
    /// A log of this name exists, with different settings.
    #[error(
        "the log {name:?} exists already, with different settings ({differences}); use it as it is, or ask for the same ones"
    )]
    Exists {
        /// Its name.
        name: String,
        /// Which ones differ, and how.
        differences: String,
    },
    /// The log of this name is not the one that was meant.
    #[error("the log named {name:?} {}", match .id {
        Some(id) => format!("has the id {id}"),
        None => "has no id that can be read".to_owned(),
    })]
    AnotherLog {
        /// Its name.
        name: String,
        /// Its id, if that can be read.
        id: Option<LogId>,
    },
    /// Settings that contradict each other or the store's options.
    #[error("bad settings: {reason}")]
    BadSettings {
        /// What is wrong, and what would be valid.
        reason: String,
    },
    /// An error of a log.
    #[error(transparent)]
    Log(#[from] LogError),
}
