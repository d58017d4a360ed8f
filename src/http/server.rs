//! Listening, one single-threaded runtime per core, limits, and shutting down.
//!
//! All runtimes accept from one listening socket, so that the least busy one takes the next connection.

use super::{
    book,
    connection::{self, Connections},
    context::Context,
    feed::Feeds,
    guard::Guard,
    memory::Memory,
    metrics::Metrics,
    turns::Turns,
};
use crate::store::{self, LogSettings, Store};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// What a server allows. Every limit holds for each client, whatever it sends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Runtimes, each with a thread. Default: one a core.
    pub threads: usize,
    /// Bytes of a request's body. Default: 16 MiB.
    pub body_bytes: usize,
    /// Bytes of a request's header section; at least 8 KiB. Default: 64 KiB.
    pub header_bytes: usize,
    /// Connections at once. For one more, one is closed that is slow or idle; where all are in use it waits until
    /// one ends. Default: 4,096.
    pub connections: usize,
    /// How long a request's header section may take to come, from the connection's beginning or the end of the last request, and
    /// how long a connection may be idle. Default: 60 s.
    pub header_time: Duration,
    /// How long a request's body may take to come, and how long a client may take no byte of an answer.
    /// Default: 30 s.
    pub body_time: Duration,
    /// How long an append waits while the disk is behind, before it is answered 429. Default: 2 s.
    pub append_time: Duration,
    /// Bytes of a body once it is decompressed. Default: 64 MiB.
    pub decoded_bytes: usize,
    /// The longest that a read may wait for new records. Default: 60 s.
    pub wait_time: Duration,
    /// How often a live tail without news is sent a comment, so that nobody on the way takes it for dead. Default: 15 s.
    pub heartbeat: Duration,
    /// Bytes of bodies that come in or are taken apart, and of answers that go out, of all clients together; what
    /// would go beyond is answered 503. Default: 256 MiB.
    pub memory_bytes: usize,
    /// Names by which clients may call this server, beside those that are known to be its own; with `*.` before it, also all names
    /// below one; `*` for any. Default: none.
    pub allow_hosts: Vec<String>,
    /// Origins whose pages may use this server from a browser, such as `https://app.example.com`; `*` for all. Default: none.
    pub allow_origins: Vec<String>,
    /// Whether appending to a log that is not there creates it. Default: no.
    pub create_logs: bool,
    /// How long shutting down waits for requests that are in flight. Default: 30 s.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            body_bytes: 16 << 20,
            header_bytes: 64 << 10,
            connections: 4096,
            header_time: Duration::from_secs(60),
            body_time: Duration::from_secs(30),
            append_time: Duration::from_secs(2),
            decoded_bytes: 64 << 20,
            memory_bytes: 256 << 20,
            allow_hosts: Vec::new(),
            allow_origins: Vec::new(),
            wait_time: Duration::from_secs(60),
            heartbeat: Duration::from_secs(15),
            create_logs: false,
            grace: Duration::from_secs(30),
        }
    }
}

/// A year. What is longer cannot be told from it by anybody who waits, and could not be added to every point in time.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Settings {
    fn clamp_times(&mut self) {
        let Self { header_time, body_time, append_time, wait_time, heartbeat, grace, .. } = self;
        for time in [header_time, body_time, append_time, wait_time, heartbeat, grace] {
            *time = LONGEST.min(*time);
        }
    }
}

/// The limits that hold within one request.
pub(super) struct Limits {
    pub(super) body_bytes: usize,
    pub(super) body_time: Duration,
    pub(super) append_time: Duration,
    pub(super) decoded_bytes: usize,
    pub(super) wait_time: Duration,
    pub(super) heartbeat: Duration,
    pub(super) create_logs: bool,
}

/// Time between warnings of the same kind.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// Threads of a runtime that wait for disks, or take large bodies apart.
const BLOCKING_THREADS: usize = 64;

/// Connections that wait to be accepted; of the standard library 128, beyond which a client that connects tries again after a second.
/// The system has a limit of its own (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // as the standard library does: a server that is started again need not wait
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    settings: Settings,
}

