//! The end of a cluster: its StatefulSet goes, then its claims if that was asked for, then it.

use super::apply::Applied;
use super::belongings::{Belonging, Found};
use super::failure::Refusal;
use super::run::Run;
use crate::api::{ConditionType, Retain, names};
use crate::core::claims;
use crate::core::hash::fnv1a64;
use crate::core::lifecycle::reason;
use crate::core::observed::{ChildRecord, StatefulSetRecord};
use crate::core::outcome::{Failure, Next, Outcome};
use crate::core::plan::Delete;
use crate::postgres;

impl Run<'_> {
    /// Says that the cluster is terminating, then deletes its StatefulSet, then waits for that.
    pub(super) async fn tear_down(
        mut self,
        owned: Option<&StatefulSetRecord>,
        delete: Option<Delete>,
    ) -> Result<Outcome, Failure> {
        let conclusion = self.conclude(owned, &Applied::default(), None);
        // Once it is reported, counts of Pods that end are not worth a write each.
        let reported = self.cluster.status.condition(ConditionType::Progressing);
        if reported.is_none_or(|condition| condition.reason != reason::TERMINATING) {
            self.write_conclusion(&conclusion).await?;
        }
        if let (Some(delete), Some(set)) = (delete, owned) {
            match self.delete_child(&delete, &set.child).await {
                Ok(()) => self.wrote = true,
                // Someone was faster.
                Err(Refusal::Gone) => {}
                Err(refusal) => return Err(refusal.into_failure("deleting the StatefulSet")),
            }
        }
        Ok(self.outcome(Next::Waiting))
    }

    /// Sets our fencing token on a child, if it has another, and deletes it.
    pub(super) async fn delete_child(
        &self,
        delete: &Delete,
        child: &ChildRecord,
    ) -> Result<(), Refusal> {
        let writer = &self.reconciler.writer;
        let mut version = delete.resource_version.clone();
        let token = self.tenure.token().for_cluster(&self.cluster.uid);
        if child.token != Some(fnv1a64(token.as_bytes())) {
            let marked = writer
                .set_child_token(self.tenure, self.cluster, &delete.id, &version)
                .await?;
            version = marked.unwrap_or(version);
        }
        let namespace = &self.cluster.key.namespace;
        writer
            .delete_child(self.tenure, namespace, &delete.id, &delete.uid, &version)
            .await
    }

    pub(super) async fn remove_finalizer(mut self) -> Result<Outcome, Failure> {
        let cluster = self.cluster;
        if cluster.spec.storage.retain == Retain::Delete && !cluster.orphans_children() {
            self.delete_claims()
                .await
                .map_err(|refusal| refusal.into_failure("deleting the claims"))?;
        }
        let others: Vec<&str> = cluster
            .finalizers
            .iter()
            .map(String::as_str)
            .filter(|finalizer| *finalizer != names::FINALIZER)
            .collect();
        match self.set_finalizers(&others).await {
            Ok(()) | Err(Refusal::Gone) => Ok(self.outcome(Next::Forget)),
            Err(refusal) => Err(refusal.into_failure("removing the finalizer")),
        }
    }

    /// Deletes every claim that an instance of this cluster ever had. No Pod uses them any more.
    async fn delete_claims(&mut self) -> Result<(), Refusal> {
        let cluster = self.cluster;
        let set = postgres::statefulset_name(&cluster.key.name);
        let writer = &self.reconciler.writer;
        for claim in writer.claims(cluster).await? {
            let meta = &claim.metadata;
            let is_going = meta.deletion_timestamp.is_some();
            let Some(found) = Found::of(meta).filter(|found| claims::belongs_to(&found.name, &set))
            else {
                continue;
            };
            if !is_going {
                writer
                    .delete_belonging(self.tenure, cluster, Belonging::Claim, &found)
                    .await?;
                self.wrote = true;
            }
        }
        Ok(())
    }
}
