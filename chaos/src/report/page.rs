//! The page: one file that loads nothing, with all runs, their verdicts and their drawings.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts;
use crate::checker::{CheckResult, Span, distribution};
use crate::evidence::{Evidence, seconds};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --faint: #68707c; --bad: #b3261e; --good: #1b7f3b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171c; --faint: #9aa2ad; --bad: #ff7a70; --good: #66d08a; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 980px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2em .6em .2em 0; vertical-align: top; border-bottom: 1px solid #8884; }
svg { width: 100%; height: auto; background: #8881; } svg text { font-size: 10px; fill: var(--faint); text-anchor: middle; } svg line { stroke: var(--faint); }
svg line.mark { stroke: var(--ink); stroke-dasharray: 3 2; } polyline { fill: none; stroke-width: 1.5; } circle { fill: #4477aa; fill-opacity: .55; }
rect.fault { fill: #d40; fill-opacity: .16; stroke: #d40; stroke-width: .6; } h2 { margin-top: 2.5em; } h4 { margin: 1em 0 .2em; font-weight: 500; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); } .faint { color: var(--faint); } .key i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
pre { white-space: pre-wrap; margin: .2em 0; font-size: 13px; }
";

/// The section of the page about one run; rendered at once, so that its evidence need not be kept.
pub fn section(
    evidence: &Evidence,
    result: &CheckResult,
    shards: &[(String, Vec<Span>)],
) -> Markup {
    let scenario = &evidence.scenario;
    let promised = scenario.takeover_seconds();
    let (work, undisturbed, fault) = (
        &result.stats.takeover_seconds,
        &result.stats.undisturbed_reaction_seconds,
        &result.stats.fault_reaction_seconds,
    );
    html! {
        h2 id=(anchor(result, scenario.seed)) { (scenario.name) " " (word(result)) }
        p { (scenario.about) " " span.faint { "Seed " (scenario.seed) "." } }
        @for why in &result.inconclusive { p.bad { "Does not count: " (why) } }
        table {
            @for verdict in &result.verdicts {
                tr {
                    td { @if verdict.kept { span.good { "kept" } } @else { span.bad { "broken" } } }
                    td { (verdict.rule) }
                    td { (verdict.summary) @for detail in &verdict.details { pre { (detail) } } }
                }
            }
        }
        h4 { "Holders of shards, and faults" }
        (charts::timeline(evidence, shards))
        p.key { @for (pod, colour) in charts::colours(evidence) { i style=(format!("background:{colour}")) {} (pod) } }
        ul {
            @for fault in &evidence.faults {
                li { (format!("{:.1} s: ", seconds(fault.from - evidence.begun))) (fault.what)
                    (format!(", for {:.1} s; bit {} times", seconds(fault.to - fault.from), fault.bites)) }
            }
        }
        (charts::lines(evidence, "Objects that are due and wait", |sample| sample.metrics.get("workqueue_depth").copied()))
        (charts::lines(evidence, "Memory, MiB", |sample| Some(mebibytes(sample.memory_bytes))))
        @if !work.is_empty() { (charts::dots("Takeover of a shard", work, Some(promised))) }
        @if !undisturbed.is_empty() { (charts::dots("From a change to the first write, away from faults", undisturbed, None)) }
        @if !fault.is_empty() { (charts::dots("From a change to the first write, during a fault", fault, None)) }
    }
}

/// The whole page.
#[must_use]
pub fn page(results: &[(u64, CheckResult)], sections: &[Markup], not_run: &[String]) -> String {
    let failed = results.iter().filter(|(_, j)| !j.passed()).count() + not_run.len();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "Experiments" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Experiments" }
                p { "Runs: " (results.len() + not_run.len()) "; "
                    @if failed == 0 { span.good { "all results are as expected." } }
                    @else { span.bad { (failed) " have unexpected results." } }
                    " Checked by the API server's audit log, the process lifetimes and the final state." }
                table {
                    tr { th { "scenario" } th { "verdict" } th { "takeover of a shard" } th { "from a change to the first write" } th { "fenced" } }
                    @for (seed, result) in results { (row(*seed, result)) }
                }
                @for why in not_run { p.bad { "Not run: " (why) } }
                @for (scenario, runs, times) in repeated(results) {
                    (charts::dots(&format!("Takeover of a shard, {scenario}, {runs} runs"), &times, None))
                }
                @for section in sections { (section) }
            }
        }
    };
    page.into_string()
}

/// Scenarios that were run more than once: how often, and the takeovers of all their runs.
fn repeated(results: &[(u64, CheckResult)]) -> Vec<(&str, usize, Vec<f64>)> {
    let mut all: BTreeMap<&str, (usize, Vec<f64>)> = BTreeMap::new();
    for (_, result) in results {
        let (runs, times) = all.entry(&result.scenario).or_default();
        *runs += 1;
        times.extend(&result.stats.takeover_seconds);
    }
    let many = all
        .into_iter()
        .filter(|(_, (runs, times))| *runs > 1 && !times.is_empty());
    many.map(|(scenario, (runs, times))| (scenario, runs, times))
        .collect()
}

fn row(seed: u64, result: &CheckResult) -> Markup {
    let stats = &result.stats;
    let times = |values: &[f64]| match values.is_empty() {
        true => String::new(),
        false => distribution(values),
    };
    let all: Vec<f64> = [
        stats.undisturbed_reaction_seconds.as_slice(),
        &stats.fault_reaction_seconds,
    ]
    .concat();
    html! {
        tr {
            td { a href=(format!("#{}", anchor(result, seed))) { (result.scenario) } }
            td { (word(result)) }
            td { (times(&stats.takeover_seconds)) }
            td { (times(&all)) }
            td { (stats.fenced) }
        }
    }
}

fn word(result: &CheckResult) -> Markup {
    let class = if result.passed() { "good" } else { "bad" };
    html! { span class=(class) { (result.word()) } }
}

fn anchor(result: &CheckResult, seed: u64) -> String {
    format!("{}-{seed}", result.scenario)
}

#[allow(clippy::cast_precision_loss)]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
