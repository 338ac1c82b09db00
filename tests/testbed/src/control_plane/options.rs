//! Options of a control plane.

use crate::names::OperatorNames;

/// The level of the API server's audit log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditLevel {
    /// No audit log.
    #[default]
    Off,
    /// Who did what, when, with which outcome.
    Metadata,
    /// Also the bodies of the operator's own writes, of everybody's writes of its Leases, and of the answers.
    RequestResponse,
}

/// Options of a control plane. The default is a plain one with three fake nodes.
#[derive(Clone, Debug)]
pub struct ControlPlaneOptions {
    /// The API server's feature gate `ShardedListAndWatch`.
    pub sharded_list_and_watch: bool,
    /// The audit log.
    pub audit: AuditLevel,
    /// Fake nodes, each with room for every Pod.
    pub nodes: u32,
    /// For scale runs: no StatefulSet controller and no Pods; a StatefulSet's status follows its spec at once.
    pub statefulset_stage: bool,
    /// Claims are bound by Kubernetes itself, to volumes that the test creates: there is no provisioner. Otherwise each
    /// claim counts as bound, without a volume.
    pub real_volumes: bool,
    /// Lifts the controller manager's and the scheduler's own limit of requests per second.
    /// The API server's priority and fairness stays as it is.
    pub lift_client_limits: bool,
    /// The operator whose writes, Leases and table the audit log shows with their bodies.
    pub operator: OperatorNames,
    /// More flags: component, flag, value.
    pub extra_args: Vec<(String, String, String)>,
}

impl Default for ControlPlaneOptions {
    fn default() -> Self {
        Self {
            sharded_list_and_watch: true,
            audit: AuditLevel::Off,
            nodes: 3,
            statefulset_stage: false,
            real_volumes: false,
            lift_client_limits: false,
            operator: OperatorNames::default(),
            extra_args: Vec::new(),
        }
    }
}
