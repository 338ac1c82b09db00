//! Tells people what the judge found: lines for the terminal, JSON for programs.

use std::path::Path;

use anyhow::{Context, Result};

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
pub fn write_json(judgements: &[Judgement], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(judgements)?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
