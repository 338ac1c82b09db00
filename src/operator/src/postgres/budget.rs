//! The PodDisruptionBudget `{name}-db`: of two instances and more, one at a time may be evicted.

use serde_json::{Value, json};

use super::{labels, metadata, statefulset_name};
use crate::core::observed::ClusterRecord;

/// Fewer instances have none: a budget would either block every drain of a node, or have no effect.
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
                // A Pod that is not ready serves no clients, and must not block the drain of a
                // node.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        })
    })
}
