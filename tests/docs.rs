//! Pages that are generated from the code match it; `UPDATE_DOCS=1` writes them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use databasecluster_operator::api;
use databasecluster_operator::plugin;
use databasecluster_operator::telemetry::metrics_doc;
use serde_json::Value;

const BEGIN: &str =
    "<!-- Generated from src/operator/src/api: UPDATE_DOCS=1 cargo test --test docs -->\n";
const END: &str = "<!-- End of what is generated -->\n";

fn path(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(name)
}

fn matches(name: &str, expected: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path(name), expected).unwrap();
    }
    let found = fs::read_to_string(path(name)).unwrap_or_default();
    assert!(
        found == expected,
        "{name} is out of date: run UPDATE_DOCS=1 cargo test --test docs"
    );
}

#[test]
fn metrics_page_matches_the_catalogue() {
    matches("docs/reference/metrics.md", &metrics_doc::page());
}

#[test]
fn api_reference_matches_the_crd() {
    let name = "docs/reference/databasecluster.md";
    let page = fs::read_to_string(path(name)).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    matches(name, &format!("{before}{BEGIN}{}{END}{after}", reference()));
}

#[test]
fn plugin_reference_matches_the_command_line() {
    let begin = "<!-- Generated from src/operator/src/plugin/args.rs: UPDATE_DOCS=1 cargo test --test docs -->\n";
    let name = "docs/reference/kubectl-plugin.md";
    let page = fs::read_to_string(path(name)).unwrap();
    let (before, rest) = page.split_once(begin).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let reference = plugin::reference();
    matches(name, &format!("{before}{begin}{reference}{END}{after}"));
}

#[test]
fn code_of_the_tutorial_is_the_example() {
    let page = fs::read_to_string(path("docs/tutorial/library.md")).unwrap();
    let example = fs::read_to_string(path("src/sharded-controller/examples/configmap.rs")).unwrap();
    let blocks = page.split("```rust\n").skip(1);
    let blocks: Vec<&str> = blocks
        .filter_map(|rest| rest.split("```\n").next())
        .collect();
    assert!(blocks.len() > 5, "only {} blocks of code", blocks.len());
    // One after the other, with an empty line between them, they are the whole file.
    for (number, (block, line)) in blocks.join("\n").lines().zip(example.lines()).enumerate() {
        assert_eq!(block, line, "line {} of the example", number + 1);
    }
    assert_eq!(blocks.join("\n").lines().count(), example.lines().count());
    assert!(example.lines().count() < 150, "it claims to be short");
}

#[test]
fn every_condition_reason_is_documented() {
    let code = fs::read_to_string(path("src/operator/src/core/lifecycle/stage.rs")).unwrap();
    let page = fs::read_to_string(path("docs/reference/databasecluster.md")).unwrap();
    let (_, reasons) = code.split_once("mod reason {").unwrap();
    let (reasons, _) = reasons.split_once("\n}\n").unwrap();
    let reasons: Vec<&str> = reasons
        .lines()
        .filter_map(|line| line.split_once(": &str = \"")?.1.strip_suffix("\";"))
        .collect();
    assert!(reasons.len() > 10, "{reasons:?}");
    for reason in reasons {
        assert!(
            page.contains(&format!("`{reason}`")),
            "docs/reference/databasecluster.md does not explain {reason}"
        );
    }
}

