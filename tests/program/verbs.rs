//! The commands of the command line, used with a running server and with a directory.

use crate::support::{Server, program};
use base64::{Engine, prelude::BASE64_STANDARD};
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

fn millstream(arguments: &[&str], input: &str) -> Output {
    super::run(arguments, input.as_bytes())
}

/// Runs a command that should succeed: returns its standard output.
fn good(arguments: &[&str], input: &str) -> String {
    let output = millstream(arguments, input);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that should fail: returns its exit code, and the one line that it prints.
fn bad(arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let output = millstream(arguments, input);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((said.lines().count(), output.stdout.len()), (1, 0), "{said}");
    (output.status.code(), said)
}

/// The settings of the log were ignored; then JSON was checked, but not that its strings are UTF-8.
#[test]
fn a_directory_takes_what_the_settings_of_its_log_say() {
    let data = tempfile::tempdir().unwrap();
    let at = ["--data", data.path().to_str().unwrap()];
    let append = |input: &[u8]| {
        let file = data.path().with_extension("input");
        std::fs::write(&file, input).unwrap();
        millstream(&[&["append", "j", file.to_str().unwrap()][..], &at].concat(), "")
    };
    good(
        &[&["logs", "create", "j", "--settings", r#"{"values":"json","record_bytes":9}"#][..], &at].concat(),
        "",
    );
    assert!(append(b"{\"a\":1}\n2\n").status.success());
    for (input, expected) in [
        (&b"3\n{\n"[..], "record 2: the value must be JSON"),
        (b"\"\xff\"\n", "record 1: the value must be JSON"),
        (b"[1,2,3,4,5]\n", "record 1 has more than 9 bytes, the most that can be appended there"),
    ] {
        let output = append(input);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{said}");
    }
    assert_eq!(
        good(&[&["read", "j"][..], &at].concat(), ""),
        "{\"a\":1}\n2\n3\n",
        "those before it are stored"
    );
}

fn lines(count: u32) -> String {
    (0..count).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat()
}

fn each_verb(at: &[&str]) {
    let run = |arguments: &[&str], input: &str| good(&[arguments, at].concat(), input);
    assert!(run(&["logs", "create", "events"], "").contains("events"));
    assert_eq!(
        run(&["append", "events"], "one\r\n\nthree"),
        "3 records appended to events, offsets 0 to 2\n"
    );
    assert_eq!(run(&["read", "events"], ""), "one\n\nthree\n");
    assert_eq!(run(&["read", "events", "--offset", "1", "--limit", "1"], ""), "\n");
    let json = run(&["append", "events", "--format", "ndjson", "--json"], "{\"a\": 1}\n\n");
    assert_eq!(json, "{\"first_offset\":3,\"last_offset\":3,\"log\":\"events\",\"records\":1}\n");
    assert!(run(&["tail", "events", "-n", "1", "--json"], "").contains("\"json\":{\"a\": 1}}"));
    run(&["append", "events", "--format", "whole"], "two\nlines");
    assert_eq!(run(&["tail", "events", "-n", "1"], ""), "two\nlines\n");
    let listed = run(&["logs", "list"], "");
    assert!(listed.lines().any(|line| line.split_whitespace().take(3).eq(["events", "0", "5"])), "{listed}");
    assert!(run(&["logs", "describe", "events", "--json"], "").contains("\"next_offset\":5"));
    run(&["logs", "trim", "events", "3"], "");
    assert_eq!(bad(&[&["append", "events", "--format", "ndjson"], at].concat(), "{").0, Some(1));
    run(&["logs", "delete", "events"], "");
    assert_eq!(bad(&[&["read", "events"], at].concat(), "").0, Some(1));
    // More than one answer or batch.
    run(&["logs", "create", "many"], "");
    let lines = lines(30_000);
    run(&["append", "many", "--batch-bytes", "20000"], &lines);
    assert!(run(&["read", "many"], "") == lines);
}

#[test]
fn each_verb_speaks_to_a_server() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    each_verb(&["--url", &format!("http://{}", server.address)]);
}

#[test]
fn each_verb_speaks_to_a_directory() {
    let data = tempfile::tempdir().unwrap();
    each_verb(&["--data", data.path().to_str().unwrap()]);
}

#[test]
fn an_import_that_is_begun_anew_is_stored_once_also_over_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &["--create-logs"]);
    let lines = lines(20_000);
    let import = |server: &Server, part: &str| {
        let url = format!("http://{}", server.address);
        let arguments = ["append", "a", "--import", "import", "--batch-bytes", "10000", "--url", &url];
        good(&arguments, part)
    };
    // As if the import had been interrupted after this much.
    let end = lines.match_indices('\n').nth(9_000).unwrap().0 + 1;
    import(&server, &lines[..end]);
    server.kill();
    server = Server::start(data.path(), &["--create-logs"]);
    for _ in 0..2 {
        import(&server, &lines);
        assert!(good(&["read", "a", "--url", &format!("http://{}", server.address)], "") == lines);
    }
}

