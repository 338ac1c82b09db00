//! Two installations in one cluster: each serves its own namespaces, under policies of its own.

use std::collections::BTreeSet;

use kube::api::ListParams;
use serde_json::json;
use testbed::audit::AuditEvent;
use testbed::{
    AuditLevel, ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, OperatorNames, Progress,
    load, table, wait_for,
};

use crate::support::*;

const FIRST: OperatorNames = OperatorNames::DATABASE_CLUSTERS;
const SECOND: OperatorNames = OperatorNames {
    namespace: "team-b",
    ..FIRST
};
const OF_FIRST: &str = "shop";
const OF_SECOND: &str = "billing";

/// helm against the control plane, in the namespace of an installation.
fn helm_in(
    control_plane: &ControlPlane,
    of: &OperatorNames,
    arguments: &[&str],
) -> std::process::Command {
    let mut command = helm();
    command.arg("--kubeconfig").arg(control_plane.kubeconfig());
    command.args(["--namespace", of.namespace]).args(arguments);
    command
}

fn install(
    control_plane: &ControlPlane,
    of: &OperatorNames,
    values: &str,
) -> std::process::Command {
    let chart = deploy("chart");
    let install = [
        "install",
        "operator",
        &chart,
        "--create-namespace",
        "--set",
        values,
    ];
    helm_in(control_plane, of, &install)
}

#[tokio::test]
async fn two_installations_serve_their_own_namespaces_side_by_side() {
    let control_plane = control_plane(ControlPlaneOptions {
        audit: AuditLevel::RequestResponse,
        operator: SECOND,
        ..ControlPlaneOptions::default()
    })
    .await;
    for namespace in [OF_FIRST, OF_SECOND] {
        run(kubectl_of(&control_plane).args(["create", "namespace", namespace]));
    }
    upgrade_of_the_release_upgrades_the_kinds(&control_plane);
    overlapping_installations_are_refused(&control_plane);
    let values = "watchNamespaces={billing},crds.create=false";
    run(&mut install(&control_plane, &SECOND, values));
    for (of, namespace, suffix) in [(&FIRST, OF_FIRST, ""), (&SECOND, OF_SECOND, ".team-b")] {
        wait_policies(&control_plane, of, namespace, suffix).await;
    }
    control_plane
        .wait_until_policies_are_usable()
        .await
        .unwrap();

    let first = fleet(&control_plane, FIRST, OF_FIRST).await;
    let second = fleet(&control_plane, SECOND, OF_SECOND).await;
    create(&control_plane, OF_FIRST, "orders").await;
    create(&control_plane, OF_SECOND, "invoices").await;
    let client = control_plane.client();
    load::wait_all_ready(&client, 2, PATIENCE).await.unwrap();

    // Each wrote its own, with tokens of its own table.
    for (of, namespace, name) in [
        (&FIRST, OF_FIRST, "orders"),
        (&SECOND, OF_SECOND, "invoices"),
    ] {
        let table = table::get_of(&client, of).await.unwrap().unwrap();
        let cluster = load::clusters_in(client.clone(), namespace);
        let cluster = cluster.get(name).await.unwrap();
        assert_eq!(cluster.data["status"]["shard"]["table"], json!(table.uid));
    }
    let seen = control_plane.audit().unwrap();
    writes_stay_in(&seen, &FIRST, OF_FIRST);
    writes_stay_in(&seen, &SECOND, OF_SECOND);
    no_refusal_by_policies_of_the_other(&seen);

    // Removing one leaves the other, its policies and both databases.
    drop(second);
    run(&mut helm_in(
        &control_plane,
        &SECOND,
        &["uninstall", "operator"],
    ));
    let kind = "validatingadmissionpolicies";
    let left = run(kubectl_of(&control_plane).args(["get", kind, "-o", "name"]));
    assert!(left.contains("/databasecluster-fence-order\n"), "{left}");
    assert!(
        !left.contains("databasecluster-fence-order.team-b"),
        "{left}"
    );
    create(&control_plane, OF_FIRST, "later").await;
    load::wait_all_ready(&client, 3, PATIENCE).await.unwrap();
    let all = load::all_clusters(client)
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(all.items.len(), 3);
    drop(first);
}

