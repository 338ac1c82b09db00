//! The names that distinguish one operator from another: of its objects, labels, annotations and metrics.

use shard_ownership::hash::ShardId;

/// The names of one operator. Every component takes them; nothing else in this crate names an operator.
///
/// ```
/// use sharded_controller::names::Names;
///
/// const NAMES: Names = Names {
///     app: "certificate-operator",
///     prefix: "certificate",
///     domain: "certs.example.com",
///     manifests: "deploy",
/// };
/// assert_eq!(NAMES.member_lease("pod-0"), "certificate-member-pod-0");
/// assert_eq!(NAMES.label("bucket"), "certs.example.com/bucket");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Name of the program: its `app.kubernetes.io/name`, its field manager and its user agent.
    pub app: &'static str,
    /// Begins the names of its Leases, of its shard table, of its admission policies and of its
    /// metrics; the `controller` label of its metrics. Lower case letters and digits only.
    pub prefix: &'static str,
    /// Domain of its labels and annotations, and API group of its ShardTable.
    pub domain: &'static str,
    /// Folder with the manifests that install the operator (`crd.yaml`, `rbac.yaml`, `fence.yaml`), for
    /// messages that say what to apply.
    pub manifests: &'static str,
}

impl Names {
    /// Key and value of the label that all Leases and the table of this operator carry.
    #[must_use]
    pub const fn app_label(&self) -> (&'static str, &'static str) {
        ("app.kubernetes.io/name", self.app)
    }

    /// A label or annotation in the operator's domain.
    #[must_use]
    pub fn label(&self, name: &str) -> String {
        format!("{}/{name}", self.domain)
    }

    /// Annotation that carries the fencing token.
    #[must_use]
    pub fn fencing_token(&self) -> String {
        self.label("fencing-token")
    }

    /// Label of dependents: the bucket (0 to 255) in which their owner's uid lies.
    #[must_use]
    pub fn bucket_label(&self) -> String {
        self.label("bucket")
    }

    /// Name of a replica's member Lease.
    #[must_use]
    pub fn member_lease(&self, identity: &str) -> String {
        format!("{}-member-{identity}", self.prefix)
    }

    /// The identity in the name of a member Lease.
    #[must_use]
    pub(crate) fn identity_of<'a>(&self, lease_name: &'a str) -> Option<&'a str> {
        self.after(lease_name, "-member-")
            .filter(|identity| !identity.is_empty())
    }

    /// Beginning of the names of shard Leases.
    #[must_use]
    pub fn shard_lease_prefix(&self) -> String {
        format!("{}-shard-", self.prefix)
    }

    /// Name of a shard's Lease.
    #[must_use]
    pub fn shard_lease(&self, shard: ShardId) -> String {
        format!("{}-shard-{:03}", self.prefix, shard.0)
    }

    /// The shard in the name of a shard Lease.
    #[must_use]
    pub fn shard_of(&self, lease_name: &str) -> Option<ShardId> {
        let digits = self.after(lease_name, "-shard-")?;
        if digits.len() != 3 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        digits.parse().ok().filter(|n| *n < 256).map(ShardId)
    }

    /// Name of the fleet leader's Lease.
    #[must_use]
    pub fn leader_lease(&self) -> String {
        format!("{}-leader", self.prefix)
    }

    /// Name of the shard table.
    #[must_use]
    pub fn shard_table(&self) -> String {
        format!("{}-shards", self.prefix)
    }

    /// The name of a metric, with `{prefix}` filled in.
    #[must_use]
    pub fn metric(&self, template: &str) -> String {
        template.replace("{prefix}", self.prefix)
    }

    fn after<'a>(&self, name: &'a str, part: &str) -> Option<&'a str> {
        name.strip_prefix(self.prefix)?.strip_prefix(part)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::Names;

    pub(crate) const NAMES: Names = Names {
        app: "example-operator",
        prefix: "example",
        domain: "example.io",
        manifests: "deploy",
    };
}

#[cfg(test)]
mod tests {
    use super::testing::NAMES;
    use super::*;

    #[test]
    fn lease_names_are_read_back_and_foreign_names_are_not() {
        assert_eq!(
            NAMES.shard_of(&NAMES.shard_lease(ShardId(7))),
            Some(ShardId(7))
        );
        assert_eq!(NAMES.identity_of(&NAMES.member_lease("a-0")), Some("a-0"));
        for foreign in [
            "example-shard-7",
            "example-shard-0007",
            "example-shard-256",
            "example-shard-abc",
            "example-shard-+07",
            "other-shard-007",
            "example-leader",
        ] {
            assert_eq!(NAMES.shard_of(foreign), None, "{foreign}");
        }
        assert_eq!(NAMES.identity_of("example-member-"), None);
    }
}
