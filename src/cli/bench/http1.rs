//! Requests over connections of HTTP/1.1, each with one or more in flight, and append sessions.

use super::{
    Ack, Format,
    connection::{self, Head, Receiver, Sender},
    log_name,
    run::{Answer, Next, Run, Sent},
    schedule::Schedule,
};
use millstream::client::SessionLine;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt::Write,
    io,
    pin::pin,
    time::Duration,
};
use tokio::sync::Notify;

/// The requests of a connection that are in flight, or the batches of a session, in order.
struct InFlight<'a> {
    run: &'a Run,
    sent: RefCell<VecDeque<Sent>>,
    max: usize,
    /// One was answered.
    answered: Notify,
    /// One was sent, or nothing more is.
    sending: Notify,
}

impl<'a> InFlight<'a> {
    fn new(run: &'a Run, max: u32) -> Self {
        let (answered, sending) = (Notify::new(), Notify::new());
        Self { run, sent: RefCell::default(), max: max as usize, answered, sending }
    }

    /// Waits until the next one is due and may be sent; `None` at the end.
    async fn next(&self, schedule: &mut Schedule, turn: usize) -> Option<Next<'a>> {
        let due = schedule.due().await;
        while self.sent.borrow().len() >= self.max {
            self.answered.notified().await;
        }
        let (next, sent) = self.run.begin(turn, due)?;
        self.sent.borrow_mut().push_back(sent);
        self.sending.notify_one();
        Some(next)
    }

    /// The first that has no answer yet; waits for one unless `is_over`.
    async fn first(&self, is_over: impl Fn() -> bool) -> Option<Sent> {
        loop {
            let first = self.sent.borrow().front().copied();
            if first.is_some() || is_over() {
                return first;
            }
            self.sending.notified().await;
        }
    }

    /// The first one was answered.
    fn answer(&self, answer: Result<Answer, String>) {
        if let Some(sent) = self.sent.borrow_mut().pop_front() {
            self.run.answered(&sent, answer);
        }
        self.answered.notify_one();
    }
}

/// Sends requests over the `n`th connection.
pub(super) async fn requests(run: &Run, n: u32, address: &str) -> io::Result<()> {
    let (mut sender, mut receiver) = connection::connect(address).await?;
    let mut heads = Heads::new(run, address);
    let mut schedule = run.schedule(n, run.bench.connections);
    if run.bench.in_flight() == 1 {
        return one_by_one(run, n, (sender, receiver), heads, schedule).await;
    }
    let in_flight = InFlight::new(run, run.bench.in_flight());
    let over = Cell::new(false);
    let sends = async {
        for turn in n as usize.. {
            let Some(next) = in_flight.next(&mut schedule, turn).await else { break };
            heads.send(&mut sender, next).await?;
        }
        over.set(true);
        in_flight.sending.notify_one();
        Ok::<_, io::Error>(())
    };
    let answers = async {
        while in_flight.first(|| over.get()).await.is_some() {
            in_flight.answer(answer(&mut receiver).await?);
        }
        Ok(())
    };
    both(sends, answers).await
}

/// One request after the other: an eighth faster than with a queue of one.
async fn one_by_one(
    run: &Run,
    n: u32,
    (mut sender, mut receiver): (Sender, Receiver),
    mut heads: Heads,
    mut schedule: Schedule,
) -> io::Result<()> {
    for turn in n as usize.. {
        let Some((next, sent)) = run.begin(turn, schedule.due().await) else { break };
        heads.send(&mut sender, next).await?;
        run.answered(&sent, answer(&mut receiver).await?);
    }
    Ok(())
}

/// Reads an answer; what is refused is an answer too.
async fn answer(receiver: &mut Receiver) -> io::Result<Result<Answer, String>> {
    let Head { status, length, next_offset } = receiver.head().await?;
    let length = length.unwrap_or(0);
    if status == 200 {
        receiver.skip(length).await?;
        return Ok(Ok(Answer { next_offset: next_offset.unwrap_or(0), bytes: length as u64 }));
    }
    let body = receiver.body(length).await?;
    Ok(Err(format!("{status}: {}", String::from_utf8_lossy(&body))))
}

/// The heads of requests, as far as they are always the same.
struct Heads {
    appends: Vec<String>,
    reads: Vec<String>,
    /// What a head of a read ends with.
    rest: String,
    /// The last head that was made.
    head: String,
}

