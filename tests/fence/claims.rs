//! Claims: they belong to the cluster whose uid is on their label, and another cluster takes them over by that label.

use serde_json::json;
use testbed::load;

use crate::support::*;

const CLAIM: &str = "PersistentVolumeClaim";

#[tokio::test]
async fn fence_protects_claims() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    load::create(&control_plane, vec![cluster("again")])
        .await
        .unwrap();
    let again = world.uid("again").await;
    let token = world.token("001", 3, "beta", &again);
    let versions = async || {
        let found = api(&world.admin, CLAIM).get_metadata("data").await.unwrap();
        (found.metadata.uid, found.metadata.resource_version)
    };
    let label = |uid: Option<&str>| {
        json!({"metadata": {
            "labels": {"database.io/cluster-uid": uid, "database.io/bucket": "9"},
            "annotations": {"database.io/fencing-token": token},
        }})
    };

    // As a StatefulSet's controller creates them.
    let mut claim = world.child(CLAIM, "data", "", "3");
    claim["metadata"]["annotations"] = json!({});
    claim["metadata"]["labels"] = json!({"database.io/bucket": "3"});
    create(&world.admin, claim).await.unwrap();
    let grow = json!({
        "metadata": {"annotations": {"database.io/fencing-token": world.alphas()}},
    });
    let answer = merge(&world.alpha, CLAIM, "data", grow).await;
    refused(
        "an unlabelled claim, changed without labelling it",
        answer,
        ORDER,
    );
    let own = json!({"metadata": {
        "labels": {"database.io/cluster-uid": world.orders},
        "annotations": {"database.io/fencing-token": world.alphas()},
    }});
    let_through("labelling", merge(&world.alpha, CLAIM, "data", own).await);

    // Its cluster was deleted, and another one of that name finds it. Epochs of its shard are lower.
    let touch = json!({"metadata": {
        "labels": {"database.io/bucket": "9"}, "annotations": {"database.io/fencing-token": token},
    }});
    let answer = merge(&world.beta, CLAIM, "data", touch).await;
    refused("a change without re-labelling", answer, ORDER);
    for wrong in [None, Some(NOBODY), Some(world.orders.as_str())] {
        let answer = merge(&world.beta, CLAIM, "data", label(wrong)).await;
        refused(&format!("the label {wrong:?}"), answer, ORDER);
    }
    let answer = delete(&world.beta, CLAIM, "data", versions().await).await;
    refused("deletion of another cluster's claim", answer, "");
    let_through(
        "re-labelling",
        merge(&world.beta, CLAIM, "data", label(Some(&again))).await,
    );

    // The former cluster, late.
    let late = json!({"metadata": {
        "labels": {"database.io/bucket": "3"},
        "annotations": {"database.io/fencing-token": world.alphas()},
    }});
    let answer = merge(&world.alpha, CLAIM, "data", late).await;
    refused("a late change", answer, ORDER);
    let answer = delete(&world.alpha, CLAIM, "data", versions().await).await;
    refused("a late deletion", answer, "");
    // A token of the former cluster on it grants no right to delete it.
    let restored = json!({"metadata": {
        "labels": {"database.io/bucket": "3"},
        "annotations": {"database.io/fencing-token": world.alphas()},
    }});
    merge(&world.admin, CLAIM, "data", restored).await.unwrap();
    let answer = delete(&world.alpha, CLAIM, "data", versions().await).await;
    refused("deletion under another cluster's token", answer, ORDER);
    let_through(
        "writing it",
        merge(&world.beta, CLAIM, "data", label(Some(&again))).await,
    );
    let answer = delete(&world.beta, CLAIM, "data", versions().await).await;
    let_through("deletion by its own cluster", answer);
}
