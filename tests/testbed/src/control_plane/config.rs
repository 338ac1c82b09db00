//! The files that kwokctl reads: its own configuration, the stages of fake objects, audit policy, scheduler.

use serde_json::{Value, json};
use std::path::Path;

use super::options::{AuditLevel, ControlPlaneOptions};
use crate::error::Result;
use crate::names::OperatorNames;
use crate::ports::free_ports;

/// The ports of one control plane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) api_server: u16,
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
    pub(super) controller_manager: u16,
    pub(super) scheduler: u16,
    pub(super) kwok: u16,
}

impl Ports {
    /// Ports that were free a moment ago.
    pub(super) fn choose() -> Result<Self> {
        let [
            api_server,
            etcd,
            etcd_peer,
            controller_manager,
            scheduler,
            kwok,
        ] = free_ports()?;
        Ok(Self {
            api_server,
            etcd,
            etcd_peer,
            controller_manager,
            scheduler,
            kwok,
        })
    }

    /// The ports on which a component must listen.
    pub(super) fn of(&self, component: &str) -> Vec<u16> {
        match component {
            "etcd" => vec![self.etcd, self.etcd_peer],
            "kube-apiserver" => vec![self.api_server],
            "kube-controller-manager" => vec![self.controller_manager],
            "kube-scheduler" => vec![self.scheduler],
            "kwok-controller" => vec![self.kwok],
            _ => Vec::new(),
        }
    }
}

/// The configuration and the stages, as YAML documents (JSON is YAML).
pub(super) fn kwokctl(
    options: &ControlPlaneOptions,
    ports: &Ports,
    bin: &Path,
    folder: &Path,
) -> String {
    let mut documents = vec![configuration(options, ports, bin, folder)];
    documents.extend(stages(options));
    let texts: Vec<String> = documents.iter().map(Value::to_string).collect();
    texts.join("\n---\n")
}

fn configuration(options: &ControlPlaneOptions, ports: &Ports, bin: &Path, folder: &Path) -> Value {
    let audit_policy = match options.audit {
        AuditLevel::Off => String::new(),
        _ => folder.join("audit-policy.yaml").display().to_string(),
    };
    let gates = sharding(options.sharded_list_and_watch);
    json!({
        "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
        "kind": "KwokctlConfiguration",
        "options": {
            "runtime": "binary",
            "bindAddress": "127.0.0.1",
            "kubeApiserverPort": ports.api_server,
            "etcdPort": ports.etcd,
            "etcdPeerPort": ports.etcd_peer,
            "kubeControllerManagerPort": ports.controller_manager,
            "kubeSchedulerPort": ports.scheduler,
            "kwokControllerPort": ports.kwok,
            "etcdBinary": bin.join("etcd"),
            "kubeApiserverBinary": bin.join("kube-apiserver"),
            "kubeControllerManagerBinary": bin.join("kube-controller-manager"),
            "kubeSchedulerBinary": bin.join("kube-scheduler"),
            "kubectlBinary": bin.join("kubectl"),
            "kwokControllerBinary": bin.join("kwok"),
            "kubeFeatureGates": gates,
            "kubeAuditPolicy": audit_policy,
            "kubeSchedulerConfig": folder.join("scheduler.yaml"),
            "nodeLeaseDurationSeconds": 40,
        },
        "componentsPatches": patches(options),
    })
}

/// The feature gate, as in command lines.
pub(super) fn sharding(on: bool) -> String {
    format!("ShardedListAndWatch={on}")
}

