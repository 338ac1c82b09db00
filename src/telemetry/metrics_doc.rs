//! The page docs/metrics.md, written from the catalogue of metrics.

use std::fmt::Write as _;

use super::metrics::CATALOGUE;

/// The page in Markdown.
#[must_use]
pub fn page() -> String {
    let mut text = "# Metrics\n\nEvery metric that a replica exports on `/metrics`. This page is \
                    generated: after a change, run `UPDATE_DOCS=1 cargo test --test docs`.\n\n\
                    | name | type | labels | meaning |\n| --- | --- | --- | --- |\n"
        .to_owned();
    let mut rows: Vec<_> = CATALOGUE.iter().collect();
    rows.sort_by_key(|metric| metric.name);
    for metric in rows {
        let labels: Vec<String> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        // A bar would end the cell.
        let help = metric.help.replace('|', "\\|");
        // Writing into a String can not fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {help} |",
            metric.name,
            metric.kind,
            labels.join(", ")
        );
    }
    text
}
