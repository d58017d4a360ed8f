//! The command line: exit code 2 for incorrect usage, 1 for failure (`verify`: 1 for damage, 2 for all else), and a one-line error that says what to do.

use crate::support::program::millstream;
use crate::support::skipped::skipped;
use millstream::{Log, Options};
use std::{path::Path, process::Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = millstream();
    command.env("MILLSTREAM_SHM_DIR", crate::support::shm::dir()).args(arguments).output().unwrap()
}

/// Runs a command that should fail: returns its exit code and its error, which must be one line.
fn failure(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    (output.status.code(), said)
}

fn options() -> Options {
    Options { shm_dir: Some(crate::support::shm::dir().to_owned()), ..Options::default() }
}

fn log_with(dir: &Path, records: u8) {
    let log = Log::open(dir, options()).unwrap();
    for n in 0..records {
        log.append(&[n; 100]).unwrap();
    }
    log.close().unwrap();
}

#[test]
fn each_verb_has_help_with_examples() {
    for verb in ["serve", "append", "read", "tail", "logs", "cursors", "verify", "repair", "completions"] {
        let help = String::from_utf8(run(&[verb, "--help"]).stdout).unwrap();
        assert!(help.contains("Usage: millstream") && help.contains("Examples:\n  "), "{verb}: {help}");
    }
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    for wrong in
        [&["serve", "--durability", "maybe"][..], &["serve", "--listen", "nowhere"], &["verify"], &["mill"]]
    {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

/// Some of these numbers made the server panic, when it started or at each connection, and one became 0.
#[test]
fn a_setting_that_no_server_could_honour_is_wrong_usage() {
    for (flag, numbers) in [
        ("--max-connections", &["0", "18446744073709551615", "18446744073709551359"][..]),
        ("--max-header-bytes", &["0", "4294967296", "18446744073709551615"]),
        ("--header-seconds", &["0", "18446744073709551615"]),
        ("--body-seconds", &["0", "18446744073709551615"]),
        ("--wait-seconds", &["18446744073709551615"]),
        ("--heartbeat-seconds", &["0", "18446744073709551615"]),
        ("--idle-seconds", &["18446744073709551615"]),
        ("--grace-seconds", &["18446744073709551615"]),
        ("--max-body-bytes", &["0", "18446744073709551615"]),
        ("--max-decoded-bytes", &["0", "18446744073709551615"]),
    ] {
        for number in numbers {
            // The data directory is not a directory, so that a server that accepts the number exits as well.
            let output = run(&["serve", "--data", "/dev/null", "--listen", "127.0.0.1:0", flag, number]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{flag} {number}: {said}");
            assert!(said.contains(flag), "{flag} {number}: {said}");
        }
    }
}

/// These values were accepted silently, and kept everybody out; and too little memory was reported as an unusable
/// address.
#[test]
fn impossible_origins_and_hosts_are_wrong_usage_and_too_little_memory_is_named() {
    let serve = |flag: &str, value: &str| {
        // The data directory is not a directory, so that a server that accepts the value exits as well.
        run(&["serve", "--data", "/dev/null", "--listen", "127.0.0.1:0", flag, value])
    };
    for (flag, values) in [
        ("--allow-origin", &["nonsense", "", "https://", "https://a/path", "http://a:x", "://a"][..]),
        ("--allow-host", &["x:y:z", "", "a b", "http://a", "*.", "a:99999", "a/"]),
    ] {
        for value in values {
            let output = serve(flag, value);
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(2) && said.contains(flag), "{flag} {value:?}: {said}");
        }
    }
    for (flag, values) in [
        (
            "--allow-origin",
            &["*", "null", "https://a.example", "http://[::1]:80", "http://localhost:8080"][..],
        ),
        ("--allow-host", &["*", "*.example.com", "log", "log:4437", "::1", "[::1]", "[::1]:80", "10.0.0.1"]),
    ] {
        for value in values {
            assert_eq!(serve(flag, value).status.code(), Some(1), "{flag} {value:?}"); // because there is no directory
        }
    }
    let output = serve("--max-http-memory-bytes", "1");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(
        failure(&["serve", "--data", "/no", "--listen", "127.0.0.1:0", "--memory-bytes", "1"]).0,
        Some(2)
    );
    assert!(said.contains("--max-http-memory-bytes") && !said.contains("address"), "{said}");
}

#[test]
fn directories_that_cannot_be_served_are_distinguished() {
    let place = tempfile::tempdir().unwrap();
    let serve =
        |data: &Path| failure(&["serve", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);

    let foreign = place.path().join("foreign");
    std::fs::create_dir_all(foreign.join("default")).unwrap();
    std::fs::write(foreign.join("default/thesis.txt"), "precious").unwrap();
    let (code, said) = serve(&foreign);
    assert!(
        code == Some(1) && said.contains("not a Millstream log") && said.contains("thesis.txt"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(foreign.join("default")).unwrap().count(), 1, "something was put there");

    let file = place.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (code, said) = serve(&file);
    assert!(code == Some(1) && said.contains("cannot make the directory"), "{said}");

    let used = place.path().join("used");
    let held = Log::open(used.join("default"), options()).unwrap();
    let (code, said) = serve(&used);
    assert!(code == Some(1) && said.contains("in use by another process"), "{said}");
    drop(held);

    // Nobody may write there, not even root.
    #[cfg(target_os = "linux")]
    {
        let (code, said) = serve(Path::new("/proc/millstream"));
        assert!(code == Some(1) && said.contains("cannot make the directory /proc/millstream"), "{said}");
    }

    let newer = place.path().join("newer");
    log_with(&newer.join("default"), 1);
    let segment = newer.join("default/00000000000000000000.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..60]).to_le_bytes();
    bytes[60..64].copy_from_slice(&crc);
    std::fs::write(&segment, &bytes).unwrap();
    let (code, said) = serve(&newer);
    assert!(code == Some(1) && said.contains("has format 9") && said.contains("newer millstream"), "{said}");
    assert!(std::fs::read(&segment).unwrap() == bytes, "it was changed");
}

#[test]
fn an_address_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = tempfile::tempdir().unwrap();
    let (code, said) = failure(&["serve", "--listen", &address, "--data", place.path().to_str().unwrap()]);
    assert!(code == Some(1) && said.contains("--listen"), "{said}");
}

#[test]
fn verify_reports_damage_and_repair_fixes_it() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_str().unwrap();
    log_with(place.path(), 10);
    let good = run(&["verify", dir]);
    assert_eq!(good.status.code(), Some(0));
    assert!(String::from_utf8(good.stdout).unwrap().starts_with("10 records"));

    let segment = place.path().join("00000000000000000000.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 3 * 128 + 50] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let bad = run(&["verify", dir]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8(bad.stdout).unwrap().contains("damaged: offset 3"));
    let json = |args: &[&str]| -> serde_json::Value { serde_json::from_slice(&run(args).stdout).unwrap() };
    let found = json(&["verify", dir, "--json"]);
    assert_eq!((&found["next_offset"], &found["segments"]), (&10.into(), &1.into()));
    assert_eq!(
        (&found["damage"][0]["first_offset"], &found["damage"][0]["next_offset"]),
        (&3.into(), &4.into())
    );

    let repaired = run(&["repair", dir]);
    assert_eq!(repaired.status.code(), Some(0));
    assert!(String::from_utf8(repaired.stdout).unwrap().contains("kept as it was"));
    assert_eq!(run(&["verify", dir]).status.code(), Some(0));
    assert_eq!(json(&["repair", dir, "--json"]), serde_json::json!({"damage": [], "kept": []}));
    let after = run(&["verify", dir]);
    let printed = String::from_utf8(after.stdout).unwrap();
    assert!(printed.starts_with("10 records (offsets 0 to 9), 1 segment\n"), "{printed}");
    assert!(printed.contains("marked so by repair: 1 record\n"), "{printed}");
    assert_eq!(json(&["verify", dir, "--json"])["lost"], 1);
    // Also where they are before others that are damaged now, or after them.
    let bytes = std::fs::read(&segment).unwrap();
    for (record, at) in [(1, 128), (6, 5 * 128 + 24)] {
        let mut bytes = bytes.clone();
        bytes[4096 + at + 50] ^= 1;
        std::fs::write(&segment, &bytes).unwrap();
        let found = json(&["verify", dir, "--json"]);
        assert_eq!((&found["lost"], &found["damage"][0]["first_offset"]), (&1.into(), &record.into()));
    }
    std::fs::write(&segment, &bytes).unwrap();
    let log = Log::open(place.path(), options()).unwrap();
    assert!(log.read(3).unwrap().unwrap().is_lost());
    assert_eq!(log.read(4).unwrap().unwrap().value(), [4; 100]);
    assert_eq!(log.append(b"on").unwrap(), 10);
}

/// A script could not tell a log that is damaged from one that `verify` could not look at; and of a log that could be written to, it
/// said that `repair` makes it writable.
#[test]
fn verify_is_1_for_damage_and_2_if_it_could_not_look() {
    assert_eq!(failure(&["verify", "/no/such/directory"]).0, Some(2));
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_str().unwrap();
    std::fs::write(place.path().join("thesis.txt"), "precious").unwrap();
    assert_eq!(failure(&["verify", dir]).0, Some(2));
    std::fs::remove_file(place.path().join("thesis.txt")).unwrap();
    log_with(place.path(), 10);
    let log = Log::open(place.path(), options()).unwrap();
    let (code, said) = failure(&["verify", dir]);
    assert!(code == Some(2) && said.contains("in use"), "{said}");
    log.roll().unwrap();
    log.append(b"in the next segment").unwrap();
    log.close().unwrap();
    Log::open(place.path(), options()).unwrap().close().unwrap(); // which seals the first one
    let segment = place.path().join("00000000000000000000.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 3 * 128 + 50] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let log = Log::open(place.path(), options()).unwrap();
    log.append(b"it can be written to").unwrap();
    log.close().unwrap();
    let (code, said) = failure(&["verify", dir]);
    assert!(
        code == Some(1) && said.contains("millstream repair") && !said.contains("writable again"),
        "{said}"
    );
}

#[test]
fn settings_come_from_flags_then_the_environment_then_a_file() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("millstream.toml");
    let printed = |text: &str, flags: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let mut command = millstream();
        command.args(["serve", "--print-config", "--config", file.to_str().unwrap()]).args(flags);
        command.env("MILLSTREAM_MAX_BODY_BYTES", "222").output().unwrap()
    };
    let text = "listen = \"127.0.0.1:1\"\nmax_body = 111\nmax_header = 9000\ncreate_logs = true\ndurability = \"memory\"\n";
    let output = printed(text, &["--max-header-bytes", "9999"]);
    let said = String::from_utf8(output.stdout).unwrap();
    for line in [
        "listen = \"127.0.0.1:1\" # file or default",
        "max_body_bytes = 222 # environment",
        "max_header_bytes = 9999 # flag",
        "create_logs = true # file or default",
        "durability = \"memory\" # file or default",
        "max_connections = 4096 # file or default",
    ] {
        assert!(said.lines().any(|found| found == line), "{line} is not in\n{said}");
    }
    // The output is a valid file.
    let again = printed(&said, &[]);
    assert!(String::from_utf8(again.stdout).unwrap().contains("max_header_bytes = 9999 # file or default"));
    for (wrong, is_one_line) in [
        ("colour = 1", true),
        ("max_body_bytes = [1]", true),
        ("max_body_bytes = ", true),
        ("max_header_bytes = \"x\"", false),
    ] {
        let output = printed(wrong, &[]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(!is_one_line || String::from_utf8(output.stderr).unwrap().lines().count() == 1);
    }
}

/// As root, it did not find the memory that the log's server had left, and gave it up; and it wrote files that the
/// server could not open.
#[test]
fn a_log_of_another_user_is_repaired_only_with_a_flag() {
    if !rustix::process::geteuid().is_root() {
        skipped("only root can give a file to another user");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_str().unwrap();
    log_with(place.path(), 10);
    std::os::unix::fs::chown(place.path().join("00000000000000000000.seg"), Some(4321), None).unwrap();
    let looked = run(&["verify", dir]);
    assert_eq!(looked.status.code(), Some(0));
    assert!(String::from_utf8(looked.stderr).unwrap().contains("4321"));
    let (code, said) = failure(&["repair", dir]);
    assert!(code == Some(1) && said.contains("sudo -u '#4321' millstream repair"), "{said}");
    assert_eq!(run(&["repair", dir, "--any-user"]).status.code(), Some(0));
}

/// A directory of logs was said to be no log, and to be empty it if it was to become one.
#[test]
fn verify_and_repair_say_which_logs_a_directory_has() {
    let place = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::create_dir(place.path().join(name)).unwrap();
        log_with(&place.path().join(name), 1);
    }
    for verb in ["verify", "repair"] {
        let (code, said) = failure(&[verb, place.path().to_str().unwrap()]);
        let one = place.path().join("a").display().to_string();
        let expected = if verb == "verify" { 2 } else { 1 };
        assert!(code == Some(expected) && said.contains("(a, b):") && said.contains(&one), "{said}");
    }
}

/// Sizes had to be numbers of bytes, and addresses numbers.
#[test]
fn sizes_and_addresses_are_accepted_as_people_write_them() {
    let printed = |flags: &[&str]| {
        let output = run(&[&["serve", "--print-config"], flags].concat());
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, said) =
        printed(&["--listen", "localhost:6213", "--segment-bytes", "64MiB", "--max-body-bytes", "1.5MB"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("listen = \"localhost:6213\" # flag") && said.contains("\"64MiB\" # flag"),
        "{said}"
    );
    for (flag, value) in [("--listen", "localhost"), ("--segment-bytes", "many"), ("--max-body-bytes", "0B")]
    {
        let (code, said) = printed(&[flag, value]);
        assert!(code == Some(2) && said.contains(flag), "{said}");
    }
    let place = tempfile::tempdir().unwrap();
    let blocker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("localhost:{}", blocker.local_addr().unwrap().port());
    let (code, said) = failure(&["serve", "--data", place.path().to_str().unwrap(), "--listen", &address]);
    assert!(code == Some(1) && said.contains(&address), "{said}");
}

#[test]
fn settings_still_work_by_their_old_names() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("millstream.toml");
    std::fs::write(&file, "max_decoded = 333\n").unwrap();
    let mut command = millstream();
    command.args(["serve", "--print-config", "--config", file.to_str().unwrap(), "--max-header", "9999"]);
    command.args(["--images", "/somewhere"]).env("MILLSTREAM_MAX_BODY", "222");
    let printed = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let expected = [
        "max_body_bytes = 222",
        "max_header_bytes = 9999",
        "max_decoded_bytes = 333",
        "shm_dir = \"/somewhere\"",
    ];
    for line in expected {
        assert!(printed.contains(line), "{line}: {printed}");
    }
}

/// It was ignored without a word.
#[test]
fn a_variable_that_is_no_setting_is_named_in_a_warning() {
    let mut command = millstream();
    // The data directory is not a directory, so that the server exits.
    command.args(["serve", "--data", "/dev/null", "--listen", "127.0.0.1:0"]);
    command.env("MILLSTREAM_SHM_DIR", crate::support::shm::dir()).env("MILLSTREAM_GRACE_SECOND", "1");
    // These are known: two names of settings, an old name, and what is not of `serve`.
    for known in ["MILLSTREAM_MAX_BODY", "MILLSTREAM_IDLE_SECONDS", "MILLSTREAM_BODY_SECONDS"] {
        command.env(known, "100000");
    }
    command.env("MILLSTREAM_URL", "localhost").env("MILLSTREAM_LOG_FILTER", "warn");
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let warned: Vec<_> = said.lines().filter(|line| line.contains("no setting has this variable")).collect();
    assert!(warned.len() == 1 && warned[0].contains("variable=MILLSTREAM_GRACE_SECOND"), "{said}");
}

/// What was done was done, and then the command panicked; and help that nobody got was a success.
#[test]
fn an_output_error_is_one_line() {
    let data = tempfile::tempdir().unwrap();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let store =
        millstream::store::Store::open(data.path(), millstream::store::StoreOptions::default()).unwrap();
    store.create("a", &millstream::store::LogSettings::default()).unwrap();
    store.get("a").unwrap().append(b"x").unwrap();
    store.close().unwrap();
    let (dir, log) = (data.path().to_str().unwrap(), data.path().join("a"));
    for arguments in [
        &["logs", "list", "--data", dir][..],
        &["logs", "list", "--json", "--data", dir],
        &["append", "a", "/etc/hostname", "--data", dir],
        &["read", "a", "--data", dir],
        &["verify", log.to_str().unwrap()],
        &["verify", "--json", log.to_str().unwrap()],
        &["repair", log.to_str().unwrap()],
        &["completions", "bash"],
        &["serve", "--print-config"],
        &["--version"],
        &["--help"],
        &["help", "append"],
        &["serve", "--help"],
        &["append", "-h"],
        &["logs", "create", "--help"],
        &["verify", "--help"],
    ] {
        let output = millstream().args(arguments).stdout(full()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let looks = arguments[0] == "verify" && arguments[1] != "--help"; // 1 would mean that there is damage
        assert_eq!(output.status.code(), Some(if looks { 2 } else { 1 }), "{arguments:?}: {said}");
        assert!(
            said.contains("cannot write to standard output") && said.lines().count() == 1,
            "{arguments:?}: {said}"
        );
    }
}

/// Where nobody read what it printed, a command was a success whatever it had found, and said nothing.
#[test]
fn what_has_failed_has_failed_also_if_nobody_reads_the_output() {
    let data = tempfile::tempdir().unwrap();
    let log = data.path().join("a");
    std::fs::create_dir(&log).unwrap();
    log_with(&log, 10);
    let unread = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = millstream();
        let output = command
            .env("MILLSTREAM_SHM_DIR", crate::support::shm::dir())
            .args(arguments)
            .stdout(writer)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (dir, log) = (data.path().to_str().unwrap(), log.to_str().unwrap());
    let lines = data.path().join("lines");
    std::fs::write(&lines, "1\n{\n").unwrap();
    let append = ["append", "a", lines.to_str().unwrap(), "--format", "ndjson", "--data", dir];
    let (code, said) = unread(&append);
    assert!(code == Some(1) && said.contains("record 2: the value must be JSON"), "{said}");
    for enough in
        [&["read", "a", "--data", dir][..], &["verify", log], &["logs", "list", "--data", dir], &["--help"]]
    {
        assert_eq!(unread(enough), (Some(0), String::new()), "{enough:?}");
    }
    let segment = data.path().join("a/00000000000000000000.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 3 * 128 + 50] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    assert_eq!(unread(&["verify", log]).0, Some(1));
}

/// It was taken for no filter, without a word; and a directory that does not exist, for none.
#[test]
fn a_filter_or_a_directory_for_memory_that_cannot_be_is_an_error_at_the_start() {
    let data = tempfile::tempdir().unwrap();
    let serve = |name: &str, value: &str| {
        let mut command = millstream();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data", data.path().to_str().unwrap()]);
        let output =
            command.env("MILLSTREAM_SHM_DIR", crate::support::shm::dir()).env(name, value).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = serve("MILLSTREAM_LOG_FILTER", "bogus=foo=bar");
    assert!(code == Some(2) && said.contains("MILLSTREAM_LOG_FILTER is not a filter"), "{said}");
    let (code, said) = serve("MILLSTREAM_SHM_DIR", "/no/such");
    assert!(code == Some(1) && said.contains("there is no directory /no/such (--shm-dir)"), "{said}");
}
