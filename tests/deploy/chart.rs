//! The Helm chart: the same as install.yaml, correct for other values, and strict about invalid ones.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::*;

const ANOTHER: &str = "elsewhere";

fn template(namespace: &str, more: &[&str]) -> Command {
    let mut command = helm();
    command
        .args([
            "template",
            "release",
            &deploy("chart"),
            "--namespace",
            namespace,
        ])
        .args(more);
    command
}

fn rendered(namespace: &str, more: &[&str]) -> Objects {
    objects(&run(&mut template(namespace, more)))
}

/// Labels that only the chart sets, on every object.
const LABELS_OF_HELM: [&str; 4] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
];

/// An object without what only the chart sets.
fn without_helm(object: &Value) -> Value {
    let mut object = object.clone();
    for path in ["/metadata/labels", "/spec/template/metadata/labels"] {
        if let Some(labels) = object.pointer_mut(path).and_then(Value::as_object_mut) {
            labels.retain(|name, _| !LABELS_OF_HELM.contains(&name.as_str()));
        }
    }
    if object["kind"] == "CustomResourceDefinition" {
        let metadata = object["metadata"].as_object_mut().unwrap();
        let annotations = metadata.remove("annotations").unwrap();
        assert_eq!(annotations, json!({"helm.sh/resource-policy": "keep"}));
    }
    object
}

#[test]
fn chart_defaults_render_install_yaml() {
    let made = rendered(NAMESPACE, &[]);
    let mut wanted = installed();
    // Users of Helm create the namespace, as helm install requires.
    wanted.retain(|(kind, ..), _| kind != "Namespace");
    assert_eq!(
        made.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>()
    );
    for (key, object) in &wanted {
        assert_eq!(
            &without_helm(&made[key]),
            object,
            "{key:?} differs between chart and install.yaml"
        );
    }
}

#[test]
fn chart_passes_helm_lint() {
    run(helm().args(["lint", "--strict", &deploy("chart")]));
    for value in [
        "watchNamespaces={a,b}",
        "podMonitor.enabled=true",
        "alerts.enabled=true",
        "dashboards.enabled=true",
        "autoscaling.enabled=true",
    ] {
        run(helm().args(["lint", "--strict", "--set", value, &deploy("chart")]));
    }
}

#[test]
fn every_object_has_the_recommended_labels() {
    let version = env!("CARGO_PKG_VERSION");
    let more = ["podMonitor", "alerts", "dashboards", "autoscaling"];
    let more = more.map(|name| format!("{name}.enabled=true")).join(",");
    for (key, object) in &rendered(NAMESPACE, &["--set", &more]) {
        let labels = &object["metadata"]["labels"];
        let expected = [
            NAME,
            "release",
            "Helm",
            version,
            &format!("{NAME}-{version}"),
        ];
        let names = [&["app.kubernetes.io/name"][..], &LABELS_OF_HELM].concat();
        for (name, expected) in names.into_iter().zip(expected) {
            assert_eq!(labels[name], expected, "{name} of {key:?}");
        }
    }
}

#[test]
fn another_namespace_gets_cluster_scoped_objects_of_its_own() {
    let (own, other) = (rendered(NAMESPACE, &[]), rendered(ANOTHER, &[]));
    let cluster_scoped = |objects: &Objects| -> Vec<(String, String)> {
        let shared = |kind: &str| kind == "CustomResourceDefinition";
        let keys = objects
            .keys()
            .filter(|(kind, namespace, _)| namespace.is_empty() && !shared(kind));
        keys.map(|(kind, _, name)| (kind.clone(), name.clone()))
            .collect()
    };
    let expected: Vec<_> = cluster_scoped(&own)
        .into_iter()
        .map(|(kind, name)| (kind, format!("{name}.{ANOTHER}")))
        .collect();
    let mut found = cluster_scoped(&other);
    found.sort();
    let mut sorted = expected.clone();
    sorted.sort();
    assert!(sorted.len() > 30, "{sorted:?}");
    assert_eq!(found, sorted);
    // References follow the names.
    for binding in of_kind(&other, "ValidatingAdmissionPolicyBinding") {
        assert_eq!(binding["spec"]["policyName"], binding["metadata"]["name"]);
    }
    for schema in of_kind(&other, "FlowSchema") {
        let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
        assert_eq!(level, &schema["metadata"]["name"]);
    }
    let role = format!("{NAME}.{ANOTHER}");
    assert_eq!(
        object(&other, "ClusterRoleBinding", &role)["roleRef"]["name"],
        json!(role)
    );
    assert_eq!(pod_spec(&other)["priorityClassName"], json!(role));
}

