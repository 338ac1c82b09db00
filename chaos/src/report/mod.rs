//! Tells people what the judge found: lines for the terminal, a page, JSON for programs.

mod charts;
mod page;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

pub use page::{page, section};

use crate::judge::{Judgement, distribution};

/// The lines of one run.
#[must_use]
pub fn lines(judgement: &Judgement) -> Vec<String> {
    let mut lines = vec![format!("{}: {}", judgement.scenario, judgement.word())];
    lines.extend(
        judgement
            .too_little
            .iter()
            .map(|why| format!("  does not count: {why}")),
    );
    for verdict in &judgement.verdicts {
        let mark = if verdict.kept { "kept  " } else { "BROKEN" };
        lines.push(format!("  {mark} {:21} {}", verdict.rule, verdict.summary));
        lines.extend(
            verdict
                .details
                .iter()
                .map(|detail| format!("           {detail}")),
        );
    }
    let figures = &judgement.figures;
    for (what, values) in [
        ("takeover", &figures.takeover_seconds),
        ("of all shards", &figures.recovery_seconds),
        ("planned stop", &figures.planned_unowned_seconds),
        ("reaction, calm", &figures.calm_reaction_seconds),
        ("reaction, faults", &figures.fault_reaction_seconds),
    ] {
        if !values.is_empty() {
            lines.push(format!("  {what:16} {}", distribution(values)));
        }
    }
    lines
}

/// Writes all judgements as JSON.
///
/// # Errors
/// When the file can not be written.
pub fn write_json(judgements: &[&Judgement], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(judgements)?;
    write(path, &text)
}

/// Writes a file; a page that somebody looks at meanwhile is replaced as a whole.
///
/// # Errors
/// When it can not be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let part = path.with_extension("part");
    let what = || format!("write {}", path.display());
    std::fs::write(&part, text).with_context(what)?;
    std::fs::rename(&part, path).with_context(what)
}

/// Reads what [`write_json`] wrote.
///
/// # Errors
/// When it is not there or can not be understood.
pub fn read_json(path: &Path) -> Result<Vec<Judgement>> {
    let what = || format!("read {}", path.display());
    let text = std::fs::read(path).with_context(what)?;
    serde_json::from_slice(&text).with_context(what)
}

/// A table in Markdown: one line for each scenario, its runs taken together.
#[must_use]
pub fn table(judgements: &[Judgement]) -> String {
    let mut of: BTreeMap<&str, Vec<&Judgement>> = BTreeMap::new();
    for judgement in judgements {
        of.entry(&judgement.scenario).or_default().push(judgement);
    }
    let mut text = "| scenario | runs | as it should be | takeover of a shard | of the last shard of a crash | unheld in a planned stop | from a change to the first write | fenced | stale |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n".to_owned();
    for (scenario, runs) in of {
        let all = |figure: fn(&Judgement) -> &Vec<f64>| -> String {
            let values: Vec<f64> = runs.iter().flat_map(|run| figure(run).clone()).collect();
            match values.is_empty() {
                true => "-".to_owned(),
                false => distribution(&values),
            }
        };
        let good = runs.iter().filter(|run| run.passed()).count();
        let fenced: u64 = runs.iter().map(|run| run.figures.fenced).sum();
        let stale: u64 = runs.iter().map(|run| run.figures.stale).sum();
        text += &format!(
            "| `{scenario}` | {} | {good} | {} | {} | {} | {} | {fenced} | {stale} |\n",
            runs.len(),
            all(|run| &run.figures.takeover_seconds),
            all(|run| &run.figures.recovery_seconds),
            all(|run| &run.figures.planned_unowned_seconds),
            all(|run| &run.figures.fault_reaction_seconds),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::judge::{Figures, Verdict};

    fn judgement(kept: bool, takeover_seconds: &[f64]) -> Judgement {
        Judgement {
            scenario: "kill".into(),
            too_little: Vec::new(),
            verdicts: vec![Verdict {
                rule: "held".into(),
                kept,
                summary: "3 <shards>".into(),
                details: vec!["one & another".into()],
            }],
            figures: Figures {
                takeover_seconds: takeover_seconds.to_vec(),
                ..Figures::default()
            },
            must_find: Vec::new(),
        }
    }

    #[test]
    fn runs_of_one_scenario_are_one_line_of_the_table() {
        let runs = [judgement(true, &[1.0, 2.0]), judgement(false, &[3.0])];
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
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        write_json(&[&judgement(false, &[1.0])], &path).unwrap();
        let again = read_json(&path).unwrap();
        assert_eq!(again.len(), 1);
        assert!(!again[0].passed());
    }

    #[test]
    fn the_page_is_whole_and_says_what_is_broken() {
        let good = page(&[(1, judgement(true, &[]))], &[], &[]);
        assert!(good.contains("all came out as they should"));
        let bad = page(
            &[(1, judgement(false, &[]))],
            &[],
            &["x: <no> start".into()],
        );
        assert!(bad.contains("2 did not come out") && bad.contains("x: &lt;no&gt; start"));
        let run = || judgement(true, &[5.0, 6.0]);
        let twice = page(&[(1, run()), (2, run())], &[], &[]);
        assert!(twice.contains("2 runs: n 4"), "{twice}");
        for outside in ["http://", "https://", "<script", "<link", "src="] {
            assert!(!bad.contains(outside), "{outside}");
        }
    }
}
