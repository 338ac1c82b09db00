//! The ConfigMap `{name}-db`: the scripts that the Pods run, and whether there is data already.

use serde_json::{Value, json};

use super::{metadata, statefulset_name};
use crate::api::names;
use crate::core::observed::ClusterRecord;

/// Runs before PostgreSQL in each Pod.
pub(super) const PREPARE: &str = "prepare.sh";
/// Makes roles, database and settings.
pub(super) const INITDB: &str = "initdb.sh";
/// Whether the server of a Pod lives.
pub(super) const ALIVE: &str = "alive.sh";
/// Whether clients may be sent to a Pod.
pub(super) const READY: &str = "ready.sh";
/// Whether the primary had data: then an empty volume is a lost one.
const INITIALIZED: &str = "initialized";

pub(super) fn render(cluster: &ClusterRecord, initialized: bool) -> Value {
    let mut metadata = metadata(cluster, &statefulset_name(&cluster.key.name));
    if initialized {
        metadata["annotations"] = json!({names::INITIALIZED_ANNOTATION: "true"});
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {
            PREPARE: include_str!("scripts/prepare.sh"),
            INITDB: include_str!("scripts/initdb.sh"),
            ALIVE: include_str!("scripts/alive.sh"),
            READY: include_str!("scripts/ready.sh"),
            INITIALIZED: initialized.to_string(),
        },
    })
}
