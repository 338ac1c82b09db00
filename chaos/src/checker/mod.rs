//! The checker: decides from the API server's audit log, the process lifetimes and the final state, and from nothing
//! that an operator reports about itself, whether the promises were kept.
//!
//! Each rule is a function from the evidence to a [`Verdict`]. A run with not enough load or without effective faults
//! is an error and does not pass: see [`CheckResult::inconclusive`].

mod alerts;
mod bounds;
mod entries;
mod history;
mod indeterminate;
mod objects;
mod ownership;
#[cfg(test)]
mod tests;
mod writers;

use serde::{Deserialize, Serialize};
use testbed::statistics::Sorted;

use crate::evidence::Evidence;
pub use history::History;
pub use objects::missing;
pub use ownership::Span;

/// How many cases a verdict names.
const DETAILS_MAX: usize = 8;

/// The result of one rule.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Verdict {
    /// The rule's name, as in `failpoints.found_by`.
    pub rule: String,
    /// Whether it was kept.
    pub kept: bool,
    /// In one line.
    pub summary: String,
    /// Some of the cases in which it was not.
    pub details: Vec<String>,
}

impl Verdict {
    /// Kept if there are no violations; `summary` names what was checked.
    fn of(rule: &str, violations: Vec<String>, summary: String) -> Self {
        let count = violations.len();
        Self {
            rule: rule.to_owned(),
            kept: count == 0,
            summary: match count {
                0 => summary,
                _ => format!("{count} violations; {summary}"),
            },
            details: violations.into_iter().take(DETAILS_MAX).collect(),
        }
    }
}

/// What the checker found in one run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CheckResult {
    /// The scenario's name.
    pub scenario: String,
    /// Why the run does not count: not enough load, or a fault without effect.
    pub inconclusive: Vec<String>,
    /// One for each rule.
    pub verdicts: Vec<Verdict>,
    /// Statistics for the report and its tables.
    pub stats: Stats,
    /// Rules one of which must find the failpoint; empty when no failpoint is active.
    pub must_find: Vec<String>,
}

/// Statistics of one run.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Stats {
    /// Seconds from each crash until each of its shards had an acting holder again.
    pub takeover_seconds: Vec<f64>,
    /// Seconds from each crash until the last of its shards had an acting holder again.
    #[serde(default)]
    pub recovery_seconds: Vec<f64>,
    /// Seconds for which shards had no acting holder around planned stops.
    pub planned_unowned_seconds: Vec<f64>,
    /// Seconds from a user's change to the operator's first write of that cluster, away from faults.
    pub undisturbed_reaction_seconds: Vec<f64>,
    /// The same for changes during a fault.
    pub fault_reaction_seconds: Vec<f64>,
    /// Seconds from the end of the last fault until all was converged.
    pub converged_seconds: Option<f64>,
    /// Writes of former holders that the fence refused.
    pub fenced: u64,
    /// Accepted writes of a former holder on objects that the new one had not written yet.
    pub stale: u64,
    /// Accepted changes by users.
    pub changes: u64,
    /// Accepted writes by the operator.
    pub writes: u64,
    /// The deepest queue, the most memory in MiB, and the most requests in one second, of any replica.
    pub queue_max: f64,
    /// See above.
    pub memory_mib_max: f64,
    /// See above.
    pub requests_per_second_max: u64,
}

impl CheckResult {
    /// Whether the result is as expected: all rules kept, or, with failpoints, one of the named rules broken.
    #[must_use]
    pub fn passed(&self) -> bool {
        let broken = |rule: &String| self.verdicts.iter().any(|v| v.rule == *rule && !v.kept);
        self.inconclusive.is_empty()
            && match self.must_find.is_empty() {
                true => self.verdicts.iter().all(|verdict| verdict.kept),
                false => self.must_find.iter().any(broken),
            }
    }

    /// In one word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (
            self.passed(),
            self.inconclusive.is_empty(),
            self.must_find.is_empty(),
        ) {
            (_, false, _) => "DOES NOT COUNT",
            (true, _, true) => "passed",
            (true, _, false) => "found, as expected",
            (false, _, true) => "FAILED",
            (false, _, false) => "NOT FOUND",
        }
    }
}

/// The rules about ownership and fencing, which hold for every operator that is written with the library.
#[must_use]
pub fn check_protocol(evidence: &Evidence, history: &History) -> Vec<Verdict> {
    let entries = entries::Entries::new(evidence, history);
    let ownership = ownership::Ownership::new(evidence, history, &entries);
    protocol(
        evidence,
        history,
        &entries,
        &ownership,
        &mut Stats::default(),
    )
}

