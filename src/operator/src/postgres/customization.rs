//! What the optional fields of a spec add to the children. Without a field, nothing of a child changes; without
//! `topologySpreadConstraints`, Pods are spread by the operator's own.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::labels;
use crate::api::{Customization, SecurityContext, Service, ServiceType, names};
use crate::core::observed::ClusterRecord;

/// User and group of the instances: those of the Debian images. The Alpine images have no user with
/// that number and work without it.
const USER: i64 = 999;

fn of(cluster: &ClusterRecord) -> Option<&Customization> {
    cluster.spec.customization.as_deref()
}

/// Adds the labels and annotations that every child gets.
pub(super) fn add_object_metadata(metadata: &mut Value, cluster: &ClusterRecord) {
    if let Some(given) = of(cluster).and_then(|fields| fields.metadata.as_ref()) {
        add(metadata, "labels", &given.labels);
        add(metadata, "annotations", &given.annotations);
    }
}

/// Adds the labels and annotations that Pods get.
pub(super) fn add_pod_metadata(metadata: &mut Value, cluster: &ClusterRecord) {
    let template = of(cluster).and_then(|fields| fields.pod_template.as_ref());
    if let Some(given) = template.and_then(|template| template.metadata.as_ref()) {
        add(metadata, "labels", &given.labels);
        add(metadata, "annotations", &given.annotations);
    }
}

/// Adds entries whose names are not taken: those of the operator stay.
fn add(metadata: &mut Value, field: &str, entries: &BTreeMap<String, String>) {
    for (name, value) in entries {
        if metadata[field].get(name).is_none() {
            metadata[field][name] = json!(value);
        }
    }
}

/// Settings of the Service for reading and writing.
pub(super) fn read_write(cluster: &ClusterRecord) -> Option<&Service> {
    of(cluster)?.services.as_ref()?.read_write.as_ref()
}

/// Settings of the Service for reading.
pub(super) fn read_only(cluster: &ClusterRecord) -> Option<&Service> {
    of(cluster)?.services.as_ref()?.read_only.as_ref()
}

/// Adds the settings of a Service to its manifest.
pub(super) fn add_service(manifest: &mut Value, settings: &Service) {
    for (name, value) in &settings.annotations {
        manifest["metadata"]["annotations"][name] = json!(value);
    }
    let spec = &mut manifest["spec"];
    spec["type"] = json!(settings.kind);
    if settings.kind != ServiceType::ClusterIp {
        // The fence lets the operator expose no other Pods. All Pods of a cluster have the label.
        spec["selector"][names::MANAGED_BY_LABEL] = json!(names::MANAGED_BY);
    }
    if let Some(class) = &settings.load_balancer_class {
        spec["loadBalancerClass"] = json!(class);
    }
    if let Some(policy) = settings.external_traffic_policy {
        spec["externalTrafficPolicy"] = json!(policy);
    }
}

/// The security context of Pods.
pub(super) fn security_context(cluster: &ClusterRecord) -> Value {
    let mut context = json!({
        "runAsNonRoot": true,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let given = of(cluster).and_then(|fields| fields.security_context.as_ref());
    if !given.is_some_and(|given| given.assigned_by_platform) {
        let number = |field: fn(&SecurityContext) -> Option<i64>| {
            json!(given.and_then(field).unwrap_or(USER))
        };
        context["runAsUser"] = number(|given| given.run_as_user);
        context["runAsGroup"] = number(|given| given.run_as_group);
        context["fsGroup"] = number(|given| given.fs_group);
    }
    let Some(given) = given else { return context };
    if let Some(groups) = given
        .supplemental_groups
        .as_ref()
        .filter(|groups| !groups.is_empty())
    {
        context["supplementalGroups"] = json!(groups);
    }
    match &given.se_linux_options {
        Some(options) if options.kind.is_some() || options.level.is_some() => {
            context["seLinuxOptions"] = json!(options);
        }
        Some(_) | None => {}
    }
    context
}

/// How Pods are spread unless the spec says otherwise: as far apart as possible, without keeping one from starting.
fn default_spread(cluster: &ClusterRecord) -> Value {
    let constraint = |topology: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": topology,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels::selector(cluster)},
        })
    };
    json!(["kubernetes.io/hostname", "topology.kubernetes.io/zone"].map(constraint))
}

