//! Code conventions as a test: sizes of functions, first lines, dependencies of `core/`, links.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FUNCTION_LINES_MAX: usize = 70;
const FOLDERS: [&str; 7] = [
    "src",
    "chaos",
    "tests",
    "deploy",
    "dashboards",
    "docs",
    ".ci",
];
/// Where nothing awaits, reads a clock, draws a random number or knows the Kubernetes client.
const PURE: [&str; 8] = [
    "src/shard-ownership/src/",
    "src/operator/src/core/",
    "src/sharded-controller/src/queue",
    "src/sharded-controller/src/backoff.rs",
    "src/sharded-controller/src/failures.rs",
    "src/sharded-controller/src/outcome.rs",
    "src/sharded-controller/src/rate_limit.rs",
    "src/sharded-controller/src/watch/watch_mode.rs",
];
const TOP_FILES: [&str; 7] = [
    "Makefile",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Cargo.toml",
    "deny.toml",
];
const TEXT: [&str; 10] = [
    "rs", "md", "toml", "yaml", "yml", "json", "sh", "go", "mod", "",
];

struct File {
    /// Relative to the package.
    name: String,
    text: String,
}

impl File {
    fn extension(&self) -> &str {
        Path::new(&self.name)
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or_default()
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// All text files of the project, by name; hidden folders and build output left out.
fn files() -> Vec<File> {
    let mut paths: Vec<PathBuf> = TOP_FILES.iter().map(|name| root().join(name)).collect();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || name.starts_with('.') || name == "target" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let files: Vec<File> = paths
        .into_iter()
        .filter_map(|path| {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            let text = fs::read_to_string(&path).ok()?;
            Some(File { name, text })
        })
        .filter(|file| TEXT.contains(&file.extension()))
        .collect();
    assert!(files.len() > 20, "only {} files were found", files.len());
    files
}

fn rust_files() -> Vec<File> {
    let mut files = files();
    files.retain(|file| file.extension() == "rs");
    files
}

fn none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn functions_are_short() {
    // A test may be one long function.
    let is_test = |file: &File| {
        let name = &file.name;
        name.contains("/tests/")
            || name.starts_with("tests/") && !name.starts_with("tests/testbed/")
    };
    let programs = rust_files().into_iter().filter(|file| !is_test(file));
    let long = programs.flat_map(|file| {
        let functions = functions(&file.text).into_iter();
        functions
            .filter(|(_, _, lines)| *lines > FUNCTION_LINES_MAX)
            .map(|(line, name, lines)| format!("{}:{line}: {name} has {lines} lines", file.name))
            .collect::<Vec<_>>()
    });
    none(long.collect());
}

/// Line, name and length of each function. rustfmt puts the closing brace under the first letter of
/// the line where the function begins, which makes this exact enough.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let close = format!("{indent}}}");
        for (end, line) in lines.iter().enumerate().skip(start) {
            let bodiless =
                line.ends_with(';') && (end == start || line.starts_with(&format!("{indent})")));
            let one_line = end == start && line.ends_with('}');
            if *line == close || bodiless || one_line {
                found.push((start + 1, name, end - start + 1));
                break;
            }
        }
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut rest = line.trim_start();
    for word in [
        "pub(crate) ",
        "pub(super) ",
        "pub ",
        "default ",
        "const ",
        "async ",
        "unsafe ",
    ] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let rest = rest.strip_prefix("fn ")?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    Some(rest[..end].to_owned())
}

#[test]
fn modules_have_documentation() {
    let silent = rust_files().into_iter().filter_map(|file| {
        let first = file.text.lines().next().unwrap_or_default();
        let purpose = first.strip_prefix("//! ").unwrap_or_default();
        (purpose.len() < 12).then(|| format!("{}: the first line is {first:?}", file.name))
    });
    none(silent.collect());
}

#[test]
fn no_file_contains_machine_specific_paths() {
    let homes = [["/ro", "ot/"].concat(), ["/wo", "rk/"].concat()];
    let found = files().into_iter().flat_map(|file| {
        let lines = file.text.lines().enumerate();
        lines
            .filter(|(_, line)| homes.iter().any(|home| line.contains(home.as_str())))
            .map(|(number, line)| format!("{}:{}: {line}", file.name, number + 1))
            .collect::<Vec<_>>()
    });
    none(found.collect());
}

#[test]
fn core_uses_no_clock_no_randomness_and_no_api() {
    let outside = [
        "tokio",
        "kube::",
        "k8s_openapi",
        "std::fs",
        "std::net",
        "std::env",
        "Instant",
        "SystemTime",
        "rand::",
        "RandomState",
        "boottime",
    ];
    let mut seen = 0;
    let mut found = Vec::new();
    let files = rust_files();
    for file in &files {
        if !PURE.iter().any(|pure| file.name.starts_with(pure)) {
            continue;
        }
        seen += 1;
        for (number, line) in file.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = outside.iter().find(|word| code.contains(*word)) {
                found.push(format!("{}:{}: {word}", file.name, number + 1));
            }
        }
    }
    for pure in PURE {
        let is_there = files.iter().any(|file| file.name.starts_with(pure));
        assert!(is_there, "{pure} names no file");
    }
    assert!(seen > 40, "only {seen} files of pure code were found");
    none(found);
}

