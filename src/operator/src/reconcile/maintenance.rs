//! Occasional maintenance of a cluster: reading, labelling and resizing claims, and replacing Pods
//! that are stuck on a former template.

use super::apply::{Applied, Refused};
use super::dependents::{Dependent, ObjectRef};
use super::refused::Target;
use super::run::Run;
use crate::api::names;
use crate::core::claims::{self, Claim};
use crate::core::lifecycle::{ConditionReason, Problem, reason};
use crate::core::observed::{ClaimTemplate, Selector, StatefulSetRecord};
use crate::core::plan::worst;
use crate::postgres;
use sharded_controller::outcome::Failure;
use sharded_controller::refusal::Refusal;

impl Run<'_> {
    /// The claim template of a StatefulSet that is about to be created, if there are claims of its name
    /// that are not this cluster's. They are labelled only once it exists: until then another
    /// StatefulSet may use them.
    pub(super) async fn template_over_claims(&mut self) -> Result<Option<ClaimTemplate>, Refused> {
        let cluster = self.cluster;
        let others_wait = self.backlog.others_wait();
        let claims = self.reconciler.former_claims(cluster, others_wait).await?;
        if let Some(other) = claims::without_primary(&claims)
            && !cluster.allows_empty_primary
        {
            self.find_primary_claim(other).await?;
        }
        let storage = &cluster.spec.storage;
        let mut stay = claims.iter().filter(|claim| !claim.deleting);
        Ok(stay
            .any(|claim| !claim.is_of(cluster))
            .then(|| ClaimTemplate {
                size: storage.size.clone(),
                class_name: storage.class_name.clone(),
                cluster_uid: None,
                selector: Selector::default(),
                created_for: None,
            }))
    }

    /// Refuses to create an empty primary next to the volume of a replica, which may be the only one
    /// with the data.
    async fn find_primary_claim(&self, other: &Claim) -> Result<(), Refused> {
        let key = &self.cluster.key;
        let primary = claims::name(&postgres::statefulset_name(&key.name), 0);
        // A user who restores a volume need not know our labels.
        if let Some((_, claim)) = self.claim(&primary).await?
            && !claim.deleting
        {
            return Ok(());
        }
        Err(Refused::Problem(Problem::Permanent(ConditionReason::new(
            reason::PRIMARY_VOLUME,
            format!(
                "PersistentVolumeClaim {primary}, the volume of the primary, does not exist, but {} of \
                 a replica does: the primary would start without the data, and no replica would follow \
                 it. Restore {primary}, or copy the data out of {} first. To start with an empty \
                 primary: kubectl annotate -n {} databasecluster {} {}={}",
                other.name,
                other.name,
                key.namespace,
                key.name,
                names::EMPTY_PRIMARY_ANNOTATION,
                self.cluster.uid,
            ),
        ))))
    }

    /// Labels the claims that no template of ours labelled, and resizes the claims of all instances if
    /// the spec requests more than they were created with; then records that on the StatefulSet. A
    /// sweep repeats it: a claim that was deleted and re-created is as in the template again. It also
    /// reports a claim that is being deleted; because claims are not watched, they are read for that in
    /// a sweep and with a new size.
    pub(super) async fn keep_claims(
        &mut self,
        set: &StatefulSetRecord,
        sweep: bool,
        applied: &mut Applied,
    ) -> Result<(), Refused> {
        let (cluster, reconciler) = (self.cluster, self.reconciler);
        let was_terminating =
            reconciler.with_memory(cluster, |memory| memory.is_claim_terminating());
        let status = &cluster.status;
        let is_new_spec = status.observed_generation != cluster.generation;
        // Of a cluster that was just created they were looked up before its StatefulSet was.
        let known_size = status.storage_size.as_deref();
        let is_other_size = known_size.is_some_and(|known| *known != *cluster.spec.storage.size);
        let is_due = sweep || was_terminating || (is_new_spec && is_other_size);
        let maintenance = claims::maintenance(cluster, set, is_due);
        if maintenance.is_none() && !is_due {
            return Ok(());
        }
        let all = maintenance
            .as_ref()
            .is_some_and(|maintenance| maintenance.label);
        let (mut found, mut claims) = self.claims(all).await?;
        let instances = cluster.spec.replicas;
        if let Some(claims::ClaimMaintenance { grow: true, .. }) = maintenance {
            for ordinal in 0..instances {
                let name = claims::name(&set.child.key.name, ordinal);
                // It lost the labels by which the list selects, or never had them.
                if !claims.iter().any(|claim| claim.name == name)
                    && let Some((place, claim)) = self.claim(&name).await?
                {
                    found.push(place);
                    claims.push(claim);
                }
            }
        }
        let terminating = claims::terminating(&claims, instances);
        reconciler.with_memory(cluster, |memory| {
            memory.set_claim_terminating(terminating.is_some())
        });
        if let Some(claim) = terminating {
            applied.problem = worst(
                applied.problem.take(),
                Problem::Permanent(explain_claim_deletion(claim)),
            );
        }
        applied.volume_size = claims::smallest(&claims, instances).map(str::to_owned);
        match maintenance {
            Some(maintenance) => {
                let claims: Vec<_> = found.iter().zip(&claims).collect();
                self.update_claims(set, &maintenance, &claims, applied)
                    .await
            }
            None => Ok(()),
        }
    }

    async fn update_claims(
        &mut self,
        set: &StatefulSetRecord,
        maintenance: &claims::ClaimMaintenance,
        claims: &[(&ObjectRef, &Claim)],
        applied: &mut Applied,
    ) -> Result<(), Refused> {
        let cluster = self.cluster;
        let (size, instances) = (&cluster.spec.storage.size, cluster.spec.replicas);
        let has = |ordinal| claims.iter().any(|(_, claim)| claim.ordinal == ordinal);
        let mut is_done = !maintenance.grow || (0..instances).all(has);
        let failures_before = self.still_refused.len();
        let back_to = applied.volume_size.clone();
        for (found, claim) in claims.iter().filter(|(_, claim)| !claim.deleting) {
            let grows =
                maintenance.grow && claim.ordinal < instances && claim.is_smaller_than(size);
            // It grows once it has a volume.
            is_done &= !grows || claim.is_bound;
            let size = (grows && claim.is_bound).then_some(size.as_str());
            if size.is_some() || !claim.is_of(cluster) {
                let back_to = back_to.as_deref().unwrap_or("its former value");
                let updated = self.update_claim(found, size, back_to).await;
                applied.pass_over(updated)?;
            }
        }
        is_done &= self.still_refused.len() == failures_before;
        if !is_done || set.claims_done.as_ref() == Some(&maintenance.done) {
            return Ok(());
        }
        let writer = &self.reconciler.writer;
        let annotated = writer
            .annotate_child(
                self.permit,
                cluster,
                &set.child,
                names::CLAIMS_ANNOTATION,
                &maintenance.done,
            )
            .await;
        let id = set.child.id();
        let version = annotated
            .map_err(|refusal| self.refused(&Target::Child(&cluster.key, &id), refusal))?;
        self.wrote_child(&id, &version, None);
        Ok(())
    }

    /// The claims of this cluster's name.
    async fn claims(&self, all: bool) -> Result<(Vec<ObjectRef>, Vec<Claim>), Refused> {
        let listed = self.reconciler.writer.claims(self.cluster, all).await;
        let listed = listed.map_err(|refusal| Refused::by(refusal, "listing the claims"))?;
        Ok(listed.into_iter().unzip())
    }

    async fn claim(&self, name: &str) -> Result<Option<(ObjectRef, Claim)>, Refused> {
        let found = self.reconciler.writer.claim(self.cluster, name).await;
        found.map_err(|refusal| Refused::by(refusal, &format!("reading claim {name}")))
    }

    async fn update_claim(
        &mut self,
        claim: &ObjectRef,
        size: Option<&str>,
        back_to: &str,
    ) -> Result<(), Refused> {
        let writer = &self.reconciler.writer;
        let updated = writer
            .update_claim(self.permit, self.cluster, claim, size)
            .await;
        match (updated, size) {
            (Ok(()), _) => {
                self.wrote = true;
                Ok(())
            }
            (Err(Refusal::Refused(cause, text)), Some(size)) => {
                let message = format!(
                    "claim {} cannot grow to {size}: {text}. To continue, {}",
                    claim.name,
                    claims::remedy(&text, back_to)
                );
                Err(Refused::Reported(
                    Problem::Permanent(ConditionReason::new(reason::STORAGE, message.clone())),
                    Failure::Failed { cause, message },
                ))
            }
            (Err(refusal), _) => {
                let target = Target::Claim(&self.cluster.key, &claim.name);
                Err(self.refused(&target, refusal))
            }
        }
    }

    /// Deletes Pods that hang on a former template, with their grace: one that was deleted by force
    /// may still run beside its successor.
    pub(super) async fn replace_stuck(&mut self, stuck: &[ObjectRef], applied: &mut Applied) {
        for pod in stuck {
            tracing::info!(object = %self.cluster.key, pod = pod.name, "replacing a Pod that is stuck on a former template");
            let writer = &self.reconciler.writer;
            let answer = writer
                .delete_dependent(self.permit, self.cluster, Dependent::Pod, pod)
                .await;
            match answer {
                Ok(()) => self.wrote = true,
                // It changes after all: the next reconcile decides.
                Err(Refusal::Conflict(_)) => {}
                Err(refusal) => {
                    let target = Target::Pod(&self.cluster.key, &pod.name);
                    let refused = self.refused(&target, refusal);
                    let is_final = matches!(refused, Refused::Fenced(..));
                    applied.note(refused);
                    if !is_final {
                        return;
                    }
                }
            }
        }
    }
}

/// Why a claim that is being deleted under a running instance needs somebody.
fn explain_claim_deletion(claim: &Claim) -> ConditionReason {
    let pod = claim.name.strip_prefix("data-").unwrap_or(&claim.name);
    let keep = claim.volume.as_deref().map_or_else(String::new, |volume| {
        format!(
            " To keep the volume: kubectl patch persistentvolume {volume} -p \
             '{{\"spec\":{{\"persistentVolumeReclaimPolicy\":\"Retain\"}}}}'."
        )
    });
    let next = match claim.ordinal {
        0 => "It has the data of the primary: dump the data before the Pod ends.",
        _ => "The next Pod of this replica copies the primary onto a new volume.",
    };
    ConditionReason::new(
        reason::CLAIM_DELETED,
        format!(
            "PersistentVolumeClaim {} is being deleted: it is deleted when Pod {pod} ends, and a deletion \
             cannot be undone.{keep} {next}",
            claim.name
        ),
    )
}
