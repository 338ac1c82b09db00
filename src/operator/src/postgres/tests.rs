//! Tests of the rendered children.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::*;
use crate::core::observed::Selector;

fn cluster() -> ClusterRecord {
    let mut cluster = sample();
    cluster.key = ObjectKey::new("shop", "orders");
    cluster.uid = "0b39a6c2-7d2e-4b39-9d53-0f2f6f1f2a11".into();
    cluster.bucket = shard_ownership::hash::Bucket::of(&cluster.uid);
    cluster.generation = 4;
    cluster.spec.replicas = 3;
    cluster.spec.image = "postgres:18".to_owned();
    cluster.spec.storage.class_name = Some("fast".to_owned());
    cluster
}

fn source<'a>(cluster: &'a ClusterRecord, claim: Option<&'a ClaimTemplate>) -> Source<'a> {
    Source {
        cluster,
        claim,
        initialized: true,
    }
}

fn statefulset(cluster: &ClusterRecord, claim: Option<&ClaimTemplate>) -> DesiredChild {
    let children = source(cluster, claim).children();
    let mut children = children.into_iter();
    children
        .find(|child| child.id.kind == ChildKind::StatefulSet)
        .unwrap()
}

/// The manifest of a StatefulSet.
fn statefulset_manifest(cluster: &ClusterRecord, claim: Option<&ClaimTemplate>) -> Value {
    let set = statefulset(cluster, claim);
    source(cluster, claim).manifest(&set, &token(17)).unwrap()
}

fn token(epoch: u32) -> FencingToken {
    FencingToken {
        table: "table".into(),
        shard: shard_ownership::hash::ShardId(3),
        epoch,
        holder: "operator-0".into(),
    }
}

/// What is applied and not stored looks like drift, and every reconcile would apply it again.
#[test]
fn the_pod_template_holds_no_default_that_the_api_server_drops() {
    let text = serde_json::to_string(&statefulset_manifest(&cluster(), None)).unwrap();
    for dropped in [r#""readOnly":false"#, r#":"""#, ":[]"] {
        assert!(!text.contains(dropped), "{dropped} in {text}");
    }
}

/// Set UPDATE_GENERATED to write the file again, and review the change before you commit it: when the operator
/// is upgraded, a changed Pod template restarts every database once.
#[test]
fn the_statefulset_is_the_committed_one() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/statefulset.yaml"
    );
    let rendered = statefulset_manifest(&cluster(), None);
    let text = serde_saphyr::to_string(&rendered).unwrap();
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        committed == text,
        "tests/golden/statefulset.yaml differs from:\n{text}"
    );
    // Users have to be informed each time.
    let fingerprint = statefulset(&cluster(), None).fingerprint;
    let changes = concat!(env!("CARGO_MANIFEST_DIR"), "/../../CHANGELOG.md");
    assert!(
        std::fs::read_to_string(changes)
            .unwrap()
            .contains(&format!("Pod template `{fingerprint}`")),
        "CHANGELOG.md has no line on what is new in Pod template `{fingerprint}`, and that every Pod is restarted for it"
    );
}

#[test]
fn no_field_is_unknown_to_kubernetes() {
    let set = statefulset_manifest(&cluster(), None);
    let typed: StatefulSet = serde_json::from_value(set.clone()).unwrap();
    let mut back = serde_json::to_value(typed).unwrap();
    // The template of a claim has no kind of its own in the typed form.
    let claim = &mut back["spec"]["volumeClaimTemplates"][0];
    claim["apiVersion"] = json!("v1");
    claim["kind"] = json!("PersistentVolumeClaim");
    assert_eq!(back, set);
    let cluster = cluster();
    let source = source(&cluster, None);
    for child in source.children() {
        let manifest = source.manifest(&child, &token(1)).unwrap();
        match child.id.kind {
            ChildKind::Service => known::<Service>(&manifest),
            ChildKind::ConfigMap => known::<ConfigMap>(&manifest),
            ChildKind::PodDisruptionBudget => known::<PodDisruptionBudget>(&manifest),
            ChildKind::StatefulSet => {}
            ChildKind::Secret => panic!("it is no child to compare"),
        }
    }
    let secret = secret(&cluster, &password(1), &password(2), &token(1));
    known::<Secret>(&secret);
}

