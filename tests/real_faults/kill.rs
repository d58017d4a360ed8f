//! SIGKILL, at random moments, again and again.

use crate::{
    lasting,
    load::{Expected, Kind, Numbers, chance, produce},
    support::{Client, Server, processor::Processor},
};
use rustix::process::{Signal, kill_process};
use std::{
    path::Path,
    time::{Duration, Instant},
};

struct Load<'a> {
    kinds: &'a [Kind],
    logs: usize,
    threads: usize,
    segment_bytes: &'a str,
    flags: &'a [&'a str],
    query: &'a str,
    /// The place of the data; the backings are in `/dev/shm`.
    on: &'a Path,
    /// Whether logs are trimmed during the load.
    trim: bool,
    /// How often one set of logs is killed before a new set is created.
    generations: u32,
    /// The longest time from the start of the load to the kill; a third of it where tests last no longer than usual:
    /// reading back what a load has stored takes many times as long as the load.
    up_to: Duration,
}

impl Default for Load<'_> {
    fn default() -> Self {
        Self {
            kinds: &[Kind::Mixed],
            logs: 3,
            threads: 3,
            segment_bytes: "4194304",
            flags: &[],
            query: "",
            on: Path::new(env!("CARGO_TARGET_TMPDIR")),
            trim: false,
            generations: 3,
            up_to: Duration::from_millis(600),
        }
    }
}

