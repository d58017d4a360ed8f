//! The load generator of the command line.

use crate::support::{Server, program};
use rustix::process::{Pid, Signal, kill_process};
use std::{process::Output, thread::JoinHandle, time::Duration};

fn bench(server: &Server, arguments: &[&str]) -> Output {
    let url = format!("http://{}", server.address);
    program::millstream()
        .args(["bench", "--url", &url, "--warm-up", "0"])
        .args(if arguments.contains(&"--seconds") { &[][..] } else { &["--seconds", "1"] })
        .args(arguments)
        .output()
        .unwrap()
}

fn json(server: &Server, arguments: &[&str]) -> serde_json::Value {
    let output = bench(server, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// How many records the server says were appended.
fn appended(server: &Server) -> u64 {
    let metrics = server.connect().request("GET", "/metrics", b"").unwrap().body;
    let line = metrics.lines().find(|line| line.starts_with("millstream_appended_records_total ")).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn what_is_measured_is_what_the_server_has_done_and_the_logs_are_gone_afterwards() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    for (arguments, batch) in [
        (&["--connections", "4"][..], 1),
        (&["--connections", "2", "--batch", "50", "--format", "ndjson", "--bytes", "30", "--logs", "3"], 50),
        (&["--connections", "2", "--batch", "10", "--format", "frames", "--session"], 10),
        (&["--session", "--connections", "1", "--ack", "memory", "--bytes", "1"], 1),
        (&["--connections", "2", "--pipeline", "20", "--spread", "uniform"], 1),
        (&["--http2", "--connections", "2", "--pipeline", "5", "--batch", "3", "--logs", "2"], 3),
    ] {
        let before = appended(&server);
        let report = &json(&server, arguments)["appends"];
        let (requests, appended) = (report["requests"].as_u64().unwrap(), appended(&server) - before);
        assert!(requests > 0 && report["failed"] == 0, "{report}");
        assert_eq!(report["records"], requests * batch);
        // What was answered after the end is not measured.
        assert!(
            appended >= requests * batch && appended <= requests * batch * 2 + 10_000,
            "{appended}: {report}"
        );
        assert_latency(report);
    }
    let listed = server.connect().request("GET", "/v1/logs", b"").unwrap().body;
    assert!(!listed.contains("bench"), "{listed}");
}

fn assert_latency(report: &serde_json::Value) {
    let latency = |name: &str| report["latency_ms"][name].as_f64().unwrap();
    assert!(latency("p50") > 0.0 && latency("p50") <= latency("p99") && latency("p99") <= latency("max"));
}

#[test]
fn reads_are_the_part_of_requests_that_was_asked_for_and_tails_get_all_records() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    // The log has two tails: each gets what was appended.
    for http2 in [&[][..], &["--http2"]] {
        let arguments =
            ["--reads", "25", "--batch", "4", "--tails", "2", "--rate", "400", "--format", "ndjson"];
        let report = json(&server, &[&arguments[..], http2].concat());
        let count = |kind: &str, what: &str| report[kind][what].as_u64().unwrap();
        assert!((280..=300).contains(&count("appends", "requests")), "{report}");
        assert!((90..=100).contains(&count("reads", "requests")), "{report}");
        assert_eq!(
            (count("appends", "failed"), count("reads", "failed"), count("tails", "failed")),
            (0, 0, 0)
        );
        assert!((300..=400).contains(&count("reads", "records")), "{report}");
        assert!(count("tails", "records") > count("appends", "records") * 2 * 9 / 10, "{report}");
        // Its first record says when each batch was due.
        assert!(count("tails", "requests") >= count("tails", "records") / 5, "{report}");
        for kind in ["appends", "reads", "tails"] {
            assert_latency(&report[kind]);
        }
        // A record reaches a tail after it was acknowledged, or shortly before.
        let p50 = |kind: &str| report[kind]["latency_ms"]["p50"].as_f64().unwrap();
        assert!(p50("tails") > p50("appends") / 2.0, "{report}");
    }
}

#[test]
fn logs_of_this_process_are_measured_without_a_server() {
    let data = tempfile::tempdir().unwrap();
    for arguments in [
        &["--connections", "8"][..],
        &["--ack", "memory", "--reads", "50", "--batch", "10", "--logs", "2", "--tails", "2"],
        &["--ack", "durable", "--spread", "exponential", "--rate", "500"],
    ] {
        let output = program::millstream()
            .args(["bench", "--warm-up", "0", "--seconds", "1", "--json", "--data"])
            .arg(data.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for kind in ["appends", "reads", "tails"] {
            let series = &report[kind];
            assert!(series.is_null() || series["records"].as_u64().unwrap() > 100, "{report}");
            assert!(series.is_null() || series["failed"] == 0, "{report}");
        }
        if arguments.contains(&"--tails") {
            let count = |kind: &str| report[kind]["records"].as_u64().unwrap();
            assert!(count("tails") > count("appends") / 2, "{report}");
        }
    }
    let left: Vec<_> =
        std::fs::read_dir(data.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

/// After a while, lets the server stand still for some time.
fn stall(server: &Server, after: Duration, time: Duration) -> JoinHandle<()> {
    let pid = server.pid();
    std::thread::spawn(move || {
        std::thread::sleep(after);
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(time);
        kill_process(pid, Signal::CONT).unwrap();
    })
}

/// A client that waits for each answer before it sends the next request does not see what a stall costs the others.
#[test]
fn with_a_rate_latency_counts_from_when_a_request_was_due() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let stalls = stall(&server, Duration::from_millis(300), Duration::from_millis(400));
    let report = json(&server, &["--rate", "200", "--connections", "2", "--seconds", "2"]);
    stalls.join().unwrap();
    let report = &report["appends"];
    let rate = report["requests_per_second"].as_f64().unwrap();
    assert!((150.0..=201.0).contains(&rate), "{report}");
    // A fifth of the requests were due while it stood still, on average for half of that time.
    assert!(report["latency_ms"]["p90"].as_f64().unwrap() > 100.0, "{report}");
}

/// Requests that were due while the server stood still, and answered after the end, were left out.
#[test]
fn a_stall_that_lasts_beyond_the_end_is_measured() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let stalls = stall(&server, Duration::from_millis(700), Duration::from_secs(1));
    let report = json(&server, &["--rate", "200", "--connections", "2"]);
    stalls.join().unwrap();
    let report = &report["appends"];
    assert!(report["requests"].as_u64().unwrap() >= 195, "{report}");
    assert!(report["latency_ms"]["max"].as_f64().unwrap() > 600.0, "{report}");
    assert!(report["latency_ms"]["p90"].as_f64().unwrap() > 400.0, "{report}");
}

/// The names of the logs that the server has.
fn logs(server: &Server) -> Vec<String> {
    let listed = server.connect().request("GET", "/v1/logs", b"").unwrap().body;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let names = listed["logs"].as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Its logs stayed, and the next run refused to begin.
#[test]
fn the_logs_are_deleted_if_not_all_can_be_created_and_after_a_signal() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    server.connect().request("PUT", "/v1/logs/bench-2", b"").unwrap();
    let output = bench(&server, &["--logs", "4"]);
    assert!(output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("bench-2"));
    assert_eq!(logs(&server), ["bench-2", "default"]);
    server.connect().request("DELETE", "/v1/logs/bench-2", b"").unwrap();
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut running = program::millstream()
            .args(["bench", "--url", &format!("http://{}", server.address), "--logs", "2"])
            .spawn()
            .unwrap();
        while logs(&server).len() < 3 {
            assert!(running.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&running), signal).unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(status));
        assert_eq!(logs(&server), ["default"]);
    }
}