/// A line that was added to the file was lost, as was all of another file, and both were reported as stored.
fn an_import_of_a_file_that_grows(at: &[&str]) {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("f");
    let import = |content: &str, name: &str| {
        std::fs::write(&file, content).unwrap();
        [&["append", "grow", file.to_str().unwrap(), "--import", name], at]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |arguments: Vec<String>| good(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), "");
    let fail = |arguments: Vec<String>| bad(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), "");
    good(&[&["logs", "create", "grow"], at].concat(), "");
    assert_eq!(run(import("a\nb\n", "g")), "2 records appended to grow, offsets 0 to 1\n");
    let again = "0 records appended to grow; 2 stored before were passed over\n";
    assert_eq!(run(import("a\nb\n", "g")), again);
    let grown = "1 record appended to grow, offset 2; 2 stored before were passed over\n";
    assert_eq!(run(import("a\nb\nc\n", "g")), grown);
    for other in ["x\ny\n", "a\nb\n", "a\nb\nd\n"] {
        let (code, said) = fail(import(other, "g"));
        assert!(code == Some(1) && said.contains("is not what was imported as \"g\""), "{other:?}: {said}");
    }
    // Records were passed over by their number, of others than are stored.
    let other = [import("a\nb\nc\n[1]\n", "g"), vec!["--format".to_owned(), "ndjson".to_owned()]].concat();
    let (code, said) = fail(other);
    assert!(code == Some(1) && said.contains("were taken as lines, and not as ndjson"), "{said}");
    assert_eq!(run(import("x\n", "h")), "1 record appended to grow, offset 3\n");
    assert_eq!(good(&[&["read", "grow"], at].concat(), ""), "a\nb\nc\nx\n");
}

#[test]
fn an_import_of_a_file_that_grows_continues_and_one_that_changes_is_refused_on_a_server() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    an_import_of_a_file_that_grows(&["--url", &server.address]);
}

#[test]
fn an_import_of_a_file_that_grows_continues_and_one_that_changes_is_refused_in_a_directory() {
    let data = tempfile::tempdir().unwrap();
    an_import_of_a_file_that_grows(&["--data", data.path().to_str().unwrap()]);
}

/// A line came when the next one was read, and the last one not at all; in a directory, it came after 1 MiB, and what was
/// read before a signal was lost.
fn a_line_that_is_piped(at: &[&str], is_stored: impl Fn(&str) -> bool) {
    for (round, signal) in [(0, 2), (1, 15)] {
        let mut child = program::millstream()
            .args([&["append", "a", "-", "--create"], at].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        for n in 0..3 {
            let line = format!("line {n} of {round}");
            writeln!(input, "{line}").unwrap();
            let begun = Instant::now();
            while !is_stored(&line) {
                assert!(begun.elapsed() < Duration::from_secs(10), "{at:?}: {line:?} is not stored");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        write!(input, "the last of {round}\nhalf").unwrap();
        std::thread::sleep(Duration::from_millis(20)); // it is read, and not sent yet
        let mut kill = Command::new("kill");
        assert!(kill.args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + signal));
        let appended = format!("4 records appended to a, offsets {} to {}\n", 4 * round, 4 * round + 3);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), appended);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("a part of a record was read") && said.lines().count() == 1, "{said}");
        let read = good(&[&["tail", "a", "-n", "1"], at].concat(), "");
        assert_eq!(read, format!("the last of {round}\n"));
        drop(input);
    }
}

#[test]
fn a_line_that_is_piped_is_stored_soon_and_all_that_was_read_before_a_signal() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    a_line_that_is_piped(&["--url", &server.address], |line| {
        let answer = server.connect().request("GET", "/v1/logs/a/records", b"").unwrap();
        answer.body.contains(&BASE64_STANDARD.encode(line))
    });
    let data = tempfile::tempdir().unwrap();
    a_line_that_is_piped(&["--data", data.path().to_str().unwrap()], |line| {
        // While the command has the directory, nothing else can read it.
        let segment = data.path().join("a").join("00000000000000000000.seg");
        let bytes = std::fs::read(segment).unwrap_or_default();
        bytes.windows(line.len()).any(|window| window == line.as_bytes())
    });
}

