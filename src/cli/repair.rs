//! `millstream repair`.

use super::{Outcome, must_exist};
use std::{path::PathBuf, process::ExitCode};

/// Make a damaged log writable again. What is damaged is kept aside; records that are lost stay lost
#[derive(Debug, clap::Args)]
pub(super) struct Repair {
    /// The log's directory, such as data/default; no server may have it open
    dir: PathBuf,
}

impl Repair {
    pub(super) fn run(&self) -> Outcome {
        must_exist(&self.dir)?;
        let repaired = millstream::repair(&self.dir)?;
        for damage in &repaired.damage {
            println!("damaged: {damage}");
        }
        for kept in &repaired.kept {
            println!("kept as it was: {}", kept.display());
        }
        println!("{}", if repaired.damage.is_empty() { "nothing to repair" } else { "repaired" });
        Ok(ExitCode::SUCCESS)
    }
}
