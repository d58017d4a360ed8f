//! What the commands do when they fail: with a server and with a directory the same exit code, the same words, and with
//! `--json` the same code.

mod support;

use std::{
    io::{BufRead, Write},
    process::{Output, Stdio},
};
use support::{Server, program};

fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = program::millstream();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // it may not read all
    child.wait_with_output().unwrap()
}

/// The exit code of a command, and what it says on standard error.
fn failed(arguments: &[&str], at: &[&str]) -> (Option<i32>, String) {
    let output = run(&[arguments, at].concat(), "1\n");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Runs it with a server, and with a directory.
fn in_both(test: impl Fn(&[&str])) {
    let (data, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    for at in [["--url", &server.address], ["--data", directory.path().to_str().unwrap()]] {
        test(&at);
    }
}

/// It was 1 with a server, and some of it also in a directory.
#[test]
fn arguments_that_no_log_takes_are_wrong_usage_wherever_the_log_is() {
    let long = "x".repeat(65);
    in_both(|at| {
        for wrong in [
            &["append", "a", "--create", "--segment-bytes", "1"][..],
            &["append", "a", "--create", "--segment-bytes", "2GiB"],
            &["logs", "create", "a", "--segment-bytes", "1"],
            &["logs", "create", "a", "--settings", "{\"segment_bytes\":1}"],
            &["append", "a", "--create", "--import", ""],
            &["append", "a", "--create", "--import", " x"],
            &["append", "a", "--create", "--import", "é"],
            &["append", "a", "--create", "--import", &long],
            &["read", ".a"],
        ] {
            let (code, said) = failed(wrong, at);
            assert_eq!(code, Some(2), "{wrong:?} {at:?}: {said}");
        }
        assert!(run(&[&["logs", "list"], at].concat(), "").stdout.lines().count() <= 2, "no log was created");
    });
    let help = String::from_utf8(run(&["--help"], "").stdout).unwrap();
    assert!(help.contains("Exit codes:\n  0 ") && help.contains("\n  2 ") && help.contains("130"), "{help}");
}
