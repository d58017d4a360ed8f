//! The settings that a log is created with, and how they are stored in its directory: as JSON that people can read,
//! with a CRC, because a flipped bit in a retention setting would drop records for no apparent reason.

#[cfg(feature = "store")]
use crate::log::Retention;
use crate::{json, log::Durability};
use serde::{Deserialize, Serialize, de::IgnoredAny};
#[cfg(feature = "store")]
use std::time::Duration;

/// What kind of values the records of a log may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// Any bytes.
    #[default]
    Any,
    /// JSON only.
    Json,
}

impl json::Word for Values {
    const WORDS: &str = "`any` or `json`";
}

impl json::Word for Durability {
    const WORDS: &str = "`disk` or `memory`";
}

/// The settings a log is created with. Without `durability` or `segment_bytes`, the store's options apply; without the
/// others there is no such limit. In JSON, a setting that is `None` is left out: `null` is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// When an append is acknowledged, unless it asks for something else, and what readers see.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::given_word")]
    pub durability: Option<Durability>,
    /// What kind of values the records may have.
    #[serde(deserialize_with = "json::word")]
    pub values: Values,
    /// The size of all segment files, in bytes, beyond which the oldest segments are dropped.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::given_number")]
    pub retention_bytes: Option<u64>,
    /// Age in seconds: a segment is dropped once all its records are older.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::given_number")]
    pub retention_seconds: Option<u64>,
    /// The largest segment in bytes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::given_number")]
    pub segment_bytes: Option<u64>,
    /// The largest record in bytes.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::given_number")]
    pub record_bytes: Option<u64>,
}

/// Why a text is not [`LogSettings`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidSettings {
    reason: String,
}

impl std::str::FromStr for LogSettings {
    type Err = InvalidSettings;

    /// Parses settings from JSON, as the HTTP API takes them: an object, in which what is not named has its default.
    fn from_str(text: &str) -> Result<Self, InvalidSettings> {
        let parsed = serde_json::from_str(text).map(|json::Object(settings)| settings);
        parsed.map_err(|error| InvalidSettings { reason: error.to_string() })
    }
}

/// Why a log does not take a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// It is larger than [`record_bytes`](LogSettings::record_bytes).
    #[error("{bytes} bytes are over this log's limit of {limit} for a record")]
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// The most that the log takes.
        limit: u64,
    },
    /// It has to be JSON, as [`values`](LogSettings::values) says, or because it is marked as JSON.
    #[error("the value must be JSON, and is not: {reason}")]
    NotJson {
        /// What is wrong with it.
        reason: String,
    },
}

impl LogSettings {
    /// Whether a log with these settings takes a value, which may be `marked` as JSON: servers and commands refuse it
    /// otherwise. A [`Log`](crate::Log) by itself takes any.
    ///
    /// # Errors
    /// [`ValueError`], which says why not.
    pub fn check_value(&self, value: &[u8], marked: bool) -> Result<(), ValueError> {
        self.check_length(value)?;
        if marked || self.values == Values::Json {
            check_json(value).map_err(|reason| ValueError::NotJson { reason })?;
        }
        Ok(())
    }

    /// Like [`check_value`](Self::check_value), for a value that is known to be JSON.
    pub(crate) fn check_length(&self, value: &[u8]) -> Result<(), ValueError> {
        let bytes = value.len() as u64;
        match self.record_bytes.filter(|&limit| bytes > limit) {
            Some(limit) => Err(ValueError::TooLarge { bytes, limit }),
            None => Ok(()),
        }
    }
}

/// Whether a value is JSON; if not, what is wrong.
pub(crate) fn check_json(value: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| error.to_string())
}

#[cfg(feature = "store")]
impl LogSettings {
    /// In which settings another one differs, and how.
    pub(crate) fn differences(&self, other: &Self) -> String {
        let fields = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(), // it is an object
        };
        let (own, others) = (fields(self), fields(other));
        let names: std::collections::BTreeSet<_> = own.keys().chain(others.keys()).collect();
        let said = |value: Option<&serde_json::Value>| {
            value.map_or_else(|| "not set".to_owned(), ToString::to_string)
        };
        let differs = |name: &&&String| own.get(**name) != others.get(**name);
        let different = names.iter().filter(differs);
        let all: Vec<_> = different
            .map(|name| format!("{name}: {}, asked for {}", said(own.get(*name)), said(others.get(*name))))
            .collect();
        all.join("; ")
    }

    /// What is kept of the log; everything, if the settings do not say.
    pub(crate) fn retention(&self) -> Retention {
        Retention { bytes: self.retention_bytes, age: self.retention_seconds.map(Duration::from_secs) }
    }
}

