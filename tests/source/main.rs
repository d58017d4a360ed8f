//! That the source, the documents and the examples agree with each other and with the rules of the house.

mod examples;
mod imports;
mod named;
mod reliability;
mod unsafe_code;
