//! The Services: a DNS name for each Pod, one for the primary, and one for all ready instances.

use serde_json::{Value, json};

use super::{PORT, customization, labels, metadata, serves_by_container, statefulset_name};
use crate::api::Service;
use crate::core::observed::ClusterRecord;

/// `{name}-db`, headless: a DNS name for each Pod, ready or not.
pub(super) fn headless(cluster: &ClusterRecord) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(cluster, &statefulset_name(&cluster.key.name)),
        "spec": {
            "clusterIP": "None",
            // A replica must find its primary while neither is ready yet.
            "publishNotReadyAddresses": true,
            "selector": labels::selector(cluster),
            "ports": ports(),
        },
    })
}

pub(super) fn read_write_name(cluster: &str) -> String {
    format!("{cluster}-rw")
}

pub(super) fn read_name(cluster: &str) -> String {
    format!("{cluster}-r")
}

/// `{name}-rw`: the primary, to read and write.
pub(super) fn read_write(cluster: &ClusterRecord) -> Value {
    let mut selector = labels::selector(cluster);
    selector["statefulset.kubernetes.io/pod-name"] =
        json!(format!("{}-0", statefulset_name(&cluster.key.name)));
    let settings = customization::read_write(cluster);
    let name = read_write_name(&cluster.key.name);
    let mut manifest = service(cluster, &name, &selector, settings);
    find_the_primary(&mut manifest, cluster);
    manifest
}

/// A Pod with a container that does not run is not ready. The one that the exporter fails in still serves, and a
/// Service with a single Pod has no better one.
fn find_the_primary(manifest: &mut Value, cluster: &ClusterRecord) {
    if serves_by_container(cluster) {
        manifest["spec"]["publishNotReadyAddresses"] = json!(true);
    }
}

/// `{name}-r`: every ready instance, to read.
pub(super) fn read(cluster: &ClusterRecord) -> Value {
    let selector = labels::selector(cluster);
    let settings = customization::read_only(cluster);
    let mut manifest = service(cluster, &read_name(&cluster.key.name), &selector, settings);
    if cluster.spec.replicas == 1 {
        find_the_primary(&mut manifest, cluster);
    }
    manifest
}

fn service(
    cluster: &ClusterRecord,
    name: &str,
    selector: &Value,
    settings: Option<&Service>,
) -> Value {
    let mut manifest = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(cluster, name),
        "spec": {"type": "ClusterIP", "selector": selector, "ports": ports()},
    });
    if let Some(settings) = settings {
        customization::add_service(&mut manifest, settings);
    }
    manifest
}

fn ports() -> Value {
    json!([{"name": "postgres", "port": PORT, "protocol": "TCP", "targetPort": "postgres"}])
}
