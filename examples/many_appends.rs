//! Ten thousand appends at once, on one thread: `cargo run --example many_appends`. Each completes when its record is
//! durable; where the disk is behind, the tasks wait in line without a thread.

use millstream::{Error, Log, Options};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

const APPENDS: u64 = 10_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let dir: PathBuf =
        std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("millstream-many"), Into::into);
    // Little memory, so that the appends have to wait for the disk.
    let options = Options::default().with_segment_bytes(1 << 20).with_memory_bytes(4 << 20);
    let log = Log::open(dir, options)?;
    let begun = Instant::now();

    // The thread stays free for other work meanwhile.
    let ticks = tokio::spawn(async {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if longest > Duration::from_secs(5) {
                return;
            }
        }
    });
    let before = log.next_offset();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..APPENDS {
        let log = log.clone();
        tasks.spawn(async move { log.append_durable(format!("record {n} {:1000}", "")).await });
    }
    let mut offsets = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let offset = done.expect("no task panics")?;
        assert!(log.durable_offset() > offset, "what is answered is durable");
        offsets.push(offset);
    }
    assert!(!ticks.is_finished(), "the thread was blocked");
    offsets.sort_unstable();
    assert!(offsets.iter().copied().eq(before..before + APPENDS), "each has an offset of its own");
    println!("{APPENDS} appends in {:.1?}, all durable", begun.elapsed());
    Ok(())
}
