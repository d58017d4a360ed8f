//! `millstream repair`.

use super::{Outcome, must_be_log, other_owner, progress, shm_dir, stdout, verify};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

/// Make a damaged log writable again. Damaged files are kept aside; records that are lost stay lost
///
/// The exit code is 0 if the log is repaired, or had no damage, and 1 if it is not repaired, or could not be looked at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream repair data/default\n  \
    millstream repair data/default --json | jq -r '.kept[]'")]
pub(super) struct Repair {
    /// The log's directory, such as data/default; no server may have it open
    dir: PathBuf,
    /// Where a killed server may have left records in shared memory. With "none" it is not searched, and records there that
    /// follow lost ones are given up
    #[arg(long, alias = "images", value_name = "DIR", default_value = "/dev/shm")]
    shm_dir: PathBuf,
    /// Also repair a log of another user, without looking for memory left by a server of that user
    #[arg(long)]
    any_user: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Repair {
    pub(super) fn run(&self) -> Outcome {
        must_be_log(&self.dir)?;
        if let Some(owner) = other_owner(&self.dir)?.filter(|_| !self.any_user) {
            let dir = self.dir.display();
            return Err(format!(
                "the log belongs to user {owner}: memory left by a server of that user would not be found, and repaired files \
                 would not belong to that user; use sudo -u '#{owner}' millstream repair {dir}, or --any-user"
            )
            .into());
        }
        let bar = progress::segments();
        let repaired = millstream::repair_with_progress(&self.dir, shm_dir(&self.shm_dir), |done, all| {
            progress::advance(&bar, done, all);
        });
        bar.finish_and_clear();
        let repaired = repaired?;
        if self.json {
            let kept: Vec<_> = repaired.kept.iter().map(|path| path.to_string_lossy()).collect();
            let report = json!({"damage": verify::as_json(&repaired.damage), "kept": kept});
            stdout::line(format_args!("{report}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        for damage in &repaired.damage {
            stdout::line(format_args!("damaged: {damage}"))?;
        }
        for kept in &repaired.kept {
            stdout::line(format_args!("kept as it was: {}", kept.display()))?;
        }
        stdout::line(format_args!(
            "{}",
            if repaired.damage.is_empty() { "nothing to repair" } else { "repaired" }
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
