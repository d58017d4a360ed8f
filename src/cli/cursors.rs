//! `millstream cursors`.

use super::{
    Outcome,
    failure::Failure,
    start, stderr, stdout,
    target::{Expected, TargetFlags, block_on},
};
use clap::Subcommand;
use millstream::client::{CursorInfo, StartAt};
use std::process::ExitCode;

/// List, set, and remove cursors: positions of consumers, which a log keeps
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream cursors list clicks\n  \
    millstream cursors set clicks mailer 1000\n  \
    millstream cursors set clicks mailer 2000 --expect 1000\n  \
    millstream read clicks --cursor mailer")]
pub(super) struct Cursors {
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
    /// List all cursors of a log, and how many records each is behind
    List {
        /// The log's name
        log: String,
    },
    /// Print where a cursor is
    Get {
        /// The log's name
        log: String,
        /// The cursor's name
        cursor: String,
    },
    /// Set a cursor, forward or backward
    Set {
        /// The log's name
        log: String,
        /// The cursor's name
        cursor: String,
        /// The offset of the record that its consumer wants next, -K for the last K records, earliest, or latest
        #[arg(allow_hyphen_values = true)]
        offset: StartAt,
        /// Set it only if it is at this offset now; with none, only if it does not exist
        #[arg(long, value_name = "OFFSET|none")]
        expect: Option<Expected>,
    },
    /// Remove a cursor
    Remove {
        /// The log's name
        log: String,
        /// The cursor's name
        cursor: String,
    },
}

impl Cursors {
    pub(super) fn run(&self) -> Outcome {
        let target = self.at.open()?;
        block_on(async {
            match &self.command {
                Command::List { log } => self.show(&target.cursors(log).await?),
                Command::Get { log, cursor } => self.show(&[target.cursor(log, cursor).await?]),
                Command::Set { log, cursor, offset, expect } => {
                    let offset = start::resolve(*offset, &target, log).await?;
                    self.show(&[target.set_cursor(log, cursor, *expect, offset).await?])
                }
                Command::Remove { log, cursor } => {
                    target.remove_cursor(log, cursor).await?;
                    if self.json {
                        let removed = serde_json::json!({ "log": log, "cursor": cursor, "removed": true });
                        return stdout::line(format_args!("{removed}"));
                    }
                    stderr::say(format_args!("the cursor {cursor} of {log} is removed"));
                    Ok(())
                }
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, cursors: &[CursorInfo]) -> Result<(), Failure> {
        if self.json {
            return cursors.iter().try_for_each(stdout::json);
        }
        let width = cursors.iter().map(|cursor| cursor.name.len()).max().unwrap_or(0).max(6);
        stdout::line(format_args!("{:width$}  {:>12}  {:>12}", "cursor", "offset", "lag"))?;
        for CursorInfo { name, offset, lag, .. } in cursors {
            stdout::line(format_args!("{name:width$}  {offset:>12}  {lag:>12}"))?;
        }
        Ok(())
    }
}
