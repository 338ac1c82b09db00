//! Which transition an observation calls for.

use jiff::{SignedDuration, Timestamp};

use super::{ConditionReason, Creating, Degraded, Lifecycle, Ready, Scaling, Terminating};
use crate::api::{Condition, ConditionStatus, ConditionType, DatabaseClusterStatus, Phase};

/// A change that takes longer is reported as Degraded.
const PROGRESS_DEADLINE: SignedDuration = SignedDuration::from_mins(10);

/// The reasons in conditions.
pub mod reason {
    /// The children are being made.
    pub const CREATING: &str = "Creating";
    /// Instances are on the way to what the spec asks for.
    pub const SCALING: &str = "Scaling";
    /// Something that we did not ask for was changed or deleted, and is being put right.
    pub const REPAIRING: &str = "Repairing";
    /// A child of a former cluster of this name is still there.
    pub const WAITING: &str = "WaitingForFormerCluster";
    /// All instances are ready.
    pub const ALL_READY: &str = "AllInstancesReady";
    /// No instances are asked for.
    pub const PAUSED: &str = "Paused";
    /// Nothing is under way.
    pub const SETTLED: &str = "Settled";
    /// Instances that were ready are not any more.
    pub const NOT_READY: &str = "InstancesNotReady";
    /// The change takes too long.
    pub const DEADLINE: &str = "ProgressDeadlineExceeded";
    /// The cluster has so many finalizers that the operator does not keep them.
    pub const FINALIZERS: &str = "TooManyFinalizers";
    /// An object of a child's name belongs to someone else.
    pub const FOREIGN_CHILD: &str = "ForeignChild";
    /// The API server calls a child invalid.
    pub const INVALID: &str = "Invalid";
    /// The API server does not allow a child.
    pub const FORBIDDEN: &str = "Forbidden";
    /// The image asks for another major version than the data is of.
    pub const MAJOR_VERSION: &str = "MajorVersionChange";
    /// The Secret with the passwords is gone.
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// The Secret lacks keys that Pods need.
    pub const SECRET_INVALID: &str = "SecretInvalid";
    /// The claim of the primary is gone, and claims of replicas are not.
    pub const PRIMARY_VOLUME: &str = "PrimaryVolumeMissing";
    /// A claim of an instance is being deleted.
    pub const CLAIM_DELETED: &str = "ClaimBeingDeleted";
    /// Claims can not be grown.
    pub const STORAGE: &str = "StorageNotGrown";
    /// The primary has accepted connections at least once.
    pub const INITIALIZED: &str = "Initialized";
    /// An object carries a fencing token ahead of the holder's.
    pub const TOKEN_AHEAD: &str = "FencingTokenAhead";
    /// The fence keeps refusing a write.
    pub const WRITE_REFUSED: &str = "WriteRefused";
    /// The API server, or what it asks, keeps failing.
    pub const API_SERVER_ERROR: &str = "ApiServerError";
    /// The operator lacks a right.
    pub const MISSING_RIGHTS: &str = "MissingRights";
    /// The reconcile keeps failing for another reason.
    pub const RECONCILE_FAILED: &str = "ReconcileFailed";
    /// The primary serves.
    pub const PRIMARY_READY: &str = "PrimaryReady";
    /// The primary does not serve.
    pub const PRIMARY_NOT_READY: &str = "PrimaryNotReady";
    /// It is being deleted.
    pub const TERMINATING: &str = "Terminating";

    /// The reasons of failures that are not the object's: the message says when it is tried again.
    pub const PERSISTENT: [&str; 3] = [API_SERVER_ERROR, MISSING_RIGHTS, RECONCILE_FAILED];
}

/// A cluster in whatever state of its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its objects are being made.
    Creating(Lifecycle<Creating>),
    /// Its instances are on the way to what the spec asks for.
    Scaling(Lifecycle<Scaling>),
    /// All instances accept connections.
    Ready(Lifecycle<Ready>),
    /// Something is wrong.
    Degraded(Lifecycle<Degraded>),
    /// It is being deleted.
    Terminating(Lifecycle<Terminating>),
}

/// What keeps the children from being as they should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Something that goes by itself.
    Transient(ConditionReason),
    /// Something that somebody has to look at.
    Permanent(ConditionReason),
}

/// The StatefulSet as far as the life of the cluster depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// It does not exist, as far as we have seen.
    Absent,
    /// It exists, and its controller has not looked at it yet.
    New,
    /// Pods are missing, too many, not ready, or not of the newest template.
    Unsettled {
        /// Pods that exist.
        exist: i32,
        /// Pods that are ready.
        ready: i32,
        /// Whether Pods are still to be replaced by newer ones.
        rolling: bool,
        /// Whether its controller has looked at its newest form; until then the counts are of the one before.
        observed: bool,
    },
    /// All Pods are as they should be.
    Settled,
}

/// What was seen of a cluster.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// Generation of the spec.
    pub generation: i64,
    /// Replicas that the spec asks for.
    pub wanted: i32,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The StatefulSet.
    pub workload: Workload,
    /// Whether a child was just changed.
    pub changed: bool,
    /// What keeps the children from being as they should.
    pub problem: Option<&'a Problem>,
    /// Why Pods can not be ready: reason and message.
    pub diagnosis: Option<&'a ConditionReason>,
    /// The time.
    pub now: Timestamp,
}

impl Stage {
    /// The stage that the conditions tell of. `phase` is not read.
    #[must_use]
    pub fn reconstruct(status: &DatabaseClusterStatus) -> Self {
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

    /// What people see of the stage.
    #[must_use]
    pub fn phase(&self) -> Phase {
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
    pub fn why(&self) -> &ConditionReason {
        match self {
            Self::Creating(s) => s.why(),
            Self::Scaling(s) => s.why(),
            Self::Ready(s) => s.why(),
            Self::Degraded(s) => s.why(),
            Self::Terminating(s) => s.why(),
        }
    }

    /// The stage after what was seen.
    #[must_use]
    pub fn next(self, observation: &Observed<'_>, before: &DatabaseClusterStatus) -> Self {
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
            } => self.unsettled(observation, before, (rolling, observed)),
        }
    }

    fn unsettled(
        self,
        observation: &Observed<'_>,
        before: &DatabaseClusterStatus,
        (rolling, observed): (bool, bool),
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
            // What was said when the change was made is still all that is known.
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
            other => other.scale(ConditionReason::new(
                reason::REPAIRING,
                "the StatefulSet is gone and is being made again",
            )),
        }
    }

    fn create(self, observation: &Observed<'_>, before: &DatabaseClusterStatus) -> Self {
        match self {
            Self::Creating(s) if observation.deadline_passed(before) => {
                Self::Degraded(s.degrade(deadline()))
            }
            Self::Creating(s) => Self::Creating(s.stay(creating())),
            other => other,
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
        "being deleted: waiting until the StatefulSet and its Pods are gone",
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
        ConditionReason::new(reason, format!("{ready} of {wanted} instances are ready"))
    }

    fn underway(&self, before: &DatabaseClusterStatus) -> ConditionReason {
        if before.observed_generation == self.generation {
            ConditionReason::new(
                reason::REPAIRING,
                "something else changed an object of this cluster; it is being put right",
            )
        } else {
            ConditionReason::new(reason::SCALING, "carrying out a change of the spec")
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

/// Since when a change is under way.
#[must_use]
pub fn progressing_since(status: &DatabaseClusterStatus) -> Option<Timestamp> {
    let condition = status.condition(ConditionType::Progressing)?;
    if condition.status != ConditionStatus::True {
        return None;
    }
    condition.last_transition_time.parse().ok()
}