#[test]
fn following_continues_over_a_restart_of_the_server() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let (url, address) = (format!("http://{}", server.address), server.address.clone());
    good(&["logs", "create", "a", "--url", &url], "");
    good(&["append", "a", "--url", &url], "before\n");
    let mut child = program::millstream()
        .args(["tail", "-f", "a", "--url", &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().unwrap(), "before");
    server.kill();
    let _server = start_at(data.path(), &address);
    good(&["append", "a", "--url", &url], "after\n");
    assert_eq!(lines.next().unwrap(), "after");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// It waited for the next record, for however long that took to come.
#[test]
fn following_ends_when_its_reader_is_gone() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    good(&["append", "a", "--url", &server.address], "one\n");
    let mut child = program::millstream()
        .args(["tail", "-f", "a", "--url", &server.address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    drop(out); // as `| head -1` does
    for _ in 0..500 {
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0));
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("it goes on");
}

fn start_at(data: &Path, address: &str) -> Server {
    Server::start(data, &["--listen", address])
}

#[test]
fn an_unreachable_server_or_a_wrong_argument_is_one_line() {
    let (code, said) = bad(&["read", "a", "--url", "http://127.0.0.1:1"], "");
    assert!(code == Some(1) && said.contains("is the server running?"), "{said}");
    let (code, said) = bad(&["read", "a", "--url", "ftp://x"], "");
    assert!(code == Some(2) && said.contains("not an address"), "{said}");
    let data = tempfile::tempdir().unwrap();
    for at in [["--url", "127.0.0.1:1"], ["--data", data.path().to_str().unwrap()]] {
        for wrong in [&["read", "not/a/name"][..], &["logs", "create", "..."], &["append", "-x-"]] {
            let (verb, name) = wrong.split_at(wrong.len() - 1);
            let (code, said) = bad(&[verb, &at, &["--"], name].concat(), "");
            assert!(code == Some(2) && said.contains("is not a name"), "{wrong:?} {at:?}: {said}");
        }
    }
    assert_eq!(bad(&["logs", "list", "--data", "/no/such"], "").0, Some(1));
    assert_eq!(millstream(&["read", "a", "--url", "http://x", "--data", "y"], "").status.code(), Some(2));
    assert!(good(&["completions", "bash"], "").contains("complete -F _millstream"));
}

/// `read` knew neither the end of a log nor times, and could not print what it had read without adding to it.
fn reading_from_anywhere(at: &[&str]) {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let run = |arguments: &[&str], input: &str| good(&[arguments, at].concat(), input);
    run(&["append", "lines", "--create"], "one\ntwo\nthree\n");
    for (offset, expected) in [
        ("-2", "two\nthree\n"),
        ("earliest", "one\ntwo\nthree\n"),
        ("latest", ""),
        ("1", "two\nthree\n"),
        ("-9", "one\ntwo\nthree\n"),
    ] {
        assert_eq!(run(&["read", "lines", "--offset", offset], ""), expected, "{offset}");
    }
    assert_eq!(run(&["read", "lines", "--since", "1h"], ""), "one\ntwo\nthree\n");
    assert_eq!(run(&["read", "lines", "--since", "2000-01-01", "--limit", "1"], ""), "one\n");
    assert_eq!(run(&["read", "lines", "--since", "2100-01-01T00:00:00Z"], ""), "");
    for until in ["0", "1", "3", "9"] {
        let max: usize = until.parse().unwrap();
        let expected: String = ["one\n", "two\n", "three\n"].into_iter().take(max).collect();
        assert_eq!(run(&["read", "lines", "--until", until], ""), expected);
        let rest = expected.strip_prefix("one\n").unwrap_or_default();
        assert_eq!(run(&["read", "lines", "--offset", "1", "--until", until, "--limit", "5"], ""), rest);
    }
    for verb in ["read", "tail"] {
        let wrong = millstream(&[&[verb, "lines", "--since", "yesterday"], at].concat(), "");
        let said = String::from_utf8(wrong.stderr).unwrap();
        assert!(wrong.status.code() == Some(2) && said.contains("15m"), "{said}");
    }
    numbers_as_times(at);
    let (code, said) = bad(&[&["read", "lines", "--offset", "4"], at].concat(), "");
    assert!(code == Some(1) && said.contains("the log ends at 3, before that offset"), "{said}");
    tail_from_anywhere(at);
    // Any bytes come out as they went in.
    let bytes: Vec<u8> = (0..=255u8).cycle().take(70_000).collect();
    std::fs::write(path("bytes"), &bytes).unwrap();
    run(&["append", "bytes", &path("bytes"), "--format", "whole", "--create"], "");
    let output = millstream(&[&["read", "bytes", "--raw"], at].concat(), "");
    assert!(output.status.success() && output.stdout == bytes);
    run(&["append", "bytes", "--format", "ndjson"], "{\"a\": 1}\n");
    let output = millstream(&[&["read", "bytes", "--frames"], at].concat(), "");
    std::fs::write(path("frames"), &output.stdout).unwrap();
    run(&["append", "copy", &path("frames"), "--format", "frames", "--create", "--import", "copy"], "");
    let again = run(&["append", "copy", &path("frames"), "--format", "frames", "--import", "copy"], "");
    assert!(again.contains("2 stored before"), "{again}");
    let copied = millstream(&[&["read", "copy", "--frames"], at].concat(), "");
    assert!(copied.stdout == output.stdout && output.stdout.len() == 70_000 + 8 + 8);
    assert!(run(&["read", "copy", "--offset", "1", "--json"], "").contains("\"json\":{\"a\": 1}"));
    std::fs::write(path("cut"), &output.stdout[..1000]).unwrap();
    let (code, said) = bad(&[&["append", "copy", &path("cut"), "--format", "frames"], at].concat(), "");
    assert!(code == Some(1) && said.contains("within a frame") && said.contains("cut"), "{said}");
}

/// A number that looks like seconds was one of milliseconds in 1970.
fn numbers_as_times(at: &[&str]) {
    let run = |arguments: &[&str], input: &str| good(&[arguments, at].concat(), input);
    for (number, expected) in [("100000000000", "one\ntwo\nthree\n"), ("4102444800000", "")] {
        assert_eq!(run(&["read", "lines", "--since", number], ""), expected, "{number}");
    }
    for verb in ["read", "tail"] {
        for number in ["0", "1767323045", "99999999999"] {
            let wrong = millstream(&[&[verb, "lines", "--since", number], at].concat(), "");
            let said = String::from_utf8(wrong.stderr).unwrap();
            let says_what = said.contains("milliseconds") && said.contains(&format!("{number}000"));
            assert!(wrong.status.code() == Some(2) && says_what, "{number}: {said}");
        }
    }
}

/// `tail` could begin only so many records before the end, or at a cursor.
fn tail_from_anywhere(at: &[&str]) {
    let run = |arguments: &[&str]| good(&[&["tail", "lines"], arguments, at].concat(), "");
    assert_eq!(run(&["-n", "1"]), "three\n");
    for (flag, value, expected) in [
        ("--offset", "1", "two\nthree\n"),
        ("--offset", "-1", "three\n"),
        ("--offset", "earliest", "one\ntwo\nthree\n"),
        ("--offset", "latest", ""),
        ("--since", "1h", "one\ntwo\nthree\n"),
        ("--since", "2100-01-01", ""),
    ] {
        assert_eq!(run(&[flag, value]), expected, "{flag} {value}");
        let both = millstream(&[&["tail", "lines", flag, value, "-n", "1"], at].concat(), "");
        assert_eq!(both.status.code(), Some(2), "{flag} and -n");
    }
    // `read` had these, and `tail` had not.
    assert_eq!(run(&["-n", "3", "--limit", "2"]), "one\ntwo\n");
    assert_eq!(run(&["--offset", "1", "--until", "2"]), "two\n");
    assert_eq!(run(&["-n", "2", "--raw"]), "twothree");
    assert_eq!(run(&["-n", "1", "--frames"]).len(), 4 + "three".len());
    let both = millstream(&[&["tail", "lines", "--raw", "--json"], at].concat(), "");
    assert_eq!(both.status.code(), Some(2));
    let (code, said) = bad(&[&["tail", "lines", "--offset", "4"], at].concat(), "");
    assert!(code == Some(1) && said.contains("ends at 3, before"), "{said}");
}

#[test]
fn records_are_read_from_anywhere_and_as_they_are_on_a_server() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let at = ["--url", &server.address];
    reading_from_anywhere(&at);
    for (more, expected) in [
        (&["--offset", "0", "--limit", "2"][..], "one\ntwo\n"),
        (&["--offset", "-2", "--until", "2", "--raw"], "two"),
        (&["--offset", "1", "--until", "1"], ""),
        (&["-n", "3", "--limit", "0"], ""),
    ] {
        assert_eq!(good(&[&["tail", "-f", "lines"], more, &at].concat(), ""), expected, "{more:?}");
    }
    for begin in [["--offset", "1"], ["--since", "1h"]] {
        let mut child = program::millstream()
            .args([&["tail", "-f", "lines"], &begin[..], &at].concat())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let first = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(first, if begin[0] == "--offset" { "two" } else { "one" });
    }
}

