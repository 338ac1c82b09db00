//! Finds, in the audit log, the first write by another replica to each cluster of a dead one.

use std::collections::{BTreeMap, BTreeSet};

use testbed::audit::AuditEvent;
use testbed::fleet::OPERATOR_USER;
use testbed::load::Key;

/// Clusters of a dead replica that still wait for a write by another one.
#[derive(Debug)]
pub struct Waiting {
    dead: String,
    /// When the change of each cluster's spec arrived, in microseconds since 1970; known from the log as well.
    changed_micros: BTreeMap<Key, i64>,
    pending: BTreeSet<Key>,
    /// When each cluster had its write, in microseconds since 1970.
    written_micros: BTreeMap<Key, i64>,
    /// When each Lease of the dead replica's shards was first written by another, in microseconds since 1970.
    taken_micros: BTreeMap<String, Option<i64>>,
}

impl Waiting {
    /// All these clusters wait, and the shards with these Leases.
    #[must_use]
    pub fn new(
        dead: &str,
        clusters: impl IntoIterator<Item = Key>,
        leases: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            dead: dead.to_owned(),
            changed_micros: BTreeMap::new(),
            pending: clusters.into_iter().collect(),
            written_micros: BTreeMap::new(),
            taken_micros: leases.into_iter().map(|lease| (lease, None)).collect(),
        }
    }

    /// Records events, in any order within one call.
    pub fn note(&mut self, events: &[AuditEvent]) {
        for event in events
            .iter()
            .filter(|event| event.is_accepted_write() && event.user != OPERATOR_USER)
        {
            if event.resource == "databaseclusters" && event.subresource.is_empty() {
                let key = (event.namespace.clone(), event.name.clone());
                self.changed_micros
                    .entry(key)
                    .or_insert(event.received_micros);
            }
        }
        let by_others: Vec<&AuditEvent> = events
            .iter()
            .filter(|event| self.is_by_another(event))
            .collect();
        for event in by_others {
            if event.resource == "leases"
                && let Some(taken) = self.taken_micros.get_mut(&event.name)
            {
                taken.get_or_insert(event.completed_micros);
            }
            let Some(key) = cluster_of(event).filter(|key| self.pending.contains(key)) else {
                continue;
            };
            // A write in flight before the change is no reaction to it.
            let changed = self.changed_micros.get(&key);
            if changed.is_some_and(|changed| event.received_micros > *changed) {
                self.pending.remove(&key);
                self.written_micros.insert(key, event.completed_micros);
            }
        }
    }

    /// Clusters without a write so far.
    #[must_use]
    pub fn pending(&self) -> &BTreeSet<Key> {
        &self.pending
    }

    /// Seconds from `killed_micros` to the write, for each cluster that had one.
    #[must_use]
    pub fn seconds_since(&self, killed_micros: i64) -> Vec<f64> {
        #[allow(clippy::cast_precision_loss)]
        let seconds = |written: &i64| (written - killed_micros) as f64 / 1e6;
        self.written_micros.values().map(seconds).collect()
    }

    /// Seconds from `killed_micros` until each shard was taken; those that were not are left out.
    #[must_use]
    pub fn taken_seconds_since(&self, killed_micros: i64) -> Vec<f64> {
        #[allow(clippy::cast_precision_loss)]
        let seconds = |taken: &i64| (taken - killed_micros) as f64 / 1e6;
        self.taken_micros.values().flatten().map(seconds).collect()
    }

    fn is_by_another(&self, event: &AuditEvent) -> bool {
        let by = event.pod_name.as_deref();
        event.user == OPERATOR_USER
            && by.is_some_and(|name| name != self.dead)
            && event.is_accepted_write()
    }
}

/// The cluster that is written to, itself or in its StatefulSet.
fn cluster_of(event: &AuditEvent) -> Option<Key> {
    let name = match event.resource.as_str() {
        "databaseclusters" => event.name.as_str(),
        "statefulsets" => event.name.strip_suffix("-db")?,
        _ => return None,
    };
    Some((event.namespace.clone(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn event(user: &str, pod: Option<&str>, resource: &str, name: &str, micros: i64) -> AuditEvent {
        AuditEvent {
            user: user.into(),
            pod_name: pod.map(str::to_owned),
            verb: "patch".into(),
            resource: resource.into(),
            namespace: "n".into(),
            name: name.into(),
            code: 200,
            received_micros: micros,
            completed_micros: micros + 10,
            ..AuditEvent::default()
        }
    }

    fn change(micros: i64) -> AuditEvent {
        event("admin", None, "databaseclusters", "a", micros)
    }

    fn waiting() -> Waiting {
        let clusters = [("n".to_owned(), "a".to_owned())];
        Waiting::new("dead", clusters, ["shard-1".to_owned()])
    }

    #[test]
    fn write_by_another_replica_after_the_change_counts() {
        for (resource, name) in [("databaseclusters", "a"), ("statefulsets", "a-db")] {
            let mut waiting = waiting();
            waiting.note(&[
                event(OPERATOR_USER, Some("other"), resource, name, 3_000_000),
                change(1_000_000),
            ]);
            assert!(waiting.pending().is_empty());
            assert_eq!(waiting.seconds_since(1_000_010), [2.0]);
        }
    }

    #[test]
    fn first_lease_write_by_another_replica_takes_the_shard() {
        let mut waiting = waiting();
        let lease = |pod, name, micros| event(OPERATOR_USER, Some(pod), "leases", name, micros);
        waiting.note(&[lease("dead", "shard-1", 1), lease("other", "shard-2", 2)]);
        assert_eq!(waiting.taken_seconds_since(0), [] as [f64; 0]);
        waiting.note(&[
            lease("other", "shard-1", 999_990),
            lease("third", "shard-1", 5_000_000),
        ]);
        assert_eq!(waiting.taken_seconds_since(0), [1.0]);
    }

    #[test]
    fn other_writes_do_not_count() {
        let refused = AuditEvent {
            code: 422,
            ..event(OPERATOR_USER, Some("other"), "databaseclusters", "a", 9)
        };
        let not = [
            event(OPERATOR_USER, Some("dead"), "databaseclusters", "a", 9),
            event(OPERATOR_USER, None, "databaseclusters", "a", 9),
            event(OPERATOR_USER, Some("other"), "databaseclusters", "b", 9),
            event(OPERATOR_USER, Some("other"), "leases", "a", 9),
            event(OPERATOR_USER, Some("other"), "databaseclusters", "a", 4),
            refused,
        ];
        for event in not {
            let mut waiting = waiting();
            waiting.note(&[change(5), event.clone()]);
            assert_eq!(waiting.pending().len(), 1, "{event:?}");
        }
    }
}
