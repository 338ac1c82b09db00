//! What was measured, in memory and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use testbed::statistics::Sorted;

use super::side::Side;

/// One row of the table. The name in JSON ends with the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Benchmark {
    #[serde(rename = "create_seconds")]
    CreateSeconds,
    #[serde(rename = "create_cpu_ms")]
    CreateCpu,
    #[serde(rename = "create_api_server_cpu_ms")]
    CreateServerCpu,
    #[serde(rename = "create_requests")]
    CreateRequests,
    #[serde(rename = "start_seconds")]
    StartSeconds,
    #[serde(rename = "start_cpu_ms")]
    StartCpu,
    #[serde(rename = "peak_memory_mb")]
    PeakMemory,
    #[serde(rename = "all_memory_mb")]
    AllMemory,
    #[serde(rename = "rest_cpu_ms_per_second")]
    RestCpu,
    #[serde(rename = "rest_requests_per_second")]
    RestRequests,
    #[serde(rename = "change_seconds")]
    ChangeSeconds,
    #[serde(rename = "change_cpu_ms")]
    ChangeCpu,
    #[serde(rename = "change_api_server_cpu_ms")]
    ChangeServerCpu,
    #[serde(rename = "change_requests")]
    ChangeRequests,
    #[serde(rename = "takeover_seconds")]
    TakeoverSeconds,
}

impl Benchmark {
    pub(crate) const ALL: [Self; 15] = [
        Self::CreateSeconds,
        Self::CreateCpu,
        Self::CreateServerCpu,
        Self::CreateRequests,
        Self::StartSeconds,
        Self::StartCpu,
        Self::PeakMemory,
        Self::AllMemory,
        Self::RestCpu,
        Self::RestRequests,
        Self::ChangeSeconds,
        Self::ChangeCpu,
        Self::ChangeServerCpu,
        Self::ChangeRequests,
        Self::TakeoverSeconds,
    ];

    /// Its text in tables.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::CreateSeconds => "all created and Ready, s",
            Self::CreateCpu => "CPU for each created cluster, ms",
            Self::CreateServerCpu => "the API server's CPU for each created cluster, ms",
            Self::CreateRequests => "requests for each created cluster",
            Self::StartSeconds => "start on existing clusters, s",
            Self::StartCpu => "CPU for each existing cluster at the start, ms",
            Self::PeakMemory => "peak memory of one process, MB",
            Self::AllMemory => "memory of all processes at rest, MB",
            Self::RestCpu => "CPU at rest, ms per second",
            Self::RestRequests => "requests at rest without Leases and watches, per second",
            Self::ChangeSeconds => "specs changed and all Ready again, s",
            Self::ChangeCpu => "CPU for each change, ms",
            Self::ChangeServerCpu => "the API server's CPU for each change, ms",
            Self::ChangeRequests => "requests for each change",
            Self::TakeoverSeconds => "SIGKILL of the worker until a change is applied, s",
        }
    }
}

/// How the clusters came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Loading {
    /// Through the API server, and brought to Ready by the side that is measured.
    Created,
    /// A few were, and finished copies of them were written into etcd.
    Copied,
}

/// The values of one benchmark of one side. In JSON with what tables show of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "OnlyValues", into = "Summarized")]
pub(crate) struct Values(Vec<f64>);

#[derive(Deserialize)]
struct OnlyValues {
    values: Vec<f64>,
}

#[derive(Serialize)]
struct Summarized {
    median: Option<f64>,
    least: Option<f64>,
    most: Option<f64>,
    values: Vec<f64>,
}

impl From<OnlyValues> for Values {
    fn from(read: OnlyValues) -> Self {
        Self(read.values)
    }
}

impl From<Values> for Summarized {
    fn from(values: Values) -> Self {
        let sorted = values.sorted();
        Self {
            median: sorted.percentile(50),
            least: sorted.percentile(0),
            most: sorted.max(),
            values: values.0,
        }
    }
}

impl Values {
    pub(crate) fn sorted(&self) -> Sorted {
        Sorted::new(self.0.clone())
    }
}

/// Everything that was measured with one number of clusters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Size {
    pub(crate) clusters: usize,
    pub(crate) loading: Loading,
    /// Clusters whose spec was changed.
    pub(crate) changes: usize,
    pub(crate) rounds: usize,
    /// How the operator was built.
    pub(crate) operator: String,
    /// Of the working copy.
    pub(crate) commit: String,
    pub(crate) cores: usize,
    pub(crate) sides: BTreeMap<Side, BTreeMap<Benchmark, Values>>,
}

