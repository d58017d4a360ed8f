//! Being asked to stop: with connections that do not end, twice, and with nobody to read the log.

use super::{
    get,
    http2::Connection,
    support::{Client, Server, skipped::skipped},
    wait_for,
};
use rustix::process::{Signal, kill_process};
use std::{
    io::{BufRead, BufReader, Read},
    net::TcpStream,
    process::Stdio,
    time::{Duration, Instant},
};

/// Half a header section, and an idle HTTP/2 connection, were waited for as long as requests in flight.
#[test]
fn only_requests_in_flight_are_waited_for_and_a_second_signal_ends_at_once() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &["--grace-seconds", "20"]);
    let mut kept: Vec<TcpStream> = Vec::new();
    for sent in
        ["", "P", "PRI * HT", "GET / HTTP/1.1\r\nHo", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    {
        let mut socket = TcpStream::connect(&server.address).unwrap();
        std::io::Write::write_all(&mut socket, sent.as_bytes()).unwrap();
        kept.push(socket);
    }
    let idle = Connection::open(&server.address, &[]);
    let mut half = server.connect();
    half.append(b"0").unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    let begun = Instant::now();
    assert_eq!(server.terminate(), Some(0));
    println!("with nothing in flight: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop((kept, idle));

    let mut server = Server::start(data.path(), &["--grace-seconds", "20"]);
    let mut half = server.connect();
    half.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n{").unwrap();
    server.connect().append(b"1").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    kill_process(server.pid(), Signal::TERM).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.child.try_wait().unwrap().is_none(), "a request in flight was not waited for");
    let begun = Instant::now();
    kill_process(server.pid(), Signal::INT).unwrap();
    let ended = server.child.wait().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(ended.code(), Some(130));
    let server = Server::start(data.path(), &[]);
    assert_eq!(server.connect().read(1).unwrap().unwrap(), b"1", "what was acknowledged is kept");
}

/// The system went on to take connections, which nobody answered, for as long as a request was in flight.
#[test]
fn while_a_request_is_waited_for_new_connections_are_refused_at_once() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &["--grace-seconds", "20"]);
    let mut half = server.connect();
    half.append(b"0").unwrap();
    half.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n{").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    kill_process(server.pid(), Signal::TERM).unwrap();
    wait_for("connections are refused", Duration::from_secs(2), || {
        let refused = TcpStream::connect(&server.address).err();
        refused.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    assert!(server.child.try_wait().unwrap().is_none(), "a request in flight was not waited for");
    half.send(br#""record":{"value":"aGk="}}"#).unwrap();
    assert_eq!(half.answer().unwrap().status, 200);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

/// A line that could not be written caused a panic in the code that listened for signals; with debug logging, also in
/// requests.
#[test]
fn a_closed_standard_error_stops_neither_requests_nor_stopping() {
    for (log, signal) in [("info", Signal::TERM), ("debug", Signal::INT)] {
        let data = tempfile::tempdir().unwrap();
        let mut child = Server::command(data.path(), &[]).env("MILLSTREAM_LOG_FILTER", log).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it ended before it listened").unwrap();
            if let Some((_, rest)) = line.split_once("address=") {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
        };
        drop(lines);
        let mut server = Server { child, address };
        let mut client = server.connect();
        for n in 0..50 {
            assert_eq!(client.append(b"x").unwrap(), n);
            assert_eq!(get(&mut client, "/nothing").unwrap().status, 404); // at debug, one line for each
        }
        kill_process(server.pid(), signal).unwrap();
        let begun = Instant::now();
        wait_for("it ends", Duration::from_secs(10), || server.child.try_wait().unwrap().is_some());
        println!("at {log}: {:?}", begun.elapsed());
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
    }
}

/// A reader that reads nothing is worse: the pipe is full, and writing to it blocks.
#[test]
fn a_standard_error_that_nobody_reads_stops_nothing() {
    let data = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let child = Server::command(data.path(), &["--listen", &free])
        .env("MILLSTREAM_LOG_FILTER", "debug")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut server = Server { child, address: free };
    let mut unread = server.child.stderr.take().unwrap();
    wait_for("it listens", Duration::from_secs(10), || Client::connect(&server.address).is_ok());
    let mut client = server.connect();
    // Before that, its log may not exist yet.
    wait_for("it is ready", Duration::from_secs(10), || get(&mut client, "/readyz").unwrap().status == 200);
    for n in 0..10_000 {
        if client.append(b"x").unwrap() == 0 {
            assert_eq!(n, 0);
        }
    }
    kill_process(server.pid(), Signal::TERM).unwrap();
    wait_for("it ends", Duration::from_secs(10), || server.child.try_wait().unwrap().is_some());
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let mut said = Vec::new();
    unread.read_to_end(&mut said).unwrap();
    assert!(said.len() > 4096, "there were lines to be read");
}

/// SIGXFSZ ended the server. And one refused append logged 23 lines.
#[cfg(target_os = "linux")]
#[test]
fn a_file_size_limit_is_a_full_disk_and_is_logged_once() {
    let data = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("prlimit");
    if !command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|done| done.success())
    {
        skipped("there is no prlimit");
        return;
    }
    let said = data.path().join("stderr");
    let serve = Server::command(&data.path().join("data"), &["--create-logs"]);
    let mut command = std::process::Command::new("prlimit");
    command.arg("--fsize=2097152").arg(serve.get_program()).args(serve.get_args());
    for (name, value) in serve.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child = command.stderr(std::fs::File::create(&said).unwrap()).spawn().unwrap();
    let mut address = String::new();
    wait_for("it listens", Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&said).unwrap();
        address = text
            .split_once("address=")
            .map_or("", |(_, rest)| rest.split_whitespace().next().unwrap_or(""))
            .to_owned();
        assert!(child.try_wait().unwrap().is_none(), "{text}");
        !address.is_empty()
    });
    let server = Server { child, address };
    let mut client = server.connect();
    let value = vec![b'x'; 300_000];
    let (mut stored, refused) = loop {
        let target = "/v1/logs/a/records?ack=durable";
        let answer = client.request("POST", target, &value).unwrap();
        if answer.status != 200 {
            break (super::metric(&server, "millstream_appended_records_total"), answer);
        }
    };
    assert_eq!((refused.status, super::code(&refused.body)), (507, "disk_full"));
    for _ in 0..20 {
        assert_eq!(client.request("POST", "/v1/logs/a/records", &value).unwrap().status, 507);
    }
    assert!(stored > 3);
    while stored > 0 {
        stored -= 1;
        assert_eq!(
            get(&mut client, &format!("/v1/logs/a/records/{stored}")).unwrap().body.len(),
            value.len()
        );
    }
    let text = std::fs::read_to_string(&said).unwrap();
    let lines = text.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
    assert_eq!(lines, 1, "{text}");
}

/// SIGHUP ended the server at once, in the middle of requests in flight.
#[test]
fn sighup_from_a_closed_terminal_stops_the_server_like_sigterm() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    if u64::from_str_radix(ignored, 16).unwrap() & 1 == 1 {
        skipped("SIGHUP is ignored here, as under nohup");
        return;
    }
    let mut half = server.connect();
    half.append(b"0").unwrap();
    half.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 27\r\n\r\n{").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..3 {
        kill_process(server.pid(), Signal::HUP).unwrap(); // from the terminal, and from the shell
        std::thread::sleep(Duration::from_millis(50));
    }
    half.send(br#""record":{"value":"aGk="}}"#).unwrap();
    assert_eq!(half.answer().expect("a request in flight was not waited for").status, 200);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));

    // If SIGHUP is ignored so that the server outlives its terminal, it stays ignored.
    let command = Server::command(data.path(), &[]);
    let mut ignoring = std::process::Command::new("sh");
    ignoring
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    let envs = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut child = ignoring.envs(envs).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("address=")).expect("it ended before it listened");
    let address = line.split("address=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mut server = Server { child, address };
    kill_process(server.pid(), Signal::HUP).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.connect().append(b"x").unwrap(), 2);
    assert_eq!(server.terminate(), Some(0));
}
