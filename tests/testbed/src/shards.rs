//! Who holds which shard, by the Leases, as an outside observer sees it.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::error::{Context, Error, Result};
use crate::fleet::Fleet;
use crate::names::OperatorNames;
use crate::wait::{Progress, wait_for};

/// One shard, by its Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The Lease's name.
    pub lease: String,
    /// The holder; empty when there is none.
    pub holder: String,
    /// How often it changed hands.
    pub epoch: i32,
    /// The first and the last bucket that it covers.
    pub buckets: (u8, u8),
    /// How many shards there are to be.
    pub of: usize,
}

impl Shard {
    fn read(lease: &Lease, operator: &OperatorNames) -> Result<Self> {
        let name = lease.name_any();
        let annotation = |name: &str| lease.annotations().get(&operator.label(name)).cloned();
        let range = annotation("buckets").unwrap_or_default();
        let buckets = range
            .split_once('-')
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let spec = lease.spec.clone().unwrap_or_default();
        Ok(Self {
            buckets: buckets.ok_or_else(|| {
                Error::Failed(format!("Lease {name} covers {range:?}, which is no range"))
            })?,
            of: annotation("shards")
                .and_then(|shards| shards.parse().ok())
                .unwrap_or_default(),
            lease: name,
            holder: spec.holder_identity.unwrap_or_default(),
            epoch: spec.lease_transitions.unwrap_or_default(),
        })
    }

    /// Whether an object with this uid belongs to it.
    #[must_use]
    pub fn covers(&self, uid: &str) -> bool {
        (self.buckets.0..=self.buckets.1).contains(&bucket(uid))
    }
}

/// The bucket of an object: the top 8 bits of FNV-1a 64 over its uid.
#[must_use]
pub fn bucket(uid: &str) -> u8 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = uid.bytes().fold(OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    });
    hash.to_be_bytes()[0]
}

/// All shards of the DatabaseCluster operator.
///
/// # Errors
/// When the Leases cannot be listed or parsed.
pub async fn list(client: &Client) -> Result<Vec<Shard>> {
    list_of(client, &OperatorNames::DATABASE_CLUSTERS).await
}

/// As [`list`], of another operator.
///
/// # Errors
/// As [`list`].
pub async fn list_of(client: &Client, operator: &OperatorNames) -> Result<Vec<Shard>> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), operator.namespace);
    let labelled = ListParams::default().labels(&format!("{}=shard", operator.label("role")));
    let leases = leases
        .list(&labelled)
        .await
        .context("list the shard Leases")?;
    let shards = leases.items.iter();
    shards.map(|lease| Shard::read(lease, operator)).collect()
}

/// The number of shards that each holder holds.
#[must_use]
pub fn by_holder(shards: &[Shard]) -> BTreeMap<String, usize> {
    let mut holders = BTreeMap::new();
    for shard in shards {
        *holders.entry(shard.holder.clone()).or_insert(0) += 1;
    }
    holders
}

/// Waits until every shard is held by a replica that runs, and none has more than one shard more than another.
///
/// # Errors
/// When that does not happen in time, with the number of shards of each holder.
pub async fn wait_balanced(fleet: &Fleet<'_>, timeout: Duration) -> Result<()> {
    let client = fleet.control_plane().client();
    wait_for(
        "shards to be balanced over the replicas that run",
        timeout,
        || async {
            let shards = list_of(&client, fleet.operator()).await?;
            let total = shards.first().map_or(0, |shard| shard.of);
            let holders = by_holder(&shards);
            let alive: Vec<&str> = fleet.alive().map(|replica| replica.name()).collect();
            let fair = |name: &&str| {
                let held = holders.get(*name).copied().unwrap_or(0);
                held == total / alive.len() || held == total.div_ceil(alive.len())
            };
            let met = total > 0
                && total == shards.len()
                && holders.len() == alive.len()
                && alive.iter().all(fair);
            Ok(Progress::when(met, (), || {
                format!("{holders:?}, running: {}", alive.join(", "))
            }))
        },
    )
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn buckets_follow_the_published_test_vectors_of_the_hash() {
        // FNV-1a 64: "" cbf29ce484222325, "a" af63dc4c8601ec8c, "foobar" 85944171f73967e8.
        assert_eq!(
            (bucket(""), bucket("a"), bucket("foobar")),
            (0xcb, 0xaf, 0x85)
        );
    }

    #[test]
    fn shard_range_includes_both_ends() {
        let shard = |first, last| Shard {
            lease: String::new(),
            holder: String::new(),
            epoch: 1,
            buckets: (first, last),
            of: 32,
        };
        assert!(shard(0x80, 0xaf).covers("a") && shard(0xaf, 0xff).covers("a"));
        assert!(!shard(0xb0, 0xff).covers("a") && !shard(0, 0xae).covers("a"));
    }
}
