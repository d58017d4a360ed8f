//! Listening, one single-threaded runtime per core, limits, and shutting down.
//!
//! All runtimes accept from one listening socket, so that the least busy one takes the next connection.

use super::{
    book,
    feed::Feeds,
    metrics::Metrics,
    router::{self, Context},
};
use crate::store::{self, LogSettings, Store};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, watch};

/// What a server allows. Every limit holds for each client, whatever it sends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Runtimes, each with a thread. Default: one a core.
    pub threads: usize,
    /// Bytes of a request's body. Default: 16 MiB.
    pub body_bytes: usize,
    /// Bytes of a request's header section; at least 8 KiB. Default: 64 KiB.
    pub header_bytes: usize,
    /// Connections at once; more wait until one is closed. Default: 4,096.
    pub connections: usize,
    /// How long a request's header section may take to come, and how long a connection may be idle. Default: 60 s.
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
            wait_time: Duration::from_secs(60),
            heartbeat: Duration::from_secs(15),
            create_logs: false,
            grace: Duration::from_secs(30),
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

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    settings: Settings,
}

impl Server {
    /// Listens at `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// What the system says: the address is in use, or not one of this machine.
    pub fn bind(address: SocketAddr, settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
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
        let permits = Arc::new(Semaphore::new(self.settings.connections.clamp(1, Semaphore::MAX_PERMITS)));
        std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error>> {
            let serve = || {
                // Answered from the start, so that who asks is told that the log is being recovered.
                self.start(scope, &store, &stopped, &permits, &recovered)?;
                open_default(&store)?;
                recovered.store(true, Ordering::Release);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(stop);
                Ok(())
            };
            let served = serve();
            stopping.send_replace(true); // in case of an error too: the scope waits for the threads
            served
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
        permits: &Arc<Semaphore>,
        recovered: &Arc<AtomicBool>,
    ) -> io::Result<()> {
        let metrics = Arc::new(Metrics::new(store));
        for n in 0..self.settings.threads.max(1) {
            let worker = Worker {
                listener: self.listener.try_clone()?,
                settings: self.settings.clone(),
                store: Arc::clone(store),
                metrics: Arc::clone(&metrics),
                permits: Arc::clone(permits),
                recovered: Arc::clone(recovered),
            };
            let stopped = stopped.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
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

/// One runtime's share of the server.
struct Worker {
    listener: TcpListener,
    settings: Settings,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
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
        let Self { listener, settings, store, metrics, permits, recovered } = self;
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
        let (lines, feeds) = (Arc::default(), Feeds::default());
        let stopping = stopped.clone();
        let context =
            Arc::new(Context { store, lines, feeds, limits, metrics, recovered, stopped: stopping });
        let metrics_of_all = Arc::clone(&context.metrics);
        let http = protocol(&settings);
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &permits) => accepted,
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            let (stream, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Mostly too many open files: nothing to do but to wait until some are closed.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            prepare(&stream, &settings);
            let context = Arc::clone(&context);
            let service = service_fn(move |request| {
                let context = Arc::clone(&context);
                async move { Ok::<_, std::convert::Infallible>(router::answer(context, request).await) }
            });
            let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
            let connection = graceful.watch(connection);
            let metrics = Arc::clone(&metrics_of_all);
            metrics.connections.inc();
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection has ended with an error");
                }
                metrics.connections.dec();
                drop(permit);
            });
        }
        drop(listener);
        if tokio::time::timeout(settings.grace, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were still in flight after the time given to them, and are dropped");
        }
        Ok(())
    }
}

type Permit = tokio::sync::OwnedSemaphorePermit;

async fn accept(
    listener: &tokio::net::TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(tokio::net::TcpStream, Permit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

fn protocol(settings: &Settings) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    let header_bytes = settings.header_bytes.max(8 << 10); // the least that hyper takes
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_time)
        .max_buf_size(header_bytes);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(header_bytes as u32)
        .max_concurrent_streams(256)
        .keep_alive_interval(settings.header_time)
        .keep_alive_timeout(settings.body_time);
    http
}

fn prepare(stream: &tokio::net::TcpStream, settings: &Settings) {
    let _ = stream.set_nodelay(true); // an optimisation: works without
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(settings.body_time)) {
        tracing::debug!(%error, "a client that reads nothing cannot be dropped in time");
    }
    let _ = settings;
}
