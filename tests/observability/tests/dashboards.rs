//! Dashboards follow the rules of dashboard-linter, without exclusions, and Grafana can import them unchanged.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;

use observability::linter::{self, RULES, list, text};
use observability::{files, stem};
use serde_json::{Value, json};

fn dashboards() -> Vec<(String, Value)> {
    let paths = files("dashboards", "json").unwrap();
    let read = |path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let found: Vec<_> = paths.iter().map(|path| (stem(path), read(path))).collect();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["databases", "fleet", "postgresql", "replica"]);
    found
}

#[test]
fn dashboards_follow_the_rules() {
    for (name, dashboard) in dashboards() {
        let problems = linter::problems(&dashboard);
        assert!(problems.is_empty(), "{name}: {problems:#?}");
    }
}

/// What breaks which rule: a place in a dashboard, and what to put there.
fn breaks() -> [(&'static str, &'static str, Value); 17] {
    let good = "/panels/0/targets/0/expr";
    let rated = r#"rate(databasecluster_panics_total{job=~"$job", instance=~"$instance"}[5m])"#;
    let total = r#"databasecluster_panics_total{job=~"$job", instance=~"$instance"}"#;
    let one = |matcher: &str| json!(format!("databasecluster_shards{{{matcher}}}"));
    let target = "/panels/0/targets/0/datasource";
    [
        ("uneditable-dashboard", "/editable", json!(true)),
        (
            "template-datasource-rule",
            "/templating/list/0/name",
            json!("ds"),
        ),
        (
            "template-job-rule",
            "/templating/list/1/multi",
            json!(false),
        ),
        (
            "template-instance-rule",
            "/templating/list/2/allValue",
            json!(""),
        ),
        (
            "template-label-promql-rule",
            "/templating/list/1/query/query",
            json!("values(a, b)"),
        ),
        (
            "template-on-time-change-reload-rule",
            "/templating/list/1/refresh",
            json!(1),
        ),
        (
            "panel-datasource-rule",
            "/panels/0/datasource/uid",
            json!("mine"),
        ),
        (
            "panel-title-description-rule",
            "/panels/0/description",
            json!(""),
        ),
        (
            "panel-units-rule",
            "/panels/0/fieldConfig/defaults/unit",
            json!(""),
        ),
        ("panel-no-targets-rule", "/panels/0/targets", json!([])),
        (
            "target-logql-rule",
            target,
            json!({"type": "loki", "uid": "${datasource}"}),
        ),
        (
            "target-logql-auto-rule",
            target,
            json!({"type": "loki", "uid": "${datasource}"}),
        ),
        ("target-promql-rule", good, json!("sum(")),
        ("target-rate-interval-rule", good, json!(rated)),
        (
            "target-job-rule",
            good,
            one(r#"job="a", instance=~"$instance""#),
        ),
        ("target-instance-rule", good, one(r#"job=~"$job""#)),
        ("target-counter-agg-rule", good, json!(total)),
    ]
}

#[test]
fn each_dashboard_rule_detects_its_violation() {
    let breaks = breaks();
    assert_eq!(breaks.each_ref().map(|(rule, ..)| *rule), RULES);
    let (_, whole) = dashboards().remove(0);
    for (rule, place, value) in breaks {
        let mut broken = whole.clone();
        *broken.pointer_mut(place).unwrap() = value;
        let found: BTreeSet<&str> = linter::problems(&broken).iter().map(|p| p.0).collect();
        let mut expected = BTreeSet::from([rule]);
        if rule.starts_with("target-logql") {
            expected = BTreeSet::from(["target-logql-rule", "target-logql-auto-rule"]);
        }
        assert_eq!(found, expected, "{place}");
    }
}

#[test]
fn dashboards_have_fixed_uids_and_no_import_inputs() {
    let mut uids = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        assert_eq!(dashboard["schemaVersion"], 39, "{name}");
        for field in ["__inputs", "id"] {
            assert!(dashboard.get(field).is_none(), "{name}: {field}");
        }
        let uid = text(&dashboard, "/uid").to_owned();
        assert_eq!(uid, format!("databasecluster-{name}"));
        assert!(uids.insert(uid) && dashboard["title"].is_string(), "{name}");
    }
}

#[test]
fn panels_have_a_description_and_do_not_overlap() {
    for (name, dashboard) in dashboards() {
        let (mut ids, mut titles, mut places) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for panel in list(&dashboard, "/panels") {
            let title = text(panel, "/title");
            let what = format!("{name}: {title:?}");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{what}: id");
            assert!(titles.insert(title), "{what}: its title is taken");
            assert!(text(panel, "/description").ends_with('.'), "{what}");
            let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
            assert!(side("x") + side("w") <= 24, "{what}: wider than the page");
            for x in side("x")..side("x") + side("w") {
                for y in side("y")..side("y") + side("h") {
                    assert!(places.insert((x, y)), "{what}: lies on another panel");
                }
            }
        }
        assert!(ids.len() > 10, "{name}: {} panels", ids.len());
    }
}
