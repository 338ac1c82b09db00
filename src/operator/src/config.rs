//! Command-line flags and environment variables, converted to checked settings.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::telemetry::log::LogFormat;
use shard_ownership::hash::ShardCount;
use sharded_controller::config::{Config, random_identity};
use sharded_controller::duration;
use sharded_controller::pool::PoolConfig;
use sharded_controller::rate_limit::{RateLimit, Scope};

/// Longest time that a flag takes.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// How DatabaseClusters are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShardedWatch {
    /// The API server filters by shard if it can.
    Auto,
    /// This process filters.
    Off,
}

/// Namespaces, sorted; none: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces(Vec<String>);

/// Flags of `run`. Each is also an environment variable: `DBC_` and upper case.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Namespace of the operator's own Leases.
    #[arg(long, env = "DBC_NAMESPACE", value_parser = name)]
    pub namespace: Option<String>,

    /// Namespaces whose DatabaseClusters are served, comma-separated, the same for all replicas;
    /// empty: all.
    #[arg(
        long,
        env = "DBC_WATCH_NAMESPACES",
        default_value = "",
        hide_default_value = true,
        value_parser = namespaces
    )]
    pub watch_namespaces: Namespaces,

    /// Identity of this replica; by default the Pod's name, else host name and a random suffix.
    #[arg(long, env = "DBC_IDENTITY", value_parser = name)]
    pub identity: Option<String>,

    /// Uid of the Pod: lets a restarted container take its shards back immediately.
    #[arg(long, env = "DBC_POD_UID")]
    pub pod_uid: Option<String>,

    /// Revision of the Deployment's ReplicaSet.
    #[arg(long, env = "DBC_REVISION")]
    pub revision: Option<String>,

    /// Do not start before a dry run has shown that the API server's fence applies to this replica.
    #[arg(long, env = "DBC_REQUIRE_FENCE")]
    pub require_fence: bool,

    /// Join the fleet with credentials that are not a token bound to a Pod, such as an administrator's
    /// kubeconfig: the API server's fence does not apply to this replica then.
    #[arg(long, env = "DBC_ALLOW_UNFENCED")]
    pub allow_unfenced: bool,

    /// Number of shards: a power of two from 1 to 256, the same for all replicas.
    #[arg(long, env = "DBC_SHARDS", default_value = "32", value_parser = shards)]
    pub shards: ShardCount,

    /// Lifetime of a member Lease without a renewal, in whole seconds (3s to 60s).
    #[arg(long, env = "DBC_LEASE_DURATION", default_value = "6s", value_parser = lease_duration)]
    pub lease_duration: Duration,

    /// Time between renewals of the member Lease.
    #[arg(long, env = "DBC_RENEW_INTERVAL", default_value = "2s", value_parser = duration)]
    pub renew_interval: Duration,

    /// How long the work of a shard may take to finish before the shard is handed over regardless.
    #[arg(long, env = "DBC_DRAIN_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub drain_timeout: Duration,

    /// Maximum number of concurrent reconciles, 1 to 1000.
    #[arg(long, env = "DBC_CONCURRENCY", default_value = "10", value_parser = concurrency)]
    pub concurrency: NonZeroUsize,

    /// Deadline of one reconcile.
    #[arg(long, env = "DBC_RECONCILE_TIMEOUT", default_value = "60s", value_parser = duration)]
    pub reconcile_timeout: Duration,

    /// Rate limiter: number of runs per time.
    #[arg(long, env = "DBC_RATE_LIMIT", default_value = "100/60s")]
    pub rate_limit: RateLimit,

    /// Scope of the rate limiter: `object` or `replica`.
    #[arg(long, env = "DBC_RATE_LIMIT_SCOPE", default_value = "object")]
    pub rate_limit_scope: Scope,

    /// Maximum number of entries in the lookup cache, 1 to 1000000.
    #[arg(long, env = "DBC_CACHE_ENTRIES", default_value = "1024", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub cache_entries: u64,

    /// How long a lookup stays in the cache.
    #[arg(long, env = "DBC_CACHE_TTL", default_value = "10m", value_parser = duration)]
    pub cache_ttl: Duration,

    /// Maximum number of objects in the queue. A change beyond it replaces the object that is due
    /// last, which is queued again later.
    #[arg(long, env = "DBC_QUEUE_CAPACITY", default_value = "100000", value_parser = concurrency)]
    pub queue_capacity: NonZeroUsize,

    /// Whether the API server filters watches by shard.
    #[arg(long, env = "DBC_SHARDED_WATCH", default_value = "auto", value_enum)]
    pub sharded_watch: ShardedWatch,

    /// Address for /metrics, /livez, /readyz and /fleet.
    #[arg(long, env = "DBC_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Number of DatabaseClusters of this replica, at most 100000, whose conditions are among its metrics with their
    /// names; 0: none.
    #[arg(long, env = "DBC_CLUSTER_METRICS", default_value = "0", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub cluster_metrics: u32,

    /// Form of the log lines.
    #[arg(long, env = "DBC_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
}

