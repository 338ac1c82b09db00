//! Licences, unwanted crates and sources, by the rules of `deny.toml` and the output of `cargo metadata`: the part of
//! cargo-deny that a test run can afford. Advisories are cargo-deny's, in the release workflow.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::Deserialize;
use spdx::{Expression, LicenseReq, ParseMode};

use crate::metadata::{Metadata, Package, Requirement};

/// The rules, as far as they are checked here.
#[derive(Clone, Debug, Deserialize)]
pub struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Clone, Debug, Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Clone, Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

impl Rules {
    /// The rules of a `deny.toml`.
    ///
    /// # Errors
    /// When it cannot be parsed.
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).context("understand deny.toml")
    }

    /// The targets that count.
    #[must_use]
    pub fn targets(&self) -> &[String] {
        &self.graph.targets
    }

    /// What is wrong with the packages that are in the graph, one line each.
    #[must_use]
    pub fn violations(&self, metadata: &Metadata) -> Vec<String> {
        let used: BTreeSet<&str> = metadata
            .resolve
            .nodes
            .iter()
            .map(|n| n.id.as_str())
            .collect();
        let mut found = Vec::new();
        for package in metadata
            .packages
            .iter()
            .filter(|p| used.contains(p.id.as_str()))
        {
            let problems = [
                self.license(package),
                self.source(package),
                self.banned(package),
                wildcard(package),
            ];
            let named = |problem| format!("{} {}: {problem}", package.name, package.version);
            found.extend(problems.into_iter().flatten().map(named));
        }
        found
    }

    fn license(&self, package: &Package) -> Option<String> {
        let Some(text) = &package.license else {
            return Some("it names no licence".to_owned());
        };
        let expression = match Expression::parse_mode(text, ParseMode::LAX) {
            Ok(expression) => expression,
            Err(error) => {
                return Some(format!("its licence {text:?} cannot be parsed: {error}"));
            }
        };
        let is_allowed = |asked: &LicenseReq| self.licenses.allow.contains(&asked.to_string());
        (!expression.evaluate(is_allowed))
            .then(|| format!("its licence {text} is not among those allowed"))
    }

    fn source(&self, package: &Package) -> Option<String> {
        // Ours.
        let source = package.source.as_deref()?;
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        let allowed = self
            .sources
            .allow_registry
            .iter()
            .any(|allowed| allowed == registry);
        (!allowed).then(|| format!("it comes from {source}"))
    }

    fn banned(&self, package: &Package) -> Option<String> {
        let banned = self
            .bans
            .deny
            .iter()
            .find(|banned| banned.name == package.name)?;
        Some(format!("not wanted: {}", banned.reason))
    }
}

/// Of our own packages only: others' are locked.
fn wildcard(package: &Package) -> Option<String> {
    let ours = package.source.is_none();
    let wild = |needs: &&Requirement| needs.req == "*" && needs.path.is_none();
    let found = package.dependencies.iter().find(wild).filter(|_| ours)?;
    Some(format!("it takes any version of {}", found.name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    const RULES: &str = r#"
        [graph]
        targets = ["a"]
        [licenses]
        allow = ["MIT", "Apache-2.0 WITH LLVM-exception"]
        [bans]
        deny = [{ crate = "bad", reason = "why" }]
        [sources]
        allow-registry = ["https://r"]
    "#;

    fn violations(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut package = json!({"id": "x", "name": "x", "version": "1.0.0", "license": "MIT",
            "source": "registry+https://r", "dependencies": []});
        change(&mut package);
        let metadata = json!({"packages": [package], "resolve": {"nodes": [{"id": "x"}]}});
        Rules::parse(RULES)
            .unwrap()
            .violations(&serde_json::from_value(metadata).unwrap())
    }

    #[test]
    fn dependency_rules_hold_and_violations_are_detected() {
        for fine in [
            "MIT",
            "GPL-3.0-only OR MIT",
            "MIT/GPL-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(
                violations(|p| p["license"] = json!(fine)),
                Vec::<String>::new(),
                "{fine}"
            );
        }
        for wrong in [
            "GPL-3.0-only",
            "MIT AND GPL-3.0-only",
            "Apache-2.0",
            "whatever",
        ] {
            assert_eq!(
                violations(|p| p["license"] = json!(wrong)).len(),
                1,
                "{wrong}"
            );
        }
        assert!(violations(|p| p["license"] = Value::Null)[0].contains("no licence"));
        assert!(violations(|p| p["name"] = json!("bad"))[0].contains("why"));
        assert!(violations(|p| p["source"] = json!("git+https://g"))[0].contains("git+https://g"));
        let wild = json!([{"name": "y", "req": "*", "path": null}]);
        assert!(
            violations(|p| p["dependencies"] = wild.clone()).is_empty(),
            "not ours"
        );
        let ours = violations(|p| {
            p["dependencies"] = wild.clone();
            p["source"] = Value::Null;
        });
        assert!(ours[0].contains("any version of y"), "{ours:?}");
    }
}
