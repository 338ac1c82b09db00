//! Vocabulary as a test: words that the project has replaced do not come back, neither in prose nor in names.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Folders and files that are searched.
const FOLDERS: &[&str] = &[
    ".ci",
    "CONTRIBUTING.md",
    "Makefile",
    "chaos",
    "README.md",
    "SECURITY.md",
    "dashboards",
    "deploy",
    "docs",
    "src",
    "tests",
];

/// Files and folders below them that are not searched: they name banned words, or are generated from files that are
/// searched, or are copies of what an earlier version wrote.
const SKIPPED: &[&str] = &[
    "deploy/base/crd.yaml",
    "deploy/base/fence.yaml",
    "deploy/chart/crds",
    "deploy/chart/dashboards",
    "deploy/components/alerts/prometheusrule.yaml",
    "deploy/install.yaml",
    "docs/glossary.md",
    "tests/golden",
    "tests/upgrade/cc6f500",
    "tests/vocabulary.rs",
];

const EXTENSIONS: &[&str] = &[
    "go", "jq", "json", "md", "rs", "sh", "toml", "yaml", "yml", "",
];

/// What is banned, and what to write instead.
///
/// Words match in prose and as parts of names, in any case: `heir` matches `is_heir` and `HeirLease`. Several words
/// match when nothing but spaces, `_`, `-` or the end of a line separates them. A name in backticks matches in Rust
/// code only, as a whole and in its case: there the word has a meaning of its own, in prose it has not.
const BANNED: &[(&str, &str)] = &[
    // Phrases.
    ("can not", "cannot"),
    ("may not be had", "is not available"),
    ("anew", "again"),
    ("wherefore", "why"),
    ("who leaves", "the leaving replica"),
    ("who holds it", "the holder"),
    ("whoever", "the caller, or every writer"),
    ("whomever", "any client"),
    ("who asks", "the caller"),
    ("tell", "report, print or log"),
    ("tells", "reports, prints or logs"),
    ("telling", "reporting"),
    ("told", "reported"),
    ("look at", "read or check"),
    ("looks at", "reads or checks"),
    ("looked at", "read or checked"),
    ("a look", "a check"),
    ("look after", "reconcile"),
    ("looks after", "reconciles"),
    ("people on call", "on-call engineers"),
    ("people who", "users that"),
    ("made again", "re-created"),
    ("made anew", "re-created"),
    ("made from", "generated from"),
    ("made up", "synthetic"),
    ("wished for", "desired"),
    ("broken on purpose", "with injected faults"),
    // Terms.
    ("stamp", "fencing token"),
    ("stamps", "fencing tokens"),
    ("heir", "successor"),
    ("give away", "hand over"),
    ("gives away", "hands over"),
    ("given away", "handed over"),
    ("squatter", "identity conflict"),
    ("elders", "joined_existing_fleet"),
    ("reborn", "restart"),
    ("reprieve", "extend_deadline"),
    ("careless", "failpoint"),
    ("planted", "failpoint"),
    ("belongings", "dependents"),
    ("upkeep", "maintenance"),
    ("storm guard", "rate limiter"),
    ("make figures", "make bench-fleet"),
    ("bad days", "outages"),
    ("changes of mind", "watch_mode_switch"),
    ("judge", "checker"),
    ("judges", "checks"),
    ("judged", "checked"),
    ("judgement", "result"),
    ("arena", "environment"),
    ("deed", "operation"),
    ("coax", "prime"),
    ("unsure", "indeterminate"),
    // Names in code.
    ("`Calm`", "Stabilization"),
    ("`Seen`", "Observed"),
    ("`Keeper`", "FenceMonitor"),
    ("`Prover`", "FenceProbe"),
    ("`SecondLook`", "LeaseRefresher"),
    ("`Kept`", "Record"),
    ("`OfKind`", "MetadataRecord"),
    ("`MetadataOf`", "PartialMetadata"),
    ("`Feeds`", "ShardReflector"),
    ("`FirstRuns`", "FirstReconcileTimer"),
    ("`Troubles`", "ApiErrors"),
    ("`LookAgain`", "Retry"),
    ("`Wish`", "LogLevelRequest"),
    ("`carry_out`", "execute"),
    ("`too_little`", "inconclusive"),
];