#[test]
fn records_are_read_from_anywhere_and_as_they_are_in_a_directory() {
    let data = tempfile::tempdir().unwrap();
    reading_from_anywhere(&["--data", data.path().to_str().unwrap()]);
}

/// Settings could only be given as JSON, and only to `logs create`. Then fewer settings than the log has were other settings.
fn settings_as_flags(at: &[&str]) {
    let run = |arguments: &[&str], input: &str| good(&[arguments, at].concat(), input);
    let flags = ["--create", "--values", "json", "--retention-bytes", "10GiB", "--record-bytes", "1KiB"];
    run(&[&["append", "a"], &flags[..]].concat(), "1\n");
    let described = run(&["logs", "describe", "a", "--json"], "");
    for setting in ["\"values\":\"json\"", "\"retention_bytes\":10737418240", "\"record_bytes\":1024"] {
        assert!(described.contains(setting), "{setting}: {described}");
    }
    // What is described as text was without them, and without id and durability.
    let json: serde_json::Value = serde_json::from_str(&described).unwrap();
    let text = run(&["logs", "describe", "a"], "");
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for (name, value) in [
        ("id", json["id"].as_str().unwrap()),
        ("durability", "disk"),
        ("durable_offset", "1"),
        ("values", "json"),
        ("retention_bytes", "10737418240"),
        ("record_bytes", "1024"),
    ] {
        assert!(lines.contains(&vec![name, value]), "{name} {value}: {text}");
    }
    // The log is there: the same settings, or none, are no contradiction.
    run(&[&["append", "a"], &flags[..]].concat(), "2\n");
    run(&["append", "a", "--create"], "3\n");
    run(&["append", "a", "--create", "--values", "json"], "4\n");
    let other = [&["append", "a", "--create", "--retention-seconds", "5"], at].concat();
    let (code, said) = bad(&other, "4\n");
    assert!(code == Some(1) && said.contains("retention_seconds: not set, asked for 5"), "{said}");
    assert!(!said.contains("values"), "only what was given is compared: {said}");
    let without = [&["append", "a", "--values", "json"], at].concat();
    assert_eq!(millstream(&without, "").status.code(), Some(2));
    run(&["logs", "create", "b", "--settings", "{\"retention_seconds\": 7}", "--retention-seconds", "8"], "");
    assert!(run(&["logs", "describe", "b", "--json"], "").contains("\"retention_seconds\":8"));
}

