//! Tests of the rules for problems of a fleet: each detects its problem, and a healthy fleet has none.
#![allow(clippy::unwrap_used)]

use super::super::fleet_view::{CheckView, LeaderView, ObserverView, UnhealthyView};
use super::*;

fn member(identity: &str, held: u16) -> MemberView {
    MemberView {
        identity: identity.into(),
        live: Some(true),
        incarnation: Some("life".into()),
        revision: Some("7".into()),
        shards: Some(4),
        held,
        heartbeat_age_seconds: Some(1.5),
        lease_seconds: Some(6),
        ..MemberView::default()
    }
}

fn shard(number: u16, holder: &str) -> ShardView {
    ShardView {
        lease: format!("databasecluster-shard-{number:03}"),
        shard: Some(number),
        holder: Some(holder.into()),
        epoch: Some(1),
        ..ShardView::default()
    }
}

fn sound() -> FleetView {
    FleetView {
        leader: Some(LeaderView {
            identity: Some("a".into()),
            renewed_seconds_ago: Some(1.0),
            live: Some(true),
            lease_seconds: Some(6),
        }),
        members: vec![member("a", 2), member("b", 2)],
        shards: vec![shard(0, "a"), shard(1, "a"), shard(2, "b"), shard(3, "b")],
        shard_count: Some(4),
        observer: Some(ObserverView {
            identity: "a".into(),
            ready: true,
            checks: vec![CheckView {
                name: "leases",
                gate: true,
                problem: None,
            }],
            ..ObserverView::default()
        }),
        ..FleetView::default()
    }
}

/// The problems after a change to a healthy fleet, as `severity what`.
fn after(change: impl FnOnce(&mut FleetView)) -> Vec<String> {
    let mut view = sound();
    change(&mut view);
    let problems = view.with_problems().problems.into_iter();
    problems
        .map(|problem| format!("{:?} {}", problem.severity, problem.what))
        .collect()
}

fn with_stat(name: &str, value: f64, more: &[(&str, f64)]) -> Vec<String> {
    after(|view| {
        let stats = &mut view.members[1].stats;
        stats.insert(name.into(), value);
        stats.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), *value)),
        );
    })
}

#[test]
fn a_sound_fleet_has_no_problem() {
    assert_eq!(after(|_| {}), Vec::<String>::new());
    let quiet = [("memory_limit_bytes", 0.0), ("ready", 1.0)];
    assert_eq!(with_stat("memory_bytes", 5e9, &quiet), Vec::<String>::new());
}

#[test]
fn unowned_shards_are_listed_first() {
    let found = after(|view| {
        view.clusters.insert("Degraded", 1);
        view.shards[0].holder = None;
        view.shards[1].orphaned = true;
        view.shards.remove(2);
    });
    assert_eq!(found[0], "Critical No live replica holds shards 0, 1, 2");
    assert_eq!(found[1], "Warning 1 of 1 DatabaseClusters are Degraded");
    let found = after(|view| view.shards[3].holder = Some("stranger".into()));
    assert_eq!(found, ["Critical No live replica holds shard 3"]);
    let many = after(|view| {
        view.shard_count = Some(256);
        view.members.iter_mut().for_each(|m| m.shards = Some(256));
    });
    assert!(many[0].ends_with("14, 15 and 240 more"), "{many:?}");
}

#[test]
fn degraded_clusters_are_named_up_to_a_bound() {
    let mut view = sound();
    view.clusters.insert("Degraded", 90);
    view.unhealthy = (0..40)
        .map(|n| UnhealthyView {
            namespace: "shop".into(),
            name: format!("db-{n:02}"),
            ..UnhealthyView::default()
        })
        .collect();
    let problems = view.with_problems().problems;
    assert_eq!(problems[0].clusters.len(), NAMED_MAX);
    assert_eq!(problems[0].clusters[0], "shop/db-00");
}

#[test]
fn statistics_of_a_dead_replica_raise_no_problem() {
    let found = after(|view| {
        view.members[1].live = Some(false);
        view.members[1].stats.insert("ready".into(), 0.0);
    });
    assert!(
        found.iter().all(|what| !what.contains("not ready")),
        "{found:?}"
    );
}

#[test]
fn a_silent_replica_is_named_and_its_shards_are_unowned() {
    let found = after(|view| {
        view.members[1].live = Some(false);
        view.members[1].heartbeat_age_seconds = Some(9.0);
    });
    assert_eq!(
        found,
        [
            "Critical No live replica holds shards 2, 3",
            "Warning b is silent: no heartbeat for 9 s, its lifetime is 6 s"
        ]
    );
    let late = after(|view| view.members[1].heartbeat_age_seconds = Some(4.0));
    assert_eq!(
        late,
        ["Warning b is late: its last heartbeat was 4.0 s ago"]
    );
    let dead = after(|view| {
        view.members.push(MemberView {
            vacated: true,
            live: Some(false),
            draining: true,
            ..member("c", 0)
        })
    });
    assert_eq!(dead, ["Note c is dead"]);
}

