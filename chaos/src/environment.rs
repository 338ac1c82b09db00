//! What faults act on: the control plane, the fleet, its users, and the record of when each process ran.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use testbed::audit::{AuditEvent, Reader};
use testbed::fleet::{OPERATOR_NAMESPACE, OPERATOR_USER, ReplicaOptions};
use testbed::{ControlPlane, Fleet, shards};

use crate::evidence::{Life, Micros, now_micros};
use crate::progress::Progress;
use crate::proxy::Proxy;
use crate::recorder::{Target, Targets};
use crate::scenario::{Scenario, Who};
use crate::users::Users;

pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// What faults act on.
pub struct Environment<'a> {
    /// The control plane.
    pub control_plane: &'a ControlPlane,
    /// The replicas, by the same index as `proxies`.
    pub fleet: Fleet<'a>,
    /// Those through which replicas reach the API server, if they do.
    pub proxies: Vec<Option<Proxy>>,
    /// The users.
    pub users: Users,
    /// The scenario that runs.
    pub scenario: &'a Scenario,
    /// Chooses the replicas that faults hit.
    pub rng: fastrand::Rng,
    /// Every process that ever ran.
    pub lives: Vec<Life>,
    /// The replicas that are sampled.
    pub targets: Targets,
    /// Prints progress.
    pub progress: Progress,
    /// The revision of replicas that start now.
    pub revision: u32,
}

impl Environment<'_> {
    /// Starts one more replica, with a proxy if the scenario wants one; returns its index. It listens, and may not be
    /// ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(&mut self, mut options: ReplicaOptions) -> Result<usize> {
        options
            .args
            .extend(["--revision".to_owned(), self.revision.to_string()]);
        let mut proxy = None;
        if self.scenario.fleet.proxied {
            let started = Proxy::start(self.control_plane).await?;
            options.endpoint = Some((started.url(), started.authority()));
            proxy = Some(started);
        }
        // It renews its Lease before it is known to listen.
        let from = now_micros();
        let index = self.fleet.start_replica_with(options).await?;
        self.proxies.push(proxy);
        self.born(index, from)?;
        Ok(index)
    }

    /// Starts the process again in the same Pod.
    ///
    /// # Errors
    /// When it still runs or cannot be started.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let from = now_micros();
        self.fleet.restart_replica(index).await?;
        self.born(index, from)
    }

    fn born(&mut self, index: usize, from: Micros) -> Result<()> {
        let pod = self.fleet.replica(index)?.name().to_owned();
        self.lives.push(Life {
            pod,
            from,
            to: None,
            absent: Vec::new(),
        });
        self.sample_those_alive();
        Ok(())
    }

    /// Kills a replica (SIGKILL).
    ///
    /// # Errors
    /// When it has ended before.
    pub async fn kill(&mut self, index: usize) -> Result<()> {
        let at = now_micros();
        self.fleet.replica_mut(index)?.kill().await?;
        self.died(index, at)
    }

    /// Records that the process of a replica has ended.
    ///
    /// # Errors
    /// When there is no such replica.
    pub fn died(&mut self, index: usize, at: i64) -> Result<()> {
        let pod = self.fleet.replica(index)?.name();
        for life in self.lives.iter_mut().filter(|life| life.pod == pod) {
            life.to.get_or_insert(at);
        }
        self.sample_those_alive();
        Ok(())
    }

    /// Records that a replica could do nothing for a while.
    ///
    /// # Errors
    /// When there is no such replica.
    pub fn was_absent(&mut self, index: usize, from: i64, to: i64) -> Result<()> {
        let pod = self.fleet.replica(index)?.name();
        let life = self.lives.iter_mut().rev().find(|life| life.pod == pod);
        if let Some(life) = life {
            life.absent.push((from, to));
        }
        Ok(())
    }

    /// Ends replicas in the way that Kubernetes does (SIGTERM), all at once, and removes their Pods.
    ///
    /// # Errors
    /// When one does not end in time.
    pub async fn term(&mut self, indices: &[usize]) -> Result<()> {
        for index in indices {
            self.fleet.replica(*index)?.ask_to_end()?;
        }
        for index in indices {
            self.fleet
                .replica_mut(*index)?
                .wait_end(READY_TIMEOUT)
                .await?;
            self.died(*index, now_micros())?;
            let pod = self.fleet.replica(*index)?.name().to_owned();
            self.fleet.delete_pod(&pod).await?;
        }
        Ok(())
    }

    /// The replicas that run, by index.
    #[must_use]
    pub fn alive(&self) -> Vec<usize> {
        let all = self.fleet.replicas().iter().enumerate();
        all.filter(|(_, replica)| replica.is_alive())
            .map(|(index, _)| index)
            .collect()
    }

    /// Chooses the replicas that a fault hits.
    ///
    /// # Errors
    /// When no replica runs.
    pub async fn choose(&mut self, who: Who) -> Result<Vec<usize>> {
        let alive = self.alive();
        if alive.is_empty() {
            bail!("no replica runs that could be hit");
        }
        let any = alive[self.rng.usize(..alive.len())];
        Ok(match who {
            Who::All => alive,
            Who::Any => vec![any],
            Who::Youngest => alive.last().copied().into_iter().collect(),
            Who::AllButOne => alive.into_iter().filter(|index| *index != any).collect(),
            Who::FleetLeader => vec![self.named(&self.fleet_leader().await?)?],
            Who::ShardLeader => {
                let all = shards::list(&self.control_plane.client()).await?;
                let held: Vec<String> = all
                    .into_iter()
                    .map(|shard| shard.holder)
                    .filter(|h| !h.is_empty())
                    .collect();
                if held.is_empty() {
                    bail!("no shard has a holder that could be hit");
                }
                let holder = held[self.rng.usize(..held.len())].clone();
                vec![self.named(&holder)?]
            }
        })
    }

    async fn fleet_leader(&self) -> Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.control_plane.client(), OPERATOR_NAMESPACE);
        let lease = leases
            .get("databasecluster-leader")
            .await
            .context("find the fleet leader")?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        holder.context("the fleet has no leader")
    }

    fn named(&self, pod: &str) -> Result<usize> {
        let position = self
            .alive()
            .into_iter()
            .find(|index| self.fleet.replicas()[*index].name() == pod);
        position.with_context(|| format!("{pod} is named in a Lease, but does not run"))
    }

    /// The names of replicas.
    #[must_use]
    pub fn names(&self, indices: &[usize]) -> Vec<String> {
        let name = |index: &usize| {
            self.fleet
                .replicas()
                .get(*index)
                .map(|replica| replica.name().to_owned())
        };
        indices.iter().filter_map(name).collect()
    }

    /// How many of the operator's requests since `from` in the audit log match.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn count_requests(&self, from: i64, like: impl Fn(&AuditEvent) -> bool) -> Result<u64> {
        let mut reader = Reader::from_start(self.control_plane.audit_log()?);
        let mut count = 0;
        loop {
            let events = reader.next_events_at_most(2_000)?;
            if events.is_empty() {
                return Ok(count);
            }
            let ours = events
                .iter()
                .filter(|event| event.user == OPERATOR_USER && event.received_micros >= from);
            count += ours.filter(|event| like(event)).count() as u64;
        }
    }

    fn sample_those_alive(&self) {
        let alive = self.fleet.alive();
        self.targets.set(
            alive
                .map(|replica| Target {
                    pod: replica.name().to_owned(),
                    url: replica.url().to_owned(),
                    process: replica.process(),
                })
                .collect(),
        );
    }
}
