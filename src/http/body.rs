//! Request bodies: read in full, within limits of size, time and the server's memory, and decompressed.

use super::{
    context::Context,
    effort::{Effort, Overtime, Steps, Work},
    memory::{Buffer, Grant, Purpose, Size, UNCOUNTED_BYTES},
    meter::Meter,
    problem::Problem,
    share::ConnectionShare,
    upload::{self, Upload, too_large},
};
use crate::{Code, sync::yield_more};
use bytes::Bytes;
use flate2::bufread::{GzDecoder, ZlibDecoder};
use hyper::body::Body;
use std::io::{self, Read};
use tokio::sync::oneshot;

/// Reads a body. A body that is announced as too large, or that no memory becomes free for, is not read at all.
pub(super) async fn read<B>(body: B, context: &Context, share: &ConnectionShare) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    read_up_to(context.settings.body_bytes, body, context, share).await
}

/// The largest body, in bytes, that has no records: settings, or an offset. It is parsed where it is read.
const MAX_PLAIN_BODY_BYTES: usize = 64 << 10;

/// [`read`] for a body without records.
pub(super) async fn read_without_records<B>(
    body: B,
    context: &Context,
    share: &ConnectionShare,
) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    read_up_to(context.settings.body_bytes.min(MAX_PLAIN_BODY_BYTES), body, context, share).await
}

async fn read_up_to<B>(
    max: usize,
    body: B,
    context: &Context,
    share: &ConnectionShare,
) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (settings, memory) = (&context.settings, &context.memory);
    let limit = max as u64;
    let (least, max) = (body.size_hint().lower(), body.size_hint().upper().unwrap_or(limit));
    if least > limit {
        return Err(too_large(limit as usize, ""));
    }
    let upload = Upload::new(body, max.min(limit) as usize, context, share);
    let least = least as usize;
    if Size::of(least) != Size::Small {
        return Box::pin(upload.receive_large(least, context)).await;
    }
    // Boxed, because few bodies wait. A body that does is read only after that.
    let grant = if least > UNCOUNTED_BYTES {
        Box::pin(upload::small_room(context, share, least)).await?
    } else {
        memory.grant(Purpose::Request)
    };
    upload::in_time(settings.body_time, settings.body_time, upload.receive(grant)).await
}

/// Parses a body off the runtime's thread, once there is a permit for it.
pub(super) async fn with_permit<T: Send + 'static>(
    context: &Context,
    share: &ConnectionShare,
    work: Work,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let patience = context.settings.queue_time;
    if work == Work::Light {
        return context.for_client(share, work.into(), patience, run).await;
    }
    // On a thread of its own: the work takes longer than creating the thread, which can yield to the threads that
    // answer.
    let permit = context.permits.acquire(work.into(), &share.lines, patience).await?;
    let (done, result) = oneshot::channel();
    let give_way = move || {
        let _permit = permit; // held to the end, even if nobody waits for the result any more
        yield_more(yields(work));
        drop(done.send(run())); // fails if nobody waits for it any more
    };
    let begun = std::thread::Builder::new().name("millstream-body".into()).spawn(give_way);
    if let Err(error) = begun {
        tracing::warn!(%error, "cannot start a thread for a large body");
        return Err(Problem::no_permit());
    }
    result.await.map_err(|_| Problem::internal_failure())
}

/// By how much a thread yields: see [`yield_more`]. Without this, a client that made the server decode one body of 64 MiB
/// after another took two thirds of a producer's rate, on two processors.
fn yields(work: Work) -> i32 {
    match work {
        Work::Light => 0,
        Work::Medium => 5,
        Work::Heavy => 10,
    }
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    /// The zlib format, as RFC 9110 has it.
    Deflate,
    Zstd,
}