fn known<K: serde::de::DeserializeOwned + serde::Serialize>(manifest: &Value) {
    let typed: K = serde_json::from_value(manifest.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), *manifest);
}

fn password(seed: u8) -> Password {
    let bytes = std::array::from_fn(|n| (n as u8).wrapping_mul(37).wrapping_add(seed));
    Password::from_random(&bytes).unwrap()
}

#[test]
fn a_budget_and_the_services_select_the_pods() {
    let mut cluster = cluster();
    let set = statefulset_manifest(&cluster, None);
    let labels = set.pointer("/spec/template/metadata/labels").unwrap();
    let all = source(&cluster, None).children();
    let names: Vec<String> = all.iter().map(|child| child.id.to_string()).collect();
    assert_eq!(
        names,
        [
            "ConfigMap orders-db",
            "Service orders-db",
            "Service orders-rw",
            "Service orders-r",
            "PodDisruptionBudget orders-db",
            "StatefulSet orders-db"
        ]
    );
    for child in &all[1..5] {
        let manifest = source(&cluster, None).manifest(child, &token(1)).unwrap();
        let selector = &manifest["spec"]["selector"];
        let selector = selector.get("matchLabels").unwrap_or(selector);
        for (name, value) in selector.as_object().unwrap() {
            match name.as_str() {
                "statefulset.kubernetes.io/pod-name" => assert_eq!(value, "orders-db-0"),
                _ => assert_eq!(labels[name], *value, "{}", child.id),
            }
        }
        assert_eq!(
            selector.as_object().unwrap().len(),
            if &*child.id.name == "orders-rw" { 4 } else { 3 }
        );
    }
    cluster.spec.replicas = 1;
    let kinds: Vec<ChildKind> = source(&cluster, None)
        .children()
        .iter()
        .map(|c| c.id.kind)
        .collect();
    assert!(
        !kinds.contains(&ChildKind::PodDisruptionBudget),
        "{kinds:?}"
    );
    assert_eq!(optional_children("orders")[0], all[4].id);
}

#[test]
fn the_secret_has_what_clients_need_and_no_trace_of_the_passwords_elsewhere() {
    let one = secret(&cluster(), &password(1), &password(2), &token(1));
    let data = &one["stringData"];
    let word = data["password"].as_str().unwrap();
    assert_eq!(word.len(), 32);
    assert!(word.bytes().all(|b| b.is_ascii_alphanumeric()));
    assert_ne!(data["password"], data["replication-password"]);
    assert_eq!(data["host"], "orders-rw.shop.svc");
    assert_eq!(
        data["uri"],
        format!("postgresql://app:{word}@orders-rw.shop.svc:5432/app")
    );
    let other = secret(&cluster(), &password(3), &password(4), &token(1));
    assert_ne!(other["stringData"], one["stringData"]);
    assert_eq!(
        other["metadata"], one["metadata"],
        "a fingerprint of the passwords"
    );
    assert_eq!(format!("{:?}", password(1)), "Password(…)");
    assert!(Password::from_random(&[255; RANDOM_BYTES]).is_none());
}