/// The namespace used when neither flag nor environment names one.
pub const DEFAULT_NAMESPACE: &str = "databasecluster-system";

impl RunArgs {
    /// What the library's controller is started with.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            namespace: self.own_namespace(),
            identity: self.given_identity().unwrap_or_else(random_identity),
            pod_uid: self.pod_uid(),
            revision: self.revision(),
            served: self.namespaces(),
            shards: self.shards,
            lease_duration: self.lease_duration,
            renew_interval: self.renew_interval,
            drain_timeout: self.drain_timeout,
            pool: PoolConfig {
                concurrency: self.concurrency,
                reconcile_timeout: self.reconcile_timeout,
                rate_limit: self.rate_limit,
                rate_limit_scope: self.rate_limit_scope,
                queue_capacity: self.queue_capacity.get(),
            },
            require_fence: self.require_fence,
            allow_unfenced: self.allow_unfenced,
            sharded_watch: self.sharded_watch == ShardedWatch::Auto,
            listen: self.listen,
        }
    }

    /// Namespace of the Leases: flag, `POD_NAMESPACE`, or the default.
    #[must_use]
    pub(crate) fn own_namespace(&self) -> String {
        self.namespace
            .clone()
            .or_else(|| set("POD_NAMESPACE"))
            .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
    }

    /// Uid of the Pod: flag or `POD_UID`; empty outside a cluster.
    #[must_use]
    pub fn pod_uid(&self) -> String {
        self.pod_uid
            .clone()
            .or_else(|| set("POD_UID"))
            .unwrap_or_default()
    }

    /// Revision: flag or `POD_TEMPLATE_HASH`; empty when unknown.
    #[must_use]
    pub fn revision(&self) -> String {
        self.revision
            .clone()
            .or_else(|| set("POD_TEMPLATE_HASH"))
            .unwrap_or_default()
    }

    /// Identity: flag or `POD_NAME`; otherwise the caller generates one.
    #[must_use]
    pub(crate) fn given_identity(&self) -> Option<String> {
        self.identity.clone().or_else(|| set("POD_NAME"))
    }

    /// The namespaces to serve; empty: all.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        self.watch_namespaces.0.clone()
    }
}

fn set(variable: &str) -> Option<String> {
    std::env::var(variable)
        .ok()
        .filter(|value| !value.is_empty())
}

/// A DNS-1123 subdomain, as Kubernetes wants names.
fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if text.chars().all(fits) && ends(text.chars().next()) && ends(text.chars().last()) {
        Ok(text.to_owned())
    } else {
        Err("must consist of lower case letters, digits, '-' and '.', and begin and end with a letter or digit".into())
    }
}

/// Names of namespaces, which are DNS-1123 labels.
fn namespaces(text: &str) -> Result<Namespaces, String> {
    if text.trim().is_empty() {
        return Ok(Namespaces::default());
    }
    let mut names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    let fits = |name: &&String| name.len() <= 63 && !name.contains('.') && self::name(name).is_ok();
    if let Some(bad) = names.iter().find(|name| !fits(name)) {
        return Err(format!(
            "{bad:?} is not the name of a namespace: at most 63 lower case letters, digits and '-', \
             beginning and ending with a letter or digit"
        ));
    }
    names.sort_unstable();
    if let Some([twice, _]) = names.array_windows().find(|[a, b]| a == b) {
        return Err(format!(
            "{twice:?} is listed twice: name each namespace once"
        ));
    }
    Ok(Namespaces(names))
}

