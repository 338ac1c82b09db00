//! The faults that a scenario can inject.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// One fault, with the time at which it begins.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "toml::Table")]
pub struct Fault {
    /// When it begins, from the beginning of the load.
    pub at_seconds: f64,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
}

/// Which replicas.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// The holder of a random shard.
    ShardLeader,
    /// The fleet leader.
    FleetLeader,
    /// A random replica.
    Any,
    /// The replica that joined last.
    Youngest,
    /// All but a random one.
    AllButOne,
    /// All.
    All,
}

/// What happens to a killed replica.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// Its Pod is removed and replaced, as when a node is lost.
    #[default]
    Replace,
    /// The process starts again in the same Pod, as the kubelet does.
    Restart,
    /// It is not replaced.
    Nothing,
}

/// How Leases are edited by hand.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseEdit {
    /// A shard Lease is deleted.
    DeleteShard,
    /// A member Lease is deleted.
    DeleteMember,
    /// The fleet leader's Lease is deleted.
    DeleteLeader,
    /// A shard Lease is emptied.
    Vacate,
    /// A shard Lease is given to a replica that does not exist, with the next epoch.
    Usurp,
    /// All shard Leases are deleted at once.
    DeleteAllShards,
}

/// A program of the control plane.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum Program {
    /// The API server.
    #[serde(rename = "kube-apiserver")]
    ApiServer,
    /// The store below it.
    #[serde(rename = "etcd")]
    Etcd,
}

impl Program {
    /// The program's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::Etcd => "etcd",
        }
    }
}

/// Which way a partition cuts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Neither requests nor responses pass.
    #[default]
    Both,
    /// Requests are executed, but responses are dropped.
    AnswersOnly,
    /// Requests for Leases and the shard table do not pass; all others do.
    LeasesOnly,
}

/// The response that the API server seems to send.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// 429 with `Retry-After`.
    TooManyRequests,
    /// 500.
    InternalError,
    /// 409.
    Conflict,
    /// 410, which ends a watch and requires a new list.
    Gone,
}

/// What happens to watches.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Watch {
    /// They stay open without events.
    Frozen,
    /// They are cut again and again.
    Cut,
    /// Their events are delayed.
    Late,
}

/// What a crash waits for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The write was executed and its response was not delivered.
    BeforeReply,
    /// The response was delivered.
    AfterReply,
}

/// The rate of a clock, within what the margin allows for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    /// A twentieth too slow.
    Slow,
    /// A twentieth too fast.
    Fast,
}

