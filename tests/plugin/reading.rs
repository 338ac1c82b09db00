//! What the plugin shows of DatabaseClusters, and how it ends when it cannot.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::json;
use testbed::load;

use crate::support::*;

/// Answers `exec` as the containers of three instances would.
const MEASURES: &str = r#"
echo "$*" >>"$0.calls"
case "$*" in
  *orders-db-0*) printf '/dev/sdb 1000 250 750 25%% /pgdata\nf 0/3000400 - 0\n' ;;
  *orders-db-1*) printf '/dev/sdb 1000 500 500 50%% /pgdata\nt 0/3000000 streaming 4\n' ;;
  *) echo 'error: Internal error occurred: no such container' >&2; exit 1 ;;
esac
"#;

#[tokio::test]
async fn status_shows_everything_of_a_database_and_who_reconciles_it() {
    let control_plane = control_plane().await;
    let fleet = fleet_of_three(&control_plane).await;
    ready_clusters(&control_plane, "shop", &[("orders", 3), ("carts", 1)]).await;
    let user = User::administrator(&control_plane);

    // A list.
    let out = user.dbc(&["status", "-n", "shop"]).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(lines[0].starts_with("NAME "), "{out}");
    assert!(
        lines[1].starts_with("carts ") && lines[1].contains(" 1/1 "),
        "{out}"
    );
    assert!(lines[2].contains("Ready   True"), "{out}");
    let out = user.dbc(&["status", "-A", "-o", "wide"]).ok();
    assert!(
        out.starts_with("NAMESPACE ") && out.contains("AllInstancesReady"),
        "{out}"
    );
    let out = user.dbc(&["status", "-n", "shop", "-o", "name"]).ok();
    assert_eq!(
        out,
        "databasecluster.database.io/carts\ndatabasecluster.database.io/orders\n"
    );

    // One in full, with what is inside the containers where it can be measured.
    let measuring = user.with_kubectl(MEASURES);
    let out = measuring.dbc(&["status", "-n", "shop", "orders"]).ok();
    for part in [
        "Name:          shop/orders\n",
        "Phase:         Ready, 3 of 3 instances ready\n",
        "Primary:       orders-db-0 (ready)\n",
        "Generation:    1, reported on\n",
        "25% (250.0 KiB of 1000.0 KiB)",
        "1.0 KiB, 4s",
        "orders-db-2: lag and volume use are not available: error: Internal error occurred: no such container\n",
        "StatefulSet           orders-db    3/3 ready\n",
        "Secret                orders-app   exists\n",
        "PodDisruptionBudget   orders-db    exists\n",
        "AllInstancesReady",
        "DatabaseReady",
        "DatabaseCluster/orders",
    ] {
        assert!(out.contains(part), "{part:?}:\n{out}");
    }
    let names: Vec<&str> = fleet
        .replicas()
        .iter()
        .map(|replica| replica.name())
        .collect();
    let by = out
        .lines()
        .find(|line| line.starts_with("Reconciled by:"))
        .unwrap();
    assert!(names.iter().any(|name| by.contains(name)), "{by}");
    let last = out
        .lines()
        .find(|line| line.starts_with("Last write:"))
        .unwrap();
    assert!(
        last.contains(" ago); ") && last.contains("status last written by "),
        "{last}"
    );
    // The flags that choose the cluster are passed on.
    let calls = std::fs::read_to_string(control_plane.folder().join("fake-programs/kubectl.calls"));
    assert!(
        calls
            .unwrap()
            .contains("exec --namespace shop orders-db-0 --container postgres")
    );

    let out = measuring
        .dbc(&["status", "-n", "shop", "orders", "-o", "json"])
        .ok();
    let view = &json_of(&out)[0];
    assert_eq!(view["ready"], true);
    assert_eq!(view["instances"][1]["lagBytes"], 0x400);
    assert_eq!(view["instances"][1]["receiver"], "streaming");
    assert_eq!(view["instances"][0]["role"], "primary");
    assert_eq!(view["operator"]["namespace"], OPERATOR);
    assert!(view["operator"]["problem"].is_null());
    let out = measuring
        .dbc(&["status", "-n", "shop", "orders", "-o", "yaml"])
        .ok();
    assert!(out.contains("name: orders\n"), "{out}");
    explain_finds_the_cause(&control_plane, &user).await;
    names_and_namespaces_that_do_not_exist_are_errors(&user);
    rights_that_are_missing_are_reported(&control_plane, &user).await;
    kubectl_finds_plugin_and_completion(&user);
    watch_prints_again_after_a_change(&control_plane, &user).await;
}

