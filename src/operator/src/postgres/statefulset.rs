//! The StatefulSet `{name}-db`, which runs the instances.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    CLUSTER_UID, CONTAINER, PORT, PREPARE_CONTAINER, config, customization, exporter, labels,
    metadata, secret, secret_name, settings, statefulset_name, tls,
};
use crate::api::names;
use crate::core::claims::{self, DATA_VOLUME};
use crate::core::observed::{ClaimTemplate, ClusterRecord, Selector};

/// Directory in which the image looks for the scripts of a first start.
const INITDB_DIR: &str = "/docker-entrypoint-initdb.d";
/// Time for a fast shutdown, which writes everything to the volume first.
const GRACE_SECONDS: u32 = 300;
/// A first start on a slow volume can take long. (A server that recovers counts as started.)
const STARTUP_FAILURES_MAX: u32 = 360;

/// Every field is always rendered, except those of `customization`: the digest of the fields that we own depends on it.
/// A cluster with such fields is applied again after every write of others.
pub(super) fn render(cluster: &ClusterRecord, claim: Option<&ClaimTemplate>) -> Value {
    let name = statefulset_name(&cluster.key.name);
    let (selector, created_for) = kept(cluster, claim);
    let mut pod_metadata = json!({"labels": labels::pods(cluster, created_for, selector)});
    customization::add_pod_metadata(&mut pod_metadata, cluster);
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(cluster, &name),
        "spec": {
            "replicas": cluster.spec.replicas,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
            // Claims outlive a StatefulSet that was deleted manually. The claims of a cluster that
            // is deleted with `retain: Delete` are deleted by the operator.
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "selector": {"matchLabels": labels::statefulset_selector(cluster, selector)},
            "template": {
                "metadata": pod_metadata,
                "spec": pod(cluster, created_for),
            },
            "volumeClaimTemplates": [claim_template(cluster, claim)],
        },
    })
}

/// What an existing StatefulSet keeps and its Pods show: how it selects them, and the uid of the cluster for which it
/// was created.
pub(super) fn kept<'a>(
    cluster: &'a ClusterRecord,
    claim: Option<&'a ClaimTemplate>,
) -> (Selector, &'a str) {
    let selector = claim.map_or_else(Selector::default, |claim| claim.selector);
    let created_for = claim.and_then(|claim| claim.created_for.as_deref());
    (selector, created_for.unwrap_or(&cluster.uid))
}

fn pod(cluster: &ClusterRecord, created_for: &str) -> Value {
    let name = statefulset_name(&cluster.key.name);
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": customization::security_context(cluster),
        "initContainers": [prepare(cluster, created_for)],
        "containers": [container(cluster, created_for)],
        "volumes": [
            {"name": "run", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            // Its content counts as memory of the container, whose limit is the bound: parallel
            // queries keep their hash tables there.
            {"name": "shm", "emptyDir": {
                "medium": "Memory",
                "sizeLimit": cluster.spec.resources.memory(),
            }},
            {"name": "config", "configMap": {"name": name, "defaultMode": 0o444}},
            // Of the ConfigMap, PostgreSQL's container gets these only.
            {"name": "parameters", "configMap": {
                "name": name,
                "defaultMode": 0o444,
                "items": [{"key": config::PARAMETERS, "path": config::PARAMETERS}],
                "optional": true,
            }},
            {"name": "scripts", "emptyDir": {}},
            {"name": "initdb", "emptyDir": {}},
            {"name": "secret", "projected": {
                "defaultMode": 0o440,
                "sources": [
                    secret_keys(cluster, &secret::MOUNTED_KEYS, false),
                    secret_keys(cluster, &[secret::CLUSTER_UID_KEY], true),
                ],
            }},
        ],
    });
    exporter::add(&mut pod, cluster);
    customization::add_scheduling(&mut pod, cluster);
    tls::add_to_pod(&mut pod, cluster);
    pod
}

/// Keys of the Secret. Without one that is not optional, the kubelet starts nothing. In one volume, so
/// that all keys are replaced at once.
fn secret_keys(cluster: &ClusterRecord, keys: &[&str], optional: bool) -> Value {
    let items: Vec<Value> = keys
        .iter()
        .map(|key| json!({"key": key, "path": key}))
        .collect();
    json!({"secret": {
        "name": secret_name(&cluster.key.name),
        "items": items,
        "optional": optional,
    }})
}