fn protocol(
    evidence: &Evidence,
    history: &History,
    entries: &entries::Entries,
    ownership: &ownership::Ownership<'_>,
    stats: &mut Stats,
) -> Vec<Verdict> {
    vec![
        writers::one_writer(evidence, history, entries),
        writers::no_older_after_newer(evidence, history),
        writers::no_stale_writes(evidence, history, entries, stats),
        writers::right_had_not_lapsed(evidence, history),
        entries::token_in_force(evidence, history, entries),
        entries::lease_before_entry(evidence, history, entries),
        entries::table_moves_forward(entries),
        entries::forgeries_ignored(evidence, history, entries),
        ownership::leases_compared(history),
        ownership::epochs_rise(history, entries),
        ownership.held(),
    ]
}

/// Checks one run.
#[must_use]
pub fn check(evidence: &Evidence, history: &History) -> CheckResult {
    let entries = entries::Entries::new(evidence, history);
    let ownership = ownership::Ownership::new(evidence, history, &entries);
    let takeovers = ownership.takeovers();
    let slowest = |times: &Vec<f64>| times.iter().copied().reduce(f64::max);
    let mut stats = Stats {
        recovery_seconds: takeovers.iter().filter_map(slowest).collect(),
        takeover_seconds: takeovers.concat(),
        planned_unowned_seconds: ownership.planned_unowned_seconds(),
        changes: evidence.asked.accepted,
        writes: history
            .writes
            .iter()
            .filter(|write| write.accepted())
            .count() as u64,
        fenced: writers::fenced(history),
        ..Stats::default()
    };
    let mut verdicts = protocol(evidence, history, &entries, &ownership, &mut stats);
    verdicts.extend([
        objects::converged(evidence, history),
        objects::reacted(evidence, history, &mut stats),
        objects::children_counted(evidence, history),
        objects::others_untouched(evidence),
        objects::quiet(evidence, history),
        bounds::within(evidence, history, &mut stats),
        alerts::alerted(evidence),
        as_expected(evidence),
    ]);
    CheckResult {
        scenario: evidence.scenario.name.clone(),
        inconclusive: inconclusive(evidence, &stats),
        verdicts,
        stats,
        must_find: evidence
            .scenario
            .failpoints
            .as_ref()
            .map_or_else(Vec::new, |failpoints| failpoints.found_by.clone()),
    }
}

/// The holders of each shard over time, for the timeline of a report.
#[must_use]
pub fn timeline(evidence: &Evidence, history: &History) -> Vec<(String, Vec<Span>)> {
    let entries = entries::Entries::new(evidence, history);
    ownership::Ownership::new(evidence, history, &entries).spans()
}

/// What a fault observed while it lasted was as expected.
fn as_expected(evidence: &Evidence) -> Verdict {
    let faults = evidence.faults.iter();
    let violations = faults.flat_map(|fault| {
        let unexpected = fault.unexpected.iter();
        unexpected.map(|what| format!("{}: {what}", fault.what))
    });
    let count = evidence.faults.len();
    Verdict::of(
        "as-expected",
        violations.collect(),
        format!("{count} faults"),
    )
}

/// Why the run does not count.
fn inconclusive(evidence: &Evidence, stats: &Stats) -> Vec<String> {
    let expect = &evidence.scenario.expect;
    let mut missing = Vec::new();
    if let Some(problem) = &evidence.problem {
        missing.push(format!("the run did not end as planned: {problem}"));
    }
    if evidence.asked.accepted < expect.changes_min {
        missing.push(format!(
            "users' changes accepted: {}, at least {} are needed",
            evidence.asked.accepted, expect.changes_min
        ));
    }
    if stats.writes == 0 {
        missing.push("the operator wrote nothing, or the audit log is empty".to_owned());
    }
    let planned = evidence.scenario.faults.len();
    if evidence.faults.len() < planned {
        missing.push(format!(
            "faults injected: {} of {planned}",
            evidence.faults.len()
        ));
    }
    for fault in evidence
        .faults
        .iter()
        .filter(|fault| fault.bites < expect.bites_min)
    {
        missing.push(format!(
            "{}: it took effect {} times, at least {} are needed",
            fault.what, fault.bites, expect.bites_min
        ));
    }
    if stats.fenced < expect.fenced_min {
        missing.push(format!(
            "writes refused by the fence: {}, at least {} are needed",
            stats.fenced, expect.fenced_min
        ));
    }
    missing
}

/// Count, median, 99th percentile and maximum in words.
#[must_use]
pub fn distribution(values: &[f64]) -> String {
    let sorted = Sorted::new(values.iter().copied());
    let figure =
        |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2} s"));
    format!(
        "n {}  p50 {}  p99 {}  max {}",
        sorted.count(),
        figure(sorted.percentile(50)),
        figure(sorted.percentile(99)),
        figure(sorted.max())
    )
}
