//! The pages for people who change Millstream name files, functions and tests. A name that is no longer in the source
//! sends them looking for what does not exist.

use super::root;
use std::{
    fs,
    path::{Path, PathBuf},
};

const PAGES: [&str; 5] =
    ["docs/architecture.md", "docs/design.md", "docs/glossary.md", "CONTRIBUTING.md", ".cargo/config.toml"];

/// All files and directories below a directory, relative to the root.
fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() {
            found.extend(below(&path));
        }
        found.push(path.strip_prefix(root()).unwrap().to_owned());
    }
    found
}

/// The source: each file with its text, and each directory with none.
fn source() -> Vec<(PathBuf, String)> {
    let paths =
        ["src", "tests", "benches", "fuzz/fuzz_targets"].iter().flat_map(|dir| below(&root().join(dir)));
    paths.map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap_or_default())).collect()
}

/// Whether a file defines something of this name: a function, a type, a variant or a field.
fn defines(text: &str, name: &str) -> bool {
    let rest = |line: &str| {
        let before = ["fn ", "struct ", "enum ", "trait ", "type ", "const ", "mod "];
        let rest =
            before.iter().find_map(|word| Some(line.split_once(&format!("{word}{name}"))?.1.to_owned()));
        rest.or_else(|| Some(line.trim_start_matches("pub ").strip_prefix(name)?.to_owned()))
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    lines.filter_map(rest).any(|rest| rest.chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_'))
}

/// Whether a file is, or belongs to, the module of this name, or defines the type of this name or a part of it.
fn is_of(path: &Path, text: &str, name: &str) -> bool {
    let of_type =
        || ["struct ", "enum ", "trait ", "impl "].iter().any(|word| text.contains(&format!("{word}{name}")));
    path.with_extension("").iter().any(|part| part == name) || of_type()
}

/// Whether what stands between backticks names something in the source, and that exists; `None` if it names nothing.
fn exists(source: &[(PathBuf, String)], name: &str) -> Option<bool> {
    if !name.chars().all(|c| c.is_alphanumeric() || "_:/.…".contains(c)) || name.starts_with("application/")
    {
        return None;
    }
    if let Some((of, what)) = name.rsplit_once("::") {
        let of = of.rsplit("::").next().unwrap_or(of);
        let is_module = |path: &Path| path.with_extension("").ends_with(Path::new(of).join(what));
        let found = |(path, text): &(PathBuf, String)| {
            is_module(path) || (is_of(path, text, of) && defines(text, what))
        };
        return Some(source.iter().any(found));
    }
    if Path::new(name).extension().is_some_and(|extension| extension == "rs") || name.contains('/') {
        let is_it = |path: &Path| path.ends_with(name) || path.with_extension("").ends_with(name);
        return Some(root().join(name).exists() || source.iter().any(|(path, _)| is_it(path)));
    }
    if name.chars().filter(|c| c.is_uppercase()).count() >= 2
        && name.starts_with(char::is_uppercase)
        && name.contains(char::is_lowercase)
        && name.chars().all(char::is_alphanumeric)
    {
        // A type or a variant, perhaps of a package.
        let is_named = |text: &str| text.split(|c: char| !c.is_alphanumeric()).any(|word| word == name);
        return Some(source.iter().any(|(_, text)| is_named(text)));
    }
    if name.matches('_').count() >= 3 && name.chars().all(|c| !c.is_uppercase()) {
        let test = format!("fn {}", name.trim_end_matches('…')); // cut short in a table
        return Some(source.iter().any(|(_, text)| text.contains(&test)));
    }
    None
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// The names in parentheses behind each file that a page names: ``src/store/options.rs` (`StoreOptions`)``.
fn pairs(page: &str) -> Vec<(&str, &str)> {
    let mut pairs = Vec::new();
    for prose in page.split("```").step_by(2) {
        let parts: Vec<&str> = prose.split('`').collect();
        let (mut file, mut is_inside) = (None, false);
        for (between, name) in parts.iter().zip(parts.iter().skip(1)).step_by(2) {
            is_inside = (is_inside || between.trim_start().starts_with('(')) && !between.contains(')');
            let is_name = name.chars().all(|c| c.is_alphanumeric() || c == '_');
            match file.filter(|_| is_inside && is_name) {
                Some(file) => pairs.push((file, *name)),
                None => file = Some(*name).filter(|name| is_rust(Path::new(name))),
            }
        }
    }
    pairs
}

/// The page sent readers to `src/store.rs` for `StoreOptions`: both exist, and that is in another file.
#[test]
fn what_stands_in_parentheses_behind_a_file_is_in_that_file() {
    assert_eq!(
        pairs("In `a.rs` (`One`, `Two`; a time also `three`), and\n`b.rs`\n(`Four`). `c.rs`, `Five`."),
        [("a.rs", "One"), ("a.rs", "Two"), ("a.rs", "three"), ("b.rs", "Four")]
    );
    let mut checked = 0;
    for page in PAGES {
        let text = fs::read_to_string(root().join(page)).unwrap();
        for (file, name) in pairs(&text) {
            let Ok(source) = fs::read_to_string(root().join(file)) else { continue };
            assert!(defines(&source, name), "{page}: {name} is not in {file}");
            checked += 1;
        }
    }
    assert!(checked > 5, "only {checked} names were found");
}

#[test]
fn what_the_pages_for_contributors_name_exists() {
    let source = source();
    let mut checked = 0;
    for page in PAGES {
        let text = fs::read_to_string(root().join(page)).unwrap();
        for name in text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2)) {
            let Some(exists) = exists(&source, name) else { continue };
            assert!(exists, "{page} names `{name}`, which does not exist");
            checked += 1;
        }
    }
    assert!(checked > 80, "only {checked} names were found");
}

/// Two files of the endpoint, and three of the rest, were in no list.
#[test]
fn every_file_has_its_place_in_the_architecture() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (tree, rest) = page.split_once("The files of `http/`").unwrap();
    let mut missing = Vec::new();
    let words: Vec<&str> = tree.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for path in below(&root().join("src")) {
        let module = path.strip_prefix("src").unwrap().with_extension("");
        let name = module.file_name().unwrap().to_str().unwrap();
        let only_for_tests = ["tests", "models", "races", "sim", "gate", "clocks", "fuzzing", "panics"];
        if !is_rust(&path) || module.iter().any(|part| only_for_tests.iter().any(|test| part == *test)) {
            continue;
        }
        let is_there = match module.strip_prefix("http") {
            Ok(inside) if inside.iter().count() == 1 => rest.contains(&format!("`http/{name}`")),
            Ok(inside) if inside.iter().count() > 1 => rest.contains(&format!("`{name}`")),
            _ => module.starts_with("cli") || words.contains(&name),
        };
        if !is_there {
            missing.push(path);
        }
    }
    assert!(missing.is_empty(), "docs/architecture.md does not say what these files are for: {missing:?}");
}

