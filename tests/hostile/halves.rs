//! Clients with only half of a connection: they send no more, read slowly, or are answered before they have sent
//! everything.

use super::{
    MIB, code, get,
    http2::{self, Connection, DATA, END_HEADERS, END_STREAM, HEADERS, RESET},
    metric,
    support::Server,
    wait_for,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

/// Sends a request, closes the sending side, and reads to the end.
fn send_and_close(server: &Server, request: &[u8]) -> (String, Duration) {
    let mut socket = TcpStream::connect(&server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.write_all(request).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let (mut answer, begun) = (Vec::new(), Instant::now());
    socket.read_to_end(&mut answer).unwrap();
    (String::from_utf8_lossy(&answer).into_owned(), begun.elapsed())
}

/// As `printf '…' | nc` does. The end of what the client sends was taken for the end of the client.
#[test]
fn a_half_closed_client_gets_its_answer() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs", "--body-seconds", "10"]);
    let many = b"POST /v1/logs/a/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n";
    let body = b"of a batch\n".repeat(300_000);
    let many = [&many[..], format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    let requests: [(&[u8], &str, usize); 7] = [
        (b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", "200", 100),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 31\r\n\r\n{\"record\":{\"value\":\"aGkhaGkh\"}}", "200", 100),
        (&many, "200", 100),
        (b"PUT /v1/logs/b HTTP/1.1\r\nHost: localhost\r\n\r\n", "201", 100),
        // Sent in more pieces than there is room for at once.
        (
            b"GET /v1/logs/a/records?limit=300000&max_bytes=100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "200",
            10 * MIB,
        ),
        // A request after the last one, which is answered as well.
        (
            b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "200",
            200,
        ),
        // There will be no more of this one: the server need not wait for it.
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n{\"record\":", "400", 0),
    ];
    for (request, status, least) in requests {
        let what = String::from_utf8_lossy(&request[..60.min(request.len())]).into_owned();
        for _ in 0..3 {
            let (answer, time) = send_and_close(&server, request);
            let answered =
                answer.starts_with(&format!("HTTP/1.1 {status} ")) || (least == 0 && answer.is_empty());
            let answered = answered || (status == "201" && answer.starts_with("HTTP/1.1 200 "));
            assert!(answered && answer.len() > least.max(1) - 1, "{what}: {answer:.100}");
            assert!(time < Duration::from_secs(5), "{what}: it took {time:?}");
        }
    }
    assert_eq!(send_and_close(&server, requests[5].0).0.matches("200 OK").count(), 2);
    // A client that is gone altogether, while waiting for something that does not come, is not kept for long.
    for _ in 0..20 {
        let mut gone = server.connect();
        gone.send(b"GET /v1/logs/b/records?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut gone = server.connect();
        gone.send(b"GET /v1/logs/b/records HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
            .unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_for("they are let go of", Duration::from_secs(5), || metric(&server, "millstream_connections") < 5);
    assert_eq!(metric(&server, "millstream_readers_dropped_total"), 0);
}

/// The system takes 128 KiB from us at a time: in between, a client that takes 10 KiB per second was considered stuck.
#[test]
fn a_reader_that_is_slow_and_steady_is_not_cut_off() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs", "--body-seconds", "2"]);
    let mut client = server.connect();
    for _ in 0..6 {
        assert_eq!(client.request("POST", "/v1/logs/a/records", &vec![b'x'; MIB]).unwrap().status, 200);
    }
    let open = || {
        // With a small buffer, data is in transit in small parts, so the client takes it in small parts.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        socket.connect(&server.address.parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        let mut socket = TcpStream::from(socket);
        let all = "GET /v1/logs/a/records?max_bytes=100000000 HTTP/1.1\r\nHost: localhost\r\nAccept: application/octet-stream\r\n\r\n";
        socket.write_all(all.as_bytes()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    };
    let (mut steady, mut still) = (open(), open());
    let begun = Instant::now();
    let mut taken = 0;
    while begun.elapsed() < Duration::from_secs(7) {
        let mut bytes = vec![0; 5 << 10];
        steady.read_exact(&mut bytes).unwrap_or_else(|error| panic!("after {taken} bytes: {error}"));
        taken += bytes.len();
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("{taken} bytes in {:?}", begun.elapsed());
    // A client beside it that takes nothing is cut off.
    assert_eq!(metric(&server, "millstream_readers_dropped_total"), 1);
    let mut rest = Vec::new();
    let ended = still.read_to_end(&mut rest);
    assert!(ended.is_err() || rest.len() < 3 * MIB, "{} bytes", rest.len());
}

/// curl and httpx see a reset that arrives together with the answer first, and no answer.
#[test]
fn over_http2_a_refusal_is_sent_before_the_rest_of_the_body_is_reset() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    // A request for a log that does not exist.
    let head = http2::head("POST", "/v1/logs/none/records");
    let mut connection = Connection::open(&server.address, &[]);
    let until = |connection: &mut Connection, stream: u32, max: Duration| {
        let (mut frames, begun) = (Vec::new(), Instant::now());
        while begun.elapsed() < max {
            if let Some((kind, flags, of, payload)) = connection.next().unwrap()
                && of == stream
            {
                frames.push((kind, flags & END_STREAM, payload));
            }
        }
        frames
    };
    // A client that continues to send until the end: 320 KiB, more than there is room for without reading.
    connection.send(&http2::frame(HEADERS, END_HEADERS, 1, &head)).unwrap();
    let part = http2::frame(DATA, 0, 1, &[b'x'; 16 << 10]);
    let mut frames = Vec::new();
    for n in 0..20 {
        connection.send(&part).unwrap();
        frames.extend(until(&mut connection, 1, Duration::from_millis(if n == 0 { 100 } else { 20 })));
    }
    connection.send(&http2::frame(DATA, END_STREAM, 1, &[])).unwrap();
    frames.extend(until(&mut connection, 1, Duration::from_millis(300)));
    assert_eq!(frames.first().map(|frame| frame.0), Some(HEADERS));
    let answer: Vec<u8> =
        frames.iter().filter(|frame| frame.0 == DATA).flat_map(|frame| frame.2.clone()).collect();
    assert_eq!(code(&String::from_utf8_lossy(&answer)), "log_not_found");
    assert!(frames.iter().all(|frame| frame.0 != RESET), "it was reset, though it has sent all");
    // A client that has seen its answer, and neither continues nor ends its body: after a while, what it would send is
    // rejected.
    connection.send(&http2::frame(HEADERS, END_HEADERS, 3, &head)).unwrap();
    connection.send(&http2::frame(DATA, 0, 3, b"x")).unwrap();
    let frames = until(&mut connection, 3, Duration::from_millis(500));
    assert!(frames.iter().any(|frame| frame.1 == END_STREAM), "there is no answer: {frames:?}");
    assert!(frames.iter().all(|frame| frame.0 != RESET), "it was reset at once");
    let frames = until(&mut connection, 3, Duration::from_millis(3500));
    let reset = frames.iter().find(|frame| frame.0 == RESET).expect("it is kept for ever");
    assert_eq!(reset.2, [0; 4], "not NO_ERROR");
    assert_eq!(get(&mut server.connect(), "/readyz").unwrap().status, 200);
}

/// An answer that hyper had taken completely, but the client had not, was cut off when the client closed its sending
/// side.
#[test]
fn a_half_closed_client_that_reads_late_gets_all_of_a_large_value() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let value = vec![b'v'; 12 * MIB];
    let stored = server
        .connect()
        .exchange("POST", "/v1/logs/a/records", &[("Content-Type", "application/octet-stream")], &value)
        .unwrap();
    assert_eq!(stored.status, 200);
    for _ in 0..3 {
        let mut socket = TcpStream::connect(&server.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(b"GET /v1/logs/a/records/0 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(700));
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        assert_eq!((answer.len() - head, read.is_ok()), (value.len(), true));
    }
}