impl Heads {
    fn new(run: &Run, address: &str) -> Self {
        let (ack, media_type) = (ack(run), media_type(run.bench.format));
        let path = |log: u32| format!("/v1/logs/{}/records", log_name(log));
        let append = |log| {
            format!(
                "POST {}{ack} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {media_type}\r\nContent-Length: ",
                path(log)
            )
        };
        Self {
            appends: (0..run.bench.logs).map(append).collect(),
            reads: (0..run.bench.logs).map(|log| format!("GET {}?offset=", path(log))).collect(),
            rest: format!(" HTTP/1.1\r\nHost: {address}\r\nAccept: {media_type}\r\n\r\n"),
            head: String::new(),
        }
    }

    async fn send(&mut self, sender: &mut Sender, next: Next<'_>) -> io::Result<()> {
        let Self { appends, reads, rest, head } = self;
        head.clear();
        // To a string: cannot fail.
        match next {
            Next::Append { log, body, .. } => {
                let _ = write!(head, "{}{}\r\n\r\n", appends[log], body.len());
                sender.send_both(head.as_bytes(), &body).await
            }
            Next::Read { log, offset, limit } => {
                let _ = write!(head, "{}{offset}&limit={limit}{rest}", reads[log]);
                sender.send(head.as_bytes()).await
            }
        }
    }
}

/// The query of an append.
pub(super) fn ack(run: &Run) -> &'static str {
    match run.bench.ack {
        None => "",
        Some(Ack::Durable) => "?ack=durable",
        Some(Ack::Memory) => "?ack=memory",
    }
}

pub(super) fn media_type(format: Format) -> &'static str {
    match format {
        Format::Text => "text/plain",
        Format::Ndjson => "application/x-ndjson",
        Format::Frames => "application/vnd.millstream.frames",
    }
}

/// Sends batches in one session over the `n`th connection.
pub(super) async fn session(run: &Run, n: u32, address: &str) -> io::Result<()> {
    let (mut sender, mut receiver) = connection::connect(address).await?;
    let in_flight = InFlight::new(run, run.bench.in_flight());
    let log = n % run.bench.logs;
    let ack = ack(run).replace('?', "&");
    let media_type = media_type(run.bench.format);
    let head = format!(
        "POST /v1/logs/{}/records?session=true{ack} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {media_type}\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        log_name(log)
    );
    let sends = async {
        let mut schedule = run.schedule(n, run.bench.connections);
        sender.send(head.as_bytes()).await?;
        while let Some(next) = in_flight.next(&mut schedule, log as usize).await {
            if let Next::Append { body, .. } = next {
                sender.send_both(format!("{:x}\r\n", body.len()).as_bytes(), &body).await?;
                sender.send(b"\r\n").await?;
            }
        }
        sender.send(b"0\r\n\r\n").await
    };
    let answers = async {
        let answer = receiver.head().await?;
        if answer.status != 200 {
            let body = receiver.body(answer.length.unwrap_or(0)).await?;
            return Err(io::Error::other(String::from_utf8_lossy(&body).into_owned()));
        }
        read_lines(&in_flight, &mut receiver, u64::from(run.bench.batch)).await
    };
    both(sends, answers).await
}

/// Reads the lines of a session until it ends.
async fn read_lines(in_flight: &InFlight<'_>, receiver: &mut Receiver, batch: u64) -> io::Result<()> {
    let mut batches = 0;
    while let Some(line) = receiver.chunk().await? {
        let line: SessionLine = serde_json::from_slice(&line)?;
        for _ in batches..line.records / batch {
            in_flight.answer(Ok(Answer::default()));
        }
        batches = line.records / batch;
        if let Some(end) = line.end.filter(|end| end != "complete") {
            let detail = line.detail.unwrap_or_default();
            return Err(io::Error::other(format!("the session has ended: {end}: {detail}")));
        }
    }
    Ok(())
}

/// Sends and receives until both are done, or one of them fails.
async fn both(
    sends: impl Future<Output = io::Result<()>>,
    answers: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    let (mut sends, mut answers) = (pin!(sends), pin!(answers));
    tokio::select! {
        answered = &mut answers => answered,
        sent = &mut sends => match sent {
            Ok(()) => answers.await,
            // The answer may say why nothing more could be sent.
            Err(error) => match tokio::time::timeout(Duration::from_secs(1), answers).await {
                Ok(Err(said)) if said.kind() == io::ErrorKind::Other => Err(said),
                _ => Err(error),
            },
        },
    }
}
