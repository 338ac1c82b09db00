//! What a reconcile has to write: the difference between the observed and the desired state.

use std::sync::Arc;

use super::child::{ChildId, ChildKind, DesiredChild};
use super::image;
use super::lifecycle::{ConditionReason, Problem, reason};
use super::memory::{Memory, Standing};
use super::observed::{
    ChildRecord, ClusterRecord, FINALIZERS_MAX, Owner, StatefulSetRecord, is_our_group,
};
use super::parameters;
use crate::api::names;

/// How long an existing Secret delays a new cluster: long enough for the garbage collection of what a
/// former cluster left, the rest of which is deleted when this starts. Pods do not start with a Secret
/// of a former cluster in any case.
pub(crate) const SECRET_HOLD_MS: u64 = 10_000;

/// Input of the plan.
#[derive(Debug)]
pub(crate) struct Observed<'a> {
    /// The cluster.
    pub cluster: &'a ClusterRecord,
    /// The StatefulSet with the child's name, whatever its owner.
    pub statefulset: Option<&'a StatefulSetRecord>,
    /// The other observed children, whatever their owner.
    pub children: &'a [Arc<ChildRecord>],
    /// The desired children, in the order in which they are applied.
    pub desired: &'a [DesiredChild],
    /// Whether the volume of the primary has data.
    pub initialized: bool,
    /// Whether everything is applied once more, for drift that no watch reported.
    pub sweep: bool,
    /// Current time on the clock of `Memory`, in milliseconds.
    pub now_ms: u64,
}

/// What must hold of the object on the server before an apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Precondition {
    /// There is no object of that name.
    Absent,
    /// The object has this uid.
    Uid(String),
}

/// One child to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Apply {
    /// Its place in `Observed::desired`.
    pub index: usize,
    /// What must hold before the apply.
    pub precondition: Precondition,
}

/// One child to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delete {
    /// Kind and name.
    pub id: ChildId,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

/// What to do about the Secret, which is neither watched nor read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecretStep {
    /// Nothing.
    Leave,
    /// Create it unless it exists: there is no data yet with another password.
    Create {
        /// Whether an existing Secret stops the steps after it: it may belong to a former cluster,
        /// and be garbage-collected.
        hold: bool,
    },
    /// Check whether it exists: the primary would hang if it started without it.
    Probe,
}

/// The required writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing, and nothing can be reported either: the observed state is older than what we know.
    Wait {
        /// What is waited for.
        why: String,
        /// After how many milliseconds to stop waiting, unless a watch ends the wait.
        at_most_ms: Option<u64>,
    },
    /// Nothing any more: the cluster is being deleted and does not have our finalizer.
    Forget,
    /// The cluster is not being deleted.
    Keep {
        /// Our finalizer has to be added first.
        add_finalizer: bool,
        /// Step for the Secret before the StatefulSet is applied.
        secret: SecretStep,
        /// Children to apply, in this order.
        apply: Vec<Apply>,
        /// Children that are no longer desired.
        delete: Vec<Delete>,
        /// What keeps a child from being as it should.
        problem: Option<Problem>,
    },
    /// The cluster is being deleted; its StatefulSet still exists.
    TearDown {
        /// The StatefulSet to delete; none if the deletion was already requested.
        delete: Option<Delete>,
    },
    /// The cluster is being deleted and nothing of it is left.
    RemoveFinalizer,
}

enum Difference {
    Same,
    Lagging,
    Apply(Precondition),
    Problem(Problem),
}

/// Decides what to write.
#[must_use]
pub(crate) fn plan(observation: &Observed<'_>, memory: &mut Memory) -> Plan {
    let cluster = observation.cluster;
    if memory.cluster_lags(&cluster.resource_version, observation.now_ms) {
        return wait("the watch has not shown our last write to it yet".to_owned());
    }
    if cluster.deleting {
        return plan_deletion(observation);
    }
    match rendered_from_newer(observation) {
        None => memory.awaits_no_newer(),
        Some(id) => {
            let rest_ms = memory.awaits_newer(cluster.generation, observation.now_ms);
            if let Some(rest_ms) = rest_ms {
                return Plan::Wait {
                    why: format!("{id} reports that it was rendered from a newer generation"),
                    at_most_ms: Some(rest_ms),
                };
            }
        }
    }
    let mut apply = Vec::new();
    let mut problem = None;
    for (index, desired) in observation.desired.iter().enumerate() {
        match difference(observation, desired, memory) {
            Difference::Same => {}
            Difference::Lagging => {
                return wait(format!("the watch has not shown {} as it is", desired.id));
            }
            Difference::Apply(precondition) => apply.push(Apply {
                index,
                precondition,
            }),
            Difference::Problem(found) => problem = worst(problem, found),
        }
    }
    if cluster.has_excess_finalizers {
        problem = worst(problem, Problem::Permanent(excess_finalizers()));
    }
    if let Some(why) = parameters::refuse(&cluster.spec) {
        problem = worst(problem, Problem::Permanent(why));
    }
    if let Some(why) = refused_image(observation) {
        problem = worst(problem, Problem::Permanent(why));
    }
    let has_set = observation
        .statefulset
        .is_some_and(|set| is_ours(&set.child, cluster));
    if !has_set && problem.as_ref().is_some_and(is_waiting_for_former) {
        // Nothing is begun among what a former cluster left.
        apply.clear();
    }
    Plan::Keep {
        add_finalizer: !cluster.has_finalizer() && !cluster.has_excess_finalizers,
        secret: secret_step(observation, &apply, has_set, memory),
        apply,
        delete: unwanted(observation),
        problem,
    }
}

