//! Who a replica is: a fake Pod of its name, a token bound to that Pod, and a kubeconfig with that token.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::accounts::{self, Endpoint};
use crate::control_plane::{ControlPlane, prepare_typed as typed};
use crate::error::{Context, Result};
use crate::names::OperatorNames;
use crate::wait::{Progress, wait_for};

const RUNNING_TIMEOUT: Duration = Duration::from_secs(30);

/// Who a replica is.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) pod_uid: String,
    pub(super) kubeconfig: PathBuf,
}

/// Makes the Pod, its token and the kubeconfig, which leads to `endpoint` if there is one.
pub(super) async fn create(
    control_plane: &ControlPlane,
    operator: &OperatorNames,
    name: &str,
    endpoint: Option<&(String, PathBuf)>,
) -> Result<Identity> {
    let (server, authority) = endpoint.cloned().unwrap_or_else(|| {
        let authority = control_plane.certificate_authority();
        (control_plane.server(), authority)
    });
    let pod_uid = create_pod(control_plane, operator, name).await?;
    let token = create_token(control_plane, operator, name, &pod_uid).await?;
    let reach = Endpoint { server, authority };
    let kubeconfig = accounts::write_kubeconfig(control_plane, name, &reach, &token)?;
    Ok(Identity {
        name: name.to_owned(),
        pod_uid,
        kubeconfig,
    })
}

/// Removes the Pod at once.
pub(super) async fn delete(
    control_plane: &ControlPlane,
    operator: &OperatorNames,
    name: &str,
) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(control_plane.client(), operator.namespace);
    let now = DeleteParams::default().grace_period(0);
    pods.delete(name, &now)
        .await
        .context(format!("delete Pod {name}"))?;
    Ok(())
}

async fn create_pod(
    control_plane: &ControlPlane,
    operator: &OperatorNames,
    name: &str,
) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(control_plane.client(), operator.namespace);
    let pod = typed(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": operator.namespace,
            "labels": {"app.kubernetes.io/name": operator.account},
        },
        "spec": {
            "serviceAccountName": operator.account,
            "automountServiceAccountToken": false,
            "nodeName": "fake-0",
            // The namespace enforces Pod Security "restricted", as a user's would.
            "securityContext": {
                "runAsNonRoot": true,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "operator",
                "image": "fake/operator",
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    }))?;
    pods.create(&PostParams::default(), &pod)
        .await
        .context(format!("create Pod {name}"))?;
    wait_for(format!("Pod {name} to run"), RUNNING_TIMEOUT, || async {
        let pod = pods.get(name).await.context(format!("get Pod {name}"))?;
        let phase = pod
            .status
            .and_then(|status| status.phase)
            .unwrap_or_default();
        let uid = pod.metadata.uid.unwrap_or_default();
        Ok(Progress::when(phase == "Running", uid, || {
            format!("its phase is {phase:?}")
        }))
    })
    .await
}

async fn create_token(
    control_plane: &ControlPlane,
    operator: &OperatorNames,
    pod: &str,
    uid: &str,
) -> Result<String> {
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid});
    accounts::token(control_plane, (operator.namespace, operator.account), bound)
        .await
        .context(format!("for Pod {pod}"))
}
