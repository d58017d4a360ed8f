//! Waiting for room and for the disk without a thread: futures complete when their records are durable.
//! `cargo run --example async_durability`

use millstream::{Error, Log, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let dir = std::env::temp_dir().join("millstream-async");
    let log = Log::open(&dir, Options::default())?;

    let tasks: Vec<_> = (0..100)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move {
                // Waits in line where the disk is behind; one write makes all that has come durable at once.
                log.append_durable(format!("record {n}")).await
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no task panics")?;
    }
    log.shutdown()?; // for all clones
    println!("{} records, {} of them durable", log.next_offset(), log.durable_offset());
    Ok(())
}
