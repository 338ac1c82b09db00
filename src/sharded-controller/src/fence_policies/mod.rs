//! The fence's admission policies, generated from the names of an operator and the kinds that it writes.
//!
//! Everything that is specific to one operator is in one value, [`Fence`]. Expressions contain placeholders
//! such as `$DOMAIN`, which `Fence::fill` replaces.
//!
//! Requirements for the expressions:
//! - They must not fail on any input: an error is a refusal.
//! - Only the match condition is evaluated for every write: see the module `policy`.

mod limits;
mod locks;
mod policy;
mod tokens;

use policy::ResourceRule;

use crate::names::Names;

/// Highest epoch: 2^20 below the limit of 32 bits.
const EPOCH_MAX: u32 = i32::MAX as u32 - (1 << 20);
/// Most by which one write raises the epoch of a shard Lease.
const EPOCH_STEP_MAX: u32 = 1 << 20;
/// Longest fencing token, in bytes.
const TOKEN_BYTES_MAX: usize = 400;

/// An operator, as far as its fence depends on it.
#[derive(Clone, Debug)]
pub struct Fence {
    /// Names of the operator.
    pub names: Names,
    /// Namespace of the operator.
    pub namespace: String,
    /// ServiceAccount of the operator.
    pub service_account: String,
    /// The kind whose objects the operator reconciles.
    pub owner: Owner,
    /// The other kinds that it writes.
    pub kinds: Vec<FencedKind>,
}

/// The kind whose objects an operator reconciles.
#[derive(Clone, Debug)]
pub struct Owner {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Whether the operator writes such objects: their finalizers, and the subresource `status` with a
    /// field `shard`. If not, nothing of them may be written.
    pub written: bool,
}

/// A kind that an operator writes on behalf of its owner kind.
#[derive(Clone, Debug)]
pub struct FencedKind {
    /// API group; empty: the core group.
    pub group: String,
    /// Plural name of the resource. No two kinds of one fence may share it.
    pub resource: String,
    /// How an object shows to which owner it belongs.
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

impl Owner {
    /// A kind of which nothing may be written: no finalizer, no status.
    #[must_use]
    pub fn read_only(group: &str, kind: &str, resource: &str) -> Self {
        Self {
            group: group.to_owned(),
            kind: kind.to_owned(),
            resource: resource.to_owned(),
            written: false,
        }
    }
}

impl FencedKind {
    /// A kind of which objects are created, changed and deleted, and that has subresources.
    #[must_use]
    pub fn new(group: &str, resource: &str, owner_reference: OwnerReference) -> Self {
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
    /// All policies with their bindings, as YAML documents with comments.
    #[must_use]
    pub fn yaml(&self) -> String {
        let written = |resource| self.kinds.iter().any(|kind| kind.resource == resource);
        let owner = self.owner.written;
        let policies = [
            (true, tokens::holder(self)),
            (owner, tokens::owners(self)),
            (true, tokens::order(self)),
            (owner, tokens::owners_order(self)),
            (written("statefulsets"), limits::stateful_sets(self)),
            (written("services"), limits::services(self)),
            (written("secrets"), limits::secrets(self)),
            (written("pods"), limits::pods(self)),
            (owner, limits::owners(self)),
            (true, limits::namespaces(self)),
            (true, locks::leases(self)),
            (true, locks::table(self)),
        ];
        let policies = policies.iter().filter(|(is_needed, _)| *is_needed);
        let documents: Vec<String> = policies.map(|(_, policy)| policy.yaml(self)).collect();
        documents.join("---\n")
    }

    /// Replaces the placeholders of a text.
    fn fill(&self, text: &str) -> String {
        let names = self.names;
        let lease = names.shard_lease_prefix();
        let lease_digits_at = lease.len().to_string();
        let table = names.shard_table();
        let user = format!(
            "system:serviceaccount:{}:{}",
            self.namespace, self.service_account
        );
        [
            ("$USER", user.as_str()),
            ("$NAMESPACE", &self.namespace),
            ("$PREFIX", names.prefix),
            ("$APP", names.app),
            ("$DOMAIN", names.domain),
            ("$LEASE_DIGITS_AT", &lease_digits_at),
            ("$LEASE", &lease),
            ("$TABLE", &table),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn policies_contain_no_placeholders_and_use_the_given_names() {
        let fence = Fence {
            names: Names {
                app: "app",
                prefix: "pre",
                domain: "dom.example",
                manifests: "deploy",
            },
            namespace: "names".to_owned(),
            service_account: "account".to_owned(),
            owner: Owner {
                group: "own.example".to_owned(),
                kind: "Owner".to_owned(),
                resource: "owners".to_owned(),
                written: true,
            },
            kinds: vec![FencedKind::new(
                "",
                "configmaps",
                OwnerReference::ByController,
            )],
        };
        let text = fence.yaml();
        let body = text;
        assert!(!body.replace("$'", "").contains('$'), "{body}");
        for given in ["pre-fence-order", "dom.example/bucket", "own.example"] {
            assert!(body.contains(given), "{given} is not in {body}");
        }
    }
}