fn wait(why: String) -> Plan {
    Plan::Wait {
        why,
        at_most_ms: None,
    }
}

/// A child that says that it was rendered from a later generation of the cluster than the one we see:
/// our view of the cluster is old, or somebody edited the child.
fn rendered_from_newer(observation: &Observed<'_>) -> Option<ChildId> {
    let others = observation.children.iter().map(|child| &**child);
    let set = observation.statefulset.map(|set| &set.child);
    others
        .chain(set)
        .find(|child| is_rendered_from_newer(child, observation.cluster))
        .map(ChildRecord::id)
}

fn is_waiting_for_former(problem: &Problem) -> bool {
    matches!(problem, Problem::Transient(why) if why.reason == reason::WAITING)
}

fn secret_step(
    observation: &Observed<'_>,
    apply: &[Apply],
    has_set: bool,
    memory: &Memory,
) -> SecretStep {
    let applies_set = apply.iter().any(|step| {
        let child = observation.desired.get(step.index);
        child.is_some_and(|child| child.id.kind == ChildKind::StatefulSet)
    });
    let has_replicas = observation.cluster.spec.replicas > 1;
    match (observation.initialized, applies_set) {
        // A rollout begins with a replica, and does not go on to the primary before that one is ready.
        (true, true) if has_set && has_replicas && !observation.sweep => SecretStep::Leave,
        (true, true) => SecretStep::Probe,
        (true, false) => SecretStep::Leave,
        (false, true) => SecretStep::Create {
            hold: !has_set
                && !memory.has_secret()
                && memory.secret_suspected_ms(observation.now_ms) < SECRET_HOLD_MS,
        },
        // Until there is data: what was there may have been a former cluster's and be gone by now.
        (false, false)
            if has_set && !memory.has_secret() && observation.cluster.spec.replicas > 0 =>
        {
            SecretStep::Create { hold: false }
        }
        (false, false) => SecretStep::Leave,
    }
}

fn excess_finalizers() -> ConditionReason {
    let message = format!(
        "it has more than {FINALIZERS_MAX} finalizers, and the operator cannot add its own: remove some"
    );
    ConditionReason::new(reason::FINALIZERS, message)
}

fn refused_image(observation: &Observed<'_>) -> Option<ConditionReason> {
    let set = observation.statefulset?;
    if !observation.initialized || !is_ours(&set.child, observation.cluster) {
        return None;
    }
    image::refuse_change(&set.image, &observation.cluster.spec.image)
}

/// Children of ours that were seen and are not among the desired ones.
fn unwanted(observation: &Observed<'_>) -> Vec<Delete> {
    let is_desired = |child: &ChildRecord| observation.desired.iter().any(|d| d.id == child.id());
    observation
        .children
        .iter()
        .filter(|child| is_ours(child, observation.cluster) && !child.deleting)
        .filter(|child| !is_desired(child))
        .map(|child| Delete::of(child))
        .collect()
}

impl Delete {
    fn of(child: &ChildRecord) -> Self {
        Self {
            id: child.id(),
            uid: child.uid.clone(),
            resource_version: child.resource_version.clone(),
        }
    }
}

fn plan_deletion(observation: &Observed<'_>) -> Plan {
    let cluster = observation.cluster;
    if cluster.has_excess_finalizers {
        return wait(format!("it has more than {FINALIZERS_MAX} finalizers"));
    }
    if !cluster.has_finalizer() {
        return Plan::Forget;
    }
    let owned = observation
        .statefulset
        .map(|statefulset| &statefulset.child)
        .filter(|child| is_owned_by(child, cluster));
    match owned {
        Some(child) if !cluster.orphans_children() => Plan::TearDown {
            delete: (!child.deleting).then(|| Delete::of(child)),
        },
        _ => Plan::RemoveFinalizer,
    }
}

