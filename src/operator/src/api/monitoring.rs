//! What measures the instances of a cluster.
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::spec::Resources;

/// Image of the exporter if the spec does not set it. The API server stores it with the object, so that a newer
/// version of the operator with a newer image restarts no database.
const DEFAULT_IMAGE: &str = "quay.io/prometheuscommunity/postgres-exporter:v0.20.1";
/// Resources of the exporter if the spec does not set them: requests and limits, so that they do not change the
/// class of the Pods.
const DEFAULT_CPU: &str = "100m";
const DEFAULT_MEMORY: &str = "128Mi";

/// What measures the instances.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Monitoring {
    /// A container with postgres_exporter in each Pod, which serves metrics at its port `metrics` (9187); `{}` is
    /// enough. A change restarts the instances one after the other, the primary last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exporter: Option<Exporter>,
}

/// The container with postgres_exporter.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exporter {
    /// Container image of postgres_exporter. The Pods pull it from this registry too: use a mirror where that is not
    /// wanted.
    #[serde(default = "default_image")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^\\s]+$')").message("image must name a container image and have no blanks, for example quay.io/prometheuscommunity/postgres-exporter:v0.20.1"))]
    pub image: String,

    /// CPU and memory of the exporter, as those of an instance. Without any of them: `cpu: 100m`, `memory: 128Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

impl Exporter {
    /// Requests and limits of its container.
    #[must_use]
    pub fn amounts(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let given = self.resources.clone().unwrap_or_default();
        given.amounts_or(DEFAULT_CPU, DEFAULT_MEMORY)
    }
}

fn default_image() -> String {
    DEFAULT_IMAGE.to_owned()
}
