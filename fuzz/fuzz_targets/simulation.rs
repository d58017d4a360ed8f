//! Bytes decoded into what happens to an engine on the simulated disk, which is compared with a model of what was
//! promised: which operations, when the background gets its turns, what fails, when the process is killed or power is
//! lost.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| millstream::fuzzing::simulation(bytes));
