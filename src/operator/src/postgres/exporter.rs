//! The container with postgres_exporter, and what the other containers do for it. A cluster without the field has
//! nothing of it.
//!
//! It logs in over loopback with a role and a password of its own, and mounts nothing but that password. It has no
//! probe: it is ready as soon as it runs. A Pod with a container that does not run is not ready for Kubernetes, so the
//! Services of such a cluster find its primary whether or not the exporter runs.

use serde_json::{Value, json};

use super::statefulset::push;
use super::{CONTAINER, EXPORTER_CONTAINER, PORT, PREPARE_CONTAINER, statefulset};
use crate::api::Exporter;
use crate::core::observed::ClusterRecord;

/// The role with which it logs in.
const ROLE: &str = "databasecluster_exporter";
/// Its script among those of the Pods.
pub(super) const SCRIPT: (&str, &str) = ("exporter.sh", include_str!("scripts/exporter.sh"));
/// Its port.
const METRICS_PORT: u16 = 9187;
/// Where its password is.
const FOLDER: &str = "/exporter";
/// The volume with the password, which is in memory only.
const VOLUME: &str = "exporter";

/// The exporter that the spec asks for.
pub(super) fn of(cluster: &ClusterRecord) -> Option<&Exporter> {
    let fields = cluster.spec.customization.as_ref()?;
    fields.monitoring.as_ref()?.exporter.as_ref()
}

