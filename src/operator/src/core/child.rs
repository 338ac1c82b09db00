//! The children of a cluster: their kinds, and the desired state of one.

use std::fmt;
use std::sync::Arc;

/// A kind of object that the operator creates for a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChildKind {
    /// `v1` ConfigMap.
    ConfigMap,
    /// `policy/v1` PodDisruptionBudget.
    PodDisruptionBudget,
    /// `v1` Secret.
    Secret,
    /// `v1` Service.
    Service,
    /// `apps/v1` StatefulSet.
    StatefulSet,
}

impl ChildKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::ConfigMap,
        Self::PodDisruptionBudget,
        Self::Secret,
        Self::Service,
        Self::StatefulSet,
    ];

    /// The Kubernetes kind.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::StatefulSet => "StatefulSet",
        }
    }
}

impl fmt::Display for ChildKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Kind and name of a child; its namespace is its cluster's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId {
    /// The kind.
    pub kind: ChildKind,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// The desired state of a child as digests: enough to detect a difference. The manifest to apply is
/// rendered only if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredChild {
    /// Kind and name.
    pub id: ChildId,
    /// Hash of the manifest without fencing token and generation: a takeover does not change it.
    pub fingerprint: Fingerprint,
    /// Digest of the spec's fields that we own, as `StatefulSetRecord::spec_digest` has it.
    pub spec_digest: u64,
    /// Digest of the labels that we own, as `StatefulSetRecord::labels_digest` has it.
    pub labels_digest: u64,
}

/// A child's fingerprint, in the annotation as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Reads an annotation; none if it is not a fingerprint.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = is_hex.then(|| u64::from_str_radix(text, 16).ok())?;
        number.map(Self)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