/// The creator of a DatabaseCluster chooses the image, and by the name a Secret that may belong to
/// others.
#[test]
fn nothing_of_the_secret_but_the_documented_keys_gets_into_the_pods() {
    let set = statefulset_manifest(&cluster(), None);
    let pod = set.pointer("/spec/template/spec").unwrap();
    let mut rest = pod.clone();
    let volumes = rest["volumes"].as_array_mut().unwrap();
    let place = volumes.iter().position(|v| v["name"] == "secret").unwrap();
    let volume = volumes.remove(place);
    let sources = volume["projected"]["sources"].as_array().unwrap();
    let mounted: Vec<(&str, bool)> = sources
        .iter()
        .flat_map(|source| {
            assert_eq!(source["secret"]["name"], "orders-app");
            let optional = source["secret"]["optional"].as_bool().unwrap();
            let items = source["secret"]["items"].as_array().unwrap();
            items.iter().map(move |item| {
                assert_eq!(item["key"], item["path"]);
                (item["key"].as_str().unwrap(), optional)
            })
        })
        .collect();
    assert_eq!(
        mounted,
        [
            ("username", false),
            ("password", false),
            ("dbname", false),
            ("replication-password", false),
            ("cluster-uid", true),
        ]
    );
    let rest = rest.to_string();
    for way in [
        "secretName",
        "secretKeyRef",
        "secretRef",
        "imagePullSecrets",
    ] {
        assert!(!rest.contains(way), "{way}");
    }
    let created = secret(&cluster(), &password(1), &password(2), &token(1));
    for (key, _) in mounted {
        assert!(created["stringData"][key].is_string(), "{key}");
    }
}

/// What the official image documents, and no more: its entry point with POSTGRES_PASSWORD_FILE,
/// POSTGRES_INITDB_ARGS, PGDATA and the folder of scripts, PostgreSQL's programs, and a shell.
#[test]
fn the_pods_rely_on_nothing_but_the_documented_interface_of_the_image() {
    let set = statefulset_manifest(&cluster(), None);
    let pod = set.pointer("/spec/template/spec").unwrap();
    let main = &pod["containers"][0];
    assert!(
        main.get("command").is_none() && main.get("args").is_none(),
        "{main}"
    );
    let documented = ["POSTGRES_PASSWORD_FILE", "POSTGRES_INITDB_ARGS", "PGDATA"];
    let ours = [
        "PASSFILE",
        "POD_NAME",
        "PRIMARY_NAME",
        "CLUSTER_UID",
        "SECRET_DIR",
        "SECRET_NAME",
        "SCRIPTS_DIR",
        "PARAMETERS_DIR",
    ];
    for variable in main["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(documented.contains(&name) || ours.contains(&name), "{name}");
    }
    let paths: Vec<&str> = main["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["mountPath"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "/pgdata",
            "/var/run/postgresql",
            "/tmp",
            "/dev/shm",
            "/scripts",
            "/secret",
            "/parameters",
            "/docker-entrypoint-initdb.d"
        ]
    );
    assert_eq!(pod["securityContext"]["runAsUser"], 999);
    assert_eq!(pod["securityContext"]["runAsGroup"], 999);
    let programs = [
        main["startupProbe"].clone(),
        main["livenessProbe"].clone(),
        main["readinessProbe"].clone(),
    ]
    .map(|probe| probe["exec"]["command"][0].clone());
    assert_eq!(programs, ["sh", "sh", "sh"]);
    assert_eq!(pod["initContainers"][0]["command"][0], "sh");
}

/// The ConfigMap can be changed by many users, at any time.
#[test]
fn what_pods_run_is_compared_with_digests_in_their_template() {
    let cluster = cluster();
    let source = source(&cluster, None);
    let set = statefulset_manifest(&cluster, None);
    let config = source.manifest(&source.children()[0], &token(1)).unwrap();
    let pod = set.pointer("/spec/template/spec").unwrap();
    let init = &pod["initContainers"][0];
    let digests = init["env"].as_array().unwrap().iter();
    let digests = digests.filter(|variable| variable["name"] == "SCRIPTS_SHA256");
    let digests: Vec<&str> = digests
        .flat_map(|variable| variable["value"].as_str().unwrap().lines())
        .collect();
    let data = config["data"].as_object().unwrap();
    let no_scripts = ["initialized", "parameters.conf"];
    assert_eq!(digests.len() + no_scripts.len(), data.len());
    for line in digests {
        let (digest, script) = line.split_once("  ").unwrap();
        assert!(data.contains_key(script), "{line}");
        assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()));
    }
    // No other process sees the copy, and no process writes what was compared.
    let from_config: Vec<&Value> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|volume| volume.get("configMap").is_some())
        .map(|volume| &volume["name"])
        .collect();
    assert_eq!(from_config, ["config", "parameters"]);
    let volumes = pod["volumes"].as_array().unwrap();
    let parameters = volumes.iter().find(|volume| volume["name"] == "parameters");
    assert_eq!(
        parameters.unwrap()["configMap"]["items"],
        json!([{"key": "parameters.conf", "path": "parameters.conf"}])
    );
    for mount in pod["containers"][0]["volumeMounts"].as_array().unwrap() {
        assert_ne!(mount["name"], "config");
        if mount["name"] == "scripts" || mount["name"] == "initdb" {
            assert_eq!(mount["readOnly"], true, "{mount}");
        }
    }
    // Kubernetes takes it for a reference to a variable.
    assert!(!init["command"].to_string().contains("$("), "{init}");
}

