//! Deletion of a cluster: first its StatefulSet, then its claims if requested, then the finalizer.

use super::apply::{Applied, Refused};
use super::dependents::Dependent;
use super::refused::Target;
use super::run::Run;
use crate::api::{ConditionType, Retain, names};
use crate::core::lifecycle::{Exposure, reason};
use crate::core::observed::{ChildRecord, StatefulSetRecord};
use crate::core::plan::{Delete, is_owned_by};
use crate::core::status::{Notice, primary_serves};
use crate::postgres;
use shard_ownership::hash::fnv1a64;
use sharded_controller::outcome::{Failure, Next, Outcome};
use sharded_controller::refusal::Refusal;

impl Run<'_> {
    /// Reports that the cluster is terminating, deletes its StatefulSet, and waits for that.
    pub(super) async fn tear_down(
        &mut self,
        owned: Option<&StatefulSetRecord>,
        delete: Option<Delete>,
    ) -> Result<Outcome, Failure> {
        let mut applied = Applied::default();
        let was_refused = self.reports_refusal();
        // Once it is reported, counts of terminating Pods are not worth a write each.
        let reported = self.cluster.status.condition(ConditionType::Progressing);
        let is_reported = reported.is_some_and(|c| c.reason == reason::TERMINATING);
        // A status that cannot be written does not block the deletion.
        let mut status = Ok(());
        if !is_reported && !was_refused {
            status = self.report_end(owned, &applied).await;
        }
        if let (Some(delete), Some(set)) = (delete, owned) {
            match self.delete_child(&delete, &set.child).await {
                Ok(()) => self.wrote = true,
                // Already deleted.
                Err(Refusal::Gone) => {}
                Err(refusal) => {
                    let target = Target::Child(&self.cluster.key, &delete.id);
                    applied.note(self.refused(&target, refusal));
                }
            }
        }
        self.report_persistent(&mut applied);
        if applied.problem.is_some() || (was_refused && applied.failure.is_none()) {
            status = self.report_end(owned, &applied).await;
        }
        match (applied.failure, status) {
            (Some(failure), _) | (None, Err(failure)) => Err(failure),
            (None, Ok(())) => Ok(self.outcome(Next::Waiting)),
        }
    }

    /// Whether the status reports that the deletion keeps being refused, or failing.
    fn reports_refusal(&self) -> bool {
        self.is_degraded_for(&[reason::TOKEN_AHEAD, reason::WRITE_REFUSED])
            || self.is_degraded_for(&reason::PERSISTENT)
    }

    async fn report_end(
        &mut self,
        owned: Option<&StatefulSetRecord>,
        applied: &Applied,
    ) -> Result<(), Failure> {
        let primary = primary_serves(
            self.cluster,
            owned,
            postgres::serves_by_container(self.cluster),
        );
        let exposure = Exposure::NotAsked;
        let update = self.compute_status(owned, applied, None, primary, exposure);
        self.write_status(&update).await
    }

    /// Sets our fencing token and bucket on a child, if it has others, and deletes it.
    pub(super) async fn delete_child(
        &self,
        delete: &Delete,
        child: &ChildRecord,
    ) -> Result<(), Refusal> {
        let writer = &self.reconciler.writer;
        let mut version = delete.resource_version.clone();
        let token = self.permit.token().for_cluster(&self.cluster.uid);
        let is_marked = child.owner.is_some()
            && child.token == Some(fnv1a64(token.as_bytes()))
            && child.bucket == Some(self.cluster.bucket);
        if !is_marked {
            version = writer
                .mark_child(self.permit, self.cluster, child, Some(&version))
                .await?;
        }
        let namespace = &self.cluster.key.namespace;
        writer
            .delete_child(self.permit, namespace, &delete.id, &delete.uid, &version)
            .await
    }

    pub(super) async fn remove_finalizer(&mut self) -> Result<Outcome, Failure> {
        let cluster = self.cluster;
        let mut applied = Applied::default();
        if !cluster.orphans_children() {
            match self.make_statefulset_observable().await {
                Ok(other) => self.end_claims(other, &mut applied).await,
                Err(Refused::NotObserved) => return Ok(self.outcome(Next::Waiting)),
                Err(refused) => applied.note(refused),
            }
        }
        if applied.failure.is_none() {
            let others: Vec<&str> = cluster
                .finalizers
                .iter()
                .map(String::as_str)
                .filter(|finalizer| *finalizer != names::FINALIZER)
                .collect();
            match self.set_finalizers(&others).await {
                Ok(()) | Err(Refusal::Gone) => return Ok(self.outcome(Next::Forget)),
                Err(refusal) => applied.note(self.refused(&Target::Cluster(&cluster.key), refusal)),
            }
        }
        self.report_persistent(&mut applied);
        if applied.problem.is_some() {
            self.report_end(None, &applied).await?;
        }
        match applied.failure {
            Some(failure) => Err(failure),
            None => Ok(self.outcome(Next::Waiting)),
        }
    }

    /// The StatefulSet is gone, or somebody took its bucket label away, so that the watch does not show
    /// it: then it gets that back, and is deleted when the watch shows it. Whether there is one of its
    /// name that is not this cluster's.
    async fn make_statefulset_observable(&mut self) -> Result<bool, Refused> {
        let cluster = self.cluster;
        let record = match self.read_statefulset().await? {
            None => return Ok(false),
            Some(record) if !is_owned_by(&record, cluster) => return Ok(true),
            Some(record) => record,
        };
        let id = record.id();
        let writer = &self.reconciler.writer;
        let marked = writer.mark_child(self.permit, cluster, &record, None).await;
        match marked {
            Ok(_) => self.wrote = true,
            Err(refusal) => return Err(self.refused(&Target::Child(&cluster.key, &id), refusal)),
        }
        Err(Refused::NotObserved)
    }

    /// Deletes the claims if requested, unless Pods of another StatefulSet may use them.
    async fn end_claims(&mut self, other: bool, applied: &mut Applied) {
        let cluster = self.cluster;
        if cluster.spec.storage.retain != Retain::Delete {
            return;
        }
        if other {
            let notice = Notice::Error(format!(
                "all claims stay: StatefulSet {} is not this DatabaseCluster's, and its Pods may \
                 use them",
                postgres::statefulset_name(&cluster.key.name)
            ));
            let events = &self.reconciler.events;
            self.wrote |= events.publish(self.permit, cluster, &notice).await;
            return;
        }
        if let Err(refusal) = self.delete_claims(applied).await {
            applied.note(Refused::by(refusal, "deleting the claims"));
        }
    }

    /// Deletes every claim that is labelled as this cluster's. No Pod uses them any more. A claim of
    /// its name with another label stays: it is not known to be this cluster's, and may belong to a
    /// former one with `retain: Retain`.
    async fn delete_claims(&mut self, applied: &mut Applied) -> Result<(), Refusal> {
        let cluster = self.cluster;
        let mut left = Vec::new();
        for (found, claim) in self.reconciler.writer.claims(cluster, true).await? {
            if claim.deleting {
                continue;
            }
            if claim.cluster_uid.as_deref() != Some(&*cluster.uid) {
                left.push(found.name);
                continue;
            }
            let writer = &self.reconciler.writer;
            let deleted = writer
                .delete_dependent(self.permit, cluster, Dependent::Claim, &found)
                .await;
            match deleted {
                Ok(()) => self.wrote = true,
                Err(refusal @ Refusal::Fenced { .. }) => {
                    let target = Target::Claim(&cluster.key, &found.name);
                    let refused = self.refused(&target, refusal);
                    let is_final = matches!(refused, Refused::Fenced(..));
                    applied.note(refused);
                    if !is_final {
                        return Ok(());
                    }
                }
                Err(refusal) => return Err(refusal),
            }
        }
        if !left.is_empty() && applied.failure.is_none() {
            let notice = Notice::Error(format!(
                "claims {} stay: their label {} is not this DatabaseCluster's uid",
                left.join(", "),
                names::CLUSTER_UID_LABEL
            ));
            let events = &self.reconciler.events;
            self.wrote |= events.publish(self.permit, cluster, &notice).await;
        }
        Ok(())
    }
}