/// What a fault does.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kind {
    /// SIGKILL.
    Kill {
        /// The replicas that it hits.
        who: Who,
        /// The replacement.
        #[serde(default)]
        then: Then,
        /// After how long.
        #[serde(default)]
        after_seconds: f64,
    },
    /// SIGSTOP, and SIGCONT after a while.
    Freeze {
        /// The replicas that it hits.
        who: Who,
        /// For how long.
        seconds: f64,
    },
    /// SIGTERM to one after the other, each replaced before it stops, as a Deployment does.
    Roll {},
    /// The number of replicas changes: new ones start, or the youngest get SIGTERM.
    Scale {
        /// To how many.
        to: usize,
    },
    /// SIGKILL and a start in the same Pod, again and again.
    Flap {
        /// The replicas that it hits.
        who: Who,
        /// How often.
        times: u32,
        /// How long it lives each time.
        every_seconds: f64,
    },
    /// A program of the control plane is killed and started again.
    Outage {
        /// Which.
        program: Program,
        /// After how long it is started.
        seconds: f64,
    },
    /// A program of the control plane hangs (SIGSTOP).
    Stall {
        /// Which.
        program: Program,
        /// For how long.
        seconds: f64,
    },
    /// Leases are edited by hand.
    Leases {
        /// How.
        edit: LeaseEdit,
    },
    /// The operator's rights are revoked and granted again.
    Rights {
        /// After how long.
        seconds: f64,
    },
    /// A user forges fencing tokens of high epochs, on objects of a namespace of its own.
    ForgedTokens {
        /// For how long.
        seconds: f64,
        /// How many a second.
        per_second: f64,
    },
    /// The shard table is deleted while replicas hold shards.
    Table {},
    /// A replica restarts in the same Pod, and admission rejects its writes of the shard table.
    TableRefused {
        /// The replicas that it hits.
        who: Who,
        /// For how long.
        seconds: f64,
    },
    /// The CRD is deleted, which deletes every DatabaseCluster, and re-created.
    Crd {
        /// After how long.
        seconds: f64,
    },
    /// Another client forcibly writes the operator's own fields of StatefulSets.
    ConflictingWriter {
        /// For how long.
        seconds: f64,
        /// How many writes a second.
        per_second: f64,
    },
    /// Many DatabaseClusters at once.
    Burst {
        /// How many.
        clusters: usize,
    },
    /// One replica does not get enough CPU or memory, by a control group.
    Starve {
        /// The replicas that it hits.
        who: Who,
        /// Percentage of one CPU; 0: no limit.
        #[serde(default)]
        cpu_percent: u32,
        /// Memory beyond its present use; 0: no limit.
        #[serde(default)]
        memory_kib: u64,
        /// For how long.
        seconds: f64,
    },
    /// The network between replica and API server is cut.
    Partition {
        /// The replicas that it hits.
        who: Who,
        /// Which way.
        #[serde(default)]
        direction: Direction,
        /// For how long.
        seconds: f64,
    },
    /// Requests that are not watches are delayed, held back, or cut.
    Network {
        /// The replicas that it hits.
        who: Who,
        /// How much later each request arrives.
        #[serde(default)]
        late_ms: u64,
        /// Percentage of requests that hang until the fault ends.
        #[serde(default)]
        hang_percent: u8,
        /// Percentage of connections that are cut before the request arrives.
        #[serde(default)]
        cut_percent: u8,
        /// For how long.
        seconds: f64,
    },
    /// Writes of neither Leases nor the shard table are held back in the network and arrive when the fault ends.
    HoldWrites {
        /// The replicas that it hits.
        who: Who,
        /// For how long.
        seconds: f64,
    },
    /// The API server seems to answer with an error.
    Errors {
        /// The replicas that it hits.
        who: Who,
        /// Which.
        answer: Answer,
        /// Percentage of requests.
        percent: u8,
        /// For how long.
        seconds: f64,
    },
    /// Watches are frozen, cut, or delayed.
    Watch {
        /// The replicas that it hits.
        who: Who,
        /// How.
        how: Watch,
        /// How late, or how long each one lives.
        #[serde(default)]
        ms: u64,
        /// For how long.
        seconds: f64,
    },
    /// One cluster is created, changed and deleted, and the replica that works on it is killed at its n-th write;
    /// once for each n until a run passes without a crash.
    CrashPoints {
        /// Before or after the reply.
        by: By,
    },
    /// One more replica joins, whose clocks are off.
    Clocks {
        /// How far its boot-time clock is ahead.
        #[serde(default)]
        boot_seconds: u64,
        /// At which rate it runs, in a program with failpoints.
        #[serde(default)]
        rate: Option<Rate>,
    },
}

impl TryFrom<toml::Table> for Fault {
    type Error = String;

    fn try_from(mut table: toml::Table) -> std::result::Result<Self, String> {
        let at = table
            .remove("at_seconds")
            .ok_or("a fault has no at_seconds")?;
        #[allow(clippy::cast_precision_loss)]
        let at_seconds = match at {
            toml::Value::Integer(seconds) => seconds as f64,
            toml::Value::Float(seconds) => seconds,
            other => return Err(format!("at_seconds is {other:?}: a number")),
        };
        let kind = toml::Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| error.message().to_owned())?;
        Ok(Self { at_seconds, kind })
    }
}

