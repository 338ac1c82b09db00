//! Dashboards, alerts and runbooks name no metric and no label that is not exported, and use each as what it is.
#![allow(clippy::unwrap_used)]

use std::fs;

use observability::catalogue::Catalogue;
use observability::linter::{list, text, variable_metric};
use observability::promql::{Query, Selector};
use observability::{alerts, files, stem};
use serde_json::Value;

/// Labels that Prometheus adds, and one created in a query; and the one metric that it creates itself.
const LABELS_OF_PROMETHEUS: [&str; 4] = ["job", "instance", "cluster", "le"];
const METRIC_OF_PROMETHEUS: &str = "up";

fn problems(catalogue: &Catalogue, selector: &Selector) -> Vec<String> {
    let name = &selector.name;
    let mut found = Vec::new();
    if name == METRIC_OF_PROMETHEUS {
        return found;
    }
    let Some(family) = catalogue.family_of(name) else {
        return vec![format!("{name} is not exported")];
    };
    let over_time = selector.range.is_some();
    let is_counting = family.kind != "gauge";
    let is_bridged = selector.function.as_deref() == Some("last_over_time");
    if is_counting != over_time && !is_bridged {
        found.push(format!("{name} is a {}: over time or not?", family.kind));
    }
    for matcher in &selector.matchers.matchers {
        let label = matcher.name.as_str();
        if !LABELS_OF_PROMETHEUS.contains(&label) && !family.labels.iter().any(|l| l == label) {
            found.push(format!("{name} has no label {label}"));
        }
    }
    found
}

/// Every query, with its location.
fn queries() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in files("dashboards", "json").unwrap() {
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for panel in list(&dashboard, "/panels") {
            for target in list(panel, "/targets") {
                let place = format!("{}: {}", stem(&path), text(panel, "/title"));
                found.push((place, text(target, "/expr").to_owned()));
            }
        }
        for variable in list(&dashboard, "/templating/list") {
            if let Some(selector) = variable_metric(text(variable, "/query/query")) {
                found.push((stem(&path), selector.name));
            }
        }
    }
    let alerts = alerts::all().unwrap().into_iter();
    found.extend(alerts.map(|alert| (alert.alert, alert.expr)));
    found
}

#[test]
fn queries_use_exported_metrics() {
    let catalogue = Catalogue::read_all().unwrap();
    assert!(catalogue.0.len() > 50, "{}", catalogue.0.len());
    let queries = queries();
    assert!(queries.len() > 80, "only {} queries", queries.len());
    for (place, query) in queries {
        for selector in Query::read(&query).unwrap().selectors {
            let problems = problems(&catalogue, &selector);
            assert!(problems.is_empty(), "{place}: {problems:?} in {query}");
        }
    }
}

#[test]
fn wrong_metric_names_labels_and_uses_are_detected() {
    let catalogue = Catalogue::read_all().unwrap();
    for (query, problem) in [
        ("databasecluster_shards", ""),
        ("no_such_metric", "not exported"),
        ("workqueue_queue_duration_seconds", "not exported"),
        ("rate(workqueue_adds_total_bucket[5m])", "not exported"),
        ("databasecluster_clusters{fase=\"Ready\"}", "no label fase"),
        ("workqueue_adds_total", "over time or not"),
        ("rate(databasecluster_shards[5m])", "over time or not"),
        (
            "workqueue_queue_duration_seconds_bucket",
            "over time or not",
        ),
    ] {
        let query = Query::read(query).unwrap();
        let found = problems(&catalogue, &query.selectors[0]).join(", ");
        assert_eq!(found.is_empty(), problem.is_empty(), "{found}");
        assert!(found.contains(problem), "{found}");
    }
}

/// Words of the metrics' kind in a text: at least one `_`, and a prefix of ours or of the field's.
fn metrics_in(text: &str) -> Vec<&str> {
    let prefixes = [
        "databasecluster_",
        "controller_runtime_",
        "workqueue_",
        "leader_election_",
        "rest_client_",
        "process_",
        "pg_stat_",
        "pg_replication_",
        "pg_settings_",
        "kubelet_",
    ];
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    // A view of PostgreSQL in a query, and the role of the exporter.
    let is_metric = |place: &usize| {
        let before = place.checked_sub(1).map(|place| words[place]);
        !matches!(before, Some("FROM" | "JOIN")) && words[*place] != "databasecluster_exporter"
    };
    let names = (0..words.len()).filter(is_metric).map(|place| words[place]);
    names
        .filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
        .collect()
}

#[test]
fn runbooks_name_exported_metrics() {
    let catalogue = Catalogue::read_all().unwrap();
    let mut named = 0;
    for folder in [
        "docs",
        "docs/explanation",
        "docs/how-to",
        "docs/reference",
        "docs/runbooks",
        "docs/tutorial",
        "dashboards",
    ] {
        for path in files(folder, "md").unwrap() {
            let page = fs::read_to_string(&path).unwrap();
            for word in metrics_in(&page) {
                // A name cut short, as in `controller_runtime_*` or in an expression for grep, is one, too.
                let begins = |name: &String| name.starts_with(word);
                let known = catalogue.0.keys().any(begins) || catalogue.family_of(word).is_some();
                assert!(known, "{}: {word} is not exported", stem(&path));
                named += 1;
            }
            for pattern in patterns(&page) {
                let fits = |name: &&String| name.contains(&pattern);
                let found = catalogue.0.keys().find(fits);
                assert!(found.is_some(), "{}: grep for {pattern}", stem(&path));
            }
        }
    }
    assert!(named > 80, "only {named} names were found");
}

/// What commands that read a replica's metrics search with grep.
fn patterns(page: &str) -> Vec<String> {
    let lines = page.lines().filter(|line| line.contains("/metrics | grep"));
    let expressions = lines.filter_map(|line| line.split("grep ").nth(1));
    let words = expressions.flat_map(|text| {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.contains('_'))
            .map(|word| word.trim_end_matches("_sum").trim_matches('_').to_owned())
            .collect::<Vec<_>>()
    });
    words.collect()
}
