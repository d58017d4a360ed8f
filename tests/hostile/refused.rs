//! What is refused, and how: so that the client sees it, goes on, and takes nothing from others.

use super::{code, get, support::Server};
use std::time::{Duration, Instant};

/// The next request was sent on a connection that was closed already.
#[test]
fn a_refusal_whose_body_was_not_read_says_that_the_connection_ends() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let post = |more: &str, body: &[u8]| {
        let mut client = server.connect();
        let head = format!("POST /v1/logs/missing/records HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
        client.send(head.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(50)); // the answer may be made before the body is there
        client.send(body).unwrap();
        let begun = Instant::now();
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, code(&answer.body)), (404, "log_not_found"), "{more}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{more}: after {:?}", begun.elapsed());
        (client, answer.head.to_ascii_lowercase().contains("connection: close"))
    };
    let all = vec![b'x'; 200_000];
    for (more, body) in [
        ("Content-Length: 200000\r\n", &all[..]),
        ("Content-Length: 200000\r\n", &all[..10]),
        ("Content-Length: 10\r\n", &all[..5]),
        ("Content-Length: 10\r\nExpect: 100-continue\r\n", &all[..0]),
        ("Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n"),
    ] {
        let (mut client, closes) = post(more, body);
        assert!(closes, "{more} and {} bytes: nothing is said", body.len());
        assert!(get(&mut client, "/healthz").is_err(), "{more}: it goes on, and says that it ends");
    }
    for (more, body) in [
        ("Content-Length: 0\r\n", &all[..0]),
        ("Content-Length: 10\r\n", &all[..10]),
        ("Content-Length: 20000\r\n", &all[..20_000]),
        ("Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n0\r\n\r\n"),
    ] {
        let (mut client, closes) = post(more, body);
        assert!(!closes, "{more}: the connection ends for {} bytes", body.len());
        for _ in 0..3 {
            assert_eq!(get(&mut client, "/healthz").unwrap().status, 200, "{more}");
        }
    }
}
