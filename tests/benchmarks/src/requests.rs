//! Requests of the audit log, counted by verb and resource.

use std::collections::BTreeMap;
use std::fmt::Write;

use testbed::audit::AuditEvent;
use testbed::fleet::OPERATOR_NAMESPACE;

/// Counts by verb and resource.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    counts: BTreeMap<(String, String), Count>,
}

#[derive(Debug)]
struct Count {
    all: u32,
    refused: u32,
    /// Of the operator's own Leases, or a watch.
    expected_at_rest: bool,
}

impl Requests {
    pub(crate) fn count(events: &[AuditEvent]) -> Self {
        let mut counts: BTreeMap<_, Count> = BTreeMap::new();
        for event in events {
            let expected_at_rest = is_expected_at_rest(event);
            let note = if expected_at_rest && event.verb != "watch" {
                " (heartbeat)"
            } else if event.uri.contains("dryRun=") {
                " (dry run)"
            } else {
                ""
            };
            let key = (
                event.verb.clone(),
                format!("{}{note}", event.full_resource()),
            );
            let count = counts.entry(key).or_insert(Count {
                all: 0,
                refused: 0,
                expected_at_rest,
            });
            count.all += 1;
            count.refused += u32::from(event.code >= 400);
        }
        Self { counts }
    }

    /// One line for each, most first, divided by `divisor`.
    pub(crate) fn table(&self, divisor: f64, unit: &str) -> String {
        let mut rows: Vec<_> = self.counts.iter().collect();
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(count.all));
        let mut text = format!(
            "{:10} {:32} {:>12} {:>9} {:>9}\n",
            "verb", "resource", unit, "requests", "refused"
        );
        for ((verb, resource), count) in rows {
            let share = f64::from(count.all) / divisor;
            let _infallible = writeln!(
                text,
                "{verb:10} {resource:32} {share:12.3} {:9} {:9}",
                count.all, count.refused
            );
        }
        let all: u32 = self.counts.values().map(|count| count.all).sum();
        let refused: u32 = self.counts.values().map(|count| count.refused).sum();
        let _infallible = writeln!(
            text,
            "{:10} {:32} {:12.3} {all:9} {refused:9}",
            "all",
            "",
            f64::from(all) / divisor
        );
        text
    }

    /// What a fleet at rest should not send.
    pub(crate) fn other_than_heartbeats_and_watches(&self) -> Vec<String> {
        let others = self
            .counts
            .iter()
            .filter(|(_, count)| !count.expected_at_rest);
        others
            .map(|((verb, resource), count)| format!("{} × {verb} {resource}", count.all))
            .collect()
    }
}

/// Heartbeats are writes of member Leases and of the fleet leader's, which is also read before.
pub(crate) fn is_expected_at_rest(event: &AuditEvent) -> bool {
    let lease = event.resource == "leases" && event.namespace == OPERATOR_NAMESPACE;
    let heartbeat =
        event.name.starts_with("databasecluster-member-") || event.name == "databasecluster-leader";
    event.verb == "watch"
        || (lease && heartbeat && matches!(event.verb.as_str(), "get" | "update" | "patch"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn event(verb: &str, resource: &str, name: &str) -> AuditEvent {
        AuditEvent {
            verb: verb.into(),
            resource: resource.into(),
            name: name.into(),
            namespace: OPERATOR_NAMESPACE.into(),
            code: 200,
            ..AuditEvent::default()
        }
    }

    #[test]
    fn only_heartbeats_and_watches_count_as_idle_requests() {
        let quiet = [
            event("update", "leases", "databasecluster-member-a"),
            event("get", "leases", "databasecluster-leader"),
            event("patch", "leases", "databasecluster-leader"),
            event("watch", "databaseclusters", ""),
        ];
        assert!(
            Requests::count(&quiet)
                .other_than_heartbeats_and_watches()
                .is_empty()
        );
        for loud in [
            event("update", "leases", "databasecluster-shard-001"),
            event("list", "leases", ""),
            event("patch", "statefulsets", "x"),
        ] {
            let beside_quiet = [quiet[0].clone(), loud, quiet[0].clone()];
            assert_eq!(
                Requests::count(&beside_quiet)
                    .other_than_heartbeats_and_watches()
                    .len(),
                1
            );
        }
    }

    #[test]
    fn request_table_shows_rates_and_sums() {
        let events = [
            event("get", "pods", "a"),
            event("get", "pods", "b"),
            event("list", "pods", ""),
        ];
        let table = Requests::count(&events).table(2.0, "per cluster");
        assert!(
            table.contains("1.000") && table.contains("1.500") && table.contains("0.500"),
            "{table}"
        );
    }
}
