//! The `DatabaseCluster` kind: spec, status, conditions, and the CRD made from them.

mod crd;
pub mod names;
mod spec;
mod status;

pub use crd::{CrdError, crd, crd_yaml};
pub use spec::{
    DatabaseCluster, DatabaseClusterSpec, NAME_LENGTH_MAX, REPLICAS_MAX, Resources, Retain, Storage,
};
pub use status::{
    Condition, ConditionStatus, ConditionType, DatabaseClusterStatus, Phase, ShardStatus,
};
