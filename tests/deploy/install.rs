//! install.yaml on a real API server: installed once, twice, and over a partial installation; removed, twice, with the
//! databases left in place; and the rights of users.

use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use testbed::fleet::wait_in_force;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, wait_for};

use crate::support::*;

const INSTALL: &str = "deploy/install.yaml";
/// The commands in the head of install.yaml.
const UNINSTALL: [&str; 6] = [
    "delete",
    "-f",
    INSTALL,
    "-l",
    "database.io/keep!=true",
    "--ignore-not-found",
];

fn apply(control_plane: &ControlPlane) -> String {
    run(kubectl_of(control_plane).args(["apply", "-f", INSTALL]))
}

fn uninstall(control_plane: &ControlPlane) -> String {
    run(kubectl_of(control_plane).args(UNINSTALL))
}

/// Waits until the Deployment's Pods run (on fake nodes: nothing really does).
async fn wait_pods(control_plane: &ControlPlane) {
    let deployments: Api<Deployment> = Api::namespaced(control_plane.client(), NAMESPACE);
    wait_for("three Pods of the Deployment", PATIENCE, || async {
        let found = deployments
            .get(NAME)
            .await
            .unwrap()
            .status
            .unwrap_or_default();
        let ready = found.ready_replicas.unwrap_or(0);
        Ok(Progress::when(ready == 3, (), || format!("{found:?}")))
    })
    .await
    .unwrap();
}

