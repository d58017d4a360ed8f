//! What the commands do when they fail: with a server and with a directory the same exit code, the same words, and with
//! `--json` the same code.

use super::{in_both, run};
use std::io::BufRead;

/// The exit code of a command, and what it says on standard error.
fn failed(arguments: &[&str], at: &[&str]) -> (Option<i32>, String) {
    let output = run(&[arguments, at].concat(), b"1\n");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
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
        assert!(
            run(&[&["logs", "list"], at].concat(), b"").stdout.lines().count() <= 2,
            "no log was created"
        );
    });
    let help = String::from_utf8(run(&["--help"], b"").stdout).unwrap();
    assert!(help.contains("Exit codes:\n  0 ") && help.contains("\n  2 ") && help.contains("130"), "{help}");
}

/// What cannot be done, the code of that, and the exit code. There is a log `a` with three records and a cursor `c`, and a
/// log `small`, of small segments.
const CANNOT: &[(&[&str], &str, i32)] = &[
    (&["append", "no"], "log_not_found", 1),
    (&["read", "no"], "log_not_found", 1),
    (&["read", "no", "--offset", "0"], "log_not_found", 1),
    (&["read", "no", "--since", "1h"], "log_not_found", 1),
    (&["tail", "no"], "log_not_found", 1),
    (&["logs", "describe", "no"], "log_not_found", 1),
    (&["logs", "delete", "no"], "log_not_found", 1),
    (&["logs", "trim", "no", "1"], "log_not_found", 1),
    (&["cursors", "list", "no"], "log_not_found", 1),
    (&["cursors", "set", "no", "c", "1"], "log_not_found", 1),
    (&["read", ".a"], "invalid_log_name", 2),
    (&["append", "a/b"], "invalid_log_name", 2),
    (&["logs", "create", ".a"], "invalid_log_name", 2),
    (&["cursors", "set", "a", ".c", "1"], "invalid_cursor", 2),
    (&["cursors", "get", "a", "/"], "invalid_cursor", 2),
    (&["cursors", "remove", "no", "-"], "invalid_cursor", 2),
    (&["cursors", "get", "a", "x"], "cursor_not_found", 1),
    (&["cursors", "remove", "a", "x"], "cursor_not_found", 1),
    (&["tail", "a", "--cursor", "x"], "cursor_not_found", 1),
    (&["cursors", "set", "a", "c", "4"], "offset_beyond_end", 1),
    (&["cursors", "set", "a", "c", "2", "--expect", "0"], "unexpected_cursor", 1),
    (&["cursors", "set", "a", "x", "2", "--expect", "1"], "unexpected_cursor", 1),
    (&["read", "a", "--offset", "4"], "offset_beyond_end", 1),
    (&["logs", "trim", "a", "4"], "offset_beyond_end", 1),
    (&["logs", "create", "a", "--values", "json"], "log_exists", 1),
    (&["append", "a", "--create", "--record-bytes", "5"], "log_exists", 1),
    (&["logs", "create", "b", "--segment-bytes", "1"], "invalid_settings", 2),
    (&["append", "b", "--create", "--segment-bytes", "2GiB"], "invalid_settings", 2),
    (&["append", "small", "LARGE", "--import", "i"], "record_too_large", 1),
    (&["append", "small", "TOO LARGE"], "record_too_large", 1),
    (&["append", "a", "WRONG", "--format", "ndjson"], "not_json", 1),
    (&["append", "a", "/no/such"], "failed", 1),
    (&["read", "a", "--since", "yesterday"], "usage", 2),
    (&["append", "a", "--values", "json"], "usage", 2),
    (&["append", "a", "--import", ""], "usage", 2),
    (&["tail", "a", "--nonsense"], "usage", 2),
];

