//! Vocabulary as a test: words that the project has replaced do not come back, neither in prose nor in names.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Folders and files that are searched.
const FOLDERS: &[&str] = &[
    ".ci",
    "CHANGELOG.md",
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
    "deploy/chart/templates/generated-crd.yaml",
    "deploy/chart/dashboards",
    "deploy/components/alerts/prometheusrule.yaml",
    "deploy/install.yaml",
    "deploy/olm/manifests",
    "docs/glossary.md",
    "tests/golden",
    "tests/upgrade/cc6f500",
    "tests/vocabulary.rs",
];

const EXTENSIONS: &[&str] = &[
    "go", "jq", "json", "md", "rs", "sh", "toml", "yaml", "yml", "",
];

/// What encloses the generated table in docs/glossary.md.
const TABLE_BEGIN: &str =
    "<!-- Generated from tests/vocabulary.rs: UPDATE_DOCS=1 cargo test --test vocabulary -->\n";
const TABLE_END: &str = "<!-- End of what is generated -->\n";

/// What is banned, and what to write instead. docs/glossary.md has this table for readers.
///
/// Words match in prose and as parts of names, in any case: `heir` matches `is_heir` and `HeirLease`. Several words
/// match when nothing but spaces, `_`, `-` or the end of a line separates them. A name in backticks matches in Rust
/// code only, as a whole and in its case: there the word has a meaning of its own, in prose it has not.
const BANNED: &[(&[&str], &str)] = &[
    // Phrases.
    (&["can not"], "cannot"),
    (
        &["cannot be had", "may not be had", "is not to be had"],
        "is not available",
    ),
    (&["anew"], "again"),
    (&["made again", "made anew"], "re-created"),
    (&["wherefore"], "why"),
    (&["who leaves"], "the leaving replica"),
    (&["who holds it"], "the holder"),
    (
        &["who asks", "whoever", "whomever"],
        "the caller, any client, every writer",
    ),
    (
        &["tell", "tells", "telling"],
        "report, log, show; distinguish from",
    ),
    (&["told"], "reported"),
    (&["look at", "looks at", "looked at"], "read, check"),
    (&["look again", "look agains"], "retry, check again"),
    (&["a look", "a fresh look"], "a check, a fresh read"),
    (&["look after", "looks after", "looked after"], "reconcile"),
    (&["people on call"], "on-call engineers"),
    (&["people who"], "users that, engineers that"),
    (&["made from"], "generated from, rendered from"),
    (&["made up"], "synthetic, constructed"),
    (&["wished for"], "desired"),
    (
        &["put right", "puts right", "mended"],
        "restored, corrected, repaired, fixed",
    ),
    (&["broken on purpose"], "with injected faults"),
    // Terms.
    (&["stamp", "stamps"], "fencing token"),
    (&["tenure", "tenures"], "permit"),
    (&["heir", "heirs"], "successor"),
    (&["give away", "gives away", "given away"], "hand over"),
    (&["giver"], "holder"),
    (&["squatter"], "identity conflict"),
    (&["elders"], "existing fleet"),
    (&["reborn"], "restart"),
    (&["reprieve"], "extended deadline"),
    (
        &["fence keeper", "health keeper"],
        "fence monitor, health loop",
    ),
    (&["prover"], "fence probe"),
    (&["second look"], "fresh read"),
    (&["careless", "plant", "plants", "planted"], "failpoint"),
    (&["belongings"], "dependents"),
    (&["upkeep"], "maintenance"),
    (&["storm guard"], "rate limiter"),
    (&["make figures"], "make bench-fleet"),
    (&["wish"], "request"),
    (&["bad days"], "outages"),
    (&["change of mind", "changes of mind"], "watch mode switch"),
    (&["judge", "judges", "judged"], "checker; check, classify"),
    (&["judgement"], "result"),
    (&["arena"], "environment"),
    (&["deed"], "operation"),
    (&["coax"], "prime"),
    (&["unsure"], "indeterminate"),
    // Names in code.
    (&["`Calm`"], "Stabilization"),
    (&["`Seen`"], "Observed"),
    (&["`Keeper`"], "FenceMonitor"),
    (&["`SecondLook`"], "LeaseRefresher"),
    (&["`Kept`"], "Record"),
    (&["`OfKind`"], "MetadataRecord"),
    (&["`MetadataOf`"], "PartialMetadata"),
    (&["`Feeds`"], "ShardReflector"),
    (&["`FirstRuns`"], "FirstReconcileTimer"),
    (&["`Troubles`"], "ApiErrors"),
    (&["`LookAgain`"], "Retry"),
    (&["`carry_out`"], "execute"),
    (&["`too_little`"], "inconclusive"),
];

/// Wire names that contain a banned word, and never change.
const FIXED: &[&str] = &["database.io/stamp", "tenure_lost_total"];

