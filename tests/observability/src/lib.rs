//! What the tests of dashboards, alerts and runbooks share: the files as they are, and queries read by a parser.

pub mod alerts;
pub mod catalogue;
pub mod custom_resource_state;
pub mod drawing;
pub mod linter;
pub mod prometheus;
pub mod promql;

use std::path::{Path, PathBuf};

/// A file of the repository.
#[must_use]
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(name)
}

/// The files in a folder of the repository that end in `extension`, by name.
///
/// # Errors
/// When the folder cannot be read.
pub fn files(folder: &str, extension: &str) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(file(folder))? {
        let path = entry?.path();
        if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The name of a file without its folder and extension.
#[must_use]
pub fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
