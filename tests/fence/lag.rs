//! A second API server on the same etcd, with delayed events.

use std::time::Duration;

use serde_json::json;

use crate::support::*;

const ROUNDS: i32 = 3;
const LAG: Duration = Duration::from_secs(1);

/// The promise holds there too: an older epoch does not overwrite a newer one, however old the
/// server's view of the shard table is.
#[tokio::test]
async fn lagging_api_server_accepts_no_older_epoch_after_a_newer_one() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    let second = control_plane.second_api_server().await.unwrap();
    let kubeconfig = control_plane.folder().join("alpha.kubeconfig");
    let alpha_there = second.client(&kubeconfig).await.unwrap();
    let token = |epoch: i64, holder: &str| world.token("000", epoch, holder, &world.orders);
    testbed::wait_for(
        "the second API server to take alpha's writes",
        PATIENCE,
        || async {
            let object = world.child("ConfigMap", "there", &world.alphas(), "3");
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
        let alphas = token(epoch, "alpha");
        for name in [&written, &unwritten] {
            let object = world.child("ConfigMap", name, &alphas, "3");
            until_applied(&world.alpha, object).await;
        }
        // The lagging server has to observe alpha as the holder first.
        let known = world.child("ConfigMap", "there", &alphas, "3");
        until_applied(&alpha_there, known).await;
        // Beta takes over the shard and writes one of the two objects, by the server that does not lag.
        write_entry(&world.beta, 32, "000", epoch + 1, "beta")
            .await
            .unwrap();
        let mut newer = world.child("ConfigMap", &written, &token(epoch + 1, "beta"), "3");
        newer["data"] = json!({"by": "beta"});
        until_applied(&world.beta, newer).await;
        // Neither alpha nor its API server has observed it.
        let late = world.child("ConfigMap", &unwritten, &alphas, "3");
        unwritten_passed += i32::from(apply(&alpha_there, late).await.is_ok());
        let late = world.child("ConfigMap", &written, &alphas, "3");
        let answer = apply(&alpha_there, late).await;
        let says = |error: &String| error.contains("older than the one on the object");
        behind += i32::from(answer.as_ref().is_err_and(says));
        refused("a write over a newer one", answer, "");
        let kept = api(&world.admin, "ConfigMap").get(&written).await.unwrap();
        assert_eq!(kept.data["data"]["by"], "beta", "round {round}");
        write_entry(&world.alpha, 32, "000", epoch + 2, "alpha")
            .await
            .unwrap();
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

/// The writes of the rightful holder may be rejected for some milliseconds after a takeover.
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