/// A file, a word in it, and why it stays.
const ALLOWED: &[(&str, &str)] = &[
    // Former names of tools, in the entry that replaces them.
    ("CHANGELOG.md", "judge"),
    ("CHANGELOG.md", "make figures"),
    ("CHANGELOG.md", "planted"),
    // What the earlier version wrote is called a stamp.
    ("tests/upgrade/earlier.rs", "stamp"),
    ("tests/upgrade/main.rs", "stamp"),
];

/// What is banned, with what to write instead.
type Banned = (&'static str, &'static str);

/// One by one what [`BANNED`] has in rows.
fn all_banned() -> impl Iterator<Item = Banned> {
    let rows = BANNED.iter();
    rows.flat_map(|(banned, instead)| banned.iter().map(|banned| (*banned, *instead)))
}

/// What is banned, with its words.
type Phrase = (Banned, Vec<&'static str>);

/// All phrases by their first word.
static PHRASES: LazyLock<HashMap<&str, Vec<Phrase>>> = LazyLock::new(|| {
    let mut by_first: HashMap<&str, Vec<Phrase>> = HashMap::new();
    for banned in all_banned().filter(|(banned, _)| !banned.starts_with('`')) {
        let phrase: Vec<&str> = banned.0.split(' ').collect();
        let first = by_first.entry(phrase[0]).or_default();
        first.push((banned, phrase));
    }
    by_first
});

/// All names in code.
static NAMES: LazyLock<HashMap<&str, Banned>> = LazyLock::new(|| {
    let name = |banned: &'static str| banned.strip_prefix('`')?.strip_suffix('`');
    all_banned()
        .filter_map(|banned| Some((name(banned.0)?, banned)))
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

/// Each banned phrase, with its line.
fn phrases(text: &str) -> Vec<(usize, Banned)> {
    let words = words(text);
    let mut found = Vec::new();
    for (at, first) in words.iter().enumerate() {
        for (banned, phrase) in PHRASES.get(first.lower.as_str()).into_iter().flatten() {
            let Some(window) = words.get(at..at + phrase.len()) else {
                continue;
            };
            let same = window
                .iter()
                .zip(phrase)
                .all(|(word, wanted)| word.lower == *wanted);
            if same && window.iter().skip(1).all(|word| joins(word.gap)) {
                found.push((first.line, *banned));
            }
        }
    }
    found
}

/// Each banned name in Rust code outside of comments and strings, with its line.
fn names(text: &str) -> Vec<(usize, Banned)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let code = code.split('"').step_by(2).collect::<Vec<_>>().join(" ");
        for name in code.split(|c: char| !c.is_alphanumeric() && c != '_') {
            found.extend(NAMES.get(name).map(|banned| (number + 1, *banned)));
        }
    }
    found
}

/// Everything banned in a file, its own name included, with its line; 0 is the name.
fn banned_in(name: &str, text: &str) -> Vec<(usize, Banned)> {
    let without_fixed = |text: &str| {
        let fixed = FIXED.iter();
        fixed.fold(text.to_owned(), |text, fixed| text.replace(fixed, "."))
    };
    let text = without_fixed(text);
    let mut found: Vec<(usize, Banned)> = phrases(&without_fixed(name))
        .into_iter()
        .map(|(_, banned)| (0, banned))
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

/// The table for readers: a row for each of [`BANNED`].
fn glossary_table() -> String {
    let mut table = "| do not write | write |\n| --- | --- |\n".to_owned();
    for (banned, instead) in BANNED {
        let banned = banned.iter().map(|word| match word.starts_with('`') {
            true => format!("{word} (in code)"),
            false => (*word).to_owned(),
        });
        let banned = banned.collect::<Vec<_>>().join(", ");
        let rust_name = |c: char| c.is_ascii_uppercase() || c == '_';
        let instead = match instead.contains(rust_name) {
            true => format!("`{instead}`"),
            false => (*instead).to_owned(),
        };
        table.push_str(&format!("| {banned} | {instead} |\n"));
    }
    table
}

#[test]
fn glossary_lists_the_replaced_words() {
    let path = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/glossary.md"
    ));
    let page = fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(TABLE_BEGIN).unwrap();
    let (_, after) = rest.split_once(TABLE_END).unwrap();
    let expected = format!(
        "{before}{TABLE_BEGIN}{}{TABLE_END}{after}",
        glossary_table()
    );
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, &expected).unwrap();
    }
    assert!(
        fs::read_to_string(path).unwrap() == expected,
        "docs/glossary.md is out of date: run UPDATE_DOCS=1 cargo test --test vocabulary"
    );
}

#[test]
fn replaced_words_do_not_come_back() {
    let files = files();
    assert!(files.len() > 200, "only {} files were found", files.len());
    let mut found = Vec::new();
    let mut used = vec![false; ALLOWED.len()];
    for (name, text) in &files {
        for (line, (banned, instead)) in banned_in(name, text) {
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
        found.map(|(line, (banned, _))| (line, banned)).collect()
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