/// Installs the first one by a chart whose CustomResourceDefinition has another description, as an earlier version's,
/// then upgrades it.
fn upgrade_of_the_release_upgrades_the_kinds(control_plane: &ControlPlane) {
    let earlier = control_plane.folder().join("earlier-chart");
    run(std::process::Command::new("cp")
        .arg("-r")
        .arg(deploy("chart"))
        .arg(&earlier));
    let file = earlier.join("templates/generated-crd.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let current = "Replicas that accept connections";
    assert!(text.contains(current), "{}", file.display());
    std::fs::write(&file, text.replace(current, "An earlier text")).unwrap();
    let path = "jsonpath={.spec.versions[0].additionalPrinterColumns[*].description}";
    let described = || {
        let get = ["get", "crd", "databaseclusters.database.io", "-o", path];
        run(kubectl_of(control_plane).args(get))
    };
    let chart = earlier.display().to_string();
    let values = ["--set", "watchNamespaces={shop}"];
    let install = ["install", "operator", &chart, "--create-namespace"];
    run(&mut helm_in(
        control_plane,
        &FIRST,
        &[&install[..], &values].concat(),
    ));
    assert!(described().contains("An earlier text"), "{}", described());
    let chart = deploy("chart");
    let upgrade = ["upgrade", "operator", &chart];
    run(&mut helm_in(
        control_plane,
        &FIRST,
        &[&upgrade[..], &values].concat(),
    ));
    assert!(described().contains(current), "{}", described());
}

fn overlapping_installations_are_refused(control_plane: &ControlPlane) {
    for (values, expected) in [
        (
            "crds.create=false",
            "and this one would serve all namespaces",
        ),
        (
            "crds.create=false,watchNamespaces={billing,shop}",
            "namespace shop is served by",
        ),
        ("watchNamespaces={billing}", "set crds.create=false"),
    ] {
        let said = refused(&mut install(control_plane, &SECOND, values));
        assert!(said.contains(expected), "{values}: {said}");
    }
}

/// Waits until the policies of an installation, and no others, refuse a child without a token.
async fn wait_policies(
    control_plane: &ControlPlane,
    of: &OperatorNames,
    namespace: &str,
    suffix: &str,
) {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "without-a-token"},
        "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
    });
    let path = format!("api/v1/namespaces/{namespace}/services");
    let refusal = format!("'databasecluster-fence-order{suffix}' denied request");
    let user = of.user();
    let answer = wait_for(format!("{refusal} for {user}"), PATIENCE, || async {
        let answer = control_plane
            .create_in_dry_run(&path, &service, Some(&user))
            .await?;
        Ok(match answer.contains(&refusal) {
            true => Progress::Done(answer),
            false => Progress::pending(answer),
        })
    })
    .await
    .unwrap();
    let policies = policies_in(&answer);
    assert_eq!(policies.len(), 1, "{policies:?}: {answer}");
}

async fn fleet<'a>(control_plane: &'a ControlPlane, of: OperatorNames, served: &str) -> Fleet<'a> {
    let options = FleetOptions {
        extra_args: vec![
            format!("--watch-namespaces={served}"),
            "--require-fence".to_owned(),
        ],
        operator: of,
        name_prefix: Some(format!("process-of-{served}")),
        ..FleetOptions::default()
    };
    let mut fleet = Fleet::installed(control_plane, options).unwrap();
    for _ in 0..2 {
        fleet.start_replica(&[]).await.unwrap();
    }
    fleet.wait_ready(PATIENCE).await.unwrap();
    fleet
}

async fn create(control_plane: &ControlPlane, namespace: &str, name: &str) {
    let cluster = load::NewCluster {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        spec: load::spec(1),
    };
    load::create(control_plane, vec![cluster]).await.unwrap();
}

fn writes_stay_in(seen: &[AuditEvent], of: &OperatorNames, served: &str) {
    let user = of.user();
    let writes = seen
        .iter()
        .filter(|event| event.user == user && event.is_accepted_write());
    let namespaces: BTreeSet<&str> = writes.map(|event| event.namespace.as_str()).collect();
    let expected = [of.namespace, served].into();
    assert_eq!(namespaces, expected, "written by {user}");
}

/// The audit log has the answers to the second one's requests.
fn no_refusal_by_policies_of_the_other(seen: &[AuditEvent]) {
    let user = SECOND.user();
    let mut refused = 0;
    for event in seen.iter().filter(|event| event.user == user) {
        let answer = event.response.as_ref().map(ToString::to_string);
        let answer = answer.unwrap_or_default();
        for policy in policies_in(&answer) {
            assert!(policy.ends_with(".team-b"), "{policy}: {answer}");
            refused += 1;
        }
    }
    // The probes of the fence, at least.
    assert!(refused >= 3, "only {refused} refusals in the audit log");
}

/// The policies that an answer of the API server names, which repeats its message.
fn policies_in(answer: &str) -> BTreeSet<&str> {
    let named = answer.split("ValidatingAdmissionPolicy '").skip(1);
    named.filter_map(|rest| rest.split('\'').next()).collect()
}
