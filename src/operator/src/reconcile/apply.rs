//! Applies the plan: children, one after the other, until a write is refused.

use std::sync::Arc;

use serde_json::Value;

use super::refused::Target;
use super::run::Run;
use crate::core::child::{ChildId, ChildKind, DesiredChild};
use crate::core::lifecycle::{ConditionReason, Problem, reason};
use crate::core::memory::{Memory, Standing};
use crate::core::observed::{ChildRecord, StatefulSetRecord};
use crate::core::plan::{
    Apply, Delete, Precondition, SecretStep, is_orphan, is_owned_by, ownership_problem, worst,
};
use crate::postgres;
use crate::watch::observe;
use sharded_controller::outcome::{Cause, Failure};
use sharded_controller::refusal::Refusal;

/// The plan for a cluster that is not being deleted.
pub(super) struct Steps<'a> {
    pub(super) secret: SecretStep,
    pub(super) desired: &'a [DesiredChild],
    pub(super) apply: &'a [Apply],
    pub(super) delete: &'a [Delete],
    pub(super) children: &'a [Arc<ChildRecord>],
    /// Whether everything is applied once more.
    pub(super) sweep: bool,
}

/// The result of applying the children.
#[derive(Default)]
pub(super) struct Applied {
    /// Whether the StatefulSet was changed.
    pub(super) changed: bool,
    pub(super) problem: Option<Problem>,
    pub(super) failure: Option<Failure>,
    /// Whether a child exists that the watch has not shown: nothing can be reported until it does.
    pub(super) out_of_sight: bool,
    /// Size of the smallest volume, if it was looked up.
    pub(super) volume_size: Option<String>,
}

impl Applied {
    /// Whether nothing but success has to be reported.
    pub(super) const fn is_plain(&self) -> bool {
        self.problem.is_none() && self.failure.is_none() && !self.out_of_sight
    }

    pub(super) fn note(&mut self, refused: Refused) {
        let (problem, failure) = match refused {
            Refused::Problem(problem) => (Some(problem), None),
            Refused::Reported(problem, failure) | Refused::Fenced(problem, failure) => {
                (Some(problem), Some(failure))
            }
            Refused::Failure(failure) => (None, Some(failure)),
            Refused::NotObserved => {
                self.out_of_sight = true;
                (None, None)
            }
        };
        if let Some(problem) = problem {
            self.problem = worst(self.problem.take(), problem);
        }
        // Of several, the first one is reported.
        self.failure = self.failure.take().or(failure);
    }

    /// Records what the fence keeps refusing, and continues: one object must not stop the work on
    /// others.
    pub(super) fn pass_over<T: Default>(
        &mut self,
        result: Result<T, Refused>,
    ) -> Result<T, Refused> {
        match result {
            Err(refused @ Refused::Fenced(..)) => {
                self.note(refused);
                Ok(T::default())
            }
            result => result,
        }
    }
}

/// Why a child was not applied.
pub(super) enum Refused {
    /// A problem to report on the cluster; `report` adds what it finds.
    Problem(Problem),
    /// Something that is reported on the cluster, and the failure that it is.
    Reported(Problem, Failure),
    /// The same, and the fence is what keeps refusing it.
    Fenced(Problem, Failure),
    /// It is there and ours, and the watch has not shown it.
    NotObserved,
    /// Something that says nothing about the cluster.
    Failure(Failure),
}

impl Refused {
    pub(super) fn by(refusal: Refusal, what: &str) -> Self {
        match refusal {
            Refusal::Refused(cause, message) => {
                let reason = match cause {
                    Cause::Forbidden => reason::FORBIDDEN,
                    Cause::Unavailable
                    | Cause::Invalid
                    | Cause::ForeignChild
                    | Cause::TokenAhead
                    | Cause::Fenced
                    | Cause::Timeout
                    | Cause::Panic
                    | Cause::Other => reason::INVALID,
                };
                let message = format!("{what}: {message}");
                Self::Reported(
                    Problem::Permanent(ConditionReason::new(reason, message.clone())),
                    Failure::Failed { cause, message },
                )
            }
            // The cluster is about to be deleted too.
            Refusal::NamespaceTerminating(message) => Self::Problem(Problem::Transient(
                ConditionReason::new(reason::SCALING, message),
            )),
            other => Self::Failure(other.into_failure(what)),
        }
    }
}

