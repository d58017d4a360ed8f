//! The load: connections that send requests, or batches of a session, when they are due.

use super::{
    Ack, Bench, Failure, Format,
    connection::{self, Receiver, Sender},
    log_name,
    series::{Series, millis},
};
use crate::cli::stderr;
use millstream::client::SessionLine;
use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::LocalSet};

/// The most batches of a session that are on their way at once.
const MAX_IN_FLIGHT: usize = 64;

type Shared = Rc<RefCell<Series>>;

/// Runs the load, and prints progress every second.
pub(super) async fn run(bench: &Bench, address: &str) -> Result<Series, Failure> {
    let series = Series::new(bench.warm_up(), bench.duration(), bench.rate);
    let series = Rc::new(RefCell::new(series));
    let tasks = LocalSet::new();
    for n in 0..bench.connections {
        let (bench, series, address) = (bench.clone(), Rc::clone(&series), address.to_owned());
        tasks.spawn_local(async move {
            let sends = connection_of(&bench, n, &address, &series);
            if let Err(error) = sends.await {
                series.borrow_mut().failed_many(1, || error.to_string());
            }
        });
    }
    tasks.spawn_local(say(Rc::clone(&series)));
    let end = series.borrow().end();
    // What is on its way then is waited for.
    let all = tokio::time::timeout_at((end + Duration::from_secs(10)).into(), tasks);
    let is_over = all.await.is_ok();
    let mut series = Rc::into_inner(series).ok_or("a connection did not end")?.into_inner();
    let unanswered = series.unanswered();
    if unanswered > 0 || !is_over {
        series.failed_many(unanswered.max(1), || {
            "requests were not sent, or not answered within 10 s after the end".to_owned()
        });
    }
    Ok(series)
}

/// Prints progress every second.
async fn say(series: Shared) {
    let end = series.borrow().end();
    let mut said = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let series = series.borrow();
        // A second is over when the next one has begun.
        while said + 1 < series.seconds.len() {
            let second = &series.seconds[said];
            said += 1;
            stderr::say(format_args!(
                "{said:>4} s  {:>8} per second, p50 {:.3} ms, p99 {:.3} ms, {} failed",
                second.requests,
                millis(&second.latency, 0.5),
                millis(&second.latency, 0.99),
                second.failed
            ));
        }
    }
}

/// When each request of a connection is due.
struct Schedule {
    next: Instant,
    interval: Option<Duration>,
}

impl Schedule {
    /// The connections begin one after the other, so that their requests are spread over time.
    fn new(bench: &Bench, n: u32) -> Self {
        let interval = bench.interval();
        let offset = interval.map_or(Duration::ZERO, |interval| interval * n / bench.connections);
        Self { next: Instant::now() + offset, interval }
    }

    /// Waits until the next request is due, and returns when that was; without a rate, it is now.
    async fn due(&mut self) -> Instant {
        let Some(interval) = self.interval else { return Instant::now() };
        let due = self.next;
        self.next += interval;
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        due
    }
}

/// What one connection does.
struct Load<'a> {
    bench: &'a Bench,
    /// The number of the connection.
    n: u32,
    address: &'a str,
    schedule: Schedule,
    series: &'a Shared,
}

async fn connection_of(bench: &Bench, n: u32, address: &str, series: &Shared) -> io::Result<()> {
    let (sender, receiver) = connection::connect(address).await?;
    let load = Load { bench, n, address, schedule: Schedule::new(bench, n), series };
    if bench.session { session(load, sender, receiver).await } else { requests(load, sender, receiver).await }
}

