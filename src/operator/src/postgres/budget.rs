//! The PodDisruptionBudget `{name}-db`: of two instances and more, one at a time may be evicted.

use serde_json::{Value, json};

use super::{labels, metadata, statefulset_name};
use crate::core::observed::ClusterRecord;

/// Fewer instances have none: it would keep a node from ever being drained, or mean nothing.
const REPLICAS_MIN: i32 = 2;

pub(super) fn render(cluster: &ClusterRecord) -> Option<Value> {
    (cluster.spec.replicas >= REPLICAS_MIN).then(|| {
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(cluster, &statefulset_name(&cluster.key.name)),
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": labels::selector(cluster)},
                // What is not ready serves nobody, and must not keep a node from being drained.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        })
    })
}
