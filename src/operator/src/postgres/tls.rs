//! What `spec.tls` adds to the children: the Secret with the certificate, and the script that uses it. Without the
//! field, nothing of a child changes.

use serde_json::{Value, json};

use super::statefulset::push;
use super::{CONTAINER, PREPARE_CONTAINER, rw_host, service, statefulset_name};
use crate::api::Tls;
use crate::core::observed::ClusterRecord;

/// Name of the volume with the certificate. The policies of the fence allow another Secret than the cluster's own under
/// this name alone, and of it the three keys alone.
pub(crate) const VOLUME: &str = "tls";
/// Keys of the Secret that are mounted.
const KEYS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
/// Where they are mounted.
const DIR: &str = "/tls";

/// Turns TLS on and off, and reports what is wrong with the certificate.
pub(super) const SCRIPT: (&str, &str) = ("tls.sh", include_str!("scripts/tls.sh"));
/// What runs last in the init container without TLS, and with it.
const LAST: &str = "exec sh \"$SCRIPTS_DIR/prepare.sh\"\n";
const LAST_WITH_TLS: &str = "exec sh \"$SCRIPTS_DIR/tls.sh\" prepare\n";

/// What the spec asks for.
pub(super) fn of(cluster: &ClusterRecord) -> Option<&Tls> {
    cluster.spec.customization.as_deref()?.tls.as_ref()
}

/// The names under which clients and replicas reach the instances: the certificate must be valid for each.
#[must_use]
pub(crate) fn host_names(cluster: &ClusterRecord) -> [String; 3] {
    let (name, namespace) = (&cluster.key.name, &cluster.key.namespace);
    let set = statefulset_name(name);
    [
        rw_host(cluster),
        format!("{}.{namespace}.svc", service::read_name(name)),
        format!("{set}-0.{set}.{namespace}.svc"),
    ]
}

/// What the URI of the Secret says of TLS. `require` needs no file: where a client keeps the certificate of the
/// authority is not known here.
pub(super) fn uri_parameters(cluster: &ClusterRecord) -> &'static str {
    match of(cluster) {
        Some(_) => "?sslmode=require",
        None => "",
    }
}

/// Adds volume, mounts, environment and commands to the Pod.
pub(super) fn add_to_pod(pod: &mut Value, cluster: &ClusterRecord) {
    let Some(tls) = of(cluster) else { return };
    let items: Vec<Value> = KEYS
        .iter()
        .map(|key| json!({"key": key, "path": key}))
        .collect();
    // Optional: a Pod whose Secret was deleted starts all the same, and reports that.
    push(
        &mut pod["volumes"],
        json!({"name": VOLUME, "projected": {
            "defaultMode": 0o440,
            "sources": [{"secret": {"name": tls.secret_name, "items": items, "optional": true}}],
        }}),
    );
    for (list, name) in [
        ("initContainers", PREPARE_CONTAINER),
        ("containers", CONTAINER),
    ] {
        let containers = pod[list].as_array_mut().into_iter().flatten();
        for container in containers.filter(|container| container["name"] == name) {
            let mount = json!({"name": VOLUME, "mountPath": DIR, "readOnly": true});
            push(&mut container["volumeMounts"], mount);
            for (name, value) in [
                ("TLS_DIR", DIR.to_owned()),
                ("TLS_SECRET_NAME", tls.secret_name.clone()),
                ("TLS_NAMES", host_names(cluster).join(" ")),
                ("TLS_REQUIRED", tls.required.to_string()),
            ] {
                push(&mut container["env"], json!({"name": name, "value": value}));
            }
            adapt(container);
        }
    }
}

