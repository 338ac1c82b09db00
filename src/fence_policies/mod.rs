//! The fence's admission policies, generated from the names of an operator and the kinds that it writes.
//!
//! Everything that is specific to one operator is in one value, [`Fence`]. Expressions contain placeholders
//! such as `$DOMAIN`, which [`Fence::fill`] replaces.
//!
//! Requirements for the expressions:
//! - They must not fail on any input: an error is a refusal.
//! - Only the match condition is evaluated for every write: see [`policy`].

mod limits;
mod locks;
mod policy;
mod tokens;

use policy::ResourceRule;

/// Highest epoch: 2^20 below the limit of 32 bits.
const EPOCH_MAX: u32 = i32::MAX as u32 - (1 << 20);
/// Most by which one write raises the epoch of a shard Lease.
const EPOCH_STEP_MAX: u32 = 1 << 20;
/// Longest fencing token, in bytes.
const TOKEN_BYTES_MAX: usize = 400;

/// An operator, as far as its fence depends on it.
#[derive(Clone, Debug)]
pub struct Fence {
    /// Prefix of the policies' names.
    pub prefix: String,
    /// Value of the label `app.kubernetes.io/name` of everything that belongs to the operator.
    pub app: String,
    /// Domain of labels and annotations, and API group of the shard table.
    pub domain: String,
    /// Namespace of the operator.
    pub namespace: String,
    /// ServiceAccount of the operator.
    pub service_account: String,
    /// Prefix of the names of shard Leases; three digits follow.
    pub shard_lease_prefix: String,
    /// Name of the shard table.
    pub table: String,
    /// The kind whose objects the operator reconciles.
    pub owner: Owner,
    /// The other kinds that it writes.
    pub kinds: Vec<FencedKind>,
}

/// The kind whose objects an operator reconciles. It has the subresource `status` with a field `shard`.
#[derive(Clone, Debug)]
pub struct Owner {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Plural name of the resource.
    pub resource: String,
}

/// A kind that an operator writes on behalf of its owner kind.
#[derive(Clone, Debug)]
pub struct FencedKind {
    /// API group; empty: the core group.
    pub group: String,
    /// Plural name of the resource. No two kinds of one fence may share it.
    pub resource: String,
    /// How an object identifies its owner.
    pub owner_reference: OwnerReference,
    /// The operator creates such objects, and never changes or deletes them.
    pub create_only: bool,
    /// The kind has subresources that change objects.
    pub has_subresources: bool,
}

/// How an object identifies its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerReference {
    /// By its controller reference, which the operator sets.
    ByController,
    /// By the label `<domain>/cluster-uid`: it outlives its owner, and another one may adopt it.
    ByLabel,
    /// By nothing that a policy can read; only its token names the owner.
    ByToken,
}

impl FencedKind {
    fn new(group: &str, resource: &str, owner_reference: OwnerReference) -> Self {
        Self {
            group: group.to_owned(),
            resource: resource.to_owned(),
            owner_reference,
            create_only: false,
            has_subresources: true,
        }
    }
}

