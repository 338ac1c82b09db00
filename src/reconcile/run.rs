//! One reconcile of one cluster, step by step.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::Reconciler;
use super::failure::Refusal;
use super::lookup::Looked;
use crate::api::names;
use crate::core::child::{ChildId, ChildKind, DesiredChild};
use crate::core::conclude::{Conclusion, Done, conclude, is_initialized, workload};
use crate::core::lifecycle::{Stage, Trouble, Why, Workload, progressing_since, reason};
use crate::core::memory::Basis;
use crate::core::object::ObjectKey;
use crate::core::observed::{ChildRecord, ClusterRecord, StatefulSetRecord};
use crate::core::outcome::{Cause, Failure, Next, Outcome};
use crate::core::plan::{
    self, Apply, Delete, Plan, Precondition, SecretStep, Seen, is_owned_by, ownership_trouble,
    worse,
};
use crate::fleet::tenure::{Tenure, boottime_ms};
use crate::postgres::{self, Source};
use crate::watch::observe;

/// A cluster that has been on its way for this long is asked why.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);

pub(super) struct Run<'a> {
    pub(super) reconciler: &'a Reconciler,
    pub(super) cluster: &'a ClusterRecord,
    pub(super) tenure: &'a Tenure,
    /// The cluster's version after our last write.
    version: String,
    pub(super) wrote: bool,
}

/// What was planned for a cluster that lives.
struct Steps<'a> {
    secret: SecretStep,
    desired: &'a [DesiredChild],
    apply: &'a [Apply],
    delete: &'a [Delete],
    children: &'a [Arc<ChildRecord>],
}

/// What applying the children came to.
#[derive(Default)]
pub(super) struct Applied {
    /// Whether the StatefulSet is another one now.
    changed: bool,
    trouble: Option<Trouble>,
    failure: Option<Failure>,
    /// Whether a child is there that the watch has not shown: nothing can be said until it does.
    out_of_sight: bool,
}

impl Applied {
    fn note(&mut self, refused: Refused) {
        let (trouble, failure) = match refused {
            Refused::Trouble(trouble) => (Some(trouble), None),
            Refused::Told(trouble, failure) => (Some(trouble), Some(failure)),
            Refused::Failure(failure) => (None, Some(failure)),
            Refused::OutOfSight => {
                self.out_of_sight = true;
                (None, None)
            }
        };
        if let Some(trouble) = trouble {
            self.trouble = worse(self.trouble.take(), trouble);
        }
        self.failure = failure;
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(
        reconciler: &'a Reconciler,
        cluster: &'a ClusterRecord,
        tenure: &'a Tenure,
    ) -> Self {
        Self {
            reconciler,
            cluster,
            tenure,
            version: cluster.resource_version.clone(),
            wrote: false,
        }
    }

    pub(super) async fn carry_out(mut self) -> Result<Outcome, Failure> {
        let cluster = self.cluster;
        let statefulset = self.statefulset();
        let owned = statefulset
            .as_deref()
            .filter(|set| is_owned_by(&set.child, cluster));
        let source = self.source(owned);
        let basis = Basis {
            generation: cluster.generation,
            claim: source.claim.cloned(),
            initialized: source.initialized,
        };
        let now_ms = boottime_ms();
        let desired = self.reconciler.with_memory(cluster, |memory| {
            memory.desired(&basis, || source.children())
        });
        let children = self.other_children(&desired);
        let (plan, sweep) = self.reconciler.with_memory(cluster, |memory| {
            if cluster.status.observed_generation != cluster.generation {
                memory.change_seen(cluster.generation, now_ms);
            }
            let sweep = memory.sweep_is_due(self.reconciler.sweep_interval_ms, now_ms);
            let seen = Seen {
                cluster,
                statefulset: statefulset.as_deref(),
                children: &children,
                desired: &desired,
                initialized: source.initialized,
                sweep,
                now_ms,
            };
            (plan::plan(&seen, memory), sweep)
        });
        match plan {
            Plan::Wait(why) => {
                tracing::debug!(object = %cluster.key, why, "waiting for the watch");
                Ok(self.outcome(Next::Waiting))
            }
            Plan::Forget => Ok(self.outcome(Next::Forget)),
            Plan::Keep {
                add_finalizer,
                secret,
                apply,
                delete,
                trouble,
            } => {
                if add_finalizer {
                    self.add_finalizer().await?;
                }
                let mut applied = Applied {
                    trouble,
                    ..Applied::default()
                };
                if !matches!(applied.trouble, Some(Trouble::Wrong(_))) {
                    let steps = Steps {
                        secret,
                        desired: &desired,
                        apply: &apply,
                        delete: &delete,
                        children: &children,
                    };
                    if let Err(refused) = self.carry_out_steps(&steps, owned, &mut applied).await {
                        applied.note(refused);
                    }
                }
                if sweep && applied.failure.is_none() {
                    let reconciler = self.reconciler;
                    reconciler.with_memory(cluster, |memory| memory.swept(now_ms));
                }
                self.report(owned, applied).await
            }
            Plan::TearDown { delete } => self.tear_down(owned, delete).await,
            Plan::RemoveFinalizer => self.remove_finalizer().await,
        }
    }

    fn statefulset(&self) -> Option<Arc<StatefulSetRecord>> {
        let key = &self.cluster.key;
        self.reconciler.store.statefulset(&ObjectKey {
            namespace: Arc::clone(&key.namespace),
            name: postgres::statefulset_name(&key.name).into(),
        })
    }

    /// From what the children are rendered.
    fn source<'b>(&self, owned: Option<&'b StatefulSetRecord>) -> Source<'b>
    where
        'a: 'b,
    {
        Source {
            cluster: self.cluster,
            claim: owned.and_then(|set| set.claim.as_ref()),
            initialized: is_initialized(self.cluster, owned),
        }
    }