/// Pages with shell blocks for readers.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![path("README.md"), path("CHANGELOG.md"), path("SECURITY.md")];
    let mut folders = vec![path("docs"), path("dashboards"), path("deploy/chart")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The line before a block says where it runs, or why not:
/// `<!-- run: fleet -->` and `<!-- run: install -->` (tests/deploy/pages.rs), `<!-- run by: FILE -->`, a test that reads
/// the page, or `<!-- not run: REASON -->`.
fn problem_of_mark(mark: &str, page: &str) -> Option<String> {
    let mark = mark
        .trim()
        .strip_prefix("<!-- ")
        .and_then(|mark| mark.strip_suffix(" -->"));
    let (key, value) = mark
        .and_then(|mark| mark.split_once(": "))
        .unwrap_or_default();
    let is_fine = match key {
        "run" => ["fleet", "install"].contains(&value),
        "run by" => fs::read_to_string(path(value)).is_ok_and(|test| test.contains(page)),
        "not run" => value.len() > 10,
        _ => false,
    };
    (!is_fine).then(|| {
        "the line before must be `<!-- run: fleet -->`, `<!-- run: install -->`, `<!-- run by: FILE -->` or \
         `<!-- not run: REASON -->`"
            .to_owned()
    })
}

#[test]
fn shell_blocks_run_in_a_test_or_say_why_not() {
    let mut found = Vec::new();
    let mut blocks = 0;
    for file in pages() {
        let name = file.strip_prefix(path("")).unwrap().display().to_string();
        let text = fs::read_to_string(&file).unwrap();
        let mut before = "";
        let mut is_code = false;
        for (number, line) in text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            if let (Some(language), false) = (fence, is_code) {
                let is_shell = ["sh", "bash", "shell", "console"].contains(&language);
                blocks += usize::from(is_shell);
                let problem = problem_of_mark(before, &name).filter(|_| is_shell);
                found.extend(problem.map(|problem| format!("{name}:{}: {problem}", number + 1)));
            }
            is_code ^= fence.is_some();
            before = line;
        }
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
    assert!(blocks > 50, "only {blocks} blocks");
}

#[test]
fn marks_of_shell_blocks_are_checked() {
    for mark in [
        "",
        "<!-- run: elsewhere -->",
        "<!-- not run: no -->",
        "<!-- run by: tests/none.rs -->",
    ] {
        assert!(problem_of_mark(mark, "docs/fence.md").is_some(), "{mark}");
    }
    let by = "<!-- run by: tests/upgrade/main.rs -->";
    assert!(problem_of_mark(by, "docs/fence.md").is_some());
    assert_eq!(problem_of_mark(by, "docs/how-to/operations.md"), None);
    assert_eq!(
        problem_of_mark("<!-- not run: needs a registry -->", ""),
        None
    );
}

#[test]
fn every_flag_of_run_is_documented_with_its_default() {
    let page = fs::read_to_string(path("docs/reference/command-line.md")).unwrap();
    let command =
        databasecluster_operator::config::RunArgs::augment_args(clap::Command::new("run"));
    let mut flags = 0;
    for argument in command.get_arguments() {
        let name = argument.get_long().unwrap();
        let defaults = argument.get_default_values();
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `--{name}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/reference/command-line.md has no --{name}"));
        let takes_value = argument.get_action().takes_values();
        // An empty one has a meaning of its own, which the page explains.
        let default = defaults.first().filter(|default| !default.is_empty());
        if let (Some(default), true) = (default, takes_value) {
            let default = default.to_str().unwrap();
            assert!(
                row.contains(&format!("| `{default}` |")),
                "{row}: the default is {default}"
            );
        }
        flags += 1;
    }
    assert!(flags > 15, "{flags}");
}

/// mdBook's table of contents; `make book` builds the site and checks its links.
#[test]
fn summary_names_every_page() {
    let summary = fs::read_to_string(path("docs/SUMMARY.md")).unwrap();
    let docs = path("docs");
    let named: Vec<PathBuf> = summary
        .lines()
        .filter_map(|line| line.split_once("](")?.1.strip_suffix(')'))
        .map(|name| docs.join(name))
        .collect();
    for page in pages().iter().filter(|page| page.starts_with(&docs)) {
        let count = named.iter().filter(|name| *name == page).count();
        let is_summary = page.ends_with("SUMMARY.md");
        assert_eq!(
            count,
            usize::from(!is_summary),
            "{} in docs/SUMMARY.md",
            page.display()
        );
    }
    assert!(named.iter().all(|page| page.is_file()), "{named:?}");
}

/// The fields of spec and status, and the rules about the whole object.
fn reference() -> String {
    let crd = serde_json::to_value(api::cluster_crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut text = String::new();
    for part in ["spec", "status"] {
        writeln!(text, "\n### Fields of {part}\n").unwrap();
        text.push_str(
            "| field | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n",
        );
        rows(&schema["properties"][part], part, &mut text);
    }
    text.push_str("\nAbout the whole object:\n\n");
    for rule in schema["x-kubernetes-validations"].as_array().unwrap() {
        writeln!(text, "- {}", one_line(&rule["message"])).unwrap();
    }
    text.push('\n');
    text
}

/// Fields whose own fields Kubernetes documents.
const SHAPES_OF_KUBERNETES: [&str; 3] = [
    "spec.affinity",
    "spec.tolerations",
    "spec.topologySpreadConstraints",
];

fn rows(parent: &Value, path: &str, text: &mut String) {
    let required = parent["required"].as_array();
    for (name, field) in parent["properties"].as_object().unwrap() {
        let is_required =
            required.is_some_and(|all| all.iter().any(|required| required == name.as_str()));
        let path = format!("{path}.{name}");
        let default = match &field["default"] {
            Value::Null if is_required => "required".to_owned(),
            // Its own fields have them.
            Value::Null | Value::Object(_) => String::new(),
            default => format!("`{}`", plain(default)),
        };
        let meaning = one_line(&field["description"]);
        writeln!(
            text,
            "| `{path}` | {} | {default} | {} | {meaning} |",
            kind(field),
            allowed(field, &rules_of_parent(parent, name))
        )
        .unwrap();
        let inner = match field["type"] == "array" {
            true => &field["items"],
            false => field,
        };
        if inner["properties"].is_object() && !SHAPES_OF_KUBERNETES.contains(&path.as_str()) {
            let list = if field["type"] == "array" { "[]" } else { "" };
            rows(inner, &format!("{path}{list}"), text);
        }
    }
}

fn kind(field: &Value) -> String {
    if field["x-kubernetes-int-or-string"] == true {
        // A quantity is short.
        let is_quantity = field["maxLength"].as_u64().is_none_or(|most| most <= 20);
        let kind = if is_quantity {
            "quantity"
        } else {
            "text or integer"
        };
        return kind.to_owned();
    }
    if field["additionalProperties"].is_object() {
        return format!("map of {}", kind(&field["additionalProperties"]));
    }
    let name = match field["type"].as_str().unwrap_or("any") {
        "array" => format!("list of {}", kind(&field["items"])),
        name => name.to_owned(),
    };
    match field["format"].as_str() {
        Some("date-time") => "time".to_owned(),
        _ => name,
    }
}

/// Rules that an object has about one of its fields.
fn rules_of_parent(parent: &Value, field: &str) -> Vec<String> {
    let rules = parent["x-kubernetes-validations"].as_array();
    let about = |rule: &&Value| rule["fieldPath"] == format!(".{field}");
    rules
        .into_iter()
        .flatten()
        .filter(about)
        .map(|rule| one_line(&rule["message"]))
        .collect()
}

fn allowed(field: &Value, rules: &[String]) -> String {
    let mut all = Vec::new();
    if let Some(values) = field["enum"].as_array() {
        let values = values.iter().filter(|value| !value.is_null());
        let values: Vec<String> = values.map(|value| format!("`{}`", plain(value))).collect();
        all.push(values.join(", "));
    }
    if let Some(max) = field["maxItems"].as_u64() {
        all.push(format!("at most {max} entries"));
    }
    if let Some(max) = field["maxProperties"].as_u64() {
        all.push(format!("at most {max} entries"));
    }
    if let (Some(min), Some(max)) = (field["minimum"].as_f64(), field["maximum"].as_f64()) {
        all.push(format!("{min} to {max}"));
    }
    match (field["minLength"].as_u64(), field["maxLength"].as_u64()) {
        (None, Some(max)) => all.push(format!("at most {max} characters")),
        (Some(min), Some(max)) => all.push(format!("{min} to {max} characters")),
        _ => {}
    }
    if let Some(pattern) = field["pattern"].as_str() {
        all.push(format!("`{}`", pattern.replace('|', "\\|")));
    }
    let own = field["x-kubernetes-validations"].as_array();
    // Those about a field are in its section.
    let own = own
        .into_iter()
        .flatten()
        .filter(|rule| rule["fieldPath"].is_null());
    all.extend(own.map(|rule| one_line(&rule["message"])));
    all.extend(rules.iter().cloned());
    all.join("; ")
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn one_line(text: &Value) -> String {
    let words: Vec<&str> = text
        .as_str()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    words.join(" ").replace('|', "\\|")
}
