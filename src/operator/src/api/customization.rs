//! Optional fields of the spec that pass settings of Kubernetes on to the children: scheduling, metadata, users and
//! groups, Services.
//!
//! Few clusters set them, so a record keeps them in one box, and Pod fields of a free shape as JSON text.
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::monitoring::Monitoring;
use super::pod_schema;
use super::postgresql::Postgresql;
use super::tls::Tls;

/// A rule on the keys of labels and annotations. Patterns are no option: the API server estimates the cost of a
/// pattern on a key from the size of a request. A key that is not valid is refused by the API server when the child is
/// applied.
macro_rules! key_rule {
    ($($prefix:literal),* $(,)?) => {
        concat!(
            "self.all(k, k.size() <= 317"
            $(, " && !k.startsWith('", $prefix, "')")*,
            ")"
        )
    };
}

const OBJECT_KEYS: &str = key_rule!(
    "database.io/",
    "app.kubernetes.io/",
    "argocd.argoproj.io/",
    "kubectl.kubernetes.io/",
    "kubernetes.io/",
);
const POD_KEYS: &str = key_rule!(
    "database.io/",
    "app.kubernetes.io/",
    "apps.kubernetes.io/",
    "argocd.argoproj.io/",
    "kubectl.kubernetes.io/",
    "kubernetes.io/",
    "statefulset.kubernetes.io/",
    "controller-revision-hash",
    "pod-template-hash",
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
);
const OBJECT_KEYS_SAYS: &str = "names must have at most 317 characters, and not begin with database.io/, app.kubernetes.io/, argocd.argoproj.io/, kubectl.kubernetes.io/ or kubernetes.io/, whose labels and annotations the operator or the tools that apply manifests own: use a prefix of your own, for example example.com/team";
const POD_KEYS_SAYS: &str = "names must have at most 317 characters, and not begin with database.io/, app.kubernetes.io/, apps.kubernetes.io/, argocd.argoproj.io/, kubectl.kubernetes.io/, kubernetes.io/, statefulset.kubernetes.io/, controller-revision-hash, pod-template-hash, or the prefixes of AppArmor and seccomp annotations, which the operator, Kubernetes or the tools that apply manifests own: use a prefix of your own, for example example.com/team";

/// What a `loadBalancerClass` and an `externalTrafficPolicy` need.
const CLASS_NEEDS_TYPE: &str = "!has(self.loadBalancerClass) || self.type == 'LoadBalancer'";
const POLICY_NEEDS_TYPE: &str = "!has(self.externalTrafficPolicy) || self.type != 'ClusterIP'";
/// Kubernetes sets the class of a load balancer only together with its type.
const CLASS_IS_IMMUTABLE: &str = "self.type != 'LoadBalancer' || oldSelf.type != 'LoadBalancer' || (has(self.loadBalancerClass) == has(oldSelf.loadBalancerClass) && (!has(self.loadBalancerClass) || self.loadBalancerClass == oldSelf.loadBalancerClass))";

/// The user that PostgreSQL runs as owns the files of the volume, and PostgreSQL refuses files of another user.
pub(super) const USER_IS_IMMUTABLE: &str = "(has(self.securityContext) && has(self.securityContext.runAsUser) ? self.securityContext.runAsUser : 999) == (has(oldSelf.securityContext) && has(oldSelf.securityContext.runAsUser) ? oldSelf.securityContext.runAsUser : 999) && (has(self.securityContext) && self.securityContext.assignedByPlatform) == (has(oldSelf.securityContext) && oldSelf.securityContext.assignedByPlatform)";

/// JSON of a shape that the API server checks, as text: one allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(Box<str>);

