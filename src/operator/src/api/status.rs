//! What the operator reports: the status of a `DatabaseCluster` and its conditions.
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use std::fmt;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Observed state of the PostgreSQL cluster, written by the operator.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseClusterStatus {
    /// Number of instances that exist, ready or not.
    #[serde(default)]
    pub replicas: i32,

    /// Number of instances that accept connections.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Label selector of the instances' Pods, as text.
    #[serde(default)]
    pub selector: String,

    /// Size of the smallest volume of the instances, as it was last looked up: `spec.storage.size`
    /// can be set back to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub storage_size: Option<String>,

    /// The `metadata.generation` that this status is about.
    #[serde(default)]
    pub observed_generation: i64,

    /// Phase of the cluster, for display: Creating, Scaling, Ready, Degraded or Terminating.
    /// Programs read `conditions`.
    #[serde(
        default,
        deserialize_with = "known_phase",
        skip_serializing_if = "Option::is_none"
    )]
    pub phase: Option<Phase>,

    /// Conditions of the cluster: `Ready` (it is as its spec asks: all instances accept connections), `Progressing` (a
    /// change is being applied), `Degraded` (something is wrong; the message says what), `Available` (the primary
    /// serves, also while a change is refused), `Initialized` (the primary has accepted connections once: its volume
    /// has data), `Stalled` (only while something has to be corrected: waiting does not help),
    /// `Exposed` (only with Services of type LoadBalancer: each has an address).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Writer of this status: the last writer, which is not always the current holder of the shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardStatus>,
}

impl DatabaseClusterStatus {
    /// The condition of this type, if there is one.
    #[must_use]
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.type_ == kind)
    }

    /// Whether the primary has accepted connections at least once: from then on its volume has data.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.condition(ConditionType::Initialized)
            .is_some_and(|c| c.status == ConditionStatus::True)
    }

    /// Whether both report the same, regardless of the writer.
    #[must_use]
    pub(crate) fn is_same_report_as(&self, other: &Self) -> bool {
        self.replicas == other.replicas
            && self.ready_replicas == other.ready_replicas
            && self.selector == other.selector
            && self.storage_size == other.storage_size
            && self.observed_generation == other.observed_generation
            && self.phase == other.phase
            && self.conditions == other.conditions
    }
}

/// Reads a phase that this version does not know as absent: a phase that a newer version wrote must
/// not make the object unreadable.
fn known_phase<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Phase>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| Phase::ALL.into_iter().find(|p| p.label() == text)))
}

/// Phase of a cluster, for display.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Its objects are being created.
    Creating,
    /// Its instances are being brought to the state in the spec.
    Scaling,
    /// All instances accept connections.
    Ready,
    /// Something is wrong; the condition `Degraded` says what.
    Degraded,
    /// It is being deleted.
    Terminating,
}

impl Phase {
    /// Every phase, for metrics that start at zero.
    pub const ALL: [Self; 5] = [
        Self::Creating,
        Self::Scaling,
        Self::Ready,
        Self::Degraded,
        Self::Terminating,
    ];

    /// The text of it, also the label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Creating => "Creating",
            Self::Scaling => "Scaling",
            Self::Ready => "Ready",
            Self::Degraded => "Degraded",
            Self::Terminating => "Terminating",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A condition of the PostgreSQL cluster.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition: `Ready`, `Progressing`, `Degraded`, `Available` or
    /// `Initialized`.
    #[serde(rename = "type")]
    pub type_: ConditionType,

    /// Status of the condition: `True`, `False` or `Unknown`.
    pub status: ConditionStatus,

    /// Reason of the status in one word, for programs.
    pub reason: String,

    /// Explanation of the status, for people.
    pub message: String,

    /// The `metadata.generation` for which the condition was set.
    #[serde(default)]
    pub observed_generation: i64,

    /// When `status` last changed.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
}

/// What a condition is about.
///
/// Text, not an enumeration, in the schema: a newer operator may add types, and an older one must
/// be able to read them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ConditionType {
    /// It is as its spec asks: all instances accept connections.
    Ready,
    /// A change is being applied.
    Progressing,
    /// Something is wrong.
    Degraded,
    /// The primary serves.
    Available,
    /// The primary has accepted connections at least once; this condition stays true.
    Initialized,
    /// Nothing gets better by waiting; it exists only while that is so.
    Stalled,
    /// Each load balancer has given an address; it exists only while a Service asks for one.
    Exposed,
    /// A type that this version does not know.
    Other(String),
}

impl ConditionType {
    /// The text of it.
    #[must_use]
    pub fn label(&self) -> &str {
        match self {
            Self::Ready => "Ready",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
            Self::Available => "Available",
            Self::Initialized => "Initialized",
            Self::Stalled => "Stalled",
            Self::Exposed => "Exposed",
            Self::Other(text) => text,
        }
    }
}

impl From<String> for ConditionType {
    fn from(text: String) -> Self {
        match text.as_str() {
            "Ready" => Self::Ready,
            "Progressing" => Self::Progressing,
            "Degraded" => Self::Degraded,
            "Available" => Self::Available,
            "Initialized" => Self::Initialized,
            "Stalled" => Self::Stalled,
            "Exposed" => Self::Exposed,
            _ => Self::Other(text),
        }
    }
}

impl From<ConditionType> for String {
    fn from(kind: ConditionType) -> Self {
        kind.label().to_owned()
    }
}

impl JsonSchema for ConditionType {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ConditionType".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "maxLength": 316, "minLength": 1})
    }
}

/// Whether a statement holds.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known.
    #[serde(other)]
    Unknown,
}

/// The right to write at the time of this status.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    /// The `metadata.uid` of the shard table that grants the right to write.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub table: String,

    /// Name of the shard Lease.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub lease: String,

    /// Identity of the replica that held the shard.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub holder: String,

    /// Epoch of the shard Lease: it grows by one each time the shard changes hands.
    #[serde(default)]
    pub epoch: i64,

    /// Bucket of the cluster on the hash circle, 0 to 255.
    #[serde(default)]
    pub bucket: i32,

    /// The `metadata.uid` of the cluster that this status is about. The API server's fence refuses
    /// a status that was meant for a former cluster of the same name.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub uid: String,
}
