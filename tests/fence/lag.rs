//! A second API server on the same etcd, which learns of everything late.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::support::*;

const ROUNDS: i32 = 3;
const LAG: Duration = Duration::from_secs(1);

/// The promise holds there too: what a newer epoch has written, an older one does not touch, however old the
/// server's view of the shard Leases is.
#[tokio::test]
async fn a_lagging_api_server_lets_no_older_epoch_over_a_newer_one() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    let second = control_plane.second_api_server().await.unwrap();
    let kubeconfig = control_plane.folder().join("alpha.kubeconfig");
    let alpha_there = second.client(&kubeconfig).await.unwrap();
    let stamp = |epoch: i32, holder: &str| format!("databasecluster-shard-000/{epoch}/{holder}");
    testbed::wait_for(
        "the second API server to take alpha's writes",
        PATIENCE,
        || async {
            let object = world.child("ConfigMap", "there", ALPHAS, "3").await;
            let answer = apply(&alpha_there, object).await;
            Ok(testbed::Progress::when(answer.is_ok(), (), || {
                format!("{answer:?}")
            }))
        },
    )
    .await
    .unwrap();
    second.set_lag(LAG);

    let mut epoch = 5;
    let mut unwritten_passed = 0;
    let mut behind = 0;
    for round in 0..ROUNDS {
        let (written, unwritten) = (format!("written-{round}"), format!("unwritten-{round}"));
        let alphas = stamp(epoch, "alpha");
        for name in [&written, &unwritten] {
            let object = world.child("ConfigMap", name, &alphas, "3").await;
            until_applied(&world.alpha, object).await;
        }
        // The lagging server has to know alpha as the holder first.
        let known = world.child("ConfigMap", "there", &alphas, "3").await;
        until_applied(&alpha_there, known).await;
        // Beta takes the shard over and writes one of the two objects, by the server that does not lag.
        hand_to(&world, "beta", epoch + 1).await;
        let mut newer = world
            .child("ConfigMap", &written, &stamp(epoch + 1, "beta"), "3")
            .await;
        newer["data"] = json!({"by": "beta"});
        until_applied(&world.beta, newer).await;
        // Alpha knows nothing of it, and the server that it asks neither.
        let late = world.child("ConfigMap", &unwritten, &alphas, "3").await;
        unwritten_passed += i32::from(apply(&alpha_there, late).await.is_ok());
        let late = world.child("ConfigMap", &written, &alphas, "3").await;
        let answer = apply(&alpha_there, late).await;
        let says = |error: &String| error.contains("older than the one on the object");
        behind += i32::from(answer.as_ref().is_err_and(says));
        refused("a write over a newer one", answer, "");
        let kept = api(&world.admin, "ConfigMap").get(&written).await.unwrap();
        assert_eq!(kept.data["data"]["by"], "beta", "round {round}");
        hand_to(&world, "alpha", epoch + 2).await;
        epoch += 2;
    }
    assert!(
        behind > 0,
        "the second API server never lagged: nothing was shown"
    );
    println!(
        "objects that the new holder had not written: {unwritten_passed} of {ROUNDS} stale writes \
         passed by a server {} ms behind",
        LAG.as_millis()
    );
}

async fn hand_to(world: &World<'_>, holder: &str, epoch: i32) {
    let change = json!({
        "metadata": {"annotations": {"database.io/incarnation": format!("{holder}-1")}},
        "spec": {"holderIdentity": holder, "leaseTransitions": epoch},
    });
    let client = if holder == "beta" {
        &world.beta
    } else {
        &world.alpha
    };
    let leases = world.leases(client);
    let params = PatchParams::default();
    let name = "databasecluster-shard-000";
    leases
        .patch(name, &params, &Patch::Merge(change))
        .await
        .unwrap();
}

/// The rightful holder may be refused for some milliseconds after a takeover.
async fn until_applied(client: &kube::Client, object: serde_json::Value) {
    testbed::wait_for(
        "the rightful holder to be let through",
        PATIENCE,
        || async {
            let answer = apply(client, object.clone()).await;
            Ok(testbed::Progress::when(answer.is_ok(), (), || {
                format!("{answer:?}")
            }))
        },
    )
    .await
    .unwrap();
}
