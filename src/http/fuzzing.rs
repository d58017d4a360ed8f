//! Ways in for `fuzz/` to what is private in here.

use super::{
    body::Encoding,
    effort::Work,
    formats::{self, Format},
    memory::{Memory, Purpose},
    meter::Meter,
    segment_room::SegmentRoom,
};
use crate::{
    chunk::AppendValues,
    frame::JSON,
    store::{LogSettings, Values},
};
use bytes::Bytes;

/// Parses a body as any client may send it, for `fuzz/`: either it is refused, or each of its records is what it claims
/// to be.
pub fn body(media_type: &str, encoding: &str, bytes: &[u8], json_only: bool) {
    let Some(format) = Format::of(media_type) else { return };
    let Ok(encoding) = Encoding::of(Some(encoding)) else { return };
    let memory = Memory::new(64 << 20);
    let room = SegmentRoom::new(1 << 20);
    let grant = || memory.grant(Purpose::Request);
    let body = Bytes::copy_from_slice(bytes);
    let meter = Meter::new(format, room);
    let Ok(Some(decoded)) = encoding.decode(body, 1 << 20, Work::Heavy, grant(), meter) else {
        return;
    };
    assert!(decoded.len() <= 1 << 20, "the limit does not hold");
    let Ok(mut batch) = formats::parse(format, decoded.clone(), room, grant()) else { return };
    let values = if json_only { Values::Json } else { Values::Any };
    let settings = LogSettings { values, record_bytes: Some(1 << 10), ..LogSettings::default() };
    let checked = batch.check(&settings).is_ok();
    let (mut records, mut total) = (0, 0);
    batch.each(|bytes, flags| {
        let json = flags & JSON != 0;
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