impl Fence {
    /// The fence of this operator, installed in `namespace`.
    #[must_use]
    pub fn of_this_operator(namespace: &str) -> Self {
        use crate::api::names;
        let child =
            |group, resource| FencedKind::new(group, resource, OwnerReference::ByController);
        Self {
            prefix: "databasecluster".to_owned(),
            app: names::MANAGED_BY.to_owned(),
            domain: names::GROUP.to_owned(),
            namespace: namespace.to_owned(),
            service_account: "databasecluster-operator".to_owned(),
            shard_lease_prefix: "databasecluster-shard-".to_owned(),
            table: "databasecluster-shards".to_owned(),
            owner: Owner {
                group: names::GROUP.to_owned(),
                kind: names::KIND.to_owned(),
                resource: "databaseclusters".to_owned(),
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

    /// All policies with their bindings, as YAML documents with comments.
    #[must_use]
    pub fn yaml(&self) -> String {
        let policies = [
            tokens::holder(self),
            tokens::owners(self),
            tokens::order(self),
            tokens::owners_order(self),
            limits::stateful_sets(self),
            limits::services(self),
            limits::secrets(self),
            limits::pods(self),
            limits::owners(self),
            limits::namespaces(self),
            locks::leases(self),
            locks::table(self),
        ];
        let documents: Vec<String> = policies.iter().map(|policy| policy.yaml(self)).collect();
        self.fill(HEADER) + &documents.join("---\n")
    }

    /// Replaces the placeholders of a text.
    fn fill(&self, text: &str) -> String {
        let lease_digits_at = self.shard_lease_prefix.len().to_string();
        let user = format!(
            "system:serviceaccount:{}:{}",
            self.namespace, self.service_account
        );
        [
            ("$USER", user.as_str()),
            ("$NAMESPACE", &self.namespace),
            ("$PREFIX", &self.prefix),
            ("$APP", &self.app),
            ("$DOMAIN", &self.domain),
            ("$LEASE_DIGITS_AT", &lease_digits_at),
            ("$LEASE", &self.shard_lease_prefix),
            ("$TABLE", &self.table),
            ("$OWNER_GROUP", &self.owner.group),
            ("$OWNER_KIND", &self.owner.kind),
            ("$OWNERS", &self.owner.resource),
            ("$BY_LABEL", &self.resources(OwnerReference::ByLabel)),
            ("$BY_TOKEN", &self.resources(OwnerReference::ByToken)),
            ("$CREATE_ONLY", &self.create_only()),
            ("$EPOCH_MAX", &EPOCH_MAX.to_string()),
            ("$EPOCH_STEP_MAX", &EPOCH_STEP_MAX.to_string()),
            ("$TOKEN_BYTES_MAX", &TOKEN_BYTES_MAX.to_string()),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        })
    }

    fn resources(&self, owner_reference: OwnerReference) -> String {
        let chosen = self
            .kinds
            .iter()
            .filter(|kind| kind.owner_reference == owner_reference);
        list(chosen)
    }

    fn create_only(&self) -> String {
        list(self.kinds.iter().filter(|kind| kind.create_only))
    }

    /// Rules for the fenced kinds, by API group.
    fn rules(&self, with_subresources: bool) -> Vec<ResourceRule> {
        let mut rules: Vec<ResourceRule> = Vec::new();
        for kind in &self.kinds {
            let index = rules.iter().position(|rule| rule.group == kind.group);
            let rule = match index {
                Some(index) => &mut rules[index],
                None => {
                    rules.push(ResourceRule::new(&kind.group, &[]));
                    let last = rules.len() - 1;
                    &mut rules[last]
                }
            };
            rule.resources.push(kind.resource.clone());
            if with_subresources && kind.has_subresources {
                rule.resources.push(format!("{}/*", kind.resource));
            }
        }
        rules
    }
}

fn list<'a>(kinds: impl Iterator<Item = &'a FencedKind>) -> String {
    let quoted: Vec<String> = kinds.map(|kind| format!("'{}'", kind.resource)).collect();
    format!("[{}]", quoted.join(", "))
}

const HEADER: &str = "\
# Generated, do not edit: change src/fence_policies and run `make manifests`.
# The fence: the API server itself refuses what a replica of the operator must not write. The policies bind the
# operator's ServiceAccount and ignore all other users; docs/fence.md describes what they guarantee and what they do not.
#
# For another namespace: `databasecluster-operator fence --namespace NAME`. At its start each replica checks that the
# fence matches it, and reports the result in /readyz.
#
# The CustomResourceDefinition of ShardTables must be served before these policies are applied.
";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_committed_policies_are_the_generated_ones() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/base/fence.yaml");
        let generated = Fence::of_this_operator("databasecluster-system").yaml();
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed == generated,
            "deploy/base/fence.yaml differs from src/fence_policies: run `make manifests`"
        );
    }

    #[test]
    fn policies_contain_no_placeholders_and_use_the_given_names() {
        let fence = Fence {
            prefix: "pre".to_owned(),
            app: "app".to_owned(),
            domain: "dom.example".to_owned(),
            namespace: "names".to_owned(),
            service_account: "account".to_owned(),
            shard_lease_prefix: "lock-".to_owned(),
            table: "the-table".to_owned(),
            owner: Owner {
                group: "own.example".to_owned(),
                kind: "Owner".to_owned(),
                resource: "owners".to_owned(),
            },
            kinds: vec![FencedKind::new(
                "",
                "configmaps",
                OwnerReference::ByController,
            )],
        };
        let text = fence.yaml();
        let (_, body) = text.split_once("apiVersion").unwrap();
        assert!(!body.replace("$'", "").contains('$'), "{body}");
        let of_this_operator = ["databasecluster", "DatabaseCluster", "database.io"];
        for name in of_this_operator {
            assert!(!body.contains(name), "{name} in {body}");
        }
    }

    #[test]
    fn the_text_is_valid_yaml_with_a_binding_for_each_policy() {
        let text = Fence::of_this_operator("here").yaml();
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
        assert_eq!(policies, names("ValidatingAdmissionPolicyBinding"));
        let account = "system:serviceaccount:here:databasecluster-operator";
        let of_policies = documents
            .iter()
            .filter(|document| document["kind"] == policy_kind);
        for spec in of_policies.map(|document| &document["spec"]) {
            let conditions = spec["matchConditions"].as_array().unwrap();
            let account_check = format!("request.userInfo.username == '{account}' && ");
            assert_eq!(conditions.len(), 1, "{spec}");
            let condition = conditions[0]["expression"].as_str().unwrap();
            assert!(condition.starts_with(&account_check), "{spec}");
            assert!(!condition.contains("variables."), "{spec}");
            assert_eq!(spec["validations"].as_array().unwrap().len(), 1, "{spec}");
            assert_eq!(spec["validations"][0]["expression"], "false", "{spec}");
        }
    }
}
