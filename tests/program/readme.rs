//! What the documentation shows is what the server returns: its curl commands run in order, with a new server for each
//! page.
//!
//! `MILLSTREAM_NEW_DOCS=1 cargo test --test program readme` writes what the server returns into the pages.

use crate::support::{Server, skipped::skipped};
use std::process::Command;

/// Removes what differs between runs: times, ids, epochs; and lines of a session between the first and the last one, of which
/// there are as many as there were commits.
fn lasting(text: &str) -> String {
    let between = |line: &&str| {
        let counts = line
            .strip_prefix("{\"records\":")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        counts && !["\"end\"", "\"epoch\"", ":0}"].iter().any(|key| line.contains(key))
    };
    let text: String = text.split_inclusive('\n').filter(|line| !between(line)).collect();
    let mut out = String::new();
    let mut rest = &*text;
    while let Some(at) = ["\"time\":", "\"id\":\"", "\"log_id\":\"", "\"epoch\":"]
        .iter()
        .filter_map(|key| Some(rest.find(key)? + key.len()))
        .min()
    {
        out += &rest[..at];
        rest = rest[at..].trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    out + rest
}

/// The page with the actual output of its commands.
fn run(page: &str, server: &Server) -> String {
    let mut parts = page.split("```console\n");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (commands, rest) = part.split_once("```").unwrap();
        out += "```console\n";
        for command in commands.lines().filter(|line| line.starts_with("$ ")) {
            let real = command[2..].replace("localhost:4437", &server.address);
            let output = Command::new("sh").args(["-c", &real]).output().unwrap();
            out += command;
            out += "\n";
            out += &String::from_utf8(output.stdout).unwrap();
        }
        out += "```";
        out += rest;
    }
    out
}

#[test]
fn the_curl_lines_of_the_docs_print_what_they_show() {
    if Command::new("curl").arg("--version").output().is_err() {
        skipped("there is no curl here");
        return;
    }
    for name in ["README.md", "docs/api.md"] {
        let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(&path).unwrap();
        let data = tempfile::tempdir().unwrap();
        let server = Server::start(data.path(), &[]);
        let real = run(&page, &server);
        assert!(real.lines().filter(|line| line.starts_with("$ ")).count() > 5);
        if std::env::var_os("MILLSTREAM_NEW_DOCS").is_some() {
            std::fs::write(&path, &real).unwrap();
            continue;
        }
        for (shown, real) in lasting(&page).lines().zip(lasting(&real).lines()) {
            assert_eq!(shown, real, "{name}");
        }
        assert_eq!(lasting(&page).lines().count(), lasting(&real).lines().count(), "{name}");
    }
}
