//! The evidence of a run for the checker: process lifetimes, faults and their targets, what users asked for, the final
//! state, and samples. The API server's audit log lies beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use testbed::table::Table;

use crate::checker::History;
use crate::scenario::Scenario;

/// Microseconds since 1970, as in the audit log.
pub type Micros = i64;

/// The present moment.
#[must_use]
pub fn now_micros() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A number of seconds as microseconds.
#[must_use]
#[allow(clippy::cast_possible_truncation)]
pub fn micros(seconds: f64) -> Micros {
    (seconds * 1e6) as Micros
}

/// Microseconds as seconds.
#[must_use]
#[allow(clippy::cast_precision_loss)]
pub fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}

/// All that the checker gets beside the audit log.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Evidence {
    /// What was to be done.
    pub scenario: Scenario,
    /// When all replicas were ready and the users began.
    pub begun: Micros,
    /// When the users stopped.
    pub load_ended: Micros,
    /// When all was found converged; none when it was not.
    pub converged: Option<Micros>,
    /// Start and end of the observed time without user requests, in which the fleet should have been quiet.
    pub quiet: Option<(Micros, Micros)>,
    /// Every process that ever ran.
    pub lives: Vec<Life>,
    /// Every fault that was injected.
    pub faults: Vec<Injected>,
    /// What users asked for.
    pub asked: Asked,
    /// The final state.
    pub last: LastState,
    /// Resource usage and metrics of the replicas, twice a second.
    pub samples: Vec<Sample>,
    /// Why the runner stopped early, if it did.
    pub problem: Option<String>,
}

/// One process of a replica.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Life {
    /// The replica's Pod.
    pub pod: String,
    /// From.
    pub from: Micros,
    /// To; none: it was alive in the end.
    pub to: Option<Micros>,
    /// When it could do nothing: frozen, or cut off.
    pub absent: Vec<(Micros, Micros)>,
}

impl Life {
    /// Whether it ran and could act.
    #[must_use]
    pub fn acts_at(&self, at: Micros) -> bool {
        self.runs_at(at)
            && !self
                .absent
                .iter()
                .any(|(from, to)| (*from..*to).contains(&at))
    }

    /// Whether the process existed.
    #[must_use]
    pub fn runs_at(&self, at: Micros) -> bool {
        at >= self.from && self.to.is_none_or(|to| at < to)
    }
}

/// One fault that was injected.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Injected {
    /// Its kind, as in scenario files.
    pub kind: String,
    /// In words: what was done to which replicas.
    pub what: String,
    /// The replicas that were hit.
    pub pods: Vec<String>,
    /// When it began.
    pub from: Micros,
    /// When it ended.
    pub to: Micros,
    /// From when on the promise counts that all is held within the Lease's lifetime and 1 s; none for what may leave
    /// no shard unheld at all, such as a planned stop.
    pub recover_from: Option<Micros>,
    /// Whether it takes the replicas out of the fleet, so that others must take over their work.
    pub takes_out: bool,
    /// Whether requests may reach the API server long after they were sent.
    pub delays_requests: bool,
    /// Whether requests may be executed that the audit log does not contain.
    pub hides_requests: bool,
    /// How often it took effect: signals sent, requests disturbed, Leases edited.
    pub bites: u64,
    /// DatabaseClusters, by `namespace/name`, that are meant to suffer while it lasts.
    #[serde(default)]
    pub victims: Vec<String>,
    /// The lowest epoch of the fencing tokens that it forged.
    #[serde(default)]
    pub forged_epoch: Option<i64>,
    /// What was not as expected while it lasted.
    #[serde(default)]
    pub unexpected: Vec<String>,
}

/// What users asked for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Asked {
    /// Changes that the API server accepted.
    pub accepted: u64,
    /// Changes that were sent again because their outcome was not known.
    pub repeated: u64,
    /// What each cluster, by `namespace/name`, should be in the end: its CPU request and its replicas; none: deleted.
    pub wanted: BTreeMap<String, Option<Wanted>>,
}

/// What a cluster should be.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Wanted {
    /// CPU.
    pub cpu: String,
    /// Instances.
    pub replicas: u32,
}

/// The final state.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LastState {
    /// The DatabaseClusters, by `namespace/name`.
    pub clusters: BTreeMap<String, LastCluster>,
    /// All children, by `kind/namespace/name`.
    pub children: BTreeMap<String, LastChild>,
    /// The shard Leases: name, holder and epoch.
    pub shards: Vec<(String, String, i64)>,
    /// The shard table.
    #[serde(default)]
    pub table: Option<Table>,
}

/// A DatabaseCluster in the end.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LastCluster {
    /// Its uid.
    pub uid: String,
    /// Its CPU request.
    pub cpu: String,
    /// Its instances.
    pub replicas: u32,
    /// Why it is not Ready; none: it is.
    pub not_ready: Option<String>,
    /// The fencing token in its annotation.
    #[serde(default)]
    pub token: String,
    /// The fencing token in its status, written as in an annotation.
    #[serde(default)]
    pub status_token: String,
    /// Whether another manager's mark still exists; none: it never had one.
    pub mark_kept: Option<bool>,
}

/// A child in the end.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LastChild {
    /// Its uid.
    pub uid: String,
    /// Its owner's uid.
    pub owner: String,
    /// The fencing token in its annotation.
    #[serde(default)]
    pub token: String,
    /// For StatefulSets: instances and CPU request of the first container.
    pub workload: Option<Wanted>,
    /// Whether another manager's mark still exists; none: it never had one.
    pub mark_kept: Option<bool>,
}

/// Resource usage and metrics of a replica at one moment.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Sample {
    /// When.
    pub at: Micros,
    /// The replica.
    pub pod: String,
    /// Memory, by the kernel.
    pub memory_bytes: u64,
    /// CPU used so far, by the kernel.
    pub cpu_seconds: f64,
    /// The metrics that it exported, summed over their labels. Empty when it did not answer.
    pub metrics: BTreeMap<String, f64>,
}

const EVIDENCE: &str = "evidence.json";
const AUDIT: &str = "audit.log";

impl Evidence {
    /// Writes it into a folder, and the audit log beside it.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn write(&self, folder: &Path, audit_log: &Path) -> Result<()> {
        let what = || format!("write the evidence into {}", folder.display());
        std::fs::create_dir_all(folder).with_context(what)?;
        std::fs::write(folder.join(EVIDENCE), serde_json::to_vec(self)?).with_context(what)?;
        std::fs::copy(audit_log, folder.join(AUDIT)).with_context(what)?;
        Ok(())
    }

    /// Reads what [`Evidence::write`] wrote.
    ///
    /// # Errors
    /// When it does not exist or cannot be parsed.
    pub fn read(folder: &Path) -> Result<(Self, History)> {
        let what = || format!("read the evidence in {}", folder.display());
        let text = std::fs::read(folder.join(EVIDENCE)).with_context(what)?;
        let evidence = serde_json::from_slice(&text).with_context(what)?;
        Ok((evidence, History::from_log(&folder.join(AUDIT))?))
    }

    /// The process of a replica at a moment.
    #[must_use]
    pub fn life_at(&self, pod: &str, at: Micros) -> Option<usize> {
        self.lives
            .iter()
            .position(|life| life.pod == pod && life.runs_at(at))
    }
}
