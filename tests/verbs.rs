//! The commands of the command line, used with a running server and with a directory.

mod support;

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
};
use support::Server;

fn millstream(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
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

fn lines(count: u32) -> String {
    (0..count).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat()
}

fn each_verb(at: &[&str]) {
    let run = |arguments: &[&str], input: &str| good(&[arguments, at].concat(), input);
    assert!(run(&["logs", "create", "events"], "").contains("events"));
    assert_eq!(run(&["append", "events"], "one\r\n\nthree"), "3 records appended to events\n");
    assert_eq!(run(&["read", "events"], ""), "one\n\nthree\n");
    assert_eq!(run(&["read", "events", "--offset", "1", "--limit", "1"], ""), "\n");
    let json = run(&["append", "events", "--format", "ndjson", "--json"], "{\"a\": 1}\n\n");
    assert_eq!(json, "{\"log\":\"events\",\"records\":1}\n");
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
        let arguments = ["append", "a", "--producer", "import", "--batch-bytes", "10000", "--url", &url];
        good(&arguments, part)
    };
    // As if the import had been interrupted after this much; it ends where a batch ends.
    let mut end = 0;
    let mut size = 0;
    for line in lines.split_inclusive('\n').take(9_000) {
        if size + line.len() > 10_000 {
            end += size;
            size = 0;
        }
        size += line.len();
    }
    import(&server, &lines[..end]);
    server.kill();
    server = Server::start(data.path(), &["--create-logs"]);
    for _ in 0..2 {
        import(&server, &lines);
        assert!(good(&["read", "a", "--url", &format!("http://{}", server.address)], "") == lines);
    }
}

#[test]
fn following_goes_on_over_a_restart_of_the_server() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let (url, address) = (format!("http://{}", server.address), server.address.clone());
    good(&["logs", "create", "a", "--url", &url], "");
    good(&["append", "a", "--url", &url], "before\n");
    let mut child = Command::new(env!("CARGO_BIN_EXE_millstream"))
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

fn start_at(data: &Path, address: &str) -> Server {
    Server::start(data, &["--listen", address])
}

#[test]
fn what_cannot_be_reached_or_is_wrong_is_said_in_one_line() {
    let (code, said) = bad(&["read", "a", "--url", "http://127.0.0.1:1"], "");
    assert!(code == Some(1) && said.contains("is the server running?"), "{said}");
    let (code, said) = bad(&["read", "a", "--url", "ftp://x"], "");
    assert!(code == Some(1) && said.contains("not an address"), "{said}");
    assert_eq!(bad(&["logs", "list", "--data", "/no/such"], "").0, Some(1));
    assert_eq!(millstream(&["read", "a", "--url", "http://x", "--data", "y"], "").status.code(), Some(2));
    assert!(good(&["completions", "bash"], "").contains("complete -F _millstream"));
}