#[test]
fn policies_of_the_chart_are_those_of_the_command_fence() {
    let program = testbed::fleet::operator_binary().unwrap();
    for namespace in [NAMESPACE, ANOTHER] {
        let printed = run(Command::new(&program).args(["fence", "--namespace", namespace]));
        let made = rendered(namespace, &[]);
        for (key, object) in objects(&printed) {
            assert_eq!(without_helm(&made[&key]), object, "{key:?}");
        }
    }
}

#[test]
fn conventional_values_reach_the_pods() {
    let values = json!({
        "replicaCount": 5, "nameOverride": "dbc", "imagePullSecrets": [{"name": "registry.example"}],
        "podAnnotations": {"example.com/a": "1"}, "podLabels": {"team": "data"},
        "affinity": {"nodeAffinity": {}}, "extraArgs": ["--concurrency=20"],
        "extraEnv": [{"name": "RUST_LOG", "value": "debug"}],
        "serviceAccount": {"annotations": {"example.com/role": "r"}},
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    std::fs::write(&file, values.to_string()).unwrap();
    let made = rendered(NAMESPACE, &["--values", &file.display().to_string()]);
    let deployment = object(&made, "Deployment", "dbc");
    assert_eq!(deployment["spec"]["replicas"], 5);
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["example.com/a"], "1");
    assert_eq!(template["metadata"]["labels"]["team"], "data");
    let spec = &template["spec"];
    assert_eq!(
        spec["imagePullSecrets"],
        json!([{"name": "registry.example"}])
    );
    assert_eq!(spec["affinity"], values["affinity"]);
    assert_eq!(spec["serviceAccountName"], "dbc");
    let container = &spec["containers"][0];
    assert_eq!(
        container["args"].as_array().unwrap().last().unwrap(),
        "--concurrency=20"
    );
    assert_eq!(container["env"][4], values["extraEnv"][0]);
    let account = object(&made, "ServiceAccount", "dbc");
    assert_eq!(account["metadata"]["annotations"]["example.com/role"], "r");
}

#[test]
fn fence_and_rights_follow_the_service_account() {
    let made = rendered(
        NAMESPACE,
        &[
            "--set",
            "serviceAccount.create=false,serviceAccount.name=given",
        ],
    );
    assert_eq!(of_kind(&made, "ServiceAccount"), Vec::<&Value>::new());
    let user = format!("system:serviceaccount:{NAMESPACE}:given");
    for policy in of_kind(&made, "ValidatingAdmissionPolicy") {
        if policy["metadata"]["name"] != "databasecluster-guard" {
            assert!(
                policy.to_string().contains(&format!("'{user}'")),
                "{policy}"
            );
        }
    }
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        for binding in of_kind(&made, kind) {
            assert_eq!(binding["subjects"][0]["name"], "given", "{binding}");
        }
    }
    for schema in of_kind(&made, "FlowSchema") {
        let subject = &schema["spec"]["rules"][0]["subjects"][0]["serviceAccount"];
        assert_eq!(subject["name"], "given", "{schema}");
    }
}

