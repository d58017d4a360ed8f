//! The server is killed with SIGKILL at random moments while several connections append: afterwards every acknowledged
//! record exists, unchanged, at its offset, and there are no gaps.
//!
//! `MILLSTREAM_KILL_ROUNDS=200 cargo test --test program killed` for more than 20 rounds.

use crate::support::{Client, Server};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

const CONNECTIONS: u64 = 4;

fn value(round: u64, connection: u64, n: u64) -> Vec<u8> {
    let mut value = format!("{round}/{connection}/{n}/").into_bytes();
    value.resize(value.len() + (n * 131 % 700) as usize, b'x');
    value
}

/// Appends until the server is gone; returns what was acknowledged.
fn produce(mut client: Client, round: u64, connection: u64) -> Vec<(u64, Vec<u8>)> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let value = value(round, connection, n);
        let Ok(offset) = client.append(&value) else { break };
        acknowledged.push((offset, value));
    }
    acknowledged
}

/// The next values from an offset on, if there are any; they contain no line ends.
fn read(client: &mut Client, offset: u64) -> Option<Vec<Vec<u8>>> {
    let target = format!("/v1/logs/default/records?offset={offset}&limit=100000&max_bytes=1000000");
    let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n");
    client.send(head.as_bytes()).unwrap();
    let answer = client.answer().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let values: Vec<_> = answer.body.lines().map(|line| line.as_bytes().to_vec()).collect();
    (!values.is_empty()).then_some(values)
}

fn rounds() -> u64 {
    std::env::var("MILLSTREAM_KILL_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap())
}

/// Kills a server under load, round after round; with `crash`, the machine crashes as well, so its memory is lost.
fn kill_under_load(flags: &[&str], backings: &std::path::Path, crash: bool) {
    let data = tempfile::tempdir().unwrap();
    let mut all = BTreeMap::new();
    let (mut total, mut missing) = (0, 0);
    // Small segments, so that rolling and sealing are interrupted as well.
    let small =
        ["--segment-bytes", "65536", "--memory-bytes", "1048576", "--shm-dir", backings.to_str().unwrap()];
    let flags = [&small[..], flags].concat();
    for round in 0..rounds() {
        let server = Server::start(data.path(), &flags);
        let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
        let acknowledged: Vec<_> = std::thread::scope(|scope| {
            let producers: Vec<_> = (0..CONNECTIONS)
                .map(|connection| {
                    let client = server.connect(); // before it is killed, however busy the machine is
                    scope.spawn(move || produce(client, round, connection))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(u64::from(moment / 1000 % 250)));
            let id = rustix::process::Pid::from_child(&server.child);
            rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
            producers.into_iter().flat_map(|producer| producer.join().unwrap()).collect()
        });
        server.kill();
        for (offset, value) in acknowledged {
            assert!(all.insert(offset, value).is_none(), "offset {offset} was given twice");
            total += 1;
        }
        if crash {
            std::fs::remove_dir_all(backings).unwrap();
            std::fs::create_dir(backings).unwrap();
        }

        let server = Server::start(data.path(), &flags);
        let mut client = server.connect();
        let acknowledged_to = all.last_key_value().map_or(0, |(offset, _)| offset + 1);
        let mut next = 0;
        while let Some(found) = read(&mut client, next) {
            for found in found {
                if let Some(value) = all.get(&next) {
                    assert!(*value == found, "round {round}: offset {next} has changed");
                }
                all.entry(next).or_insert(found); // not acknowledged, but stored: from now on it must stay
                next += 1;
            }
        }
        if crash {
            missing += all.split_off(&next).len(); // a shorter log without damage
        } else {
            assert!(
                next >= acknowledged_to,
                "round {round}: acknowledged up to {acknowledged_to}, and {next} are there"
            );
        }
        server.kill();
        assert!(all.len() as u64 == next);
    }
    assert!(total > rounds(), "hardly anything was appended");
    if crash {
        eprintln!("{missing} of {total} records that were acknowledged in memory were lost with the machine");
        std::fs::remove_dir_all(backings).unwrap();
        std::fs::create_dir(backings).unwrap();
    }
    // Opening restores what the last server left in memory; the files are complete only after that.
    let options = millstream::Options { shm_dir: Some(backings.to_owned()), ..Default::default() };
    millstream::Log::open(data.path().join("default"), options).unwrap().close().unwrap();
    assert_eq!(
        std::fs::read_dir(backings).map_or(0, |user| user
            .flatten()
            .flat_map(|d| std::fs::read_dir(d.path()))
            .flatten()
            .count()),
        0
    );
    let report = millstream::verify(data.path().join("default")).unwrap();
    assert_eq!(report.damage, []);
}

fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in(crate::support::shm::dir()).unwrap()
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    kill_under_load(&[], memory().path(), false);
}

#[test]
fn nothing_acknowledged_in_memory_is_lost_when_the_server_is_killed() {
    kill_under_load(&["--durability", "memory"], memory().path(), false);
}

#[test]
fn when_the_machine_goes_down_a_log_in_memory_is_shorter_and_whole() {
    kill_under_load(&["--durability", "memory"], memory().path(), true);
}
