//! The labels of all metrics with their possible values, and the resulting number of series.

use sharded_controller::metrics::Described;

use super::metrics::catalogue;

/// One label, wherever it appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: &'static str,
    /// Maximum number of values in one process, in one metric.
    pub most: usize,
}

/// Number of values of `shard` by default.
pub(crate) const DEFAULT_SHARDS: usize = 32;
const SHARD: &str = "shard";

const fn label(name: &'static str, values: &'static str, most: usize) -> Label {
    Label { name, values, most }
}

/// Every label, by name.
pub const LABELS: &[Label] = &[
    label(
        "cause",
        "cause of a failed reconcile: `unavailable`, `forbidden`, `invalid`, `foreign_child`, `token_ahead`, `fenced`, `timeout`, `panic`, `other`",
        9,
    ),
    label(
        "code",
        "an HTTP status code that API servers send, else `other`; `<error>`, `<cancelled>`",
        27,
    ),
    label("controller", "`databasecluster`", 1),
    label("host", "the API server's address", 1),
    label(
        "kind",
        "a kind that the operator writes, or a resource that it watches",
        8,
    ),
    label("method", "an HTTP method", 6),
    label("mode", "`sharded`, `filtered`", 2),
    label(
        "name",
        "of the queue: `databasecluster`; of the election: `databasecluster-leader`",
        1,
    ),
    label(
        "phase",
        "`Creating`, `Scaling`, `Ready`, `Degraded`, `Terminating`",
        5,
    ),
    label("priority", "empty: there is one", 1),
    label(
        "reason",
        "why a shard was gained or lost, as in the log",
        13,
    ),
    label(
        "result",
        "`success`, `error`, `requeue`, `requeue_after`",
        4,
    ),
    label("revision", "source revision of this program", 1),
    label(
        SHARD,
        "number of the shard: those that this replica holds",
        256,
    ),
    label("turn", "`first`, `again`", 2),
    label(
        "verb",
        "an HTTP method, with reads split into `GET`, `LIST`, `WATCH`",
        8,
    ),
    label("version", "version of this program", 1),
];

/// Maximum number of series that one replica can export with this number of shards, independent of
/// the number of DatabaseClusters.
#[must_use]
pub(crate) fn series_most(shards: usize) -> usize {
    catalogue()
        .iter()
        .map(|metric| series_of(metric, shards))
        .sum()
}

fn series_of(metric: &Described, shards: usize) -> usize {
    let values = |name: &&str| {
        let label = LABELS.iter().find(|label| label.name == *name);
        label.map_or(1, |label| {
            if label.name == SHARD {
                shards
            } else {
                label.most
            }
        })
    };
    // A histogram has its buckets, the one without a bound, the sum and the count.
    let of_each = match metric.kind {
        "histogram" => metric.buckets.len() + 3,
        _ => 1,
    };
    metric.labels.iter().map(values).product::<usize>() * of_each
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_label_is_described_and_bounded_and_none_is_of_no_use() {
        let used: BTreeSet<&str> = catalogue().iter().flat_map(|m| m.labels).copied().collect();
        let described: Vec<&str> = LABELS.iter().map(|label| label.name).collect();
        assert!(described.is_sorted());
        assert_eq!(used, described.into_iter().collect());
    }

    #[test]
    fn series_count_is_bounded_by_the_labels() {
        let most = series_most(DEFAULT_SHARDS);
        assert!(most <= 1_200, "{most} series of one replica are too many");
        assert_eq!(series_most(256) - most, 4 * (256 - DEFAULT_SHARDS));
    }
}