/// Has the script run before those that run without TLS: it gets the former probe's command as its arguments.
fn adapt(container: &mut Value) {
    if let Some(command) = container.pointer_mut("/command/2") {
        let text = command.as_str().unwrap_or_default();
        *command = json!(text.replace(LAST, LAST_WITH_TLS));
    }
    if let Some(Value::Array(probe)) = container.pointer_mut("/readinessProbe/exec/command") {
        let script = json!(format!("/scripts/{}", SCRIPT.0));
        probe.splice(1..1, [script, json!("ready")]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::StatefulSet;

    use super::super::{Password, Source, config, sample, secret, statefulset};
    use super::*;
    use crate::core::child::{ChildKind, DesiredChild};
    use shard_ownership::token::FencingToken;

    fn with(fields: &Value) -> ClusterRecord {
        let mut spec = json!({"image": "postgres:18", "replicas": 3});
        let fields = fields.as_object().unwrap().clone();
        spec.as_object_mut().unwrap().extend(fields);
        ClusterRecord {
            spec: serde_json::from_value(spec).unwrap(),
            ..sample()
        }
    }

    fn pod(fields: &Value) -> Value {
        statefulset::render(&with(fields), None)["spec"]["template"]["spec"].clone()
    }

    fn tls() -> Value {
        json!({"tls": {"secretName": "orders-tls"}})
    }

    /// Takes away what has this name; whether there was something.
    fn remove(list: &mut Value, name: &str) -> bool {
        let list = list.as_array_mut().unwrap();
        let before = list.len();
        list.retain(|item| item["name"] != name);
        list.len() < before
    }

    #[test]
    fn tls_adds_to_the_pod_and_changes_no_other_part_of_it() {
        let set = statefulset::render(&with(&tls()), None);
        let typed: StatefulSet = serde_json::from_value(set.clone()).unwrap();
        let typed = serde_json::to_value(typed).unwrap();
        assert_eq!(typed["spec"]["template"], set["spec"]["template"]);
        let mut changed = pod(&tls());
        let plain = pod(&json!({}));
        assert!(remove(&mut changed["volumes"], VOLUME));
        for list in ["initContainers", "containers"] {
            let container = &mut changed[list][0];
            assert!(remove(&mut container["volumeMounts"], VOLUME));
            for name in ["TLS_DIR", "TLS_SECRET_NAME", "TLS_NAMES", "TLS_REQUIRED"] {
                assert!(remove(&mut container["env"], name), "{name}");
            }
        }
        let script = "/containers/0/readinessProbe/exec/command";
        assert_eq!(
            changed.pointer(script).unwrap(),
            &json!(["sh", "/scripts/tls.sh", "ready", "/scripts/ready.sh"])
        );
        *changed.pointer_mut(script).unwrap() = plain.pointer(script).unwrap().clone();
        let command = "/initContainers/0/command/2";
        let text = changed.pointer(command).unwrap().as_str().unwrap();
        assert!(text.ends_with(LAST_WITH_TLS), "{text}");
        *changed.pointer_mut(command).unwrap() = plain.pointer(command).unwrap().clone();
        let digests = |pod: &mut Value| {
            let environment = pod["initContainers"][0]["env"].as_array_mut().unwrap();
            let place = environment
                .iter()
                .position(|variable| variable["name"] == "SCRIPTS_SHA256");
            environment.remove(place.unwrap())["value"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let mut plain = plain;
        let (with, without) = (digests(&mut changed), digests(&mut plain));
        let line = with.strip_prefix(&without).unwrap();
        assert!(
            line.ends_with("  tls.sh\n") && line.lines().count() == 1,
            "{line}"
        );
        assert_eq!(changed, plain);
    }

    /// Each adds to the commands of the same containers.
    #[test]
    fn tls_and_the_exporter_go_together() {
        let mut fields = tls();
        fields["monitoring"] = json!({"exporter": {}});
        let pod = pod(&fields);
        let probe = "/containers/0/readinessProbe/exec/command";
        assert_eq!(
            pod.pointer(probe).unwrap(),
            &json!([
                "sh",
                "/scripts/tls.sh",
                "ready",
                "/scripts/exporter.sh",
                "ready"
            ])
        );
        let command = pod.pointer("/initContainers/0/command/2").unwrap();
        let command = command.as_str().unwrap();
        let password = "sh \"$SCRIPTS_DIR/exporter.sh\" password\n";
        assert!(
            command.ends_with(&format!("{password}{LAST_WITH_TLS}")),
            "{command}"
        );
    }

    /// The creator of a DatabaseCluster chooses image and Secret.
    #[test]
    fn nothing_of_a_foreign_secret_but_a_certificate_gets_into_the_pods() {
        let pod = pod(&tls());
        let volumes = pod["volumes"].as_array().unwrap();
        let foreign: Vec<&Value> = volumes
            .iter()
            .filter(|volume| volume.to_string().contains("orders-tls"))
            .collect();
        let source = &foreign[0]["projected"]["sources"][0]["secret"];
        assert_eq!((foreign.len(), &source["optional"]), (1, &json!(true)));
        let keys = source["items"].as_array().unwrap().iter();
        let keys: Vec<&Value> = keys.map(|item| &item["key"]).collect();
        assert_eq!(keys, ["tls.crt", "tls.key", "ca.crt"]);
        // PostgreSQL refuses a key that others may read.
        assert_eq!(foreign[0]["projected"]["defaultMode"], 0o440);
    }

    #[test]
    fn script_and_names_and_uri_follow_the_field() {
        let token = FencingToken {
            table: "table".into(),
            shard: shard_ownership::hash::ShardId(3),
            epoch: 1,
            holder: "operator-0".into(),
        };
        for (fields, is_on) in [(json!({}), false), (tls(), true)] {
            let cluster = with(&fields);
            let config = config::render(&cluster, true);
            assert_eq!(config["data"].get("tls.sh").is_some(), is_on);
            let password = || Password::from_random(&[7; super::super::RANDOM_BYTES]).unwrap();
            let secret = secret(&cluster, &password(), &password(), &token);
            let uri = secret["stringData"]["uri"].as_str().unwrap();
            assert_eq!(uri.ends_with(":5432/app?sslmode=require"), is_on, "{uri}");
            assert_eq!(uri.ends_with(":5432/app"), !is_on, "{uri}");
        }
        assert_eq!(
            host_names(&with(&tls())),
            [
                "name-rw.namespace.svc",
                "name-r.namespace.svc",
                "name-db-0.name-db.namespace.svc"
            ]
        );
    }

    fn set(fields: &Value) -> Option<DesiredChild> {
        let cluster = with(fields);
        let (claim, initialized) = (None, true);
        let source = Source {
            cluster: &cluster,
            claim,
            initialized,
        };
        let mut children = source.children().into_iter();
        children.find(|child| child.id.kind == ChildKind::StatefulSet)
    }

    /// As that of clusters without the field: a changed template restarts every database that has TLS.
    #[test]
    fn template_with_tls_is_the_one_in_the_changelog() {
        let fingerprint = set(&tls()).unwrap().fingerprint;
        let changes = concat!(env!("CARGO_MANIFEST_DIR"), "/../../CHANGELOG.md");
        let line = format!("with `spec.tls` is `{fingerprint}`");
        let changes = std::fs::read_to_string(changes).unwrap();
        assert!(changes.contains(&line), "CHANGELOG.md has no line {line}");
    }

    #[test]
    fn only_a_change_of_the_field_changes_the_statefulset() {
        assert_eq!(set(&json!({"tls": null})), set(&json!({})));
        assert_ne!(set(&tls()), set(&json!({})));
        let required = json!({"tls": {"secretName": "orders-tls", "required": true}});
        assert_ne!(set(&required), set(&tls()));
    }
}
