//! Drawings of one run, as SVG inside the page: holders of shards, resource usage of replicas, durations.

use std::collections::BTreeMap;

use maud::{Markup, html};
use testbed::statistics::Sorted;

use crate::checker::Span;
use crate::evidence::{Evidence, Micros, Sample, seconds};

const WIDTH: f64 = 940.0;
const LEFT: f64 = 44.0;
const ROW: f64 = 7.0;
const AXIS: f64 = 18.0;
const LINES_HEIGHT: f64 = 70.0;
const DOTS_HEIGHT: f64 = 45.0;
/// Right of the last dot, for words.
const WORDS: f64 = 76.0;
/// Distinguishable for most readers; further replicas repeat them.
const COLOURS: [&str; 8] = [
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee9944", "#775533",
];

/// A stretch of time on the width of the page.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    from: Micros,
    to: Micros,
}

impl Scale {
    pub(super) fn of(evidence: &Evidence) -> Self {
        let end = evidence.quiet.map(|(_, to)| to).or(evidence.converged);
        let last = evidence.samples.iter().map(|sample| sample.at).max();
        let to = end.or(last).unwrap_or(evidence.load_ended);
        Self {
            from: evidence.begun,
            to: to.max(evidence.begun + 1_000_000),
        }
    }

    fn x(self, at: Micros) -> f64 {
        let part = seconds(at.clamp(self.from, self.to) - self.from) / self.seconds();
        LEFT + part * (WIDTH - LEFT)
    }

    fn seconds(self) -> f64 {
        seconds(self.to - self.from)
    }
}

/// The colour of each replica, in the order in which they started.
pub(super) fn colours(evidence: &Evidence) -> BTreeMap<&str, &'static str> {
    let mut colours = BTreeMap::new();
    for life in &evidence.lives {
        let next = COLOURS[colours.len() % COLOURS.len()];
        colours.entry(life.pod.as_str()).or_insert(next);
    }
    colours
}

/// Shards from top to bottom, time from left to right; white: no holder that could act.
pub(super) fn timeline(evidence: &Evidence, shards: &[(String, Vec<Span>)]) -> Markup {
    let (scale, colours) = (Scale::of(evidence), colours(evidence));
    let height = rows(shards.len()) * ROW;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", height + AXIS)) role="img" aria-label="holders of the shards over time" {
            @for (row, (name, spans)) in shards.iter().enumerate() {
                @let y = rows(row) * ROW;
                @for span in spans.iter().filter(|span| span.to > scale.from && span.acts) {
                    @let (x, end) = (scale.x(span.from), scale.x(span.to));
                    rect x=(short(x)) y=(short(y)) width=(short((end - x).max(0.3))) height=(short(ROW - 1.0))
                        fill=(colours.get(span.holder.as_str()).unwrap_or(&"#888888")) {
                        title { (name) ", epoch " (span.epoch) ": " (span.holder) }
                    }
                }
            }
            (faults(evidence, scale, height))
            (axis(scale, height))
        }
    }
}

fn faults(evidence: &Evidence, scale: Scale, height: f64) -> Markup {
    html! {
        @for fault in &evidence.faults {
            @let (x, end) = (scale.x(fault.from), scale.x(fault.to));
            rect.fault x=(short(x)) y="0" width=(short((end - x).max(1.5))) height=(short(height)) {
                title { (fault.what) }
            }
        }
    }
}

fn axis(scale: Scale, y: f64) -> Markup {
    let step = match scale.seconds() {
        to if to <= 30.0 => 5.0,
        to if to <= 120.0 => 10.0,
        to if to <= 600.0 => 60.0,
        _ => 300.0,
    };
    let mut ticks = vec![0.0];
    while let Some(last) = ticks.last().copied()
        && last + step < scale.seconds()
    {
        ticks.push(last + step);
    }
    html! {
        @for tick in ticks {
            @let x = scale.x(scale.from + crate::evidence::micros(tick));
            line x1=(short(x)) y1=(short(y)) x2=(short(x)) y2=(short(y + 4.0)) {}
            text x=(short(x)) y=(short(y + 14.0)) { (tick) " s" }
        }
    }
}

/// One metric of all replicas over time, a line for each.
pub(super) fn lines(
    evidence: &Evidence,
    what: &str,
    figure: impl Fn(&Sample) -> Option<f64>,
) -> Markup {
    let (scale, colours) = (Scale::of(evidence), colours(evidence));
    let mut points: BTreeMap<&str, Vec<(Micros, f64)>> = BTreeMap::new();
    for sample in &evidence.samples {
        if let Some(value) = figure(sample) {
            points
                .entry(&sample.pod)
                .or_default()
                .push((sample.at, value));
        }
    }
    let all = points.values().flatten().map(|(_, value)| *value);
    let most = all.fold(0.0, f64::max);
    let y = |value: f64| LINES_HEIGHT - 2.0 - value / most.max(1.0) * (LINES_HEIGHT - 6.0);
    let path = |values: &[(Micros, f64)]| {
        let all = values
            .iter()
            .map(|(at, value)| format!("{},{}", short(scale.x(*at)), short(y(*value))));
        all.collect::<Vec<_>>().join(" ")
    };
    html! {
        h4 { (what) ", at most " (short(most)) }
        svg viewBox=(format!("0 0 {WIDTH} {}", LINES_HEIGHT + AXIS)) role="img" aria-label=(what) {
            (faults(evidence, scale, LINES_HEIGHT))
            @for (pod, values) in &points {
                polyline points=(path(values)) stroke=(colours.get(pod).unwrap_or(&"#888888")) { title { (pod) } }
            }
            (axis(scale, LINES_HEIGHT))
        }
    }
}

/// Each time as a dot, with the median, the 99th percentile, and the promised maximum.
pub(super) fn dots(what: &str, values: &[f64], promised: Option<f64>) -> Markup {
    let sorted = Sorted::new(values.iter().copied());
    let end = sorted
        .max()
        .unwrap_or(0.0)
        .max(promised.unwrap_or(0.0))
        .max(0.01);
    let x = |value: f64| LEFT + value / end * (WIDTH - LEFT - WORDS);
    // Positions of the labels, so that none covers another when values are alike.
    let marks = [
        ("p50", sorted.percentile(50), "end", "31"),
        ("p99", sorted.percentile(99), "start", "31"),
        ("promised", promised, "start", "42"),
    ];
    html! {
        h4 { (what) ": " (crate::checker::distribution(values)) }
        svg viewBox=(format!("0 0 {WIDTH} {DOTS_HEIGHT}")) role="img" aria-label=(what) {
            @for value in values {
                circle cx=(short(x(*value))) cy="10" r="3" { title { (format!("{value:.3} s")) } }
            }
            @for (name, value, anchor, y) in marks {
                @if let Some(value) = value {
                    line.mark x1=(short(x(value))) y1="0" x2=(short(x(value))) y2="20" {}
                    text x=(short(x(value))) y=(y) style=(format!("text-anchor:{anchor}")) { (name) " " (format!("{value:.2}")) }
                }
            }
        }
    }
}

fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

#[allow(clippy::cast_precision_loss)]
fn rows(count: usize) -> f64 {
    count as f64
}
