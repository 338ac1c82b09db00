//! `pause`, `resume`, `restart`, `logs` and `psql`.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::{Client, ResourceExt as _};
use testbed::ControlPlane;

use crate::support::*;

/// Prints its arguments, and what it is given.
const ECHO: &str = "echo \"$*\"; cat; exit 7\n";

async fn pods(client: &Client) -> Vec<(String, String)> {
    let api: Api<Pod> = Api::namespaced(client.clone(), "shop");
    let found = api.list(&ListParams::default()).await.unwrap();
    let mut found: Vec<(String, String)> = found
        .items
        .iter()
        .map(|pod| (pod.name_any(), pod.uid().unwrap()))
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn database_is_paused_resumed_and_restarted() {
    let control_plane = control_plane().await;
    let _fleet = fleet_of_three(&control_plane).await;
    ready_clusters(&control_plane, "shop", &[("orders", 3)]).await;
    let user = User::administrator(&control_plane);
    let client = control_plane.client();
    let before = pods(&client).await;
    assert_eq!(before.len(), 3);

    // Each instance is replaced once, and the command returns when all serve again.
    let out = user
        .dbc(&[
            "restart",
            "-n",
            "shop",
            "orders",
            "--wait",
            "--timeout",
            "3m",
        ])
        .ok();
    assert!(
        out.starts_with("databasecluster.database.io/orders restarted: "),
        "{out}"
    );
    assert!(
        out.ends_with("AllInstancesReady: 3 of 3 instances are ready\n"),
        "{out}"
    );
    let after = pods(&client).await;
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(old.0, new.0);
        assert_ne!(old.1, new.1, "{} was not replaced", old.0);
    }

    let out = user.dbc(&["pause", "-n", "shop", "orders", "--wait"]).ok();
    assert!(
        out.contains("its 3 instances stop, and its volumes stay"),
        "{out}"
    );
    assert!(
        out.ends_with("Paused: paused: no instances are asked for\n"),
        "{out}"
    );
    assert_eq!(pods(&client).await, []);
    let claims = control_plane
        .run_kubectl(&["get", "pvc", "-n", "shop", "-o", "name"])
        .await
        .unwrap();
    assert_eq!(claims.lines().count(), 3, "{claims}");
    let out = user.dbc(&["pause", "-n", "shop", "orders"]).ok();
    assert!(out.contains("is paused already"), "{out}");
    let out = user.dbc(&["explain", "-n", "shop", "orders"]).ok();
    assert!(
        out.contains("next:  kubectl dbc resume -n shop orders"),
        "{out}"
    );
    user.dbc(&["restart", "-n", "shop", "orders"])
        .fails(1, &["is paused"]);
    user.dbc(&["logs", "-n", "shop", "orders"])
        .fails(3, &["has no Pod"]);
    user.dbc(&["psql", "-n", "shop", "orders"])
        .fails(3, &["has no Pod"]);

    let out = user.dbc(&["resume", "-n", "shop", "orders", "--wait"]).ok();
    assert!(out.contains("orders resumed with 3 instances"), "{out}");
    assert_eq!(pods(&client).await.len(), 3);
    let out = user.dbc(&["resume", "-n", "shop", "orders"]).ok();
    assert!(out.contains("is not paused"), "{out}");
    one_that_was_paused_otherwise_needs_a_number(&control_plane, &user).await;
    psql_and_logs_reach_the_right_container(&user);
    wait_ends_in_time(&control_plane, &user).await;
}

async fn one_that_was_paused_otherwise_needs_a_number(
    control_plane: &ControlPlane,
    user: &User<'_>,
) {
    let scale = [
        "scale",
        "-n",
        "shop",
        "databasecluster",
        "orders",
        "--replicas=0",
    ];
    control_plane.run_kubectl(&scale).await.unwrap();
    user.dbc(&["resume", "-n", "shop", "orders"])
        .fails(2, &["add --replicas"]);
    user.dbc(&["resume", "-n", "shop", "orders", "--replicas", "100"])
        .fails(2, &["1 to 99"]);
    user.dbc(&[
        "resume",
        "-n",
        "shop",
        "orders",
        "--replicas",
        "2",
        "--wait",
    ])
    .ok();
}

fn psql_and_logs_reach_the_right_container(user: &User<'_>) {
    let echoing = user.with_kubectl(ECHO);
    let arguments = [
        "psql",
        "-n",
        "shop",
        "orders",
        "--instance",
        "1",
        "--context",
        "testbed",
        "--",
        "-c",
        "SELECT 1",
    ];
    let context = user.kubectl(&["config", "current-context"]).ok();
    let arguments = arguments.map(|word| {
        if word == "testbed" {
            context.trim()
        } else {
            word
        }
    });
    let outcome = echoing.dbc(&arguments);
    assert_eq!(
        outcome.code, 7,
        "the code of psql is passed on: {outcome:?}"
    );
    for part in [
        format!(
            "exec --context={} --namespace shop orders-db-1 --container postgres --stdin -- sh -c ",
            context.trim()
        ),
        "exec psql -U postgres \"$@\" psql -c SELECT 1\n".to_owned(),
    ] {
        assert!(outcome.out.contains(&part), "{part}: {outcome:?}");
    }
    // The nodes here are not real: the API server reaches no kubelet, and that is what is reported.
    let outcome = user.dbc(&["logs", "-n", "shop", "orders"]);
    outcome.fails(1, &["cannot read the log of orders-db-0"]);
    user.dbc(&["logs", "-n", "shop", "orders", "--instance", "9"])
        .fails(3, &["has no Pod"]);
}

async fn wait_ends_in_time(control_plane: &ControlPlane, user: &User<'_>) {
    // No node takes an instance any more.
    let nodes = control_plane
        .run_kubectl(&["get", "nodes", "-o", "name"])
        .await
        .unwrap();
    for node in nodes.lines() {
        control_plane.run_kubectl(&["cordon", node]).await.unwrap();
    }
    let outcome = user.dbc(&[
        "restart",
        "-n",
        "shop",
        "orders",
        "--wait",
        "--timeout",
        "5s",
    ]);
    assert_eq!(outcome.code, 6, "{outcome:?}");
    outcome.reports(&[
        "not finished after 5s",
        "kubectl dbc explain -n shop orders",
    ]);
    let outcome = user.dbc(&["explain", "-n", "shop", "orders"]);
    assert_eq!(outcome.code, 5, "{outcome:?}");
    assert!(outcome.out.contains("cause: "), "{outcome:?}");
}