impl Encoding {
    /// What a `Content-Encoding` says: a list, of which one may be other than `identity`.
    pub(super) fn of(header: Option<&str>) -> Result<Self, Problem> {
        let refuse = |detail| Err(Problem::new(Code::UnsupportedEncoding, detail));
        let mut encoding = Self::Identity;
        for name in header.unwrap_or_default().split(',') {
            let next = match &*name.trim().to_ascii_lowercase() {
                "identity" | "" => continue,
                "gzip" | "x-gzip" => Self::Gzip,
                "deflate" => Self::Deflate,
                "zstd" => Self::Zstd,
                _ => return refuse("Content-Encoding must be gzip, deflate, zstd or identity"),
            };
            if std::mem::replace(&mut encoding, next) != Self::Identity {
                return refuse(
                    "a body is compressed once: Content-Encoding has one of gzip, deflate and zstd",
                );
            }
        }
        Ok(encoding)
    }

    /// Decompresses the body, up to `limit` bytes, into memory of the budget, and stops as soon as it is clear that its
    /// records are too many for the log. `None` if it is more than `work`, by its bytes or by the time that it takes.
    pub(super) fn decode(
        self,
        body: Bytes,
        limit: usize,
        work: Work,
        grant: Grant,
        mut meter: Meter,
    ) -> Result<Option<Bytes>, Problem> {
        let effort = Effort::new(work);
        let steps = Steps::new(&body, &effort);
        let mut decoder: Box<dyn Read + '_> = match self {
            Self::Identity => return Ok(Some(body)),
            Self::Gzip => Box::new(GzipMembers::new(steps)),
            Self::Deflate => Box::new(OneStream(ZlibDecoder::new(steps))),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(steps).map_err(broken)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG).map_err(broken)?;
                Box::new(decoder)
            }
        };
        let mut buffer = Buffer::new(limit.min(work.bytes()).saturating_add(1), grant);
        loop {
            let more = match buffer.grow(DECODE_STEP_BYTES, |space| decoder.read(space))? {
                Err(error) if !Overtime::is(&error) => return Err(broken(error)),
                Err(_) if work == Work::Heavy => return Err(too_slow_to_decode()),
                Err(_) => return Ok(None),
                Ok([]) => break,
                Ok(more) => more,
            };
            effort.decoded(more.len());
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

/// Decodes gzip, which may consist of several members one after the other (RFC 1952), up to a limit: an empty member
/// takes 20 bytes, and as long to decode as kilobytes of data.
struct GzipMembers<'a> {
    member: GzDecoder<Steps<'a>>,
    /// How many more there may be.
    left: u32,
}

impl<'a> GzipMembers<'a> {
    /// Enough for 1 GiB in blocks of 16 KiB.
    const MAX_MEMBERS: u32 = 1 << 16;

    fn new(body: Steps<'a>) -> Self {
        Self { member: GzDecoder::new(body), left: Self::MAX_MEMBERS - 1 }
    }
}

impl Read for GzipMembers<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.member.read(space)?;
            let rest = self.member.get_ref().clone();
            if read > 0 || space.is_empty() || rest.is_empty() {
                return Ok(read);
            }
            self.left = self.left.checked_sub(1).ok_or_else(|| {
                io::Error::other(format!("it consists of more than {} gzip members", Self::MAX_MEMBERS))
            })?;
            self.member = GzDecoder::new(rest);
        }
    }
}

/// Decodes the zlib format, of which a body is one stream: what follows it would be stored by nobody.
struct OneStream<'a>(ZlibDecoder<Steps<'a>>);

impl Read for OneStream<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(space)?;
        if read == 0 && !space.is_empty() && !self.0.get_ref().is_empty() {
            return Err(io::Error::other("something follows the end of what is compressed"));
        }
        Ok(read)
    }
}

/// The largest zstd window that is allocated for a client, 8 MiB: the limit that RFC 9659 sets for senders in HTTP.
const MAX_ZSTD_WINDOW_LOG: u32 = 23;
/// Bytes that are decoded between two checks of the decoded data.
const DECODE_STEP_BYTES: usize = 64 << 10;

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn broken(error: std::io::Error) -> Problem {
    let detail = format!("the body does not decode as its Content-Encoding says: {error}");
    Problem::new(Code::InvalidEncoding, detail)
}