    fn other_children(&self, desired: &[DesiredChild]) -> Vec<Arc<ChildRecord>> {
        let mut ids: Vec<ChildId> = desired
            .iter()
            .map(|child| child.id.clone())
            .filter(|id| id.kind != ChildKind::StatefulSet)
            .collect();
        let optional = postgres::optional_children(&self.cluster.key.name);
        ids.extend(
            optional
                .into_iter()
                .filter(|id| !desired.iter().any(|child| child.id == *id)),
        );
        let store = &self.reconciler.store;
        ids.iter()
            .filter_map(|id| store.child(&self.cluster.key.namespace, id))
            .collect()
    }

    async fn add_finalizer(&mut self) -> Result<(), Failure> {
        let known = self.cluster.finalizers.iter().map(String::as_str);
        let finalizers: Vec<&str> = known.chain([names::FINALIZER]).collect();
        self.set_finalizers(&finalizers)
            .await
            .map_err(|refusal| refusal.into_failure("adding the finalizer"))
    }

    pub(super) async fn set_finalizers(&mut self, finalizers: &[&str]) -> Result<(), Refusal> {
        let writer = &self.reconciler.writer;
        let version = writer
            .set_finalizers(self.tenure, &self.cluster.key, &self.version, finalizers)
            .await?;
        self.wrote_cluster(version);
        Ok(())
    }

    fn wrote_cluster(&mut self, version: String) {
        self.wrote = true;
        self.version.clone_from(&version);
        self.reconciler.with_memory(self.cluster, |memory| {
            memory.wrote_cluster(version, boottime_ms());
        });
    }

    /// Settles the Secret, applies children, deletes those that are not wanted and grows claims, one
    /// after the other until something is refused.
    async fn carry_out_steps(
        &mut self,
        steps: &Steps<'_>,
        owned: Option<&StatefulSetRecord>,
        applied: &mut Applied,
    ) -> Result<(), Refused> {
        self.settle_secret(steps.secret).await?;
        for step in steps.apply {
            if let Some(child) = steps.desired.get(step.index) {
                applied.changed |= self.apply_one(child, &step.precondition, owned).await?;
            }
        }
        for delete in steps.delete {
            let record = steps.children.iter().find(|child| child.id() == delete.id);
            if let Some(record) = record {
                match self.delete_child(delete, record).await {
                    Ok(()) => self.wrote = true,
                    // Someone was faster.
                    Err(Refusal::Gone) => {}
                    Err(refusal) => return Err(Refused::by(refusal, &delete.id)),
                }
            }
        }
        match owned {
            Some(set) if !applied.changed && applied.trouble.is_none() => {
                self.grow_claims(set).await
            }
            _ => Ok(()),
        }
    }

