//! The rule about alerts: the alert would fire if the fault lasted.

use std::collections::BTreeMap;

use super::Verdict;
use crate::evidence::{Evidence, Micros, micros};
use crate::scenario::{Alert, Over};

/// The condition of the requested alert was met for long enough.
pub(super) fn alerted(evidence: &Evidence) -> Verdict {
    const RULE: &str = "alerted";
    let Some(alert) = &evidence.scenario.expect.alert else {
        return Verdict::of(RULE, Vec::new(), "no alert is requested".into());
    };
    let series = series(evidence, alert);
    let longest = series.values().filter_map(|values| longest(alert, values));
    let longest = longest.max();
    let summary = format!("{}: {}", alert.name, condition(alert));
    let violations = match longest {
        Some(held) if held >= micros(alert.for_seconds) => Vec::new(),
        _ => vec![format!(
            "{} would not have fired: at most for {:.1} s {}",
            alert.name,
            crate::evidence::seconds(longest.unwrap_or(0)),
            condition(alert)
        )],
    };
    Verdict::of(RULE, violations, summary)
}

fn condition(alert: &Alert) -> String {
    let (word, bound) = match (alert.above, alert.below) {
        (_, Some(below)) => ("below", below),
        (above, None) => ("above", above.unwrap_or(0.0)),
    };
    let of = alert.share_of.as_ref();
    let of = of.map_or_else(String::new, |of| format!(" as a share of {of}"));
    let metric = &alert.metric;
    format!("{metric}{of} {word} {bound} for {} s", alert.for_seconds)
}

/// The values of each replica, or of the whole fleet under an empty name.
fn series<'a>(
    evidence: &'a Evidence,
    alert: &Alert,
) -> BTreeMap<&'a str, BTreeMap<Micros, (f64, f64)>> {
    let mut first: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    let mut all: BTreeMap<&str, BTreeMap<Micros, (f64, f64)>> = BTreeMap::new();
    let samples = evidence.samples.iter();
    for sample in samples.filter(|sample| sample.at >= evidence.begun) {
        let now = sample.metrics.get(&alert.metric).copied();
        let (value, of) = match &alert.share_of {
            None => match now {
                Some(value) => (value, 1.0),
                None => continue,
            },
            Some(whole) => {
                let Some(whole) = sample.metrics.get(whole).copied() else {
                    continue;
                };
                // A counter with labels does not exist before it counts.
                let now = (now.unwrap_or(0.0), whole);
                let base = first.entry(&sample.pod).or_insert(now);
                ((now.0 - base.0).max(0.0), (now.1 - base.1).max(0.0))
            }
        };
        let whose = match alert.over {
            Over::EachReplica => sample.pod.as_str(),
            Over::Greatest | Over::Sum => "",
        };
        let values = all.entry(whose).or_default();
        values
            .entry(sample.at)
            .and_modify(|known| match alert.over {
                Over::Sum => *known = (known.0 + value, known.1 + of),
                _ if value > known.0 => *known = (value, of),
                _ => {}
            })
            .or_insert((value, of));
    }
    if alert.share_of.is_none() {
        all.values_mut()
            .flat_map(BTreeMap::values_mut)
            .for_each(|value| value.1 = 1.0);
    }
    all
}

/// The longest time for which the condition was met without a break; none: never.
fn longest(alert: &Alert, values: &BTreeMap<Micros, (f64, f64)>) -> Option<Micros> {
    let mut since = None;
    let mut longest = None;
    for (at, (value, of)) in values {
        let value = if *of > 0.0 { value / of } else { 0.0 };
        let met = alert.above.is_some_and(|bound| value > bound)
            || alert.below.is_some_and(|bound| value < bound);
        since = met.then(|| since.unwrap_or(*at));
        longest = longest.max(since.map(|since| at - since));
    }
    longest
}
