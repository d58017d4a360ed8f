//! Driving a connection: it is accepted, its protocol detected, and its requests are answered until it ends.

use super::{
    answer::{Answer, Endless},
    connection::{
        Connection, Connections, Count, Exchange, Http1, Http2, MAX_STREAMS, Protocol, RequestBody,
        ResponseBody,
    },
    context::Context,
    problem::Problem,
    router,
    settings::Settings,
    socket::Socket,
    unparsed::HEADER_TOO_LARGE,
};
use crate::Code;
use http_body_util::Either;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{CONNECTION, EXPECT, HeaderMap, HeaderValue},
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::OwnedSemaphorePermit};

/// The first bytes that a client sends with HTTP/2.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The most bytes of bodies that an HTTP/2 connection may have received that nobody has read yet.
const CONNECTION_WINDOW: u32 = 256 << 10;
/// The most bytes of a body that one stream of it may have received that nobody has read yet.
const STREAM_WINDOW: u32 = 128 << 10;
/// The bytes of an answer that hyper buffers for HTTP/2 beyond what the client has room for.
const SEND_BUFFER: usize = 64 << 10;
/// The bytes that the system may buffer for a client that has no room, beyond what is in transit.
#[cfg(target_os = "linux")]
const UNSENT: u32 = 256 << 10;
/// The system gives up a client that has room only now and then and for little at a time, even if it acknowledges
/// everything. This factor gives such a client more time than we give to a client that takes nothing.
const GIVE_UP_FACTOR: u32 = 4;
/// The most fields in a header section of HTTP/2, where each takes a byte if it refers to the header table, and a hundred
/// in memory. hyper accepts 100 with HTTP/1; here a browser sends each cookie as a field.
const MAX_FIELDS: usize = 256;

/// Serves a connection in a task of its own until it ends.
pub(super) fn serve(
    stream: TcpStream,
    seat: OwnedSemaphorePermit,
    worker: usize,
    all: &Arc<Connections>,
    settings: &Arc<Settings>,
    context: &Arc<Context>,
) {
    prepare(&stream, settings);
    let addresses = stream.local_addr().and_then(|ours| Ok((ours, stream.peer_addr()?))).ok();
    let connection = Connection::begin(all, worker, addresses);
    context.metrics.connections.inc();
    let open = Open { connection: Arc::clone(&connection), context: Arc::clone(context), _seat: seat };
    let settings = Arc::clone(settings);
    // The task does not begin before this function returns: the same thread drives them all.
    let task = tokio::spawn(async move {
        let Open { connection, context, .. } = &open;
        if let Err(error) = drive(stream, connection, context, &settings).await {
            tracing::debug!(%error, "a connection has ended with an error");
        }
    });
    connection.set_task(task.abort_handle());
}

/// An open connection; however it ends, it is removed from the list.
struct Open {
    connection: Arc<Connection>,
    context: Arc<Context>,
    _seat: OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.end();
        self.context.metrics.connections.dec();
    }
}

async fn drive(
    mut stream: TcpStream,
    connection: &Arc<Connection>,
    context: &Arc<Context>,
    settings: &Settings,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let detected = tokio::select! {
        detected = detect(&mut stream) => detected?,
        () = connection.stop_asked() => None,
    };
    let Some((protocol, first)) = detected else { return Ok(()) };
    connection.set_protocol(protocol);
    let socket = Socket::new(stream, first, Arc::clone(connection));
    let service = service_fn(|request| answer(context, connection, request));
    // The code is the same for both protocols, whose types have nothing in common.
    macro_rules! to_its_end {
        ($connection:expr) => {{
            let mut serving = pin!($connection);
            tokio::select! {
                done = serving.as_mut() => return Ok(done?),
                () = connection.stop_asked() => serving.as_mut().graceful_shutdown(),
            }
            Ok(serving.await?)
        }};
    }
    let io = TokioIo::new(socket);
    if connection.http1().is_some() {
        to_its_end!(http1(settings).serve_connection(io, service))
    } else {
        to_its_end!(http2(settings, Tasks(Arc::clone(connection))).serve_connection(io, service))
    }
}

