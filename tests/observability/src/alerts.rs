//! The alerts of `dashboards/alerts.yaml`, and the cases by which promtool tests them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A file of rules.
#[derive(Debug, Deserialize)]
pub struct Rules {
    /// Its groups.
    pub groups: Vec<Group>,
}

/// Rules of one subject.
#[derive(Debug, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its alerts.
    pub rules: Vec<Alert>,
}

/// One alert.
#[derive(Debug, Deserialize)]
pub struct Alert {
    /// Its name.
    pub alert: String,
    /// What it fires on.
    pub expr: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its texts.
    pub annotations: BTreeMap<String, String>,
}

/// A file of promtool's test cases.
#[derive(Debug, Deserialize)]
pub struct Cases {
    /// The cases.
    pub tests: Vec<Case>,
}

/// One case: synthetic series, and the queries on them.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// The series.
    pub input_series: Vec<Series>,
    /// The questions.
    pub promql_expr_test: Vec<Question>,
}

/// One series.
#[derive(Debug, Deserialize)]
pub struct Series {
    /// Its metric and labels.
    pub series: String,
}

/// One question and its answer.
#[derive(Debug, Deserialize)]
pub struct Question {
    /// The question.
    pub expr: String,
    /// The series that are to answer it.
    pub exp_samples: Vec<serde_json::Value>,
}

/// All alerts.
///
/// # Errors
/// When the file cannot be read or parsed.
pub fn all() -> Result<Vec<Alert>, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(crate::file("dashboards/alerts.yaml"))?;
    let rules: Rules = serde_saphyr::from_str(&text)?;
    Ok(rules
        .groups
        .into_iter()
        .flat_map(|group| group.rules)
        .collect())
}
