//! An import that is killed three times, and stores each line once: `cargo run --example exactly_once [DIR]`.
//!
//! The program starts itself as a child, which imports lines in batches as the producer `importer`, and kills it with
//! SIGKILL in the middle. With each batch the child sends a mark: how many lines it has taken by then. The log stores the
//! mark with the batch; a child that starts asks for it, and continues there.

use millstream::{Error, Log, Options, Payload, ProducerBatch};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const LINES: u64 = 30_000;
const BATCH: u64 = 7;

fn line(n: u64) -> Vec<u8> {
    format!("line {n}").into_bytes()
}

fn import(dir: &Path) -> Result<(), Error> {
    let log = Log::open(dir, Options::default())?;
    // The next epoch: whatever is left of an earlier run of this producer is refused from now on.
    let begun = log.begin_epoch("importer")?;
    let mut next = begun.mark.and_then(|mark| mark.parse().ok()).unwrap_or(0);
    for sequence in 0.. {
        let end = (next + BATCH).min(LINES);
        if next == end {
            break;
        }
        let lines: Vec<_> = (next..end).map(line).collect();
        let payloads: Vec<_> = lines.iter().map(|bytes| Payload { bytes, json: false }).collect();
        let mark = end.to_string();
        let batch = ProducerBatch::new("importer", begun.epoch, sequence).with_mark(&mark);
        let stored = loop {
            match log.try_append_once(&batch, &payloads, None) {
                Err(Error::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
                done => break done?,
            }
        };
        log.wait_durable(stored.first_offset + stored.count - 1)?;
        next = end;
    }
    log.close()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("millstream-once"), PathBuf::from);
    if args.next().is_some() {
        return Ok(import(&dir)?);
    }
    let mut left = 3;
    loop {
        let mut child = Command::new(std::env::current_exe()?).arg(&dir).arg("child").spawn()?;
        if left == 0 {
            assert!(child.wait()?.success());
            break;
        }
        left -= 1;
        std::thread::sleep(Duration::from_millis(300));
        child.kill()?; // SIGKILL
        child.wait()?;
        println!("killed after {} lines", Log::open(&dir, Options::default())?.next_offset());
    }
    let log = Log::open(&dir, Options::default())?;
    let mut next = 0;
    for record in log.iter(0) {
        assert_eq!(record?.value(), line(next), "each line once, in order");
        next += 1;
    }
    assert_eq!(next, LINES);
    println!("{LINES} lines, each stored once");
    Ok(())
}
