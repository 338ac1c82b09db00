//! The ConfigMap `{name}-db`: the scripts that the Pods run, whether there is data already, and the parameters that a
//! running server reloads.

use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{exporter, metadata, settings, statefulset_name, tls};
use crate::api::names;
use crate::core::observed::ClusterRecord;

/// Runs before PostgreSQL in each Pod.
pub(super) const PREPARE: &str = "prepare.sh";
/// Creates roles, database and settings.
pub(super) const INITDB: &str = "initdb.sh";
/// Whether the server of a Pod is alive.
pub(super) const ALIVE: &str = "alive.sh";
/// Whether clients may be sent to a Pod.
pub(super) const READY: &str = "ready.sh";
/// Hands settings to PostgreSQL.
const SETTINGS: &str = "settings.sh";
/// The host of the primary.
const PRIMARY: &str = "primary.sh";
/// Whether the primary had data: then an empty volume is a lost one.
const INITIALIZED: &str = "initialized";
/// Parameters that a running server reloads.
pub(super) const PARAMETERS: &str = "parameters.conf";

const SCRIPTS: [(&str, &str); 6] = [
    (ALIVE, include_str!("scripts/alive.sh")),
    (INITDB, include_str!("scripts/initdb.sh")),
    (PREPARE, include_str!("scripts/prepare.sh")),
    (PRIMARY, include_str!("scripts/primary.sh")),
    (READY, include_str!("scripts/ready.sh")),
    (SETTINGS, include_str!("scripts/settings.sh")),
];

/// The scripts of every Pod as `sha256sum --check` reads them.
static SHA256: LazyLock<String> = LazyLock::new(|| sha256(&SCRIPTS));

/// The scripts as `sha256sum --check` reads them. It is in the Pod template, which fewer may change
/// than ConfigMaps.
pub(super) fn digests(cluster: &ClusterRecord) -> String {
    SHA256.clone() + &sha256(&extra(cluster))
}

/// Scripts that only the fields of this cluster need.
fn extra(cluster: &ClusterRecord) -> Vec<(&'static str, &'static str)> {
    let exporter = exporter::of(cluster).map(|_| exporter::SCRIPT);
    let tls = tls::of(cluster).map(|_| tls::SCRIPT);
    exporter.into_iter().chain(tls).collect()
}

fn sha256(scripts: &[(&str, &str)]) -> String {
    scripts
        .iter()
        .fold(String::new(), |mut lines, (name, text)| {
            for byte in Sha256::digest(text) {
                // Writing to a String cannot fail.
                let _ok = write!(lines, "{byte:02x}");
            }
            lines + "  " + name + "\n"
        })
}

pub(super) fn render(cluster: &ClusterRecord, initialized: bool) -> Value {
    let mut metadata = metadata(cluster, &statefulset_name(&cluster.key.name));
    if initialized {
        metadata["annotations"][names::INITIALIZED_ANNOTATION] = json!("true");
    }
    let mut data: Map<String, Value> = SCRIPTS
        .iter()
        .copied()
        .chain(extra(cluster))
        .map(|(name, text)| (name.to_owned(), json!(text)))
        .collect();
    data.insert(INITIALIZED.to_owned(), json!(initialized.to_string()));
    data.insert(PARAMETERS.to_owned(), json!(settings::reloaded(cluster)));
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": data,
    })
}

/// The difference between a ConfigMap of a cluster with data and of one without.
pub(super) fn with_data() -> Value {
    json!({
        "metadata": {"annotations": {names::INITIALIZED_ANNOTATION: "true"}},
        "data": {INITIALIZED: "true"},
    })
}
