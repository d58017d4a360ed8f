//! The API of the book: `POST /` takes a record and returns its offset, `GET /` takes an offset and returns the record.
//! Values are base64 in JSON, as Go's `encoding/json` writes byte slices; a nil slice arrives as `null`.

use super::{
    answer::{Answer, full, json, json_of, json_text, only_head},
    body,
    connection::RequestBody,
    context::{Asker, Context, DEFAULT_LOG},
    effort::Work,
    fetch, formats,
    memory::{Grant, Memory, Purpose, UNCOUNTED_BYTES, with_scratch},
    object, params,
    permits::OFFLOAD_BYTES,
    problem::Problem,
};
use crate::{
    Code,
    json::{Object, whole},
    log::{Payload, Record, WaitFor},
    store::{LogSettings, OpenLog, Values},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use hyper::Request;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, Visitor},
};
use std::{borrow::Cow, fmt, sync::Arc};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Produce<'a> {
    #[serde(borrow)]
    record: Object<ProducedRecord<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProducedRecord<'a> {
    #[serde(borrow, deserialize_with = "null_is_empty")]
    value: Cow<'a, str>,
    /// The book's clients send the same record type both ways; the offset is ignored.
    #[serde(rename = "offset")]
    _offset: Option<IgnoredAny>,
}

fn null_is_empty<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Cow<'a, str>, D::Error> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    Ok(Option::<Text<'a>>::deserialize(from)?.map_or(Cow::Borrowed(""), |text| text.0))
}

#[derive(Serialize)]
struct ProduceReply {
    offset: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Consume {
    offset: Offset,
}

/// A number that may be an offset; `None` if it is negative, fractional or too large.
struct Offset(Option<u64>);

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Offset;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Offset, E> {
                Ok(Offset(Some(number)))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Offset, E> {
                Ok(Offset(None))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Offset, E> {
                Ok(Offset(whole(number)))
            }
        }
        from.deserialize_u64(Number)
    }
}

#[derive(Serialize)]
struct Consumed<'a> {
    record: ConsumedRecord<'a>,
}

#[derive(Serialize)]
struct ConsumedRecord<'a> {
    value: &'a str,
    offset: u64,
}

pub(super) async fn post(
    context: &Context,
    asker: Asker<'_>,
    request: Request<RequestBody>,
) -> Result<Answer, Problem> {
    params::none(&request)?;
    let bytes = body::read(request.into_body(), context, asker.share).await?;
    let (value, grant) = if bytes.len() < OFFLOAD_BYTES {
        decoded(bytes, &context.memory)?
    } else {
        let work = Work::of(bytes.len());
        let memory = Arc::clone(&context.memory);
        Box::pin(body::with_permit(context, asker.share, work, move || decoded(bytes, &memory))).await??
    };
    let log = context.log_to_append(asker.share, DEFAULT_LOG, || Ok(())).await?;
    let length = value.len();
    let (value, grant) = if length < OFFLOAD_BYTES || log.settings().values == Values::Any {
        check(&value, log.settings())?;
        (value, grant)
    } else {
        let work = Work::of(length);
        let settings = log.settings().clone();
        let checked = move || check(&value, &settings).map(|()| (value, grant));
        Box::pin(body::with_permit(context, asker.share, work, checked)).await??
    };
    let append = |log: &OpenLog, (value, _): &(Vec<u8>, Grant), wait_for: WaitFor| {
        let json = log.settings().values == Values::Json;
        log.try_append_values(&[Payload { bytes: value, json }][..], None, wait_for)
    };
    // The value is dropped by then, so that its memory is not held while waiting.
    let offset = context.append(asker.share, &log, length, (value, grant), append).await?;
    context.metrics.appended(1, length as u64);
    context.acknowledged(&log, offset, None).await?;
    Ok(json(&ProduceReply { offset }))
}

/// Refuses a value that the log's settings do not accept.
fn check(value: &[u8], settings: &LogSettings) -> Result<(), Problem> {
    settings.check_value(value, false).map_err(|error| Problem::refused_value(&error, &error))
}

