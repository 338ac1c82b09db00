//! One leader: the Lease is acquired before anything is watched, and a process that loses it ends.

use std::time::{Duration, Instant};

use anyhow::{Error, anyhow};
use kube::Client;
use kube_leader_election::{LeaseLock, LeaseLockParams, LeaseLockResult};

/// As client-go's defaults: lifetime, deadline of a renewal, time between two.
const LIFETIME: Duration = Duration::from_secs(15);
const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(2);

pub(crate) struct Lock(LeaseLock);

impl Lock {
    /// Waits until this process leads.
    pub(crate) async fn acquire(client: Client) -> Self {
        let params = LeaseLockParams {
            holder_id: format!("peer-{}", std::process::id()),
            lease_name: "peer".to_owned(),
            lease_ttl: LIFETIME,
        };
        let lock = LeaseLock::new(client, "default", params);
        loop {
            match lock.try_acquire_or_renew().await {
                Ok(LeaseLockResult::Acquired(_)) => return Self(lock),
                Ok(LeaseLockResult::NotAcquired(_)) => {}
                Err(error) => eprintln!("peer: acquire the Lease: {error}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Renews it, and returns when that has failed for too long.
    pub(crate) async fn lost(&self) -> Error {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(PAUSE).await;
            match self.0.try_acquire_or_renew().await {
                Ok(LeaseLockResult::Acquired(_)) => renewed = Instant::now(),
                Ok(LeaseLockResult::NotAcquired(_)) => return anyhow!("another process leads"),
                Err(error) if renewed.elapsed() > DEADLINE => {
                    return Error::new(error).context("renew the Lease");
                }
                Err(error) => eprintln!("peer: renew the Lease: {error}"),
            }
        }
    }
}
