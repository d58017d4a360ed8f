//! Ways in for `fuzz/`; not part of the library.

#[cfg(feature = "server")]
pub use crate::http::fuzzing::body;
#[cfg(feature = "store")]
pub use crate::{log::checksum_of_producers, sim::fuzz as simulation};

use crate::frame::{Key, Stamp, decode, encode, in_bytes, parse, words};

/// Any bytes decode to nothing, or to what encodes to just them.
pub fn frame(seed: u32, bytes: &[u8]) {
    let key = Key::test(seed);
    if let Some(found) = decode(bytes, key) {
        let mut again = vec![0xAA; in_bytes(found.frame.words())];
        encode(&mut again, key, found.stamp(), found.frame.body);
        assert_eq!(again, bytes[..again.len()]);
    }
    // Frames that this process wrote are read without checking: bytes that are none must not panic either.
    let _ = parse(bytes);
    // And each value comes back.
    let stamp = Stamp { record: seed, behind: 1, time: 2, flags: 0 };
    let mut frame = vec![0; in_bytes(words(bytes.len()))];
    encode(&mut frame, key, stamp, bytes);
    assert!(decode(&frame, key).is_some_and(|found| found.frame.value == bytes && found.stamp() == stamp));
}
