//! Sizes as people write them: `64MiB`, `1.5 GB`, or a number of bytes.

use bytesize::ByteSize;
use std::ops::RangeInclusive;

/// Parses a size.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let parsed = text.parse::<ByteSize>();
    parsed
        .map(|size| size.as_u64())
        .map_err(|_| "a size is a number of bytes, or such as 64MiB or 1.5GB".into())
}

/// Parses a size within these bounds.
pub(super) fn within(bounds: RangeInclusive<u64>) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| {
        let bytes = size(text)?;
        match usize::try_from(bytes) {
            Ok(size) if bounds.contains(&bytes) => Ok(size),
            _ => Err(format!("it must be from {} to {} bytes", bounds.start(), bounds.end())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_accepted_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("2kib", 2048)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "-1", "64 apples", "MiB", "1,5GB"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(within(1..=1024)("1KiB"), Ok(1024));
        assert!(within(1..=1024)("0").is_err() && within(1..=1024)("1025").is_err());
        assert!(within(0..=1 << 40)("18446744073709551615").is_err());
    }
}
