//! The admission policies of this operator: what it writes, for the library's generator.

use sharded_controller::fence_policies::{Fence, FencedKind, Owner, OwnerReference};

use crate::api::names::{self, NAMES};
use crate::config::DEFAULT_NAMESPACE;

/// The fence of this operator, installed in `namespace`.
#[must_use]
pub fn fence(namespace: &str) -> Fence {
    let child = |group, resource| FencedKind::new(group, resource, OwnerReference::ByController);
    Fence {
        names: NAMES,
        namespace: namespace.to_owned(),
        service_account: NAMES.app.to_owned(),
        policy_suffix: installation_suffix(namespace),
        owner: Owner {
            group: names::GROUP.to_owned(),
            kind: names::KIND.to_owned(),
            resource: "databaseclusters".to_owned(),
            written: true,
        },
        kinds: vec![
            child("apps", "statefulsets"),
            child("", "services"),
            FencedKind {
                has_subresources: false,
                ..child("", "configmaps")
            },
            FencedKind {
                create_only: true,
                has_subresources: false,
                ..child("", "secrets")
            },
            FencedKind::new("", "persistentvolumeclaims", OwnerReference::ByLabel),
            FencedKind::new("", "pods", OwnerReference::ByToken),
            child("policy", "poddisruptionbudgets"),
        ],
    }
}

/// Ends the names of the cluster-scoped objects of the installation in `namespace`, so that each installation in a
/// cluster has its own. Empty in the default namespace. The chart has the same rule (`operator.suffix`).
fn installation_suffix(namespace: &str) -> String {
    match namespace {
        DEFAULT_NAMESPACE => String::new(),
        other => format!(".{other}"),
    }
}

/// The text of `deploy/base/fence.yaml`.
#[must_use]
pub fn fence_yaml(namespace: &str) -> String {
    HEADER.to_owned() + &fence(namespace).yaml()
}

const HEADER: &str = "\
# Generated, do not edit: change src/operator/src/fence.rs or src/sharded-controller/src/fence_policies and run `make manifests`.
# The fence: the API server itself refuses what a replica of the operator must not write. The policies bind the
# operator's ServiceAccount and ignore all other users; docs/fence.md describes what they guarantee and what they do not.
#
# For another namespace: `databasecluster-operator fence --namespace NAME`, whose policies have names that end with
# `.NAME`. At its start each replica checks that the fence matches it, and reports the result in /readyz.
#
# The CustomResourceDefinition of ShardTables must be served before these policies are applied.
";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_committed_policies_are_the_generated_ones() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base/fence.yaml");
        let generated = fence_yaml("databasecluster-system");
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed == generated,
            "deploy/base/fence.yaml differs from the generator: run `make manifests`"
        );
    }

    #[test]
    fn the_text_is_valid_yaml_with_a_binding_for_each_policy() {
        let text = fence_yaml("here");
        let documents: Vec<serde_json::Value> = text
            .split("---\n")
            .map(|document| serde_saphyr::from_str(document).unwrap())
            .collect();
        let names = |kind: &str| -> Vec<String> {
            let of_kind = documents.iter().filter(|document| document["kind"] == kind);
            of_kind
                .map(|document| document["metadata"]["name"].as_str().unwrap().to_owned())
                .collect()
        };
        let policy_kind = "ValidatingAdmissionPolicy";
        let policies = names(policy_kind);
        assert_eq!(policies.len(), 12);
        let of_here = |name: &String| name.ends_with(".here");
        assert!(policies.iter().all(of_here), "{policies:?}");
        assert!(!fence_yaml(DEFAULT_NAMESPACE).contains("name: databasecluster-fence-order."));
        assert_eq!(policies, names("ValidatingAdmissionPolicyBinding"));
        let account = "system:serviceaccount:here:databasecluster-operator";
        let of_policies = documents
            .iter()
            .filter(|document| document["kind"] == policy_kind);
        for spec in of_policies.map(|document| &document["spec"]) {
            let conditions = spec["matchConditions"].as_array().unwrap();
            let asks_who = format!("request.userInfo.username == '{account}' && ");
            assert_eq!(conditions.len(), 1, "{spec}");
            let condition = conditions[0]["expression"].as_str().unwrap();
            assert!(condition.starts_with(&asks_who), "{spec}");
            assert!(!condition.contains("variables."), "{spec}");
            assert_eq!(spec["validations"].as_array().unwrap().len(), 1, "{spec}");
            assert_eq!(spec["validations"][0]["expression"], "false", "{spec}");
        }
    }
}
