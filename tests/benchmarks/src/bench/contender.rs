//! A side as processes against a control plane.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testbed::audit::AuditEvent;
use testbed::fleet::OPERATOR_USER;
use testbed::process::{ProcessId, ProcessUsage};
use testbed::{ControlPlane, Fleet, FleetOptions, shards};

use super::peer::{self, Peers};
use super::side::Side;
use crate::BALANCE_TIMEOUT;

const DEPLOYMENT: &str = include_str!("../../../../deploy/base/deployment.yaml");

/// Those arguments of the Deployment that decide how much is done at once.
pub(super) fn deployed_args() -> Vec<String> {
    let items = DEPLOYMENT
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "));
    items
        .filter(|item| item.starts_with("--concurrency="))
        .map(str::to_owned)
        .collect()
}

/// Processes that run.
pub(super) enum Contender<'a> {
    Operator(Fleet<'a>),
    Peer(Peers<'a>),
}

/// What all processes of one side have used together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    /// The most that any one of them ever had resident.
    pub(super) peak_resident_bytes: u64,
}

impl<'a> Contender<'a> {
    /// Installs what a side needs; nothing runs yet.
    pub(super) async fn install(control_plane: &'a ControlPlane, side: Side) -> Result<Self> {
        let kind = match side {
            Side::Operator | Side::OperatorAlone => {
                let options = FleetOptions {
                    extra_args: deployed_args(),
                    ..FleetOptions::default()
                };
                let fleet = Fleet::install(control_plane, options).await?;
                return Ok(Self::Operator(fleet));
            }
            Side::Go => peer::Kind::Go,
            Side::GoTypical => peer::Kind::GoTypical,
            Side::KubeRs => peer::Kind::KubeRs,
        };
        Ok(Self::Peer(Peers::install(control_plane, kind).await?))
    }

    /// Starts so many processes, and returns when they share the work, or one of them leads.
    pub(super) async fn start(&mut self, count: usize) -> Result<()> {
        match self {
            Self::Operator(fleet) => {
                fleet.start_replicas_at_once(count).await?;
                fleet.wait_ready(READY_TIMEOUT).await?;
                Ok(shards::wait_balanced(fleet, BALANCE_TIMEOUT).await?)
            }
            Self::Peer(peers) => {
                for _ in 0..count {
                    peers.add().await?;
                }
                Ok(())
            }
        }
    }

    /// Ends all processes, such that others can start at once.
    pub(super) async fn stop(&mut self) -> Result<()> {
        match self {
            Self::Peer(peers) => peers.stop().await,
            Self::Operator(fleet) => {
                for index in 0..fleet.replicas().len() {
                    if fleet.replica(index)?.is_alive() {
                        fleet.replica_mut(index)?.term(READY_TIMEOUT).await?;
                    }
                }
                Ok(())
            }
        }
    }

    fn processes(&self) -> Vec<ProcessId> {
        match self {
            Self::Operator(fleet) => fleet.alive().map(|replica| replica.process()).collect(),
            Self::Peer(peers) => peers.processes(),
        }
    }

    pub(super) fn used(&self) -> Result<Used> {
        let mut all = Used::default();
        for process in self.processes() {
            let usage: ProcessUsage = process.usage()?;
            all.cpu_seconds += usage.cpu_seconds;
            all.resident_bytes += usage.resident_bytes;
            all.peak_resident_bytes = all.peak_resident_bytes.max(usage.peak_resident_bytes);
        }
        Ok(all)
    }

    /// Whether a request is one of its own, and none that keeps Leases or watches alive.
    pub(super) fn is_work(&self, event: &AuditEvent) -> bool {
        let user = match self {
            Self::Operator(_) => OPERATOR_USER,
            Self::Peer(_) => peer::USER,
        };
        event.user == user && event.verb != "watch" && event.resource != "leases"
    }

    /// Kills (SIGKILL) the process that works on the object with this uid; returns when it has ended.
    pub(super) async fn kill_worker(&mut self, client: &kube::Client, uid: &str) -> Result<()> {
        let fleet = match self {
            Self::Peer(peers) => return peers.kill_leader().await,
            Self::Operator(fleet) => fleet,
        };
        let shards = shards::list(client).await?;
        let shard = shards.iter().find(|shard| shard.covers(uid));
        let holder = shard.context("a shard covers the object")?.holder.as_str();
        let index = fleet.replicas().iter().position(|r| r.name() == holder);
        let Some(index) = index else {
            bail!("its shard is held by {holder:?}, which is no replica of ours");
        };
        Ok(fleet.replica_mut(index)?.kill().await?)
    }

    /// Starts a process in the place of one that was killed.
    pub(super) async fn replace(&mut self) -> Result<()> {
        self.start(1).await
    }
}

const READY_TIMEOUT: Duration = Duration::from_secs(60);
