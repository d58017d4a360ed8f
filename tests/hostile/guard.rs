//! Requests that a browser sends on behalf of a foreign page.

use super::{
    code,
    http2::{self, Connection, HEADERS},
    support::Server,
};

fn status(server: &Server, method: &str, target: &str, headers: &str) -> (u16, String) {
    let mut client = server.connect();
    let body = if method == "POST" { "x" } else { "" };
    let request =
        format!("{method} {target} HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len());
    client.send(request.as_bytes()).unwrap();
    let answer = client.answer().unwrap();
    (answer.status, if answer.status < 400 { String::new() } else { code(&answer.body).to_owned() })
}

/// Any page could append to, and trim, a log on its reader's loopback interface.
#[test]
fn a_page_of_another_origin_and_a_name_that_is_not_ours_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let ours = server.address.clone();
    let records = "/v1/logs/a/records";
    let foreign = (403, "origin_not_allowed".to_owned());
    let unknown = (421, "unknown_host".to_owned());
    let fine = (200, String::new());
    let cases = [
        // What curl, log shippers and our own client send.
        ("POST", records, format!("Host: {ours}\r\n"), &fine),
        ("POST", records, "Host: localhost:1\r\nContent-Type: text/plain\r\n".to_owned(), &fine),
        ("POST", records, "Host: [::1]:4437\r\n".to_owned(), &fine),
        // What a browser sends for a page of ours, or for its address bar.
        (
            "POST",
            records,
            format!("Host: {ours}\r\nOrigin: http://{ours}\r\nSec-Fetch-Site: same-origin\r\n"),
            &fine,
        ),
        ("GET", records, format!("Host: {ours}\r\nSec-Fetch-Site: none\r\n"), &fine),
        // For a foreign page.
        (
            "POST",
            records,
            format!("Host: {ours}\r\nOrigin: https://evil.example\r\nContent-Type: text/plain\r\n"),
            &foreign,
        ),
        ("POST", records, format!("Host: {ours}\r\nOrigin: null\r\n"), &foreign),
        (
            "POST",
            records,
            format!("Host: {ours}\r\nOrigin: http://localhost:3000\r\nSec-Fetch-Site: same-site\r\n"),
            &foreign,
        ),
        ("POST", "/v1/logs/a/trim", format!("Host: {ours}\r\nOrigin: https://evil.example\r\n"), &foreign),
        ("DELETE", "/v1/logs/a", format!("Host: {ours}\r\nOrigin: https://evil.example\r\n"), &foreign),
        ("GET", records, format!("Host: {ours}\r\nSec-Fetch-Site: cross-site\r\n"), &foreign),
        ("GET", "/healthz", format!("Host: {ours}\r\nSec-Fetch-Site: cross-site\r\n"), &foreign),
        // For a page whose name was made to resolve to us: it is its own origin.
        (
            "POST",
            records,
            "Host: evil.example:4437\r\nOrigin: http://evil.example:4437\r\n".to_owned(),
            &unknown,
        ),
        ("GET", records, "Host: evil.example\r\nSec-Fetch-Site: same-origin\r\n".to_owned(), &unknown),
        ("GET", "http://evil.example/metrics", format!("Host: {ours}\r\n"), &unknown),
        (
            "GET",
            records,
            "Host: localhost\r\nHost: localhost\r\n".to_owned(),
            &(400, "invalid_host".to_owned()),
        ),
    ];
    for (method, target, headers, expected) in &cases {
        assert_eq!(status(&server, method, target, headers), **expected, "{method} {target} {headers}");
    }
    // With HTTP/2, the host is in the request's pseudo-header.
    let mut connection = Connection::open(&server.address, &[]);
    let mut head = http2::head("GET", "/metrics");
    let at = head.windows(9).position(|part| part == b"localhost").unwrap();
    head[at..at + 9].copy_from_slice(b"evil.test");
    connection.send(&http2::frame(HEADERS, http2::END_HEADERS | http2::END_STREAM, 1, &head)).unwrap();
    let answer =
        std::iter::from_fn(|| connection.next().ok()).take(100).flatten().find(|frame| frame.0 == HEADERS);
    let head = answer.expect("no answer").3;
    assert!(head[0] != 0x88, "it is answered 200: {head:?}");
    // With flags.
    let flags = ["--allow-origin", "https://app.example", "--allow-host", "log.example,*.svc.example"];
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[&["--create-logs"], &flags[..]].concat());
    for (headers, expected) in [
        ("Host: log.example\r\nOrigin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n", &fine),
        ("Host: a.svc.example:80\r\n", &fine),
        ("Host: log.example\r\nOrigin: https://evil.example\r\n", &foreign),
        ("Host: evil.example\r\nOrigin: https://app.example\r\n", &unknown),
    ] {
        assert_eq!(status(&server, "POST", records, headers), *expected, "{headers}");
    }
}

