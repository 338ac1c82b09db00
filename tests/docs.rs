//! Pages that are generated from the code match it. `UPDATE_DOCS=1` writes them anew.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use databasecluster_operator::telemetry::metrics_doc;

#[test]
fn the_page_of_metrics_matches_the_catalogue() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let expected = metrics_doc::page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/metrics.md is out of date: run UPDATE_DOCS=1 cargo test --test docs"
    );
}