/// The protocol that a client speaks, and what was read of its first bytes to find out; `None` if it ends before.
async fn detect(stream: &mut TcpStream) -> io::Result<Option<(Protocol, Box<[u8]>)>> {
    let mut first = [0; PREFACE.len()];
    let mut read = 0;
    loop {
        if first[..read] != PREFACE[..read] {
            return Ok(Some((Protocol::Http1(Http1::default()), first[..read].into())));
        }
        if read == first.len() {
            return Ok(Some((Protocol::Http2(Http2::default()), first.into())));
        }
        match stream.read(&mut first[read..]).await? {
            0 => return Ok(None),
            more => read += more,
        }
    }
}

/// Begins to answer a request. What is done before the future is polled is done at once, also while thousands of requests
/// wait for their first turn.
fn answer(
    context: &Arc<Context>,
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + use<> {
    let too_many_fields = request.headers().len() > MAX_FIELDS;
    if too_many_fields {
        *request.headers_mut() = HeaderMap::new();
    }
    let context = Arc::clone(context);
    let exchange = Exchange::begin(connection);
    let expects_continue = request.headers().contains_key(EXPECT);
    let request = request.map(|body| RequestBody::new(body, &exchange, expects_continue));
    async move {
        let mut answer: Answer = if too_many_fields {
            Problem::new(Code::HeaderTooLarge, HEADER_TOO_LARGE).into_response()
        } else {
            router::answer(&context, &exchange, request).await
        };
        if !exchange.connection.can_reuse().await {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if is_endless(&answer) {
            exchange.connection.set_endless();
        }
        Ok(answer.map(|body| ResponseBody::new(body, exchange, context)))
    }
}

fn is_endless(answer: &Answer) -> bool {
    matches!(answer.body(), Either::Right(_)) && answer.extensions().get::<Endless>().is_some()
}

fn http1(settings: &Settings) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_time)
        .max_buf_size(settings.header_bytes.max(8 << 10)); // the minimum that hyper accepts
    http
}

fn http2(settings: &Settings, tasks: Tasks) -> http2::Builder<Tasks> {
    let mut http = http2::Builder::new(tasks);
    http.timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(settings.header_bytes.max(8 << 10)).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(settings.header_time)
        // A ping waits behind data that a slow client has not taken.
        .keep_alive_timeout(settings.body_time.saturating_mul(GIVE_UP_FACTOR));
    http
}

fn prepare(stream: &TcpStream, settings: &Settings) {
    let _ = stream.set_nodelay(true); // an optimisation, not needed to work
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        if let Err(error) =
            socket.set_tcp_user_timeout(Some(settings.body_time.saturating_mul(GIVE_UP_FACTOR)))
        {
            tracing::debug!(%error, "cannot set TCP_USER_TIMEOUT: a client that has disappeared is noticed late");
        }
        if let Err(error) = socket.set_tcp_notsent_lowat(UNSENT) {
            tracing::debug!(%error, "cannot set TCP_NOTSENT_LOWAT: the system may hold much for a slow client");
        }
    }
    let _ = settings;
}

/// Runs the requests of an HTTP/2 connection, each in a task that can be aborted separately.
#[derive(Clone)]
struct Tasks(Arc<Connection>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        // hyper runs a request right after it has called the service for it. If it did not, a stalled answer could only
        // be ended together with its connection.
        let stream = self.0.stream_begun();
        if stream.as_ref().is_some_and(|stream| stream.count == Count::Nothing) {
            return; // dropped, so that its stream is reset before it takes any memory
        }
        let task = tokio::spawn(future);
        if let Some(stream) = stream {
            let _ = stream.task.set(task.abort_handle()); // set only here, once
        }
    }
}
