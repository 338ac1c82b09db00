//! The metrics that a replica exports, as docs/reference/metrics.md lists them; another test keeps that page true to the
//! code. And those of databases, which other programs export too, as docs/reference/database-metrics.md lists them.

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

/// What Prometheus adds to metrics of databases.
const DATABASE_LABELS: [&str; 3] = ["namespace", "pod", "database"];

const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// All families by name.
#[derive(Debug)]
pub struct Catalogue(pub BTreeMap<String, Family>);

impl Catalogue {
    /// Reads the page of the operator's.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read() -> std::io::Result<Self> {
        Self::of_page("docs/reference/metrics.md")
    }

    /// Reads the page of those of databases, with the labels that Prometheus adds to them.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_databases() -> std::io::Result<Self> {
        let mut found = Self::of_page("docs/reference/database-metrics.md")?;
        for family in found.0.values_mut() {
            let added = DATABASE_LABELS.iter().map(|label| (*label).to_owned());
            family.labels.extend(added);
        }
        Ok(found)
    }

    /// Both.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read_all() -> std::io::Result<Self> {
        let mut all = Self::read()?;
        all.0.append(&mut Self::read_databases()?.0);
        Ok(all)
    }

    fn of_page(page: &str) -> std::io::Result<Self> {
        let page = std::fs::read_to_string(crate::file(page))?;
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