    /// Applies one child; whether the StatefulSet is another one now.
    async fn apply_one(
        &mut self,
        child: &DesiredChild,
        precondition: &Precondition,
        owned: Option<&StatefulSetRecord>,
    ) -> Result<bool, Refused> {
        let namespace = &self.cluster.key.namespace;
        let writer = &self.reconciler.writer;
        let manifest = self.source(owned).manifest(child, self.tenure.stamp());
        let manifest = manifest.ok_or_else(|| {
            Refused::Failure(Failure::Failed {
                cause: Cause::Other,
                message: format!(
                    "{} can not be rendered; this is a bug in the operator",
                    child.id
                ),
            })
        })?;
        let answer = writer
            .apply(self.tenure, namespace, &child.id, manifest, precondition)
            .await;
        if matches!(answer, Err(Refusal::Conflict(_))) && *precondition == Precondition::Absent {
            return self.bring_into_sight(child).await;
        }
        let meta = answer.map_err(|refusal| Refused::by(refusal, &child.id))?;
        self.wrote = true;
        let version = meta.resource_version.unwrap_or_default();
        self.reconciler.with_memory(self.cluster, |memory| {
            memory.wrote_child(&child.id, version, boottime_ms());
        });
        let known_generation = owned.map(|set| set.generation);
        Ok(child.id.kind == ChildKind::StatefulSet && meta.generation != known_generation)
    }

    /// Deals with a child that exists although the watch does not show it. If it is ours, the watch
    /// lags behind, or someone took its bucket label away: then it gets that back, and the watch
    /// will show it.
    async fn bring_into_sight(&mut self, child: &DesiredChild) -> Result<bool, Refused> {
        let writer = &self.reconciler.writer;
        let namespace = &self.cluster.key.namespace;
        let found = writer
            .child_metadata(namespace, &child.id)
            .await
            .map_err(|refusal| Refused::by(refusal, &child.id))?;
        let record = found.and_then(|meta| observe::child(child.id.kind, &meta));
        let Some(record) = record.filter(|record| !record.deleting) else {
            return Err(Refused::Failure(Failure::LookAgain {
                fenced: false,
                message: format!("{} is being deleted or gone again", child.id),
            }));
        };
        if let Some(trouble) = ownership_trouble(&record, self.cluster) {
            return Err(Refused::Trouble(trouble));
        }
        let version = writer
            .relabel_child(self.tenure, namespace, &record, self.cluster.bucket)
            .await
            .map_err(|refusal| Refused::by(refusal, &child.id))?;
        self.wrote = true;
        self.reconciler.with_memory(self.cluster, |memory| {
            memory.wrote_child(&child.id, version, boottime_ms());
        });
        Err(Refused::OutOfSight)
    }

    /// Writes the status if it says something new, tells of it, and ends the reconcile.
    async fn report(
        mut self,
        owned: Option<&StatefulSetRecord>,
        mut applied: Applied,
    ) -> Result<Outcome, Failure> {
        let looked = self.look_at_pods(owned, &applied).await;
        if looked.as_ref().is_some_and(|looked| looked.why.is_none())
            && is_initialized(self.cluster, owned)
            && let Err(refused) = self.settle_secret(SecretStep::Probe).await
        {
            applied.note(refused);
        }
        let (applied, failure) = (&applied, applied.failure.clone());
        // A failure that says nothing about the object is not reported on it.
        if let (Some(failure), None) = (&failure, &applied.trouble) {
            return Err(failure.clone());
        }
        if applied.out_of_sight {
            return Ok(self.outcome(Next::Waiting));
        }
        let why = looked.as_ref().and_then(|looked| looked.why.as_ref());
        let conclusion = self.conclude(owned, applied, why);
        self.write_conclusion(&conclusion).await?;
        if let Some(looked) = &looked {
            self.replace_stuck(&looked.stuck).await?;
        }
        if conclusion.next == Next::Ready {
            let generation = self.cluster.generation;
            let reconciler = self.reconciler;
            let took_ms = reconciler.with_memory(self.cluster, |memory| {
                memory.change_done(generation, boottime_ms())
            });
            if let Some(ms) = took_ms {
                let seconds = std::time::Duration::from_millis(ms).as_secs_f64();
                reconciler.metrics.convergence_seconds.observe(seconds);
            }
        }
        match (failure, &applied.trouble) {
            (Some(failure), _) => Err(failure),
            (None, Some(Trouble::Wrong(why))) => Err(Failure::Failed {
                cause: match why.reason.as_str() {
                    reason::FOREIGN_CHILD => Cause::ForeignChild,
                    _ => Cause::Invalid,
                },
                message: why.message.clone(),
            }),
            // The former cluster's child may lie in a shard that we do not watch.
            (None, Some(Trouble::Wait(why))) if why.reason == reason::WAITING => {
                Err(Failure::LookAgain {
                    fenced: false,
                    message: why.message.clone(),
                })
            }
            (None, _) => Ok(self.outcome(conclusion.next)),
        }
    }

