//! Who is measured, and of how many processes.

use serde::{Deserialize, Serialize};

/// One of those that do the same job.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Side {
    /// The operator as it is deployed: three replicas that share the work.
    Operator,
    /// One replica of the operator.
    OperatorAlone,
    /// The Go peer as it would be deployed: one process that works, and one that waits.
    Go,
    /// The same with the defaults of its libraries where they cost more.
    GoTypical,
    /// kube-rs's `Controller` with kube-leader-election, deployed in the same way.
    KubeRs,
}

impl Side {
    pub(crate) const ALL: [Self; 5] = [
        Self::Operator,
        Self::OperatorAlone,
        Self::Go,
        Self::GoTypical,
        Self::KubeRs,
    ];

    /// Its heading in tables.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator, 3 replicas",
            Self::OperatorAlone => "operator, 1 replica",
            Self::Go => "Go peer",
            Self::GoTypical => "Go peer, typical",
            Self::KubeRs => "kube-rs peer",
        }
    }

    /// How many processes run.
    pub(crate) fn processes(self) -> usize {
        match self {
            Self::Operator => crate::REPLICAS,
            Self::OperatorAlone => 1,
            Self::Go | Self::GoTypical | Self::KubeRs => 2,
        }
    }

    /// Whether another process takes over when the working one is killed.
    pub(crate) fn has_successor(self) -> bool {
        self.processes() > 1
    }
}
