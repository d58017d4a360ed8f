//! Waiting for the disk without a thread: appends return at once, and futures complete when their records are durable.
//! `cargo run --example async_durability`

use millstream::{Error, Log, Options};
use std::sync::Arc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let dir = std::env::temp_dir().join("millstream-async");
    let log = Arc::new(Log::open(&dir, Options::default())?);

    let tasks: Vec<_> = (0..100)
        .map(|n| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                // `try_append` never blocks: where the disk is behind, wait for room and try again.
                let offset = loop {
                    let room = log.room(); // before the attempt, so that room made in between is not missed
                    match log.try_append(format!("record {n}").as_bytes()) {
                        Err(Error::WouldBlock) => room.await,
                        appended => break appended?,
                    }
                };
                log.durable(offset).await?; // one write to the disk makes all that has come durable at once
                Ok::<u64, Error>(offset)
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no task panics")?;
    }
    println!("{} records, {} of them durable", log.next_offset(), log.durable_offset());
    Ok(())
}