    pub(super) fn conclude(
        &self,
        owned: Option<&StatefulSetRecord>,
        applied: &Applied,
        diagnosis: Option<&Why>,
    ) -> Conclusion {
        conclude(&Done {
            cluster: self.cluster,
            statefulset: owned,
            changed: applied.changed,
            trouble: applied.trouble.as_ref(),
            diagnosis,
            selector: &postgres::selector_text(&self.cluster.key.name),
            stamp: self.tenure.stamp(),
            now: Timestamp::now(),
        })
    }

    pub(super) async fn write_conclusion(
        &mut self,
        conclusion: &Conclusion,
    ) -> Result<(), Failure> {
        if let Some(status) = &conclusion.status {
            let writer = &self.reconciler.writer;
            let version = writer
                .set_status(self.tenure, &self.cluster.key, &self.version, status)
                .await
                .map_err(|refusal| refusal.into_failure("writing the status"))?;
            self.wrote_cluster(version);
        }
        if let Some(notice) = &conclusion.notice {
            let events = &self.reconciler.events;
            self.wrote |= events.publish(self.tenure, self.cluster, notice).await;
        }
        Ok(())
    }

    /// Looks at the Pods; done only for clusters that should be ready by now.
    async fn look_at_pods(
        &self,
        owned: Option<&StatefulSetRecord>,
        applied: &Applied,
    ) -> Option<Arc<Looked>> {
        let set = owned?;
        let status = &self.cluster.status;
        let unsettled = matches!(
            workload(owned, self.cluster.spec.replicas),
            Workload::Unsettled { .. }
        );
        let is_told =
            applied.trouble.is_some() || applied.failure.is_some() || applied.out_of_sight;
        if !unsettled || applied.changed || is_told {
            return None;
        }
        let is_degraded = matches!(Stage::reconstruct(status), Stage::Degraded(_));
        let is_late = progressing_since(status)
            .is_some_and(|since| Timestamp::now().duration_since(since) >= PATIENCE);
        if !is_degraded && !is_late {
            return None;
        }
        match self.reconciler.lookups.pods(self.cluster, set).await {
            Ok(looked) => Some(looked),
            Err(error) => {
                tracing::debug!(object = %self.cluster.key, %error, "its Pods could not be listed");
                None
            }
        }
    }

    pub(super) fn outcome(&self, next: Next) -> Outcome {
        Outcome {
            wrote: self.wrote,
            next,
        }
    }
}

/// Why a child was not applied.
pub(super) enum Refused {
    /// Something that is reported on the cluster, and looked at in `report`.
    Trouble(Trouble),
    /// Something that is reported on the cluster, and the failure that it is.
    Told(Trouble, Failure),
    /// It is there and ours, and the watch has not shown it.
    OutOfSight,
    /// Something that says nothing about the cluster.
    Failure(Failure),
}

impl Refused {
    pub(super) fn by(refusal: Refusal, child: &ChildId) -> Self {
        let what = format!("applying {child}");
        match refusal {
            Refusal::Refused(cause, message) => {
                let reason = match cause {
                    Cause::Forbidden => reason::FORBIDDEN,
                    _ => reason::INVALID,
                };
                let message = format!("{what}: {message}");
                Self::Told(
                    Trouble::Wrong(Why::new(reason, message.clone())),
                    Failure::Failed { cause, message },
                )
            }
            // The cluster is about to be deleted too.
            Refusal::NamespaceTerminating(message) => {
                Self::Trouble(Trouble::Wait(Why::new(reason::SCALING, message)))
            }
            other => Self::Failure(other.into_failure(&what)),
        }
    }
}
