//! The metrics that a replica exports, as docs/reference/metrics.md lists them; another test keeps that page true to the code.

use std::collections::BTreeMap;

/// One metric family.
#[derive(Clone, Debug)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Whether it exists only after an event.
    pub on_occasion: bool,
}

impl Family {
    /// The names under which Prometheus keeps it.
    #[must_use]
    pub fn series_of(&self, name: &str) -> Vec<String> {
        match self.kind.as_str() {
            "histogram" => SUFFIXES.map(|suffix| format!("{name}{suffix}")).to_vec(),
            _ => vec![name.to_owned()],
        }
    }
}

const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// All families by name.
#[derive(Debug)]
pub struct Catalogue(pub BTreeMap<String, Family>);

impl Catalogue {
    /// Reads the page.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read() -> std::io::Result<Self> {
        let page = std::fs::read_to_string(crate::file("docs/reference/metrics.md"))?;
        let row = |line: &str| {
            let cells: Vec<&str> = line.split(" | ").map(str::trim).collect();
            let [name, kind, labels, _] = cells.as_slice() else {
                return None;
            };
            let name = name.strip_prefix("| `")?.strip_suffix('`')?;
            let labels = labels.split(", ").filter(|label| !label.is_empty());
            let family = Family {
                kind: (*kind).to_owned(),
                labels: labels.map(|label| label.replace('`', "")).collect(),
                on_occasion: page.contains(&format!("\n- `{name}`: ")),
            };
            ["counter", "gauge", "histogram"]
                .contains(kind)
                .then(|| (name.to_owned(), family))
        };
        Ok(Self(page.lines().filter_map(row).collect()))
    }

    /// The family to which a series belongs, if one is exported under this name.
    #[must_use]
    pub fn family_of(&self, series: &str) -> Option<&Family> {
        if let Some(family) = self.0.get(series) {
            return (family.kind != "histogram").then_some(family);
        }
        let base = SUFFIXES.iter().find_map(|s| series.strip_suffix(s))?;
        self.0.get(base).filter(|family| family.kind == "histogram")
    }
}
