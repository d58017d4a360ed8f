//! Limits of the running process that are reached for a moment: descriptors, memory, the size of a file. What cannot be
//! done meanwhile is refused, or fails; afterwards everything works again, without a restart.

use crate::{
    load::{Expected, Kind, Numbers, produce},
    support::{Server, processor::Processor, skipped::skipped},
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

/// The lowest number that a new descriptor of the process would get; `None` if the process has ended.
fn next_descriptor(pid: Pid) -> Option<u64> {
    let open = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok()?;
    let number = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let open: std::collections::BTreeSet<u64> = open.filter_map(number).collect();
    (0..u64::MAX).find(|number| !open.contains(number))
}

/// The size of the process's address space in bytes; `None` if the process has ended.
fn address_space(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Sets the soft limit. Returns the previous one.
fn limit(pid: Pid, resource: Resource, to: Option<u64>) -> Option<u64> {
    let maximum = getrlimit(resource).maximum; // the server has inherited it from us
    prlimit(Some(pid), resource, Rlimit { current: to.or(maximum), maximum }).unwrap().current
}

/// Puts load on a server with the limit at `to(pid)` for a while, and then without it: afterwards every log works again
/// by itself, unless the process has ended, as it `may_end`. Then the same after a restart. The limit is set `times`
/// times, each time after `begin` milliseconds.
fn reach(resource: Resource, (times, begin): (u32, u64), may_end: bool, to: impl Fn(Pid) -> Option<u64>) {
    let _processor = Processor::take();
    let data = tempfile::tempdir().unwrap();
    let backings = tempfile::tempdir_in(crate::support::shm::dir()).unwrap();
    let flags =
        ["--create-logs", "--segment-bytes", "1048576", "--shm-dir", backings.path().to_str().unwrap()];
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
fn running_out_of_descriptors_for_a_while_fails_no_log() {
    reach(Resource::Nofile, (3, 300), false, next_descriptor);
}

/// An allocation that fails ends the process, wherever that is; then the state is as after a kill.
#[test]
fn running_out_of_memory_for_a_while_fails_no_log() {
    reach(Resource::As, (3, 300), true, address_space);
}

/// From the start: the blocks of a segment that has begun are allocated, and a failing write into it would be a failed
/// write.
#[test]
fn a_temporary_file_size_limit_fails_no_log() {
    reach(Resource::Fsize, (1, 0), false, |_| Some(200 << 10));
}

/// The runtimes' threads for blocking work ended when there was nothing to do. If no other could be started then, the job
/// was kept with its permit: after eight of them no log could be opened, created or deleted any more, though there were
/// threads again; and when one was started for something else, it did what had been given up long before.
#[test]
fn a_moment_without_threads_locks_nobody_out() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--threads", "1"]);
    let put = |name: &str| server.connect().request("PUT", &format!("/v1/logs/{name}"), b"{}");
    assert_eq!(put("kept").unwrap().status, 201);
    std::thread::sleep(Duration::from_secs(11)); // longer than idle threads lasted
    let few = address_space(server.pid()).unwrap() + (1 << 20); // less than a stack
    let old = limit(server.pid(), Resource::As, Some(few));
    for n in 0..8 {
        let _ = put(&format!("meanwhile-{n}")); // it may be refused
    }
    let _ = server.connect().request("DELETE", "/v1/logs/kept", b"");
    let is_deleted = std::fs::exists(data.path().join("kept")).is_ok_and(|exists| !exists);
    limit(server.pid(), Resource::As, old);
    for n in 0..3 {
        let begun = Instant::now();
        assert_eq!(put(&format!("after-{n}")).unwrap().status, 201);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    let is_deleted_now = std::fs::exists(data.path().join("kept")).is_ok_and(|exists| !exists);
    assert_eq!(is_deleted, is_deleted_now, "what nobody waited for any more was done later");
    server.kill();
}

/// Interrupts every second one of these system calls in each thread of the process before it has done anything, and
/// notes it in `log`; `None`, with a message, if that is not possible.
fn interrupt(pid: Pid, calls: &str, log: &Path) -> Option<Child> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:error=EINTR:when=1+2"), "-o"]).arg(log);
    command.args(["-p", &pid.as_raw_nonzero().to_string()]).stderr(Stdio::null());
    let mut tracing = command.spawn().inspect_err(|_| skipped("there is no strace")).ok()?;
    let traced = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.lines().any(|line| line == "TracerPid:\t0")
    };
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    while !std::fs::read_dir(&tasks).unwrap().flatten().all(traced) {
        if tracing.try_wait().unwrap().is_some() {
            skipped("strace may not look at another process here");
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(tracing)
}

/// An interrupted reservation of space left a chunk without its backing.
#[test]
fn interrupted_system_calls_are_repeated() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(&place.path().join("data"), &["--create-logs", "--segment-bytes", "65536"]);
    let noted = place.path().join("noted");
    let Some(mut tracing) = interrupt(server.pid(), "fallocate,linkat", &noted) else { return };
    let mut client = server.connect();
    for n in 0..100u32 {
        let target = format!("/v1/logs/log-{}/records?ack=durable", n % 5);
        let answer = client.request("POST", &target, &vec![n as u8; 20_000]).unwrap();
        assert_eq!(answer.status, 200, "{n}: {}", answer.body);
    }
    let metrics = client.request("GET", "/metrics", b"").unwrap().body;
    assert!(metrics.lines().any(|line| line == "millstream_shm_fallbacks_total 0"), "{metrics}");
    server.kill();
    tracing.wait().unwrap(); // it ends together with the process that it traces
    let noted = std::fs::read_to_string(noted).unwrap();
    for call in ["fallocate", "linkat"] {
        let interrupted =
            noted.lines().filter(|line| line.contains(call) && line.contains("(INJECTED)")).count();
        assert!(interrupted > 10, "{call} was interrupted {interrupted} times");
    }
}

/// A signal at the wrong moment ended a command, or a server at its start: "cannot lock …: Interrupted system call".
#[test]
fn locks_are_taken_however_often_signals_interrupt_that() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let mut server = Server::start(&data, &["--create-logs"]);
    let stored = server.connect().request("POST", "/v1/logs/a/records", b"x").unwrap();
    assert_eq!(stored.status, 200, "{}", stored.body);
    assert_eq!(server.terminate(), Some(0));
    for command in ["verify", "repair"] {
        let noted = place.path().join(command);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-e", "trace=flock", "-e", "inject=flock:error=EINTR:when=1+2", "-o"]);
        traced.arg(&noted).args([env!("CARGO_BIN_EXE_millstream"), command]).arg(data.join("a"));
        let Ok(done) = traced.output() else { return skipped("there is no strace") };
        let interrupted = std::fs::read_to_string(noted).unwrap_or_default().contains("(INJECTED)");
        if !interrupted && !done.status.success() {
            return skipped("strace may not start a process here");
        }
        assert!(interrupted && done.status.success(), "{command}: {done:?}");
    }
}
