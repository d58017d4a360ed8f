//! Fan-out of one log to many live tails: the time from an append to the arrival of its event, at a steady rate of
//! appends; compared with bare sockets that one thread writes the same bytes to. The writer has the first core, the
//! readers have the second.
//! `cargo bench --bench tails -- [READERS] [APPENDS PER SECOND] [SECONDS]`

#[path = "../tests/support/shm.rs"]
mod shm;

use hdrhistogram::Histogram;
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Pins the calling thread, and the threads that it starts, to one core, if the system can.
fn pin(core: usize) {
    #[cfg(target_os = "linux")]
    {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        let _ = rustix::thread::sched_setaffinity(None, &set); // a machine of one core: all share it
    }
    let _ = core;
}

struct Server(Child);

impl Server {
    fn start(data: &std::path::Path) -> (Self, String) {
        pin(0);
        let mut child = Command::new(env!("CARGO_BIN_EXE_millstream"))
            .args(["serve", "--listen", "127.0.0.1:0", "--create-logs", "--threads", "1", "--data"])
            .arg(data)
            .env("NO_COLOR", "1")
            .env("MILLSTREAM_SHM_DIR", shm::dir())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        pin(1);
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = said.by_ref().map_while(Result::ok).find(|line| line.contains("address=")).unwrap();
        std::thread::spawn(move || said.for_each(drop)); // so that the server never waits for us
        let address = line.split("address=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        (Self(child), address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the readers observe: microseconds from sending to arrival, by the time in each event.
struct Seen {
    begun: Instant,
    latency: Mutex<Histogram<u64>>,
    events: AtomicU64,
}

impl Seen {
    fn new() -> Arc<Self> {
        let latency = Mutex::new(Histogram::new(3).unwrap());
        Arc::new(Self { begun: Instant::now(), latency, events: AtomicU64::new(0) })
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    /// Records the events in a piece of the stream: each has the time of its sending as `"json":N`.
    fn note(&self, text: &[u8]) {
        let now = self.now();
        let mark = b"\"json\":";
        let mut latency = self.latency.lock().unwrap();
        for at in memchr::memmem::find_iter(text, mark) {
            let digits = text[at + mark.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            let sent = digits.fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
            latency.record(now.saturating_sub(sent)).unwrap();
            self.events.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn report(&self, label: &str, expected: u64) {
        let latency = self.latency.lock().unwrap();
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "{label:<12} {} of {expected} events, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms",
            self.events.load(Ordering::Relaxed),
            at(0.5),
            at(0.99),
            at(0.999),
            latency.max() as f64 / 1000.0
        );
    }
}

/// Reads a tail for ever.
async fn read(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut buf = vec![0; 16 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buf).await {
        seen.note(&buf[..length]); // an event this small arrives in one piece
    }
}

async fn millstream(readers: usize, rate: u64, seconds: u64) {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (_server, address) = Server::start(place.path());
    let seen = Seen::new();
    let mut writer = TcpStream::connect(&address).await.unwrap();
    writer.set_nodelay(true).unwrap();
    let mut answer = [0; 4096];
    let mut append = async |sent: u64| {
        let body = sent.to_string();
        let request = format!(
            "POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        writer.write_all(request.as_bytes()).await.unwrap();
        let length = writer.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
    };
    append(0).await;
    for _ in 0..readers {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let request =
            "GET /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 1024];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        tokio::spawn(read(stream, Arc::clone(&seen)));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
    for _ in 0..rate * seconds {
        ticks.tick().await;
        append(seen.now()).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    seen.report("millstream", readers as u64 * rate * seconds);
}

/// One thread that writes each event to every socket, and nothing else: the cost of the sockets themselves.
async fn bare(readers: usize, rate: u64, seconds: u64) {
    let seen = Seen::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let clock = Arc::clone(&seen);
    let accepted = tokio::spawn(async move {
        let mut sockets = Vec::new();
        for _ in 0..readers {
            let socket = listener.accept().await.unwrap().0.into_std().unwrap();
            socket.set_nodelay(true).unwrap();
            sockets.push(socket);
        }
        sockets
    });
    for _ in 0..readers {
        let stream = TcpStream::connect(address).await.unwrap();
        tokio::spawn(read(stream, Arc::clone(&seen)));
    }
    let sockets = accepted.await.unwrap();
    let writing = std::thread::spawn(move || {
        pin(0);
        let begun = Instant::now();
        for n in 0..rate * seconds {
            let due = Duration::from_micros(n * 1_000_000 / rate);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let event = format!("{{\"offset\":{n},\"time\":1234567890123,\"json\":{}}}\n\n", clock.now());
            for mut socket in &sockets {
                std::io::Write::write_all(&mut socket, event.as_bytes()).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    });
    tokio::task::spawn_blocking(move || writing.join().unwrap()).await.unwrap();
    seen.report("bare sockets", readers as u64 * rate * seconds);
}

fn main() {
    pin(1);
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    let (readers, rate, seconds) = (number(0, 1000) as usize, number(1, 100).max(1), number(2, 10));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("{readers} readers, {rate} appends a second");
    runtime.block_on(bare(readers, rate, seconds));
    drop(runtime); // together with its readers
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(millstream(readers, rate, seconds));
}
