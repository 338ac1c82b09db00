//! Tests of the history of the Leases: renewals, moves with their reasons, bounds.
#![allow(clippy::unwrap_used)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::SignedDuration;

use super::*;
use crate::names::testing::NAMES;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn lease(name: &str, holder: &str, epoch: i32, annotations: &[(&str, &str)]) -> Lease {
    let annotations = annotations
        .iter()
        .map(|(name, value)| (NAMES.label(name), (*value).to_owned()))
        .collect();
    Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_transitions: Some(epoch),
            ..LeaseSpec::default()
        }),
    }
}

fn member(identity: &str, holder: &str, renewal: i64, more: &[(&str, &str)]) -> Lease {
    let name = format!("example-member-{identity}");
    let mut annotations = vec![("incarnation", "life-1")];
    annotations.extend_from_slice(more);
    let mut lease = lease(&name, holder, 0, &annotations);
    let at = NOW + SignedDuration::from_secs(renewal);
    lease.spec.as_mut().unwrap().renew_time = Some(MicroTime(at));
    lease
}

fn shard(holder: &str, epoch: i32, more: &[(&str, &str)]) -> Lease {
    let mut annotations = vec![("incarnation", "life-1")];
    annotations.extend_from_slice(more);
    lease("example-shard-007", holder, epoch, &annotations)
}

/// Two members and shard 7 at `a`, observed in a first list.
fn watching() -> History {
    let mut history = History::new(NAMES);
    for lease in [
        member("a", "a", 1, &[]),
        member("b", "b", 1, &[]),
        shard("a", 1, &[]),
    ] {
        history.note(&lease, 1_000, NOW);
    }
    history.all_noted(|_| true);
    history
}

fn reasons(history: &History) -> Vec<&'static str> {
    history.moves().map(|seen| seen.why.label()).collect()
}

#[test]
fn an_age_counts_from_the_last_change_by_our_own_clock() {
    let mut history = watching();
    let name = "example-member-a";
    let age = |history: &History, now_ms| {
        let age = history.age(name, now_ms).unwrap();
        (age.age_ms, age.renewed)
    };
    assert_eq!(age(&history, 3_000), (2_000, false));
    // The same renewal again, from another list: no change.
    history.note(&member("a", "a", 1, &[]), 4_000, NOW);
    assert_eq!(age(&history, 5_000), (4_000, false));
    // Its clock may show any time, as long as it changes.
    history.note(&member("a", "a", -500, &[]), 6_000, NOW);
    assert_eq!(age(&history, 6_500), (500, true));
    history.forget(name);
    assert_eq!(history.age(name, 7_000), None);
    history.note(&member("a", "a", 9, &[]), 8_000, NOW);
    assert_eq!(age(&history, 8_000), (0, true), "its creation was observed");
}

#[test]
fn first_observation_is_not_recorded_as_a_move() {
    assert_eq!(reasons(&watching()), Vec::<&str>::new());
}

#[test]
fn move_records_holders_time_and_reason() {
    let mut history = watching();
    history.note(&member("a", "", 2, &[]), 7_000, NOW);
    let at = NOW + SignedDuration::from_secs(8);
    history.note(&shard("b", 2, &[]), 8_000, at);
    let expected = Move {
        shard: 7,
        from: "a".into(),
        to: "b".into(),
        epoch: 2,
        seen_ms: 8_000,
        seen_at: at,
        why: MoveReason::Takeover,
    };
    assert_eq!(history.moves().collect::<Vec<_>>(), [&expected]);
}

#[test]
fn move_reason_is_derived_from_the_leases() {
    let mut history = watching();
    let leaving = [("incarnation", "life-2"), ("draining", "true")];
    for lease in [
        shard("a", 1, &[("successor", "b")]),
        shard("b", 2, &[]),
        shard("b", 3, &[]),
        shard("b", 4, &[("incarnation", "life-2")]),
        member("b", "b", 2, &leaving),
        shard("a", 5, &[]),
        shard("", 6, &[]),
        shard("b", 7, &[("incarnation", "life-2")]),
        member("b", "b", 3, &[("incarnation", "life-3")]),
        shard("a", 8, &[]),
        lease("example-shard-008", "a", 1, &[]),
    ] {
        history.note(&lease, 0, NOW);
    }
    let expected = [
        "planned",
        "raised",
        "restarted",
        "leaving",
        "given_up",
        "vacant",
        "takeover",
        "created",
    ];
    let mut seen = reasons(&history);
    seen.reverse();
    assert_eq!(seen, expected);
}

#[test]
fn unexplained_loss_is_reported_as_unknown() {
    let mut history = watching();
    history.note(&shard("b", 2, &[]), 0, NOW);
    assert_eq!(reasons(&history), ["unknown"]);
}

#[test]
fn everything_is_bounded_and_safe() {
    let mut history = watching();
    for epoch in 2..500 {
        let holder = format!("\x1b<b>{epoch}{}", "x".repeat(5_000));
        history.note(&shard(&holder, epoch, &[]), 0, NOW);
    }
    assert_eq!(history.moves().count(), MOVES_MAX);
    let last = history.moves().next().unwrap();
    assert_eq!(last.epoch, 499);
    assert_eq!(last.to.chars().count(), NAME_CHARS_MAX);
    assert!(last.to.starts_with("?<b>499"));
    for n in 0..3_000 {
        history.note(&member(&format!("m{n}"), "m", 1, &[]), 0, NOW);
    }
    assert_eq!(history.renewals.len(), LEASES_MAX);
}
