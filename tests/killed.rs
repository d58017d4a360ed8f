//! The server is killed with SIGKILL at random moments while several connections append: every acknowledged
//! record is there afterwards, unchanged, at its offset, and there are no gaps.
//!
//! `MILLSTREAM_KILL_ROUNDS=200 cargo test --test killed` for more than 20 rounds.

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};
use support::Server;

const CONNECTIONS: u64 = 4;

fn value(round: u64, connection: u64, n: u64) -> Vec<u8> {
    let mut value = format!("{round}/{connection}/{n}/").into_bytes();
    value.resize(value.len() + (n * 131 % 700) as usize, b'x');
    value
}

/// Appends until the server is gone; what was acknowledged.
fn produce(server: &Server, round: u64, connection: u64) -> Vec<(u64, Vec<u8>)> {
    let mut client = server.connect();
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let value = value(round, connection, n);
        let Ok(offset) = client.append(&value) else { break };
        acknowledged.push((offset, value));
    }
    acknowledged
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let rounds = std::env::var("MILLSTREAM_KILL_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let data = tempfile::tempdir().unwrap();
    let mut all = BTreeMap::new();
    for round in 0..rounds {
        // Small segments, so that rolling and sealing are killed as well.
        let server = Server::start(data.path(), &["--segment-bytes", "65536", "--memory-bytes", "1048576"]);
        let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
        let acknowledged: Vec<_> = std::thread::scope(|scope| {
            let server = &server;
            let producers: Vec<_> = (0..CONNECTIONS)
                .map(|connection| scope.spawn(move || produce(server, round, connection)))
                .collect();
            std::thread::sleep(Duration::from_millis(u64::from(moment / 1000 % 250)));
            let id = rustix::process::Pid::from_child(&server.child);
            rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
            producers.into_iter().flat_map(|producer| producer.join().unwrap()).collect()
        });
        server.kill();
        for (offset, value) in acknowledged {
            assert!(all.insert(offset, value).is_none(), "offset {offset} was given twice");
        }

        let server = Server::start(data.path(), &["--segment-bytes", "65536", "--memory-bytes", "1048576"]);
        let mut client = server.connect();
        let last = all.last_key_value().map_or(0, |(offset, _)| offset + 1);
        let mut next = 0;
        while let Some(found) = client.read(next).unwrap() {
            if let Some(value) = all.get(&next) {
                assert!(*value == found, "round {round}: offset {next} has changed");
            }
            all.entry(next).or_insert(found); // not acknowledged, and there: from now on it must stay
            next += 1;
        }
        assert!(next >= last, "round {round}: acknowledged up to {last}, and {next} are there");
        server.kill();
    }
    assert!(all.len() > rounds as usize, "hardly anything was appended");
    let report = millstream::verify(data.path().join("default")).unwrap();
    assert_eq!(report.damage, []);
}
