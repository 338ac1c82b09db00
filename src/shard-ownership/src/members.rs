//! Which replicas are alive: the member Leases as last observed, and how long each has been silent.

use std::collections::BTreeMap;

use super::hash::ShardId;
use super::lease::{MemberLease, OTHER_NAMESPACES, Successor, Version};
use super::liveness::has_expired;

/// Whether a replica may receive shards: not vacated, not leaving, allowed to write the shard
/// table, configured with `shards` shards.
#[must_use]
pub(crate) fn is_eligible(member: &MemberLease, shards: u16) -> bool {
    !member.is_vacated() && !member.draining && !member.barred && member.shards == shards
}

/// The replicas that may receive shards: without those that a user drains, as long as any other is left. A replica that
/// is drained still takes over what nobody else is there to take.
pub(crate) fn eligible<'a>(
    members: impl Iterator<Item = &'a MemberLease> + Clone,
    shards: u16,
) -> impl Iterator<Item = &'a MemberLease> + Clone {
    let able = members.filter(move |member| is_eligible(member, shards));
    let has_others = able.clone().any(|member| !member.drain_requested);
    able.filter(move |member| !(has_others && member.drain_requested))
}

/// Of these replicas, those of the newest revision; all, when there is but one revision.
///
/// Revisions that are numbers are compared as such. Others are as new as the first Lease that
/// carries them, by the API server's clock.
pub(crate) fn newest_revision<'a>(
    members: impl Iterator<Item = &'a MemberLease> + Clone,
) -> impl Iterator<Item = &'a MemberLease> + Clone {
    let mut age: BTreeMap<&str, (u64, i64)> = BTreeMap::new();
    for member in members.clone() {
        let number = member.revision.parse().unwrap_or(0);
        let entry = age
            .entry(&member.revision)
            .or_insert((number, member.created_seconds));
        entry.1 = entry.1.min(member.created_seconds);
    }
    let newest = age
        .into_iter()
        .max_by_key(|(revision, key)| (*key, *revision));
    let newest = newest.map(|(revision, _)| revision);
    members.filter(move |member| Some(member.revision.as_str()) == newest)
}

/// Whether an incarnation can still act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its member Lease names it.
    Alive,
    /// It was vacated or replaced.
    Dead,
    /// Its member Lease is missing, not for long enough.
    Unknown,
    /// Its member Lease names another incarnation, but was observed before the Lease that named
    /// this one, or has been missing for a whole lifetime, which a stalled watch would also show:
    /// only a fresh read can decide.
    Doubtful,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ObservedMember {
    lease: MemberLease,
    silence_ms: u64,
}

/// The member Leases as last observed.
///
/// Silence is counted by `Members::credit`, in ticks that the caller bounds and withholds: time in
/// which the observer itself could not reach the API server says nothing about others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Members {
    observed: BTreeMap<String, ObservedMember>,
    /// Identities named by a shard Lease but without a member Lease, and for how long (ms).
    missing_ms: BTreeMap<String, u64>,
}

impl Members {
    /// Takes in what was seen; a late answer is ignored. Says whether anything is new.
    pub(crate) fn observe(&mut self, lease: MemberLease) -> bool {
        self.missing_ms.remove(&lease.identity);
        if let Some(known) = self.observed.get_mut(&lease.identity) {
            let stale = known.lease.version.uid == lease.version.uid
                && lease.version.is_older_than(&known.lease.version);
            if stale || known.lease == lease {
                return false;
            }
            known.lease = lease;
            known.silence_ms = 0;
        } else {
            let identity = lease.identity.clone();
            self.observed.insert(
                identity,
                ObservedMember {
                    lease,
                    silence_ms: 0,
                },
            );
        }
        true
    }

    /// The Lease with this uid is gone.
    pub(crate) fn observe_deleted(&mut self, identity: &str, uid: &str) {
        if self
            .observed
            .get(identity)
            .is_some_and(|observed| observed.lease.version.uid == uid)
        {
            self.observed.remove(identity);
        }
    }

