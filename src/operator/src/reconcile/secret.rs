//! The Secret of a cluster: created once, detected by an attempt to create it, never read.

use super::apply::Refused;
use super::refused::Target;
use super::run::Run;
use crate::core::lifecycle::{ConditionReason, Problem, reason};
use crate::core::memory::Memory;
use crate::core::plan::{SECRET_HOLD_MS, SecretStep};
use crate::postgres::{self, Password, RANDOM_BYTES};
use sharded_controller::outcome::{Cause, Failure};
use sharded_controller::refusal::Refusal;

impl Run<'_> {
    /// Executes the plan for the Secret.
    pub(super) async fn settle_secret(&mut self, step: SecretStep) -> Result<(), Refused> {
        match step {
            SecretStep::Leave => Ok(()),
            SecretStep::Create { hold } => {
                let reconciler = self.reconciler;
                if self.create_secret(false).await? {
                    self.wrote = true;
                    reconciler.with_memory(self.cluster, Memory::secret_created);
                    return Ok(());
                }
                reconciler.with_memory(self.cluster, |memory| {
                    memory.secret_in_the_way(self.reconciler.clock.now_ms());
                });
                match hold {
                    true => Err(self.secret_in_the_way()),
                    false => Ok(()),
                }
            }
            SecretStep::Probe => match self.create_secret(true).await? {
                false => Ok(()),
                true => Err(self.secret_missing()),
            },
        }
    }

    /// Whether the Secret was created, or would be, if this is a dry run: without permission to
    /// read Secrets, this is how to find out whether it exists.
    async fn create_secret(&mut self, trial: bool) -> Result<bool, Refused> {
        let id = postgres::secret_id(&self.cluster.key.name);
        let (password, replication) = (new_password()?, new_password()?);
        let token = self.permit.token();
        let manifest = postgres::secret(self.cluster, &password, &replication, token);
        let namespace = &self.cluster.key.namespace;
        let writer = &self.reconciler.writer;
        match writer
            .create(self.permit, namespace, &id, manifest, trial)
            .await
        {
            Ok(()) => Ok(true),
            Err(Refusal::Conflict(_)) => Ok(false),
            Err(refusal) => Err(self.refused(&Target::Child(&self.cluster.key, &id), refusal)),
        }
    }

    fn secret_in_the_way(&self) -> Refused {
        let name = postgres::secret_name(&self.cluster.key.name);
        let seconds = SECRET_HOLD_MS / 1_000;
        Refused::Problem(Problem::Transient(ConditionReason::new(
            reason::WAITING,
            format!(
                "Secret {name} exists already. It may be deleted with a former DatabaseCluster of \
                 this name, so the StatefulSet is created after {seconds} s"
            ),
        )))
    }

    fn secret_missing(&self) -> Refused {
        let name = &self.cluster.key.name;
        let message = format!(
            "Secret {} is missing, and Pods that start need it. The operator does not create \
             another one, as clients may still use the old passwords: create it with the keys \
             username, password, dbname and replication-password, then delete Pod {}-0, which \
             takes over whatever passwords are in it",
            postgres::secret_name(name),
            postgres::statefulset_name(name),
        );
        Refused::Reported(
            Problem::Permanent(ConditionReason::new(
                reason::SECRET_MISSING,
                message.clone(),
            )),
            Failure::Failed {
                cause: Cause::Other,
                message,
            },
        )
    }
}

fn new_password() -> Result<Password, Refused> {
    let mut bytes = [0_u8; RANDOM_BYTES];
    let got = getrandom::fill(&mut bytes);
    let password = match got {
        Ok(()) => Password::from_random(&bytes),
        Err(_) => None,
    };
    password.ok_or_else(|| {
        Refused::Failure(Failure::Failed {
            cause: Cause::Other,
            message: format!("the kernel returned no random numbers ({got:?}); retrying"),
        })
    })
}
