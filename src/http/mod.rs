//! The HTTP endpoint: thin adapters over a store of logs. They parse, call and render; the request's own task
//! appends.
//!
//! `server` listens and enforces limits, `router` finds what a request is for and has what all requests need;
//! `book` is the API of the book, `logs` and `records` are `/v1/logs`, `tail` is the live end of a log, and `feed` what
//! its readers share. `body`, `params` and `formats` take requests apart, `metrics` counts, `commit` waits for durability once per runtime and commit, `problem`
//! is how errors look.

mod body;
mod book;
mod commit;
mod feed;
mod formats;
mod logs;
mod metrics;
mod params;
mod problem;
mod records;
mod router;
mod server;
mod tail;

pub use server::{Server, Settings};

/// Takes a body apart as any client may send it, for `fuzz/`: it is refused, or each of its records is what it says.
#[cfg(fuzzing)]
pub fn fuzz_body(media_type: &str, encoding: &str, bytes: &[u8], json_only: bool) {
    let Some(format) = formats::Format::of(media_type) else { return };
    let Ok(encoding) = body::Encoding::of(Some(encoding)) else { return };
    let Ok(decoded) = encoding.decode(bytes::Bytes::copy_from_slice(bytes), 1 << 20) else { return };
    assert!(decoded.len() <= 1 << 20, "the limit does not hold");
    let Ok(mut batch) = formats::parse(format, decoded.clone()) else { return };
    let checked = batch.check(json_only, Some(1 << 10)).is_ok();
    let payloads = batch.payloads();
    assert!(!payloads.is_empty());
    for payload in &payloads {
        let is_json = || serde_json::from_slice::<serde_json::value::Value>(payload.bytes);
        // Numbers beyond a float and deeper nesting than 128 are JSON as well, and are not held against it.
        if let Err(error) = payload.json.then(is_json).transpose() {
            let said = error.to_string();
            assert!(said.contains("range") || said.contains("recursion"), "{said}");
        }
        assert!(!checked || payload.bytes.len() <= 1 << 10);
        assert!(!checked || !json_only || payload.json);
    }
    let total: usize = payloads.iter().map(|payload| payload.bytes.len()).sum();
    assert!(total <= decoded.len(), "more than there was");
}