impl Size {
    pub(crate) fn note(&mut self, side: Side, benchmark: Benchmark, value: f64) {
        let values = self.sides.entry(side).or_default();
        values.entry(benchmark).or_default().0.push(value);
    }

    pub(crate) fn sorted(&self, side: Side, benchmark: Benchmark) -> Sorted {
        let values = self.sides.get(&side).and_then(|all| all.get(&benchmark));
        values.cloned().unwrap_or_default().sorted()
    }

    pub(crate) fn median(&self, side: Side, benchmark: Benchmark) -> Option<f64> {
        self.sorted(side, benchmark).percentile(50)
    }
}

/// All sizes, the smallest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) sizes: Vec<Size>,
}

impl Results {
    /// What a file holds, or nothing when there is none.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("read {}: remove it to begin a new one", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Takes a size in, in the place of what was measured with as many clusters before. Sides that were left out this
    /// time stay, when all else is the same.
    pub(crate) fn replace(&mut self, mut size: Size) {
        let same = |old: &Size| old.clusters == size.clusters && old.loading == size.loading;
        if let Some(index) = self.sizes.iter().position(same) {
            let mut old = self.sizes.remove(index);
            let measured = std::mem::take(&mut size.sides);
            let sides = std::mem::take(&mut old.sides);
            if old == size {
                size.sides = sides;
            }
            size.sides.extend(measured);
        }
        self.sizes.push(size);
        self.sizes.sort_by_key(|one| one.clusters);
    }

    /// Writes everything as JSON, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let what = || format!("write {}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(what)?;
        }
        let part = path.with_extension("part");
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(&part, text + "\n").with_context(what)?;
        std::fs::rename(&part, path).with_context(what)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use serde_json::Value;

    use super::*;

    /// A size without values.
    pub(crate) fn empty(clusters: usize) -> Size {
        Size {
            clusters,
            loading: Loading::Created,
            changes: clusters,
            rounds: 3,
            operator: "release build".to_owned(),
            commit: "abc".to_owned(),
            cores: 2,
            sides: BTreeMap::new(),
        }
    }

    pub(crate) fn size() -> Size {
        let mut size = empty(10);
        for (operator, go) in [(2.0, 9.0), (1.0, 8.0), (3.0, 4.0)] {
            size.note(Side::Operator, Benchmark::CreateCpu, operator);
            size.note(Side::Go, Benchmark::CreateCpu, go);
        }
        size
    }

    #[test]
    fn json_has_every_value_and_reads_as_what_was_written() {
        let mut results = Results::default();
        results.replace(size());
        let json: Value = serde_json::to_value(&results).unwrap();
        let cpu = &json["sizes"][0]["sides"]["operator"]["create_cpu_ms"];
        assert_eq!(cpu["values"], serde_json::json!([2.0, 1.0, 3.0]));
        assert_eq!(cpu["median"], serde_json::json!(2.0));
        assert_eq!(serde_json::from_value::<Results>(json).unwrap(), results);
    }

    #[test]
    fn a_new_run_replaces_only_results_with_as_many_clusters() {
        let mut results = Results::default();
        results.replace(empty(2_000));
        results.replace(empty(10));
        results.replace(size());
        let sizes: Vec<_> = results.sizes.iter().map(|size| size.clusters).collect();
        assert_eq!(sizes, [10, 2_000]);
        assert_eq!(results.sizes[0], size());
    }

    #[test]
    fn sides_left_out_of_a_run_stay_only_beside_those_of_the_same_commit() {
        let (mut first, mut second) = (empty(10), empty(10));
        first.note(Side::Go, Benchmark::CreateCpu, 9.0);
        second.note(Side::Operator, Benchmark::CreateCpu, 2.0);
        let mut results = Results::default();
        results.replace(first);
        results.replace(second.clone());
        assert_eq!(results.sizes.len(), 1);
        assert_eq!(results.sizes[0].sides.len(), 2);
        second.commit = "def".to_owned();
        results.replace(second.clone());
        assert_eq!(results.sizes, [second]);
    }

    #[test]
    fn results_are_written_atomically_into_a_new_folder() {
        let folder = std::env::temp_dir().join(format!("bench-results-{}", std::process::id()));
        let path = folder.join("made/bench.json");
        let mut results = Results::read(&path).unwrap();
        results.replace(size());
        results.write(&path).unwrap();
        let read = Results::read(&path);
        let _removed = std::fs::remove_dir_all(&folder);
        assert_eq!(read.unwrap(), results);
    }
}
