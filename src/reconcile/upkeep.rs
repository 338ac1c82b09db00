//! What is done on rare occasions for a cluster that lives: growing claims, replacing Pods that
//! hang on a former template.

use super::apply::Refused;
use super::belongings::{Belonging, Found};
use super::failure::Refusal;
use super::run::Run;
use crate::api::names;
use crate::core::claims;
use crate::core::lifecycle::{Trouble, Why, reason};
use crate::core::observed::StatefulSetRecord;
use crate::core::outcome::Failure;
use crate::fleet::tenure::boottime_ms;

impl Run<'_> {
    /// Grows the claims of all instances if the spec asks for more than they were made with, and
    /// remembers that on the StatefulSet. A sweep does it once more: a claim that was deleted and made
    /// anew has the size of the template again.
    pub(super) async fn grow_claims(
        &mut self,
        set: &StatefulSetRecord,
        sweep: bool,
    ) -> Result<(), Refused> {
        let cluster = self.cluster;
        let Some(grown) = claims::to_grow(cluster, set, sweep) else {
            return Ok(());
        };
        let writer = &self.reconciler.writer;
        for ordinal in 0..cluster.spec.replicas {
            let claim = claims::name(&set.child.key.name, ordinal);
            writer
                .grow_claim(self.tenure, cluster, &claim)
                .await
                .map_err(|refusal| not_grown(refusal, &claim, &cluster.spec.storage.size))?;
            self.wrote = true;
        }
        let id = set.child.id();
        let version = writer
            .annotate_child(
                self.tenure,
                cluster,
                &set.child,
                (names::CLAIMS_ANNOTATION, &grown),
            )
            .await
            .map_err(|refusal| Refused::by(refusal, &id))?;
        self.reconciler.with_memory(cluster, |memory| {
            memory.wrote_child(&id, version, None, boottime_ms());
        });
        Ok(())
    }

    /// Deletes Pods that hang on a former template, with their grace: one that was deleted by force
    /// may still run beside its successor.
    pub(super) async fn replace_stuck(&mut self, stuck: &[Found]) -> Result<(), Failure> {
        let writer = &self.reconciler.writer;
        for pod in stuck {
            tracing::info!(object = %self.cluster.key, pod = pod.name, "replacing a Pod that hangs on a former template");
            let answer = writer
                .delete_belonging(self.tenure, self.cluster, Belonging::Pod, pod)
                .await;
            match answer {
                Ok(()) => self.wrote = true,
                // It moves after all: the next look tells.
                Err(Refusal::Conflict(_)) => {}
                Err(refusal) => return Err(refusal.into_failure("replacing a Pod")),
            }
        }
        Ok(())
    }
}

fn not_grown(refusal: Refusal, claim: &str, size: &str) -> Refused {
    match refusal {
        Refusal::Refused(cause, text) => {
            let message = format!(
                "claim {claim} can not grow to {size}: {text}. Its StorageClass must have \
                 allowVolumeExpansion; else set spec.storage.size to what it was in a new \
                 DatabaseCluster and copy the data"
            );
            Refused::Told(
                Trouble::Wrong(Why::new(reason::STORAGE, message.clone())),
                Failure::Failed { cause, message },
            )
        }
        other => Refused::Failure(other.into_failure(&format!("growing claim {claim}"))),
    }
}
