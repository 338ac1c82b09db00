//! Selects the lifecycle transition for an observation.

use jiff::{SignedDuration, Timestamp};

use super::{ConditionReason, Creating, Degraded, Lifecycle, Ready, Scaling, Terminating};
use crate::api::{Condition, ConditionStatus, ConditionType, DatabaseClusterStatus, Phase};

/// A change that takes longer is reported as Degraded.
const PROGRESS_DEADLINE: SignedDuration = SignedDuration::from_mins(10);

/// Reasons of conditions.
pub(crate) mod reason {
    /// The children are being created.
    pub(crate) const CREATING: &str = "Creating";
    /// Instances are being brought to the state in the spec.
    pub(crate) const SCALING: &str = "Scaling";
    /// A child was changed or deleted by someone else, and is being restored.
    pub(crate) const REPAIRING: &str = "Repairing";
    /// A child of a former cluster of this name still exists.
    pub(crate) const WAITING: &str = "WaitingForFormerCluster";
    /// All instances are ready.
    pub(crate) const ALL_READY: &str = "AllInstancesReady";
    /// The spec requests no instances.
    pub(crate) const PAUSED: &str = "Paused";
    /// No change is in progress.
    pub(crate) const SETTLED: &str = "Settled";
    /// Instances that were ready no longer are.
    pub(crate) const NOT_READY: &str = "InstancesNotReady";
    /// A Pod runs, and its probe fails.
    pub(crate) const PROBE_FAILED: &str = "ProbeFailed";
    /// The change takes too long.
    pub(crate) const DEADLINE: &str = "ProgressDeadlineExceeded";
    /// The cluster has so many finalizers that the operator does not keep them.
    pub(crate) const FINALIZERS: &str = "TooManyFinalizers";
    /// An object with a child's name belongs to someone else.
    pub(crate) const FOREIGN_CHILD: &str = "ForeignChild";
    /// The API server rejects a child as invalid.
    pub(crate) const INVALID: &str = "Invalid";
    /// The API server forbids a child.
    pub(crate) const FORBIDDEN: &str = "Forbidden";
    /// The image has another major version than the data.
    pub(crate) const MAJOR_VERSION: &str = "MajorVersionChange";
    /// The spec sets a parameter of PostgreSQL that cannot be applied.
    pub(crate) const PARAMETERS: &str = "InvalidParameters";
    /// The Secret with the passwords is missing.
    pub(crate) const SECRET_MISSING: &str = "SecretMissing";
    /// The Secret lacks keys that Pods need.
    pub(crate) const SECRET_INVALID: &str = "SecretInvalid";
    /// The Secret that `spec.tls` names is missing.
    pub(crate) const TLS_MISSING: &str = "TlsSecretMissing";
    /// The Secret that `spec.tls` names is no good.
    pub(crate) const TLS_INVALID: &str = "TlsSecretInvalid";
    /// The claim of the primary is missing, and claims of replicas exist.
    pub(crate) const PRIMARY_VOLUME: &str = "PrimaryVolumeMissing";
    /// A claim of an instance is being deleted.
    pub(crate) const CLAIM_DELETED: &str = "ClaimBeingDeleted";
    /// Claims cannot be resized.
    pub(crate) const STORAGE: &str = "StorageNotGrown";
    /// The primary has accepted connections at least once.
    pub(crate) const INITIALIZED: &str = "Initialized";
    /// An object carries a fencing token ahead of the holder's.
    pub(crate) const TOKEN_AHEAD: &str = "FencingTokenAhead";
    /// The fence keeps refusing a write.
    pub(crate) const WRITE_REFUSED: &str = "WriteRefused";
    /// The API server, or a webhook it calls, keeps failing.
    pub(crate) const API_SERVER_ERROR: &str = "ApiServerError";
    /// The operator lacks a permission.
    pub(crate) const MISSING_RIGHTS: &str = "MissingRights";
    /// The reconcile keeps failing for another reason.
    pub(crate) const RECONCILE_FAILED: &str = "ReconcileFailed";
    /// The primary serves.
    pub(crate) const PRIMARY_READY: &str = "PrimaryReady";
    /// The primary does not serve.
    pub(crate) const PRIMARY_NOT_READY: &str = "PrimaryNotReady";
    /// A load balancer has given no address yet.
    pub(crate) const ADDRESS_PENDING: &str = "AddressPending";
    /// Each load balancer has given an address.
    pub(crate) const ADDRESS_ASSIGNED: &str = "AddressAssigned";
    /// It is being deleted.
    pub(crate) const TERMINATING: &str = "Terminating";

