//! Millstream.
mod chunk;
mod frame;
mod sync;