/// The name of the CRC among the settings.
#[cfg(feature = "store")]
const CRC: &str = "crc";

/// The settings as they are stored in a file.
#[cfg(feature = "store")]
pub(crate) fn encode(settings: &LogSettings) -> Vec<u8> {
    // Plain fields: this cannot fail.
    let mut value = serde_json::to_value(settings).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        let crc = checksum(fields);
        fields.insert(CRC.to_owned(), crc.into());
    }
    serde_json::to_vec_pretty(&value).unwrap_or_default()
}

/// The settings in a file, or what is wrong with it.
#[cfg(feature = "store")]
pub(crate) fn decode(text: &[u8]) -> Result<LogSettings, String> {
    let mut fields: serde_json::Map<_, _> =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    // Files of earlier versions had no CRC.
    if let Some(crc) = fields.remove(CRC)
        && crc.as_u64() != Some(u64::from(checksum(&fields)))
    {
        return Err(format!("its {CRC:?} does not match the other settings"));
    }
    serde_json::from_value(fields.into()).map_err(|error| error.to_string())
}

/// The CRC of the fields in the order of their names, without white space.
#[cfg(feature = "store")]
fn checksum(fields: &serde_json::Map<String, serde_json::Value>) -> u32 {
    crc32c::crc32c(&serde_json::to_vec(fields).unwrap_or_default())
}

#[cfg(all(test, feature = "store", not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_were_written_also_by_a_version_without_a_crc() {
        let settings =
            LogSettings { retention_bytes: Some(1_000_000), values: Values::Json, ..LogSettings::default() };
        assert_eq!(decode(&encode(&settings)), Ok(settings.clone()));
        assert_eq!(decode(&serde_json::to_vec(&settings).unwrap()), Ok(settings));
        assert_eq!(decode(b"{}"), Ok(LogSettings::default()));
    }

    /// `null` was accepted for all settings but `values`, as if it meant something.
    #[test]
    fn a_setting_that_is_not_given_is_left_out() {
        for member in
            ["durability", "retention_bytes", "retention_seconds", "segment_bytes", "record_bytes", "values"]
        {
            let text = format!(r#"{{"{member}":null}}"#);
            assert!(decode(text.as_bytes()).is_err(), "{text}");
        }
        let settings = decode(br#"{"retention_bytes":1e6,"durability":"memory"}"#).unwrap();
        assert_eq!(
            (settings.retention_bytes, settings.durability),
            (Some(1_000_000), Some(Durability::Memory))
        );
    }

    #[test]
    fn a_value_is_taken_as_the_settings_say() {
        let any = LogSettings { record_bytes: Some(4), ..LogSettings::default() };
        let json = LogSettings { values: Values::Json, ..any.clone() };
        let too_large = Err(ValueError::TooLarge { bytes: 5, limit: 4 });
        assert_eq!(
            (any.check_value(b"\xff{", false), any.check_value(b"12345", false)),
            (Ok(()), too_large.clone())
        );
        assert_eq!((json.check_value(b"[1]", false), json.check_value(b"[1,2]", false)), (Ok(()), too_large));
        for (settings, marked, value) in
            [(&any, true, &b"{"[..]), (&json, false, b"{"), (&json, false, b"\"\xff\"")]
        {
            let refused = settings.check_value(value, marked);
            assert!(matches!(refused, Err(ValueError::NotJson { .. })), "{value:?}: {refused:?}");
        }
    }

    #[test]
    fn a_flipped_bit_in_the_settings_never_makes_other_settings() {
        let settings = LogSettings {
            durability: Some(Durability::Memory),
            retention_bytes: Some(1_000_000),
            retention_seconds: Some(86_400),
            ..LogSettings::default()
        };
        let good = encode(&settings);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_ok_and(|read| read == settings) || decode(&bad).is_err(), "bit {bit}");
        }
    }
}