/// Adds what decides where Pods run, and how their images are pulled.
pub(super) fn add_scheduling(pod: &mut Value, cluster: &ClusterRecord) {
    if of(cluster).is_none_or(|fields| fields.topology_spread_constraints.is_none()) {
        set(pod, "topologySpreadConstraints", default_spread(cluster));
    }
    let Some(fields) = of(cluster) else { return };
    if let Some(affinity) = &fields.affinity {
        set(pod, "affinity", affinity.value());
    }
    if let Some(tolerations) = &fields.tolerations {
        set(pod, "tolerations", tolerations.value());
    }
    if let Some(selector) = &fields.node_selector {
        set(pod, "nodeSelector", json!(selector));
    }
    if let Some(constraints) = &fields.topology_spread_constraints {
        let mut constraints = constraints.value();
        for constraint in constraints.as_array_mut().into_iter().flatten() {
            // Kubernetes would count no Pod at all.
            if constraint.get("labelSelector").is_none() {
                constraint["labelSelector"] = json!({"matchLabels": labels::selector(cluster)});
            }
        }
        set(pod, "topologySpreadConstraints", constraints);
    }
    if let Some(name) = &fields.priority_class_name {
        set(pod, "priorityClassName", json!(name));
    }
    if let Some(secrets) = &fields.image_pull_secrets {
        set(pod, "imagePullSecrets", json!(secrets));
    }
}