#[test]
fn shared_memory_is_bounded_by_the_memory_of_the_instance() {
    let mut cluster = cluster();
    cluster.spec.resources.memory = Some("6Gi".to_owned());
    let set = statefulset_manifest(&cluster, None);
    let volumes = set.pointer("/spec/template/spec/volumes").unwrap();
    let mut volumes = volumes.as_array().unwrap().iter();
    let shm = volumes.find(|volume| volume["name"] == "shm").unwrap();
    assert_eq!(
        shm["emptyDir"],
        json!({"medium": "Memory", "sizeLimit": "6Gi"})
    );
}

/// Only people know which copy of the data is good.
#[test]
fn no_script_advises_to_delete_a_claim() {
    let cluster = cluster();
    let source = source(&cluster, None);
    let config = source.manifest(&source.children()[0], &token(1)).unwrap();
    for (name, text) in config["data"].as_object().unwrap() {
        let text = text.as_str().unwrap().to_lowercase();
        for line in text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
        {
            let both =
                line.contains("claim") && (line.contains("delete") || line.contains("remove"));
            assert!(!both, "{name}: {line}");
        }
    }
}

#[test]
fn a_takeover_and_a_new_generation_do_not_change_the_fingerprint() {
    let before = statefulset(&cluster(), None);
    let mut later = cluster();
    later.generation = 5;
    later.resource_version = "77".to_owned();
    assert_eq!(statefulset(&later, None).fingerprint, before.fingerprint);
    let applied_again = source(&later, None).manifest(&before, &token(18)).unwrap();
    let annotations = &applied_again["metadata"]["annotations"];
    assert_eq!(
        annotations["database.io/fingerprint"],
        before.fingerprint.to_string()
    );
    assert_eq!(annotations["database.io/generation"], "5");
}

#[test]
fn every_change_of_the_spec_that_can_be_applied_changes_fingerprint_and_digest() {
    let before = statefulset(&cluster(), None);
    let changes: [fn(&mut ClusterRecord); 4] = [
        |c| c.spec.replicas = 2,
        |c| c.spec.image = "postgres:19".to_owned(),
        |c| c.spec.resources.cpu = Some("2".to_owned()),
        |c| c.spec.resources.memory = Some("4Gi".to_owned()),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut cluster = cluster();
        change(&mut cluster);
        let after = statefulset(&cluster, None);
        assert_ne!(after.fingerprint, before.fingerprint, "{number}");
        assert_ne!(after.spec_digest, before.spec_digest, "{number}");
    }
}

