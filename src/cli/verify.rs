//! `millstream verify`.

use super::{
    Outcome, counted,
    failure::{self, CodedFailure, Failure},
    must_be_log, other_owner, progress, shm_dir, stderr, stdout,
};
use millstream::{Damage, Report};
use serde_json::{Value, json};
use std::{ops::Range, path::PathBuf, process::ExitCode};

/// Check every record of a log on disk; changes nothing
///
/// The exit code is 0 if all is well, 1 if there is damage, and 2 if that could not be found out: there is no such
/// directory, for example, or a server has the log open. Records that `repair` has marked as lost are counted, and are no
/// damage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    millstream verify data/default\n  \
    for log in data/*/; do millstream verify \"$log\" --json; done")]
pub(super) struct Verify {
    /// The log's directory, such as data/default; no server may have it open
    dir: PathBuf,
    /// Print what was found as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Where a killed server may have left memory of the log, or "none"
    #[arg(long, alias = "images", value_name = "DIR", default_value = "/dev/shm")]
    shm_dir: PathBuf,
}

/// The damage as JSON.
pub(super) fn as_json(damage: &[Damage]) -> Vec<Value> {
    let one = |damage: &Damage| {
        json!({
            "first_offset": damage.offsets.start,
            "next_offset": damage.offsets.end,
            "path": damage.path.to_string_lossy(),
            "reason": damage.reason,
        })
    };
    damage.iter().map(one).collect()
}

/// How many records there are, and which offsets they have.
fn records(offsets: Range<u64>) -> String {
    match offsets.end - offsets.start {
        0 => format!("no records (the next offset is {})", offsets.end),
        1 => format!("1 record (offset {})", offsets.start),
        many => format!("{many} records (offsets {} to {})", offsets.start, offsets.end - 1),
    }
}

/// The exit code if it is not known whether there is damage.
pub(super) const NOT_KNOWN: u8 = 2;

impl Verify {
    pub(super) fn run(&self) -> Outcome {
        must_be_log(&self.dir)?;
        let bar = progress::segments();
        let shm_dir = shm_dir(&self.shm_dir);
        let report = millstream::verify_with_progress(&self.dir, shm_dir, |done, all| {
            progress::advance(&bar, done, all);
        });
        bar.finish_and_clear();
        let report = report?;
        if let Some(owner) = other_owner(&self.dir)?.filter(|_| shm_dir.is_some()) {
            stderr::say(format_args!(
                "millstream: the log belongs to user {owner}; memory left by a server of that user was not looked for"
            ));
        }
        let (first, next) = (report.first, report.next);
        if self.json {
            let damage = as_json(&report.damage);
            let paths = |paths: &[std::path::PathBuf]| -> Vec<Value> {
                paths.iter().map(|path| path.to_string_lossy().into()).collect()
            };
            let all = json!({
                "first_offset": first, "next_offset": next, "segments": report.segments, "damage": damage,
                "lost": report.lost,
                "torn": paths(&report.torn), "backings": paths(&report.backings),
            });
            stdout::line(format_args!("{all}"))?;
        } else {
            print(&report)?;
        }
        if report.damage.is_empty() {
            if !self.json {
                stdout::line(format_args!("no damage found"))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let coded = CodedFailure {
            words: format!(
                "damage was found; `millstream repair {}` keeps the damaged files aside, and marks what is lost, so that \
                 readers pass it and the log can be written to",
                self.dir.display()
            ),
            code: failure::DAMAGED.into(),
        };
        stderr::say(format_args!("{}", coded.line(self.json)));
        Ok(ExitCode::FAILURE)
    }
}

/// Prints what was found.
fn print(report: &Report) -> Result<(), Failure> {
    let segments = counted(report.segments as u64, "segment");
    stdout::line(format_args!("{}, {segments}", records(report.first..report.next)))?;
    for damage in &report.damage {
        stdout::line(format_args!("damaged: {damage}"))?;
    }
    if report.lost > 0 {
        let lost = counted(report.lost, "record");
        stdout::line(format_args!("lost to earlier damage, and marked so by repair: {lost}"))?;
    }
    for path in &report.torn {
        stdout::line(format_args!("cut off after a crash, and kept: {}", path.display()))?;
    }
    for path in &report.backings {
        stdout::line(format_args!(
            "memory of a process that was killed, for the next opening: {}",
            path.display()
        ))?;
    }
    Ok(())
}