async fn explain_finds_the_cause(control_plane: &testbed::ControlPlane, user: &User<'_>) {
    let out = user.dbc(&["explain", "-n", "shop"]).ok();
    assert_eq!(out, "shop/carts is Ready.\nshop/orders is Ready.\n");
    // An image of another major version is refused, and the database serves as before.
    let keys = vec![("shop".to_owned(), "carts".to_owned())];
    let spec = json!({"spec": {"image": "postgres:12"}});
    load::patch(&control_plane.client(), keys.clone(), spec)
        .await
        .unwrap();
    wait_for_code(
        user,
        &["explain", "-n", "shop", "carts"],
        5,
        "MajorVersionChange",
    );
    let outcome = user.dbc(&["explain", "-n", "shop", "carts"]);
    assert!(
        outcome
            .out
            .starts_with("shop/carts is not Ready.\n  cause: MajorVersionChange: "),
        "{outcome:?}"
    );
    assert!(
        outcome
            .out
            .contains("  next:  set spec.image back to the major version"),
        "{outcome:?}"
    );
    let outcome = user.dbc(&["explain", "-n", "shop", "carts", "-o", "json"]);
    assert_eq!(outcome.code, 5);
    let explained = json_of(&outcome.out);
    assert_eq!(explained[0]["ready"], false);
    assert!(explained[0]["findings"][0]["nextStep"].is_string());
    let image = load::spec(1)["image"].clone();
    load::patch(
        &control_plane.client(),
        keys,
        json!({"spec": {"image": image}}),
    )
    .await
    .unwrap();
    wait_for_code(user, &["explain", "-n", "shop", "carts"], 0, "is Ready");
}

