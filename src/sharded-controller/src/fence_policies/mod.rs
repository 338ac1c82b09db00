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
/// API group and resource of the dry runs by which each replica proves that the policies refuse it
/// (`fleet::fence`).
const PROBED: (&str, &str) = ("", "services");
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
    /// Ends the names of all policies. Policies are cluster-scoped, so two installations of one operator in a
    /// cluster need different suffixes; empty where there is one. A name that ends with it must be valid: `.` and
    /// the namespace, for example.
    pub policy_suffix: String,
    /// The kind whose objects the operator reconciles.
    pub owner: Owner,
    /// The other kinds that it writes. Services are fenced in any case: by dry runs of one each replica proves
    /// that the policies refuse it.
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
            ("$SUFFIX", &self.policy_suffix),
            ("$APP", names.app),
            ("$DOMAIN", names.domain),
            ("$LEASE_DIGITS_AT", &lease_digits_at),
            ("$LEASE", &lease),
            ("$TABLE", &table),
            ("$OF_OWNERS_GROUP", &self.of_owners_group()),
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

    /// Whether the owner reference `r` names a kind of the owner's API group. The core group has no name and no slash.
    fn of_owners_group(&self) -> String {
        match self.owner.group.as_str() {
            "" => "!r.apiVersion.contains('/')".to_owned(),
            group => format!("r.apiVersion.startsWith('{group}/')"),
        }
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

    /// Rules for the fenced kinds and for the one that is probed, by API group.
    fn rules(&self, with_subresources: bool) -> Vec<ResourceRule> {
        let mut rules: Vec<ResourceRule> = Vec::new();
        for kind in &self.kinds {
            let rule = rule_of(&mut rules, &kind.group);
            rule.resources.push(kind.resource.clone());
            if with_subresources && kind.has_subresources {
                rule.resources.push(format!("{}/*", kind.resource));
            }
        }
        let (group, resource) = PROBED;
        let rule = rule_of(&mut rules, group);
        if !rule.resources.iter().any(|known| known == resource) {
            rule.resources.push(resource.to_owned());
        }
        rules
    }
}

/// The rule of an API group, which is appended if there is none.
fn rule_of<'a>(rules: &'a mut Vec<ResourceRule>, group: &str) -> &'a mut ResourceRule {
    let known = rules.iter().position(|rule| rule.group == group);
    let index = known.unwrap_or_else(|| {
        rules.push(ResourceRule::new(group, &[]));
        rules.len() - 1
    });
    &mut rules[index]
}

fn list<'a>(kinds: impl Iterator<Item = &'a FencedKind>) -> String {
    let quoted: Vec<String> = kinds.map(|kind| format!("'{}'", kind.resource)).collect();
    format!("[{}]", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fence(owner: Owner) -> Fence {
        Fence {
            names: Names {
                app: "app",
                prefix: "pre",
                domain: "dom.example",
                manifests: "deploy",
            },
            namespace: "names".to_owned(),
            service_account: "account".to_owned(),
            policy_suffix: ".names".to_owned(),
            owner,
            kinds: vec![FencedKind::new(
                "",
                "configmaps",
                OwnerReference::ByController,
            )],
        }
    }

    #[test]
    fn policies_contain_no_placeholders_and_use_the_given_names() {
        let owner = Owner {
            group: "own.example".to_owned(),
            kind: "Owner".to_owned(),
            resource: "owners".to_owned(),
            written: true,
        };
        let body = fence(owner).yaml();
        assert!(!body.replace("$'", "").contains('$'), "{body}");
        for given in [
            "  name: pre-fence-order.names\n",
            "policyName: pre-fence-order.names\n",
            "dom.example/bucket",
            "own.example",
        ] {
            assert!(body.contains(given), "{given} is not in {body}");
        }
    }

    #[test]
    fn owner_of_the_core_group_is_recognised_by_its_reference() {
        let core = fence(Owner::read_only("", "ConfigMap", "configmaps")).yaml();
        assert!(core.contains("!r.apiVersion.contains('/')"), "{core}");
        assert!(!core.contains("startsWith('/')"), "{core}");
        let named = fence(Owner::read_only("apps", "Deployment", "deployments")).yaml();
        assert!(
            named.contains("r.apiVersion.startsWith('apps/')"),
            "{named}"
        );
    }

    #[test]
    fn kind_of_the_probe_is_fenced_exactly_once() {
        let mut fence = fence(Owner::read_only("", "ConfigMap", "configmaps"));
        let resources = |fence: &Fence| fence.rules(false)[0].resources.clone();
        assert_eq!(resources(&fence), ["configmaps", "services"]);
        fence.kinds = vec![FencedKind::new(
            "",
            "services",
            OwnerReference::ByController,
        )];
        assert_eq!(resources(&fence), ["services"]);
    }
}
