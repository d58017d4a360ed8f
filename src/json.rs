//! What the JSON of requests and settings may say: numbers as JSON Schema has them, where `606.0` and `6e2` are integers,
//! too, and no `null` in place of a member that is left out. So `/openapi.json` allows what the server takes, and nothing
//! else.

use serde::{
    Deserializer,
    de::{DeserializeOwned, Error, IntoDeserializer, Unexpected, Visitor},
};
use std::{fmt, marker::PhantomData};

/// Below this, all whole numbers have a floating-point number of their own: none is taken for its neighbour.
const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53

/// The whole number that was written with a point or an exponent; `None` if it is negative, fractional, or so large that
/// it may have been another one.
#[expect(clippy::cast_sign_loss, reason = "it is not negative")]
pub(crate) fn whole(number: f64) -> Option<u64> {
    ((0.0..EXACT).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

/// A whole number.
pub(crate) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    struct Number;
    impl Visitor<'_> for Number {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a whole number from 0 to {}", u64::MAX)
        }
        fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }
        fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
            number.try_into().map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
        }
        fn visit_f64<E: Error>(self, number: f64) -> Result<u64, E> {
            whole(number).ok_or_else(|| E::invalid_value(Unexpected::Float(number), &self))
        }
    }
    from.deserialize_u64(Number)
}

/// A whole number that may be left out, by `#[serde(default)]`.
pub(crate) fn given_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    number(from).map(Some)
}

/// One of a few words.
pub(crate) trait Word: DeserializeOwned {
    /// Which ones, for messages.
    const WORDS: &str;
}

/// A word.
pub(crate) fn word<'de, D: Deserializer<'de>, T: Word>(from: D) -> Result<T, D::Error> {
    struct Words<T>(PhantomData<T>);
    impl<T: Word> Visitor<'_> for Words<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::WORDS)
        }
        fn visit_str<E: Error>(self, word: &str) -> Result<T, E> {
            T::deserialize(word.into_deserializer())
        }
    }
    from.deserialize_str(Words(PhantomData))
}

/// A word that may be left out, by `#[serde(default)]`.
pub(crate) fn given_word<'de, D: Deserializer<'de>, T: Word>(from: D) -> Result<Option<T>, D::Error> {
    word(from).map(Some)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use serde::Deserialize;

    /// `606.0` was refused, although it is an integer by the JSON Schema of the document.
    #[test]
    fn numbers_are_whole_however_they_are_written_and_never_guessed() {
        #[derive(Deserialize)]
        struct Written(#[serde(deserialize_with = "number")] u64);
        for (text, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("606.0", Some(606)),
            ("6.06e2", Some(606)),
            ("4220082830964474.0", Some(4_220_082_830_964_474)), // only with serde_json's `float_roundtrip`
            ("9007199254740991.0", Some((1 << 53) - 1)),
            ("9007199254740993", Some((1 << 53) + 1)),
            ("18446744073709551615", Some(u64::MAX)),
            ("9007199254740993.0", None), // would be taken for its neighbour
            ("18446744073709551616", None),
            ("606.5", None),
            ("-1", None),
            ("-1.0", None),
            ("null", None),
            ("\"0\"", None),
        ] {
            let read = serde_json::from_str::<Written>(text).ok().map(|Written(number)| number);
            assert_eq!(read, expected, "{text}");
        }
    }
}
