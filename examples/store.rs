//! Many logs in one directory: `cargo run --example store`.

use millstream::store::{Error, LogSettings, Store, StoreOptions};

fn main() -> Result<(), Error> {
    let dir = std::env::temp_dir().join("millstream-store");
    let store = Store::open(&dir, StoreOptions::default())?;

    // Keeps some 64 MiB of each customer's events; creating it again with the same settings does nothing.
    let settings = LogSettings { retention_bytes: Some(64 << 20), ..LogSettings::default() };
    for name in ["customer-1", "customer-2"] {
        store.create(name, &settings)?;
        let log = store.get(name)?; // opened, if it is not; closed again by the store when nobody uses it
        let offset = log.append(format!("an event of {name}").as_bytes())?;
        log.wait_durable(offset)?;
    }
    for name in store.names(None, 100) {
        println!("{name}: {} records", store.get(&name)?.next_offset());
    }
    store.close()
}
