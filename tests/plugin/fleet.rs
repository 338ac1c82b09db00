//! What the plugin shows of the fleet, and what it moves in it.

use std::time::Duration;

use testbed::shards::{self, by_holder, wait_balanced};

use crate::support::*;

#[tokio::test]
async fn shards_are_shown_moved_and_drained() {
    let control_plane = control_plane().await;
    let fleet = fleet_of_three(&control_plane).await;
    ready_clusters(&control_plane, "shop", &[("orders", 1)]).await;
    let user = User::administrator(&control_plane);
    let client = control_plane.client();

    let out = user.dbc(&["shards"]).ok();
    assert_eq!(out.lines().count(), 33, "{out}");
    assert!(out.starts_with("SHARD   BUCKETS   HOLDER"), "{out}");
    let out = user.dbc(&["shards", "-A", "-o", "json"]).ok();
    let rows = json_of(&out);
    assert_eq!(rows.as_array().unwrap().len(), 32);
    assert_eq!(
        (&rows[7]["namespace"], &rows[7]["granted"]),
        (&OPERATOR.into(), &true.into())
    );
    let out = user.dbc(&["shards", "-o", "name"]).ok();
    assert!(
        out.contains("lease.coordination.k8s.io/databasecluster-shard-007\n"),
        "{out}"
    );
    let out = user.dbc(&["replicas", "-o", "wide"]).ok();
    assert_eq!(out.lines().count(), 4, "{out}");
    assert_eq!(out.matches("serving").count(), 3, "{out}");
    let out = user.dbc(&["top"]).ok();
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(out.contains(" MiB "), "{out}");
    // A heartbeat carries the use of CPU from the second one on.
    crate::reading::wait_for_code(&user, &["top", "-o", "wide"], 0, "m  ");
    let out = user.dbc(&["fleet"]).ok();
    assert!(
        out.starts_with("fleet leader: databasecluster-operator-"),
        "{out}"
    );

    // A move to a replica that has its share already is an exchange, and both stay where they are.
    let before = shards::list(&client).await.unwrap();
    let names: Vec<String> = fleet
        .replicas()
        .iter()
        .map(|replica| replica.name().to_owned())
        .collect();
    let held = by_holder(&before);
    let target = names.iter().find(|name| held[*name] == 11).unwrap();
    let number = before
        .iter()
        .position(|shard| shard.holder != *target)
        .unwrap();
    let shard = number.to_string();
    let out = user.dbc(&["move", &shard, target]).ok();
    assert!(
        out.contains("in exchange, so that the fleet stays balanced"),
        "{out}"
    );
    assert!(
        out.contains(&format!("shard {shard}: {target} works in it under epoch ")),
        "{out}"
    );
    // Longer than the leader waits before it moves anything for balance.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = shards::list(&client).await.unwrap();
    assert_eq!(after[number].holder, *target, "it was moved back");
    let moved = before
        .iter()
        .zip(&after)
        .filter(|(b, a)| b.holder != a.holder);
    assert_eq!(
        moved.count(),
        2,
        "the move and its exchange, and nothing else"
    );
    let mut counts: Vec<usize> = by_holder(&after).into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [10, 11, 11]);
    let out = user.dbc(&["move", &shard, target]).ok();
    assert_eq!(out, format!("{target} holds shard {shard} already\n"));
    user.dbc(&["move", "99", target])
        .fails(3, &["there is no shard 99", "the fleet has 32"]);
    user.dbc(&["move", "0", "nobody"]).fails(
        3,
        &["there is no replica nobody", "databasecluster-operator-0"],
    );

    // A drained replica loses every shard, keeps its request over its renewals, and gets nothing back.
    let out = user.dbc(&["drain", target]).ok();
    assert!(
        out.ends_with(&format!("{target} holds 0 shards\n")),
        "{out}"
    );
    tokio::time::sleep(Duration::from_secs(6)).await;
    let held = by_holder(&shards::list(&client).await.unwrap());
    assert_eq!(
        (held.len(), held.values().sum::<usize>()),
        (2, 32),
        "{held:?}"
    );
    let out = user.dbc(&["replicas"]).ok();
    assert!(out.contains("drained by request"), "{out}");
    user.dbc(&["move", "0", target])
        .fails(1, &["it is drained", "--undo"]);
    let others: Vec<&String> = names.iter().filter(|name| *name != target).collect();
    user.dbc(&["drain", others[0]]).ok();
    user.dbc(&["drain", others[1]])
        .fails(1, &["only replica that can hold shards"]);
    user.dbc(&["drain", "nobody"])
        .fails(3, &["there is no replica nobody"]);
    last_undrained_replica_dies(&control_plane, fleet, &user, others[1]).await;
}

/// The others are drained, and take everything over all the same: a request of a user orphans nothing.
async fn last_undrained_replica_dies(
    control_plane: &testbed::ControlPlane,
    mut fleet: testbed::Fleet<'_>,
    user: &User<'_>,
    last: &str,
) {
    let index = fleet
        .replicas()
        .iter()
        .position(|replica| replica.name() == last)
        .unwrap();
    fleet.replica_mut(index).unwrap().kill().await.unwrap();
    wait_balanced(&fleet, PATIENCE).await.unwrap();
    let held = by_holder(&shards::list(&control_plane.client()).await.unwrap());
    assert_eq!(
        held.values().copied().collect::<Vec<_>>(),
        [16, 16],
        "{held:?}"
    );
    // Without the requests a new replica gets its share.
    let names: Vec<String> = fleet
        .alive()
        .map(|replica| replica.name().to_owned())
        .collect();
    for name in &names {
        user.dbc(&["drain", "--undo", name]).ok();
    }
    let out = user.dbc(&["drain", "--undo", &names[0]]).ok();
    assert!(out.contains("is not drained"), "{out}");
    let out = user.dbc(&["replicas"]).ok();
    assert!(!out.contains("drained by request"), "{out}");
}
