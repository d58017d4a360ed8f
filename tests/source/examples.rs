//! The programs of `examples/`, which docs/embedding.md and README.md show: each does what it says, and checks it itself.

use std::process::Command;

/// Runs an example in a new directory, `times` times; returns what it printed.
fn run(name: &str, times: usize) -> String {
    let dir = tempfile::tempdir().unwrap();
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().with_file_name("examples").join(name);
    let mut said = String::new();
    for _ in 0..times {
        let output = Command::new(&program).arg(dir.path().join("data")).output().unwrap_or_else(|error| {
            panic!("{}: {error}; `cargo build --examples` builds it", program.display())
        });
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {out}{err}");
        said += &out;
    }
    said
}

#[test]
fn a_key_value_store_continues_where_it_was_and_its_checkpoints_free_the_log() {
    let said = run("key_value", 3);
    let records = |run: usize| -> u64 {
        let line = said.lines().nth(run).unwrap_or_else(|| panic!("{said}"));
        line.split(' ').nth(4).and_then(|records| records.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    };
    assert_eq!((records(0), records(1), records(2)), (1002, 101, 101 + 1002), "{said}");
}

#[test]
fn ten_thousand_appends_at_once_are_all_durable() {
    assert!(run("many_appends", 2).contains("10000 appends"));
}

#[test]
fn consumers_continue_where_they_were() {
    let said = run("consumers", 3);
    assert_eq!(said.matches("has processed 4000 records").count(), 6, "{said}");
}

#[test]
fn an_import_that_is_killed_three_times_stores_each_line_once() {
    let said = run("exactly_once", 1);
    assert_eq!(said.matches("killed after").count(), 3, "{said}");
    assert!(said.ends_with("30000 lines, each stored once\n"), "{said}");
}

#[test]
fn a_log_with_little_memory_takes_little_and_a_bounded_part_of_the_disk() {
    assert!(run("small_memory", 2).contains("of memory more than before"));
}
