//! `unsafe` is only in `src/chunk.rs` and `src/chunk/`, where memory is shared without locks, and each use says why it
//! is sound: a block or an implementation in a `SAFETY:` comment before it, a function in a `# Safety` section.

use super::sources;
use std::{fs, path::Path};

/// The code of a line, without comments and the content of quotation marks.
fn code(line: &str) -> String {
    let mut parts = line.split("//").next().unwrap().split('"');
    let mut code = parts.next().unwrap().to_owned();
    while parts.next().is_some() {
        code += parts.next().unwrap_or_default();
    }
    code
}

fn is_unsafe(line: &str) -> bool {
    let code = code(line);
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

/// The numbers of the lines with `unsafe`, and for each whether the comment before it gives a reason.
fn uses(source: &str) -> Vec<(usize, bool)> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let argued = |n: usize| {
        let needed = if lines[n].contains("unsafe fn") { "/// # Safety" } else { "SAFETY:" };
        // Attributes, and the beginning of the statement that contains the block, may come in between.
        let before = lines[..n].iter().rev();
        let comment = before.skip_while(|line| !line.starts_with("//") && !line.ends_with(['}', ';', '{']));
        lines[n].contains(needed)
            || comment.take_while(|line| line.starts_with("//")).any(|line| line.contains(needed))
    };
    (0..lines.len()).filter(|n| is_unsafe(lines[*n])).map(|n| (n + 1, argued(n))).collect()
}

#[test]
fn unsafe_code_is_in_the_chunk_only_and_each_use_is_argued_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    let all = ["src", "tests", "benches", "examples", "fuzz/fuzz_targets"];
    for path in all.iter().flat_map(|dir| sources(&root.join(dir))) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let allowed = name == "src/chunk.rs" || name.starts_with("src/chunk/");
        for (line, argued) in uses(&fs::read_to_string(&path).unwrap()) {
            assert!(allowed, "{name}:{line}: unsafe code belongs into src/chunk.rs and src/chunk/");
            assert!(argued, "{name}:{line}: say why this is sound, by SAFETY: or # Safety before it");
            count += 1;
        }
    }
    assert!(count > 5, "only {count} uses were found: does this test still look at the right places?");
}

#[test]
fn what_is_not_unsafe_code_is_not_counted_as_such() {
    let source = "// unsafe\nlet a = \"unsafe\";\nunsafe_op();\n// SAFETY: ours.\nunsafe { b() };\nunsafe { c() };\n\
        // SAFETY: theirs.\nlet all =\n    unsafe { d() };\n// SAFETY: far away.\nlet e = 1;\nunsafe { f() };";
    assert_eq!(uses(source), [(5, true), (6, false), (9, true), (12, false)]);
}
