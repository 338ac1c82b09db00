//! The children of a DatabaseCluster for the peer: as the operator renders them, with words where values belong.

use anyhow::{Context, Result};
use databasecluster_operator::api::{DatabaseClusterSpec, DatabaseClusterStatus};
use databasecluster_operator::core::observed::ClusterRecord;
use databasecluster_operator::postgres::Source;
use serde_json::{Value, json};
use shard_ownership::hash::{Bucket, ShardId};
use shard_ownership::token::FencingToken;
use sharded_controller::object::ObjectKey;

/// Every child but the Secret, as a list. The peer puts the values of a cluster in the places of the words.
pub(super) fn templates() -> Result<Value> {
    let spec: DatabaseClusterSpec = serde_json::from_value(json!({
        // With as many there is a PodDisruptionBudget; the peer sets the number itself.
        "replicas": 2,
        "image": "the-image",
        "resources": {"cpu": "the-cpu", "memory": "the-memory"},
        "storage": {"size": "the-size"},
    }))?;
    let uid = "the-uid";
    let cluster = ClusterRecord {
        key: ObjectKey::new("the-namespace", "the-name"),
        uid: uid.into(),
        bucket: Bucket::of(uid),
        generation: 1,
        resource_version: String::new(),
        deleting: false,
        finalizers: Vec::new(),
        allows_empty_primary: false,
        has_excess_finalizers: false,
        spec,
        status: DatabaseClusterStatus::default(),
    };
    let source = Source {
        cluster: &cluster,
        claim: None,
        initialized: true,
    };
    let token = FencingToken {
        table: "peer".into(),
        shard: ShardId(0),
        epoch: 1,
        holder: "peer".into(),
    };
    let manifests = source.children().into_iter().map(|child| {
        let manifest = source.manifest(&child, &token);
        let mut manifest = manifest.context("the operator renders its own children")?;
        let metadata = manifest["metadata"].as_object_mut();
        let metadata = metadata.context("a child has metadata")?;
        metadata.remove("annotations");
        metadata.remove("ownerReferences");
        Ok(manifest)
    });
    manifests.collect::<Result<Vec<Value>>>().map(Value::Array)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn templates_cover_all_children_and_every_cluster_value() {
        let templates = templates().unwrap();
        let kinds: Vec<&str> = templates
            .as_array()
            .unwrap()
            .iter()
            .map(|child| child["kind"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds,
            [
                "ConfigMap",
                "Service",
                "Service",
                "Service",
                "PodDisruptionBudget",
                "StatefulSet"
            ]
        );
        let text = templates.to_string();
        for word in ["namespace", "name", "uid", "image", "cpu", "memory", "size"] {
            assert!(text.contains(&format!("the-{word}")), "{word}: {text}");
        }
    }
}
