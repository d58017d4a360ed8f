//! `millstream verify`.

use super::{Outcome, must_exist};
use std::{path::PathBuf, process::ExitCode};

/// Check every record of a log on disk; changes nothing. Exit code 1 where there is damage
#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// The log's directory, such as data/default; no server may have it open
    dir: PathBuf,
}

impl Verify {
    pub(super) fn run(&self) -> Outcome {
        must_exist(&self.dir)?;
        let report = millstream::verify(&self.dir)?;
        let (first, next) = (report.first, report.next);
        println!(
            "{} records (offsets {first} to {next}, the last not included), {} segments",
            next - first,
            report.segments
        );
        for damage in &report.damage {
            println!("damaged: {damage}");
        }
        if report.damage.is_empty() {
            println!("all verify");
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!(
            "millstream: damage was found; `millstream repair {}` makes the log writable again",
            self.dir.display()
        );
        Ok(ExitCode::FAILURE)
    }
}
