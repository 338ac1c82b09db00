//! Labels of the children.

use serde_json::{Value, json};

use crate::api::names;
use crate::core::observed::ClusterRecord;

const NAME: &str = "postgresql";
const COMPONENT: &str = "database";

/// Labels that select the Pods of a cluster. They can not be changed after creation.
pub(super) fn selector(cluster: &ClusterRecord) -> Value {
    json!({
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": *cluster.key.name,
        "app.kubernetes.io/component": COMPONENT,
    })
}

/// Labels of every child.
pub(super) fn all(cluster: &ClusterRecord) -> Value {
    json!({
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": *cluster.key.name,
        "app.kubernetes.io/component": COMPONENT,
        "app.kubernetes.io/part-of": *cluster.key.name,
        "app.kubernetes.io/managed-by": names::MANAGED_BY,
        names::BUCKET_LABEL: cluster.bucket.to_string(),
    })
}

/// The label selector of the Pods of a cluster, as text.
#[must_use]
pub fn selector_text(cluster: &str) -> String {
    format!(
        "app.kubernetes.io/component={COMPONENT},app.kubernetes.io/instance={cluster},\
         app.kubernetes.io/name={NAME}"
    )
}