#[test]
fn reader_without_heartbeats_reports_stale_data() {
    let found = after(|view| view.members.iter_mut().for_each(|m| m.live = Some(false)));
    let old = "Critical a observes no heartbeat at all: this view is stale";
    assert!(found.iter().any(|what| what == old), "{found:?}");
}

#[test]
fn slow_and_full_replicas_are_named() {
    for (found, expected) in [
        (
            with_stat("queue_head_age_seconds", 12.0, &[("queue_depth", 340.0)]),
            "Warning b is behind: 340 objects wait, the oldest for 12 s",
        ),
        (
            with_stat("longest_run_seconds", 31.0, &[]),
            "Warning A reconcile on b has run for 31 s",
        ),
        (
            with_stat("failures_last_minute", 3.0, &[]),
            "Warning 3 reconciles failed on b within a minute",
        ),
        (
            with_stat("memory_bytes", 95.0, &[("memory_limit_bytes", 100.0)]),
            "Warning b uses 95 % of its memory limit",
        ),
        (
            with_stat("cpu_cores", 0.49, &[("cpu_limit_cores", 0.5)]),
            "Warning b uses 98 % of its CPU limit",
        ),
        (with_stat("ready", 0.0, &[]), "Warning b is not ready"),
    ] {
        assert_eq!(found, [expected]);
    }
    assert!(with_stat("queue_head_age_seconds", 4.0, &[]).is_empty());
}

#[test]
fn fleet_wide_problems_are_reported() {
    let found = after(|view| view.leader = None);
    assert_eq!(found, ["Warning No fleet leader"]);
    let found = after(|view| view.leader.as_mut().unwrap().live = Some(false));
    assert_eq!(found, ["Warning No fleet leader"]);
    let found = after(|view| view.members[1].held = 4);
    assert_eq!(found, ["Note Shards are unevenly distributed: from 2 to 4"]);
    let found = after(|view| view.members[1].revision = Some("8".into()));
    assert_eq!(found, ["Note Replicas of 2 revisions: 7 × 1, 8 × 1"]);
    let found = after(|view| view.members[1].shards = Some(8));
    assert_eq!(
        found,
        ["Warning b stands by: it is configured for another number of shards"]
    );
    let found = after(|view| {
        view.namespaces = Some("*".into());
        view.members[0].namespaces = Some("*".into());
        view.members[1].namespaces = Some("shop".into());
    });
    assert_eq!(
        found,
        ["Warning b stands by: it watches other namespaces (shop)"]
    );
    let found = after(|view| view.members[1].draining = true);
    assert_eq!(found, ["Note b is leaving"]);
    let found = after(|view| view.notes.push("something".into()));
    assert_eq!(found, ["Warning something"]);
    let found = after(|view| view.shards[0].damage = Some("odd".into()));
    assert_eq!(
        found,
        ["Warning Lease databasecluster-shard-000 is damaged: odd"]
    );
    let found = after(|view| view.members[0].damage = Some("odd".into()));
    assert_eq!(found, ["Warning Member Lease of a: odd"]);
}

#[test]
fn readers_own_checks_are_reported() {
    let found = after(|view| {
        let checks = &mut view.observer.as_mut().unwrap().checks;
        checks[0].problem = Some("no answer".into());
        checks.push(CheckView {
            name: "fence",
            gate: false,
            problem: Some("not there".into()),
        });
    });
    assert_eq!(
        found,
        ["Warning a: leases: no answer", "Note a: fence: not there"]
    );
}

#[test]
fn missing_kind_is_listed_before_its_consequences() {
    let found = after(|view| {
        view.shards[0].holder = None;
        let checks = &mut view.observer.as_mut().unwrap().checks;
        checks[0].problem = Some("no answer".into());
        checks.push(CheckView {
            name: KIND_CHECK,
            gate: true,
            problem: Some("the CRD is missing".into()),
        });
    });
    assert_eq!(found[0], "Critical the CRD is missing");
    assert!(
        found[1].starts_with("Critical No live replica holds"),
        "{found:?}"
    );
    assert_eq!(found.last().unwrap(), "Warning a: leases: no answer");
    assert_eq!(found.iter().filter(|line| line.contains("CRD")).count(), 1);
}

#[test]
fn problems_are_bounded() {
    let found = after(|view| {
        view.members = (0..500)
            .map(|n| MemberView {
                draining: true,
                ..member(&format!("m{n}"), 0)
            })
            .collect();
    });
    assert_eq!(found.len(), PROBLEMS_MAX);
    assert!(found[0].starts_with("Critical"), "{}", found[0]);
}
