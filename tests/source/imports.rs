//! Imports point down: of the files and folders in one folder of `src/`, none imports another that, directly or by way of
//! others, imports it. What a module and those inside it import of each other does not count. Those in `src/` itself import
//! only what is below them in the picture in `docs/architecture.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// All Rust files below `dir`, except tests and models.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if ["tests", "models", "races", "panics"].contains(&&*stem) {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The paths in a tree of imports such as `a::{b, c::{self, d}}`.
fn paths(tree: &str, before: &str, found: &mut Vec<String>) {
    let (mut depth, mut part) = (0, String::new());
    let mut parts = Vec::new();
    for letter in tree.chars().filter(|letter| !letter.is_whitespace()) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(letter);
    }
    parts.push(part);
    for part in parts.iter().filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((start, rest)) => paths(rest.strip_suffix('}').unwrap(), &format!("{before}{start}"), found),
            None => found.push(format!("{before}{part}")),
        }
    }
}

/// The code of a file, without comments, and without modules that exist only in tests. What else exists only in tests, such
/// as a function or an import, stays.
fn code(text: &str) -> String {
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap_or_default()).peekable();
    let mut code = String::new();
    while let Some(line) = lines.next() {
        let is_test = ["#[cfg(test)]", "#[cfg(all(test,"].iter().any(|start| line.trim().starts_with(start));
        let module = lines.next_if(|next| is_test && next.split("mod ").next().is_some_and(is_visibility));
        match module {
            // As it is formatted, a module ends with the next brace below its beginning.
            Some(module) if module.ends_with('{') => {
                let indent = &module[..module.len() - module.trim_start().len()];
                let _ = lines.find(|line| line.strip_prefix(indent) == Some("}"));
            }
            Some(_) => {}
            None => code.extend([line, "\n"]),
        }
    }
    code
}

/// Whether this is all that stands before `mod` in a line that declares one.
fn is_visibility(before: &str) -> bool {
    matches!(before.trim(), "" | "pub" | "pub(crate)" | "pub(super)") || before.trim().starts_with("pub(in ")
}

/// What a file names of this crate: imports, and paths that begin with `crate` or `super`.
fn named(text: &str) -> Vec<String> {
    let code = code(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].rsplit('\n').next().unwrap().trim();
        let is_import = before.is_empty() || before.starts_with("pub") && !before.contains('"');
        let Some((tree, _)) = code[at + 4..].split_once(';').filter(|_| is_import) else { continue };
        paths(tree, "", &mut found);
    }
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at..];
            let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != ':');
            found.push(rest[..end.unwrap_or(rest.len())].to_owned());
        }
    }
    found
}

/// Whether `to` can be reached from `from`; if so, by which way.
fn way(graph: &Graph, from: &str, to: &str, seen: &mut BTreeSet<String>) -> Option<Vec<String>> {
    for next in graph.get(from).into_iter().flatten() {
        if next == to {
            return Some(vec![next.clone()]);
        }
        if seen.insert(next.clone())
            && let Some(mut rest) = way(graph, next, to, seen)
        {
            rest.insert(0, next.clone());
            return Some(rest);
        }
    }
    None
}

/// The names that each module has from those inside it, with the paths of these. That of `lib.rs` is empty.
fn passed_on(files: &[(String, String)]) -> BTreeMap<String, String> {
    let modules: BTreeSet<&str> = files.iter().map(|(module, _)| &**module).collect();
    let mut all = BTreeMap::new();
    for (own, text) in files {
        let own = if own == "lib" { "" } else { own };
        for path in named(text) {
            let Some((module, name)) = path.rsplit_once("::") else { continue };
            let module = format!("{own}::{}", module.trim_start_matches("self::"));
            let module = module.trim_start_matches("::");
            if modules.contains(module) {
                all.insert(format!("{own}::{name}").trim_start_matches("::").to_owned(), module.to_owned());
            }
        }
    }
    all
}

/// What the modules of each folder import of each other. A file is given as the path of its module, and its text.
fn folders(files: &[(String, String)]) -> BTreeMap<String, Graph> {
    let modules: BTreeSet<&str> = files.iter().map(|(module, _)| &**module).collect();
    let passed_on = passed_on(files);
    let mut folders: BTreeMap<String, Graph> = BTreeMap::new();
    for (own, text) in files {
        for named in named(text) {
            let mut at: Vec<&str> = own.split("::").collect();
            let mut rest = named.split("::").peekable();
            match rest.peek() {
                Some(&"crate") => (at, _) = (Vec::new(), rest.next()),
                Some(&"self") => drop(rest.next()),
                Some(&"super") => {}
                _ => continue,
            }
            for part in rest.take_while(|part| !part.is_empty() && *part != "self") {
                if part == "super" {
                    at.pop();
                } else {
                    at.push(part);
                }
            }
            // A name that its module has from one inside it is that one's.
            while !at.is_empty() && !modules.contains(&*at.join("::")) {
                match passed_on.get(&at.join("::")) {
                    Some(module) => at = module.split("::").collect(),
                    None => drop(at.pop()),
                }
            }
            let from: Vec<&str> = own.split("::").collect();
            let common = from.iter().zip(&at).take_while(|(one, other)| one == other).count();
            if common < from.len() && common < at.len() {
                let graph = folders.entry(from[..common].join("::")).or_default();
                graph.entry(from[common].to_owned()).or_default().insert(at[common].to_owned());
            }
        }
    }
    folders
}

