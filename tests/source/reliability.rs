//! `docs/reliability.md` names a test for each guarantee and each finding, and `docs/edges.md` for each thing that went
//! wrong with clients. A name that is not in the source would be worse than none: it would claim that something is shown.

use super::{root, sources};
use std::{collections::BTreeSet, fs};

const NONE: &str = "no test yet";
/// The titles of the last column in tables that name tests.
const COLUMNS: [&str; 3] = ["shown by", "regression test", "test"];

/// The names of the tests in a source file: the functions that are marked as tests.
fn tests_in(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut marked = false;
    for line in source.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        marked |= line.starts_with("#[test]");
        let Some((_, after)) = line.split_once("fn ") else { continue };
        let name = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if std::mem::take(&mut marked) {
            found.insert(name);
        }
    }
    found
}

/// The rows of the tables that name tests, split into cells. Panics at a row outside a table, which is not shown as one:
/// after a blank line, three rows were no longer checked.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    let (mut is_table, mut names_tests) = (false, false);
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let cells = || line.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>();
        if lines.peek().is_some_and(|next| next.starts_with("| ---")) {
            (is_table, names_tests) = (true, cells().last().is_some_and(|last| COLUMNS.contains(last)));
            lines.next();
        } else if !line.starts_with('|') {
            (is_table, names_tests) = (false, false);
        } else if names_tests {
            found.push(cells());
        } else {
            assert!(is_table, "a row outside a table: {line}");
        }
    }
    found
}

#[test]
fn every_test_that_the_pages_name_is_in_the_source() {
    let tests: BTreeSet<String> = ["src", "tests"]
        .iter()
        .flat_map(|dir| sources(&root().join(dir)))
        .flat_map(|path| tests_in(&fs::read_to_string(path).unwrap()))
        .collect();
    assert!(tests.len() > 100, "only {} tests were found in the source", tests.len());
    for (page, least) in [("docs/reliability.md", 25), ("docs/edges.md", 10)] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let rows = rows(&text);
        assert!(rows.len() > least, "only {} rows were found in the tables of {page}", rows.len());
        for row in rows {
            let (what, shown_by) = (row[0], row.last().unwrap());
            let names: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect(); // between backticks
            assert!(!names.is_empty() || *shown_by == NONE, "{what:?}: name a test, or say {NONE:?}");
            for name in names {
                assert!(tests.contains(name), "{what:?} is shown by {name}, and there is no such test");
            }
        }
    }
}

#[test]
fn what_is_not_a_test_is_not_counted_as_one() {
    let source = "#[test]\n#[cfg(unix)]\nfn one() {}\nfn helper() {}\n// #[test]\nfn two() {}\n#[test]\n/// Why.\nfn three() {}";
    assert_eq!(tests_in(source).into_iter().collect::<Vec<_>>(), ["one", "three"]);
    let page =
        "| a | b |\n| --- | --- |\n| no | `row` |\n\n| what | shown by |\n| --- | --- |\n| x | `y` |\n";
    assert_eq!(rows(page), [["x", "`y`"]]);
}
