//! Tests of the view of the fleet: whole Leases, damaged ones, hostile ones.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::SignedDuration;

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

pub(crate) fn lease(name: &str, holder: &str, epoch: i32, annotations: &[(&str, &str)]) -> Lease {
    let annotations = annotations
        .iter()
        .map(|(name, value)| (format!("database.io/{name}"), (*value).to_owned()))
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
            renew_time: Some(MicroTime(NOW - SignedDuration::from_millis(1200))),
            ..LeaseSpec::default()
        }),
    }
}

pub(crate) fn whole_fleet() -> Vec<Lease> {
    vec![
        lease("databasecluster-leader", "op-1", 0, &[]),
        lease(
            "databasecluster-member-op-1",
            "op-1",
            0,
            &[
                ("incarnation", "aa"),
                ("revision", "7"),
                ("shards", "2"),
                ("draining", "true"),
                ("stats", r#"{"objects": 20, "queue": 0.5}"#),
            ],
        ),
        lease(
            "databasecluster-member-op-0",
            "op-0",
            0,
            &[("incarnation", "bb"), ("shards", "2")],
        ),
        lease(
            "databasecluster-shard-001",
            "op-1",
            3,
            &[
                ("incarnation", "aa"),
                ("shards", "2"),
                ("buckets", "128-255"),
                ("successor", "op-0/bb"),
            ],
        ),
        lease(
            "databasecluster-shard-000",
            "",
            1,
            &[("shards", "2"), ("buckets", "0-127")],
        ),
    ]
}

#[test]
fn fleet_view_reflects_its_leases() {
    let view = FleetView::from_leases(&whole_fleet(), Some(NOW));
    let leader = view.leader.unwrap();
    assert_eq!(leader.identity.as_deref(), Some("op-1"));
    assert_eq!(leader.renewed_seconds_ago, Some(1.2));
    let [first, second] = view.members.as_slice() else {
        unreachable!("two members, not {:?}", view.members)
    };
    assert_eq!((first.identity.as_str(), first.held), ("op-0", 0));
    assert_eq!((second.identity.as_str(), second.held), ("op-1", 1));
    assert!(second.draining && !first.draining && !second.vacated);
    assert_eq!(second.stats.get("objects"), Some(&20.0));
    assert_eq!(
        view.shards[0],
        ShardView {
            lease: "databasecluster-shard-000".into(),
            shard: Some(0),
            epoch: Some(1),
            buckets: Some("0-127".into()),
            ..ShardView::default()
        }
    );
    assert_eq!(
        view.shards[1],
        ShardView {
            lease: "databasecluster-shard-001".into(),
            shard: Some(1),
            holder: Some("op-1".into()),
            incarnation: Some("aa".into()),
            epoch: Some(3),
            buckets: Some("128-255".into()),
            successor: Some("op-0/bb".into()),
            ..ShardView::default()
        }
    );
    assert_eq!(view.shard_count, Some(2));
    assert_eq!(view.notes, Vec::<String>::new());
}

#[test]
fn shard_held_by_a_former_incarnation_is_orphaned() {
    let mut leases = whole_fleet();
    leases[1] = lease(
        "databasecluster-member-op-1",
        "op-1",
        0,
        &[("incarnation", "next")],
    );
    assert!(FleetView::from_leases(&leases, None).shards[1].orphaned);
    leases[1] = lease(
        "databasecluster-member-op-1",
        "",
        0,
        &[("incarnation", "aa")],
    );
    let view = FleetView::from_leases(&leases, None);
    assert!(view.shards[1].orphaned && view.members[1].vacated);
}

#[test]
fn liveness_is_based_on_the_readers_observation() {
    let view = FleetView::from_leases(&whole_fleet(), None);
    assert!(view.members.iter().all(|member| member.live.is_none()));

    let mut leases = whole_fleet();
    for lease in &mut leases {
        lease.spec.as_mut().unwrap().lease_duration_seconds = Some(6);
    }
    let mut history = History::new(NAMES);
    leases.iter().for_each(|lease| history.note(lease, 0, NOW));
    let renewed = Some(MicroTime(NOW + SignedDuration::from_secs(3)));
    leases[1].spec.as_mut().unwrap().renew_time = renewed;
    history.note(&leases[1], 3_000, NOW);
    let live = |now_ms| {
        let view = FleetView::from_leases(&leases, Some(NOW)).with_history(&history, now_ms);
        let ages: Vec<_> = view
            .members
            .iter()
            .map(|m| m.heartbeat_age_seconds)
            .collect();
        let live: Vec<_> = view.members.iter().map(|m| m.live).collect();
        (ages, live, view.leader.unwrap().live)
    };
    assert_eq!(
        live(5_000),
        (vec![Some(5.0), Some(2.0)], vec![None, Some(true)], None)
    );
    assert_eq!(live(7_000).1, [Some(false), Some(true)]);
    assert_eq!(live(9_001).1, [Some(false), Some(false)]);
}

#[test]
fn clusters_are_those_that_members_count_unless_they_are_dead() {
    let stats = |stats| [("stats", stats), ("incarnation", "aa")];
    let mut leases = vec![
        lease(
            "databasecluster-member-a",
            "a",
            0,
            &stats(r#"{"clusters_ready": 4, "clusters_degraded": 1}"#),
        ),
        lease(
            "databasecluster-member-b",
            "b",
            0,
            &stats(r#"{"clusters_ready": 3, "clusters_creating": -7}"#),
        ),
        lease(
            "databasecluster-member-c",
            "",
            0,
            &stats(r#"{"clusters_ready": 99}"#),
        ),
    ];
    let clusters = |leases: &[Lease]| FleetView::from_leases(leases, None).clusters;
    assert_eq!(clusters(&leases)["Ready"], 7);
    assert_eq!(clusters(&leases)["Degraded"], 1);
    assert_eq!(clusters(&leases)["Creating"], 0);
    leases[0] = lease("databasecluster-member-a", "a", 0, &stats("[1]"));
    assert_eq!(clusters(&leases)["Ready"], 3);
}

/// Two replicas that have counted 4 clusters each, one shard each.
fn counted() -> FleetView {
    let member = |identity: &str| MemberView {
        identity: identity.into(),
        live: Some(true),
        held: 1,
        stats: BTreeMap::from([("clusters_ready".to_owned(), 4.0)]),
        ..MemberView::default()
    };
    let shard = |number: u16, holder: &str| ShardView {
        shard: Some(number),
        holder: Some(holder.into()),
        ..ShardView::default()
    };
    FleetView {
        members: vec![member("a"), member("b")],
        shards: vec![shard(0, "a"), shard(1, "b")],
        shard_count: Some(2),
        ..FleetView::default()
    }
}

/// Ready and Unknown, after a change to that fleet.
fn known_and_unknown(
    last: &mut Option<LastCount>,
    now_ms: u64,
    change: impl FnOnce(&mut FleetView),
) -> (u64, u64) {
    let mut view = counted();
    change(&mut view);
    view.count_clusters();
    let view = view.with_unknown(last, now_ms);
    (view.clusters["Ready"], view.clusters[UNKNOWN])
}

fn kill(view: &mut FleetView) {
    view.members[1].live = Some(false);
}

/// `a` took the shard of `b` so long ago, and has counted so many clusters since.
fn taken(view: &mut FleetView, seconds_ago: f64, counted: f64) {
    kill(view);
    view.members[1].held = 0;
    view.shards[1].holder = Some("a".into());
    view.members[0]
        .stats
        .insert("clusters_ready".into(), counted);
    view.moves.push(MoveView {
        shard: 1,
        seconds_ago,
        ..MoveView::default()
    });
}

#[test]
fn clusters_that_nobody_has_counted_are_unknown_during_a_takeover() {
    let mut last = None;
    let mut see = |now_ms, change: &dyn Fn(&mut FleetView)| {
        known_and_unknown(&mut last, now_ms, |view| change(view))
    };
    assert_eq!(see(0, &|_| {}), (8, 0));
    assert_eq!(see(1_000, &kill), (4, 4));
    assert_eq!(see(2_000, &|view| taken(view, 0.5, 4.0)), (4, 4));
    assert_eq!(see(3_000, &|view| taken(view, 1.5, 7.0)), (7, 1));
    assert_eq!(see(4_000, &|view| taken(view, 2.5, 8.0)), (8, 0));
    // One was deleted meanwhile: what is missing for longer than a list takes does not exist.
    assert_eq!(see(5_000, &|view| taken(view, 3.5, 7.0)), (7, 1));
    assert_eq!(see(9_000, &|view| taken(view, 7.5, 7.0)), (7, 0));
}

#[test]
fn a_reader_who_comes_during_a_takeover_counts_what_the_dead_replica_had() {
    let mut last = None;
    assert_eq!(known_and_unknown(&mut last, 0, kill), (4, 4));
    // An old count is not compared with.
    let mut last = None;
    known_and_unknown(&mut last, 0, |_| {});
    let new = |view: &mut FleetView| {
        kill(view);
        view.members[0].stats.insert("clusters_ready".into(), 100.0);
    };
    let late = LAST_COUNT_MS_MAX + 1;
    assert_eq!(known_and_unknown(&mut last, late, new), (100, 4));
}

#[test]
fn unhealthy_clusters_of_live_members_are_named_once() {
    let names = |member: &str, holder: &str, unhealthy: &str| {
        lease(
            &format!("databasecluster-member-{member}"),
            holder,
            0,
            &[("incarnation", "aa"), ("unhealthy", unhealthy)],
        )
    };
    let leases = [
        names("a", "a", "shop/b=ImagePullFailed,shop/a=\u{1b}[31m"),
        names("b", "b", "shop/b=ImagePullFailed"),
        names("c", "", "shop/dead=Old"),
    ];
    let view = FleetView::from_leases(&leases, None);
    let found = view.unhealthy.iter();
    let found: Vec<String> = found
        .map(|found| format!("{}/{} {}", found.namespace, found.name, found.reason))
        .collect();
    assert_eq!(found, ["shop/a ?[31m", "shop/b ImagePullFailed"]);
}

#[test]
fn a_damaged_lease_shows_as_damaged_and_leaves_the_others_alone() {
    let mut leases = whole_fleet();
    leases.push(lease("databasecluster-shard-1x", "op-1", 1, &[]));
    leases.push(lease("databasecluster-shard-999", "op-1", -1, &[]));
    leases.push(Lease::default());
    leases.push(Lease {
        metadata: ObjectMeta {
            name: Some("databasecluster-member-op-9".into()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    leases[4] = lease(
        "databasecluster-shard-000",
        "op-1",
        1,
        &[("incarnation", "aa"), ("shards", "2"), ("buckets", "0-7")],
    );
    let view = FleetView::from_leases(&leases, Some(NOW));
    let damage = |row: &ShardView| row.damage.clone().unwrap_or_default();
    assert!(damage(&view.shards[0]).contains("buckets"));
    assert_eq!(view.shards[1].damage, None);
    assert!(damage(&view.shards[2]).contains("three digits"));
    assert!(damage(&view.shards[3]).contains("epoch"));
    assert!(view.members[2].damage.is_some() && view.members[2].vacated);
}

#[test]
fn hostile_text_is_bounded_and_harmless() {
    let long = "x".repeat(10_000);
    let many = format!("{{{}}}", vec!["\"a\": 1"; 200].join(","));
    let leases = [
        lease(
            "databasecluster-member-a",
            "\x1b]0;owned\x07",
            0,
            &[("incarnation", &long), ("stats", &many), ("shards", "99")],
        ),
        lease(
            "databasecluster-shard-000",
            &long,
            0,
            &[("successor", "a\nb\u{202e}")],
        ),
    ];
    let text = serde_json::to_string(&FleetView::from_leases(&leases, Some(NOW))).unwrap();
    assert!(text.len() < 3000, "{} bytes", text.len());
    assert!(!text.contains("\\u001b") && !text.contains("\\n") && !text.contains('\u{202e}'));
    let crowd: Vec<Lease> = (0..3000)
        .map(|n| lease(&format!("databasecluster-member-{n}"), "a", 0, &[]))
        .collect();
    let view = FleetView::from_leases(&crowd, None);
    assert_eq!(view.members.len(), LEASES_MAX);
    assert!(view.notes[0].contains("only the first"));
}

#[test]
fn shards_without_a_lease_are_named() {
    let leases = whole_fleet();
    let view = FleetView::from_leases(&leases[..4], None);
    assert_eq!(view.notes, ["no Lease for shard 0"]);
}