impl Fault {
    /// Its name in scenario files.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match &self.kind {
            Kind::Kill { .. } => "kill",
            Kind::Freeze { .. } => "freeze",
            Kind::Roll {} => "roll",
            Kind::Scale { .. } => "scale",
            Kind::Flap { .. } => "flap",
            Kind::Outage { .. } => "outage",
            Kind::Stall { .. } => "stall",
            Kind::Leases { .. } => "leases",
            Kind::Rights { .. } => "rights",
            Kind::Crd { .. } => "crd",
            Kind::ForgedTokens { .. } => "forged-tokens",
            Kind::Table {} => "table",
            Kind::TableRefused { .. } => "table-refused",
            Kind::ConflictingWriter { .. } => "conflicting-writer",
            Kind::Burst { .. } => "burst",
            Kind::Starve { .. } => "starve",
            Kind::Partition { .. } => "partition",
            Kind::Network { .. } => "network",
            Kind::HoldWrites { .. } => "hold-writes",
            Kind::Errors { .. } => "errors",
            Kind::Watch { .. } => "watch",
            Kind::CrashPoints { .. } => "crash-points",
            Kind::Clocks { .. } => "clocks",
        }
    }

    /// The replicas that it hits, if any.
    #[must_use]
    pub fn who(&self) -> Option<Who> {
        match &self.kind {
            Kind::Kill { who, .. }
            | Kind::Freeze { who, .. }
            | Kind::Flap { who, .. }
            | Kind::TableRefused { who, .. }
            | Kind::Starve { who, .. }
            | Kind::Partition { who, .. }
            | Kind::Network { who, .. }
            | Kind::HoldWrites { who, .. }
            | Kind::Errors { who, .. }
            | Kind::Watch { who, .. } => Some(*who),
            _ => None,
        }
    }

    /// How long it lasts; 0 when it is over as soon as it is done.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        match &self.kind {
            Kind::Kill { after_seconds, .. } => *after_seconds,
            Kind::Freeze { seconds, .. }
            | Kind::Outage { seconds, .. }
            | Kind::Stall { seconds, .. }
            | Kind::Rights { seconds }
            | Kind::Crd { seconds }
            | Kind::ForgedTokens { seconds, .. }
            | Kind::TableRefused { seconds, .. }
            | Kind::ConflictingWriter { seconds, .. }
            | Kind::Starve { seconds, .. }
            | Kind::Partition { seconds, .. }
            | Kind::Network { seconds, .. }
            | Kind::HoldWrites { seconds, .. }
            | Kind::Errors { seconds, .. }
            | Kind::Watch { seconds, .. } => *seconds,
            _ => 0.0,
        }
    }

    /// Whether only the proxy between replica and API server can inject it.
    #[must_use]
    pub fn needs_proxy(&self) -> bool {
        matches!(
            self.kind,
            Kind::Partition { .. }
                | Kind::Network { .. }
                | Kind::HoldWrites { .. }
                | Kind::Errors { .. }
                | Kind::Watch { .. }
                | Kind::CrashPoints { .. }
        )
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            (0.0..=3_600.0).contains(&self.at_seconds),
            "at_seconds is {}: 0 to 3,600",
            self.at_seconds
        );
        ensure!(
            (0.0..=600.0).contains(&self.seconds()),
            "it lasts {} s: 0 to 600",
            self.seconds()
        );
        match self.kind {
            Kind::Scale { to } => ensure!((1..=16).contains(&to), "to is {to}: 1 to 16"),
            Kind::Flap { times, .. } => {
                ensure!((1..=50).contains(&times), "times is {times}: 1 to 50")
            }
            Kind::Burst { clusters } => {
                ensure!(
                    (1..=20_000).contains(&clusters),
                    "clusters is {clusters}: 1 to 20,000"
                );
            }
            Kind::Starve {
                cpu_percent,
                memory_kib,
                ..
            } => {
                ensure!(
                    cpu_percent > 0 || memory_kib > 0,
                    "neither cpu_percent nor memory_kib is given"
                );
            }
            Kind::Errors { percent, .. } => {
                ensure!(
                    (1..=100).contains(&percent),
                    "percent is {percent}: 1 to 100"
                );
            }
            Kind::Network {
                late_ms,
                hang_percent,
                cut_percent,
                ..
            } => {
                ensure!(
                    hang_percent <= 100 && cut_percent <= 100,
                    "more than 100 per cent"
                );
                ensure!(
                    late_ms > 0 || hang_percent > 0 || cut_percent > 0,
                    "no fault of the network is given"
                );
            }
            Kind::Clocks { boot_seconds, rate } => {
                ensure!(
                    (boot_seconds > 0) != rate.is_some(),
                    "either boot_seconds or rate: which clock is off, and how"
                );
            }
            _ => {}
        }
        Ok(())
    }
}
