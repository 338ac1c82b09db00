//! The fleet leader: neither killing it nor several leaders at once disturb the fleet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Client;
use testbed::metrics::Metrics;
use testbed::{Fleet, FleetOptions, Progress, Replica, http_get, wait_for};
use tokio::task::JoinHandle;

use crate::support::*;

#[tokio::test]
async fn killing_the_fleet_leader_moves_only_its_own_shards() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let mut fleet = fleet_of_three(&control_plane, FleetOptions::default()).await;
    let keys = clusters(&control_plane, 30).await;
    let load = Load::start(client.clone(), keys);
    let leader = fleet_leader(&client).await;
    let index = fleet
        .replicas()
        .iter()
        .position(|replica| replica.name() == leader);
    let before = shards_now(&client).await;
    fleet
        .replica_mut(index.unwrap())
        .unwrap()
        .kill()
        .await
        .unwrap();
    wait_for("another fleet leader", PATIENCE, || async {
        let now = fleet_leader(&client).await;
        let met = now != leader && !now.is_empty();
        Ok(Progress::when(met, (), || now))
    })
    .await
    .unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    let after = shards_now(&client).await;
    for (lease, shard) in &after {
        let known = &before[lease];
        let orphaned = known.holder == leader;
        // A replica that remembers a higher epoch, such as that of a create without a response, continues above it.
        let fits = if orphaned {
            shard.epoch > known.epoch && shard.holder != leader
        } else {
            shard == known
        };
        assert!(fits, "{lease}: {known:?} became {shard:?}");
    }
    assert!(load.end(&client).await > 10);
    one_leads_and_all_see_every_shard_held(&client, &fleet).await;
    assert_epochs_never_fall(&control_plane);
}

async fn one_leads_and_all_see_every_shard_held(client: &Client, fleet: &Fleet<'_>) {
    for replica in fleet.alive() {
        wait_for(
            "one to lead, and every shard to be seen held",
            PATIENCE,
            || async {
                let (leads, unowned) = (
                    metric(replica, "leader_election_master_status").await,
                    metric(replica, "databasecluster_shards_unowned").await,
                );
                // Leadership may move on when the machine is slow; the Lease names the present leader.
                let leader = fleet_leader(client).await;
                let met = leads == f64::from(u8::from(replica.name() == leader)) && unowned == 0.0;
                Ok(Progress::when(met, (), || {
                    format!("{leader} leads; {}: {leads}, {unowned}", replica.name())
                }))
            },
        )
        .await
        .unwrap();
        assert_eq!(
            log_lines(replica, "shard stopped at once"),
            0,
            "{}",
            replica.name()
        );
    }
}

/// The highest value of a gauge, which may change between two checks of a test that waits for other things.
struct Highest {
    stop: Arc<AtomicBool>,
    task: JoinHandle<f64>,
}

impl Highest {
    fn follow(replica: &Replica, name: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, url) = (Arc::clone(&stop), replica.url().to_owned());
        let task = tokio::spawn(async move {
            let mut highest = 0.0_f64;
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(answer) = http_get::get(&url, "/metrics", "text/plain").await {
                    let shown = Metrics::parse(&answer.body).sum(name);
                    highest = highest.max(shown.unwrap_or(0.0));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            highest
        });
        Self { stop, task }
    }

    async fn end(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test]
async fn four_simultaneous_fleet_leaders_plan_no_extra_moves() {
    let control_plane = control_plane().await;
    let client = control_plane.client();
    let options = FleetOptions {
        binary: Some(testbed::fleet::failpoints_binary().unwrap()),
        extra_env: vec![("DBC_FAILPOINTS".to_owned(), "leader".to_owned())],
        ..FleetOptions::default()
    };
    let mut fleet = fleet_of_three(&control_plane, options).await;
    let keys = clusters(&control_plane, 30).await;
    let load = Load::start(client.clone(), keys);
    let before = shards_now(&client).await;
    let highest = Highest::follow(fleet.replica(0).unwrap(), "databasecluster_shard_imbalance");
    let newcomer = fleet.start_replica(&[]).await.unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    let shown = highest.end().await;
    assert!(shown >= 2.0, "the gauge showed no imbalance above {shown}");
    let first = fleet.replica(0).unwrap();
    for replica in fleet.replicas() {
        let leads = metric(replica, "leader_election_master_status").await;
        assert!(
            leads == 1.0,
            "{} does not lead: nothing was shown",
            replica.name()
        );
    }
    wait_for("the gauge to show the balance", PATIENCE, || async {
        let shown = metric(first, "databasecluster_shard_imbalance").await;
        Ok(Progress::when(shown <= 1.0, (), || {
            format!("it shows {shown}")
        }))
    })
    .await
    .unwrap();
    // Long enough for each of them to plan again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = shards_now(&client).await;
    let newcomer = fleet.replica(newcomer).unwrap().name();
    let mut moved = 0;
    for (lease, shard) in &after {
        let known = &before[lease];
        let came = shard.holder == newcomer;
        moved += usize::from(came);
        assert!(
            came || shard.holder == known.holder,
            "{known:?} became {shard:?}"
        );
        assert_eq!(shard.epoch, known.epoch + i32::from(came), "{lease}");
    }
    assert_eq!(moved, 8, "a fourth replica is due a quarter of the shards");
    assert!(load.end(&client).await > 10);
    for replica in fleet.replicas() {
        let cut = metric(replica, "databasecluster_reconcile_cancelled_total").await;
        assert!(
            cut == 0.0,
            "{cut} reconciles of {} were cut short",
            replica.name()
        );
    }
    assert_epochs_never_fall(&control_plane);
}
