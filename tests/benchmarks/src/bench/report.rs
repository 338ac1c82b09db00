//! The results, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testbed::statistics::Sorted;

use super::contender::Side;
use crate::goal::profile;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Benchmark {
    CreateSeconds,
    CreateCpu,
    CreateServerCpu,
    CreateRequests,
    PeakMemory,
    AllMemory,
    RestCpu,
    RestRequests,
    ChangeSeconds,
    ChangeCpu,
    ChangeServerCpu,
    ChangeRequests,
    TakeoverSeconds,
}

impl Benchmark {
    const ALL: [Self; 13] = [
        Self::CreateSeconds,
        Self::CreateCpu,
        Self::CreateServerCpu,
        Self::CreateRequests,
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

    /// Its name in JSON, with the unit last, and its text in the table.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::CreateSeconds => ("create_seconds", "all created and Ready, s"),
            Self::CreateCpu => ("create_cpu_ms", "  CPU for each cluster, ms"),
            Self::CreateServerCpu => (
                "create_api_server_cpu_ms",
                "  the API server's CPU for each, ms",
            ),
            Self::CreateRequests => ("create_requests", "  requests for each"),
            Self::PeakMemory => ("peak_memory_mb", "peak memory of one process, MB"),
            Self::AllMemory => ("all_memory_mb", "memory of all processes at rest, MB"),
            Self::RestCpu => ("rest_cpu_ms_per_second", "CPU at rest, ms per second"),
            Self::RestRequests => (
                "rest_requests_per_second",
                "requests at rest, Leases and watches left out, per second",
            ),
            Self::ChangeSeconds => ("change_seconds", "every spec changed and Ready again, s"),
            Self::ChangeCpu => ("change_cpu_ms", "  CPU for each change, ms"),
            Self::ChangeServerCpu => (
                "change_api_server_cpu_ms",
                "  the API server's CPU for each, ms",
            ),
            Self::ChangeRequests => ("change_requests", "  requests for each"),
            Self::TakeoverSeconds => (
                "takeover_seconds",
                "SIGKILL of the worker until a change is applied, s",
            ),
        }
    }
}

/// Every value of every round.
#[derive(Debug)]
pub(super) struct Report {
    clusters: usize,
    rounds: usize,
    profile: &'static str,
    values: BTreeMap<(Side, Benchmark), Vec<f64>>,
}

impl Report {
    pub(super) fn new(clusters: usize, rounds: usize) -> Result<Self> {
        Ok(Self {
            clusters,
            rounds,
            profile: profile()?,
            values: BTreeMap::new(),
        })
    }

    pub(super) fn note(&mut self, side: Side, benchmark: Benchmark, value: f64) {
        self.values
            .entry((side, benchmark))
            .or_default()
            .push(value);
    }

    fn sorted(&self, side: Side, benchmark: Benchmark) -> Sorted {
        let values = self.values.get(&(side, benchmark)).cloned();
        Sorted::new(values.unwrap_or_default())
    }

    /// The median of each, the least and the most, and the peer's median over the operator's.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{} DatabaseClusters, StatefulSets without Pods, {} rounds ({}): median (least to most)\n\n{:58}",
            self.clusters, self.rounds, self.profile, ""
        );
        for side in Side::ALL {
            let _infallible = write!(text, " {:>26}", side.label());
        }
        text.push_str("  peer / operator\n");
        for benchmark in Benchmark::ALL {
            let _infallible = write!(text, "{:58}", benchmark.words().1);
            for side in Side::ALL {
                let _infallible = write!(text, " {:>26}", cell(&self.sorted(side, benchmark)));
            }
            let median = |side| self.sorted(side, benchmark).percentile(50);
            let ratio = match (median(Side::Peer), median(Side::Operator)) {
                (Some(peer), Some(operator)) if operator > 0.0 => {
                    format!("{:.1}", peer / operator)
                }
                _ => "-".to_owned(),
            };
            let _infallible = writeln!(text, "  {ratio:>15}");
        }
        text
    }

    fn json(&self) -> Value {
        let mut benchmarks = Vec::new();
        for benchmark in Benchmark::ALL {
            let mut sides = serde_json::Map::new();
            for side in Side::ALL {
                if let Some(values) = self.values.get(&(side, benchmark)) {
                    let sorted = self.sorted(side, benchmark);
                    let said = json!({
                        "median": sorted.percentile(50), "least": sorted.percentile(0), "most": sorted.max(), "values": values,
                    });
                    sides.insert(side.label().to_owned(), said);
                }
            }
            benchmarks.push(json!({"name": benchmark.words().0, "sides": sides}));
        }
        json!({
            "clusters": self.clusters,
            "rounds": self.rounds,
            "operator": self.profile,
            "benchmarks": benchmarks,
        })
    }

    /// Writes everything as JSON, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let what = || format!("write {}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(what)?;
        }
        let part = path.with_extension("part");
        let text = serde_json::to_string_pretty(&self.json())?;
        std::fs::write(&part, text + "\n").with_context(what)?;
        std::fs::rename(&part, path).with_context(what)
    }
}

fn cell(sorted: &Sorted) -> String {
    match (sorted.percentile(50), sorted.percentile(0), sorted.max()) {
        (Some(median), Some(least), Some(most)) => {
            format!("{median:.2} ({least:.2} to {most:.2})")
        }
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn report() -> Report {
        let mut report = Report {
            clusters: 10,
            rounds: 3,
            profile: "release build",
            values: BTreeMap::new(),
        };
        for (operator, peer) in [(2.0, 9.0), (1.0, 8.0), (3.0, 4.0)] {
            report.note(Side::Operator, Benchmark::CreateCpu, operator);
            report.note(Side::Peer, Benchmark::CreateCpu, peer);
        }
        report
    }

    #[test]
    fn table_shows_medians_ranges_and_ratio_of_measured_values_only() {
        let table = report().table();
        let row = |text: &str| table.lines().find(|line| line.contains(text)).unwrap();
        let cpu = row("CPU for each cluster");
        assert!(cpu.contains("2.00 (1.00 to 3.00)"), "{cpu}");
        assert!(cpu.contains("8.00 (4.00 to 9.00)"), "{cpu}");
        assert!(cpu.trim_end().ends_with("4.0"), "{cpu}");
        assert!(row("SIGKILL").trim_end().ends_with('-'));
    }

    #[test]
    fn json_lists_every_value_under_its_benchmark_name() {
        let json = report().json();
        let find = |name: &str| {
            let all = json["benchmarks"].as_array().unwrap();
            all.iter().find(|one| one["name"] == name).unwrap().clone()
        };
        let cpu = find("create_cpu_ms");
        let operator = &cpu["sides"]["operator, 3 replicas"];
        assert_eq!(operator["values"], json!([2.0, 1.0, 3.0]));
        assert_eq!(operator["median"], json!(2.0));
        assert_eq!(find("takeover_seconds")["sides"], json!({}));
    }

    #[test]
    fn report_is_written_atomically_into_a_new_folder() {
        let folder = std::env::temp_dir().join(format!("bench-report-{}", std::process::id()));
        let path = folder.join("made/bench.json");
        report().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let _removed = std::fs::remove_dir_all(&folder);
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["clusters"], 10);
    }
}
