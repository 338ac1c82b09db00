//! Whether the requested alert would fire.

use super::*;
use crate::evidence::Sample;
use crate::scenario::{Alert, Over};

fn alert(above: f64, for_seconds: f64) -> Option<Alert> {
    Some(Alert {
        name: "A".into(),
        metric: "m".into(),
        share_of: None,
        over: Over::EachReplica,
        above: Some(above),
        below: None,
        for_seconds,
    })
}

impl Run {
    fn sample(&mut self, at: f64, pod: &str, metrics: &[(&str, f64)]) {
        self.evidence.samples.push(Sample {
            at: micros(at),
            pod: pod.into(),
            metrics: metrics
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
            ..Sample::default()
        });
    }

    fn would_fire(&mut self, alert: Option<Alert>) -> bool {
        self.evidence.scenario.expect.alert = alert;
        let broken = self.broken();
        assert!(broken.is_empty() || broken == ["alerted"], "{broken:?}");
        broken.is_empty()
    }
}

#[test]
fn alert_fires_only_after_its_for_duration() {
    let mut run = Run::healthy();
    assert!(!run.would_fire(alert(2.0, 0.0)), "there are no samples");
    for (at, value) in [(1.0, 3.0), (1.5, 3.0), (2.0, 1.0), (2.5, 3.0), (3.0, 3.0)] {
        run.sample(at, "a", &[("m", value)]);
    }
    assert!(!run.would_fire(alert(2.0, 1.0)), "twice for half a second");
    assert!(run.would_fire(alert(2.0, 0.5)));
    assert!(!run.would_fire(alert(3.0, 0.0)));
    // What was before the beginning does not count.
    run.sample(-5.0, "b", &[("m", 9.0)]);
    assert!(!run.would_fire(alert(3.0, 0.0)));
}

#[test]
fn maximum_over_replicas_is_below_a_bound_only_when_every_replica_is() {
    let below = |bound, over| {
        alert(0.0, 1.0).map(|alert| Alert {
            above: None,
            below: Some(bound),
            over,
            ..alert
        })
    };
    let mut run = Run::healthy();
    for at in [1.0, 2.0, 3.0] {
        run.sample(at, "a", &[("m", 1.0)]);
        run.sample(at, "b", &[("m", if at < 2.5 { 3.0 } else { 1.0 })]);
    }
    assert!(run.would_fire(below(2.0, Over::EachReplica)));
    assert!(!run.would_fire(below(2.0, Over::Greatest)), "for no time");
    run.sample(4.0, "a", &[("m", 1.0)]);
    assert!(run.would_fire(below(2.0, Over::Greatest)));
    assert!(!run.would_fire(below(2.0, Over::Sum)), "only at 4 s");
}

#[test]
fn ratio_counts_only_samples_since_the_start_of_the_run() {
    let share = |above, over| {
        alert(above, 0.0).map(|alert| Alert {
            share_of: Some("all".into()),
            over,
            ..alert
        })
    };
    let mut run = Run::healthy();
    run.sample(1.0, "a", &[("all", 100.0)]);
    run.sample(2.0, "a", &[("m", 5.0), ("all", 110.0)]);
    run.sample(1.0, "b", &[("m", 50.0), ("all", 50.0)]);
    run.sample(2.0, "b", &[("m", 50.0), ("all", 140.0)]);
    assert!(run.would_fire(share(0.4, Over::EachReplica)), "5 of 10");
    assert!(!run.would_fire(share(0.5, Over::EachReplica)));
    assert!(run.would_fire(share(0.04, Over::Sum)), "5 of 100");
    assert!(!run.would_fire(share(0.05, Over::Sum)));
}