impl Run<'_> {
    /// Applies children, settles the Secret, deletes those that are not wanted and grows claims, one
    /// after the other until something is refused. `holds_set`: the StatefulSet stays as it is.
    pub(super) async fn execute_steps(
        &mut self,
        steps: &Steps<'_>,
        owned: Option<&StatefulSetRecord>,
        holds_set: bool,
        applied: &mut Applied,
    ) -> Result<(), Refused> {
        let is_blocked = applied.problem.is_some();
        if owned.is_none() && steps.children.iter().any(|child| is_orphan(child)) {
            self.may_adopt().await?;
        }
        let mut secret = Some(steps.secret);
        for step in steps.apply {
            let Some(child) = steps.desired.get(step.index) else {
                continue;
            };
            if child.id.kind == ChildKind::StatefulSet && holds_set {
                continue;
            }
            // After the others: they show whether a former cluster's objects still exist.
            if child.id.kind == ChildKind::StatefulSet
                && let Some(step) = secret.take()
            {
                self.settle_secret(step).await?;
            }
            if let Some(record) = self.lacks_only_data(child, step, steps) {
                let done = self.report_data(child, record).await;
                applied.pass_over(done)?;
                continue;
            }
            let is_new_set = child.id.kind == ChildKind::StatefulSet
                && step.precondition == Precondition::Absent;
            let over_claims = match is_new_set {
                true => self.template_over_claims().await?,
                false => None,
            };
            let manifest = self.manifest(child, owned, over_claims.as_ref());
            let done = self.apply_one(child, manifest, step, owned).await;
            applied.changed |= applied.pass_over(done)?;
        }
        if let Some(step) = secret {
            self.settle_secret(step).await?;
        }
        for delete in steps.delete {
            let record = steps.children.iter().find(|child| child.id() == delete.id);
            if let Some(record) = record {
                match self.delete_child(delete, record).await {
                    Ok(()) => self.wrote = true,
                    // Already deleted.
                    Err(Refusal::Gone) => {}
                    Err(refusal) => {
                        let target = Target::Child(&self.cluster.key, &delete.id);
                        let refused = self.refused(&target, refusal);
                        applied.pass_over::<()>(Err(refused))?;
                    }
                }
            }
        }
        match owned {
            Some(set) if !applied.changed && !is_blocked => {
                self.keep_claims(set, steps.sweep, applied).await
            }
            _ => Ok(()),
        }
    }

    /// The ConfigMap, if it is as we wrote it before the volume of the primary had data, and all that it
    /// lacks is to say so. Every new cluster comes here once, and the scripts in it are long.
    fn lacks_only_data<'c>(
        &self,
        child: &DesiredChild,
        step: &Apply,
        steps: &'c Steps<'_>,
    ) -> Option<&'c ChildRecord> {
        let is_config = child.id.kind == ChildKind::ConfigMap && self.initialized && !steps.sweep;
        if !is_config || step.precondition == Precondition::Absent {
            return None;
        }
        let record = steps.children.iter().find(|known| known.id() == child.id)?;
        let before = self.source(None).config_before_data();
        let is_as_before = record.fingerprint == Some(before)
            && record.bucket == Some(self.cluster.bucket)
            && is_owned_by(record, self.cluster);
        let now_ms = self.reconciler.clock.now_ms();
        let is_untouched = || {
            let reconciler = self.reconciler;
            let standing = |memory: &mut Memory| memory.standing(record, now_ms);
            reconciler.with_memory(self.cluster, standing) == Standing::Untouched
        };
        (is_as_before && is_untouched()).then_some(record)
    }

    /// Records in the ConfigMap that the volume of the primary has data.
    async fn report_data(
        &mut self,
        child: &DesiredChild,
        record: &ChildRecord,
    ) -> Result<(), Refused> {
        let change = self
            .source(None)
            .config_with_data(child, self.permit.token());
        let (namespace, writer) = (&self.cluster.key.namespace, &self.reconciler.writer);
        let answer = writer.merge(self.permit, namespace, record, change).await;
        let target = Target::Child(&self.cluster.key, &child.id);
        let meta = answer.map_err(|refusal| self.refused(&target, refusal))?;
        let version = meta.resource_version.as_deref().unwrap_or_default();
        self.wrote_child(&child.id, version, observe::contents(&meta));
        Ok(())
    }

    /// Applies one child; returns whether the StatefulSet was changed.
    async fn apply_one(
        &mut self,
        child: &DesiredChild,
        manifest: Option<Value>,
        step: &Apply,
        owned: Option<&StatefulSetRecord>,
    ) -> Result<bool, Refused> {
        let namespace = &self.cluster.key.namespace;
        let writer = &self.reconciler.writer;
        let precondition = &step.precondition;
        let manifest = manifest.ok_or_else(|| {
            Refused::Failure(Failure::Failed {
                cause: Cause::Other,
                message: format!(
                    "{} cannot be rendered; this is a bug in the operator",
                    child.id
                ),
            })
        })?;
        let answer = writer
            .apply(self.permit, namespace, &child.id, manifest, precondition)
            .await;
        if matches!(answer, Err(Refusal::Conflict(_))) && *precondition == Precondition::Absent {
            return self.make_observable(child).await;
        }
        let target = Target::Child(&self.cluster.key, &child.id);
        let meta = answer.map_err(|refusal| self.refused(&target, refusal))?;
        let version = meta.resource_version.as_deref().unwrap_or_default();
        self.wrote_child(&child.id, version, observe::contents(&meta));
        let known_generation = owned.map(|set| set.generation);
        Ok(child.id.kind == ChildKind::StatefulSet && meta.generation != known_generation)
    }

    /// Deals with a child that exists although the watch does not show it. If it is ours, the watch
    /// lags behind, or someone took its bucket label away, or it has the bucket of a former cluster,
    /// which left it: then it gets ours, and the watch will show it.
    async fn make_observable(&mut self, child: &DesiredChild) -> Result<bool, Refused> {
        let writer = &self.reconciler.writer;
        let namespace = &self.cluster.key.namespace;
        let found = writer
            .child_metadata(namespace, &child.id)
            .await
            .map_err(|refusal| Refused::by(refusal, &format!("reading {}", child.id)))?;
        let record = found.and_then(|meta| observe::child(child.id.kind, &meta));
        let problem = record
            .as_ref()
            .and_then(|record| ownership_problem(record, self.cluster));
        // What a former cluster left is waited for, however long it takes to go.
        if let Some(wait @ Problem::Transient(_)) = problem {
            return Err(Refused::Problem(wait));
        }
        let Some(record) = record.filter(|record| !record.deleting) else {
            return Err(Refused::Failure(Failure::Retry {
                fenced: false,
                message: format!("{} is being deleted or was deleted again", child.id),
            }));
        };
        if let Some(problem) = problem {
            return Err(Refused::Problem(problem));
        }
        if is_orphan(&record) && record.kind != ChildKind::StatefulSet {
            self.may_adopt().await?;
        }
        let marked = writer
            .mark_child(self.permit, self.cluster, &record, None)
            .await;
        let target = Target::Child(&self.cluster.key, &child.id);
        let version = marked.map_err(|refusal| self.refused(&target, refusal))?;
        self.wrote_child(&child.id, &version, None);
        Err(Refused::NotObserved)
    }

    /// Orphans are adopted only with the StatefulSet of their name: next to a StatefulSet of someone
    /// else, its Services must not become this cluster's and be deleted with it.
    async fn may_adopt(&self) -> Result<(), Refused> {
        let found = self.read_statefulset().await?;
        let problem = found.and_then(|record| ownership_problem(&record, self.cluster));
        problem.map_or(Ok(()), |problem| Err(Refused::Problem(problem)))
    }

    /// The StatefulSet of the cluster's name, whether or not the watch shows it.
    pub(super) async fn read_statefulset(&self) -> Result<Option<ChildRecord>, Refused> {
        let key = &self.cluster.key;
        let id = ChildId {
            kind: ChildKind::StatefulSet,
            name: postgres::statefulset_name(&key.name).into(),
        };
        let writer = &self.reconciler.writer;
        let found = writer.child_metadata(&key.namespace, &id).await;
        let found = found.map_err(|refusal| Refused::by(refusal, &format!("reading {id}")))?;
        Ok(found.and_then(|meta| observe::child(id.kind, &meta)))
    }
}