fn patches(options: &ControlPlaneOptions) -> Vec<Value> {
    let mut controllers = String::from("*");
    if !options.real_volumes {
        // It would mark a claim without a volume Pending again.
        controllers.push_str(",-persistentvolume-binder-controller");
    }
    if options.statefulset_stage {
        controllers.push_str(",-statefulset-controller");
    }
    let manager = "kube-controller-manager";
    let services = "10.0.0.0/12";
    let mut flags = vec![
        ("kube-apiserver", "service-cluster-ip-range", services),
        (manager, "service-cluster-ip-range", services),
        (manager, "controllers", controllers.as_str()),
        // It is the only one; with an election it would end itself when the API server is away.
        (manager, "leader-elect", "false"),
        // Loopback also for what is advertised, so that no client uses the machine's other addresses.
        ("kube-apiserver", "advertise-address", "127.0.0.1"),
        ("kube-apiserver", "endpoint-reconciler-type", "none"),
    ];
    if options.audit != AuditLevel::Off {
        // In MB: one file, never rotated, so that readers see everything in order.
        flags.push(("kube-apiserver", "audit-log-maxsize", "1000000"));
    }
    if options.lift_client_limits {
        for component in [manager, "kube-scheduler"] {
            flags.push((component, "kube-api-qps", "2000"));
            flags.push((component, "kube-api-burst", "4000"));
        }
        flags.push((manager, "concurrent-statefulset-syncs", "20"));
    }
    let extra = options.extra_args.iter();
    flags.extend(
        extra.map(|(component, flag, value)| (component.as_str(), flag.as_str(), value.as_str())),
    );
    let patch = |(component, flag, value): &(&str, &str, &str)| json!({"name": component, "extraArgs": [{"key": flag, "value": value}]});
    flags.iter().map(patch).collect()
}

/// The policy of the audit log: each request once, when its response is complete.
pub(super) fn audit_policy(level: AuditLevel, operator: &OperatorNames) -> Value {
    let mut rules = vec![json!({"level": "Metadata"})];
    if level == AuditLevel::RequestResponse {
        let writes = ["create", "update", "patch", "delete", "deletecollection"];
        rules.insert(
            0,
            json!({"level": "RequestResponse", "users": [operator.user()], "verbs": writes}),
        );
        let ownership = [
            json!({"group": "coordination.k8s.io", "resources": ["leases"]}),
            json!({"group": operator.domain, "resources": ["shardtables"]}),
        ];
        rules.insert(
            1,
            json!({
                "level": "RequestResponse", "namespaces": [operator.namespace],
                "resources": ownership, "verbs": writes,
            }),
        );
        // For every writer: users may edit the fencing token of an object.
        let changes = ["create", "update", "patch"];
        let fenced = [
            json!({"group": "database.io", "resources": ["databaseclusters", "databaseclusters/status"]}),
            json!({"group": "", "resources": ["configmaps", "services", "secrets", "persistentvolumeclaims"]}),
            json!({"group": "apps", "resources": ["statefulsets"]}),
            json!({"group": "policy", "resources": ["poddisruptionbudgets"]}),
        ];
        rules.insert(
            2,
            json!({"level": "RequestResponse", "resources": fenced, "verbs": changes}),
        );
    }
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "omitManagedFields": true,
        "rules": rules,
    })
}

/// Without a provisioner, the scheduler binds Pods with unbound claims.
pub(super) fn scheduler(options: &ControlPlaneOptions) -> Value {
    let disabled = match options.real_volumes {
        true => json!([]),
        false => json!([{"name": "VolumeBinding"}]),
    };
    json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": false},
        "profiles": [{
            "schedulerName": "default-scheduler",
            "plugins": {"multiPoint": {"disabled": disabled}},
        }],
    })
}

fn stages(options: &ControlPlaneOptions) -> Vec<Value> {
    let mut stages = vec![
        stage(
            "node-ready",
            "v1",
            "Node",
            "!has(self.status.phase)",
            NODE_STATUS,
        ),
        stage("pod-running", "v1", "Pod", POD_STARTS, POD_STATUS),
        stage(
            "pod-image-missing",
            "v1",
            "Pod",
            POD_LACKS_ITS_IMAGE,
            POD_STATUS_IMAGE_MISSING,
        ),
    ];
    if !options.real_volumes {
        stages.push(stage(
            "claim-bound",
            "v1",
            "PersistentVolumeClaim",
            "!has(self.metadata.deletionTimestamp) && self.status.phase == 'Pending'",
            CLAIM_STATUS,
        ));
    }
    if options.statefulset_stage {
        stages.push(stage(
            "statefulset-ready",
            "apps/v1",
            "StatefulSet",
            STATEFULSET_LAGS,
            STATEFULSET_STATUS,
        ));
    }
    stages
}

