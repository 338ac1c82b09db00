//! What kube-state-metrics makes of an object by its configuration `CustomResourceStateMetrics`: the part of its
//! documented form and rules that deploy/components/kube-state-metrics uses (version 2.17). It is not run itself.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The whole file. Fields that are not in the documented form are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Always `CustomResourceStateMetrics`.
    pub kind: String,
    /// Its content.
    pub spec: Spec,
}

/// The resources.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// One for each kind.
    pub resources: Vec<Resource>,
}

/// A kind with its metrics.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Resource {
    /// The kind.
    pub group_version_kind: Kind,
    /// What the names of its metrics begin with.
    pub metric_name_prefix: String,
    labels_from_path: BTreeMap<String, Vec<String>>,
    metrics: Vec<Generator>,
}

/// Group, version and kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    /// The group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The kind.
    pub kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generator {
    name: String,
    help: String,
    each: Each,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Each {
    #[serde(rename = "type")]
    kind: String,
    gauge: Gauge,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Gauge {
    path: Vec<String>,
    #[serde(default)]
    labels_from_path: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    value_from: Vec<String>,
    #[serde(default)]
    nil_is_zero: bool,
}

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its labels, without those of the kind that kube-state-metrics adds.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Config {
    /// The file of this repository.
    ///
    /// # Errors
    /// When it cannot be read, or has another form.
    pub fn read() -> Result<Self, Box<dyn std::error::Error>> {
        let path = "deploy/components/kube-state-metrics/custom-resource-state.yaml";
        let text = std::fs::read_to_string(crate::file(path))?;
        Ok(serde_saphyr::from_str(&text)?)
    }

    /// The metrics of an object of the first kind.
    ///
    /// # Errors
    /// When a value is no number, or a metric has no help.
    pub fn metrics(&self, object: &Value) -> Result<Vec<Series>, String> {
        let resource = self.spec.resources.first().ok_or("no resource")?;
        let mut found = Vec::new();
        for generator in &resource.metrics {
            let Generator { name, help, each } = generator;
            if help.is_empty() || each.kind != "Gauge" {
                return Err(format!("{name}: no help, or no gauge"));
            }
            let gauge = &each.gauge;
            let target = at(object, &gauge.path);
            let elements: Vec<&Value> = match target {
                Value::Array(list) => list.iter().collect(),
                other => vec![other],
            };
            for element in elements {
                let mut labels = BTreeMap::new();
                for (of, paths) in [
                    (object, &resource.labels_from_path),
                    (element, &gauge.labels_from_path),
                ] {
                    for (label, path) in paths {
                        // An absent label is empty, which is the same for Prometheus.
                        let text = at(of, path).as_str().unwrap_or_default();
                        labels.insert(label.clone(), text.to_owned());
                    }
                }
                if let Some(value) = number(at(element, &gauge.value_from), gauge.nil_is_zero)
                    .map_err(|error| format!("{name}: {error}"))?
                {
                    let name = format!("{}_{name}", resource.metric_name_prefix);
                    found.push(Series {
                        name,
                        labels,
                        value,
                    });
                }
            }
        }
        Ok(found)
    }
}

fn at<'a>(value: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(value, |value, name| &value[name])
}

/// As `toFloat64` of kube-state-metrics; none where it exports nothing.
fn number(value: &Value, nil_is_zero: bool) -> Result<Option<f64>, String> {
    Ok(match value {
        Value::Null => nil_is_zero.then_some(0.0),
        Value::Bool(is) => Some(f64::from(u8::from(*is))),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.to_lowercase().as_str() {
            "true" | "yes" => Some(1.0),
            "false" | "no" | "unknown" => Some(0.0),
            other => return Err(format!("{other:?} is no number")),
        },
        other => return Err(format!("{other} is no number")),
    })
}
