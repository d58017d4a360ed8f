//! `millstream append` where something is in the way: a log of small segments, a record that is not what it is to be, a
//! file that is still being written, a server that is not there.

use super::run;
use crate::support::{Server, program};
use rustix::process::{Signal, kill_process};
use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn command(arguments: &[&str]) -> Command {
    let mut command = program::millstream();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a test with a server, and with a directory: it gets the flags that say which, and what runs a command with them.
fn in_both(test: impl Fn(&[&str], &dyn Fn(&[&str], &[u8]) -> Output)) {
    super::in_both(|at| test(at, &|arguments, input| run(&[arguments, at].concat(), input)));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// It was refused for good, as `record_too_large`.
#[test]
fn more_than_a_segment_has_room_for_is_appended_in_parts() {
    in_both(|at, run| {
        let lines = (0..20_000).fold(String::new(), |lines, n| format!("{lines}record {n}\n"));
        let done = run(&["append", "small", "--create", "--segment-bytes", "64KiB"], lines.as_bytes());
        let said = "20000 records appended to small, offsets 0 to 19999\n";
        assert_eq!((text(&done.stdout), text(&done.stderr)), (said.to_owned(), String::new()), "{at:?}");
        assert!(run(&["read", "small"], b"").stdout == lines.as_bytes());
        let done = run(&["append", "small", "--import", "again"], lines.as_bytes());
        assert_eq!(text(&done.stdout), "20000 records appended to small, offsets 20000 to 39999\n");
        let done = run(&["append", "small", "--import", "again"], (lines + "one more\n").as_bytes());
        let said = "1 record appended to small, offset 40000; 20000 stored before were passed over\n";
        assert_eq!(text(&done.stdout), said);
    });
}

/// It said only what was wrong, with a number that counted from the beginning of a batch.
#[test]
fn an_append_that_fails_says_what_it_has_appended() {
    in_both(|at, run| {
        let json = |n: u32| if n == 30_000 { "{bad\n".to_owned() } else { format!("{{\"n\":{n}}}\n") };
        let lines: String = (1..=40_000).map(json).collect();
        let arguments = ["append", "part", "--create", "--format", "ndjson", "--batch-bytes", "64KiB"];
        let failed = run(&arguments, lines.as_bytes());
        assert_eq!(failed.status.code(), Some(1));
        let (out, said) = (text(&failed.stdout), text(&failed.stderr));
        assert!(said.contains("record 30000") && said.lines().count() == 1, "{at:?}: {said}");
        assert_eq!(out, "29999 records appended to part, offsets 0 to 29998; then it failed\n", "{at:?}");
        let failed = run(&["append", "part", "--format", "ndjson", "--json"], b"1\n2\n{\n");
        let report: serde_json::Value = serde_json::from_slice(&failed.stdout).unwrap();
        assert_eq!(
            (&report["records"], &report["last_offset"], failed.status.code()),
            (&2.into(), &30_000.into(), Some(1))
        );
        assert!(report["error"].as_str().unwrap().contains("record 3: "), "{report}");
        // As the help says: corrected, and run again, it appends the rest.
        let import = ["append", "part", "--format", "ndjson", "--import", "again", "--json"];
        let records = |done: Output| {
            let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
            (done.status.code(), report["records"].as_u64().unwrap(), report["passed_over"].as_u64().unwrap())
        };
        assert_eq!(records(run(&import, b"1\n2\n{\n4\n")), (Some(1), 2, 0), "{at:?}");
        assert_eq!(records(run(&import, b"1\n2\n3\n4\n")), (Some(0), 2, 2), "{at:?}");
        let failed = run(&["append", "part", "--format", "ndjson"], b"1\n\n2\n\n{\n");
        assert!(text(&failed.stderr).contains("record 3 (line 5): the value must be JSON"), "{at:?}");
    });
}

/// The beginning of a line was stored as a record, and the file could not be imported any more when the line was complete.
#[test]
fn an_import_leaves_a_line_without_its_end_for_the_next_run() {
    in_both(|at, run| {
        let files = tempfile::tempdir().unwrap();
        let file = files.path().join("f");
        let import = |content: &str, more: &[&str]| {
            std::fs::write(&file, content).unwrap();
            let arguments = ["append", "grow", file.to_str().unwrap(), "--create", "--import", "g"];
            run(&[&arguments, more].concat(), b"")
        };
        let first = import("1\n2\nhal", &[]);
        assert!(first.status.success() && text(&first.stderr).contains("the last line has no end"), "{at:?}");
        assert_eq!(text(&first.stdout), "2 records appended to grow, offsets 0 to 1\n");
        assert!(text(&import("1\n2\nhal", &[]).stdout).starts_with("0 records"));
        assert!(text(&import("1\n2\nhal", &["--json"]).stdout).contains("\"unfinished\":true"));
        assert!(!text(&import("1\n2\n", &["--json"]).stdout).contains("unfinished"));
        assert!(
            text(&import("1\n2\nhalf\n4", &[]).stdout).starts_with("1 record appended to grow, offset 2;")
        );
        assert!(text(&import("1\n2\nhalf\n4", &["--last-line"]).stdout).starts_with("1 record "));
        assert!(text(&import("1\n2\nhalf\n4\n5\n", &[]).stdout).starts_with("1 record "));
        assert_eq!(text(&run(&["read", "grow"], b"").stdout), "1\n2\nhalf\n4\n5\n");
    });
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Waits until it has ended; its exit code.
fn ends(child: &mut Child, within: Duration) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if begun.elapsed() > within {
            child.kill().unwrap();
            panic!("it has not ended within {within:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An append to a server, which is killed when some of it is stored.
fn interrupted(data: &Path, more: &[&str]) -> Child {
    let server = Server::start(data, &["--create-logs"]);
    let mut child = command(&[&["append", "a", "--url", &server.address], more].concat()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || {
        let line = [&[b'x'; 1000][..], b"\n"].concat();
        while stdin.write_all(&line).is_ok() {}
    });
    let is_stored = || {
        let answer = server.connect().request("GET", "/v1/logs/a/records?limit=1", b"").unwrap();
        answer.body.contains("\"offset\":0")
    };
    while !is_stored() {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.kill();
    child
}

/// "Trying again for 60 s" it said, and went on for as long as there was more to read.
#[test]
fn an_append_gives_up_when_the_server_stays_away_and_says_what_it_has_appended() {
    let data = tempfile::tempdir().unwrap();
    let mut child = interrupted(data.path(), &["--patience", "1"]);
    assert_eq!(ends(&mut child, Duration::from_secs(20)), Some(1));
    let output = child.wait_with_output().unwrap();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert!(said.contains("trying again for 1 s") && said.lines().count() == 2, "{said}");
    assert!(
        out.ends_with("; then it failed, and it is not known whether later records were stored\n"),
        "{out}"
    );
}

/// Neither Ctrl-C nor SIGTERM ended it while the server was away.
#[test]
fn a_second_signal_ends_an_append_at_once() {
    for first in ["-INT", "-TERM"] {
        let data = tempfile::tempdir().unwrap();
        let mut child = interrupted(data.path(), &[]);
        signal(&child, first);
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "{first}: what was read is still to be sent");
        signal(&child, "-TERM");
        assert_eq!(ends(&mut child, Duration::from_secs(5)), Some(143));
        let output = child.wait_with_output().unwrap();
        assert!(text(&output.stderr).contains("interrupted by a second signal"), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("records appended to a"), "{}", text(&output.stdout));
    }
}

/// A file of one read, whose records are a batch each: after the first signal, most of them are still to be appended. How
/// long that takes depends on the machine, so the first signal comes sooner or later.
#[test]
fn a_second_signal_ends_an_append_to_a_directory_at_once() {
    let waits = [50, 100, 200, 400, 25];
    assert!(waits.into_iter().any(ends_by_a_second_signal), "no append was interrupted before its end");
}

/// Whether an append is interrupted before it is done, if the first signal comes after so many milliseconds.
fn ends_by_a_second_signal(wait: u64) -> bool {
    let data = tempfile::tempdir().unwrap();
    let (file, dir) = (data.path().join("lines"), data.path().join("logs"));
    std::fs::write(&file, "\n".repeat(1 << 20)).unwrap();
    std::fs::create_dir(&dir).unwrap();
    let (file, dir) = (file.to_str().unwrap(), dir.to_str().unwrap());
    let arguments =
        ["append", "a", file, "--create", "--data", dir, "--import", "i", "--batch-bytes", "1", "--json"];
    let mut child = command(&arguments).spawn().unwrap();
    while !data.path().join("logs/a/producers.json").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(wait)); // for the reading to begin
    signal(&child, "-TERM");
    std::thread::sleep(Duration::from_millis(100)); // or both may be taken for one
    if child.try_wait().unwrap().is_some() {
        return false; // nothing was read yet, or all of it was appended
    }
    signal(&child, "-TERM");
    assert_eq!(ends(&mut child, Duration::from_secs(5)), Some(143));
    let output = child.wait_with_output().unwrap();
    if output.stderr.is_empty() {
        return false; // it was about to end
    }
    assert!(text(&output.stderr).contains("interrupted by a second signal"), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!((1..1 << 20).contains(&report["records"].as_u64().unwrap()), "{report}");
    // What it says it has appended is there.
    let (offset, records) = (report["last_offset"].to_string(), report["records"].as_u64());
    assert_eq!(report["last_offset"].as_u64().map(|last| last + 1), records);
    let last = run(&["read", "a", "--offset", &offset, "--limit", "1", "--data", dir], b"");
    assert_eq!(text(&last.stdout), "\n", "{}", text(&last.stderr));
    true
}

/// It printed nothing.
#[test]
fn an_append_that_cannot_begin_says_so_in_json_if_asked() {
    let missing = tempfile::tempdir().unwrap();
    let missing = missing.path().join("missing");
    let missing = missing.to_str().unwrap();
    let fails = |failed: Output| {
        let report: serde_json::Value = serde_json::from_slice(&failed.stdout).unwrap();
        assert_eq!((&report["records"], failed.status.code()), (&0.into(), Some(1)), "{report}");
        let said = text(&failed.stderr);
        let said: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!((&said["error"], &said["code"]), (&report["error"], &report["code"]));
        assert!(report["error"].is_string() && report["uncertain"] == false, "{report}");
    };
    in_both(|_, run| {
        fails(run(&["append", "no-such-log", "--json"], b"1\n"));
        fails(run(&["append", "a", missing, "--create", "--json"], b""));
        run(&["append", "a", "--create", "--values", "json"], b"");
        fails(run(&["append", "a", "--create", "--values", "any", "--json"], b"1\n"));
    });
    fails(run(&["append", "a", "--json", "--data", missing], b"1\n"));
    fails(run(&["append", "a", "--json", "--url", "127.0.0.1:1", "--patience", "1"], b"1\n"));
}

/// It read a line of any length into memory before it was refused, if it ever was.
#[test]
fn a_record_that_its_log_does_not_take_is_not_read_to_its_end() {
    in_both(|at, _| {
        for (format, limit, max) in [
            (&["lines"][..], &["--record-bytes", "1000"][..], "1000"),
            (&["whole"], &["--record-bytes", "1000"], "1000"),
            (&["ndjson"], &["--segment-bytes", "64KiB"], "65508"),
        ] {
            let log = format!("{}-long", format[0]);
            let arguments = [&["append", &log, "--create", "--format"], format, limit, at].concat();
            let mut child = command(&arguments).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            if format != ["whole"] {
                stdin.write_all(b"1\n").unwrap();
            }
            std::thread::spawn(move || while stdin.write_all(&[b'7'; 1 << 14]).is_ok() {});
            assert_eq!(ends(&mut child, Duration::from_secs(20)), Some(1), "{arguments:?}");
            let output = child.wait_with_output().unwrap();
            let record = if format == ["whole"] { 1 } else { 2 };
            let expected =
                format!("record {record} has more than {max} bytes, the most that can be appended there");
            assert!(text(&output.stderr).contains(&expected), "{arguments:?}: {}", text(&output.stderr));
        }
    });
}

/// It was sent, "cannot reach" the server was said because that hung up, and no record was named: "uncertain" whether it was
/// stored.
#[test]
fn a_record_that_no_body_has_room_for_is_named_before_it_is_sent() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs", "--max-body-bytes", "1MiB"]);
    let long = vec![b'x'; (1 << 20) + 1];
    let input = [b"first\n", &long[..], b"\n"].concat();
    let output = run(&["append", "a", "--json", "--batch-bytes", "4MiB", "--url", &server.address], &input);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = "record 2 has more than 1048572 bytes, the most that can be appended there";
    assert!(report["error"].as_str().unwrap().contains(error), "{report}");
    assert_eq!((&report["records"], &report["uncertain"]), (&1.into(), &false.into()), "{report}");
    assert!(!text(&output.stderr).contains("cannot reach"), "{}", text(&output.stderr));
    // The largest one is taken.
    let output = run(&["append", "a", "--format", "whole", "--url", &server.address], &long[..(1 << 20) - 4]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// It went on in the new log, where what was appended before is not: an import passed over that for good.
#[test]
fn an_append_whose_log_is_deleted_and_created_again_stops() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let url = ["--url", &server.address];
    for (import, quiet) in [(&["--import", "i"][..], false), (&[], false), (&["--import", "i"], true)] {
        let append = [&["append", "a", "--json"], import, &url].concat();
        let mut child = command(&append).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        if quiet {
            std::thread::sleep(Duration::from_millis(500)); // until it has begun
        } else {
            stdin.write_all(b"1\n").unwrap();
            while text(&run(&[&["read", "a"], &url[..]].concat(), b"").stdout) != "1\n" {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        for verb in ["delete", "create"] {
            assert!(run(&[&["logs", verb, "a"], &url[..]].concat(), b"").status.success());
        }
        stdin.write_all(b"2\n").unwrap();
        assert_eq!(ends(&mut child, Duration::from_secs(10)), Some(1), "{append:?}");
        let output = child.wait_with_output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let error = report["error"].as_str().unwrap();
        assert!(error.contains("another one created under its name"), "{report}");
        assert_eq!(report["records"], u64::from(!quiet), "{report}");
        assert_eq!(text(&run(&[&["read", "a"], &url[..]].concat(), b"").stdout), "");
        assert!(run(&append, b"1\n2\n").status.success());
        assert_eq!(text(&run(&[&["read", "a"], &url[..]].concat(), b"").stdout), "1\n2\n");
        assert!(run(&[&["logs", "delete", "a"], &url[..]].concat(), b"").status.success());
    }
}

/// No signal ended it while it passed over what is stored.
#[test]
fn a_signal_ends_an_import_that_passes_over_what_is_stored() {
    in_both(|at, run| {
        let import = ["append", "i", "--create", "--import", "i"];
        assert!(run(&import, b"1\n2\n").status.success());
        let mut child = command(&[&import, at].concat()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"1\n").unwrap();
        std::thread::sleep(Duration::from_millis(500)); // until it waits for the rest
        signal(&child, "-TERM");
        assert_eq!(ends(&mut child, Duration::from_secs(10)), Some(143), "{at:?}");
        let output = child.wait_with_output().unwrap();
        let said = "millstream: interrupted before anything was appended\n";
        assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), said.to_owned()));
    });
}

/// Its JSON was that of a success.
#[test]
fn a_signal_before_the_server_was_reached_is_an_error_in_json() {
    for (name, number) in [("-INT", 130), ("-TERM", 143)] {
        let mut child = command(&["append", "a", "--json", "--url", "127.0.0.1:1"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500)); // until it tries
        signal(&child, name);
        assert_eq!(ends(&mut child, Duration::from_secs(10)), Some(number));
        let output = child.wait_with_output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let error = report["error"].as_str().unwrap();
        assert!(text(&output.stderr).contains(error) && error.contains("interrupted"), "{report}");
        assert_eq!((&report["records"], &report["uncertain"]), (&0.into(), &false.into()), "{report}");
    }
}

/// It said that "another producer of this id has taken over", of which its user knows nothing.
#[test]
fn an_import_that_another_run_has_taken_over_says_so_by_its_name() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let import = ["append", "a", "--import", "dump", "--url", &server.address];
    let mut first = command(&import).spawn().unwrap();
    let mut input = first.stdin.take().unwrap();
    input.write_all(b"1\n").unwrap();
    while text(&run(&["read", "a", "--url", &server.address], b"").stdout) != "1\n" {
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = run(&import, b"1\n2\n");
    let said = "1 record appended to a, offset 1; 1 stored before was passed over\n";
    assert_eq!(text(&second.stdout), said);
    input.write_all(b"2\n").unwrap();
    assert_eq!(ends(&mut first, Duration::from_secs(10)), Some(1), "also if no more input comes");
    drop(input);
    let output = first.wait_with_output().unwrap();
    let said = "millstream: another run of the import \"dump\" has taken over\n";
    assert_eq!(text(&output.stderr), said);
    assert_eq!(text(&output.stdout), "1 record appended to a, offset 0; then it failed\n");
    assert_eq!(text(&run(&["read", "a", "--url", &server.address], b"").stdout), "1\n2\n");
}

/// It ended at the first attempt to create the log.
#[test]
fn an_append_that_creates_its_log_waits_for_a_server_as_others_do() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let address = server.address.clone();
    server.kill();
    for (settings, log) in [(&[][..], "a"), (&["--values", "json"], "b")] {
        let arguments = [&["append", log, "--create", "--url", &address], settings].concat();
        let mut child = command(&arguments).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"1\n").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let server = Server::start(data.path(), &["--listen", &address]);
        assert_eq!(ends(&mut child, Duration::from_secs(20)), Some(0));
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert!(
            said.contains("; trying again for 60 s") && said.contains("the server answers again"),
            "{said}"
        );
        server.kill();
    }
    let output = run(&["append", "a", "--create", "--patience", "1", "--url", &address], b"1\n");
    assert!(output.status.code() == Some(1), "it gives up");
    assert!(text(&output.stderr).contains("is the server running?"), "{}", text(&output.stderr));
}

/// It waited without a word.
#[test]
fn following_says_that_the_server_cannot_be_reached_and_when_it_answers_again() {
    use std::io::{BufRead, BufReader};
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    assert!(run(&["append", "a", "--url", &server.address], b"one\n").status.success());
    let mut child = command(&["tail", "-f", "a", "--url", &server.address]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(out.next().unwrap().unwrap(), "one");
    let address = server.address.clone();
    server.kill();
    assert!(said.next().unwrap().unwrap().contains("is the server running?; trying again"));
    let _server = Server::start(data.path(), &["--listen", &address]);
    assert!(said.next().unwrap().unwrap().ends_with("the server answers again"));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// With a patience of 3 s it took more than 40, and then 6: for as long as one attempt lasts, and again for as long as
/// further ones are made; and a pause that had begun went on.
#[test]
fn a_server_that_no_longer_answers_is_given_up_as_one_that_is_away() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let url = format!("http://{}", server.address);
    let mut running = command(&["append", "a", "--patience", "2", "--url", &url]).spawn().unwrap();
    let mut input = running.stdin.take().unwrap();
    input.write_all(b"1\n").unwrap();
    while text(&run(&["read", "a", "--url", &url], b"").stdout) != "1\n" {
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(server.pid(), Signal::STOP).unwrap();
    let gives_up = |mut child: Child, begun: Instant| {
        assert_eq!(ends(&mut child, Duration::from_secs(10)), Some(1));
        let (took, said) = (begun.elapsed(), text(&child.wait_with_output().unwrap().stderr));
        let within = Duration::from_millis(1500)..Duration::from_millis(3800);
        assert!(within.contains(&took), "{took:?}: {said}");
        said
    };
    // Its input goes on.
    input.write_all(b"2\n").unwrap();
    assert!(gives_up(running, Instant::now()).contains("no answer within 1s"));
    drop(input);
    let arguments = ["append", "a", "Cargo.toml", "--patience", "2", "--url", &url];
    let begin = |more: &&[&str]| (command(&[&arguments[..], more].concat()).spawn().unwrap(), Instant::now());
    let all: Vec<_> = [&[][..], &["--create"], &["--import", "i"]].iter().map(begin).collect();
    for (child, begun) in all {
        let said = gives_up(child, begun);
        assert!(
            said.contains("no answer within 1s") && said.contains("trying again for 2 s in all"),
            "{said}"
        );
    }
    kill_process(server.pid(), Signal::CONT).unwrap();
    server.kill();
    let all: Vec<_> = [&[][..], &["--create"]].iter().map(begin).collect();
    for (child, begun) in all {
        let said = gives_up(child, begun);
        assert!(said.contains("is the server running?"), "{said}");
    }
}
