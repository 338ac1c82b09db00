//! Rolling updates under load: to a new revision, and to another number of shards.

use std::time::Duration;

use testbed::shards::Shard;
use testbed::{Fleet, FleetOptions, Progress, wait_for};

use crate::support::*;

const STOP: Duration = Duration::from_secs(20);

fn flags(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|&flag| flag.to_owned()).collect()
}

async fn start(fleet: &mut Fleet<'_>, arguments: &[&str]) -> usize {
    let index = fleet.start_replica(&flags(arguments)).await.unwrap();
    fleet
        .replica(index)
        .unwrap()
        .wait_ready(PATIENCE)
        .await
        .unwrap();
    index
}

async fn leave(fleet: &mut Fleet<'_>, index: usize) {
    let status = fleet.replica_mut(index).unwrap().term(STOP).await.unwrap();
    assert!(status.success(), "{status}");
    let replica = fleet.replica(index).unwrap();
    assert_eq!(
        log_lines(replica, "shard stopped at once"),
        0,
        "{}",
        replica.log_tail()
    );
}

#[tokio::test]
async fn rolling_update_moves_each_shard_once_and_can_change_the_shard_count() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let mut fleet = Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    for _ in 0..3 {
        start(&mut fleet, &["--revision=1"]).await;
    }
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    let keys = clusters(&control_plane, 30).await;
    let load = Load::start(client.clone(), keys);
    a_new_revision(&mut fleet).await;
    another_number_of_shards(&mut fleet).await;
    other_namespaces(&mut fleet).await;
    assert!(load.end(&client).await > 50);
    assert_epochs_never_fall(&control_plane);
}

/// As a Deployment does: one more replica, then one less.
async fn a_new_revision(fleet: &mut Fleet<'_>) {
    let client = fleet.control_plane().client();
    let before = shards_now(&client).await;
    for old in 0..3 {
        start(fleet, &["--revision=2"]).await;
        leave(fleet, old).await;
    }
    testbed::shards::wait_balanced(fleet, PATIENCE)
        .await
        .unwrap();
    let after = shards_now(&client).await;
    for (lease, shard) in &after {
        assert_eq!(
            shard.epoch,
            before[lease].epoch + 1,
            "{lease} moved more than once"
        );
    }
    for replica in fleet.alive() {
        let cut = metric(replica, "databasecluster_reconcile_cancelled_total").await;
        assert!(
            cut == 0.0,
            "{cut} reconciles of {} were cut short",
            replica.name()
        );
    }
}

/// One that serves other namespaces is on standby beside the working replicas, which continue as before.
async fn other_namespaces(fleet: &mut Fleet<'_>) {
    let client = fleet.control_plane().client();
    let others: Vec<String> = fleet.alive().map(|r| r.name().to_owned()).collect();
    let stray = [
        "--revision=4",
        "--shards=64",
        "--watch-namespaces=elsewhere",
    ];
    let stray = start(fleet, &stray).await;
    let name = fleet.replica(stray).unwrap().name().to_owned();
    wait_for("it to stand by", PATIENCE, || async {
        let answer = fleet.replica(stray)?.get("/readyz").await?;
        let said =
            "standing by: replicas that watch other namespaces than --watch-namespaces elsewhere";
        let met = answer.status == 200 && answer.body.contains(said);
        Ok(Progress::when(met, (), || answer.body))
    })
    .await
    .unwrap();
    let page = fleet.alive().next().unwrap().get("/fleet").await.unwrap();
    let said = format!("{name} stands by: it watches other namespaces (elsewhere)");
    assert!(page.body.contains(&said), "{}", page.body);
    // Where a shard can move, it moves within seconds: a replica leaves, and the standby gets none of its shards.
    let leaver = fleet.replicas().iter().position(|r| r.name() == others[0]);
    leave(fleet, leaver.unwrap()).await;
    let held = until_shards(&client, "the others to hold all shards", |shards| {
        shards
            .values()
            .all(|shard| others[1..].contains(&shard.holder))
    })
    .await;
    assert_eq!(held.len(), 64);
    leave(fleet, stray).await;
}

async fn another_number_of_shards(fleet: &mut Fleet<'_>) {
    let client = fleet.control_plane().client();
    let before = shards_now(&client).await;
    for old in 3..6 {
        let standby = start(fleet, &["--revision=3", "--shards=64"]).await;
        let answer = fleet
            .replica(standby)
            .unwrap()
            .get("/readyz")
            .await
            .unwrap();
        let said = answer
            .body
            .contains("standing by: another number of shards");
        assert!(answer.status == 200 && said, "{}", answer.body);
        let shards = shards_now(&client).await;
        let standbys: Vec<&str> = fleet.alive().skip(6 - old).map(|r| r.name()).collect();
        for shard in shards.values() {
            assert!(
                !standbys.contains(&shard.holder.as_str()),
                "a standby holds {shard:?}"
            );
            assert!(shard.of == 32, "{shard:?}");
        }
        if old < 5 {
            leave(fleet, old).await;
        }
    }
    let (_, table) = until_entered(&client).await;
    let highest = table.entries.values().map(|entry| entry.epoch).max();
    let highest = highest.unwrap();
    leave(fleet, 5).await;
    // The table is converted to the new number: every shard begins above every old epoch.
    let above = |shard: &Shard| i64::from(shard.epoch) > highest;
    let after = until_shards(&client, "the standbys to take all shards", |shards| {
        let taken = |s: &Shard| s.of == 64 && !s.holder.is_empty() && above(s);
        shards.len() == 64 && shards.values().all(taken)
    })
    .await;
    for (lease, shard) in &before {
        assert!(
            after[lease].epoch > shard.epoch,
            "{shard:?} became {:?}",
            after[lease]
        );
    }
    testbed::shards::wait_balanced(fleet, PATIENCE)
        .await
        .unwrap();
    let (_, now) = until_entered(&client).await;
    assert_eq!((now.shards, now.uid), (64, table.uid), "the table stays");
    for replica in fleet.alive() {
        wait_for("no replica to stand by", PATIENCE, || async {
            let answer = replica.get("/readyz").await?;
            let met = answer.status == 200 && !answer.body.contains("standing by");
            Ok(Progress::when(met, (), || answer.body))
        })
        .await
        .unwrap();
    }
}