#[test]
fn a_log_is_created_by_its_first_append_with_settings_as_flags() {
    let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    settings_as_flags(&["--url", &server.address]);
    settings_as_flags(&["--data", directory.path().to_str().unwrap()]);
}

/// It was refused, while `serve` makes its directory.
#[test]
fn a_directory_for_a_new_log_is_made() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    for verb in [&["append", "a", "--create"][..], &["logs", "create", "a"]] {
        let data = path(verb[0]);
        good(&[verb, &["--data", &data]].concat(), "");
        assert!(good(&["logs", "list", "--data", &data], "").contains("\na "), "{verb:?}");
    }
    for verb in
        [&["append", "a"][..], &["read", "a"], &["logs", "list"], &["append", "a", "no-file", "--create"]]
    {
        let (code, said) = bad(&[verb, &["--data", &path("no")]].concat(), "");
        assert!(code == Some(1) && !place.path().join("no").exists(), "{verb:?}: {said}");
    }
}

/// A lock file was left in it, with which it was no log any more, for nobody.
#[test]
fn the_directory_of_one_log_is_not_taken_for_one_of_many() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_str().unwrap();
    good(&["append", "a", "--create", "--data", path], "1\n");
    let own = data.path().join("a");
    for verb in
        [&["logs", "list"][..], &["read", "a"], &["append", "a", "--create"], &["cursors", "list", "a"]]
    {
        let (code, said) = bad(&[verb, &["--data", own.to_str().unwrap()]].concat(), "1\n");
        assert!(code == Some(1) && said.contains("name the directory that it is in"), "{verb:?}: {said}");
        assert!(!own.join(".lock").exists(), "{verb:?}");
    }
    // As earlier versions have left it.
    std::fs::write(own.join(".lock"), b"").unwrap();
    assert_eq!(good(&["read", "a", "--data", path], ""), "1\n");
    assert!(good(&["verify", own.to_str().unwrap()], "").contains("1 record"));
    std::fs::write(own.join("notes"), b"").unwrap();
    let (_, said) = bad(&["read", "a", "--data", path], "");
    assert!(said.contains("\"notes\", which is no file of a log; move that away"), "{said}");
}

