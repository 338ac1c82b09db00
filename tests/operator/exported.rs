//! What replicas export against what is documented, both ways, and against Prometheus's own check.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use databasecluster_operator::api::names::NAMES;
use databasecluster_operator::telemetry::metrics::catalogue;
use databasecluster_operator::telemetry::metrics_doc::ON_OCCASION;
use databasecluster_operator::telemetry::metrics_labels::LABELS;
use testbed::Fleet;
use testbed::metrics::Metrics;

/// Metric families with their types, as the replicas export them; the same for each.
async fn families(fleet: &Fleet<'_>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for replica in fleet.alive() {
        let text = replica.get("/metrics").await.unwrap().body;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            found.insert(name.to_owned(), kind.to_owned());
        }
    }
    found
}

/// Nothing is exported that is not documented, and nothing documented that is not exported, but for
/// metrics that are documented as appearing only after an event.
pub(crate) async fn is_what_is_documented(fleet: &Fleet<'_>) {
    let exported = families(fleet).await;
    let documented: BTreeMap<String, String> = catalogue()
        .iter()
        .map(|metric| (metric.name(&NAMES), metric.kind.to_owned()))
        .collect();
    for (name, kind) in &exported {
        assert_eq!(documented.get(name), Some(kind), "{name} is exported");
    }
    let silent = |name: &&String| !exported.contains_key(*name);
    let on_occasion = |name: &&String| ON_OCCASION.iter().any(|(known, _)| known == name);
    let missing: Vec<&String> = documented
        .keys()
        .filter(silent)
        .filter(|name| !on_occasion(name))
        .collect();
    assert!(missing.is_empty(), "documented, not exported: {missing:?}");
    for replica in fleet.alive() {
        labels_are_as_documented(&replica.metrics().await.unwrap());
        promtool_has_no_objection(&replica.get("/metrics").await.unwrap().body);
    }
}

/// Each series has its metric's labels and no other, and no label has undocumented values.
fn labels_are_as_documented(metrics: &Metrics) {
    let catalogue = catalogue();
    let mut values: BTreeMap<(String, &str), BTreeSet<&str>> = BTreeMap::new();
    for sample in metrics.samples() {
        let of = |name: &str| catalogue.iter().find(|metric| metric.name(&NAMES) == name);
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| of(sample.name.strip_suffix(suffix)?))
            .or_else(|| of(&sample.name));
        let metric = family.unwrap_or_else(|| panic!("{} is not documented", sample.name));
        let own = sample.labels.iter().filter(|(name, _)| *name != "le");
        let names: BTreeSet<&str> = own.clone().map(|(name, _)| name.as_str()).collect();
        let documented: BTreeSet<&str> = metric.labels.iter().copied().collect();
        assert_eq!(names, documented, "labels of {}", sample.name);
        for (name, value) in own {
            values
                .entry((metric.name(&NAMES), name))
                .or_default()
                .insert(value);
        }
    }
    for ((metric, name), values) in values {
        let label = LABELS.iter().find(|label| label.name == name).unwrap();
        assert!(
            values.len() <= label.most,
            "{metric}: more than {} values of {name}: {values:?}",
            label.most
        );
    }
}

fn promtool_has_no_objection(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("promtool: {error} (Debian: apt-get install prometheus)");
        });
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let answer = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&answer.stdout) + String::from_utf8_lossy(&answer.stderr);
    assert!(
        answer.status.success() && said.is_empty(),
        "promtool check metrics: {}: {said}",
        answer.status
    );
}