/// The circles in the imports of each folder, by each module on them.
fn circles(folders: &BTreeMap<String, Graph>) -> Vec<String> {
    let mut circles = Vec::new();
    for (folder, graph) in folders {
        for from in graph.keys() {
            if let Some(way) = way(graph, from, from, &mut BTreeSet::new()) {
                circles.push(format!("{folder}: {from} → {}", way.join(" → ")));
            }
        }
    }
    circles
}

/// The modules in the picture of the architecture, each with the number of its line.
fn picture() -> BTreeMap<String, usize> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = fs::read_to_string(path).unwrap();
    let (_, rest) = page.split_once("```text\n").unwrap();
    let (picture, _) = rest.split_once("```").unwrap();
    let mut found = BTreeMap::new();
    for (number, line) in picture.lines().enumerate() {
        // A line begins with one or more files or folders: `store.rs, store/   names to logs`.
        for part in line.split(", ") {
            let part = part.trim_start();
            let end = part.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(part.len());
            let (name, rest) = part.split_at(end);
            let Some(rest) = rest.strip_prefix(".rs").or_else(|| rest.strip_prefix('/')) else { break };
            found.insert(name.to_owned(), number);
            if !rest.is_empty() {
                break;
            }
        }
    }
    found
}

/// The imports that do not point to a line further down.
fn upward(graph: &Graph, picture: &BTreeMap<String, usize>) -> Vec<String> {
    let imports = graph.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to)));
    let not_down = imports.filter(|(from, to)| match (picture.get(*from), picture.get(*to)) {
        (Some(from), Some(to)) => from >= to,
        _ => true,
    });
    not_down.map(|(from, to)| format!("{from} → {to}")).collect()
}

#[test]
fn imports_point_down() {
    let (root, mut all) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Vec::new());
    files(&root, &mut all);
    let module = |path: &Path| {
        path.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().replace('/', "::")
    };
    let all: Vec<_> = all.iter().map(|path| (module(path), fs::read_to_string(path).unwrap())).collect();
    let folders = folders(&all);
    assert!(
        folders.values().map(|graph| graph.values().map(BTreeSet::len).sum::<usize>()).sum::<usize>() > 100
    );
    let circles = circles(&folders);
    assert!(circles.is_empty(), "imports go round in circles:\n{}", circles.join("\n"));
    let mut graph = folders[""].clone();
    for only_for_tests in ["sim", "fuzzing"] {
        graph.remove(only_for_tests);
    }
    let upward = upward(&graph, &picture());
    assert!(upward.is_empty(), "not down in the picture of docs/architecture.md:\n{}", upward.join("\n"));
}

/// Only circles were found: `settings` was at the bottom of the picture, and imported `log`.
#[test]
fn an_import_that_points_up_in_the_picture_is_found_also_by_way_of_lib() {
    let files = [
        ("lib", "pub use id::LogId;\npub use log::{Log, Options};"),
        ("frame", "use crate::LogId;"),
        ("settings", "use crate::Options;"),
        ("log", "use crate::frame;"),
        ("id", ""),
    ];
    let folders = folders(&files.map(|(module, text)| (module.to_owned(), text.to_owned())));
    let picture = ["log", "settings", "id", "frame"].map(str::to_owned).into_iter().zip(0..).collect();
    assert_eq!(upward(&folders[""], &picture), ["frame → id", "settings → log"]);
}

/// Everything after the first thing that exists only in tests was left out: most of `disk.rs` and of `log.rs`.
#[test]
fn a_circle_is_found_wherever_it_is_closed_except_in_a_module_of_tests() {
    let found = |last: &str| {
        let one = "use super::two::{Two, self};\n".to_owned();
        let two = "use crate::{\n    log::{three, four::Four},\n};\n".to_owned();
        let files = [("one", one), ("two", two), ("three", last.to_owned()), ("four", String::new())];
        circles(&folders(&files.map(|(module, text)| (format!("log::{module}"), text))))
    };
    let circle =
        ["log: one → two → three → one", "log: three → one → two → three", "log: two → three → one → two"];
    for closed in [
        "use super::one::One;",
        "fn f() {\n    super::one::f();\n}",
        "#[cfg(test)]\nmod tests;\nuse super::one;",
        "#[cfg(all(test, not(loom)))]\nconst ONE: u8 = 1;\nuse super::one;",
        "#[cfg(all(test, loom))]\npub(super) mod models {\n    fn f() {\n    }\n}\nuse super::one;",
    ] {
        assert_eq!(found(closed), circle, "{closed}");
    }
    for open in [
        "",
        "// use super::one;",
        "use super::four;",
        "#[cfg(test)]\nmod tests {\n    use super::super::one;\n}",
        "#[cfg(all(test, loom))]\npub(super) mod models {\n    fn f() {}\n    use super::super::one;\n}",
    ] {
        assert!(found(open).is_empty(), "{open}");
    }
}
