//! The contents of Leases as plain records: members, shards, and the writes that change them.

use std::collections::BTreeSet;

use super::hash::{Bucket, ShardCount, ShardId, fnv1a64};
use super::liveness::Holder;
use super::resource_version::is_older;

/// Value in place of the number of shards for a replica that watches other namespaces. No fleet has so
/// many shards, so such a replica counts as a member of another fleet, beside which ours stands by.
pub const OTHER_NAMESPACES: u16 = u16::MAX;
/// The text for replicas that serve all namespaces.
const ALL_NAMESPACES: &str = "*";
/// Longest text for the namespaces that a replica serves, in bytes: every heartbeat carries it.
const SERVED_LENGTH_MAX: usize = 512;

/// The text by which replicas compare which namespaces they watch (sorted, without duplicates; none:
/// all). A long list is truncated, and its digest distinguishes it from others.
#[must_use]
pub fn served_text(namespaces: &[String]) -> String {
    let all = namespaces.join(",");
    match all.len() {
        0 => ALL_NAMESPACES.to_owned(),
        length if length <= SERVED_LENGTH_MAX => all,
        _ => {
            let digest = format!(",… {:016x}", fnv1a64(all.as_bytes()));
            let end = all.floor_char_boundary(SERVED_LENGTH_MAX - digest.len());
            format!("{}{digest}", all.get(..end).unwrap_or_default())
        }
    }
}

/// Uid and resourceVersion of a Lease: the two together make a write a compare-and-swap.
/// (resourceVersion alone re-creates a Lease that was deleted.)
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// `metadata.uid`: another one is another object under the same name.
    pub uid: String,
    /// `metadata.resourceVersion`, which every change of the object raises.
    pub resource_version: String,
}

impl Version {
    /// Whether `self` is certainly older than `other`: then it is a late answer and is ignored.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        is_older(&self.resource_version, &other.resource_version)
    }
}

/// One replica's heartbeat, as last observed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemberLease {
    /// Identity of the replica (from the Lease's name).
    pub identity: String,
    /// Version for compare-and-swap.
    pub version: Version,
    /// The identity again, or empty if vacated: that incarnation is dead.
    pub holder: String,
    /// Nonce of this incarnation of the replica.
    pub incarnation: String,
    /// Number of this renewal within its incarnation: identifies which of several sent renewals
    /// arrived.
    pub renewal: u64,
    /// Lifetime without a renewal, in milliseconds.
    pub lease_ms: u64,
    /// Uid of its Pod, or empty outside a cluster.
    pub pod_uid: String,
    /// Revision of its ReplicaSet, or empty.
    pub revision: String,
    /// Number of shards it is configured with, or [`OTHER_NAMESPACES`].
    pub shards: u16,
    /// Whether it is about to leave the fleet.
    pub draining: bool,
    /// Whether it must not write the shard table: then it cannot start work in any shard.
    pub barred: bool,
    /// Whether a user asked that it receives no shards and gives up those that it holds.
    pub drain_requested: bool,
    /// Shards whose objects it has listed completely, so that they can be handed over to it.
    pub warm: BTreeSet<ShardId>,
    /// When the Lease was created, in seconds since the Unix epoch by the API server's clock.
    pub created_seconds: i64,
}

impl MemberLease {
    /// Whether its incarnation was vacated.
    #[must_use]
    pub fn is_vacated(&self) -> bool {
        self.as_holder().is_nobody()
    }

    /// The incarnation that lives under this identity.
    #[must_use]
    pub fn as_holder(&self) -> Holder<'_> {
        Holder {
            identity: &self.holder,
            incarnation: &self.incarnation,
        }
    }
}

/// The lock of one shard, as last observed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShardLease {
    /// The shard (from the Lease's name).
    pub shard: ShardId,
    /// Version for compare-and-swap.
    pub version: Version,
    /// Identity of the holder, or empty: vacant.
    pub holder: String,
    /// Incarnation of the holder.
    pub incarnation: String,
    /// Increases whenever the holder changes.
    pub epoch: u32,
    /// Number of shards for which this Lease was written, or [`OTHER_NAMESPACES`].
    pub shards: u16,
    /// Planned next holder.
    pub successor: Option<Successor>,
}

