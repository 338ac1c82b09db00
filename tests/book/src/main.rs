//! Builds `docs/` as a site with mdBook, and checks each link and anchor of the result: `book DOCS OUT`.
//!
//! Pages link to files of the repository outside of `docs/`. On the site these links go to the repository, whose address
//! is `BOOK_REPOSITORY`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use mdbook_driver::MDBook;
use mdbook_driver::book::{Book, BookItem};

const REPOSITORY: &str = "https://example.com/databasecluster-operator";

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [docs, out] = arguments.as_slice() else {
        eprintln!("book: two arguments are needed: the folder docs, and an output folder");
        return ExitCode::from(2);
    };
    match build(docs, out) {
        Ok(pages) => {
            println!("{pages} pages in {}", out.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("book: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build(docs: &Path, out: &Path) -> Result<usize> {
    let docs = docs.canonicalize().context("find the folder docs")?;
    fs::create_dir_all(out)?;
    let out = out.canonicalize()?;
    let mut book = MDBook::load(&docs)?;
    book.config.build.build_dir = out.clone();
    // A page that SUMMARY.md names and that does not exist is an error.
    book.config.build.create_missing = false;
    let missing = pages_not_in(&book.book, &docs)?;
    if !missing.is_empty() {
        bail!("SUMMARY.md does not name: {}", missing.join(", "));
    }
    let repository = std::env::var("BOOK_REPOSITORY").unwrap_or_else(|_| REPOSITORY.to_owned());
    let mut outside = Vec::new();
    book.book.for_each_mut(|item| {
        if let BookItem::Chapter(chapter) = item
            && let Some(path) = chapter.source_path.clone()
        {
            let links = Links {
                page: &path,
                docs: &docs,
                repository: &repository,
            };
            chapter.content = links.rewrite(&chapter.content, &mut outside);
        }
    });
    if !outside.is_empty() {
        bail!("links to files that do not exist:\n{}", outside.join("\n"));
    }
    book.build()?;
    check(&out)
}

/// Pages below `docs` that are not part of the book.
fn pages_not_in(book: &Book, docs: &Path) -> Result<Vec<String>> {
    let named: BTreeSet<PathBuf> = book
        .iter()
        .filter_map(|item| match item {
            BookItem::Chapter(chapter) => chapter.source_path.clone(),
            _ => None,
        })
        .collect();
    let mut missing = Vec::new();
    for path in files(docs)? {
        let name = path.strip_prefix(docs)?;
        let is_page =
            name.extension().is_some_and(|e| e == "md") && name != Path::new("SUMMARY.md");
        if is_page && !named.contains(name) {
            missing.push(name.display().to_string());
        }
    }
    Ok(missing)
}

/// The links of one page.
struct Links<'a> {
    /// Below `docs`.
    page: &'a Path,
    docs: &'a Path,
    repository: &'a str,
}

impl Links<'_> {
    fn rewrite(&self, text: &str, missing: &mut Vec<String>) -> String {
        let mut made = String::new();
        let mut is_code = false;
        for line in text.split_inclusive('\n') {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            }
            if is_code {
                made.push_str(line);
                continue;
            }
            let mut parts = line.split("](");
            made.push_str(parts.next().unwrap_or_default());
            for part in parts {
                let end = part.find([')', ' ']).unwrap_or(part.len());
                let (target, rest) = part.split_at(end);
                made.push_str("](");
                made.push_str(&self.target(target).unwrap_or_else(|| {
                    missing.push(format!("{}: {target}", self.page.display()));
                    target.to_owned()
                }));
                made.push_str(rest);
            }
        }
        made
    }

    /// None: there is no such file.
    fn target(&self, target: &str) -> Option<String> {
        let (path, anchor) = match target.split_once('#') {
            Some((path, anchor)) => (path, format!("#{anchor}")),
            None => (target, String::new()),
        };
        if path.is_empty() || path.contains(':') {
            return Some(target.to_owned());
        }
        let repository = self.docs.parent()?;
        let file = flat(&self.docs.join(self.page).parent()?.join(path));
        if !file.exists() {
            return None;
        }
        if let Ok(inside) = file.strip_prefix(self.docs) {
            // mdBook names the page of a folder index.html.
            let is_index = inside.file_name().is_some_and(|name| name == "README.md");
            return Some(match is_index {
                true => format!("{}index.md{anchor}", path.strip_suffix("README.md")?),
                false => target.to_owned(),
            });
        }
        let inside = file.strip_prefix(repository).ok()?;
        Some(format!(
            "{}/blob/main/{}{anchor}",
            self.repository,
            inside.display()
        ))
    }
}

/// The path without `..`.
fn flat(path: &Path) -> PathBuf {
    let mut flat = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                flat.pop();
            }
            part => flat.push(part),
        }
    }
    flat
}

/// Each link of the site to the site leads to a page, and to a place in it. The number of pages.
fn check(out: &Path) -> Result<usize> {
    let mut pages = BTreeMap::new();
    for path in files(out)? {
        if path
            .extension()
            .is_some_and(|extension| extension == "html")
        {
            pages.insert(path.clone(), fs::read_to_string(&path)?);
        }
    }
    let anchors: BTreeMap<&PathBuf, BTreeSet<&str>> = pages
        .iter()
        .map(|(path, text)| (path, attributes(text, "id").collect()))
        .collect();
    let mut broken = Vec::new();
    for (path, text) in &pages {
        for link in attributes(text, "href").chain(attributes(text, "src")) {
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            if target.contains(':') || target.starts_with('/') {
                continue;
            }
            let folder = path
                .parent()
                .ok_or_else(|| anyhow!("{} has no folder", path.display()))?;
            let file = match target {
                "" => path.clone(),
                target => flat(&folder.join(target)),
            };
            let is_there = match anchors.get(&file) {
                Some(anchors) => anchor.is_empty() || anchors.contains(anchor),
                None => file.exists(),
            };
            // The single page to print repeats all others, with links of its own.
            if !is_there && !path.ends_with("print.html") {
                broken.push(format!("{}: {link}", path.strip_prefix(out)?.display()));
            }
        }
    }
    if !broken.is_empty() {
        bail!("broken links:\n{}", broken.join("\n"));
    }
    Ok(pages.len())
}

/// The values of an attribute.
fn attributes<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let begin = format!(" {name}=\"");
    let mut rest = text;
    std::iter::from_fn(move || {
        let at = rest.find(&begin)? + begin.len();
        let end = at + rest[at..].find('"')?;
        let value = &rest[at..end];
        rest = &rest[end..];
        Some(value)
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path)
            } else {
                found.push(path)
            }
        }
    }
    found.sort();
    Ok(found)
}
