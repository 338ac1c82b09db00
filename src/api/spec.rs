//! What a user asks for: the spec of a `DatabaseCluster`, with the rules the API server checks.
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::DatabaseClusterStatus;

/// Longest name: `{name}-db` must stay within the 52 characters that a StatefulSet's
/// `controller-revision-hash` label leaves it.
pub const NAME_LENGTH_MAX: usize = 49;
/// Most replicas of one cluster.
pub const REPLICAS_MAX: i32 = 99;

/// The wished-for state of a PostgreSQL cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "database.io",
    version = "v1",
    kind = "DatabaseCluster",
    plural = "databaseclusters",
    shortname = "dbc",
    category = "all",
    namespaced,
    status = "DatabaseClusterStatus",
    derive = "PartialEq",
    doc = "A PostgreSQL cluster: one primary, and read-only replicas that follow it.",
    validation = Rule::new("self.metadata.name.size() <= 49").message("metadata.name must have at most 49 characters: the names of its Pods and StatefulSet are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must start with a lower-case letter, end with a letter or digit, and consist of lower-case letters, digits and '-': its Services are named after it"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "Replicas that accept connections"
    ),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".spec.replicas",
        description = "Replicas asked for"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.phase",
        description = "Where the cluster is in its life"
    ),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].status",
        description = "Whether the primary serves"
    ),
    printcolumn(
        name = "Image",
        type_ = "string",
        json_path = ".spec.image",
        description = "Container image of PostgreSQL",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseClusterSpec {
    /// Number of PostgreSQL instances, 0 to 99: the first is the primary, the others are read-only
    /// replicas of it. 0 pauses the cluster and keeps its data.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 99))]
    pub replicas: i32,

    /// Container image of PostgreSQL, for example `postgres:18`. Changing it restarts the
    /// instances one after the other, the primary last.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(r"self.matches('^[^\\s]+$')").message("image must name a container image and have no blanks, for example postgres:18"))]
    pub image: String,

    /// CPU and memory of each instance. Both are reserved and are also the limit.
    #[serde(default)]
    pub resources: Resources,

    /// The volume of each instance.
    #[serde(default)]
    pub storage: Storage,
}

/// CPU and memory of each instance.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU of each instance, in cores (`2`, `0.5`) or thousandths of a core (`500m`).
    #[serde(default = "default_cpu")]
    #[schemars(
        length(max = 20),
        regex(pattern = r"^([0-9]+m|[0-9]+(\.[0-9]{1,3})?)$")
    )]
    #[x_kube(validation = Rule::new("!isQuantity(self) || quantity(self).isGreaterThan(quantity('0'))").message("cpu must be more than 0"))]
    pub cpu: String,

    /// Memory of each instance, for example `512Mi` or `4Gi`.
    #[serde(default = "default_memory")]
    #[schemars(
        length(max = 20),
        regex(pattern = r"^[0-9]+(\.[0-9]+)?([kMGTPE]|[KMGTPE]i)?$")
    )]
    #[x_kube(validation = Rule::new("!isQuantity(self) || quantity(self).isGreaterThan(quantity('0'))").message("memory must be more than 0"))]
    pub memory: String,
}

/// The volume of each instance.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!isQuantity(self.size) || !isQuantity(oldSelf.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0").message("storage.size may grow but not shrink").field_path(".size"))]
#[x_kube(validation = Rule::new("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)").message("storage.className can not be changed after creation").field_path(".className"))]
pub struct Storage {
    /// Size of each volume, for example `10Gi`. It may grow, but not shrink.
    #[serde(default = "default_size")]
    #[schemars(
        length(max = 20),
        regex(pattern = r"^[0-9]+(\.[0-9]+)?([kMGTPE]|[KMGTPE]i)?$")
    )]
    #[x_kube(validation = Rule::new("!isQuantity(self) || quantity(self).isGreaterThan(quantity('0'))").message("size must be more than 0"))]
    pub size: String,

    /// StorageClass of the volumes; without it, the default one of the Kubernetes cluster. It can
    /// not be changed after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,

    /// What happens to the volumes when the DatabaseCluster is deleted: `Retain` keeps them with
    /// their data, `Delete` deletes them.
    #[serde(default)]
    pub retain: Retain,
}

/// What happens to the volumes when the DatabaseCluster is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retain {
    /// They stay, with their data.
    #[default]
    Retain,
    /// They are deleted.
    Delete,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: default_cpu(),
            memory: default_memory(),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            size: default_size(),
            class_name: None,
            retain: Retain::default(),
        }
    }
}

fn default_replicas() -> i32 {
    1
}

fn default_cpu() -> String {
    "500m".to_owned()
}

fn default_memory() -> String {
    "512Mi".to_owned()
}

fn default_size() -> String {
    "1Gi".to_owned()
}
