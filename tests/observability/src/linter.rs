//! The 17 rules of dashboard-linter, reimplemented for every panel; it skips unknown kinds.

use promql_parser::label::MatchOp;
use serde_json::Value;

use crate::promql::{Query, RATE_INTERVAL, Selector};

/// The names of the rules, as dashboard-linter has them.
pub const RULES: [&str; 17] = [
    "uneditable-dashboard",
    "template-datasource-rule",
    "template-job-rule",
    "template-instance-rule",
    "template-label-promql-rule",
    "template-on-time-change-reload-rule",
    "panel-datasource-rule",
    "panel-title-description-rule",
    "panel-units-rule",
    "panel-no-targets-rule",
    "target-logql-rule",
    "target-logql-auto-rule",
    "target-promql-rule",
    "target-rate-interval-rule",
    "target-job-rule",
    "target-instance-rule",
    "target-counter-agg-rule",
];
const DATASOURCE: &str = "${datasource}";
/// Those of Grafana's units that fit what is exported.
const UNITS: [&str; 7] = ["short", "percentunit", "bytes", "Bps", "s", "ops", "reqps"];
const LABEL_FUNCTIONS: [&str; 4] = ["label_names", "label_values", "metrics", "query_result"];

/// A list in a dashboard, empty when it is not there.
#[must_use]
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

/// A text in a dashboard, empty when it is not there.
#[must_use]
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// Everything that is wrong with a dashboard: the rule, and where.
#[must_use]
pub fn problems(dashboard: &Value) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if dashboard["editable"] != false {
        found.push(("uneditable-dashboard", "editable is not false".to_owned()));
    }
    variables(dashboard, &mut found);
    for panel in list(dashboard, "/panels") {
        self::panel(panel, &mut found);
    }
    found
}

fn variables(dashboard: &Value, found: &mut Vec<(&'static str, String)>) {
    let all = list(dashboard, "/templating/list");
    let sources: Vec<&Value> = all.iter().filter(|v| v["type"] == "datasource").collect();
    let plain = |v: &Value| {
        v["name"] == "datasource" && v["label"] == "Data source" && v["query"] == "prometheus"
    };
    if sources.len() != 1 || !sources.iter().all(|v| plain(v)) {
        let what = "not exactly one variable for Prometheus, 'datasource', 'Data source'";
        found.push(("template-datasource-rule", what.to_owned()));
    }
    for (name, label, rule) in [
        ("job", "Job", "template-job-rule"),
        ("instance", "Instance", "template-instance-rule"),
    ] {
        let fits = |v: &Value| {
            v["name"] == name
                && v["label"] == label
                && v["type"] == "query"
                && text(v, "/datasource/uid") == DATASOURCE
                && v["multi"] == true
                && v["allValue"] == ".+"
        };
        if !all.iter().any(fits) {
            found.push((rule, format!("no variable {name} as it should be")));
        }
    }
    for variable in all.iter().filter(|v| v["type"] == "query") {
        let name = text(variable, "/name");
        let query = text(variable, "/query/query");
        if variable_metric(query).is_none() {
            found.push(("template-label-promql-rule", format!("{name}: {query}")));
        }
        if variable["refresh"] != 2 {
            let what = format!("{name} is not refreshed when the time range changes");
            found.push(("template-on-time-change-reload-rule", what));
        }
    }
}

/// The selector of a variable's query, if the query is one.
#[must_use]
pub fn variable_metric(query: &str) -> Option<Selector> {
    let (function, rest) = query.split_once('(')?;
    let (metric, label) = rest.strip_suffix(')')?.rsplit_once(',')?;
    let is_label = label
        .trim()
        .chars()
        .all(|c| c.is_alphanumeric() || c == '_');
    let read = Query::read(metric).ok()?;
    let selector = read.selectors.into_iter().next()?;
    (LABEL_FUNCTIONS.contains(&function) && is_label).then_some(selector)
}

fn panel(panel: &Value, found: &mut Vec<(&'static str, String)>) {
    let title = text(panel, "/title");
    let mut add = |rule: &'static str, what: &str| found.push((rule, format!("{title:?}: {what}")));
    let source = text(panel, "/datasource/uid");
    if source != DATASOURCE {
        add("panel-datasource-rule", source);
    }
    if title.is_empty() || text(panel, "/description").is_empty() {
        add("panel-title-description-rule", "no title or description");
    }
    let unit = text(panel, "/fieldConfig/defaults/unit");
    if !UNITS.contains(&unit) {
        add("panel-units-rule", unit);
    }
    let targets = list(panel, "/targets");
    if targets.is_empty() {
        add("panel-no-targets-rule", "no query");
    }
    for target in targets {
        self::target(target, &mut add);
    }
}

fn target(target: &Value, add: &mut impl FnMut(&'static str, &str)) {
    let expr = text(target, "/expr");
    // The rules about logs do not apply without log queries.
    let is_logs = text(target, "/datasource/type") != "prometheus"
        || text(target, "/datasource/uid") != DATASOURCE;
    if is_logs {
        add("target-logql-rule", "another data source than Prometheus");
    }
    if is_logs || expr.contains("$__auto") {
        add("target-logql-auto-rule", "a query of logs");
    }
    let query = match Query::read(expr) {
        Ok(query) if !query.selectors.is_empty() => query,
        Ok(_) => return add("target-promql-rule", &format!("no metric in {expr:?}")),
        Err(error) => return add("target-promql-rule", &error),
    };
    for selector in &query.selectors {
        if selector.range.is_some_and(|range| range != RATE_INTERVAL) {
            add("target-rate-interval-rule", expr);
        }
        for (label, value, rule) in [
            ("job", "$job", "target-job-rule"),
            ("instance", "$instance", "target-instance-rule"),
        ] {
            let matchers = selector.matchers.find_matchers(label);
            let fits = |op: &MatchOp| matches!(op, MatchOp::Re(_));
            if matchers.len() != 1 || !matchers.iter().all(|m| m.value == value && fits(&m.op)) {
                add(rule, expr);
            }
        }
        let function = selector.function.as_deref();
        let over_time = selector.range.is_some()
            && function.is_some_and(|name| ["rate", "irate", "increase"].contains(&name));
        if selector.name.ends_with("_total") && !over_time {
            add("target-counter-agg-rule", expr);
        }
    }
}