    /// The reasons of failures that the object does not cause: the message contains the time of the
    /// next retry.
    pub(crate) const PERSISTENT: [&str; 3] = [API_SERVER_ERROR, MISSING_RIGHTS, RECONCILE_FAILED];
}

/// A cluster in any lifecycle state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its objects are being created.
    Creating(Lifecycle<Creating>),
    /// Its instances are being brought to the state in the spec.
    Scaling(Lifecycle<Scaling>),
    /// All instances accept connections.
    Ready(Lifecycle<Ready>),
    /// Something is wrong.
    Degraded(Lifecycle<Degraded>),
    /// It is being deleted.
    Terminating(Lifecycle<Terminating>),
}

/// What keeps the children from their desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It goes away by itself.
    Transient(ConditionReason),
    /// Somebody has to repair it.
    Permanent(ConditionReason),
}

/// The StatefulSet, as far as the lifecycle of the cluster depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// It does not exist, as far as observed.
    Absent,
    /// It exists, and its controller has not observed it yet.
    New,
    /// Pods are missing, too many, not ready, or not of the newest template.
    Unsettled {
        /// Pods that exist.
        exist: i32,
        /// Pods that are ready.
        ready: i32,
        /// Whether Pods are still to be replaced by newer ones.
        rolling: bool,
        /// Whether its controller has observed its newest generation; until then the counts are of the one
        /// before.
        observed: bool,
    },
    /// All Pods are in their desired state.
    Settled,
}

/// Observed state of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Observed<'a> {
    /// Generation of the spec.
    pub generation: i64,
    /// Replicas that the spec requests.
    pub wanted: i32,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The StatefulSet.
    pub workload: Workload,
    /// Whether a child was just changed.
    pub changed: bool,
    /// What keeps the children from being as they should.
    pub problem: Option<&'a Problem>,
    /// Why Pods cannot be ready: reason and message.
    pub diagnosis: Option<&'a ConditionReason>,
    /// The time.
    pub now: Timestamp,
}

impl Stage {
    /// The stage according to the conditions. `phase` is not read.
    #[must_use]
    pub(crate) fn reconstruct(status: &DatabaseClusterStatus) -> Self {
        let holds = |kind| {
            status
                .condition(kind)
                .filter(|c| c.status == ConditionStatus::True)
        };
        let why = |c: &Condition| ConditionReason::new(&c.reason, c.message.clone());
        if let Some(ready) = holds(ConditionType::Ready) {
            Self::Ready(Lifecycle::at(why(ready)))
        } else if let Some(degraded) = holds(ConditionType::Degraded) {
            Self::Degraded(Lifecycle::at(why(degraded)))
        } else {
            match holds(ConditionType::Progressing) {
                Some(c) if c.reason != reason::CREATING => Self::Scaling(Lifecycle::at(why(c))),
                _ => Self::Creating(Lifecycle::begin(creating())),
            }
        }
    }

