//! The page docs/reference/metrics.md, written from the catalogue of metrics.

use std::fmt::Write as _;

use super::metrics::catalogue;
use super::metrics_labels::{DEFAULT_SHARDS, LABELS, series_most};
use crate::api::names::NAMES;

const INTRODUCTION: &str = "# Metrics

Every metric that a replica exports on `/metrics`. This page is generated from the catalogue in \
[the library](../../src/sharded-controller/src/metrics.rs) and in [the operator](../../src/operator/src/telemetry/metrics.rs): after a change, run `UPDATE_DOCS=1 cargo test --test docs`.

`controller_runtime_*`, `workqueue_*`, `leader_election_*`, `rest_client_*` and `process_*` have the names, labels and \
meanings that controllers of the field export, so that existing dashboards work. Times are in seconds, sizes in bytes. \
Dashboards and alerts that use them: [dashboards](../../dashboards/README.md).
";

/// Metrics without a series before an event, with that event. All others exist from the start, or
/// as soon as the replica takes part in a fleet with DatabaseClusters.
pub const ON_OCCASION: &[(&str, &str)] = &[
    (
        "databasecluster_shard_writes_refused",
        "the API server has refused every write of a shard for 10 s",
    ),
    (
        "rest_client_request_retries_total",
        "a list or watch had to be sent again",
    ),
];

/// The page in Markdown.
#[must_use]
pub fn page() -> String {
    let mut text =
        format!("{INTRODUCTION}\n| name | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    // Writing into a String cannot fail.
    let mut rows = catalogue();
    rows.sort_by_key(|metric| metric.name(&NAMES));
    for metric in rows {
        let labels: Vec<String> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        // A bar would end the cell.
        let help = metric.help.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {help} |",
            metric.name(&NAMES),
            metric.kind,
            labels.join(", ")
        );
    }
    text.push_str(
        "\nAll of them exist in a working fleet, except those that appear with an event:\n\n",
    );
    for (name, when) in ON_OCCASION {
        let _ = writeln!(text, "- `{name}`: {when}");
    }
    text.push_str(&labels());
    text
}

fn labels() -> String {
    let mut text = format!(
        "
## Labels

Unless the flag `--cluster-metrics` is set ([metrics of databases](database-metrics.md#databaseclusters)), no label contains the name of an object, so the number of series does not depend on how many \
DatabaseClusters there are: a replica exports at most {} with {DEFAULT_SHARDS} shards, and {} with 256. \
`make series` counts them with 10,000.

| label | values | at most |
| --- | --- | --- |
",
        series_most(DEFAULT_SHARDS),
        series_most(256),
    );
    for label in LABELS {
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} |",
            label.name, label.values, label.most
        );
    }
    text
}
