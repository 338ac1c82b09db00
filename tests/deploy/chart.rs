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

#[test]
fn chart_defaults_render_install_yaml() {
    let made = rendered(NAMESPACE, &["--include-crds"]);
    let mut wanted = installed();
    // Users of Helm create the namespace, as helm install requires.
    wanted.retain(|(kind, ..), _| kind != "Namespace");
    assert_eq!(
        made.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>()
    );
    for (key, object) in &wanted {
        assert_eq!(
            &made[key], object,
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
fn uninstall_keeps_the_crd_and_its_policies() {
    let made = rendered(NAMESPACE, &["--include-crds"]);
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
    assert_eq!(names, ["databasecluster-guard"]);
    // In crds/ and not among the templates: Helm never deletes it.
    let without = rendered(NAMESPACE, &[]);
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
        "databasecluster-fence-leases",
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
            "priorityClass.create=false,priorityClass.name=",
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
    assert_eq!(object(&made, "ConfigMap", name), wanted);
    assert_eq!(wanted["metadata"]["labels"]["grafana_dashboard"], "1");
    let data = wanted["data"].as_object().unwrap();
    assert_eq!(data.len(), 3);
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
        ("replicas=0", "/replicas"),
        ("replicas=many", "/replicas"),
        ("replica=3", "replica"),
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
        ("priorityClass.name=", "priorityClass.name"),
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
