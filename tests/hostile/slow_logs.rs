//! A log that takes long to open, as one of many GiB does after a kill.

use super::{code, support::Server};
use std::{
    fs::OpenOptions,
    time::{Duration, Instant},
};

/// Opening occupies a waiting thread; a runtime has 64 for that, for reads from the disk, and for compressed bodies.
#[test]
fn requests_for_a_log_that_takes_long_to_open_keep_no_others_waiting() {
    let data = tempfile::tempdir().unwrap();
    let settings = data.path().join("slow/log.json");
    std::fs::create_dir(data.path().join("slow")).unwrap();
    // Reading this file waits until somebody writes to it.
    rustix::fs::mkfifoat(rustix::fs::CWD, &settings, rustix::fs::Mode::RWXU).unwrap();
    let server = Server::start(data.path(), &["--create-logs", "--threads", "1"]);
    let mut waiting: Vec<_> = (0..200)
        .map(|n| {
            let mut client = server.connect();
            let request = match n % 4 {
                0 => "POST /v1/logs/slow/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx",
                1 => "PUT /v1/logs/slow HTTP/1.1\r\nHost: localhost\r\n\r\n",
                2 => "GET /v1/logs/slow/records HTTP/1.1\r\nHost: localhost\r\n\r\n",
                _ => "DELETE /v1/logs/slow HTTP/1.1\r\nHost: localhost\r\n\r\n",
            };
            client.send(request.as_bytes()).unwrap();
            client
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let mut client = server.connect();
    let body = super::bodies::zstd(b"{}\n{}\n");
    let headers = [("Content-Encoding", "zstd"), ("Content-Type", "application/x-ndjson")];
    let begun = Instant::now();
    for n in 0..20 {
        let target = format!("/v1/logs/other-{n}/records");
        let answer = client.exchange("POST", &target, &headers, &body).unwrap();
        assert_eq!(answer.status, 200, "{}", code(&String::from_utf8_lossy(&answer.body)));
    }
    let took = begun.elapsed();
    // They are all answered in the end: the request that reads the file with an error, the others with what they asked
    // for.
    let (aside, good) = (data.path().join("aside"), data.path().join("good"));
    std::fs::hard_link(&settings, &aside).unwrap();
    std::fs::write(&good, "{}").unwrap();
    std::fs::rename(&good, &settings).unwrap();
    drop(OpenOptions::new().write(true).open(&aside).unwrap());
    let statuses: Vec<_> = waiting.iter_mut().map(|client| client.answer().unwrap().status).collect();
    println!("20 other logs took {took:?}; {statuses:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let odd = statuses.iter().filter(|status| !matches!(status, 200 | 201 | 204 | 404)).count();
    assert!(odd <= 1, "{statuses:?}");
}
