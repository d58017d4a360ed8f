//! The program under test.

use std::process::Command;

/// The program without the variables that are for tests (such as `MILLSTREAM_HOSTILE`): it warns about those that are no
/// settings.
pub fn millstream() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| name.to_string_lossy().starts_with("MILLSTREAM_")) {
        command.env_remove(name);
    }
    command
}