/// The crates of `src`, each with those of them that it may depend on.
const CRATES: [(&str, &[&str]); 3] = [
    ("shard-ownership", &[]),
    ("sharded-controller", &["shard-ownership"]),
    ("operator", &["shard-ownership", "sharded-controller"]),
];

/// The names in `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> Vec<&str> {
    let after = manifest
        .split("[dependencies]\n")
        .nth(1)
        .unwrap_or_default();
    let section = after.split("\n[").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| {
        let name = line.split(['.', ' ', '=']).next()?;
        (!name.is_empty() && !name.starts_with('#')).then_some(name)
    });
    names.collect()
}

#[test]
fn crates_depend_downwards_only() {
    let mut found = Vec::new();
    for (crate_name, allowed) in CRATES {
        let name = format!("src/{crate_name}/Cargo.toml");
        let manifest = fs::read_to_string(root().join(&name)).unwrap();
        let all = dependencies(&manifest);
        assert!(!all.is_empty(), "{name} has no dependencies");
        let ours = CRATES.map(|(known, _)| known);
        let upwards = all.iter().filter(|name| {
            let is_ours = ours.contains(name) || **name == "databasecluster-operator";
            is_ours && !allowed.contains(name)
        });
        found.extend(upwards.map(|other| format!("{name}: {other}")));
        if crate_name == "shard-ownership" {
            let effects = ["tokio", "kube", "k8s-openapi", "hyper", "axum", "tracing"];
            let effects = all.iter().filter(|name| effects.contains(name));
            found.extend(effects.map(|other| format!("{name}: {other}, which is not pure")));
        }
    }
    none(found);
}

/// The library knows no operator, and no crate compiles the sources of another.
#[test]
fn library_names_no_operator_and_no_crate_takes_sources_of_another() {
    let mut found = Vec::new();
    for file in rust_files() {
        let of_library = ["src/shard-ownership/", "src/sharded-controller/src/"];
        let is_library = of_library
            .iter()
            .any(|folder| file.name.starts_with(folder));
        for (number, line) in file.text.lines().enumerate() {
            let place = format!("{}:{}", file.name, number + 1);
            let lower = line.to_lowercase();
            let operator = ["databasecluster", "database.io", "postgres"];
            if is_library && operator.iter().any(|name| lower.contains(name)) {
                found.push(format!("{place}: {}", line.trim()));
            }
            let path = line.trim().strip_prefix("#[path = \"");
            if path.is_some_and(|path| path.contains("src/") || path.starts_with("../..")) {
                found.push(format!("{place}: {}", line.trim()));
            }
        }
    }
    none(found);
}