/// Errors were text, except that of `append` in its report, which had no code; and many were in other words with `--url` than
/// with `--data`.
#[test]
fn a_failure_has_the_same_words_and_code_wherever_the_log_is_and_is_json_if_asked() {
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(place.path().join(name), text).unwrap();
        place.path().join(name).to_str().unwrap().to_owned()
    };
    // So large that a segment has room for the record, and not for a batch of an import.
    let large = file("large", &format!("1\n2\n{}\n", "x".repeat((64 << 10) - 28)));
    let too_large = file("too-large", &"x".repeat(64 << 10));
    let wrong = file("wrong", "{\n");
    let all = std::cell::RefCell::new(Vec::<Vec<String>>::new());
    in_both(|at| {
        let good =
            |arguments: &[&str]| assert!(run(&[arguments, at].concat(), b"1\n2\n3\n").status.success());
        good(&["append", "a", "--create"]);
        good(&["cursors", "set", "a", "c", "1"]);
        good(&["logs", "create", "small", "--segment-bytes", "64KiB"]);
        let mut lines = Vec::new();
        for (arguments, code, exit_code) in CANNOT {
            let arguments: Vec<&str> = arguments
                .iter()
                .map(|&argument| match argument {
                    "LARGE" => &*large,
                    "TOO LARGE" => &too_large,
                    "WRONG" => &wrong,
                    other => other,
                })
                .collect();
            let json = [&arguments[..], &["--json"]].concat();
            let output = run(&[&json, at].concat(), b"1\n");
            let line = String::from_utf8(output.stderr).unwrap();
            assert_eq!(line.lines().count(), 1, "{json:?} {at:?}: {line}");
            let said: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(
                (said["code"].as_str(), output.status.code()),
                (Some(*code), Some(*exit_code)),
                "{line}"
            );
            let error = said["error"].as_str().unwrap();
            if arguments[0] == "append" && *code != "usage" {
                let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!((&report["code"], &report["error"]), (&said["code"], &said["error"]));
            } else {
                assert!(output.stdout.is_empty(), "{json:?} {at:?}");
            }
            if *code != "usage" {
                let (text_code, text) = failed(&arguments, at);
                assert_eq!((text_code, text), (Some(*exit_code), format!("millstream: {error}\n")), "{at:?}");
            }
            lines.push(line);
        }
        all.borrow_mut().push(lines);
    });
    let all = all.into_inner();
    for (there, here) in all[0].iter().zip(&all[1]) {
        assert_eq!(there, here);
    }
}

/// These have no `--url`, or nothing to do with a log.
#[test]
fn other_commands_also_say_in_json_what_has_failed() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().to_str().unwrap();
    for (arguments, code, exit_code) in [
        (&["verify", "/no/such"][..], "failed", 2),
        (&["repair", "/no/such"], "failed", 1),
        (&["repair"], "usage", 2),
        (&["read", "a", "--data", "/no/such"], "failed", 1),
        (&["read", "a", "--url", "127.0.0.1:1"], "unreachable", 1),
        (&["read", "a", "--url", "ftp://x"], "usage", 2),
        (&["bench", "--url", "127.0.0.1:1"], "unreachable", 1),
        (&["bench", "--data", dir], "log_exists", 1),
    ] {
        if code == "log_exists" {
            assert!(run(&["logs", "create", "bench-0", "--data", dir], b"").status.success());
        }
        let output = run(&[arguments, &["--json"]].concat(), b"");
        let line = String::from_utf8(output.stderr).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((said["code"].as_str(), output.status.code()), (Some(code), Some(exit_code)), "{line}");
        assert!(line.lines().count() == 1 && !said["error"].as_str().unwrap().is_empty(), "{line}");
    }
}

/// All said that it should be created first, also `logs delete`.
#[test]
fn a_log_that_does_not_exist_is_advised_about_as_the_command_needs_it() {
    in_both(|at| {
        for (arguments, advice) in [
            (&["append", "no"][..], "create it first, or append with --create"),
            (&["logs", "delete", "no"], "there is nothing to delete"),
            (&["read", "no"], "`millstream logs list` lists those that there are"),
            (&["tail", "no"], "`millstream logs list` lists those that there are"),
            (&["cursors", "set", "no", "c", "1"], "`millstream logs list` lists those that there are"),
        ] {
            let expected = format!("millstream: there is no log named \"no\"; {advice}\n");
            assert_eq!(failed(arguments, at), (Some(1), expected), "{arguments:?} {at:?}");
        }
    });
}
