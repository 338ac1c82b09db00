//! The scenario files of this repository.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::scenario::{Scenario, Set};

/// Where they are.
#[must_use]
pub fn folder() -> PathBuf {
    testbed::fleet::repository().join("chaos/scenarios")
}

/// All of them, by name.
///
/// # Errors
/// When one cannot be parsed.
pub fn all() -> Result<Vec<Scenario>> {
    let folder = folder();
    let what = || format!("read {}", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(what)? {
        let path = entry.with_context(what)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| Scenario::read(path)).collect()
}

/// Those of one set.
///
/// # Errors
/// As [`all`].
pub fn of_set(set: Set) -> Result<Vec<Scenario>> {
    let mut found = all()?;
    found.retain(|scenario| scenario.sets.contains(&set));
    Ok(found)
}