async fn wait_gone(control_plane: &ControlPlane) {
    let namespaces: Api<Namespace> = Api::all(control_plane.client());
    wait_for("the namespace to go", PATIENCE, || async {
        let found = namespaces.get_opt(NAMESPACE).await.unwrap();
        Ok(Progress::when(found.is_none(), (), || {
            format!("{:?}", found.unwrap().status)
        }))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn install_succeeds_over_a_partial_install_and_over_itself() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    // The namespace without its labels, an older kind, half of the rights.
    run(kubectl_of(&control_plane).args(["create", "namespace", NAMESPACE]));
    for file in ["crd.yaml", "rbac.yaml"] {
        run(kubectl_of(&control_plane).args(["create", "-f", &deploy(&format!("base/{file}"))]));
    }
    apply(&control_plane);
    wait_pods(&control_plane).await;

    let generations = || {
        let path = "{range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.metadata.generation}{'\\n'}{end}";
        let path = format!("jsonpath={path}");
        run(kubectl_of(&control_plane).args(["get", "-f", INSTALL, "-o", &path]))
    };
    let before = generations();
    apply(&control_plane);
    assert_eq!(generations(), before, "the second time changed something");

    // The objects of the other ways to install are accepted too, with strict validation of fields.
    for folder in ["base", "overlays/single-namespace", "overlays/zones"] {
        run(kubectl_of(&control_plane).args([
            "create",
            "namespace",
            "databases",
            "--dry-run=client",
        ]));
        let client = control_plane.client();
        testbed_namespace(&client, "databases").await;
        run(kubectl_of(&control_plane).args([
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-k",
            &deploy(folder),
        ]));
    }
}

async fn testbed_namespace(client: &kube::Client, name: &str) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    if namespaces.get_opt(name).await.unwrap().is_none() {
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn pods_meet_the_enforced_restricted_pod_security_standard() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    apply(&control_plane);
    // Pods that violate it are not created, so the existence of these proves it.
    wait_pods(&control_plane).await;
    let pods: Api<Pod> = Api::namespaced(control_plane.client(), NAMESPACE);
    let all = pods.list(&ListParams::default()).await.unwrap();
    let operator = &all.items[0].spec.as_ref().unwrap().containers[0];
    assert_eq!(
        operator.image.as_deref(),
        Some("databasecluster-operator:0.1.0")
    );
    let mounts = operator.volume_mounts.clone().unwrap_or_default();
    assert!(
        mounts
            .iter()
            .any(|mount| mount.name.starts_with("kube-api-access")),
        "no token"
    );

    for change in [
        json!({"hostNetwork": true}),
        json!({"containers": [{"name": "operator", "image": "x", "securityContext": {"privileged": true}}]}),
        json!({"securityContext": {"runAsUser": 0}}),
    ] {
        let mut spec = pod_spec(&installed()).clone();
        for (key, value) in change.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let pod = json!({"metadata": {"name": "weaker"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let error = pods
            .create(&PostParams::default(), &pod)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("violates PodSecurity \"restricted"),
            "{change}: {error}"
        );
    }
}

#[tokio::test]
async fn repeated_removal_and_reinstall_never_touch_a_database() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    apply(&control_plane);
    let client = control_plane.client();
    {
        let fleet = fleet_on(&control_plane).await;
        let cluster = load::NewCluster {
            namespace: "shop".to_owned(),
            name: "orders".to_owned(),
            spec: load::spec(1),
        };
        load::create(&control_plane, vec![cluster]).await.unwrap();
        load::wait_all_ready(&client, 1, PATIENCE).await.unwrap();
        drop(fleet);
    }
    let sets: Api<k8s_openapi::api::apps::v1::StatefulSet> =
        Api::namespaced(client.clone(), "shop");
    let before = sets.get("orders-db").await.unwrap();

    uninstall(&control_plane);
    wait_gone(&control_plane).await;
    uninstall(&control_plane);
    let said =
        refused(kubectl_of(&control_plane).args(["delete", "crd", "databaseclusters.database.io"]));
    assert!(
        said.contains("would delete every DatabaseCluster"),
        "{said}"
    );
    assert!(said.contains("database.io/deletion=allowed"), "{said}");
    let table = ["delete", "crd", "shardtables.database.io"];
    let said = refused(kubectl_of(&control_plane).args(table));
    assert!(said.contains("with all replicas stopped"), "{said}");
    // Without the selector: the kind is refused, and nothing else matters to the databases.
    apply(&control_plane);
    let said = refused(kubectl_of(&control_plane).args(["delete", "-f", INSTALL, "--timeout=2m"]));
    assert!(
        said.contains("would delete every DatabaseCluster"),
        "{said}"
    );
    wait_gone(&control_plane).await;

    apply(&control_plane);
    wait_in_force(&control_plane).await.unwrap();
    let fleet = fleet_on(&control_plane).await;
    load::patch(
        &client,
        vec![("shop".into(), "orders".into())],
        json!({"spec": {"replicas": 2}}),
    )
    .await
    .unwrap();
    load::wait_all_ready(&client, 1, PATIENCE).await.unwrap();
    let after = sets.get("orders-db").await.unwrap();
    assert_eq!(before.uid(), after.uid(), "the database was re-created");
    assert_eq!(
        before.spec.unwrap().template,
        after.spec.unwrap().template,
        "the database was restarted"
    );

    // And all of it, with the explicit confirmation.
    let kind = "databaseclusters.database.io";
    run(kubectl_of(&control_plane).args(["delete", "dbc", "--all", "--all-namespaces"]));
    drop(fleet);
    let kinds = [kind, "shardtables.database.io"];
    for kind in kinds {
        let allow = ["annotate", "crd", kind, "database.io/deletion=allowed"];
        run(kubectl_of(&control_plane).args(allow));
    }
    run(kubectl_of(&control_plane).args(["delete", "-f", INSTALL, "--ignore-not-found"]));
    for kind in kinds {
        let left = run(kubectl_of(&control_plane).args(["get", "crd", kind, "--ignore-not-found"]));
        assert_eq!(left, "");
    }
}

/// Two replicas that require the fence, as the Deployment's do.
async fn fleet_on(control_plane: &ControlPlane) -> Fleet<'_> {
    let options = FleetOptions {
        extra_args: vec!["--require-fence".to_owned()],
        name_prefix: Some(format!("process-{}", std::process::id())),
        ..FleetOptions::default()
    };
    Fleet::start(control_plane, 2, options).await.unwrap()
}

const KIND: &str = "databaseclusters.database.io";
/// Who, verb, resource with subresource, and whether it is allowed.
const RIGHTS: [(&str, &str, &str, bool); 13] = [
    ("view", "watch", KIND, true),
    ("view", "get", "databaseclusters.database.io/scale", true),
    ("view", "create", KIND, false),
    ("view", "patch", "databaseclusters.database.io/scale", false),
    ("view", "list", "shardtables.database.io", true),
    ("admin", "patch", "shardtables.database.io", false),
    ("edit", "list", KIND, true),
    ("edit", "delete", KIND, true),
    ("edit", "patch", "databaseclusters.database.io/scale", true),
    ("edit", "deletecollection", KIND, false),
    (
        "edit",
        "patch",
        "databaseclusters.database.io/status",
        false,
    ),
    (
        "admin",
        "patch",
        "databaseclusters.database.io/status",
        false,
    ),
    ("nobody", "list", KIND, false),
];

#[tokio::test]
async fn view_edit_and_admin_roles_include_databaseclusters() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    apply(&control_plane);
    testbed_namespace(&control_plane.client(), "shop").await;
    for role in ["view", "edit", "admin"] {
        run(kubectl_of(&control_plane).args([
            "-n",
            "shop",
            "create",
            "rolebinding",
            role,
            "--clusterrole",
            role,
            "--user",
            role,
        ]));
    }
    let may = |who: &str, verb: &str, what: &str, namespace: &str| {
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        let mut command: Command = kubectl_of(&control_plane);
        command.args([
            "auth",
            "can-i",
            verb,
            resource,
            "--subresource",
            subresource,
        ]);
        command.args(["-n", namespace, "--as", who]);
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        said.trim() == "yes"
    };
    // The API server adds the rules to the roles by itself, a moment later.
    wait_for(
        "the rules to be in the cluster's roles",
        PATIENCE,
        || async {
            let there = may(
                "admin",
                "deletecollection",
                "databaseclusters.database.io",
                "shop",
            );
            Ok(Progress::when(there, (), || "not yet".to_owned()))
        },
    )
    .await
    .unwrap();
    for (who, verb, what, expected) in RIGHTS {
        assert_eq!(
            may(who, verb, what, "shop"),
            expected,
            "{who} {verb} {what}"
        );
        assert!(
            !may(who, verb, what, "default"),
            "{who} {verb} {what} in another namespace"
        );
    }
}

#[tokio::test]
async fn helm_installs_twice_upgrades_and_leaves_the_databases() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    let helm = |arguments: &[&str]| {
        let mut command = helm();
        command.arg("--kubeconfig").arg(control_plane.kubeconfig());
        command.args(["--namespace", NAMESPACE]).args(arguments);
        command
    };
    let chart = deploy("chart");
    let install = ["install", "operator", &chart, "--create-namespace"];
    // A partial installation: objects of an installation by kubectl are adopted on request.
    for file in ["crd.yaml", "guard.yaml"] {
        run(kubectl_of(&control_plane).args(["apply", "-f", &deploy(&format!("base/{file}"))]));
    }
    let said = refused(&mut helm(&install));
    assert!(said.contains("invalid ownership metadata"), "{said}");
    run(helm(&install).args(["--take-ownership", "--force-conflicts"]));
    let said = refused(&mut helm(&install));
    assert!(
        said.contains("cannot reuse a name that is still in use"),
        "{said}"
    );
    run(&mut helm(&[
        "upgrade",
        "--install",
        "operator",
        &chart,
        "--set",
        "flags.concurrency=20",
    ]));
    let deployments: Api<Deployment> = Api::namespaced(control_plane.client(), NAMESPACE);
    let found = deployments.get(NAME).await.unwrap();
    let spec = found.spec.unwrap().template.spec.unwrap();
    let arguments = spec.containers[0].args.clone().unwrap();
    assert!(
        arguments.contains(&"--concurrency=20".to_owned()),
        "{arguments:?}"
    );

    run(&mut helm(&["uninstall", "operator"]));
    let said = refused(&mut helm(&["uninstall", "operator"]));
    assert!(said.contains("not found"), "{said}");
    run(&mut helm(&["uninstall", "operator", "--ignore-not-found"]));
    for (kind, name) in [
        ("crd", "databaseclusters.database.io"),
        ("crd", "shardtables.database.io"),
        ("validatingadmissionpolicy", "databasecluster-guard"),
        ("validatingadmissionpolicybinding", "databasecluster-guard"),
    ] {
        run(kubectl_of(&control_plane).args(["get", kind, name]));
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(control_plane.client(), NAMESPACE);
    assert!(accounts.get_opt(NAME).await.unwrap().is_none());
    run(&mut helm(&install));
}

#[tokio::test]
async fn podmonitor_and_alerts_match_the_prometheus_operator_crds() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    for kind in ["podmonitors", "prometheusrules"] {
        let file = prometheus_crds().join(format!("monitoring.coreos.com_{kind}.yaml"));
        run(kubectl_of(&control_plane).args(["create", "-f"]).arg(file));
        run(kubectl_of(&control_plane).args([
            "wait",
            "--for=condition=Established",
            &format!("crd/{kind}.monitoring.coreos.com"),
            "--timeout=60s",
        ]));
    }
    testbed_namespace(&control_plane.client(), NAMESPACE).await;
    snapshots_of_the_recipe_are_valid(&control_plane).await;
    // An unknown field would be rejected.
    for (file, field) in [
        ("components/podmonitor/podmonitor.yaml", "interval:"),
        (
            "components/database-podmonitor/podmonitor.yaml",
            "interval:",
        ),
        ("components/alerts/prometheusrule.yaml", "expr:"),
    ] {
        accepted(&control_plane, &deploy(file)).await;
        let wrong = control_plane.folder().join("wrong.yaml");
        let text = std::fs::read_to_string(deploy(file)).unwrap();
        std::fs::write(&wrong, text.replace(field, "intervall:")).unwrap();
        let said = refused(kubectl_of(&control_plane).args(STRICT).arg(&wrong));
        assert!(said.contains("intervall"), "{said}");
    }
}

