//! What a server, and the command line, say about a log.

use crate::{log::Durability, settings::LogSettings};
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
        }
    }
}
