//! Settings of `serve` from a file: they replace the defaults, so that a flag takes precedence over an environment
//! variable, and that over the file.

use super::target::Failure;
use clap::{ArgMatches, Command, parser::ValueSource};
use std::{fmt::Write, path::Path};

/// The arguments of `serve` that are not settings.
const NOT_SETTINGS: [&str; 3] = ["config", "print_config", "help"];

/// The names that settings had before 0.2, which still work: as aliases of flags, in files, and in environment
/// variables.
const RENAMED: [(&str, &str); 5] = [
    ("images", "shm_dir"),
    ("max_body", "max_body_bytes"),
    ("max_header", "max_header_bytes"),
    ("max_decoded", "max_decoded_bytes"),
    ("max_http_memory", "max_http_memory_bytes"),
];

/// Returns the command with the values of environment variables with old names as defaults, so that those with new
/// names take precedence.
pub(super) fn with_old_variables(command: Command) -> Command {
    RENAMED.iter().fold(command, |command, (old, new)| {
        match std::env::var_os(format!("MILLSTREAM_{}", old.to_uppercase())) {
            Some(value) => command.mut_arg(new, |argument| argument.default_value(value)),
            None => command,
        }
    })
}

/// Returns the command with the file's settings as defaults.
pub(super) fn with_file(command: Command, path: &Path) -> Result<Command, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| format!("{shown} is not TOML: {}", one_line(&error.to_string())))?;
    let mut command = command;
    for (key, value) in table {
        let key = RENAMED.iter().find(|(old, _)| *old == key).map_or(key, |(_, new)| (*new).to_owned());
        let known = command.get_arguments().any(|argument| argument.get_id() == key.as_str());
        if !known || NOT_SETTINGS.contains(&key.as_str()) {
            return Err(format!("{shown} has {key:?}, which is no setting; --print-config shows all").into());
        }
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(yes) => yes.to_string(),
            other => return Err(format!("{shown}: {key} cannot be {}", other.type_str()).into()),
        };
        command = command.mut_arg(key, |argument| argument.default_value(value));
    }
    Ok(command)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Formats all settings as in a file, each with its source.
pub(super) fn print(command: &Command, matches: &ArgMatches, has_file: bool) -> String {
    let mut out = String::new();
    for argument in
        command.get_arguments().filter(|argument| !NOT_SETTINGS.contains(&argument.get_id().as_str()))
    {
        let key = argument.get_id().as_str();
        let value = if matches!(argument.get_action(), clap::ArgAction::SetTrue) {
            Some(matches.get_flag(key).to_string())
        } else {
            let all = |values: clap::parser::RawValues<'_>| {
                values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",")
            };
            matches.get_raw(key).map(all)
        };
        let from = match matches.value_source(key) {
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "environment",
            _ if has_file => "file or default",
            _ => "default",
        };
        let _ = match value {
            None => writeln!(out, "# {key} is not set"), // writing to a string cannot fail
            Some(plain) if plain.parse::<i64>().is_ok() || plain.parse::<bool>().is_ok() => {
                writeln!(out, "{key} = {plain} # {from}")
            }
            Some(text) => writeln!(out, "{key} = {} # {from}", toml::Value::String(text)),
        };
    }
    out
}