/// An address in the environment made `--data` unusable.
#[test]
fn a_flag_takes_precedence_over_an_address_in_the_environment() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--create-logs"]);
    let other = tempfile::tempdir().unwrap();
    let with = |url: &str, arguments: &[&str]| {
        let mut command = program::millstream();
        command.args(arguments).env("MILLSTREAM_URL", url).output().unwrap()
    };
    let in_directory = ["logs", "list", "--data", other.path().to_str().unwrap()];
    assert!(with("http://127.0.0.1:1", &in_directory).status.success());
    let on_server = ["logs", "list"];
    assert!(with(&server.address, &on_server).status.success());
    assert!(with("http://127.0.0.1:1", &["logs", "list", "--url", &server.address]).status.success());
    assert!(!with("http://127.0.0.1:1", &on_server).status.success());
}

/// It was for `serve` only.
#[test]
fn a_directory_in_the_environment_is_used_unless_an_address_is_given() {
    let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    let with = |url: &str, arguments: &[&str]| {
        let mut command = program::millstream();
        command.args(arguments).env("MILLSTREAM_URL", url).env("MILLSTREAM_DATA", directory.path());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(with("", &["logs", "create", "here"]).0, Some(0));
    let is_there = |(code, said): (Option<i32>, String)| {
        assert_eq!(code, Some(0), "{said}");
        said.contains("here")
    };
    assert!(is_there(with("", &["logs", "list"])));
    let elsewhere = data.path().with_extension("other");
    assert!(!is_there(with(&server.address, &["logs", "list"])), "an address goes before it");
    assert!(!is_there(with("", &["logs", "list", "--url", &server.address])), "and so does a flag");
    std::fs::create_dir(&elsewhere).unwrap();
    assert!(!is_there(with("", &["logs", "list", "--data", elsewhere.to_str().unwrap()])));
    std::fs::remove_dir_all(&elsewhere).unwrap();
    assert_eq!(with("", &["bench", "--session"]).0, Some(2));
    let _server = Server::start(directory.path(), &[]);
    let (code, said) = with("", &["logs", "list"]);
    assert!(code == Some(1) && said.contains("MILLSTREAM_DATA names it") && said.contains("--url"), "{said}");
}

/// A list was read as the members of the settings, one after the other.
#[test]
fn settings_are_a_json_object_and_nothing_else() {
    let data = tempfile::tempdir().unwrap();
    let at = ["--data", data.path().to_str().unwrap()];
    for settings in ["[]", "[\"memory\"]", "null", "7", "{\"values\":5}", "{\"unknown\":1}"] {
        let output = millstream(&[&["logs", "create", "a", "--settings", settings][..], &at].concat(), "");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains("--settings"), "{settings}: {said}");
    }
    assert!(!good(&[&["logs", "list", "--json"][..], &at].concat(), "").contains("\"a\""));
}

/// It printed what was there, and ended as if it had followed.
#[test]
fn only_a_log_of_a_server_is_followed() {
    let data = tempfile::tempdir().unwrap();
    let at = ["--data", data.path().to_str().unwrap()];
    good(&[&["append", "a", "--create"][..], &at].concat(), "one\n");
    let (code, said) = bad(&[&["tail", "-f", "a"][..], &at].concat(), "");
    assert!(code == Some(2) && said.contains("--follow takes a server"), "{said}");
}