impl Server {
    /// Listens at `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// What the system says: the address is in use, or not one of this machine. Or `InvalidInput`: the largest body does not
    /// fit into [`Settings::memory_bytes`].
    pub fn bind(address: SocketAddr, mut settings: Settings) -> io::Result<Self> {
        settings.clamp_times();
        let least = Memory::least(settings.body_bytes, settings.decoded_bytes);
        if settings.memory_bytes < least {
            let reason = format!(
                "{} bytes of memory for requests and answers are too few for bodies of {}, decoded {}: give it {least}, or take smaller bodies",
                settings.memory_bytes, settings.body_bytes, settings.decoded_bytes
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let listener = listen(address)?;
        Ok(Self { listener, settings })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves the logs of `store` until `stop` completes; then stops accepting, finishes what is in flight, and
    /// closes the store. The book's log, `default`, is created if it is missing.
    ///
    /// # Errors
    /// The log `default` cannot be opened, a runtime cannot be made, or [`Store::close`] fails.
    pub fn run(self, store: Store, stop: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
        let store = Arc::new(store);
        let recovered = Arc::new(AtomicBool::new(false));
        let (stopping, stopped) = watch::channel(false);
        std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
            // In case of an error too, and of a panic: the scope waits for the threads.
            let _stops = Stops(stopping);
            // Answered from the start, so that clients are told that the log is being recovered.
            self.start(scope, &store, &stopped, &recovered)?;
            open_default(&store)?;
            recovered.store(true, Ordering::Release);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(stop);
            Ok(())
        })?;
        // The runtimes are gone, and with them all that held the store.
        let store = Arc::into_inner(store).ok_or("a request still holds the store")?;
        Ok(store.close()?)
    }

    fn start<'scope>(
        &self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        store: &Arc<Store>,
        stopped: &watch::Receiver<bool>,
        recovered: &Arc<AtomicBool>,
    ) -> io::Result<()> {
        let largest = self.settings.body_bytes.max(self.settings.decoded_bytes);
        let memory = Memory::new(self.settings.memory_bytes, largest, self.settings.threads);
        let guard = Arc::new(Guard::new(&self.settings, self.address()?));
        let metrics = Arc::new(Metrics::new(store));
        let (connections, settings) =
            (Connections::new(self.settings.connections), Arc::new(self.settings.clone()));
        let turns = Turns::new();
        for n in 0..self.settings.threads.max(1) {
            let worker = Worker {
                number: n,
                listener: self.listener.try_clone()?,
                settings: Arc::clone(&settings),
                store: Arc::clone(store),
                metrics: Arc::clone(&metrics),
                memory: Arc::clone(&memory),
                guard: Arc::clone(&guard),
                connections: Arc::clone(&connections),
                turns: Arc::clone(&turns),
                recovered: Arc::clone(recovered),
            };
            let stopped = stopped.clone();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(BLOCKING_THREADS)
                .build()?;
            std::thread::Builder::new().name(format!("millstream-http-{n}")).spawn_scoped(
                scope,
                move || {
                    if let Err(error) = runtime.block_on(worker.serve(stopped)) {
                        tracing::error!(%error, "a server thread has stopped");
                    }
                },
            )?;
        }
        Ok(())
    }
}

/// Has all that waits for the server to stop know that it does, when this is dropped.
struct Stops(watch::Sender<bool>);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// One runtime's share of the server.
struct Worker {
    number: usize,
    listener: TcpListener,
    settings: Arc<Settings>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    guard: Arc<Guard>,
    connections: Arc<Connections>,
    turns: Arc<Turns>,
    recovered: Arc<AtomicBool>,
}

/// Opens the book's log, which recovers it, or makes it.
fn open_default(store: &Store) -> Result<(), store::Error> {
    if matches!(store.get(book::LOG), Err(store::Error::NotFound { .. })) {
        store.create(book::LOG, &LogSettings::default())?;
    }
    store.get(book::LOG).map(drop)
}

impl Worker {
    async fn serve(self, mut stopped: watch::Receiver<bool>) -> io::Result<()> {
        let Self { number, listener, settings, store, metrics, memory, guard, connections, turns, recovered } =
            self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let limits = Arc::new(Limits {
            body_bytes: settings.body_bytes,
            body_time: settings.body_time,
            append_time: settings.append_time,
            decoded_bytes: settings.decoded_bytes,
            wait_time: settings.wait_time,
            heartbeat: settings.heartbeat,
            create_logs: settings.create_logs,
        });
        let (waiters, feeds) = (Arc::default(), Feeds::default());
        let stopping = stopped.clone();
        let context = Arc::new(Context {
            store,
            waiters,
            feeds,
            turns,
            limits,
            memory,
            guard,
            metrics,
            recovered,
            stopped: stopping,
        });
        let mut look = tokio::time::interval(Connections::interval(&settings));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let accepting = async {
            let mut warned = None;
            loop {
                match listener.accept().await {
                    // Only now, so that no place is made before somebody is there to take it.
                    Ok((stream, _)) => {
                        let seat = connections.seat().await;
                        connection::serve(stream, seat, number, &connections, &settings, &context);
                    }
                    Err(error) => {
                        // Mostly too many open files: a connection makes place, as where connections run out.
                        if warned.is_none_or(|last: Instant| last.elapsed() > WARN_EVERY) {
                            warned = Some(Instant::now());
                            tracing::warn!(%error, "cannot accept a connection: slow and idle ones make place");
                        }
                        connections.close_one();
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        };
        {
            let mut accepting = std::pin::pin!(accepting);
            loop {
                tokio::select! {
                    () = &mut accepting => {} // never
                    _ = look.tick() => drop(connections.look_over(number, &settings, false)),
                    _ = stopped.wait_for(|stopped| *stopped) => break,
                }
            }
        }
        drop(listener);
        let begun = Instant::now();
        while connections.look_over(number, &settings, true) > 0 {
            if begun.elapsed() >= settings.grace {
                tracing::warn!("requests were still in flight after the time given to them, and are dropped");
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
