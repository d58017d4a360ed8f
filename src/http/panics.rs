//! What remains of a request whose handler panics: nothing. The route that panics exists in test builds only.

use super::{
    Server, Settings, answer::full, body, connection::RequestBody, context::Context, memory::Purpose,
    permits::Kind, problem::Problem, share::ConnectionShare,
};
use crate::store::{Store, StoreOptions};
use hyper::Request;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Takes all resources that a request may take, and panics.
pub(super) async fn here(context: &Context, request: Request<RequestBody>) -> Result<(), Problem> {
    let mut grant = context.memory.grant(Purpose::Answer);
    grant.cover(1 << 20)?;
    let _answer = full(grant.hold(vec![0; 1 << 20]));
    let _body = body::read(request.into_body(), context, &ConnectionShare::default()).await?;
    let _permit = context
        .permits
        .acquire(Kind::Look, &super::permits::PermitLines::default(), Duration::from_secs(1))
        .await?;
    std::panic::resume_unwind(Box::new("as it was asked to")) // a panic that prints nothing
}

/// Reads an HTTP/1 answer with a length; `None` if the connection ends without one.
fn answer(socket: &mut TcpStream) -> Option<String> {
    let mut got = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&got);
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1)?.split('\r').next()?.parse().ok()?;
            if rest.len() >= length {
                return Some(text.into_owned());
            }
        }
        let mut bytes = [0; 4096];
        match socket.read(&mut bytes) {
            Ok(0) | Err(_) => return None,
            Ok(read) => got.extend_from_slice(&bytes[..read]),
        }
    }
}

fn ask(socket: &mut TcpStream, line: &str, body: &[u8]) -> Option<String> {
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    socket.write_all(&[head.as_bytes(), body].concat()).ok()?;
    answer(socket)
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// An HTTP/2 request, with the preface before the first one.
fn frames(stream: u32, path: &str) -> Vec<u8> {
    let first: &[u8] =
        if stream == 1 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" } else { b"" };
    let mut head = vec![0x82, 0x86]; // GET, http, then the host and the path as literals
    for (name, value) in [(0x01, "localhost"), (0x04, path)] {
        head.extend_from_slice(&[name, value.len() as u8]);
        head.extend_from_slice(value.as_bytes());
    }
    let length = &(head.len() as u32).to_be_bytes()[1..];
    [first, length, &[0x01, 0x05], &stream.to_be_bytes(), &head].concat()
}

#[test]
fn a_handler_that_panics_ends_its_request_and_gives_back_what_it_had() {
    const MAX_CONNECTIONS: usize = 4;
    let data = tempfile::tempdir().unwrap();
    let store = Store::open(data.path(), StoreOptions::default()).unwrap();
    let settings = Settings { connections: MAX_CONNECTIONS, threads: 1, ..Settings::default() };
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), settings).unwrap();
    let address = server.address().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = std::thread::spawn(move || {
        let stopped = async {
            let _ = stopped.await; // fails if the test has failed
        };
        server.run(store, stopped).map_err(|error| error.to_string())
    });
    let mut good = connect(address);
    let record = br#"{"record":{"value":"aGk="}}"#;
    for n in 0..3 * MAX_CONNECTIONS {
        let mut bad = connect(address);
        let body = vec![b'x'; 1 << 20];
        assert_eq!(ask(&mut bad, "POST /panics", &body), None, "it is answered, or kept");
        let appended = ask(&mut good, "POST /", record).expect("another connection has ended");
        assert!(appended.ends_with(&format!("{{\"offset\":{n}}}\n")), "{appended}");
    }
    // With HTTP/2, the stream ends and the connection continues; there are more streams than the server allows at once.
    let mut both = connect(address);
    let mut got = Vec::new();
    for n in 0..300 {
        // Now and then a request that is answered, so that there are never too many of them at once.
        let (stream, last) = (2 * n + 1, n % 50 == 49);
        both.write_all(&frames(stream, if last { "/healthz" } else { "/panics" })).unwrap();
        let head =
            |got: &[u8]| got.windows(10).position(|head| head[3] == 1 && head[5..9] == stream.to_be_bytes());
        while last && head(&got).is_none() {
            let mut bytes = [0; 4096];
            let read = both.read(&mut bytes).unwrap();
            assert!(read > 0, "the requests behind it get no answer");
            got.extend_from_slice(&bytes[..read]);
        }
        assert!(head(&got).is_none_or(|at| got[at + 9] == 0x88), "it is not answered 200");
    }
    drop(both);
    let begun = Instant::now();
    loop {
        let metrics = ask(&mut good, "GET /metrics", b"").expect("another connection has ended");
        let is = |line: &str| metrics.lines().any(|one| one == line);
        if is("millstream_http_memory_bytes 0") && is("millstream_connections 1") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "something is kept: {metrics}");
    }
    drop(stop);
    drop(good);
    assert_eq!(running.join().unwrap(), Ok(()), "the store is still in use, or the server has failed");
}
