//! The output of `cargo metadata` about the packages of a build, as far as it matters here.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// All packages, and the graph of those that are used.
#[derive(Clone, Debug, Deserialize)]
pub struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) resolve: Resolve,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    /// None: ours.
    pub(crate) source: Option<String>,
    pub(crate) repository: Option<String>,
    #[serde(default)]
    pub(crate) dependencies: Vec<Requirement>,
}

/// What a package's manifest asks for.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Requirement {
    pub(crate) name: String,
    pub(crate) req: String,
    pub(crate) path: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Resolve {
    pub(crate) nodes: Vec<Node>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) deps: Vec<Dependency>,
}

/// The arguments of a package.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) pkg: String,
    pub(crate) dep_kinds: Vec<Kind>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Kind {
    /// None: a normal dependency; others are `dev` and `build`.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// Asks cargo about the workspace in the current folder, for one target, with `more` arguments.
    ///
    /// # Errors
    /// When cargo does not run, fails, or prints something else.
    pub fn of_workspace(target: &str, more: &[&str]) -> Result<Self> {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["metadata", "--locked", "--format-version", "1"])
            .args(["--filter-platform", target])
            .args(more)
            .output()
            .context("run cargo metadata")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("cargo metadata: {}", said.trim());
        }
        serde_json::from_slice(&output.stdout).context("understand cargo metadata")
    }
}
