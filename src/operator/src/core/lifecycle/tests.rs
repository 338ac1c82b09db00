//! Tests of the stages and of their conditions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::api::{Condition, ConditionStatus, ConditionType, DatabaseClusterStatus};

const START: &str = "2026-01-01T00:00:00Z";

fn at(seconds: i64) -> Timestamp {
    START.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

fn observation(workload: Workload, seconds: i64) -> Observed<'static> {
    Observed {
        generation: 1,
        wanted: 3,
        deleting: false,
        workload,
        changed: false,
        problem: None,
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

#[test]
fn rollout_is_reported_as_such() {
    let rolling = Workload::Unsettled {
        exist: 3,
        ready: 2,
        rolling: true,
        observed: true,
    };
    for (workload, restarts) in [(rolling, true), (unsettled(2), false)] {
        let before = DatabaseClusterStatus::default();
        let status = report(&before, &observation(workload, 0));
        let progressing = status.condition(ConditionType::Progressing).unwrap();
        assert_eq!(progressing.status, ConditionStatus::True);
        let message = &progressing.message;
        assert!(
            message.starts_with("2 of 3 instances are ready"),
            "{message}"
        );
        assert_eq!(message.contains("the primary last"), restarts, "{message}");
    }
}

fn facts(observation: &Observed<'_>, primary: Option<bool>) -> Facts {
    Facts {
        initialized: false,
        primary,
        exposure: Exposure::NotAsked,
        generation: observation.generation,
        now: observation.now,
    }
}

/// What is reported after something was seen; what was reported before is all that is known.
fn report(before: &DatabaseClusterStatus, observation: &Observed<'_>) -> DatabaseClusterStatus {
    let stage = Stage::reconstruct(before).next(observation, before);
    DatabaseClusterStatus {
        phase: Some(stage.phase()),
        conditions: conditions(&stage, &facts(observation, None), &before.conditions),
        observed_generation: observation.generation,
        ..DatabaseClusterStatus::default()
    }
}

fn phases(steps: &[Observed<'_>]) -> (Vec<Phase>, DatabaseClusterStatus) {
    let mut status = DatabaseClusterStatus::default();
    let phases = steps.iter().map(|observation| {
        status = report(&status, observation);
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
        observation(Workload::Absent, 0),
        observation(Workload::New, 1),
        observation(unsettled(1), 2),
        observation(Workload::Settled, 3),
    ]);
    use Phase::{Creating, Ready, Scaling};
    assert_eq!(phases, [Creating, Creating, Scaling, Ready]);
    assert_eq!(reason(&status, ConditionType::Ready), reason::ALL_READY);
}

#[test]
fn a_cluster_is_available_while_its_primary_serves_whatever_else_is_wrong() {
    let refused = Problem::Permanent(ConditionReason::new(reason::MAJOR_VERSION, "refused"));
    let mut wrong = observation(Workload::Settled, 10);
    wrong.problem = Some(&refused);
    let mut paused = observation(Workload::Settled, 10);
    paused.wanted = 0;
    let mut deleted = observation(unsettled(3), 10);
    deleted.deleting = true;
    use ConditionStatus::{False, True};
    for (observation, primary, expected) in [
        (&wrong, true, (True, reason::PRIMARY_READY)),
        (&wrong, false, (False, reason::PRIMARY_NOT_READY)),
        (&paused, false, (False, reason::PAUSED)),
        (&deleted, true, (False, reason::TERMINATING)),
    ] {
        let before = DatabaseClusterStatus::default();
        let stage = Stage::reconstruct(&before).next(observation, &before);
        let reported = conditions(&stage, &facts(observation, Some(primary)), &[]);
        let available = reported
            .iter()
            .find(|c| c.type_ == ConditionType::Available);
        let available = available.unwrap();
        assert_eq!((available.status, available.reason.as_str()), expected);
        // What is not known stays as it was reported.
        let kept = conditions(&stage, &facts(observation, None), &reported);
        assert!(kept.contains(available), "{kept:?}");
        let kept = kept.iter().filter(|c| c.type_ == ConditionType::Available);
        assert_eq!(kept.count(), 1);
    }
}

#[test]
fn cluster_that_loses_readiness_for_its_generation_is_degraded() {
    let (phases, status) = phases(&[
        observation(Workload::Settled, 0),
        observation(unsettled(2), 1),
        observation(unsettled(1), 2),
        observation(Workload::Settled, 3),
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
    let mut newer = observation(unsettled(2), 2);
    newer.generation = 2;
    for before in [vec![], vec![observation(unsettled(2), 1)]] {
        let mut steps = vec![observation(Workload::Settled, 0)];
        steps.extend(before);
        steps.push(newer.clone());
        assert_eq!(phases(&steps).0.last(), Some(&Phase::Scaling));
    }
}

#[test]
fn a_change_that_takes_longer_than_ten_minutes_is_degraded_until_it_is_done() {
    let steps = [
        observation(unsettled(0), 0),
        observation(unsettled(1), 599),
        observation(unsettled(2), 600),
        observation(unsettled(2), 700),
    ];
    let (phases, status) = phases(&steps);
    use Phase::{Degraded, Scaling};
    assert_eq!(phases, [Scaling, Scaling, Degraded, Degraded]);
    assert_eq!(reason(&status, ConditionType::Degraded), reason::DEADLINE);
    let done = report(&status, &observation(Workload::Settled, 800));
    assert_eq!(done.phase, Some(Phase::Ready));
}

#[test]
fn cluster_whose_pods_are_never_created_becomes_degraded() {
    let (phases, _) = phases(&[
        observation(Workload::New, 0),
        observation(Workload::New, 600),
    ]);
    assert_eq!(phases, [Phase::Creating, Phase::Degraded]);
}

#[test]
fn diagnosis_degrades_immediately_with_its_reason() {
    let why = ConditionReason::new("ImagePullBackOff", "Pod x-db-0: …");
    let mut sick = observation(unsettled(0), 40);
    sick.diagnosis = Some(&why);
    let status = report(
        &report(
            &DatabaseClusterStatus::default(),
            &observation(unsettled(0), 0),
        ),
        &sick,
    );
    assert_eq!(status.phase, Some(Phase::Degraded));
    assert_eq!(reason(&status, ConditionType::Degraded), "ImagePullBackOff");
    assert_eq!(reason(&status, ConditionType::Ready), "ImagePullBackOff");
}

#[test]
fn no_replicas_are_ready_and_paused() {
    let mut paused = observation(Workload::Settled, 0);
    paused.wanted = 0;
    let status = report(&DatabaseClusterStatus::default(), &paused);
    assert_eq!(status.phase, Some(Phase::Ready));
    assert_eq!(reason(&status, ConditionType::Ready), reason::PAUSED);
}

#[test]
fn the_time_of_a_condition_changes_only_with_its_status() {
    let first = report(
        &DatabaseClusterStatus::default(),
        &observation(unsettled(0), 0),
    );
    let second = report(&first, &observation(unsettled(1), 60));
    assert_ne!(first.conditions, second.conditions);
    for (a, b) in first.conditions.iter().zip(&second.conditions) {
        assert_eq!(a.last_transition_time, b.last_transition_time);
        assert_eq!(a.last_transition_time, START);
    }
    let third = report(&second, &observation(Workload::Settled, 90));
    let time = |kind| third.condition(kind).unwrap().last_transition_time.clone();
    assert_eq!(time(ConditionType::Ready), "2026-01-01T00:01:30Z");
    assert_eq!(time(ConditionType::Progressing), "2026-01-01T00:01:30Z");
    assert_eq!(time(ConditionType::Degraded), START);
}

#[test]
fn deletion_that_cannot_proceed_is_degraded_until_it_can() {
    let problem = Problem::Permanent(ConditionReason::new(reason::TOKEN_AHEAD, "remove it"));
    let mut stuck = observation(unsettled(3), 0);
    stuck.deleting = true;
    let free = stuck.clone();
    stuck.problem = Some(&problem);
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
    let after = report(&before, &observation(Workload::Settled, 0));
    assert_eq!(after.conditions.len(), 4);
    assert!(after.conditions.contains(&theirs));
}

/// What kstatus makes of an object: its library reads these fields alone, in this order.
fn kstatus(generation: i64, deleting: bool, status: &DatabaseClusterStatus) -> &'static str {
    let is = |kind: ConditionType, wanted: ConditionStatus| {
        status.condition(kind).is_some_and(|c| c.status == wanted)
    };
    if deleting {
        return "Terminating";
    }
    if status.observed_generation != generation {
        return "InProgress";
    }
    if is(
        ConditionType::Other("Reconciling".to_owned()),
        ConditionStatus::True,
    ) {
        return "InProgress";
    }
    if is(ConditionType::Stalled, ConditionStatus::True) {
        return "Failed";
    }
    match is(ConditionType::Ready, ConditionStatus::True) {
        true => "Current",
        false => "InProgress",
    }
}

/// The check of docs/how-to/argo-cd.md: `Degraded` before `Ready` and `Progressing`.
fn argo_cd(generation: i64, status: &DatabaseClusterStatus) -> &'static str {
    let holds = |kind| {
        status
            .condition(kind)
            .is_some_and(|c| c.status == ConditionStatus::True)
    };
    match status.observed_generation == generation {
        true if holds(ConditionType::Degraded) => "Degraded",
        true if holds(ConditionType::Ready) => "Healthy",
        _ => "Progressing",
    }
}

#[test]
fn kstatus_and_argo_cd_read_the_conditions_as_they_are_meant() {
    let refused = |reason: &str| Problem::Permanent(ConditionReason::new(reason, "refused"));
    let default = DatabaseClusterStatus::default();
    let ready = report(&default, &observation(Workload::Settled, 0));
    for (before, problem, workload, kstatus_says, argo_cd_says) in [
        (
            &default,
            None,
            Workload::Absent,
            "InProgress",
            "Progressing",
        ),
        (&default, None, Workload::Settled, "Current", "Healthy"),
        (&ready, None, Workload::Settled, "Current", "Healthy"),
        // It may come back by itself.
        (&ready, None, unsettled(1), "InProgress", "Degraded"),
        (
            &ready,
            Some(refused(reason::API_SERVER_ERROR)),
            Workload::Settled,
            "InProgress",
            "Degraded",
        ),
        // It does not.
        (
            &ready,
            Some(refused(reason::MAJOR_VERSION)),
            Workload::Settled,
            "Failed",
            "Degraded",
        ),
    ] {
        let mut observation = observation(workload, 10);
        observation.problem = problem.as_ref();
        let status = report(before, &observation);
        let generation = observation.generation;
        assert_eq!(
            kstatus(generation, false, &status),
            kstatus_says,
            "{status:?}"
        );
        assert_eq!(argo_cd(generation, &status), argo_cd_says, "{status:?}");
        // A newer spec was not looked into yet.
        assert_eq!(kstatus(generation + 1, false, &status), "InProgress");
        assert_eq!(argo_cd(generation + 1, &status), "Progressing");
        // What was corrected leaves nothing behind.
        let mut after = observation;
        after.problem = None;
        let after = report(
            &status,
            &Observed {
                workload: Workload::Settled,
                ..after
            },
        );
        assert!(
            after.condition(ConditionType::Stalled).is_none(),
            "{after:?}"
        );
    }
}

#[test]
fn address_of_a_load_balancer_is_a_condition_while_one_is_asked_for() {
    let stage = Stage::reconstruct(&DatabaseClusterStatus::default());
    let observation = observation(Workload::Settled, 0);
    let ask = |exposure, before: &[Condition]| {
        let facts = Facts {
            exposure,
            ..facts(&observation, Some(true))
        };
        let all = conditions(&stage, &facts, before);
        all.into_iter().find(|c| c.type_ == ConditionType::Exposed)
    };
    assert_eq!(ask(Exposure::NotAsked, &[]), None);
    assert_eq!(ask(Exposure::Unknown, &[]), None);
    let pending = ask(Exposure::Pending("Service a-rw".to_owned()), &[]).unwrap();
    assert_eq!(
        (pending.status, pending.reason.as_str()),
        (ConditionStatus::False, reason::ADDRESS_PENDING)
    );
    assert!(
        pending.message.contains("Service a-rw"),
        "{}",
        pending.message
    );
    let before = [pending.clone()];
    assert_eq!(ask(Exposure::Unknown, &before), Some(pending));
    let assigned = ask(Exposure::Assigned, &before).unwrap();
    assert_eq!(assigned.status, ConditionStatus::True);
    assert_eq!(ask(Exposure::NotAsked, &before), None);
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let why = ConditionReason::new("X", "ä".repeat(MESSAGE_LENGTH_MAX));
    assert!(why.message.len() <= MESSAGE_LENGTH_MAX);
    assert!(why.message.ends_with('…'));
    assert_eq!(ConditionReason::new("X", "short").message, "short");
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
    /// In any case at most one of the three mutually exclusive conditions holds, the same
    /// observation twice gives the same report, and the phase never has to be read.
    #[test]
    fn reported_status_is_consistent_and_settles(
        steps in proptest::collection::vec((any_workload(), 1_i64..4, any::<bool>()), 1..20)
    ) {
        let mut status = DatabaseClusterStatus::default();
        for (number, (workload, generation, deleting)) in steps.into_iter().enumerate() {
            let mut observation = observation(workload, i64::try_from(number).unwrap());
            observation.generation = generation;
            observation.deleting = deleting;
            status = report(&status, &observation);
            let holding = status
                .conditions
                .iter()
                .filter(|c| c.status == ConditionStatus::True && c.type_ != ConditionType::Stalled)
                .count();
            prop_assert_eq!(holding, 1, "{:?}", status);
            let ready = status.phase == Some(Phase::Ready);
            prop_assert_eq!(ready, workload == Workload::Settled && !deleting);
            let again = report(&status, &observation);
            prop_assert_eq!(&again, &status);
            status.phase = None;
        }
    }
}
