//! The client of a server: `cargo run -- serve` in one terminal, `cargo run --example client` in another.

use millstream::client::{Client, Error, LogSettings};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let client = Client::new("http://127.0.0.1:4437")?;
    client.create("clicks", &LogSettings::default()).await?;

    // Sent in batches, by size or time; a batch that has to be sent again is stored once.
    let producer = client.producer("clicks", "example-1")?;
    for page in ["/", "/docs", "/"] {
        producer.push_json(format!("{{\"page\":{page:?}}}").as_bytes()).await?;
    }
    let stored = producer.close().await?;
    println!("{} records stored", stored.records);

    let page = client.read("clicks", 0, 100).await?;
    for record in &page.records {
        println!("{}: {}", record.offset, String::from_utf8_lossy(&record.value));
    }
    println!("the next offset is {}", page.next_offset);
    Ok(())
}