impl JsonText {
    /// The JSON.
    #[must_use]
    pub fn value(&self) -> Value {
        // It was written from a value.
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(Self(value.to_string().into()))
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

/// Optional fields of a spec.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Customization {
    /// Rules on which nodes the instances run, and beside which Pods, as in a Pod. A change restarts the instances one
    /// after the other, the primary last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_schema::affinity")]
    pub affinity: Option<JsonText>,

    /// Taints of nodes that the instances tolerate, as in a Pod. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_schema::tolerations")]
    pub tolerations: Option<JsonText>,

    /// Labels that a node must have to run an instance. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_schema::label_values")]
    #[x_kube(validation = Rule::new("self.all(k, k.size() <= 317)").message("the names of labels must have at most 317 characters"))]
    pub node_selector: Option<BTreeMap<String, String>>,

    /// How the instances are spread over nodes or zones, as in a Pod. An entry without a `labelSelector` counts the
    /// instances of this cluster. Without this field, they are spread over nodes and zones as far as possible; a list
    /// replaces that, also an empty one. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_schema::topology_spread_constraints")]
    pub topology_spread_constraints: Option<JsonText>,

    /// PriorityClass of the instances. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("!self.startsWith('system-')").message("priorityClassName must not begin with system-: those classes are for what Kubernetes itself needs; create a PriorityClass of your own"))]
    pub priority_class_name: Option<String>,

    /// Secrets of this namespace with the credentials of image registries. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub image_pull_secrets: Option<Vec<SecretReference>>,

    /// User and groups of the instances, within the Pod Security level "restricted". Without it, user and group 999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<SecurityContext>,

    /// Labels and annotations of the objects of this cluster: StatefulSet, Services, ConfigMap, PodDisruptionBudget, and
    /// the Secret when it is created. Not of Pods and volume claims. A change restarts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ObjectMetadata>,

    /// Settings that apply to the Pods only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,

    /// Settings of the Services for clients. A change restarts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Services>,

    /// Settings of PostgreSQL itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<Postgresql>,

    /// What measures the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<Monitoring>,

    /// TLS for connections of clients and replicas. Without it, connections are not encrypted. Setting or removing it
    /// restarts the instances one after the other, the primary last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// Reads the fields; none if no field is set.
pub(super) fn read<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<Customization>>, D::Error> {
    let fields = Customization::deserialize(deserializer)?;
    Ok((fields != Customization::default()).then(|| Box::new(fields)))
}

/// A Secret by its name.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// User and groups of the instances.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.assignedByPlatform || !(has(self.runAsUser) || has(self.runAsGroup) || has(self.fsGroup))").message("set either assignedByPlatform: true, or runAsUser, runAsGroup and fsGroup, not both"))]
pub struct SecurityContext {
    /// Leaves user, group and group of the volume to the platform, as the security context constraints of OpenShift
    /// need it. It cannot be changed after creation.
    #[serde(default)]
    pub assigned_by_platform: bool,

    /// User of the instances; 999, that of the Debian images, if it is not set. It cannot be changed after creation:
    /// the files of the volumes belong to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub run_as_user: Option<i64>,

    /// Group of the instances; 999 if it is not set. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub run_as_group: Option<i64>,

    /// Group of the volumes; 999 if it is not set. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub fs_group: Option<i64>,

    /// Supplemental groups of the instances. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "pod_schema::groups")]
    pub supplemental_groups: Option<Vec<i64>>,

    /// SELinux type and level of the instances. A change restarts the instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub se_linux_options: Option<SeLinuxOptions>,
}

/// SELinux type and level, as far as the Pod Security level "restricted" allows them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeLinuxOptions {
    /// Type, one of those that the Pod Security level "restricted" allows.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SeLinuxType>,

    /// Level, for example `s0:c123,c456`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^s[0-9:,.cs-]*$"))]
    pub level: Option<String>,
}

/// SELinux type, one of those that the Pod Security level "restricted" allows.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::enum_variant_names, reason = "names of SELinux")]
pub enum SeLinuxType {
    /// A container.
    ContainerT,
    /// A container that runs an init system.
    ContainerInitT,
    /// A container with its own kernel.
    ContainerKvmT,
    /// A container that runs containers.
    ContainerEngineT,
}

/// Labels and annotations of objects.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectMetadata {
    /// Labels. They never change what a Service or the StatefulSet selects.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_schema::label_values")]
    #[x_kube(validation = Rule::new(OBJECT_KEYS).message(OBJECT_KEYS_SAYS))]
    pub labels: BTreeMap<String, String>,

    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_schema::annotation_values")]
    #[x_kube(validation = Rule::new(OBJECT_KEYS).message(OBJECT_KEYS_SAYS))]
    pub annotations: BTreeMap<String, String>,
}

/// Settings of the Pods.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodTemplate {
    /// Labels and annotations of the Pods. A change restarts the instances one after the other, the primary last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,
}

/// Labels and annotations of Pods.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodMetadata {
    /// Labels. They never change what a Service or the StatefulSet selects.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_schema::label_values")]
    #[x_kube(validation = Rule::new(POD_KEYS).message(POD_KEYS_SAYS))]
    pub labels: BTreeMap<String, String>,

    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_schema::annotation_values")]
    #[x_kube(validation = Rule::new(POD_KEYS).message(POD_KEYS_SAYS))]
    pub annotations: BTreeMap<String, String>,
}

/// Settings of the Services for clients.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The Service `<name>-rw`: the primary, to read and write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_write: Option<Service>,

    /// The Service `<name>-r`: all ready instances, to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<Service>,
}

/// Settings of a Service.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(CLASS_NEEDS_TYPE).message("loadBalancerClass needs type: LoadBalancer").field_path(".loadBalancerClass"))]
#[x_kube(validation = Rule::new(POLICY_NEEDS_TYPE).message("externalTrafficPolicy needs type: NodePort or LoadBalancer").field_path(".externalTrafficPolicy"))]
#[x_kube(validation = Rule::new(CLASS_IS_IMMUTABLE).message("loadBalancerClass cannot be set, changed or removed while the type is LoadBalancer: set type: ClusterIP first, which gives the address up, and then LoadBalancer with the other class").field_path(".loadBalancerClass"))]
pub struct Service {
    /// Type of the Service. NodePort and LoadBalancer make the database reachable from outside the Kubernetes cluster:
    /// restrict who may connect with a NetworkPolicy or the load balancer's settings.
    #[serde(rename = "type", default)]
    pub kind: ServiceType,

    /// Annotations of this Service alone, for example for the load balancer of a cloud provider. They override those of
    /// `spec.metadata.annotations`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_schema::annotation_values")]
    #[x_kube(validation = Rule::new(OBJECT_KEYS).message(OBJECT_KEYS_SAYS))]
    pub annotations: BTreeMap<String, String>,

    /// Class of the load balancer; without it, the default one. It cannot be changed while the type is LoadBalancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub load_balancer_class: Option<String>,

    /// Where traffic from outside is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_traffic_policy: Option<ExternalTrafficPolicy>,
}

/// Type of a Service.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Reachable from within the Kubernetes cluster.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Reachable through a port of every node.
    NodePort,
    /// Reachable through a load balancer.
    LoadBalancer,
}

/// Where traffic from outside is sent: `Cluster`, the default of Kubernetes, to all instances; `Local` only to those on
/// the node that received it, with the client's address.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalTrafficPolicy {
    /// To all instances.
    Cluster,
    /// To instances on the node that received it.
    Local,
}
