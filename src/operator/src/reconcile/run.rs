//! One reconcile of one cluster, step by step.

use std::sync::Arc;

use jiff::{SignedDuration, Unit};
use serde_json::Value;

use super::Reconciler;
use super::apply::{Applied, Refused, Steps};
use super::lookup::PodDiagnosis;
use super::refused::Target;
use crate::api::{ConditionStatus, ConditionType, names};
use crate::core::child::{ChildId, ChildKind, DesiredChild};
use crate::core::lifecycle::{
    ConditionReason, Exposure, Problem, Stage, Workload, progressing_since, reason,
};
use crate::core::memory::Memory;
use crate::core::observed::{ChildRecord, ClaimTemplate, ClusterRecord, StatefulSetRecord};
use crate::core::persistent_failure::persistent;
use crate::core::plan::{self, Observed, Plan, SecretStep, is_ours};
use crate::core::status::{
    Done, Notice, StatusUpdate, compute_status, is_initialized, primary_serves, workload,
};
use crate::postgres::{self, Source};
use sharded_controller::backoff::Outlook;
use sharded_controller::object::ObjectKey;
use sharded_controller::outcome::{Cause, Failure, Next, Outcome};
use sharded_controller::permit::ShardPermit;
use sharded_controller::pool::Backlog;
use sharded_controller::refusal::Refusal;

/// A cluster that has not been ready for this long is diagnosed.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);

/// What was done is reported after this time at the latest, when others wait for their first write: the
/// watch, which shows the changed StatefulSet, brings the cluster back sooner, behind those.
const REPORT_MS: u64 = 1_000;

/// Progress is reported after this time even if many clusters progress.
const PROGRESS_MS_MAX: u64 = 30_000;

/// Shortest and longest pause between checks for leftovers of a former cluster, in milliseconds;
/// between these bounds, half of the time waited.
const FORMER_MS: (u64, u64) = (1_000, 30_000);

/// How often a load balancer is asked for its address while it has none, in milliseconds.
const ADDRESS_MS: u64 = 60_000;

