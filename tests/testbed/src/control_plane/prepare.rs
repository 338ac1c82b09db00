//! What a fresh control plane needs before it is of use: fake nodes that take Pods, and a StorageClass.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::ControlPlane;
use crate::error::{Context, Result};
use crate::wait::{Progress, wait_for};

const NO_GRACE: &str = "testbed-pods-end-at-once";
const READY_TIMEOUT: Duration = Duration::from_secs(60);

impl ControlPlane {
    pub(super) async fn prepare(&self) -> Result<()> {
        self.wait_until_serving(READY_TIMEOUT).await?;
        self.end_pods_at_once().await?;
        let classes: Api<StorageClass> = Api::all(self.client());
        let class = typed(storage_class())?;
        classes
            .create(&PostParams::default(), &class)
            .await
            .context("create StorageClass standard")?;
        let nodes: Api<Node> = Api::all(self.client());
        for number in 0..self.options.nodes {
            let node = typed(node(number))?;
            nodes
                .create(&PostParams::default(), &node)
                .await
                .context(format!("create node {number}"))?;
        }
        wait_for("fake nodes that take Pods", READY_TIMEOUT, || async {
            let list = nodes
                .list(&ListParams::default())
                .await
                .context("list nodes")?;
            let waiting: Vec<String> = list.items.iter().filter_map(unready).collect();
            Ok(Progress::when(waiting.is_empty(), (), || {
                waiting.join(", ")
            }))
        })
        .await?;
        self.wait_for_service_account("default", "default").await?;
        self.wait_until_pods_end_at_once().await
    }

    /// Pods get no grace period, so that the API server itself removes them when they are deleted. Kwok would
    /// remove them by name alone, sometimes late and twice: then it hits the next Pod of a StatefulSet.
    async fn end_pods_at_once(&self) -> Result<()> {
        let what = "create MutatingAdmissionPolicy";
        let policies: Api<MutatingAdmissionPolicy> = Api::all(self.client());
        let policy = typed(no_grace_policy())?;
        policies
            .create(&PostParams::default(), &policy)
            .await
            .context(what)?;
        let bindings: Api<MutatingAdmissionPolicyBinding> = Api::all(self.client());
        let binding =
            typed(json!({"metadata": {"name": NO_GRACE}, "spec": {"policyName": NO_GRACE}}))?;
        bindings
            .create(&PostParams::default(), &binding)
            .await
            .context(what)?;
        Ok(())
    }

    /// A new policy takes a moment until it is in force.
    async fn wait_until_pods_end_at_once(&self) -> Result<()> {
        let pods: Api<Pod> = Api::default_namespaced(self.client());
        let probe: Pod = typed(json!({
            "metadata": {"name": "probe"},
            "spec": {"containers": [{"name": "probe", "image": "probe"}]},
        }))?;
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        wait_for("Pods without a grace period", READY_TIMEOUT, || async {
            let pod = pods
                .create(&dry_run, &probe)
                .await
                .context("try to create a Pod")?;
            let grace = pod
                .spec
                .and_then(|spec| spec.termination_grace_period_seconds);
            Ok(Progress::when(grace == Some(0), (), || {
                format!("it is {grace:?}")
            }))
        })
        .await
    }

    /// The controller manager creates the ServiceAccount `default` of a new namespace; Pods need it.
    pub(crate) async fn wait_for_service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        wait_for(
            format!("ServiceAccount {namespace}/{name}"),
            READY_TIMEOUT,
            || async {
                let account = accounts.get_opt(name).await.context("get ServiceAccount")?;
                Ok(Progress::when(account.is_some(), (), || {
                    "it does not exist".into()
                }))
            },
        )
        .await
    }
}

/// An object of a known type from its JSON.
pub(crate) fn typed<T: DeserializeOwned>(object: Value) -> Result<T> {
    serde_json::from_value(object).context("understand an object of the test bed's own")
}

fn unready(node: &Node) -> Option<String> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    if taints.is_some_and(|taints| !taints.is_empty()) {
        return Some(format!("{name} is tainted"));
    }
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready =
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    (!ready).then(|| format!("{name} is not Ready"))
}

fn no_grace_policy() -> Value {
    // Hooks may take no longer than the grace.
    let no_grace = "Object{spec: Object.spec{terminationGracePeriodSeconds: 0, containers: object.spec.containers\
        .filter(c, c.?lifecycle.?preStop.?sleep.hasValue())\
        .map(c, Object.spec.containers{name: c.name, lifecycle: Object.spec.containers.lifecycle{preStop: \
        Object.spec.containers.lifecycle.preStop{sleep: Object.spec.containers.lifecycle.preStop.sleep{seconds: 0}}}})}}";
    let create_pods = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
    json!({
        "metadata": {"name": NO_GRACE},
        "spec": {
            "failurePolicy": "Ignore",
            "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [create_pods]},
            "mutations": [{
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": no_grace},
            }],
        },
    })
}

fn storage_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "standard",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "testbed.local/none",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

fn node(number: u32) -> Value {
    let name = format!("fake-{number}");
    let room =
        json!({"cpu": "10000", "memory": "100Ti", "pods": "100000", "ephemeral-storage": "100Ti"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "type": "kwok",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
        },
        "status": {
            "allocatable": room,
            "capacity": room,
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": "127.0.0.1"}],
        },
    })
}