/// Copies the scripts from the ConfigMap to where everything of the Pod runs them, and runs the first.
///
/// Others may change the ConfigMap, at any time: what is compared is the copy, and it is what runs.
/// (Without `$(…)`, which Kubernetes takes for a reference to a variable.)
const INSTALL: &str = r#"set -eu
cd "$SCRIPTS_DIR"
rm -f ./*
printf '%s' "$SCRIPTS_SHA256" >sha256
while read -r _ script; do cat "$CONFIG_DIR/$script" >"$script" || :; done <sha256
if ! sha256sum -c sha256 >&2; then
  rm -f ./*
  echo "the scripts in the ConfigMap $CONFIG_NAME are not those of this Pod: none was run. The operator restores the ConfigMap; if this stays so, delete the Pod" >&2
  exit 1
fi
chmod 0555 ./*.sh
cp -f initdb.sh "$INITDB_DIR"
exec sh "$SCRIPTS_DIR/prepare.sh"
"#;

/// The same, which runs this script with the argument `password` before the first one.
pub(super) fn install_with(script: &str) -> String {
    let before = format!("sh \"$SCRIPTS_DIR/{script}\" password\nexec sh ");
    INSTALL.replace("exec sh ", &before)
}

/// Adds to a list of a manifest.
pub(super) fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

/// Prepares the volume before PostgreSQL starts, or reports why it must not start.
fn prepare(cluster: &ClusterRecord, created_for: &str) -> Value {
    let mut mounts = mounts(false);
    push(
        &mut mounts,
        json!({"name": "config", "mountPath": "/config", "readOnly": true}),
    );
    let mut environment = environment(cluster, created_for);
    if let Some(environment) = environment.as_array_mut() {
        environment.extend([
            json!({"name": "CONFIG_DIR", "value": "/config"}),
            json!({"name": "CONFIG_NAME", "value": statefulset_name(&cluster.key.name)}),
            json!({"name": "INITDB_DIR", "value": INITDB_DIR}),
            json!({"name": "SCRIPTS_SHA256", "value": config::digests(cluster)}),
            json!({"name": "SETTINGS", "value": settings::at_start(cluster)}),
        ]);
    }
    json!({
        "name": PREPARE_CONTAINER,
        "image": cluster.spec.image,
        "command": ["sh", "-c", INSTALL],
        "env": environment,
        "resources": resources(cluster),
        "securityContext": security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    })
}

fn container(cluster: &ClusterRecord, created_for: &str) -> Value {
    let mut environment = environment(cluster, created_for);
    for variable in [
        json!({"name": "POSTGRES_INITDB_ARGS", "value": settings::initdb_arguments(cluster)}),
        json!({"name": "POSTGRES_PASSWORD_FILE", "value": "/secret/password"}),
    ] {
        push(&mut environment, variable);
    }
    let script = |name| json!(["sh", format!("/scripts/{name}")]);
    json!({
        "name": CONTAINER,
        "image": cluster.spec.image,
        "env": environment,
        "ports": [{"name": "postgres", "containerPort": PORT, "protocol": "TCP"}],
        "resources": resources(cluster),
        "securityContext": security(),
        "startupProbe": probe(&script(config::ALIVE), 5, STARTUP_FAILURES_MAX),
        "livenessProbe": probe(&script(config::ALIVE), 10, 6),
        "readinessProbe": probe(&script(config::READY), 5, 3),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(true),
    })
}

fn environment(cluster: &ClusterRecord, created_for: &str) -> Value {
    let name = statefulset_name(&cluster.key.name);
    json!([
        {"name": "PGDATA", "value": "/pgdata/data"},
        {"name": "PASSFILE", "value": "/var/run/postgresql/pgpass"},
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "PRIMARY_NAME", "value": format!("{name}-0.{name}.{}.svc", cluster.key.namespace)},
        {"name": CLUSTER_UID, "value": created_for},
        {"name": "SECRET_DIR", "value": "/secret"},
        {"name": "SECRET_NAME", "value": secret_name(&cluster.key.name)},
        {"name": "SCRIPTS_DIR", "value": "/scripts"},
        {"name": "PARAMETERS_DIR", "value": "/parameters"},
    ])
}

/// `has_scripts`: whether the scripts are in place already.
fn mounts(has_scripts: bool) -> Value {
    let mut mounts = json!([
        {"name": DATA_VOLUME, "mountPath": "/pgdata"},
        {"name": "run", "mountPath": "/var/run/postgresql"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "scripts", "mountPath": "/scripts"},
        {"name": "secret", "mountPath": "/secret", "readOnly": true},
        {"name": "parameters", "mountPath": "/parameters", "readOnly": true},
        {"name": "initdb", "mountPath": INITDB_DIR},
    ]);
    // The API server does not store `readOnly: false`, and what is not stored looks like drift.
    for mount in mounts.as_array_mut().into_iter().flatten() {
        if has_scripts && (mount["name"] == "scripts" || mount["name"] == "initdb") {
            mount["readOnly"] = json!(true);
        }
    }
    mounts
}

fn resources(cluster: &ClusterRecord) -> Value {
    let (requests, limits) = cluster.spec.resources.amounts();
    json!({"requests": requests, "limits": limits})
}

pub(super) fn security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

fn probe(command: &Value, period_seconds: u32, failures_max: u32) -> Value {
    json!({
        "exec": {"command": command},
        "periodSeconds": period_seconds,
        "timeoutSeconds": 5,
        "failureThreshold": failures_max,
    })
}

fn claim_template(cluster: &ClusterRecord, claim: Option<&ClaimTemplate>) -> Value {
    let storage = &cluster.spec.storage;
    let (size, class_name, uid, selector) = match claim {
        Some(claim) => (
            &claim.size,
            &claim.class_name,
            claim.cluster_uid.as_deref(),
            claim.selector,
        ),
        None => (
            &storage.size,
            &storage.class_name,
            Some(&*cluster.uid),
            Selector::default(),
        ),
    };
    let mut metadata = json!({"name": DATA_VOLUME});
    if let Some(uid) = uid {
        metadata["labels"] = json!({names::CLUSTER_UID_LABEL: uid});
    }
    if selector == Selector::Own {
        metadata["annotations"] = json!(BTreeMap::from(claims::HANDS_OFF));
    }
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
    });
    if let Some(class_name) = class_name {
        spec["storageClassName"] = json!(class_name);
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": spec,
    })
}