/// It printed nothing, as if it had not been asked to measure.
#[test]
fn a_signal_in_the_warm_up_is_said_to_have_ended_it() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    for json in [&[][..], &["--json"]] {
        let running = program::millstream()
            .args(["bench", "--url", &format!("http://{}", server.address), "--warm-up", "60"])
            .args(json)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        while appended(&server) == 0 || logs(&server).len() < 2 {
            std::thread::sleep(Duration::from_millis(20));
        }
        kill_process(Pid::from_child(&running), Signal::INT).unwrap();
        let output = running.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(130) && output.stdout.is_empty(), "{said}");
        let last = said.lines().last().unwrap_or_default();
        let words = "interrupted before the end of the warm-up: nothing was measured";
        if json.is_empty() {
            assert_eq!(last, format!("millstream: {words}"));
        } else {
            let said: serde_json::Value = serde_json::from_str(last).unwrap();
            assert_eq!((&said["code"], &said["error"]), (&"interrupted".into(), &words.into()));
        }
        assert_eq!(logs(&server), ["default"]);
    }
}

/// It printed nothing of what it had measured.
#[test]
fn a_signal_ends_the_measuring_and_what_was_measured_is_printed() {
    let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    let url = format!("http://{}", server.address);
    for (at, more) in [
        (["--url", &url], &[][..]),
        (["--url", &url], &["--session", "--tails", "1"]),
        (["--url", &url], &["--rate", "200"]),
        (["--data", directory.path().to_str().unwrap()], &[]),
    ] {
        let running = program::millstream()
            .args(["bench", "--json", "--warm-up", "0", "--seconds", "60"])
            .args([&at, more].concat())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs(2));
        kill_process(Pid::from_child(&running), Signal::INT).unwrap();
        let output = running.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let (time, appends) = (number(&report["interrupted_after_seconds"]), &report["appends"]);
        assert!((0.1..30.0).contains(&time), "{more:?}: {time}");
        let rate = number(&appends["requests"]) / time;
        assert!(
            rate > 0.0 && (rate / number(&appends["requests_per_second"]) - 1.0).abs() < 0.001,
            "{report}"
        );
        assert_eq!((&appends["failed"], &appends["first_failure"]), (&0.into(), &().into()), "{report}");
        assert_latency(appends);
    }
    assert_eq!(logs(&server), ["default"]);
}

#[test]
fn a_page_needs_nothing_else_and_failures_are_said() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--segment-bytes", "65536"]);
    let page = data.path().join("page.html");
    let output = bench(&server, &["--connections", "2", "--html", page.to_str().unwrap()]);
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("requests per second") && table.contains("p99.9 in ms"), "{table}");
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(!page.contains("src=") && !page.contains("href="), "it would need something else");
    // Records that no segment has room for.
    let output = bench(&server, &["--connections", "1", "--bytes", "70000"]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("record_too_large"), "{table}");
    server.connect().request("PUT", "/v1/logs/bench-0", b"").unwrap();
    let output = bench(&server, &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("bench-0"), "{said}");
}
