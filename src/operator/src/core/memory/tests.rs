//! Tests of what is remembered.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::core::child::ChildKind;
use crate::core::observed::ClaimTemplate;
use crate::postgres::Source;
use crate::watch::observe;
use shard_ownership::hash::ShardId;
use shard_ownership::token::FencingToken;
use sharded_controller::object::ObjectKey;

fn child(resource_version: &str) -> ChildRecord {
    ChildRecord {
        kind: ChildKind::Service,
        key: ObjectKey::new("shop", "a-db"),
        uid: "s".to_owned(),
        resource_version: resource_version.to_owned(),
        deleting: false,
        owner: None,
        is_marked: false,
        reports_initialized: false,
        bucket: None,
        token: None,
        fingerprint: None,
        rendered_from_generation: None,
        contents: None,
    }
}

#[test]
fn lagging_watch_is_trusted_again_after_the_maximum_lag() {
    let mut memory = Memory::new("u".into(), 0);
    memory.wrote_cluster("10", 1_000);
    assert!(memory.cluster_lags("9", 1_001));
    assert!(memory.cluster_lags("9", 1_000 + WATCH_LAG_MS_MAX - 1));
    assert!(!memory.cluster_lags("9", 1_000 + WATCH_LAG_MS_MAX));
    memory.wrote_cluster("12", 20_000);
    assert!(!memory.cluster_lags("12", 20_001));
    assert!(!memory.cluster_lags("13", 20_001));
}

#[test]
fn a_child_is_untouched_as_our_write_left_it_and_touched_after_that() {
    let mut memory = Memory::new("u".into(), 0);
    assert_eq!(
        memory.standing(&child("5"), 0),
        Standing::Untouched,
        "first sight"
    );
    assert_eq!(memory.standing(&child("6"), 0), Standing::Touched);
    memory.wrote_child(&child("").id(), "10", None, 1_000);
    assert_eq!(memory.standing(&child("6"), 1_001), Standing::Lagging);
    assert_eq!(memory.standing(&child("10"), 1_002), Standing::Untouched);
    assert_eq!(memory.standing(&child("11"), 1_003), Standing::Touched);
}

#[test]
fn a_child_whose_status_alone_was_written_is_untouched() {
    let mut memory = Memory::new("u".into(), 0);
    let with = |version: &str, contents| ChildRecord {
        contents: Some(contents),
        ..child(version)
    };
    memory.wrote_child(&child("").id(), "10", Some(1), 1_000);
    assert_eq!(memory.standing(&with("11", 1), 1_001), Standing::Untouched);
    assert_eq!(memory.standing(&with("12", 2), 1_002), Standing::Touched);
    memory.wrote_child(&child("").id(), "13", None, 1_003);
    assert_eq!(memory.standing(&child("14"), 1_004), Standing::Touched);
}

#[test]
fn recently_written_child_is_expected_until_observed() {
    let mut memory = Memory::new("u".into(), 0);
    let id = child("").id();
    assert!(!memory.expects(&id, 0));
    memory.wrote_child(&id, "10", None, 1_000);
    assert!(memory.expects(&id, 1_001));
    assert!(!memory.expects(&id, 1_000 + WATCH_LAG_MS_MAX));
    memory.standing(&child("10"), 1_002);
    assert!(
        !memory.expects(&id, 1_003),
        "it was observed: if it is missing now, it was deleted"
    );
}

#[test]
fn a_wait_is_counted_from_its_beginning_until_it_ends() {
    let mut memory = Memory::new("u".into(), 0);
    assert_eq!(memory.awaits(1_000), 0);
    assert_eq!(memory.awaits(4_000), 3_000);
    memory.awaits_nothing();
    assert_eq!(memory.awaits(9_000), 0);
}

#[test]
fn a_newer_generation_is_waited_for_as_long_as_a_watch_may_lag() {
    let mut memory = Memory::new("u".into(), 0);
    assert_eq!(memory.awaits_newer(1, 1_000), Some(WATCH_LAG_MS_MAX));
    assert_eq!(
        memory.awaits_newer(1, 4_000),
        Some(WATCH_LAG_MS_MAX - 3_000)
    );
    assert_eq!(memory.awaits_newer(1, 1_000 + WATCH_LAG_MS_MAX), None);
    let again = memory.awaits_newer(2, 1_000 + WATCH_LAG_MS_MAX);
    assert_eq!(
        again,
        Some(WATCH_LAG_MS_MAX),
        "another generation was shown"
    );
    memory.awaits_no_newer();
    assert_eq!(memory.awaits_newer(2, 90_000), Some(WATCH_LAG_MS_MAX));
}

#[test]
fn refused_objects_are_known_until_their_writes_are_accepted() {
    let mut memory = Memory::new("u".into(), 0);
    assert!(memory.refused("Service a"));
    assert!(!memory.refused("Service a"));
    assert!(memory.refused("Service b"));
    memory.refused_only(&["Service b".to_owned()]);
    assert!(!memory.is_refused("Service a") && memory.is_refused("Service b"));
}

