//! Settings of `serve` from a file. They replace the defaults, so flags take precedence over environment variables, and
//! these over the file. The settings, with their old names, are declared once, in [`Serve`](super::serve::Serve): a
//! setting's key is its flag with _ instead of -.

use super::{Usage, failure::Failure, serve, target};
use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use std::{fmt::Write, path::Path};

/// The arguments of `serve` that are not settings.
const NOT_SETTINGS: [&str; 3] = ["config", "print_config", "help"];

/// What the names of environment variables begin with.
const PREFIX: &str = "MILLSTREAM_";

/// The variables that are not settings of `serve` by a flag's name.
const OTHERS: [&str; 3] = [target::URL, serve::LOG_FILTERS[0], serve::LOG_FILTERS[1]];

/// The old names of a setting, as in files: those that `serve` has as aliases of its flag.
fn old_names(argument: &Arg) -> impl Iterator<Item = String> {
    argument.get_all_aliases().unwrap_or_default().into_iter().map(|flag| flag.replace('-', "_"))
}

/// Returns the command with the values of environment variables with old names as defaults, so that those with new
/// names take precedence.
pub(super) fn with_old_variables(command: Command) -> Command {
    command.mut_args(|argument| {
        let value =
            old_names(&argument).find_map(|old| std::env::var_os(format!("{PREFIX}{}", old.to_uppercase())));
        match value {
            Some(value) => argument.default_value(value),
            None => argument,
        }
    })
}

/// The environment variables that look like settings, and are none: their names may be misspelt.
pub(super) fn unknown_variables(command: &Command) -> Vec<String> {
    let of_settings = command.get_arguments().flat_map(|argument| {
        let old = old_names(argument).map(|old| format!("{PREFIX}{}", old.to_uppercase()));
        argument.get_env().map(|variable| variable.to_string_lossy().into_owned()).into_iter().chain(old)
    });
    let known: Vec<String> = of_settings.chain(OTHERS.map(str::to_owned)).collect();
    let set = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    set.filter(|name| name.starts_with(PREFIX) && !known.contains(name)).collect()
}

/// Returns the command with the file's settings as defaults.
pub(super) fn with_file(command: Command, path: &Path) -> Result<Command, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        Usage(format!("{shown} is not TOML: {}", one_line(&error.to_string())))
    })?;
    let mut command = command;
    for (key, value) in table {
        let named =
            |argument: &&Arg| argument.get_id() == key.as_str() || old_names(argument).any(|old| old == key);
        let setting = command.get_arguments().find(named).map(|argument| argument.get_id().clone());
        let Some(id) = setting.filter(|id| !NOT_SETTINGS.contains(&id.as_str())) else {
            let error =
                format!("{shown} has {key:?}, which is not a setting; --print-config prints all settings");
            return Err(Usage(error).into());
        };
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(yes) => yes.to_string(),
            other => return Err(Usage(format!("{shown}: {key} cannot be {}", other.type_str())).into()),
        };
        command = command.mut_arg(id, |argument| argument.default_value(value));
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args;

    /// An attribute has each variable's name; nothing else compares it with the flag's.
    #[test]
    fn each_setting_has_a_flag_and_a_variable_of_its_name() {
        let command = super::super::serve::Serve::augment_args(Command::new("serve"));
        for argument in command.get_arguments().filter(|argument| argument.get_id() != "print_config") {
            let name = argument.get_id().as_str();
            assert_eq!(argument.get_long(), Some(&*name.replace('_', "-")));
            let variable = argument.get_env().map(|variable| variable.to_string_lossy().into_owned());
            assert_eq!(variable, Some(format!("{PREFIX}{}", name.to_uppercase())));
        }
    }
}
