//! Parses arbitrary bytes as the body of an append, in each format and encoding: no panic, no record that is larger
//! than the body, and none marked as JSON that is not JSON.
#![no_main]

const TYPES: [&str; 5] = [
    "application/x-ndjson",
    "application/json",
    "text/plain",
    "application/octet-stream",
    "application/vnd.millstream.frames",
];
const ENCODINGS: [&str; 3] = ["identity", "gzip", "zstd"];

libfuzzer_sys::fuzz_target!(|input: (u8, bool, Vec<u8>)| {
    let (what, json_only, bytes) = input;
    let (media_type, encoding) = (TYPES[usize::from(what) % 5], ENCODINGS[usize::from(what) / 5 % 3]);
    millstream::fuzzing::body(media_type, encoding, &bytes, json_only);
});