#[test]
fn requests_and_limits_are_rendered_unchanged_and_the_short_form_sets_both() {
    let rendered = |resources: Value| {
        let mut cluster = cluster();
        cluster.spec.resources = serde_json::from_value(resources).unwrap();
        let set = statefulset_manifest(&cluster, None);
        let containers = set.pointer("/spec/template/spec").unwrap();
        let main = containers["containers"][0]["resources"].clone();
        assert_eq!(main, containers["initContainers"][0]["resources"]);
        main
    };
    let both = |amounts: Value| json!({"requests": amounts, "limits": amounts});
    let default = json!({"cpu": "500m", "memory": "512Mi"});
    assert_eq!(rendered(json!({})), both(default));
    let numbers = json!({"cpu": 2, "memory": 1_073_741_824});
    let texts = json!({"cpu": "2", "memory": "1073741824"});
    assert_eq!(rendered(numbers), both(texts));
    let half = json!({"cpu": "500m", "memory": "1Gi"});
    assert_eq!(rendered(json!({"memory": "1Gi"})), both(half));
    let standard =
        json!({"requests": {"cpu": 1}, "limits": {"memory": "1Gi", "hugepages-2Mi": "64Mi"}});
    let mut expected = standard.clone();
    expected["requests"]["cpu"] = json!("1");
    assert_eq!(rendered(standard), expected);
    let only_limits = json!({"limits": {"memory": "1Gi"}});
    let expected = json!({"requests": {}, "limits": {"memory": "1Gi"}});
    assert_eq!(rendered(only_limits), expected);
}

#[test]
fn memory_is_bounded_by_the_limit_or_by_what_is_reserved() {
    for (resources, memory) in [
        (json!({}), "512Mi"),
        (json!({"memory": "2Gi"}), "2Gi"),
        (
            json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "3Gi"}}),
            "3Gi",
        ),
        (
            json!({"requests": {"memory": "1Gi"}, "limits": {"cpu": 1}}),
            "1Gi",
        ),
        (json!({"limits": {"cpu": 1}}), "512Mi"),
    ] {
        let read: crate::api::Resources = serde_json::from_value(resources.clone()).unwrap();
        assert_eq!(read.memory(), memory, "{resources}");
    }
}

/// An autoscaler moves Pods with local storage only if it is configured which volumes may be lost.
#[test]
fn the_page_on_draining_names_every_local_volume() {
    let set = statefulset_manifest(&cluster(), None);
    let volumes = set.pointer("/spec/template/spec/volumes").unwrap();
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/how-to/operations.md"
    );
    let page = std::fs::read_to_string(path).unwrap();
    let (_, rest) = page.split_once("safe-to-evict-local-volumes\":\"").unwrap();
    let named: Vec<&str> = rest.split_once('"').unwrap().0.split(',').collect();
    let local = volumes.as_array().unwrap().iter().filter(|volume| {
        let medium = &volume["emptyDir"]["medium"];
        volume["emptyDir"].is_object() && medium != "Memory"
    });
    for volume in local {
        let name = volume["name"].as_str().unwrap();
        assert!(named.contains(&name), "{name} is not among {named:?}");
    }
}

#[test]
fn claims_stay_as_they_were_created_whatever_the_spec_asks_for_now() {
    let mut cluster = cluster();
    let before = statefulset(&cluster, None);
    cluster.spec.storage.size = "99Gi".to_owned();
    let claim = ClaimTemplate {
        size: "1Gi".to_owned(),
        class_name: None,
        cluster_uid: None,
        selector: Selector::Own,
        created_for: None,
    };
    let after = statefulset(&cluster, Some(&claim));
    let manifest = statefulset_manifest(&cluster, Some(&claim));
    let template = &manifest["spec"]["volumeClaimTemplates"][0]["spec"];
    assert_eq!(template["resources"]["requests"]["storage"], "1Gi");
    assert!(template.get("storageClassName").is_none());
    assert_eq!(after.fingerprint, before.fingerprint);
}

