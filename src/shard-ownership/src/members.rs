//! Who is alive: the member Leases as last seen, and how long each has been silent.

use std::collections::BTreeMap;

use super::hash::ShardId;
use super::lease::{MemberLease, OTHER_NAMESPACES, Successor, Version};

/// Whether a replica may be given shards: not vacated, not leaving, allowed to write the
/// shard table, working with `shards` shards.
#[must_use]
pub fn is_eligible(member: &MemberLease, shards: u16) -> bool {
    !member.is_vacated() && !member.draining && !member.barred && member.shards == shards
}

/// Of these replicas, those of the newest revision; all, when there is but one revision.
///
/// Revisions that are numbers are compared as such. Others are as new as the first Lease that
/// carries them, by the API server's clock.
pub fn newest_revision<'a>(
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
pub enum Life {
    /// Its member Lease names it.
    Alive,
    /// It was vacated or replaced.
    Dead,
    /// Its member Lease is missing, not for long enough.
    Unknown,
    /// Its member Lease names another incarnation, but was seen before the Lease that named this
    /// one, or has been missing for a whole lifetime, which a watch that stands still would show as
    /// well: only a fresh read can tell.
    Doubtful,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    lease: MemberLease,
    silence_ms: u64,
}

/// The member Leases as last seen.
///
/// Silence is counted by [`Members::credit`], in ticks that the caller bounds and withholds: time in
/// which the observer itself could not reach the API server says nothing about others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Members {
    seen: BTreeMap<String, Seen>,
    /// Identities named by a shard Lease but without a member Lease, and for how long (ms).
    missing_ms: BTreeMap<String, u64>,
}

impl Members {
    /// Takes in what was seen; a late answer is ignored. Says whether anything is new.
    pub fn saw(&mut self, lease: MemberLease) -> bool {
        self.missing_ms.remove(&lease.identity);
        if let Some(known) = self.seen.get_mut(&lease.identity) {
            let stale = known.lease.version.uid == lease.version.uid
                && lease.version.is_older_than(&known.lease.version);
            if stale || known.lease == lease {
                return false;
            }
            known.lease = lease;
            known.silence_ms = 0;
        } else {
            let identity = lease.identity.clone();
            self.seen.insert(
                identity,
                Seen {
                    lease,
                    silence_ms: 0,
                },
            );
        }
        true
    }

    /// The Lease with this uid is gone.
    pub fn gone(&mut self, identity: &str, uid: &str) {
        if self
            .seen
            .get(identity)
            .is_some_and(|seen| seen.lease.version.uid == uid)
        {
            self.seen.remove(identity);
        }
    }

    /// Everything that exists, after a fresh list: what is not in it is gone. Says of whom the list
    /// shows less than is known: it is a late one, or the API server went back in time.
    pub fn listed(&mut self, leases: Vec<MemberLease>) -> Vec<(String, Version)> {
        self.seen
            .retain(|identity, _| leases.iter().any(|lease| &lease.identity == identity));
        let mut rewound = Vec::new();
        for lease in leases {
            if let Some(known) = self.get(&lease.identity)
                && lease.version.is_older_than(&known.version)
            {
                rewound.push((lease.identity.clone(), known.version.clone()));
            }
            self.saw(lease);
        }
        rewound
    }

    /// Takes in a Lease although it is older than what was known.
    pub fn go_back(&mut self, lease: MemberLease) {
        self.seen.remove(&lease.identity);
        self.saw(lease);
    }

    /// Adds time in which everybody could have been heard.
    pub fn credit(&mut self, elapsed_ms: u64) {
        for seen in self.seen.values_mut() {
            seen.silence_ms = seen.silence_ms.saturating_add(elapsed_ms);
        }
        for missing_ms in self.missing_ms.values_mut() {
            *missing_ms = missing_ms.saturating_add(elapsed_ms);
        }
    }

