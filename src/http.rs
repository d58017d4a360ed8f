//! The HTTP endpoint: thin adapters over a store of logs. They parse, call and render; the request's own task appends.
//!
//! `server` listens, `connection` keeps each connection within its limits, `guard` refuses what browsers send on behalf
//! of other pages, `router` dispatches requests and does what is common to all of them; `book` is the API of the book,
//! `logs` and `records` are `/v1/logs`, `tail` is the live end of a log, and `feed` is what its readers share. `fetch`
//! is how everything is read that comes from the disk or is large, and `line` hands out turns for that. `body`,
//! `params` and `formats` parse requests, within the budget of `memory`; `metrics` counts, `commit` waits for
//! durability once per runtime and commit, `problem` defines what errors look like.

mod answer;
mod body;
mod book;
mod commit;
mod connection;
mod context;
mod feed;
mod fetch;
mod formats;
mod guard;
mod line;
mod log_turns;
mod logs;
mod memory;
mod metrics;
#[cfg(test)]
mod panics;
mod params;
mod problem;
mod range;
mod records;
mod room;
mod router;
mod server;
mod socket;
mod tail;
mod unsent;

pub use server::{Server, Settings};

/// Parses a body as any client may send it, for `fuzz/`: either it is refused, or each of its records is what it claims
/// to be.
#[cfg(fuzzing)]
pub fn fuzz_body(media_type: &str, encoding: &str, bytes: &[u8], json_only: bool) {
    use crate::chunk::AppendValues;
    let Some(format) = formats::Format::of(media_type) else { return };
    let Ok(encoding) = body::Encoding::of(Some(encoding)) else { return };
    let memory = memory::Memory::new(64 << 20, 1 << 20, 1);
    let (room, grant) = (room::Room::new(1 << 20), || memory.grant(memory::Purpose::Request));
    let body = bytes::Bytes::copy_from_slice(bytes);
    let meter = room::Meter::new(format, room);
    let Ok(Some(decoded)) = encoding.decode(body, 1 << 20, memory::Work::Much, grant(), meter) else {
        return;
    };
    assert!(decoded.len() <= 1 << 20, "the limit does not hold");
    let Ok(mut batch) = formats::parse(format, decoded.clone(), room, grant()) else { return };
    let checked = batch.check(json_only, Some(1 << 10)).is_ok();
    let (mut records, mut total) = (0, 0);
    batch.each(|bytes, flags| {
        let json = flags & crate::frame::JSON != 0;
        // Numbers too large for a float, nesting deeper than 128, and escapes of half a surrogate pair (RFC 8259, 8.2)
        // are JSON as well, and do not count as failures.
        if checked
            && json
            && let Err(error) = serde_json::from_slice::<serde_json::value::Value>(bytes)
        {
            let said = error.to_string();
            assert!(
                ["range", "recursion", "surrogate", "hex escape"].iter().any(|one| said.contains(one)),
                "{said}"
            );
        }
        assert!(!checked || bytes.len() <= 1 << 10);
        assert!(!checked || !json_only || json);
        records += 1;
        total += bytes.len();
    });
    assert!(records > 0 && records == batch.records() && total as u64 == batch.bytes());
    assert!(total <= decoded.len(), "more than there was");
}