#[test]
fn the_label_of_claims_is_rendered_as_the_template_has_it_and_is_no_drift() {
    let cluster = cluster();
    let created = statefulset_manifest(&cluster, None);
    let template = |manifest: &Value| manifest["spec"]["volumeClaimTemplates"][0].clone();
    let labels = template(&created)["metadata"]["labels"].clone();
    assert_eq!(labels, json!({names::CLUSTER_UID_LABEL: *cluster.uid}));
    for former in [None, Some("former")] {
        let mut live = created.clone();
        live["spec"]["volumeClaimTemplates"][0]["metadata"] = json!({
            "name": "data", "labels": former.map(|uid| json!({names::CLUSTER_UID_LABEL: uid})),
            "annotations": template(&created)["metadata"]["annotations"],
        });
        live["metadata"]["uid"] = json!("u");
        live["metadata"]["resourceVersion"] = json!("2");
        let object: StatefulSet = serde_json::from_value(live.clone()).unwrap();
        let record = crate::watch::observe::statefulset(&object, None).unwrap();
        let claim = record.claim.as_ref();
        assert_eq!(claim.unwrap().cluster_uid.as_deref(), former);
        let desired = statefulset(&cluster, claim);
        assert_eq!(record.spec_digest, desired.spec_digest, "{former:?}");
        assert_eq!(record.child.fingerprint, Some(desired.fingerprint));
        let applied = statefulset_manifest(&cluster, claim);
        let label = &template(&applied)["metadata"]["labels"][names::CLUSTER_UID_LABEL];
        assert_eq!(label.as_str(), former, "the template cannot be changed");
        assert_eq!(applied["spec"]["template"], created["spec"]["template"]);
    }
}

#[test]
fn the_live_object_has_the_digest_of_the_desired_one_after_the_api_server_filled_it_in() {
    let mut cluster = cluster();
    cluster.spec.resources.cpu = Some("0.5".to_owned());
    cluster.spec.resources.memory = Some("1024Mi".to_owned());
    let desired = statefulset(&cluster, None);
    let mut live = statefulset_manifest(&cluster, None);
    let pod = live.pointer_mut("/spec/template/spec").unwrap();
    pod["dnsPolicy"] = json!("ClusterFirst");
    pod["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    for kind in ["requests", "limits"] {
        pod["containers"][0]["resources"][kind] = json!({"cpu": "500m", "memory": "1Gi"});
    }
    live["metadata"]["labels"]["theirs"] = json!("x");
    live["metadata"]["uid"] = json!("u");
    live["metadata"]["resourceVersion"] = json!("2");
    let live: StatefulSet = serde_json::from_value(live).unwrap();
    let record = crate::watch::observe::statefulset(&live, None).unwrap();
    assert_eq!(record.spec_digest, desired.spec_digest);
    assert_eq!(record.labels_digest, desired.labels_digest);
    assert_eq!(record.child.fingerprint, Some(desired.fingerprint));
    assert_eq!(record.child.rendered_from_generation, Some(4));
    assert_eq!(record.child.cluster_key(), Some(cluster.key.clone()));
    assert_eq!(record.child.bucket, Some(cluster.bucket));
    assert_eq!(record.claim.unwrap().class_name.as_deref(), Some("fast"));
}

#[test]
fn the_selector_as_text_selects_the_pods() {
    let set = statefulset_manifest(&cluster(), None);
    let labels = set.pointer("/spec/template/metadata/labels").unwrap();
    let matched = set.pointer("/spec/selector/matchLabels").unwrap();
    for pair in selector_text("orders").split(',') {
        let (name, value) = pair.split_once('=').unwrap();
        assert_eq!(labels[name], value);
    }
    for (name, value) in matched.as_object().unwrap() {
        assert_eq!(labels[name], *value);
    }
}

/// The manifest and its applied form, as observed when it is live.
fn seen(manifest: &Value) -> crate::core::observed::StatefulSetRecord {
    let mut live = manifest.clone();
    live["metadata"]["uid"] = json!("u");
    live["metadata"]["resourceVersion"] = json!("2");
    let live: StatefulSet = serde_json::from_value(live).unwrap();
    crate::watch::observe::statefulset(&live, None).unwrap()
}

