//! What the README shows is what comes back: its curl lines, in order, against a new server.

mod support;

use std::process::Command;
use support::Server;

#[test]
fn the_curl_lines_of_the_readme_print_what_it_shows() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no curl here");
        return;
    }
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let shown = readme.split("```console\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut printed = String::new();
    for command in shown.lines().filter(|line| line.starts_with("$ ")) {
        let output = Command::new("sh")
            .args(["-c", &command[2..].replace("localhost:4437", &server.address)])
            .output();
        printed += &[command, &String::from_utf8(output.unwrap().stdout).unwrap()].join("\n");
    }
    assert!(printed.lines().count() > 10);
    assert_eq!(printed, shown);
}