/// Decodes the value in a body; returns it with its part of the budget.
fn decoded(bytes: Bytes, memory: &Arc<Memory>) -> Result<(Vec<u8>, Grant), Problem> {
    let (mut text, mut value) = (memory.grant(Purpose::Request), memory.grant(Purpose::Request));
    // The parser copies text that contains escapes, and no other text.
    if bytes.len() > UNCOUNTED_BYTES && memchr::memchr(b'\\', &bytes).is_some() {
        text.cover(bytes.len())?;
    }
    let Produce { record: Object(record) } = object::parse(&bytes, r#"{"record":{"value":"<base64>"}}"#)?;
    let mut decode = |base64: &str| {
        let length = base64::decoded_len_estimate(base64.len());
        if length > UNCOUNTED_BYTES {
            value.cover(length)?;
        }
        BASE64_STANDARD.decode(base64).map_err(|error| {
            let detail = format!("the value {}", formats::not_base64(&error.into()));
            Problem::new(Code::InvalidBase64, detail)
        })
    };
    let bytes = match record.value {
        Cow::Borrowed(base64) => decode(base64)?,
        Cow::Owned(mut base64) => {
            drop(bytes); // so that of body, text and value there are never more than two
            base64.retain(|letter| !u8::try_from(letter).is_ok_and(formats::is_line_end));
            decode(&base64)?
        }
    };
    Ok((bytes, value))
}

pub(super) async fn get(
    context: &Context,
    asker: Asker<'_>,
    request: Request<RequestBody>,
) -> Result<Answer, Problem> {
    let from_query = request.uri().query().map(offset_in_query).transpose()?;
    let bytes = body::read_without_records(request.into_body(), context, asker.share).await?;
    let offset = match from_query {
        Some(offset) if bytes.is_empty() => offset,
        None if !bytes.is_empty() => {
            let Consume { offset } = object::parse(&bytes, r#"{"offset":0}"#)?;
            offset.0.ok_or_else(invalid_offset)?
        }
        Some(_) => {
            let detail = "the offset is in the address and there is a body; send one of them";
            return Err(Problem::new(Code::InvalidRequest, detail));
        }
        None => {
            let detail = r#"say which record: a body {"offset":0}, or /?offset=0"#;
            return Err(Problem::new(Code::OffsetMissing, detail));
        }
    };
    let log = context.log(asker.share, DEFAULT_LOG).await.map_err(|problem| problem.of_no_record(offset))?;
    let bytes = |length| formats::rendered_bytes(length, false);
    let (head, text) = fetch::record(context, asker, &log, offset, bytes, render).await?;
    let Some(text) = text else {
        let empty = json_text(&Consumed { record: ConsumedRecord { value: "", offset } });
        return Ok(json_of(only_head(Some((empty.len() + head.length.div_ceil(3) * 4) as u64))));
    };
    Ok(json_of(full(text)))
}

fn render(record: &Record, grant: Grant) -> Bytes {
    let text = json_text(&Consumed { record: ConsumedRecord { value: "", offset: record.offset() } });
    let (before, after) = text.split_at(r#"{"record":{"value":""#.len());
    with_scratch(|out| {
        out.reserve(text.len() + record.value().len().div_ceil(3) * 4);
        out.extend_from_slice(before);
        formats::base64(out, record.value());
        out.extend_from_slice(after);
        grant.hold_copy(out)
    })
}

fn invalid_offset() -> Problem {
    let detail = format!("an offset is a whole number from 0 to {}", u64::MAX);
    Problem::new(Code::InvalidOffset, detail)
}

fn offset_in_query(query: &str) -> Result<u64, Problem> {
    match query.split_once('=') {
        Some(("offset", number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            number.parse().map_err(|_| invalid_offset())
        }
        Some(("offset", number)) if !number.contains('&') => Err(invalid_offset()),
        _ => Err(Problem::new(Code::InvalidQuery, "the one parameter here is offset, as in /?offset=0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
        object::parse(text.as_bytes(), "x").map_err(|problem| problem.to_string())
    }

    #[test]
    fn values_are_borrowed_unless_they_are_escaped() {
        let plain: Produce<'_> = parse(r#"{"record":{"value":"aGk="}}"#).unwrap();
        assert!(matches!(plain.record.0.value, Cow::Borrowed("aGk=")));
        let escaped: Produce<'_> = parse(r#"{"record":{"value":"aGk\u003d","offset":7}}"#).unwrap();
        assert_eq!(escaped.record.0.value, "aGk=");
        let null: Produce<'_> = parse(r#"{"record":{"value":null}}"#).unwrap();
        assert_eq!(null.record.0.value, "");
    }

    #[test]
    fn missing_wrong_or_unknown_fields_are_refused() {
        for text in [
            "{}",
            "[]",
            r#"[{"value":""}]"#,
            r#"{"record":[""]}"#,
            "7",
            "null",
            r#"{"record":{}}"#,
            r#"{"record":{"value":7}}"#,
            r#"{"record":{"value":"","x":1}}"#,
            r#"{"record":{"value":""},"x":1}"#,
            r#"{"record":{"value":"","value":""}}"#,
        ] {
            assert!(
                parse::<Produce<'_>>(text).is_err_and(|error| error.starts_with("invalid_request")),
                "{text}"
            );
        }
        let deep = format!(r#"{{"record":{{"value":"","offset":{}"#, "[".repeat(10_000));
        for text in ["", "{", "{\"record\":{\"value\":\"\"}} x", "\u{1}", &deep] {
            assert!(
                parse::<Produce<'_>>(text).is_err_and(|error| error.starts_with("invalid_json")),
                "{text:.40}"
            );
        }
    }

    #[test]
    fn only_whole_numbers_are_offsets() {
        for (text, offset) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("-1", None),
            ("1.5", None),
            ("18446744073709551616", None),
            ("1e3", Some(1000)),
            ("606.0", Some(606)),
            ("606.5", None),
            ("1e15", Some(1_000_000_000_000_000)),
            ("1e16", None),
        ] {
            assert_eq!(
                parse::<Consume>(&format!(r#"{{"offset":{text}}}"#)).unwrap().offset.0,
                offset,
                "{text}"
            );
        }
        assert!(parse::<Consume>(r#"{"offset":"0"}"#).is_err());
        assert_eq!(offset_in_query("offset=12").ok(), Some(12));
        for bad in [
            "offset=",
            "offset=-1",
            "offset=1.5",
            "offset=99999999999999999999",
            "offset=1&x=2",
            "x=1",
            "offset",
        ] {
            assert!(offset_in_query(bad).is_err(), "{bad}");
        }
    }
}
