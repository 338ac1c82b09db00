//! The plugin where no operator runs, and where none is installed.

use serde_json::json;
use testbed::{Fleet, FleetOptions, load};

use crate::support::*;

#[tokio::test]
async fn absence_of_the_operator_is_reported_and_never_an_empty_table() {
    let control_plane = control_plane().await;
    let user = User::administrator(&control_plane);
    // Not installed.
    for arguments in [
        &["status"][..],
        &["status", "-A"],
        &["explain", "a"],
        &["pause", "a"],
    ] {
        user.dbc(arguments).fails(
            3,
            &[
                "does not serve databaseclusters.database.io",
                "install the operator",
            ],
        );
    }
    for command in ["fleet", "shards", "replicas", "top"] {
        user.dbc(&[command]).fails(
            3,
            &[
                "namespace databasecluster-system has no Leases",
                "is the operator installed",
            ],
        );
    }
    user.dbc(&["shards", "-A"])
        .fails(3, &["no namespace has Leases of the operator"]);
    user.dbc(&["drain", "a"])
        .fails(3, &["has no Leases of the operator"]);

    // Installed, and nothing runs.
    let fleet = Fleet::install(&control_plane, FleetOptions::default())
        .await
        .unwrap();
    user.dbc(&["status", "-A"])
        .fails(3, &["there are no DatabaseClusters in any namespace"]);
    let new = load::NewCluster {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        spec: load::spec(1),
    };
    load::create(&control_plane, vec![new]).await.unwrap();
    let out = user.dbc(&["status", "-n", "shop"]).ok();
    assert!(out.contains("nobody"), "{out}");
    let out = user.dbc(&["status", "-n", "shop", "orders"]).ok();
    assert!(
        out.contains("Reconciled by: nobody; namespace databasecluster-system has no Leases"),
        "{out}"
    );
    assert!(
        out.contains("none: no replica has reported on it yet"),
        "{out}"
    );
    let outcome = user.dbc(&["explain", "-n", "shop", "orders"]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    assert!(
        outcome.out.contains("cause: no replica reconciles it: "),
        "{outcome:?}"
    );
    drop(fleet);

    // The API server is away.
    let dead = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "dead",
        "clusters": [{"name": "dead", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "dead", "user": {}}],
        "contexts": [{"name": "dead", "context": {"cluster": "dead", "user": "dead"}}],
    });
    let file = control_plane.folder().join("dead.kubeconfig");
    std::fs::write(&file, dead.to_string()).unwrap();
    let user = user.with_kubeconfig(file);
    for command in ["status", "shards"] {
        user.dbc(&[command])
            .fails(1, &["check the kubeconfig and the network"]);
    }
}
