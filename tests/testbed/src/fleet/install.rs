//! Installs what the operator needs in a cluster, from the same files that users apply.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::{FleetOptions, OPERATOR_ACCOUNT, OPERATOR_NAMESPACE, fence, repository};
use crate::control_plane::{ControlPlane, prepare_typed as typed};
use crate::error::{Context, Result};
use crate::wait::{Progress, wait_for};

const CRDS: [&str; 2] = ["databaseclusters.database.io", "shardtables.database.io"];
const ESTABLISHED_TIMEOUT: Duration = Duration::from_secs(30);

/// Files below `deploy/base`, in their order.
const FILES: [&str; 6] = [
    "namespace.yaml",
    GUARD,
    "crd.yaml",
    "rbac.yaml",
    "flowcontrol.yaml",
    FENCE,
];
const GUARD: &str = "guard.yaml";
const FENCE: &str = "fence.yaml";

pub(super) async fn install(control_plane: &ControlPlane, options: &FleetOptions) -> Result<()> {
    let wanted = |file: &&str| match *file {
        FENCE => !options.without_fence,
        GUARD => options.guard,
        _ => true,
    };
    for file in FILES.into_iter().filter(wanted) {
        let path = repository().join("deploy/base").join(file);
        let path = path.display().to_string();
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", &path];
        control_plane.run_kubectl(&apply).await?;
    }
    for name in CRDS {
        wait_for_crd(control_plane, name).await?;
    }
    if !options.without_fence {
        fence::wait_in_force(control_plane).await?;
    }
    control_plane
        .wait_for_service_account(OPERATOR_NAMESPACE, OPERATOR_ACCOUNT)
        .await
}

/// Makes a namespace if it is not there.
pub(crate) async fn ensure_namespace(control_plane: &ControlPlane, name: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(control_plane.client());
    let namespace =
        typed(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
    match namespaces.create(&PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).context(format!("create namespace {name}")),
    }
}

async fn wait_for_crd(control_plane: &ControlPlane, name: &str) -> Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(control_plane.client());
    wait_for(
        format!("CustomResourceDefinition {name}"),
        ESTABLISHED_TIMEOUT,
        || async {
            let Some(crd) = crds.get_opt(name).await.context("get the CRD")? else {
                return Ok(Progress::pending("it does not exist"));
            };
            let conditions = crd
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            let established = conditions
                .iter()
                .any(|c| c.type_ == "Established" && c.status == "True");
            Ok(Progress::when(established, (), || {
                "it is not established".into()
            }))
        },
    )
    .await
}