/// One request after the other.
async fn requests(load: Load<'_>, mut sender: Sender, mut receiver: Receiver) -> io::Result<()> {
    let Load { bench, n, address, mut schedule, series } = load;
    let body = body(bench);
    let requests: Vec<Vec<u8>> = (0..bench.logs)
        .map(|log| {
            let head =
                head(bench, &log_name(log), address, &format!("Content-Length: {}\r\n", body.len()), "");
            [head.as_bytes(), &body].concat()
        })
        .collect();
    let end = series.borrow().end();
    for turn in n as usize.. {
        let due = schedule.due().await;
        if due >= end {
            break; // what was due before is sent, however late
        }
        series.borrow_mut().sent(due);
        sender.send(&requests[turn % requests.len()]).await?;
        let answer = receiver.head().await?;
        let length = answer.length.unwrap_or(0);
        if answer.status == 200 {
            receiver.skip(length).await?;
            series.borrow_mut().answered(due, Instant::now());
        } else {
            let body = receiver.body(length).await?;
            series
                .borrow_mut()
                .failed(due, || format!("{}: {}", answer.status, String::from_utf8_lossy(&body)));
        }
    }
    Ok(())
}

/// One session: batches are sent while earlier ones are on their way.
async fn session(load: Load<'_>, mut sender: Sender, mut receiver: Receiver) -> io::Result<()> {
    let Load { bench, n, address, mut schedule, series } = load;
    let body = body(bench);
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat();
    let log = log_name(n % bench.logs);
    let head = head(bench, &log, address, "Transfer-Encoding: chunked\r\n", "&session=true");
    sender.send(head.as_bytes()).await?;
    // When each batch on its way was due; and whether a place has become free.
    let sent = RefCell::new(VecDeque::new());
    let room = Notify::new();
    let end = series.borrow().end();
    let sends = async {
        loop {
            let due = schedule.due().await;
            while sent.borrow().len() >= MAX_IN_FLIGHT {
                room.notified().await;
            }
            if due >= end {
                return sender.send(b"0\r\n\r\n").await;
            }
            sent.borrow_mut().push_back(due);
            series.borrow_mut().sent(due);
            sender.send(&chunk).await?;
        }
    };
    let answers = async {
        let answer = receiver.head().await?;
        if answer.status != 200 {
            let body = receiver.body(answer.length.unwrap_or(0)).await?;
            return Err(io::Error::other(String::from_utf8_lossy(&body).into_owned()));
        }
        let mut stored = 0;
        while let Some(line) = receiver.chunk().await? {
            let line: SessionLine = serde_json::from_slice(&line)?;
            let batches = line.records / u64::from(bench.batch);
            let now = Instant::now();
            for due in sent.borrow_mut().drain(..(batches - stored) as usize) {
                series.borrow_mut().answered(due, now);
            }
            stored = batches;
            room.notify_one();
            if let Some(end) = line.end.filter(|end| end != "complete") {
                let detail = line.detail.unwrap_or_default();
                return Err(io::Error::other(format!("the session has ended: {end}: {detail}")));
            }
        }
        Ok(())
    };
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

/// The head of a request.
fn head(bench: &Bench, log: &str, address: &str, length: &str, query: &str) -> String {
    let media_type = match bench.format {
        Format::Text => "text/plain",
        Format::Ndjson => "application/x-ndjson",
        Format::Frames => "application/vnd.millstream.frames",
    };
    let ack = match bench.ack {
        None => "",
        Some(Ack::Durable) => "&ack=durable",
        Some(Ack::Memory) => "&ack=memory",
    };
    let query = format!("{ack}{query}");
    let query = query.strip_prefix('&').map(|query| format!("?{query}")).unwrap_or_default();
    format!(
        "POST /v1/logs/{log}/records{query} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {media_type}\r\n{length}\r\n"
    )
}

/// A batch as it is sent.
fn body(bench: &Bench) -> Vec<u8> {
    let mut body = Vec::new();
    for n in 0..bench.batch {
        let mut value: Vec<u8> = (0..bench.bytes).map(|at| b'a' + ((n as usize + at) % 26) as u8).collect();
        match bench.format {
            Format::Text => {}
            Format::Frames => body.extend_from_slice(&(value.len() as u32).to_le_bytes()),
            // A string of that many bytes, with its quotes where there is room for them; otherwise a number.
            Format::Ndjson => match &mut value[..] {
                [first, .., last] => (*first, *last) = (b'"', b'"'),
                all => all.fill(b'1'),
            },
        }
        body.extend_from_slice(&value);
        if bench.format != Format::Frames {
            body.push(b'\n');
        }
    }
    body
}
