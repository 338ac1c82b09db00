//! What docs/performance.md and README.md show of the committed results.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testbed::fleet::repository;

use super::micro::{self, Micro};
use super::results::{Loading, Results, Size};
use super::{growth, million, plot, table};

const FOLDER: &str = "docs/performance";
const PAGE: &str = "docs/performance.md";
const README: &str = "README.md";
const PICTURE: &str = "docs/performance/bench.svg";
const END: &str = "<!-- End of what is generated -->\n";
/// README.md shows the results with so many clusters, or else with the nearest number.
const HEADLINE_CLUSTERS: usize = 500;

/// What `make bench-docs` does.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Results of `make bench` to commit; what has been committed of other numbers of clusters stays.
    #[arg(long)]
    bench: Option<PathBuf>,
    /// Criterion's folder, with the results of `make bench-micro` to commit.
    #[arg(long)]
    micro: Option<PathBuf>,
}

/// Takes new results into docs/performance, where there are any, and writes the pages that show them.
pub(crate) fn update(options: &Options) -> Result<()> {
    let folder = repository().join(FOLDER);
    if let Some(path) = options.bench.as_deref().filter(|path| path.exists()) {
        let committed = folder.join("bench.json");
        let mut results = Results::read(&committed)?;
        for size in Results::read(path)?.sizes {
            println!("{}: {}", path.display(), table::heading(&size));
            results.replace(size);
        }
        results.write(&committed)?;
    }
    if let Some(path) = options.micro.as_deref().filter(|path| path.exists()) {
        let text = serde_json::to_string_pretty(&micro::collect(path)?)?;
        let file = folder.join("micro.json");
        std::fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    for (path, text) in pages()? {
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Every generated file, as it should be.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    let root = repository();
    let results = Results::read(&root.join(FOLDER).join("bench.json"))?;
    let micro = root.join(FOLDER).join("micro.json");
    let micro: Vec<Micro> = match std::fs::read_to_string(&micro) {
        Ok(text) => serde_json::from_str(&text).context("read micro.json")?,
        Err(_) => Vec::new(),
    };
    let tables: Vec<String> = results.sizes.iter().map(table::markdown).collect();
    let sections = [
        ("results", tables.join("\n")),
        ("growth", growth::markdown(&results)),
        ("micro", micro::markdown(&micro)),
        ("million", million::markdown(&results)?),
    ];
    let mut page = read(&root.join(PAGE))?;
    for (name, text) in sections {
        page = replaced(&page, name, &text).with_context(|| PAGE.to_owned())?;
    }
    let headline = headline(&results).map(table::headline);
    let readme = read(&root.join(README))?;
    let readme = replaced(&readme, "headline", &headline.unwrap_or_default());
    Ok(vec![
        (root.join(PAGE), page),
        (root.join(README), readme.context(README)?),
        (root.join(PICTURE), plot::draw(&results)?),
    ])
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The results that README.md shows.
fn headline(results: &Results) -> Option<&Size> {
    let created = results
        .sizes
        .iter()
        .filter(|size| size.loading == Loading::Created);
    created.min_by_key(|size| size.clusters.abs_diff(HEADLINE_CLUSTERS))
}

/// The page with this text between the marks of a section.
fn replaced(page: &str, name: &str, text: &str) -> Result<String> {
    let begin = format!("<!-- Generated from docs/performance, {name}: make bench-docs -->\n");
    let (before, rest) = page
        .split_once(&begin)
        .with_context(|| format!("there is no line {begin}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("{name} does not end with {END}"))?;
    Ok(format!("{before}{begin}\n{text}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::bench::results::tests::{empty, size};

    #[test]
    fn pages_show_the_committed_results() {
        for (path, expected) in pages().unwrap() {
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == expected,
                "{} is out of date: run make bench-docs",
                path.display()
            );
        }
    }

    #[test]
    fn only_the_text_between_the_marks_is_replaced() {
        let begin = "<!-- Generated from docs/performance, a: make bench-docs -->\n";
        let page = format!("x\n{begin}old\n{END}y\n");
        let expected = format!("x\n{begin}\nnew\n\n{END}y\n");
        let once = replaced(&page, "a", "new\n").unwrap();
        assert_eq!(once, expected);
        assert_eq!(replaced(&once, "a", "new\n").unwrap(), expected);
        assert!(replaced(&page, "b", "new").is_err());
    }

    #[test]
    fn headline_shows_created_clusters_near_500() {
        let mut results = Results::default();
        results.replace(size());
        results.replace(empty(600));
        let mut copied = empty(501);
        copied.loading = Loading::Copied;
        results.replace(copied);
        assert_eq!(headline(&results).unwrap().clusters, 600);
    }
}
