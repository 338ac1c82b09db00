//! Waits until the API server enforces the fence: a policy takes a second or two to be in force.

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use super::{OPERATOR_NAMESPACE, OPERATOR_USER};
use crate::control_plane::ControlPlane;
use crate::error::{Context, Result};
use crate::wait::{Progress, wait_for};

const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until what no replica may write is refused, asked in a dry run in the operator's name.
///
/// # Errors
/// When it is not in time.
pub async fn wait_in_force(control_plane: &ControlPlane) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "unstamped"},
        "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
    });
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "databasecluster-shard-999"}, "spec": {},
    });
    let client = control_plane.client();
    for (root, resource, object) in [
        ("api/v1", "services", service),
        ("apis/coordination.k8s.io/v1", "leases", lease),
    ] {
        let path = format!("/{root}/namespaces/{OPERATOR_NAMESPACE}/{resource}?dryRun=All");
        let what = format!("the fence to refuse {resource} without a stamp");
        wait_for(what, IN_FORCE_TIMEOUT, || async {
            let answer = as_operator(&client, &path, &object).await?;
            let refused = answer.contains("databasecluster-fence");
            Ok(Progress::when(refused, (), || answer))
        })
        .await?;
    }
    Ok(())
}

async fn as_operator(client: &Client, path: &str, object: &Value) -> Result<String> {
    let request = http::Request::post(path)
        .header("Impersonate-User", OPERATOR_USER)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(object.to_string().into_bytes())
        .context("build a request")?;
    Ok(match client.request_text(request).await {
        Ok(text) => text,
        Err(error) => error.to_string(),
    })
}
