//! Settings with which a replica starts, checked as a whole.

use std::net::SocketAddr;
use std::time::Duration;

use shard_ownership::hash::ShardCount;
use shard_ownership::ownership::Settings;

use crate::pool::PoolConfig;

/// Longest identity that still fits into the name of a member Lease (253 in all), in bytes.
const IDENTITY_LENGTH_MAX: usize = 200;

/// What a replica is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the operator's own Leases and of the shard table.
    pub namespace: String,
    /// Identity of this replica: in a cluster, the name of its Pod.
    pub identity: String,
    /// Uid of the Pod, by which a restarted container takes its shards back at once; empty outside a
    /// cluster.
    pub pod_uid: String,
    /// Revision of the Deployment's ReplicaSet, by which a rolling update moves each shard once; empty
    /// when unknown.
    pub revision: String,
    /// The namespaces that are served, sorted, the same for all replicas; empty: all.
    pub served: Vec<String>,
    /// Number of shards, the same for all replicas.
    pub shards: ShardCount,
    /// Lifetime of the member Lease without a renewal, in whole seconds.
    pub lease_duration: Duration,
    /// Time between renewals of the member Lease.
    pub renew_interval: Duration,
    /// How long the work of a shard may take to finish before the shard is handed over all the same.
    pub drain_timeout: Duration,
    /// Limits of the pool.
    pub pool: PoolConfig,
    /// Do not begin to act before the API server's fence is proven to hold for this replica.
    pub require_fence: bool,
    /// Join the fleet with credentials that are not bound to a Pod, for which the fence does not hold.
    pub allow_unfenced: bool,
    /// Let the API server filter watches by shard where it can.
    pub sharded_watch: bool,
    /// Address of the HTTP server.
    pub listen: SocketAddr,
}

/// A value that does not fit with the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {value}: {allowed}")]
pub struct ConfigError {
    flag: &'static str,
    value: String,
    allowed: String,
}

impl Config {
    /// Defaults, with what a Pod knows of itself from the environment: `POD_NAMESPACE` (else
    /// `namespace`), `POD_NAME`, `POD_UID`, `POD_TEMPLATE_HASH`, and `LISTEN` as the address of the HTTP
    /// server.
    ///
    /// # Errors
    /// When `LISTEN` is no address.
    pub fn from_env(namespace: &str) -> Result<Self, ConfigError> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let listen = set("LISTEN").unwrap_or_else(|| "0.0.0.0:8080".to_owned());
        let listen = listen.parse().map_err(|_| ConfigError {
            flag: "LISTEN",
            value: listen,
            allowed: "must be an address and a port, such as 0.0.0.0:8080".to_owned(),
        })?;
        Ok(Self {
            namespace: set("POD_NAMESPACE").unwrap_or_else(|| namespace.to_owned()),
            identity: set("POD_NAME").unwrap_or_else(random_identity),
            pod_uid: set("POD_UID").unwrap_or_default(),
            revision: set("POD_TEMPLATE_HASH").unwrap_or_default(),
            served: Vec::new(),
            shards: ShardCount::DEFAULT,
            lease_duration: Duration::from_secs(6),
            renew_interval: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(10),
            pool: PoolConfig::default(),
            require_fence: true,
            allow_unfenced: false,
            sharded_watch: true,
            listen,
        })
    }

    /// What the ownership machine needs to know.
    ///
    /// # Errors
    /// When a renewal would come too late for the lifetime that it renews, or the identity is too long.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let mut settings = Settings::new(&self.identity, self.shards);
        settings.lease_ms = millis(self.lease_duration);
        settings.renew_ms = millis(self.renew_interval);
        settings.drain_timeout_ms = millis(self.drain_timeout);
        settings.pod_uid.clone_from(&self.pod_uid);
        // Two renewals must fit before the replica has to stop by itself, else one lost reply ends it.
        let most_ms = (settings.lease_ms - settings.margin_ms) / 2;
        if settings.renew_ms < settings.retry_ms || settings.renew_ms > most_ms {
            return Err(ConfigError {
                flag: "--renew-interval",
                value: format!("{:?}", self.renew_interval),
                allowed: format!(
                    "must be between {} ms and {most_ms} ms, half of what --lease-duration leaves",
                    settings.retry_ms
                ),
            });
        }
        if self.identity.len() > IDENTITY_LENGTH_MAX {
            return Err(ConfigError {
                flag: "--identity",
                value: self.identity.clone(),
                allowed: format!("at most {IDENTITY_LENGTH_MAX} characters"),
            });
        }
        Ok(settings)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An identity for a replica outside a cluster, where nobody vouches that a name is free: the host's
/// name and a random suffix.
#[must_use]
pub fn random_identity() -> String {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy().to_lowercase();
    let fits = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
    let host: String = host.chars().filter(fits).take(60).collect();
    let host = host.trim_matches('-');
    let suffix: String = std::iter::repeat_with(|| fastrand::alphanumeric().to_ascii_lowercase())
        .take(6)
        .collect();
    format!(
        "{}-{suffix}",
        if host.is_empty() { "replica" } else { host }
    )
}
