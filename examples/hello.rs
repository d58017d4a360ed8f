//! The log in 20 lines: `cargo run --example hello`.

use millstream::{Error, Log, Options};

fn main() -> Result<(), Error> {
    let dir = std::env::temp_dir().join("millstream-hello");
    let log = Log::open(&dir, Options::default())?;

    let one = log.append(b"a record")?; // its offset; in memory
    let two = log.append_batch(&[b"two", b"that belong together"])?;
    log.wait_durable(two + 1)?; // now on disk

    println!("{:?}", String::from_utf8_lossy(log.read(one)?.expect("it is durable").value()));
    for record in log.iter(two) {
        let record = record?;
        println!("{}: {}", record.offset(), String::from_utf8_lossy(record.value()));
    }
    log.close()
}