#[test]
fn claims_of_a_new_statefulset_carry_no_label_by_which_argo_cd_knows_its_objects() {
    let set = statefulset_manifest(&cluster(), None);
    let template = &set["spec"]["volumeClaimTemplates"][0]["metadata"];
    let annotations = &template["annotations"];
    let options = &annotations["argocd.argoproj.io/sync-options"];
    assert_eq!(options, "Prune=false,Delete=false");
    // The controller copies both to the claims.
    for labels in [&template["labels"], &set["spec"]["selector"]["matchLabels"]] {
        let names = labels.as_object().unwrap().keys();
        let theirs: Vec<_> = names
            .filter(|name| !name.starts_with("database.io/"))
            .collect();
        assert_eq!(theirs, [""; 0]);
    }
}

/// Its selector cannot be changed, and its Pods must not restart.
#[test]
fn a_statefulset_of_an_earlier_version_is_rendered_as_it_is_and_services_select_its_pods() {
    let cluster = cluster();
    let claim = ClaimTemplate {
        size: "1Gi".to_owned(),
        class_name: Some("fast".to_owned()),
        cluster_uid: None,
        selector: Selector::Recommended,
        created_for: None,
    };
    let old = statefulset_manifest(&cluster, Some(&claim));
    let selector = &old["spec"]["selector"]["matchLabels"];
    assert_eq!(selector["app.kubernetes.io/instance"], "orders");
    assert_eq!(selector.as_object().unwrap().len(), 3);
    let template = old.pointer("/spec/volumeClaimTemplates/0/metadata");
    assert_eq!(*template.unwrap(), json!({"name": "data"}));
    let of_old = old.pointer("/spec/template/metadata/labels").unwrap();
    assert!(of_old.get(names::CLUSTER_LABEL).is_none());
    let new = statefulset_manifest(&cluster, None);
    let of_new = new.pointer("/spec/template/metadata/labels").unwrap();
    assert_eq!(
        old["spec"]["template"]["spec"],
        new["spec"]["template"]["spec"]
    );
    let service = service::read(&cluster);
    for (name, value) in service["spec"]["selector"].as_object().unwrap() {
        assert_eq!((&of_old[name], &of_new[name]), (value, value));
    }
    let record = seen(&old);
    let known = record.claim.as_ref().unwrap();
    assert_eq!(known.selector, Selector::Recommended);
    let desired = statefulset(&cluster, Some(known));
    assert_eq!(record.spec_digest, desired.spec_digest);
    assert_eq!(record.child.fingerprint, Some(desired.fingerprint));
}

#[test]
fn the_pods_of_an_adopted_statefulset_do_not_change() {
    let former = cluster();
    let mut successor = cluster();
    successor.uid = "another".into();
    successor.bucket = shard_ownership::hash::Bucket::of("another");
    assert_ne!(successor.bucket, former.bucket);
    for selector in [Selector::Own, Selector::Recommended] {
        let created = ClaimTemplate {
            size: "1Gi".to_owned(),
            class_name: None,
            cluster_uid: None,
            selector,
            created_for: None,
        };
        let set = statefulset_manifest(&former, Some(&created));
        let record = seen(&set);
        let adopted = statefulset_manifest(&successor, record.claim.as_ref());
        assert_eq!(adopted["spec"], set["spec"], "{selector:?}");
        assert_eq!(adopted["metadata"]["ownerReferences"][0]["uid"], "another");
        let desired = statefulset(&successor, record.claim.as_ref());
        assert_eq!(record.spec_digest, desired.spec_digest);
    }
}

#[test]
fn child_names_derive_from_their_cluster_only() {
    let cluster = cluster();
    let mut children: Vec<ChildId> = Vec::new();
    children.extend(
        source(&cluster, None)
            .children()
            .into_iter()
            .map(|child| child.id),
    );
    assert_eq!(children.len(), 6);
    for child in &children {
        assert_eq!(cluster_name(child), Some("orders"), "{child}");
    }
    for (kind, name) in [
        (ChildKind::ConfigMap, "orders-rw"),
        (ChildKind::Service, "orders"),
        (ChildKind::Service, "orders-db-x"),
        (ChildKind::Secret, "orders-app"),
    ] {
        let id = ChildId {
            kind,
            name: name.into(),
        };
        assert_eq!(cluster_name(&id), None, "{id}");
    }
}
