//! The `millstream` binary.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
