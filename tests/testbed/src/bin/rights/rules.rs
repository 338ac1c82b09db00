//! Rights, one by one: of which namespace, verb, group and resource.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The scope of a right or a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// In the operator's own namespace.
    Own,
    /// In the namespaces of DatabaseClusters, or in all of them at once.
    Elsewhere,
}

/// One verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Right {
    pub(crate) scope: Scope,
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) verb: String,
}

impl Right {
    /// Whether a request needs this right.
    pub(crate) fn covers(&self, request: &Self) -> bool {
        self == request
    }

    /// Without the scope.
    pub(crate) fn name(&self) -> String {
        let group = if self.group.is_empty() {
            "core"
        } else {
            &self.group
        };
        format!("{} {group}/{}", self.verb, self.resource)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.scope {
            Scope::Own => "in the operator's namespace",
            Scope::Elsewhere => "where DatabaseClusters are",
        };
        write!(f, "{} {place}", self.name())
    }
}

#[derive(Deserialize)]
struct Role {
    kind: String,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

/// All rights of the roles in a text.
///
/// # Errors
/// When it cannot be parsed, or grants anything at all by a `*`.
pub(crate) fn granted(text: &str) -> Result<BTreeSet<Right>> {
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(text).context("understand the rights")?;
    let mut found = BTreeSet::new();
    for document in documents {
        let Ok(role) = serde_json::from_value::<Role>(document) else {
            continue;
        };
        let scope = match role.kind.as_str() {
            "Role" => Scope::Own,
            "ClusterRole" => Scope::Elsewhere,
            _ => continue,
        };
        for rule in role.rules {
            for (group, resource, verb) in each(&rule) {
                if [&group, &resource, &verb]
                    .iter()
                    .any(|word| word.contains('*'))
                {
                    bail!("{verb} {group}/{resource}: no right may be a *");
                }
                found.insert(Right {
                    scope,
                    group,
                    resource,
                    verb,
                });
            }
        }
    }
    Ok(found)
}

fn each(rule: &Rule) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for group in &rule.api_groups {
        for resource in &rule.resources {
            for verb in &rule.verbs {
                all.push((group.clone(), resource.clone(), verb.clone()));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rights_are_distinguished_by_scope_and_wildcards_are_rejected() {
        let text = "kind: Role\nrules:\n- apiGroups: ['']\n  resources: [pods]\n  verbs: [get, list]\n---\n\
                    kind: ClusterRole\nrules:\n- apiGroups: [apps]\n  resources: [x/status]\n  verbs: [patch]\n---\n\
                    kind: ServiceAccount\n";
        let names: Vec<String> = granted(text)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            names,
            [
                "get core/pods in the operator's namespace",
                "list core/pods in the operator's namespace",
                "patch apps/x/status where DatabaseClusters are",
            ]
        );
        assert!(granted(&text.replace("[pods]", "['*']")).is_err());
    }
}
