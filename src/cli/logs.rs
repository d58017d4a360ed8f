//! `millstream logs`.

use super::{
    Outcome,
    failure::{CodedFailure, Failure},
    settings::SettingsFlags,
    stderr, stdout,
    target::{Target, TargetFlags, block_on},
};
use clap::Subcommand;
use millstream::{client::LogInfo, store::LogSettings};
use std::process::ExitCode;

/// List, create, describe, delete and trim logs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream logs list\n  \
    millstream logs create clicks --values json --retention-seconds 86400\n  \
    millstream logs trim clicks 1000")]
pub(super) struct Logs {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(flatten)]
    at: TargetFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all logs, with their offsets and sizes
    List,
    /// Create a log
    Create {
        /// The log's name
        log: String,
        /// Settings as a JSON object; see docs/api.md. Flags take precedence over it
        #[arg(long, default_value = "{}", value_parser = settings)]
        settings: LogSettings,
        #[command(flatten)]
        flags: SettingsFlags,
    },
    /// Describe one log: offsets, size, id, durability, settings, and what is damaged: as far as the server has found it, or
    /// with --data, by reading all of its sealed segments
    Describe {
        /// The log's name
        log: String,
    },
    /// Delete a log and all its records
    Delete {
        /// The log's name
        log: String,
    },
    /// Drop the segments whose records are all below an offset
    Trim {
        /// The log's name
        log: String,
        /// An offset: segments whose records are all below it are dropped
        before: u64,
    },
}

/// What is left of a log.
#[derive(serde::Serialize)]
struct Trimmed<'a> {
    #[serde(flatten)]
    log: &'a LogInfo,
    /// How many offsets were dropped.
    dropped: u64,
}

impl Logs {
    /// Whether a log is to be deleted.
    pub(super) fn deletes(&self) -> bool {
        matches!(self.command, Command::Delete { .. })
    }

    /// Of one log of several.
    fn say_cannot_be_described(&self, name: &str, coded: &CodedFailure) {
        let CodedFailure { words, code } = coded;
        if self.json {
            let line = serde_json::json!({ "log": name, "code": code, "error": words });
            stderr::say(format_args!("{line}"));
        } else {
            stderr::say(format_args!("{name}: {words}"));
        }
    }

    pub(super) fn run(&self) -> Outcome {
        let creates = matches!(self.command, Command::Create { .. });
        let target = if creates { self.at.open_or_create() } else { self.at.open() }?;
        block_on(async {
            match &self.command {
                Command::List => {
                    let names = match &target {
                        Target::Server(client) => client.logs().await?,
                        Target::Directory(store) => store.names(None, usize::MAX),
                    };
                    let (mut all, mut failed) = (Vec::new(), 0);
                    for name in names {
                        match target.describe(&name).await {
                            Ok(described) => all.push(described),
                            Err(error) => {
                                failed += 1;
                                self.say_cannot_be_described(&name, &CodedFailure::of(&*error));
                            }
                        }
                    }
                    self.show(&all)?;
                    if failed > 0 {
                        return Err(format!("{failed} of the logs cannot be described").into());
                    }
                }
                Command::Create { log, settings, flags } => {
                    self.show(&[target.create(log, &flags.over(settings.clone())).await?])?;
                }
                Command::Describe { log } => self.describe(&target.examine(log).await?)?,
                Command::Delete { log } => {
                    target.delete(log).await?;
                    if self.json {
                        let deleted = serde_json::json!({ "log": log, "deleted": true });
                        stdout::line(format_args!("{deleted}"))?;
                    } else {
                        stderr::say(format_args!("{log} is deleted"));
                    }
                }
                Command::Trim { log, before } => self.trim(&target, log, *before).await?,
            }
            Ok(())
        })?;
        Ok(ExitCode::SUCCESS)
    }

    async fn trim(&self, target: &Target, log: &str, before: u64) -> Result<(), Failure> {
        let first = target.describe(log).await?.first_offset;
        let first_now = target.trim(log, before).await?;
        let left = target.describe(log).await.map_err(|error| {
            let CodedFailure { words, code } = CodedFailure::of(&*error);
            let words =
                format!("the first offset of {log} is {first_now} now, but it cannot be described: {words}");
            CodedFailure { words, code }
        })?;
        if first_now == first && before > first {
            let why = if before < left.next_offset {
                format!("only whole segments can be, and the first one also has records at {before} or later")
            } else {
                "the disk has no room for the segment after the last one, or is slow".to_owned()
            };
            stderr::say(format_args!("nothing was dropped: {why}"));
        }
        if !self.json {
            return self.show(&[left]);
        }
        stdout::json(&Trimmed { log: &left, dropped: first_now.saturating_sub(first) })
    }

    fn show(&self, logs: &[LogInfo]) -> Result<(), Failure> {
        if self.json {
            return logs.iter().try_for_each(stdout::json);
        }
        let width = logs.iter().map(|log| log.name.len()).max().unwrap_or(0).max(4);
        stdout::line(format_args!("{:width$}  {:>12}  {:>12}  {:>14}", "log", "first", "next", "bytes"))?;
        for LogInfo { name, first_offset, next_offset, bytes, .. } in logs {
            stdout::line(format_args!("{name:width$}  {first_offset:>12}  {next_offset:>12}  {bytes:>14}"))?;
        }
        logs.iter().try_for_each(show_damage)
    }

    fn describe(&self, log: &LogInfo) -> Result<(), Failure> {
        self.show(std::slice::from_ref(log))?;
        if self.json {
            return Ok(());
        }
        let all = serde_json::to_value(log)?;
        let own = ["id", "durability", "durable_offset", "not_writable"].map(|name| (name, all.get(name)));
        // The log's durability is above, wherever it comes from.
        let settings =
            all["settings"].as_object().into_iter().flatten().filter(|(name, _)| *name != "durability");
        let settings = settings.map(|(name, value)| (name.as_str(), Some(value)));
        for (name, value) in own.into_iter().chain(settings) {
            let Some(value) = value else { continue };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            stdout::line(format_args!("{name:<18} {text}"))?;
        }
        Ok(())
    }
}

fn show_damage(log: &LogInfo) -> Result<(), Failure> {
    for damage in &log.damage {
        let (first, next) = (damage.first_offset, damage.next_offset);
        let records = match next.saturating_sub(first) {
            0 => format!("in the segment at offset {first}"),
            1 => format!("offset {first}"),
            _ => format!("offsets {first} to {}", next - 1),
        };
        stdout::line(format_args!("{} is damaged, {records}: {}", log.name, damage.reason))?;
    }
    Ok(())
}

fn settings(text: &str) -> Result<LogSettings, String> {
    let parsed = text.parse();
    parsed.map_err(|error| format!("it must be a JSON object, such as {{\"values\":\"json\"}}: {error}"))
}