/// Cursors were there for programs only.
fn cursors(at: &[&str]) {
    let run = |arguments: &[&str]| good(&[arguments, at].concat(), "");
    let fail = |arguments: &[&str]| {
        let (code, said) = bad(&[arguments, at].concat(), "");
        assert_eq!(code, Some(1), "{said}");
        said
    };
    good(&[&["append", "c", "--create"], at].concat(), "one\ntwo\nthree\n");
    assert_eq!(run(&["cursors", "list", "c", "--json"]), "");
    for missing in
        [["cursors", "get", "c", "x"], ["cursors", "remove", "c", "x"], ["read", "c", "--cursor", "x"]]
    {
        assert!(fail(&missing).contains("has no cursor named \"x\""));
    }
    let set = run(&["cursors", "set", "c", "x", "1", "--expect", "none"]);
    assert!(set.lines().nth(1).unwrap().split_whitespace().eq(["x", "1", "2"]), "{set}");
    assert!(fail(&["cursors", "set", "c", "x", "2", "--expect", "none"]).contains("the cursor is at 1"));
    assert!(fail(&["cursors", "set", "c", "x", "2", "--expect", "0"]).contains("the cursor is at 1"));
    assert!(fail(&["cursors", "set", "c", "x", "4"]).contains("the log ends at"));
    assert_eq!(run(&["read", "c", "--cursor", "x"]), "two\nthree\n");
    assert_eq!(run(&["tail", "c", "--cursor", "x"]), "two\nthree\n");
    run(&["cursors", "set", "c", "x", "-1", "--expect", "1"]);
    let got: serde_json::Value = serde_json::from_str(&run(&["cursors", "get", "c", "x", "--json"])).unwrap();
    assert_eq!((&got["name"], &got["offset"], &got["lag"]), (&"x".into(), &2.into(), &1.into()));
    run(&["cursors", "set", "c", "a", "latest"]);
    let listed = run(&["cursors", "list", "c"]);
    let names: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["cursor", "a", "x"]);
    let removed = run(&["cursors", "remove", "c", "x", "--json"]);
    assert_eq!(removed, "{\"cursor\":\"x\",\"log\":\"c\",\"removed\":true}\n");
    assert_eq!(run(&["cursors", "remove", "c", "a"]), "");
    run(&["cursors", "set", "c", "a", "latest"]);
    assert!(fail(&["tail", "c", "--cursor", "x"]).contains("has no cursor"));
    for none in [["cursors", "list", "no"].as_slice(), &["cursors", "get", "no", "x"]] {
        assert!(fail(none).contains("there is no log named \"no\""));
    }
    let both = [&["read", "c", "--cursor", "a", "--offset", "0"], at].concat();
    assert_eq!(millstream(&both, "").status.code(), Some(2));
}

#[test]
fn cursors_are_set_listed_read_from_and_removed_with_a_server_and_in_a_directory() {
    let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    let at = ["--url", &server.address];
    cursors(&at);
    cursors(&["--data", directory.path().to_str().unwrap()]);
    let mut child = program::millstream()
        .args([&["tail", "-f", "c", "--cursor", "a"], &at[..]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    good(&[&["append", "c"], &at[..]].concat(), "four\n");
    let line = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(line, "four");
}

/// The address of something that gives these answers, one after the other, and is then away.
fn answering(answers: Vec<String>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, mut asked) = (listener.accept().unwrap().0, Vec::new());
            while !(asked.ends_with(b"}") || asked.starts_with(b"GET ") && asked.ends_with(b"\r\n\r\n")) {
                let mut some = [0; 1 << 14];
                let read = stream.read(&mut some).unwrap();
                asked.extend_from_slice(&some[..read]);
            }
            let (head, length) = ("HTTP/1.1 200 OK\r\nContent-Type: application/json", answer.len());
            let head = format!("{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            stream.write_all((head + &answer).as_bytes()).unwrap();
        }
    });
    address
}