/// Wire names of earlier versions that contain a banned word.
const FIXED: &[&str] = &["database.io/stamp"];

/// A file, a word in it, and why it stays.
const ALLOWED: &[(&str, &str)] = &[
    // Compared with what the operator and the scripts of the Pods print.
    ("tests/postgres/hazards.rs", "anew"),
    ("tests/postgres/volumes.rs", "anew"),
    // What the earlier version wrote is called a stamp.
    ("tests/upgrade/earlier.rs", "stamp"),
    ("tests/upgrade/main.rs", "stamp"),
];

/// A phrase: its place in [`BANNED`] and its words.
type Phrase = (usize, Vec<&'static str>);

/// All phrases by their first word.
static PHRASES: LazyLock<HashMap<&str, Vec<Phrase>>> = LazyLock::new(|| {
    let mut by_first: HashMap<&str, Vec<Phrase>> = HashMap::new();
    for (index, (banned, _)) in BANNED.iter().enumerate() {
        let phrase: Vec<&str> = banned.split(' ').collect();
        if !banned.starts_with('`') {
            by_first.entry(phrase[0]).or_default().push((index, phrase));
        }
    }
    by_first
});

/// The place of each name in [`BANNED`].
static NAMES: LazyLock<HashMap<&str, usize>> = LazyLock::new(|| {
    let places = BANNED.iter().enumerate();
    let name = |banned: &'static str| banned.strip_prefix('`')?.strip_suffix('`');
    places
        .filter_map(|(index, (banned, _))| Some((name(banned)?, index)))
        .collect()
});

/// A word of a text.
struct Word<'a> {
    /// In lower case.
    lower: String,
    line: usize,
    /// The text between it and the word before.
    gap: &'a str,
}

/// The words of a text. Names are split at `_`, and where a capital letter follows a small one.
fn words(text: &str) -> Vec<Word<'_>> {
    let bytes = text.as_bytes();
    let is_letter = |at: usize| {
        let letter = bytes.get(at);
        letter.is_some_and(|letter| letter.is_ascii_alphanumeric() || !letter.is_ascii())
    };
    let mut found = Vec::new();
    let (mut at, mut end, mut line) = (0, 0, 1);
    while at < bytes.len() {
        if !is_letter(at) {
            line += usize::from(bytes[at] == b'\n');
            at += 1;
            continue;
        }
        let start = at;
        let hump = |at: usize| bytes[at].is_ascii_uppercase() && bytes[at - 1].is_ascii_lowercase();
        at += 1;
        while is_letter(at) && !hump(at) {
            at += 1;
        }
        found.push(Word {
            lower: text[start..at].to_ascii_lowercase(),
            line,
            gap: &text[end..start],
        });
        end = at;
    }
    found
}

/// Whether words with this between them belong to one phrase: also across lines of a comment.
fn joins(gap: &str) -> bool {
    match gap.contains('\n') {
        true => {
            let in_margin = |c: char| c.is_whitespace() || "/!#*".contains(c);
            gap.matches('\n').count() == 1 && gap.chars().all(in_margin)
        }
        false => gap.chars().all(|c| " _-".contains(c)),
    }
}

/// Line and place in [`BANNED`] of each banned phrase.
fn phrases(text: &str) -> Vec<(usize, usize)> {
    let words = words(text);
    let mut found = Vec::new();
    for (at, first) in words.iter().enumerate() {
        for (index, phrase) in PHRASES.get(first.lower.as_str()).into_iter().flatten() {
            let Some(window) = words.get(at..at + phrase.len()) else {
                continue;
            };
            let same = window
                .iter()
                .zip(phrase)
                .all(|(word, wanted)| word.lower == *wanted);
            if same && window.iter().skip(1).all(|word| joins(word.gap)) {
                found.push((first.line, *index));
            }
        }
    }
    found
}

