//! Alerts have a severity, a runbook, and cases in which they fire and in which they just do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use observability::alerts::{self, Cases};
use observability::promql::Query;
use observability::{file, files, stem};

const RUNBOOKS: &str = "https://example.com/runbooks/";
const HEADINGS: [&str; 4] = ["Meaning", "Impact", "Diagnosis", "Mitigation"];

fn promtool(arguments: &[&str], of: &[std::path::PathBuf]) {
    let output = Command::new("promtool").args(arguments).args(of).output();
    let output = output.expect("promtool is missing: see tests/set-up.sh");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "promtool {arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[test]
fn prometheus_loads_the_rules_and_they_fire_as_expected() {
    promtool(&["check", "rules"], &[file("dashboards/alerts.yaml")]);
    let cases = files("tests/observability/rules", "yaml").unwrap();
    promtool(&["test", "rules"], &cases);
}

#[test]
fn each_alert_has_a_severity_and_texts() {
    let alerts = alerts::all().unwrap();
    assert!(alerts.len() > 15, "only {} alerts were found", alerts.len());
    for alert in alerts {
        let name = &alert.alert;
        assert!(name.starts_with("DatabaseCluster"), "{name}");
        let severity = alert.labels["severity"].as_str();
        assert!(["critical", "warning"].contains(&severity), "{name}");
        for text in ["summary", "description"] {
            let text = &alert.annotations[text];
            assert!(text.len() > 20 && text.ends_with('.'), "{name}: {text:?}");
        }
        let expected = format!("{RUNBOOKS}{name}.md");
        assert_eq!(alert.annotations["runbook_url"], expected, "{name}");
    }
}

/// A case of silence with none of the alert's series would show nothing.
#[test]
fn each_alert_has_a_firing_and_a_non_firing_case() {
    let mut wanted = BTreeMap::new();
    for alert in alerts::all().unwrap() {
        let query = Query::read(&alert.expr).unwrap();
        let metrics: BTreeSet<String> = query.selectors.into_iter().map(|s| s.name).collect();
        assert!(!metrics.is_empty(), "{}", alert.alert);
        wanted.insert(alert.alert, metrics);
    }
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for path in files("tests/observability/rules", "yaml").unwrap() {
        let cases: Cases = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for case in cases.tests {
            let (name, says) = case.name.split_once(": ").unwrap();
            let metrics = wanted
                .get(name)
                .unwrap_or_else(|| panic!("no alert {name}"));
            let series = |s: &str| s.split('{').next().unwrap().to_owned();
            let given: BTreeSet<String> = case
                .input_series
                .iter()
                .map(|s| series(&s.series))
                .collect();
            let asked = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\"}}");
            assert!(
                case.promql_expr_test.iter().all(|q| q.expr == asked),
                "{}: queries something else",
                case.name
            );
            let answers = |q: &alerts::Question| !q.exp_samples.is_empty();
            if case.promql_expr_test.iter().any(answers) {
                assert!(says.starts_with("fires"), "{}", case.name);
                fires.insert(name.to_owned());
            } else {
                assert!(says.starts_with("silent"), "{}", case.name);
                assert!(metrics.is_subset(&given), "{}: lacks series", case.name);
                silent.insert(name.to_owned());
            }
        }
    }
    let all: BTreeSet<String> = wanted.into_keys().collect();
    assert_eq!(fires, all, "alerts that fire in some case");
    assert_eq!(silent, all, "alerts that stay silent in some case");
}

#[test]
fn alerts_and_runbooks_match() {
    let alerts = alerts::all().unwrap().into_iter().map(|alert| alert.alert);
    let mut pages = BTreeSet::new();
    for path in files("docs/runbooks", "md").unwrap() {
        let name = stem(&path);
        if name == "README" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().next().unwrap(), format!("# {name}"));
        let headings: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("## ")).collect();
        assert_eq!(headings, HEADINGS, "{name}");
        for part in text.split("\n## ").skip(1) {
            let words = part.split_whitespace().count();
            assert!(words > 8, "{name}: {part:?} is too short");
        }
        assert!(text.contains("```sh\n"), "{name}: no command");
        pages.insert(name);
    }
    assert_eq!(pages, alerts.collect());
}