impl ShardLease {
    /// The incarnation that holds the shard.
    #[must_use]
    pub fn as_holder(&self) -> Holder<'_> {
        Holder {
            identity: &self.holder,
            incarnation: &self.incarnation,
        }
    }
}

/// The planned next holder of a shard: one incarnation of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Successor {
    /// Identity of the replica.
    pub identity: String,
    /// Its incarnation: a restarted replica is not the planned successor.
    pub incarnation: String,
}

/// A write of a member Lease. `base` absent: create.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemberWrite {
    /// Identity of the member, from which the Lease's name follows.
    pub identity: String,
    /// Only this version is replaced: any other that is stored is a conflict.
    pub base: Option<Version>,
    /// What the Lease is to become.
    pub change: MemberChange,
}

/// The changes of a member Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MemberChange {
    /// Renew our own heartbeat.
    Renew {
        /// Nonce of the incarnation that the renewal keeps alive.
        incarnation: String,
        /// Its number within the incarnation, by which a later read shows that it arrived.
        renewal: u64,
        /// Whether we are about to leave.
        draining: bool,
        /// Whether we may not write the shard table.
        barred: bool,
        /// Whether the Lease that is replaced carries a user's request to drain, which stays.
        drain_requested: bool,
        /// Shards whose objects we have listed completely.
        warm: BTreeSet<ShardId>,
    },
    /// Declare an incarnation dead.
    Vacate,
    /// Delete our own Lease when we leave.
    Delete,
}

/// A write of a shard Lease. `base` absent: create.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShardWrite {
    /// The shard, from which the Lease's name follows.
    pub shard: ShardId,
    /// Only this version is replaced: any other that is stored is a conflict.
    pub base: Option<Version>,
    /// Identity of the holder from now on, or empty: vacant.
    pub holder: String,
    /// Incarnation of the holder, or empty.
    pub incarnation: String,
    /// Never lower than before, and higher when the holder changes.
    pub epoch: u32,
    /// The replica that is to list the shard's objects, so that it can be handed over to it.
    pub successor: Option<Successor>,
}

/// The text of a shard's range of buckets: `0-7`.
#[must_use]
pub fn bucket_range(count: ShardCount, shard: ShardId) -> String {
    let (Bucket(first), Bucket(last)) = count.buckets(shard);
    format!("{first}-{last}")
}

/// Leases for tests: a fleet of 32 shards.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    fn version() -> Version {
        Version {
            uid: "u".into(),
            resource_version: "1".into(),
        }
    }

    /// A live member.
    pub(crate) fn member(identity: &str, revision: &str) -> MemberLease {
        MemberLease {
            identity: identity.into(),
            version: version(),
            holder: identity.into(),
            incarnation: format!("{identity}-1"),
            renewal: 1,
            lease_ms: 6000,
            pod_uid: String::new(),
            revision: revision.into(),
            shards: 32,
            draining: false,
            barred: false,
            drain_requested: false,
            warm: BTreeSet::new(),
            created_seconds: 0,
        }
    }

    pub(crate) fn shard(number: u16, holder: &str) -> ShardLease {
        ShardLease {
            shard: ShardId(number),
            version: version(),
            holder: holder.into(),
            incarnation: format!("{holder}-1"),
            epoch: 1,
            shards: 32,
            successor: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_namespace_lists_have_different_text_at_any_length() {
        let names = |count: usize| -> Vec<String> {
            (0..count).map(|n| format!("namespace-{n:04}")).collect()
        };
        assert_eq!(served_text(&[]), "*");
        assert_eq!(served_text(&names(2)), "namespace-0000,namespace-0001");
        let (long, longer) = (served_text(&names(900)), served_text(&names(901)));
        assert!(long.len() <= SERVED_LENGTH_MAX, "{}", long.len());
        assert_ne!(long, longer);
        assert_eq!(long, served_text(&names(900)));
    }

    #[test]
    fn versions_are_ordered_only_if_both_are_numbers() {
        let version = |rv: &str| Version {
            uid: "u".into(),
            resource_version: rv.into(),
        };
        assert!(version("9").is_older_than(&version("10")));
        assert!(!version("10").is_older_than(&version("9")));
        assert!(!version("10").is_older_than(&version("10")));
        assert!(!version("x").is_older_than(&version("10")));
    }
}
