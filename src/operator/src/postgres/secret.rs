//! The Secret `{name}-app`: the credentials for applications. Created once, never read.

use std::fmt;

use serde_json::{Value, json};

use super::{PORT, fingerprint, metadata, rw_host, tls};
use crate::api::names;
use crate::core::child::{ChildId, ChildKind};
use crate::core::observed::ClusterRecord;
use shard_ownership::token::FencingToken;

/// Keys that Pods need; nothing else of the Secret is mounted: the creator of a DatabaseCluster chooses
/// what its Pods run, and the name of the DatabaseCluster determines the Secret. A Secret without all
/// of them is not mounted at all.
pub(super) const MOUNTED_KEYS: [&str; 4] =
    ["username", "password", "dbname", "replication-password"];
/// Key with the uid of the cluster for which the operator created the Secret. A Secret that a user
/// created does not have it.
pub(super) const CLUSTER_UID_KEY: &str = "cluster-uid";
/// Role and database of the applications.
const USERNAME: &str = "app";
/// Letters and digits of a password: as many as need no escape in a URI, in a file or in SQL.
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// Length of a password: 190 bits.
const PASSWORD_LENGTH: usize = 32;
/// Random bytes for one password: more than its length, because some are discarded.
pub(crate) const RANDOM_BYTES: usize = 128;

/// A password. Its `Debug` output does not contain it.
pub struct Password(String);

impl Password {
    /// A password from random bytes; none if too few of them can be used.
    ///
    /// Bytes that would make some letters more likely than others are discarded.
    #[must_use]
    pub fn from_random(bytes: &[u8; RANDOM_BYTES]) -> Option<Self> {
        let fair = u8::try_from(256 / ALPHABET.len() * ALPHABET.len()).ok()?;
        let text: String = bytes
            .iter()
            .filter(|byte| **byte < fair)
            .filter_map(|byte| ALPHABET.get(usize::from(*byte) % ALPHABET.len()))
            .map(|letter| char::from(*letter))
            .take(PASSWORD_LENGTH)
            .collect();
        (text.len() == PASSWORD_LENGTH).then_some(Self(text))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Name of the Secret of a cluster.
#[must_use]
pub(crate) fn secret_name(cluster: &str) -> String {
    format!("{cluster}-app")
}

/// Kind and name of the Secret of a cluster.
#[must_use]
pub(crate) fn secret_id(cluster: &str) -> ChildId {
    ChildId {
        kind: ChildKind::Secret,
        name: secret_name(cluster).into(),
    }
}

/// A Secret that is never stored: whether a dry run could create it shows whether there is one of its name.
#[must_use]
pub(crate) fn trial_secret(cluster: &ClusterRecord, name: &str, token: &FencingToken) -> Value {
    let mut manifest = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(cluster, name),
        "type": "Opaque",
    });
    let annotations = &mut manifest["metadata"]["annotations"];
    annotations[names::FENCING_TOKEN_ANNOTATION] = json!(token.for_cluster(&cluster.uid));
    manifest
}

/// The Secret, with the fencing token of the writer. `replication` is the password of the replicas.
#[must_use]
pub fn secret(
    cluster: &ClusterRecord,
    password: &Password,
    replication: &Password,
    token: &FencingToken,
) -> Value {
    let name = secret_name(&cluster.key.name);
    let mut manifest = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(cluster, &name),
        "type": "Opaque",
    });
    // Computed without the passwords: they must not be derivable from the fingerprint.
    let fingerprint = fingerprint(&manifest).to_string();
    let annotations = &mut manifest["metadata"]["annotations"];
    annotations[names::FENCING_TOKEN_ANNOTATION] = json!(token.for_cluster(&cluster.uid));
    annotations[names::FINGERPRINT_ANNOTATION] = json!(fingerprint);
    annotations[names::GENERATION_ANNOTATION] = json!(cluster.generation.to_string());
    let (host, password) = (rw_host(cluster), &password.0);
    manifest["stringData"] = json!({
        "username": USERNAME,
        "password": password,
        "host": host,
        "port": PORT.to_string(),
        "dbname": USERNAME,
        "uri": format!(
            "postgresql://{USERNAME}:{password}@{host}:{PORT}/{USERNAME}{}",
            tls::uri_parameters(cluster),
        ),
        "replication-password": replication.0,
        CLUSTER_UID_KEY: *cluster.uid,
    });
    manifest
}
