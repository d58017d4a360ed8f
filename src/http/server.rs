//! Listening, one single-threaded runtime per core, limits, and stopping.
//!
//! All runtimes accept from one listening socket, so that the least busy one takes the next connection.

use super::{
    book,
    connection::{self, Connections},
    context::Context,
    feed::Feeds,
    guard::Guard,
    held::HeldLogs,
    log_permits::LogPermits,
    memory::Memory,
    metrics::Metrics,
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

/// The limits of a server. Every limit holds for each client, whatever it sends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The number of runtimes, each with one thread. Default: one per core.
    pub threads: usize,
    /// The most bytes of a request's body. Default: 16 MiB.
    pub body_bytes: usize,
    /// The most bytes of a request's header section; at least 8 KiB. Default: 64 KiB.
    pub header_bytes: usize,
    /// The most connections at once. For each one beyond that, a slow or idle one is closed; if all are in use, the new
    /// one waits until one ends. Default: 4,096.
    pub connections: usize,
    /// How long a request's header section may take to arrive, from the start of the connection or the end of the
    /// previous request, and how long a connection may be idle. Default: 60 s.
    pub header_time: Duration,
    /// How long a request's body may take to arrive, and how long a client may go without taking a byte of an answer.
    /// Default: 30 s.
    pub body_time: Duration,
    /// How long an append waits while the disk is behind, before it is answered with 429. Default: 2 s.
    pub append_time: Duration,
    /// The most bytes of a body after decompression. Default: 64 MiB.
    pub decoded_bytes: usize,
    /// The longest time that a read may wait for new records. Default: 60 s.
    pub wait_time: Duration,
    /// How often a live tail without news is sent a comment, so that no intermediary assumes that it is dead. Default:
    /// 15 s.
    pub heartbeat: Duration,
    /// The most bytes of bodies that are being received or parsed, and of answers being sent, for all clients together;
    /// requests beyond that are answered with 503. Default: 256 MiB.
    pub memory_bytes: usize,
    /// Names by which clients may call this server, in addition to those that are known to be its own; with `*.` in
    /// front, also all names below a name; `*` for any name. Default: none.
    pub allow_hosts: Vec<String>,
    /// Origins whose pages may use this server from a browser, such as `https://app.example.com`; `*` for all. Default:
    /// none.
    pub allow_origins: Vec<String>,
    /// Whether appending to a log that does not exist creates it. Default: no.
    pub create_logs: bool,
    /// How long stopping waits for requests in flight. Default: 30 s.
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

/// A year. A longer time makes no difference to a caller that waits, and could not be added to every point in time.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Settings {
    fn clamp_times(&mut self) {
        let Self { header_time, body_time, append_time, wait_time, heartbeat, grace, .. } = self;
        for time in [header_time, body_time, append_time, wait_time, heartbeat, grace] {
            *time = LONGEST.min(*time);
        }
    }
}

/// The time between warnings of the same kind.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// The number of threads per runtime that wait for disks, or parse large bodies.
const BLOCKING_THREADS: usize = 64;

/// The number of connections that may wait to be accepted; the standard library has 128, beyond which a client that
/// connects tries again after a second. The system has its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // as the standard library does: a restarted server need not wait
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A server that listens but does not answer yet.
pub struct Server {
    listener: TcpListener,
    settings: Settings,
}

impl Server {
    /// Listens on `address`; port 0 chooses a free port.
    ///
    /// # Errors
    /// What the system reports: the address is in use, or not one of this machine. Or `InvalidInput`: the largest body
    /// does not fit into [`Settings::memory_bytes`].
    pub fn bind(address: SocketAddr, mut settings: Settings) -> io::Result<Self> {
        settings.clamp_times();
        let least = Memory::least(settings.body_bytes, settings.decoded_bytes);
        if settings.memory_bytes < least {
            let reason = format!(
                "{} bytes of memory for requests and answers are too few for bodies of {}, decoded {}: allow {least}, or \
                 smaller bodies",
                settings.memory_bytes, settings.body_bytes, settings.decoded_bytes
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let listener = listen(address)?;
        Ok(Self { listener, settings })
    }

    /// The address that the server listens on.
    ///
    /// # Errors
    /// What the system reports.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves the logs of `store` until `stop` completes; then stops accepting, finishes the requests in flight, and
    /// closes the store. The book's log, `default`, is created if it does not exist.
    ///
    /// # Errors
    /// The log `default` cannot be opened, a runtime cannot be created, or [`Store::close`] fails.
    pub fn run(self, store: Store, stop: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
        let store = Arc::new(store);
        let recovered = Arc::new(AtomicBool::new(false));
        let (stopping, stopped) = watch::channel(false);
        std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
            // After an error or a panic too: the scope waits for the threads.
            let _stops = Stops(stopping);
            // The server answers from the start, so that clients learn that the log is being recovered.
            self.start(scope, &store, &stopped, &recovered)?;
            open_default(&store)?;
            recovered.store(true, Ordering::Release);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(stop);
            Ok(())
        })?;
        // The runtimes have ended, and with them everything that held the store.
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
        let log_permits = LogPermits::new();
        // The others may be used, or kept for those who come again.
        let open_logs = store.options().open_logs;
        let held = HeldLogs::new(open_logs - open_logs / 4);
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
                log_permits: Arc::clone(&log_permits),
                held: Arc::clone(&held),
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

/// When dropped, notifies everything that waits for the server to stop.
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
    log_permits: Arc<LogPermits>,
    held: Arc<HeldLogs>,
    recovered: Arc<AtomicBool>,
}

/// Opens the book's log, which recovers it, or creates it.
fn open_default(store: &Store) -> Result<(), store::Error> {
    if matches!(store.get(book::LOG), Err(store::Error::NotFound { .. })) {
        store.create(book::LOG, &LogSettings::default())?;
    }
    store.get(book::LOG).map(drop)
}

impl Worker {
    async fn serve(self, mut stopped: watch::Receiver<bool>) -> io::Result<()> {
        let Self {
            number,
            listener,
            settings,
            store,
            metrics,
            memory,
            guard,
            connections,
            log_permits,
            held,
            recovered,
        } = self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (waiters, feeds) = (Arc::default(), Feeds::default());
        let stopping = stopped.clone();
        let context = Arc::new(Context {
            store,
            waiters,
            feeds,
            log_permits,
            held,
            limits: Arc::clone(&settings),
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
                    // Only now, so that no connection is closed before there is one to replace it.
                    Ok((stream, _)) => {
                        let seat = connections.seat().await;
                        connection::serve(stream, seat, number, &connections, &settings, &context);
                    }
                    Err(error) => {
                        // Usually there are too many open files: a connection is closed, as when there are too many
                        // connections.
                        if warned.is_none_or(|last: Instant| last.elapsed() > WARN_EVERY) {
                            warned = Some(Instant::now());
                            tracing::warn!(%error, "cannot accept a connection: closing slow and idle ones");
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
                tracing::warn!("requests still in flight after the grace period are dropped");
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