/// Runs a command until it ends with this code and prints this text.
pub(crate) fn wait_for_code(user: &User<'_>, arguments: &[&str], code: i32, text: &str) {
    let started = std::time::Instant::now();
    loop {
        let outcome = user.dbc(arguments);
        if outcome.code == code && outcome.out.contains(text) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{outcome:?}");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}

fn names_and_namespaces_that_do_not_exist_are_errors(user: &User<'_>) {
    let elsewhere = ["in namespace shop: add -n shop"];
    for command in [
        "status", "explain", "logs", "psql", "pause", "resume", "restart", "report",
    ] {
        user.dbc(&[command, "orders", "-n", "default"]).fails(
            3,
            &[
                "there is no DatabaseCluster orders in namespace default",
                elsewhere[0],
            ],
        );
        user.dbc(&[command, "misspelt", "-n", "shop"]).fails(
            3,
            &["there is no DatabaseCluster misspelt in namespace shop"],
        );
    }
    for command in ["status", "explain"] {
        user.dbc(&[command, "-n", "default"]).fails(
            3,
            &[
                "there are no DatabaseClusters in namespace default",
                elsewhere[0],
            ],
        );
        user.dbc(&[command, "orders", "-n", "shopp"])
            .fails(3, &["no DatabaseCluster orders", elsewhere[0]]);
        user.dbc(&[command, "nowhere", "-n", "shopp"])
            .fails(3, &["the namespace does not exist"]);
    }
    for command in ["fleet", "shards", "replicas", "top"] {
        user.dbc(&[command, "-n", "shop"]).fails(
            3,
            &[
                "namespace shop has no Leases of the operator",
                "add -n databasecluster-system",
            ],
        );
    }
    // Another namespace of the operator is no reason to hide the database, but its reconciler is not guessed.
    let out = user
        .dbc(&[
            "status",
            "orders",
            "-n",
            "shop",
            "--operator-namespace",
            "shop",
        ])
        .ok();
    assert!(
        out.contains("Reconciled by: nobody; namespace shop has no Leases of the operator"),
        "{out}"
    );
    assert!(
        out.contains("add --operator-namespace databasecluster-system"),
        "{out}"
    );
    for wrong in [
        &["status", "orders", "-A"][..],
        &["status", "-o", "xml"],
        &["logs"],
        &["move", "x", "y"],
        &["unknown"],
    ] {
        let outcome = user.dbc(wrong);
        assert_eq!((outcome.code, outcome.out.as_str()), (2, ""), "{outcome:?}");
    }
    user.dbc(&["status", "--context", "misspelt"])
        .fails(1, &["misspelt", "--context"]);
    user.dbc(&["status", "--kubeconfig", "/nowhere/config"])
        .fails(1, &["/nowhere/config"]);
}

async fn rights_that_are_missing_are_reported(
    control_plane: &testbed::ControlPlane,
    user: &User<'_>,
) {
    let none = user_with(control_plane, "nobody", json!([]), &[]).await;
    let nobody = user.with_kubeconfig(none);
    for arguments in [
        &["status", "-n", "shop"][..],
        &["status", "-n", "shop", "orders"],
        &["explain", "-A"],
        &["pause", "-n", "shop", "orders"],
        &["logs", "-n", "shop", "orders"],
        &["shards"],
        &["replicas", "-A"],
        &["top"],
        &["drain", "databasecluster-operator-0"],
        &["move", "0", "databasecluster-operator-0"],
    ] {
        nobody
            .dbc(arguments)
            .fails(4, &["cannot ", "forbidden", "kubectl auth can-i"]);
    }
    // Impersonation is refused as well, by the API server.
    nobody
        .dbc(&[
            "status",
            "-n",
            "shop",
            "--as",
            "admin",
            "--as-group",
            "system:masters",
        ])
        .fails(4, &["impersonate"]);
    let viewer = json!([{"apiGroups": ["database.io"], "resources": ["databaseclusters"], "verbs": ["get", "list"]}]);
    let viewer = user_with(control_plane, "viewer", viewer, &["shop"]).await;
    let viewer = user.with_kubeconfig(viewer);
    let out = viewer.dbc(&["status", "-n", "shop", "orders"]).ok();
    for part in [
        "Phase:         Ready",
        "Reconciled by: nobody; cannot read the Leases in namespace databasecluster-system",
        "not readable: you may not get it",
        "not available: instances: cannot list the Pods",
        "not available: Events: cannot list the Events",
    ] {
        assert!(out.contains(part), "{part}:\n{out}");
    }
    viewer
        .dbc(&["pause", "-n", "shop", "orders"])
        .fails(4, &["cannot change DatabaseCluster orders"]);
}

fn kubectl_finds_plugin_and_completion(user: &User<'_>) {
    let out = user
        .kubectl(&["dbc", "status", "-n", "shop", "-o", "name"])
        .ok();
    assert!(out.contains("/orders\n"), "{out}");
    let outcome = user.kubectl(&["__complete", "dbc", "sta"]);
    assert!(outcome.out.starts_with("status\t"), "{outcome:?}");
    let outcome = user.kubectl(&["__complete", "dbc", "status", "-n", "shop", "or"]);
    assert!(outcome.out.starts_with("orders\n"), "{outcome:?}");
    let outcome = user.kubectl(&["__complete", "dbc", "drain", ""]);
    assert!(
        outcome.out.contains("databasecluster-operator-1\t"),
        "{outcome:?}"
    );
    let outcome = user.kubectl(&["__complete", "dbc", "status", "-n", "sh"]);
    assert!(outcome.out.starts_with("shop\n"), "{outcome:?}");
    let out = user.dbc(&["version"]).ok();
    assert!(out.starts_with("plugin:     0."), "{out}");
    assert!(out.contains("API server: v1."), "{out}");
    assert!(
        out.contains("not available: the operator's version"),
        "there is no Deployment here: {out}"
    );
    let out = user.dbc(&["version", "--client", "-o", "json"]).ok();
    assert!(json_of(&out)["client"].is_string());
}

async fn watch_prints_again_after_a_change(control_plane: &testbed::ControlPlane, user: &User<'_>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-dbc"));
    command.args(["status", "-n", "shop", "-o", "json", "--watch"]);
    let mut command = user.command(command);
    let mut watching = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let (sender, mut lines_seen) = tokio::sync::mpsc::unbounded_channel();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let keys = vec![("shop".to_owned(), "carts".to_owned())];
    let until = async |receiver: &mut tokio::sync::mpsc::UnboundedReceiver<String>, part: &str| {
        let seen = async {
            while let Some(line) = receiver.recv().await {
                if line.contains(part) {
                    return;
                }
            }
            panic!("the watch ended before {part}");
        };
        tokio::time::timeout(PATIENCE, seen).await.unwrap();
    };
    until(&mut lines_seen, "\"name\": \"carts\"").await;
    load::patch(
        &control_plane.client(),
        keys,
        json!({"spec": {"replicas": 2}}),
    )
    .await
    .unwrap();
    until(&mut lines_seen, "\"generation\": 4").await;
    watching.kill().unwrap();
    watching.wait().unwrap();
    reader.join().unwrap();
}
