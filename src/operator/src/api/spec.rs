//! What a user asks for: the spec of a `DatabaseCluster`, with the rules the API server checks.
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::customization::{self, Customization};
use super::status::DatabaseClusterStatus;
use super::{postgresql, quantity};

/// CPU of an instance if the spec does not set it. The schema sets no default: a default would be
/// stored, and would conflict with requests and limits that a user sets later.
const DEFAULT_CPU: &str = "500m";
/// Memory of an instance if the spec does not set it.
const DEFAULT_MEMORY: &str = "512Mi";

/// Desired state of the PostgreSQL cluster.
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
    // `{name}-db` must stay within the 52 characters that a StatefulSet's `controller-revision-hash` label
    // leaves it.
    validation = Rule::new("self.metadata.name.size() <= 49").message("metadata.name must have at most 49 characters: the names of its Pods and StatefulSet are derived from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must start with a lower-case letter, end with a letter or digit, and consist of lower-case letters, digits and '-': its Services are named after it"),
    validation = Rule::new(quantity::SIZE_GROWS).message("storage.size may not shrink below the size that the volumes have, see status.storageSize").field_path(".spec.storage.size"),
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
        description = "Desired replicas"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.phase",
        description = "Phase of the cluster"
    ),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].status",
        description = "Whether the primary serves"
    ),
    printcolumn(
        name = "Primary",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].reason",
        description = "PrimaryReady, or why the primary does not serve",
        priority = 1
    ),
    printcolumn(
        name = "Degraded",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Degraded\")].reason",
        description = "Reason of the condition Degraded; AsExpected if nothing is wrong",
        priority = 1
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
#[x_kube(validation = Rule::new(customization::USER_IS_IMMUTABLE).message("securityContext.runAsUser and securityContext.assignedByPlatform cannot be changed after creation: the files of the volumes belong to that user").field_path(".securityContext"))]
#[x_kube(validation = Rule::new(postgresql::INITDB_IS_IMMUTABLE).message(postgresql::INITDB_SAYS).field_path(".postgresql"))]
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

    /// CPU and memory of each instance: either `cpu` and `memory`, which are reserved and are also
    /// the limit, or `requests` and `limits`. Without any of them: `cpu: 500m`, `memory: 512Mi`.
    #[serde(default)]
    pub resources: Resources,

    /// The volume of each instance.
    #[serde(default)]
    pub storage: Storage,

    /// Fields that few clusters set, beside the others in JSON; none if none of them is set.
    #[serde(
        flatten,
        default,
        deserialize_with = "customization::read",
        skip_serializing_if = "Option::is_none"
    )]
    pub customization: Option<Box<Customization>>,
}

/// CPU and memory of each instance.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.cpu) || has(self.memory)) || !(has(self.requests) || has(self.limits))").message("set either cpu and memory, which are request and limit alike, for example {cpu: 500m, memory: 1Gi}, or requests and limits, not both"))]
#[x_kube(validation = Rule::new(quantity::REQUESTS_WITHIN_LIMITS).message("a request must not be more than the limit of the same name"))]
pub struct Resources {
    /// CPU of each instance, in cores (`2`, `0.5`) or thousandths of a core (`500m`). 500m when only
    /// `memory` is set.
    #[serde(
        default,
        deserialize_with = "quantity::optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(validation = Rule::new(quantity::CPU).message(quantity::CPU_SAYS))]
    pub cpu: Option<String>,

    /// Memory of each instance, for example `512Mi` or `4Gi`. 512Mi when only `cpu` is set.
    #[serde(
        default,
        deserialize_with = "quantity::optional",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(validation = Rule::new(quantity::BYTES).message(quantity::MEMORY_SAYS))]
    pub memory: Option<String>,

    /// Resource requests of each instance, as in a Pod: `cpu`, `memory` and other resources by name.
    #[serde(
        default,
        deserialize_with = "quantity::optional_map",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "quantity::map_schema")]
    #[x_kube(validation = Rule::new(quantity::MAP).message(quantity::MAP_SAYS))]
    #[x_kube(validation = Rule::new(quantity::MAP_CPU).message(quantity::CPU_SAYS))]
    #[x_kube(validation = Rule::new(quantity::MAP_MEMORY).message(quantity::MEMORY_SAYS))]
    pub requests: Option<BTreeMap<String, String>>,

    /// Resource limits of each instance, as in a Pod: `cpu`, `memory` and other resources by name.
    #[serde(
        default,
        deserialize_with = "quantity::optional_map",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "quantity::map_schema")]
    #[x_kube(validation = Rule::new(quantity::MAP).message(quantity::MAP_SAYS))]
    #[x_kube(validation = Rule::new(quantity::MAP_CPU).message(quantity::CPU_SAYS))]
    #[x_kube(validation = Rule::new(quantity::MAP_MEMORY).message(quantity::MEMORY_SAYS))]
    pub limits: Option<BTreeMap<String, String>>,
}

impl Resources {
    /// Requests and limits of each instance's containers.
    #[must_use]
    pub fn amounts(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        self.amounts_or(DEFAULT_CPU, DEFAULT_MEMORY)
    }

    /// Requests and limits, with these amounts where the short form does not set them.
    pub(super) fn amounts_or(
        &self,
        cpu: &str,
        memory: &str,
    ) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        if self.requests.is_some() || self.limits.is_some() {
            let amounts = |map: &Option<BTreeMap<String, String>>| map.clone().unwrap_or_default();
            return (amounts(&self.requests), amounts(&self.limits));
        }
        let amount = |name: &str, given: &Option<String>, default: &str| {
            let amount = given.as_deref().unwrap_or(default);
            (name.to_owned(), amount.to_owned())
        };
        let both = BTreeMap::from([
            amount("cpu", &self.cpu, cpu),
            amount("memory", &self.memory, memory),
        ]);
        (both.clone(), both)
    }

    /// The amount that bounds the memory of each instance: its limit, or else its request.
    #[must_use]
    pub fn memory(&self) -> String {
        let (requests, limits) = self.amounts();
        let memory = limits.get("memory").or_else(|| requests.get("memory"));
        memory.map_or(DEFAULT_MEMORY, String::as_str).to_owned()
    }
}

/// The volume of each instance.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)").message("storage.className cannot be changed after creation").field_path(".className"))]
pub struct Storage {
    /// Size of each volume, for example `10Gi`. It may grow, and shrink to what the volumes have
    /// (`status.storageSize`): a volume never shrinks, and one that is larger is left alone.
    #[serde(default = "default_size", deserialize_with = "quantity::text")]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(validation = Rule::new(quantity::BYTES).message("size must be from 16Mi to 1Ei, for example 500Mi or 10Gi; a number without a unit is in bytes"))]
    pub size: String,

    /// StorageClass of the volumes; without it, the default one of the Kubernetes cluster. It
    /// cannot be changed after creation.
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

fn default_size() -> String {
    "1Gi".to_owned()
}
