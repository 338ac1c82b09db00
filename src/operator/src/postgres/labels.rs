//! Labels of the children.

use serde_json::{Value, json};

use crate::api::names;
use crate::core::observed::{ClusterRecord, Selector};
use shard_ownership::hash::Bucket;

const NAME: &str = "postgresql";
const COMPONENT: &str = "database";

/// Labels that select the Pods of a cluster, whatever the version of its StatefulSet.
pub(super) fn selector(cluster: &ClusterRecord) -> Value {
    json!({
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": *cluster.key.name,
        "app.kubernetes.io/component": COMPONENT,
    })
}

/// Labels by which a StatefulSet selects its Pods. They cannot be changed after creation, and the
/// controller of StatefulSets copies them to the claims.
pub(super) fn statefulset_selector(cluster: &ClusterRecord, selector: Selector) -> Value {
    match selector {
        Selector::Own => json!({names::CLUSTER_LABEL: *cluster.key.name}),
        Selector::Recommended => self::selector(cluster),
    }
}

/// Labels of the Pods. They stay the same when another cluster adopts the StatefulSet: their bucket
/// is that of the cluster for which it was created.
pub(super) fn pods(cluster: &ClusterRecord, created_for: &str, selector: Selector) -> Value {
    let mut labels = all(cluster);
    labels[names::BUCKET_LABEL] = json!(Bucket::of(created_for).to_string());
    if selector == Selector::Own {
        labels[names::CLUSTER_LABEL] = json!(*cluster.key.name);
    }
    labels
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
pub(crate) fn selector_text(cluster: &str) -> String {
    format!(
        "app.kubernetes.io/component={COMPONENT},app.kubernetes.io/instance={cluster},\
         app.kubernetes.io/name={NAME}"
    )
}

/// The label selectors of the claims of clusters, as text: those that carry the operator's own label,
/// and those of an earlier version, which do not.
#[must_use]
pub(crate) fn claim_selectors(clusters: &[&str]) -> [String; 2] {
    let own = names::CLUSTER_LABEL;
    match clusters {
        [cluster] => [
            format!("{own}={cluster}"),
            format!("{},!{own}", selector_text(cluster)),
        ],
        clusters => {
            let any = clusters.join(",");
            [
                format!("{own} in ({any})"),
                format!(
                    "app.kubernetes.io/component={COMPONENT},app.kubernetes.io/name={NAME},\
                     app.kubernetes.io/instance in ({any}),!{own}"
                ),
            ]
        }
    }
}
