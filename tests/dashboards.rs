//! Every dashboard keeps the rules of the field and asks only for metrics that exist.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use databasecluster_operator::telemetry::metrics::{CATALOGUE, Described};
use serde_json::Value;

const DATASOURCE: &str = "${datasource}";
const UNITS: [&str; 7] = ["short", "percentunit", "bytes", "s", "ops", "reqps", "none"];

fn dashboards() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, serde_json::from_str(&text).unwrap()));
        }
    }
    assert!(!found.is_empty(), "no dashboard was found");
    found
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.unwrap_or_else(|| panic!("{pointer} is no list"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// All queries with the title of their panel.
fn queries(dashboard: &Value) -> Vec<(&str, &str)> {
    let panels = list(dashboard, "/panels").iter();
    panels
        .flat_map(|panel| {
            let targets = list(panel, "/targets").iter();
            targets.map(move |target| (text(panel, "/title"), text(target, "/expr")))
        })
        .collect()
}

#[test]
fn a_dashboard_is_fixed_and_finds_its_data_source_by_a_variable() {
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards() {
        assert_eq!(dashboard["schemaVersion"], 39, "{file}");
        assert_eq!(dashboard["editable"], false, "{file}");
        assert!(dashboard.get("__inputs").is_none(), "{file}: __inputs");
        assert!(
            dashboard.get("id").is_none(),
            "{file}: id belongs to one Grafana"
        );
        let uid = text(&dashboard, "/uid").to_owned();
        assert!((1..=40).contains(&uid.len()), "{file}: uid {uid:?}");
        assert!(uids.insert(uid), "{file}: its uid is another dashboard's");
        let variables = list(&dashboard, "/templating/list");
        let variable = |name: &str| {
            let found = variables
                .iter()
                .find(|variable| text(variable, "/name") == name);
            found.unwrap_or_else(|| panic!("{file}: no variable {name}"))
        };
        let source = variable("datasource");
        assert_eq!(text(source, "/type"), "datasource", "{file}");
        assert_eq!(text(source, "/query"), "prometheus", "{file}");
        assert_eq!(text(source, "/label"), "Data source", "{file}");
        for (name, label) in [("job", "Job"), ("instance", "Instance")] {
            let variable = variable(name);
            assert_eq!(text(variable, "/type"), "query", "{file}: {name}");
            assert_eq!(text(variable, "/label"), label, "{file}: {name}");
            assert_eq!(
                text(variable, "/datasource/uid"),
                DATASOURCE,
                "{file}: {name}"
            );
            assert_eq!(variable["multi"], true, "{file}: {name}");
            assert_eq!(text(variable, "/allValue"), ".+", "{file}: {name}");
            assert_eq!(
                variable["refresh"], 2,
                "{file}: {name}: on a change of time"
            );
            let query = text(variable, "/query/query");
            let metric = query.trim_start_matches("label_values(");
            let metric = metric.split([',', '{']).next().unwrap();
            assert!(described(metric).is_some(), "{file}: {name}: {metric}");
        }
    }
}

#[test]
fn panels_have_a_title_a_description_a_unit_and_a_place() {
    for (file, dashboard) in dashboards() {
        let mut ids = BTreeSet::new();
        let mut titles = BTreeSet::new();
        let mut places = BTreeSet::new();
        for panel in list(&dashboard, "/panels") {
            let title = text(panel, "/title");
            let what = format!("{file}: {title:?}");
            assert!(
                ids.insert(panel["id"].as_u64().unwrap()),
                "{what}: its id is taken"
            );
            assert!(!title.is_empty() && titles.insert(title), "{what}: title");
            assert!(
                text(panel, "/description").ends_with('.'),
                "{what}: description"
            );
            let unit = text(panel, "/fieldConfig/defaults/unit");
            assert!(UNITS.contains(&unit), "{what}: unit {unit:?}");
            assert_eq!(text(panel, "/datasource/uid"), DATASOURCE, "{what}");
            assert!(!list(panel, "/targets").is_empty(), "{what}: no query");
            for target in list(panel, "/targets") {
                assert_eq!(text(target, "/datasource/uid"), DATASOURCE, "{what}");
            }
            let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
            assert!(side("x") + side("w") <= 24, "{what}: wider than the page");
            for x in side("x")..side("x") + side("w") {
                for y in side("y")..side("y") + side("h") {
                    assert!(places.insert((x, y)), "{what}: lies on another panel");
                }
            }
        }
    }
}

#[test]
fn queries_ask_for_metrics_that_exist_of_the_chosen_replicas() {
    for (file, dashboard) in dashboards() {
        for (title, query) in queries(&dashboard) {
            let problems = problems(query);
            assert!(
                problems.is_empty(),
                "{file}: {title:?}: {problems:?} in {query}"
            );
        }
    }
}

fn described(name: &str) -> Option<&'static Described> {
    CATALOGUE.iter().find(|metric| {
        let series = if metric.kind == "histogram" {
            ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
        } else {
            Some(name)
        };
        series == Some(metric.name)
    })
}

/// What is wrong with a query, by the rules of dashboard-linter and the catalogue of metrics.
fn problems(query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut metrics = 0;
    for (start, word) in words(query) {
        let rest = &query[start + word.len()..];
        let Some(selector) = rest.strip_prefix('{') else {
            if word.contains('_') && !rest.starts_with('(') && !word.starts_with("__") {
                found.push(format!("{word} has no selector"));
            }
            continue;
        };
        metrics += 1;
        let selector = selector.split('}').next().unwrap_or_default();
        for matcher in ["job=~\"$job\"", "instance=~\"$instance\""] {
            if !selector.contains(matcher) {
                found.push(format!("{word} is not limited by {matcher}"));
            }
        }
        let Some(metric) = described(word) else {
            found.push(format!("{word} is not exported"));
            continue;
        };
        let over_time = ["rate(", "increase("]
            .iter()
            .any(|function| query[..start].ends_with(function));
        if (metric.kind == "gauge") == over_time {
            found.push(format!("{word} is a {}: rate or not?", metric.kind));
        }
        if over_time && !rest.contains("}[$__rate_interval])") {
            found.push(format!("{word} is not over $__rate_interval"));
        }
    }
    if metrics == 0 {
        found.push("no metric".to_owned());
    }
    found
}

/// The words of a query outside of quotes and of `by (…)`, with where each begins.
fn words(query: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut quoted, mut start) = (false, None);
    for (at, c) in query.char_indices().chain([(query.len(), ' ')]) {
        if c == '"' {
            quoted = !quoted;
        }
        let inside = !quoted && (c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
        match (start, inside) {
            (None, true) => start = Some(at),
            (Some(begin), false) => {
                found.push((begin, &query[begin..at]));
                start = None;
            }
            _ => {}
        }
    }
    found
}

#[test]
fn the_rules_themselves_find_what_they_look_for() {
    let good = "sum by (le) (rate(workqueue_queue_duration_seconds_bucket{job=~\"$job\", \
                instance=~\"$instance\"}[$__rate_interval]))";
    assert_eq!(problems(good), Vec::<String>::new());
    for (bad, problem) in [
        ("sum(databasecluster_shards)", "no selector"),
        (
            "no_such{job=~\"$job\", instance=~\"$instance\"}",
            "not exported",
        ),
        ("databasecluster_shards{job=~\"$job\"}", "not limited by"),
        (
            "workqueue_adds_total{job=~\"$job\", instance=~\"$instance\"}",
            "rate or not",
        ),
        (
            "rate(databasecluster_shards{job=~\"$job\", instance=~\"$instance\"}[$__rate_interval])",
            "rate or not",
        ),
        (
            "rate(workqueue_adds_total{job=~\"$job\", instance=~\"$instance\"}[5m])",
            "not over",
        ),
        (
            "workqueue_queue_duration_seconds{job=~\"$job\", instance=~\"$instance\"}",
            "not exported",
        ),
        ("1 + 1", "no metric"),
    ] {
        let found = problems(bad).join(", ");
        assert!(found.contains(problem), "{found:?} for {bad}");
    }
}