/// Eight of them were in no table.
#[test]
fn every_file_of_tests_is_named_for_contributors() {
    let page = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let (_, tests) = page.split_once("## Tests\n").unwrap();
    let (tests, _) = tests.split_once("\n### ").unwrap();
    let mut missing = Vec::new();
    // Those of the other directories are of one subject.
    for dir in ["tests", "tests/program", "tests/source"] {
        for entry in fs::read_dir(root().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let named = format!("`{dir}/{name}{}`", if path.is_dir() { "/" } else { "" });
            if !["support", "golden", "program", "source", "main.rs"].contains(&name)
                && !tests.contains(&named)
            {
                missing.push(named);
            }
        }
    }
    assert!(missing.is_empty(), "CONTRIBUTING.md does not say what these test: {missing:?}");
}

/// What is documented before it is not shown with it: the sentence refers to nothing, or to what was put in between.
#[test]
fn no_documentation_begins_with_the_same() {
    for (path, text) in source() {
        let mut before = "";
        for (number, line) in text.lines().map(str::trim).enumerate() {
            let begins = !before.starts_with("///") && line.starts_with("/// The same");
            assert!(!begins, "{}:{}: the same as what?", path.display(), number + 1);
            before = line;
        }
    }
}

#[test]
fn names_that_do_not_exist_are_found() {
    let source = [
        (PathBuf::from("src/log/trim.rs"), "impl Shared {\n    fn remove(&self) {}\n}".to_owned()),
        (PathBuf::from("src/log.rs"), "struct Shared {\n    chain: u8,\n}\n// fn gone()".to_owned()),
    ];
    let there = ["Shared::remove", "Shared::chain", "trim::remove", "log::trim", "log/trim", "trim.rs"];
    assert!(there.iter().all(|name| exists(&source, name) == Some(true)));
    let gone = ["Shared::remov", "Shared::gone", "trim::chain", "log::flush", "log/flush", "flush.rs"];
    assert!(gone.iter().all(|name| exists(&source, name) == Some(false)));
    assert_eq!([exists(&source, "LogState"), exists(&source, "SHM")], [Some(false), None]);
    assert_eq!(exists(&source, "cargo test"), None);
}