#[test]
fn uninstall_keeps_the_crd_and_its_policies() {
    let made = rendered(NAMESPACE, &[]);
    let kept =
        |object: &&Value| object["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep";
    let mut names: Vec<&str> = made
        .values()
        .filter(kept)
        .map(|o| o["metadata"]["name"].as_str().unwrap())
        .collect();
    names.dedup();
    names.sort_unstable();
    names.dedup();
    let kinds = ["databaseclusters.database.io", "shardtables.database.io"];
    assert_eq!(names, ["databasecluster-guard", kinds[0], kinds[1]]);
    let without = rendered(NAMESPACE, &["--set", "crds.create=false"]);
    assert_eq!(
        of_kind(&without, "CustomResourceDefinition"),
        Vec::<&Value>::new()
    );
}

#[test]
fn release_namespace_replaces_every_default_namespace() {
    let made = rendered(ANOTHER, &[]);
    for ((kind, namespace, name), object) in &made {
        assert!(
            namespace.is_empty() || namespace == ANOTHER,
            "{kind} {name} in {namespace}"
        );
        assert!(
            !object.to_string().contains(NAMESPACE),
            "{kind} {name}: {object}"
        );
    }
    let fence = object(
        &made,
        "ValidatingAdmissionPolicy",
        "databasecluster-fence-leases.elsewhere",
    );
    let who = &fence["spec"]["matchConditions"][0]["expression"];
    let expected = format!("request.userInfo.username == 'system:serviceaccount:{ANOTHER}:{NAME}'");
    assert!(
        who.as_str().is_some_and(|who| who.starts_with(&expected)),
        "{who}"
    );
}

#[test]
fn watched_namespaces_get_rolebindings_and_no_clusterrolebinding() {
    let made = rendered(
        NAMESPACE,
        &["--set", "watchNamespaces={shop,databasecluster-system}"],
    );
    assert_eq!(of_kind(&made, "ClusterRoleBinding"), Vec::<&Value>::new());
    for namespace in ["shop", NAMESPACE] {
        let key = (
            "RoleBinding".to_owned(),
            namespace.to_owned(),
            format!("{NAME}-databases"),
        );
        assert_eq!(made[&key]["roleRef"]["kind"], "ClusterRole");
        assert_eq!(made[&key]["subjects"][0]["namespace"], NAMESPACE);
    }
    let watched = "--watch-namespaces=shop,databasecluster-system".to_owned();
    assert!(
        arguments(&made).contains(&watched),
        "{:?}",
        arguments(&made)
    );
}

#[test]
fn values_set_the_flags_and_grace_period_follows_drain_timeout() {
    let made = rendered(
        NAMESPACE,
        &[
            "--set",
            "flags.drainTimeout=30s,flags.cacheTtl=5m,flags.queueCapacity=1000000,flags.shards=64",
            "--set",
            "requireFence=false,spread=DoNotSchedule,image.digest=sha256:\
             0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ],
    );
    let expected = [
        "run",
        "--cache-ttl=5m",
        "--concurrency=4",
        "--drain-timeout=30s",
        "--log-format=json",
        "--queue-capacity=1000000",
        "--shards=64",
    ];
    assert_eq!(arguments(&made), expected);
    // The program itself must take them.
    let program = testbed::fleet::operator_binary().unwrap();
    let help = run(Command::new(program).args(["run", "--help"]));
    let known = std::fs::read_to_string(deploy("chart/values.schema.json")).unwrap();
    let known: Value = serde_json::from_str(&known).unwrap();
    for flag in known["properties"]["flags"]["properties"]
        .as_object()
        .unwrap()
        .keys()
    {
        let flag: String = flag
            .chars()
            .flat_map(|c| {
                if c.is_uppercase() {
                    vec!['-', c.to_ascii_lowercase()]
                } else {
                    vec![c]
                }
            })
            .collect();
        assert!(
            help.contains(&format!("--{flag} ")),
            "the program has no --{flag}"
        );
    }
    let spec = pod_spec(&made);
    assert_eq!(spec["terminationGracePeriodSeconds"], 50);
    assert_eq!(deployment(&made)["spec"]["minReadySeconds"], 50);
    assert_eq!(
        spec["topologySpreadConstraints"][0]["whenUnsatisfiable"],
        "DoNotSchedule"
    );
    let image = spec["containers"][0]["image"].as_str().unwrap();
    assert!(
        image.starts_with("databasecluster-operator@sha256:0123"),
        "{image}"
    );
}

#[test]
fn optional_objects_render_only_when_enabled() {
    let off = rendered(
        NAMESPACE,
        &[
            "--set",
            "networkPolicy.enabled=false,flowControl.enabled=false,userRoles.create=false",
            "--set",
            "priorityClass.create=false",
        ],
    );
    for kind in [
        "NetworkPolicy",
        "FlowSchema",
        "PriorityLevelConfiguration",
        "PriorityClass",
    ] {
        assert_eq!(of_kind(&off, kind), Vec::<&Value>::new());
    }
    assert_eq!(of_kind(&off, "ClusterRole").len(), 1);
    assert_eq!(pod_spec(&off)["priorityClassName"], Value::Null);
    let on = rendered(
        NAMESPACE,
        &[
            "--set",
            "podMonitor.enabled=true,autoscaling.enabled=true,autoscaling.maxReplicas=9",
        ],
    );
    assert_eq!(
        object(&on, "HorizontalPodAutoscaler", NAME)["spec"]["maxReplicas"],
        9
    );
    assert_eq!(deployment(&on)["spec"]["replicas"], Value::Null);
    object(&on, "PodMonitor", NAME);
}

#[test]
fn chart_dashboards_match_the_kustomize_configmap() {
    let name = "databasecluster-dashboards";
    let wanted = kustomize(&root().join("dashboards"));
    let wanted = object(&wanted, "ConfigMap", name);
    let made = rendered(NAMESPACE, &["--set", "dashboards.enabled=true"]);
    assert_eq!(&without_helm(object(&made, "ConfigMap", name)), wanted);
    assert_eq!(wanted["metadata"]["labels"]["grafana_dashboard"], "1");
    let data = wanted["data"].as_object().unwrap();
    let files = std::fs::read_dir(root().join("dashboards")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        data.len(),
        names.filter(|name| name.ends_with(".json")).count()
    );
    for (file, text) in data {
        let file = file.strip_prefix("databasecluster-").unwrap();
        let own = std::fs::read_to_string(root().join("dashboards").join(file)).unwrap();
        assert_eq!(text, &json!(own), "{file}");
    }
}

#[test]
fn chart_alerts_match_the_component_with_requested_address_and_labels() {
    let read = |file: &str| objects(&std::fs::read_to_string(deploy(file)).unwrap());
    let wanted = read("components/alerts/prometheusrule.yaml");
    let wanted = object(&wanted, "PrometheusRule", NAME);
    let made = rendered(NAMESPACE, &["--set", "alerts.enabled=true"]);
    let made = object(&made, "PrometheusRule", NAME);
    assert_eq!(made["spec"], wanted["spec"]);
    let values =
        "alerts.enabled=true,alerts.runbooks=https://wiki.test/dbc,alerts.labels.release=p";
    let made = rendered(ANOTHER, &["--set", values]);
    let made = object(&made, "PrometheusRule", NAME);
    assert_eq!(made["metadata"]["labels"]["release"], "p");
    let alert = &made["spec"]["groups"][0]["rules"][0];
    let page = format!(
        "https://wiki.test/dbc/{}.md",
        alert["alert"].as_str().unwrap()
    );
    assert_eq!(alert["annotations"]["runbook_url"], page);
}

#[test]
fn invalid_values_are_rejected_by_name() {
    for (value, named) in [
        ("replicaCount=0", "/replicaCount"),
        ("replicaCount=many", "/replicaCount"),
        ("replicas=3", "replicas"),
        ("extraArgs={run}", "/extraArgs/0"),
        ("extraEnv[0].name=POD_NAME", "/extraEnv/0"),
        (
            "podLabels.app\\.kubernetes\\.io/name=x",
            "app.kubernetes.io/name",
        ),
        ("nameOverride=Not_A_Name", "/nameOverride"),
        ("serviceAccount.create=false", "serviceAccount.name"),
        ("flags.shards=33", "/flags/shards"),
        ("flags.shardz=32", "shardz"),
        ("flags.leaseDuration=1500ms", "/flags/leaseDuration"),
        ("flags.leaseDuration=2s", "/flags/leaseDuration"),
        ("flags.drainTimeout=10", "/flags/drainTimeout"),
        ("flags.rateLimit=lots", "/flags/rateLimit"),
        ("flags.shardedWatch=maybe", "/flags/shardedWatch"),
        ("image.tag=a b", "/image/tag"),
        ("image.digest=sha256:123", "/image/digest"),
        ("watchNamespaces={Not_A_Name}", "/watchNamespaces/0"),
        ("watchNamespaces=shop", "/watchNamespaces"),
        ("resources.limits.memory=lots", "/resources/limits/memory"),
        ("spread=Sometimes", "/spread"),
        ("alerts.runbooks=wiki", "/alerts/runbooks"),
        (
            "networkPolicy.apiServer.cidrs={10.0.0.1}",
            "/networkPolicy/apiServer/cidrs/0",
        ),
        (
            "autoscaling.enabled=true,autoscaling.minReplicas=9",
            "autoscaling.minReplicas",
        ),
        ("priorityClass.name=A", "/priorityClass/name"),
    ] {
        let said = refused(&mut template(NAMESPACE, &["--set", value]));
        assert!(said.contains(named), "{value}: {said}");
    }
}

#[test]
fn cluster_too_old_for_the_fence_is_rejected() {
    let said = refused(&mut template(NAMESPACE, &["--kube-version", "1.29.9"]));
    assert!(said.contains("requires kubeVersion: >=1.30.0-0"), "{said}");
    run(&mut template(NAMESPACE, &["--kube-version", "1.30.0"]));
    run(&mut template(
        NAMESPACE,
        &["--kube-version", "v1.31.4-gke.1"],
    ));
}