/// Adds the exporter to a Pod, if the spec asks for one.
pub(super) fn add(pod: &mut Value, cluster: &ClusterRecord) {
    let Some(exporter) = of(cluster) else { return };
    let mount = json!({"name": VOLUME, "mountPath": FOLDER});
    let mut read_only = mount.clone();
    read_only["readOnly"] = json!(true);
    for list in ["initContainers", "containers"] {
        let container = &mut pod[list][0];
        push(
            &mut container["env"],
            json!({"name": "EXPORTER_DIR", "value": FOLDER}),
        );
        match container["name"].as_str() {
            Some(PREPARE_CONTAINER) => {
                container["command"] = json!(["sh", "-c", statefulset::install_with(SCRIPT.0)]);
                push(&mut container["volumeMounts"], mount.clone());
            }
            Some(CONTAINER) => {
                container["readinessProbe"]["exec"]["command"] =
                    json!(["sh", format!("/scripts/{}", SCRIPT.0), "ready"]);
                push(&mut container["volumeMounts"], read_only.clone());
            }
            Some(_) | None => {}
        }
    }
    push(&mut pod["containers"], container(exporter, &read_only));
    push(
        &mut pod["volumes"],
        json!({"name": VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
    );
}

fn container(exporter: &Exporter, mount: &Value) -> Value {
    let (requests, limits) = exporter.amounts();
    let address = format!(
        "127.0.0.1:{PORT}/postgres?sslmode=disable&connect_timeout=5&application_name={VOLUME}"
    );
    json!({
        "name": EXPORTER_CONTAINER,
        "image": exporter.image,
        "env": [
            {"name": "DATA_SOURCE_URI", "value": address},
            {"name": "DATA_SOURCE_USER", "value": ROLE},
            {"name": "DATA_SOURCE_PASS_FILE", "value": format!("{FOLDER}/password")},
        ],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"}],
        "resources": {"requests": requests, "limits": limits},
        "securityContext": statefulset::security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [mount],
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::StatefulSet;

    use super::super::{Source, config, sample, service};
    use super::*;

    fn with(monitoring: Value, replicas: i32) -> ClusterRecord {
        let spec = json!({"image": "postgres:18", "replicas": replicas, "monitoring": monitoring});
        ClusterRecord {
            spec: serde_json::from_value(spec).unwrap(),
            ..sample()
        }
    }

    fn template(cluster: &ClusterRecord) -> Value {
        let set = statefulset::render(cluster, None);
        let typed: StatefulSet = serde_json::from_value(set.clone()).unwrap();
        let typed = serde_json::to_value(typed).unwrap();
        assert_eq!(typed["spec"]["template"], set["spec"]["template"]);
        set["spec"]["template"].clone()
    }

    #[test]
    fn nothing_changes_without_the_field() {
        let plain = |replicas| with(Value::Null, replicas);
        let children = |cluster: &ClusterRecord| {
            let source = Source {
                cluster,
                claim: None,
                initialized: true,
            };
            source.children()
        };
        for replicas in [1, 3] {
            assert_eq!(
                children(&with(json!({}), replicas)),
                children(&plain(replicas))
            );
        }
        let config = config::render(&plain(1), true).to_string();
        assert!(!config.contains("exporter"), "{config}");
    }

    /// As that of clusters without the field: a changed template restarts every database that has an exporter.
    #[test]
    fn template_with_an_exporter_is_the_one_in_the_changelog() {
        let cluster = with(json!({"exporter": {}}), 3);
        let source = Source {
            cluster: &cluster,
            claim: None,
            initialized: true,
        };
        let fingerprint = source.children().last().unwrap().fingerprint;
        let changes = concat!(env!("CARGO_MANIFEST_DIR"), "/../../CHANGELOG.md");
        let line = format!("with an exporter `{fingerprint}`");
        let changes = std::fs::read_to_string(changes).unwrap();
        assert!(changes.contains(&line), "CHANGELOG.md has no line {line}");
    }

    #[test]
    fn exporter_is_in_the_pod_with_its_password_alone() {
        let pod = template(&with(json!({"exporter": {}}), 3))["spec"].clone();
        let container = &pod["containers"][1];
        assert_eq!(
            container["image"],
            "quay.io/prometheuscommunity/postgres-exporter:v0.20.1"
        );
        let amounts = json!({"cpu": "100m", "memory": "128Mi"});
        assert_eq!(
            container["resources"],
            json!({"requests": amounts, "limits": amounts})
        );
        assert_eq!(
            container["volumeMounts"],
            json!([{"name": "exporter", "mountPath": "/exporter", "readOnly": true}])
        );
        assert_eq!(container["ports"][0]["name"], "metrics");
        // A probe of it would decide about the Pod.
        for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
            assert!(container.get(probe).is_none(), "{probe}");
        }
        assert_eq!(container["securityContext"], statefulset::security());
        let given = json!({"exporter": {"image": "mirror/exporter:1", "resources": {"limits": {"memory": "1Gi"}}}});
        let container = template(&with(given, 3))["spec"]["containers"][1].clone();
        assert_eq!(container["image"], "mirror/exporter:1");
        assert_eq!(
            container["resources"],
            json!({"requests": {}, "limits": {"memory": "1Gi"}})
        );
    }

    #[test]
    fn scripts_of_the_exporter_are_compared_with_digests_too() {
        let cluster = with(json!({"exporter": {}}), 3);
        let pod = template(&cluster)["spec"].clone();
        let environment = pod["initContainers"][0]["env"].as_array().unwrap();
        let digests = environment.iter().find(|v| v["name"] == "SCRIPTS_SHA256");
        assert!(
            digests.unwrap()["value"]
                .as_str()
                .unwrap()
                .contains("  exporter.sh\n")
        );
        assert!(config::render(&cluster, true)["data"]["exporter.sh"].is_string());
        let command = pod["initContainers"][0]["command"][2].as_str().unwrap();
        let places = ["sha256sum -c", "exporter.sh\" password", "prepare.sh\"\n"];
        let places = places.map(|part| command.find(part).unwrap());
        assert!(places.is_sorted(), "{command}");
    }

    /// With one instance both Services have no other one to send clients to.
    #[test]
    fn clients_reach_the_primary_whether_or_not_the_exporter_runs() {
        let published = |manifest: Value| manifest["spec"]["publishNotReadyAddresses"].clone();
        for (replicas, reads) in [(1, json!(true)), (2, Value::Null)] {
            let cluster = with(json!({"exporter": {}}), replicas);
            assert_eq!(published(service::read_write(&cluster)), true);
            assert_eq!(published(service::read(&cluster)), reads);
            let plain = with(json!({}), replicas);
            assert_eq!(published(service::read_write(&plain)), Value::Null);
            assert_eq!(published(service::read(&plain)), Value::Null);
        }
    }
}