#[test]
fn a_sweep_is_due_an_interval_after_the_last_one_also_if_that_lies_ahead() {
    let mut memory = Memory::new("u".into(), 500);
    assert!(!memory.sweep_is_due(1_000, 0));
    assert!(!memory.sweep_is_due(1_000, 1_499));
    assert!(memory.sweep_is_due(1_000, 1_500));
    memory.swept(1_500);
    assert!(!memory.sweep_is_due(1_000, 2_499));
}

fn claim(size: &str) -> ClaimTemplate {
    ClaimTemplate {
        size: size.to_owned(),
        class_name: None,
        cluster_uid: None,
        selector: Selector::Own,
        created_for: None,
    }
}

#[test]
fn children_are_rendered_once_per_input() {
    let mut memory = Memory::new("u".into(), 0);
    let rendered = std::cell::Cell::new(0);
    let make = |_: &[DesiredChild], _: &dyn Fn(ChildKind) -> bool| {
        rendered.set(rendered.get() + 1);
        Vec::new()
    };
    let own = (Selector::Own, "u");
    let first = Basis::new(1, own, false);
    memory.desired(first, make);
    memory.desired(first, make);
    assert_eq!(rendered.get(), 1);
    for other in [
        Basis::new(2, own, false),
        Basis::new(1, own, true),
        Basis::new(1, (Selector::Recommended, "u"), false),
        Basis::new(1, (Selector::Own, "another"), false),
    ] {
        let before = rendered.get();
        memory.desired(other, make);
        assert_eq!(rendered.get(), before + 1, "{other:?}");
    }
    memory.swept(0);
    let before = rendered.get();
    memory.desired(first, make);
    assert_eq!(rendered.get(), before + 1, "after a sweep");
}

/// What of the input a child depends on is decided by its kind: a child that depends on more would stay as
/// it was.
#[test]
fn children_that_stay_are_those_that_would_be_rendered_the_same() {
    let object = serde_json::from_value(serde_json::json!({
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
        "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "1"},
        "spec": {"image": "postgres:18", "replicas": 3},
    }));
    let cluster = observe::cluster(&object.unwrap()).unwrap();
    let token = FencingToken {
        table: "table".into(),
        shard: ShardId(3),
        epoch: 17,
        holder: "operator-0".into(),
    };
    let mut memory = Memory::new("u".into(), 0);
    let (small, adopted) = (claim("1Gi"), claim("2Gi"));
    let adopted = ClaimTemplate {
        selector: Selector::Recommended,
        created_for: Some("another".into()),
        ..adopted
    };
    let claims = [None, Some(&small), Some(&adopted), None];
    let mut stayed = 0;
    for (claim, initialized) in claims
        .into_iter()
        .flat_map(|claim| [false, true, false].map(|initialized| (claim, initialized)))
    {
        let source = Source {
            cluster: &cluster,
            claim,
            initialized,
        };
        let basis = source.basis();
        let mut rendered = Vec::new();
        let children = memory.desired(basis, |known, stays| {
            stayed += known.iter().filter(|child| stays(child.id.kind)).count();
            source.children_after(known, stays, &mut rendered)
        });
        assert_eq!(*children, *source.children(), "{claim:?} {initialized}");
        for (id, manifest) in rendered {
            let child = children.iter().find(|child| child.id == id).unwrap();
            let signed = source.signed(manifest, child, &token);
            assert_eq!(Some(signed), source.manifest(child, &token), "{id}");
        }
    }
    assert!(stayed > 30, "only {stayed} were not rendered again");
}

#[test]
fn version_is_a_number_only_where_it_comes_back_as_it_was() {
    for text in [
        "0",
        "1",
        "18446744073709551615",
        "18446744073709551616",
        "007",
        "+1",
        "",
        "a",
    ] {
        assert_eq!(Version::of(text).text(), text);
    }
    assert!(Version::of("99").is_older(&Version::of("100")));
    assert!(Version::of("99").is_older(&Version::of("18446744073709551616")));
    assert!(!Version::of("a").is_older(&Version::of("1")));
    assert_eq!(size_of::<Version>(), 16);
}

#[test]
fn a_change_is_timed_once_from_when_its_generation_was_first_seen() {
    let mut memory = Memory::new("u".into(), 0);
    memory.change_seen(2, 100);
    memory.change_seen(2, 200);
    assert_eq!(memory.change_done(2, 350), Some(250));
    assert_eq!(memory.change_done(2, 400), None);
    memory.change_seen(3, 500);
    assert_eq!(memory.change_done(2, 600), None);
}

#[test]
fn each_next_retry_is_reported_with_its_own_time() {
    let mut memory = Memory::new("u".into(), 0);
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    let first = at("2026-01-01T00:00:30.400Z");
    assert_eq!(memory.next_try(first), first);
    assert_eq!(memory.next_try(at("2026-01-01T00:00:31.100Z")), first);
    assert_eq!(memory.next_try(at("2026-01-01T00:00:29.900Z")), first);
    let second = at("2026-01-01T00:01:01Z");
    assert_eq!(memory.next_try(second), second);
}
