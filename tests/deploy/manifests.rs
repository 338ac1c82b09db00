//! install.yaml and the kustomize overlays, rendered by kubectl.

use serde_json::{Value, json};

use crate::support::*;

fn seconds(value: &Value) -> i64 {
    value
        .as_i64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn install_yaml_matches_the_kustomize_base() {
    let made = kustomize(&root().join("deploy/base"));
    let installed = installed();
    let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&made), names(&installed), "run `make manifests`");
    for (key, object) in &made {
        let differs = "deploy/install.yaml differs: run `make manifests`";
        assert_eq!(object, &installed[key], "{key:?}: {differs}");
    }
    assert!(made.len() > 20, "{}", made.len());
}

/// `kubectl delete -f` deletes in the order of the file, and does not stop when something is refused.
#[test]
fn guard_is_deleted_after_the_kinds_that_it_protects() {
    let text = std::fs::read_to_string(deploy("install.yaml")).unwrap();
    let guard = text.find("  name: databasecluster-guard\n").unwrap();
    let kinds = text.rfind("kind: CustomResourceDefinition\n").unwrap();
    assert!(kinds < guard);
}

#[test]
fn grace_period_and_min_ready_seconds_cover_a_drain() {
    let objects = installed();
    let deployment = &deployment(&objects)["spec"];
    let grace = seconds(&pod_spec(&objects)["terminationGracePeriodSeconds"]);
    let drain = default_seconds("drain-timeout");
    let hook = &pod_spec(&objects)["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
    let hook = seconds(hook);
    assert!(
        hook >= 3,
        "a replacement takes this long to start: {hook} s"
    );
    // sharded-controller/src/shutdown.rs waits for the drain and 4 s more.
    let ends = hook + drain + 4 + 2;
    assert!(grace >= ends, "grace {grace} s, needs {ends} s");
    assert!(seconds(&deployment["minReadySeconds"]) >= grace);
    let update = &deployment["strategy"]["rollingUpdate"];
    assert_eq!(update, &json!({"maxSurge": 1, "maxUnavailable": 0}));
    let budget = object(&objects, "PodDisruptionBudget", NAME);
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    assert_eq!(budget["spec"]["selector"], deployment["selector"]);
}

/// The default of a flag of `run`, in seconds, from `--help`.
fn default_seconds(flag: &str) -> i64 {
    let program = testbed::fleet::operator_binary().unwrap();
    let help = run(std::process::Command::new(program).args(["run", "--help"]));
    let (_, after) = help.split_once(&format!("--{flag} ")).unwrap();
    let (_, after) = after.split_once("[default: ").unwrap();
    let (value, _) = after.split_once("s]").unwrap();
    value.parse().unwrap()
}

#[test]
fn namespaced_install_grants_no_rights_elsewhere() {
    let base = installed();
    let made = kustomize(&root().join("deploy/overlays/single-namespace"));
    assert_eq!(of_kind(&made, "ClusterRoleBinding"), Vec::<&Value>::new());
    let bindings = of_kind(&made, "RoleBinding");
    let mut of: Vec<&str> = bindings
        .iter()
        .map(|b| b["metadata"]["namespace"].as_str().unwrap())
        .collect();
    of.sort_unstable();
    assert_eq!(of, [NAMESPACE, "databases"]);
    let added: Vec<String> = arguments(&made)
        .into_iter()
        .filter(|a| !arguments(&base).contains(a))
        .collect();
    assert_eq!(added, ["--watch-namespaces=databases"]);
}

#[test]
fn zone_overlay_keeps_pods_pending_rather_than_share_a_zone() {
    let made = kustomize(&root().join("deploy/overlays/zones"));
    let spread = pod_spec(&made)["topologySpreadConstraints"]
        .as_array()
        .unwrap()
        .clone();
    let keys: Vec<&Value> = spread
        .iter()
        .map(|constraint| &constraint["topologyKey"])
        .collect();
    assert_eq!(
        keys,
        ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    );
    assert!(
        spread
            .iter()
            .all(|constraint| constraint["whenUnsatisfiable"] == "DoNotSchedule")
    );
    assert!(
        spread
            .iter()
            .all(|constraint| constraint["matchLabelKeys"][0] == "pod-template-hash")
    );
}

#[test]
fn components_apply_to_every_base() {
    for base in ["base", "overlays/single-namespace", "overlays/zones"] {
        let folder = tempfile::tempdir_in(root().join("deploy")).unwrap();
        let text = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [format!("../{base}")],
            "components": ["../components/autoscaling", "../components/podmonitor", "../components/alerts",
                "../components/database-podmonitor", "../components/kube-state-metrics"],
        });
        std::fs::write(folder.path().join("kustomization.yaml"), text.to_string()).unwrap();
        let made = kustomize(folder.path());
        let scaler = object(&made, "HorizontalPodAutoscaler", NAME);
        assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], NAME);
        assert_eq!(
            deployment(&made)["spec"]["replicas"],
            Value::Null,
            "the autoscaler owns it"
        );
        let monitor = object(&made, "PodMonitor", NAME);
        let ports = &pod_spec(&made)["containers"][0]["ports"];
        assert_eq!(
            monitor["spec"]["podMetricsEndpoints"][0]["port"],
            ports[0]["name"]
        );
        object(&made, "PrometheusRule", NAME);
        the_exporters_are_scraped(object(&made, "PodMonitor", "databasecluster-databases"));
        let state = object(&made, "ConfigMap", "databasecluster-custom-resource-state");
        assert!(state["data"]["custom-resource-state.yaml"].is_string());
    }
}

/// By labels and a port that the Pods of DatabaseClusters have.
fn the_exporters_are_scraped(monitor: &Value) {
    let golden = std::fs::read_to_string(root().join("tests/golden/statefulset.yaml")).unwrap();
    let set: Value = serde_saphyr::from_str(&golden).unwrap();
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let selector = monitor["spec"]["selector"]["matchLabels"].as_object();
    for (name, value) in selector.unwrap() {
        assert_eq!(labels[name], *value, "{name}");
    }
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(endpoint["port"], "metrics");
    // The label of the Pods by which dashboard and alerts know the DatabaseCluster.
    let source = &endpoint["relabelings"][0]["sourceLabels"][0];
    assert_eq!(
        source,
        "__meta_kubernetes_pod_label_app_kubernetes_io_instance"
    );
    assert_eq!(labels["app.kubernetes.io/instance"], "orders");
}

#[test]
fn every_manifest_uses_the_image_of_make_image() {
    let version = env!("CARGO_PKG_VERSION");
    let objects = installed();
    let image = &pod_spec(&objects)["containers"][0]["image"];
    assert_eq!(image, &json!(format!("{NAME}:{version}")));
}
