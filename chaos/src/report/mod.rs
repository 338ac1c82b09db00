//! Reports what the checker found: lines for the terminal, a page, JSON for programs.

mod charts;
mod page;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

pub use page::{page, section};

use crate::checker::{CheckResult, distribution};

/// The lines of one run.
#[must_use]
pub fn lines(result: &CheckResult) -> Vec<String> {
    let mut lines = vec![format!("{}: {}", result.scenario, result.word())];
    lines.extend(
        result
            .inconclusive
            .iter()
            .map(|why| format!("  does not count: {why}")),
    );
    for verdict in &result.verdicts {
        let mark = if verdict.kept { "kept  " } else { "BROKEN" };
        lines.push(format!("  {mark} {:21} {}", verdict.rule, verdict.summary));
        lines.extend(
            verdict
                .details
                .iter()
                .map(|detail| format!("           {detail}")),
        );
    }
    let stats = &result.stats;
    for (what, values) in [
        ("takeover", &stats.takeover_seconds),
        ("of all shards", &stats.recovery_seconds),
        ("planned stop", &stats.planned_unowned_seconds),
        ("reaction, undisturbed", &stats.undisturbed_reaction_seconds),
        ("reaction, faults", &stats.fault_reaction_seconds),
    ] {
        if !values.is_empty() {
            lines.push(format!("  {what:16} {}", distribution(values)));
        }
    }
    lines
}

/// Writes all results as JSON.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json(results: &[&CheckResult], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(results)?;
    write(path, &text)
}

/// Writes a file atomically: a page that is open meanwhile is replaced as a whole.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let part = path.with_extension("part");
    let what = || format!("write {}", path.display());
    std::fs::write(&part, text).with_context(what)?;
    std::fs::rename(&part, path).with_context(what)
}

/// Reads what [`write_json`] wrote.
///
/// # Errors
/// When it does not exist or cannot be parsed.
pub fn read_json(path: &Path) -> Result<Vec<CheckResult>> {
    let what = || format!("read {}", path.display());
    let text = std::fs::read(path).with_context(what)?;
    serde_json::from_slice(&text).with_context(what)
}

/// A table in Markdown: one line for each scenario, its runs taken together.
#[must_use]
pub fn table(results: &[CheckResult]) -> String {
    let mut of: BTreeMap<&str, Vec<&CheckResult>> = BTreeMap::new();
    for result in results {
        of.entry(&result.scenario).or_default().push(result);
    }
    let mut text = "| scenario | runs | as expected | takeover of a shard | of the last shard of a crash | without a holder in a planned stop | from a change to the first write | fenced | stale |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n".to_owned();
    for (scenario, runs) in of {
        let all = |figure: fn(&CheckResult) -> &Vec<f64>| -> String {
            let values: Vec<f64> = runs.iter().flat_map(|run| figure(run).clone()).collect();
            match values.is_empty() {
                true => "-".to_owned(),
                false => distribution(&values),
            }
        };
        let good = runs.iter().filter(|run| run.passed()).count();
        let fenced: u64 = runs.iter().map(|run| run.stats.fenced).sum();
        let stale: u64 = runs.iter().map(|run| run.stats.stale).sum();
        text += &format!(
            "| `{scenario}` | {} | {good} | {} | {} | {} | {} | {fenced} | {stale} |\n",
            runs.len(),
            all(|run| &run.stats.takeover_seconds),
            all(|run| &run.stats.recovery_seconds),
            all(|run| &run.stats.planned_unowned_seconds),
            all(|run| &run.stats.fault_reaction_seconds),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::checker::{Stats, Verdict};

    fn result(kept: bool, takeover_seconds: &[f64]) -> CheckResult {
        CheckResult {
            scenario: "kill".into(),
            inconclusive: Vec::new(),
            verdicts: vec![Verdict {
                rule: "held".into(),
                kept,
                summary: "3 <shards>".into(),
                details: vec!["one & another".into()],
            }],
            stats: Stats {
                takeover_seconds: takeover_seconds.to_vec(),
                ..Stats::default()
            },
            must_find: Vec::new(),
        }
    }

    #[test]
    fn runs_of_one_scenario_share_one_table_row() {
        let runs = [result(true, &[1.0, 2.0]), result(false, &[3.0])];
        let text = table(&runs);
        let last = text.lines().last().unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(
            last.starts_with(
                "| `kill` | 2 | 1 | n 3  p50 2.00 s  p99 3.00 s  max 3.00 s | - | - |"
            ),
            "{last}"
        );
    }

    #[test]
    fn written_report_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        write_json(&[&result(false, &[1.0])], &path).unwrap();
        let again = read_json(&path).unwrap();
        assert_eq!(again.len(), 1);
        assert!(!again[0].passed());
    }

    #[test]
    fn page_is_complete_and_lists_broken_rules() {
        let good = page(&[(1, result(true, &[]))], &[], &[]);
        assert!(good.contains("all results are as expected"));
        let bad = page(&[(1, result(false, &[]))], &[], &["x: <no> start".into()]);
        assert!(bad.contains("2 have unexpected results") && bad.contains("x: &lt;no&gt; start"));
        let run = || result(true, &[5.0, 6.0]);
        let twice = page(&[(1, run()), (2, run())], &[], &[]);
        assert!(twice.contains("2 runs: n 4"), "{twice}");
        for outside in ["http://", "https://", "<script", "<link", "src="] {
            assert!(!bad.contains(outside), "{outside}");
        }
    }
}
