//! Where a command begins to read.

use super::target::{Failure, Target};
use std::str::FromStr;

/// What `--offset` says, as in the HTTP API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartAt {
    Earliest,
    Latest,
    /// So many records before the end.
    Back(u64),
    Offset(u64),
}

impl FromStr for StartAt {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.parse().ok().filter(|_| plain);
            number.ok_or("it must be a whole number, -K for the last K records, earliest, or latest")
        };
        match (text, text.strip_prefix('-')) {
            ("earliest", _) => Ok(Self::Earliest),
            ("latest", _) => Ok(Self::Latest),
            (_, Some(back)) => number(back).map(Self::Back),
            _ => number(text).map(Self::Offset),
        }
    }
}

impl StartAt {
    /// The offset that is meant.
    pub(super) async fn resolve(self, target: &Target, log: &str) -> Result<u64, Failure> {
        if let Self::Offset(offset) = self {
            return Ok(offset);
        }
        let described = target.describe(log).await?;
        let number = |name: &str| {
            described[name].as_u64().ok_or_else(|| Failure::from(format!("the server does not say {name}")))
        };
        let (first, next) = (number("first_offset")?, number("next_offset")?);
        Ok(match self {
            Self::Earliest => first,
            Self::Latest => next,
            Self::Back(back) => next.saturating_sub(back).max(first),
            Self::Offset(offset) => offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_positions_are_given_as_in_the_api() {
        for (text, expected) in [
            ("0", Some(StartAt::Offset(0))),
            ("18446744073709551615", Some(StartAt::Offset(u64::MAX))),
            ("-2", Some(StartAt::Back(2))),
            ("earliest", Some(StartAt::Earliest)),
            ("latest", Some(StartAt::Latest)),
            ("", None),
            ("-", None),
            ("+1", None),
            ("--1", None),
            ("last", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