fn difference(
    observation: &Observed<'_>,
    desired: &DesiredChild,
    memory: &mut Memory,
) -> Difference {
    let statefulset = observation
        .statefulset
        .filter(|_| desired.id.kind == ChildKind::StatefulSet);
    let child = match statefulset {
        Some(statefulset) => Some(&statefulset.child),
        None => observation
            .children
            .iter()
            .map(|child| &**child)
            .find(|child| child.kind == desired.id.kind && child.key.name == desired.id.name),
    };
    let Some(child) = child else {
        if memory.expects(&desired.id, observation.now_ms) {
            return Difference::Lagging;
        }
        memory.forget_child(&desired.id);
        return Difference::Apply(Precondition::Absent);
    };
    if let Some(problem) = ownership_problem(child, observation.cluster) {
        return Difference::Problem(problem);
    }
    if child.deleting {
        return Difference::Problem(Problem::Transient(ConditionReason::new(
            reason::REPAIRING,
            format!("{} is being deleted; it will be re-created", desired.id),
        )));
    }
    let standing = memory.standing(child, observation.now_ms);
    let same_inside = match statefulset {
        Some(set) => {
            set.spec_digest == desired.spec_digest
                && set.labels_digest == desired.labels_digest
                // The digests do not cover optional fields.
                && (observation.cluster.spec.customization.is_none()
                    || standing != Standing::Touched)
        }
        None => standing != Standing::Touched,
    };
    if standing == Standing::Lagging {
        return Difference::Lagging;
    }
    // Under another bucket, the watch of its shard would not show it.
    let same_bucket = child.bucket == Some(observation.cluster.bucket);
    let same = same_inside
        && same_bucket
        && child.fingerprint == Some(desired.fingerprint)
        && is_owned_by(child, observation.cluster);
    if same && !observation.sweep {
        return Difference::Same;
    }
    Difference::Apply(Precondition::Uid(child.uid.clone()))
}

/// Whether a child's controller is this very cluster, not one of the same name.
#[must_use]
pub(crate) fn is_owned_by(child: &ChildRecord, cluster: &ClusterRecord) -> bool {
    child
        .owner
        .as_ref()
        .is_some_and(|owner| owner.uid() == &*cluster.uid)
}

/// Whether a child was created by the operator and has no controller: its cluster was deleted and
/// orphaned it (`--cascade=orphan`), it was restored from a backup, or its ownerReference was removed.
/// The cluster after which it is named adopts it.
#[must_use]
pub(crate) const fn is_orphan(child: &ChildRecord) -> bool {
    child.owner.is_none() && child.is_marked
}

/// Whether a child with this cluster's names belongs to it, or can be adopted by it.
#[must_use]
pub(crate) fn is_ours(child: &ChildRecord, cluster: &ClusterRecord) -> bool {
    is_owned_by(child, cluster) || is_orphan(child)
}

/// Whether a child was rendered from a later generation of the same cluster than the observed one.
#[must_use]
pub(crate) fn is_rendered_from_newer(child: &ChildRecord, cluster: &ClusterRecord) -> bool {
    is_owned_by(child, cluster)
        && child
            .rendered_from_generation
            .is_some_and(|generation| generation > cluster.generation)
}

/// The problem with the owner of an object with a child's name; none if the owner is this cluster, or
/// can be.
#[must_use]
pub(crate) fn ownership_problem(child: &ChildRecord, cluster: &ClusterRecord) -> Option<Problem> {
    if is_ours(child, cluster) {
        return None;
    }
    let id = child.id();
    match &child.owner {
        Some(owner) if is_former_self(owner, cluster) => {
            Some(Problem::Transient(ConditionReason::new(
                reason::WAITING,
                format!(
                    "{id} still belongs to a former DatabaseCluster of this name (uid {}); waiting \
                 until it is gone",
                    owner.uid()
                ),
            )))
        }
        owner => Some(Problem::Permanent(ConditionReason::new(
            reason::FOREIGN_CHILD,
            foreign_message(&id, owner.as_ref()),
        ))),
    }
}

fn foreign_message(id: &ChildId, owner: Option<&Owner>) -> String {
    let owned = match owner {
        Some(owner) => format!("belongs to {} {}", owner.kind(), owner.name()),
        None => "exists already and was not created for this DatabaseCluster".to_owned(),
    };
    format!("{id} {owned}; it is left alone: delete or rename it, or use another name")
}

fn is_former_self(owner: &Owner, cluster: &ClusterRecord) -> bool {
    owner.kind() == names::KIND
        && is_our_group(owner.api_version())
        && owner.name() == &*cluster.key.name
}

/// The more severe of two problems: permanent before transient, and of equals the first.
#[must_use]
pub(crate) fn worst(known: Option<Problem>, found: Problem) -> Option<Problem> {
    match (&known, &found) {
        (None, _) | (Some(Problem::Transient(_)), Problem::Permanent(_)) => Some(found),
        _ => known,
    }
}

#[cfg(test)]
mod tests;
