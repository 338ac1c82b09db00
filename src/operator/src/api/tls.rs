//! TLS of the instances.
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A cheap form of the rule for names: the API server estimates the cost of a pattern from the longest text.
const NAME: &str = "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')";

/// TLS of the instances.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Secret of this namespace with the keys `tls.crt`, `tls.key` and `ca.crt`, as cert-manager writes them. The
    /// certificate must be valid for `<name>-rw.<namespace>.svc`, `<name>-r.<namespace>.svc` and
    /// `<name>-db-0.<name>-db.<namespace>.svc`, and verify against `ca.crt`. A renewed certificate is reloaded without a
    /// restart.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(NAME).message("tls.secretName must be the name of a Secret of this namespace: lower-case letters, digits, '-' and '.', for example orders-tls"))]
    pub secret_name: String,

    /// Whether connections over the network are refused unless they use TLS. `false` if it is not set: a client that
    /// does not ask for TLS connects without it, as before.
    #[serde(default)]
    pub required: bool,
}