    /// The phase that is displayed for the stage.
    #[must_use]
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Self::Creating(s) => s.phase(),
            Self::Scaling(s) => s.phase(),
            Self::Ready(s) => s.phase(),
            Self::Degraded(s) => s.phase(),
            Self::Terminating(s) => s.phase(),
        }
    }

    /// Why the cluster is in this stage.
    #[must_use]
    pub(crate) fn why(&self) -> &ConditionReason {
        match self {
            Self::Creating(s) => s.why(),
            Self::Scaling(s) => s.why(),
            Self::Ready(s) => s.why(),
            Self::Degraded(s) => s.why(),
            Self::Terminating(s) => s.why(),
        }
    }

    /// The stage after an observation.
    #[must_use]
    pub(crate) fn next(self, observation: &Observed<'_>, before: &DatabaseClusterStatus) -> Self {
        if observation.deleting {
            return self.terminate(match observation.problem {
                Some(Problem::Permanent(why)) => why.clone(),
                Some(Problem::Transient(_)) | None => terminating(),
            });
        }
        match observation.problem {
            Some(Problem::Permanent(why)) => return self.degrade(why.clone()),
            Some(Problem::Transient(why)) => return self.scale(why.clone()),
            None => {}
        }
        match observation.workload {
            Workload::Absent => self.without_workload(observation, before),
            // Not worth a write: the first Pod is made in a moment.
            Workload::New | Workload::Unsettled { exist: 0, .. }
                if matches!(self, Self::Creating(_)) && observation.diagnosis.is_none() =>
            {
                self.create(observation, before)
            }
            _ if observation.changed => self.scale(observation.underway(before)),
            Workload::New => self.scale(observation.not_ready(reason::SCALING)),
            Workload::Settled => self.settle(observation.settled()),
            Workload::Unsettled {
                rolling, observed, ..
            } => self.unsettled(observation, before, rolling, observed),
        }
    }

    fn unsettled(
        self,
        observation: &Observed<'_>,
        before: &DatabaseClusterStatus,
        rolling: bool,
        observed: bool,
    ) -> Self {
        if let Some(why) = observation.diagnosis {
            return self.degrade(why.clone());
        }
        let new_spec = observation.is_new_spec(before);
        match self {
            Self::Scaling(s) if observation.deadline_passed(before) => {
                Self::Degraded(s.degrade(ConditionReason::new(
                    reason::DEADLINE,
                    format!("not ready after {PROGRESS_DEADLINE:#}"),
                )))
            }
            // What was reported when the change was made is still all that is known.
            Self::Scaling(s)
                if !new_spec
                    && !observed
                    && [reason::SCALING, reason::REPAIRING].contains(&s.why().reason.as_str()) =>
            {
                Self::Scaling(s)
            }
            Self::Ready(s) if !new_spec && !rolling => {
                Self::Degraded(s.degrade(observation.not_ready(reason::NOT_READY)))
            }
            Self::Degraded(s) if !new_spec => {
                if s.why().reason == reason::DEADLINE {
                    Self::Degraded(s)
                } else {
                    Self::Degraded(s.stay(observation.not_ready(reason::NOT_READY)))
                }
            }
            other => other.scale(observation.not_ready(reason::SCALING)),
        }
    }

    fn without_workload(self, observation: &Observed<'_>, before: &DatabaseClusterStatus) -> Self {
        match self {
            Self::Creating(_) => self.create(observation, before),
            Self::Scaling(_) | Self::Ready(_) | Self::Degraded(_) | Self::Terminating(_) => self
                .scale(ConditionReason::new(
                    reason::REPAIRING,
                    "the StatefulSet is missing and is being re-created",
                )),
        }
    }

    fn create(self, observation: &Observed<'_>, before: &DatabaseClusterStatus) -> Self {
        match self {
            Self::Creating(s) if observation.deadline_passed(before) => {
                Self::Degraded(s.degrade(deadline()))
            }
            Self::Creating(s) => Self::Creating(s.stay(creating())),
            Self::Scaling(_) | Self::Ready(_) | Self::Degraded(_) | Self::Terminating(_) => self,
        }
    }

    fn scale(self, why: ConditionReason) -> Self {
        match self {
            Self::Creating(s) => Self::Scaling(s.scale(why)),
            Self::Scaling(s) => Self::Scaling(s.stay(why)),
            Self::Ready(s) => Self::Scaling(s.scale(why)),
            Self::Degraded(s) => Self::Scaling(s.scale(why)),
            Self::Terminating(s) => Self::Terminating(s),
        }
    }

    fn degrade(self, why: ConditionReason) -> Self {
        match self {
            Self::Creating(s) => Self::Degraded(s.degrade(why)),
            Self::Scaling(s) => Self::Degraded(s.degrade(why)),
            Self::Ready(s) => Self::Degraded(s.degrade(why)),
            Self::Degraded(s) => Self::Degraded(s.stay(why)),
            Self::Terminating(s) => Self::Terminating(s),
        }
    }

    fn settle(self, why: ConditionReason) -> Self {
        match self {
            Self::Creating(s) => Self::Ready(s.scale(why.clone()).ready(why)),
            Self::Scaling(s) => Self::Ready(s.ready(why)),
            Self::Ready(s) => Self::Ready(s.stay(why)),
            Self::Degraded(s) => Self::Ready(s.ready(why)),
            Self::Terminating(s) => Self::Terminating(s),
        }
    }

    fn terminate(self, why: ConditionReason) -> Self {
        Self::Terminating(match self {
            Self::Creating(s) => s.terminate(why),
            Self::Scaling(s) => s.terminate(why),
            Self::Ready(s) => s.terminate(why),
            Self::Degraded(s) => s.terminate(why),
            Self::Terminating(s) => s.stay(why),
        })
    }
}

