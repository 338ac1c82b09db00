//! What is done on rare occasions for a cluster that lives: labelling and growing claims, replacing
//! Pods that hang on a former template.

use super::apply::{Applied, Refused};
use super::belongings::{Belonging, Found, cluster_uid};
use super::failure::Refusal;
use super::refused::Target;
use super::run::Run;
use crate::api::names;
use crate::core::claims;
use crate::core::lifecycle::{Trouble, Why, reason};
use crate::core::observed::StatefulSetRecord;
use crate::core::outcome::Failure;
use crate::fleet::tenure::boottime_ms;
use crate::postgres;

/// A claim of this cluster's name.
struct Claim {
    found: Found,
    /// Whether its label is this cluster's uid.
    is_ours: bool,
}

impl Run<'_> {
    /// Makes the claims that a former cluster of this name left this cluster's own, right before a
    /// StatefulSet is created that uses them.
    pub(super) async fn take_over_claims(&mut self) -> Result<(), Refused> {
        for claim in self.claims().await? {
            if !claim.is_ours {
                self.update_claim(&claim.found, None).await?;
            }
        }
        Ok(())
    }

    /// Labels the claims that no template of ours labelled, and grows the claims of all instances if
    /// the spec asks for more than they were created with; then remembers that on the StatefulSet. A
    /// sweep does it once more: a claim that was deleted and re-created is as in the template again.
    pub(super) async fn keep_claims(
        &mut self,
        set: &StatefulSetRecord,
        sweep: bool,
        applied: &mut Applied,
    ) -> Result<(), Refused> {
        let cluster = self.cluster;
        let Some(upkeep) = claims::upkeep(cluster, set, sweep) else {
            return Ok(());
        };
        let size = upkeep.grow.then_some(cluster.spec.storage.size.as_str());
        let mut claims = self.claims().await?;
        let grows = |name: &str| {
            let mut instances = 0..cluster.spec.replicas;
            size.is_some() && instances.any(|n| claims::name(&set.child.key.name, n) == name)
        };
        for ordinal in 0..size.map_or(0, |_| cluster.spec.replicas) {
            let name = claims::name(&set.child.key.name, ordinal);
            if !claims.iter().any(|claim| claim.found.name == name) {
                claims.push(self.claim_without_labels(&name).await?);
            }
        }
        let failures_before = self.still_refused.len();
        for claim in &claims {
            let size = size.filter(|_| grows(&claim.found.name));
            if size.is_some() || !claim.is_ours {
                let updated = self.update_claim(&claim.found, size).await;
                applied.pass_over(updated)?;
            }
        }
        let is_done = self.still_refused.len() == failures_before;
        if !is_done || set.claims_done.as_ref() == Some(&upkeep.done) {
            return Ok(());
        }
        let writer = &self.reconciler.writer;
        let annotated = writer
            .annotate_child(
                self.tenure,
                cluster,
                &set.child,
                (names::CLAIMS_ANNOTATION, &upkeep.done),
            )
            .await;
        let id = set.child.id();
        let version = annotated
            .map_err(|refusal| self.refused(&Target::Child(&cluster.key, &id), refusal))?;
        self.wrote = true;
        self.reconciler.with_memory(cluster, |memory| {
            memory.wrote_child(&id, version, None, boottime_ms());
        });
        Ok(())
    }

    /// The claims of this cluster's name that stay.
    async fn claims(&self) -> Result<Vec<Claim>, Refused> {
        let set = postgres::statefulset_name(&self.cluster.key.name);
        let listed = self.reconciler.writer.claims(self.cluster).await;
        let listed = listed.map_err(|refusal| Refused::by(refusal, "listing the claims"))?;
        let claims = listed.iter().filter(|claim| {
            let name = claim.metadata.name.as_deref();
            claim.metadata.deletion_timestamp.is_none()
                && name.is_some_and(|name| claims::belongs_to(name, &set))
        });
        Ok(claims
            .filter_map(|claim| self.claim_of(&claim.metadata))
            .collect())
    }

    /// A claim that lost the labels that [`Self::claims`] asks for, or never had them.
    async fn claim_without_labels(&self, name: &str) -> Result<Claim, Refused> {
        let what = format!("reading claim {name}");
        let found = self.reconciler.writer.claim(self.cluster, name).await;
        let found = found.map_err(|refusal| Refused::by(refusal, &what))?;
        let claim = found.and_then(|claim| self.claim_of(&claim.metadata));
        claim.ok_or_else(|| Refused::by(Refusal::Gone, &what))
    }

    fn claim_of(
        &self,
        meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    ) -> Option<Claim> {
        Some(Claim {
            found: Found::of(meta)?,
            is_ours: cluster_uid(meta) == Some(&*self.cluster.uid),
        })
    }

    async fn update_claim(&mut self, claim: &Found, size: Option<&str>) -> Result<(), Refused> {
        let writer = &self.reconciler.writer;
        let updated = writer
            .update_claim(self.tenure, self.cluster, claim, size)
            .await;
        match (updated, size) {
            (Ok(()), _) => {
                self.wrote = true;
                Ok(())
            }
            (Err(Refusal::Refused(cause, text)), Some(size)) => {
                let message = format!(
                    "claim {} cannot grow to {size}: {text}. Its StorageClass must have \
                     allowVolumeExpansion; otherwise set spec.storage.size to its former value in a \
                     new DatabaseCluster and copy the data",
                    claim.name
                );
                Err(Refused::Told(
                    Trouble::Wrong(Why::new(reason::STORAGE, message.clone())),
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
    pub(super) async fn replace_stuck(&mut self, stuck: &[Found], applied: &mut Applied) {
        for pod in stuck {
            tracing::info!(object = %self.cluster.key, pod = pod.name, "replacing a Pod that hangs on a former template");
            let writer = &self.reconciler.writer;
            let answer = writer
                .delete_belonging(self.tenure, self.cluster, Belonging::Pod, pod)
                .await;
            match answer {
                Ok(()) => self.wrote = true,
                // It moves after all: the next look tells.
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