fn stage(name: &str, api: &str, kind: &str, when: &str, status: &str) -> Value {
    json!({
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": api, "kind": kind},
            "selector": {"matchExpressions": [{"cel": {"expression": when}}]},
            "steps": [{"patch": {"root": "status", "subresource": "status", "template": status}}],
        },
    })
}

/// `phase` of a node is long unused by Kubernetes itself; here it marks a finished stage.
const NODE_STATUS: &str = r#"
phase: Running
conditions:
{{ range NodeConditions }}
- {type: {{ .type | Quote }}, status: {{ .status | Quote }}, reason: {{ .reason | Quote }}, message: {{ .message | Quote }}, lastHeartbeatTime: {{ Now | Quote }}, lastTransitionTime: {{ Now | Quote }}}
{{ end }}
"#;

/// Pods whose image's tag ends with `-unmounted` wait for their volumes.
const POD_STARTS: &str = "!has(self.metadata.deletionTimestamp) && self.status.phase == 'Pending' && \
    !self.spec.containers.exists(c, c.image.endsWith('-missing') || c.image.endsWith('-unmounted'))";

/// Images whose tag ends with `-missing` are in no registry.
const POD_LACKS_ITS_IMAGE: &str = "!has(self.metadata.deletionTimestamp) && self.status.phase == 'Pending' && \
    self.spec.containers.exists(c, c.image.endsWith('-missing')) && !has(self.status.containerStatuses)";

/// The kubelet's status of a Pod whose first image cannot be pulled.
const POD_STATUS_IMAGE_MISSING: &str = r#"
{{ $now := Now }}
startTime: {{ $now | Quote }}
conditions:
- {type: PodScheduled, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ range $type := list "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "False", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
initContainerStatuses:
{{ range .spec.initContainers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: false, restartCount: 0, state: {waiting: {reason: ErrImagePull, message: "manifest unknown"}}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: false, restartCount: 0, state: {waiting: {reason: PodInitializing}}}
{{ end }}
"#;

const POD_STATUS: &str = r#"
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
{{ range $type := list "PodScheduled" "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
{{ with NodeIPsWith .spec.nodeName }}
hostIP: {{ index . 0 | Quote }}
hostIPs: [{ip: {{ index . 0 | Quote }}}]
{{ end }}
{{ with PodIPsWith .spec.nodeName ( or .spec.hostNetwork false ) ( or .metadata.uid "" ) ( or .metadata.name "" ) ( or .metadata.namespace "" ) }}
podIP: {{ index . 0 | Quote }}
podIPs: [{ip: {{ index . 0 | Quote }}}]
{{ end }}
initContainerStatuses:
{{ range .spec.initContainers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: true, restartCount: 0, state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, imageID: "", ready: true, started: true, restartCount: 0, state: {running: {startedAt: {{ $now | Quote }}}}}
{{ end }}
"#;

const CLAIM_STATUS: &str = r#"
phase: Bound
accessModes:
{{ range .spec.accessModes }}
- {{ . }}
{{ end }}
capacity:
  storage: {{ .spec.resources.requests.storage | Quote }}
"#;

const STATEFULSET_LAGS: &str = "!has(self.metadata.deletionTimestamp) && \
    (!has(self.status.observedGeneration) || self.status.observedGeneration != self.metadata.generation)";

const STATEFULSET_STATUS: &str = r#"
observedGeneration: {{ .metadata.generation }}
replicas: {{ .spec.replicas }}
readyReplicas: {{ .spec.replicas }}
availableReplicas: {{ .spec.replicas }}
currentReplicas: {{ .spec.replicas }}
updatedReplicas: {{ .spec.replicas }}
currentRevision: revision-{{ .metadata.generation }}
updateRevision: revision-{{ .metadata.generation }}
"#;
