//! Who is measured: the operator, or the Go peer, as processes against a control plane.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testbed::audit::AuditEvent;
use testbed::fleet::OPERATOR_USER;
use testbed::process::{ProcessId, ProcessUsage};
use testbed::{ControlPlane, Fleet, FleetOptions, shards};

use super::peer::{self, Peers};
use crate::BALANCE_TIMEOUT;

/// Who, and of how many processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// The operator as it is deployed: three replicas that share the work.
    Operator,
    /// One replica of the operator.
    OperatorAlone,
    /// The peer as it would be deployed: one process that works, and one that waits.
    Peer,
}

impl Side {
    pub(super) const ALL: [Self; 3] = [Self::Operator, Self::OperatorAlone, Self::Peer];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator, 3 replicas",
            Self::OperatorAlone => "operator, 1 replica",
            Self::Peer => "Go peer, 1 and 1 idle",
        }
    }

    fn processes(self) -> usize {
        match self {
            Self::Operator => crate::REPLICAS,
            Self::OperatorAlone => 1,
            Self::Peer => 2,
        }
    }

    /// Whether another process takes over when the working one is killed.
    pub(super) fn has_successor(self) -> bool {
        self != Self::OperatorAlone
    }
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
    pub(super) async fn start(control_plane: &'a ControlPlane, side: Side) -> Result<Self> {
        let count = side.processes();
        match side {
            Side::Operator | Side::OperatorAlone => {
                let fleet = Fleet::start(control_plane, count, FleetOptions::default()).await?;
                shards::wait_balanced(&fleet, BALANCE_TIMEOUT).await?;
                Ok(Self::Operator(fleet))
            }
            Side::Peer => Ok(Self::Peer(Peers::start(control_plane, count).await?)),
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
        match self {
            Self::Peer(peers) => peers.add().await,
            Self::Operator(fleet) => {
                fleet.start_replica(&[]).await?;
                fleet.wait_ready(READY_TIMEOUT).await?;
                Ok(shards::wait_balanced(fleet, BALANCE_TIMEOUT).await?)
            }
        }
    }
}

const READY_TIMEOUT: Duration = Duration::from_secs(60);