/// The manifests of docs/how-to/backup.md, with the real kinds. No driver takes a snapshot here.
async fn snapshots_of_the_recipe_are_valid(control_plane: &ControlPlane) {
    let file = snapshot_crds().join("snapshot.storage.k8s.io_volumesnapshots.yaml");
    run(kubectl_of(control_plane).args(["create", "-f"]).arg(file));
    testbed_namespace(&control_plane.client(), "shop").await;
    let page = std::fs::read_to_string(deploy("../docs/how-to/backup.md")).unwrap();
    let (_, snapshots) = page.split_once("## Snapshots of volumes").unwrap();
    let blocks = snapshots.split("```yaml\n").skip(1);
    let blocks: Vec<&str> = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert_eq!(blocks.len(), 2);
    for (block, field) in blocks.iter().zip(["source:", "dataSource:"]) {
        let file = control_plane.folder().join("snapshot.yaml");
        std::fs::write(&file, block).unwrap();
        accepted(control_plane, &file.display().to_string()).await;
        std::fs::write(&file, block.replace(field, "sauce:")).unwrap();
        let said = refused(kubectl_of(control_plane).args(STRICT).arg(&file));
        assert!(said.contains("sauce"), "{said}");
    }
}

const STRICT: [&str; 4] = ["apply", "--dry-run=server", "--validate=strict", "-f"];

async fn accepted(control_plane: &ControlPlane, file: &str) {
    let applied = wait_for(
        "the API server to serve the kind",
        Duration::from_secs(30),
        || async {
            let output = kubectl_of(control_plane)
                .args(STRICT)
                .arg(file)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match said.contains("no matches for kind") {
                true => Ok(Progress::pending(said)),
                false => Ok(Progress::Done(output)),
            }
        },
    )
    .await
    .unwrap();
    assert!(
        applied.status.success(),
        "{file}: {}",
        String::from_utf8_lossy(&applied.stderr)
    );
}