/// Sets a field, unless it is empty: the API server would not store it.
fn set(pod: &mut Value, field: &str, value: Value) {
    let is_empty = match &value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Null => true,
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    if !is_empty {
        pod[field] = value;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::apps::v1::StatefulSet;
    use k8s_openapi::api::core::v1::Service;

    use super::super::{Password, Source, config, labels, sample, service, statefulset};
    use super::*;
    use crate::api::DatabaseClusterSpec;
    use crate::core::child::DesiredChild;
    use shard_ownership::token::FencingToken;

    /// A cluster whose spec has these fields.
    fn with(fields: &Value) -> ClusterRecord {
        let mut spec = json!({"image": "postgres:18", "replicas": 3});
        let fields = fields.as_object().unwrap().clone();
        spec.as_object_mut().unwrap().extend(fields);
        let spec: DatabaseClusterSpec = serde_json::from_value(spec).unwrap();
        let stored = serde_json::to_value(&spec).unwrap();
        let read: DatabaseClusterSpec = serde_json::from_value(stored).unwrap();
        assert_eq!(read, spec);
        ClusterRecord { spec, ..sample() }
    }

    fn children(cluster: &ClusterRecord) -> Vec<DesiredChild> {
        let (claim, initialized) = (None, true);
        Source {
            cluster,
            claim,
            initialized,
        }
        .children()
    }

    fn pod(fields: &Value) -> Value {
        let set = statefulset::render(&with(fields), None);
        let typed: StatefulSet = serde_json::from_value(set.clone()).unwrap();
        let typed = serde_json::to_value(typed).unwrap();
        assert_eq!(typed["spec"]["template"], set["spec"]["template"]);
        set["spec"]["template"].clone()
    }

    fn scheduling() -> Value {
        let term = json!({"topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {"app.kubernetes.io/instance": "name"}}});
        json!({
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["nvme"]}]}]}},
                "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]},
            },
            "tolerations": [{"key": "databases", "operator": "Exists", "effect": "NoSchedule"}],
            "nodeSelector": {"disk": "nvme"},
            "priorityClassName": "databases",
            "imagePullSecrets": [{"name": "registry"}],
        })
    }

    #[test]
    fn empty_fields_change_no_child() {
        let before = children(&with(&json!({})));
        for (fields, is_stored) in [
            (json!({}), false),
            (
                json!({"affinity": null, "metadata": null, "services": null}),
                false,
            ),
            (
                json!({"affinity": {}, "tolerations": [], "nodeSelector": {}, "imagePullSecrets": []}),
                true,
            ),
            (
                json!({"postgresql": {}, "securityContext": {"seLinuxOptions": {}}}),
                true,
            ),
            (
                json!({"postgresql": {"parameters": {}, "initdb": {}}}),
                true,
            ),
            (
                json!({"securityContext": {"supplementalGroups": []}, "metadata": {"labels": {}}}),
                true,
            ),
            (
                json!({"podTemplate": {"metadata": {}}, "services": {"readWrite": {}, "readOnly": {}}}),
                true,
            ),
        ] {
            let cluster = with(&fields);
            assert_eq!(cluster.spec.customization.is_some(), is_stored, "{fields}");
            assert_eq!(children(&cluster), before, "{fields}");
        }
    }

    #[test]
    fn scheduling_fields_reach_the_pods_unchanged() {
        let template = pod(&scheduling());
        for (field, value) in scheduling().as_object().unwrap() {
            assert_eq!(template["spec"][field], *value, "{field}");
        }
    }

    #[test]
    fn spread_without_a_selector_counts_the_instances_of_the_cluster() {
        let constraint = |rest: Value| {
            let mut constraint =
                json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"});
            constraint
                .as_object_mut()
                .unwrap()
                .extend(rest.as_object().unwrap().clone());
            constraint
        };
        let own = json!({"labelSelector": {"matchLabels": {"team": "a"}}});
        let template = pod(
            &json!({"topologySpreadConstraints": [constraint(json!({})), constraint(own.clone())]}),
        );
        let rendered = &template["spec"]["topologySpreadConstraints"];
        let selector = &rendered[0]["labelSelector"]["matchLabels"];
        let labels = &template["metadata"]["labels"];
        for (name, value) in selector.as_object().unwrap() {
            assert_eq!(labels[name], *value);
        }
        assert_eq!(rendered[1], constraint(own));
    }

    #[test]
    fn instances_are_spread_unless_the_spec_says_how() {
        let spread = |fields: Value| pod(&fields)["spec"]["topologySpreadConstraints"].clone();
        let default = spread(json!({}));
        let topologies: Vec<&Value> = default.as_array().unwrap().iter().collect();
        let keys = topologies
            .iter()
            .map(|constraint| &constraint["topologyKey"]);
        let keys: Vec<&Value> = keys.collect();
        assert_eq!(
            keys,
            ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        );
        let labels = &pod(&json!({}))["metadata"]["labels"];
        for constraint in topologies {
            // A hard one would keep the second instance from the only node.
            assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway");
            let selector = constraint["labelSelector"]["matchLabels"]
                .as_object()
                .unwrap();
            assert!(selector.iter().all(|(name, value)| labels[name] == *value));
        }
        assert_eq!(spread(json!({"affinity": {}})), default);
        assert_eq!(
            spread(json!({"topologySpreadConstraints": []})),
            Value::Null
        );
        let own = json!([{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"a": "b"}}}]);
        assert_eq!(spread(json!({"topologySpreadConstraints": own})), own);
    }

    #[test]
    fn users_and_groups_are_given_or_left_to_the_platform() {
        let context = |given: Value| {
            pod(&json!({"securityContext": given}))["spec"]["securityContext"].clone()
        };
        let given = context(json!({
            "runAsUser": 70, "fsGroup": 71, "supplementalGroups": [72],
            "seLinuxOptions": {"type": "container_t", "level": "s0:c1,c2"},
        }));
        let expected = json!({
            "runAsNonRoot": true, "runAsUser": 70, "runAsGroup": 999, "fsGroup": 71, "supplementalGroups": [72],
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
            "seLinuxOptions": {"type": "container_t", "level": "s0:c1,c2"},
        });
        assert_eq!(given, expected);
        let expected = json!({
            "runAsNonRoot": true, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        });
        assert_eq!(context(json!({"assignedByPlatform": true})), expected);
    }

    fn metadata() -> Value {
        // The API server refuses names of the operator's; the operator also ignores them.
        json!({
            "labels": {"team": "a", "app.kubernetes.io/instance": "x", "database.io/bucket": "x"},
            "annotations": {"example.com/note": "b", "database.io/fingerprint": "x", "database.io/initialized": "x"},
        })
    }

    #[test]
    fn metadata_reaches_every_object_and_no_pod_and_overrides_nothing() {
        let plain = with(&json!({}));
        let cluster = with(&json!({"metadata": metadata()}));
        let (claim, initialized) = (None, true);
        let source = Source {
            cluster: &cluster,
            claim,
            initialized,
        };
        let token = FencingToken {
            table: "table".into(),
            shard: shard_ownership::hash::ShardId(3),
            epoch: 1,
            holder: "operator-0".into(),
        };
        let password = || Password::from_random(&[7; super::super::RANDOM_BYTES]).unwrap();
        let mut manifests = vec![super::super::secret(
            &cluster,
            &password(),
            &password(),
            &token,
        )];
        for child in source.children() {
            manifests.push(source.manifest(&child, &token).unwrap());
        }
        assert_eq!(manifests.len(), 7);
        for manifest in &manifests {
            let metadata = &manifest["metadata"];
            assert_eq!(metadata["labels"]["team"], "a");
            assert_eq!(metadata["labels"]["app.kubernetes.io/instance"], "name");
            assert_eq!(
                metadata["labels"]["database.io/bucket"],
                cluster.bucket.to_string()
            );
            assert_eq!(metadata["annotations"]["example.com/note"], "b");
            assert_ne!(metadata["annotations"]["database.io/fingerprint"], "x");
        }
        let config = config::render(&cluster, true);
        assert_eq!(
            config["metadata"]["annotations"]["database.io/initialized"],
            "true"
        );
        let set = |cluster| statefulset::render(cluster, None)["spec"].clone();
        assert_eq!(set(&cluster), set(&plain));
    }

    #[test]
    fn pod_metadata_reaches_the_pods_alone_and_overrides_nothing() {
        let cluster = with(&json!({"podTemplate": {"metadata": metadata()}}));
        let set = statefulset::render(&cluster, None);
        let plain = statefulset::render(&with(&json!({})), None);
        for field in ["/metadata", "/spec/selector", "/spec/volumeClaimTemplates"] {
            assert_eq!(set.pointer(field), plain.pointer(field));
        }
        let template = &set["spec"]["template"]["metadata"];
        assert_eq!(template["annotations"]["example.com/note"], "b");
        let mut labels = labels::pods(&cluster, &cluster.uid, crate::core::observed::Selector::Own);
        labels["team"] = json!("a");
        assert_eq!(template["labels"], labels);
        assert_eq!(service::read(&cluster), service::read(&with(&json!({}))));
    }

    #[test]
    fn services_are_exposed_one_by_one() {
        let exposed = json!({
            "type": "LoadBalancer", "loadBalancerClass": "example.com/internal", "externalTrafficPolicy": "Local",
            "annotations": {"example.com/scheme": "internal"},
        });
        let cluster = with(&json!({
            "services": {"readWrite": exposed, "readOnly": {"type": "NodePort"}},
            "metadata": {"annotations": {"example.com/scheme": "x", "example.com/note": "b"}},
        }));
        let write = service::read_write(&cluster);
        let _: Service = serde_json::from_value(write.clone()).unwrap();
        for field in ["type", "loadBalancerClass", "externalTrafficPolicy"] {
            assert_eq!(write["spec"][field], exposed[field]);
        }
        let annotations = json!({"example.com/scheme": "internal", "example.com/note": "b"});
        assert_eq!(write["metadata"]["annotations"], annotations);
        let read = service::read(&cluster);
        assert_eq!(read["spec"]["type"], "NodePort");
        let headless = service::headless(&cluster);
        assert_eq!(headless["spec"]["clusterIP"], "None");
        // They select the Pods that they selected before.
        let labels = &pod(&json!({}))["metadata"]["labels"];
        let plain = with(&json!({}));
        for (after, before) in [
            (write, service::read_write(&plain)),
            (read, service::read(&plain)),
        ] {
            let mut selector = after["spec"]["selector"].clone();
            assert_eq!(
                labels[names::MANAGED_BY_LABEL],
                selector[names::MANAGED_BY_LABEL]
            );
            selector
                .as_object_mut()
                .unwrap()
                .remove(names::MANAGED_BY_LABEL);
            assert_eq!(selector, before["spec"]["selector"]);
        }
    }
}
