//! The rules about objects and bounds, and when a run counts.

use serde_json::Value;

use super::{Run, micros};
use crate::evidence::{Evidence, Sample};
use crate::scenario::Failpoints;

#[test]
fn lost_leftover_or_different_objects_are_a_violation() {
    let changes: [fn(&mut Evidence); 8] = [
        |evidence| evidence.last.clusters.clear(),
        |evidence| {
            evidence
                .asked
                .wanted
                .insert("n/one".into(), None)
                .map_or((), drop)
        },
        |evidence| evidence.last.clusters.get_mut("n/one").unwrap().not_ready = Some("why".into()),
        |evidence| {
            evidence
                .last
                .children
                .get_mut("statefulsets/n/one-db")
                .unwrap()
                .workload
                .as_mut()
                .unwrap()
                .replicas = 9
        },
        |evidence| evidence.last.children.clear(),
        |evidence| drop(evidence.last.children.remove("services/n/one-rw")),
        |evidence| evidence.converged = None,
        // Users stop at 50 s, the work may take 5 s, and the garbage collector 30 s.
        |evidence| evidence.converged = Some(micros(85.5)),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut run = Run::healthy();
        change(&mut run.evidence);
        assert!(
            run.broken().contains(&"converged".to_owned()),
            "change {number}"
        );
    }
}

#[test]
fn change_without_a_timely_reaction_is_a_violation() {
    let mut run = Run::healthy();
    run.user(30.0, "patch");
    assert_eq!(run.broken(), ["reacted"]);
    run.write(35.5, "a", "databaseclusters", "one", 1, 200);
    assert_eq!(
        run.broken(),
        ["reacted"],
        "5.5 s is too late without a fault"
    );
    run.fault("errors", 29.0, 31.0, None);
    run.evidence.faults[0].takes_out = false;
    assert_eq!(run.broken(), [""; 0], "during a fault it is in time");
    assert_eq!(run.checked().stats.fault_reaction_seconds.len(), 1);
    let mut run = Run::healthy();
    run.user(30.0, "patch");
    run.user(31.0, "delete");
    assert_eq!(
        run.broken(),
        [""; 0],
        "no reaction is needed when it is deleted at once"
    );
}

#[test]
fn duplicate_deleted_or_unexplained_children_are_a_violation() {
    let mut run = Run::healthy();
    run.write(15.0, "a", "statefulsets", "one-db", 1, 201);
    assert_eq!(run.broken(), ["children-counted"]);
    let mut by_hand = run.event(14.0, "", "delete", "statefulsets", "one-db");
    by_hand.user = "somebody".into();
    run.events.push(by_hand);
    assert_eq!(run.broken(), [""; 0], "a user had deleted it");
    let mut run = Run::healthy();
    let deletion = run.event(15.0, "a", "delete", "statefulsets", "one-db");
    run.events.push(deletion);
    assert_eq!(run.broken(), ["children-counted"]);
    let mut run = Run::healthy();
    run.user(14.0, "delete");
    for at in [15.0, 16.0] {
        assert_eq!(run.broken(), [""; 0]);
        let deletion = run.event(at, "a", "delete", "services", "one-rw");
        run.events.push(deletion);
    }
    assert_eq!(run.broken(), ["children-counted"], "once, not twice");
    let mut run = Run::healthy();
    run.events.retain(|event| event.code != 201);
    assert_eq!(run.broken(), ["children-counted"]);
    run.fault("outage", 1.0, 2.0, Some(2.0));
    run.evidence.faults[0].hides_requests = true;
    run.evidence.faults[0].takes_out = false;
    assert_eq!(
        run.broken(),
        [""; 0],
        "a killed API server does not log its last requests"
    );
}

#[test]
fn lost_fields_idle_writes_and_exceeded_bounds_are_violations() {
    let mut run = Run::healthy();
    run.evidence
        .last
        .clusters
        .get_mut("n/one")
        .unwrap()
        .mark_kept = Some(false);
    assert_eq!(run.broken(), ["others-untouched"]);
    let mut run = Run::healthy();
    run.write(55.0, "a", "events", "x", 1, 201);
    assert_eq!(run.broken(), ["quiet"]);
    let mut run = Run::healthy();
    run.shard(55.0, "a", "a", "a1", 1);
    assert_eq!(run.broken(), ["quiet"], "shard Leases are no heartbeats");
    let mut run = Run::healthy();
    run.evidence.quiet = None;
    assert_eq!(run.broken(), ["quiet"]);
    let excess: [fn(&mut Run); 3] = [
        |run| {
            run.evidence.samples.push(Sample {
                memory_bytes: 1 << 40,
                ..Sample::default()
            })
        },
        |run| {
            run.evidence.samples.push(Sample {
                metrics: [("workqueue_depth".into(), 1e6)].into(),
                ..Sample::default()
            })
        },
        |run| run.evidence.scenario.expect.requests_per_second_max = 0,
    ];
    for change in excess {
        let mut run = Run::healthy();
        change(&mut run);
        assert_eq!(run.broken(), ["within-bounds"]);
    }
}

#[test]
fn inconclusive_run_does_not_pass() {
    let changes: [fn(&mut Run); 5] = [
        |run| run.evidence.asked.accepted = 0,
        |run| run.fault("kill", 1.0, 2.0, None),
        |run| run.evidence.scenario.expect.fenced_min = 1,
        |run| run.evidence.problem = Some("the runner failed".into()),
        |run| run.events.clear(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut run = Run::healthy();
        change(&mut run);
        if number == 1 {
            run.evidence.faults[0].bites = 0;
        }
        let result = run.checked();
        assert!(!result.inconclusive.is_empty(), "change {number}");
        assert!(!result.passed() && result.word() == "DOES NOT COUNT");
    }
}

#[test]
fn failpoint_must_be_found_by_a_named_rule() {
    let mut run = Run::healthy();
    let failpoints = |rule: &str| Failpoints {
        switches: vec!["validity".into()],
        without_fence: false,
        found_by: vec![rule.into()],
    };
    run.evidence.scenario.failpoints = Some(failpoints("one-writer"));
    assert_eq!(
        (run.checked().passed(), run.checked().word()),
        (false, "NOT FOUND")
    );
    run.write(11.0, "b", "statefulsets", "one-db", 1, 200);
    assert_eq!(
        (run.checked().passed(), run.checked().word()),
        (true, "found, as expected")
    );
    run.evidence.scenario.failpoints = Some(failpoints("quiet"));
    assert!(!run.checked().passed(), "found, but by another rule");
}

#[test]
fn evidence_survives_a_round_trip() {
    let run = Run::healthy();
    let text = serde_json::to_string(&run.evidence).unwrap();
    let again: Evidence = serde_json::from_str(&text).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), value);
}

#[test]
fn unanswered_creation_explains_a_child() {
    let mut run = Run::healthy();
    run.events
        .retain(|event| event.code != 201 || event.resource != "statefulsets");
    assert_eq!(run.broken(), ["children-counted"]);
    run.write(-8.0, "a", "statefulsets", "one-db", 1, 504);
    run.last().response = None;
    assert_eq!(run.broken(), [""; 0]);
}
