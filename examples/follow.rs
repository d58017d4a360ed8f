//! Following a log: one thread appends, another reads each record as soon as it is durable.
//! `cargo run --example follow`

use millstream::{Error, Log, Options};

fn main() -> Result<(), Error> {
    let dir = std::env::temp_dir().join("millstream-follow");
    let log = Log::open(&dir, Options::default())?;
    let (begin, records) = (log.next_offset(), 10);
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let mut reader = log.reader(begin);
            for _ in 0..records {
                while reader.read_next()?.is_none_or(|record| {
                    println!("{}: {}", record.offset, String::from_utf8_lossy(record.value));
                    false
                }) {
                    reader.wait(None)?; // until there is more to be read
                }
            }
            Ok(())
        });
        for n in 0..records {
            log.append(format!("record {n}").as_bytes())?;
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        follower.join().expect("it does not panic")
    })?;
    log.close()
}
