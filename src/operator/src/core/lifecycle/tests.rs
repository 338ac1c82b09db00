//! Tests of the stages and of what is reported of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::api::{Condition, ConditionStatus, ConditionType, DatabaseClusterStatus};

const START: &str = "2026-01-01T00:00:00Z";

fn at(seconds: i64) -> Timestamp {
    START.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

fn seen(workload: Workload, seconds: i64) -> Seen<'static> {
    Seen {
        generation: 1,
        wanted: 3,
        deleting: false,
        workload,
        changed: false,
        trouble: None,
        diagnosis: None,
        now: at(seconds),
    }
}

fn unsettled(ready: i32) -> Workload {
    Workload::Unsettled {
        exist: 3,
        ready,
        rolling: false,
        observed: true,
    }
}

fn facts(seen: &Seen<'_>, primary: Option<bool>) -> Facts {
    Facts {
        initialized: false,
        primary,
        generation: seen.generation,
        now: seen.now,
    }
}

/// What is reported after something was seen; what was reported before is all that is known.
fn report(before: &DatabaseClusterStatus, seen: &Seen<'_>) -> DatabaseClusterStatus {
    let stage = Stage::reconstruct(before).next(seen, before);
    DatabaseClusterStatus {
        phase: Some(stage.phase()),
        conditions: conditions(&stage, &facts(seen, None), &before.conditions),
        observed_generation: seen.generation,
        ..DatabaseClusterStatus::default()
    }
}