pub(super) struct Run<'a> {
    pub(super) reconciler: &'a Reconciler,
    pub(super) cluster: &'a Arc<ClusterRecord>,
    pub(super) permit: &'a ShardPermit,
    pub(super) backlog: &'a dyn Backlog,
    /// As the watch showed it when the run began; also one that is not ours.
    statefulset: Option<Arc<StatefulSetRecord>>,
    /// Whether the volume of the primary has data: according to the status and the running Pods, or, if
    /// a restore dropped the status, the ConfigMap.
    pub(super) initialized: bool,
    /// The cluster's version after our last write.
    version: String,
    pub(super) wrote: bool,
    /// What the fence keeps refusing, as far as this run has tried.
    pub(super) still_refused: Vec<String>,
    /// Whether this run reached its writes.
    tried: bool,
    /// Manifests that this run rendered to compare them, and has not applied.
    rendered: Vec<(ChildId, Value)>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        reconciler: &'a Reconciler,
        cluster: &'a Arc<ClusterRecord>,
        permit: &'a ShardPermit,
        backlog: &'a dyn Backlog,
    ) -> Self {
        let (key, store) = (&cluster.key, &reconciler.store);
        let name: Arc<str> = postgres::statefulset_name(&key.name).into();
        let statefulset = store.statefulset(&ObjectKey {
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&name),
        });
        let owned = statefulset
            .as_deref()
            .filter(|set| is_ours(&set.child, cluster));
        let config = ChildId {
            kind: ChildKind::ConfigMap,
            name,
        };
        let is_configured = || {
            let config = store.child(&key.namespace, &config);
            config.is_some_and(|config| config.reports_initialized && is_ours(&config, cluster))
        };
        Self {
            initialized: is_initialized(cluster, owned) || is_configured(),
            statefulset,
            reconciler,
            cluster,
            permit,
            backlog,
            version: cluster.resource_version.clone(),
            wrote: false,
            still_refused: Vec::new(),
            tried: false,
            rendered: Vec::new(),
        }
    }

    /// The manifest of a desired child; `over_claims` is the claim template that it gets instead of the known one.
    pub(super) fn manifest(
        &mut self,
        child: &DesiredChild,
        owned: Option<&StatefulSetRecord>,
        over_claims: Option<&ClaimTemplate>,
    ) -> Option<Value> {
        let known = owned.and_then(|set| set.claim.as_ref());
        let source = self.source(over_claims.or(known));
        let token = self.permit.token();
        let mut rendered = self.rendered.iter();
        let place = rendered.position(|(id, _)| *id == child.id && over_claims.is_none());
        match place {
            Some(place) => {
                let (_, manifest) = self.rendered.swap_remove(place);
                Some(source.signed(manifest, child, token))
            }
            None => source.manifest(child, token),
        }
    }

    pub(super) async fn execute(mut self) -> Result<Outcome, Failure> {
        let ended = self.gather_and_act().await;
        // A completed run has tried every write.
        if self.tried && matches!(ended, Ok(_) | Err(Failure::Failed { .. })) {
            self.reconciler.with_memory(self.cluster, |memory| {
                memory.refused_only(&self.still_refused);
            });
        }
        ended
    }

    async fn gather_and_act(&mut self) -> Result<Outcome, Failure> {
        let cluster = self.cluster;
        let statefulset = self.statefulset.clone();
        let owned = statefulset
            .as_deref()
            .filter(|set| is_ours(&set.child, cluster));
        let source = self.source(owned.and_then(|set| set.claim.as_ref()));
        let desired = self.desired(&source);
        let now_ms = self.reconciler.clock.now_ms();
        let children = self.other_children(&desired);
        let (plan, sweep) = self.reconciler.with_memory(cluster, |memory| {
            if cluster.status.observed_generation != cluster.generation {
                memory.change_seen(cluster.generation, now_ms);
            }
            let sweep = memory.sweep_is_due(self.reconciler.sweep_interval_ms, now_ms);
            let observation = Observed {
                cluster,
                statefulset: statefulset.as_deref(),
                children: &children,
                desired: &desired,
                initialized: self.initialized,
                sweep,
                now_ms,
            };
            (plan::plan(&observation, memory), sweep)
        });
        self.tried = !matches!(plan, Plan::Wait { .. });
        match plan {
            Plan::Wait { why, at_most_ms } => {
                tracing::debug!(object = %cluster.key, why, "waiting for the watch");
                let at_most = at_most_ms.map(|ms| Next::RequeueAfter { ms });
                Ok(self.outcome(at_most.unwrap_or(Next::Waiting)))
            }
            Plan::Forget => Ok(self.outcome(Next::Forget)),
            Plan::Keep {
                add_finalizer,
                secret,
                apply,
                delete,
                problem,
            } => {
                let steps = Steps {
                    secret,
                    desired: &desired,
                    apply: &apply,
                    delete: &delete,
                    children: &children,
                    sweep,
                };
                let applied = Applied {
                    problem,
                    ..Applied::default()
                };
                self.keep(owned, add_finalizer, &steps, applied).await
            }
            Plan::TearDown { delete } => self.tear_down(owned, delete).await,
            Plan::RemoveFinalizer => self.remove_finalizer().await,
        }
    }

    /// Executes the plan for a cluster that is not being deleted, and reports the result.
    async fn keep(
        &mut self,
        owned: Option<&StatefulSetRecord>,
        add_finalizer: bool,
        steps: &Steps<'_>,
        mut applied: Applied,
    ) -> Result<Outcome, Failure> {
        if add_finalizer && let Err(refused) = self.add_finalizer().await {
            applied.note(refused);
        }
        let is_wrong = matches!(applied.problem, Some(Problem::Permanent(_)));
        let bad_secret = match is_wrong {
            true => None,
            false => self.check_tls(owned).await,
        };
        let holds_set = bad_secret.as_ref().is_some_and(|bad| bad.holds_set);
        if applied.failure.is_none()
            && !is_wrong
            && let Err(refused) = self
                .execute_steps(steps, owned, holds_set, &mut applied)
                .await
        {
            applied.note(refused);
        }
        if let Some(bad) = bad_secret {
            applied.problem = plan::worst(applied.problem.take(), bad.problem);
        }
        if steps.sweep && applied.failure.is_none() {
            let reconciler = self.reconciler;
            reconciler.with_memory(self.cluster, |memory| {
                memory.swept(self.reconciler.clock.now_ms())
            });
        }
        self.report(owned, applied).await
    }

    /// The input from which the children are rendered, with the given claim template.
    pub(super) fn source<'b>(&self, claim: Option<&'b ClaimTemplate>) -> Source<'b>
    where
        'a: 'b,
    {
        Source {
            cluster: self.cluster,
            claim,
            initialized: self.initialized,
        }
    }

    /// The desired children; rendered again only if their input has changed.
    fn desired(&mut self, source: &Source<'_>) -> Arc<[DesiredChild]> {
        let basis = source.basis();
        let rendered = &mut self.rendered;
        self.reconciler.with_memory(self.cluster, |memory| {
            memory.desired(basis, |known, stays| {
                source.children_after(known, stays, rendered)
            })
        })
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

    async fn add_finalizer(&mut self) -> Result<(), Refused> {
        let known = self.cluster.finalizers.iter().map(String::as_str);
        let finalizers: Vec<&str> = known.chain([names::FINALIZER]).collect();
        let cluster = self.cluster;
        self.set_finalizers(&finalizers)
            .await
            .map_err(|refusal| match refusal {
                Refusal::Fenced { .. } => self.refused(&Target::Cluster(&cluster.key), refusal),
                other => Refused::Failure(other.into_failure("adding the finalizer")),
            })
    }

    pub(super) async fn set_finalizers(&mut self, finalizers: &[&str]) -> Result<(), Refusal> {
        let writer = &self.reconciler.writer;
        let version = writer
            .set_finalizers(self.permit, self.cluster, &self.version, finalizers)
            .await?;
        self.wrote_cluster(version);
        Ok(())
    }

    fn wrote_cluster(&mut self, version: String) {
        self.wrote = true;
        self.reconciler.with_memory(self.cluster, |memory| {
            memory.wrote_cluster(&version, self.reconciler.clock.now_ms());
        });
        self.version = version;
    }

    /// Remembers a child as this run wrote it; `contents` is the digest of what was stored, if it is known.
    pub(super) fn wrote_child(&mut self, id: &ChildId, version: &str, contents: Option<u64>) {
        self.wrote = true;
        self.reconciler.with_memory(self.cluster, |memory| {
            memory.wrote_child(id, version, contents, self.reconciler.clock.now_ms());
        });
    }

    /// Writes the status if it is new, publishes an event, and ends the reconcile.
    async fn report(
        &mut self,
        owned: Option<&StatefulSetRecord>,
        mut applied: Applied,
    ) -> Result<Outcome, Failure> {
        let others_wait = self.backlog.others_wait();
        if let Some(ms) = self.report_later_ms(owned, &applied) {
            return Ok(self.outcome(Next::RequeueAfter { ms }));
        }
        if applied.changed && applied.is_plain() && others_wait {
            return Ok(self.outcome(Next::RequeueAfter { ms: REPORT_MS }));
        }
        let pods = self.diagnose_pods(owned, &applied).await;
        if pods.as_ref().is_some_and(|pods| pods.why.is_none())
            && self.initialized
            && let Err(refused) = self.settle_secret(SecretStep::Probe).await
        {
            applied.note(refused);
        }
        if let Some(pods) = &pods {
            self.replace_stuck(&pods.stuck, &mut applied).await;
        }
        self.report_persistent(&mut applied);
        let (applied, failure) = (&applied, applied.failure.clone());
        // A failure that says nothing about the object is not reported on it at once.
        if let (Some(failure), None) = (&failure, &applied.problem) {
            return Err(failure.clone());
        }
        if applied.out_of_sight {
            return Ok(self.outcome(Next::Waiting));
        }
        let why = pods.as_ref().and_then(|pods| pods.why.as_ref());
        let primary = self.primary(owned).await;
        let exposure = self.exposure().await;
        let is_pending = matches!(exposure, Exposure::Pending(_) | Exposure::Unknown);
        let update = self.compute_status(owned, applied, why, primary, exposure);
        self.write_status(&update).await?;
        if update.next == Next::Ready {
            self.observe_convergence();
        }
        match (failure, &applied.problem) {
            (Some(failure), _) => Err(failure),
            (None, Some(Problem::Permanent(why) | Problem::Transient(why)))
                if [reason::TLS_MISSING, reason::TLS_INVALID].contains(&why.reason.as_str()) =>
            {
                Ok(self.outcome(self.recheck()))
            }
            (None, Some(Problem::Permanent(why))) => Err(Failure::Failed {
                cause: match why.reason.as_str() {
                    reason::FOREIGN_CHILD => Cause::ForeignChild,
                    _ => Cause::Invalid,
                },
                message: why.message.clone(),
            }),
            (None, Some(Problem::Transient(why))) if why.reason == reason::WAITING => {
                Ok(self.outcome(self.recheck()))
            }
            (None, _) if update.next == Next::Waiting && self.suspects_secret() => {
                Ok(self.outcome(self.recheck()))
            }
            (None, _) => {
                let reconciler = self.reconciler;
                reconciler.with_memory(self.cluster, Memory::awaits_nothing);
                Ok(self.outcome(self.next(owned, &update, is_pending)))
            }
        }
    }

    /// Records how long the change of this generation took.
    fn observe_convergence(&self) {
        let generation = self.cluster.generation;
        let reconciler = self.reconciler;
        let took_ms = reconciler.with_memory(self.cluster, |memory| {
            memory.change_done(generation, self.reconciler.clock.now_ms())
        });
        if let Some(ms) = took_ms {
            let seconds = std::time::Duration::from_millis(ms).as_secs_f64();
            reconciler.metrics.convergence_seconds.observe(seconds);
        }
    }

    /// Milliseconds until a new spec is reported that was applied and of which nothing but progress is
    /// known; none if it is time, or if there is more to report. What becomes ready until then costs
    /// one write of the status, not two. The same holds for each step of a rollout after that report.
    /// While many progress, it is time later, for their reports share a rate.
    fn report_later_ms(&self, owned: Option<&StatefulSetRecord>, applied: &Applied) -> Option<u64> {
        let (cluster, reconciler) = (self.cluster, self.reconciler);
        let is_new = cluster.status.observed_generation != cluster.generation;
        let is_step = !applied.changed && owned.is_some_and(StatefulSetRecord::is_rolling);
        if !(is_new || is_step) || !applied.is_plain() {
            return None;
        }
        let is_ready =
            !applied.changed && workload(owned, cluster.spec.replicas) == Workload::Settled;
        let now_ms = reconciler.clock.now_ms();
        reconciler.with_memory(cluster, |memory| {
            if applied.changed {
                memory.applied(cluster.generation, now_ms);
            }
            if is_ready {
                return None;
            }
            let rest_ms = |most_ms| memory.report_rest_ms(cluster.generation, most_ms, now_ms);
            let delay_ms = reconciler.report_delay_ms;
            rest_ms(delay_ms).or_else(|| {
                let most_ms = rest_ms(PROGRESS_MS_MAX)?;
                (!reconciler.may_report_progress(now_ms)).then(|| most_ms.min(REPORT_MS))
            })
        })
    }

    /// Milliseconds until Pods that are not ready are asked why, if that time is yet to come.
    fn until_late(&self, owned: Option<&StatefulSetRecord>, update: &StatusUpdate) -> Option<u64> {
        if update.next != Next::Waiting || !self.is_unsettled(owned) {
            return None;
        }
        let reported = update.status.as_ref().unwrap_or(&self.cluster.status);
        let waited = self
            .reconciler
            .clock
            .now()
            .duration_since(progressing_since(reported)?);
        let rest_ms = u64::try_from((PATIENCE - waited).as_millis()).ok()?;
        // Jitter must not bring it forward: it would be too early then, and a second check needed.
        Some((rest_ms + 500) * 10 / 9)
    }

    fn is_unsettled(&self, owned: Option<&StatefulSetRecord>) -> bool {
        matches!(
            workload(owned, self.cluster.spec.replicas),
            Workload::Unsettled { .. }
        )
    }

    /// Whether the Secret may go with a former cluster, and has to be re-created then.
    fn suspects_secret(&self) -> bool {
        let reconciler = self.reconciler;
        !self.initialized && reconciler.with_memory(self.cluster, |memory| memory.suspects_secret())
    }

    /// When to check again for leftovers of a former cluster: they may lie in a shard that we do not
    /// watch.
    fn recheck(&self) -> Next {
        let reconciler = self.reconciler;
        let waited_ms = reconciler.with_memory(self.cluster, |memory| {
            memory.awaits(self.reconciler.clock.now_ms())
        });
        Next::RequeueAfter {
            ms: (waited_ms / 2).clamp(FORMER_MS.0, FORMER_MS.1),
        }
    }

    /// Reports a persistent failure on the cluster, in whatever state it is.
    pub(super) fn report_persistent(&self, applied: &mut Applied) {
        let Some(failure) = &applied.failure else {
            return;
        };
        if matches!(applied.problem, Some(Problem::Permanent(_))) {
            return;
        }
        let outlook = self.backlog.outlook();
        let is_reported = self.is_degraded_for(&reason::PERSISTENT);
        if let Some((reason, message)) = persistent(failure, &outlook, is_reported) {
            let why = ConditionReason::new(reason, self.with_next_try(&message, &outlook));
            applied.problem = Some(Problem::Permanent(why));
        }
    }

    /// Whether the status reports a problem with one of these reasons.
    pub(super) fn is_degraded_for(&self, reasons: &[&str]) -> bool {
        let degraded = self.cluster.status.condition(ConditionType::Degraded);
        degraded.is_some_and(|c| {
            c.status == ConditionStatus::True && reasons.contains(&c.reason.as_str())
        })
    }

    fn with_next_try(&self, message: &str, outlook: &Outlook) -> String {
        let in_ms = i64::try_from(outlook.retry_in_ms).unwrap_or(i64::MAX);
        let now = self.reconciler.clock.now();
        let at = now.checked_add(SignedDuration::from_millis(in_ms));
        let reconciler = self.reconciler;
        let at = reconciler.with_memory(self.cluster, |memory| memory.next_try(at.unwrap_or(now)));
        let at = at.round(Unit::Second).unwrap_or(at);
        format!("{message}; the operator tries again at {at}")
    }

    /// The status cannot be written, for a reason that persists: Events say what it would have said.
    async fn report_unwritten(&mut self, failure: &Failure, unpublished: Option<&Notice>) {
        let outlook = self.backlog.outlook();
        let Some((reason, message)) = persistent(failure, &outlook, false) else {
            return;
        };
        let why = ConditionReason::new(reason, self.with_next_try(&message, &outlook));
        for notice in [Some(&Notice::of(&why)), unpublished].into_iter().flatten() {
            let events = &self.reconciler.events;
            self.wrote |= events.publish(self.permit, self.cluster, notice).await;
        }
    }

    /// Whether the primary serves, as far as known.
    async fn primary(&self, owned: Option<&StatefulSetRecord>) -> Option<bool> {
        let by_container = postgres::serves_by_container(self.cluster);
        let known = primary_serves(self.cluster, owned, by_container);
        // Until its controller has observed a change, the counts are of the generation before:
        // nothing is new.
        let observed = owned.filter(|set| set.is_observed());
        let (None, Some(set)) = (known, observed) else {
            return known;
        };
        match self
            .reconciler
            .lookups
            .is_primary_ready(set, by_container)
            .await
        {
            Ok(is_ready) => Some(is_ready),
            Err(error) => {
                tracing::debug!(object = %self.cluster.key, %error, "its primary could not be read");
                None
            }
        }
    }

    /// When to reconcile again after a report without a problem.
    fn next(
        &self,
        owned: Option<&StatefulSetRecord>,
        update: &StatusUpdate,
        address_is_pending: bool,
    ) -> Next {
        match (self.until_late(owned, update), update.next) {
            (Some(ms), _) => Next::RequeueAfter { ms },
            (None, Next::Ready) if address_is_pending => Next::RequeueAfter { ms: ADDRESS_MS },
            (None, next) => next,
        }
    }

    /// Whether the load balancers have addresses; nothing is read unless the spec asks for one.
    async fn exposure(&self) -> Exposure {
        let services = postgres::load_balanced(self.cluster);
        if services.is_empty() {
            return Exposure::NotAsked;
        }
        let mut pending = Vec::new();
        for name in services {
            let lookups = &self.reconciler.lookups;
            match lookups
                .has_address(&self.cluster.key.namespace, &name)
                .await
            {
                Ok(true) => {}
                Ok(false) => pending.push(format!("Service {name}")),
                Err(error) => {
                    tracing::debug!(object = %self.cluster.key, %error, "its Services could not be read");
                    return Exposure::Unknown;
                }
            }
        }
        match pending.is_empty() {
            true => Exposure::Assigned,
            false => Exposure::Pending(pending.join(" and ")),
        }
    }

    pub(super) fn compute_status(
        &self,
        owned: Option<&StatefulSetRecord>,
        applied: &Applied,
        diagnosis: Option<&ConditionReason>,
        primary: Option<bool>,
        exposure: Exposure,
    ) -> StatusUpdate {
        compute_status(&Done {
            cluster: self.cluster,
            statefulset: owned,
            // Where its container decides, no Pod need ever have been ready.
            initialized: self.initialized || primary == Some(true),
            volume_size: applied.volume_size.as_deref(),
            changed: applied.changed,
            problem: applied.problem.as_ref(),
            diagnosis,
            primary,
            exposure,
            selector: &postgres::selector_text(&self.cluster.key.name),
            token: self.permit.token(),
            now: self.reconciler.clock.now(),
        })
    }

    pub(super) async fn write_status(&mut self, update: &StatusUpdate) -> Result<(), Failure> {
        if let Some(status) = &update.status {
            let writer = &self.reconciler.writer;
            let written = writer
                .set_status(self.permit, &self.cluster.key, &self.version, status)
                .await;
            match written {
                Ok(version) => {
                    self.wrote_cluster(version);
                    let reconciler = self.reconciler;
                    let (generation, now_ms) = (self.cluster.generation, reconciler.clock.now_ms());
                    let is_progress = update.next == Next::Waiting;
                    reconciler.with_memory(self.cluster, |memory| {
                        memory.reported(generation, is_progress, now_ms);
                    });
                }
                Err(refusal @ Refusal::Fenced { .. }) => {
                    return Err(self.status_refused(refusal, update.notice.as_ref()).await);
                }
                Err(refusal) => {
                    let failure = refusal.into_failure("writing the status");
                    let unpublished = update.notice.as_ref();
                    self.report_unwritten(&failure, unpublished).await;
                    return Err(failure);
                }
            }
        }
        if let Some(notice) = &update.notice {
            let events = &self.reconciler.events;
            self.wrote |= events.publish(self.permit, self.cluster, notice).await;
        }
        Ok(())
    }

    /// Reads the Pods; done only for clusters that should be ready by now.
    async fn diagnose_pods(
        &self,
        owned: Option<&StatefulSetRecord>,
        applied: &Applied,
    ) -> Option<Arc<PodDiagnosis>> {
        let set = owned?;
        let status = &self.cluster.status;
        let is_reported =
            applied.problem.is_some() || applied.failure.is_some() || applied.out_of_sight;
        if !self.is_unsettled(owned) || applied.changed || is_reported {
            return None;
        }
        let is_degraded = matches!(Stage::reconstruct(status), Stage::Degraded(_));
        let is_late = progressing_since(status)
            .is_some_and(|since| self.reconciler.clock.now().duration_since(since) >= PATIENCE);
        if !is_degraded && !is_late {
            return None;
        }
        match self.reconciler.lookups.pods(self.cluster, set).await {
            Ok(pods) => Some(pods),
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