#[test]
fn links_resolve() {
    let mut found = Vec::new();
    for file in files() {
        if file.extension() != "md" {
            continue;
        }
        let folder = root().join(&file.name).parent().unwrap().to_owned();
        for (number, target) in links(&file.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            let page = if path.is_empty() {
                root().join(&file.name)
            } else {
                folder.join(path)
            };
            let leads_somewhere = if anchor.is_empty() || page.extension() != Some("md".as_ref()) {
                page.exists()
            } else {
                fs::read_to_string(&page).is_ok_and(|text| anchors(&text).contains(anchor))
            };
            if !leads_somewhere {
                found.push(format!("{}:{number}: {target}", file.name));
            }
        }
    }
    none(found);
}

/// The anchors of a page: `id` attributes, and headings as GitHub derives anchors from them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut in_code = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for part in line.split("id=\"").skip(1) {
            found.insert(part.split('"').next().unwrap_or_default().to_owned());
        }
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let anchor: String = heading
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        found.insert(anchor);
    }
    found
}

#[test]
fn decisions_are_numbered_listed_and_referenced_correctly() {
    let files = files();
    let mut decisions = BTreeSet::new();
    let mut found = Vec::new();
    for file in &files {
        let Some(page) = file.name.strip_prefix("docs/decisions/") else {
            continue;
        };
        let mut lines = file.text.lines();
        while let Some(line) = lines.next() {
            let Some(number) = line
                .strip_prefix("<a id=\"decision-")
                .and_then(|rest| rest.strip_suffix("\"></a>"))
            else {
                continue;
            };
            let heading = lines.next().unwrap_or_default();
            if !heading.starts_with(&format!("## {number}. ")) {
                found.push(format!("{}: {line} is followed by {heading:?}", file.name));
            }
            if !decisions.insert(format!("{page}#decision-{number}")) {
                found.push(format!("{}: {number} is there twice", file.name));
            }
        }
    }
    assert!(decisions.len() > 60, "{decisions:?}");
    let index = files
        .iter()
        .find(|file| file.name == "docs/decisions/README.md")
        .unwrap();
    for decision in &decisions {
        if !index.text.contains(&format!("({decision})")) {
            found.push(format!("{} does not list {decision}", index.name));
        }
    }
    // References in comments, which are no Markdown links.
    for file in files.iter().filter(|file| file.extension() != "md") {
        for reference in file.text.split("docs/decisions/").skip(1) {
            let end = reference.find(|c: char| !(c.is_alphanumeric() || "-_.#".contains(c)));
            let reference = reference[..end.unwrap_or(reference.len())].trim_end_matches('.');
            let is_anchor = reference.contains('#');
            if is_anchor && !decisions.contains(reference) {
                found.push(format!("{}: there is no {reference}", file.name));
            }
        }
    }
    none(found);
}

/// Line and target of each `[text](target)` outside of code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for part in prose.split("](").skip(1) {
            let target = part.split([')', ' ']).next().unwrap_or_default();
            found.push((number + 1, target.to_owned()));
        }
    }
    found
}

#[test]
fn rules_detect_their_own_violations() {
    let text = "impl A {\n    pub async fn long() {\n        a();\n\n    }\n\n    fn short() {}\n    fn none();\n    fn wide(\n        a: u8,\n    ) -> u8;\n}\n";
    let found = functions(text);
    let expected = [
        (2, "long".to_owned(), 4),
        (7, "short".to_owned(), 1),
        (8, "none".to_owned(), 1),
        (9, "wide".to_owned(), 3),
    ];
    assert_eq!(found, expected);
    let page = "[a](x.md#y) `[b](no)` [c](https://e.test)\n```\n[d](no)\n```\n[e](z \"title\")\n";
    let targets: Vec<String> = links(page).into_iter().map(|(_, target)| target).collect();
    assert_eq!(targets, ["x.md#y", "https://e.test", "z"]);
    let page = "# One: `a b`, c\n<a id=\"decision-7\"></a>\n## 7. Two-three\n```\n# no\n```\n#no\n";
    let found: Vec<String> = anchors(page).into_iter().collect();
    assert_eq!(found, ["7-two-three", "decision-7", "one-a-b-c"]);
}