/// Asks the server to trim each log to some offset, until the server is gone. Returns the requested offsets and the
/// answers.
fn trim(address: &str, logs: &[(String, u64, u64)]) -> Vec<(u64, u64)> {
    let mut said: Vec<(u64, u64)> = vec![(0, 0); logs.len()];
    let Ok(mut client) = Client::connect(address) else { return said };
    for turn in 1.. {
        for (n, (name, first, next)) in logs.iter().enumerate() {
            let before = first + (next - first).min(turn * (next - first) / 8);
            said[n].0 = said[n].0.max(before);
            let body = format!("{{\"before\":{before}}}");
            let headers = [("Content-Type", "application/json")];
            let target = format!("/v1/logs/{name}/trim");
            let Ok(reply) = client.exchange("POST", &target, &headers, body.as_bytes()) else { return said };
            if reply.status == 200 {
                let text = String::from_utf8(reply.body).unwrap();
                let first = text.split("\"first_offset\":").nth(1).unwrap();
                said[n].1 =
                    first.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    said
}

/// Runs lives of a few generations each, until the time is over: load, SIGKILL, sometimes SIGKILL again during
/// recovery, then all logs are read and written.
fn kill_under(load: &Load) {
    let _processor = Processor::take();
    let end = Instant::now() + lasting();
    let up_to = if lasting() > Duration::from_secs(1) { load.up_to } else { load.up_to / 3 };
    let (mut kills, mut batches, mut records, mut slowest) = (0, 0, 0, Duration::ZERO);
    for life in 0.. {
        let data = tempfile::tempdir_in(load.on).unwrap();
        let backings = tempfile::tempdir_in(crate::support::shm::dir()).unwrap();
        let backings = backings.path().to_str().unwrap();
        let flags = ["--create-logs", "--segment-bytes", load.segment_bytes, "--shm-dir", backings];
        let flags = [&flags[..], load.flags].concat();
        let mut logs: Vec<Expected> = (0..load.logs)
            .map(|n| Expected::new(format!("log-{n}"), load.kinds[(life + n) % load.kinds.len()]))
            .collect();
        let mut numbers = Numbers::new();
        for generation in 0..load.generations {
            let server = Server::start(data.path(), &flags);
            let wait = Duration::from_millis(chance(up_to.as_millis() as u64));
            let ends: Vec<_> =
                logs.iter().map(|log| (log.name.clone(), log.trim_said, log.records() as u64)).collect();
            let (stored, said) =
                produce(&server, &mut logs, load.threads, load.query, &mut numbers, false, |_| {
                    std::thread::scope(|scope| {
                        let address = &server.address;
                        let trimmer =
                            (load.trim && generation > 0).then(|| scope.spawn(move || trim(address, &ends)));
                        std::thread::sleep(wait);
                        kill_process(server.pid(), Signal::KILL).unwrap();
                        trimmer.map(|trimmer| trimmer.join().unwrap())
                    })
                });
            server.kill();
            batches += stored;
            for (log, (asked, said)) in logs.iter_mut().zip(said.unwrap_or_default()) {
                log.trim_asked = log.trim_asked.max(asked);
                log.trim_said = log.trim_said.max(said);
            }
            kills += 1;
            for _ in 0..chance(3) {
                kill_while_recovering(data.path(), &flags, &logs);
                kills += 1;
            }
            let begun = Instant::now();
            let server = Server::start(data.path(), &flags);
            let mut client = server.connect();
            for log in &logs {
                // It is not known whether the log was ever created until something was acknowledged.
                let target = format!("/v1/logs/{}", log.name);
                let reply = client.exchange("GET", &target, &[], b"").unwrap();
                let missing = reply.status == 404 && log.records() == 0;
                assert!(
                    reply.status == 200 || missing,
                    "{}: {}",
                    log.name,
                    String::from_utf8_lossy(&reply.body)
                );
            }
            slowest = slowest.max(begun.elapsed());
            for log in &mut logs {
                log.check(&mut client); // which creates the missing ones
            }
            server.kill();
        }
        records += logs.iter().map(Expected::records).sum::<usize>();
        if Instant::now() > end {
            break;
        }
    }
    println!(
        "{kills} kills, {batches} batches acknowledged, {records} records; all logs open again after {slowest:?} at most"
    );
    assert!(batches > 0 && records > 0, "nothing was appended");
}

/// Starts the server, has its logs opened, and kills it in the middle of that.
fn kill_while_recovering(data: &Path, flags: &[&str], logs: &[Expected]) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut child = Server::command(data, flags).env("MILLSTREAM_LISTEN", &free).spawn().unwrap();
    let end = Instant::now() + Duration::from_millis(chance(150));
    std::thread::scope(|scope| {
        for log in logs.iter().take(8) {
            let free = &free;
            scope.spawn(move || {
                while Instant::now() < end {
                    if let Ok(mut client) = Client::connect(free) {
                        let _ = client.exchange("GET", &format!("/v1/logs/{}", log.name), &[], b""); // killed
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

/// The content of a log; `None` if it does not exist.
type Lines = Option<Vec<String>>;

/// The content of a log that is created, written and deleted all the time, and the current request for it.
#[derive(Debug, Clone, Default)]
struct Life {
    name: String,
    lines: Lines,
    /// What `lines` will be if the current request was carried out.
    then: Lines,
    turn: u64,
}

impl Life {
    /// Creates, writes and deletes the log until the server is gone.
    fn live(&mut self, address: &str) {
        let Ok(mut client) = Client::connect(address) else { return };
        loop {
            self.turn += 1;
            let target = format!("/v1/logs/{}", self.name);
            let line =
                format!("{}/{}/{}", self.name, self.turn, "x".repeat((self.turn * 7919 % 9000) as usize));
            let (method, target, then) = match &self.lines {
                None => ("PUT", target, Some(Vec::new())),
                Some(lines) if lines.len() as u64 > self.turn % 7 => ("DELETE", target, None),
                Some(lines) => {
                    ("POST", target + "/records", Some([&lines[..], std::slice::from_ref(&line)].concat()))
                }
            };
            self.then.clone_from(&then);
            let body = if method == "POST" { line.as_bytes() } else { b"" };
            let Ok(reply) = client.exchange(method, &target, &[("Content-Type", "text/plain")], body) else {
                return;
            };
            let said = String::from_utf8_lossy(&reply.body);
            assert!(reply.status < 300, "{method} {target}: {} {said}", reply.status);
            self.lines = then;
        }
    }

    fn check(&mut self, client: &mut Client) {
        let target = format!("/v1/logs/{}/records?limit=100000", self.name);
        let reply = client.exchange("GET", &target, &[("Accept", "text/plain")], b"").unwrap();
        let said = String::from_utf8(reply.body).unwrap();
        assert!(matches!(reply.status, 200 | 404), "{}: {} {said}", self.name, reply.status);
        let found = (reply.status == 200).then(|| said.lines().map(str::to_owned).collect::<Vec<_>>());
        let which = |lines: &Lines| {
            let line = |line: &String| line.split('x').next().unwrap().to_owned();
            lines.as_ref().map(|lines| lines.iter().map(line).collect::<Vec<_>>())
        };
        assert!(
            found == self.lines || found == self.then,
            "{}: {:?}, and not {:?} or {:?}",
            self.name,
            which(&found),
            which(&self.lines),
            which(&self.then)
        );
        self.lines = found;
    }
}

#[test]
fn killed_while_logs_are_made_and_deleted() {
    let _processor = Processor::take();
    let (data, backings) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir_in(crate::support::shm::dir()).unwrap());
    let flags = ["--shm-dir", backings.path().to_str().unwrap()];
    let mut lives: Vec<Life> =
        (0..4).map(|n| Life { name: format!("mayfly-{n}"), ..Life::default() }).collect();
    let end = Instant::now() + lasting();
    let mut kills = 0;
    while Instant::now() < end {
        let server = Server::start(data.path(), &flags);
        std::thread::scope(|scope| {
            for life in &mut lives {
                let address = &server.address;
                scope.spawn(move || life.live(address));
            }
            std::thread::sleep(Duration::from_millis(chance(300)));
            kill_process(server.pid(), Signal::KILL).unwrap();
        });
        server.kill();
        kills += 1;
        let server = Server::start(data.path(), &flags);
        let mut client = server.connect();
        for life in &mut lives {
            life.check(&mut client);
        }
        server.kill();
    }
    let turns: u64 = lives.iter().map(|life| life.turn).sum();
    println!("{kills} kills, {turns} logs made, written or deleted");
    assert!(turns > kills);
}

#[test]
fn killed_while_segments_of_tiny_records_roll() {
    kill_under(&Load { kinds: &[Kind::Tiny], ..Load::default() });
}

#[test]
fn killed_while_the_largest_segments_are_filled_with_tiny_records() {
    let up_to = Duration::from_millis(1500);
    kill_under(&Load { kinds: &[Kind::Tiny], segment_bytes: "67108864", logs: 2, up_to, ..Load::default() });
}

#[test]
fn killed_while_large_values_of_random_bytes_and_of_headers_are_written() {
    kill_under(&Load { kinds: &[Kind::Large, Kind::Imitating], ..Load::default() });
}

#[test]
fn killed_while_a_thousand_logs_are_written() {
    let flags = ["--max-open-logs", "300"]; // so that logs are closed and opened during the load
    kill_under(&Load {
        logs: 1000,
        threads: 8,
        flags: &flags,
        up_to: Duration::from_secs(3),
        generations: 2,
        ..Load::default()
    });
}

#[test]
fn killed_while_logs_are_trimmed() {
    let (kinds, flags) = ([Kind::Mixed, Kind::Tiny], ["--memory-bytes", "2097152"]);
    kill_under(&Load {
        kinds: &kinds,
        segment_bytes: "262144",
        flags: &flags,
        trim: true,
        ..Load::default()
    });
}

#[test]
fn killed_with_all_of_it_acknowledged_in_memory() {
    let kinds = [Kind::Tiny, Kind::Mixed, Kind::Large];
    kill_under(&Load { kinds: &kinds, threads: 4, query: "?ack=memory", ..Load::default() });
}

#[test]
fn killed_with_its_data_on_a_memory_file_system() {
    let kinds = [Kind::Mixed, Kind::Tiny];
    kill_under(&Load { kinds: &kinds, on: Path::new("/dev/shm"), ..Load::default() });
}
