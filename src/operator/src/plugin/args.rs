//! The command line of `kubectl dbc`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{DEFAULT_NAMESPACE, duration};

/// Shows, explains and changes DatabaseClusters and the replicas of their operator.
#[derive(Parser)]
#[command(
    name = "kubectl-dbc",
    bin_name = "kubectl dbc",
    version = super::VERSION,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 not found or nothing to show, 4 refused by the \
                  API server, 5 a DatabaseCluster is not Ready (explain), 6 not finished in time.",
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster is meant, and as which user: as kubectl does.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Access {
    /// Namespace of the DatabaseClusters; for commands about the fleet, that of the operator.
    #[arg(long, short = 'n', global = true)]
    pub(crate) namespace: Option<String>,
    /// Namespace of the operator: of its Leases and its shard table.
    #[arg(long, global = true, env = "DBC_NAMESPACE", default_value = DEFAULT_NAMESPACE)]
    pub(crate) operator_namespace: String,
    /// Path of the kubeconfig; by default $KUBECONFIG, or ~/.kube/config.
    #[arg(long, global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    pub(crate) context: Option<String>,
    /// Cluster of the kubeconfig.
    #[arg(long, global = true)]
    pub(crate) cluster: Option<String>,
    /// User of the kubeconfig.
    #[arg(long, global = true)]
    pub(crate) user: Option<String>,
    /// User to impersonate.
    #[arg(long = "as", global = true)]
    pub(crate) impersonate: Option<String>,
    /// Group to impersonate; may be repeated.
    #[arg(long = "as-group", global = true)]
    pub(crate) impersonate_groups: Vec<String>,
    /// Longest wait for an answer of the API server.
    #[arg(long, global = true, value_parser = duration, default_value = "30s")]
    pub(crate) request_timeout: Duration,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Resource names only.
    Name,
}

/// How, and how often, a result is printed.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Show {
    /// Form of the output; a table by default.
    #[arg(long, short = 'o', value_enum)]
    pub(crate) output: Option<Format>,
    /// Print again after each change, until interrupted.
    #[arg(long, short = 'w')]
    pub(crate) watch: bool,
}

/// Which DatabaseClusters are meant.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Which {
    /// Names of DatabaseClusters; all of the namespace by default.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// In all namespaces.
    #[arg(long, short = 'A', conflicts_with = "names")]
    pub(crate) all_namespaces: bool,
}

/// Which fleets are meant.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Fleets {
    /// The fleets of all namespaces.
    #[arg(long, short = 'A')]
    pub(crate) all_namespaces: bool,
}

/// One change of a DatabaseCluster, and whether its effect is waited for.
#[derive(Args, Clone, Debug)]
pub(crate) struct Change {
    /// Name of the DatabaseCluster.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Wait until the change has taken effect.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Longest wait.
    #[arg(long, value_parser = duration, default_value = "10m")]
    pub(crate) timeout: Duration,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show DatabaseClusters: primary, instances with lag and volume use, children, conditions, Events, and the replica
    /// that reconciles each.
    Status {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        show: Show,
    },
    /// Explain why DatabaseClusters are not Ready: each cause, with the next step.
    Explain {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        show: Show,
    },
    /// Print the logs of a database's instances.
    Logs(Logs),
    /// Open psql in the primary of a database, or run it with the arguments after `--`.
    Psql {
        /// Name of the DatabaseCluster.
        #[arg(value_name = "NAME")]
        name: String,
        /// Number of the instance; 0 is the primary.
        #[arg(long, default_value_t = 0)]
        instance: u32,
        /// Arguments of psql.
        #[arg(last = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Stop all instances of a database and keep its volumes: sets `spec.replicas` to 0.
    Pause(Change),
    /// Start the instances of a paused database again.
    Resume {
        #[command(flatten)]
        change: Change,
        /// Number of instances; by default as many as before `pause`.
        #[arg(long)]
        replicas: Option<u32>,
    },
    /// Restart the instances of a database one after the other, the primary last.
    Restart(Change),
    /// Show the whole fleet: replicas and shards.
    Fleet {
        #[command(flatten)]
        show: Show,
    },
    /// Show which replica holds which shard, and whether the shard table agrees.
    Shards {
        #[command(flatten)]
        fleets: Fleets,
        #[command(flatten)]
        show: Show,
    },
    /// Show the replicas of the operator.
    Replicas {
        #[command(flatten)]
        fleets: Fleets,
        #[command(flatten)]
        show: Show,
    },
    /// Show what the replicas of the operator use, and how much work waits, the busiest first.
    Top {
        #[command(flatten)]
        fleets: Fleets,
        #[command(flatten)]
        show: Show,
    },
    /// Move a shard to a replica, and wait until it works there.
    Move {
        /// Number of the shard.
        shard: u16,
        /// Identity of the replica, which is the name of its Pod.
        replica: String,
        /// Longest wait.
        #[arg(long, value_parser = duration, default_value = "2m")]
        timeout: Duration,
    },
    /// Move all shards away from a replica and give it no more, until it ends or the request is withdrawn.
    Drain {
        /// Identity of the replica, which is the name of its Pod.
        replica: String,
        /// Withdraw the request: the replica receives shards again.
        #[arg(long)]
        undo: bool,
        /// Longest wait.
        #[arg(long, value_parser = duration, default_value = "2m")]
        timeout: Duration,
    },
    /// Write an archive for a bug report, without Secrets, passwords and environment values.
    Report {
        /// Names of DatabaseClusters to include.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// The file to write; it must not exist. By default `kubectl-dbc-report-<time>.tar.gz` in this folder.
        #[arg(long, short = 'f')]
        file: Option<PathBuf>,
    },
    /// Print the versions of the plugin and of the operator.
    Version {
        /// Form of the output.
        #[arg(long, short = 'o', value_enum)]
        output: Option<Format>,
        /// The plugin's version only: nothing is asked.
        #[arg(long)]
        client: bool,
    },
    /// Print completions for kubectl, as `kubectl_complete-dbc` does.
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words after `kubectl dbc`, the last of which is incomplete.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Which logs, as `kubectl logs` has them.
#[derive(Args, Clone, Debug)]
pub(crate) struct Logs {
    /// Name of the DatabaseCluster.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Number of the instance; 0 is the primary.
    #[arg(long, default_value_t = 0, conflicts_with = "all_instances")]
    pub(crate) instance: u32,
    /// Logs of all instances, each line with the name of its Pod before it.
    #[arg(long)]
    pub(crate) all_instances: bool,
    /// Container: `postgres`, or `prepare`, which prepares the volume.
    #[arg(long, short = 'c', default_value = crate::postgres::CONTAINER)]
    pub(crate) container: String,
    /// Keep printing new lines.
    #[arg(long, short = 'f')]
    pub(crate) follow: bool,
    /// The container that ran before.
    #[arg(long, short = 'p')]
    pub(crate) previous: bool,
    /// Number of lines from the end.
    #[arg(long)]
    pub(crate) tail: Option<u32>,
    /// Lines of this time only, for example 10m.
    #[arg(long, value_parser = duration)]
    pub(crate) since: Option<Duration>,
}