fn shards(text: &str) -> Result<ShardCount, String> {
    let allowed = || "must be a power of two from 1 to 256".to_owned();
    let number: u64 = text.parse().map_err(|_| allowed())?;
    ShardCount::new(number).map_err(|_| allowed())
}

fn concurrency(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .ok()
        .filter(|n: &NonZeroUsize| n.get() <= 1_000_000)
        .ok_or_else(|| "must be a whole number from 1 to 1000000".to_owned())
}

/// A duration above 0 and up to a day.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .filter(|parsed| !parsed.is_zero() && *parsed <= DURATION_MAX)
        .ok_or_else(|| "must be a whole number above 0 with a unit: 500ms, 6s, 10m, 1h".to_owned())
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    let whole = parsed.subsec_nanos() == 0;
    if whole && (3..=60).contains(&parsed.as_secs()) {
        Ok(parsed)
    } else {
        Err("must be in whole seconds, from 3s to 60s (the API has no others)".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(args: &[&str]) -> Result<RunArgs, String> {
        Cli::try_parse_from([&["x"], args].concat())
            .map(|cli| cli.run)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.shards.get(), 32);
        assert_eq!(args.lease_duration, Duration::from_secs(6));
        assert_eq!(args.renew_interval, Duration::from_secs(2));
        assert_eq!(args.drain_timeout, Duration::from_secs(10));
        assert_eq!(args.concurrency.get(), 10);
        assert_eq!(args.reconcile_timeout, Duration::from_secs(60));
        assert_eq!(args.cache_entries, 1024);
        assert_eq!(args.cache_ttl, Duration::from_secs(600));
        assert_eq!(args.listen.to_string(), "0.0.0.0:8080");
        assert_eq!(args.cluster_metrics, 0);
        assert!(args.config().settings().is_ok());
    }

    #[test]
    fn error_for_a_bad_value_names_flag_value_and_allowed_range() {
        for (flag, value, allowed) in [
            ("--shards", "33", "power of two from 1 to 256"),
            ("--shards", "512", "power of two from 1 to 256"),
            ("--lease-duration", "1500ms", "whole seconds"),
            ("--lease-duration", "2s", "3s to 60s"),
            ("--drain-timeout", "0s", "above 0"),
            ("--drain-timeout", "10", "with a unit"),
            ("--concurrency", "0", "from 1"),
            ("--identity", "Not_A_Name", "lower case"),
            ("--sharded-watch", "maybe", "auto, off"),
            ("--rate-limit", "lots", "100/60s"),
            ("--listen", "8080", "socket address"),
            ("--cluster-metrics", "200000", "0..=100000"),
            ("--watch-namespaces", "Not_A_Name", "namespace"),
            ("--watch-namespaces", "a.b", "at most 63"),
            ("--watch-namespaces", "a,,b", "\"\" is not the name"),
            ("--watch-namespaces", "shop,", "\"\" is not the name"),
            ("--watch-namespaces", "*", "namespace"),
            ("--watch-namespaces", "shop-", "\"shop-\""),
            ("--watch-namespaces", "b,a,b", "\"b\" is listed twice"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value), "{error}");
            assert!(error.contains(allowed), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn renewal_interval_too_long_for_the_lease_is_rejected() {
        let args = parse(&["--renew-interval", "3s"]).unwrap();
        let error = args.config().settings().unwrap_err().to_string();
        assert!(
            error.starts_with("--renew-interval 3s: must be between"),
            "{error}"
        );
    }

    #[test]
    fn namespaces_are_split_and_sorted() {
        let args = parse(&["--watch-namespaces", "b, a"]).unwrap();
        assert_eq!(args.namespaces(), ["a", "b"]);
        for all in ["", " "] {
            let args = parse(&["--watch-namespaces", all]).unwrap();
            assert!(args.namespaces().is_empty(), "{all:?} is all namespaces");
        }
        let long = "a".repeat(64);
        assert!(parse(&["--watch-namespaces", &long]).is_err());
        assert!(parse(&["--watch-namespaces", &long[1..]]).is_ok());
    }
}
