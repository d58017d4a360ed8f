//! The live end of a log, by Server-Sent Events: each record an event whose `id` is its offset, so that a client
//! that comes again with `Last-Event-ID` goes on where it was.
//!
//! The log itself is the buffer: a reader is sent a few pieces ahead of what it takes, and reads on when it takes
//! them. One that takes nothing for a while is dropped, told so by an event if it ever reads on, and may resume.

use super::{
    formats,
    problem::Problem,
    records::PIECES,
    router::{Answer, Context},
};
use crate::{
    log::{Error, Reader},
    store::OpenLog,
};
use http_body_util::{
    Either,
    channel::{Channel, Sender},
};
use hyper::{
    Response,
    body::Bytes,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use std::{io, sync::Arc};

/// Bytes of events that are rendered at once.
const PIECE: usize = 64 << 10;

/// Answers with the records from `offset` on, for as long as the client and the log are there.
pub(super) fn stream(context: &Arc<Context>, log: &Arc<OpenLog>, offset: u64) -> Result<Answer, Problem> {
    let first = log.first_offset();
    if offset < first {
        return Err(Error::Trimmed { offset, first }.into());
    }
    let (sender, body) = Channel::new(PIECES + 1);
    let tail = Tail { context: Arc::clone(context), log: Arc::clone(log), sender };
    tokio::spawn(tail.run(log.reader(offset)));
    let mut answer = Response::new(Either::Right(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

struct Tail {
    context: Arc<Context>,
    log: Arc<OpenLog>,
    sender: Sender<Bytes, io::Error>,
}

/// The event for who reads too slowly.
const DROPPED: &str = "dropped";

/// Why a tail ends.
enum End {
    /// The client is gone, or the server stops: there is nobody to tell, or nothing to say.
    Quiet,
    /// With an event of this name, and why.
    Told(&'static str, String),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Closed => Self::Quiet,
            error => Self::Told("error", error.to_string()),
        }
    }
}

impl Tail {
    async fn run(mut self, mut reader: Reader) {
        self.context.metrics.tails.inc();
        let mut stopped = self.context.stopped.clone();
        let end = tokio::select! {
            end = self.follow(&mut reader) => end,
            _ = stopped.wait_for(|stopped| *stopped) => End::Quiet,
        };
        self.context.metrics.tails.dec();
        if let End::Told(event, why) = end {
            if event == DROPPED {
                self.context.metrics.readers_dropped.inc();
            }
            let next = reader.offset();
            let why = serde_json::Value::from(why); // on one line, whatever is in it
            let text = format!("event: {event}\ndata: {{\"detail\":{why},\"next_offset\":{next}}}\n\n");
            let last = self.sender.send_data(Bytes::from(text));
            let _ = tokio::time::timeout(self.context.limits.body_time, last).await; // or it never reads
        }
    }

    async fn follow(&mut self, reader: &mut Reader) -> End {
        // At once, so that the client sees that it is connected.
        if let Err(end) = self.send(Bytes::from_static(b": millstream\n\n")).await {
            return end;
        }
        loop {
            let sent = match self.events(reader).await {
                Ok(events) if events.is_empty() => {
                    let heartbeat = self.context.limits.heartbeat;
                    match tokio::time::timeout(heartbeat, reader.visible()).await {
                        Ok(Ok(())) => continue,
                        Ok(Err(error)) => return error.into(),
                        Err(_) => self.send(Bytes::from_static(b":\n\n")).await,
                    }
                }
                Ok(events) => self.send(events).await,
                Err(end) => return end,
            };
            if let Err(end) = sent {
                return end;
            }
        }
    }

    /// The next events; none where the reader is at the end.
    async fn events(&self, reader: &mut Reader) -> Result<Bytes, End> {
        if self.log.is_in_memory(reader.offset()) {
            return render(reader);
        }
        let mut cold = self.log.reader(reader.offset());
        let done = self.context.blocking(move |_| {
            let events = render(&mut cold);
            (cold, events)
        });
        let Ok((cold, events)) = done.await else {
            return Err(End::Told("error", "reading failed unexpectedly".into()));
        };
        *reader = cold;
        events
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), End> {
        match tokio::time::timeout(self.context.limits.body_time, self.sender.send_data(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Quiet),
            Err(_) => Err(End::Told(DROPPED, "you read too slowly; connect again to resume".into())),
        }
    }
}

fn render(reader: &mut Reader) -> Result<Bytes, End> {
    let mut out = Vec::new();
    while out.len() < PIECE {
        match reader.read_next() {
            Ok(Some(record)) => {
                out.extend_from_slice(format!("id: {}\ndata: ", record.offset).as_bytes());
                formats::object(&mut out, &record);
                out.extend_from_slice(b"\n\n");
            }
            Ok(None) => break,
            // What was rendered goes out first; the reader stays where the error is told again.
            Err(Error::Damaged { offset }) if !out.is_empty() => {
                reader.seek(offset);
                break;
            }
            Err(Error::Trimmed { .. }) if !out.is_empty() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(out.into())
}
