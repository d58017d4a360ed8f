//! Where reading begins.

use std::{
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartAt {
    /// With the first record that the log has.
    Earliest,
    /// With the next record that is appended.
    Latest,
    /// With the record at this offset.
    Offset(u64),
    /// This many records before the end.
    Last(u64),
    /// With the first record that was appended at this time or later.
    Since(SystemTime),
}

impl StartAt {
    /// At a time in milliseconds since 1970.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "only the server has such times"))]
    pub(crate) fn since_millis(millis: u64) -> Self {
        Self::Since(UNIX_EPOCH + Duration::from_millis(millis)) // which a system with 64 bits for seconds can express
    }

    /// The time of [`Since`](Self::Since) in milliseconds since 1970; what is before 1970 is 1970.
    pub(crate) fn millis(time: SystemTime) -> u64 {
        time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
    }
}

impl FromStr for StartAt {
    type Err = &'static str;

    /// An offset as in the API: a number, `-K` for the last K records, `earliest`, or `latest`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.parse().ok().filter(|_| plain && text != "-0");
            number.ok_or("it must be a whole number, -K for the last K records, earliest, or latest")
        };
        match (text, text.strip_prefix('-')) {
            ("earliest", _) => Ok(Self::Earliest),
            ("latest", _) => Ok(Self::Latest),
            (_, Some(back)) => number(back).map(Self::Last),
            _ => number(text).map(Self::Offset),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn start_positions_are_given_as_in_the_api() {
        for (text, expected) in [
            ("0", Some(StartAt::Offset(0))),
            ("18446744073709551615", Some(StartAt::Offset(u64::MAX))),
            ("-2", Some(StartAt::Last(2))),
            ("earliest", Some(StartAt::Earliest)),
            ("latest", Some(StartAt::Latest)),
            ("", None),
            ("-", None),
            ("-0", None),
            ("+1", None),
            ("--1", None),
            ("last", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
        let time = UNIX_EPOCH + Duration::from_millis(5);
        assert_eq!((StartAt::millis(time), StartAt::since_millis(5)), (5, StartAt::Since(time)));
        assert!(
            matches!(StartAt::since_millis(u64::MAX), StartAt::Since(far) if StartAt::millis(far) > 1 << 40)
        );
    }
}
