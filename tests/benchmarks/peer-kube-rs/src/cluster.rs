//! DatabaseCluster as far as the peer reads and writes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// What users ask for.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize)]
#[kube(
    group = "database.io",
    version = "v1",
    kind = "DatabaseCluster",
    namespaced,
    status = "DatabaseClusterStatus",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DatabaseClusterSpec {
    pub(crate) replicas: i32,
    pub(crate) image: String,
    #[serde(default)]
    pub(crate) resources: Resources,
    #[serde(default)]
    pub(crate) storage: Storage,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Resources {
    #[serde(default)]
    pub(crate) cpu: String,
    #[serde(default)]
    pub(crate) memory: String,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Storage {
    #[serde(default)]
    pub(crate) size: String,
}

/// What the peer reports.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DatabaseClusterStatus {
    pub(crate) replicas: i32,
    pub(crate) ready_replicas: i32,
    pub(crate) selector: String,
    pub(crate) observed_generation: i64,
    pub(crate) phase: String,
    pub(crate) conditions: Vec<Condition>,
}

impl DatabaseClusterStatus {
    pub(crate) fn is_true(&self, kind: &str) -> bool {
        let condition = self.conditions.iter().find(|one| one.type_ == kind);
        condition.is_some_and(|one| one.status == "True")
    }
}
