//! The settings of a new log, as flags.

use super::{serve::DurabilityArg, size::size};
use clap::ValueEnum;
use millstream::store::{LogSettings, Values};

/// Flags for the settings of a new log.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings of a new log")]
pub(super) struct SettingsFlags {
    /// When an append is answered, and which records readers see [default: the server's or the store's]
    #[arg(long, value_enum)]
    durability: Option<DurabilityArg>,
    /// What the values must be
    #[arg(long, value_enum)]
    values: Option<ValuesArg>,
    /// Drop the oldest segments while the log's files take more than this many bytes, such as 10GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    retention_bytes: Option<u64>,
    /// Drop segments whose records are all older than this many seconds
    #[arg(long, value_name = "SECONDS")]
    retention_seconds: Option<u64>,
    /// The largest segment
    #[arg(long, value_name = "SIZE", value_parser = size)]
    segment_bytes: Option<u64>,
    /// The largest record
    #[arg(long, value_name = "SIZE", value_parser = size)]
    record_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ValuesArg {
    /// Any bytes
    Any,
    /// JSON only
    Json,
}

impl SettingsFlags {
    /// Whether one of them is given.
    pub(super) fn is_some(&self) -> bool {
        self.over(LogSettings::default()) != LogSettings::default() || self.values.is_some()
    }

    /// Settings with what the flags say in place of what they had.
    pub(super) fn over(&self, mut settings: LogSettings) -> LogSettings {
        if let Some(values) = self.values {
            settings.values = match values {
                ValuesArg::Any => Values::Any,
                ValuesArg::Json => Values::Json,
            };
        }
        settings.durability = self.durability.map(Into::into).or(settings.durability);
        settings.retention_bytes = self.retention_bytes.or(settings.retention_bytes);
        settings.retention_seconds = self.retention_seconds.or(settings.retention_seconds);
        settings.segment_bytes = self.segment_bytes.or(settings.segment_bytes);
        settings.record_bytes = self.record_bytes.or(settings.record_bytes);
        settings
    }
}
