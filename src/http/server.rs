//! Listening, one single-threaded runtime per core, limits, and stopping.
//!
//! All runtimes accept from one listening socket, so that the least busy one takes the next connection.

use super::{
    connection::Connections,
    context::{Context, DEFAULT_LOG, ServerParts},
    guard::Guard,
    log_permits::LogPermits,
    memory::Memory,
    metrics::Metrics,
    permits::Permits,
    serve,
    settings::Settings,
    waited::WaitedLogs,
};
use crate::{
    reports::Rarely,
    store::{self, LogSettings, Store},
};
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

/// The most threads per runtime for work that waits for disks, and for bodies that are light work (`body::with_permit`).
const MAX_BLOCKING_THREADS: usize = 64;

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
        let (stopping, stopped) = watch::channel(false);
        std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
            // After an error or a panic too: the scope waits for the threads.
            let _stops = Stops(stopping);
            let parts = Arc::new(self.parts(&store, stopped)?);
            // The server answers from the start, so that clients learn that the log is being recovered.
            self.start(scope, &parts)?;
            open_default(&store)?;
            parts.recovered.store(true, Ordering::Release);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(stop);
            Ok(())
        })?;
        // The runtimes have ended, and with them everything that held the store.
        let store = Arc::into_inner(store).ok_or("a request still holds the store")?;
        Ok(store.close()?)
    }

    fn parts(&self, store: &Arc<Store>, stopped: watch::Receiver<bool>) -> io::Result<ServerParts> {
        let settings = &self.settings;
        let largest = settings.body_bytes.max(settings.decoded_bytes);
        // A quarter of the open logs stays for requests that do not wait.
        let open_logs = store.options().open_logs;
        Ok(ServerParts {
            store: Arc::clone(store),
            permits: Arc::new(Permits::for_server(settings.memory_bytes, largest, settings.threads)),
            log_permits: LogPermits::new(),
            waited: WaitedLogs::new(open_logs - open_logs / 4),
            settings: Arc::new(settings.clone()),
            memory: Memory::new(settings.memory_bytes),
            guard: Guard::new(settings, self.address()?),
            metrics: Metrics::new(store),
            recovered: AtomicBool::new(false),
            stopped,
        })
    }

    /// Starts the workers. They alone have the listener then: a connection that nobody will accept is refused as soon as
    /// they have stopped accepting.
    fn start<'scope>(
        self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        parts: &Arc<ServerParts>,
    ) -> io::Result<()> {
        let connections = Connections::new(self.settings.connections);
        for n in 0..self.settings.threads.max(1) {
            let worker = Worker {
                number: n,
                listener: self.listener.try_clone()?,
                connections: Arc::clone(&connections),
                context: Arc::new(Context::new(Arc::clone(parts))),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(MAX_BLOCKING_THREADS)
                .thread_keep_alive(Duration::MAX)
                .build()?;
            keep_one_thread(&runtime)?;
            std::thread::Builder::new().name(format!("millstream-http-{n}")).spawn_scoped(
                scope,
                move || {
                    if let Err(error) = runtime.block_on(worker.serve()) {
                        tracing::error!(%error, "a server thread has stopped");
                    }
                },
            )?;
        }
        Ok(())
    }
}

/// Starts a thread for blocking work, which lasts as long as the runtime. If there were none, and the system refused to
/// start one, tokio would panic, and keep the job, with the permit that it holds, for a thread that comes later.
fn keep_one_thread(runtime: &tokio::runtime::Runtime) -> io::Result<()> {
    // If this one can be started, the next one most likely can.
    std::thread::Builder::new().spawn(|| ())?.join().map_err(|_| io::Error::other("a thread panicked"))?;
    drop(runtime.spawn_blocking(|| ()));
    Ok(())
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
    connections: Arc<Connections>,
    context: Arc<Context>,
}

/// Opens the book's log, which recovers it, or creates it.
fn open_default(store: &Store) -> Result<(), store::Error> {
    if matches!(store.get(DEFAULT_LOG), Err(store::Error::NotFound { .. })) {
        store.create(DEFAULT_LOG, &LogSettings::default())?;
    }
    store.get(DEFAULT_LOG).map(drop)
}

impl Worker {
    async fn serve(self) -> io::Result<()> {
        let Self { number, listener, connections, context } = self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let settings = &context.settings;
        {
            let accepting = accept(&listener, number, &connections, settings, &context);
            let mut accepting = std::pin::pin!(accepting);
            let mut check = tokio::time::interval(Connections::interval(settings));
            check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut stopping = std::pin::pin!(context.stopping());
            let mut refused = context.memory.refused();
            loop {
                tokio::select! {
                    () = &mut accepting => {} // never
                    _ = check.tick() => {
                        let before = std::mem::replace(&mut refused, context.memory.refused());
                        let short = if refused > before { context.memory.short() } else { 0 };
                        connections.check_limits(number, settings, false, short);
                    }
                    () = &mut stopping => break,
                }
            }
        }
        drop(listener);
        wind_down(number, &connections, settings).await;
        Ok(())
    }
}

/// Accepts connections, without end.
async fn accept(
    listener: &tokio::net::TcpListener,
    worker: usize,
    connections: &Arc<Connections>,
    settings: &Arc<Settings>,
    context: &Arc<Context>,
) {
    let failures = Rarely::default();
    loop {
        match listener.accept().await {
            // Only now, so that no connection is closed before there is one to replace it.
            Ok((stream, _)) => {
                let seat = connections.seat().await;
                serve::serve(stream, seat, worker, connections, settings, context);
            }
            Err(error) => {
                // Usually there are too many open files: a connection is closed, as when there are too many connections.
                if failures.claim() {
                    tracing::warn!(%error, "cannot accept a connection: closing slow and idle ones");
                }
                connections.evict_one();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Lets a worker's connections finish what is in flight, within the grace period.
async fn wind_down(worker: usize, connections: &Connections, settings: &Settings) {
    let begun = Instant::now();
    while connections.check_limits(worker, settings, true, 0) > 0 {
        if begun.elapsed() >= settings.grace {
            tracing::warn!("requests still in flight after the grace period are dropped");
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