fn terminating() -> ConditionReason {
    ConditionReason::new(
        reason::TERMINATING,
        "being deleted: waiting until the StatefulSet and its Pods are deleted",
    )
}

fn creating() -> ConditionReason {
    ConditionReason::new(
        reason::CREATING,
        "creating the StatefulSet and what it needs",
    )
}

fn deadline() -> ConditionReason {
    let minutes = PROGRESS_DEADLINE.as_mins();
    ConditionReason::new(
        reason::DEADLINE,
        format!("not ready after {minutes} minutes"),
    )
}

impl Observed<'_> {
    fn ready(&self) -> i32 {
        match self.workload {
            Workload::Absent | Workload::New => 0,
            Workload::Unsettled { ready, .. } => ready,
            Workload::Settled => self.wanted,
        }
    }

    fn not_ready(&self, reason: &str) -> ConditionReason {
        let (ready, wanted) = (self.ready(), self.wanted);
        let restarts = match self.workload {
            Workload::Unsettled {
                rolling: true,
                observed: true,
                exist: 1..,
                ..
            } => "; those of the former Pod template restart one after the other, the primary last",
            Workload::Absent | Workload::New | Workload::Unsettled { .. } | Workload::Settled => "",
        };
        ConditionReason::new(
            reason,
            format!("{ready} of {wanted} instances are ready{restarts}"),
        )
    }

    fn underway(&self, before: &DatabaseClusterStatus) -> ConditionReason {
        if before.observed_generation == self.generation {
            ConditionReason::new(
                reason::REPAIRING,
                "something else changed an object of this cluster; it is being restored",
            )
        } else {
            ConditionReason::new(reason::SCALING, "applying a change of the spec")
        }
    }

    fn settled(&self) -> ConditionReason {
        match self.wanted {
            0 => ConditionReason::new(reason::PAUSED, "paused: no instances are asked for"),
            _ => self.not_ready(reason::ALL_READY),
        }
    }

    fn is_new_spec(&self, before: &DatabaseClusterStatus) -> bool {
        before
            .condition(ConditionType::Ready)
            .is_none_or(|c| c.observed_generation != self.generation)
    }

    fn deadline_passed(&self, before: &DatabaseClusterStatus) -> bool {
        progressing_since(before)
            .is_some_and(|since| self.now.duration_since(since) >= PROGRESS_DEADLINE)
    }
}

/// Since when a change has been in progress.
#[must_use]
pub(crate) fn progressing_since(status: &DatabaseClusterStatus) -> Option<Timestamp> {
    let condition = status.condition(ConditionType::Progressing)?;
    if condition.status != ConditionStatus::True {
        return None;
    }
    condition.last_transition_time.parse().ok()
}