    /// Takes in a complete list: what is not in it was deleted. Returns the members of which the
    /// list shows less than is known: it is a late one, or the API server went back in time.
    pub(crate) fn listed(&mut self, leases: Vec<MemberLease>) -> Vec<(String, Version)> {
        self.observed
            .retain(|identity, _| leases.iter().any(|lease| &lease.identity == identity));
        let mut rewound = Vec::new();
        for lease in leases {
            if let Some(known) = self.get(&lease.identity)
                && lease.version.is_older_than(&known.version)
            {
                rewound.push((lease.identity.clone(), known.version.clone()));
            }
            self.observe(lease);
        }
        rewound
    }

    /// Takes in a Lease although it is older than what was known.
    pub(crate) fn go_back(&mut self, lease: MemberLease) {
        self.observed.remove(&lease.identity);
        self.observe(lease);
    }

    /// Adds time in which every member could have been heard.
    pub(crate) fn credit(&mut self, elapsed_ms: u64) {
        for observed in self.observed.values_mut() {
            observed.silence_ms = observed.silence_ms.saturating_add(elapsed_ms);
        }
        for missing_ms in self.missing_ms.values_mut() {
            *missing_ms = missing_ms.saturating_add(elapsed_ms);
        }
    }

    /// Starts and stops counting for identities without a member Lease; `named` are those that
    /// shard Leases name. Bounded by the number of shards.
    pub(crate) fn count_missing<'a>(&mut self, named: impl Iterator<Item = &'a str>) {
        let absent: Vec<String> = named
            .filter(|identity| !self.observed.contains_key(*identity))
            .map(str::to_owned)
            .collect();
        self.missing_ms
            .retain(|identity, _| absent.contains(identity));
        for identity in absent {
            self.missing_ms.entry(identity).or_insert(0);
        }
    }

    /// The Lease of one replica.
    #[must_use]
    pub(crate) fn get(&self, identity: &str) -> Option<&MemberLease> {
        self.observed.get(identity).map(|observed| &observed.lease)
    }

    /// All Leases, vacated ones too, sorted by identity.
    pub(crate) fn all(&self) -> impl Iterator<Item = &MemberLease> + Clone {
        self.observed.values().map(|observed| &observed.lease)
    }

    /// Replicas that may receive shards. A silent one counts until a member vacates it, so that all
    /// replicas agree on the list.
    pub fn eligible(&self, shards: u16) -> impl Iterator<Item = &str> {
        eligible(self.all(), shards).map(|m| m.identity.as_str())
    }

    /// Whether exactly this incarnation of a replica may receive shards.
    #[must_use]
    pub(crate) fn can_succeed(&self, successor: &Successor, shards: u16) -> bool {
        self.get(&successor.identity)
            .is_some_and(|m| is_eligible(m, shards) && m.incarnation == successor.incarnation)
    }

    /// Whether exactly this incarnation of a replica has listed all objects of the shard.
    #[must_use]
    pub(crate) fn is_warm(&self, successor: &Successor, shard: ShardId) -> bool {
        self.get(&successor.identity)
            .is_some_and(|m| m.incarnation == successor.incarnation && m.warm.contains(&shard))
    }

    /// Whether a member that is not vacated is configured with another number of shards.
    #[must_use]
    pub(crate) fn another_count_is_alive(&self, shards: u16) -> bool {
        self.all().any(|m| !m.is_vacated() && m.shards != shards)
    }

    /// Whether a member that is not vacated watches other namespaces.
    #[must_use]
    pub fn other_namespaces_are_alive(&self) -> bool {
        self.all()
            .any(|m| !m.is_vacated() && m.shards == OTHER_NAMESPACES)
    }

    /// Whether this incarnation can still act. A missing Lease is waited out for `lease_ms`;
    /// `named_at` is the version of the shard Lease that names the incarnation: a member Lease that
    /// is older proves nothing against it.
    #[must_use]
    pub(crate) fn life(
        &self,
        identity: &str,
        incarnation: &str,
        lease_ms: u64,
        named_at: &Version,
    ) -> Life {
        match self.observed.get(identity) {
            Some(observed) if observed.lease.incarnation == incarnation => {
                if observed.lease.is_vacated() {
                    Life::Dead
                } else {
                    Life::Alive
                }
            }
            Some(observed) if named_at.is_older_than(&observed.lease.version) => Life::Dead,
            Some(_) => Life::Doubtful,
            None if self.is_long_gone(identity, lease_ms) => Life::Doubtful,
            None => Life::Unknown,
        }
    }

    /// Whether its Lease has been missing for `lease_ms`, as far as observed.
    #[must_use]
    pub(crate) fn is_long_gone(&self, identity: &str, lease_ms: u64) -> bool {
        let missing_ms = self.missing_ms.get(identity);
        !self.observed.contains_key(identity) && missing_ms.is_some_and(|ms| *ms >= lease_ms)
    }

    /// Replicas (but `me`) whose Lease has been silent for its whole lifetime: to be vacated.
    pub(crate) fn expired<'a>(&'a self, me: &'a str) -> impl Iterator<Item = &'a MemberLease> {
        self.observed
            .values()
            .filter(move |observed| {
                observed.lease.identity != me
                    && !observed.lease.is_vacated()
                    && has_expired(observed.silence_ms, observed.lease.lease_ms)
            })
            .map(|observed| &observed.lease)
    }

    /// After how much more silence the next replica (but `me`) is to be vacated.
    pub(crate) fn next_expiry_ms(&self, me: &str) -> Option<u64> {
        let others = self.observed.values();
        let others = others.filter(|o| o.lease.identity != me && !o.lease.is_vacated());
        others
            .map(|observed| observed.lease.lease_ms.saturating_sub(observed.silence_ms))
            .min()
    }

    /// Whether a shard Lease names an identity that has no member Lease.
    pub(crate) fn lacks_any(&self) -> bool {
        !self.missing_ms.is_empty()
    }

    /// Lets a replica live a little longer: a write that would have vacated it did not succeed.
    pub(crate) fn extend_deadline(&mut self, identity: &str, by_ms: u64) {
        if let Some(observed) = self.observed.get_mut(identity) {
            observed.silence_ms = observed.silence_ms.saturating_sub(by_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(identity: &str, incarnation: &str, resource_version: u64) -> MemberLease {
        MemberLease {
            identity: identity.into(),
            version: Version {
                uid: "uid".into(),
                resource_version: resource_version.to_string(),
            },
            holder: identity.into(),
            incarnation: incarnation.into(),
            renewal: resource_version,
            lease_ms: 6000,
            pod_uid: String::new(),
            revision: String::new(),
            shards: 32,
            draining: false,
            barred: false,
            drain_requested: false,
            warm: std::collections::BTreeSet::new(),
            created_seconds: 0,
        }
    }

    fn at(resource_version: u64) -> Version {
        lease("", "", resource_version).version
    }

    #[test]
    fn a_late_answer_does_not_undo_a_newer_one() {
        let mut members = Members::default();
        assert!(members.observe(lease("a", "two", 9)));
        assert!(!members.observe(lease("a", "one", 8)));
        assert_eq!(members.life("a", "two", 6000, &at(9)), Life::Alive);
    }

    #[test]
    fn member_dies_only_of_credited_silence() {
        let mut members = Members::default();
        members.observe(lease("a", "one", 1));
        members.credit(5999);
        assert_eq!(members.expired("me").count(), 0);
        members.credit(1);
        assert_eq!(members.expired("me").count(), 1);
        members.observe(lease("a", "one", 2));
        assert_eq!(members.expired("me").count(), 0);
    }

    #[test]
    fn missing_member_lease_counts_as_dead_only_after_its_lifetime() {
        let mut members = Members::default();
        members.count_missing(["a"].into_iter());
        assert_eq!(members.life("a", "one", 6000, &at(1)), Life::Unknown);
        members.credit(6000);
        assert_eq!(members.life("a", "one", 6000, &at(1)), Life::Doubtful);
    }

    #[test]
    fn an_incarnation_named_after_the_member_lease_was_seen_is_not_taken_for_dead() {
        let mut members = Members::default();
        members.observe(lease("a", "one", 5));
        assert_eq!(members.life("a", "two", 6000, &at(6)), Life::Doubtful);
        members.observe(lease("a", "three", 7));
        assert_eq!(members.life("a", "two", 6000, &at(6)), Life::Dead);
    }
}
