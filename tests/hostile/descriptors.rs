//! Fewer descriptors than clients would have the server use.

use super::{
    get, metric,
    support::{Server, process::Process},
};
use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// All of them went to connections: logs could not be opened, and each failure was logged.
#[test]
fn with_few_descriptors_silent_connections_leave_some_for_logs() {
    let data = tempfile::tempdir().unwrap();
    let command = Server::command(data.path(), &["--create-logs", "--idle-seconds", "0"]);
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 400; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    let address = loop {
        let line = lines.next().unwrap_or_else(|| panic!("it ended: {said:?}"));
        if let Some((_, rest)) = line.split_once("address=") {
            break rest.split_whitespace().next().unwrap().to_owned();
        }
        said.push(line);
    };
    let server = Server { child, address };
    let rest = std::thread::spawn(move || lines.collect::<Vec<_>>());
    let mut good = server.connect();
    good.append(b"x").unwrap();
    let mut silent = Vec::new();
    for n in 0..500 {
        silent.push(TcpStream::connect(&server.address).unwrap());
        if n % 10 == 0 {
            let target = format!("/v1/logs/log-{n}/records");
            let answer = good.request("POST", &target, b"x").unwrap();
            assert_eq!(answer.status, 200, "beside {n} silent connections: {}", answer.body);
            let begun = Instant::now();
            assert_eq!(get(&mut server.connect(), &target).unwrap().status, 200);
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        }
    }
    assert!(said.iter().any(|line| line.contains("ulimit -n") && line.contains("connections=")), "{said:?}");
    server.kill();
    let noise: Vec<_> = rest.join().unwrap().into_iter().filter(|line| !line.contains("INFO")).collect();
    assert!(noise.len() < 4, "{noise:#?}");
}

/// It waited until one of them ended, and said so twenty times a second.
#[test]
fn without_a_descriptor_for_a_new_connection_the_idlest_makes_place() {
    use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut good = server.connect();
    good.append(b"x").unwrap();
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    let begun = Instant::now();
    while metric(&server, "millstream_connections") < 21 {
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    std::thread::sleep(Duration::from_millis(300)); // what asked for that is gone
    let now = Process::of(&server.child).descriptors() as u64;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    prlimit(Some(server.pid()), Resource::Nofile, Rlimit { current: Some(now), maximum }).unwrap();
    let mut new = Vec::new();
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(600)); // so that it is seen to be used
        good.append(b"x").unwrap();
        let (begun, mut client) = (Instant::now(), server.connect());
        assert_eq!(get(&mut client, "/healthz").unwrap().status, 200);
        new.push(client);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    good.append(b"y").expect("the one that is used was closed");
    drop(silent);
}
