//! Sends arbitrary bytes to the whole server, over a real connection: nothing panics, a well-behaved client is answered
//! at the same time, and the server stops cleanly, with its store closed and undamaged.
//!
//! Over loopback and not in memory, so that everything that a connection consists of takes part: sockets, time limits,
//! threads.
#![no_main]

#[path = "../../tests/support/shm.rs"]
mod shm;

use libfuzzer_sys::fuzz_target;
use millstream::{
    Options,
    http::{Server, Settings},
    store::{Store, StoreOptions},
};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

/// After this many inputs the server is stopped, and a new one begins with an empty store.
const INPUTS: u32 = 2000;

struct Running {
    address: SocketAddr,
    good: TcpStream,
    stop: std::sync::mpsc::Sender<()>,
    thread: JoinHandle<()>,
    dir: tempfile::TempDir,
    inputs: u32,
}

static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

fn options() -> StoreOptions {
    let log = Options {
        segment_bytes: 64 << 10,
        first_segment_bytes: 4096,
        memory_bytes: 4 << 20,
        shm_dir: None,
        ..Options::default()
    };
    StoreOptions { log, open_logs: 16, idle: Duration::from_secs(1), scrub_bytes_per_second: 0 }
}

fn start() -> Running {
    // Rust programs ignore this signal, and libFuzzer's begin elsewhere.
    let caught = std::sync::Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGPIPE, caught).unwrap();
    let dir = tempfile::tempdir_in(shm::dir()).unwrap();
    let settings = Settings {
        threads: 1,
        body_bytes: 64 << 10,
        decoded_bytes: 256 << 10,
        header_bytes: 8 << 10,
        header_time: Duration::from_secs(2),
        body_time: Duration::from_secs(1),
        wait_time: Duration::from_millis(5),
        create_logs: true,
        grace: Duration::from_secs(5),
        ..Settings::default()
    };
    let server = Server::bind(([127, 0, 0, 1], 0).into(), settings).unwrap();
    let address = server.address().unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let stop = async move {
            while let Err(std::sync::mpsc::TryRecvError::Empty) = stopped.try_recv() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        server.run(store, stop).unwrap();
    });
    Running { address, good: connect(address), stop, thread, dir, inputs: 0 }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

impl Running {
    fn is_well(&mut self) {
        let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        if self.good.write_all(request).is_err() {
            self.good = connect(self.address); // it was idle for too long
            self.good.write_all(request).unwrap();
        }
        let mut answer = [0; 512];
        let length = self.good.read(&mut answer).unwrap();
        if length == 0 {
            self.good = connect(self.address);
            return self.is_well();
        }
        assert!(
            answer[..length].starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&answer[..length])
        );
    }

    /// Stops it; all logs can be opened and verify.
    fn end(self) {
        drop(self.good);
        drop(self.stop);
        self.thread.join().unwrap();
        let names = Store::open(self.dir.path(), options()).unwrap().names(None, 10_000);
        for name in names {
            let report = millstream::verify(self.dir.path().join(&name)).unwrap();
            assert!(report.damage.is_empty(), "{name}: {:?}", report.damage);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let server = running.get_or_insert_with(start);
    let mut stream = connect(server.address);
    // A live tail never ends by itself; what keeps the server from answering others is noticed below.
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    // The server may answer and close before it has all of it.
    if stream.write_all(bytes).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
        let mut answer = [0; 16 << 10];
        let mut total = 0;
        while let Ok(length) = stream.read(&mut answer) {
            total += length;
            if length == 0 || total > 4 << 20 {
                break;
            }
        }
    }
    drop(stream);
    server.is_well();
    server.inputs += 1;
    if server.inputs == INPUTS {
        running.take().unwrap().end();
    }
});