/// It was done, and then reported as a failure that does not say so.
#[test]
fn what_was_done_is_said_also_if_the_server_is_away_right_afterwards() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let at = ["--url", &server.address];
    good(&[&["append", "t", "--create"], &at[..]].concat(), "one\ntwo\nthree\n");
    let answer = |method: &str, target: &str, body: &str| {
        server.connect().request(method, &format!("/v1/logs/t{target}"), body.as_bytes()).unwrap().body
    };
    let described = answer("GET", "", "");
    let set = answer("PUT", "/cursors/x", r#"{"offset":1}"#);
    for (verb, answered) in [
        (&["cursors", "set", "t", "x", "1"][..], set.clone()),
        (&["cursors", "set", "t", "x", "1", "--expect", "0"], set),
        (&["logs", "create", "t"], described.clone()),
    ] {
        let shown = good(&[verb, &["--url", &answering(vec![answered])]].concat(), "");
        assert!(shown.lines().count() == 2 && shown.contains(verb[3.min(verb.len() - 1)]), "{shown}");
    }
    let address = answering(vec![described, r#"{"first_offset":3}"#.to_owned()]);
    let (code, said) = bad(&["logs", "trim", "t", "3", "--url", &address], "");
    assert_eq!(code, Some(1));
    assert!(said.contains("the first offset of t is 3 now, but it cannot be described: "), "{said}");
}

/// Some said "cannot be reached", some that the answer makes no sense, some nothing but a number; and `logs delete` that it
/// had deleted the log.
#[test]
fn an_address_that_is_not_a_millstream_servers_is_said_to_be_none() {
    for answer in [
        "HTTP/1.0 404 File not found\r\nContent-Type: text/html\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>",
        "HTTP/1.1 501 Unsupported method ('POST')\r\nConnection: close\r\n\r\n<html>",
        "SSH-2.0-OpenSSH_9.6\r\n",
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1 << 14]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        for verb in [
            &["append", "a"][..],
            &["append", "a", "--create"],
            &["append", "a", "--create", "--values", "json"],
            &["append", "a", "--import", "i"],
            &["read", "a"],
            &["read", "a", "--offset", "1"],
            &["read", "a", "--since", "1h"],
            &["read", "a", "--cursor", "c"],
            &["tail", "a"],
            &["tail", "-f", "a"],
            &["logs", "list"],
            &["logs", "create", "a"],
            &["logs", "describe", "a"],
            &["logs", "delete", "a"],
            &["logs", "trim", "a", "1"],
            &["cursors", "list", "a"],
            &["cursors", "get", "a", "c"],
            &["cursors", "set", "a", "c", "1"],
            &["cursors", "remove", "a", "c"],
        ] {
            let (code, said) = bad(&[verb, &["--url", &address]].concat(), "");
            assert!(code == Some(1) && said.contains("a Millstream server"), "{verb:?} {answer:?}: {said}");
        }
    }
}

/// It was answered as if something had been dropped, also beyond the end.
#[test]
fn trimming_that_drops_nothing_says_so() {
    let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    for at in [["--url", &server.address], ["--data", directory.path().to_str().unwrap()]] {
        good(&[&["append", "t", "--create"], &at[..]].concat(), "one\ntwo\nthree\n");
        let output = millstream(&[&["logs", "trim", "t", "2"], &at[..]].concat(), "");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && said.starts_with("nothing was dropped"), "{at:?}: {said}");
        let json: serde_json::Value =
            serde_json::from_str(&good(&[&["logs", "trim", "t", "2", "--json"], &at[..]].concat(), ""))
                .unwrap();
        assert_eq!((&json["first_offset"], &json["dropped"]), (&0.into(), &0.into()), "{at:?}");
        let output = millstream(&[&["logs", "trim", "t", "0"], &at[..]].concat(), "");
        assert!(output.status.success() && output.stderr.is_empty(), "there was nothing to drop");
        let (code, said) = bad(&[&["logs", "trim", "t", "4"], &at[..]].concat(), "");
        assert!(code == Some(1) && said.contains("ends at 3, before"), "{said}");
        let output = millstream(&[&["logs", "trim", "t", "3", "--json"], &at[..]].concat(), "");
        let trimmed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "all records are dropped");
        assert_eq!((&trimmed["first_offset"], &trimmed["next_offset"]), (&3.into(), &3.into()));
        assert_eq!(trimmed["dropped"], 3, "{at:?}");
    }
}

/// It printed nothing.
#[test]
fn deleting_a_log_says_so_in_json_if_asked() {
    let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    for at in [["--url", &server.address], ["--data", directory.path().to_str().unwrap()]] {
        good(&[&["logs", "create", "a"], &at[..]].concat(), "");
        let deleted = good(&[&["logs", "delete", "a", "--json"], &at[..]].concat(), "");
        assert_eq!(deleted, "{\"deleted\":true,\"log\":\"a\"}\n", "{at:?}");
        let (code, said) = bad(&[&["logs", "delete", "a", "--json"], &at[..]].concat(), "");
        assert!(code == Some(1) && said.contains("there is no log named"), "{said}");
    }
}
