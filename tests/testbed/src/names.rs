//! The names by which an operator is known to the cluster: the DatabaseCluster operator, or another one that is written
//! with the same library.

use serde_json::Value;

use crate::fencing::Token;

/// Where an operator lives, and how its objects are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperatorNames {
    /// The namespace of its Pods, Leases and shard table.
    pub namespace: &'static str,
    /// Its ServiceAccount.
    pub account: &'static str,
    /// The beginning of the names of its Leases, table and policies.
    pub prefix: &'static str,
    /// The domain of its labels and annotations, and the API group of its ShardTable.
    pub domain: &'static str,
}

impl OperatorNames {
    /// The DatabaseCluster operator.
    pub const DATABASE_CLUSTERS: Self = Self {
        namespace: "databasecluster-system",
        account: "databasecluster-operator",
        prefix: "databasecluster",
        domain: "database.io",
    };

    /// Its user's name.
    #[must_use]
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.account)
    }

    /// Whether this is its user's name.
    #[must_use]
    pub fn is_user(&self, user: &str) -> bool {
        let account = user.strip_prefix("system:serviceaccount:");
        account.and_then(|account| account.split_once(':')) == Some((self.namespace, self.account))
    }

    /// The name of the Lease of a shard, which is given with three digits.
    #[must_use]
    pub fn shard_lease(&self, shard: &str) -> String {
        format!("{}-shard-{shard}", self.prefix)
    }

    /// The shard of a Lease; none: the Lease is not that of a shard.
    #[must_use]
    pub fn shard_of<'a>(&self, lease: &'a str) -> Option<&'a str> {
        lease.strip_prefix(self.prefix)?.strip_prefix("-shard-")
    }

    /// The replica of a member Lease; none: the Lease is not that of a member.
    #[must_use]
    pub fn member_of<'a>(&self, lease: &'a str) -> Option<&'a str> {
        lease.strip_prefix(self.prefix)?.strip_prefix("-member-")
    }

    /// The name of the shard table.
    #[must_use]
    pub fn table(&self) -> String {
        format!("{}-shards", self.prefix)
    }

    /// A label or annotation in its domain.
    #[must_use]
    pub fn label(&self, name: &str) -> String {
        format!("{}/{name}", self.domain)
    }

    /// An annotation in its domain, on an object.
    #[must_use]
    pub fn annotation<'a>(&self, object: &'a Value, name: &str) -> Option<&'a str> {
        let annotations = object.pointer("/metadata/annotations")?;
        annotations.get(self.label(name))?.as_str()
    }

    /// The fencing token in an object's annotation; none when there is none or it cannot be read.
    #[must_use]
    pub fn token_of_annotation(&self, object: &Value) -> Option<Token> {
        self.annotation(object, "fencing-token")?.parse().ok()
    }

    /// The fencing token that a status holds as `status.shard`; none when there is none or a field is missing.
    #[must_use]
    pub fn token_of_status(&self, object: &Value) -> Option<Token> {
        let shard = object.pointer("/status/shard")?;
        let text = |field: &str| Some(shard.get(field)?.as_str()?.to_owned());
        Some(Token {
            table: text("table")?,
            shard: self.shard_of(&text("lease")?)?.to_owned(),
            epoch: shard.get("epoch")?.as_i64()?,
            holder: text("holder")?,
            cluster: text("uid")?,
        })
    }
}

impl Default for OperatorNames {
    fn default() -> Self {
        Self::DATABASE_CLUSTERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_another_operator_are_not_recognised() {
        let names = OperatorNames::DATABASE_CLUSTERS;
        assert!(names.is_user(&names.user()));
        assert!(!names.is_user("system:serviceaccount:databasecluster-system:default"));
        assert!(!names.is_user("databasecluster-operator"));
        assert_eq!(names.shard_of(&names.shard_lease("007")), Some("007"));
        assert_eq!(names.shard_of("derive-shard-007"), None);
        assert_eq!(names.member_of("databasecluster-member-a-0"), Some("a-0"));
        assert_eq!(names.member_of("databasecluster-shards"), None);
    }
}