/// Probes of load balancers and kubelets were refused because of the name by which they call the server, and links
/// because of the page that they are on.
#[test]
fn probes_links_and_other_spellings_of_our_own_names_are_accepted() {
    let data = tempfile::tempdir().unwrap();
    let flags = ["--create-logs", "--allow-host", "[2001:db8::1]:80,log.example."];
    let server = Server::start(data.path(), &flags);
    let (fine, unknown) = ((200, String::new()), (421, "unknown_host".to_owned()));
    let foreign = (403, "origin_not_allowed".to_owned());
    let (records, link) =
        ("/v1/logs/a/records", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n");
    for (method, target, headers, expected) in [
        ("POST", records, "Host: 0.0.0.0:4437\r\n".to_owned(), &fine),
        ("POST", records, "Host: [::]:4437\r\n".to_owned(), &fine),
        ("POST", records, "Host: [::ffff:127.0.0.1]:4437\r\n".to_owned(), &fine),
        ("POST", records, "Host: localhost.:4437\r\n".to_owned(), &fine),
        ("POST", records, "Host: [2001:db8::1]\r\n".to_owned(), &fine),
        ("POST", records, "Host: [2001:DB8:0::1]:4437\r\n".to_owned(), &fine),
        ("POST", records, "Host: log.example\r\n".to_owned(), &fine),
        ("POST", records, "Host: log.example.:80\r\n".to_owned(), &fine),
        ("POST", records, "Host: [::ffff:10.0.0.1]\r\n".to_owned(), &unknown),
        ("POST", records, "Host: [2001:db8::2]\r\n".to_owned(), &unknown),
        ("GET", "/healthz", "Host: 10.1.2.3:4437\r\n".to_owned(), &fine),
        ("GET", "/readyz", "Host: balancer.example\r\n".to_owned(), &fine),
        ("GET", "/metrics", "Host: balancer.example\r\n".to_owned(), &unknown),
        ("GET", "/metrics", format!("Host: localhost\r\n{link}Sec-Fetch-Dest: document\r\n"), &fine),
        ("GET", "/metrics", format!("Host: localhost\r\n{link}Sec-Fetch-Dest: iframe\r\n"), &foreign),
        ("POST", records, format!("Host: localhost\r\n{link}Sec-Fetch-Dest: document\r\n"), &foreign),
        (
            "GET",
            "/metrics",
            format!("Host: localhost\r\nOrigin: https://evil.example\r\n{link}Sec-Fetch-Dest: document\r\n"),
            &foreign,
        ),
    ] {
        assert_eq!(status(&server, method, target, &headers), *expected, "{method} {target} {headers}");
    }
    // If the server listens for other machines too, clients other than browsers may use any name, such as one of a
    // cluster's DNS.
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs", "--listen", "0.0.0.0:0"]);
    let host = "Host: millstream.default.svc.cluster.local:4437\r\n";
    for (headers, expected) in [
        ("", &fine),
        ("User-Agent: Vector/0.40\r\nAccept-Encoding: gzip\r\n", &fine),
        ("User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n", &unknown),
        ("Accept-Language: en\r\n", &unknown),
        ("Sec-Fetch-Site: same-origin\r\n", &unknown),
        ("Origin: http://millstream.default.svc.cluster.local:4437\r\n", &unknown),
    ] {
        assert_eq!(status(&server, "POST", records, &format!("{host}{headers}")), *expected, "{headers}");
    }
}

/// A request without a host, which HTTP/1.1 demands, was answered like any other.
#[test]
fn a_request_of_http_1_1_names_one_host() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    for (head, status) in [
        ("GET /healthz HTTP/1.1\r\n", 400),
        ("GET /metrics HTTP/1.1\r\n", 400),
        ("GET http://localhost/metrics HTTP/1.1\r\n", 400),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        ("GET /metrics HTTP/1.1\r\nHost: localhost\r\n", 200),
        ("GET /metrics HTTP/1.0\r\n", 200),
        ("GET /metrics HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n", 400),
    ] {
        let mut client = server.connect();
        client.send(format!("{head}\r\n").as_bytes()).unwrap();
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, status, "{head}: {}", answer.body);
        assert!(status == 200 || answer.body.contains("invalid_host"), "{head}: {}", answer.body);
    }
}
