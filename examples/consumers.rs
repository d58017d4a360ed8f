//! Producers, and consumers that continue where they were: `cargo run --example consumers [DIR]`. Run it again: the
//! consumers read only what is new.
//!
//! A consumer reads, processes what it has read, and then sets its cursor. If it is killed in between, it processes some
//! records once more: at least once, never not at all.

use millstream::{Error, Log, Options};
use std::{path::PathBuf, time::Duration};

const PRODUCERS: u64 = 4;
const RECORDS: u64 = 1000;

fn produce(log: &Log, producer: u64) -> Result<(), Error> {
    for n in 0..RECORDS {
        log.append(format!("{producer}:{n}").as_bytes())?;
    }
    log.flush()
}

/// Reads until there are `until` records; returns how many it has processed.
fn consume(log: &Log, name: &str, until: u64) -> Result<u64, Error> {
    let cursor = log.cursor(name)?;
    let mut reader = log.reader(cursor.offset()?.unwrap_or_else(|| log.first_offset()));
    let mut processed = 0;
    while reader.offset() < until {
        match reader.read_next()? {
            Some(record) => {
                assert!(record.value.contains(&b':')); // here a program would do its work
                processed += 1;
                // Not after each: a cursor is written to the disk when it is set.
                if processed % 500 == 0 {
                    cursor.set(reader.offset())?;
                }
            }
            None => std::thread::sleep(Duration::from_millis(1)), // or wait for `log.visible(reader.offset())`
        }
    }
    cursor.set(reader.offset())?;
    Ok(processed)
}

fn main() -> Result<(), Error> {
    let dir: PathBuf =
        std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("millstream-queue"), Into::into);
    let log = Log::open(&dir, Options::default())?;
    let until = log.next_offset() + PRODUCERS * RECORDS;
    let log = &log;
    std::thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            scope.spawn(move || produce(log, producer).expect("the disk takes it"));
        }
        for name in ["mailer", "index"] {
            scope.spawn(move || {
                let processed = consume(log, name, until).expect("the log can be read");
                println!("{name} has processed {processed} records, up to {until}");
            });
        }
    });
    Ok(())
}