fn too_slow_to_decode() -> Problem {
    let detail = "the body takes too long to decode for what it decodes to; compress it with a usual encoder, or send \
                  less at once";
    Problem::new(Code::InvalidEncoding, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codings were compared case-sensitively.
    #[test]
    fn names_of_codings_ignore_case() {
        for (name, encoding) in [
            ("GZIP", Encoding::Gzip),
            ("X-Gzip", Encoding::Gzip),
            ("ZStd", Encoding::Zstd),
            ("Identity", Encoding::Identity),
        ] {
            assert_eq!(Encoding::of(Some(name)).ok(), Some(encoding), "{name}");
        }
    }

    /// A list was refused, whatever was in it.
    #[test]
    fn of_a_list_of_codings_one_may_be_other_than_identity() {
        for (list, encoding) in [
            ("identity, gzip", Some(Encoding::Gzip)),
            ("zstd,Identity , identity", Some(Encoding::Zstd)),
            (", deflate ,", Some(Encoding::Deflate)),
            ("identity,identity", Some(Encoding::Identity)),
            (",", Some(Encoding::Identity)),
            ("gzip, gzip", None),
            ("gzip, identity, zstd", None),
            ("identity, br", None),
            ("gzip identity", None),
        ] {
            assert_eq!(Encoding::of(Some(list)).ok(), encoding, "{list}");
        }
    }

    /// Empty members cost 20 bytes each, and 15 MiB of them took a permit for bodies for 2.4 s.
    #[test]
    fn gzip_of_several_members_is_decoded_up_to_a_number_of_them() {
        let member = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut encoder, bytes).unwrap();
            encoder.finish().unwrap()
        };
        let decode = |body: &[u8]| {
            let (mut out, effort) = (Vec::new(), Effort::new(Work::Heavy));
            GzipMembers::new(Steps::new(body, &effort))
                .read_to_end(&mut out)
                .map(|_| out)
                .map_err(|error| error.to_string())
        };
        let (one, empty, two) = (member(b"one "), member(b""), member(b"two"));
        assert_eq!(decode(&[&*one, &empty, &two].concat()), Ok(b"one two".to_vec()));
        assert_eq!(decode(&two), Ok(b"two".to_vec()));
        assert!(decode(&[&*one, b"x"].concat()).is_err());
        assert!(decode(&[&*one, &two[..5]].concat()).is_err());
        let max = GzipMembers::MAX_MEMBERS as usize;
        assert_eq!(decode(&empty.repeat(max)), Ok(Vec::new()));
        assert!(decode(&empty.repeat(max + 1)).unwrap_err().contains("65536 gzip members"));
    }

    /// What followed was left out, and the request answered as if all of it had been stored.
    #[test]
    fn something_after_the_end_of_a_zlib_stream_is_refused() {
        let compressed = |bytes: &[u8]| {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            io::Write::write_all(&mut encoder, bytes).unwrap();
            encoder.finish().unwrap()
        };
        let decode = |bytes: &[u8]| {
            let (bytes, effort) = (Bytes::copy_from_slice(bytes), Effort::new(Work::Heavy));
            let mut decoded = Vec::new();
            OneStream(ZlibDecoder::new(Steps::new(&bytes, &effort)))
                .read_to_end(&mut decoded)
                .map(|_| decoded)
        };
        let one = compressed(b"one\n");
        assert_eq!(decode(&one).unwrap(), b"one\n");
        for after in [compressed(b"two\n"), b"x".to_vec(), vec![0]] {
            assert!(decode(&[&*one, &after].concat()).is_err());
        }
        assert!(decode(&one[..one.len() - 1]).is_err());
    }
}