/// Line and place in [`BANNED`] of each banned name in Rust code, outside of comments and strings.
fn names(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let code = code.split('"').step_by(2).collect::<Vec<_>>().join(" ");
        for name in code.split(|c: char| !c.is_alphanumeric() && c != '_') {
            found.extend(NAMES.get(name).map(|index| (number + 1, *index)));
        }
    }
    found
}

/// Line and place in [`BANNED`] of everything banned in a file, its own name included.
fn banned_in(name: &str, text: &str) -> Vec<(usize, usize)> {
    let without_fixed = |text: &str| {
        let fixed = FIXED.iter();
        fixed.fold(text.to_owned(), |text, fixed| text.replace(fixed, "."))
    };
    let text = without_fixed(text);
    let mut found: Vec<(usize, usize)> = phrases(&without_fixed(name))
        .into_iter()
        .map(|(_, index)| (0, index))
        .collect();
    found.extend(phrases(&text));
    if name.ends_with(".rs") {
        found.extend(names(&text));
    }
    found.sort_unstable();
    found
}

/// Name and text of all files that are searched.
fn files() -> Vec<(String, String)> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let mut pending: Vec<PathBuf> = FOLDERS.iter().map(|name| root.join(name)).collect();
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let generated = name.contains("/generated-");
        if SKIPPED.contains(&name.as_str()) || generated || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if EXTENSIONS.contains(&extension.as_ref())
            && let Ok(text) = fs::read_to_string(&path)
        {
            found.push((name, text));
        }
    }
    found.sort();
    found
}

#[test]
fn replaced_words_do_not_come_back() {
    let files = files();
    assert!(files.len() > 200, "only {} files were found", files.len());
    let mut found = Vec::new();
    let mut used = vec![false; ALLOWED.len()];
    for (name, text) in &files {
        for (line, index) in banned_in(name, text) {
            let (banned, instead) = BANNED[index];
            match ALLOWED
                .iter()
                .position(|allowed| *allowed == (name.as_str(), banned))
            {
                Some(allowed) => used[allowed] = true,
                None => found.push(format!("{name}:{line}: {banned:?}: write {instead:?}")),
            }
        }
    }
    let unused = ALLOWED.iter().zip(used).filter(|(_, used)| !used);
    found.extend(
        unused.map(|((name, word), _)| format!("{name}: {word:?} needs no allowance: remove it")),
    );
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn matcher_finds_phrases_and_names_on_word_boundaries() {
    let found = |name: &str, text: &str| -> Vec<(usize, &str)> {
        let found = banned_in(name, text).into_iter();
        found.map(|(line, index)| (line, BANNED[index].0)).collect()
    };
    assert_eq!(found("a.md", "\nIt can not start."), [(2, "can not")]);
    assert_eq!(found("a.md", "Can\n/// not: cannot"), [(1, "can not")]);
    assert_eq!(found("a.md", "Yes, it can\n\nNot now"), []);
    assert_eq!(found("a.rs", "fn it_can_not_start()"), [(1, "can not")]);
    assert_eq!(found("a.md", "It cannot start. You can. Not now."), []);
    assert_eq!(found("a.rs", "let x: Stamp = old;"), [(1, "stamp")]);
    assert_eq!(found("a.rs", "StampedLease, last_stamp"), [(1, "stamp")]);
    assert_eq!(found("a.rs", "let timestamp: Timestamp = now;"), []);
    assert_eq!(found("a.rs", "\"database.io/stamp\""), []);
    assert_eq!(found("bad_days.rs", ""), [(0, "bad days")]);
    assert_eq!(found("a.rs", "use x::Kept; // Kept"), [(1, "`Kept`")]);
    assert_eq!(found("a.rs", "assert!(x, \"Kept: {}\", KeptAll);"), []);
    assert_eq!(found("a.md", "Kept if there are no violations."), []);
}