fn phases(steps: &[Seen<'_>]) -> (Vec<Phase>, DatabaseClusterStatus) {
    let mut status = DatabaseClusterStatus::default();
    let phases = steps.iter().map(|seen| {
        status = report(&status, seen);
        status.phase.unwrap()
    });
    (phases.collect(), status)
}

fn reason(status: &DatabaseClusterStatus, kind: ConditionType) -> &str {
    &status.condition(kind).unwrap().reason
}

#[test]
fn a_cluster_is_created_scaled_and_ready() {
    let (phases, status) = phases(&[
        seen(Workload::Absent, 0),
        seen(Workload::New, 1),
        seen(unsettled(1), 2),
        seen(Workload::Settled, 3),
    ]);
    use Phase::{Creating, Ready, Scaling};
    assert_eq!(phases, [Creating, Creating, Scaling, Ready]);
    assert_eq!(reason(&status, ConditionType::Ready), reason::ALL_READY);
}

#[test]
fn a_cluster_is_available_while_its_primary_serves_whatever_else_is_wrong() {
    let refused = Trouble::Wrong(Why::new(reason::MAJOR_VERSION, "refused"));
    let mut wrong = seen(Workload::Settled, 10);
    wrong.trouble = Some(&refused);
    let mut paused = seen(Workload::Settled, 10);
    paused.wanted = 0;
    let mut deleted = seen(unsettled(3), 10);
    deleted.deleting = true;
    use ConditionStatus::{False, True};
    for (seen, primary, expected) in [
        (&wrong, true, (True, reason::PRIMARY_READY)),
        (&wrong, false, (False, reason::PRIMARY_NOT_READY)),
        (&paused, false, (False, reason::PAUSED)),
        (&deleted, true, (False, reason::TERMINATING)),
    ] {
        let before = DatabaseClusterStatus::default();
        let stage = Stage::reconstruct(&before).next(seen, &before);
        let told = conditions(&stage, &facts(seen, Some(primary)), &[]);
        let available = told.iter().find(|c| c.type_ == ConditionType::Available);
        let available = available.unwrap();
        assert_eq!((available.status, available.reason.as_str()), expected);
        // What is not known stays as it was reported.
        let kept = conditions(&stage, &facts(seen, None), &told);
        assert!(kept.contains(available), "{kept:?}");
        let kept = kept.iter().filter(|c| c.type_ == ConditionType::Available);
        assert_eq!(kept.count(), 1);
    }
}

#[test]
fn what_was_ready_for_this_generation_and_is_not_any_more_is_degraded() {
    let (phases, status) = phases(&[
        seen(Workload::Settled, 0),
        seen(unsettled(2), 1),
        seen(unsettled(1), 2),
        seen(Workload::Settled, 3),
    ]);
    use Phase::{Degraded, Ready};
    assert_eq!(phases, [Ready, Degraded, Degraded, Ready]);
    assert_eq!(
        status.condition(ConditionType::Degraded).unwrap().status,
        ConditionStatus::False
    );
}

#[test]
fn a_new_generation_scales_even_what_is_degraded() {
    let mut newer = seen(unsettled(2), 2);
    newer.generation = 2;
    for before in [vec![], vec![seen(unsettled(2), 1)]] {
        let mut steps = vec![seen(Workload::Settled, 0)];
        steps.extend(before);
        steps.push(newer.clone());
        assert_eq!(phases(&steps).0.last(), Some(&Phase::Scaling));
    }
}

#[test]
fn a_change_that_takes_longer_than_ten_minutes_is_degraded_until_it_is_done() {
    let steps = [
        seen(unsettled(0), 0),
        seen(unsettled(1), 599),
        seen(unsettled(2), 600),
        seen(unsettled(2), 700),
    ];
    let (phases, status) = phases(&steps);
    use Phase::{Degraded, Scaling};
    assert_eq!(phases, [Scaling, Scaling, Degraded, Degraded]);
    assert_eq!(reason(&status, ConditionType::Degraded), reason::DEADLINE);
    let done = report(&status, &seen(Workload::Settled, 800));
    assert_eq!(done.phase, Some(Phase::Ready));
}

#[test]
fn a_cluster_whose_pods_are_never_made_is_degraded_too() {
    let (phases, _) = phases(&[seen(Workload::New, 0), seen(Workload::New, 600)]);
    assert_eq!(phases, [Phase::Creating, Phase::Degraded]);
}

#[test]
fn a_diagnosis_degrades_at_once_and_says_why() {
    let why = Why::new("ImagePullBackOff", "Pod x-db-0: …");
    let mut sick = seen(unsettled(0), 40);
    sick.diagnosis = Some(&why);
    let status = report(
        &report(&DatabaseClusterStatus::default(), &seen(unsettled(0), 0)),
        &sick,
    );
    assert_eq!(status.phase, Some(Phase::Degraded));
    assert_eq!(reason(&status, ConditionType::Degraded), "ImagePullBackOff");
    assert_eq!(reason(&status, ConditionType::Ready), "ImagePullBackOff");
}

#[test]
fn no_replicas_are_ready_and_paused() {
    let mut paused = seen(Workload::Settled, 0);
    paused.wanted = 0;
    let status = report(&DatabaseClusterStatus::default(), &paused);
    assert_eq!(status.phase, Some(Phase::Ready));
    assert_eq!(reason(&status, ConditionType::Ready), reason::PAUSED);
}

#[test]
fn the_time_of_a_condition_changes_only_with_its_status() {
    let first = report(&DatabaseClusterStatus::default(), &seen(unsettled(0), 0));
    let second = report(&first, &seen(unsettled(1), 60));
    assert_ne!(first.conditions, second.conditions);
    for (a, b) in first.conditions.iter().zip(&second.conditions) {
        assert_eq!(a.last_transition_time, b.last_transition_time);
        assert_eq!(a.last_transition_time, START);
    }
    let third = report(&second, &seen(Workload::Settled, 90));
    let time = |kind| third.condition(kind).unwrap().last_transition_time.clone();
    assert_eq!(time(ConditionType::Ready), "2026-01-01T00:01:30Z");
    assert_eq!(time(ConditionType::Progressing), "2026-01-01T00:01:30Z");
    assert_eq!(time(ConditionType::Degraded), START);
}

#[test]
fn a_deletion_that_cannot_be_carried_out_is_degraded_until_it_can() {
    let trouble = Trouble::Wrong(Why::new(reason::TOKEN_AHEAD, "remove it"));
    let mut stuck = seen(unsettled(3), 0);
    stuck.deleting = true;
    let free = stuck.clone();
    stuck.trouble = Some(&trouble);
    let status = report(&DatabaseClusterStatus::default(), &stuck);
    assert_eq!(status.phase, Some(Phase::Terminating));
    let degraded = status.condition(ConditionType::Degraded).unwrap();
    assert_eq!(degraded.status, ConditionStatus::True);
    assert_eq!(degraded.reason, reason::TOKEN_AHEAD);
    let status = report(&status, &free);
    assert_eq!(status.phase, Some(Phase::Terminating));
    assert_eq!(
        reason(&status, ConditionType::Progressing),
        reason::TERMINATING
    );
    let degraded = status.condition(ConditionType::Degraded).unwrap();
    assert_eq!(degraded.status, ConditionStatus::False);
}

#[test]
fn conditions_of_other_types_are_kept() {
    let theirs = Condition {
        type_: ConditionType::Other("Backed".to_owned()),
        status: ConditionStatus::True,
        reason: "R".to_owned(),
        message: String::new(),
        observed_generation: 0,
        last_transition_time: START.to_owned(),
    };
    let before = DatabaseClusterStatus {
        conditions: vec![theirs.clone()],
        ..DatabaseClusterStatus::default()
    };
    let after = report(&before, &seen(Workload::Settled, 0));
    assert_eq!(after.conditions.len(), 4);
    assert!(after.conditions.contains(&theirs));
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let why = Why::new("X", "ä".repeat(MESSAGE_LENGTH_MAX));
    assert!(why.message.len() <= MESSAGE_LENGTH_MAX);
    assert!(why.message.ends_with('…'));
    assert_eq!(Why::new("X", "short").message, "short");
}

fn any_workload() -> impl Strategy<Value = Workload> {
    prop_oneof![
        Just(Workload::Absent),
        Just(Workload::New),
        Just(Workload::Settled),
        (0..4, 0..4, any::<(bool, bool)>()).prop_map(|(exist, ready, (rolling, observed))| {
            Workload::Unsettled {
                exist,
                ready,
                rolling,
                observed,
            }
        }),
    ]
}

proptest! {
    /// Whatever happens: at most one of the three conditions that exclude each other holds, the
    /// same observation twice says the same, and the phase never has to be read.
    #[test]
    fn what_is_reported_is_consistent_and_settles(
        steps in proptest::collection::vec((any_workload(), 1_i64..4, any::<bool>()), 1..20)
    ) {
        let mut status = DatabaseClusterStatus::default();
        for (number, (workload, generation, deleting)) in steps.into_iter().enumerate() {
            let mut seen = seen(workload, i64::try_from(number).unwrap());
            seen.generation = generation;
            seen.deleting = deleting;
            status = report(&status, &seen);
            let holding = status
                .conditions
                .iter()
                .filter(|c| c.status == ConditionStatus::True)
                .count();
            prop_assert_eq!(holding, 1, "{:?}", status);
            let ready = status.phase == Some(Phase::Ready);
            prop_assert_eq!(ready, workload == Workload::Settled && !deleting);
            let again = report(&status, &seen);
            prop_assert_eq!(&again, &status);
            status.phase = None;
        }
    }
}
