//! What can go wrong with a store of logs.

use super::NAME_BYTES;
use crate::log::Error as LogError;

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
    /// Not a name for a log.
    #[error(
        "{name:?} is not a name for a log: use 1 to {NAME_BYTES} of A-Z a-z 0-9 . _ -, not beginning with . or -"
    )]
    BadName {
        /// What was given.
        name: String,
    },
    /// There is a log of this name, with other settings.
    #[error("the log {name:?} is there already, with other settings; delete it first, or ask for the same")]
    Exists {
        /// Its name.
        name: String,
    },
    /// Settings that contradict each other or the store's options.
    #[error("bad settings: {reason}")]
    BadSettings {
        /// Which, and what would do.
        reason: String,
    },
    /// See there.
    #[error(transparent)]
    Log(#[from] LogError),
}
