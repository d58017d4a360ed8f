//! Limits of the running process that are reached for a moment: descriptors, memory, the size of a file. What cannot be
//! done meanwhile is refused, or fails; afterwards everything goes on, without a restart.

use crate::{
    load::{Expected, Kind, Numbers, produce},
    support::Server,
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::{sync::atomic::Ordering, time::Duration};

/// The lowest number that a new descriptor of the process would get; `None` if it has ended.
fn next_descriptor(pid: Pid) -> Option<u64> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok()?;
    let number = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let open: std::collections::BTreeSet<u64> = open.filter_map(number).collect();
    (0..u64::MAX).find(|number| !open.contains(number))
}

/// Bytes of addresses that the process has; `None` if it has ended.
fn address_space(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Sets the soft limit. What it was.
fn limit(pid: Pid, resource: Resource, to: Option<u64>) -> Option<u64> {
    let maximum = getrlimit(resource).maximum; // the server has it from us
    prlimit(Some(pid), resource, Rlimit { current: to.or(maximum), maximum }).unwrap().current
}

/// Load with the limit at `to(pid)` for a while, then without: every log goes on by itself, unless the process has ended,
/// as it `may_end`. Then the same after a restart. The limit is set `times` times, at first after `begin` milliseconds.
fn reach(resource: Resource, (times, begin): (u32, u64), may_end: bool, to: impl Fn(Pid) -> Option<u64>) {
    let data = tempfile::tempdir().unwrap();
    let images = tempfile::tempdir_in(crate::support::images::images()).unwrap();
    let flags = ["--create-logs", "--segment-bytes", "1048576", "--images", images.path().to_str().unwrap()];
    let mut logs: Vec<_> = (0..20)
        .map(|n| Expected::new(format!("log-{n}"), [Kind::Mixed, Kind::Tiny, Kind::Large][n % 3]))
        .collect();
    let mut numbers = Numbers::new();
    let mut server = Server::start(data.path(), &flags);
    let pid = server.pid();
    let (stored, failed) = produce(&server, &mut logs, 3, "", &mut numbers, may_end, |failed| {
        for _ in 0..times {
            std::thread::sleep(Duration::from_millis(begin));
            let Some(to) = to(pid) else { break };
            let old = limit(pid, resource, Some(to));
            std::thread::sleep(Duration::from_millis(400));
            limit(pid, resource, old);
        }
        failed.load(Ordering::Relaxed)
    });
    println!("{stored} batches were stored, {failed} were not");
    let ended = server.child.try_wait().unwrap();
    assert!(may_end || ended.is_none(), "the server has ended: {ended:?}");
    if let Some(ended) = ended {
        println!("the server could not go on: {ended}");
    } else {
        let mut client = server.connect();
        for log in &mut logs {
            log.check(&mut client);
        }
    }
    server.kill();
    let server = Server::start(data.path(), &flags);
    let mut client = server.connect();
    for log in &mut logs {
        log.check(&mut client);
    }
    server.kill();
}

#[test]
fn no_descriptor_is_left_for_a_moment() {
    reach(Resource::Nofile, (3, 300), false, next_descriptor);
}

/// An allocation that fails ends the process, wherever it is; then it is as after a kill.
#[test]
fn no_memory_is_left_for_a_moment() {
    reach(Resource::As, (3, 300), true, address_space);
}

/// From the start: a segment that has been begun has its blocks, and a write into it that fails is a failed write.
#[test]
fn files_may_not_grow_for_a_moment() {
    reach(Resource::Fsize, (1, 0), false, |_| Some(200 << 10));
}
