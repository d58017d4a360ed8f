//! What the JSON of requests and settings may say: numbers as JSON Schema has them, where `606.0` and `6e2` are integers,
//! too, and no `null` in place of a member that is left out. So `/openapi.json` allows what the server takes, and nothing
//! else.

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, Error, IntoDeserializer, MapAccess, Unexpected, Visitor,
        value::{BorrowedStrDeserializer, MapAccessDeserializer},
    },
};
use serde_json::value::RawValue;
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

/// Something that is read from a JSON object only. Without this, a struct would also be read from a list, whose values
/// would be assigned to the members by position.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Parsed<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Parsed<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(Members::new(map))).map(Object)
            }
        }
        from.deserialize_map(Parsed(PhantomData))
    }
}

/// An object's members. What is wrong with the value of one is said with its name. Those with a long name are unknown: the
/// parser would make one copy of a name that contains escapes, and another to say that it is unknown, of any length.
pub(crate) struct Members<'de, A> {
    map: A,
    /// The name of the member that was found last, as written in the body.
    quoted: &'de str,
}

impl<A> Members<'_, A> {
    pub(crate) fn new(map: A) -> Self {
        Self { map, quoted: "" }
    }
}

/// The most bytes of a name as written in the body: more than any known name has with each of its letters escaped.
const MAX_NAME_BYTES: usize = 128;

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<'de, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(quoted) = self.map.next_key::<&'de RawValue>()?.map(RawValue::get) else { return Ok(None) };
        self.quoted = quoted;
        if quoted.len() > MAX_NAME_BYTES {
            let begin: String = quoted.chars().take(MAX_NAME_BYTES).collect();
            return Err(<A::Error as Error>::custom(format_args!("unknown field {begin}…")));
        }
        let known = if quoted.contains('\\') {
            let name: String = serde_json::from_str(quoted).map_err(<A::Error as Error>::custom)?;
            seed.deserialize(name.into_deserializer())
        } else {
            seed.deserialize(BorrowedStrDeserializer::new(quoted.trim_matches('"')))
        };
        known.map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed).map_err(|error| {
            <A::Error as Error>::custom(format_args!("{}: {error}", self.quoted.replace('"', "`")))
        })
    }
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
