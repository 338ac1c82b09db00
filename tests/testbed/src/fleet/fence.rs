//! Waits until the API server enforces the fence: a policy takes a second or two to be in force.

use std::time::Duration;

use serde_json::json;

use super::{OPERATOR_NAMESPACE, OPERATOR_USER};
use crate::control_plane::ControlPlane;
use crate::error::Result;
use crate::wait::{Progress, wait_for};

const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until a write that no replica may make is rejected, in a dry run as the operator.
///
/// # Errors
/// When it is not in time.
pub async fn wait_in_force(control_plane: &ControlPlane) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "without-a-token"},
        "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
    });
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "databasecluster-shard-999"}, "spec": {},
    });
    // The last policy of the file: when it is in force, all are.
    let table = json!({
        "apiVersion": "database.io/v1", "kind": "ShardTable",
        "metadata": {"name": "another"}, "spec": {"shards": 1, "entries": {
            "000": {"epoch": 0, "holder": "", "incarnation": ""},
        }},
    });
    for (root, resource, object) in [
        ("api/v1", "services", service),
        ("apis/coordination.k8s.io/v1", "leases", lease),
        ("apis/database.io/v1", "shardtables", table),
    ] {
        let path = format!("{root}/namespaces/{OPERATOR_NAMESPACE}/{resource}");
        let what = format!("the fence to refuse {resource} without a fencing token");
        wait_for(what, IN_FORCE_TIMEOUT, || async {
            let answer = control_plane
                .create_in_dry_run(&path, &object, Some(OPERATOR_USER))
                .await?;
            let refused = answer.contains("databasecluster-fence");
            Ok(Progress::when(refused, (), || answer))
        })
        .await?;
    }
    control_plane.wait_until_policies_are_usable().await
}
