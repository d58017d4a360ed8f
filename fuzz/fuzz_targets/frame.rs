//! Arbitrary bytes decode to nothing, or to a frame that encodes to exactly these bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u32, Vec<u8>)| millstream::fuzzing::frame(input.0, &input.1));
