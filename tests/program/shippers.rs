//! The shippers of `examples/`, which are third-party programs: collectd and syslog-ng send into a server that is
//! killed and started again. Each script checks what is in the log then, and says what is missing or there twice.

use std::process::Command;

/// Runs the script of an example, and returns what it printed; `None` if something that it needs is not installed.
fn run(name: &str) -> Option<String> {
    let script = format!("{}/examples/{name}/run.sh", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "150", &script]).env("MILLSTREAM", env!("CARGO_BIN_EXE_millstream"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.code() == Some(77) {
        eprintln!("!! {}", said.trim_end());
        return None;
    }
    assert!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

#[test]
fn what_collectd_measures_is_stored_once_unless_there_was_no_server() {
    let Some(said) = run("collectd") else { return };
    assert!(said.ends_with("none twice\n"), "{said}");
}

#[test]
fn no_line_that_syslog_ng_ships_is_missing() {
    let Some(said) = run("syslog-ng") else { return };
    assert!(said.contains(" in the log: 0 missing, "), "{said}");
}
