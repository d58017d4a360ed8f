//! Request bodies: read whole, within a size, a time and the server's memory, decompressed, and parsed as JSON.

use super::{
    context::Context,
    memory::{Buffer, FREE, Grant, Purpose, Work},
    problem::{Problem, cut},
    room::Meter,
};
use crate::Code;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{fmt, io::Read, marker::PhantomData};
use tokio::sync::oneshot;

/// Reads a body. What is announced to be too large is not read at all, nor is what there is no memory for.
pub(super) async fn read<B>(body: B, context: &Context) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (limits, memory) = (&context.limits, &context.memory);
    let limit = limits.body_bytes as u64;
    let (least, most) = (body.size_hint().lower(), body.size_hint().upper().unwrap_or(limit));
    if least > limit {
        return Err(too_large(limits.body_bytes, ""));
    }
    if least > FREE as u64 && !memory.has_room(Purpose::Request, least as usize) {
        return Err(Problem::overloaded());
    }
    let grant = memory.grant(Purpose::Request);
    let read = tokio::time::timeout(limits.body_time, collect(body, most.min(limit) as usize, grant)).await;
    read.unwrap_or_else(|_| {
        let detail = format!("the body did not arrive within {} seconds", limits.body_time.as_secs());
        Err(Problem::new(Code::BodyTooSlow, detail))
    })
}

fn too_large(limit: usize, when: &str) -> Problem {
    let detail = format!("the body is over the limit of {limit} bytes{when}; send less at once");
    Problem::new(Code::BodyTooLarge, detail)
}

async fn collect<B>(mut body: B, most: usize, mut grant: Grant) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let mut next = async || loop {
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.len() > most => return Err(too_large(most, "")),
                Ok(data) => return Ok(Some((data, body.is_end_stream()))),
                Err(_) => {} // trailers
            },
            Some(Err(error)) => {
                return Err(Problem::new(Code::BodyIncomplete, format!("the body ended early: {error}")));
            }
            None => return Ok(None),
        }
    };
    let Some((first, all)) = next().await? else { return Ok(Bytes::new()) };
    if all {
        // As it came, in the connection's own buffer.
        if first.len() > FREE {
            grant.cover(first.len())?;
        }
        return Ok(grant.hold(first));
    }
    let mut buffer = Buffer::new(most, grant);
    buffer.extend(&first)?;
    drop(first);
    while let Some((data, _)) = next().await? {
        if data.len() > buffer.left() {
            return Err(too_large(most, ""));
        }
        buffer.extend(&data)?;
    }
    Ok(buffer.freeze())
}

/// Bodies from this size on are taken apart off the runtime's thread, which has others to answer: a mebibyte of JSON
/// takes a millisecond to check.
pub(super) const LARGE: usize = 256 << 10;

/// Takes a body apart off the runtime's thread, when it is its turn.
pub(super) async fn in_turn<T: Send + 'static>(
    context: &Context,
    work: Work,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let turn = context.memory.turn_for_a_body(work, context.limits.append_time).await?;
    let run = move || {
        let _turn = turn; // held to the end, also where nobody waits for it any more
        run()
    };
    if work == Work::Little {
        return context.blocking(move |_| run()).await;
    }
    // On a thread of its own, which takes longer than it takes to make, and can give way to those that answer.
    let (done, result) = oneshot::channel();
    let give_way = move || {
        #[cfg(target_os = "linux")]
        let _ = rustix::process::setpriority_process(None, gives_way(work)); // of this thread; where it may not it goes on as it is
        drop(done.send(run())); // or nobody waits for it any more
    };
    let begun = std::thread::Builder::new().name("millstream-body".into()).spawn(give_way);
    if let Err(error) = begun {
        tracing::warn!(%error, "there is no thread for a large body");
        return Err(Problem::no_turn());
    }
    result.await.map_err(|_| Problem::new(Code::Internal, "the request failed unexpectedly"))
}

/// How far a thread gives way (`nice`): where there are more threads than processors, 5 is a third of what each of the others has, 10
/// a tenth. Without it a client that had the server decode 64 MiB after 64 MiB took two thirds of a producer's rate, on two processors.
#[cfg(target_os = "linux")]
fn gives_way(work: Work) -> i32 {
    match work {
        Work::Little => 0,
        Work::More => 5,
        Work::Much => 10,
    }
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    pub(super) fn of(header: Option<&str>) -> Result<Self, Problem> {
        match header.map_or("identity", str::trim) {
            "identity" | "" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(Problem::new(
                Code::UnsupportedEncoding,
                "Content-Encoding must be gzip, zstd or identity",
            )),
        }
    }

    /// The body as it was before it was compressed, up to `limit` bytes, into memory of the budget; and no further than
    /// until it is clear that its records are too many for the log. `None` where it is more than such `work`.
    pub(super) fn decode(
        self,
        body: Bytes,
        limit: usize,
        work: Work,
        grant: Grant,
        mut meter: Meter,
    ) -> Result<Option<Bytes>, Problem> {
        let mut decoder: Box<dyn Read + '_> = match self {
            Self::Identity => return Ok(Some(body)),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(&body[..])),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(&body[..]).map_err(broken)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(broken)?;
                Box::new(decoder)
            }
        };
        let mut buffer = Buffer::new(limit.min(work.bytes()).saturating_add(1), grant);
        loop {
            let more = buffer.grow(AT_ONCE, |space| decoder.read(space))?.map_err(broken)?;
            if more.is_empty() {
                break;
            }
            meter.see(more)?;
            if buffer.len() > limit {
                return Err(too_large(limit, " once decoded"));
            }
            if buffer.len() > work.bytes() {
                return Ok(None);
            }
        }
        drop(decoder);
        Ok(Some(buffer.freeze()))
    }
}

/// The largest window of zstd that is had for a client, 8 MiB: what RFC 9659 has HTTP's senders keep to.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Bytes that are decoded between two looks at what they are.
const AT_ONCE: usize = 64 << 10;

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: std::io::Error) -> Problem {
    let detail = format!("the body does not decode as its Content-Encoding says: {error}");
    Problem::new(Code::InvalidEncoding, detail)
}

/// Bytes of what a parser says, so that there is room for what to send instead.
const WHY: usize = 300;

/// Parses a body: `invalid_json` for what is no JSON, `invalid_request` for JSON that is not what is `expected`.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], expected: &str) -> Result<T, Problem> {
    serde_json::from_slice(body).map(|Object(parsed)| parsed).map_err(|error| not_parsed(&error, expected))
}

/// What is a JSON object only. Read without this, a struct is also made of a list, whose values are taken for the members by their
/// places.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_map(Members(PhantomData))
    }
}

pub(super) fn not_parsed(error: &serde_json::Error, expected: &str) -> Problem {
    let why = cut(error, WHY); // the name of an unknown field is in it, of any length
    if error.is_data() {
        Problem::new(Code::InvalidRequest, format_args!("{why}; send {expected}"))
    } else {
        Problem::new(Code::InvalidJson, format_args!("the body is not JSON: {why}; send {expected}"))
    }
}