    /// Starts and stops counting for identities without a member Lease; `named` are those that
    /// shard Leases name. Bounded by the number of shards.
    pub fn count_missing<'a>(&mut self, named: impl Iterator<Item = &'a str>) {
        let absent: Vec<String> = named
            .filter(|identity| !self.seen.contains_key(*identity))
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
    pub fn get(&self, identity: &str) -> Option<&MemberLease> {
        self.seen.get(identity).map(|seen| &seen.lease)
    }

    /// All Leases, vacated ones too, sorted by identity.
    pub fn all(&self) -> impl Iterator<Item = &MemberLease> + Clone {
        self.seen.values().map(|seen| &seen.lease)
    }

    /// Replicas that may be given shards. A silent one counts until somebody vacates it, so that all
    /// replicas agree on the list.
    pub fn eligible(&self, shards: u16) -> impl Iterator<Item = &str> {
        self.all()
            .filter(move |m| is_eligible(m, shards))
            .map(|m| m.identity.as_str())
    }

    /// Whether this very life of a replica may be given shards.
    #[must_use]
    pub fn can_succeed(&self, successor: &Successor, shards: u16) -> bool {
        self.get(&successor.identity)
            .is_some_and(|m| is_eligible(m, shards) && m.incarnation == successor.incarnation)
    }

    /// Whether this very life of a replica has listed everything of the shard.
    #[must_use]
    pub fn is_warm(&self, successor: &Successor, shard: ShardId) -> bool {
        self.get(&successor.identity)
            .is_some_and(|m| m.incarnation == successor.incarnation && m.warm.contains(&shard))
    }

    /// Whether somebody who is not vacated works with another number of shards.
    #[must_use]
    pub fn another_count_is_alive(&self, shards: u16) -> bool {
        self.all().any(|m| !m.is_vacated() && m.shards != shards)
    }

    /// Whether somebody who is not vacated serves other namespaces.
    #[must_use]
    pub fn other_namespaces_are_alive(&self) -> bool {
        self.all()
            .any(|m| !m.is_vacated() && m.shards == OTHER_NAMESPACES)
    }

    /// Whether this incarnation can still act. A missing Lease is waited out for `lease_ms`;
    /// `named_at` is the version of the shard Lease that names the incarnation: a member Lease that
    /// is older proves nothing against it.
    #[must_use]
    pub fn life(
        &self,
        identity: &str,
        incarnation: &str,
        lease_ms: u64,
        named_at: &Version,
    ) -> Life {
        match self.seen.get(identity) {
            Some(seen) if seen.lease.incarnation == incarnation => {
                if seen.lease.is_vacated() {
                    Life::Dead
                } else {
                    Life::Alive
                }
            }
            Some(seen) if named_at.is_older_than(&seen.lease.version) => Life::Dead,
            Some(_) => Life::Doubtful,
            None if self.is_long_gone(identity, lease_ms) => Life::Doubtful,
            None => Life::Unknown,
        }
    }

    /// Whether its Lease has been missing for `lease_ms`, as far as we were shown.
    #[must_use]
    pub fn is_long_gone(&self, identity: &str, lease_ms: u64) -> bool {
        let missing_ms = self.missing_ms.get(identity);
        !self.seen.contains_key(identity) && missing_ms.is_some_and(|ms| *ms >= lease_ms)
    }

    /// Replicas (but `me`) whose Lease has been silent for its whole lifetime: to be vacated.
    pub fn expired<'a>(&'a self, me: &'a str) -> impl Iterator<Item = &'a MemberLease> {
        self.seen
            .values()
            .filter(move |seen| {
                seen.lease.identity != me
                    && !seen.lease.is_vacated()
                    && seen.silence_ms >= seen.lease.lease_ms
            })
            .map(|seen| &seen.lease)
    }

    /// Lets a replica live a little longer: a write that would have vacated it did not succeed.
    pub fn reprieve(&mut self, identity: &str, by_ms: u64) {
        if let Some(seen) = self.seen.get_mut(identity) {
            seen.silence_ms = seen.silence_ms.saturating_sub(by_ms);
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
        assert!(members.saw(lease("a", "two", 9)));
        assert!(!members.saw(lease("a", "one", 8)));
        assert_eq!(members.life("a", "two", 6000, &at(9)), Life::Alive);
    }

    #[test]
    fn only_silence_that_was_credited_kills() {
        let mut members = Members::default();
        members.saw(lease("a", "one", 1));
        members.credit(5999);
        assert_eq!(members.expired("me").count(), 0);
        members.credit(1);
        assert_eq!(members.expired("me").count(), 1);
        members.saw(lease("a", "one", 2));
        assert_eq!(members.expired("me").count(), 0);
    }

    #[test]
    fn a_missing_lease_is_waited_out() {
        let mut members = Members::default();
        members.count_missing(["a"].into_iter());
        assert_eq!(members.life("a", "one", 6000, &at(1)), Life::Unknown);
        members.credit(6000);
        assert_eq!(members.life("a", "one", 6000, &at(1)), Life::Doubtful);
    }

    #[test]
    fn an_incarnation_named_after_the_member_lease_was_seen_is_not_taken_for_dead() {
        let mut members = Members::default();
        members.saw(lease("a", "one", 5));
        assert_eq!(members.life("a", "two", 6000, &at(6)), Life::Doubtful);
        members.saw(lease("a", "three", 7));
        assert_eq!(members.life("a", "two", 6000, &at(6)), Life::Dead);
    }
}
